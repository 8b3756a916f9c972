"""What people and leads do in the feedback rooms: pure functions over a store, each with its checks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from tutelage.core.errors import DataError, NotFound, TutelageError, UsageError
from tutelage.feedback import adjudicate, assign, check, forecast
from tutelage.feedback.assign import answerers
from tutelage.feedback.check import Texts, checked, open_forms
from tutelage.feedback.taxonomy import Taxonomy
from tutelage.feedback.wire import (
    Answer,
    Answers,
    ByPerson,
    Claim,
    Claimed,
    Draft,
    Form,
    Item,
    Languages,
    MarkedSpan,
    NewCandidate,
    NewProject,
    NewTask,
    NewTasks,
    Progress,
    ProjectView,
    Question,
    Receipt,
    Shown,
    Submitted,
)
from tutelage.store import adjudication, answers, oversight, people, standing, tasks, taxonomies, texts
from tutelage.store import slots as desk
from tutelage.store.answers import WHOLE, NewAnnotation
from tutelage.store.engine import Store, now
from tutelage.store.people import Person
from tutelage.store.settings import ProjectSettings
from tutelage.text import pii

__all__ = [
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
    "Shown",
    "Submitted",
    "add_tasks",
    "answerers",
    "claim",
    "create_project",
    "give_back",
    "held_item",
    "history",
    "languages",
    "open_project",
    "progress",
    "projects",
    "save_draft",
    "set_languages",
    "status_of",
    "submit",
]

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
        settings=new.settings.model_dump(mode="json", exclude_defaults=True),
        taxonomy=_tree(new.form.taxonomy),
        by=person.id,
    )
    return views(store, [made])[0]


def _tree(taxonomy: Taxonomy | None) -> taxonomies.NewTree | None:
    """A taxonomy as the store keeps it; one that forgets nodes of the version before is refused."""
    if taxonomy is None:
        return None
    made = taxonomy
    nodes = [node.model_dump(mode="json") for node in made.nodes]
    return taxonomies.NewTree(nodes, made.migration, lambda before: made.follows(check.opened(before)))


def open_project(store: Store, person: Person, new: NewProject, rows: Sequence[NewTask]) -> list[str]:
    """Make a project together with its tasks, all of it or nothing; a name that is there already is refused."""
    _need(person, LEADERS)
    ids = _person_ids(store, sorted({name for each in rows for name in each.people or ()}))
    return oversight.make(
        store,
        new.name,
        kind=new.kind,
        questions=[each.model_dump(mode="json") for each in new.form.questions],
        guideline=new.form.guideline,
        per_task=new.per_task,
        settings=new.settings.model_dump(mode="json", exclude_defaults=True),
        taxonomy=_tree(new.form.taxonomy),
        new=[_stored(each, ids, new.per_task, new.settings.mask_pii) for each in rows],
        by=person.id,
    )


def projects(store: Store, person: Person) -> list[ProjectView]:
    """The projects this person may answer in or lead. Only who leads or audits one sees its settings: they name who
    stands behind blind answers, and how often an answer is checked.
    """
    open_to = (*LEADERS, "auditor")
    mine = [each for each in tasks.projects(store) if person.has(*answerers(each), *open_to, project=each.id)]
    return views(
        store, [each if person.has(*open_to, project=each.id) else replace(each, settings={}) for each in mine]
    )


def add_tasks(store: Store, person: Person, project: str, new: Sequence[NewTask]) -> list[str]:
    """Make tasks; a key that is there already keeps the task it made. Personal data is masked in what is shown."""
    where = tasks.get_project(store, project)
    _need(person, (*LEADERS, "service"), where.id)
    names = {name for each in new for name in each.people or ()}
    return put_tasks(store, where, new, _person_ids(store, sorted(names)))


def put_tasks(store: Store, where: tasks.Project, new: Sequence[NewTask], ids: Mapping[str, str]) -> list[str]:
    """Make tasks whatever the caller's role; `ids` are those of the persons they are reserved for, by name."""
    mask = ProjectSettings.of(where.settings).mask_pii
    return tasks.add(store, where, [_stored(each, ids, where.per_task, mask) for each in new])


def may_answer(person: Person, where: tasks.Project) -> None:
    """Raises Forbidden for a person who may not answer in a project."""
    _need(person, answerers(where), where.id)


def _person_ids(store: Store, names: Sequence[str]) -> dict[str, str]:
    found = people.named(store, names)
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
        _need(person, answerers(where[0]), where[0].id)
    else:
        where = [each for each in tasks.projects(store) if person.has(*answerers(each), project=each.id)]
    open_ones = [each for each in where if each.state == "open"]
    slots = desk.claim(store, person.id, [each.id for each in open_ones], wanted.count, int(wanted.lease_s * 1000))
    if slots:
        return Claimed(items=_items(store, person, slots, {each.id: each for each in open_ones}))
    if where and not open_ones:
        return Claimed(items=[], reason=f"The project is {where[0].state}.")
    return Claimed(items=[], reason=standing.why_empty(store, person.id, [each.id for each in open_ones]))


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
    forms = open_forms(store, {task.form for task in found.values()})
    items = []
    for slot in slots:
        task = found[slot.task]
        decides = slot.purpose == adjudication.PURPOSE
        if decides:
            assign.showed(store, person, where[slot.project], [task.id])
        form = adjudicate.asked(forms[task.form]) if decides else forms[task.form]
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
                taxonomy=form.taxonomy,
                taxonomy_version=form.taxonomy_version,
                others=adjudicate.beside(store, task, where[slot.project]) if decides else None,
            )
        )
    return items


def submit(store: Store, person: Person, given: Answers) -> Submitted:
    """Store answers: each is checked by itself, what is good is kept, and what is stored is on disk on return."""
    receipts: dict[int, Receipt] = {}
    sound: list[tuple[int, NewAnnotation]] = []
    briefs = desk.briefs(store, [each.slot for each in given.answers])
    forms = open_forms(store, {brief.form for brief in briefs.values()})
    shown: dict[str, Texts] = {}

    def texts_of(task: str) -> Texts:
        if task not in shown:
            asked = tasks.load(store, [task], masked=True)[task]
            shown[task] = Texts([each.content for each in asked.messages], asked.candidates)
        return shown[task]

    for at, each in enumerate(given.answers):
        brief = briefs.get(each.slot)
        try:
            if brief is None:
                raise NotFound("there is no such slot", key="slot")
            checking = adjudicate.checked if brief.purpose == adjudication.PURPOSE else checked
            row = checking(person, each, brief, forms[brief.form], partial(texts_of, brief.task))
            sound.append((at, row))
        except TutelageError as error:
            receipts[at] = Receipt(slot=each.slot, status="refused", error=str(error))
    stored = answers.submit(store, person.id, person.kind, [each for _, each in sound]) if sound else []
    for (at, _), made in zip(sound, stored, strict=True):
        lost = "the place went to somebody else; nothing was stored"
        why = made.why or lost if made.status == "stale" else ""
        receipts[at] = Receipt(slot=made.slot, annotation=made.annotation, status=made.status, error=why)
    following = None
    if given.claim:
        try:
            following = claim(store, person, given.claim)
        except TutelageError as error:  # what was answered is stored, whatever becomes of the next
            following = Claimed(items=[], reason=str(error))
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
    """Where a project stands, who has answered how much, and when enough will be there (`feedback/forecast.py`)."""
    where = tasks.get_project(store, project)
    leads = person.has(*LEADERS, "auditor", project=where.id)
    if not leads:
        _need(person, answerers(where), where.id)
    near = 10 if ProjectSettings.of(where.settings).gold_share and not leads else 1
    counts = standing.counts(store, where.id)
    tallies = answers.tallies(store, where.name)
    moment = now()
    ahead = forecast.ahead(store, where, counts, tallies, moment)
    coming = ahead.forecast if near == 1 else None  # a pace that stands still would tell which task was gold
    mine = ByPerson(person=person.pseudonym, people=person.kind, answers=desk.answered(store, person.id, where.id))
    return Progress(
        project=where.name,
        tasks=counts.tasks,
        done=counts.done - counts.done % near,
        stuck=counts.stuck,
        answers=counts.answered - counts.answered % near,
        needed=counts.slots,
        in_hand=counts.leased - counts.leased % near,
        people={kind: many - many % near for kind, many in ahead.kinds.items()},
        per_person=[ByPerson(person=each.pseudonym, people=each.people, answers=each.answers) for each in tallies]
        if leads
        else [mine],
        paced=ahead.main,
        per_hour=coming.rate.value if coming else None,
        hours_left=(coming.likely - moment) / forecast.HOUR if coming and coming.likely else None,
    )


def languages(store: Store, person: Person, whose: str = "") -> Languages:
    """Which languages somebody (name, id or pseudonym; empty: oneself) can judge."""
    who = _managed(store, person, whose)
    return Languages(person=who.pseudonym, languages=who.languages)


def set_languages(store: Store, person: Person, languages: Sequence[str], whose: str = "") -> Languages:
    """Keep which languages somebody can judge: one's own, or of a person whose account this person looks after."""
    who = _managed(store, person, whose)
    return Languages(person=who.pseudonym, languages=people.set_languages(store, who.id, languages, person.id))


def _managed(store: Store, person: Person, whose: str) -> Person:
    """A person whose account this person may change. Raises Forbidden, for who is not there as well."""
    who = people.known(store, whose) if whose else people.get(store, person.id)
    if who is None or (who.id != person.id and not people.may_manage(person, who)):
        raise Forbidden("this needs the account's owner, or who leads all that they work in", key="person")
    return who


def history(store: Store, person: Person, project: str = "", limit: int = 50) -> list[dict[str, Any]]:
    """One's own answers, newest first."""
    mine = answers.read(store, project or None, person=person.id, status=None, own=True, limit=min(limit, 500))
    return [dict(answers.details(each)) | {"slot": each.slot} for each in reversed(mine)]


def _need(person: Person, roles: Sequence[str], project: str = "") -> None:
    if not person.has(*roles, project=project):
        raise Forbidden(f"this needs the role {' or '.join(roles)}", key="role", todo="Ask a lead to grant it")


def led(store: Store, person: Person, project: str) -> tasks.Project:
    """A project that this person leads."""
    where = tasks.get_project(store, project)
    _need(person, LEADERS, where.id)
    return where


def leading(person: Person) -> Person:
    """A person who leads everywhere: what is granted holds in all projects."""
    _need(person, LEADERS)
    return person


def views(store: Store, found: Sequence[tasks.Project]) -> list[ProjectView]:
    """Projects as they travel, each with its newest form and that form's taxonomy."""
    trees = taxonomies.of_forms(store, [each.form for each in found if each.taxonomy])
    return [
        ProjectView(
            name=each.name,
            kind=each.kind,
            state=each.state,
            per_task=each.per_task,
            form=Form(
                questions=tuple(Question.model_validate(asked) for asked in each.questions),
                guideline=each.guideline,
                taxonomy=check.opened(trees[each.form]) if each.form in trees else None,
            ),
            form_version=each.version,
            settings=dict(each.settings),
        )
        for each in found
    ]


def status_of(error: TutelageError) -> int:
    """The HTTP status that says what an error says."""
    if isinstance(error, Forbidden):
        return 403
    if isinstance(error, NotFound):
        return 404
    if isinstance(error, UsageError):
        return 422
    return 503
