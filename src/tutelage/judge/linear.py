"""Logistic heads on sparse features, several labels at once: missing labels masked, soft labels as they are; and the
calibration that turns their log-odds into probabilities.

Shapes: N rows, B features (buckets), K heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy import optimize, sparse, special

from tutelage.core.records import Record

Floats = NDArray[np.float64]


def document_frequency(rows: Sequence[NDArray[np.int64]], buckets: int) -> Floats:
    """[B] inverse document frequency, smoothed: log((1 + N) / (1 + n_b)) + 1."""
    seen = np.zeros(buckets)
    for row in rows:
        seen[np.unique(row)] += 1
    return np.log((1 + len(rows)) / (1 + seen)) + 1.0


def matrix(rows: Sequence[NDArray[np.int64]], idf: Floats, prior: float = 0.0) -> Any:
    """[N, B] sparse float32: counts times idf, over the root of the sum of idf squared over all occurrences + `prior`.

    With each feature once in its row, as windows() gives them, and no prior: TF-IDF of presence in rows of length 1.
    """
    lengths = np.array([len(row) for row in rows])
    columns = np.concatenate(rows) if len(rows) else np.zeros(0, dtype=np.int64)
    index = np.repeat(np.arange(len(rows)), lengths)
    norms = np.sqrt(np.bincount(index, weights=idf[columns] ** 2, minlength=len(rows)) + prior)
    values = idf[columns] / np.maximum(norms[index], 1e-6)
    counted = sparse.coo_matrix((values.astype(np.float32), (index, columns)), shape=(len(rows), len(idf)))
    return counted.tocsr()


def fit_heads(
    features: Any, labels: Floats, weights: Floats, *, strength: float = 10.0, iterations: int = 60
) -> tuple[Floats, Floats]:
    """Fit K logistic heads together by L-BFGS; the optimum is unique, so no seed is needed.

    Each head's loss is the mean over its own labelled rows, positives and negatives weighing the same in all.

    Args:
        features: [N, B], sparse or dense.
        labels: [N, K] probabilities, NaN where not labelled.
        weights: [N] how much a row counts, or [N, K] for each head.
        strength: inverse of the L2 penalty, as scikit-learn's C, per labelled row.

    Returns:
        Weights [B, K] and bias [K]. A feature of fewer than two rows stays 0: it could only be learned by heart.
    """
    if isinstance(features, np.ndarray):
        used, small, turned = np.arange(features.shape[1]), features, features.T
    else:
        used = np.flatnonzero(np.asarray(features.getnnz(axis=0)) > 1)
        small = features[:, used].tocsr()
        turned = small.T.tocsr()
    known = ~np.isnan(labels)
    target = np.where(known, labels, 0.0)
    mass = known * (weights if weights.ndim == 2 else weights[:, None])
    positive, total = (mass * target).sum(0), mass.sum(0)
    up = 0.5 / np.maximum(positive / np.maximum(total, 1e-9), 1e-3)
    down = 0.5 / np.maximum(1 - positive / np.maximum(total, 1e-9), 1e-3)
    up_mass = (mass * target * up / np.maximum(total, 1e-9)).astype(np.float32)
    down_mass = (mass * (1 - target) * down / np.maximum(total, 1e-9)).astype(np.float32)
    penalty = 1.0 / (strength * np.maximum(known.sum(0), 1))
    size, heads = len(used), labels.shape[1]

    def loss(flat: Floats) -> tuple[float, Floats]:
        theta = flat.reshape(size + 1, heads)
        logits = small @ theta[:-1].astype(np.float32) + theta[-1].astype(np.float32)
        odds = special.expit(logits)
        value = float((up_mass * np.logaddexp(0, -logits) + down_mass * np.logaddexp(0, logits)).sum())
        push = (down_mass * odds - up_mass * (1 - odds)).astype(np.float32)
        gradient = np.empty_like(theta)
        gradient[:-1] = turned @ push + penalty * theta[:-1]
        gradient[-1] = push.sum(0)
        return value + 0.5 * float((penalty * (theta[:-1] ** 2).sum(0)).sum()), gradient.ravel()

    found = optimize.fmin_l_bfgs_b(loss, np.zeros((size + 1) * heads), maxiter=iterations, m=6, pgtol=1e-6)[0]
    theta = found.reshape(size + 1, heads)
    full = np.zeros((features.shape[1], heads))
    full[used] = theta[:-1]
    return full, theta[-1].copy()


class Calibration(Record):
    """A strictly rising map from log-odds to probability: Platt's line, or isotonic steps joined by lines."""

    kind: str = "platt"
    slope: float = 1.0
    intercept: float = 0.0
    at: list[float] = Field(default_factory=list)
    """Isotonic: log-odds of the joints, rising."""
    probability: list[float] = Field(default_factory=list)

    def __call__(self, logits: Floats) -> Floats:
        """Probabilities of log-odds, same shape."""
        line: Floats = special.expit(self.slope * np.asarray(logits, dtype=np.float64) + self.intercept)
        if self.kind == "platt":
            return line
        # one part in a thousand of Platt's line keeps the map strictly rising where the steps are flat
        joined: Floats = 0.999 * np.interp(logits, self.at, self.probability) + 0.001 * line
        return joined


def calibrate(logits: Floats, labels: Floats, *, steps_from: int = 200) -> Calibration:
    """Fit a calibration on log-odds of rows that the heads did not train on; labels are 0..1, NaN is left out.

    Isotonic needs data: with fewer than `steps_from` positives or negatives it is Platt's line (with his priors).
    """
    known = ~np.isnan(labels)
    x, y = np.asarray(logits, dtype=np.float64)[known], labels[known]
    positives, negatives = float(y.sum()), float((1 - y).sum())
    if len(x) == 0:
        return Calibration()
    target = y * (positives + 1) / (positives + 2) + (1 - y) / (negatives + 2)

    def loss(theta: Floats) -> tuple[float, Floats]:
        z = np.exp(theta[0]) * x + theta[1]
        push = (special.expit(z) - target) / len(x)
        value = float((np.logaddexp(0, z) - target * z).mean())
        return value, np.array([float((push * x).sum()) * np.exp(theta[0]), float(push.sum())])

    theta = optimize.fmin_l_bfgs_b(loss, np.zeros(2), bounds=[(-4, 6), (-30, 30)])[0]
    slope, intercept = float(np.exp(theta[0])), float(theta[1])
    if min(positives, negatives) < steps_from:
        return Calibration(slope=round(slope, 9), intercept=round(intercept, 9))
    order = np.argsort(x, kind="stable")
    rise = optimize.isotonic_regression(target[order])
    at, probability = [], []
    for begin, end in zip(rise.blocks[:-1], rise.blocks[1:], strict=True):
        at.append(round(float(x[order][begin:end].mean()), 9))
        probability.append(round(float(rise.x[begin]), 9))
    return Calibration(
        kind="isotonic", slope=round(slope, 9), intercept=round(intercept, 9), at=at, probability=probability
    )
