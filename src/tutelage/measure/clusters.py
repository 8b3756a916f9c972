"""Items in independent clusters: one partition feeds the standard error, its degrees of freedom and every resample.

Sources: Bell and McCaffrey 2002 (the error CR2 and its degrees of freedom), Imbens and Kolesár 2016 (degrees under the
correlation that was measured), Hesterberg 2015 (a percentile bootstrap widened for few units).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy import special

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]

CHUNK = 2_000_000
"""Random numbers drawn at once, so that memory stays bounded whatever the resamples."""


def normal_quantile(level: float) -> float:
    """The standard normal's quantile."""
    return float(special.ndtri(level))


def t_quantile(level: float, degrees: float) -> float:
    """Student's quantile."""
    return float(special.stdtrit(degrees, level))


def t_tail(t: float, degrees: float) -> float:
    """The chance that Student's t is above `t`."""
    return float(special.stdtr(degrees, -t))


def group(clusters: Sequence[Hashable], n: int) -> tuple[Indices, int]:
    """Cluster names as numbers 0 .. k-1 in order of first appearance, and k."""
    if len(clusters) != n:
        raise ValueError(f"{n} items but {len(clusters)} cluster names")
    seen: dict[Hashable, int] = {}
    codes = np.fromiter((seen.setdefault(name, len(seen)) for name in clusters), dtype=np.int64, count=n)
    return codes, len(seen)


@dataclass(frozen=True)
class Partition:
    """Which cluster each item is of; without clusters every item is its own."""

    codes: Indices
    count: int
    named: bool
    """Whether clusters were given."""

    @classmethod
    def of(cls, clusters: Sequence[Hashable] | None, n: int) -> Partition:
        """The partition of `n` items by the names of their clusters, or of unrelated items."""
        if clusters is None:
            return cls(np.arange(n), n, False)
        codes, count = group(clusters, n)
        return cls(codes, count, True)

    @property
    def shown(self) -> int | None:
        """The number of clusters as a figure states it: None where items are unrelated."""
        return self.count if self.named else None

    @property
    def unit(self) -> str:
        """What is drawn: for reasons."""
        return "clusters" if self.named else "items"

    @cached_property
    def sizes(self) -> Indices:
        """Items of each cluster, [count]."""
        return np.bincount(self.codes, minlength=self.count)

    @cached_property
    def alone(self) -> bool:
        """Whether every cluster holds one item, in the items' order."""
        return self.count == len(self.codes)

    def sums(self, columns: Floats) -> Floats:
        """Each cluster's sum of `columns` [n] or [n, c]: [count] or [count, c]."""
        if self.alone:
            return columns
        if columns.ndim == 1:
            return np.bincount(self.codes, weights=columns, minlength=self.count).astype(np.float64)
        return np.stack([self.sums(column) for column in columns.T], axis=1)

    def error(self, values: Floats) -> float:
        """Standard error of the mean over at least two clusters: CR2, unbiased also where sizes differ.

        With clusters of one size it is the usual one with its k / (k - 1). A value below what rounding leaves is 0.
        """
        n = len(values)
        sums = self.sums(values - values.mean())
        error = math.sqrt(float((sums**2 / (1 - self.sizes / n)).sum())) / n
        return error if error > 1e-12 * float(np.abs(values).max()) else 0.0

    def degrees(self, values: Floats) -> float:
        """Degrees of freedom of that error: k - 1 with clusters of one size, fewer the more their sizes differ.

        Satterthwaite's for equally correlated items of a cluster, the correlation estimated from the values.
        """
        k, n, sizes = self.count, len(values), self.sizes
        if int(sizes.min()) == int(sizes.max()):
            return float(k - 1)
        means = self.sums(values) / sizes
        inside = float(((values - means[self.codes]) ** 2).sum()) / max(1, n - k)
        between = float((sizes * (means - values.mean()) ** 2).sum()) / (k - 1)
        typical = (n - float((sizes**2).sum()) / n) / (k - 1)
        total = between + (typical - 1) * inside
        correlation = min(1.0, max(0.0, (between - inside) / total)) if total > 0 else 0.0
        # M = A (I - w 1') D (I - 1 w') A: the covariance of the clusters' adjusted sums; degrees = tr(M)^2 / tr(M^2)
        weight, spread = sizes / n, sizes * (1 - correlation) + sizes**2.0 * correlation
        adjust, whole = 1 / (1 - weight), float(spread.sum())
        pair = 2 * weight * spread - weight**2 * whole
        trace = float((adjust * (spread - pair)).sum())
        weights, spreads, mixed = (
            float((adjust * each).sum()) for each in (weight**2, spread**2, weight * spread)
        )  # fmt: skip
        square = 2 * weights * spreads + (weights * whole) ** 2 + 2 * mixed**2 - 4 * whole * weights * mixed
        square += float((adjust**2 * ((spread - pair) ** 2 - pair**2)).sum())
        return min(float(k - 1), max(1.0, trace**2 / square))

    def draws(self, resamples: int, seed: int, width: int = 0) -> Iterator[Indices]:
        """Resamples in chunks: the clusters drawn, with repeats, [chunk, count]; `width` numbers are made of each."""
        rng = np.random.default_rng(seed)
        size = max(1, CHUNK // max(1, self.count, width))
        for start in range(0, resamples, size):
            yield rng.integers(0, self.count, (min(size, resamples - start), self.count))

    def counts(self, resamples: int, seed: int, width: int = 0) -> Iterator[Floats]:
        """The same draws as how often each cluster was drawn, [chunk, count]."""
        for picks in self.draws(resamples, seed, width):
            rows = len(picks)
            flat = (picks + np.arange(rows)[:, None] * self.count).ravel()
            yield np.bincount(flat, minlength=rows * self.count).reshape(rows, self.count).astype(np.float64)

    def tails(self, level: float) -> tuple[float, float]:
        """The two quantiles of resamples that bound a percentile interval.

        A resample of k units varies by (k - 1) / k too little and ignores that its error is estimated; both are put
        right by taking quantiles further out (Hesterberg 2015, section 5).
        """
        reach = t_quantile((1 + level) / 2, self.count - 1) * math.sqrt(self.count / (self.count - 1))
        tail = float(special.ndtr(-reach))
        return tail, 1 - tail
