"""Whether a probability means what it says, and how to make it mean it.

The **expected calibration error** is the mean distance of probability and share of right answers over bins of equal
mass (Naeini et al. 2015; Guo et al. 2017). What a sample shows is too large: of a perfectly calibrated model it shows
about sqrt(bins / n) / 2. So it is debiased here by inverting a test: each bin's distance is normal, with the variance
its items show; the estimate is the error of which one would see as much in half of all samples, and the interval holds
all errors of which one would not see much less or much more. A larger error is always seen larger (Anderson 1955), so
both exist.

Other sources: Brier 1950. What is gained by answering only when sure is `measure/selection.py`'s.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import special
from scipy.optimize import minimize_scalar

from tutelage.core.records import Record
from tutelage.measure.clusters import Floats, Indices, Partition
from tutelage.measure.intervals import Interval, Values, bootstrap_t, check_level, mean, rate, undefined

FEWEST = 300
"""Below this many items a calibration error says more about the sample than about the model."""
FEWEST_CLUSTERS = 50
"""Below this many clusters the bins' errors are not known well enough."""


class Bin(Record):
    """A bin of a reliability diagram: what was said, and what was so."""

    low: float
    """Least probability in it."""
    high: float
    n: int
    confidence: float
    """Mean probability."""
    accuracy: Interval


class Folded(NamedTuple):
    """Probabilities that were scaled by parts that they are not in, and the parameter found for each part."""

    probabilities: list[list[float]]
    temperatures: list[float]


def _checked(probabilities: Values, outcomes: Values) -> tuple[Floats, Floats]:
    p, y = np.asarray(probabilities, dtype=np.float64), np.asarray(outcomes, dtype=np.float64)
    if p.shape != y.shape:
        raise ValueError(f"one outcome per probability: {p.size} probabilities, {y.size} outcomes")
    if p.size and not ((p >= 0) & (p <= 1)).all():
        raise ValueError("probabilities lie between 0 and 1")
    if not np.isin(y, (0.0, 1.0)).all():
        raise ValueError("outcomes are 0 or 1")
    return p, y


def bins_of(probabilities: Values, count: int = 10) -> list[Indices]:
    """Items in bins of equal mass, by probability; equal probabilities never stand in two bins."""
    p = np.asarray(probabilities, dtype=np.float64)
    if not p.size:
        return []
    edges = np.unique(np.quantile(p, np.linspace(0, 1, count + 1)[1:-1]))
    place = np.searchsorted(edges, p, side="left")
    return [np.flatnonzero(place == index) for index in range(len(edges) + 1) if (place == index).any()]


def reliability(
    probabilities: Values,
    outcomes: Values,
    *,
    bins: int = 10,
    clusters: Sequence[Hashable] | None = None,
    level: float = 0.95,
) -> tuple[Bin, ...]:
    """The table behind a reliability diagram: bins of equal mass, with an interval of each bin's accuracy."""
    p, y = _checked(probabilities, outcomes)
    found = []
    for bin_ in bins_of(p, bins):
        names = None if clusters is None else [clusters[item] for item in bin_]
        found.append(
            Bin(
                low=float(p[bin_].min()),
                high=float(p[bin_].max()),
                n=len(bin_),
                confidence=float(p[bin_].mean()),
                accuracy=rate(y[bin_], names, level),
            )
        )
    return tuple(found)


class _Gaps(NamedTuple):
    """Each bin's share of items, probability minus share of right answers [bins], and the error's covariance."""

    weight: Floats
    gap: Floats
    covariance: Floats


def _gaps(p: Floats, y: Floats, count: int, parts: Partition) -> _Gaps:
    bins = bins_of(p, count)
    sizes = np.array([len(bin_) for bin_ in bins], dtype=np.float64)
    place = np.empty(len(p), dtype=np.int64)
    for index, bin_ in enumerate(bins):
        place[bin_] = index
    off = p - y
    gap = np.bincount(place, weights=off) / sizes
    inside = off - gap[place]
    if parts.alone:
        covariance = np.diag(np.bincount(place, weights=inside**2) / (sizes * np.maximum(1.0, sizes - 1)))
    else:
        flat = np.bincount(parts.codes * len(bins) + place, weights=inside, minlength=parts.count * len(bins))
        sums = flat.reshape(parts.count, len(bins)) / sizes
        covariance = sums.T @ sums * (parts.count / (parts.count - 1))
    for index, bin_ in enumerate(bins):
        right = float(y[bin_].sum())
        if right in (0.0, len(bin_)):  # all alike: no variance is seen, which is not to say that there is none
            units = len(np.unique(parts.codes[bin_]))
            near = 2 / (units + 4)
            covariance[index, index] = max(covariance[index, index], near * (1 - near) / units)
    return _Gaps(sizes / len(p), gap, covariance)


def _spread(found: _Gaps) -> tuple[Floats, Floats, Floats]:
    """How an error may lie over the bins, for the low end, the value and the high end: what is seen is part chance.

    Chance adds most to an error that lies in few bins, and least to one that lies in all. The low end has it in those
    bins only that are surely off, the high end as it is seen; the value takes off what chance makes of no gap.
    """
    gap, spread = found.gap, np.diag(found.covariance)
    if not gap.any():
        even = np.ones(len(gap))
        return even, even, even
    sure = np.abs(gap) / np.sqrt(np.maximum(spread, 1e-300))
    few = np.where(sure >= min(2.0, float(sure.max())), gap, 0.0)
    return few, np.sign(gap) * np.sqrt(np.maximum(gap**2 / 4, gap**2 - spread)), gap


def _error(found: _Gaps) -> float:
    return float((found.weight * np.abs(found.gap)).sum())


def ece(
    probabilities: Values,
    outcomes: Values,
    *,
    bins: int = 10,
    clusters: Sequence[Hashable] | None = None,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
    fewest: int = FEWEST,
) -> Interval:
    """Expected calibration error over bins of equal mass, debiased, with its interval; both may reach down to 0.

    It is that of the bins: what probabilities inside one bin are off in different directions is not seen. None with a
    reason below `fewest` items or 50 clusters. `resamples` errors of the bins are drawn for the interval.
    """
    check_level(level)
    p, y = _checked(probabilities, outcomes)
    method = "debiased"
    if len(p) < max(fewest, 2):
        return undefined(len(p), f"fewer than {max(fewest, 2)} items", method=method, level=level)
    parts = Partition.of(clusters, len(p))
    if parts.count < FEWEST_CLUSTERS:
        return undefined(len(p), f"fewer than {FEWEST_CLUSTERS} {parts.unit}", method=method, level=level)
    found = _gaps(p, y, bins, parts)
    seen = _error(found)
    rng = np.random.default_rng(seed)
    values, vectors = np.linalg.eigh(found.covariance)
    noise = rng.standard_normal((max(1, resamples // 2), len(values))) @ (vectors * np.sqrt(np.maximum(0.0, values))).T
    noise *= np.sqrt((parts.count - 1) / rng.chisquare(parts.count - 1, (len(noise), 1)))  # few clusters: Student's
    noise = np.ascontiguousarray(np.concatenate([noise, -noise]).T)

    def shown(gaps: Floats) -> Floats:
        """The error that each drawn sample shows where the bins are off by `gaps`."""
        return np.asarray(found.weight @ np.abs(noise + gaps[:, None]))

    def error_of(tail: float, gaps: Floats) -> float:
        """The error, spread over the bins as `gaps` is, of which as little is seen in a share `tail` of samples."""
        way = gaps / float((found.weight * np.abs(gaps)).sum())

        def above(size: float) -> bool:
            return float((shown(size * way) >= seen).mean()) >= 1 - tail

        low, high = 0.0, 1.0
        if above(low):
            return 0.0
        for _ in range(16):
            middle = (low + high) / 2
            low, high = (low, middle) if above(middle) else (middle, high)
        return (low + high) / 2

    low, value, high = (
        error_of(tail, gaps) for tail, gaps in zip(((1 + level) / 2, 0.5, (1 - level) / 2), _spread(found), strict=True)
    )
    if not high:  # less was seen than chance makes of no error at all: what chance makes of it cannot be excluded
        high = float(np.median(shown(np.zeros(len(values)))))
    return Interval(
        value=value, low=low, high=max(high, seen), n=len(p), clusters=parts.shown, level=level, method=method
    )


def brier(
    probabilities: Values, outcomes: Values, clusters: Sequence[Hashable] | None = None, level: float = 0.95
) -> Interval:
    """Mean squared distance of probability and outcome, with its interval: 0 is perfect, 0.25 a coin."""
    p, y = _checked(probabilities, outcomes)
    figure = bootstrap_t((p - y) ** 2, clusters, level, (0.0, 1.0))  # skewed where most answers are sure and right
    return figure if figure.defined else mean((p - y) ** 2, clusters, level, bounds=(0.0, 1.0))


def _table(logits: Sequence[Sequence[float]]) -> Floats:
    """Rows of any length as one table, filled up with -inf."""
    table = np.full((len(logits), max((len(row) for row in logits), default=0)), -np.inf)
    for place, row in enumerate(logits):
        table[place, : len(row)] = row
    return table


def _fitted(table: Floats, gold: Indices) -> float | None:
    rows = np.arange(len(table))
    chosen, others = table[rows, gold], table.copy()
    others[rows, gold] = -np.inf
    if (chosen > others.max(axis=1)).all():
        return None

    def loss(log_t: float) -> float:
        t = math.exp(log_t)
        return float((special.logsumexp(table / t, axis=1) - chosen / t).sum())

    return math.exp(minimize_scalar(loss, bounds=(-5.0, 5.0), method="bounded").x)


def _gold(logits: Sequence[Sequence[float]], gold: Sequence[int]) -> Indices:
    if len(logits) != len(gold):
        raise ValueError(f"one gold class per row: {len(logits)} rows, {len(gold)} classes")
    for place, (row, right) in enumerate(zip(logits, gold, strict=True)):
        if not 0 <= right < len(row):
            raise ValueError(f"row {place} has {len(row)} classes, its gold is class {right}")
    return np.asarray(gold, dtype=np.int64)


def temperature(logits: Sequence[Sequence[float]], gold: Sequence[int]) -> float | None:
    """The temperature that makes softmax(logits / t) fit the gold best.

    None without items, and where every gold class has the highest logit: the less, the better would it fit.
    """
    right = _gold(logits, gold)
    return _fitted(_table(logits), right) if len(right) else None


def scaled(logits: Sequence[Sequence[float]], t: float) -> list[list[float]]:
    """softmax(logits / t) of rows of any length."""
    if t <= 0:
        raise ValueError(f"a temperature is positive, found {t}")
    return [special.softmax(np.asarray(row, dtype=np.float64) / t).tolist() for row in logits]


def _folds(parts: Partition, folds: int, seed: int) -> list[Indices]:
    """The items of each fold; a cluster stands in one fold."""
    if folds < 2:
        raise ValueError(f"at least two folds, found {folds}")
    fold = np.random.default_rng(seed).permutation(parts.count) % folds
    return [np.flatnonzero(fold[parts.codes] == each) for each in range(min(folds, parts.count))]


def temperature_out_of_fold(
    logits: Sequence[Sequence[float]],
    gold: Sequence[int],
    *,
    folds: int = 5,
    clusters: Sequence[Hashable] | None = None,
    seed: int = 0,
) -> Folded | None:
    """Probabilities scaled by the temperature of the other folds, so that their calibration can be measured.

    None where some fold's rest has no temperature (see `temperature`) or there are fewer clusters than folds.
    """
    right, table = _gold(logits, gold), _table(logits)
    parts = Partition.of(clusters, len(right))
    if parts.count < folds:
        return None
    found, temperatures = np.zeros_like(table), []
    for fold in _folds(parts, folds, seed):
        rest = np.setdiff1d(np.arange(len(right)), fold)
        t = _fitted(table[rest], right[rest])
        if t is None:
            return None
        found[fold] = special.softmax(table[fold] / t, axis=1)
        temperatures.append(t)
    rows = [row[: len(given)].tolist() for row, given in zip(found, logits, strict=True)]
    return Folded(rows, temperatures)
