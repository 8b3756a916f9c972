"""What a lead does so that answers can be relied on: gold tasks, pauses, qualifications, the rules of a project.

The caller's role has been checked: a lead of the project, or everywhere for qualifications.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from tutelage.core.errors import DataError, NotFound
from tutelage.feedback import assign, check
from tutelage.feedback.wire import (
    Answer,
    Expected,
    GoldView,
    GoldViews,
    Kept,
    NewGold,
    Qualifications,
    StandingView,
)
from tutelage.store import adjudication, answers, gold, people, qualifications, slots, tasks
from tutelage.store.engine import Store
from tutelage.store.people import Person
from tutelage.store.tasks import Project, Task


def mark_gold(store: Store, person: Person, project: Project, new: NewGold) -> GoldView:
    """Make a task gold. Without an answer of the lead's own, the newest adjudicated one is expected.

    Raises NotFound, and DataError for an answer that the task's form does not take.
    """
    task = _task(store, project, new.task)
    expected = _expected(store, person, task, new.answer) if new.answer else _adjudicated(store, task)
    gold.mark(
        store, task.id, expected,
        rationale=new.rationale, tolerance=new.tolerance, enough=new.enough, reserve=new.reserve, by=person.id,
    )  # fmt: skip
    assign.showed(store, person, project, [task.id])
    return _golds(gold.every(store, project.id, task_id=task.id))[0]


def _task(store: Store, project: Project, id: str) -> Task:
    task = tasks.load(store, [id]).get(id)
    if task is None or task.project != project.id:
        raise NotFound(f"there is no task {id!r} in {project.name}", key="task")
    return task


def _expected(store: Store, person: Person, task: Task, answer: Expected) -> gold.Said:
    form = check.open_forms(store, [task.form])[task.form]
    asked = [each.model_copy(update={"required": False}) if each.kind == "text" else each for each in form.questions]
    form = replace(form, questions=tuple(asked))  # words have no one right answer: nobody need invent any
    given = Answer(slot="gold", epoch=0, key="expected", **answer.model_dump())
    brief = slots.Brief(task.id, task.kind, task.form, len(task.candidates))

    def shown() -> check.Texts:
        seen = tasks.load(store, [task.id], masked=True)[task.id]
        return check.Texts([each.content for each in seen.messages], seen.candidates)

    return answers.said(check.checked(person, given, brief, form, shown))


def _adjudicated(store: Store, task: Task) -> gold.Said:
    found = answers.read(store, task=task.id, purpose=adjudication.PURPOSE)
    if not found:
        todo = "Give the answer that you expect, or have the task adjudicated first"
        raise DataError("this task has no adjudicated answer", key="answer", todo=todo)
    last = found[-1]
    if (cause := last.value(adjudication.CAUSE)) in (adjudication.CONTESTED, adjudication.BROKEN):
        why = adjudication.CAUSES[cause]
        raise DataError(f"this task has no one right answer: {why}", key="answer", todo="Choose another task")
    ranks: dict[int, int | None] = {no: at for at, tier in enumerate(last.tiers) for no in tier}
    ranks |= dict.fromkeys(last.unrankable)
    values = {
        (each.question, each.candidate): each.number if each.number is not None else each.value
        for each in last.values
        if each.text is None and each.question != adjudication.CAUSE
    }
    return gold.Said(ranks, values, last.spans)


def retire_gold(store: Store, person: Person, project: Project, task: str) -> Kept:
    """Give a gold task to nobody any more."""
    gold.retire(store, _task(store, project, task).id, person.id)
    return Kept(ok=True)


def view_gold(store: Store, person: Person, project: Project, start: int = 0, limit: int = 200) -> GoldViews:
    """The gold tasks of a project, and how everybody did on them, `limit` of each behind the first `start`. Whoever has
    seen what is expected is given none."""
    found = _golds(gold.every(store, project.id, start=start, limit=limit))
    standings = gold.standings(store, project.id)
    assign.showed(store, person, project, [each.task for each in found])
    did = [
        StandingView(
            person=each.pseudonym, right=each.right, n=each.n, probability=each.probability, paused=each.paused
        )
        for each in standings[start : start + limit]
    ]
    return GoldViews(
        tasks=found, people=did, tasks_total=len(gold.tasks_of(store, project.id)), people_total=len(standings)
    )


def _golds(found: Sequence[gold.Gold]) -> list[GoldView]:
    return [
        GoldView(
            task=each.task,
            expected=dict(each.expected),
            rationale=each.rationale,
            retired=each.retired,
            shown=each.shown,
            answered=each.answered,
            right=each.right,
        )
        for each in found
    ]


def lift(store: Store, person: Person, project: Project, who: str, reason: str) -> Kept:
    """Let somebody (name, id or pseudonym) go on whose answers have been looked at, and say why.

    Raises NotFound for who is not paused, DataError for a reason that says too little or too much.
    """
    gold.lift(store, _person(store, who).id, project.id, person.id, reason)
    return Kept(ok=True)


def change(store: Store, person: Person, project: Project, settings: dict[str, Any]) -> Project:
    """Change some of a project's settings."""
    return tasks.change_settings(store, project.name, settings, person.id)


def qualified(store: Store, person: Person, who: str) -> Qualifications:
    """What somebody has shown to be able to judge."""
    del person  # whoever leads may see it
    found = _person(store, who)
    return Qualifications(person=found.pseudonym, names=list(qualifications.of(store, [found.id]).get(found.id, ())))


def qualify(store: Store, person: Person, who: str, name: str) -> Qualifications:
    """Grant a qualification."""
    qualifications.grant(store, _person(store, who).id, name, person.id)
    return qualified(store, person, who)


def disqualify(store: Store, person: Person, who: str, name: str) -> Qualifications:
    """Take a qualification away."""
    qualifications.revoke(store, _person(store, who).id, name, person.id)
    return qualified(store, person, who)


def _person(store: Store, who: str) -> Person:
    found = people.known(store, who)
    if found is None:
        raise NotFound(f"there is no person {who!r}", key="person")
    return found
