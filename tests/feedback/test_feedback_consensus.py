"""Dawid-Skene and MACE against crowd-kit, votes without weight, soft labels."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from crowdkit.aggregation import MACE, DawidSkene

from tutelage.core.errors import DataError
from tutelage.feedback import consensus
from tutelage.feedback.mace import mace


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


def spammed(seed, things=500, people=25, classes=4, per_thing=5):
    """Votes of people of whom some do not look, numbered by first appearance: crowd-kit's MACE counts people and
    classes in that order and strategies in sorted order, which agree only then."""
    stream = np.random.default_rng(seed)
    truth = stream.integers(0, classes, things)
    skill = np.where(stream.random(people) < 0.3, 0.0, stream.uniform(0.4, 0.95, people))
    strategy = stream.dirichlet(np.ones(classes), people)
    rows = []
    for thing in range(things):
        for person in stream.choice(people, per_thing, replace=False):
            knows = stream.random() < skill[person]
            rows.append((thing, int(person), truth[thing] if knows else stream.choice(classes, p=strategy[person])))
    table = np.array(rows)
    people_seen, first = pd.factorize(table[:, 1])
    said, classes_seen = pd.factorize(table[:, 2])
    return table[:, 0], people_seen, said, np.argsort(classes_seen)[truth], skill[first]


def likelihood(things, people, said, classes, knowing, guessing, strategies):
    """The log-likelihood of votes under MACE, written out (Hovy et al. 2013, equation 1)."""
    total = 0.0
    for thing in np.unique(things):
        mine = things == thing
        guess = guessing[people[mine]] * strategies[people[mine], said[mine]]
        each = [np.prod(guess + knowing[people[mine]] * (said[mine] == true)) for true in range(classes)]
        total += np.log(np.sum(each) / classes)
    return total


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("method", ["vb", "em"])
@pytest.mark.parametrize("seed", range(2))
def test_mace_gives_the_labels_of_crowd_kit_and_no_lower_likelihood(seed, method):
    things, people, said, truth, skill = spammed(seed, things=300)
    ours = mace(things, people, said, 4, method=method, restarts=10)
    table = pd.DataFrame({"task": things, "worker": people, "label": said})
    labels = ours.posteriors.argmax(1)
    reached = []
    for start in range(2):  # crowd-kit draws every restart from the same seed, so that its restarts are one
        theirs = MACE(method=method, n_restarts=1, random_state=start).fit(table)
        assert (labels == theirs.labels_.sort_index().to_numpy()).mean() >= 0.99
        parameters = (theirs.spamming_[:, 1], theirs.spamming_[:, 0], theirs.thetas_)
        reached.append(likelihood(things, people, said, 4, *parameters))
    allowed = 0.0 if method == "em" else 1e-5 * abs(max(reached))  # the variational bound is not the likelihood
    assert ours.log_likelihood >= max(reached) - allowed
    assert len(ours.tried) == 10 and ours.log_likelihood >= max(ours.tried)
    assert (labels == truth).mean() > 0.85 and np.corrcoef(ours.competence, skill)[0, 1] > 0.95


def test_mace_says_who_does_not_look_and_what_they_say():
    things, people, said, _, skill = spammed(7, things=1500)
    found = mace(things, people, said, 4)
    assert found.competence[skill == 0].max() < 0.1 < 0.3 < found.competence[skill > 0].min()
    assert found.strategies.sum(1) == pytest.approx(1)
    assert (found.standard_errors > 0).all() and found.standard_errors.max() < 0.1


@pytest.mark.slow
def test_competences_are_recovered_with_the_stated_coverage():
    """60 crowds of 25 people, 500 things of 4 classes by 5 people each: 95% intervals of the competence of those who
    look hold 92 to 98 times in 100 (who never knows lies on the edge, where no interval is symmetric)."""
    held = []
    for seed in range(60):
        things, people, said, _, skill = spammed(seed)
        found = mace(things, people, said, 4, restarts=2)
        held += list((np.abs(found.competence - skill) < 1.96 * found.standard_errors)[skill > 0])
    print(f"coverage of 95% intervals of competence: {np.mean(held):.3f} of {len(held)}")
    assert 0.92 <= np.mean(held) <= 0.98


@pytest.mark.filterwarnings("ignore")
def test_a_vote_with_weight_two_is_two_votes():
    rows, _, _ = crowd(2)
    twice = np.concatenate([rows, rows])
    ends = {"steps": 1000, "tolerance": 1e-12}
    for fit in (consensus.dawid_skene, mace):
        whole = fit(rows[:, 0], rows[:, 1], rows[:, 2], 3, weights=np.full(len(rows), 2.0), **ends)
        again = fit(twice[:, 0], twice[:, 1], twice[:, 2], 3, **ends)
        assert whole.posteriors == pytest.approx(again.posteriors, abs=1e-4)


def test_votes_that_cannot_be_are_refused():
    none = np.zeros(0, dtype=int)
    for columns, said in (((none, none, none), "no vote"), ((np.array([0]),) * 3, "one of 0")):
        with pytest.raises(DataError, match=said):
            consensus.dawid_skene(*columns, 0)
    with pytest.raises(DataError, match="length"):
        mace(np.array([0, 1]), np.array([0]), np.array([0]), 2)


def test_soft_labels_weigh_by_how_certain_they_are():
    found = consensus.soft_labels(np.array([[1.0, 0.0], [0.5, 0.5], [0.9, 0.1], [np.nan, np.nan]]), ("no", "yes"))
    assert [weight for _, weight in found] == pytest.approx([1, 0, 0.531, 0], abs=0.001)
    assert found[2][0] == {"no": 0.9, "yes": 0.1}
