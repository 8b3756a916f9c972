"""From an answer to a figure, kind by kind. An answer that cannot be read is counted as wrong, and apart."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction

from tutelage.core import refs
from tutelage.core.errors import DataError
from tutelage.core.records import Example, Response
from tutelage.evaluate.suite import golds_of, prompt_of
from tutelage.evaluate.suites.figure import Figure, unknown
from tutelage.evaluate.suites.overlap import figures
from tutelage.measure.text import exact_match, normalise_answer, sentence_chrf, token_f1
from tutelage.starter.rules import check as house_check
from tutelage.text.constraints import verify
from tutelage.text.quantity import Quantity, last, quantities, same

_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


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
    said = normalise_answer(text, "und")  # no articles to strike: `A` is a label too
    equal = [choice for choice in choices if normalise_answer(choice, "und") == said]
    if len(equal) == 1:
        return equal[0]
    held = [choice for choice in choices if f" {normalise_answer(choice, 'und')} " in f" {said} "]
    return held[0] if len(held) == 1 else None


def _number(text: str) -> float | None:
    found = _NUMBER.fullmatch(text.strip().rstrip("."))
    return float(found.group().replace(",", "")) if found else None


def language_of(item: Example) -> str:
    """The language of the right answer: its tag, or the slice `language`, or English."""
    return str(item.tags.get("language") or (item.tags.get("slices") or {}).get("language") or "en")


def _extractive(item: Example, answer: str) -> tuple[float, dict[str, float]]:
    golds, language = golds_of(item), language_of(item)
    f1 = token_f1(answer, golds, language)
    return f1, {"f1": f1, "exact": exact_match(answer, golds, language)}


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
    return value, {"chrf": value, "exact": exact_match(answer, golds, language_of(item))}


def _summarise(item: Example, answer: str) -> tuple[float, dict[str, float]]:
    golds = golds_of(item)
    scores = figures(answer, golds, str(item.tags.get("document") or prompt_of(item)))
    return scores["rouge_l"], scores | {"chrf": sentence_chrf(answer, golds) / 100}


_SCORERS: Mapping[str, Callable[[Example, str], tuple[float, dict[str, float]]]] = {
    "extractive": _extractive,
    "generate": _generate,
    "translate": _translate,
    "summarise": _summarise,
}

_MARKS = (
    re.compile(r"####\s*([^\n]+)"),  # GSM8K
    re.compile(r"\\boxed\{([^{}]+)\}"),
    re.compile(r"(?:answer|result|total)\s*(?:is|=|:)\s*([^\n]+)", re.IGNORECASE),
)


def final_quantity(item: Example, text: str) -> tuple[Quantity | None, bool]:
    """The number that a worked solution ends with, and whether it was marked as the answer (`#### 12`, a box, "the
    answer is"); else the last number of the text."""
    if item.tags.get("extract"):
        said = extract(item, text)
        return last(quantities(said)) if said else None, True
    for mark in _MARKS:
        found = [numbers for part in mark.findall(text) if (numbers := quantities(part))]
        if found:
            return found[-1][0], True
    return last(quantities(text)), False


def _arithmetic(item: Example, text: str) -> Figure:
    said, marked = final_quantity(item, text)
    if said is None:
        return Figure(0.0, "unextracted", text, {"exact": 0.0, "marked": 0.0})
    tolerance, scores = float(item.tags.get("tolerance") or 0.0), {"exact": 0.0, "marked": float(marked)}
    for gold in golds_of(item):
        target = last(quantities(f"{gold} {item.tags.get('unit') or ''}".strip()))
        if target is None:
            continue
        equal, units = same(said, target, tolerance)
        scores["exact"] = max(scores["exact"], float(equal and units))
        if target.unit and said.unit:
            scores["unit"] = max(scores.get("unit", 0.0), float(units))
    shown = f"{_digits(said.number)} {said.unit}".strip()
    return Figure(scores["exact"], "answered", shown, scores)


def _digits(number: Fraction) -> str:
    """A number as figures show it; a model may say one that no float holds."""
    try:
        return f"{float(number):.12g}"
    except OverflowError:
        return "more than 1e308"


def _instruct(item: Example, text: str) -> Figure:
    """Strict and loose, of the whole prompt and of each constraint (`CONSTRAINT TYPE/number/strict`). No value where
    every constraint that can be decided is kept and one cannot be."""
    scores: dict[str, float] = {}
    whole: dict[str, list[bool | None]] = {"strict": [], "loose": []}
    for number, each in enumerate(verify(item.tags["constraints"], text, prompt_of(item))):
        for how, kept in (("strict", each.strict), ("loose", each.loose)):
            whole[how].append(kept)
            if kept is not None:
                scores[f"{each.type}/{number}/{how}"] = float(kept)
    for how, every in whole.items():
        if False in every or None not in every:
            scores[how] = float(all(every))
    if "strict" not in scores:
        return Figure(None, "unknown", text, {}, "a constraint can be neither kept nor broken by this answer")
    return Figure(scores["strict"], "answered" if text.strip() else "unextracted", text, scores)


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
    """The figure of a generated answer to an item of any kind but choice, perplexity and judged."""
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
        return Figure(0.0, "blocked", text, {name: 0.0 for name in _NOTHING[kind]})
    if kind == "arithmetic":
        return _arithmetic(item, text)
    if kind == "instruct":
        return _instruct(item, text)
    if kind == "classify":
        label = chosen(text, item.choices) if item.choices else (text.strip() or None)
        if label is None:
            return Figure(0.0, "unextracted", text, {"accuracy": 0.0})
        golds = golds_of(item)
        value = float(label in golds) if item.choices else exact_match(label, golds, language_of(item))
        return Figure(value, "answered", label, {"accuracy": value})
    answer = extract(item, text)
    if answer is None:
        return Figure(0.0, "unextracted", text, {name: 0.0 for name in _NOTHING[kind]})
    value, scores = _SCORERS[kind](item, answer)
    return Figure(value, "answered", answer, scores)


_NOTHING: Mapping[str, tuple[str, ...]] = {
    "extractive": ("f1", "exact"),
    "generate": ("exact", "f1"),
    "arithmetic": ("exact",),
    "translate": ("chrf", "exact"),
    "classify": ("accuracy",),
    "instruct": ("strict", "loose"),
    "summarise": ("rouge_l", "rouge_l_summary", "chrf"),
}
"""What an answer that was withheld, or that holds none, scores 0 in."""
