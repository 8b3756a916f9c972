"""Looking again and again: intervals and evidence that stay valid however often, and whenever, one looks.

Repeated looks with ordinary tests find differences that are not there: of twenty looks at a 5% test one in four errs
(docs/statistics.md). Three ways out, by what is new at a look:

- the **same items** again (every checkpoint examined on one suite): `look_level` shares the error out over the looks;
- **fresh items**, two systems: `paired_evidence` is an e-value, and evidence of fresh items multiplies;
- **fresh items**, one figure: `betting` bounds a mean at all times at once. At a sample size fixed before,
  `betting(..., anytime=False)` covers for sure, also with few skewed values, where t does not: release gates ask it.

Sources: Waudby-Smith and Ramdas 2024 (betting, theorem 3; arXiv 2010.09686), Shafer 2021 and Ramdas et al. 2023
(e-values), Ville 1939 (a fair game's capital seldom grows).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import Literal

import numpy as np
from scipy import special

from tutelage.core.records import Record
from tutelage.measure.clusters import Floats, group
from tutelage.measure.intervals import Interval, Values, check_level, checked, undefined

GRID = 1000
"""Steps between the bounds at which means are tried: an end of a betting interval is at most one step too wide."""
BETS = 200
"""Constant bets a side that evidence of a difference is averaged over."""


def _unit(values: Values, bounds: tuple[float, float]) -> Floats:
    array = checked(values)
    low, high = bounds
    if not low < high:
        raise ValueError(f"bounds ascend, found {low} and {high}")
    if len(array) and not (low <= array.min() and array.max() <= high):
        raise ValueError(f"values lie between {low} and {high}, found {array.min()} to {array.max()}")
    return (array - low) / (high - low)


def _bets(x: Floats, alpha: float, anytime: bool) -> Floats:
    """Predictable bets [n]: each knows only what was seen before it."""
    n, counts = len(x), np.arange(1, len(x) + 1)
    means = (0.5 + np.cumsum(x)) / (counts + 1)
    spread = (0.25 + np.cumsum((x - means) ** 2)) / (counts + 1)
    spread = np.concatenate([[0.25], spread[:-1]])
    pace = counts * np.log1p(counts) if anytime else np.full(n, float(n))
    return np.asarray(np.sqrt(2 * math.log(2 / alpha) / (spread * pace)))


def betting(
    values: Values, bounds: tuple[float, float] = (0.0, 1.0), level: float = 0.95, *, anytime: bool = True
) -> Interval:
    """Interval of the mean of bounded values: the means against which no gambler could have grown rich.

    `anytime` covers at all sample sizes at once, so one may stop when one likes; otherwise the size was fixed before,
    and the interval is narrower. Never covers less than its level, whatever the values' distribution.

    Args:
        values: one for each independent unit, in the order in which they were seen; of clusters their means.
        bounds: between which values lie by their nature, not by what was seen.
    """
    check_level(level)
    x = _unit(values, bounds)
    method = "betting sequence" if anytime else "betting"
    if not len(x):
        return undefined(0, "no items", method=method, level=level)
    alpha = 1 - level
    bets = _bets(x, alpha, anytime)
    tried = np.linspace(0.0, 1.0, GRID + 1)
    capital = np.zeros((2, GRID + 1))
    most = np.full((2, GRID + 1), -np.inf)
    with np.errstate(divide="ignore"):
        caps = 0.5 / tried, 0.5 / (1 - tried)
    for start in range(0, len(x), 128):
        bet, gap = bets[start : start + 128, None], x[start : start + 128, None] - tried
        for side, (cap, sign) in enumerate(zip(caps, (1.0, -1.0), strict=True)):
            path = capital[side] + np.cumsum(np.log1p(sign * np.minimum(bet, cap) * gap), axis=0)
            most[side], capital[side] = np.maximum(most[side], path.max(axis=0)), path[-1]
    # half of the stake bets on higher, half on lower: together they hold at least half of the better one
    refuted = most >= math.log(2 / alpha)
    above, below = np.flatnonzero(~refuted[0]), np.flatnonzero(~refuted[1])
    low = 0.0 if not len(above) or above[0] == 0 else float(tried[above[0] - 1])
    high = 1.0 if not len(below) or below[-1] == GRID else float(tried[below[-1] + 1])
    scale, least = bounds[1] - bounds[0], bounds[0]
    value = least + scale * float(x.mean())
    low, high = min(value, least + scale * low), max(value, least + scale * high)
    return Interval(value=value, low=low, high=high, n=len(x), level=level, method=method)


def betting_by_clusters(
    values: Values, clusters: Sequence[Hashable], bounds: tuple[float, float], level: float = 0.95
) -> Interval:
    """Interval of the mean of bounded items that hang together, at a number of clusters fixed before.

    What is bet on are the clusters' sums, so scaled that their mean is the items': it covers for sure, also where
    values are mostly at one end, of which t covers too little.
    """
    array = checked(values)
    codes, count = group(clusters, len(array))
    if not count:
        return undefined(0, "no items", method="betting", level=level)
    share = count / len(array)
    most = share * float(np.bincount(codes, minlength=count).max())
    sums = np.asarray(share * np.bincount(codes, weights=array, minlength=count), dtype=np.float64)
    told = betting(sums, (min(0.0, most * bounds[0]), most * bounds[1]), level, anytime=False)
    return told.model_copy(update={"value": float(array.mean()), "n": len(array), "clusters": count})


class Evidence(Record):
    """What paired outcomes say against "no difference", at any time."""

    e: float | None
    """How many times one's stake a bet against the null would have grown: 20 is evidence at 5%. None without items."""
    p: float | None
    """1 / e, at most 1: a p-value that may be looked at again and again."""
    n: int
    better: int
    """Items on which the first was higher."""
    worse: int


def paired_evidence(
    first: Values,
    second: Values,
    *,
    null: float = 0.0,
    alternative: Literal["two-sided", "greater", "less"] = "two-sided",
) -> Evidence:
    """Evidence that first and second, outcomes in [0, 1] of the same items, differ otherwise than by `null` on average.

    Computed on all items seen so far, at any time: among systems alike the chance that it ever reaches 20 is at most
    5%. `alternative` "greater" bets on first - second being above `null`: non-inferiority with `null` = -margin.
    The bets are constant, averaged evenly over all that cannot lose everything: for 0/1 outcomes a sequential McNemar
    test with a uniform prior. Items must be independent: of clusters give the means.
    """
    a, b = _unit(first, (0.0, 1.0)), _unit(second, (0.0, 1.0))
    if len(a) != len(b):
        raise ValueError(f"evidence needs the same items on both sides: {len(a)} and {len(b)}")
    if not -1 < null < 1:
        raise ValueError(f"a null difference lies between -1 and 1, found {null}")
    gap = a - b
    better, worse = int((gap > 0).sum()), int((gap < 0).sum())
    if not len(gap):
        return Evidence(e=None, p=None, n=0, better=0, worse=0)
    steps = (np.arange(BETS) + 0.5) / BETS
    bets = {"greater": steps / (1 + null), "less": -steps / (1 - null)}
    sides = [bets[alternative]] if alternative != "two-sided" else [bets["greater"], bets["less"]]
    tried = np.concatenate(sides)
    seen, counts = np.unique(gap - null, return_counts=True)  # the order does not matter: equal values count together
    capital = np.zeros(len(tried))
    for start in range(0, len(seen), 4096):
        capital += counts[start : start + 4096] @ np.log1p(tried * seen[start : start + 4096, None])
    e = math.exp(min(700.0, float(special.logsumexp(capital)) - math.log(len(tried))))
    return Evidence(e=e, p=min(1.0, 1 / e) if e > 0 else 1.0, n=len(gap), better=better, worse=worse)


def look_level(look: int, level: float = 0.95) -> float:
    """The level for the `look`-th look (1, 2, ...) at the same items: all looks together err at most 1 - level.

    The error is shared out as 1 / (look * (look + 1)), without an end, and whatever the looks have in common.
    """
    check_level(level)
    if look < 1:
        raise ValueError(f"looks are counted from 1, found {look}")
    return 1 - (1 - level) / (look * (look + 1))
