"""Worked examples before the question: from a suite's own training rows or a fixed file, never the item or its cluster.

A draw is one order of the pool, fixed by seed and number. Every item takes its first examples from that order, so that
items differ in nothing else, and a prefix is shared by all whose cluster does not stand in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from string import ascii_uppercase

from tutelage.core.errors import DataError
from tutelage.core.records import Example, Message
from tutelage.evaluate.suite import cluster_of, golds_of, item_id, prompt_of, rank
from tutelage.evaluate.suites.choice import lettered
from tutelage.generate.generator import is_text


def answered(row: Example) -> tuple[Example, str] | None:
    """A row as question and right answer, None where it holds none: an item with its target, or a dialogue that ends
    with the assistant's word."""
    if row.messages and row.messages[-1].role == "assistant":
        return row.model_copy(update={"messages": row.messages[:-1]}), row.messages[-1].content
    golds = golds_of(row)
    return (row, golds[0]) if golds and row.messages else None


def drawn(pool: Sequence[Example], seed: int, draw: int) -> list[Example]:
    """The pool in the order of a draw."""
    return sorted(pool, key=lambda row: rank(seed, f"draw {draw}/{_name(row)}"))


def _start(item: Example, most: int = 60) -> str:
    """How an item begins, as its author knows it."""
    text = " ".join(item.messages[-1].content.split())
    return text if len(text) <= most else f"{text[:most]}…"


def shown(item: Example, order: Sequence[Example], count: int, of: Example | None = None) -> Example:
    """The item behind `count` examples from `order`, which leaves out the item itself, its cluster and equal questions.

    `of`: the item that this one is another form of, whose examples it stands behind. Raises DataError where too few are
    left.
    """
    chosen: list[tuple[Example, str]] = []
    whose = item if of is None else of
    letters = item.tags.get("options") == "letters"
    for row in order:
        if len(chosen) == count:
            break
        pair = answered(row)
        if pair is None or _name(row) == item_id(whose) or _same(whose, pair[0]):
            continue
        if letters and not (pair[0].choices and pair[1] in pair[0].choices):
            continue
        chosen.append(pair)
    if len(chosen) < count:
        raise DataError(
            f"{count} examples of the kind {whose.tags['kind']} were asked for, {len(chosen)} are left beside the item "
            f"{_start(whose)!r}",
            key="shots",
            todo="Mark more rows of that kind with `split: train`, or name a file that holds enough with --shots-from",
        )
    if letters:  # the examples are asked as the item is
        chosen = [(lettered(row), ascii_uppercase[row.choices.index(said)]) for row, said in chosen]
    return item.model_copy(update={"messages": _before(item, chosen)})


def _before(item: Example, chosen: Sequence[tuple[Example, str]]) -> tuple[Message, ...]:
    if is_text(item):
        parts = [f"{prompt_of(row).rstrip()} {said}" for row, said in chosen]
        return (Message(role="text", content="\n\n".join([*parts, "".join(each.content for each in item.messages)])),)
    head = tuple(each for each in item.messages if each.role == "system")
    turns: list[Message] = []
    for row, said in chosen:
        turns += [
            each.model_copy(update={"role": "user" if each.role == "text" else each.role})
            for each in row.messages
            if each.role != "system"
        ]
        turns.append(Message(role="assistant", content=said))
    return (*head, *turns, *(each for each in item.messages if each.role != "system"))


def _name(row: Example) -> str:
    return str(row.tags.get("id") or prompt_of(row))


def _same(item: Example, row: Example) -> bool:
    """Whether a row may give the item away: its cluster within the suite, or the very question."""
    if " ".join(prompt_of(item).lower().split()) == " ".join(prompt_of(row).lower().split()):
        return True
    return bool(row.tags.get("id") or row.tags.get("cluster")) and cluster_of(row) == cluster_of(item)


def raw(item: Example) -> Example:
    """The item as verbatim text, outside any chat template: a line for each turn, an empty one between pairs."""
    if is_text(item):
        return item
    text = ""
    for message in item.messages:
        text += message.content.rstrip() + ("\n\n" if message.role in ("assistant", "system") else "\n")
    stop = item.tags.get("stop") or (["\n"] if item.tags.get("kind") in ONE_LINE else ["\n\n"])
    return item.model_copy(
        update={"messages": (Message(role="text", content=text),), "tags": item.tags | {"stop": list(stop)}}
    )


ONE_LINE = ("extractive", "generate", "translate", "classify")
"""Kinds whose answer outside a template ends with its line."""


def templated(item: Example) -> Example:
    """The item as a conversation: verbatim text becomes the user's turn."""
    if not is_text(item):
        return item
    text = "".join(each.content for each in item.messages).rstrip()
    return item.model_copy(update={"messages": (Message(role="user", content=text),)})
