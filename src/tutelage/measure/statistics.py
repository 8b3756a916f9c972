"""Comparisons and tests: two systems on the same items, many tests at once, margins, power.

Their power, and how often they find what is not there, is measured in docs/statistics.md. Sources: Bonett and Price
2012 (difference of paired rates); McNemar 1947; Fagerland, Lydersen and Laake 2013 (mid-p); Holm 1979; Benjamini and
Hochberg 1995; Schuirmann 1987 (two one-sided tests). The intervals of one figure are `measure/intervals.py`'s, and can
be imported from here.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

import numpy as np
from scipy import special

from tutelage.core.records import Record
from tutelage.measure.clusters import CHUNK, Partition, normal_quantile, t_quantile, t_tail
from tutelage.measure.clusters import Floats as Floats
from tutelage.measure.clusters import Indices as Indices
from tutelage.measure.clusters import group as group
from tutelage.measure.intervals import Interval as Interval
from tutelage.measure.intervals import Values, checked
from tutelage.measure.intervals import at_least as at_least
from tutelage.measure.intervals import bootstrap as bootstrap
from tutelage.measure.intervals import bootstrap_sums as bootstrap_sums
from tutelage.measure.intervals import bootstrap_t as bootstrap_t
from tutelage.measure.intervals import clopper_pearson as clopper_pearson
from tutelage.measure.intervals import linearised as linearised
from tutelage.measure.intervals import mean as mean
from tutelage.measure.intervals import negative as negative
from tutelage.measure.intervals import newcombe as newcombe
from tutelage.measure.intervals import per_item as per_item
from tutelage.measure.intervals import percentiles as percentiles
from tutelage.measure.intervals import plain as plain
from tutelage.measure.intervals import rate as rate
from tutelage.measure.intervals import standard_error as standard_error
from tutelage.measure.intervals import undefined as undefined
from tutelage.measure.intervals import upper_bound as upper_bound
from tutelage.measure.intervals import wilson as wilson


class Comparison(Record):
    """Two systems on the same items: first minus second. `better`, `worse` count items that flipped each way."""

    difference: Interval
    p: float | None
    better: int = 0
    worse: int = 0


class Test(Record):
    """The outcome of a test against a margin. `passed` is None when there is not enough data to say."""

    __test__ = False  # not a pytest class

    passed: bool | None
    bound: float | None
    margin: float
    reason: str


def paired(
    first: Values,
    second: Values,
    clusters: Sequence[Hashable] | None = None,
    level: float = 0.95,
    bounds: tuple[float, float] | None = (0.0, 1.0),
) -> Comparison:
    """Mean difference first - second on the same items, with its interval and two-sided p (cluster-robust t).

    The interval of two rates of unrelated items is Bonett and Price's, which stays sensible where hardly any flips.
    `bounds` are what both lie between by their nature, None where nothing bounds them; values beyond show as much.
    """
    a, b = checked(first), checked(second)
    if len(a) != len(b):
        raise ValueError(f"paired needs the same items on both sides: {len(a)} and {len(b)}")
    gap, both = a - b, np.concatenate([a, b])
    better, worse = int((gap > 0).sum()), int((gap < 0).sum())
    inside = bounds is not None and bool(((both >= bounds[0]) & (both <= bounds[1])).all())
    reach = bounds[1] - bounds[0] if bounds is not None and inside else None
    interval = mean(gap, clusters, level, bounds=None if reach is None else (-reach, reach))
    rates = bounds == (0.0, 1.0) and bool(np.isin(both, (0.0, 1.0)).all())
    if clusters is None and interval.defined and rates:
        interval = _bonett_price(better, worse, len(gap), level)
    parts, p = Partition.of(clusters, len(gap)), None
    if parts.count > 1 and parts.error(gap) > 0:
        p = 2 * t_tail(abs(float(gap.mean())) / parts.error(gap), parts.degrees(gap))
    elif parts.count > 1:  # what flipping the signs of whole clusters says
        p = 0.5 ** (parts.count - 1) if gap.mean() else 1.0
    return Comparison(difference=interval, p=p, better=better, worse=worse)


def _bonett_price(better: int, worse: int, n: int, level: float) -> Interval:
    more, less = (better + 1) / (n + 2), (worse + 1) / (n + 2)
    half = normal_quantile((1 + level) / 2) * math.sqrt((more + less - (more - less) ** 2) / (n + 2))
    low, high = max(-1.0, more - less - half), min(1.0, more - less + half)
    value = (better - worse) / n
    return Interval(value=value, low=low, high=high, n=n, level=level, method="bonett-price")


def mcnemar(first: Values, second: Values, level: float = 0.95, *, mid: bool = False) -> Comparison:
    """Exact McNemar test of two 0/1 outcomes on the same items. p is None when no item flipped.

    `mid` counts half of what is as likely as the flips seen: more power, and a level that is kept on average and not
    for certain.
    """
    compared = paired(first, second, level=level)
    flips, fewer = compared.better + compared.worse, min(compared.better, compared.worse)
    p = min(1.0, 2 * float(special.bdtr(fewer, flips, 0.5))) if flips else None
    if p is not None and mid:
        ways = special.gammaln(flips + 1) - special.gammaln(fewer + 1) - special.gammaln(flips - fewer + 1)
        p = min(1.0, 2 * float(special.bdtr(fewer, flips, 0.5)) - math.exp(ways - flips * math.log(2)))
    return compared.model_copy(update={"p": p})


def permutation(
    first: Values,
    second: Values,
    clusters: Sequence[Hashable] | None = None,
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> float | None:
    """Two-sided sign-flip permutation p of a paired mean difference; whole clusters flip together.

    Where every cluster that differs does so in one direction, only two of all the flips are as extreme: that p is exact
    however many there are.
    """
    gap = checked(first) - checked(second)
    if not len(gap):
        return None
    parts = Partition.of(clusters, len(gap))
    count, sums = parts.count, parts.sums(gap)
    moved = sums[sums != 0]
    if not len(moved) or (moved > 0).all() or (moved < 0).all():
        return 2.0 ** (1 - len(moved)) if len(moved) else 1.0
    observed = abs(float(sums.sum())) - 1e-12
    if count <= 12:
        bits = (np.arange(2**count)[:, None] >> np.arange(count)) & 1
        return float((np.abs((2 * bits - 1) @ sums) >= observed).mean())
    rng, beyond, size = np.random.default_rng(seed), 0, max(1, CHUNK // count)
    for start in range(0, resamples, size):
        kept = rng.integers(0, 2, (min(size, resamples - start), count), dtype=np.int8)
        beyond += int((np.abs(2 * (kept @ sums) - sums.sum()) >= observed).sum())
    return (1 + beyond) / (resamples + 1)


def holm(ps: Sequence[float | None]) -> list[float | None]:
    """Adjusted p-values that bound the chance of any false finding. None (not tested) stays None, uncounted."""
    known = sorted((p, place) for place, p in enumerate(ps) if p is not None)
    adjusted: list[float | None] = [None] * len(ps)
    highest = 0.0
    for step, (p, place) in enumerate(known):
        highest = max(highest, min(1.0, p * (len(known) - step)))
        adjusted[place] = highest
    return adjusted


def benjamini_hochberg(ps: Sequence[float | None]) -> list[float | None]:
    """Adjusted p-values that bound the expected share of false findings. None stays None, uncounted."""
    known = sorted((p, place) for place, p in enumerate(ps) if p is not None)
    adjusted: list[float | None] = [None] * len(ps)
    lowest = 1.0
    for step in range(len(known) - 1, -1, -1):
        p, place = known[step]
        lowest = min(lowest, p * len(known) / (step + 1))
        adjusted[place] = lowest
    return adjusted


def minimum_detectable_effect(
    error: float | None,
    *,
    power: float = 0.8,
    alpha: float = 0.05,
    comparisons: int = 1,
    degrees: float | None = None,
) -> float | None:
    """The smallest true difference seen with `power` by a two-sided test whose standard error is `error`.

    `degrees` of freedom of that error (None: many); `comparisons` shares alpha out (Bonferroni).
    """
    if error is None or error <= 0:
        return None
    tail = 1 - alpha / (2 * max(1, comparisons))
    if degrees is None:
        return (normal_quantile(tail) + normal_quantile(power)) * error
    return (t_quantile(tail, degrees) + t_quantile(power, degrees)) * error


def detectable(
    first: Values,
    second: Values,
    clusters: Sequence[Hashable] | None = None,
    *,
    power: float = 0.8,
    alpha: float = 0.05,
    comparisons: int = 1,
) -> float | None:
    """The smallest true difference that these two systems on these items would show with `power`.

    None where the differences say nothing of their spread: fewer than two items or clusters, or all alike.
    """
    gap = checked(first) - checked(second)
    parts = Partition.of(clusters, len(gap))
    if parts.count < 2:
        return None
    error, degrees = parts.error(gap), parts.degrees(gap)
    return minimum_detectable_effect(error, power=power, alpha=alpha, comparisons=comparisons, degrees=degrees)


def visible_difference(
    values: Values, clusters: Sequence[Hashable] | None = None, *, power: float = 0.8, alpha: float = 0.05
) -> float | None:
    """The smallest difference between two systems that this many such items would show, taken as unrelated.

    Items shared by both make smaller differences visible, so this is the cautious figure. Where all values are
    equal, the variance of a rate half an item away from them stands in.
    """
    error = standard_error(values, clusters)
    if error is None:
        return None
    if error == 0.0:
        count = len(set(clusters)) if clusters is not None else len(values)
        near = 0.5 / count
        error = math.sqrt(near * (1 - near) / count)
    return minimum_detectable_effect(math.sqrt(2) * error, power=power, alpha=alpha)


def items_needed(
    difference: float, deviation: float = 0.5, *, power: float = 0.8, alpha: float = 0.05, correlation: float = 0.0
) -> int:
    """Items that show `difference` between two systems whose items vary by `deviation`.

    Two unrelated systems need as many a side; on the same items their `correlation` spares some.
    """
    if difference <= 0 or deviation <= 0 or not -1 <= correlation < 1:
        raise ValueError("difference and deviation must be positive, the correlation between -1 and 1")
    reach = normal_quantile(1 - alpha / 2) + normal_quantile(power)
    return math.ceil(2 * (1 - correlation) * (reach * deviation / difference) ** 2)


def non_inferior(difference: Interval, margin: float) -> Test:
    """Whether new minus old is surely above -margin: the interval's lower end decides, not its middle."""
    if margin < 0:
        raise ValueError("a margin is not negative")
    if difference.low is None or difference.high is None:
        return Test(passed=None, bound=None, margin=margin, reason=f"not enough data: {difference.reason}")
    if difference.low > -margin:
        return Test(passed=True, bound=difference.low, margin=margin, reason="at most the margin worse")
    if difference.high < -margin:
        return Test(passed=False, bound=difference.low, margin=margin, reason="worse by more than the margin")
    return Test(passed=None, bound=difference.low, margin=margin, reason="not enough data: the interval spans -margin")


def equivalent(difference: Interval, margin: float) -> Test:
    """Whether the difference surely lies within +-margin (with a 90% interval, this is the 5% TOST)."""
    if margin <= 0:
        raise ValueError("a margin is positive")
    if difference.low is None or difference.high is None:
        return Test(passed=None, bound=None, margin=margin, reason=f"not enough data: {difference.reason}")
    bound = max(-difference.low, difference.high)
    if bound < margin:
        return Test(passed=True, bound=bound, margin=margin, reason="surely within the margin")
    if difference.low > margin or difference.high < -margin:
        return Test(passed=False, bound=bound, margin=margin, reason="surely outside the margin")
    return Test(passed=None, bound=bound, margin=margin, reason="not enough data: the interval crosses the margin")
