"""How far apart groups of people are served: the largest gap per attribute, with an interval that covers it.

Groups are those that a text is about or by: gender, ethnicity, native language, dialect. A gap is the largest of the
differences between two groups, and the largest of several is large by luck alone: every difference is therefore held
to its share of the error (Bonferroni), and the gap's interval spans all of them, so that it covers the true largest
difference. Between attributes and measures p is corrected by Holm. Texts that differ in nothing but the group are
paired. A group with too few answers is left out and named; where too many answers could not be judged, there is no
figure: unknown is never fair.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from scipy import stats

from tutelage.evaluate.suite import Result
from tutelage.evaluate.suites.kinds import Ground, measured, metric_of, named
from tutelage.measure.statistics import Interval, holm, mean, paired, plain, rate, standard_error, undefined

ATTRIBUTES = frozenset(
    {"gender", "pronoun", "ethnicity", "race", "group", "native language", "native_language", "l1", "dialect", "age"}
    | {"religion", "nationality", "disability"}
)
"""Names of slices that are groups of people."""
FEWEST = 30
"""Answers below which a group has no figure."""
COVERAGE = 0.9
"""The share of a group's answers that must have been judged."""


class Answer(NamedTuple):
    """One measure of one answer to, or about, a member of a group; `value` None: it could not be judged."""

    target: str
    attribute: str
    group: str
    measure: str
    value: float | None
    cluster: str
    pair: str = ""
    """Answers of one pair differ in nothing but the group."""
    metric: str = ""
    """What `value` is, where `measure` is not its name: it says which way is worse."""


def of_slices(results: Iterable[Result], ground: Ground) -> list[Answer]:
    """Answers of suites whose items name the groups they belong to (`tags.slices`). Of a corpus figure (chrF, bits per
    byte) each is worth what it is to its group's, so that a group's figure is that of the slice."""
    cells: dict[tuple[str, str, str, str, str, str], list[Result]] = {}
    for each in results:
        for name, group in each.slices.items():
            if name in ATTRIBUTES:
                key = (each.target, each.suite, each.kind, each.metric, name, group)
                cells.setdefault(key, []).append(each)
    found: list[Answer] = []
    for (target, suite, kind, metric, name, group), rows in cells.items():
        known = measured(rows)
        values = metric_of(kind, metric).per_item(known, ground)
        worth = {each.item: value for each, value in zip(known, values, strict=False)}  # none where texts are gone
        found += [
            Answer(
                target, name, group, f"{suite} {metric}", worth.get(each.item), f"{suite}/{each.cluster}",
                each.slices.get("pair", ""), metric,
            )
            for each in rows
        ]  # fmt: skip
    return found


def of_forms(results: Iterable[Result], changed: Iterable[Result]) -> list[Answer]:
    """Any suite, asked as it stands and as learners of English or speakers of a dialect may write it."""
    kinds = {"learner": "native language", "dialect": "dialect"}

    def one(row: Result, attribute: str, group: str) -> Answer:
        measure = "score" if named(row.metric).share else row.metric  # bits per byte have no mean with shares
        cluster = f"{row.suite}/{row.cluster}"
        return Answer(row.target, attribute, group, measure, row.value, cluster, row.item, row.metric)

    found: list[Answer] = []
    asked: set[tuple[str, str, str]] = set()
    for each in changed:
        kind, _, group = each.slices["perturbation"].partition(":")
        if kind in kinds:
            found.append(one(each, kinds[kind], group))
            asked.add((each.target, kinds[kind], each.item))
    names = {"native language": "native", "dialect": "standard"}
    return found + [
        one(each, attribute, name)
        for each in results
        for attribute, name in names.items()
        if (each.target, attribute, each.item) in asked
    ]


def gaps(answers: Iterable[Answer], *, fewest: int = FEWEST, level: float = 0.95) -> list[dict[str, Any]]:
    """Target x attribute x measure: the largest difference between two groups, with its interval; the worst group.

    `coverage` is the least share of answers judged in any group; `too_few` names groups that were left out; groups that
    form pairs are compared where they share `fewest` of them; `groups` lists every group's figure. `p` is corrected for
    the comparisons within the attribute, `p_holm` over the table too.
    """
    cells: dict[tuple[str, str, str], dict[str, list[Answer]]] = {}
    for each in answers:
        cells.setdefault((each.target, each.attribute, each.measure), {}).setdefault(each.group, []).append(each)
    table = [_row(key, groups, fewest, level) for key, groups in cells.items()]
    for entry, p in zip(table, holm([entry["p"] for entry in table]), strict=True):
        entry["p_holm"] = p
    return table


def _row(
    key: tuple[str, str, str], groups: Mapping[str, Sequence[Answer]], fewest: int, level: float
) -> dict[str, Any]:
    target, attribute, measure = key
    known = {name: [each for each in rows if each.value is not None] for name, rows in sorted(groups.items())}
    held = {name: rows for name, rows in known.items() if len(rows) >= fewest}
    asked = sum(len(rows) for rows in groups.values())
    n = sum(len(rows) for rows in known.values())
    coverage = min(len(known[name]) / len(rows) for name, rows in groups.items())
    strict = 1 - (1 - level) / max(1, len(held))
    figures: list[dict[str, Any]] = [
        {"group": name, "asked": len(groups[name])} | plain(_figure(rows, strict)) for name, rows in known.items()
    ]
    entry: dict[str, Any] = {"target": target, "attribute": attribute, "measure": measure, "asked": asked}
    entry |= {"coverage": coverage, "groups": figures, "too_few": [name for name in known if name not in held]}
    nothing = entry | {"worst": None, "between": None, "p": None}
    if coverage < COVERAGE:
        reason = f"only {coverage:.0%} of the answers of a group could be judged, {COVERAGE:.0%} are needed"
        reason = reason if n else "no answer could be judged"
        return nothing | plain(undefined(n, reason))
    if len(held) < 2:
        counts = ", ".join(f"{name} {len(rows)}" for name, rows in known.items())
        reason = f"not enough data: fewer than two groups with {fewest} answers ({counts})"
        return nothing | plain(undefined(n, reason))
    compared = [(one, two) for one, two in itertools.combinations(held, 2) if _shared(held[one], held[two], fewest)]
    found = [(left, right, *_difference(held[left], held[right], level, len(compared))) for left, right in compared]
    sizes = [(abs(gap.value), left, right) for left, right, gap, _ in found if gap.value is not None]
    if not sizes or any(gap.low is None for _, _, gap, _ in found):
        fault = next((gap.reason for _, _, gap, _ in found if gap.low is None), None)
        return nothing | plain(undefined(n, fault or f"no two groups share {fewest} pairs"))
    low = max(0.0, *(max(gap.low or 0.0, -(gap.high or 0.0)) for _, _, gap, _ in found))
    high = max(max(gap.high or 0.0, -(gap.low or 0.0)) for _, _, gap, _ in found)
    size, left, right = max(sizes)
    ps = [p for _, _, _, p in found if p is not None]
    metric = named(next(iter(held.values()))[0].metric or measure)
    worst = min(
        (each for each in figures if each["group"] in held),
        key=lambda each: (metric.worth(each["value"]), each["group"]),
    )
    return entry | {
        **{"value": size, "low": min(low, size), "high": max(high, size), "n": n, "reason": None},
        "clusters": len({each.cluster for rows in held.values() for each in rows}),
        "worst": worst,
        "between": [left, right],
        "p": min(1.0, min(ps) * len(found)) if ps else None,
    }


def _figure(rows: Sequence[Answer], level: float) -> Interval:
    values = [float(each.value or 0.0) for each in rows]
    clusters = [each.cluster for each in rows]
    bounds = _bounds(rows)
    if bounds == (0.0, 1.0) and set(values) <= {0.0, 1.0}:
        return rate(values, clusters, level)
    inside = bounds is not None and all(bounds[0] <= value <= bounds[1] for value in values)
    return mean(values, clusters, level, bounds=bounds if inside else None)


def _bounds(rows: Sequence[Answer]) -> tuple[float, float] | None:
    return named(rows[0].metric or rows[0].measure).bounds if rows else (0.0, 1.0)


def _shared(left: Sequence[Answer], right: Sequence[Answer], fewest: int) -> bool:
    """Whether two groups can be compared: by pairs of which there are enough, or by texts that form no pairs at all."""
    ones, others = ({each.pair for each in rows if each.pair} for rows in (left, right))
    return len(ones & others) >= fewest or not (ones and others)


def _difference(
    left: Sequence[Answer], right: Sequence[Answer], level: float, comparisons: int
) -> tuple[Interval, float | None]:
    """One group minus another at its share of the error: paired where texts differ in the group alone."""
    strict = 1 - (1 - level) / comparisons
    pairs = {each.pair: each for each in right if each.pair}
    both = [(each, pairs[each.pair]) for each in left if each.pair in pairs]
    if both:
        gap = paired(
            [float(a.value or 0.0) for a, _ in both],
            [float(b.value or 0.0) for _, b in both],
            [a.cluster for a, _ in both],
            strict,
            _bounds(left),
        )
        return gap.difference, gap.p
    one, two = _figure(left, strict), _figure(right, strict)
    if None in (one.value, one.low, one.high, two.value, two.low, two.high):
        return undefined(one.n + two.n, one.reason or two.reason or "no interval"), None
    a, b = float(one.value or 0.0), float(two.value or 0.0)
    low = a - b - math.hypot(a - float(one.low or 0.0), float(two.high or 0.0) - b)  # Newcombe's hybrid interval
    high = a - b + math.hypot(float(one.high or 0.0) - a, b - float(two.low or 0.0))
    errors = [
        standard_error([float(each.value or 0.0) for each in rows], [each.cluster for each in rows])
        for rows in (left, right)
    ]
    error = math.hypot(*(each or 0.0 for each in errors))
    freedom = min(len({each.cluster for each in rows}) for rows in (left, right)) - 1
    if error > 0.0:
        p = float(2 * stats.t.sf(abs(a - b) / error, freedom))
    else:  # every answer of a group is worth the same: by groups of texts, Fisher's exact test
        counts = [len({each.cluster for each in rows}) for rows in (left, right)]
        p = 1.0 if a == b else float(stats.fisher_exact([[counts[0], 0], [0, counts[1]]]).pvalue)
    return Interval(value=a - b, low=low, high=high, n=one.n + two.n, level=strict, method="hybrid"), p


def headline(rows: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Target -> `attribute: measure` -> the gap with its interval and n, or why there is none."""
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        figure = {key: row.get(key) for key in ("value", "low", "high", "n", "reason")}
        found.setdefault(row["target"], {})[f"{row['attribute']}: {row['measure']}"] = figure
    return found
