"""What stands side by side: targets of sealed evaluations, with their rows and the items that they were asked."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tutelage.core.artifact import Artifact, Root
from tutelage.core.errors import CorruptArtifact, DataError, NotFound, UsageError
from tutelage.core.records import Example, digest, read_jsonl
from tutelage.evaluate.kept import STAGE
from tutelage.evaluate.suite import Result, golds_of
from tutelage.evaluate.suites.judged import Agreement, told_in

Key = tuple[str, str, str]
"""Suite, item, attack family ("" where there is none): what a row is found by."""


@dataclass(frozen=True)
class System:
    """One target of one examination. `items` holds what is still known of the texts, by item id."""

    name: str
    source: str
    """`evaluation:ID#target`, or the reference that was examined just now."""
    target_id: str
    rows: Mapping[Key, Result]
    items: Mapping[str, Example] = field(default_factory=dict)
    judges: Mapping[str, str] = field(default_factory=dict)
    """Suite -> who judged its open-ended answers."""
    people: Mapping[str, Sequence[Agreement]] = field(default_factory=dict)
    """Suite -> answers that people judged too, which say what that judge is off."""


def key_of(row: Result) -> Key:
    """What a row is found by."""
    return row.suite, row.item, row.attack or ""


def cell_of_row(row: Result) -> str | None:
    """The part of its suite that a row belongs to: its cell, or its attack family."""
    return row.cell or row.attack


def system(
    name: str, source: str, rows: Sequence[Result], items: Mapping[str, Example], file: Path | str | None = None
) -> System:
    """A system from its rows. Raises DataError where an item stands twice or nothing was asked."""
    found: dict[Key, Result] = {}
    for row in rows:
        if key_of(row) in found:
            raise DataError(f"{name!r} answers the item {row.item!r} of {row.suite} twice", file=file, key="item")
        found[key_of(row)] = row
    if not found:
        raise DataError(f"{name!r} was asked nothing", file=file)
    return System(name, source, rows[0].target_id, found, items)


def judged(found: System, told: Iterable[Mapping[str, Any]]) -> System:
    """The system with who judged its answers and how that judge was measured: `judges` of an examination's summary."""
    every = list(told)
    return replace(
        found,
        judges={str(each["suite"]): str(each["judge"]) for each in every},
        people=told_in(every),
    )


def text_of(item: Example) -> str:
    """What makes an item the item that it is: its messages, choices and right answers. Tags are free to differ."""
    said = [[message.role, message.content] for message in item.messages]
    return digest([said, list(item.choices), golds_of(item)])


def read(artifact: Artifact, root: Root, target: str | None = None) -> list[System]:
    """All targets of an evaluation or red team in the order of their rows, or one of them.

    Every file is compared with its hash first. Raises CorruptArtifact, DataError, and NotFound for a target that it
    does not hold.
    """
    if "results.jsonl" not in artifact.manifest.files:
        raise UsageError(
            f"{artifact.kind}:{artifact.id[:12]} holds no results of items",
            todo="Name an evaluation, a target in it (`evaluate#finetune`), or a model that was examined",
        )
    artifact.verify()
    file = artifact.file("results.jsonl")
    groups: dict[str, list[Result]] = {}
    for row in read_jsonl(file, Result):
        groups.setdefault(row.target, []).append(row)
    if target is not None and target not in groups:
        raise NotFound(f"no target {target!r}", file=file, todo=f"It holds: {', '.join(groups) or 'none'}")
    told = []
    if "summary.json" in artifact.manifest.files:
        told = json.loads(artifact.file("summary.json").read_text(encoding="utf-8")).get("judges", [])
    items = items_of(artifact, root, {row.item for rows in groups.values() for row in rows})
    short = f"{artifact.kind}:{artifact.id}"
    return [
        judged(system(name, f"{short}#{name}", rows, items, file), told)
        for name, rows in groups.items()
        if target is None or name == target
    ]


def items_of(artifact: Artifact, root: Root, wanted: set[str]) -> dict[str, Example]:
    """The examined items by id: the artifact's own, or those of the corpus that it read; none where that is gone."""
    source = artifact
    if "items.jsonl" not in artifact.manifest.files:
        corpus = artifact.manifest.inputs.get("corpus")
        try:
            source = root.find(str(corpus)).verified()
            source.file("items.jsonl")
        except (NotFound, CorruptArtifact):
            return {}
    found: dict[str, Example] = {}
    with source.file("items.jsonl").open(encoding="utf-8") as lines:
        for line in lines:
            plain = json.loads(line)
            if plain["tags"].get("id") in wanted:
                found[str(plain["tags"]["id"])] = Example.model_validate(plain)
    return found


def examined(root: Root, models: Sequence[str]) -> Artifact | None:
    """The newest evaluation of a life that examined all these models (`model:ID`, `bundle:ID`), if there is one; what
    was asked on a suite of one's own is compared by its own reference."""
    every = [each for each in root.list("evaluation", []) if each.manifest.stage != STAGE]
    fit = [each for each in every if set(models) <= set(each.manifest.parents())]
    return fit[-1] if fit else None


def paired_up(operands: Sequence[Sequence[System]]) -> tuple[list[System], list[tuple[int, int]]]:
    """Systems in order, and which is compared with which (earlier, later).

    One evaluation: its targets, all against the first. Several systems: all against the first. Several evaluations of
    several targets each: targets of one name meet. Names are made unique by the head of the evaluation's id.
    """
    if len(operands) > 1 and any(len(each) > 1 for each in operands):
        names = [name for name in (each.name for each in operands[0]) if _in_all(name, operands)]
        if not names:
            held = "; ".join(", ".join(each.name for each in group) for group in operands)
            raise UsageError(
                f"these evaluations have no target of one name ({held})",
                todo="Name one in each: evaluate#finetune evaluation:1a2b#dpo",
            )
        grouped = [[next(each for each in group if each.name == name) for group in operands] for name in names]
    else:
        grouped = [[each for group in operands for each in group]]
    systems: list[System] = []
    pairs: list[tuple[int, int]] = []
    for group in grouped:
        first = len(systems)
        systems += group
        pairs += [(first, first + place) for place in range(1, len(group))]
    if not pairs:
        raise UsageError("a comparison needs two systems", todo="tutelage compare evaluate#finetune evaluate#dpo")
    sources = [each.source for each in systems]
    if twice := next((each for each in sources if sources.count(each) > 1), None):
        raise UsageError(f"the same system stands twice: {twice}")
    return _distinct(systems), pairs


def _in_all(name: str, operands: Sequence[Sequence[System]]) -> bool:
    return all(any(each.name == name for each in group) for group in operands)


def _distinct(systems: Sequence[System]) -> list[System]:
    names = [each.name for each in systems]
    found = []
    for each in systems:
        head = each.source.partition("#")[0].partition(":")[2][:6]
        name = each.name if names.count(each.name) == 1 else f"{each.name} ({head})"
        found.append(replace(each, name=name))
    return found
