"""Recorded answers of real people, given again through the API, one client for each of them, in their disagreement."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tutelage.core.records import Example, Message, Preference
from tutelage.feedback.assign import seeded
from tutelage.feedback.wire import Item, Question

SHARES = {"train": 0.7, "validation": 0.1, "test": 0.2}
"""Which part of the chosen comparisons each split should have."""


@dataclass(frozen=True)
class Recorded:
    """One comparison, its candidates in a fresh order, or one labelled text, with what each recorded person said of
    it."""

    key: str
    source: str
    kind: str
    prompt: tuple[Message, ...]
    candidates: tuple[str, ...]
    said: Mapping[str, Mapping[str, Any]]
    """Person -> fields of an Answer."""
    tags: Mapping[str, Any]
    questions: tuple[Question, ...] = ()
    """What it was scored or labelled on."""


def choose(rows: Iterable[Preference | Example], wanted: int, sources: Sequence[str], seed: int) -> list[Recorded]:
    """Up to `wanted` comparisons and texts with named people: sources in turn, splits in their shares, seeded."""
    groups: dict[str, dict[str, list[Preference | Example]]] = {}
    for row in rows:
        source = str(row.tags.get("source", ""))
        if row.tags.get("people") and (not sources or source in sources):
            groups.setdefault(source, {}).setdefault(str(row.tags.get("split", "train")), []).append(row)
    chosen: list[Preference | Example] = []
    left = wanted
    for at, source in enumerate(sorted(groups, key=lambda name: (sum(map(len, groups[name].values())), name))):
        quota = left // (len(groups) - at)  # the smallest first: what it cannot fill goes to the others
        taken: list[Preference | Example] = []
        for split, share in SHARES.items():
            some = sorted(groups[source].get(split, ()), key=lambda row: str(row.tags.get("id")))
            seeded("replay", seed, source, split).shuffle(some)
            taken += some[: max(1, round(quota * share))]
        taken = taken[:quota]
        chosen += taken
        left -= len(taken)
    return [_recorded(row, seed) if isinstance(row, Preference) else _labelled(row) for row in chosen]


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
        questions=(Question(key=criterion, per_candidate=True, scale=(float(scale[0]), float(scale[1]))),)
        if "scoring" in kind
        else (),
    )


def _labelled(row: Example) -> Recorded:
    """A text that people labelled: a number on a scale, or yes and no (0 to 1), for each category."""
    said: dict[str, dict[str, Any]] = {}
    asked: dict[str, Question] = {}
    for each in row.tags["people"]:
        name, (low, high) = str(each["category"]), each.get("scale") or (0, 1)
        said.setdefault(str(each["person"]), {"values": {}})["values"][name] = float(each["value"])
        kind: Literal["boolean", "scale"] = "boolean" if (low, high) == (0, 1) else "scale"
        asked[name] = Question(key=name, kind=kind, scale=(float(low), float(high)), required=False)
    return Recorded(
        key=f"{row.tags.get('source')}/{row.tags.get('id')}",
        source=str(row.tags.get("source")),
        kind="tag",
        prompt=row.messages,
        candidates=(),
        said=said,
        tags={name: value for name, value in row.tags.items() if name != "people"},
        questions=tuple(asked[name] for name in sorted(asked)),
    )


def questions(rows: Sequence[Recorded]) -> tuple[Question, ...]:
    """The form of a source: everything it was scored or labelled on, each on the widest scale that occurred."""
    found: dict[str, Question] = {}
    for each in (question for row in rows for question in row.questions):
        known = found.get(each.key, each)
        scale = (min(known.scale[0], each.scale[0]), max(known.scale[1], each.scale[1]))
        found[each.key] = known.model_copy(update={"scale": scale})
    return tuple(found[key] for key in sorted(found))


def respond(said: Mapping[str, Mapping[str, Any]]) -> Any:
    """What one recorded person answers: task id -> fields; None for a task they never saw."""

    def answer(item: Item) -> Mapping[str, Any] | None:
        return said.get(item.task)

    return answer
