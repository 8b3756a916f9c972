"""A figure that also depends on a draw (which examples were shown, which seed): the draw's variance as its own part.

Items and draws are crossed: every item is answered under every draw. The part of the draws is what their means vary
beyond what items and chance explain (two-way random effects; Searle, Casella and McCulloch 1992, section 4.7).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

import numpy as np
from scipy import special

from tutelage.core.records import Record
from tutelage.measure.statistics import Interval, standard_error, undefined


class Drawn(Record):
    """A mean over items and draws."""

    figure: Interval
    """The mean of all, with an interval for items and draws that were not seen."""
    deviation: float | None
    """Standard deviation of the draw's own effect: by how much another draw moves the figure. None below two draws."""
    items_error: float | None
    """Standard error that the items alone give."""
    means: tuple[float, ...]
    """The mean under each draw."""
    reason: str | None = None
    """Why there is no deviation."""


def over_draws(
    values: Sequence[Sequence[float]],
    clusters: Sequence[Hashable] | None = None,
    *,
    level: float = 0.95,
    bounds: tuple[float, float] | None = None,
) -> Drawn:
    """The mean of `values[draw][item]` and its parts of variance.

    The squared error is the cluster-robust one of the items' means plus the draws' variance over their number; degrees
    of freedom after Satterthwaite.
    """
    table = np.asarray(values, dtype=np.float64)
    if table.ndim != 2 or not table.size:
        return Drawn(
            figure=undefined(0, "no items", method="draws"),
            deviation=None,
            items_error=None,
            means=(),
            reason="no items",
        )
    draws, n = table.shape
    means = table.mean(axis=1)
    value = float(means.mean())
    error = standard_error(table.mean(axis=0).tolist(), clusters)
    count = len(set(clusters)) if clusters is not None else n
    if draws < 2 or n < 2:
        why = "one draw says nothing about others" if draws < 2 else "fewer than two items"
        figure = undefined(n, why, value=value, method="draws", level=level)
        return Drawn(figure=figure, deviation=None, items_error=error, means=tuple(means.tolist()), reason=why)
    rest = table - means[:, None] - table.mean(axis=0)[None, :] + value
    noise = float((rest**2).sum() / ((draws - 1) * (n - 1)))
    between = n * float(means.var(ddof=1))
    variance = max(0.0, (between - noise) / n)
    if error is None:
        figure = undefined(n, "fewer than two clusters", value=value, method="draws", level=level)
    else:
        parts = (error**2, variance / draws)
        total = sum(parts)
        freedom = total**2 / (parts[0] ** 2 / (count - 1) + parts[1] ** 2 / (draws - 1)) if total else count - 1
        half = float(special.stdtrit(freedom, (1 + level) / 2)) * math.sqrt(total)
        low, high = value - half, value + half
        if bounds is not None:
            low, high = max(low, bounds[0]), min(high, bounds[1])
        figure = Interval(value=value, low=low, high=high, n=n, clusters=count, level=level, method="draws")
        if not total:
            figure = undefined(n, "all values are equal", value=value, method="draws", level=level)
    return Drawn(figure=figure, deviation=math.sqrt(variance), items_error=error, means=tuple(means.tolist()))
