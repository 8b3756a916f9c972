"""Where groups of people disagree: agreement within and between groups, and tasks whose winner depends on the group.

Sources: Krippendorff 2004 (alpha within a group); Wong, Paritosh and Aroyo 2021, "Cross-replication reliability",
section 3 (agreement between two groups: chance-corrected as alpha is, over pairs of one person of each); Prabhakaran et
al. 2023, "GRASP" (comparing both); Benjamini and Hochberg 1995 (false discovery rate), Benjamini and Yekutieli 2005
(intervals of what was selected). Intervals of agreement are percentile bootstraps over tasks.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from tutelage.feedback.votes import Scales, total_scores
from tutelage.measure.statistics import Interval, benjamini_hochberg, newcombe, undefined
from tutelage.store.answers import WHOLE, Annotation

Floats = NDArray[np.float64]
REPLICATES = 400
FEWEST = 10
"""Tasks below which agreement is not stated."""
RANKING = "ranking"
TIE = -1
"""The choice of somebody who puts two answers on top."""
FDR = 0.05
DRAWS = 9999
"""Permutations of a test."""


@dataclass(frozen=True)
class Rated:
    """What was said on one question: row n is the `value` that `person` gave `unit`, a thing of `task`."""

    person: tuple[str, ...]
    task: NDArray[np.int64]
    unit: NDArray[np.int64]
    value: NDArray[np.int64]
    """Codes of `values`."""
    values: Floats
    ordered: bool
    """Whether values are numbers that can lie near each other, or names."""


@dataclass(frozen=True)
class Agreement:
    """How far two groups agree on one question, and each of them within itself."""

    question: str
    first: str
    second: str
    within: tuple[Interval, Interval]
    between: Interval
    gap: Interval
    """Mean agreement within minus agreement between: above 0, the groups differ by more than their people do."""


@dataclass(frozen=True)
class Depends:
    """A task whose most chosen answer differs between two groups."""

    attribute: str
    task: str
    first: str
    second: str
    winners: tuple[int, int]
    """The candidate that most of the first group chose, and that most of the second chose."""
    people: tuple[int, int]
    difference: Interval
    """Share of the first group that chose its winner, minus the share of the second that did."""
    p: float
    """Adjusted for every comparison that was made."""


def rated(answers: Iterable[Annotation]) -> dict[str, Rated]:
    """Each question with everything that was said on it; `ranking` holds who stands above whom.

    Of a ranking every pair is a thing, given in both directions, since the order of the two means nothing. Of a
    question with several choices every choice is a thing: named or not.
    """
    rows: dict[str, list[tuple[str, str, tuple[object, ...], object]]] = {}
    chosen: dict[str, set[str]] = {}
    many: list[tuple[str, str, str, list[str]]] = []
    for each in answers:
        place = {no: tier for tier, members in enumerate(each.tiers) for no in members}
        for left, right in itertools.permutations(sorted(place), 2):
            sign = float((place[right] > place[left]) - (place[right] < place[left]))
            rows.setdefault(RANKING, []).append((each.person, each.task, (left, right), sign))
        for said in each.values:
            where = (said.candidate,)
            if said.number is not None:
                rows.setdefault(said.question, []).append((each.person, each.task, where, said.number))
            elif isinstance(said.value, str):
                rows.setdefault(said.question, []).append((each.person, each.task, where, said.value))
            elif isinstance(said.value, list) and said.candidate == WHOLE:
                names = [str(name) for name in said.value]
                chosen.setdefault(said.question, set()).update(names)
                many.append((said.question, each.person, each.task, names))
    for question, person, task, names in many:
        for name in sorted(chosen[question]):
            rows.setdefault(question, []).append((person, task, (name,), float(name in names)))
    return {question: _coded(rows[question]) for question in sorted(rows)}


def _coded(rows: Sequence[tuple[str, str, tuple[object, ...], object]]) -> Rated:
    ordered = all(isinstance(value, float | int) for *_, value in rows)
    tasks: dict[str, int] = {}
    units: dict[tuple[object, ...], int] = {}
    names = sorted({value for *_, value in rows}, key=lambda v: (isinstance(v, str), v))
    codes = {value: at for at, value in enumerate(names)}
    table = [
        (tasks.setdefault(task, len(tasks)), units.setdefault((task, *unit), len(units)), codes[value])
        for _, task, unit, value in rows
    ]
    columns = np.array(table, dtype=np.int64).reshape(-1, 3)
    values = np.array([float(v) for v in names]) if ordered else np.arange(len(names), dtype=float)  # type: ignore[arg-type]
    people = tuple(person for person, *_ in rows)
    return Rated(people, columns[:, 0], columns[:, 1], columns[:, 2], values, ordered)


def agreement(
    question: str, said: Rated, groups: Mapping[str, Collection[str]], first: str, second: str, seed: int = 0
) -> Agreement:
    """Agreement of two groups (value -> ids of people) on one question."""
    distance = (said.values[:, None] - said.values[None, :]) ** 2 if said.ordered else 1.0 - np.eye(len(said.values))
    mine, theirs = (_counts(said, groups[name]) for name in (first, second))
    task = np.zeros(len(mine), dtype=np.int64)
    task[said.unit] = said.task
    tasks = int(task.max(initial=-1)) + 1
    inside = [_within(each, distance, task, tasks) for each in (mine, theirs)]
    across = _between(mine, theirs, distance, task, tasks)
    stream = np.random.default_rng(seed)

    def gap(weights: Floats) -> Floats:
        alone = [each.coefficient(weights, distance) for each in inside]
        return np.asarray((alone[0] + alone[1]) / 2 - across.coefficient(weights, distance))

    within = [_bootstrap(partial(each.coefficient, distance=distance), each.tasks, tasks, stream) for each in inside]
    return Agreement(
        question,
        first,
        second,
        (within[0], within[1]),
        _bootstrap(partial(across.coefficient, distance=distance), across.tasks, tasks, stream),
        _bootstrap(gap, across.tasks, tasks, stream),
    )


@dataclass(frozen=True)
class _Sums:
    """Per task: observed disagreement, and how often each value stands on the one side and on the other."""

    seen: Floats
    first: Floats
    second: Floats
    same: bool
    """Whether both sides are one group: then nobody is paired with themselves."""

    @property
    def tasks(self) -> NDArray[np.int64]:
        """The tasks that say something."""
        return np.flatnonzero(self.first.sum(axis=1) > 0)

    def coefficient(self, weights: Floats, distance: Floats) -> Floats:
        """1 - observed / expected disagreement, for each row of task weights; NaN where all values are equal."""
        seen, first, second = weights @ self.seen, weights @ self.first, weights @ self.second
        expected = ((first @ distance) * second).sum(axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(expected > 0, 1 - (first.sum(axis=1) - self.same) * seen / expected, np.nan)


def _counts(said: Rated, people: Collection[str]) -> Floats:
    """How often each thing was given each value by these people."""
    found = np.zeros((int(said.unit.max(initial=-1)) + 1, len(said.values)))
    here = np.array([person in people for person in said.person], dtype=bool)
    np.add.at(found, (said.unit[here], said.value[here]), 1.0)
    return found


def _within(counts: Floats, distance: Floats, task: NDArray[np.int64], tasks: int) -> _Sums:
    size = counts.sum(axis=1)
    usable = size >= 2
    counts = counts[usable]
    seen = ((counts @ distance) * counts).sum(axis=1) / (size[usable] - 1)
    return _by_task(seen, counts, counts, task[usable], tasks, same=True)


def _between(mine: Floats, theirs: Floats, distance: Floats, task: NDArray[np.int64], tasks: int) -> _Sums:
    usable = (mine.sum(axis=1) > 0) & (theirs.sum(axis=1) > 0)
    first = mine[usable] / mine[usable].sum(axis=1, keepdims=True)
    second = theirs[usable] / theirs[usable].sum(axis=1, keepdims=True)
    return _by_task(((first @ distance) * second).sum(axis=1), first, second, task[usable], tasks, same=False)


def _by_task(seen: Floats, first: Floats, second: Floats, task: NDArray[np.int64], tasks: int, *, same: bool) -> _Sums:
    found = (np.zeros(tasks), np.zeros((tasks, first.shape[1])), np.zeros((tasks, first.shape[1])))
    for into, values in zip(found, (seen, first, second), strict=True):
        np.add.at(into, task, values)
    return _Sums(*found, same=same)


def _bootstrap(
    statistic: Callable[[Floats], Floats], tasks: NDArray[np.int64], among: int, stream: np.random.Generator
) -> Interval:
    """Percentile interval of a statistic of task weights, over resampled tasks."""
    n, method = len(tasks), "bootstrap over tasks"
    if n < FEWEST:
        return undefined(n, f"not enough data: fewer than {FEWEST} tasks", method=method)
    whole = np.zeros((1, among))
    whole[0, tasks] = 1.0
    value = float(statistic(whole)[0])
    if not np.isfinite(value):
        return undefined(n, "all answers are equal: nothing could have been disagreed on", method=method)
    drawn: list[Floats] = []
    block = max(1, 4_000_000 // among)
    for start in range(0, REPLICATES, block):
        weights = np.zeros((min(block, REPLICATES - start), among))
        weights[:, tasks] = stream.multinomial(n, np.full(n, 1 / n), size=len(weights))
        drawn.append(statistic(weights))
    again = np.concatenate(drawn)
    again = again[np.isfinite(again)]
    if len(again) < 0.9 * REPLICATES:
        return undefined(n, "too few answers differ for an interval", value=value, method=method)
    low, high = np.quantile(again, [0.025, 0.975])
    return Interval(value=value, low=float(low), high=float(high), n=n, method=method)


# tasks whose winner depends on the group


def choices(answers: Iterable[Annotation], scales: Scales | None = None) -> dict[str, dict[str, int]]:
    """Task -> person -> the candidate they put first (TIE where several), by their ranking or else their scores."""
    found: dict[str, dict[str, int]] = {}
    for each in answers:
        if each.tiers:
            best: Sequence[int] = each.tiers[0]
        else:
            scores = total_scores(each, scales or {})
            top = max(scores.values(), default=0.0)
            best = [no for no, score in scores.items() if score == top] if len(scores) > 1 else ()
        if best:
            found.setdefault(each.task, {})[each.person] = best[0] if len(best) == 1 else TIE
    return found


def depending(
    chosen: Mapping[str, Mapping[str, int]],
    groups: Mapping[str, Mapping[str, Collection[str]]],
    fewest: int,
    seed: int = 0,
) -> tuple[list[Depends], int]:
    """The tasks whose winner depends on the group, most certain first, and how many comparisons were made.

    `groups` is attribute -> value -> ids of people. Two groups are compared on a task that at least `fewest` people of
    each answered. Whether choice and group have to do with each other is tested for every such pair, whoever wins
    (Fisher's exact test; with more than two choices by permutation), so that looking at the winners first cannot make
    a finding; p is adjusted over all of them (false discovery rate 5%), and so is the level of the intervals.
    """
    stream = np.random.default_rng(seed)
    compared: list[tuple[str, str, str, str, Counter[int], Counter[int]]] = []
    ps: list[float | None] = []
    for attribute, task in itertools.product(groups, sorted(chosen)):
        said = chosen[task]
        counts = {
            value: Counter(said[person] for person in said if person in ids) for value, ids in groups[attribute].items()
        }
        large = [value for value in sorted(counts) if counts[value].total() >= fewest]
        for first, second in itertools.combinations(large, 2):
            compared.append((attribute, task, first, second, counts[first], counts[second]))
            ps.append(_independence(counts[first], counts[second], stream))
    adjusted = benjamini_hochberg(ps)
    found = [(row, p) for row, p in zip(compared, adjusted, strict=True) if p is not None and p <= FDR]
    level = 1 - FDR * max(len(found), 1) / max(len(compared), 1)
    results = []
    for (attribute, task, first, second, mine, theirs), p in found:
        left, right = _winner(mine), _winner(theirs)
        if left is None or right is None or left == right:
            continue
        sizes = mine.total(), theirs.total()
        gap = newcombe(mine[left], sizes[0], theirs[left], sizes[1], level)
        results.append(Depends(attribute, task, first, second, (left, right), sizes, gap, p))
    return sorted(results, key=lambda each: (each.p, each.task, each.first, each.second)), len(compared)


def _winner(counts: Counter[int]) -> int | None:
    """The candidate chosen most; None when two are, or when nobody chose one."""
    ranked = [(n, no) for no, n in counts.items() if no != TIE]
    ranked.sort(reverse=True)
    if not ranked or (len(ranked) > 1 and ranked[0][0] == ranked[1][0]):
        return None
    return ranked[0][1]


def _independence(first: Counter[int], second: Counter[int], stream: np.random.Generator) -> float | None:
    """p that choice and group have nothing to do with each other; None where all chose the same."""
    names = sorted(set(first) | set(second))
    if len(names) < 2:
        return None
    table = np.array([[counts[name] for name in names] for counts in (first, second)])
    if len(names) == 2:
        return float(stats.fisher_exact(table).pvalue)
    columns, size = table.sum(axis=0), int(table[0].sum())
    drawn = stream.multivariate_hypergeometric(columns, size, size=DRAWS)
    expected = columns * size / columns.sum()
    spread = expected * (1 - size / columns.sum())  # both rows' part of the statistic, since they mirror each other
    seen = float((((table[0] - expected) ** 2) / spread).sum())
    return float((1 + ((((drawn - expected) ** 2) / spread).sum(axis=1) >= seen - 1e-9).sum()) / (DRAWS + 1))
