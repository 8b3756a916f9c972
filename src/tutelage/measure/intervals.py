"""Intervals of one figure. A figure that cannot be computed is None with a reason, never 0.

How often each covers the truth, and where it does not, is measured in docs/statistics.md. Sources: Wilson 1927;
Clopper and Pearson 1934; Korn and Graubard 1998 (rates of clustered samples); Newcombe 1998 (difference of rates);
Efron and Tibshirani 1993, chapters 12 and 13 (bootstrap).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import special

from tutelage.core.records import Record
from tutelage.measure.clusters import Floats, Indices, Partition, normal_quantile, t_quantile

Values = Sequence[float] | Floats


class Sums(NamedTuple):
    """A figure that is a function of sums over items: a mean, a ratio, F1, corpus BLEU."""

    columns: Floats
    """What is summed for each item, [n, c]."""
    of: Callable[[Floats], Floats]
    """Sums [r, c] of r samples -> the figure of each of them, [r]; NaN where it is undefined."""

    def whole(self, parts: Partition) -> float:
        """The figure of all items, added up cluster by cluster."""
        return float(self.of(parts.sums(self.columns).sum(axis=0)[None])[0])


class Interval(Record):
    """An estimate with its confidence interval. Undefined parts are None and `reason` says why."""

    value: float | None
    low: float | None
    high: float | None
    n: int
    """Items behind the estimate."""
    clusters: int | None = None
    """Independent groups behind the estimate, when items are clustered."""
    level: float = 0.95
    method: str = ""
    reason: str | None = None

    @property
    def defined(self) -> bool:
        """Whether the interval can carry a decision."""
        return self.low is not None and self.high is not None

    @property
    def half_width(self) -> float | None:
        """Half the interval's width, in the unit of the estimate."""
        return None if self.low is None or self.high is None else (self.high - self.low) / 2


def undefined(n: int, reason: str, *, value: float | None = None, method: str = "", level: float = 0.95) -> Interval:
    """An interval that could not be computed, and why."""
    return Interval(value=value, low=None, high=None, n=n, level=level, method=method, reason=reason)


def negative(figure: Interval) -> Interval:
    """The interval of the figure's negative."""
    value, low, high = (None if each is None else -each for each in (figure.value, figure.high, figure.low))
    return figure.model_copy(update={"value": value, "low": low, "high": high})


def check_level(level: float) -> None:
    if not 0.0 < level < 1.0:
        raise ValueError(f"a confidence level lies between 0 and 1, found {level}")


def _check_counts(successes: float, n: float) -> None:
    if n < 0 or successes < 0 or successes > n:
        raise ValueError(f"{successes} successes of {n} cannot be")


def wilson(successes: int, n: int, level: float = 0.95) -> Interval:
    """Score interval of a rate: close to its nominal coverage on average, also for few items."""
    check_level(level)
    _check_counts(successes, n)
    if n == 0:
        return undefined(0, "no items", method="wilson", level=level)
    z = normal_quantile((1 + level) / 2)
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == n else min(1.0, centre + half)
    return Interval(value=p, low=low, high=high, n=n, level=level, method="wilson")


def _beta_limits(successes: float, n: float, level: float) -> tuple[float, float]:
    tail = (1 - level) / 2
    low = 0.0 if successes <= 0 else float(special.betaincinv(successes, n - successes + 1, tail))
    high = 1.0 if successes >= n else float(special.betaincinv(successes + 1, n - successes, 1 - tail))
    return low, high


def clopper_pearson(successes: int, n: int, level: float = 0.95) -> Interval:
    """Exact interval of a rate: never covers less than its level. For bounds that a gate decides on."""
    check_level(level)
    _check_counts(successes, n)
    if n == 0:
        return undefined(0, "no items", method="clopper-pearson", level=level)
    low, high = _beta_limits(successes, n, level)
    return Interval(value=successes / n, low=low, high=high, n=n, level=level, method="clopper-pearson")


def upper_bound(successes: int, n: int, level: float = 0.95) -> float | None:
    """One-sided exact upper bound of a rate, None without items: the largest rate the data do not refute."""
    _check_counts(successes, n)
    if n == 0:
        return None
    return 1.0 if successes == n else float(special.betaincinv(successes + 1, n - successes, level))


def checked(values: Values) -> Floats:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1:
        raise ValueError("values must be one-dimensional")
    if not np.isfinite(array).all():
        raise ValueError("values must be finite; leave out what was not measured and count it apart")
    return array


def standard_error(values: Values, clusters: Sequence[Hashable] | None = None) -> float | None:
    """Standard error of the mean (cluster-robust when clusters are given); None below two items or clusters."""
    array = checked(values)
    parts = Partition.of(clusters, len(array))
    return None if parts.count < 2 else parts.error(array)


def linearised(above: Values, below: Values) -> Floats:
    """One value per item, [n], whose mean is sum(above) / sum(below) and whose spread is that ratio's.

    Any interval of a mean, and any paired difference, is then one of the ratio (Taylor: Cochran 1977, section 6.4).
    """
    top, bottom = checked(above), checked(below)
    if not len(top):
        return top
    ratio = float(top.sum() / bottom.sum())
    return np.asarray(ratio + (top - ratio * bottom) / bottom.mean())


def per_item(sums: Sums) -> Floats:
    """One value per item, [n], whose mean is the figure of them all and whose spread is the figure's.

    Jackknife pseudo-values (Efron and Tibshirani 1993, chapter 11), moved to that mean; of a mean they are the values.
    An item without which there is no figure counts as the figure. NaN where it is undefined of all.
    """
    n, total = len(sums.columns), sums.columns.sum(axis=0)
    value = float(sums.of(total[None])[0]) if n else math.nan
    if n < 2 or not math.isfinite(value):
        return np.full(n, value)
    without = sums.of(total - sums.columns)
    moved = np.where(np.isfinite(without), (n - 1) * (value - without), 0.0)
    return np.asarray(value + moved - moved.mean())


def rate(outcomes: Values, clusters: Sequence[Hashable] | None = None, level: float = 0.95) -> Interval:
    """Interval of a rate of 0/1 outcomes: Wilson, or with clusters Clopper-Pearson at the effective sample size.

    When every outcome is equal the design effect cannot be estimated; the number of clusters is then taken as
    the effective size, which is the cautious end.
    """
    check_level(level)
    array = checked(outcomes)
    if not np.isin(array, (0.0, 1.0)).all():
        raise ValueError("a rate needs outcomes of 0 or 1; use mean() for anything else")
    n, hits = len(array), int(array.sum())
    if n == 0:
        return undefined(0, "no items", method="rate", level=level)
    if clusters is None:
        return wilson(hits, n, level)
    parts = Partition.of(clusters, n)
    if parts.count < 2:
        return undefined(n, "fewer than two clusters", value=hits / n, method="korn-graubard", level=level)
    p, error, effective = hits / n, parts.error(array), float(parts.count)
    if error > 0:
        shrink = t_quantile((1 + level) / 2, n - 1) / t_quantile((1 + level) / 2, parts.degrees(array))
        effective = min(float(n), p * (1 - p) / error**2 * shrink**2)
    low, high = _beta_limits(p * effective, effective, level)
    return Interval(value=p, low=low, high=high, n=n, clusters=parts.count, level=level, method="korn-graubard")


def mean(
    values: Values,
    clusters: Sequence[Hashable] | None = None,
    level: float = 0.95,
    bounds: tuple[float, float] | None = None,
) -> Interval:
    """Interval of a mean by Student's t with cluster-robust errors; `bounds` clips it to what is possible.

    Values (or means of clusters) that are all equal carry no variance: the share of others is then bounded exactly,
    and those others are put at the ends of `bounds`; without bounds the interval is undefined.
    """
    check_level(level)
    array = checked(values)
    n = len(array)
    if n == 0:
        return undefined(0, "no items", method="t", level=level)
    parts, value = Partition.of(clusters, n), float(array.mean())
    if parts.count < 2:
        return undefined(n, f"fewer than two {parts.unit}", value=value, method="t", level=level)
    error, method = parts.error(array), "t"
    if error == 0.0:
        if bounds is None:
            what = "values" if float(np.ptp(array)) == 0.0 else "means of clusters"
            return undefined(n, f"all {what} are equal", value=value, method="t", level=level)
        reach, method = 1.0 - ((1 - level) / 2) ** (1 / parts.count), "exact"
        low, high = value - reach * (value - bounds[0]), value + reach * (bounds[1] - value)
    else:
        half = t_quantile((1 + level) / 2, parts.degrees(array)) * error
        low, high = value - half, value + half
    if bounds is not None:
        low, high = max(bounds[0], low), min(bounds[1], high)
    return Interval(value=value, low=low, high=high, n=n, clusters=parts.shown, level=level, method=method)


def percentiles(
    value: float, drawn: Floats, parts: Partition, level: float = 0.95, method: str = "bootstrap"
) -> Interval:
    """The percentile interval of a statistic whose resamples are `drawn` [resamples].

    Resamples on which it is not finite (a class that was not drawn) are left out; more than a tenth of them makes the
    interval undefined.
    """
    n = len(parts.codes)
    finite = drawn[np.isfinite(drawn)]
    if len(finite) < 0.9 * len(drawn):
        return undefined(n, "undefined on too many resamples", value=value, method=method, level=level)
    low, high = (float(each) for each in np.quantile(finite, parts.tails(level)))
    if low == high:
        return undefined(n, "no variation between resamples", value=value, method=method, level=level)
    return Interval(value=value, low=low, high=high, n=n, clusters=parts.shown, level=level, method=method)


def bootstrap(
    statistic: Callable[[Indices], float],
    n: int,
    *,
    clusters: Sequence[Hashable] | None = None,
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap of any statistic of items; with clusters, whole clusters are drawn.

    `statistic` receives the indices of the drawn items (with repeats). Where the statistic is a function of sums over
    items, `bootstrap_sums` is a hundred times faster. Quantiles are widened for few units (`Partition.tails`).
    """
    check_level(level)
    if n == 0:
        return undefined(0, "no items", method="bootstrap", level=level)
    parts = Partition.of(clusters, n)
    value = float(statistic(np.arange(n)))
    if not math.isfinite(value):
        return undefined(n, "the statistic is undefined on these items", method="bootstrap", level=level)
    if parts.count < 2:
        return undefined(n, f"fewer than two {parts.unit}", value=value, method="bootstrap", level=level)
    members = np.split(np.argsort(parts.codes, kind="stable"), np.cumsum(parts.sizes)[:-1])
    drawn = [
        statistic(picks if parts.alone else np.concatenate([members[pick] for pick in picks]))
        for chunk in parts.draws(resamples, seed)
        for picks in chunk
    ]
    return percentiles(value, np.array(drawn, dtype=np.float64), parts, level)


def bootstrap_sums(
    columns: Floats,
    statistic: Callable[[Floats], Floats],
    *,
    clusters: Sequence[Hashable] | None = None,
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap of a statistic of sums over items: `columns` and `statistic` as in `Sums`."""
    check_level(level)
    n = len(columns)
    if n == 0:
        return undefined(0, "no items", method="bootstrap", level=level)
    parts, figure = Partition.of(clusters, n), Sums(np.asarray(columns, dtype=np.float64), statistic)
    value = figure.whole(parts)
    if not math.isfinite(value):
        return undefined(n, "the statistic is undefined on these items", method="bootstrap", level=level)
    if parts.count < 2:
        return undefined(n, f"fewer than two {parts.unit}", value=value, method="bootstrap", level=level)
    sums = parts.sums(figure.columns)
    drawn = np.concatenate([statistic(counts @ sums) for counts in parts.counts(resamples, seed)])
    return percentiles(value, drawn, parts, level)


def bootstrap_t(
    values: Values,
    clusters: Sequence[Hashable] | None = None,
    level: float = 0.95,
    bounds: tuple[float, float] | None = None,
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> Interval:
    """Interval of a mean by the studentised bootstrap: for skewed values, whose t interval lies too low or too high.

    Each resample's distance from the mean is taken in its own standard errors (Efron and Tibshirani 1993, section
    12.5). It is wide where few items are; `bounds` clips it to what is possible.
    """
    check_level(level)
    array = checked(values)
    n = len(array)
    if n == 0:
        return undefined(0, "no items", method="bootstrap-t", level=level)
    parts, value = Partition.of(clusters, n), float(array.mean())
    if parts.count < 2:
        return undefined(n, f"fewer than two {parts.unit}", value=value, method="bootstrap-t", level=level)
    error = parts.error(array)
    if error == 0.0:
        return undefined(n, "no variation between resamples", value=value, method="bootstrap-t", level=level)
    sums, sizes = parts.sums(array - value), parts.sizes.astype(np.float64)
    columns = np.stack([sums, sizes, sums**2, sums * sizes, sizes**2], axis=1)
    drawn = []
    for counts in parts.counts(resamples, seed):
        total, items, square, mixed, size = (counts @ columns).T
        gap = total / items
        spread = np.sqrt(np.maximum(square - 2 * gap * mixed + gap**2 * size, 0.0) * parts.count / (parts.count - 1))
        drawn.append(np.divide(gap * items, spread, out=np.full(len(gap), np.nan), where=spread > 1e-12 * error * n))
    told = np.concatenate(drawn)
    told = told[np.isfinite(told)]
    if len(told) < 0.9 * resamples:
        return undefined(n, "undefined on too many resamples", value=value, method="bootstrap-t", level=level)
    least, most = (float(each) for each in np.quantile(told, [(1 - level) / 2, (1 + level) / 2]))
    low, high = value - most * error, value - least * error
    if bounds is not None:
        low, high = max(bounds[0], low), min(bounds[1], high)
    return Interval(value=value, low=low, high=high, n=n, clusters=parts.shown, level=level, method="bootstrap-t")


def newcombe(successes1: int, n1: int, successes2: int, n2: int, level: float = 0.95) -> Interval:
    """Difference of two independent rates, first minus second (Newcombe's hybrid score interval)."""
    first, second = wilson(successes1, n1, level), wilson(successes2, n2, level)
    if first.value is None or second.value is None:
        return undefined(n1 + n2, "no items on one side", method="newcombe", level=level)
    assert first.low is not None and first.high is not None and second.low is not None and second.high is not None
    value = first.value - second.value
    low = value - math.hypot(first.value - first.low, second.high - second.value)
    high = value + math.hypot(first.high - first.value, second.value - second.low)
    return Interval(value=value, low=low, high=high, n=n1 + n2, level=level, method="newcombe")


def at_least(figure: Interval, threshold: float) -> bool | None:
    """Whether a figure is surely above a threshold (its lower end is); None when it has no interval."""
    return None if figure.low is None else figure.low > threshold


def plain(figure: Interval) -> dict[str, Any]:
    """An interval as it stands in summaries: value, low, high, n, clusters, reason."""
    return {name: getattr(figure, name) for name in ("value", "low", "high", "n", "clusters", "reason")}
