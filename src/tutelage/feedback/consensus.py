"""What people together say, and how far each of them can be relied on.

Dawid and Skene 1979: each person has a table of confusions, each thing one true class; expectation-maximisation finds
both. The quality of people is judged by how they agree with the others, never by their pay or their speed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tutelage.measure.statistics import Interval, rate

Floats = NDArray[np.float64]
Codes = NDArray[np.int64]
Finding = Literal["hostile", "random", "longest", "first"]

TINY = 1e-10


@dataclass(frozen=True)
class Consensus:
    """Probability of each class for each thing [things, classes], and each person's table [people, true, said]."""

    posteriors: Floats
    priors: Floats
    confusions: Floats
    steps: int


def dawid_skene(
    things: Codes,
    people: Codes,
    said: Codes,
    classes: int,
    *,
    weights: Floats | None = None,
    prior: float = 0.0,
    steps: int = 100,
    tolerance: float = 1e-5,
) -> Consensus:
    """Fit the model to votes (thing, person, class said), all numbered from 0.

    `prior` adds that many votes of the average person to each person's table, which keeps people with few votes from
    being taken for oracles; 0 is the model as published. `weights` counts a vote for less (0 = not at all).
    """
    many, crowd = int(things.max()) + 1, int(people.max()) + 1
    weight = np.ones(len(said)) if weights is None else weights
    posterior = np.zeros((many, classes))
    np.add.at(posterior, (things, said), weight)
    empty = posterior.sum(axis=1) == 0
    posterior[empty] = 1.0
    posterior /= posterior.sum(axis=1, keepdims=True)
    before, step = -np.inf, 0
    priors = posterior.mean(axis=0)
    table = _confusions(posterior, things, people, said, weight, crowd, classes, prior)
    while step < steps:
        step += 1
        logs = np.tile(np.log(np.clip(priors, TINY, None)), (many, 1))
        np.add.at(logs, things, np.log(np.clip(table, TINY, None))[people, :, said] * weight[:, None])
        top = logs.max(axis=1, keepdims=True)
        scaled = np.exp(logs - top)
        posterior = scaled / scaled.sum(axis=1, keepdims=True)
        priors = posterior.mean(axis=0)
        table = _confusions(posterior, things, people, said, weight, crowd, classes, prior)
        now = float((top[:, 0] + np.log(scaled.sum(axis=1))).sum() / max(1, len(said)))
        if now - before < tolerance:
            break
        before = now
    return Consensus(posterior, priors, table, step)


def _confusions(
    posterior: Floats, things: Codes, people: Codes, said: Codes, weight: Floats, crowd: int, classes: int, prior: float
) -> Floats:
    counts = np.zeros((crowd, classes, classes))
    for true in range(classes):
        np.add.at(counts[:, true], (people, said), posterior[things, true] * weight)
    if prior > 0:
        pooled = counts.sum(axis=0) + TINY
        counts = counts + prior * pooled / pooled.sum(axis=1, keepdims=True)
    below = counts.sum(axis=2, keepdims=True)
    return np.asarray(np.divide(counts, below, out=np.full_like(counts, 1 / classes), where=below > 0))


@dataclass(frozen=True)
class Votes:
    """Choices between two answers, one row for each person and pair: `choice` +1 left, -1 right, 0 tie.

    `longer` is +1 where the left answer is the longer one, `earlier` +1 where the left one was shown first (-1 the
    other way, 0 when equal or not known). `pairs` and `tasks` number the pairs and their tasks.
    """

    people: Codes
    pairs: Codes
    tasks: Codes
    choice: Codes
    longer: Codes
    earlier: Codes
    names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.choice)


@dataclass(frozen=True)
class Quality:
    """How one person judges, beside the others who judged the same pairs."""

    person: int
    n: int
    tasks: int
    agreement: Interval
    """How often a clear choice is that of the others' majority; 0.5 is chance."""
    first: Interval
    """How often the one shown first is chosen; 0.5 is no preference."""
    longest: Interval
    """How often the longer one is chosen where the others clearly prefer the shorter one. Overall, long answers may
    simply be the better ones; only here do length and worth part."""
    ties: float
    finding: Finding | None = None
    weight: float = 1.0
    reason: str = ""


@dataclass(frozen=True)
class Rules:
    """When a person's votes are set aside. Bounds are of 95% intervals, clustered by task."""

    least_pairs: int = 12
    first: float = 0.7
    longest: float = 0.1
    """How far above the crowd's own rate the choice of the longer one must lie."""
    margin: float = 0.05
    """How far above chance the lower bound of agreement should be."""


def judge_people(votes: Votes, rules: Rules | None = None, rounds: int = 3) -> list[Quality]:
    """The quality of every person; those found unreliable are left out of the others' majority, and all judged again.

    A person with too few clear choices is neither trusted nor distrusted: the weight is the crowd's average.
    """
    rules = rules or Rules()
    crowd = int(votes.people.max()) + 1 if len(votes) else 0
    weight = np.ones(crowd)
    found: list[Quality] = []
    for _ in range(rounds):
        against = _against(votes, weight)
        found = [_quality(votes, person, weight, rules, against) for person in range(crowd)]
        known = [each for each in found if not each.reason]
        typical = float(np.mean([each.weight for each in known])) if known else 1.0
        found = [each if not each.reason else replace(each, weight=typical) for each in found]
        fresh = np.array([each.weight for each in found])
        if np.allclose(fresh, weight):
            break
        weight = fresh
    top = max((each.weight for each in found), default=1.0) or 1.0
    return [replace(each, weight=each.weight / top) for each in found]


def _others(votes: Votes, weight: Floats) -> Floats:
    """For each vote the weighed sum of the other people's votes on the same pair."""
    mine = votes.choice * weight[votes.people]
    return np.asarray(np.bincount(votes.pairs, weights=mine)[votes.pairs] - mine)


def _against(votes: Votes, weight: Floats) -> tuple[Floats, Floats]:
    """Of each person's clear choices where the others prefer the shorter one: how many chose the longer, of how many.

    Where long answers are the better ones, careful people do this too whenever the others err; only somebody who does
    it far more often than everybody else prefers length as such.
    """
    others = _others(votes, weight)
    told = (votes.choice != 0) & (votes.longer != 0) & (np.sign(others) == -votes.longer) & (np.abs(others) > 1e-9)
    people, size = votes.people[told], len(weight)
    chose = (votes.choice[told] == votes.longer[told]).astype(float)
    longer, of = np.zeros(size), np.zeros(size)
    np.add.at(longer, people, chose)
    np.add.at(of, people, 1.0)
    return longer, of


def _quality(votes: Votes, person: int, weight: Floats, rules: Rules, crowd: tuple[Floats, Floats]) -> Quality:
    mine = votes.people == person
    others = _others(votes, weight)[mine]
    choice, tasks = votes.choice[mine], votes.tasks[mine]
    clear = choice != 0
    told = clear & (np.abs(others) > 1e-9)
    agrees = (np.sign(others[told]) == choice[told]).astype(float)
    agreement = rate(agrees.tolist(), tasks[told].tolist())
    first = _rate(choice, votes.earlier[mine], tasks)
    against = told & (np.sign(others) == -votes.longer[mine]) & (votes.longer[mine] != 0)
    longest = rate((choice[against] == votes.longer[mine][against]).astype(float).tolist(), tasks[against].tolist())
    n = int(told.sum())
    ties = float((choice == 0).mean()) if len(choice) else 0.0
    plain = Quality(person, n, len(set(tasks.tolist())), agreement, first, longest, ties)
    if n < rules.least_pairs or agreement.value is None or agreement.low is None or agreement.high is None:
        return replace(plain, reason="too few choices that others made as well")
    chose, of = crowd[0].sum() - crowd[0][person], crowd[1].sum() - crowd[1][person]
    usual = max(0.5, chose / of) if of else 1.0
    finding = _finding(agreement, first, longest, usual, rules)
    trust = 0.0 if finding else max(0.05, 2 * agreement.value - 1)
    return replace(plain, finding=finding, weight=trust)


def _finding(agreement: Interval, first: Interval, longest: Interval, usual: float, rules: Rules) -> Finding | None:
    if agreement.high is not None and agreement.high < 0.5:
        return "hostile"
    if first.low is not None and first.low > rules.first:
        return "first"
    if longest.low is not None and longest.low > usual + rules.longest and longest.n >= rules.least_pairs:
        return "longest"
    if agreement.low is not None and agreement.low < 0.5 + rules.margin and (agreement.value or 0) < 0.6:
        return "random"
    return None


def _rate(choice: Codes, side: Codes, tasks: Codes) -> Interval:
    told = (choice != 0) & (side != 0)
    return rate((choice[told] == side[told]).astype(float).tolist(), tasks[told].tolist())


@dataclass(frozen=True)
class Detection:
    """How well unreliable people were found, where the truth is known (simulated people)."""

    found: int
    planted: int
    right: int
    precision: float | None
    recall: float | None
    reason: str = ""


def detection(found: Mapping[str, str | None], planted: Mapping[str, str | None]) -> Detection:
    """Compare findings (None = reliable) with what was planted, by person."""
    flagged = {name for name, finding in found.items() if finding}
    bad = {name for name, kind in planted.items() if kind and name in found}
    right = len(flagged & bad)
    return Detection(
        found=len(flagged),
        planted=len(bad),
        right=right,
        precision=right / len(flagged) if flagged else None,
        recall=right / len(bad) if bad else None,
        reason="" if flagged and bad else "nobody was found" if bad else "nobody unreliable was planted",
    )


def order(preferred: Floats, tied: Floats) -> tuple[tuple[int, ...], ...]:
    """Tiers, best first, from the probability that row is better than column, and that they are tied.

    NaN is a pair nobody judged; a candidate of no judged pair stands in no tier. Candidates are ordered by their mean
    chance of being better (a tie is half a chance); neighbours whose likeliest relation is a tie share a tier.
    """
    chance = preferred + tied / 2
    np.fill_diagonal(chance, np.nan)
    judged = [no for no in range(len(chance)) if not np.isnan(chance[no]).all()]
    mean = {no: round(float(np.nanmean(chance[no])), 9) for no in judged}
    tiers: list[list[int]] = []
    for no in sorted(judged, key=lambda each: (-mean[each], each)):
        above = tiers[-1][-1] if tiers else no
        equal = (
            mean[above] == mean[no]
            if np.isnan(chance[above, no])
            else tied[above, no] >= max(preferred[above, no], preferred[no, above])
        )
        if tiers and equal:
            tiers[-1].append(no)
        else:
            tiers.append([no])
    return tuple(tuple(sorted(tier)) for tier in tiers)
