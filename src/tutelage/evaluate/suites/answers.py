"""From an answer to a figure, kind by kind. An answer that cannot be read is counted as wrong, and apart."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from tutelage.core import refs
from tutelage.core.errors import DataError
from tutelage.core.records import Example, Response
from tutelage.evaluate.suite import Outcome, golds_of
from tutelage.generate.generator import Scored
from tutelage.measure.text import exact_match, normalise_answer, sentence_chrf, token_f1
from tutelage.starter.rules import check as house_check

HEADLINE: Mapping[str, str] = {
    "choice": "accuracy",
    "classify": "accuracy",
    "extractive": "f1",
    "generate": "exact",
    "translate": "chrf",
    "rule": "kept",
}
"""The metric that `Result.value` holds, by kind."""

_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


class Figure(NamedTuple):
    """What one answer is worth."""

    value: float | None
    outcome: Outcome
    output: str
    scores: dict[str, float]
    reason: str = ""


def unknown(reason: str, output: str = "") -> Figure:
    """Not measured: no value, lower coverage."""
    return Figure(None, "unknown", output, {}, reason)


def extract(item: Example, text: str) -> str | None:
    """The answer within a text, as `tags.extract` says: `number` (the last one), `line` (the first one),
    `after:MARK`, or the whole text. None when there is none. Where the target is a number, `number` is the default."""
    how = str(item.tags.get("extract", ""))
    if not how and item.tags["kind"] == "generate" and _number(item.target or "") is not None:
        how = "number"
    if how == "number":
        found = _NUMBER.findall(text)
        return found[-1].replace(",", "").rstrip(".") if found else None
    if how.startswith("after:"):
        _, mark, rest = text.rpartition(how.removeprefix("after:"))
        return rest.strip() or None if mark else None
    text = text.strip()
    if how == "line":
        text = text.split("\n", 1)[0].strip()
    return text or None


def chosen(text: str, choices: Sequence[str]) -> str | None:
    """The one choice a text names: equal to it, or the only one it contains as whole words. Else None."""
    said = normalise_answer(text)
    equal = [choice for choice in choices if normalise_answer(choice) == said]
    if len(equal) == 1:
        return equal[0]
    held = [choice for choice in choices if f" {normalise_answer(choice)} " in f" {said} "]
    return held[0] if len(held) == 1 else None


def _number(text: str) -> float | None:
    found = _NUMBER.fullmatch(text.strip().rstrip("."))
    return float(found.group().replace(",", "")) if found else None


def _extractive(item: Example, answer: str) -> tuple[float, dict[str, float]]:
    golds = golds_of(item)
    f1 = token_f1(answer, golds)
    return f1, {"f1": f1, "exact": exact_match(answer, golds)}


def _generate(item: Example, answer: str) -> tuple[float, dict[str, float]]:
    golds = golds_of(item)
    value = exact_match(answer, golds)
    number = _number(answer)
    if not value and number is not None:
        value = float(any(number == _number(gold) for gold in golds))
    return value, {"exact": value, "f1": token_f1(answer, golds)}


def _translate(item: Example, answer: str) -> tuple[float, dict[str, float]]:
    golds = golds_of(item)
    value = sentence_chrf(answer, golds) / 100
    return value, {"chrf": value, "exact": exact_match(answer, golds)}


_SCORERS: Mapping[str, Callable[[Example, str], tuple[float, dict[str, float]]]] = {
    "extractive": _extractive,
    "generate": _generate,
    "translate": _translate,
}


def checker(item: Example) -> Callable[[str, Example, str], str]:
    """The program that checks an item's rule. Only tutelage's own may be named in data: data never brings code."""
    path = item.tags.get("check")
    if path is not None and not str(path).startswith("tutelage."):
        raise DataError(f"a rule check must be one of tutelage's own, found {path!r}", key="tags.check")
    if path is None:
        return house_check
    found: Callable[[str, Example, str], str] = refs.load(str(path))
    return found


def score(item: Example, response: Response) -> Figure:
    """The figure of a generated answer to an item of any kind but `choice`."""
    kind = str(item.tags["kind"])
    text = response.message.content
    if response.finish == "error":
        return unknown("the generator failed", text)
    blocked = response.finish == "blocked"
    if kind == "rule":
        kept = float(blocked or checker(item)(str(item.tags.get("rule", "")), item, text) == "kept")
        scores = {"kept": kept}
        if golds_of(item):
            scores["right"] = 0.0 if blocked else exact_match(text, golds_of(item))
        return Figure(kept, "blocked" if blocked else "answered", text, scores)
    if blocked:
        return Figure(0.0, "blocked", text, {name: 0.0 for name in (HEADLINE[kind], "exact")})
    if kind == "classify":
        label = chosen(text, item.choices) if item.choices else (text.strip() or None)
        if label is None:
            return Figure(0.0, "unextracted", text, {"accuracy": 0.0})
        value = exact_match(label, golds_of(item))
        return Figure(value, "answered", label, {"accuracy": value})
    answer = extract(item, text)
    if answer is None:
        return Figure(0.0, "unextracted", text, {HEADLINE[kind]: 0.0, "exact": 0.0})
    value, scores = _SCORERS[kind](item, answer)
    return Figure(value, "answered", answer, scores)


def pick(item: Example, scored: Sequence[Scored]) -> Figure:
    """The figure of a multiple-choice item from the log-likelihood of each choice (nats).

    `accuracy` takes the likeliest choice; `accuracy_per_character` divides by its length first. `confidence` is the
    chosen one's share of the probability of all choices. An exact tie is worth one over the number of tied choices.
    """
    totals = [each.logprob for each in scored]
    if len(totals) != len(item.choices) or not all(math.isfinite(total) for total in totals):
        return unknown("a choice has no finite log-likelihood")
    gold = item.choices.index(item.target) if item.target in item.choices else -1
    rates = [each.logprob / max(1, each.characters) for each in scored]

    def right(values: Sequence[float]) -> float:
        best = [place for place, value in enumerate(values) if value == max(values)]
        return 1 / len(best) if gold in best else 0.0

    top = max(totals)
    weights = [math.exp(total - top) for total in totals]
    scores = {
        "accuracy": right(totals),
        "accuracy_per_character": right(rates),
        "confidence": max(weights) / sum(weights),
        "gold_logprob": totals[gold],
    }
    return Figure(scores["accuracy"], "answered", item.choices[totals.index(top)], scores)
