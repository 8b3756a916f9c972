"""The slots that people hold while they work on a task: handed out, kept, given back.

Times are the server's, never a client's. A clock that jumps makes leases run out sooner or later and nothing else:
every taking raises the slot's epoch, and an answer counts only with the epoch of whoever holds the slot now.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sql

from tutelage.core.errors import NotFound
from tutelage.store import adjudication, claimants, gold, schema, seen, texts
from tutelage.store.claimants import Claimant, claimant
from tutelage.store.engine import Reader, Store, now
from tutelage.store.people import ROLES
from tutelage.store.settings import ProjectSettings

slot, task = schema.slot.c, schema.task.c

WINDOW = 200
"""Open slots that are looked at one by one before those behind the person's last one are tried."""


@dataclass(frozen=True)
class Slot:
    """A place in a task that a person holds: `epoch` must be shown again when the answer comes."""

    id: str
    task: str
    project: str
    epoch: int
    lease_until: int
    purpose: str = schema.ORDINARY
    turn: int = 0
    position: int = 0


def claim(store: Store, person: str, project_ids: Sequence[str], count: int, lease_ms: int) -> list[Slot]:
    """See to it that a person holds `count` slots, and return them: those held already first, then the next ones.

    One transaction; a slot is given to one person at a time, and a person is never given a task twice. What the
    projects ask of people holds: qualifications, languages, caps; who is paused is given nothing. A slot whose lease
    ran out is still its holder's until somebody else is given it.
    """
    moment = now()
    with store.write(durable=False) as connection:
        who = claimant(connection, person, alone=True)
        stopped = gold.paused(connection, person, project_ids)
        open_ones = [id for id in project_ids if id not in stopped]
        found = _held(connection, person, open_ones, count, moment + lease_ms)
        if len(found) < count:
            rules = claimants.rules(connection, open_ones)
            for id in open_ones:
                missing = count - len(found)
                if missing > 0:
                    room, _ = claimants.room(connection, who, id, rules[id], missing, moment)
                    found += _take(connection, who, id, rules[id], room, moment, moment + lease_ms)
        return found


def _held(connection: sql.Connection, person: str, project_ids: Sequence[str], count: int, until: int) -> list[Slot]:
    """The slots a person holds, with a fresh lease."""
    mine = sql.and_(slot.person_id == person, slot.project_id.in_(list(project_ids)), slot.state == "leased")
    order = (slot.turn, slot.position, slot.purpose != schema.ORDINARY, slot.id)
    wanted = sql.select(slot.id).where(mine).order_by(*order).limit(count)
    ids = list(connection.execute(wanted).scalars())
    if not ids:
        return []
    rows = connection.execute(  # the condition again: elsewhere a lease that ran out may be given on at this moment
        sql.update(schema.slot).where(slot.id.in_(ids), mine).values(lease_until=until).returning(schema.slot)
    ).all()
    return [
        Slot(row.id, row.task_id, row.project_id, row.lease_epoch, until, row.purpose, row.turn, row.position)
        for row in sorted(rows, key=_order)
    ]


def _order(row: Slot | sql.Row[Any]) -> tuple[int, int, bool, str]:
    """Where a slot stands among those of a person: a gold task, which bears the position before its own, comes behind
    the ordinary one there, whenever they are looked at."""
    return row.turn, row.position, row.purpose != schema.ORDINARY, row.id


def _take(
    connection: sql.Connection,
    who: Claimant,
    project_id: str,
    rules: ProjectSettings,
    count: int,
    moment: int,
    until: int,
) -> list[Slot]:
    """Give a person up to `count` free slots of tasks they have not met, in the order of priority and position."""
    taken: list[Slot] = []
    tried: set[str] = set()
    met: set[str] = set()
    served = 0
    if rules.gold_share and count:
        mine = sql.and_(slot.person_id == who.id, slot.project_id == project_id)
        served = claimants.count(connection, sql.and_(mine, slot.purpose != adjudication.PURPOSE))
    while len(taken) < count:
        limit = 4 * (count - len(taken)) + 4 + len(tried)  # slots of one task lie together; others take some of them
        rows = [row for row in free(connection, who, project_id, limit, moment) if row.id not in tried]
        for row in rows:
            tried.add(row.id)
            if row.task_id in met or len(taken) == count:
                continue
            ordinary = row.purpose == schema.ORDINARY  # gold among adjudications would look like none of them
            while (
                ordinary
                and len(taken) < count
                and (found := _golden(connection, who, project_id, rules, served, row, until))
            ):
                served += 1
                taken.append(found)
            if len(taken) == count:
                break
            taking = {"which": row.id, "person": who.id, "moment": moment, "until": until}
            epoch = connection.execute(_TAKE, taking).scalar()
            if epoch is not None:
                served += ordinary
                met.add(row.task_id)
                taken.append(Slot(row.id, row.task_id, project_id, epoch, until, row.purpose, row.turn, row.position))
        if not rows:
            break
    return sorted(taken, key=_order)


def _golden(
    connection: sql.Connection,
    who: Claimant,
    project_id: str,
    rules: ProjectSettings,
    served: int,
    before: Any,
    until: int,
) -> Slot | None:
    """A gold task in the place before an ordinary slot, where one is due; not once more when somebody comes to the same
    number by giving tasks back."""
    if not gold.due(who.id, project_id, served, rules.gold_share):
        return None
    if gold.given(connection, who.id, project_id) > int(served * rules.gold_share):
        return None
    place = (before.turn, before.position)
    found = gold.serve(connection, who.id, who.languages, project_id, rules.gold_exposure, place, until)
    return Slot(*found, project_id, 1, until, gold.PURPOSE, before.turn, before.position - 1) if found else None


# The statements of a claim are built once: building them at every claim took longer than running them.

_some, _other = schema.slot.alias("some").c, schema.slot.alias("other").c
_PLACE = (slot.id, slot.task_id, slot.turn, slot.position, slot.purpose, slot.reserved_for)


def _closed(place: Any) -> sql.ColumnElement[bool]:
    """That a task is none for a person: they have met it, or seen how others answered it. Whose name stands on the
    place is asked all the same, and an adjudicator is there to look at the answers."""
    me: Any = sql.bindparam("person")
    met = sql.exists().where(_other.task_id == place.task_id, _other.person_id == me)
    asked = sql.and_(place.purpose == schema.ORDINARY, place.reserved_for != me)
    return sql.or_(met, sql.and_(asked, seen.saw(me, place.task_id, sql.bindparam("project"))))


_MET = _closed(slot)
_RAN_OUT = sql.and_(slot.state == "leased", slot.lease_until < sql.bindparam("moment"))

_TAKE = (
    sql.update(schema.slot)
    .where(
        slot.id.in_(
            sql.select(_some.id)
            .where(
                _some.id == sql.bindparam("which"),
                sql.or_(
                    _some.state == "open",
                    sql.and_(_some.state == "leased", _some.lease_until < sql.bindparam("moment")),
                ),
            )
            .with_for_update(skip_locked=True)
        )
    )
    .values(
        person_id=sql.bindparam("person"),
        state="leased",
        lease_until=sql.bindparam("until"),
        lease_epoch=slot.lease_epoch + 1,
    )
    .returning(slot.lease_epoch)
)
"""Takes one slot if it is still free; its new epoch."""

_BACK = (
    sql.select(*_PLACE)
    .where(slot.project_id == sql.bindparam("project"), _RAN_OUT, ~_MET)
    .where(slot.reserved_for.in_(sql.bindparam("names", expanding=True)))
    .where(slot.language.in_(sql.bindparam("languages", expanding=True)))
    .order_by(slot.turn, slot.position)
    .limit(sql.bindparam("most"))
)
"""Slots that came back or whose lease ran out."""

_KIND = sql.and_(
    slot.project_id == sql.bindparam("project"),
    slot.state == "open",
    slot.reserved_for == sql.bindparam("reserved"),
    slot.language == sql.bindparam("language"),
)
_BEHIND = (
    sql.select(*_PLACE)
    .where(_KIND, sql.tuple_(slot.turn, slot.position) > sql.tuple_(sql.bindparam("turn"), sql.bindparam("position")))
    .order_by(slot.turn, slot.position)
)
_window = _BEHIND.limit(sql.bindparam("window")).subquery()
_LOOK = (
    sql.select(_window)
    .where(~_closed(_window.c))
    .order_by(_window.c.turn, _window.c.position)
    .limit(sql.bindparam("most"))
)
"""Open slots of one kind behind a place, of tasks that are none of `_closed`; `window` of them are looked at."""
_END = _BEHIND.limit(1).offset(sql.bindparam("window"))
_ALL = sql.select(*_PLACE).where(_KIND, ~_MET).order_by(slot.turn, slot.position).limit(sql.bindparam("most"))
_LAST = (
    sql.select(slot.position)
    .where(
        slot.person_id == sql.bindparam("person"),
        slot.project_id == sql.bindparam("project"),
        slot.state == sql.bindparam("state"),
        slot.turn == sql.bindparam("turn"),
    )
    .order_by(slot.position.desc())
    .limit(1)
)
_RESERVED = sql.select(
    *(
        sql.exists()
        .where(slot.project_id == sql.bindparam("project"), slot.state == "open", slot.reserved_for == role)
        .label(role)
        for role in ROLES
    )
)
"""Whether a project has open slots reserved for a role, for each role."""


def free(connection: sql.Connection, who: Claimant, project_id: str, limit: int, moment: int) -> list[Any]:
    """The next slots that a person may take, in the order of priority and position; some may be of one task."""
    roles = who.roles(project_id)
    names = ("", who.id, *roles)  # what came back is not open, so all of them
    if roles != ("annotator",):  # most reserve nothing for a role: one look instead of a walk for each
        there = connection.execute(_RESERVED, {"project": project_id}).one()._mapping
        roles = tuple(role for role in roles if there[role])
    asked = {"project": project_id, "person": who.id, "most": limit}
    rows = list(connection.execute(_BACK, {**asked, "moment": moment, "names": names, "languages": who.languages}))
    rows += _walk(connection, {**asked, "reserved": who.id, "language": ""})
    for reserved in ("", *roles):
        for language in who.languages:
            rows += _walk(connection, {**asked, "reserved": reserved, "language": language})
    return sorted(rows, key=lambda row: (row.turn, row.position))[:limit]


def _walk(connection: sql.Connection, asked: Mapping[str, Any]) -> list[Any]:
    """Open slots of one kind in the order of the index, of tasks the person has not met.

    Whoever works through a project has met the tasks before their last one, and walking over those at every claim
    would take longer with every answer: after a window of them the walk goes on behind the last one of its turn. What
    was given back before it is not among the open ones; what else may be there is found when nothing is left behind.
    """
    found: list[Any] = []
    after, jumped = {"turn": -(2**31), "position": -1}, False
    while True:
        here = {**asked, **after}
        found += connection.execute(_LOOK, {**here, "window": WINDOW, "most": asked["most"] - len(found)})
        if len(found) >= asked["most"]:
            return found
        end = connection.execute(_END, {**here, "window": WINDOW - 1}).first()
        if end is None:
            break
        mine = (
            connection.execute(_LAST, {**asked, "turn": end.turn, "state": state}).scalar()
            for state in ("done", "leased")
        )
        last = max((at for at in mine if at is not None), default=-1)
        jumped = jumped or last > end.position
        after = {"turn": end.turn, "position": max(end.position, last)}
    return found or (list(connection.execute(_ALL, asked)) if jumped else [])


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
    purpose: str = schema.ORDINARY


def briefs(store: Reader, slots: Sequence[str]) -> dict[str, Brief]:
    """Slot id -> what its task asks."""
    table = schema.candidate
    many = sql.select(sql.func.count()).where(table.c.task_id == task.id).scalar_subquery()
    query = (
        sql.select(slot.id, slot.task_id, slot.purpose, task.kind, task.form_id, many.label("many"))
        .select_from(schema.slot)
        .join(schema.task, task.id == slot.task_id)
    )
    found: dict[str, Brief] = {}
    with store.read() as connection:
        for some in texts.chunks(list(dict.fromkeys(slots))):
            for row in connection.execute(query.where(slot.id.in_(some))):
                found[row.id] = Brief(row.task_id, row.kind, row.form_id, row.many, row.purpose)
    return found


def give_back(store: Store, person: str, slot_id: str, epoch: int) -> bool:
    """Return a slot unanswered, next for whoever comes; False when it is no longer held."""
    with store.write(durable=False) as connection:
        changed = connection.execute(
            sql.update(schema.slot)
            .where(slot.id == slot_id, slot.person_id == person, slot.lease_epoch == epoch, slot.state == "leased")
            .values(person_id=None, lease_until=0)
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


def answered(store: Reader, person: str, project_id: str) -> int:
    """How many tasks a person has answered in a project."""
    mine = sql.and_(slot.person_id == person, slot.project_id == project_id, slot.state == "done")
    with store.read() as connection:
        return claimants.count(connection, mine)


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
