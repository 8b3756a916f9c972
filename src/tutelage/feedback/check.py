"""Whether an answer answers what its task asks; what does becomes rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tutelage.core.errors import DataError
from tutelage.feedback import assign
from tutelage.feedback.wire import RANKED, Answer, Question
from tutelage.store import slots
from tutelage.store.answers import WHOLE, NewAnnotation, Value
from tutelage.store.people import Person

MOST_TEXT = 20_000
"""Characters a person may write into one answer."""


@dataclass(frozen=True)
class OpenForm:
    """One version of a form, ready to check answers against."""

    version: int
    questions: tuple[Question, ...]
    guideline: str


def checked(person: Person, given: Answer, brief: slots.Brief, form: OpenForm) -> NewAnnotation:
    """An answer as rows, if it answers what its task asks. Raises DataError naming the key."""
    ranks: list[tuple[int, int | None]] = []
    values: list[Value] = []
    if given.status == "submitted":
        values = _values(given, brief, form)
        if brief.kind in RANKED or given.tiers:
            ranks = _ranks(given, brief)
    elif not given.reason.strip():
        raise DataError(f"say why this is {given.status}", key="reason")
    if given.all_bad:
        values.append(Value("all_bad", number=1.0))
    for no, categories in sorted(given.flags.items()):
        _candidate(no, brief, "flags")
        values.append(Value("flag", no, value=sorted(set(categories))))
    if given.rewrite is not None:
        values.append(Value("rewrite", text=_written(given.rewrite, "rewrite")))
    elif brief.kind == "rewrite" and given.status == "submitted":
        raise DataError("a rewrite is missing", key="rewrite")
    for mark in given.spans:
        if mark.end <= mark.start:
            raise DataError(f"a span must go forward, found {mark.start} to {mark.end}", key="spans")
        if mark.candidate != WHOLE:
            _candidate(mark.candidate, brief, "spans")
    return NewAnnotation(
        slot=given.slot,
        epoch=given.epoch,
        key=f"{person.id}/{given.key}",
        status=given.status,
        reason=given.reason,
        shown=assign.shown_order(brief.task, person.id, brief.candidates),
        values=values,
        ranks=ranks,
        spans=[(each.field, each.candidate, each.start, each.end, each.label) for each in given.spans],
        active_ms=given.active_ms,
    )


def _candidate(no: int, brief: slots.Brief, key: str) -> int:
    if not 0 <= no < brief.candidates:
        raise DataError(f"there is no candidate {no}; they are numbered 0 to {brief.candidates - 1}", key=key)
    return no


def _ranks(given: Answer, brief: slots.Brief) -> list[tuple[int, int | None]]:
    tiers = [tier for tier in given.tiers or () if tier]
    ranks: list[tuple[int, int | None]] = [(no, at) for at, tier in enumerate(tiers) for no in tier]
    ranks += [(no, None) for no in given.unrankable]
    placed = [_candidate(no, brief, "tiers") for no, _ in ranks]
    twice = sorted({no for no in placed if placed.count(no) > 1})
    if twice:
        raise DataError(f"candidate {twice[0]} stands in two places", key="tiers")
    missing = sorted(set(range(brief.candidates)) - set(placed))
    if missing:
        todo = "Rank every candidate or put it among the unrankable"
        raise DataError(f"candidate {missing[0]} is not ranked", key="tiers", todo=todo)
    return ranks


def _values(given: Answer, brief: slots.Brief, form: OpenForm) -> list[Value]:
    asked = {each.key: each for each in form.questions}
    made: list[Value] = []
    for key, by_candidate in given.scores.items():
        question = _asked(key, asked, per_candidate=True)
        for no, number in sorted(by_candidate.items()):
            made.append(Value(key, _candidate(no, brief, f"scores.{key}"), number=_number(question, number)))
    for key, answer in given.values.items():
        question = _asked(key, asked, per_candidate=False)
        made.append(_value(question, answer))
    for question in form.questions:
        if not question.required or (brief.kind in ("ranking", "pair") and question.per_candidate):
            continue
        if question.per_candidate:
            missing = set(range(brief.candidates)) - set(given.scores.get(question.key, {})) - set(given.unrankable)
            if missing and not given.all_bad:
                raise DataError(f"candidate {min(missing)} has no score", key=f"scores.{question.key}")
        elif question.key not in given.values:
            raise DataError("this question is not answered", key=f"values.{question.key}")
    return made


def _asked(key: str, asked: Mapping[str, Question], per_candidate: bool) -> Question:
    question = asked.get(key)
    if question is None or question.per_candidate != per_candidate:
        todo = f"The form asks: {', '.join(asked) or 'nothing'}"
        raise DataError("the form does not ask this", key=f"{'scores' if per_candidate else 'values'}.{key}", todo=todo)
    return question


def _number(question: Question, number: float) -> float:
    low, high = question.scale if question.kind == "scale" else (0.0, 1.0)
    if not low <= number <= high:
        raise DataError(f"{number} is outside the scale {low:g} to {high:g}", key=f"scores.{question.key}")
    return float(number)


def _value(question: Question, answer: Any) -> Value:
    where = f"values.{question.key}"
    if question.kind in ("scale", "boolean"):
        if not isinstance(answer, int | float):
            raise DataError(f"expected a number, found {type(answer).__name__}", key=where)
        return Value(question.key, number=_number(question, float(answer)))
    if question.kind == "text":
        return Value(question.key, text=_written(str(answer), where))
    chosen = answer if isinstance(answer, list) else [answer]
    for each in chosen:
        if each not in question.choices:
            raise DataError(f"{str(each)[:40]!r} is none of the choices", key=where)
    if question.kind == "choice":
        if len(chosen) != 1:
            raise DataError("choose one", key=where)
        return Value(question.key, value=chosen[0])
    return Value(question.key, value=sorted(set(chosen), key=question.choices.index))


def _written(text: str, key: str) -> str:
    if len(text) > MOST_TEXT:
        raise DataError(f"the text has {len(text):,} characters, at most {MOST_TEXT:,} are kept", key=key)
    return text
