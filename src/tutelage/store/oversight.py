"""A project as its lead sees it: pace, reasons, stuck tasks, who belongs to it; and what a lead changes, each change
with its row in the ledger. Reads touch indexes or a bounded number of rows, so that a million tasks do not slow a page.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sql

from tutelage.core.errors import DataError, NotFound, Refused
from tutelage.core.records import digest
from tutelage.store import dialogues, gold, ledger, schema, tasks, taxonomies
from tutelage.store.engine import Reader, Store
from tutelage.store.places import PASSED

annotation, slot, task = schema.annotation.c, schema.slot.c, schema.task.c
ORDINARY = slot.purpose == schema.ORDINARY
"""Gold tasks that people are given on the way and adjudicators' places are no places of a task: they fill none."""
REASON = sql.func.coalesce(schema.text.c.body, "").label("reason")
"""What somebody wrote who passed a task over; "" once it was erased."""
LOOKED_AT = 5_000
"""Open places whose language is looked at: where more wait, these speak for them."""


def pace(store: Reader, project_id: str, since: int, width: int) -> dict[str, dict[int, int]]:
    """Kind of people -> number of the stretch of `width` ms after `since` -> first answers given in it."""
    stretch = ((annotation.at - since) // width).label("stretch")
    query = (
        sql.select(annotation.people, stretch, sql.func.count())
        .join(schema.slot, slot.id == annotation.slot_id)
        .where(annotation.project_id == project_id, annotation.status == "submitted", annotation.at >= since)
        .where(annotation.revision == 1, ORDINARY)
        .group_by(
            annotation.people, "stretch"
        )  # by its name: PostgreSQL takes two bound expressions for different ones
    )
    found: dict[str, dict[int, int]] = {}
    with store.read() as connection:
        for people, number, many in connection.execute(query):
            found.setdefault(people, {})[int(number)] = many
    return found


@dataclass(frozen=True)
class Passed:
    """How often a task was passed over with these words."""

    status: str
    people: str
    reason: str
    times: int


def reasons(store: Reader, project_id: str, limit: int = 40) -> list[Passed]:
    """Why people skip and flag, most frequent first; kinds of people apart."""
    times = sql.func.count()
    query = (
        sql.select(annotation.status, annotation.people, REASON, times.label("times"))
        .select_from(schema.slot)
        .join(schema.annotation, annotation.slot_id == slot.id)
        .outerjoin(schema.text, schema.text.c.id == annotation.reason_id)
        .where(slot.project_id == project_id, slot.state.in_(PASSED), annotation.status.in_(PASSED))
        .where(ORDINARY)
        .group_by(annotation.status, annotation.people, "reason")
        .order_by(times.desc(), annotation.status, "reason")
        .limit(limit)
    )
    with store.read() as connection:
        return [Passed(row.status, row.people, row.reason, row.times) for row in connection.execute(query)]


@dataclass(frozen=True)
class Stuck:
    """A task that nobody is asked any more although it lacks answers, and what people said who passed it over."""

    task: str
    position: int
    required: int
    answered: int
    said: tuple[tuple[str, str, str], ...]
    """(pseudonym, skipped | flagged, reason)."""


def stuck(store: Reader, project_id: str, after: int = 0, limit: int = 20) -> list[Stuck]:
    """Stuck tasks behind a position, in the order in which they were made. They are found by their passed slots."""
    who = schema.person.c
    passed = sql.exists().where(slot.task_id == task.id, slot.project_id == project_id, slot.state.in_(PASSED))
    some = sql.select(slot.task_id).where(slot.project_id == project_id, slot.state.in_((*PASSED, "void"))).distinct()
    query = (
        sql.select(task.id, task.position, task.required)
        .where(task.id.in_(some), task.state == "stuck", task.position > after, passed)
        .order_by(task.position)
        .limit(limit)
    )
    with store.read() as connection:
        rows = connection.execute(query).all()
        ids = [row.id for row in rows]
        done = _done(connection, ids)
        told: dict[str, list[tuple[str, str, str]]] = {}
        for row in connection.execute(
            sql.select(annotation.task_id, who.pseudonym, annotation.status, REASON)
            .outerjoin(schema.text, schema.text.c.id == annotation.reason_id)
            .join(schema.person, who.id == annotation.person_id)
            .join(schema.slot, slot.id == annotation.slot_id)
            .where(annotation.task_id.in_(ids), annotation.status.in_(PASSED), slot.state.in_(PASSED), ORDINARY)
            .order_by(annotation.seq)
        ):
            told.setdefault(row.task_id, []).append((row.pseudonym, row.status, row.reason))
    return [Stuck(row.id, row.position, row.required, done.get(row.id, 0), tuple(told.get(row.id, ()))) for row in rows]


def _done(connection: sql.Connection, ids: Sequence[str]) -> dict[str, int]:
    query = sql.select(slot.task_id, sql.func.count()).where(
        slot.task_id.in_(list(ids)), slot.state == "done", ORDINARY
    )
    return {row[0]: row[1] for row in connection.execute(query.group_by(slot.task_id))}


@dataclass(frozen=True)
class Waiting:
    """Places that nobody holds: free for anybody, kept for somebody; and the languages they ask for."""

    free: int
    kept: Mapping[str, int]
    """Person's id or role -> places kept for them."""
    languages: Mapping[str, int]
    """Of the first free places."""


def waiting(store: Reader, project_id: str) -> Waiting:
    """What is still to be handed out."""
    where = sql.and_(slot.project_id == project_id, slot.state == "open", ORDINARY)
    first = sql.select(slot.language).where(where, slot.reserved_for == "").limit(LOOKED_AT).subquery()
    with store.read() as connection:
        many = sql.select(slot.reserved_for, sql.func.count()).where(where).group_by(slot.reserved_for)
        kept = {row[0]: row[1] for row in connection.execute(many)}
        spoken = sql.select(first.c.language, sql.func.count()).group_by(first.c.language)
        languages = {row[0]: row[1] for row in connection.execute(spoken)}
    return Waiting(kept.pop("", 0), kept, languages)


@dataclass(frozen=True)
class Member:
    """Somebody who holds a role in a project, or everywhere."""

    id: str
    name: str
    kind: str
    languages: tuple[str, ...]
    here: tuple[str, ...]
    everywhere: tuple[str, ...]


def members(store: Reader, project_id: str, kind: str = "live") -> list[Member]:
    """Active people with a role that counts in this project, by name."""
    who, grant = schema.person.c, schema.role_grant.c
    query = (
        sql.select(who.id, who.name, who.kind, who.languages, grant.role, grant.project_id.label("where"))
        .join(schema.role_grant, grant.person_id == who.id)
        .where(grant.project_id.in_(("", project_id)), who.status == "active", who.kind == kind)
        .order_by(who.name, grant.role)
    )
    found: dict[str, list[Any]] = {}
    with store.read() as connection:
        for row in connection.execute(query):
            found.setdefault(row.id, []).append(row)
    return [
        Member(
            rows[0].id,
            rows[0].name,
            rows[0].kind,
            tuple(rows[0].languages),
            tuple(row.role for row in rows if row.where),
            tuple(row.role for row in rows if not row.where),
        )
        for rows in found.values()
    ]


def by_form(store: Reader, project_id: str) -> list[tuple[int, int, int]]:
    """(form version, tasks made under it, of these not done), newest version first."""
    form = schema.form.c
    unfinished = sql.func.sum(sql.case((task.state.in_(("open", "stuck")), 1), else_=0))
    query = (
        sql.select(form.version, sql.func.count(), unfinished)
        .select_from(schema.task)
        .join(schema.form, form.id == task.form_id)
        .where(task.project_id == project_id)
        .group_by(form.version)
        .order_by(form.version.desc())
    )
    with store.read() as connection:
        return [(row[0], row[1], int(row[2] or 0)) for row in connection.execute(query)]


# what a lead changes


def make(
    store: Store,
    name: str,
    *,
    kind: str,
    questions: Sequence[Mapping[str, Any]],
    guideline: str,
    per_task: int,
    settings: Mapping[str, Any],
    new: Sequence[tasks.NewTask],
    by: str,
    taxonomy: taxonomies.NewTree | None = None,
) -> list[str]:
    """A fresh project with its tasks, in one transaction: all of it or nothing. Raises DataError for a name in use."""
    with store.write() as connection:
        if connection.execute(sql.select(schema.project.c.id).where(schema.project.c.name == name)).first():
            raise DataError(f"there is a project {name!r} already", key="name", todo="Give this one another name")
        where = tasks.put_project(
            connection, store, name, kind=kind, questions=questions, guideline=guideline, per_task=per_task,
            settings=settings, taxonomy=taxonomy, by=by,
        )  # fmt: skip
        return tasks.put(connection, where.id, where.form, new)


def publish(
    store: Store, project_id: str, base: int, questions: Sequence[Mapping[str, Any]], guideline: str, by: str
) -> int:
    """A new version of a project's form, for tasks to come; returns its number. What was published stays.

    Raises Refused when another version than `base` is the newest by now, DataError when nothing is changed.
    """
    form = schema.form
    content = {"questions": [dict(each) for each in questions], "guideline": guideline}
    with store.write() as connection:
        newest = connection.execute(
            sql.select(form).where(form.c.project_id == project_id).order_by(form.c.version.desc()).limit(1)
        ).first()
        if newest is None:
            raise NotFound(f"there is no project {project_id!r}", key="project")
        if newest.version != base:
            todo = f"Look at version {newest.version} and make your change again"
            raise Refused("somebody else has published another version meanwhile", key="version", todo=todo)
        if digest({"questions": newest.questions, "guideline": newest.guideline}) == digest(content):
            raise DataError("nothing is changed", key="form")
        tasks.put_form(connection, project_id, base + 1, content, newest.taxonomy_id, by)
    return base + 1


def reopen(store: Store, task_id: str, by: str) -> int:
    """Ask further people to do a stuck or closed task; returns how many places were opened."""
    with store.write() as connection:
        row, numbers = _held(connection, task_id)
        _others_may(row)
        missing = row.required - numbers["done"] - numbers["open"]
        if missing <= 0:
            raise DataError("this task has all the answers it wants, or waits for them", key="task")
        _open(connection, row, numbers["next"], missing)
        ledger.append(connection, by, "task.reopen", task_id, {"places": missing})
    return int(missing)


def assign(store: Store, task_id: str, person: str, by: str) -> None:
    """Keep a place in a task for one person. Raises DataError for somebody who has met this task already."""
    with store.write() as connection:
        row, numbers = _held(connection, task_id)
        _others_may(row)
        met = sql.select(slot.id).where(
            slot.task_id == task_id,
            sql.or_(slot.person_id == person, sql.and_(slot.reserved_for == person, slot.state == "open")),
        )
        if connection.execute(met).first():
            raise DataError("this person has had this task already", key="person", todo="Ask somebody else")
        free = connection.execute(
            sql.select(slot.id).where(slot.task_id == task_id, slot.state == "open", slot.reserved_for == "").limit(1)
        ).scalar()
        if free and numbers["done"] + numbers["open"] >= row.required:
            connection.execute(sql.update(schema.slot).where(slot.id == free).values(reserved_for=person, language=""))
        else:
            _open(connection, row, numbers["next"], 1, person)
        ledger.append(connection, by, "task.assign", task_id, {"person": person})


def close(store: Store, task_id: str, by: str, reason: str) -> None:
    """Ask nobody any more for a task, nor an adjudicator: places that nobody has answered become void, answers stay."""
    with store.write() as connection:
        _held(connection, task_id)
        connection.execute(
            sql.update(schema.slot)
            .where(slot.task_id == task_id, slot.state.in_(("open", "leased")), slot.purpose != gold.PURPOSE)
            .values(state="void", lease_until=0, lease_epoch=slot.lease_epoch + 1)
        )
        connection.execute(sql.update(schema.task).where(task.id == task_id).values(state="closed"))
        ledger.append(connection, by, "task.close", task_id, {"reason": reason})


def project_of(store: Reader, task_id: str) -> str:
    """The id of the project a task belongs to. Raises NotFound."""
    with store.read() as connection:
        found = connection.execute(sql.select(task.project_id).where(task.id == task_id)).scalar()
    if found is None:
        raise NotFound(f"there is no task {task_id!r}", key="task")
    return str(found)


def _held(connection: sql.Connection, task_id: str) -> tuple[Any, dict[str, int]]:
    """A task's row, held until the transaction ends, and how many places it has: done, open (or held), the next one."""
    row = connection.execute(sql.select(schema.task).where(task.id == task_id).with_for_update()).first()
    if row is None:
        raise NotFound(f"there is no task {task_id!r}", key="task")
    query = sql.select(slot.state, sql.func.count()).where(slot.task_id == task_id, ORDINARY)
    many: dict[str, int] = {state: number for state, number in connection.execute(query.group_by(slot.state))}
    open_ = many.get("open", 0) + many.get("leased", 0)
    return row, {"done": many.get("done", 0), "open": open_, "next": tasks.next_place(connection, task_id)}


def _others_may(row: Any) -> None:
    """Refuse to ask others about a turn of somebody's dialogue: it is theirs, and its words may be erased."""
    if row.kind == dialogues.KIND:
        raise DataError("a turn of a dialogue belongs to whoever speaks there", key="task", todo="Leave it closed")


def _open(connection: sql.Connection, row: Any, first: int, many: int, person: str = "") -> None:
    places = [
        tasks.slot_row(row.id, no, row.project_id, row.priority, row.position, person, "" if person else row.language)
        for no in range(first, first + many)
    ]
    connection.execute(sql.insert(schema.slot), places)
    connection.execute(sql.update(schema.task).where(task.id == row.id).values(state="open"))
