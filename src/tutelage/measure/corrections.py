"""What a judge says of many items, put right by what people say of some; the error of both goes into the interval.

Two ways. **Rogan-Gladen**: a judge whose sensitivity and specificity are known, with intervals, from items that people
labelled elsewhere; the corrected rate is as uncertain as all three. **Prediction-powered**: people's labels on some of
the same items; no assumption about the judge at all, and never worse than the labels alone once it is tuned. Sources:
Rogan and Gladen 1978; Zou and Donner 2008 and 2012 (MOVER: distances to the ends of intervals add up as squares);
Angelopoulos et al. 2023 (prediction-powered inference, arXiv 2301.09633); Angelopoulos, Duchi and Zrnic 2023 (PPI++:
the tuned weight, arXiv 2311.01453, section 6); Agresti and Coull 1998.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from tutelage.measure.clusters import Floats, Partition
from tutelage.measure.intervals import Interval, Values, checked, mean, undefined


class Count(NamedTuple):
    """A number with its interval, for arithmetic on independent numbers."""

    value: float
    low: float
    high: float


def summed(counts: Iterable[Count]) -> Count:
    """The sum of independent numbers: the distances to the ends of their intervals add up as squares (MOVER)."""
    every = list(counts)
    value = sum(each.value for each in every)
    below = math.hypot(*(each.value - each.low for each in every))
    above = math.hypot(*(each.high - each.value for each in every))
    return Count(value, value - below, value + above)


def part(one: Count, other: Count) -> Count | None:
    """one / (one + other) for two independent counts, by MOVER on their ratio; None when both are 0."""
    if one.value <= 0 and other.value <= 0:
        return None
    if other.value < one.value:  # the ratio is taken to the larger one, which is far from 0
        flipped = part(other, one)
        return Count(1 - flipped.value, 1 - flipped.high, 1 - flipped.low) if flipped else None
    product = one.value * other.value

    def root(first: float, second: float) -> float:
        inside = product**2 - first * second * (2 * one.value - first) * (2 * other.value - second)
        return math.sqrt(max(0.0, inside))

    def ratio(first: float, second: float, sign: int) -> float:
        below = second * (2 * other.value - second)
        if abs(below) < 1e-12:  # the limit of the formula where its denominator vanishes
            return math.inf if sign > 0 else first * (2 * one.value - first) / (2 * product) if product else 0.0
        return (product + sign * root(first, second)) / below

    low, high = ratio(one.low, other.high, -1), ratio(one.high, other.low, +1)
    return Count(
        one.value / (one.value + other.value),
        max(0.0, low / (1 + low)),
        1.0 if math.isinf(high) or high < 0 else high / (1 + high),
    )


def complement(figure: Interval) -> Interval:
    """1 - a share, with its interval: a miss rate from a sensitivity."""
    value, low, high = (None if x is None else 1.0 - x for x in (figure.value, figure.high, figure.low))
    return figure.model_copy(update={"value": value, "low": low, "high": high})


def rogan_gladen(flagged: Interval, sensitivity: Interval, specificity: Interval) -> Interval:
    """The share that is truly positive, from the share a judge calls so: (flagged - a) / (1 - a - o).

    a = 1 - specificity and o = 1 - sensitivity come from other items that people labelled. The interval adds up, as
    squares, what each of the three may move the result (MOVER). Undefined where the judge may be no better than chance.
    """
    parts = (flagged, sensitivity, specificity)
    n, level, method = flagged.n, flagged.level, "rogan-gladen"
    missing = next((figure.reason for figure in parts if not figure.defined), None)
    if any(not figure.defined for figure in parts):
        return undefined(n, missing or "one of the three rates has no interval", method=method, level=level)
    said, alarm, oversight = (_count(figure) for figure in (flagged, complement(specificity), complement(sensitivity)))

    def true(said: float, alarm: float, oversight: float) -> float:
        return (said - alarm) / (1 - alarm - oversight)

    better = 1 - alarm.value - oversight.value  # than chance
    if better <= 0:
        return undefined(n, "the judge is no better than chance", method=method, level=level)
    value = true(said.value, alarm.value, oversight.value)
    inside = min(1.0, max(0.0, value))
    if better <= math.hypot(alarm.high - alarm.value, oversight.high - oversight.value):
        return undefined(n, "the judge may be no better than chance", value=inside, method=method, level=level)
    others = [true(said.value, alarm.value, each) for each in (oversight.low, oversight.high)]
    down = (
        true(said.low, alarm.value, oversight.value),
        true(said.value, alarm.high, oversight.value),
        min(value, *others),
    )
    up = (
        true(said.high, alarm.value, oversight.value),
        true(said.value, alarm.low, oversight.value),
        max(value, *others),
    )
    low, high = inside - math.dist(down, [value] * 3), inside + math.dist(up, [value] * 3)
    return Interval(
        value=inside, low=max(0.0, low), high=min(1.0, high), n=n, clusters=flagged.clusters, level=level, method=method
    )


def _count(figure: Interval) -> Count:
    assert figure.value is not None and figure.low is not None and figure.high is not None
    return Count(figure.value, figure.low, figure.high)


def prediction_powered(
    truth: Values,
    predicted: Values,
    others: Values,
    *,
    clusters: Sequence[Hashable] | None = None,
    other_clusters: Sequence[Hashable] | None = None,
    tune: bool = True,
    level: float = 0.95,
    bounds: tuple[float, float] | None = None,
) -> Interval:
    """The mean of `truth` over all items, of which people judged a random part and a judge all.

    The judge's mean on the other items is moved by what it was off on the judged ones; both errors are carried. To
    unrelated items that are all at an end of `bounds`, the interval adds one of each kind (right and wrong, high and
    low), as Agresti and Coull do for a rate: errors that are rare were perhaps not seen.

    Args:
        truth: what people say of the items they judged, [n].
        predicted: what the judge says of the same items, [n].
        others: what the judge says of items that people did not judge, [N]; none leaves the plain mean of `truth`.
        clusters, other_clusters: of the two samples. Where a cluster reaches into both, their errors may go together,
            and the distances to the ends of both intervals are added plainly.
        tune: weigh the judge by how well it goes with people (PPI++), between 0 and 1; False is PPI, with weight 1.
        bounds: what truth and predictions lie between. Without them, samples that are all alike have no interval.
    """
    y, f, rest = checked(truth), checked(predicted), checked(others)
    if len(y) != len(f):
        raise ValueError(f"one prediction per judged item: {len(y)} and {len(f)}")
    if not len(rest):
        return mean(y, clusters, level, bounds)
    n, here, there = len(y), Partition.of(clusters, len(y)), Partition.of(other_clusters, len(rest))
    weight = _weight(y, f, rest, here, there) if tune and min(here.count, there.count) > 1 else 1.0
    value = float((y - weight * f).mean() + weight * rest.mean()) if len(y) else None
    limits = (bounds[0] - weight * bounds[1], bounds[1] - weight * bounds[0]) if bounds else None
    if bounds is not None and clusters is None and len(y) > 1 and np.isin([*y, *f], bounds).all():
        y, f = np.append(y, np.tile(bounds, 2)), np.append(f, np.repeat(bounds, 2))
    off = mean(y - weight * f, clusters, level, limits)
    said = mean(weight * rest, other_clusters, level, (weight * bounds[0], weight * bounds[1]) if bounds else None)
    if value is None or not (off.defined and said.defined):
        reason = off.reason or said.reason or ""
        return undefined(n, reason, value=value, method="prediction-powered", level=level)
    _, low, high = summed([_count(off), _count(said)])
    if clusters is not None and other_clusters is not None and not set(clusters).isdisjoint(other_clusters):
        low, high = float(off.low or 0.0) + float(said.low or 0.0), float(off.high or 0.0) + float(said.high or 0.0)
    if bounds is not None:
        value, low, high = min(bounds[1], max(bounds[0], value)), max(bounds[0], low), min(bounds[1], high)
    low, high = min(low, value), max(high, value)
    return Interval(value=value, low=low, high=high, n=n, clusters=here.shown, level=level, method="prediction-powered")


def _weight(y: Floats, f: Floats, rest: Floats, here: Partition, there: Partition) -> float:
    """The judge's weight that makes the interval narrowest, by the clusters' errors."""
    own = here.error(f) ** 2
    if own == 0.0:
        return 0.0
    together = (here.error(y + f) ** 2 - here.error(y - f) ** 2) / 4  # the covariance of both means
    return min(1.0, max(0.0, together / (own + there.error(rest) ** 2)))
