"""What a lead reads: agreement on every kind of question, a row for each person, what they together say."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tutelage.core.errors import DataError
from tutelage.feedback import agreement, agreements, api, posteriors, report, votes
from tutelage.feedback.client import Client, Direct
from tutelage.feedback.taxonomy import Taxonomy
from tutelage.feedback.wire import Answer, Form, MarkedSpan, NewCandidate, NewProject, NewTask, Question
from tutelage.store import answers, engine, people

FORM = Form(
    questions=(
        Question(key="quality", per_candidate=True, scale=(1, 5), required=False),
        Question(key="tone", scale=(1, 5), required=False),
        Question(key="harmful", kind="boolean", required=False),
        Question(key="rude", kind="boolean", required=False),
        Question(key="sort", kind="choice", choices=("a", "b", "c"), required=False),
        Question(key="labels", kind="choices", choices=("x", "y"), required=False),
        Question(key="why", kind="text", required=False),
        Question(key="where", kind="spans", choices=("place",), required=False),
    )
)
TEXT = "the mill by the river burnt down last night"


@pytest.fixture
def store(tmp_path):
    with engine.open(tmp_path) as opened:
        yield opened


def crew(store, number, kind="live"):
    return people.create_many(store, [f"{kind} {at}" for at in range(number)], kind=kind)


def asked(store, persons, name="town", tasks=30, size=3):
    """A project whose every task is answered by everybody; each person errs more than the one before, the last one
    always orders as shown and scores 3."""
    lead = people.create(store, "lead", roles=("lead",))
    api.create_project(store, lead, NewProject(name=name, form=FORM, per_task=len(persons)))
    made = [
        NewTask(
            key=f"t{at}", kind="ranking", messages=({"role": "user", "content": TEXT},),
            candidates=tuple(NewCandidate(content=f"{TEXT} {'again ' * no}") for no in range(size)),
            people=tuple(person.name for person in persons),
        )
        for at in range(tasks)
    ]  # fmt: skip
    ids = api.add_tasks(store, lead, name, made)
    stream = np.random.default_rng(0)
    worth = {id: stream.normal(size=size) for id in ids}
    for at, person in enumerate(persons):
        client = Client(Direct(store, person))
        lazy = at == len(persons) - 1
        noise = np.random.default_rng(at)
        while items := client.claim(name, 20).items:
            client.submit([answered(item, worth[item.task], noise, 0.2 + 0.1 * at, lazy) for item in items])
    return ids


def answered(item, worth, noise, error, lazy):
    felt = worth + noise.normal(size=len(worth)) * error
    shown = [each.no for each in item.candidates]
    order = shown if lazy else [int(no) for no in np.argsort(-felt)]
    good = felt[0] > 0
    return Answer(
        slot=item.slot, epoch=item.epoch, key=f"answer {item.slot}", tiers=tuple((no,) for no in order),
        scores={"quality": {no: 3 if lazy else float(np.clip(round(3 + felt[no]), 1, 5)) for no in shown}},
        values={
            "tone": 3 if lazy else float(np.clip(round(3 + felt.sum()), 1, 5)), "harmful": int(good), "why": "so",
            "rude": int(felt[1] > 0.5), "sort": "abc"[int(np.argmax(felt))], "labels": ["x", "y"][: 1 + int(good)],
        },
        spans=(MarkedSpan(field="prompt", start=4, end=8, label="place"),) if good else (),
        active_ms=200 if lazy else 9000,
    )  # fmt: skip


def test_agreement_is_told_for_everything_that_was_asked(store):
    persons = crew(store, 4)
    ids = asked(store, persons)
    words = report.read(store, "town")
    found = agreements.agreed(words)
    assert found["answers"] == 120 and found["persons"] == 4 and found["people"] == "live"
    assert set(found["questions"]) == {"quality", "tone", "harmful", "rude", "sort", "labels", "*"}
    assert 0.3 < found["ranking"]["kendall_w"]["value"] < 1 and found["ranking"]["pairs_ac1"]["value"] < 1
    for key, figure in (("tone", "alpha_ordinal"), ("harmful", "ac1"), ("sort", "alpha_nominal"), ("*", "alpha_masi")):
        one = found["questions"][key][figure]
        assert one["low"] < one["value"] < one["high"] and one["n"] == 30, key
    assert found["questions"]["quality"]["alpha_interval"]["clusters"] == 30
    assert set(found["questions"]["labels"]["labels"]) == {"x", "y"}
    assert found["spans"]["labels"]["place"]["value"] == found["spans"]["alpha_marked"]["value"]
    said = [[each.value("harmful") for each in words.given if each.pseudonym == name] for name in words.people]
    assert found["questions"]["harmful"]["alpha_nominal"]["value"] == agreement.alpha(said).value
    assert {each.task for each in words.given} == set(ids)
    json.dumps(found)


def test_a_row_for_each_person_says_what_was_found_and_why(store):
    persons = crew(store, 5)
    asked(store, persons)
    names = {person.name: person.pseudonym for person in people.every(store)}
    words = report.read(store, "town")
    gold = {names["live 0"]: (9, 10), names["live 3"]: (1, 10)}
    rows = {row["person"]: row for row in report.people_table(words, gold)}
    lazy = rows[names["live 4"]]
    assert {"straight-lining", "fast", "first"} & set(lazy["findings"]) >= {"straight-lining", "fast"}
    assert lazy["same_answer"]["value"] == 1 and lazy["speed"]["value"] < 0.1 and lazy["speed"]["ms_per_word"] < 20
    careful = rows[names["live 0"]]
    assert careful["findings"] == [] and careful["agreement"]["value"] > 0.6 and careful["gold"]["value"] == 0.9
    assert rows[names["live 3"]]["findings"] == ["gold"] and "1 of 10" in rows[names["live 3"]]["reason"]
    assert rows[names["live 1"]]["gold"]["value"] is None and "hidden" in rows[names["live 1"]]["gold"]["reason"]
    assert careful["strictness"]["low"] < careful["strictness"]["value"] < careful["strictness"]["high"]
    assert all(row["answers"] == 30 for row in rows.values())
    json.dumps(list(rows.values()))


def test_what_people_together_say_adds_up_and_ranks_as_they_do(store):
    asked(store, crew(store, 4))
    words = report.read(store, "town")
    found = posteriors.posteriors(words)
    models = {(each.question, each.model) for each in found}
    assert {("ranking", "plackett-luce"), ("tone", "graded response"), ("quality", "graded response")} <= models
    assert {question for question, _ in models} == {"ranking", *words.questions} - {"why", "where"}
    assert {each.task for each in found} == set(words.tasks)
    one = next(each for each in found if each.model == "plackett-luce")
    assert one.n == 3 and len(one.says["worth"]) == 3  # the one who orders as shown counts nothing
    best = max(range(3), key=one.says["worth"].__getitem__)
    assert all(one.says["probabilities"][f"{best}>{no}"] > 0.5 for no in range(3) if no != best)
    for each in found:
        if each.question in ("tone", "quality", "sort", "harmful"):
            assert sum(each.says.values()) == pytest.approx(1, abs=1e-4) and each.n == 4, each
    assert {each.candidate for each in found if each.question == "quality"} == {0, 1, 2}


def test_kinds_of_people_are_never_pooled(store):
    asked(store, crew(store, 2))
    simulated = crew(store, 2, "simulated")
    lead = people.create(store, "lead", roles=("lead",))
    task = NewTask(key="more", kind="tag", messages=({"role": "user", "content": TEXT},), people=(simulated[0].name,))
    api.add_tasks(store, lead, "town", [task])
    client = Client(Direct(store, simulated[0]))
    item = client.claim("town", 1).items[0]
    client.submit([Answer(slot=item.slot, epoch=item.epoch, key="answer one", values={"harmful": 1})])
    assert len(answers.read(store, "town", people="simulated")) == 1
    with pytest.raises(DataError, match="never pooled"):
        report.read(store, "town")
    assert len(report.read(store, "town", "live").given) == 60


def test_nothing_answered_is_no_failure(store):
    lead = people.create(store, "lead", roles=("lead",))
    api.create_project(store, lead, NewProject(name="empty", form=FORM))
    words = report.read(store, "empty")
    assert report.people_table(words) == [] == posteriors.posteriors(words)
    assert agreements.agreed(words)["answers"] == 0


def test_scores_on_different_scales_weigh_the_same_and_yes_is_more_than_no(store):
    (anna,) = crew(store, 1)
    lead = people.create(store, "lead", roles=("lead",))
    form = Form(questions=(
        Question(key="right", per_candidate=True, scale=(1, 5)),
        Question(key="worth", per_candidate=True, scale=(0, 100)),
        Question(key="kind", kind="boolean", per_candidate=True), Question(key="tags", kind="tags", required=False),
    ), taxonomy=Taxonomy(nodes=({"key": "a"}, {"key": "b"})))  # fmt: skip
    api.create_project(store, lead, NewProject(name="mixed", kind="scoring", form=form, per_task=1))
    new = NewTask(key="t", kind="scoring", messages=({"role": "user", "content": "q"},),
                  candidates=(NewCandidate(content="x"), NewCandidate(content="y")))  # fmt: skip
    api.add_tasks(store, lead, "mixed", [new])
    client = Client(Direct(store, anna))
    (item,) = client.claim("mixed").items
    scores = {"right": {0: 5, 1: 1}, "worth": {0: 40, 1: 60}, "kind": {0: 1, 1: 0}}
    given = Answer(slot=item.slot, epoch=item.epoch, key="answer mixed", scores=scores, values={"tags": ["a"]})
    assert client.submit([given]).receipts[0].status == "stored"
    words = report.read(store, "mixed")
    assert votes.total_scores(words.given[0], words.scales) == pytest.approx(
        {0: (1 + 0.4 + 1) / 3, 1: (0 + 0.6 + 0) / 3}
    )
    assert votes.ranks(words.given[0], 2, words.scales).tolist() == sorted(votes.ranks(words.given[0], 2, words.scales))
    assert "alpha_masi" in agreements.agreed(words)["questions"]["tags"]
