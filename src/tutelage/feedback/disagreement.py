"""Where people differ: tasks in the order of disagreement, and all answers to one of them beside each other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from tutelage.feedback import assign, desk
from tutelage.feedback.adjudicate import masked
from tutelage.feedback.disputes import Dispute
from tutelage.feedback.figures import Read
from tutelage.store import answers
from tutelage.store.answers import Annotation
from tutelage.store.engine import Store
from tutelage.store.people import Person
from tutelage.store.tasks import Project, Task

ORDERS = ("worst", "ranks", "scores", "choices", "spans")


@dataclass(frozen=True)
class Side:
    """One task with the answers of all people beside each other: a column for each of them."""

    task: Task
    people: tuple[tuple[str, str], ...]
    """(pseudonym, kind) of each column."""
    candidates: tuple[tuple[str, ...], ...]
    """For each candidate a cell for each person."""
    whole: tuple[tuple[str, tuple[str, ...]], ...]
    """(question, a cell for each person) of what was said about the whole task."""
    more: int
    """People left out because the table would be too wide."""


MOST_COLUMNS = 12


def side(task: Task, given: Sequence[Annotation]) -> Side:
    """The answers to one task as a table."""
    shown = sorted(given, key=lambda each: each.seq)[:MOST_COLUMNS]
    cells = [[_cell(each, no) for each in shown] for no in range(len(task.candidates))]
    rows: dict[str, list[str]] = {}
    for at, each in enumerate(shown):
        for name, text in _said(each):
            rows.setdefault(name, [""] * len(shown))[at] = text
    return Side(
        task,
        tuple((each.pseudonym, each.people) for each in shown),
        tuple(tuple(row) for row in cells),
        tuple((name, tuple(row)) for name, row in rows.items()),
        len(given) - len(shown),
    )


def _cell(each: Annotation, no: int) -> str:
    parts = [f"rank {place}" for place, tier in enumerate(each.tiers, 1) if no in tier]
    parts += ["not rankable"] if no in each.unrankable else []
    for value in each.values:
        if value.candidate != no:
            continue
        shown = f"{value.number:g}" if value.number is not None else _plain(value.value, value.text)
        parts.append(f"{value.question.replace('_', ' ')} {shown}")
    parts += [f"{label} {start}–{stop}" for _, candidate, start, stop, label in each.spans if candidate == no]
    return "; ".join(parts)


def _said(each: Annotation) -> list[tuple[str, str]]:
    found = []
    for value in each.values:
        if value.candidate == answers.WHOLE:
            shown = f"{value.number:g}" if value.number is not None else _plain(value.value, value.text)
            name = "none is acceptable" if value.question == "all_bad" else value.question.replace("_", " ")
            found.append((name, "yes" if value.question == "all_bad" else shown))
    marks = [f"{label} {start}–{stop}" for _, no, start, stop, label in each.spans if no == answers.WHOLE]
    if marks:
        found.append(("marks", "; ".join(marks)))
    if each.status != "submitted":
        found.append((each.status, each.reason))
    found.append(("time", f"{each.active_ms / 1000:.0f} s" if each.active_ms else "–"))
    return found


def _plain(value: Any, text: str | None) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "nothing"
    return str(value) if value is not None else text or "(erased)"


@dataclass(frozen=True)
class Page:
    """One page of tasks in the order of disagreement."""

    rows: tuple[tuple[Dispute, Side], ...]
    total: int
    """Tasks that fit the filters among the answers looked at."""
    answers: int
    following: str
    """Key of the next page; empty at the end."""
    older: int | None
    """Where the next older answers begin; None when these were all."""


@dataclass(frozen=True)
class Filters:
    """Which tasks to show, and in which order."""

    people: str = "live"
    order: str = "worst"
    language: str = ""
    only: str = ""
    """`comments`, `all_bad` or `flags`: tasks with such an answer."""
    after: str = field(default="")
    before: int | None = None


def page(
    store: Store,
    person: Person,
    project: Project,
    words: Read,
    found: Sequence[Dispute],
    wanted: Filters,
    size: int = 20,
) -> Page:
    """Tasks with the largest disagreement first, those without the measure left out; from behind the key `after`.

    What people wrote is masked where the project masks personal data. That `person` was shown it is kept.
    """
    marked = _marked(words, wanted.only)
    kept = [
        (-value, each.position, each)
        for each in found
        if (value := each.by(wanted.order)) is not None
        and (not wanted.language or words.tasks[each.task].language == wanted.language)
        and (marked is None or each.task in marked)
    ]
    kept.sort(key=lambda row: row[:2])
    behind = (-math.inf, 0)
    with suppress(ValueError):  # a key that nobody gave out: the first page
        measure, _, position = wanted.after.partition("/")
        behind = (-float(measure), int(position))
    rest = [row for row in kept if row[:2] > behind]
    shown = [each for _, _, each in rest[:size]]
    given: dict[str, list[Annotation]] = {}
    for one in answers.read(store, task=[each.task for each in shown], people=wanted.people):
        given.setdefault(one.task, []).append(masked(project, one))
    rows = tuple((each, side(words.tasks[each.task], given.get(each.task, ()))) for each in shown)
    assign.showed(store, person, project, [each.task for each in shown])
    last = shown[-1] if len(rest) > size else None
    return Page(
        rows=rows,
        total=len(kept),
        answers=len(words.given),
        following=f"{last.by(wanted.order)!r}/{last.position}" if last else "",
        older=min(each.seq for each in words.given) if len(words.given) == desk.SAMPLE else None,
    )


def _marked(words: Read, only: str) -> set[str] | None:
    if only == "comments":
        return {each.task for each in words.given if any(value.text for value in each.values)}
    if only == "all_bad":
        return {each.task for each in words.given if each.value("all_bad") is not None}
    if only == "flags":
        return {each.task for each in words.given if any(value.question == "flag" for value in each.values)}
    return None
