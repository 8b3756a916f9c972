"""Places of three or more systems on the same items: ranks have intervals too (Goldstein and Spiegelhalter 1996)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import stats

from tutelage.core.records import Record
from tutelage.evaluate.resampled import Drawn, Floats, drawn, weights_of
from tutelage.evaluate.suites.kinds import LOWER_IS_BETTER
from tutelage.evaluate.systems import Key, System, cell_of_row
from tutelage.measure.statistics import group


class Ranked(Record):
    """A system's place among all of them: 1 is best; `low` to `high` holds 95% of the resamples."""

    system: int
    suite: str | None
    """None: the mean over all suites and cells."""
    cell: str | None
    metric: str | None
    value: float | None
    low: float | None
    high: float | None
    rank: float
    rank_low: float
    rank_high: float
    n: int


def ranks(systems: Sequence[System], *, resamples: int = 1000, seed: int = 0) -> list[Ranked]:
    """Places of all systems on the items that all of them were measured on, by suite and cell and in the mean.

    Clusters are drawn once per suite, so that cells that share them move together.
    """
    common = [key for key in systems[0].rows if all(_measured_on(each, key) for each in systems)]
    suites: dict[str, list[Key]] = {}
    for key in common:
        suites.setdefault(key[0], []).append(key)
    table: list[Ranked] = []
    points: list[Floats] = []
    clouds: list[Floats] = []
    for suite, keys in suites.items():
        codes, count = group([systems[0].rows[key].cluster for key in keys], len(keys))
        if count < 2:
            continue
        weights = weights_of(codes, count, resamples, seed)
        cells: dict[str | None, list[int]] = {}
        for place, key in enumerate(keys):
            cells.setdefault(cell_of_row(systems[0].rows[key]), []).append(place)
        for cell, places in cells.items():
            metric = systems[0].rows[keys[places[0]]].metric
            each = [drawn(metric, [one.rows[keys[place]] for place in places], one) for one in systems]
            known = [one for one in each if isinstance(one, Drawn)]
            if len(known) < len(systems):
                continue
            sign = 1.0 if metric in LOWER_IS_BETTER else -1.0
            some = weights[:, places]
            some = some[some.sum(axis=1) > 0]
            cloud = np.stack([one.figures(some) for one in known])
            value = np.array([float(one.figures(np.ones((1, len(places))))[0]) for one in known])
            point = stats.rankdata(sign * value)
            ranked = stats.rankdata(sign * cloud, axis=0)
            if len(some) == resamples:  # a cell of so few clusters that a draw may miss it has no part in the mean
                points.append(point)
                clouds.append(ranked)
            low, high = np.nanquantile(cloud, [0.025, 0.975], axis=1)
            table += _places(point, ranked, suite, cell, metric, (value, low, high), len(places))
    if len(points) > 1:
        table += _places(np.mean(points, axis=0), np.mean(clouds, axis=0), None, None, None, None, len(common))
    return table


def _measured_on(system: System, key: Key) -> bool:
    return key in system.rows and system.rows[key].value is not None


def _places(
    point: Floats,
    ranked: Floats,
    suite: str | None,
    cell: str | None,
    metric: str | None,
    figures: tuple[Floats, Floats, Floats] | None,
    n: int,
) -> list[Ranked]:
    low, high = np.quantile(ranked, [0.025, 0.975], axis=1)
    return [
        Ranked(
            system=place,
            suite=suite,
            cell=cell,
            metric=metric,
            value=float(figures[0][place]) if figures else None,
            low=float(figures[1][place]) if figures else None,
            high=float(figures[2][place]) if figures else None,
            rank=float(point[place]),
            rank_low=float(low[place]),
            rank_high=float(high[place]),
            n=n,
        )
        for place in range(len(point))
    ]
