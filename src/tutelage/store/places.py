"""What becomes of the places of a task when somebody has answered one, passed it over, or taken an answer back: others
are asked instead, and a task that has all it wants is done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sql

from tutelage.store import gold, schema, tasks, texts
from tutelage.store.engine import now

PASSED = ("skipped", "flagged")

EXTRA_SLOTS = 3
"""A task that was skipped or flagged this many times more than it wants people waits for a lead (state `stuck`)."""


@dataclass(frozen=True)
class Left:
    """How a person left a place: with an answer (`submitted`), without one, or taking one back (`withdrawn`)."""

    row: Any
    """The slot as it was before, with its task."""
    status: str
    lease_ms: int
    """How long the place stays one's own after an answer was withdrawn."""


def kept_from(connection: sql.Connection, status: str, row: Any) -> str:
    """Why an answer comes too late for its own slot, "" where it does not.

    A place that was passed over can be had back while nobody has begun in the place that was opened instead; that one
    is set aside (`spare`).
    """
    if status == "withdrawn" and row.state == "leased":
        return "nothing was answered here that could be taken back"
    if row.state not in PASSED or status in PASSED or row.purpose != schema.ORDINARY:
        return ""
    slot, task = schema.slot.c, schema.task.c
    wanted = connection.execute(sql.select(task.required).where(task.id == row.task_id).with_for_update()).scalar_one()
    others = connection.execute(
        sql.select(slot.id, slot.state, slot.reserved_for).where(
            slot.task_id == row.task_id,
            slot.id != row.id,
            slot.state.in_(("open", "leased", "done")),
            slot.purpose == schema.ORDINARY,
        )
    ).all()
    if len(others) < wanted:
        return ""
    for each in others:
        if each.state != "done" and each.reserved_for == "":
            nobodys = (slot.id == each.id, slot.state.in_(("open", "leased")), slot.person_id.is_(None))
            aside = sql.update(schema.slot).where(*nobodys).values(state="spare")
            if connection.execute(aside).rowcount:
                return ""
    return "somebody else was asked instead and has begun; nothing was stored"


def settle(connection: sql.Connection, left: Sequence[Left]) -> None:
    """Close answered slots, open new ones for what was passed over, and close tasks that have all they want."""
    slot, task = schema.slot, schema.task
    done = [each.row.id for each in left if each.status == "submitted"]
    if done:
        connection.execute(sql.update(slot).where(slot.c.id.in_(done)).values(state="done"))
    ordinary = slot.c.purpose == schema.ORDINARY
    back = [each.row.task_id for each in left if each.status != "submitted" and each.row.purpose != gold.PURPOSE]
    closed: set[str] = set()  # by a lead: nobody is asked there any more
    for some in texts.chunks(back):
        query = sql.select(task.c.id).where(task.c.id.in_(some), task.c.state == "closed")
        closed.update(connection.execute(query).scalars())
    for each in left:
        if each.status == "withdrawn" and each.row.task_id in closed:
            connection.execute(sql.update(slot).where(slot.c.id == each.row.id).values(state="void"))
        elif each.status == "withdrawn":
            again = {"lease_until": now() + each.lease_ms, "lease_epoch": slot.c.lease_epoch + 1}
            connection.execute(sql.update(slot).where(slot.c.id == each.row.id).values(state="leased", **again))
        elif each.status in PASSED:
            connection.execute(sql.update(slot).where(slot.c.id == each.row.id).values(state=each.status))
            if each.row.reserved_for == "" and each.row.state not in PASSED and each.row.task_id not in closed:
                _ask_another(connection, each.row)
    touched = sorted({each.row.task_id for each in left if each.row.purpose == schema.ORDINARY})
    opened = any(each.status != "submitted" for each in left)
    for some in texts.chunks(touched):
        waiting = sql.exists().where(slot.c.task_id == task.c.id, ordinary, slot.c.state.in_(("open", "leased")))
        answered = (
            sql.select(sql.func.count())
            .where(slot.c.task_id == task.c.id, ordinary, slot.c.state == "done")
            .scalar_subquery()
        )
        connection.execute(
            sql.update(task)
            .where(task.c.id.in_(some), task.c.state != "closed", ~waiting)  # a lead has closed it, a lead reopens it
            .values(state=sql.case((answered >= task.c.required, "done"), else_="stuck"))
        )
        if opened:
            other = (task.c.id.in_(some), waiting, task.c.state.not_in(("open", "closed")))
            connection.execute(sql.update(task).where(*other).values(state="open"))


def _ask_another(connection: sql.Connection, row: Any) -> None:
    """A place for somebody else, in a task that was passed over; none once too many people have passed it over."""
    slot, task = schema.slot, schema.task
    aside = sql.select(slot.c.id).where(slot.c.task_id == row.task_id, slot.c.state == "spare").limit(1)
    if spare := connection.execute(aside).scalar():
        connection.execute(sql.update(slot).where(slot.c.id == spare).values(state="open"))
        return
    number = tasks.next_place(connection, row.task_id)
    ordinary = sql.and_(slot.c.task_id == row.task_id, slot.c.purpose == schema.ORDINARY)
    many = sql.select(sql.func.count()).where(ordinary).scalar_subquery()
    wants = connection.execute(sql.select(task.c.required, many.label("many")).where(task.c.id == row.task_id)).one()
    if wants.many < wants.required + EXTRA_SLOTS:
        made = tasks.slot_row(row.task_id, number, row.project_id, -row.turn, row.position, "", row.language)
        made["state"] = "leased"  # and its lease has run out: it comes back before the open ones
        connection.execute(sql.insert(slot).values(**made))
