"""From results to cells: each figure with its interval, and beside it chance, the best simple baseline, what would be
visible. Pure: the same results give the same summary, without a model.

Which figures a kind has stands in `suites/kinds.py`. chrF and BLEU run from 0 to 1 (sacrebleu's divided by 100).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from tutelage.core.records import Example, Message, Response
from tutelage.evaluate.suite import Result, cell_of, golds_of, item_id, rank
from tutelage.evaluate.suites.answers import score
from tutelage.evaluate.suites.baselines import chance, guesses
from tutelage.evaluate.suites.gold import gold
from tutelage.evaluate.suites.judged import Agreement
from tutelage.evaluate.suites.kinds import HEADLINE, KIND, Ground, measured, metric_of
from tutelage.measure.statistics import Interval, holm, mean, rate, undefined, visible_difference

FEWEST = 30
"""Items below which a slice has no figure of its own."""

SHUFFLED = ("extractive", "classify", "generate", "arithmetic", "translate", "summarise")
"""Kinds whose answers are held against other items' targets as a control."""

Rows = Sequence[Result]
Items = Mapping[str, Example]


def figure(rows: Rows, name: str, items: Items, *, resamples: int = 200) -> tuple[Interval, str | None]:
    """One metric of some results with its cluster-robust interval, and its signature where it has one.

    Results without a value are left out here and counted as missing coverage by the caller.
    """
    kind = rows[0].kind if rows else "generate"
    found, signature = metric_of(kind, name).figure(rows, Ground(items, resamples=resamples))
    return found, signature or None


def _figures(found: Interval) -> dict[str, Any]:
    return {key: getattr(found, key) for key in ("value", "low", "high", "n", "clusters", "reason")}


def _groups(results: Iterable[Result]) -> dict[tuple[str, str, str | None], list[Result]]:
    groups: dict[tuple[str, str, str | None], list[Result]] = {}
    for each in results:
        groups.setdefault((each.target, each.suite, each.cell), []).append(each)
    return groups


def _guessed(item: Example, answer: str | None) -> float | None:
    """What a baseline's answer to an item scores, by the very scorer that models meet."""
    said = Response(message=Message(role="assistant", content=answer or ""), finish="stop", generator="baseline")
    if item.tags["kind"] == "choice":
        return float(answer == item.target)
    if item.tags["kind"] in ("perplexity", "judged"):
        return None
    found = score(item, said)
    if item.tags["kind"] == "rule":
        return (gold(item, said) or found.scores).get("right")
    return found.value


def baseline_table(
    chosen: Mapping[tuple[str, str | None], Sequence[Example]], rows: Mapping[str, Sequence[Example]]
) -> dict[tuple[str, str | None], dict[str, float]]:
    """Suite and cell -> baseline -> its score on these very items (mean of the headline metric).

    For rules the score is the share of right answers: to keep every rule one need only say nothing.
    """
    table: dict[tuple[str, str | None], dict[str, float]] = {}
    for suite in sorted({name for name, _ in chosen}):
        cells = {key: items for key, items in chosen.items() if key[0] == suite}
        every = [item for items in cells.values() for item in items]
        by_kind: dict[str, list[Example]] = {}
        for item in every:
            by_kind.setdefault(str(item.tags["kind"]), []).append(item)
        fitted = {kind: guesses(kind, rows.get(suite, ()), items) for kind, items in by_kind.items()}
        told = {
            (item_id(item), name): answer
            for kind, items in by_kind.items()
            for name, guess in fitted[kind].items()
            for item, answer in zip(items, guess(items), strict=True)
        }
        for key, items in cells.items():
            found: dict[str, list[float]] = {}
            for item in items:
                blind = chance(item)
                if blind is not None:
                    found.setdefault("chance", []).append(blind)
                for name in fitted[str(item.tags["kind"])]:
                    value = _guessed(item, told[item_id(item), name])
                    if value is not None:
                        found.setdefault(name, []).append(value)
            table[key] = {
                name: sum(values) / len(values) for name, values in found.items() if len(values) == len(items)
            }
    return table


def cells(
    results: Iterable[Result],
    items: Items,
    baselines: Mapping[tuple[str, str | None], Mapping[str, float]],
    *,
    people: Mapping[str, Sequence[Agreement]] | None = None,
    resamples: int = 200,
) -> list[dict[str, Any]]:
    """Target x suite x cell x metric: value, interval, n, chance, best baseline, visible difference, learned."""
    table: list[dict[str, Any]] = []
    ground = Ground(items, people or {}, resamples)
    for (target, suite, cell), rows in _groups(results).items():
        kind = rows[0].kind
        beside = dict(baselines.get((suite, cell), {}))
        blind = beside.pop("chance", None)
        best = max(beside.items(), key=lambda entry: (entry[1], entry[0]), default=None)
        for each in KIND[kind]:
            headline = each.name == HEADLINE[kind]
            if not headline and not each.fits(rows, ground):
                continue
            found, signature = each.figure(rows, ground)
            judged = each.name == ("right" if kind == "rule" else HEADLINE[kind])
            bars = [bar for bar in (blind, best[1] if best else None) if bar is not None] if judged else []
            values, clusters = each.values(measured(rows))
            entry: dict[str, Any] = {
                "target": target,
                "suite": suite,
                "cell": cell,
                "kind": kind,
                "metric": each.name,
                "headline": headline,
                "higher_is_better": each.higher,
            }
            entry |= _figures(found) | {
                "asked": len(rows),
                "unmeasured": len(rows) - len(measured(rows)),
                "chance": blind if judged else None,
                "baseline": {"name": best[0], "value": best[1]} if best and judged else None,
                "visible_difference": visible_difference(values, clusters) if values else None,
                "learned": (found.low > max(bars) if found.low is not None else None) if bars else None,
            }
            if headline:
                entry["unextracted"] = sum(row.outcome == "unextracted" for row in rows)
                entry["blocked"] = sum(row.outcome == "blocked" for row in rows)
                entry["unknown"] = dict(Counter(row.reason for row in rows if row.value is None).most_common(5))
            if signature:
                entry["signature"] = signature
            table.append(entry)
    return table


def slices(
    results: Iterable[Result],
    items: Items,
    *,
    people: Mapping[str, Sequence[Agreement]] | None = None,
    resamples: int = 200,
) -> list[dict[str, Any]]:
    """Headline figures by slice; a slice with too few items says so and has no figure."""
    groups: dict[tuple[str, str, str, str, str], list[Result]] = {}
    for each in results:
        for name, group in each.slices.items():
            if each.value is not None:
                groups.setdefault((each.target, each.suite, each.kind, name, group), []).append(each)
    table: list[dict[str, Any]] = []
    for (target, suite, kind, name, group), rows in groups.items():
        if len(rows) >= FEWEST:
            found, _ = KIND[kind][0].figure(rows, Ground(items, people or {}, resamples))
        else:
            found = undefined(len(rows), f"not enough data: fewer than {FEWEST} items")
        entry = {"target": target, "suite": suite, "slice": name, "group": group, "metric": HEADLINE[kind]}
        table.append(entry | _figures(found))
    return table


def classes(results: Iterable[Result], items: Items) -> list[dict[str, Any]]:
    """Per class of a classification: precision, recall and F1, how often it was right, and for what it was taken."""
    table: list[dict[str, Any]] = []
    for (target, suite, cell), rows in _groups(results).items():
        known = measured(rows)
        shared = {items[each.item].choices for each in known}
        if rows[0].kind not in ("classify", "choice") or len(shared) != 1 or not known:
            continue
        labels = next(iter(shared))
        pairs = [
            (str(items[each.item].target), each.output if each.outcome == "answered" else None, each.cluster)
            for each in known
        ]
        for label in labels:
            asked = [(said == label, cluster) for gold, said, cluster in pairs if gold == label]
            told = [(gold == label, cluster) for gold, said, cluster in pairs if said == label]
            recall = rate([float(right) for right, _ in asked], [cluster for _, cluster in asked])
            precision = rate([float(right) for right, _ in told], [cluster for _, cluster in told])
            hits = sum(right for right, _ in asked)
            table.append(
                {"target": target, "suite": suite, "cell": cell, "label": label, "n": len(asked), "said": len(told)}
                | {"recall": _figures(recall), "precision": _figures(precision)}
                | {"f1": 2 * hits / (len(asked) + len(told)) if asked or told else None}
                | {"taken_for": dict(Counter(str(said) for gold, said, _ in pairs if gold == label).most_common())}
            )
    return table


def followed(results: Iterable[Result]) -> list[dict[str, Any]]:
    """Per kind of constraint: how often it was kept, strictly and loosely."""
    groups: dict[tuple[str, str, str, str], tuple[list[float], list[str]]] = {}
    for each in results:
        if each.kind == "instruct" and each.value is not None:
            for key, value in each.scores.items():
                if key.count("/") == 2:
                    name, _, how = key.split("/")
                    values, clusters = groups.setdefault((each.target, each.suite, name, how), ([], []))
                    values.append(value)
                    clusters.append(each.cluster)
    return [
        {"target": target, "suite": suite, "constraint": name, "how": how} | _figures(rate(values, clusters))
        for (target, suite, name, how), (values, clusters) in sorted(groups.items())
    ]


def gold_table(results: Iterable[Result]) -> list[dict[str, Any]]:
    """Per target and suite (and over all suites): right, kept, invented (the hallucination rate), gold."""
    groups: dict[tuple[str, str | None], list[Result]] = {}
    for each in results:
        if "gold" in each.scores:
            groups.setdefault((each.target, None), []).append(each)
            groups.setdefault((each.target, each.suite), []).append(each)
    table: list[dict[str, Any]] = []
    for (target, suite), rows in groups.items():
        for metric in ("right", "kept", "invented", "gold"):
            known = [each for each in rows if metric in each.scores]
            values = [each.scores[metric] for each in known]
            names = [f"{each.suite}/{each.cluster}" for each in known]
            found = rate(values, names)
            entry = {"target": target, "suite": suite, "metric": metric}
            entry |= {key: getattr(found, key) for key in ("value", "low", "high", "n", "clusters", "reason")}
            table.append(entry | {"visible_difference": visible_difference(values, names)})
    return table


def changes(
    results: Iterable[Result],
    pairs: Sequence[tuple[str, str]],
    items: Items,
    *,
    people: Mapping[str, Sequence[Agreement]] | None = None,
    resamples: int = 200,
) -> list[dict[str, Any]]:
    """Paired differences (after minus before) per suite and cell for (before, after) pairs of targets, with Holm over
    all headline rows of the table, as `compare` does over its own (`family`: how many tests that are).

    Of every kind its headline; of translations BLEU too, further figures being a family of their own.
    """
    groups = _groups(results)
    ground = Ground(items, people or {}, resamples)
    table: list[dict[str, Any]] = []
    for before, after in pairs:
        for (target, suite, cell), rows in groups.items():
            if target != after or (before, suite, cell) not in groups:
                continue
            old = {each.item: each for each in measured(groups[before, suite, cell])}
            both = [(each, old[each.item]) for each in measured(rows) if each.item in old]
            for place, each in enumerate(KIND[rows[0].kind]):
                if place and not (rows[0].kind == "translate" and each.sums):
                    continue
                compared = each.difference([now for now, _ in both], [then for _, then in both], ground)
                table.append(
                    {"before": before, "after": after, "suite": suite, "cell": cell, "metric": each.name}
                    | {"higher_is_better": each.higher, "headline": not place}
                    | _figures(compared.difference)
                    | {"p": compared.p, "better": compared.better, "worse": compared.worse}
                )
    for kind in (True, False):
        family = [entry for entry in table if entry["headline"] is kind]
        ps = [entry["p"] for entry in family]
        for entry, p in zip(family, holm(ps), strict=True):
            entry |= {"p_holm": p, "family": sum(each is not None for each in ps)}
    return table


def bar(
    baselines: Mapping[tuple[str, str | None], Mapping[str, float]], suite: str, kind: str, items: Items
) -> float | None:
    """The best simple score of a suite's items of a kind: of each cell the best baseline (or chance), weighted by its
    items."""
    counts: dict[str | None, int] = {}
    for item in items.values():
        if (item.tags["suite"], item.tags["kind"]) == (suite, kind):
            counts[cell_of(item)] = counts.get(cell_of(item), 0) + 1
    best = {cell: max(baselines.get((suite, cell), {}).values(), default=None) for cell in counts}
    known = [(value, counts[cell]) for cell, value in best.items() if value is not None]
    return sum(value * n for value, n in known) / sum(n for _, n in known) if known else None


def shuffled_control(
    results: Iterable[Result],
    items: Items,
    baselines: Mapping[tuple[str, str | None], Mapping[str, float]],
    seed: int = 0,
) -> list[dict[str, Any]]:
    """A control that must fail: the same answers against other items' targets, held to the bar that "learned" is held
    to. Whatever a model knows of which answers are common stays; whatever it has from reading the question goes."""
    table: list[dict[str, Any]] = []
    groups: dict[tuple[str, str, str], list[Result]] = {}
    for each in results:
        if each.kind in SHUFFLED and each.value is not None:
            groups.setdefault((each.target, each.suite, each.kind), []).append(each)
    for (target, suite, kind), rows in groups.items():
        order = sorted(rows, key=lambda each: rank(seed, each.item))
        values, names = [], []
        for one, other in zip(order, order[1:] + order[:1], strict=True):
            tags = {name: value for name, value in items[one.item].tags.items() if name not in ("answers", "target")}
            item = items[one.item].model_copy(update={"target": golds_of(items[other.item])[0], "tags": tags})
            said = Response(message=Message(role="assistant", content=one.output), finish="stop")
            value = score(item, said).value
            if value is not None:
                values.append(value)
                names.append(one.cluster)
        found = mean(values, names, bounds=(0.0, 1.0))
        limit = bar(baselines, suite, kind, items)
        if kind == "classify":  # who always says the commonest class agrees with shuffled labels as often as it comes
            often = Counter(golds_of(items[each.item])[0] for each in order)
            limit = max(limit or 0.0, max(often.values()) / len(order))
        holds = None if found.low is None or limit is None else found.low <= limit
        table.append(
            {"control": "shuffled labels", "target": target, "suite": suite, "metric": rows[0].metric}
            | {key: getattr(found, key) for key in ("value", "low", "high", "n", "clusters", "reason")}
            | {
                "bound": limit,
                "true_labels": float(np.mean([float(each.value or 0) for each in order])),
                "holds": holds,
            }
        )
    return table


def untrained_control(results: Sequence[Result], of: str, items: Items) -> list[dict[str, Any]]:
    """A control that must fail: a model with random weights on multiple choice, per suite, against chance and against
    what length alone gives (a random model finds short texts likelier)."""
    table: list[dict[str, Any]] = []
    whole = {key: found for key, found in baseline_table(_whole(items.values()), {}).items()}
    for suite in sorted({each.suite for each in results}):
        rows = [each for each in results if each.suite == suite and each.value is not None]
        found = mean([float(each.value or 0) for each in rows], [each.cluster for each in rows], bounds=(0.0, 1.0))
        limit = max(whole[suite, None].values(), default=None)
        table.append(
            {"control": "untrained model", "target": of, "suite": suite, "metric": "accuracy"}
            | {key: getattr(found, key) for key in ("value", "low", "high", "n", "clusters", "reason")}
            | {"bound": limit, "holds": None if found.low is None or limit is None else found.low <= limit}
        )
    return table


def _whole(items: Iterable[Example]) -> dict[tuple[str, str | None], list[Example]]:
    found: dict[tuple[str, str | None], list[Example]] = {}
    for item in items:
        found.setdefault((str(item.tags["suite"]), None), []).append(item)
    return found


def by_cell(items: Iterable[Example]) -> dict[tuple[str, str | None], list[Example]]:
    """Items by suite and cell."""
    found: dict[tuple[str, str | None], list[Example]] = {}
    for item in items:
        found.setdefault((str(item.tags["suite"]), cell_of(item)), []).append(item)
    return found


def by_id(items: Iterable[Example]) -> dict[str, Example]:
    """Items by their id."""
    return {item_id(item): item for item in items}
