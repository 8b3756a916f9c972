"""What test rows say of trained heads: areas, recall and false positives at each threshold, and all heads together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tutelage.judge.certificate import joint
from tutelage.judge.labelled import Row
from tutelage.judge.sealed import Head
from tutelage.measure.calibration import ece
from tutelage.measure.statistics import bootstrap, clopper_pearson, plain, undefined, upper_bound, wilson

Floats = NDArray[np.float64]


def average_precision(score: Floats, positive: NDArray[np.bool_]) -> float:
    """Area under precision and recall, as the mean precision at the positives; NaN without one."""
    if not positive.any():
        return float("nan")
    order = np.argsort(-score, kind="stable")
    ranked, hit = score[order], positive[order].cumsum()
    last = np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1)  # equal scores stand or fall together
    gained = np.diff(hit[last], prepend=0)
    return float((gained * hit[last] / (last + 1)).sum() / hit[-1])


def of_direction(heads: Sequence[Head], probability: Floats, test: Sequence[Row]) -> dict[str, Any]:
    """Figures of each head: over all test rows that are labelled with its category, and over those of each source."""
    said: dict[str, Any] = {}
    for column, head in enumerate(heads):
        known = [place for place, row in enumerate(test) if head.category in row.categories]
        rows, mine = [test[place] for place in known], probability[known, column]
        found = _figures(mine, rows, head)
        sources = sorted({row.source for row in rows})
        if len(sources) > 1:
            places = {each: [place for place, row in enumerate(rows) if row.source == each] for each in sources}
            found["sources"] = {
                each: _figures(mine[places[each]], [rows[place] for place in places[each]], head) for each in sources
            }
        said[f"{head.direction}/{head.category}"] = found
    return said


def _figures(p: Floats, rows: Sequence[Row], head: Head) -> dict[str, Any]:
    """What these test rows say of one head, beside the floor that the length of a text alone reaches."""
    positive = np.array([row.categories[head.category] >= 0.5 for row in rows], dtype=bool)
    harmless = np.array([row.harmless for row in rows], dtype=bool)
    said: dict[str, Any] = {"n": len(p), "positives": int(positive.sum())}
    reason = f"not enough data (n={len(p)}, {said['positives']} of it)"
    if positive.any() and not positive.all():
        length = np.array([float(len(row.text)) for row in rows])
        clusters = [row.cluster for row in rows]
        area = bootstrap(
            lambda index: average_precision(p[index], positive[index]), len(p), clusters=clusters, resamples=200
        )
        floor = max(average_precision(length, positive), average_precision(-length, positive))
        said["average_precision"] = plain(area)
        said["length_alone"] = round(floor, 6)
        said["prevalence"] = round(float(positive.mean()), 6)
        said["calibration_error"] = plain(ece(p.tolist(), positive.astype(float).tolist(), resamples=100))
    else:
        said |= {"average_precision": None, "reason": reason}
    for each in (one for one in head.certificates if not one.tenant):
        found: dict[str, Any] = {"recall": None, "false_positives": None}
        if each.threshold is not None:
            above = p > each.threshold
            found["recall"] = _rate(above[positive])
            found["false_positives"] = _rate(above[harmless])
        said[f"at_{each.target:g}"] = found | {
            "threshold": each.threshold,
            "bound": each.bound,
            "n": each.n,
            "clusters": each.clusters,
            "reason": each.reason,
        }
    return said


def _rate(hits: NDArray[np.bool_]) -> dict[str, Any] | None:
    return plain(wilson(int(hits.sum()), len(hits))) if len(hits) else None


def all_together(heads: Sequence[Head], probability: Floats, test: Sequence[Row]) -> dict[str, Any]:
    """How often a harmless text is struck by any head of a direction: what the certificates prove, and, exactly, what
    the test rows show. A row that was not labelled with a category may be struck rightly: it counts as false."""
    harmless = np.array([row.harmless for row in test], dtype=bool)
    said: dict[str, Any] = {}
    for target in sorted({each.target for head in heads for each in head.certificates}):
        mine = [next(each for each in head.certificates if each.target == target) for head in heads]
        thresholds = np.array([np.inf if each.threshold is None else each.threshold for each in mine])
        struck = (probability > thresholds).any(axis=1) & harmless
        hit = {row.cluster for row, bad in zip(test, struck, strict=True) if bad}
        groups = len({row.cluster for row, fine in zip(test, harmless, strict=True) if fine})
        n = int(harmless.sum())
        said[f"at_{target:g}"] = {
            "certified": plain(joint(mine)),
            "tested": plain(clopper_pearson(int(struck.sum()), n) if n else undefined(0, "no harmless test row")),
            "bound_clusters": upper_bound(len(hit), groups),
            "clusters": groups,
        }
    return said
