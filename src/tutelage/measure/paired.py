"""Two systems on the same items: the difference of a figure, its interval, and the test that fits the figure.

A mean is compared answer by answer: exact McNemar for right or wrong on unrelated items, sign flips of whole clusters,
Student's t where clusters are many. A figure of sums (chrF, BLEU, macro-F1, bits per byte) has no value per answer: its
interval is a paired bootstrap (Koehn 2004), both systems on the same drawn items, and its p approximate randomization
(Riezler and Maxwell 2005), the systems' outputs swapped cluster by cluster. Two calibration errors, each debiased,
have an interval each; the distances to their ends add up as squares (Zou and Donner 2008).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from pydantic import Field
from scipy import special

from tutelage.measure.calibration import bins_of, ece
from tutelage.measure.clusters import CHUNK, Floats, Partition, t_quantile
from tutelage.measure.corrections import Count, summed
from tutelage.measure.intervals import Interval, Sums, Values, bootstrap_sums, checked, undefined
from tutelage.measure.statistics import Comparison, mcnemar, paired, permutation

MANY_CLUSTERS = 500
"""Independent groups from which on Student's t stands for the sign-flip test: they agree, and it costs nothing."""
FLIPS = 9999
"""Sign flips of the permutation test: the smallest p is 1/10,000, so that Holm over a long table can still reject."""


class Tested(Comparison):
    """First minus second, with the test that its p is of."""

    test: str = ""
    tests: dict[str, float | None] = Field(default_factory=dict)
    """All tests that fit."""


def error_of(difference: Interval) -> float | None:
    """The standard error that an interval's width speaks of."""
    units = difference.clusters or difference.n
    if difference.half_width is None or units < 2:
        return None
    return difference.half_width / t_quantile((1 + difference.level) / 2, units - 1)


def paired_means(
    first: Values,
    second: Values,
    clusters: Sequence[Hashable],
    *,
    bounds: tuple[float, float] | None = (0.0, 1.0),
    level: float = 0.95,
    seed: int = 0,
) -> Tested:
    """The difference of two means over the same items, by clusters; no test where there are no items. `bounds` are what
    both lie between by their nature, None where nothing bounds them."""
    found = paired(first, second, clusters, level, bounds)
    tests: dict[str, float | None] = {"cluster-robust t": found.p}
    count, gaps = len(set(clusters)), checked(first) - checked(second)
    if not len(gaps):
        return Tested.model_validate(found.model_dump())
    if count == len(gaps) and {*first, *second} <= {0.0, 1.0}:
        tests["exact McNemar"] = mcnemar(first, second, level).p
    elif count <= MANY_CLUSTERS:
        tests["sign-flip permutation"] = permutation(first, second, clusters, resamples=FLIPS, seed=seed)
    test = list(tests)[-1]
    told = found.model_dump() | {"p": tests[test] if gaps.any() else 1.0}
    return Tested.model_validate(told | {"test": test, "tests": tests})


def paired_sums(
    first: Sums,
    second: Sums,
    clusters: Sequence[Hashable] | None = None,
    *,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Tested:
    """The difference of two figures of sums over the same items, [n, c] each; p is None where one is undefined.

    Raises ValueError where they are not sums of the same things over as many items.
    """
    (n, width), test = first.columns.shape, "approximate randomization"
    if second.columns.shape != (n, width):
        raise ValueError(f"paired sums need the same items: {first.columns.shape} and {second.columns.shape}")
    columns = np.concatenate([first.columns, second.columns], axis=1)

    def gap(sums: Floats) -> Floats:
        return first.of(sums[:, :width]) - second.of(sums[:, width:])

    found = bootstrap_sums(columns, gap, clusters=clusters, level=level, resamples=resamples, seed=seed)
    parts = Partition.of(clusters, n)
    p = None
    if found.value is not None and parts.count > 1:
        p = swapped(first, second, parts, rounds=resamples, seed=seed + 1)
    return Tested(difference=found, p=p, test=test, tests={test: p})


def swapped(first: Sums, second: Sums, parts: Partition, *, rounds: int = 1000, seed: int = 0) -> float:
    """Two-sided p of approximate randomization: how often a difference as large comes about when the outputs of the
    two are swapped at random, cluster by cluster.

    All swaps are gone through where they are few. Else, where fewer than five rounds reach the difference, its tail is
    read from a normal distribution with the rounds' deviation, as a thousand rounds say nothing about one in a million;
    never below 2 of all the swaps there are.
    """
    one, two = parts.sums(first.columns), parts.sums(second.columns)
    left, right, move = one.sum(axis=0), two.sum(axis=0), two - one
    move = move[move.any(axis=1)]
    count = len(move)
    if not count:
        return 1.0
    observed = abs(float(first.of(left[None])[0] - second.of(right[None])[0]))
    every = 2**count <= rounds
    rng, size, drawn = np.random.default_rng(seed), max(1, CHUNK // count), []
    for start in range(0, 2**count if every else rounds, size):
        if every:
            turns = np.arange(start, min(start + size, 2**count))
            swaps = (turns[:, None] >> np.arange(count)) & 1
        else:
            swaps = rng.integers(0, 2, (min(size, rounds - start), count))
        moved = swaps.astype(np.float64) @ move
        drawn.append(np.abs(first.of(left + moved) - second.of(right - moved)))
    gaps = np.concatenate(drawn)
    gaps = gaps[np.isfinite(gaps)]
    reached = int((gaps >= observed - 1e-12).sum())
    if every:
        return reached / len(gaps)
    p, spread = (1 + reached) / (1 + len(gaps)), float(np.sqrt((gaps**2).mean())) if len(gaps) else 0.0
    if reached < 5 and spread > 0:
        p = min(p, float(2 * special.ndtr(-observed / spread)))
    return max(p, 2.0 ** (1 - count))


def paired_calibration(
    first: tuple[Values, Values],
    second: tuple[Values, Values],
    clusters: Sequence[Hashable] | None = None,
    *,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Tested:
    """The difference of two expected calibration errors, each of (probabilities, outcomes) over the same items.

    The interval takes the two errors as unrelated, which is the cautious end. p: approximate randomization of the
    errors as the sample shows them, over bins of equal mass of both systems' probabilities together; their bias is the
    same on both sides of a swap.
    """
    one, two = (ece(p, y, clusters=clusters, level=level) for p, y in (first, second))
    n, test, method = one.n, "approximate randomization", "debiased, difference"
    if one.value is None or two.value is None or not (one.defined and two.defined):
        nothing = undefined(n, one.reason or two.reason or "undefined", method=method, level=level)
        return Tested(difference=nothing, p=None)
    assert one.low is not None and one.high is not None and two.low is not None and two.high is not None
    value, low, high = summed([Count(one.value, one.low, one.high), Count(-two.value, -two.high, -two.low)])
    found = Interval(value=value, low=low, high=high, n=n, clusters=one.clusters, level=level, method=method)
    bins = bins_of([*first[0], *second[0]])
    place = np.empty(2 * n, dtype=np.int64)
    for index, members in enumerate(bins):
        place[members] = index
    off = np.concatenate([checked(first[0]) - checked(first[1]), checked(second[0]) - checked(second[1])])
    columns = np.zeros((2 * n, len(bins)))
    columns[np.arange(2 * n), place] = off / n

    def seen(sums: Floats) -> Floats:
        return np.asarray(np.abs(sums).sum(axis=1))

    sides = Sums(columns[:n], seen), Sums(columns[n:], seen)
    p = swapped(*sides, Partition.of(clusters, n), rounds=resamples, seed=seed)
    return Tested(difference=found, p=p, test=test, tests={test: p})
