"""Claim, answer, revise, skip: exactly N people per task, idempotent, blind, checked."""

from __future__ import annotations

import time

import pytest

from tutelage.core.records import Message
from tutelage.feedback import api, assign, desk, routes
from tutelage.feedback.client import Client, Direct
from tutelage.store import answers, engine, people, slots, tasks
from tutelage.store.engine import now

FORM = api.Form(
    questions=(api.Question(key="quality", per_candidate=True), api.Question(key="note", kind="text", required=False)),
    guideline="# Judge\nThe better answer first.",
)


def world(where, *, tasks_=4, per_task=2, people_=3, kind="ranking", kinds="live", candidates=3, reserve=None):
    store = engine.open(where)
    lead = people.create(store, "lead", roles=["lead"])
    crew = people.create_many(store, [f"p{n}" for n in range(people_)], kind=kinds)
    api.create_project(store, lead, api.NewProject(name="help", kind=kind, form=FORM, per_task=per_task))
    new = [
        api.NewTask(
            key=f"t{n}",
            kind=kind,
            messages=(Message(role="user", content=f"question {n}, write to anna@example.org"),),
            candidates=tuple(
                api.NewCandidate(content=f"answer {n}.{c}", producer=f"model:{c}") for c in range(candidates)
            ),
            people=reserve,
        )
        for n in range(tasks_)
    ]
    ids = api.add_tasks(store, lead, "help", new)
    assert api.add_tasks(store, lead, "help", new) == ids
    return store, lead, crew, ids


def answer(item, key="", **fields):
    order = [each.no for each in item.candidates]
    given = {"tiers": [[no] for no in order]} if item.kind != "scoring" else {}
    if "scoring" in item.kind:
        given["scores"] = {"quality": dict.fromkeys(order, 3)}
    return api.Answer(slot=item.slot, epoch=item.epoch, key=key or f"key-{item.slot}", **(given | fields))


def test_everybody_answers_once_and_each_task_gets_exactly_its_people(home):
    store, lead, crew, ids = world(home)
    for person in crew * 3:
        client = Client(Direct(store, person))
        items = client.claim("help", count=2).items
        done = client.submit([answer(item) for item in items])
        assert {each.status for each in done.receipts} <= {"stored"}
    assert answers.how_many(store, ["help"]) == dict.fromkeys(ids, 2)
    assert {each.state for each in tasks.load(store, ids).values()} == {"done"}
    progress = api.progress(store, lead, "help")
    assert (progress.tasks, progress.done, progress.answers, progress.needed) == (4, 4, 8, 8)
    assert api.claim(store, crew[0], api.Claim(project="help")).reason == "Everything here is answered."


def test_claiming_again_gives_the_same_tasks_until_they_are_answered(home):
    store, _, crew, _ = world(home)
    first = api.claim(store, crew[0], api.Claim(count=2))
    again = api.claim(store, crew[0], api.Claim(count=2))
    assert [(i.slot, i.epoch) for i in first.items] == [(i.slot, i.epoch) for i in again.items]
    assert len({i.task for i in first.items}) == 2


def test_what_is_shown_is_blind_shuffled_and_masked_and_the_order_is_stored(home):
    store, _, crew, _ = world(home, tasks_=64, per_task=1)
    items = api.claim(store, crew[0], api.Claim(count=64)).items
    orders = [tuple(each.no for each in item.candidates) for item in items]
    assert len(set(orders)) == 6
    assert "model:" not in items[0].model_dump_json() and "anna@example.org" not in items[0].model_dump_json()
    assert "[EMAIL]" in items[0].messages[0].content
    api.submit(store, crew[0], api.Answers(answers=[answer(items[0])]))
    assert answers.read(store, "help")[0].shown == orders[0]
    assert tasks.load(store)[items[0].task].messages[0].content.endswith("anna@example.org")


def test_sending_twice_stores_once(home):
    store, _, crew, _ = world(home)
    given = api.Answers(answers=[answer(api.claim(store, crew[0], api.Claim()).items[0])])
    first, second = (api.submit(store, crew[0], given).receipts[0] for _ in range(2))
    assert (first.status, second.status) == ("stored", "repeated") and first.annotation == second.annotation
    assert len(answers.read(store, "help")) == 1
    same = api.Answers(answers=[given.answers[0], given.answers[0].model_copy(update={"key": "another-key"})])
    assert [each.status for each in api.submit(store, crew[0], same).receipts] == ["repeated", "stored"]
    kept = answers.read(store, "help")
    assert [each.revision for each in kept] == [2]
    assert [each.revision for each in answers.read(store, "help", newest=False)] == [1, 2]


def test_a_lease_that_ran_out_is_given_on_and_the_late_answer_is_stale(home):
    store, _, crew, _ = world(home, tasks_=1, per_task=1)
    late = slots.claim(store, crew[0].id, [tasks.get_project(store, "help").id], 1, lease_ms=1)[0]
    time.sleep(0.01)
    taken = api.claim(store, crew[1], api.Claim()).items[0]
    assert taken.slot == late.id and taken.epoch == late.epoch + 1
    lost = api.Answer(slot=late.id, epoch=late.epoch, key="late-answer", tiers=[[0], [1], [2]])
    assert api.submit(store, crew[0], api.Answers(answers=[lost])).receipts[0].status == "stale"
    assert api.submit(store, crew[1], api.Answers(answers=[answer(taken)])).receipts[0].status == "stored"


def test_a_lease_that_ran_out_but_was_not_taken_still_counts(home):
    store, _, crew, _ = world(home, tasks_=1, per_task=1)
    late = slots.claim(store, crew[0].id, [tasks.get_project(store, "help").id], 1, lease_ms=1)[0]
    time.sleep(0.01)
    given = api.Answer(slot=late.id, epoch=late.epoch, key="late-answer", tiers=[[0, 1], [2]])
    assert api.submit(store, crew[0], api.Answers(answers=[given])).receipts[0].status == "stored"
    assert answers.read(store, "help")[0].tiers == ((0, 1), (2,))


def test_skipping_says_why_and_asks_somebody_else(home):
    store, _, crew, ids = world(home, tasks_=1, per_task=1)
    item = api.claim(store, crew[0], api.Claim()).items[0]
    mute = api.Answer(slot=item.slot, epoch=item.epoch, key="skip-it-now", status="skipped")
    assert "say why" in api.submit(store, crew[0], api.Answers(answers=[mute])).receipts[0].error
    said = mute.model_copy(update={"reason": "I know the author"})
    assert api.submit(store, crew[0], api.Answers(answers=[said])).receipts[0].status == "stored"
    assert api.claim(store, crew[0], api.Claim()).items == []
    other = api.claim(store, crew[1], api.Claim()).items[0]
    assert other.task == ids[0] and other.slot != item.slot
    assert [each.reason for each in answers.read(store, "help", status="skipped")] == ["I know the author"]


def test_a_task_everybody_skips_waits_for_a_lead(home):
    store, _, crew, ids = world(home, tasks_=1, per_task=1, people_=6)
    for person in crew:
        for item in api.claim(store, person, api.Claim()).items:
            given = api.Answer(slot=item.slot, epoch=item.epoch, key="skip-" + item.slot, status="flagged", reason="?")
            api.submit(store, person, api.Answers(answers=[given]))
    assert tasks.load(store, ids)[ids[0]].state == "stuck"


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"tiers": [[0], [1]]}, "candidate 2 is not ranked"),
        ({"tiers": [[0], [1], [1, 2]]}, "two places"),
        ({"tiers": [[0], [1], [9]]}, "no candidate 9"),
        ({"scores": {"quality": {0: 9}}}, "outside the scale"),
        ({"scores": {"taste": {0: 1}}}, "does not ask this"),
        ({"values": {"note": "x" * 30_000}}, "at most 20,000"),
        ({"rewrite": "x" * 10_000_000}, "at most 20,000"),
        ({"slot": "nowhere"}, "no such slot"),
        ({"spans": [{"start": 0, "end": 2, "label": "x"}]}, "asks for no spans"),
    ],
)
def test_a_wrong_answer_is_refused_with_its_reason_and_the_good_ones_are_kept(home, fields, says):
    store, _, crew, _ = world(home)
    good, bad = api.claim(store, crew[0], api.Claim(count=2)).items
    wrong = api.Answer.model_validate(answer(bad).model_dump() | fields)
    receipts = api.submit(store, crew[0], api.Answers(answers=[wrong, answer(good)])).receipts
    assert receipts[0].status == "refused" and says in receipts[0].error
    assert receipts[1].status == "stored"


def test_scores_flags_all_bad_and_text_come_back_as_given(home):
    store, _, crew, _ = world(home, kind="ranking+scoring")
    item = api.claim(store, crew[0], api.Claim()).items[0]
    given = answer(item, tiers=[[1], [0, 2]], all_bad=True, flags={2: ["privacy"]}, values={"note": "<script>"})
    api.submit(store, crew[0], api.Answers(answers=[given]))
    kept = answers.read(store, "help")[0]
    assert kept.tiers == ((1,), (0, 2)) and kept.scores() == {"quality": {0: 3.0, 1: 3.0, 2: 3.0}}
    assert kept.value("all_bad") == 1 and kept.value("note") == "<script>" and kept.people == "live"
    assert [each.value for each in kept.values if each.question == "flag"] == [["privacy"]]


def test_reserved_places_go_to_nobody_else(home):
    store, _, crew, _ = world(home, tasks_=2, reserve=("p1", "p2"))
    empty = api.claim(store, crew[0], api.Claim())
    assert empty.items == []
    assert len(api.claim(store, crew[1], api.Claim(count=5)).items) == 2


def test_a_snapshot_does_not_see_what_came_later(home):
    store, _, crew, _ = world(home)
    items = api.claim(store, crew[0], api.Claim(count=2)).items
    api.submit(store, crew[0], api.Answers(answers=[answer(items[0])]))
    mark = store.watermark(["help"])
    api.submit(store, crew[0], api.Answers(answers=[answer(items[1]), answer(items[0], "a-revision")]))
    then = store.snapshot(mark)
    assert [each.revision for each in answers.read(then, "help")] == [1]
    assert len(answers.read(store, "help")) == 2 and store.watermark(["help"]) == mark + 2
    assert sum(answers.how_many(then, ["help"]).values()) == 1 and store.watermark(["other"]) == 0


def test_drafts_survive_and_go_with_the_answer(home):
    store, _, crew, _ = world(home)
    item = api.claim(store, crew[0], api.Claim()).items[0]
    assert api.save_draft(store, crew[0], item.slot, api.Draft(epoch=item.epoch, body={"tiers": [[1]]}))
    assert not api.save_draft(store, crew[1], item.slot, api.Draft(epoch=item.epoch, body={}))
    assert api.claim(store, crew[0], api.Claim()).items[0].draft == {"tiers": [[1]]}
    api.submit(store, crew[0], api.Answers(answers=[answer(item)]))
    assert slots.drafts(store, crew[0].id, [item.slot]) == {}


def test_a_new_form_is_a_new_version_and_old_tasks_keep_theirs(home):
    store, lead, crew, _ = world(home)
    newer = api.Form(questions=(api.Question(key="style", per_candidate=True),), guideline="new")
    assert api.create_project(store, lead, api.NewProject(name="help", form=newer)).form_version == 2
    assert api.create_project(store, lead, api.NewProject(name="help", form=newer)).form_version == 2
    assert api.claim(store, crew[0], api.Claim()).items[0].form_version == 1


def test_the_pace_is_that_of_one_kind_of_people_as_on_the_leads_page(home, monkeypatch):
    store, lead, (anna,), _ = world(home, tasks_=8, people_=1)
    robot = people.create(store, "robot", kind="simulated")
    moment, hour = now(), 3_600_000
    for who, began, many in ((anna, moment - 10 * hour, 4), (robot, moment - hour, 8)):
        for at, item in enumerate(api.claim(store, who, api.Claim(project="help", count=many)).items):
            monkeypatch.setattr(answers, "now", lambda began=began, at=at: began + at * hour // 100)
            api.submit(store, who, api.Answers(answers=[answer(item)]))
    monkeypatch.undo()
    found = api.progress(store, lead, "help")
    assert found.paced == "live" and found.people == {"simulated": 8, "live": 4}
    assert found.per_hour == pytest.approx(0.4, rel=0.01), "four answers in ten hours; the robot's are not its"
    assert found.hours_left == pytest.approx(4 / 0.4, rel=0.01)
    page = desk.standing(store, tasks.get_project(store, "help"))
    assert found.per_hour == pytest.approx(page.forecast.rate.value, rel=0.01)
    assert api.progress(store, anna, "help").per_hour == pytest.approx(0.4, rel=0.01)
    tasks.change_settings(store, "help", {"gold_share": 0.1}, lead.id)
    assert api.progress(store, anna, "help").per_hour is None, "it would tell which task was gold"


def test_roles_are_asked_for(home):
    store, lead, crew, _ = world(home)
    status, told = routes.dispatch(store, crew[0], "POST", "/api/feedback/projects", {"name": "mine"})
    assert status == 403 and told["error"] == "Forbidden"
    stranger = people.create(store, "stranger", roles=[])
    assert routes.dispatch(store, stranger, "POST", "/api/feedback/claim", {"project": "help"})[0] == 403
    assert routes.dispatch(store, lead, "GET", "/api/feedback/projects/none/progress")[0] == 404
    assert routes.dispatch(store, lead, "POST", "/api/feedback/claim", {"count": 0})[0] == 422
    assert routes.dispatch(store, lead, "GET", "/api/feedback/nothing")[0] == 404
    assert routes.dispatch(store, crew[0], "GET", "/api/feedback/history", None, {"limit": "many"})[0] == 422


def test_panels_are_even_and_exact():
    chosen = assign.panels(100, [f"r{n:02}" for n in range(24)], 3, seed=1)
    load = [sum(f"r{n:02}" in panel for panel in chosen) for n in range(24)]
    assert all(len(set(panel)) == 3 for panel in chosen) and max(load) - min(load) <= 1
    assert chosen == assign.panels(100, [f"r{n:02}" for n in range(24)], 3, seed=1)
    assert len(set(chosen)) > 50
