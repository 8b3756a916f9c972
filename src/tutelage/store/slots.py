"""The slots that people hold while they work on a task: handed out, kept, given back; and where a project stands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sql

from tutelage.core.errors import NotFound
from tutelage.store import schema, texts
from tutelage.store.engine import Reader, Store, now

slot, task = schema.slot.c, schema.task.c


@dataclass(frozen=True)
class Slot:
    """A place in a task that a person holds: `epoch` must be shown again when the answer comes."""

    id: str
    task: str
    project: str
    epoch: int
    lease_until: int
    purpose: str = "normal"


def claim(store: Store, person: str, project_ids: Sequence[str], count: int, lease_ms: int) -> list[Slot]:
    """See to it that a person holds `count` slots, and return them: those held already first, then the next ones.

    One transaction; a slot is given to one person at a time, and a person is never given a task twice.
    """
    moment = now()
    with store.write(durable=False) as connection:
        held = connection.execute(
            sql.select(schema.slot)
            .where(
                slot.person_id == person,
                slot.project_id.in_(list(project_ids)),
                slot.state == "leased",
                slot.lease_until >= moment,
            )
            .order_by(slot.turn, slot.position)
            .limit(count)
        ).all()
        ids = [row.id for row in held]
        if ids:
            connection.execute(sql.update(schema.slot).where(slot.id.in_(ids)).values(lease_until=moment + lease_ms))
        found = [
            Slot(row.id, row.task_id, row.project_id, row.lease_epoch, moment + lease_ms, row.purpose) for row in held
        ]
        for project_id in project_ids:
            if len(found) < count:
                found += _claim_in(connection, store, person, project_id, count - len(found), moment, lease_ms)
        return found


def _claim_in(
    connection: sql.Connection, store: Store, person: str, project_id: str, count: int, moment: int, lease_ms: int
) -> list[Slot]:
    other = schema.slot.alias("other")
    met = sql.exists().where(other.c.task_id == slot.task_id, other.c.person_id == person)
    lasts = (
        sql.select(slot.turn, slot.position)
        .where(slot.person_id == person, slot.project_id == project_id, slot.state.in_(("done", "leased")))
        .order_by(slot.turn.desc(), slot.position.desc())
        .limit(1)
    )
    base = sql.select(schema.slot).where(slot.project_id == project_id, ~met).order_by(slot.turn, slot.position)
    is_open = slot.state == "open"
    waiting = [base.where(is_open, slot.reserved_for == person)]
    last = connection.execute(lasts).first()
    free = base.where(is_open, slot.reserved_for == "")
    if last:  # go on behind the last one: without this, each claim would walk over all tasks the person has met
        waiting.append(free.where(slot.turn < last.turn))
        waiting.append(free.where(slot.turn == last.turn, slot.position > last.position))
    waiting.append(free)
    waiting.append(base.where(slot.state == "leased", slot.lease_until < moment, slot.reserved_for.in_(("", person))))
    taken: list[Slot] = []
    seen: set[str] = set()
    for query in waiting:
        missing = count - len(taken)
        if missing <= 0:
            break
        limit = missing if missing == 1 else missing * 4  # slots of one task lie together: some rows are doubles
        query = query.limit(limit).with_for_update(skip_locked=True, of=schema.slot)
        for row in connection.execute(query).all():
            if row.task_id in seen or len(taken) == count:
                continue
            seen.add(row.task_id)
            epoch = connection.execute(
                sql.update(schema.slot)
                .where(
                    slot.id == row.id,
                    sql.or_(slot.state == "open", sql.and_(slot.state == "leased", slot.lease_until < moment)),
                )
                .values(
                    person_id=person, state="leased", lease_until=moment + lease_ms, lease_epoch=slot.lease_epoch + 1
                )
                .returning(slot.lease_epoch)
            ).scalar()
            if epoch is not None:
                taken.append(Slot(row.id, row.task_id, project_id, int(epoch), moment + lease_ms, row.purpose))
    return taken


def held(store: Reader, slot_id: str) -> Any:
    """The row of a slot (person_id, task_id, state, lease_epoch, ...). Raises NotFound."""
    with store.read() as connection:
        row = connection.execute(sql.select(schema.slot).where(slot.id == slot_id)).first()
    if not row:
        raise NotFound(f"there is no slot {slot_id!r}", key="slot")
    return row


@dataclass(frozen=True)
class Brief:
    """What must be known of a slot's task to check an answer."""

    task: str
    kind: str
    form: str
    candidates: int


def briefs(store: Reader, slots: Sequence[str]) -> dict[str, Brief]:
    """Slot id -> what its task asks."""
    table = schema.candidate
    many = sql.select(sql.func.count()).where(table.c.task_id == task.id).scalar_subquery()
    query = (
        sql.select(slot.id, slot.task_id, task.kind, task.form_id, many.label("many"))
        .select_from(schema.slot)
        .join(schema.task, task.id == slot.task_id)
    )
    found: dict[str, Brief] = {}
    with store.read() as connection:
        for some in texts.chunks(list(dict.fromkeys(slots))):
            for row in connection.execute(query.where(slot.id.in_(some))):
                found[row.id] = Brief(row.task_id, row.kind, row.form_id, row.many)
    return found


def give_back(store: Store, person: str, slot_id: str, epoch: int) -> bool:
    """Return a slot unanswered; False when it is no longer held."""
    with store.write(durable=False) as connection:
        changed = connection.execute(
            sql.update(schema.slot)
            .where(slot.id == slot_id, slot.person_id == person, slot.lease_epoch == epoch, slot.state == "leased")
            .values(state="open", person_id=None, lease_until=0)
        )
        return bool(changed.rowcount)


def save_draft(store: Store, person: str, slot_id: str, epoch: int, body: Mapping[str, Any]) -> bool:
    """Keep an unfinished answer; False when the slot is no longer held."""
    with store.write(durable=False) as connection:
        mine = connection.execute(
            sql.select(slot.id).where(
                slot.id == slot_id, slot.person_id == person, slot.lease_epoch == epoch, slot.state == "leased"
            )
        ).first()
        if not mine:
            return False
        connection.execute(
            store.insert(schema.draft)
            .values(slot_id=slot_id, person_id=person, body=dict(body), updated_at=now())
            .on_conflict_do_update(
                index_elements=["slot_id", "person_id"], set_={"body": dict(body), "updated_at": now()}
            )
        )
        return True


def drafts(store: Reader, person: str, slots: Sequence[str]) -> dict[str, Mapping[str, Any]]:
    """Slot id -> the unfinished answer this person left there."""
    table = schema.draft
    with store.read() as connection:
        rows = connection.execute(
            sql.select(table.c.slot_id, table.c.body).where(
                table.c.person_id == person, table.c.slot_id.in_(list(slots))
            )
        ).all()
    return {row.slot_id: row.body for row in rows}


@dataclass(frozen=True)
class Counts:
    """Where a project stands."""

    tasks: int
    done: int
    slots: int
    answered: int
    leased: int
    stuck: int


def counts(store: Reader, project_id: str) -> Counts:
    """Tasks and slots of a project by state."""
    moment = now()
    with store.read() as connection:
        states = dict(
            connection.execute(
                sql.select(task.state, sql.func.count()).where(task.project_id == project_id).group_by(task.state)
            ).all()
        )
        places = dict(
            connection.execute(
                sql.select(slot.state, sql.func.count()).where(slot.project_id == project_id).group_by(slot.state)
            ).all()
        )
        leased = connection.execute(
            sql.select(sql.func.count()).where(
                slot.project_id == project_id, slot.state == "leased", slot.lease_until >= moment
            )
        ).scalar_one()
    filled = places.get("done", 0)
    wanted = filled + places.get("open", 0) + places.get("leased", 0)
    return Counts(sum(states.values()), states.get("done", 0), wanted, filled, leased, states.get("stuck", 0))


def why_empty(store: Reader, person: str, project_ids: Sequence[str]) -> str:
    """Why there is nothing to do for a person, in one sentence."""
    moment = now()
    with store.read() as connection:
        where = slot.project_id.in_(list(project_ids))
        free = connection.execute(
            sql.select(sql.func.count()).where(where, slot.state == "open", slot.reserved_for == "")
        ).scalar_one()
        others = connection.execute(
            sql.select(sql.func.count()).where(where, slot.state == "leased", slot.lease_until >= moment)
        ).scalar_one()
        total = connection.execute(sql.select(sql.func.count()).where(where)).scalar_one()
    if not project_ids or not total:
        return "No tasks have been added yet."
    if free:
        return "You have answered every task that still waits for others: each person answers a task once."
    if others:
        return "The last tasks are in other people's hands; they come back if their time runs out."
    return "Everything here is answered."


def reserved(store: Reader, person: str, project_id: str) -> dict[str, str]:
    """Task id -> the slot that is kept for a person, of those not answered yet."""
    query = sql.select(slot.task_id, slot.id).where(
        slot.project_id == project_id, slot.reserved_for == person, slot.state.in_(("open", "leased"))
    )
    with store.read() as connection:
        return {row.task_id: row.id for row in connection.execute(query)}


def take(store: Store, person: str, ids: Sequence[str], lease_ms: int = 900_000) -> dict[str, int]:
    """Hold slots that are kept for a person, whatever the rules of their project say: slot id -> epoch."""
    found: dict[str, int] = {}
    with store.write(durable=False) as connection:
        for some in texts.chunks(ids):
            made = connection.execute(
                sql.update(schema.slot)
                .where(slot.id.in_(some), slot.reserved_for == person, slot.state.in_(("open", "leased")))
                .values(
                    person_id=person, state="leased", lease_until=now() + lease_ms, lease_epoch=slot.lease_epoch + 1
                )
                .returning(slot.id, slot.lease_epoch)
            )
            found.update((row.id, row.lease_epoch) for row in made)
    return found
