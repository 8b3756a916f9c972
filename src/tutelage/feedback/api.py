"""What can be asked of the feedback rooms: pure functions over a store, one table of routes, the models of the wire.

The web mounts ROUTES, tests and in-process clients call `dispatch`: both go through the same functions and checks.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, ValidationError

from tutelage.core.errors import DataError, NotFound, TutelageError, UsageError
from tutelage.core.records import explain
from tutelage.feedback import assign, check
from tutelage.feedback.check import OpenForm, checked
from tutelage.feedback.wire import (
    Answer,
    Answers,
    ByPerson,
    Claim,
    Claimed,
    Draft,
    Form,
    History,
    Item,
    Kept,
    MarkedSpan,
    NewCandidate,
    NewProject,
    NewTask,
    NewTasks,
    Progress,
    Projects,
    ProjectView,
    Question,
    Receipt,
    Shown,
    Submitted,
    TaskIds,
)
from tutelage.store import answers, oversight, people, tasks, texts
from tutelage.store import slots as desk
from tutelage.store.answers import WHOLE, NewAnnotation
from tutelage.store.engine import Store
from tutelage.store.people import Person
from tutelage.text import pii

__all__ = [
    "ROUTES",
    "Answer",
    "Answers",
    "Claim",
    "Claimed",
    "Draft",
    "Forbidden",
    "Form",
    "Item",
    "MarkedSpan",
    "NewCandidate",
    "NewProject",
    "NewTask",
    "NewTasks",
    "Progress",
    "ProjectView",
    "Question",
    "Route",
    "Shown",
    "Submitted",
    "add_tasks",
    "claim",
    "create_project",
    "dispatch",
    "give_back",
    "held_item",
    "history",
    "open_project",
    "progress",
    "projects",
    "save_draft",
    "status_of",
    "submit",
]

ANSWERERS = ("annotator", "reviewer", "adjudicator", "lead", "safety")
LEADERS = ("lead", "operator")


class Forbidden(UsageError):
    """This person may not do this here."""


# the functions behind


def create_project(store: Store, person: Person, new: NewProject) -> ProjectView:
    """Make a project; a name that is there already gets a new version of its form if that differs."""
    _need(person, LEADERS)
    made = tasks.make_project(
        store,
        new.name,
        kind=new.kind,
        questions=[each.model_dump(mode="json") for each in new.form.questions],
        guideline=new.form.guideline,
        per_task=new.per_task,
        settings=new.settings,
        by=person.id,
    )
    return _project_view(made)


def open_project(store: Store, person: Person, new: NewProject, rows: Sequence[NewTask]) -> list[str]:
    """Make a project together with its tasks, all of it or nothing; a name that is there already is refused."""
    _need(person, LEADERS)
    ids = _person_ids(store, sorted({name for each in rows for name in each.people or ()}))
    mask = bool(new.settings.get("mask_pii", True))
    return oversight.make(
        store,
        new.name,
        kind=new.kind,
        questions=[each.model_dump(mode="json") for each in new.form.questions],
        guideline=new.form.guideline,
        per_task=new.per_task,
        settings=new.settings,
        new=[_stored(each, ids, new.per_task, mask) for each in rows],
        by=person.id,
    )


def projects(store: Store, person: Person) -> list[ProjectView]:
    """The projects this person may answer in or lead."""
    return [
        _project_view(each)
        for each in tasks.projects(store)
        if person.has(*_answerers(each), *LEADERS, "auditor", project=each.id)
    ]


def add_tasks(store: Store, person: Person, project: str, new: Sequence[NewTask]) -> list[str]:
    """Make tasks; a key that is there already keeps the task it made. Personal data is masked in what is shown."""
    where = tasks.get_project(store, project)
    _need(person, (*LEADERS, "service"), where.id)
    names = {name for each in new for name in each.people or ()}
    ids = _person_ids(store, sorted(names))
    mask = bool(where.settings.get("mask_pii", True))
    return tasks.add(store, where, [_stored(each, ids, where.per_task, mask) for each in new])


def _person_ids(store: Store, names: Sequence[str]) -> dict[str, str]:
    found = {each.name: each.id for each in people.every(store)} if names else {}
    for name in names:
        if name not in found:
            raise NotFound(f"there is no person {name!r}", key="people")
    return found


def _stored(new: NewTask, ids: Mapping[str, str], per_task: int, mask: bool) -> tasks.NewTask:
    masked: dict[int, str] = {}
    if mask:
        for no, each in enumerate(new.candidates):
            hidden = pii.redact(each.content, pii.find(each.content))
            if hidden != each.content:
                masked[no] = hidden
        shown = [
            each.model_copy(update={"content": pii.redact(each.content, pii.find(each.content))})
            for each in new.messages
        ]
        if tuple(shown) != tuple(new.messages):
            masked[WHOLE] = texts.pack(shown)
    reserved = [ids[name] for name in new.people or ()]
    return tasks.NewTask(
        key=new.key,
        kind=new.kind,
        messages=new.messages,
        candidates=[(each.content, each.producer, each.meta) for each in new.candidates],
        people=reserved,
        required=new.required or (len(reserved) if reserved else per_task),
        priority=new.priority,
        cluster=new.cluster,
        language=new.language,
        decision=new.decision,
        draw=new.draw,
        meta=new.meta,
        masked=masked,
    )


def claim(store: Store, person: Person, wanted: Claim) -> Claimed:
    """See to it that this person holds `count` tasks; asking again returns the same ones until they are answered."""
    if wanted.project:
        where = [tasks.get_project(store, wanted.project)]
        _need(person, _answerers(where[0]), where[0].id)
    else:
        where = [each for each in tasks.projects(store) if person.has(*_answerers(each), project=each.id)]
    open_ones = [each for each in where if each.state == "open"]
    slots = desk.claim(store, person.id, [each.id for each in open_ones], wanted.count, int(wanted.lease_s * 1000))
    if slots:
        return Claimed(items=_items(store, person, slots, {each.id: each for each in open_ones}))
    if where and not open_ones:
        return Claimed(items=[], reason=f"The project is {where[0].state}.")
    return Claimed(items=[], reason=desk.why_empty(store, person.id, [each.id for each in open_ones]))


def held_item(store: Store, person: Person, slot: str) -> Item:
    """One task that this person holds or has answered, by its slot. Raises NotFound for anybody else's."""
    row = desk.held(store, slot)
    if row.person_id != person.id:
        raise NotFound(f"you do not hold {slot!r}", key="slot")
    place = desk.Slot(row.id, row.task_id, row.project_id, row.lease_epoch, row.lease_until, row.purpose)
    where = tasks.get_project(store, row.project_id)
    return _items(store, person, [place], {where.id: where})[0]


def _items(store: Store, person: Person, slots: Sequence[desk.Slot], where: Mapping[str, tasks.Project]) -> list[Item]:
    found = tasks.load(store, [slot.task for slot in slots], masked=True)
    kept = desk.drafts(store, person.id, [slot.id for slot in slots])
    forms = _forms(store, {task.form for task in found.values()})
    items = []
    for slot in slots:
        task = found[slot.task]
        form = forms[task.form]
        order = assign.shown_order(task.id, person.id, len(task.candidates))
        draft = kept.get(slot.id)
        items.append(
            Item(
                slot=slot.id,
                epoch=slot.epoch,
                task=task.id,
                project=where[slot.project].name,
                kind=task.kind,
                messages=task.messages,
                candidates=tuple(Shown(no=no, content=task.candidates[no]) for no in order),
                questions=form.questions,
                guideline=form.guideline,
                form_version=form.version,
                lease_until=slot.lease_until,
                draft=dict(draft) if draft is not None else None,
                language=task.language,
            )
        )
    return items


_forms_seen: dict[str, OpenForm] = {}  # forms never change, so what was read once holds


def _forms(store: Store, ids: set[str]) -> dict[str, OpenForm]:
    missing = [id for id in ids if (key := f"{store.where}/{id}") not in _forms_seen and key]
    if missing:
        for id, (version, questions, guideline) in tasks.forms(store, missing).items():
            made = OpenForm(version, tuple(Question.model_validate(each) for each in questions), guideline)
            _forms_seen[f"{store.where}/{id}"] = made
    return {id: _forms_seen[f"{store.where}/{id}"] for id in ids}


def submit(store: Store, person: Person, given: Answers) -> Submitted:
    """Store answers: each is checked by itself, what is good is kept, and what is stored is on disk on return."""
    receipts: dict[int, Receipt] = {}
    sound: list[tuple[int, NewAnnotation]] = []
    briefs = desk.briefs(store, [each.slot for each in given.answers])
    forms = _forms(store, {brief.form for brief in briefs.values()})
    for at, each in enumerate(given.answers):
        brief = briefs.get(each.slot)
        try:
            if brief is None:
                raise NotFound("there is no such slot", key="slot")
            sound.append((at, checked(person, each, brief, forms[brief.form])))
        except TutelageError as error:
            receipts[at] = Receipt(slot=each.slot, status="refused", error=str(error))
    stored = answers.submit(store, person.id, person.kind, [each for _, each in sound]) if sound else []
    for (at, _), made in zip(sound, stored, strict=True):
        why = "the place went to somebody else; nothing was stored" if made.status == "stale" else ""
        receipts[at] = Receipt(slot=made.slot, annotation=made.annotation, status=made.status, error=why)
    following = claim(store, person, given.claim) if given.claim else None
    return Submitted(receipts=[receipts[at] for at in range(len(given.answers))], next=following)


def save_draft(store: Store, person: Person, slot: str, draft: Draft) -> bool:
    """Keep an unfinished answer; False when the place is no longer this person's."""
    if len(str(draft.body)) > 2 * check.MOST_TEXT:
        raise DataError("the draft is too long", key="body")
    return desk.save_draft(store, person.id, slot, draft.epoch, draft.body)


def give_back(store: Store, person: Person, slot: str, epoch: int) -> bool:
    """Return a task unanswered; False when it was no longer held."""
    return desk.give_back(store, person.id, slot, epoch)


def progress(store: Store, person: Person, project: str) -> Progress:
    """Where a project stands, who has answered how much, and when it will be done at the present rate."""
    where = tasks.get_project(store, project)
    leads = person.has(*LEADERS, "auditor", project=where.id)
    if not leads:
        _need(person, _answerers(where), where.id)
    counts = desk.counts(store, where.id)
    tallies = answers.tallies(store, where.name)
    by_kind: dict[str, int] = {}
    for each in tallies:
        by_kind[each.people] = by_kind.get(each.people, 0) + each.answers
    hours = (
        (max(each.last_at for each in tallies) - min(each.first_at for each in tallies)) / 3_600_000 if tallies else 0
    )
    rate = counts.answered / hours if hours > 0 and counts.answered > 1 else None
    left = counts.slots - counts.answered
    return Progress(
        project=where.name,
        tasks=counts.tasks,
        done=counts.done,
        stuck=counts.stuck,
        answers=counts.answered,
        needed=counts.slots,
        in_hand=counts.leased,
        people=by_kind,
        per_person=[
            ByPerson(person=each.pseudonym, people=each.people, answers=each.answers)
            for each in tallies
            if leads or each.person == person.id
        ],
        per_hour=rate,
        hours_left=left / rate if rate else None,
    )


def history(store: Store, person: Person, project: str = "", limit: int = 50) -> list[dict[str, Any]]:
    """One's own answers, newest first."""
    mine = answers.read(store, project or None, person=person.id, status=None, limit=min(limit, 500))
    return [dict(answers.details(each)) | {"slot": each.slot} for each in reversed(mine)]


def _answerers(project: tasks.Project) -> tuple[str, ...]:
    wanted = project.settings.get("roles")
    return tuple(wanted) if wanted else ANSWERERS


def _need(person: Person, roles: Sequence[str], project: str = "") -> None:
    if not person.has(*roles, project=project):
        raise Forbidden(f"this needs the role {' or '.join(roles)}", key="role", todo="Ask a lead to grant it")


def _project_view(project: tasks.Project) -> ProjectView:
    return ProjectView(
        name=project.name,
        kind=project.kind,
        state=project.state,
        per_task=project.per_task,
        form=Form(
            questions=tuple(Question.model_validate(each) for each in project.questions), guideline=project.guideline
        ),
        form_version=project.version,
        settings=dict(project.settings),
    )


# routes


Call = Callable[[Store, Person, Mapping[str, str], Any], BaseModel]


@dataclass(frozen=True)
class Route:
    """One request that can be made. `call(store, person, parameters of path and query, body)` answers it."""

    method: str
    path: str
    scope: str
    call: Call
    answer: type[BaseModel]
    body: type[BaseModel] | None = None
    summary: str = ""
    pattern: re.Pattern[str] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "pattern", re.compile(re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", self.path) + "$"))


def _whole(text: str | None, default: int, key: str) -> int:
    try:
        return int(text) if text else default
    except ValueError:
        raise DataError(f"expected a whole number, found {text!r}", key=key) from None


BASE = "/api/feedback"
ROUTES: tuple[Route, ...] = (
    Route(
        "GET",
        f"{BASE}/projects",
        "feedback:read",
        lambda store, who, at, body: Projects(projects=projects(store, who)),
        Projects,
        summary="The projects you may work in",
    ),
    Route(
        "POST",
        f"{BASE}/projects",
        "feedback:lead",
        lambda store, who, at, body: create_project(store, who, body),
        ProjectView,
        NewProject,
        "Make a project, or a new version of its form",
    ),
    Route(
        "GET",
        f"{BASE}/projects/{{project}}/progress",
        "feedback:read",
        lambda store, who, at, body: progress(store, who, at["project"]),
        Progress,
        summary="Where a project stands",
    ),
    Route(
        "POST",
        f"{BASE}/projects/{{project}}/tasks",
        "feedback:lead",
        lambda store, who, at, body: TaskIds(tasks=add_tasks(store, who, at["project"], body.tasks)),
        TaskIds,
        NewTasks,
        "Add tasks; sending them again changes nothing",
    ),
    Route(
        "POST",
        f"{BASE}/claim",
        "feedback:answer",
        lambda store, who, at, body: claim(store, who, body),
        Claimed,
        Claim,
        "Hold the next tasks",
    ),
    Route(
        "POST",
        f"{BASE}/answers",
        "feedback:answer",
        lambda store, who, at, body: submit(store, who, body),
        Submitted,
        Answers,
        "Store answers, and perhaps hold the next tasks",
    ),
    Route(
        "PUT",
        f"{BASE}/drafts/{{slot}}",
        "feedback:answer",
        lambda store, who, at, body: Kept(ok=save_draft(store, who, at["slot"], body)),
        Kept,
        Draft,
        "Keep an unfinished answer",
    ),
    Route(
        "POST",
        f"{BASE}/slots/{{slot}}/return",
        "feedback:answer",
        lambda store, who, at, body: Kept(ok=give_back(store, who, at["slot"], _whole(at.get("epoch"), 0, "epoch"))),
        Kept,
        summary="Return a task unanswered (query: epoch)",
    ),
    Route(
        "GET",
        f"{BASE}/history",
        "feedback:answer",
        lambda store, who, at, body: History(
            answers=history(store, who, at.get("project", ""), _whole(at.get("limit"), 50, "limit"))
        ),
        History,
        summary="Your own answers, newest first (query: project, limit)",
    ),
)


def status_of(error: TutelageError) -> int:
    """The HTTP status that says what an error says."""
    if isinstance(error, Forbidden):
        return 403
    if isinstance(error, NotFound):
        return 404
    if isinstance(error, UsageError):
        return 422
    return 503


def dispatch(
    store: Store, person: Person, method: str, path: str, body: Any = None, query: Mapping[str, str] | None = None
) -> tuple[int, dict[str, Any]]:
    """Answer a request without a web framework: (status, JSON). The body is parsed JSON."""
    for route in ROUTES:
        found = route.pattern.match(path)
        if route.method != method or not found:
            continue
        try:
            sent = route.body.model_validate(body) if route.body else None
            made = route.call(store, person, {**(query or {}), **found.groupdict()}, sent)
        except ValidationError as error:
            key, message = explain(error)
            return 422, DataError(message, key=key).as_dict()
        except TutelageError as error:
            return status_of(error), error.as_dict()
        return 200, made.model_dump(mode="json")
    return 404, NotFound(f"there is no {method} {path}").as_dict()
