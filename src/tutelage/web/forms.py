"""A task as a form that keys can fill, and the form that comes back as an answer.

Field names: `tier:NO`, `pair`, `score:QUESTION:NO`, `pick:QUESTION:NO`, `value:QUESTION`, `none:QUESTION` (that nothing
applies), `flag:NO`, `span` (JSON), `all_bad`, `rewrite`, `rewritten`, `as_is`; NO is the candidate's number, not its
place on the screen.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NamedTuple

from tutelage.feedback.api import Answer, Item, Question
from tutelage.feedback.taxonomy import Taxonomy
from tutelage.feedback.wire import PICKED, RANKED
from tutelage.report.tables import words
from tutelage.store.answers import WHOLE, Annotation

KEYS: Final = "123456789abcdefghilmopqvyz"
"""Keys of choices, in order: digits, then letters that do nothing else on the page."""

UNRANKABLE: Final = "x"
TIE: Final = "tie"

HINTS: Final[Mapping[str, str]] = {
    "1–9": "answer the marked row and go to the next",
    "↑ ↓": "mark another row",
    "Backspace": "clear the marked row",
    "Enter": "send and go on",
    "Ctrl+Enter": "send, also while writing",
    "u": "take the last answer back",
    "s": "skip or report",
    "t": "write in the text field; Escape leaves it",
    "?": "show or hide this",
}
SPAN_HINTS: Final[Mapping[str, str]] = {
    "w": "go through the words: ← → move, with Shift they select, ↑ ↓ go to another text",
    "1–9 a–z": "label the selected words, else answer the marked row",
}


class Point(NamedTuple):
    """One thing that can be chosen in a row."""

    value: str
    label: str
    key: str = ""
    word: str = ""
    """What the point means: the anchor of a scale, the description of a tag."""
    depth: int = 0
    parent: str = ""
    severity: int = 0


@dataclass(frozen=True)
class Row:
    """One question as it stands on the page."""

    name: str
    label: str
    kind: Literal["one", "many", "tree", "spans", "text"]
    points: Sequence[Point] = ()
    anchors: Sequence[str] = ()
    """Words of a scale that belong to none of its points."""
    required: bool = True
    value: str = ""
    none: str = ""
    """Name of the field that says that nothing applies."""


@dataclass(frozen=True)
class Candidate:
    """One thing to be judged as it stands on the page: the letter is its place, the number its name."""

    no: int
    letter: str
    content: str
    rows: Sequence[Row]
    flags: Sequence[Point] = ()


@dataclass(frozen=True)
class View:
    """Everything the page of a task shows beside the conversation."""

    title: str
    candidates: Sequence[Candidate]
    rows: Sequence[Row]
    all_bad: bool
    spans: bool = False
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
    """The points of a scale with their keys and words; and the words that belong to no point."""
    low, high = question.scale
    steps = [low + at for at in range(int(high - low) + 1)] if high - low <= 20 else [low, (low + high) / 2, high]
    said = {_plain(place): text for place, text in question.anchors.items()}
    keys = {f"{value:g}": f"{value:g}" if 0 <= value <= 9 else "" for value in steps}
    points = [Point(value, value, key, said.pop(value, "")) for value, key in keys.items()]
    return points, [f"{place}: {text}" for place, text in said.items()]


def _plain(place: str) -> str:
    try:
        return f"{float(place):g}"
    except ValueError:
        return place


def _keyed(points: Sequence[Point]) -> list[Point]:
    keys = [*KEYS, *[""] * len(points)]
    return [point._replace(key=key) for point, key in zip(points, keys, strict=False)]


def _tree(taxonomy: Taxonomy | None) -> list[Point]:
    """The nodes of a taxonomy, each behind the one it belongs to."""
    return [
        Point(
            node.key, node.title or words(node.key), "", node.description, len(above), above[-1] if above else "",
            node.severity,
        )
        for node, above in (taxonomy.walk() if taxonomy else ())
    ]  # fmt: skip


def row_of(question: Question, name: str, taxonomy: Taxonomy | None = None) -> Row:
    """A question as a row."""
    label = question.prompt or words(question.key)
    label = f"{label[:1].upper()}{label[1:]}"
    if question.kind == "text":
        return Row(name, label, "text", required=question.required)
    if question.kind == "boolean":
        return Row(name, label, "one", [Point("1", "yes", "1"), Point("0", "no", "2")], required=question.required)
    if question.kind == "scale":
        points, anchors = _scale(question)
        return Row(name, label, "one", points, anchors, required=question.required)
    listed = [Point(choice, words(choice), "", question.anchors.get(choice, "")) for choice in question.choices]
    if question.kind == "choice":
        return Row(name, label, "one", _keyed(listed), required=question.required)
    tags = question.kind == "tags" or (question.kind == "spans" and taxonomy is not None)
    points = _keyed(_tree(taxonomy) if tags else listed)
    if question.kind == "spans":
        return Row("span", label, "spans", points, required=question.required)
    none = f"none:{name.partition(':')[2]}" if question.required else ""
    return Row(name, label, "tree" if tags else "many", points, required=question.required, none=none)


def _paired(item: Item) -> bool:
    """Whether two answers stand on one line instead of a rank each."""
    return item.kind == "pair" or (item.kind == "dialogue" and len(item.candidates) == 2)


def _pair(item: Item, letters: Mapping[int, str]) -> Row:
    """One line from the first much better to the second much better; both sides stand as they are shown."""
    strength = next((each for each in item.questions if each.kind == "strength"), None)
    first, second = (shown.no for shown in item.candidates)
    steps = strength.choices if strength else ("better",)
    label = strength.prompt if strength and strength.prompt else "Which is better?"
    line = [Point(f"{first}:{step}", f"{letters[first]} {step}") for step in reversed(steps)]
    line += [Point(TIE, "about the same")]
    line += [Point(f"{second}:{step}", f"{letters[second]} {step}") for step in steps]
    return Row("pair", label, "one", _keyed(line))


def _rewriting(item: Item, letters: Mapping[int, str]) -> list[Row]:
    """Whether, and of which answer, a better one is to be written. Nothing is chosen beforehand."""
    first = item.candidates[0].content if item.candidates else ""
    text = Row("rewrite", "Your answer", "text", value=first if len(item.candidates) == 1 else "")
    if not item.candidates:
        return [text]
    rows = []
    if len(item.candidates) > 1:
        rows.append(Row("rewritten", "Which answer is this about?", "one",
                        _keyed([Point(str(no), letter) for no, letter in letters.items()])))  # fmt: skip
    choice = [Point("0", "needs rewriting", "1"), Point("1", "is good as it stands", "2")]
    return [*rows, Row("as_is", "The answer", "one", choice), text]


def letters_of(item: Item) -> dict[int, str]:
    """Candidate number -> the letter of its place on the page."""
    return {each.no: _letter(at) for at, each in enumerate(item.candidates)}


def _letter(at: int) -> str:
    """The name of a place on the page."""
    return chr(ord("A") + at) if at < 26 else str(at + 1)


def view(item: Item) -> View:
    """The page of a task. Candidates keep the order in which they are to be shown."""
    ranked, places = item.kind in RANKED, len(item.candidates)
    letters = letters_of(item)
    tree = item.taxonomy
    flags = (_tree(tree) or [Point(each, each) for each in FLAGS]) if item.kind != "tag" else ()
    candidates = []
    for shown in item.candidates:
        rows: list[Row] = []
        if ranked and not _paired(item):
            points = [Point(str(tier), str(tier), str(tier) if tier < 10 else "") for tier in range(1, places + 1)]
            points.append(Point(UNRANKABLE, "not rankable", "0"))
            rows.append(Row(f"tier:{shown.no}", "Rank (1 is best, same number = tie)", "one", points))
        if item.kind not in ("ranking", "pair"):
            rows += [
                row_of(each, f"{'pick' if each.kind in PICKED else 'score'}:{each.key}:{shown.no}", tree)
                for each in item.questions
                if each.per_candidate
            ]
        candidates.append(Candidate(shown.no, letters[shown.no], shown.content, rows, flags))
    whole = [_pair(item, letters)] if _paired(item) else []
    whole += _rewriting(item, letters) if item.kind == "rewrite" else []
    whole += [
        row_of(each, f"value:{each.key}", tree)
        for each in item.questions
        if not each.per_candidate and each.kind != "strength"
    ]
    if item.kind == "dialogue":
        whole.append(Row("rewrite", "A better answer, from which it goes on", "text", required=False))
    spans = any(each.kind == "spans" for each in item.questions)
    title = TITLES.get(item.kind, "Task")
    title = title if item.others is None else f"Adjudicate: {title[:1].lower()}{title[1:]}"
    return View(title, candidates, whole, ranked, spans, tuple(_hints(item, spans)))


def _hints(item: Item, spans: bool) -> Iterator[tuple[str, str]]:
    if item.kind in RANKED and not _paired(item):
        yield "1–9", "rank the marked answer; the same digit ties"
        yield "0", "this answer cannot be ranked"
    if item.kind in RANKED:
        yield "x", "none is acceptable"
    if spans:
        yield from SPAN_HINTS.items()
    known = {"1–9"} if item.kind == "ranking" else {"u"} if item.kind == "dialogue" else set()
    yield from ((key, does) for key, does in HINTS.items() if key not in known)
    if item.candidates and item.kind != "tag":
        yield "r", "report what is wrong with the marked answer"


def _number(text: str) -> float:
    return float(text)


@dataclass
class _Filled:
    """What the fields of a form say, as it is gathered."""

    tiers: dict[int, list[int]] = field(default_factory=dict)
    unrankable: list[int] = field(default_factory=list)
    scores: dict[str, dict[int, float]] = field(default_factory=dict)
    picks: dict[str, dict[int, list[str]]] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)
    flags: dict[int, list[str]] = field(default_factory=dict)
    spans: list[Any] = field(default_factory=list)

    def take(self, kind: str, rest: str, given: list[str], item: Item) -> None:
        """One field: its kind, the rest of its name, its values."""
        question, _, no = rest.rpartition(":")
        if kind == "tier" and given[0] == UNRANKABLE:
            self.unrankable.append(int(rest))
        elif kind == "tier":
            self.tiers.setdefault(int(given[0]), []).append(int(rest))
        elif kind == "pair":
            self.pair(given[0], item)
        elif kind == "score":
            self.scores.setdefault(question, {})[int(no)] = _number(given[0])
        elif kind == "pick":
            self.picks.setdefault(question, {})[int(no)] = given
        elif kind == "flag":
            self.flags[int(rest)] = given
        elif kind == "span":
            self.spans = [json.loads(each) for each in given]
        elif kind == "none":
            self.none(rest, item)
        elif kind == "value":
            self.value(rest, given, item)

    def pair(self, said: str, item: Item) -> None:
        numbers = [shown.no for shown in item.candidates]
        if said == TIE:
            self.tiers = {1: numbers}
            return
        better, _, step = said.partition(":")
        self.tiers = {1: [int(better)], 2: [no for no in numbers if no != int(better)]}
        strength = next((each for each in item.questions if each.kind == "strength"), None)
        if strength:
            self.values[strength.key] = step

    def none(self, rest: str, item: Item) -> None:
        """That nothing applies; whoever chose something as well meant that."""
        if any(each.key == rest and not each.per_candidate for each in item.questions):
            self.values.setdefault(rest, [])
        else:
            question, _, no = rest.rpartition(":")
            self.picks.setdefault(question, {}).setdefault(int(no), [])

    def value(self, key: str, given: list[str], item: Item) -> None:
        kind = next((each.kind for each in item.questions if each.key == key), None)
        if kind in ("scale", "boolean"):
            self.values[key] = _number(given[0])
        elif kind in ("choices", "tags"):
            self.values[key] = given
        elif kind is not None:
            self.values[key] = given[0]


def answer_of(item: Item, fields: Mapping[str, Sequence[str]], *, key: str, epoch: int, status: str) -> Answer:
    """What a form says, as an answer. Raises ValueError for a field that is no number where one is due."""
    filled = _Filled()
    for name, given in fields.items():
        kept = [each for each in given if each.strip()]
        if kept:
            kind, _, rest = name.partition(":")
            filled.take(kind, rest, kept, item)
    all_bad = bool(fields.get("all_bad"))
    if item.kind in RANKED and all_bad:  # whoever rejects all of them need not order them as well
        placed = {no for tier in filled.tiers.values() for no in tier} | set(filled.unrankable)
        filled.unrankable += [shown.no for shown in item.candidates if shown.no not in placed]
    as_is = item.kind == "rewrite" and fields.get("as_is") == ["1"]
    text = fields.get("rewrite", [""])[0].replace("\r\n", "\n")  # what a browser sends of a text field
    about = fields.get("rewritten") or [""]
    return Answer.model_validate(
        {
            "slot": item.slot,
            "epoch": epoch,
            "key": key,
            "status": status if status in ("skipped", "flagged", "withdrawn") else "submitted",
            "reason": (fields.get("reason") or [""])[0][:500],
            "tiers": [filled.tiers[place] for place in sorted(filled.tiers)] if item.kind in RANKED else None,
            "unrankable": filled.unrankable,
            "all_bad": all_bad,
            "scores": filled.scores,
            "picks": filled.picks,
            "values": filled.values,
            "flags": filled.flags,
            "spans": filled.spans,
            "rewrite": text if item.kind in ("rewrite", "dialogue") and text.strip() and not as_is else None,
            "rewritten": int(about[0]) if about[0] else None,
            "as_is": as_is,
            "active_ms": max(0, int(_number((fields.get("active_ms") or ["0"])[0]))),
        }
    )


def fields_of(annotation: Annotation, item: Item) -> dict[str, list[str]]:
    """An answer given before as the fields of its form, so that it can be corrected."""
    found: dict[str, list[str]] = {}
    if _paired(item) and annotation.tiers:
        strength = next((each for each in item.questions if each.kind == "strength"), None)
        step = next((str(each.value) for each in annotation.values if strength and each.question == strength.key), "")
        tied = len(annotation.tiers) == 1
        found["pair"] = [TIE if tied else f"{annotation.tiers[0][0]}:{step or 'better'}"]
    else:
        for place, tier in enumerate(annotation.tiers, 1):
            found |= {f"tier:{no}": [str(place)] for no in tier}
        found |= {f"tier:{no}": [UNRANKABLE] for no in annotation.unrankable}
    for value in annotation.values:
        at = f"{value.question}:{value.candidate}" if value.candidate != WHOLE else value.question
        listed = [str(each) for each in value.value] if isinstance(value.value, list) else None
        if value.question == "flag":
            found[f"flag:{value.candidate}"] = listed or []
        elif value.question == "all_bad":
            found["all_bad"] = ["1"]
        elif value.question in ("rewrite", "as_is"):
            found["as_is"] = ["1" if value.question == "as_is" else "0"]
            found["rewritten"] = [str(max(0, value.candidate))]
            found |= {"rewrite": [value.text]} if value.text else {}
        elif listed is not None:
            where = "none" if not listed else "value" if value.candidate == WHOLE else "pick"
            found[f"{where}:{at}"] = listed or ["1"]
        elif value.candidate != WHOLE:
            kind = "score" if value.number is not None else "pick"
            found[f"{kind}:{at}"] = [f"{value.number:g}" if value.number is not None else str(value.value)]
        else:
            shown = f"{value.number:g}" if value.number is not None else value.text or str(value.value)
            found[f"value:{value.question}"] = [shown]
    if annotation.spans:
        names = ("field", "candidate", "start", "end", "label")
        found["span"] = [json.dumps(dict(zip(names, each, strict=True))) for each in annotation.spans]
    return found


def said(annotation: Annotation, item: Item | None = None) -> str:
    """An answer in one line of words. Candidates are named by an item's letters, or else by those its person saw."""
    names = letters_of(item) if item else {no: _letter(at) for at, no in enumerate(annotation.shown)}

    def name_of(no: int) -> str:
        return names.get(no, str(no + 1))

    parts = []
    if annotation.tiers or annotation.unrankable:
        order = " > ".join("=".join(map(name_of, tier)) for tier in annotation.tiers)
        aside = ", ".join(map(name_of, annotation.unrankable))
        parts.append(order + f" (not rankable: {aside})" * bool(aside))
    for value in annotation.values:
        where = f" of {name_of(value.candidate)}" if value.candidate != WHOLE else ""
        name = f"{value.question.replace('_', ' ')}{where}"
        if value.question in ("all_bad", "as_is"):
            parts.append({"all_bad": "none is acceptable", "as_is": f"good as it stands{where}"}[value.question])
        elif value.value is not None:
            listed = ", ".join(map(str, value.value)) if isinstance(value.value, list) else str(value.value)
            parts.append(f"{name}: {listed or 'none'}")
        elif value.number is not None:
            parts.append(f"{name}: {value.number:g}")
        elif value.text:
            parts.append(f"{name}: {value.text}")
    parts += [f"{label} at {start}–{end}" for _, _, start, end, label in annotation.spans]
    if annotation.status != "submitted":
        parts.append(f"{annotation.status}: {annotation.reason}")
    return "; ".join(parts)
