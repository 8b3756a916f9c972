"""Gold tasks: given blind, in the share asked for, once to each person; judged by a posterior; no data."""

from __future__ import annotations

import itertools
import math
from types import SimpleNamespace

import pytest
import scipy.stats
from test_store_slots import answered, crew, fill, project, take, why

from tutelage.core.errors import DataError, NotFound
from tutelage.store import answers, connect, engine, gold, people, slots, standing, tasks
from tutelage.store.standing import REASONS

RIGHT = gold.Said({0: 0, 1: 1}, {})


def mark(store, id, expected=RIGHT, **fields):
    how = {"rationale": "it is", "tolerance": 0.0, "enough": 0.8, "reserve": False, "by": "lead"} | fields
    gold.mark(store, id, expected, **how)


def house(store, *, gold_=12, plain=60, persons=1, per_task=1, **settings):
    """A project with gold tasks that were made for this alone, and people in it."""
    where = project(store, **{"gold_share": 0.2, **settings})
    golden = fill(store, where, *((f"g{n}", {}) for n in range(gold_)), per_task=per_task)
    for id in golden.values():
        mark(store, id, reserve=True)
    fill(store, where, *((f"t{n}", {}) for n in range(plain)), per_task=per_task)
    return where, set(golden.values()), crew(store, *(f"p{n}" for n in range(persons)))


def said(held):
    return answers.NewAnnotation(held.id, held.epoch, f"key-{held.id}", ranks=[(0, 0), (1, 1)])


def wrong(held):
    return answers.NewAnnotation(held.id, held.epoch, f"key-{held.id}", ranks=[(0, 1), (1, 0)])


def work(store, person, where, items, answer=said):
    """The tasks a person is given one after the other."""
    found = []
    for _ in range(items):
        held = take(store, person, where)
        if not held:
            break
        found.append(held[0].task)
        assert answers.submit(store, person, "live", [answer(held[0])])[0].status == "stored"
    return found


def test_the_share_is_kept_and_nobody_can_count_on_where(store):
    where, golden, crew_ = house(store, persons=3, plain=150)
    given = [work(store, person, where, 50) for person in crew_]
    for each in given:
        assert sum(task in golden for task in each) == 10 and len(set(each)) == 50
    places = [tuple(at for at, task in enumerate(each) if task in golden) for each in given]
    assert len(set(places)) == 3
    assert all(sum(10 * run <= at < 10 * run + 10 for at in each) == 2 for each in places for run in range(5))


@pytest.mark.parametrize("share", [0.05, 0.08, 0.1, 1 / 3, 0.5])
def test_every_run_of_items_holds_one(share):
    found = [n for n in range(3000) if gold.due("anna", "p", n, share)]
    assert abs(len(found) - 3000 * share) <= 1
    assert max(after - before for before, after in itertools.pairwise(found)) <= 2 * math.ceil(1 / share)
    assert found != [n for n in range(3000) if gold.due("bert", "p", n, share)]
    assert not any(gold.due("anna", "p", n, 0.0) for n in range(50))


def test_it_looks_like_any_other_task(store):
    where, golden, (anna,) = house(store, gold_share=0.5)
    held = take(store, anna, where, 8)
    assert 3 <= sum(each.task in golden for each in held) <= 5
    assert {(each.epoch, each.lease_until, len(each.id), each.id[14]) for each in held} == {
        (1, held[0].lease_until, 36, "8")
    }
    again = take(store, anna, where, 8)
    assert [each.id for each in again] == [each.id for each in held]
    # given back, it is what comes next, as any other would
    one = next(each for each in held if each.task in golden)
    other = next(each for each in held if each.task not in golden)
    for each in (one, other):
        assert slots.give_back(store, anna, each.id, each.epoch)
    assert {each.id for each in take(store, anna, where, 8)} == {each.id for each in held}
    # in one's own history as well
    answers.submit(store, anna, "live", [said(each) for each in take(store, anna, where, 8)])
    assert len(answers.read(store, "p", person=anna, own=True)) == slots.answered(store, anna, where.id) == 8


def test_one_exposure_each_and_a_cap_on_all(store):
    where, golden, crew_ = house(store, gold_=2, plain=99, persons=5, gold_share=0.5, gold_exposure=3)
    given = [task for person in crew_ for task in set(work(store, person, where, 12)) & golden]
    assert {task: given.count(task) for task in golden} == dict.fromkeys(golden, 3)
    assert [each.shown for each in gold.every(store, where.id)] == [3, 3]


def test_gold_answers_are_no_data_and_do_not_fill_a_tasks_places(store):
    where = project(store, gold_share=0.5)
    ids = fill(store, where, *((f"t{n}", {}) for n in range(4)), per_task=2)
    mark(store, ids["t0"])  # an ordinary task as well: gold only when its two places are filled
    anna, bert, carl, dora = crew(store, "anna", "bert", "carl", "dora")
    for person in (anna, bert):
        assert work(store, person, where, 1) == [ids["t0"]]
    assert ids["t0"] not in work(store, anna, where, 1)
    assert ids["t0"] in work(store, carl, where, 2)
    counts = standing.counts(store, where.id)
    assert (counts.tasks, counts.slots, counts.answered, counts.leased) == (4, 8, 4, 0)
    assert len(answers.read(store, "p")) == 4 and answers.how_many(store, ["p"])[ids["t0"]] == 2
    assert sorted(each.answers for each in answers.tallies(store, "p")) == [1, 1, 2]
    for person in (anna, bert, carl, dora):
        work(store, person, where, 9)
    assert answers.how_many(store, ["p"]) == dict.fromkeys(ids.values(), 2)
    assert {each.state for each in tasks.load(store, list(ids.values())).values()} == {"done"}
    assert standing.counts(store, where.id).answered == 8


def test_a_skipped_gold_task_is_not_judged_and_not_replaced(store):
    where, golden, (anna,) = house(store, gold_share=0.5, plain=6)
    passed = []
    while len(passed) < 2:
        held = take(store, anna, where)[0]
        if held.task in golden:
            passed.append(answers.submit(store, anna, "live", [answered(held, "skipped")])[0].status)
        else:
            answers.submit(store, anna, "live", [said(held)])
    assert passed == ["stored"] * 2 and gold.standings(store, where.id) == []
    assert standing.counts(store, where.id).slots == 6


def test_who_is_wrong_too_often_is_paused_until_a_lead_has_looked(store):
    where, golden, (anna, bert) = house(store, gold_=40, plain=200, persons=2, gold_share=0.5)
    assert len(work(store, bert, where, 40)) == 40
    given = work(store, anna, where, 60, wrong)
    seen = len(set(given) & golden)
    assert gold.below(0, seen, 0.6) > 0.95 >= gold.below(0, seen - 1, 0.6)
    assert take(store, anna, where) == [] and why(store, anna, where) == REASONS["paused"]
    assert "gold" not in why(store, anna, where)
    first, second = gold.standings(store, where.id)
    assert (first.person, first.right, first.n, first.paused) == (anna, 0, seen, True)
    assert (second.person, second.right, second.n, second.paused) == (bert, 20, 20, False)
    with pytest.raises(DataError, match="why they may go on"):
        gold.lift(store, anna, where.id, "lead", " ok ")
    gold.lift(store, anna, where.id, "lead", "we talked it over")
    assert len(work(store, anna, where, 4, wrong)) == 4  # what was looked at counts no more
    with pytest.raises(NotFound):
        gold.lift(store, anna, where.id, "lead", "we talked it over")


def test_a_revision_of_an_answer_is_what_counts(store):
    where, _golden, (anna,) = house(store, gold_share=0.5)
    held = take(store, anna, where, 2)
    answers.submit(store, anna, "live", [wrong(each) for each in held])
    better = [answers.NewAnnotation(each.id, each.epoch, f"again-{each.id}", ranks=[(0, 0), (1, 1)]) for each in held]
    assert [each.right for each in gold.standings(store, where.id)] == [0]
    answers.submit(store, anna, "live", better)
    assert [(each.right, each.n) for each in gold.standings(store, where.id)] == [(1, 1)]


def test_retired_it_is_given_to_nobody_and_a_text_is_no_expectation(store):
    where, golden, (anna,) = house(store, gold_=1, gold_share=0.5)
    (id,) = golden
    gold.retire(store, id, "lead")
    assert id not in work(store, anna, where, 10)
    assert [each.retired for each in gold.every(store, where.id)] == [True]
    with pytest.raises(DataError, match="compared"):
        mark(store, id, gold.Said({}, {}))
    for act in (lambda: gold.retire(store, "none", "lead"), lambda: mark(store, "none")):
        with pytest.raises(NotFound):
            act()


@pytest.mark.parametrize("threshold", [0.3, 0.6, 0.9])
def test_the_posterior_is_the_one_of_scipy(threshold):
    for right, miss in ((0, 0), (0, 5), (7, 3), (40, 2), (1500, 700)):
        expected = scipy.stats.beta(gold.PRIOR[0] + right, gold.PRIOR[1] + miss).cdf(threshold)
        assert gold.below(right, miss, threshold) == pytest.approx(expected, abs=1e-10)


EXPECTED = SimpleNamespace(
    order={"ranks": [[0, 0], [1, 1], [2, 2], [3, None]], "values": [], "spans": [], "tolerance": 0},
    asked={"ranks": [], "values": [["tone", 0, 4.0], ["tone", 1, 2.0], ["kinds", -1, ["a", "b"]], ["ok", -1, "yes"]],
           "spans": [], "tolerance": 1},
    marks={"ranks": [], "values": [], "spans": [["candidate", 0, 2, 6, "name"]], "tolerance": 0},
)  # fmt: skip


@pytest.mark.parametrize(
    ("expected", "given", "reached"),
    [
        (EXPECTED.order, gold.Said({0: 0, 1: 1, 2: 2, 3: None}, {}), 1.0),
        (EXPECTED.order, gold.Said({0: 0, 1: 3, 2: 5, 3: 9}, {}), 1.0),  # the order counts, not the numbers
        (EXPECTED.order, gold.Said({0: 0, 1: 0, 2: 1, 3: None}, {}), 5.5 / 6),
        (EXPECTED.order, gold.Said({0: 3, 1: 2, 2: 1, 3: 0}, {}), 0.0),
        (EXPECTED.order, gold.Said({}, {}), 0.5),  # all tied
        (EXPECTED.asked, gold.Said({}, {("tone", 0): 5, ("tone", 1): 4, ("kinds", -1): ["b"], ("ok", -1): "yes"}),
         (0.5 + 0.5 + 1) / 3),
        (EXPECTED.asked, gold.Said({}, {}), 0.0),
        (EXPECTED.marks, gold.Said({}, {}, [("candidate", 0, 2, 6, "name")]), 1.0),
        (EXPECTED.marks, gold.Said({}, {}, [("candidate", 0, 4, 8, "name")]), 0.5),
        (EXPECTED.marks, gold.Said({}, {}, [("candidate", 0, 2, 6, "place")]), 0.0),
    ],
)  # fmt: skip
def test_how_far_an_answer_is_the_expected_one(expected, given, reached):
    assert gold.score(expected, given) == pytest.approx(reached)


def test_simulated_people_are_judged_as_well(store):
    where, _golden, _ = house(store, gold_share=0.5)
    bot = people.create(store, "bot", kind="simulated")
    held = take(store, bot.id, where, 2)
    answers.submit(store, bot.id, bot.kind, [said(each) for each in held])
    assert [each.pseudonym for each in gold.standings(store, where.id)] == [bot.pseudonym]


def test_people_who_take_several_at_once_never_wait_in_a_circle(tmp_path, postgres, monkeypatch):
    monkeypatch.setattr(connect, "WAIT_MS", 200)
    with engine.open(tmp_path, url=postgres) as store:  # SQLite has one writer
        where, golden, (anna, bert) = house(store, gold_=2, plain=1, persons=2)

        def serve(connection, person):
            found = gold.serve(connection, person, ("",), where.id, 50, (0, 1), 1)
            return found and found[1]

        with store.write(durable=False) as one, store.write(durable=False) as other:
            first, second = serve(one, anna), serve(other, bert)
            assert {first, second} == golden
            assert serve(one, anna) is None and serve(other, bert) is None
        with store.write(durable=False) as one:
            assert serve(one, anna) == second and serve(one, bert) == first
