"""Whether an answer answers what its task asks; what does becomes rows."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tutelage.core.errors import DataError
from tutelage.feedback import assign
from tutelage.feedback.taxonomy import Taxonomy
from tutelage.feedback.wire import PICKED, RANKED, Answer, MarkedSpan, Question
from tutelage.store import slots, tasks, taxonomies
from tutelage.store.answers import FLAG, WHOLE, NewAnnotation, Value
from tutelage.store.engine import Store
from tutelage.store.people import Person

MOST_TEXT = 20_000
"""Characters a person may write into one answer."""

UNSTORABLE = re.compile("[\x00\ud800-\udfff]")

MOST_FLAGS = 50
"""Flags on one candidate, each of at most 120 characters."""


@dataclass(frozen=True)
class OpenForm:
    """One version of a form, ready to check answers against."""

    version: int
    questions: tuple[Question, ...]
    guideline: str
    taxonomy: Taxonomy | None = None
    taxonomy_version: int = 0


_forms_seen: dict[str, OpenForm] = {}  # forms never change, so what was read once holds


def opened(tree: taxonomies.Tree) -> Taxonomy:
    """A stored taxonomy, ready to check labels against."""
    return Taxonomy.model_validate({"nodes": tree.nodes, "migration": tree.migration})


def open_forms(store: Store, ids: Iterable[str]) -> dict[str, OpenForm]:
    """Form versions by id; what was read once is kept, since a version never changes."""
    ids = list(ids)
    missing = [id for id in ids if f"{store.where}/{id}" not in _forms_seen]
    if missing:
        trees = taxonomies.of_forms(store, missing)
        for id, (version, questions, guideline) in tasks.forms(store, missing).items():
            made = OpenForm(version, tuple(Question.model_validate(each) for each in questions), guideline)
            if tree := trees.get(id):
                made = replace(made, taxonomy=opened(tree), taxonomy_version=tree.version)
            _forms_seen[f"{store.where}/{id}"] = made
    return {id: _forms_seen[f"{store.where}/{id}"] for id in ids}


@dataclass(frozen=True)
class Texts:
    """What a person was shown of a task, word for word: personal data is masked in it."""

    messages: Sequence[str]
    candidates: Sequence[str]


def checked(
    person: Person, given: Answer, brief: slots.Brief, form: OpenForm, shown: Callable[[], Texts]
) -> NewAnnotation:
    """An answer as rows, if it answers what its task asks. Raises DataError naming the key.

    `shown` is asked for the texts only where an answer points into them.
    """
    asks = form.taxonomy is not None or any(each.kind == "spans" for each in form.questions)
    if given.spans and not asks and person.kind == "live":  # of a file the labels are chosen ones
        todo = "Add a question of kind `spans`, which says what labels there are, to the form"
        raise DataError("the form asks for no spans", key="spans", todo=todo)
    ranks: list[tuple[int, int | None]] = []
    values: list[Value] = []
    if given.status == "submitted":
        values = _values(given, brief, form)
        values += _rewritten(given, brief, shown)
        if brief.kind in RANKED or given.tiers:
            ranks = _ranks(given, brief)
    elif given.status != "withdrawn" and not given.reason.strip():
        raise DataError(f"say why this is {given.status}", key="reason")
    if given.status != "withdrawn":
        values += [*_strength(given, brief, form, ranks), *_flags(given, brief, form)]
        if given.all_bad:
            values.append(Value("all_bad", number=1.0))
    return NewAnnotation(
        slot=given.slot,
        epoch=given.epoch,
        key=f"{person.id}/{given.key}",
        status=given.status,
        reason=_written(given.reason, "reason") or ("undone" if given.status == "withdrawn" else ""),
        shown=assign.shown_order(brief.task, person.id, brief.candidates),
        values=values,
        ranks=ranks,
        spans=[_marked(each, brief, form, shown) for each in given.spans] if given.status != "withdrawn" else (),
        active_ms=given.active_ms,
        lease_ms=assign.LEASE_S * 1000,
    )


def _candidate(no: int, brief: slots.Brief, key: str) -> int:
    if not 0 <= no < brief.candidates:
        known = f"they are numbered 0 to {brief.candidates - 1}" if brief.candidates else "this task has none"
        raise DataError(f"there is no candidate {no}; {known}", key=key)
    return no


def _ranks(given: Answer, brief: slots.Brief) -> list[tuple[int, int | None]]:
    tiers = list(given.tiers or ())
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
    if () in tiers:
        raise DataError(f"tier {tiers.index(())} is empty", key="tiers", todo="Leave it out: tiers follow each other")
    return ranks


def _strength(
    given: Answer, brief: slots.Brief, form: OpenForm, ranks: Sequence[tuple[int, int | None]]
) -> list[Value]:
    """How much better the better one is: the step (1 is the weakest) and its word."""
    question = next((each for each in form.questions if each.kind == "strength"), None)
    if question is None or brief.kind not in ("pair", "dialogue") or given.status != "submitted":
        return []
    said, where = given.values.get(question.key), f"values.{question.key}"
    if brief.candidates != 2 or len({tier for _, tier in ranks if tier is not None}) < 2:
        if said is not None:
            raise DataError("neither one is better, so there is no strength", key=where)
        return []
    if said is None and not question.required:
        return []
    if said not in question.choices:
        what = "say how much better it is" if said is None else f"{str(said)[:40]!r} is none of the strengths"
        raise DataError(what, key=where, todo=f"One of: {', '.join(question.choices)}")
    return [Value(question.key, number=1.0 + question.choices.index(said), value=said)]


def _flags(given: Answer, brief: slots.Brief, form: OpenForm) -> list[Value]:
    made = []
    for no, names in sorted(given.flags.items()):
        where = f"flags.{no}"
        _candidate(no, brief, "flags")
        if form.taxonomy is not None:
            kept = _tags(names, form.taxonomy, where)
        elif len(names) > MOST_FLAGS or any(len(name) > 120 for name in names):
            raise DataError(f"at most {MOST_FLAGS} flags of at most 120 characters are kept", key=where)
        else:
            kept = sorted({_written(name, where) for name in names})
        if kept:
            made.append(Value(FLAG, no, value=kept, typed=form.taxonomy is None))
    return made


def _rewritten(given: Answer, brief: slots.Brief, shown: Callable[[], Texts]) -> list[Value]:
    if given.rewrite is None and not given.as_is:
        if brief.kind == "rewrite":
            raise DataError("a rewrite is missing", key="rewrite", todo="Or say that the answer is good `as_is`")
        return []
    if given.rewrite is not None and given.as_is:
        raise DataError("an answer is either rewritten or good as it is", key="rewrite")
    text = _written(given.rewrite or "", "rewrite")
    no = WHOLE
    if given.rewritten is not None:
        no = _candidate(given.rewritten, brief, "rewritten")
    elif brief.candidates == 1:
        no = 0
    elif brief.kind == "dialogue" and not given.as_is:
        no = WHOLE  # what is said in place of all of them
    elif brief.candidates > 1 or given.as_is:
        raise DataError("say which candidate this is about", key="rewritten")
    if given.rewrite is None:
        return [Value("as_is", no, value=True)]
    if not text.strip():
        raise DataError("the rewrite is empty", key="rewrite")
    if no != WHOLE and text.strip() == shown().candidates[no].replace("\r\n", "\n").strip():
        raise DataError("the text is as it was", key="rewrite", todo="Change it, or say that it is good `as_is`")
    return [Value("rewrite", no, text=text)]


def _marked(
    mark: MarkedSpan, brief: slots.Brief, form: OpenForm, shown: Callable[[], Texts]
) -> tuple[str, int, int, int, str]:
    """A span as a row. What it marks must stand in the text that was shown."""
    if mark.end <= mark.start:
        raise DataError(f"a span must go forward, found {mark.start} to {mark.end}", key="spans")
    question = next((each for each in form.questions if each.kind == "spans"), None)
    if form.taxonomy is not None:
        _tags([mark.label], form.taxonomy, "spans.label")
    elif question is not None and mark.label not in question.choices:
        raise DataError(f"{mark.label[:40]!r} is none of the choices", key="spans.label")
    field, no = mark.field, mark.candidate
    if field == "candidate":
        text = shown().candidates[_candidate(no, brief, "spans.candidate")]
    else:
        messages, at = shown().messages, int(field.partition(":")[2] or len(shown().messages) - 1)
        if not 0 <= at < len(messages):
            raise DataError(f"the prompt has no message {at}; it has {len(messages)}", key="spans.field")
        field, no, text = f"prompt:{at}", WHOLE, messages[at]
    if mark.end > len(text):
        raise DataError(
            f"the span ends at {mark.end}, behind the end of the text ({len(text)} characters as shown)",
            key="spans.end",
        )
    return field, no, mark.start, mark.end, _written(mark.label, "spans.label")


def _tags(keys: Sequence[Any], taxonomy: Taxonomy, where: str) -> list[str]:
    """Nodes and all that they imply."""
    try:
        return taxonomy.closed(str(key) for key in keys)
    except DataError as error:
        raise DataError(error.message, key=where, todo=error.todo) from None


def _values(given: Answer, brief: slots.Brief, form: OpenForm) -> list[Value]:
    asked = {each.key: each for each in form.questions}
    made: list[Value] = []
    for key, numbers in given.scores.items():
        question = _asked(key, asked, "scores")
        for no, number in sorted(numbers.items()):
            made.append(Value(key, _candidate(no, brief, f"scores.{key}"), number=_number(question, number)))
    for key, chosen in given.picks.items():
        question = _asked(key, asked, "picks")
        for no, names in sorted(chosen.items()):
            where = f"picks.{key}"
            picked = _picked(question, names, form, where)
            made.append(Value(key, _candidate(no, brief, where), value=picked))
    for key, answer in given.values.items():
        question = _asked(key, asked, "values")
        if question.kind != "strength":
            made.append(_value(question, answer, form))
    for question in form.questions:
        if question.required:
            _answered(question, given, brief)
    return made


def _answered(question: Question, given: Answer, brief: slots.Brief) -> None:
    """Refuse an answer that leaves out a question that must be answered."""
    if question.kind == "strength" or (brief.kind in ("ranking", "pair") and question.per_candidate):
        return
    if question.kind == "spans":
        if not given.spans:
            raise DataError("no span is marked", key="spans")
    elif question.per_candidate:
        where = "picks" if question.kind in PICKED else "scores"
        there = set(getattr(given, where).get(question.key, {}))
        missing = set(range(brief.candidates)) - there - set(given.unrankable)
        if missing and not given.all_bad:
            what = "score" if where == "scores" else "answer"
            raise DataError(f"candidate {min(missing)} has no {what}", key=f"{where}.{question.key}")
    elif question.key not in given.values:
        raise DataError("this question is not answered", key=f"values.{question.key}")


def _asked(key: str, asked: Mapping[str, Question], where: str) -> Question:
    question = asked.get(key)
    fits = question is not None and question.kind != "spans"
    if question is not None and fits:
        place = "values" if not question.per_candidate else "picks" if question.kind in PICKED else "scores"
        fits = place == where
    if question is None or not fits:
        todo = f"The form asks: {', '.join(asked) or 'nothing'}"
        raise DataError("the form does not ask this", key=f"{where}.{key[:80]}", todo=todo)
    return question


def _number(question: Question, number: float) -> float:
    low, high = question.scale if question.kind == "scale" else (0.0, 1.0)
    if not (math.isfinite(number) and low <= number <= high):
        shown = f"{number:g}" if math.isfinite(number) else str(number)
        raise DataError(f"{shown} is outside the scale {low:g} to {high:g}", key=f"scores.{question.key}")
    return float(number)


def _picked(question: Question, names: Sequence[Any], form: OpenForm, where: str) -> Any:
    """What was chosen as it is stored: one choice, or a list in the order of the form or of the tree."""
    if question.kind == "tags":
        if form.taxonomy is None:
            raise DataError("the form has no taxonomy", key=where)
        return _tags(names, form.taxonomy, where)
    for each in names:
        if each not in question.choices:
            raise DataError(f"{str(each)[:40]!r} is none of the choices", key=where)
    if question.kind == "choice":
        if len(names) != 1:
            raise DataError("choose one", key=where)
        return names[0]
    return sorted(set(names), key=question.choices.index)


def _value(question: Question, answer: Any, form: OpenForm) -> Value:
    where = f"values.{question.key}"
    if question.kind in ("scale", "boolean"):
        if not isinstance(answer, int | float) or abs(answer) > 1e300:
            raise DataError(f"expected a number, found {type(answer).__name__}", key=where)
        return Value(question.key, number=_number(question, float(answer)))
    if question.kind == "text":
        return Value(question.key, text=_written(str(answer), where))
    return Value(question.key, value=_picked(question, answer if isinstance(answer, list) else [answer], form, where))


def _written(text: str, key: str) -> str:
    """A text that the store can hold. Raises DataError."""
    if len(text) > MOST_TEXT:
        raise DataError(f"the text has {len(text):,} characters, at most {MOST_TEXT:,} are kept", key=key)
    if UNSTORABLE.search(text):
        raise DataError("the text holds characters that cannot be stored (NUL or half of a surrogate pair)", key=key)
    return text
