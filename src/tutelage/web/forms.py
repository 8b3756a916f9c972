"""A task as a form that keys can fill, and the form that comes back as an answer.

Field names: `tier:NO`, `score:QUESTION:NO`, `value:QUESTION`, `flag:NO`, `all_bad`, `rewrite`; NO is the candidate's
number, not its place on the screen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NamedTuple

from tutelage.feedback.api import Answer, Item, Question
from tutelage.feedback.wire import RANKED
from tutelage.report.tables import words
from tutelage.store.answers import Annotation

KEYS: Final = "123456789abcdefghilmopqruvwyz"
"""Keys of choices, in order: digits, then letters that do nothing else on the page."""

UNRANKABLE: Final = "x"

HINTS: Final[Mapping[str, str]] = {
    "1–9": "answer the marked row and go to the next",
    "↑ ↓": "mark another row",
    "Backspace": "clear the marked row",
    "Enter": "send and go on",
    "s": "skip or report",
    "t": "write in the text field; Escape leaves it",
    "?": "show or hide this",
}


class Point(NamedTuple):
    """One thing that can be chosen in a row."""

    value: str
    label: str
    key: str


@dataclass(frozen=True)
class Row:
    """One question as it stands on the page."""

    name: str
    label: str
    kind: Literal["one", "many", "text"]
    points: Sequence[Point] = ()
    anchors: Sequence[str] = ()
    required: bool = True
    value: str = ""


@dataclass(frozen=True)
class Candidate:
    """One thing to be judged as it stands on the page: the letter is its place, the number its name."""

    no: int
    letter: str
    content: str
    rows: Sequence[Row]
    flags: Sequence[str] = ()


@dataclass(frozen=True)
class View:
    """Everything the page of a task shows beside the conversation."""

    title: str
    candidates: Sequence[Candidate]
    rows: Sequence[Row]
    all_bad: bool
    keys: Sequence[tuple[str, str]] = field(default_factory=lambda: tuple(HINTS.items()))


TITLES: Final[Mapping[str, str]] = {
    "ranking": "Rank the answers",
    "scoring": "Score the answers",
    "ranking+scoring": "Rank and score the answers",
    "pair": "Which answer is better?",
    "tag": "Tag the text",
    "review": "Should this have been served?",
    "rewrite": "Write a better answer",
    "dialogue": "Which answer shall it go on from?",
}
FLAGS: Final = ("harmful", "private data", "wrong language", "broken text")


def _scale(question: Question) -> tuple[list[Point], list[str]]:
    """The points of a scale with their keys, and the words at its ends (or at every point)."""
    low, high = question.scale
    steps = [low + at for at in range(int(high - low) + 1)] if high - low <= 20 else [low, (low + high) / 2, high]
    points = [Point(f"{value:g}", f"{value:g}", f"{value:g}" if 0 <= value <= 9 else "") for value in steps]
    anchors = [f"{place}: {text}" for place, text in question.anchors.items()]
    return points, anchors


def row_of(question: Question, name: str) -> Row:
    """A question as a row."""
    label = question.prompt or words(question.key)
    label = f"{label[:1].upper()}{label[1:]}"
    if question.kind == "text":
        return Row(name, label, "text", required=question.required)
    if question.kind == "boolean":
        points = [Point("1", "yes", "1"), Point("0", "no", "2")]
        return Row(name, label, "one", points, required=question.required)
    if question.kind == "scale":
        points, anchors = _scale(question)
        return Row(name, label, "one", points, anchors, required=question.required)
    keys = [*KEYS, *[""] * len(question.choices)]
    points = [Point(choice, words(choice), key) for choice, key in zip(question.choices, keys, strict=False)]
    kind: Literal["one", "many"] = "one" if question.kind == "choice" else "many"
    return Row(name, label, kind, points, required=question.required and kind == "one")


def view(item: Item) -> View:
    """The page of a task. Candidates keep the order in which they are to be shown."""
    ranked = item.kind in RANKED
    places = len(item.candidates)
    candidates = []
    for at, shown in enumerate(item.candidates):
        letter = chr(ord("A") + at) if at < 26 else str(at + 1)
        rows: list[Row] = []
        if ranked:
            points = [Point(str(tier), str(tier), str(tier) if tier < 10 else "") for tier in range(1, places + 1)]
            points.append(Point(UNRANKABLE, "not rankable", "0"))
            rows.append(Row(f"tier:{shown.no}", "Rank (1 is best, same number = tie)", "one", points))
        if item.kind not in ("ranking", "pair", "dialogue"):
            rows += [row_of(q, f"score:{q.key}:{shown.no}") for q in item.questions if q.per_candidate]
        candidates.append(Candidate(shown.no, letter, shown.content, rows, FLAGS if ranked else ()))
    whole = [row_of(q, f"value:{q.key}") for q in item.questions if not q.per_candidate]
    if item.kind == "rewrite":
        whole.append(Row("rewrite", "Your answer", "text", value=item.candidates[0].content if places else ""))
    if item.kind == "dialogue":
        whole.append(Row("rewrite", "A better answer, from which it goes on", "text", required=False))
    keys = dict(HINTS)
    if ranked:
        keys = {"1–9": "rank the marked answer; the same digit ties", "0": "this answer cannot be ranked",
                "x": "none is acceptable"} | {k: v for k, v in HINTS.items() if k != "1–9"}  # fmt: skip
    return View(TITLES.get(item.kind, "Task"), candidates, whole, ranked, tuple(keys.items()))


def _number(text: str) -> float:
    return float(text)


def answer_of(item: Item, fields: Mapping[str, Sequence[str]], *, key: str, epoch: int, status: str) -> Answer:
    """What a form says, as an answer. Raises ValueError for a field that is no number where one is due."""
    questions = {each.key: each for each in item.questions}
    tiers: dict[int, list[int]] = {}
    unrankable: list[int] = []
    scores: dict[str, dict[int, float]] = {}
    values: dict[str, Any] = {}
    flags: dict[int, list[str]] = {}
    for name, given in fields.items():
        kind, _, rest = name.partition(":")
        if not given or not given[0].strip():
            continue
        if kind == "tier" and given[0] == UNRANKABLE:
            unrankable.append(int(rest))
        elif kind == "tier":
            tiers.setdefault(int(given[0]), []).append(int(rest))
        elif kind == "score":
            question, _, no = rest.rpartition(":")
            scores.setdefault(question, {})[int(no)] = _number(given[0])
        elif kind == "flag":
            flags[int(rest)] = list(given)
        elif kind == "value" and rest in questions:
            asked = questions[rest].kind
            number = asked in ("scale", "boolean")
            values[rest] = _number(given[0]) if number else list(given) if asked == "choices" else given[0]
    all_bad = bool(fields.get("all_bad"))
    if item.kind in RANKED and all_bad:  # whoever rejects all of them need not order them as well
        placed = {no for tier in tiers.values() for no in tier} | set(unrankable)
        unrankable += [shown.no for shown in item.candidates if shown.no not in placed]
    for each in item.questions:
        if each.kind == "choices" and not each.per_candidate:
            values.setdefault(each.key, [])
    return Answer(
        slot=item.slot,
        epoch=epoch,
        key=key,
        status="skipped" if status == "skipped" else "flagged" if status == "flagged" else "submitted",
        reason=(fields.get("reason") or [""])[0][:500],
        tiers=tuple(tuple(tiers[place]) for place in sorted(tiers)) if item.kind in RANKED else None,
        unrankable=tuple(unrankable),
        all_bad=all_bad,
        scores=scores,
        values=values,
        flags=flags,
        rewrite=_rewrite(item, fields),
        active_ms=max(0, int(_number((fields.get("active_ms") or ["0"])[0]))),
    )


def _rewrite(item: Item, fields: Mapping[str, Sequence[str]]) -> str | None:
    """A text written in place of the answers; in a dialogue it may be left empty."""
    said = (fields.get("rewrite") or [""])[0]
    if item.kind == "dialogue":
        return said if said.strip() else None
    return said if item.kind == "rewrite" and fields.get("rewrite") else None


def fields_of(annotation: Annotation) -> dict[str, list[str]]:
    """An answer given before as the fields of its form, so that it can be corrected."""
    found: dict[str, list[str]] = {}
    for place, tier in enumerate(annotation.tiers, 1):
        found |= {f"tier:{no}": [str(place)] for no in tier}
    found |= {f"tier:{no}": [UNRANKABLE] for no in annotation.unrankable}
    for value in annotation.values:
        if value.question == "flag":
            found[f"flag:{value.candidate}"] = [str(each) for each in value.value or ()]
        elif value.question == "all_bad":
            found["all_bad"] = ["1"]
        elif value.question == "rewrite":
            found["rewrite"] = [value.text or ""]
        elif value.candidate >= 0:
            found[f"score:{value.question}:{value.candidate}"] = [f"{value.number:g}"]
        elif isinstance(value.value, list):
            found[f"value:{value.question}"] = [str(each) for each in value.value]
        else:
            shown = f"{value.number:g}" if value.number is not None else value.text or str(value.value)
            found[f"value:{value.question}"] = [shown]
    return found
