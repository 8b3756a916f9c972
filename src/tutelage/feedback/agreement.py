"""How far people agree, with intervals; undefined is None with the reason.

Sources: Krippendorff 2004 (alpha for any number of people, missing ratings allowed); Kendall 1945 (tau-b, W with
ties). Intervals are percentile bootstraps over the things that were judged.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tutelage.measure.statistics import Interval, undefined

Floats = NDArray[np.float64]
Level = Literal["nominal", "ordinal", "interval"]

REPLICATES = 400


def alpha(
    ratings: Sequence[Sequence[float | None]] | Floats,
    level: Level = "nominal",
    *,
    confidence: float = 0.95,
    replicates: int = REPLICATES,
    seed: int = 0,
) -> Interval:
    """Krippendorff's alpha of ratings [people, things]; None or NaN is a missing rating.

    1 is perfect agreement, 0 what chance gives. `n` counts the things with at least two ratings.
    """
    table = np.array([[math.nan if each is None else each for each in row] for row in ratings], dtype=float)
    if table.ndim != 2 or table.shape[0] < 2:
        return undefined(0, "fewer than two people rated", method="krippendorff")
    given = ~np.isnan(table)
    usable = given.sum(axis=0) >= 2
    n = int(usable.sum())
    if n == 0:
        return undefined(0, "nothing was rated by two people", method="krippendorff")
    table, given = table[:, usable], given[:, usable]
    values, codes = np.unique(table[given], return_inverse=True)
    counts = np.zeros((n, len(values)))
    things = np.broadcast_to(np.arange(n), table.shape)[given]
    np.add.at(counts, (things, codes), 1.0)
    if len(values) == 1:
        return undefined(n, "all ratings are equal: nothing could have been disagreed on", method="krippendorff")
    found = _alpha(counts, np.ones(n), values, level)
    stream = np.random.default_rng(seed)
    drawn = stream.multinomial(n, np.full(n, 1 / n), size=replicates).astype(float)
    again = np.array([_alpha(counts, weights, values, level) for weights in drawn])
    again = again[~np.isnan(again)]
    if n < 3 or len(again) < replicates / 2:
        return undefined(n, "too few things for an interval", value=found, method="krippendorff")
    low, high = np.quantile(again, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(
        value=found, low=float(low), high=float(high), n=n, level=confidence, method=f"krippendorff {level}, bootstrap"
    )


def _alpha(counts: Floats, weights: Floats, values: Floats, level: Level) -> float:
    """Alpha from how often each thing got each value; `weights` repeats things."""
    size = counts.sum(axis=1)
    share = weights / (size - 1)
    met = (counts * share[:, None]).T @ counts
    met[np.diag_indices_from(met)] -= share @ counts
    seen = met.sum(axis=1)
    total = seen.sum()
    distance = _distance(values, seen, level)
    expected = float(seen @ distance @ seen)
    if expected <= 0:
        return math.nan
    return float(1 - (total - 1) * (met * distance).sum() / expected)


def _distance(values: Floats, seen: Floats, level: Level) -> Floats:
    if level == "nominal":
        return 1.0 - np.eye(len(values))
    if level == "interval":
        return np.asarray((values[:, None] - values[None, :]) ** 2)
    below = np.cumsum(seen) - seen / 2  # ordinal: how many ratings lie between two values, half of each end
    return np.asarray((below[:, None] - below[None, :]) ** 2)


def tau_b(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Kendall's tau-b of two rankings of the same things; None when one of them ties everything."""
    both = _tau_matrix(np.array([first, second], dtype=float))
    return None if math.isnan(both[0, 1]) else float(both[0, 1])


def _tau_matrix(ranks: Floats) -> Floats:
    """tau-b between all pairs of rankings [people, candidates]."""
    left, right = np.triu_indices(ranks.shape[1], 1)
    signs = np.sign(ranks[:, left] - ranks[:, right])
    untied = (signs != 0).sum(axis=1).astype(float)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(signs @ signs.T / np.sqrt(np.outer(untied, untied)))


def mean_tau(tasks: Sequence[Floats], *, confidence: float = 0.95, seed: int = 0) -> Interval:
    """Mean tau-b between two people who ranked the same task; tasks [people, candidates] of ranks, NaN = unranked."""
    found = []
    for ranks in tasks:
        ranked = ranks[~np.isnan(ranks).any(axis=1)]
        if len(ranked) < 2:
            continue
        upper = _tau_matrix(ranked)[np.triu_indices(len(ranked), 1)]
        upper = upper[~np.isnan(upper)]
        if len(upper):
            found.append(float(upper.mean()))
    return _mean(found, "tau-b", "no task was ranked by two people without tying everything", confidence, seed)


def kendall_w(ranks: Floats) -> float | None:
    """Kendall's W of one task's rankings [people, candidates], corrected for ties; None when all are tied."""
    people, candidates = ranks.shape
    if people < 2 or candidates < 2:
        return None
    placed = np.array([_midranks(row) for row in ranks])
    ties = sum(float((count**3 - count).sum()) for count in (np.unique(row, return_counts=True)[1] for row in placed))
    sums = placed.sum(axis=0)
    below = people**2 * (candidates**3 - candidates) - people * ties
    return None if below <= 0 else float(12 * ((sums - sums.mean()) ** 2).sum() / below)


def mean_w(tasks: Sequence[Floats], *, confidence: float = 0.95, seed: int = 0) -> Interval:
    """Mean of Kendall's W over tasks [people, candidates]; people with a missing rank are left out of a task."""
    found = []
    for ranks in tasks:
        value = kendall_w(ranks[~np.isnan(ranks).any(axis=1)])
        if value is not None:
            found.append(value)
    return _mean(found, "kendall W", "no task was ranked by two people without tying everything", confidence, seed)


def _midranks(row: Floats) -> Floats:
    order = np.argsort(row, kind="stable")
    placed = np.empty(len(row))
    placed[order] = np.arange(1, len(row) + 1)
    _, codes = np.unique(row, return_inverse=True)
    return np.asarray((np.bincount(codes, weights=placed) / np.bincount(codes))[codes])


def _mean(found: Sequence[float], method: str, reason: str, confidence: float, seed: int) -> Interval:
    if not found:
        return undefined(0, reason, method=method)
    values = np.array(found)
    if len(values) < 3:
        return undefined(len(values), "too few tasks for an interval", value=float(values.mean()), method=method)
    drawn = np.random.default_rng(seed).integers(0, len(values), (REPLICATES, len(values)))
    low, high = np.quantile(values[drawn].mean(axis=1), [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(
        value=float(values.mean()),
        low=float(low),
        high=float(high),
        n=len(values),
        level=confidence,
        method=f"{method}, bootstrap over tasks",
    )


def majority_ceiling(votes: Sequence[Sequence[int]], *, confidence: float = 0.95, seed: int = 0) -> Interval:
    """How often the majority of the others foretells one person's choice between two answers.

    `votes` are +1 and -1 (0 = tie, which takes part in no majority and is not foretold) for each pair that was judged.
    A judge that knew exactly what most people think could not agree with single people more often than this, up to
    the noise of small panels, which makes it a slight underestimate.
    """
    found: list[float] = []
    for each in votes:
        clear = np.array([vote for vote in each if vote], dtype=float)
        if len(clear) < 2:
            continue
        others = np.sign(clear.sum() - clear)
        right = np.where(others == 0, 0.5, (others == clear).astype(float))
        found.append(float(right.mean()))
    return _mean(found, "leave one person out", "no pair was judged by two people", confidence, seed)
