"""Dawid-Skene against crowd-kit, unreliable people found, orders from probabilities."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from crowdkit.aggregation import DawidSkene

from tutelage.feedback import assign, consensus


def crowd(seed, things=200, people=12, classes=3, per_thing=4):
    stream = np.random.default_rng(seed)
    truth = stream.integers(0, classes, things)
    skill = stream.uniform(0.4, 0.95, people)
    rows = []
    for thing in range(things):
        for person in stream.choice(people, per_thing, replace=False):
            right = stream.random() < skill[person]
            said = truth[thing] if right else (truth[thing] + stream.integers(1, classes)) % classes
            rows.append((thing, int(person), int(said)))
    return np.array(rows), truth, skill


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("seed", range(3))
def test_posteriors_are_those_of_crowd_kit(seed):
    rows, _, _ = crowd(seed)
    ours = consensus.dawid_skene(rows[:, 0], rows[:, 1], rows[:, 2], 3, steps=25, tolerance=-np.inf)
    theirs = DawidSkene(n_iter=25, tol=-np.inf).fit(pd.DataFrame(rows, columns=["task", "worker", "label"])).probas_
    assert np.abs(ours.posteriors - theirs.sort_index()[[0, 1, 2]].to_numpy()).max() < 1e-6


def test_it_beats_the_majority_and_nearly_matches_one_who_knows_the_truth():
    """Over seeds: more things right than by majority; skills at most twice as wrong as counted with the truth."""
    gains, ours, oracle = [], [], []
    for seed in range(8):
        rows, truth, skill = crowd(seed, things=1500)
        found = consensus.dawid_skene(rows[:, 0], rows[:, 1], rows[:, 2], 3, prior=1.0)
        votes = np.zeros((1500, 3))
        np.add.at(votes, (rows[:, 0], rows[:, 2]), 1)
        gains.append((found.posteriors.argmax(1) == truth).mean() - (votes.argmax(1) == truth).mean())
        ours.append(np.einsum("pcc->p", found.confusions) / 3 - skill)
        counted = [(rows[rows[:, 1] == p, 2] == truth[rows[rows[:, 1] == p, 0]]).mean() for p in range(12)]
        oracle.append(np.array(counted) - skill)
        assert found.confusions.sum(2) == pytest.approx(1)
    assert np.mean(gains) > 3 * np.std(gains) / len(gains) ** 0.5 > 0
    assert np.sqrt(np.mean(np.square(ours))) < 2 * np.sqrt(np.mean(np.square(oracle)))


def test_a_vote_without_weight_counts_nothing():
    rows, _, _ = crowd(1)
    half = rows[:, 1] < 6
    weights = half.astype(float)
    whole = consensus.dawid_skene(rows[:, 0], rows[:, 1], rows[:, 2], 3, weights=weights)
    silent = ~np.isin(np.arange(200), rows[half, 0])
    part = consensus.dawid_skene(rows[half, 0], rows[half, 1], rows[half, 2], 3)
    heard = np.unique(rows[half, 0])
    assert (whole.posteriors[heard].argmax(1) == part.posteriors[heard].argmax(1)).mean() > 0.99
    assert silent.sum() == 0 or whole.posteriors[silent].max() < 0.9


def ranked_votes(kinds, tasks=120, size=4, per_task=3, noise=0.35, seed=0, long_is_good=False):
    """Votes of people of known kinds on candidates of known worth, to which length is unrelated unless it is said."""
    stream = np.random.default_rng(seed)
    panels = assign.panels(tasks, [str(n) for n in range(len(kinds))], per_task, seed)
    rows, pair_ids = [], {}
    for task in range(tasks):
        worth, length = stream.normal(size=size), stream.normal(size=size)
        length = worth if long_is_good else length
        for name in panels[task]:
            person = int(name)
            shown = stream.permutation(size)
            place = np.argsort(shown)
            value = {
                "careful": worth + stream.normal(size=size) * noise * 2,
                "hostile": -worth + stream.normal(size=size) * noise * 2,
                "random": stream.normal(size=size),
                "longest": length + stream.normal(size=size) * 0.1,
                "first": -place + stream.normal(size=size) * 0.1,
            }[kinds[person]]
            for left in range(size):
                for right in range(left + 1, size):
                    pair = pair_ids.setdefault((task, left, right), len(pair_ids))
                    rows.append((
                        person, pair, task,
                        0 if abs(value[left] - value[right]) < 0.1 else int(np.sign(value[left] - value[right])),
                        int(np.sign(length[left] - length[right])), int(np.sign(place[right] - place[left])),
                    ))  # fmt: skip
    return consensus.Votes(*np.array(rows).T)


def test_unreliable_people_are_found_and_weighted_to_nothing():
    kinds = ["careful"] * 19 + ["random", "random", "longest", "first", "hostile"]
    for seed in range(5):
        found = consensus.judge_people(ranked_votes(kinds, tasks=160, seed=seed))
        findings = {str(each.person): each.finding for each in found}
        planted = {str(at): None if kind == "careful" else kind for at, kind in enumerate(kinds)}
        told = consensus.detection(findings, planted)
        assert told.recall >= 0.8 and told.precision >= 0.8, (seed, findings)
        assert all(each.weight == 0 for each in found if each.finding)
        assert all(each.weight > 0.2 for each in found if not each.finding and kinds[each.person] == "careful")


def test_a_careful_crowd_is_left_alone():
    flagged = sum(
        each.finding is not None
        for seed in range(5)
        for each in consensus.judge_people(ranked_votes(["careful"] * 24, tasks=160, seed=seed))
    )
    assert flagged <= 2


def test_people_with_few_answers_are_neither_trusted_nor_distrusted():
    votes = ranked_votes(["careful"] * 6, tasks=3, size=2)
    assert all(each.finding is None and each.reason for each in consensus.judge_people(votes))


def test_orders_keep_ties_and_follow_probabilities():
    better = np.array([[0, 0.8, 0.9], [0.1, 0, 0.2], [0.05, 0.2, 0]])
    tied = np.array([[0, 0.1, 0.05], [0.1, 0, 0.6], [0.05, 0.6, 0]])
    assert consensus.order(better, tied) == ((0,), (1, 2))
    assert consensus.order(better.T, tied.T) == ((1, 2), (0,))
    assert consensus.order(np.zeros((2, 2)), np.array([[0, 1.0], [1.0, 0]])) == ((0, 1),)


def test_detection_without_truth_or_findings_is_undefined():
    assert consensus.detection({"a": None}, {"a": "random"}).precision is None
    assert consensus.detection({"a": "random"}, {"a": None}).recall is None


def test_people_who_prefer_the_better_answer_are_not_blamed_when_it_is_the_longer_one():
    """Length and worth coincide: everybody chooses the longer one, and everybody is right to."""
    for seed in range(3):
        found = consensus.judge_people(ranked_votes(["careful"] * 12, tasks=120, seed=seed, long_is_good=True))
        assert not [each for each in found if each.finding == "longest"]
        assert sum(each.weight == 0 for each in found) <= 1


def test_a_candidate_nobody_judged_stands_in_no_tier():
    nan = np.nan
    better = np.array([[nan, 0.9, nan], [0.1, nan, nan], [nan, nan, nan]])
    assert consensus.order(better, np.where(np.isnan(better), nan, 0.0)) == ((0,), (1,))
    assert consensus.order(np.full((2, 2), nan), np.full((2, 2), nan)) == ()
