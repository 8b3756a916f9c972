"""Recorded answers of real people, given again through the API, one client for each of them, in their disagreement."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tutelage.core.records import Message, Preference
from tutelage.feedback.assign import seeded
from tutelage.feedback.wire import Item, Question

SHARES = {"train": 0.7, "validation": 0.1, "test": 0.2}
"""Which part of the chosen comparisons each split should have."""


@dataclass(frozen=True)
class Recorded:
    """One comparison with what each recorded person said of it, candidates in a fresh order."""

    key: str
    source: str
    kind: str
    prompt: tuple[Message, ...]
    candidates: tuple[str, ...]
    said: Mapping[str, Mapping[str, Any]]
    """Person -> fields of an Answer."""
    tags: Mapping[str, Any]
    scale: tuple[float, float]
    criterion: str


def choose(rows: Iterable[Preference], wanted: int, sources: Sequence[str], seed: int) -> list[Recorded]:
    """Up to `wanted` comparisons with named people: the sources in turn, the splits in their shares, seeded."""
    groups: dict[str, dict[str, list[Preference]]] = {}
    for row in rows:
        source = str(row.tags.get("source", ""))
        if row.tags.get("people") and (not sources or source in sources):
            groups.setdefault(source, {}).setdefault(str(row.tags.get("split", "train")), []).append(row)
    chosen: list[Preference] = []
    left = wanted
    for at, source in enumerate(sorted(groups, key=lambda name: (sum(map(len, groups[name].values())), name))):
        quota = left // (len(groups) - at)  # the smallest first: what it cannot fill goes to the others
        taken: list[Preference] = []
        for split, share in SHARES.items():
            some = sorted(groups[source].get(split, ()), key=lambda row: str(row.tags.get("id")))
            seeded("replay", seed, source, split).shuffle(some)
            taken += some[: max(1, round(quota * share))]
        taken = taken[:quota]
        chosen += taken
        left -= len(taken)
    return [_recorded(row, seed) for row in chosen]


def _recorded(row: Preference, seed: int) -> Recorded:
    key = f"{row.tags.get('source')}/{row.tags.get('id')}"
    order = list(range(len(row.candidates)))
    seeded("order", seed, key).shuffle(order)  # what stood first in the record may have been the best
    place = {old: new for new, old in enumerate(order)}
    said: dict[str, dict[str, Any]] = {}
    scale, criterion = (0.0, 1.0), "quality"
    for each in row.tags["people"]:
        fields: dict[str, Any] = {}
        if each.get("tiers"):
            tiers = [sorted(place[no] for no in tier) for tier in each["tiers"]]
            placed = {no for tier in tiers for no in tier}
            fields |= {"tiers": tiers, "unrankable": sorted(set(range(len(order))) - placed)}
        if each.get("scores"):
            scale, criterion = tuple(each.get("scale") or scale), str(each.get("criterion") or criterion)
            given = {place[no]: float(score) for no, score in enumerate(each["scores"]) if score is not None}
            fields |= {"scores": {criterion: given}, "unrankable": sorted(set(range(len(order))) - set(given))}
        if fields:
            said[str(each["person"])] = fields
    kinds = {"ranking+scoring" if len(f) > 2 else "scoring" if "scores" in f else "ranking" for f in said.values()}
    kind = kinds.pop() if len(kinds) == 1 else "scoring"
    tags = {name: value for name, value in row.tags.items() if name != "people"}
    return Recorded(
        key=key,
        source=str(row.tags.get("source")),
        kind="pair" if kind == "ranking" and len(order) == 2 else kind,
        prompt=row.prompt,
        candidates=tuple(row.candidates[old].content for old in order),
        said=said,
        tags=tags,
        scale=(float(scale[0]), float(scale[1])),
        criterion=criterion,
    )


def questions(rows: Sequence[Recorded]) -> tuple[Question, ...]:
    """The form of a source: the criterion it was scored on, if it was scored."""
    scored = [each for each in rows if "scoring" in each.kind]
    if not scored:
        return ()
    low, high = min(each.scale[0] for each in scored), max(each.scale[1] for each in scored)
    return (Question(key=scored[0].criterion, per_candidate=True, scale=(low, high)),)


def respond(said: Mapping[str, Mapping[str, Any]]) -> Any:
    """What one recorded person answers: task id -> fields; None for a task they never saw."""

    def answer(item: Item) -> Mapping[str, Any] | None:
        return said.get(item.task)

    return answer
