"""An adjudicator's place fills none of its task's; what is decided there is kept, corrected and taken back."""

from __future__ import annotations

import threading

import pytest
from test_store_slots import crew, fill, keys, project, take, why

from tutelage.store import (
    adjudication,
    answers,
    gold,
    ledger,
    slots,
    standing,
    tasks,
    webhooks,
)
from tutelage.store.adjudication import CAUSE, PURPOSE

WHOLE = answers.WHOLE


def given(held, *order, cause="", epoch=None, status="submitted", values=()):
    said = [*values, *([answers.Value(CAUSE, value=cause)] if cause else [])]
    ranks = [(no, at) for at, no in enumerate(order or (0, 1))]
    return answers.NewAnnotation(
        held.id, held.epoch if epoch is None else epoch, next(keys), status, ranks=ranks, values=said
    )


def say(store, person, *new):
    return [each.status for each in answers.submit(store, person, "live", new)]


@pytest.fixture
def house(store):
    """Three tasks by two people each, all done; ada adjudicates, and has answered the first one herself."""
    where = project(store)
    ids = list(fill(store, where, *((f"t{n}", {}) for n in range(3)), per_task=2).values())
    anna, bert = crew(store, "anna", "bert")
    (ada,) = crew(store, "ada", roles=["annotator", "adjudicator"])
    for person, many in ((ada, 1), (anna, 3), (bert, 2)):
        for held in take(store, person, where, many):
            assert say(store, person, given(held, *((1, 0) if person == bert else (0, 1)))) == ["stored"]
    assert {each.state for each in tasks.load(store, ids).values()} == {"done"}
    return where, ids, anna, bert, ada


def test_the_place_of_an_adjudicator_is_no_place_of_its_task(store, house):
    where, ids, anna, bert, ada = house
    before = standing.counts(store, where.id)
    assert adjudication.open_places(store, where.id, ids, "lead") == ids
    assert adjudication.open_places(store, where.id, ids, "lead") == []
    assert standing.counts(store, where.id) == before and (before.slots, before.answered) == (6, 6)
    assert {each.state for each in tasks.load(store, ids).values()} == {"done"}
    for person in (anna, bert):
        assert take(store, person, where, 9) == []
    held = take(store, ada, where, 9)
    assert [(each.task, each.purpose) for each in held] == [(id, PURPOSE) for id in ids[1:]], "the first is her own"
    assert say(store, ada, given(held[0], cause="slip")) == ["stored"]
    assert standing.counts(store, where.id) == before
    assert len(answers.read(store, "p")) == 6 and set(answers.how_many(store, ["p"]).values()) == {2}
    assert sum(each.answers for each in answers.tallies(store, "p")) == 6
    (decided,) = answers.read(store, "p", purpose=PURPOSE)
    assert (decided.task, decided.person, decided.value(CAUSE)) == (ids[1], ada, "slip")
    assert len(answers.read(store, "p", person=ada, own=True)) == 2
    with store.read() as connection:
        assert adjudication.places(connection, where.id) == {"open": 1, "leased": 1, "done": 1}
    assert [each.action for each in ledger.rows(store)].count("adjudication.open") == 1


def test_what_an_adjudicator_passes_over_is_asked_of_the_next(store, house):
    where, ids, _, _, ada = house
    (eve,) = crew(store, "eve", roles=["adjudicator"])
    adjudication.open_places(store, where.id, ids[2:], "lead")
    (held,) = take(store, ada, where)
    assert slots.give_back(store, ada, held.id, held.epoch)
    (held,) = take(store, eve, where)
    assert say(store, eve, given(held, status="skipped")) == ["stored"]
    assert take(store, ada, where) == [] and tasks.load(store, ids[2:])[ids[2]].state == "done"
    assert adjudication.open_places(store, where.id, ids[2:], "lead") == ids[2:]
    assert take(store, eve, where) == [] and take(store, ada, where)[0].task == ids[2]
    assert say(store, eve, given(held, cause="slip")) == ["stored"], "what was skipped can be answered after all"


def test_tasks_that_are_not_done_wait(store):
    where = project(store)
    ids = list(fill(store, where, ("t0", {}), ("t1", {}), per_task=2).values())
    (anna,) = crew(store, "anna")
    for held in take(store, anna, where, 9):
        say(store, anna, given(held))
    other = project(store, "q")
    assert adjudication.open_places(store, where.id, ids, "lead") == []
    assert adjudication.open_places(store, other.id, ids, "lead") == []


def test_what_was_decided_stands_until_it_is_taken_back(store, house):
    where, ids, _, _, ada = house
    adjudication.open_places(store, where.id, ids, "lead")
    first, second = take(store, ada, where, 2)

    def decided():
        return {row.task: row.value(CAUSE) for row in answers.read(store, "p", purpose=PURPOSE)}

    values = (answers.Value("sort", value="a"), answers.Value("quality", 1, number=4.0))
    assert say(store, ada, given(first, 1, 0, cause="slip", values=values)) == ["stored"]
    (row,) = answers.read(store, "p", purpose=PURPOSE)
    assert (row.tiers, row.value("sort"), row.value(CAUSE)) == (((1,), (0,)), "a", "slip")
    assert say(store, ada, given(first, cause="contested", values=values)) == ["stored"]
    assert decided() == {ids[1]: "contested"}
    assert say(store, ada, given(second, cause="data_error")) == ["stored"]
    assert decided() == {ids[1]: "contested", ids[2]: "data_error"}
    assert say(store, ada, given(first, status="withdrawn")) == ["stored"]
    assert decided() == {ids[2]: "data_error"}
    assert take(store, ada, where)[0].task == ids[1]


def test_leads_who_open_the_same_tasks_at_once_open_one_place_each(store, house):
    where, ids, *_ = house
    gate, made = threading.Barrier(4), []

    def open_all(order):
        gate.wait()
        made.extend(adjudication.open_places(store, where.id, order, "lead"))

    threads = [threading.Thread(target=open_all, args=(ids[::step],)) for step in (1, -1, 1, -1)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert sorted(made) == sorted(ids)


def test_webhooks_hear_of_the_project_and_of_each_adjudication(store):
    where = project(store)
    ids = list(fill(store, where, ("t0", {}), ("t1", {})).values())
    (anna,), (ada,) = crew(store, "anna"), crew(store, "ada", roles=["adjudicator"])
    webhooks.register(store, "https://host/x", ["project.done", "adjudication.done", "task.done"], "lead")
    say(store, anna, given(take(store, anna, where)[0]))
    adjudication.open_places(store, where.id, ids, "lead")
    say(store, anna, given(take(store, anna, where)[0]))  # the project is done, whoever still adjudicates
    say(store, ada, given(take(store, ada, where)[0], cause="slip"))
    told = [(each.event, each.payload.get("task")) for each in webhooks.take(store)]
    assert sorted(told, key=str) == sorted(
        [("task.done", ids[0]), ("task.done", ids[1]), ("project.done", None), ("adjudication.done", ids[0])], key=str
    )


def test_adjudications_bring_no_gold_with_them(store, house):
    where, ids, *_ = house
    (eve,) = crew(store, "eve", roles=["adjudicator"])
    tasks.change_settings(store, "p", {"gold_share": 0.5}, "lead")
    extra = list(fill(store, where, ("g0", {}), ("g1", {})).values())
    for id in extra:
        gold.mark(
            store, id, gold.Said({0: 0, 1: 1}, {}), rationale="so", tolerance=0, enough=0.8, reserve=True, by="lead"
        )
    adjudication.open_places(store, where.id, ids, "lead")
    held = take(store, eve, where, 9)
    assert [each.purpose for each in held] == [PURPOSE] * 3
    assert why(store, eve, where) and standing.counts(store, where.id).leased == 0
