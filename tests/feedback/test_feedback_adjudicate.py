"""Adjudication over the API: who is asked about what, what only they see, what their word decides."""

from __future__ import annotations

import json

import pytest
from test_feedback_api import answer

from tutelage.core.errors import DataError, NotFound
from tutelage.core.records import Message
from tutelage.feedback import adjudicate, agreements, api, disputes, report
from tutelage.feedback.client import Client, Direct
from tutelage.feedback.export import export
from tutelage.feedback.wire import NewGold
from tutelage.store import answers, people, tasks

FORM = api.Form(
    questions=(
        api.Question(key="quality", per_candidate=True, required=False),
        api.Question(key="sort", kind="choice", choices=("a", "b"), required=False),
        api.Question(key="why", kind="text", required=False),
    )
)
ORDERS = ([[0], [1]], [[1], [0]])


def more(*keys):
    candidates = tuple(api.NewCandidate(content=f"answer {no}") for no in range(2))
    return [
        api.NewTask(
            key=key, kind="ranking", messages=(Message(role="user", content=f"q {key}"),), candidates=candidates
        )
        for key in keys
    ]


@pytest.fixture
def house(store):
    """`split` is ranked both ways, `half` only tagged differently, `agreed` the same; `open` waits for bert."""
    lead = people.create(store, "lead", roles=["lead"])
    judge = people.create(store, "judge", roles=["adjudicator"])
    crew = people.create_many(store, ["anna", "bert"])
    api.create_project(store, lead, api.NewProject(name="help", form=FORM, per_task=2))
    ids = dict(zip(("split", "half", "agreed", "open"), api.add_tasks(store, lead, "help", more(*"0123")), strict=True))
    for at, person in enumerate(crew):
        for item in api.claim(store, person, api.Claim(project="help", count=4)).items:
            name = next(name for name, id in ids.items() if id == item.task)
            if name == "open" and at:
                continue
            said = {"sort": "ab"[at] if name == "half" else "a", "why": f"I wrote to {person.name}@example.org"}
            given = answer(item, tiers=ORDERS[at if name == "split" else 0], values=said)
            assert api.submit(store, person, api.Answers(answers=[given])).receipts[0].status == "stored"
    return store, Client(Direct(store, lead)), judge, crew, ids


def decide(store, judge, item, cause, order=ORDERS[0], **fields):
    given = answer(item, key=f"{cause}-{item.slot}", tiers=order, values={"cause": cause, **fields})
    return api.submit(store, judge, api.Answers(answers=[given])).receipts[0]


def test_the_rule_opens_what_people_differ_most_about(house):
    store, lead, judge, crew, ids = house
    far = {each.task: each.worst for each in disputes.disputes(report.read(store, "help"))}
    assert far == {ids["split"]: 1.0, ids["half"]: 1.0, ids["agreed"]: 0.0}
    assert [each.task for each in lead.adjudicate("help", most=1)] == [ids["split"]]
    assert [each.model_dump() for each in lead.adjudicate("help", above=0.9)] == [
        {"task": ids["half"], "disagreement": 1.0}
    ]
    assert lead.adjudicate("help") == [] and lead.adjudications("help").waiting == 2
    assert {item.task for item in api.claim(store, judge, api.Claim(count=4)).items} == {ids["split"], ids["half"]}
    assert [item.task for item in api.claim(store, crew[1], api.Claim(count=4)).items] == [ids["open"]]


def test_tasks_named_by_hand(house):
    store, lead, judge, crew, ids = house
    assert [each.task for each in lead.adjudicate("help", [ids["agreed"]])] == [ids["agreed"]]
    for wanted, error, says in (
        (ids["open"], DataError, "still asked"),
        ("nothing", NotFound, "there is no task"),
    ):
        with pytest.raises(error, match=says):
            lead.adjudicate("help", [wanted])
    for person in (judge, crew[0]):
        with pytest.raises(api.Forbidden):
            Client(Direct(store, person)).adjudicate("help", [ids["split"]])
        with pytest.raises(api.Forbidden):
            Client(Direct(store, person)).adjudications("help")
    lead.change_settings("help", {"roles": ["annotator", "lead"]})
    with pytest.raises(DataError, match="may not answer in this project"):
        lead.adjudicate("help", [ids["split"]])


def test_kinds_of_people_are_not_mixed_when_tasks_are_chosen(house):
    store, lead, _, _, ids = house
    robots = people.create_many(store, ["r1", "r2"], kind="simulated")
    lead.add_tasks("help", more("robots"))
    for at, robot in enumerate(robots):
        while items := api.claim(store, robot, api.Claim(project="help")).items:
            api.submit(store, robot, api.Answers(answers=[answer(items[0], tiers=ORDERS[at])]))
    with pytest.raises(DataError, match="never pooled"):
        lead.adjudicate("help")
    opened = {each.task for each in lead.adjudicate("help", people="simulated")}
    assert opened and not opened & {ids["split"], ids["half"]}


def test_only_the_adjudicator_sees_what_the_others_said(house):
    store, lead, judge, (anna, bert), ids = house
    lead.adjudicate("help", [ids["split"]])
    (item,) = api.claim(store, judge, api.Claim(project="help")).items
    assert item.task == ids["split"] and [each["person"] for each in item.others] == [anna.pseudonym, bert.pseudonym]
    assert [each["tiers"] for each in item.others] == [[[0], [1]], [[1], [0]]]
    told = item.model_dump_json()
    assert "I wrote to [EMAIL]" in told and "example.org" not in told and '"anna"' not in told
    assert [each.key for each in item.questions][-2:] == ["cause", "cause_note"]
    assert api.held_item(store, judge, item.slot).others == item.others
    (other,) = api.claim(store, bert, api.Claim(project="help")).items
    assert other.others is None and "cause" not in {each.key for each in other.questions}
    assert anna.pseudonym not in other.model_dump_json()
    # nor does gold show anything, made of the same task
    decide(store, judge, item, "slip")
    lead.mark_gold("help", NewGold(task=ids["split"], rationale="so"))
    lead.change_settings("help", {"gold_share": 0.5})
    lead.add_tasks("help", more("5", "6", "7", "8"))
    carl = people.create(store, "carl")
    met = api.claim(store, carl, api.Claim(project="help", count=8)).items
    assert ids["split"] in {each.task for each in met} and {each.others for each in met} == {None}
    # not even in the hands of an adjudicator is an ordinary task shown with its answers
    given = api.claim(store, judge, api.Claim(project="help", count=8)).items
    assert given and {each.others for each in given} == {None}


def test_the_answer_needs_a_cause_and_a_broken_task_nothing_else(house):
    store, lead, judge, (_, bert), ids = house
    lead.adjudicate("help", [ids["split"], ids["half"]])
    first, second = api.claim(store, judge, api.Claim(project="help", count=2)).items
    for fields, says in (({}, "values.cause"), ({"cause": "bad mood"}, "none of the choices")):
        given = answer(first, key=f"wrong-{len(fields)}-key", tiers=ORDERS[0], values=fields)
        receipt = api.submit(store, judge, api.Answers(answers=[given])).receipts[0]
        assert receipt.status == "refused" and says in receipt.error
    assert decide(store, judge, first, "guideline_unclear", cause_note="Name the harbour.").status == "stored"
    (row,) = answers.read(store, "help", purpose="adjudicate")
    assert row.tiers == ((0,), (1,)) and row.value("cause_note") == "Name the harbour."
    broken = api.Answer(slot=second.slot, epoch=second.epoch, key="broken-task", values={"cause": "data_error"})
    assert api.submit(store, judge, api.Answers(answers=[broken])).receipts[0].status == "stored"
    found = lead.adjudications("help")
    assert found.waiting == 0 and [each.model_dump() for each in found.causes] == [
        {"people": "live", "decided": 2, "causes": {"data_error": 1, "guideline_unclear": 1}, "proposals": [
            {"task": ids["split"], "person": judge.pseudonym, "cause": "guideline_unclear",
             "text": "Name the harbour."}]}
    ]  # fmt: skip
    assert agreements.agreed(report.read(store, "help"))["answers"] == 7, "agreement is the others' alone"
    moment = api.progress(store, judge, "help")
    assert (moment.answers, moment.needed, moment.per_person[0].answers) == (7, 8, 2)
    # somebody else's ordinary answer cannot bring a cause along
    (item,) = api.claim(store, bert, api.Claim(project="help")).items
    assert decide(store, bert, item, "slip").status == "refused"


def test_two_kinds_of_adjudicators_are_counted_apart(house):
    store, lead, judge, _, ids = house
    robot = people.create(store, "robot", kind="simulated", roles=["adjudicator"])
    lead.adjudicate("help", [ids["split"], ids["half"]])
    for who, cause in ((judge, "slip"), (robot, "ambiguous")):
        decide(store, who, api.claim(store, who, api.Claim(project="help")).items[0], cause)
    found = lead.adjudications("help").causes
    assert [(each.people, each.causes) for each in found] == [("live", {"slip": 1}), ("simulated", {"ambiguous": 1})]
    assert {each.people for each in adjudicate.decided(store, ["help"], "live").values()} == {"live"}


def test_exports_follow_what_was_decided(house):
    store, lead, judge, _, ids = house
    lead.adjudicate("help", [ids["split"], ids["half"], ids["agreed"]])
    causes = {ids["split"]: "slip", ids["half"]: "contested", ids["agreed"]: "data_error"}
    for item in api.claim(store, judge, api.Claim(project="help", count=3)).items:
        decide(store, judge, item, causes[item.task], order=ORDERS[1])
    made = export(store, "help", "dpo", accept=["not-stated"])
    rows = {row["task"]: row for row in made.rows}
    assert set(rows) == {ids["split"], ids["half"], ids["open"]}
    (decided,) = (each for each in answers.read(store, "help", purpose="adjudicate") if each.task == ids["split"])
    assert (
        rows[ids["split"]]["annotations"] == [decided.id] and rows[ids["split"]]["chosen"][0]["content"] == "answer 1"
    )
    assert rows[ids["half"]]["chosen"][0]["content"] == "answer 0", "what is contested is not overruled"
    assert made.dropped["answer that an adjudicator overruled"] == 2
    assert made.dropped["answer to a task that an adjudicator found broken"] == 2
    raw = export(store, "help", "annotations", accept=["not-stated"])
    assert json.dumps(raw.rows).count('"annotation":') == 7, "as they were given"


def test_no_question_takes_the_names_of_the_cause():
    for key in ("cause", "cause_note"):
        form = api.Form(questions=(api.Question(key=key, kind="text"),))
        with pytest.raises(ValueError, match="the name is taken"):
            api.NewProject(name="p", form=form)


def test_a_form_from_before_that_asks_for_a_cause_itself(house):
    store, lead, *_ = house
    tasks.make_project(store, "old", kind="tag", questions=[{"key": "cause", "kind": "text"}])
    with pytest.raises(DataError, match="'cause' itself"):
        lead.adjudicate("old")


def test_how_far_answers_lie_apart(store):
    form = api.Form(
        questions=(
            api.Question(key="quality", per_candidate=True, scale=(1, 5)),
            api.Question(key="right", kind="boolean"),
            api.Question(key="tags", kind="choices", choices=("x", "y")),
            api.Question(key="where", kind="spans", choices=("x",), required=False),
        )
    )
    lead = people.create(store, "lead", roles=["lead"])
    crew = people.create_many(store, ["anna", "bert"])
    api.create_project(store, lead, api.NewProject(name="p", kind="scoring", form=form, per_task=2))
    new = [
        api.NewTask(key=key, kind="scoring", messages=(Message(role="user", content="q"),),
                    candidates=(api.NewCandidate(content="0123456789"),))
        for key in ("same", "scores", "yes", "tags", "spans")
    ]  # fmt: skip
    ids = api.add_tasks(store, lead, "p", new)
    for at, person in enumerate(crew):
        for item in api.claim(store, person, api.Claim(project="p", count=5)).items:
            kind = ids.index(item.task)
            score = 1 if kind == 1 and at else 3 if kind == 1 else 4
            tags = ["x", "y"] if kind == 3 and at else ["x"]
            spans = [{"candidate": 0, "start": 2 * at if kind == 4 else 0, "end": 4, "label": "x"}]
            given = api.Answer.model_validate(
                {"slot": item.slot, "epoch": item.epoch, "key": f"key-{item.slot}", "scores": {"quality": {0: score}},
                 "values": {"right": int(kind == 2 and at), "tags": tags}, "spans": spans}
            )  # fmt: skip
            assert api.submit(store, person, api.Answers(answers=[given])).receipts[0].status == "stored"
    found = {each.task: each for each in disputes.disputes(report.read(store, "p"))}
    worst = [found[id].worst for id in ids]
    assert worst == pytest.approx([0, 0.25, 1, 1, 1 / 3])
    assert {each.ranks for each in found.values()} == {None} and found[ids[1]].choices == 0
