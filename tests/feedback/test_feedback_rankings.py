"""Plackett-Luce against choix, ties against Davidson's published table, people's powers recovered, orders kept."""

from __future__ import annotations

from itertools import combinations

import choix
import numpy as np
import pytest

from tutelage.core.errors import DataError
from tutelage.feedback import rankings
from tutelage.feedback.rankings import plackett_luce

PUDDING = [  # Davidson 1970, Journal of the American Statistical Association 65: i, j, i preferred, j preferred, tied
    (1, 2, 19, 22, 16), (1, 3, 16, 19, 12), (2, 3, 19, 19, 10), (1, 4, 18, 23, 13), (2, 4, 23, 19, 9),
    (3, 4, 19, 20, 15), (1, 5, 13, 19, 18), (2, 5, 16, 20, 12), (3, 5, 16, 15, 17), (4, 5, 17, 14, 16),
    (1, 6, 18, 21, 12), (2, 6, 22, 20, 12), (3, 6, 13, 18, 10), (4, 6, 14, 19, 18), (5, 6, 11, 21, 12),
]  # fmt: skip


def sampled(worth, ties, stream, power=1.0):
    """A ranking drawn from the model: tiers of numbers into `worth`; `ties` are logs for tiers of two, three, ..."""
    rest, tiers = list(range(len(worth))), []
    while len(rest) > 1:
        choices = [each for size in range(1, min(len(rest), len(ties) + 1) + 1) for each in combinations(rest, size)]
        logs = [(0.0, *ties)[len(each) - 1] + power * float(np.mean([worth[no] for no in each])) for each in choices]
        chances = np.exp(np.array(logs) - max(logs))
        tier = choices[stream.choice(len(choices), p=chances / chances.sum())]
        tiers.append(list(tier))
        rest = [no for no in rest if no not in tier]
    return [*tiers, rest] if rest else tiers


@pytest.mark.parametrize("seed", range(3))
def test_without_ties_it_is_choix(seed):
    stream = np.random.default_rng(seed)
    worth, given = stream.normal(size=8), []
    for _ in range(120):
        some = stream.permutation(8)[: stream.integers(2, 7)]
        given.append([int(no) for no in some[np.argsort(-(worth[some] + stream.gumbel(size=len(some))))]])
    found = plackett_luce([[[no] for no in row] for row in given], 8)
    for reference in (choix.ilsr_rankings(8, given), choix.opt_rankings(8, given)):
        assert found.worth == pytest.approx(reference - np.mean(reference), abs=1e-4)


def test_ties_give_davidsons_published_values():
    """Worths and tie parameter of Davidson 1970, with the errors that the R package PlackettLuce prints for them."""
    rows, weights = [], []
    for one, other, wins, losses, tied in PUDDING:
        rows += [[[one - 1], [other - 1]], [[other - 1], [one - 1]], [[one - 1, other - 1]]]
        weights += [wins, losses, tied]
    found = plackett_luce(rows, 6, weights=weights)
    share = np.exp(found.worth) / np.exp(found.worth).sum()
    published = [0.1388005, 0.1729985, 0.1617420, 0.1653930, 0.1586805, 0.2023855]
    assert share == pytest.approx(published, abs=5e-5) and np.exp(found.ties[2]) == pytest.approx(0.7468147, abs=2e-4)
    assert found.ties_errors[2] == pytest.approx(0.0825, abs=1e-4)
    better, tied, worse = found.between(0, 5)
    assert better + tied + worse == pytest.approx(1) and better < worse


def test_weights_are_repeats_and_tiers_that_never_occurred_are_not_possible():
    tiers = [[[0], [1], [2]], [[2], [0], [1]], [[1], [2], [0]], [[0, 1, 2]], [[0], [2], [1]]]
    twice = plackett_luce([*tiers, tiers[0]], 3)
    weighed = plackett_luce(tiers, 3, weights=[2, 1, 1, 1, 1])
    assert twice.worth == pytest.approx(weighed.worth, abs=1e-6)
    assert set(twice.ties) == {3} and twice.between(0, 1)[1] == 0


def test_what_has_no_maximum_is_refused_and_a_prior_mends_it():
    always = [[[0], [1], [2]]] * 4
    with pytest.raises(DataError, match="no finite maximum"):
        plackett_luce(always, 3)
    found = plackett_luce(always, 3, spread=1.0)
    assert found.worth[0] > found.worth[1] > found.worth[2] and found.worth_errors.max() < 1
    for wrong, said in (([[[0], [0]]], "two places"), ([[[0], [7]]], "outside"), ([], "at least one")):
        with pytest.raises(DataError, match=said):
            plackett_luce(wrong, 3)
    with pytest.raises(DataError, match="tiers"):
        plackett_luce([[list(range(12)), list(range(12, 30))]], 30)


def test_many_tasks_at_once_are_each_task_by_itself():
    """1,100 tasks of four candidates: too many numbers for one dense matrix, and for errors."""
    stream = np.random.default_rng(0)
    rows = []
    for task in range(1100):
        worth = stream.normal(size=4) * 1.5
        rows += [[[4 * task + tier[0]] for tier in sampled(worth, [], stream)] for _ in range(3)]
    found = plackett_luce(rows, 4400, spread=1.5)
    assert np.isnan(found.worth_errors).all() and len(np.unique(found.component)) == 1100
    for task in (0, 517, 1099):
        mine = [[[tier[0] - 4 * task] for tier in row] for row in rows[3 * task : 3 * task + 3]]
        alone = plackett_luce(mine, 4, spread=1.5)
        assert found.worth[4 * task : 4 * task + 4] == pytest.approx(alone.worth, abs=1e-4)
        assert (alone.worth_errors > 0.3).all()


def test_powers_are_refused_where_they_cannot_be_told_from_worths():
    with pytest.raises(DataError, match="rankings of each item"):
        plackett_luce([[[0], [1]], [[1], [0]]] * 3, 2, people=[0, 1, 0, 1, 0, 1], sureness=0.5)


@pytest.mark.slow
def test_what_was_planted_is_recovered_with_the_stated_coverage():
    """100 crowds: 12 items, 10 people of powers e^N(0, 0.4), 40 rankings of 5 with ties each. 95% intervals hold 92 to
    98 times in 100, for 1,200 worths, 1,000 powers and 200 tie parameters."""
    held = {"worth": [], "power": [], "ties": []}
    for seed in range(100):
        stream = np.random.default_rng(seed)
        worth, power = stream.normal(size=12), stream.normal(size=10) * 0.4
        worth, power = worth - worth.mean(), power - power.mean()
        rows, who = [], []
        for person in range(10):
            for _ in range(40):
                some = stream.permutation(12)[:5]
                drawn = sampled(worth[some], [-0.3, -1.0], stream, np.exp(power[person]))
                rows.append([[int(some[no]) for no in tier] for tier in drawn])
                who.append(person)
        found = plackett_luce(rows, 12, people=who, sureness=0.4)
        held["worth"] += list(np.abs(found.worth - worth) < 1.96 * found.worth_errors)
        held["power"] += list(np.abs(found.sureness - power) < 1.96 * found.sureness_errors)
        held["ties"] += [abs(found.ties[n] - v) < 1.96 * found.ties_errors[n] for n, v in ((2, -0.3), (3, -1.0))]
    coverage = {name: float(np.mean(each)) for name, each in held.items()}
    print("coverage of 95% intervals:", {name: (round(value, 3), len(held[name])) for name, value in coverage.items()})
    assert all(0.92 <= value <= 0.98 for value in coverage.values()), coverage


def test_orders_keep_ties_and_follow_probabilities():
    better = np.array([[0, 0.8, 0.9], [0.1, 0, 0.2], [0.05, 0.2, 0]])
    tied = np.array([[0, 0.1, 0.05], [0.1, 0, 0.6], [0.05, 0.6, 0]])
    assert rankings.order(better, tied) == ((0,), (1, 2))
    assert rankings.order(better.T, tied.T) == ((1, 2), (0,))
    assert rankings.order(np.zeros((2, 2)), np.array([[0, 1.0], [1.0, 0]])) == ((0, 1),)


def test_a_candidate_nobody_judged_stands_in_no_tier():
    nan = np.nan
    better = np.array([[nan, 0.9, nan], [0.1, nan, nan], [nan, nan, nan]])
    assert rankings.order(better, np.where(np.isnan(better), nan, 0.0)) == ((0,), (1,))
    assert rankings.order(np.full((2, 2), nan), np.full((2, 2), nan)) == ()
