"""Whether a probability means what it says: expected calibration error, Brier score, temperature, selection.

Sources: Naeini et al. 2015 and Guo et al. 2017 (expected calibration error, temperature scaling), Brier 1950,
Kumar et al. 2019 (the plug-in error is biased upwards; the debiased one subtracts the bins' sampling variance).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp

from tutelage.measure.statistics import Floats, Indices, Interval, bootstrap, mean, undefined

FEWEST = 100
"""Below this many items a calibration error says more about the sample than about the model."""


def _checked(probabilities: Sequence[float], outcomes: Sequence[float]) -> tuple[Floats, Floats]:
    p, y = np.asarray(probabilities, dtype=np.float64), np.asarray(outcomes, dtype=np.float64)
    if p.shape != y.shape:
        raise ValueError(f"one outcome per probability: {p.size} probabilities, {y.size} outcomes")
    if p.size and not ((p >= 0) & (p <= 1)).all():
        raise ValueError("probabilities lie between 0 and 1")
    if not np.isin(y, (0.0, 1.0)).all():
        raise ValueError("outcomes are 0 or 1")
    return p, y


def bins_of(probabilities: Sequence[float], count: int = 10) -> list[Indices]:
    """Items in bins of equal mass, by probability; equal probabilities never stand in two bins."""
    p = np.asarray(probabilities, dtype=np.float64)
    if not p.size:
        return []
    edges = np.unique(np.quantile(p, np.linspace(0, 1, count + 1)[1:-1]))
    place = np.searchsorted(edges, p, side="left")
    return [np.flatnonzero(place == index) for index in range(len(edges) + 1) if (place == index).any()]


def _error(p: Floats, y: Floats, count: int) -> float:
    return float(sum(abs(float((p[bin_] - y[bin_]).sum())) for bin_ in bins_of(p.tolist(), count)) / len(p))


def ece(
    probabilities: Sequence[float],
    outcomes: Sequence[float],
    *,
    bins: int = 10,
    clusters: Sequence[Hashable] | None = None,
    resamples: int = 500,
    seed: int = 0,
    fewest: int = FEWEST,
) -> Interval:
    """Expected calibration error in bins of equal mass, with a (cluster) bootstrap interval.

    The plug-in error is biased upwards, so its interval describes the sample's error, not zero: a perfectly
    calibrated judge shows about sqrt(bins/n)/2. None with a reason below `fewest` items.
    """
    p, y = _checked(probabilities, outcomes)
    if len(p) < fewest:
        return undefined(len(p), f"fewer than {fewest} items", method="bootstrap")
    return bootstrap(
        lambda drawn: _error(p[drawn], y[drawn], bins), len(p), clusters=clusters, resamples=resamples, seed=seed
    )


def debiased_error(probabilities: Sequence[float], outcomes: Sequence[float], *, bins: int = 10) -> float | None:
    """Root of the debiased squared calibration error: near 0 for a calibrated judge whatever n. None without items."""
    p, y = _checked(probabilities, outcomes)
    if not len(p):
        return None
    total = 0.0
    for bin_ in bins_of(p.tolist(), bins):
        if len(bin_) > 1:
            rate = float(y[bin_].mean())
            gap = float(p[bin_].mean()) - rate
            total += len(bin_) / len(p) * (gap * gap - rate * (1 - rate) / (len(bin_) - 1))
    return float(np.sqrt(max(0.0, total)))


def brier(
    probabilities: Sequence[float], outcomes: Sequence[float], clusters: Sequence[Hashable] | None = None
) -> Interval:
    """Mean squared distance of probability and outcome, with its interval: 0 is perfect, 0.25 a coin."""
    p, y = _checked(probabilities, outcomes)
    return mean(((p - y) ** 2).tolist(), clusters, bounds=(0.0, 1.0))


def temperature(logits: Sequence[Sequence[float]], gold: Sequence[int]) -> float | None:
    """The temperature that makes softmax(logits / t) fit the gold best; None without items."""
    rows = [np.asarray(row, dtype=np.float64) for row in logits]
    if len(rows) != len(gold):
        raise ValueError(f"one gold class per row: {len(rows)} rows, {len(gold)} classes")
    if not rows:
        return None

    table = np.full((len(rows), max(len(row) for row in rows)), -np.inf)
    for place, row in enumerate(rows):
        table[place, : len(row)] = row
    chosen = np.array([row[g] for row, g in zip(rows, gold, strict=True)])

    def loss(log_t: float) -> float:
        t = float(np.exp(log_t))
        return float((logsumexp(table / t, axis=1) - chosen / t).sum())

    return float(np.exp(minimize_scalar(loss, bounds=(-5.0, 5.0), method="bounded").x))


def selective_accuracy(
    confidence: Sequence[float], correct: Sequence[float], coverage: float
) -> tuple[float, float] | None:
    """Accuracy on the `coverage` most confident share of items, and the least confidence among them."""
    p, y = _checked(confidence, correct)
    kept = round(coverage * len(p))
    if kept < 1:
        return None
    order = np.argsort(-p, kind="stable")[:kept]
    return float(y[order].mean()), float(p[order].min())
