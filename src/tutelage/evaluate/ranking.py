"""Places of three or more systems on the same items: ranks have intervals too (Goldstein and Spiegelhalter 1996)."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
from scipy import stats

from tutelage.core.records import Record
from tutelage.evaluate.suites.kinds import Ground, Metric, metric_of
from tutelage.evaluate.systems import Key, System, cell_of_row
from tutelage.measure.clusters import Floats, Indices, Partition, normal_quantile
from tutelage.measure.intervals import Interval


class Ranked(Record):
    """A system's place among all of them: 1 is best; `rank_low` to `rank_high` holds 95% of the resamples."""

    system: int
    suite: str | None
    """None: the mean over all suites and cells."""
    cell: str | None
    kind: str | None
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

    Clusters are drawn once per suite, so that cells that share them move together; suites are drawn apart.
    """
    common = [key for key in systems[0].rows if all(_measured_on(each, key) for each in systems)]
    suites: dict[str, list[Key]] = {}
    for key in common:
        suites.setdefault(key[0], []).append(key)
    table: list[Ranked] = []
    points: list[Floats] = []
    clouds: list[Floats] = []
    for suite, keys in suites.items():
        parts = Partition.of([systems[0].rows[key].cluster for key in keys], len(keys))
        if parts.count < 2:
            continue
        own = seed + zlib.crc32(suite.encode())  # one seed for all would let equal draws move unrelated suites together
        cells: dict[str | None, list[int]] = {}
        for place, key in enumerate(keys):
            cells.setdefault(cell_of_row(systems[0].rows[key]), []).append(place)
        for cell, places in cells.items():
            head = systems[0].rows[keys[places[0]]]
            metric, here = metric_of(head.kind, head.metric), [keys[place] for place in places]
            found = [_drawn(metric, each, here, parts, np.array(places), resamples, own) for each in systems]
            known = [each for each in found if each is not None]
            if len(known) < len(systems):
                continue
            cloud = np.stack([drawn for _, drawn in known])
            cloud = cloud[:, np.isfinite(cloud).all(axis=0)]
            point = stats.rankdata([-metric.worth(float(figure.value or 0.0)) for figure, _ in known])
            ranked = stats.rankdata(-metric.worth(cloud), axis=0)
            if cloud.shape[1] == resamples:  # a cell of so few clusters that a draw may miss it has no part in the mean
                points.append(point)
                clouds.append(ranked)
            table += _places(point, ranked, len(places), head.kind, suite, cell, metric.name, [one for one, _ in known])
    if len(points) > 1:
        table += _places(np.mean(points, axis=0), np.mean(clouds, axis=0), len(common))
    return table


def _measured_on(system: System, key: Key) -> bool:
    return key in system.rows and system.rows[key].value is not None


def _drawn(
    metric: Metric, system: System, keys: Sequence[Key], parts: Partition, places: Indices, resamples: int, seed: int
) -> tuple[Interval, Floats] | None:
    """A system's figure of a cell and its resamples; NaN where none of the cell's items was drawn.

    Where the interval holds more than which items were asked (a judge's error), the resamples are widened to it.
    """
    rows, ground = [system.rows[key] for key in keys], Ground(system.items, system.people, resamples)
    figure, _ = metric.figure(rows, ground)
    built = metric.built(rows, ground)
    if figure.value is None or isinstance(built, str) or (metric.apart is not None and figure.half_width is None):
        return None  # of what nobody knows how far it is off, no rank is known
    columns, of = built[0]
    sums = np.zeros((parts.count, columns.shape[1] + 1))
    np.add.at(sums, parts.codes[places], np.column_stack([columns, np.ones(len(places))]))
    weighed = np.concatenate([counts @ sums for counts in parts.counts(resamples, seed)])
    drawn = np.where(weighed[:, -1] > 0, of(weighed[:, :-1]), np.nan)
    drawn += figure.value - float(of(sums.sum(axis=0)[None, :-1])[0])
    if metric.apart is not None and figure.half_width is not None:
        more = (figure.half_width / normal_quantile(0.975)) ** 2 - float(np.nanvar(drawn))
        rng = np.random.default_rng([seed, zlib.crc32(system.name.encode())])
        drawn += rng.normal(0.0, np.sqrt(max(0.0, more)), len(drawn))
    return figure, drawn


def _places(
    point: Floats,
    ranked: Floats,
    n: int,
    kind: str | None = None,
    suite: str | None = None,
    cell: str | None = None,
    metric: str | None = None,
    figures: Sequence[Interval] = (),
) -> list[Ranked]:
    low, high = np.quantile(ranked, [0.025, 0.975], axis=1, method="nearest")
    return [
        Ranked(
            system=place,
            suite=suite,
            cell=cell,
            kind=kind,
            metric=metric,
            value=figures[place].value if figures else None,
            low=figures[place].low if figures else None,
            high=figures[place].high if figures else None,
            rank=float(point[place]),
            rank_low=float(low[place]),
            rank_high=float(high[place]),
            n=n,
        )
        for place in range(len(point))
    ]
