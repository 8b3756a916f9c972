"""What a lead sees and changes, on both engines: pace, reasons, stuck tasks, members, versions; all in the ledger."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from tutelage.core.errors import DataError, NotFound, Refused
from tutelage.core.records import Message
from tutelage.store import adjudication, answers, ledger, oversight, people, slots, standing, tasks
from tutelage.store.answers import NewAnnotation, Value
from tutelage.store.engine import Store, now

LEASE = 900_000


def new(key: str, required: int = 1, language: str = "") -> tasks.NewTask:
    prompt = (Message(role="user", content=f"Which one, {key}?"),)
    pair = [("this", "model:a", {}), ("that", "model:b", {})]
    return tasks.NewTask(key, "ranking", prompt, pair, required=required, language=language)


def opened(store: Store, *rows: tasks.NewTask, name: str = "town") -> tasks.Project:
    oversight.make(
        store, name, kind="ranking", questions=[], guideline="Be fair.", per_task=1, settings={}, new=rows, by="lead"
    )
    return tasks.get_project(store, name)


def answer(store: Store, who: people.Person, where: tasks.Project, status: str = "submitted", reason: str = "") -> str:
    """The next task, answered; returns its id."""
    held = slots.claim(store, who.id, [where.id], 1, LEASE)[0]
    ranks = [(0, 0), (1, 1)] if status == "submitted" else []
    values = [Value("note", text="fine")] if status == "submitted" else []
    given = NewAnnotation(held.id, held.epoch, f"{held.id}/{held.epoch}", status, reason, (0, 1), values, ranks)
    assert answers.submit(store, who.id, who.kind, [given])[0].status == "stored"
    return held.task


@pytest.fixture
def crew(store: Store) -> list[people.Person]:
    return people.create_many(store, [f"p{at}" for at in range(7)])


def test_a_project_and_its_tasks_are_made_whole(store: Store) -> None:
    where = opened(store, new("a"), new("b", 2))
    assert [each.required for each in tasks.load(store, project_name="town").values()] == [1, 2]
    with pytest.raises(DataError, match="already"):
        opened(store, new("c"))
    twice = [new("x"), tasks.NewTask("y", "ranking", (), [("t", "p", {})], required=1, decision="d" * 400)]
    if store.dialect == "postgresql":  # SQLite does not count characters
        with pytest.raises(Exception, match="too long"):
            opened(store, *twice, name="half")
        assert [each.name for each in tasks.projects(store)] == ["town"]
    assert standing.counts(store, where.id).slots == 3


def test_pace_counts_first_answers_by_stretch_and_kind(store: Store, crew: list[people.Person]) -> None:
    where = opened(store, *(new(str(at), 2) for at in range(4)))
    made = people.create(store, "robot", kind="simulated")
    for _ in range(3):
        answer(store, crew[0], where)
    answer(store, made, where)
    moment = now()
    found = oversight.pace(store, where.id, moment - 10 * 60_000, 60_000)
    assert found == {"live": {9: 3}, "simulated": {9: 1}} or sum(sum(each.values()) for each in found.values()) == 4
    assert oversight.pace(store, where.id, moment + 1_000, 60_000) == {}
    assert [each.seq for each in answers.read(store, "town", after=2, limit=1)] == [3]
    assert [each.seq for each in answers.read(store, "town", before=3, limit=1)] == [2]


def test_stuck_tasks_tell_why_and_come_back(store: Store, crew: list[people.Person]) -> None:
    where = opened(store, new("a"), new("b"))
    for who, status, reason in zip(
        crew, ("skipped", "flagged", "skipped", "skipped"), ("x", "y", "x", "x"), strict=False
    ):
        answer(store, who, where, status, reason)
    found = oversight.stuck(store, where.id)
    assert len(found) == 1 and found[0].answered == 0 and found[0].required == 1
    assert [(status, reason) for _, status, reason in found[0].said] == [
        ("skipped", "x"), ("flagged", "y"), ("skipped", "x"), ("skipped", "x"),
    ]  # fmt: skip
    assert {who for who, _, _ in found[0].said} == {each.pseudonym for each in crew[:4]}
    assert oversight.stuck(store, where.id, after=found[0].position) == []
    counted = {(each.status, each.reason): each.times for each in oversight.reasons(store, where.id)}
    assert counted == {("skipped", "x"): 3, ("flagged", "y"): 1}
    task = found[0].task
    assert oversight.reopen(store, task, "lead") == 1
    assert oversight.stuck(store, where.id) == []
    assert task not in [each.task for each in slots.claim(store, crew[0].id, [where.id], 5, LEASE)], "met already"
    assert task in [each.task for each in slots.claim(store, crew[5].id, [where.id], 5, LEASE)]
    with pytest.raises(DataError, match="waits for them"):
        oversight.reopen(store, task, "lead")
    acts = [row.action for row in ledger.rows(store)]
    assert acts.count("task.reopen") == 1


def test_a_place_is_kept_for_one_person(store: Store, crew: list[people.Person]) -> None:
    where = opened(store, new("a"))
    (task,) = tasks.load(store, project_name="town")
    oversight.assign(store, task, crew[3].id, "lead")
    assert slots.claim(store, crew[0].id, [where.id], 1, LEASE) == []
    waiting = oversight.waiting(store, where.id)
    assert (waiting.free, waiting.kept) == (0, {crew[3].id: 1})
    with pytest.raises(DataError, match="already"):
        oversight.assign(store, task, crew[3].id, "lead")
    assert answer(store, crew[3], where) == task
    oversight.assign(store, task, crew[4].id, "lead")  # one more than wanted
    assert answer(store, crew[4], where) == task
    assert standing.counts(store, where.id).done == 1


def test_a_closed_task_takes_no_answer(store: Store, crew: list[people.Person]) -> None:
    where = opened(store, new("a", 2))
    held = slots.claim(store, crew[0].id, [where.id], 1, LEASE)[0]
    oversight.close(store, held.task, "lead", "unclear")
    late = NewAnnotation(held.id, held.epoch, "late-answer", ranks=[(0, 0), (1, 1)])
    assert answers.submit(store, crew[0].id, "live", [late])[0].status == "stale"
    assert slots.claim(store, crew[1].id, [where.id], 1, LEASE) == []
    assert oversight.reopen(store, held.task, "lead") == 2
    with pytest.raises(NotFound):
        oversight.close(store, "no such task", "lead", "")
    with pytest.raises(NotFound):
        oversight.project_of(store, "no such task")


def test_what_a_lead_closed_stays_closed(store: Store, crew: list[people.Person]) -> None:
    where = opened(store, new("a", 2))
    held = slots.claim(store, crew[0].id, [where.id], 1, LEASE)[0]

    def say(key: str, status: str = "submitted") -> None:
        given = NewAnnotation(held.id, held.epoch, key, status, ranks=[(0, 0), (1, 1)])
        assert answers.submit(store, crew[0].id, "live", [given])[0].status == "stored"
        assert tasks.load(store, [held.task])[held.task].state == ("open" if key == "first" else "closed")

    say("first")
    oversight.close(store, held.task, "lead", "unclear")
    say("corrected")
    say("skipped", "skipped")
    say("again")
    say("withdrawn", "withdrawn")
    assert oversight.waiting(store, where.id).free == 0
    assert slots.claim(store, crew[1].id, [where.id], 1, LEASE) == []


def test_the_places_of_adjudicators_are_none_of_the_task(store: Store, crew: list[people.Person]) -> None:
    where = opened(store, new("a"))
    judge = people.create(store, "ada", roles=("adjudicator",))
    task = answer(store, crew[0], where)
    adjudication.open_places(store, where.id, [task], "lead")
    assert oversight.waiting(store, where.id).kept == {}
    held = slots.claim(store, judge.id, [where.id], 1, LEASE)[0]
    given = NewAnnotation(held.id, held.epoch, "decided", ranks=[(0, 0), (1, 1)], values=[Value("cause", value="slip")])
    assert answers.submit(store, judge.id, "live", [given])[0].status == "stored"
    found = oversight.pace(store, where.id, now() - 600_000, 1_200_000)
    assert found == {"live": {0: 1}}
    (mine,) = answers.read(store, "town", person=crew[0].id)
    again = NewAnnotation(mine.slot, 1, "back", "withdrawn", lease_ms=LEASE)
    assert answers.submit(store, crew[0].id, "live", [again])[0].status == "stored"
    oversight.close(store, task, "lead", "unclear")
    assert oversight.reopen(store, task, "lead") == 1, "the adjudicator's answer is none of those wanted"


def test_closing_a_task_asks_no_adjudicator(store: Store, crew: list[people.Person]) -> None:
    where = opened(store, new("a"))
    judge = people.create(store, "ada", roles=("adjudicator",))
    task = answer(store, crew[0], where)
    adjudication.open_places(store, where.id, [task], "lead")
    oversight.close(store, task, "lead", "unclear")
    assert slots.claim(store, judge.id, [where.id], 1, LEASE) == []


def test_who_belongs_to_a_project(store: Store, crew: list[people.Person]) -> None:
    where = opened(store, new("a", language="sl"), new("b"))
    opened(store, new("a"), name="elsewhere")
    people.grant(store, crew[0].id, "lead", "town")
    people.create(store, "stranger", roles=("lead",), project="elsewhere")
    people.create(store, "robot", kind="simulated")
    found = {each.name: (each.here, each.everywhere) for each in oversight.members(store, where.id)}
    assert found["p0"] == (("lead",), ("annotator",)) and found["p1"] == ((), ("annotator",))
    assert set(found) == {f"p{at}" for at in range(7)}
    assert oversight.waiting(store, where.id).languages == {"sl": 1, "": 1}


def test_a_form_is_published_once_and_open_tasks_keep_theirs(store: Store, crew: list[people.Person]) -> None:
    where = opened(store, new("a"), new("b"))
    answer(store, crew[0], where)
    asked: list[dict[str, Any]] = [{"key": "kind", "kind": "boolean"}]
    assert oversight.publish(store, where.id, 1, asked, "Be quick.", "lead") == 2
    with pytest.raises(Refused, match="another version"):
        oversight.publish(store, where.id, 1, [], "Be slow.", "lead")
    with pytest.raises(DataError, match="nothing is changed"):
        oversight.publish(store, where.id, 2, asked, "Be quick.", "lead")
    tasks.add(store, tasks.get_project(store, "town"), [new("c")])
    assert oversight.by_form(store, where.id) == [(2, 1, 1), (1, 2, 1)]


def test_settings_change_and_are_taken_out(store: Store) -> None:
    where = opened(store, new("a"))
    tasks.change_settings(store, where.id, {"target": 10, "mask_pii": False}, "lead", 3)
    tasks.change_settings(store, "town", {"target": None}, "lead")
    found = tasks.get_project(store, "town")
    assert found.per_task == 3 and found.settings == {"mask_pii": False}
    assert [row.body for row in ledger.rows(store) if row.action == "project.change"][1] == {
        "per_task": 3,
        "target": None,
    }


def test_settings_changed_at_the_same_time_are_all_kept(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    opened(store, new("a"))
    build, others = tasks.build, []

    def late(*given: Any) -> Any:
        if not others:  # somebody else changes another one between our reading and our writing
            others.append(threading.Thread(target=tasks.change_settings, args=(store, "town", {"target": 7}, "b")))
            others[0].start()
            others[0].join(0.3)
        return build(*given)

    monkeypatch.setattr(tasks, "build", late)
    tasks.change_settings(store, "town", {"mask_pii": False}, "a")
    others[0].join()
    assert tasks.get_project(store, "town").settings == {"target": 7, "mask_pii": False}
