"""Two systems compared on a figure of a whole corpus (chrF, BLEU, macro-F1, bits per byte): no mean of items has it.

Interval: paired bootstrap (Koehn 2004), both systems on the same drawn items. p: approximate randomization (Riezler and
Maxwell 2005), the systems' outputs swapped item by item, or cluster by cluster.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence

import numpy as np
from scipy import special

from tutelage.measure.statistics import Comparison, Indices, bootstrap, group


def paired_statistic(
    statistic: Callable[[Indices], float],
    n: int,
    clusters: Sequence[Hashable] | None = None,
    *,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Comparison:
    """First minus second, with its interval and two-sided p.

    `statistic` takes indices into the outputs of the first system (0 to n - 1) and, behind them, those of the second
    on the same items (n to 2n - 1). Where fewer than five rounds of the randomization reach the difference, its tail
    is read from a normal distribution with the rounds' deviation: a thousand rounds say nothing about one in a million.
    p is None where the statistic is undefined.
    """

    def difference(drawn: Indices) -> float:
        return statistic(drawn) - statistic(drawn + n)

    interval = bootstrap(difference, n, clusters=clusters, level=level, resamples=resamples, seed=seed)
    if interval.value is None or n == 0:
        return Comparison(difference=interval, p=None)
    codes, count = group(clusters, n) if clusters is not None else (np.arange(n), n)
    rng = np.random.default_rng(seed + 1)
    places = np.arange(n)
    gaps = np.empty(resamples)
    for turn in range(resamples):
        swapped = rng.integers(0, 2, count).astype(bool)[codes] * n
        gaps[turn] = statistic(places + swapped) - statistic(places + n - swapped)
    gaps = gaps[np.isfinite(gaps)]
    reached = int((np.abs(gaps) >= abs(interval.value) - 1e-12).sum())
    p = (1 + reached) / (1 + len(gaps))
    spread = float(np.sqrt((gaps**2).mean())) if len(gaps) else 0.0
    if reached < 5 and spread > 0:
        p = min(p, float(2 * special.ndtr(-abs(interval.value) / spread)))
    return Comparison(difference=interval, p=p if math.isfinite(p) and count > 1 else None)
