"""Multiple choice by log-likelihood: every way to read it from one pass, so that none is chosen after the fact.

Raw (the likeliest), per token, per character and per byte (a longer choice is no less likely for its length), PMI (how
much the question raises a choice over an empty context; Holtzman et al. 2021), the share of probability that the right
choices hold, and, where the choices stand in the prompt under letters, the average over rotations of their order.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from string import ascii_uppercase

from tutelage.core.records import Example, Message, digest
from tutelage.evaluate.suite import golds_of, item_id
from tutelage.evaluate.suites.figure import Figure, unknown
from tutelage.evaluate.suites.stereotypes import takes_side
from tutelage.generate.generator import Scored, is_text

Told = Mapping[str, "list[Scored] | str"]
"""What a generator said to each request, by its id; a text says why it said nothing."""


def lettered(item: Example, turn: int = 0) -> Example:
    """The item with its choices under the prompt as A, B, ..., moved on by `turn` places; the letters are its choices.

    Choice number p stands at place (p + turn) modulo their number.
    """
    count = len(item.choices)
    letters = tuple(ascii_uppercase[:count])
    listed = [item.choices[(place - turn) % count] for place in range(count)]
    last = item.messages[-1]
    text = "\n".join([last.content, *(f"{letter}. {choice}" for letter, choice in zip(letters, listed, strict=True))])
    text += "\nAnswer:" + (" " if last.role == "text" else "")
    messages = (*item.messages[:-1], last.model_copy(update={"content": text}))
    target = None if item.target is None else letters[(item.choices.index(item.target) + turn) % count]
    name = item_id(item) if not turn else f"{item_id(item)}~turn{turn}"
    return item.model_copy(
        update={"messages": messages, "choices": letters, "target": target, "tags": item.tags | {"id": name}}
    )


def unconditional(item: Example) -> Example:
    """The same choices after an empty context (or the item's own `unconditional` one), for PMI. Items with equal
    choices share it."""
    context = str(item.tags.get("unconditional") or "")
    message = Message(role="text" if is_text(item) else "user", content=context)
    name = "pmi-" + digest([message.role, context, list(item.choices)])[:16]
    return Example(messages=(message,), choices=item.choices, tags={"id": name, "kind": "choice"})


def requests(item: Example) -> list[Example]:
    """All that is asked for one item, the item itself first."""
    if item.tags.get("options") == "letters":
        return [lettered(item, turn) for turn in range(len(item.choices))]
    return [item, unconditional(item)]


def read(item: Example, told: Told) -> Figure:
    """The figure of an item from what was said to its requests."""
    said = [told[item_id(each)] for each in requests(item)]
    for each in said:
        if isinstance(each, str) and (each is said[0] or item.tags.get("options") == "letters"):
            return unknown(each)
    scored = [each for each in said if not isinstance(each, str)]
    if item.tags.get("options") == "letters":
        return _turned(item, scored)
    return pick(item, scored[0], scored[1] if len(scored) > 1 else None)


def pick(item: Example, scored: Sequence[Scored], empty: Sequence[Scored] | None = None) -> Figure:
    """The figure of a multiple-choice item from the log-likelihood of each choice (nats), and after an `empty` context.

    `accuracy` takes the likeliest choice; `accuracy_per_token`, `_per_character`, `_per_byte` divide by its length
    first; `accuracy_pmi` subtracts what it has without the question. `probability` is the right choices' share of the
    probability of all, `confidence` the chosen one's. An exact tie is worth the share of right ones among the tied.
    """
    totals = [each.logprob for each in scored]
    if len(totals) != len(item.choices) or not all(math.isfinite(total) for total in totals):
        return unknown("a choice has no finite log-likelihood")
    golds = _golds(item)
    lengths = {
        "token": [each.tokens for each in scored],
        "character": [each.characters for each in scored],
        "byte": [len(choice.encode()) for choice in item.choices],
    }
    shares = _shares(totals)
    scores = {"accuracy": _right(totals, golds)}
    for unit, sizes in lengths.items():
        scores[f"accuracy_per_{unit}"] = _right(
            [total / max(1, size) for total, size in zip(totals, sizes, strict=True)], golds
        )
    if empty is not None and len(empty) == len(totals) and all(math.isfinite(each.logprob) for each in empty):
        scores["accuracy_pmi"] = _right([a - b.logprob for a, b in zip(totals, empty, strict=True)], golds)
    scores |= {
        "probability": sum(shares[place] for place in golds),
        "confidence": max(shares),
        "gold_logprob": totals[golds[0]] if golds else totals[-1],
    }
    return _figure(item, totals, scores)


def _turned(item: Example, turns: Sequence[Sequence[Scored]]) -> Figure:
    """From letters under every rotation: the item's own order is the raw figure; `accuracy_order_averaged` chooses by
    the mean share of each choice over all places, `order_consistency` is the share of orders that choose as the
    commonest."""
    count = len(item.choices)
    table: list[list[float]] = []
    for turn, scored in enumerate(turns):
        logs = [each.logprob for each in scored]
        if len(logs) != count or not all(math.isfinite(log) for log in logs):
            return unknown("a letter has no finite log-likelihood")
        table.append([logs[(place + turn) % count] for place in range(count)])
    golds, shares = _golds(item), [_shares(row) for row in table]
    # fsum: what is equal but for the order of adding stays equal, so that a tie is one
    average = [math.fsum(row[place] for row in shares) / count for place in range(count)]
    said = [row.index(max(row)) for row in table]
    scores = {
        "accuracy": _right(table[0], golds),
        "accuracy_order_averaged": _right(average, golds),
        "accuracy_over_orders": sum(_right(row, golds) for row in table) / count,
        "order_consistency": max(said.count(place) for place in said) / count,
        "probability": sum(average[place] for place in golds),
        "confidence": max(shares[0]),
        "gold_logprob": table[0][golds[0]] if golds else table[0][-1],
    }
    return _figure(item, table[0], scores)


def _figure(item: Example, values: Sequence[float], scores: dict[str, float]) -> Figure:
    output = item.choices[values.index(max(values))]
    side = takes_side(item, output) if values.count(max(values)) == 1 else None
    return Figure(
        scores["accuracy"], "answered", output, scores if side is None else scores | {"stereotyped": float(side)}
    )


def _golds(item: Example) -> list[int]:
    right = golds_of(item)
    return [place for place, choice in enumerate(item.choices) if choice in right]


def _right(values: Sequence[float], golds: Sequence[int]) -> float:
    best = [place for place, value in enumerate(values) if value == max(values)]
    return sum(place in golds for place in best) / len(best)


def _shares(logs: Sequence[float]) -> list[float]:
    top = max(logs)
    weights = [math.exp(log - top) for log in logs]
    whole = math.fsum(weights)
    return [weight / whole for weight in weights]
