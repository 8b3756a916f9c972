"""Items to examine a model on, checked before anything runs; and the row that every examination writes.

An item is an Example without its answer: messages, `target`, perhaps `choices`, and what `item.Item` describes as tags.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from tutelage.core.config import nearest
from tutelage.core.errors import DataError
from tutelage.core.records import Example, Record
from tutelage.evaluate.item import KEYS_OF, KINDS, OTHER_KINDS, WITH_TARGET, read_items
from tutelage.text.quantity import number_of

Outcome = Literal["answered", "unextracted", "refused", "incoherent", "harmless", "harmful", "blocked", "unknown"]
"""What an answer was, beside its value. `unextracted`: no answer could be read from the text (counted as wrong, and
apart). `refused`, `incoherent`, `harmless`, `harmful`: how a red-team request ended. `blocked`: withheld by a guard.
`unknown`: not measured (too long, an endpoint failed, a judge without an opinion); has no value, lowers coverage."""

MANY = 16
"""Most labels that a classification may have to be answered in words."""


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
    """What `value` is: 0 to 1, more is better (for attacks: 1 = it succeeded); of bits per byte less is better."""
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
    kind, tags = item.tags.get("kind"), item.tags
    allowed = tuple(kinds)
    if kind not in allowed:
        near = nearest(str(kind), allowed)
        hint = f"; did you mean {near!r}?" if near else ""
        return f"kind: must be one of {', '.join(allowed)}, found {kind!r}{hint}"
    if not item.messages:
        return "messages: an item needs at least one message"
    if item.messages[-1].role == "assistant":
        return "messages: an item ends with the question; its answer belongs in `target`"
    stray = next((key for key, owner in KEYS_OF.items() if kind in KINDS and kind != owner and tags.get(key)), None)
    if stray:
        return f"{stray}: belongs to items of kind {KEYS_OF[stray]}, this one is of kind {kind}"
    if kind in ("choice", "pair") and (len(set(item.choices)) < 2 or len(set(item.choices)) < len(item.choices)):
        return "choices: needs at least two, all different"
    if any(not choice.strip() for choice in item.choices):
        return "choices: an empty choice has no likelihood"
    if kind in WITH_TARGET and (item.target is None or not item.target.strip()):
        return f"target: an item of kind {kind} needs one"
    if kind in ("choice", "classify") and item.choices and item.target not in item.choices:
        near = nearest(str(item.target), item.choices)
        hint = f"; did you mean {near!r}?" if near else ""
        return f"target: {item.target!r} is not among the choices{hint}"
    if kind == "arithmetic" and number_of(str(item.target)) is None:
        return f"target: an item of kind arithmetic needs a number, found {item.target!r}"
    if kind == "instruct" and not tags.get("constraints"):
        return "constraints: an item of kind instruct needs at least one"
    if kind == "perplexity" and (len(item.messages) > 1 or item.messages[0].role != "text"):
        return "text: an item of kind perplexity is one `text`"
    if kind == "judged" and (tags.get("human") is None) != (not tags.get("answer")):
        return "human: an answer that people judged needs `answer` and `human`"
    if not all(0 <= each <= 1 for each in people_of(item)):
        return "human: runs from 0 to 1"
    if tags.get("groups") and len(tags["groups"]) != len(item.choices):
        return f"groups: {len(item.choices)} choices need as many groups, found {len(tags['groups'])}"
    if tags.get("options") == "letters" and len(item.choices) > 26:
        return "options: there are letters for 26 choices"
    return None


def people_of(item: Example) -> list[float]:
    """What people gave the answer that an item of kind `judged` brings, 0 to 1."""
    human = item.tags.get("human")
    if human is None:
        return []
    return [float(human)] if isinstance(human, int | float) else [float(each) for each in human]


def asked(item: Example) -> bool:
    """Whether an item is put to a model: of an examined kind, not for training, no answer that people judged."""
    return item.tags.get("kind") in KINDS and item.tags.get("split") != "train" and not item.tags.get("answer")


def load(path: Path) -> list[Suite]:
    """Suites from a file of one's own (see `item.Item`). Raises DataError naming file, row and key; NotFound."""
    items: list[Example] = []
    rows: dict[str, int] = {}
    for row, item in read_items(path):
        fault = check(item, (*KINDS, *OTHER_KINDS))
        if fault:
            key, _, message = fault.partition(": ")
            raise DataError(message, file=path, row=row, key=key)
        name = item_id(item)
        if name in rows:
            same = "the same id" if item.tags.get("id") == name else "the same row"
            raise DataError(f"{same} {name!r} stands in row {rows[name]} already", file=path, row=row, key="id")
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
    return dict(sorted(Counter(found for item in items if asked(item) if (found := check(item))).items()))


def select(
    items: Iterable[Example],
    count: int,
    *,
    of: Mapping[str, int] | None = None,
    only: Sequence[str] = (),
    seed: int = 0,
    label: bool = True,
) -> list[Suite]:
    """The items of a run: at most `count` per suite and cell (`of` overrides by suite; 0 = all), `only` some suites.

    Items that could not be scored (see `faults`) and those that are not put to a model (`asked`) are left out. With
    `label` a suite of one short set of choices is answered in words (see `labelled`).

    Raises DataError where an id stands twice.
    """
    chosen: list[Suite] = []
    fit = [item for item in items if asked(item) and check(item) is None]
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
        chosen.append(labelled(Suite(suite.name, picked)) if label else Suite(suite.name, picked))
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
