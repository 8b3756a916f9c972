"""How each person judges beside the others who judged the same pairs; who cannot be relied on counts nothing.

People are known by how they agree with the others, never by their pay or their speed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from tutelage.feedback.consensus import Codes, Floats
from tutelage.feedback.votes import Votes
from tutelage.measure.statistics import Interval, rate

Finding = Literal["hostile", "random", "longest", "first"]
ROUNDS = 30


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


def judge_people(votes: Votes, rules: Rules | None = None) -> list[Quality]:
    """The quality of every person; those found unreliable are left out of the others' majority, and all judged again,
    until nothing changes.

    A finding is taken back by evidence only: who has too few choices left beside others because those others were
    found out keeps what was found; and at most once, so that two people who accuse each other cannot go on for ever.
    Where all who can be judged are unreliable, all of them stay so. A person who never had enough clear choices is
    neither trusted nor distrusted: the weight is the crowd's average.
    """
    rules = rules or Rules()
    crowd = int(votes.people.max()) + 1 if len(votes) else 0
    weight = np.ones(crowd)
    found: list[Quality] = []
    cleared: set[int] = set()
    mine = np.split(np.argsort(votes.people, kind="stable"), np.cumsum(np.bincount(votes.people, minlength=crowd))[:-1])
    for _ in range(ROUNDS):
        others = _others(votes, weight)
        against = _against(votes, others, crowd)
        before, found = found, [
            _quality(votes, person, mine[person], others, rules, against) for person in range(crowd)
        ]  # fmt: skip
        for person, earlier in enumerate(before):
            if earlier.finding and not found[person].finding:
                if found[person].reason or person in cleared:
                    found[person] = earlier
                else:
                    cleared.add(person)
        known = [each for each in found if not each.reason]
        typical = float(np.mean([each.weight for each in known])) if known else 1.0
        found = [each if not each.reason else replace(each, weight=typical) for each in found]
        fresh = np.array([each.weight for each in found])
        settled = all(one.finding == other.finding for one, other in zip(before, found, strict=False)) and bool(before)
        if settled and np.allclose(fresh, weight, atol=1e-3):
            break
        weight = fresh
    top = max((each.weight for each in found), default=1.0) or 1.0
    return [replace(each, weight=each.weight / top) for each in found]


def _others(votes: Votes, weight: Floats) -> Floats:
    """For each vote the weighed sum of the other people's votes on the same pair."""
    mine = votes.choice * weight[votes.people]
    return np.asarray(np.bincount(votes.pairs, weights=mine)[votes.pairs] - mine)


def _against(votes: Votes, others: Floats, crowd: int) -> tuple[Floats, Floats]:
    """Of each person's clear choices where the others prefer the shorter one: how many chose the longer, of how many.

    Where long answers are the better ones, careful people do this too whenever the others err; only somebody who does
    it far more often than everybody else prefers length as such.
    """
    told = (votes.choice != 0) & (votes.longer != 0) & (np.sign(others) == -votes.longer) & (np.abs(others) > 1e-9)
    people = votes.people[told]
    chose = (votes.choice[told] == votes.longer[told]).astype(float)
    longer, of = np.bincount(people, chose, minlength=crowd), np.bincount(people, minlength=crowd)
    return longer.astype(float), of.astype(float)


def _quality(
    votes: Votes, person: int, mine: Codes, every: Floats, rules: Rules, crowd: tuple[Floats, Floats]
) -> Quality:
    others = every[mine]
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
