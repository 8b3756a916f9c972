"""Items to examine a model on, checked before anything runs; and the row that every examination writes.

An item is an Example without its answer: messages, `target`, perhaps `choices`, and tags
{id, suite, kind, cell, cluster, slices, ...}. A file of one's own needs messages, a target and a kind; what is missing
beside them is filled in (its own cluster, no cell).
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from tutelage.core.errors import DataError
from tutelage.core.records import Example, Record, digest, read_jsonl

Outcome = Literal["answered", "unextracted", "refused", "incoherent", "harmless", "harmful", "blocked", "unknown"]
"""What an answer was, beside its value. `unextracted`: no answer could be read from the text (counted as wrong, and
apart). `refused`, `incoherent`, `harmless`, `harmful`: how a red-team request ended. `blocked`: withheld by a guard.
`unknown`: not measured (too long, an endpoint failed, a judge without an opinion); has no value, lowers coverage."""

MANY = 16
"""Most labels that a classification may have to be answered in words."""
KINDS = ("choice", "extractive", "generate", "translate", "classify", "rule")
"""Kinds that `evaluate` examines."""
OTHER_KINDS = ("goal", "benign", "pair", "audit")
"""Kinds that a corpus may hold for the red team and the bias audit."""


class Result(Record):
    """One item, examined: a row of `results.jsonl` of evaluations and red-team runs."""

    target: str
    """The model as the recipe calls it: `finetune`, `rlhf@grpo`, `bundle`."""
    target_id: str = ""
    suite: str
    cell: str | None = None
    item: str
    cluster: str
    kind: str
    metric: str
    """What `value` is, 0 to 1, more is better (for attacks: 1 = the attack succeeded)."""
    value: float | None = None
    outcome: Outcome
    reason: str = ""
    """Why there is no value."""
    output: str = ""
    scores: dict[str, float] = Field(default_factory=dict)
    """Further figures of the same answer."""
    slices: dict[str, str] = Field(default_factory=dict)
    attack: str | None = None
    """The attack family; `direct` = the plain request."""
    rule: str | None = None
    """The house rule or category the request aims at."""
    guarded: bool | None = None
    turns: int | None = None


class Suite:
    """Items of one name."""

    def __init__(self, name: str, items: Sequence[Example]) -> None:
        self.name, self.items = name, tuple(items)

    def __len__(self) -> int:
        return len(self.items)

    def cells(self) -> list[str | None]:
        """The cells in order; None is the suite without cells."""
        return sorted({cell_of(item) for item in self.items}, key=lambda cell: (cell is None, cell or ""))


def item_id(item: Example) -> str:
    """The item's own id."""
    return str(item.tags["id"])


def cell_of(item: Example) -> str | None:
    """Which kind of novelty the item examines, or None."""
    cell = item.tags.get("cell")
    return None if cell is None else str(cell)


def cluster_of(item: Example) -> str:
    """The group of items that are not independent of each other; an item without one stands for itself."""
    return str(item.tags.get("cluster") or item.tags["id"])


def slices_of(item: Example) -> dict[str, str]:
    """Named groups the item belongs to (source, gender, native language, ...)."""
    return {str(name): str(value) for name, value in dict(item.tags.get("slices") or {}).items()}


def golds_of(item: Example) -> list[str]:
    """All answers that count as right: the target (or `tags.target`) and `tags.answers`."""
    target = item.target if item.target is not None else item.tags.get("target")
    found = [] if target is None else [str(target)]
    return found + [str(each) for each in item.tags.get("answers", ()) if str(each) not in found]


def prompt_of(item: Example) -> str:
    """The last user message: what TF-IDF baselines read."""
    return next((message.content for message in reversed(item.messages) if message.role in ("user", "text")), "")


def check(item: Example, kinds: Iterable[str] = KINDS) -> str | None:
    """What is wrong with an item, as (key: message), or None."""
    kind = item.tags.get("kind")
    allowed = tuple(kinds)
    if kind not in allowed:
        return f"tags.kind: must be one of {', '.join(allowed)}, found {kind!r}"
    if not item.messages:
        return "messages: an item needs at least one message"
    if item.messages[-1].role == "assistant":
        return "messages: an item ends with the question; its answer belongs in `target`"
    if kind in ("choice", "pair") and len(set(item.choices)) < 2:
        return "choices: needs at least two different ones"
    if kind in ("extractive", "generate", "translate", "classify", "choice") and item.target is None:
        return f"target: an item of kind {kind} needs one"
    if kind in ("choice", "classify") and item.choices and item.target not in item.choices:
        return f"target: {item.target!r} is not among the choices"
    return None


def _filled(item: Example, name: str) -> Example:
    tags = dict(item.tags)
    tags.setdefault("suite", name)
    if "kind" not in tags:
        tags["kind"] = "choice" if item.choices else "generate"
    if "id" not in tags:
        tags["id"] = digest(item.model_copy(update={"tags": {}}))[:16]
    return item.model_copy(update={"tags": tags})


def load(path: Path) -> list[Suite]:
    """Suites from a JSON-lines file of one's own. Raises DataError naming file, row and key; NotFound."""
    items: list[Example] = []
    rows: dict[str, int] = {}
    for row, example in enumerate(read_jsonl(path, Example), 1):
        item = _filled(example, path.stem)
        fault = check(item, (*KINDS, *OTHER_KINDS))
        if fault:
            key, _, message = fault.partition(": ")
            raise DataError(message, file=path, row=row, key=key)
        name = item_id(item)
        if name in rows:
            raise DataError(f"the id {name!r} stands in row {rows[name]} already", file=path, row=row, key="tags.id")
        rows[name] = row
        items.append(item)
    if not items:
        raise DataError("no items in this file", file=path)
    return suites(items)


def parted(items: Iterable[Example]) -> list[Example]:
    """The items with a cell of its own for every kind, where a suite mixes kinds within one cell: kinds have different
    metrics and no common mean."""
    every = list(items)
    kinds: dict[tuple[str, str | None], set[str]] = {}
    for item in every:
        kinds.setdefault((str(item.tags["suite"]), cell_of(item)), set()).add(str(item.tags["kind"]))

    def placed(item: Example) -> Example:
        cell = cell_of(item)
        if len(kinds[str(item.tags["suite"]), cell]) == 1:
            return item
        named = str(item.tags["kind"]) if cell is None else f"{cell} {item.tags['kind']}"
        return item.model_copy(update={"tags": item.tags | {"cell": named}})

    return [placed(item) for item in every]


def suites(items: Iterable[Example]) -> list[Suite]:
    """Items grouped by suite, in the order of their names; no cell holds two kinds."""
    groups: dict[str, list[Example]] = {}
    for item in parted(items):
        groups.setdefault(str(item.tags["suite"]), []).append(item)
    return [Suite(name, groups[name]) for name in sorted(groups)]


def rank(seed: int, name: str) -> str:
    """A fixed pseudo-random order of ids: the same on every machine, unmoved by other items."""
    return hashlib.sha256(f"{seed}:{name}".encode()).hexdigest()


def sample(items: Sequence[Example], count: int, seed: int = 0) -> list[Example]:
    """At most `count` items, spread over clusters: one of each before a second of any. All when count is 0."""
    if count <= 0 or len(items) <= count:
        return sorted(items, key=item_id)
    groups: dict[str, list[Example]] = {}
    for item in items:
        groups.setdefault(cluster_of(item), []).append(item)
    order: list[tuple[int, str, Example]] = []
    for members in groups.values():
        members.sort(key=lambda item: rank(seed, item_id(item)))
        order += [(turn, rank(seed, item_id(item)), item) for turn, item in enumerate(members)]
    order.sort(key=lambda entry: entry[:2])
    return sorted((item for _, _, item in order[:count]), key=item_id)


def labelled(suite: Suite) -> Suite:
    """A suite whose choices are one short set of labels for all its items, as a classification to be answered in
    words: what people see is what the model says, not which label it finds likelier. Others stay as they are."""
    sets = {item.choices for item in suite.items}
    if len(sets) != 1 or any(item.tags["kind"] != "choice" for item in suite.items):
        return suite
    labels = next(iter(sets))
    if len(labels) > MANY or any(len(label.split()) > 2 for label in labels):
        return suite
    return Suite(
        suite.name, [each.model_copy(update={"tags": each.tags | {"kind": "classify"}}) for each in suite.items]
    )


def faults(items: Iterable[Example]) -> dict[str, int]:
    """What is wrong with items of the kinds that are examined, and how often."""
    return dict(
        sorted(Counter(found for item in items if item.tags.get("kind") in KINDS if (found := check(item))).items())
    )


def select(
    items: Iterable[Example],
    count: int,
    *,
    of: Mapping[str, int] | None = None,
    only: Sequence[str] = (),
    seed: int = 0,
) -> list[Suite]:
    """The items of a run: at most `count` per suite and cell (`of` overrides by suite; 0 = all), `only` some suites.

    Items that could not be scored (see `faults`) are left out. Raises DataError where an id stands twice.
    """
    chosen: list[Suite] = []
    fit = [item for item in items if item.tags.get("kind") in KINDS and check(item) is None]
    seen: set[str] = set()
    for item in fit:
        if item_id(item) in seen:
            raise DataError(f"the id {item_id(item)!r} stands twice", key="tags.id")
        seen.add(item_id(item))
    for suite in suites(fit):
        if only and suite.name not in only:
            continue
        limit = (of or {}).get(suite.name, count)
        picked: list[Example] = []
        for cell in suite.cells():
            picked += sample([item for item in suite.items if cell_of(item) == cell], limit, seed)
        chosen.append(labelled(Suite(suite.name, picked)))
    return chosen


def row(item: Example, **fields: Any) -> Result:
    """A Result of an item, with what the item itself says filled in."""
    return Result(
        suite=str(item.tags["suite"]),
        cell=cell_of(item),
        item=item_id(item),
        cluster=cluster_of(item),
        kind=str(item.tags["kind"]),
        slices=slices_of(item),
        **fields,
    )
