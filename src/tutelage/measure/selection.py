"""What is gained by answering only when sure: accuracy at each coverage, and the area under the curve of risk.

Sources: Geifman and El-Yaniv 2017 (risk and coverage), Geifman, Uziel and El-Yaniv 2019 (its area, AURC). Items of
equal confidence count as if in random order, so that a model that is always equally sure gains nothing.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np

from tutelage.core.records import Record
from tutelage.measure.clusters import Floats, Partition
from tutelage.measure.intervals import Interval, Values, checked, percentiles, rate, undefined

LEVELS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
"""Shares of items answered at which accuracy is told."""


class Selected(Record):
    """Accuracy when only the surest share of items is answered."""

    coverage: float
    threshold: float | None
    """Least confidence among the answered."""
    accuracy: Interval


class RiskCoverage(Record):
    """The whole curve. `aurc` is the mean error rate over all coverages: the smaller, the better."""

    aurc: Interval
    points: tuple[Selected, ...]


def _outcomes(confidence: Values, correct: Values) -> tuple[Floats, Floats]:
    sure, right = checked(confidence), checked(correct)
    if len(sure) != len(right):
        raise ValueError(f"one outcome per confidence: {len(sure)} and {len(right)}")
    if not np.isin(right, (0.0, 1.0)).all():
        raise ValueError("outcomes are 0 or 1")
    return sure, right


def _figures(weight: Floats, wrong: Floats, levels: Sequence[float]) -> Floats:
    """AURC and the error rate at each level [r, 1 + levels] of samples with `weight` [r, groups] items in each group of
    equal confidence, surest first, of which `wrong` [r, groups] are wrong."""
    items, errors = np.cumsum(weight, axis=1), np.cumsum(wrong, axis=1)
    total = items[:, -1]
    harmonic = np.concatenate([[0.0], np.cumsum(1 / np.arange(1, int(total.max()) + 1))])
    after = harmonic[items.astype(np.int64)]
    # the error rate among the first i, errors growing evenly inside a group, summed over the group's places i
    share = wrong / np.maximum(weight, 1)
    area = np.diff(after, axis=1, prepend=0.0) * (errors - wrong - share * (items - weight)) + wrong
    found = np.empty((len(weight), 1 + len(levels)))
    found[:, 0] = area.sum(axis=1) / total
    wanted = np.asarray(levels)
    for row in range(len(weight)):
        places = wanted * total[row]
        known, lost = np.append(0.0, items[row]), np.append(0.0, errors[row])
        found[row, 1:] = np.interp(places, known, lost) / places
    return found


def selective(
    confidence: Values,
    correct: Values,
    levels: Sequence[float] = LEVELS,
    *,
    clusters: Sequence[Hashable] | None = None,
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> RiskCoverage:
    """Accuracy of the surest items at each of `levels`, and the area under the curve, with bootstrap intervals.

    Args:
        confidence: how sure of each answer, in any unit.
        correct: 0 or 1 for each.
        levels: shares of items answered, above 0 to 1.
        level: of the intervals. Where no resample differs (all answered are right) accuracy has its exact interval.
    """
    sure, right = _outcomes(confidence, correct)
    if not all(0 < each <= 1 for each in levels):
        raise ValueError("a coverage lies above 0 and at most at 1")
    n, parts = len(sure), Partition.of(clusters, len(sure))
    if parts.count < 2:
        none = undefined(n, f"fewer than two {parts.unit}" if n else "no items", method="bootstrap", level=level)
        return RiskCoverage(
            aurc=none, points=tuple(Selected(coverage=each, threshold=None, accuracy=none) for each in levels)
        )
    order = np.argsort(-sure, kind="stable")
    codes, missed = parts.codes[order], 1 - right[order]
    starts = np.flatnonzero(np.append(True, np.diff(sure[order]) != 0))

    def grouped(weight: Floats) -> tuple[Floats, Floats]:
        wrong = weight * missed
        if len(starts) == n:
            return weight, wrong
        return np.add.reduceat(weight, starts, axis=1), np.add.reduceat(wrong, starts, axis=1)

    here = _figures(*grouped(np.ones((1, n))), levels)[0]
    drawn = np.concatenate(
        [_figures(*grouped(counts[:, codes]), levels) for counts in parts.counts(resamples, seed, width=n)]
    )
    points = []
    for place, coverage in enumerate(levels, start=1):
        kept = max(1, round(coverage * n))
        accuracy = percentiles(1 - float(here[place]), 1 - drawn[:, place], parts, level)
        if not accuracy.defined:
            names = None if clusters is None else [clusters[item] for item in order[:kept]]
            accuracy = rate(right[order[:kept]], names, level)
        points.append(Selected(coverage=coverage, threshold=float(sure[order[kept - 1]]), accuracy=accuracy))
    return RiskCoverage(aurc=percentiles(float(here[0]), drawn[:, 0], parts, level), points=tuple(points))
