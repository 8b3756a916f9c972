"""Item by item, what one model has gained and lost against another: which items were fixed, which were broken.

What counts as a flip is the metric's to say (`Metric.step`): any change of what is right or wrong, a change by half the
range, or by a stated size, of what lies between; where a metric states no size, its items are left out and named.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from pydantic import Field

from tutelage.core.records import Record
from tutelage.evaluate.suite import Result
from tutelage.evaluate.suites.kinds import named
from tutelage.measure.sequences import paired_evidence
from tutelage.measure.statistics import Interval, group, mcnemar, paired, permutation, undefined


class Flips(Record):
    """The items that changed sides between two models on the same items."""

    before: str
    after: str
    suite: str | None = None
    """None: all suites together."""
    n: int
    """Items measured on both sides whose metric says what a flip is."""
    unmeasured: int = 0
    """Items that one side or the other did not answer: no flip, and no evidence of none."""
    left_out: dict[str, str] = Field(default_factory=dict)
    """Metric -> why its items are not among `n`."""
    steps: dict[str, float] = Field(default_factory=dict)
    """Metric -> the change from which an item counts as fixed or broken."""
    fixed: tuple[str, ...] = ()
    broken: tuple[str, ...] = ()
    difference: Interval
    """Share fixed minus share broken, by clusters."""
    p: float | None
    """Exact McNemar, or by flipping the signs of whole clusters; None when nothing flipped."""
    evidence: float
    """An e-value against `fixed and broken are equally likely` (of clusters their means): it may be looked at after
    every fresh cluster, and 1 / alpha or more refutes that at level alpha however often was looked before."""


def compared(before: Iterable[Result], after: Iterable[Result], names: tuple[str, str], suite: str | None) -> Flips:
    """Flips between two models' results on the same items. Attack rows (guarded or not) are no items of a suite."""
    first = {(each.suite, each.item): each for each in before if suite in (None, each.suite)}
    second = {(each.suite, each.item): each for each in after if suite in (None, each.suite)}
    known: list[tuple[str, str]] = []
    left_out: dict[str, str] = {}
    steps: dict[str, float] = {}
    unmeasured = len(set(first) ^ set(second))
    for key in sorted(set(first) & set(second)):
        metric = named(first[key].metric)
        if first[key].metric != second[key].metric:
            left_out[f"{metric.name}, {second[key].metric}"] = "the two models were measured by different metrics"
        elif metric.step is None:
            left_out[metric.name] = "no size is stated from which an item would be better or worse"
        elif first[key].value is None or second[key].value is None:
            unmeasured += 1
        else:
            known.append(key)
            steps[metric.name] = metric.step
    ways = [
        named(first[key].metric).turned(float(first[key].value or 0.0), float(second[key].value or 0.0))
        for key in known
    ]  # fmt: skip
    clusters = [f"{first[key].suite}/{first[key].cluster}" for key in known]
    now, was = [float(way > 0) for way in ways], [float(way < 0) for way in ways]
    nothing = undefined(0, "no item was measured on both sides" if unmeasured or not left_out else "no flip is defined")
    return Flips(
        before=names[0],
        after=names[1],
        suite=suite,
        n=len(known),
        unmeasured=unmeasured,
        left_out=left_out,
        steps=steps,
        fixed=tuple(key[1] for key, way in zip(known, ways, strict=True) if way > 0),
        broken=tuple(key[1] for key, way in zip(known, ways, strict=True) if way < 0),
        difference=paired(now, was, clusters).difference if known else nothing,
        p=_p(now, was, clusters),
        evidence=_evidence(now, was, clusters),
    )


def _p(now: Sequence[float], was: Sequence[float], clusters: Sequence[str]) -> float | None:
    """Whether more was fixed than broken: exact McNemar; of dependent items whole clusters change sign."""
    moved = [row for row in zip(now, was, clusters, strict=True) if row[0] != row[1]]
    if not moved:
        return None
    fixed, broken, names = zip(*moved, strict=True)
    if len(set(names)) == len(names):
        return mcnemar(fixed, broken).p
    return permutation(fixed, broken, names, resamples=10_000)


def _evidence(now: Sequence[float], was: Sequence[float], clusters: Sequence[str]) -> float:
    """The evidence of the clusters' means: items of a cluster are no fresh ones."""
    if not now:
        return 1.0
    codes, count = group(clusters, len(now))
    sizes = np.bincount(codes, minlength=count)
    fixed, broken = (np.bincount(codes, weights=side, minlength=count) / sizes for side in (now, was))
    return paired_evidence(fixed, broken).e or 0.0


def between(results: Sequence[Result], pairs: Sequence[tuple[str, str]]) -> list[Flips]:
    """Flips of each (before, after): of all suites together, then suite by suite."""
    rows: dict[str, list[Result]] = {}
    for each in results:
        rows.setdefault(each.target, []).append(each)
    found = []
    for before, after in pairs:
        one, two = rows.get(before, []), rows.get(after, [])
        for suite in (None, *sorted({each.suite for each in one} & {each.suite for each in two})):
            found.append(compared(one, two, (before, after), suite))
    return found


def told(flips: Sequence[Flips]) -> list[dict[str, Any]]:
    """For a manifest's metrics: counts of all suites together, without the ids."""
    rows: list[dict[str, Any]] = []
    for each in flips:
        if each.suite is None:
            kept: Mapping[str, Any] = each.model_dump(mode="json", exclude={"fixed", "broken", "suite"})
            rows.append({**kept, "fixed": len(each.fixed), "broken": len(each.broken)})
    return rows
