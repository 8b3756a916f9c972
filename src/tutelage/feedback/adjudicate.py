"""Adjudication: who is asked about what, what they are shown and asked, and what their word decides."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from pydantic import Field

from tutelage.core.errors import DataError, NotFound
from tutelage.feedback import check, disputes, report
from tutelage.feedback.check import OpenForm, Texts
from tutelage.feedback.wire import Answer, Question, Wire
from tutelage.store import adjudication, answers, slots, tasks
from tutelage.store.adjudication import BROKEN, CAUSE, CAUSES, NOTE, PURPOSE, ROLE
from tutelage.store.answers import Annotation, NewAnnotation, Value
from tutelage.store.engine import Reader, Store
from tutelage.store.people import Person
from tutelage.store.settings import ProjectSettings
from tutelage.store.tasks import Project, Task
from tutelage.text import pii

QUESTIONS = (
    Question(
        key=CAUSE, kind="choice", prompt="Why did the answers differ?", choices=tuple(CAUSES), anchors=dict(CAUSES)
    ),
    Question(key=NOTE, kind="text", prompt="Words that you propose for the guideline", required=False),
)
"""What an adjudicator is asked beside the task's own questions."""


class NewAdjudications(Wire):
    """Tasks that an adjudicator is to decide: named ones, or by rule those on which people differ most."""

    tasks: tuple[str, ...] = Field(default=(), max_length=10_000)
    """Ids of tasks; empty: by rule."""
    above: float = Field(default=0.5, ge=0, lt=1)
    """Disagreement from 0 to 1 that a task must exceed; see `feedback/disputes.py`."""
    most: int = Field(default=20, ge=1, le=10_000)
    """So many tasks at most, those with the largest disagreement."""
    people: str = ""
    """Whose answers are looked at; empty: the only kind there is."""


class Opened(Wire):
    """A task for which an adjudicator is asked now."""

    task: str
    disagreement: float | None
    """None for a task that was named."""


class AdjudicationsOpened(Wire):
    """The tasks for which an adjudicator is asked now. Not those that were, or wait for it."""

    opened: list[Opened]


class Proposal(Wire):
    """What an adjudicator wrote about the guideline."""

    task: str
    person: str
    cause: str
    text: str


class Causes(Wire):
    """Why people differed, as far as it was decided by adjudicators of one kind (live, simulated, replayed)."""

    people: str
    decided: int
    causes: dict[str, int]
    proposals: list[Proposal]


class Adjudications(Wire):
    """Where adjudication stands in a project."""

    waiting: int
    """Tasks that wait for an adjudicator, with those in hand."""
    causes: list[Causes]
    """For each kind of adjudicator by itself: figures of live, simulated and replayed people are never pooled."""


# who is asked


def open_by(store: Store, person: Person, project: Project, wanted: NewAdjudications) -> AdjudicationsOpened:
    """Ask for an adjudicator in the tasks that are named, or by rule in those on which people differ most.

    Raises NotFound for a task that is not of this project, and DataError where it could not be adjudicated, or where
    the project mixes kinds of people and none is named.
    """
    roles = ProjectSettings.of(project.settings).roles
    if roles and ROLE not in roles:
        todo = f"Add it to the project's setting `roles`: {', '.join((*roles, ROLE))}"
        raise DataError("adjudicators may not answer in this project", key="roles", todo=todo)
    if clash := {CAUSE, NOTE} & {str(each["key"]) for each in project.questions}:
        todo = "Ask it under another name in a new version of the form"
        raise DataError(f"the form asks a question named {min(clash)!r} itself", key="form", todo=todo)
    if wanted.tasks:
        _adjudicable(store, project, wanted.tasks)
        made = adjudication.open_places(store, project.id, wanted.tasks, person.id)
        return AdjudicationsOpened(opened=[Opened(task=id, disagreement=None) for id in made])
    words = report.read(store, project.name, wanted.people)
    found = [each for each in disputes.disputes(words) if each.worst > wanted.above]
    waiting_or_done = adjudication.states(store, [each.task for each in found])
    found = [each for each in found if words.tasks[each.task].state == "done" and each.task not in waiting_or_done]
    found.sort(key=lambda each: (-each.worst, each.position))
    far = {each.task: each.worst for each in found[: wanted.most]}
    made = adjudication.open_places(store, project.id, list(far), person.id)
    return AdjudicationsOpened(opened=[Opened(task=id, disagreement=far[id]) for id in made])


def _adjudicable(store: Store, project: Project, ids: Sequence[str]) -> None:
    known = tasks.load(store, ids)
    given = answers.how_many(store, [project.name])
    for id in ids:
        if id not in known or known[id].project != project.id:
            raise NotFound(f"there is no task {id!r} in {project.name}", key="tasks")
        if known[id].state == "open":
            todo = "Wait for their answers, or close the task first"
            raise DataError(f"people are still asked about task {id!r}", key="tasks", todo=todo)
        if not given.get(id):
            raise DataError(f"nobody has answered task {id!r}, so there is nothing to decide", key="tasks")


def waiting(store: Reader, project_id: str) -> int:
    """Tasks of a project that wait for an adjudicator, with those in hand."""
    with store.read() as connection:
        found = adjudication.places(connection, project_id)
    return found.get("open", 0) + found.get("leased", 0)


# what they are shown and asked


def asked(form: OpenForm) -> OpenForm:
    """A form as an adjudicator fills it: with the cause, and a note for the guideline."""
    return replace(form, questions=(*form.questions, *QUESTIONS))


def earlier(store: Reader, task: Task, project: Project) -> list[Annotation]:
    """What people answered, skipped or flagged, in the order they did, with personal data masked as in the task."""
    given = answers.read(store, task=task.id, status=None)
    return [masked(project, each) for each in given if each.status != "withdrawn"]


def masked(project: Project, given: Annotation) -> Annotation:
    """An answer as others see it: what its person wrote with personal data masked where the project masks it."""
    values = tuple(_masked(project, each) for each in given.values)
    return replace(given, values=values, reason=hidden(project, given.reason))


def _masked(project: Project, value: Value) -> Value:
    if value.typed:
        return replace(value, value=[hidden(project, word) for word in value.value])
    return value if value.text is None else replace(value, text=hidden(project, value.text))


def hidden(project: Project, text: str) -> str:
    """A text with personal data masked, where the project masks it."""
    return pii.redact(text, pii.find(text)) if ProjectSettings.of(project.settings).mask_pii else text


def beside(store: Reader, task: Task, project: Project) -> tuple[dict[str, Any], ...]:
    """The same as plain JSON, by pseudonym."""
    return tuple(dict(answers.details(each)) for each in earlier(store, task, project))


def checked(
    person: Person, given: Answer, brief: slots.Brief, form: OpenForm, shown: Callable[[], Texts]
) -> NewAnnotation:
    """An adjudicator's answer as rows. Of a broken task only the cause and the note are kept: it has no answer."""
    form = asked(form)
    if given.status == "submitted" and given.values.get(CAUSE) == BROKEN:
        said = {key: value for key, value in given.values.items() if key in (CAUSE, NOTE)}
        given = Answer(slot=given.slot, epoch=given.epoch, key=given.key, values=said, active_ms=given.active_ms)
        brief, form = replace(brief, kind="review"), replace(form, questions=QUESTIONS, taxonomy=None)
    return replace(check.checked(person, given, brief, form, shown), suggestion_seen=True)


# what their word decides


def cause_of(given: Annotation) -> str:
    """Why people differed, by an adjudicated answer."""
    return str(given.value(CAUSE))


def decided(store: Reader, projects: Sequence[str], people: str | None) -> dict[str, Annotation]:
    """Task id -> the newest adjudicated answer, by adjudicators of one kind (None: of any), in projects by name."""
    found: dict[str, Annotation] = {}
    for project in projects:
        found.update((each.task, each) for each in answers.read(store, project, people=people, purpose=PURPOSE))
    return found


def overruled(found: Mapping[str, Annotation]) -> dict[str, Annotation]:
    """Those whose answer stands for the task's: not of broken tasks, nor where both views are legitimate."""
    return {id: each for id, each in found.items() if cause_of(each) not in (adjudication.CONTESTED, BROKEN)}


def broken(found: Mapping[str, Annotation]) -> set[str]:
    """Tasks of which nothing can be asked."""
    return {id for id, each in found.items() if cause_of(each) == BROKEN}


def counted(found: Mapping[str, Annotation]) -> dict[str, int]:
    """How often each cause was given."""
    return dict(sorted(Counter(map(cause_of, found.values())).items()))


def view(store: Reader, project: Project) -> Adjudications:
    """Where adjudication stands, why people differed, and what was proposed for the guideline, oldest first."""
    by_kind: dict[str, dict[str, Annotation]] = {}
    for each in answers.read(store, project.name, purpose=PURPOSE):
        by_kind.setdefault(each.people, {})[each.task] = each
    told = [
        Causes(people=kind, decided=len(found), causes=counted(found), proposals=_proposals(found.values()))
        for kind, found in sorted(by_kind.items())
    ]
    return Adjudications(waiting=waiting(store, project.id), causes=told)


def _proposals(given: Iterable[Annotation]) -> list[Proposal]:
    return [
        Proposal(task=each.task, person=each.pseudonym, cause=cause_of(each), text=str(text))
        for each in sorted(given, key=lambda each: each.seq)
        if (text := each.value(NOTE))
    ]
