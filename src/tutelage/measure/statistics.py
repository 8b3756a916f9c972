"""Intervals and tests. A figure that cannot be computed is None with a reason, never 0.

One partition into clusters feeds the standard error, the degrees of freedom and the bootstrap, so they cannot
disagree. Sources: Wilson 1927; Clopper and Pearson 1934; Korn and Graubard 1998 (rates of clustered samples);
Newcombe 1998 (difference of rates); Liang and Zeger 1986 (cluster-robust variance); McNemar 1947; Holm 1979;
Benjamini and Hochberg 1995; Schuirmann 1987 (two one-sided tests).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from tutelage.core.records import Record

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]


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


def undefined(n: int, reason: str, *, value: float | None = None, method: str = "", level: float = 0.95) -> Interval:
    """An interval that could not be computed, and why."""
    return Interval(value=value, low=None, high=None, n=n, level=level, method=method, reason=reason)


def _check_level(level: float) -> None:
    if not 0.0 < level < 1.0:
        raise ValueError(f"a confidence level lies between 0 and 1, found {level}")


def _check_counts(successes: float, n: float) -> None:
    if n < 0 or successes < 0 or successes > n:
        raise ValueError(f"{successes} successes of {n} cannot be")


def wilson(successes: int, n: int, level: float = 0.95) -> Interval:
    """Score interval of a rate: close to its nominal coverage on average, also for few items."""
    _check_level(level)
    _check_counts(successes, n)
    if n == 0:
        return undefined(0, "no items", method="wilson", level=level)
    z = float(stats.norm.ppf((1 + level) / 2))
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == n else min(1.0, centre + half)
    return Interval(value=p, low=low, high=high, n=n, level=level, method="wilson")


def _beta_limits(successes: float, n: float, level: float) -> tuple[float, float]:
    tail = (1 - level) / 2
    low = 0.0 if successes <= 0 else float(stats.beta.ppf(tail, successes, n - successes + 1))
    high = 1.0 if successes >= n else float(stats.beta.ppf(1 - tail, successes + 1, n - successes))
    return low, high


def clopper_pearson(successes: int, n: int, level: float = 0.95) -> Interval:
    """Exact interval of a rate: never covers less than its level. For bounds that a gate decides on."""
    _check_level(level)
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
    return 1.0 if successes == n else float(stats.beta.ppf(level, successes + 1, n - successes))


def lower_bound(successes: int, n: int, level: float = 0.95) -> float | None:
    """One-sided exact lower bound of a rate, None without items."""
    bound = upper_bound(n - successes, n, level)
    return None if bound is None else 1.0 - bound


def group(clusters: Sequence[Hashable], n: int) -> tuple[Indices, int]:
    """Cluster names as numbers 0 .. k-1 in order of first appearance, and k."""
    if len(clusters) != n:
        raise ValueError(f"{n} items but {len(clusters)} cluster names")
    seen: dict[Hashable, int] = {}
    codes = np.fromiter((seen.setdefault(name, len(seen)) for name in clusters), dtype=np.int64, count=n)
    return codes, len(seen)


def _values(values: Sequence[float] | Floats) -> Floats:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1:
        raise ValueError("values must be one-dimensional")
    if not np.isfinite(array).all():
        raise ValueError("values must be finite; leave out what was not measured and count it apart")
    return array


def _cluster_error(array: Floats, codes: Indices, count: int) -> float:
    """Cluster-robust standard error of the mean, with the k/(k-1) correction for few clusters."""
    sums = np.bincount(codes, weights=array - array.mean(), minlength=count)
    return math.sqrt(count / (count - 1) * float((sums**2).sum())) / len(array)


def standard_error(values: Sequence[float], clusters: Sequence[Hashable] | None = None) -> float | None:
    """Standard error of the mean (cluster-robust when clusters are given); None below two items or clusters."""
    array = _values(values)
    codes, count = group(clusters, len(array)) if clusters is not None else (np.arange(len(array)), len(array))
    return None if count < 2 else _cluster_error(array, codes, count)


def rate(outcomes: Sequence[float], clusters: Sequence[Hashable] | None = None, level: float = 0.95) -> Interval:
    """Interval of a rate of 0/1 outcomes: Wilson, or with clusters Clopper-Pearson at the effective sample size.

    When every outcome is equal the design effect cannot be estimated; the number of clusters is then taken as
    the effective size, which is the cautious end.
    """
    _check_level(level)
    array = _values(outcomes)
    if not np.isin(array, (0.0, 1.0)).all():
        raise ValueError("a rate needs outcomes of 0 or 1; use mean() for anything else")
    n, hits = len(array), int(array.sum())
    if n == 0:
        return undefined(0, "no items", method="rate", level=level)
    if clusters is None:
        return wilson(hits, n, level)
    codes, count = group(clusters, n)
    if count < 2:
        return undefined(n, "fewer than two clusters", value=hits / n, method="korn-graubard", level=level)
    p = hits / n
    error = _cluster_error(array, codes, count)
    if error > 0:
        shrink = float(stats.t.ppf((1 + level) / 2, n - 1) / stats.t.ppf((1 + level) / 2, count - 1))
        effective = min(float(n), p * (1 - p) / error**2 * shrink**2)
    else:
        effective = float(count)
    low, high = _beta_limits(p * effective, effective, level)
    return Interval(value=p, low=low, high=high, n=n, clusters=count, level=level, method="korn-graubard")


def mean(
    values: Sequence[float],
    clusters: Sequence[Hashable] | None = None,
    level: float = 0.95,
    bounds: tuple[float, float] | None = None,
) -> Interval:
    """Interval of a mean by Student's t with cluster-robust errors; `bounds` clips it to what is possible.

    Values that are all equal carry no variance: the share of other values is then bounded exactly, by clusters,
    and those others are put at the ends of `bounds`; without bounds the interval is undefined.
    """
    _check_level(level)
    array = _values(values)
    n = len(array)
    if n == 0:
        return undefined(0, "no items", method="t", level=level)
    codes, count = group(clusters, n) if clusters is not None else (np.arange(n), n)
    shown = count if clusters is not None else None
    value = float(array.mean())
    if count < 2:
        what = "two items" if clusters is None else "two clusters"
        return undefined(n, f"fewer than {what}", value=value, method="t", level=level)
    error = _cluster_error(array, codes, count)
    if float(np.ptp(array)) == 0.0:
        if bounds is None:
            return undefined(n, "all values are equal", value=value, method="t", level=level)
        reach = 1.0 - ((1 - level) / 2) ** (1 / count)
        low, high = value - reach * (value - bounds[0]), value + reach * (bounds[1] - value)
        return Interval(value=value, low=low, high=high, n=n, clusters=shown, level=level, method="exact")
    half = float(stats.t.ppf((1 + level) / 2, count - 1)) * error
    low, high = value - half, value + half
    if bounds is not None:
        low, high = max(bounds[0], low), min(bounds[1], high)
    return Interval(value=value, low=low, high=high, n=n, clusters=shown, level=level, method="t")


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

    `statistic` receives the indices of the drawn items (with repeats). Resamples on which it is not finite
    (a class that was not drawn) are left out; more than a tenth of them makes the interval undefined.
    """
    _check_level(level)
    if n == 0:
        return undefined(0, "no items", method="bootstrap", level=level)
    codes, count = group(clusters, n) if clusters is not None else (np.arange(n), n)
    value = float(statistic(np.arange(n)))
    if not math.isfinite(value):
        return undefined(n, "the statistic is undefined on these items", method="bootstrap", level=level)
    if count < 2:
        return undefined(n, "fewer than two clusters", value=value, method="bootstrap", level=level)
    order = np.argsort(codes, kind="stable")
    members = np.split(order, np.cumsum(np.bincount(codes, minlength=count))[:-1])
    rng = np.random.default_rng(seed)
    drawn = np.empty(resamples)
    for turn in range(resamples):
        picks = rng.integers(0, count, count)
        drawn[turn] = statistic(picks if count == n else np.concatenate([members[pick] for pick in picks]))
    finite = drawn[np.isfinite(drawn)]
    if len(finite) < 0.9 * resamples:
        return undefined(n, "undefined on too many resamples", value=value, method="bootstrap", level=level)
    low, high = np.quantile(finite, [(1 - level) / 2, (1 + level) / 2])
    if low == high:
        return undefined(n, "no variation between resamples", value=value, method="bootstrap", level=level)
    shown = count if clusters is not None else None
    return Interval(value=value, low=float(low), high=float(high), n=n, clusters=shown, level=level, method="bootstrap")


def paired(
    first: Sequence[float], second: Sequence[float], clusters: Sequence[Hashable] | None = None, level: float = 0.95
) -> Comparison:
    """Mean difference first - second on the same items, with its interval and two-sided p (cluster-robust t)."""
    a, b = _values(first), _values(second)
    if len(a) != len(b):
        raise ValueError(f"paired needs the same items on both sides: {len(a)} and {len(b)}")
    gap = a - b
    unit = all(0.0 <= side <= 1.0 for side in (*a, *b))
    interval = mean(gap.tolist(), clusters, level, bounds=(-1.0, 1.0) if unit else None)
    better, worse = int((gap > 0).sum()), int((gap < 0).sum())
    error = standard_error(gap.tolist(), clusters)
    if error is None:
        p = None
    elif error == 0.0:
        p = 1.0 if not gap.any() else (0.5 ** ((interval.clusters or interval.n) - 1))
    else:
        p = float(2 * stats.t.sf(abs(float(gap.mean())) / error, (interval.clusters or interval.n) - 1))
    return Comparison(difference=interval, p=p, better=better, worse=worse)


def mcnemar(first: Sequence[float], second: Sequence[float], level: float = 0.95) -> Comparison:
    """Exact McNemar test of two 0/1 outcomes on the same items. p is None when no item flipped."""
    compared = paired(first, second, level=level)
    flips = compared.better + compared.worse
    p = float(stats.binomtest(compared.better, flips).pvalue) if flips else None
    return compared.model_copy(update={"p": p})


def permutation(
    first: Sequence[float],
    second: Sequence[float],
    clusters: Sequence[Hashable] | None = None,
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> float | None:
    """Two-sided sign-flip permutation p of a paired mean difference; whole clusters flip together."""
    gap = _values(first) - _values(second)
    if not len(gap):
        return None
    codes, count = group(clusters, len(gap)) if clusters is not None else (np.arange(len(gap)), len(gap))
    sums = np.bincount(codes, weights=gap, minlength=count)
    observed = abs(float(sums.sum())) - 1e-12
    if count <= 12:
        bits = (np.arange(2**count)[:, None] >> np.arange(count)) & 1
        return float((np.abs((2 * bits - 1) @ sums) >= observed).mean())
    signs = np.random.default_rng(seed).integers(0, 2, (resamples, count)) * 2 - 1
    return float((1 + (np.abs(signs @ sums) >= observed).sum()) / (resamples + 1))


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
    error: float | None, *, power: float = 0.8, alpha: float = 0.05, comparisons: int = 1
) -> float | None:
    """The smallest true difference seen with `power` by a two-sided test whose standard error is `error`."""
    if error is None or error <= 0:
        return None
    tail = stats.norm.ppf(1 - alpha / (2 * max(1, comparisons)))
    return float((tail + stats.norm.ppf(power)) * error)


def visible_difference(
    values: Sequence[float], clusters: Sequence[Hashable] | None = None, *, power: float = 0.8, alpha: float = 0.05
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


def items_needed(difference: float, deviation: float = 0.5, *, power: float = 0.8, alpha: float = 0.05) -> int:
    """Items a side that show `difference` between two unrelated systems whose items vary by `deviation`."""
    if difference <= 0 or deviation <= 0:
        raise ValueError("difference and deviation must be positive")
    reach = float(stats.norm.ppf(1 - alpha / 2) + stats.norm.ppf(power))
    return math.ceil(2 * (reach * deviation / difference) ** 2)


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


def at_least(figure: Interval, threshold: float) -> bool | None:
    """Whether a figure is surely above a threshold (its lower end is); None when it has no interval."""
    return None if figure.low is None else figure.low > threshold


def plain(figure: Interval) -> dict[str, Any]:
    """An interval as it stands in summaries: value, low, high, n, clusters, reason."""
    return {name: getattr(figure, name) for name in ("value", "low", "high", "n", "clusters", "reason")}
