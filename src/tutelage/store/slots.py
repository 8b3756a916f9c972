"""The slots that people hold while they work on a task: handed out, kept, given back; and where a project stands.

Times are the server's, never a client's. A clock that jumps makes leases run out sooner or later and nothing else:
every taking raises the slot's epoch, and an answer counts only with the epoch of whoever holds the slot now.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sql

from tutelage.core.errors import NotFound
from tutelage.store import adjudication, gold, qualifications, schema, seen, texts
from tutelage.store.engine import Reader, Store, now
from tutelage.store.people import ROLES
from tutelage.store.settings import ProjectSettings

slot, task = schema.slot.c, schema.task.c

WINDOW = 200
"""Open slots that are looked at one by one before those behind the person's last one are tried."""
DAY = 86_400_000


@dataclass(frozen=True)
class Slot:
    """A place in a task that a person holds: `epoch` must be shown again when the answer comes."""

    id: str
    task: str
    project: str
    epoch: int
    lease_until: int
    purpose: str = schema.ORDINARY


@dataclass(frozen=True)
class _Claimant:
    """Who asks: the languages they named ("" for none) and the roles they hold, with the project or ""."""

    id: str
    languages: tuple[str, ...]
    grants: tuple[tuple[str, str], ...]

    def roles(self, project_id: str) -> tuple[str, ...]:
        held = {role for role, where in self.grants if where in ("", project_id)}
        return ROLES if "owner" in held else tuple(sorted(held))


def _claimant(connection: sql.Connection, person: str, alone: bool = False) -> _Claimant:
    """Who asks. `alone` lets one claim of a person through at a time (SQLite has one writer anyhow)."""
    who, held = schema.person.c, schema.role_grant.c
    query = sql.select(who.languages).where(who.id == person)
    languages = connection.execute(query.with_for_update(key_share=True) if alone else query).scalar()
    grants = connection.execute(sql.select(held.role, held.project_id).where(held.person_id == person))
    return _Claimant(person, ("", *dict.fromkeys(languages or ())), tuple((role, where) for role, where in grants))


def claim(store: Store, person: str, project_ids: Sequence[str], count: int, lease_ms: int) -> list[Slot]:
    """See to it that a person holds `count` slots, and return them: those held already first, then the next ones.

    One transaction; a slot is given to one person at a time, and a person is never given a task twice. What the
    projects ask of people holds: qualifications, languages, caps; who is paused is given nothing. A slot whose lease
    ran out is still its holder's until somebody else is given it.
    """
    moment = now()
    with store.write(durable=False) as connection:
        who = _claimant(connection, person, alone=True)
        stopped = gold.paused(connection, person, project_ids)
        open_ones = [id for id in project_ids if id not in stopped]
        found = _held(connection, person, open_ones, count, moment + lease_ms)
        if len(found) < count:
            rules = _rules(connection, open_ones)
            for id in open_ones:
                missing = count - len(found)
                if missing > 0:
                    room, _ = _room(connection, who, id, rules[id], missing, moment)
                    found += _take(connection, who, id, rules[id], room, moment, moment + lease_ms)
        return found


def _held(connection: sql.Connection, person: str, project_ids: Sequence[str], count: int, until: int) -> list[Slot]:
    """The slots a person holds, with a fresh lease."""
    mine = sql.and_(slot.person_id == person, slot.project_id.in_(list(project_ids)), slot.state == "leased")
    wanted = sql.select(slot.id).where(mine).order_by(slot.turn, slot.position).limit(count)
    ids = list(connection.execute(wanted).scalars())
    if not ids:
        return []
    rows = connection.execute(  # the condition again: elsewhere a lease that ran out may be given on at this moment
        sql.update(schema.slot).where(slot.id.in_(ids), mine).values(lease_until=until).returning(schema.slot)
    ).all()
    return [
        Slot(row.id, row.task_id, row.project_id, row.lease_epoch, until, row.purpose)
        for row in sorted(rows, key=lambda row: (row.turn, row.position))
    ]


def _rules(connection: sql.Connection, project_ids: Sequence[str]) -> dict[str, ProjectSettings]:
    table = schema.project.c
    query = sql.select(table.id, table.settings).where(table.id.in_(list(project_ids)))
    return {row.id: ProjectSettings.of(row.settings) for row in connection.execute(query)}


def _room(
    connection: sql.Connection, who: _Claimant, project_id: str, rules: ProjectSettings, wanted: int, moment: int
) -> tuple[int, str]:
    """How many more tasks (up to `wanted`) the project's rules leave a person; when none, why, in a sentence."""
    if rules.qualifications:
        missing = sorted(set(rules.qualifications) - qualifications.held(connection, who.id))
        if missing:
            return 0, f"This asks for a qualification that you do not have yet: {', '.join(missing)}. A lead grants it."
    if rules.languages and not set(rules.languages) & set(who.languages):
        return 0, f"This is for people who named one of these languages: {', '.join(rules.languages)}."
    room, why = wanted, ""
    if rules.most_per_person is not None:
        mine = sql.and_(slot.person_id == who.id, slot.project_id == project_id, slot.state.in_(("done", "leased")))
        left = rules.most_per_person - _count(connection, mine)
        if left < room:
            room, why = left, f"You have had the {rules.most_per_person} tasks that one person may answer here."
    if rules.most_per_day is not None:
        given = schema.annotation.c
        last = (
            sql.select(given.at)
            .where(given.person_id == who.id, given.project_id == project_id, given.revision == 1)
            .where(given.status == "submitted")
            .order_by(given.seq.desc())
            .limit(rules.most_per_day)
            .subquery()
        )
        today = sql.select(sql.func.count()).select_from(last).where(last.c.at >= moment - moment % DAY)
        mine = sql.and_(slot.person_id == who.id, slot.project_id == project_id, slot.state == "leased")
        left = rules.most_per_day - connection.execute(today).scalar_one() - _count(connection, mine)
        if left < room:
            room, why = left, f"You have had the {rules.most_per_day} tasks of today; tomorrow (UTC) there are more."
    return max(0, room), why


def _count(connection: sql.Connection, where: sql.ColumnElement[bool]) -> int:
    return connection.execute(sql.select(sql.func.count()).select_from(schema.slot).where(where)).scalar_one()


def _take(
    connection: sql.Connection,
    who: _Claimant,
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
        served = _count(connection, sql.and_(mine, slot.purpose != adjudication.PURPOSE))
    while len(taken) < count:
        limit = 4 * (count - len(taken)) + 4 + len(tried)  # slots of one task lie together; others take some of them
        rows = [row for row in _free(connection, who, project_id, limit, moment) if row.id not in tried]
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
                taken.append(Slot(row.id, row.task_id, project_id, epoch, until, row.purpose))
        if not rows:
            break
    return taken


def _golden(
    connection: sql.Connection,
    who: _Claimant,
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
    return Slot(*found, project_id, 1, until, gold.PURPOSE) if found else None


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


def _free(connection: sql.Connection, who: _Claimant, project_id: str, limit: int, moment: int) -> list[Any]:
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


@dataclass(frozen=True)
class Counts:
    """Where a project stands; gold tasks that people were given on the way and adjudications are not counted."""

    tasks: int
    done: int
    slots: int
    answered: int
    leased: int
    stuck: int


def counts(store: Reader, project_id: str) -> Counts:
    """Tasks and slots of a project by state. Walks over the project: not for the way of the next task."""
    number = sql.func.count()
    every = sql.select(slot.state, number).where(slot.project_id == project_id).group_by(slot.state)
    shown = (
        sql.select(slot.state, number)
        .select_from(schema.gold)
        .join(schema.slot, slot.task_id == schema.gold.c.task_id)
        .where(slot.project_id == project_id, slot.purpose == gold.PURPOSE)
        .group_by(slot.state)
    )
    with store.read() as connection:
        states = _table(
            connection, sql.select(task.state, number).where(task.project_id == project_id).group_by(task.state)
        )
        places, extra = _table(connection, every), _table(connection, shown)
        deciding = adjudication.places(connection, project_id)
        leased = _count(
            connection,
            sql.and_(
                slot.project_id == project_id,
                slot.state == "leased",
                slot.lease_until >= now(),
                slot.purpose == schema.ORDINARY,
            ),
        )
    filled, taken, free = (
        places.get(state, 0) - extra.get(state, 0) - deciding.get(state, 0) for state in ("done", "leased", "open")
    )
    states.pop(gold.PURPOSE, None)
    total = sum(states.values())
    return Counts(total, states.get("done", 0), filled + taken + free, filled, leased, states.get("stuck", 0))


def _table(connection: sql.Connection, query: sql.Select[Any]) -> dict[str, int]:
    return {name: number for name, number in connection.execute(query)}


def answered(store: Reader, person: str, project_id: str) -> int:
    """How many tasks a person has answered in a project."""
    mine = sql.and_(slot.person_id == person, slot.project_id == project_id, slot.state == "done")
    with store.read() as connection:
        return _count(connection, mine)


REASONS = {
    "paused": "A lead looks at your answers first; then you can go on.",
    "met": "You have answered every task that still waits for others: each person answers a task once.",
    "seen": "You have seen what others answered to the tasks that still wait, so they are for people who have not.",
    "language": "No task waits in a language that you named; your profile says which.",
    "reserved": "The tasks that still wait are reserved for others.",
    "held": "The last tasks are in other people's hands; they come back if their time runs out.",
    "none": "No tasks have been added yet.",
    "done": "Everything here is answered.",
}
"""Why somebody is given nothing, where the project's rules do not say it themselves."""


def why_empty(store: Reader, person: str, project_ids: Sequence[str]) -> str:
    """Why there is nothing to do for a person, in one sentence; of several projects what can soonest be changed."""
    moment = now()
    with store.read() as connection:
        who = _claimant(connection, person)
        stopped = gold.paused(connection, person, project_ids)
        rules = _rules(connection, project_ids)
        found: list[str] = []
        for id in project_ids:
            room, why = (0, REASONS["paused"]) if id in stopped else _room(connection, who, id, rules[id], 1, moment)
            found.append(_waiting(connection, who, id, moment) if room else why)
    known = [sentence for sentence in found if sentence not in REASONS.values()]
    order = [REASONS["paused"], *known, *list(REASONS.values())[1:]]
    return min(found, key=order.index, default=REASONS["none"])


def prospects(store: Reader, person: str, project_ids: Sequence[str]) -> dict[str, str]:
    """Project id -> "" where a person would be given something now, else why not, in a sentence. Takes nothing, and
    looks at the person's own places and the next free ones, never at a whole project."""
    moment, found = now(), {}
    with store.read() as connection:
        who = _claimant(connection, person)
        stopped = gold.paused(connection, person, project_ids)
        rules = _rules(connection, project_ids)
        mine = sql.and_(slot.person_id == person, slot.state == "leased")
        held = set(connection.execute(sql.select(slot.project_id).where(mine).distinct()).scalars())
        for id in project_ids:
            room, why = (0, REASONS["paused"]) if id in stopped else _room(connection, who, id, rules[id], 1, moment)
            if id in held and id not in stopped:
                why = ""
            elif room:
                why = "" if _free(connection, who, id, 1, moment) else _waiting(connection, who, id, moment)
            found[id] = why
    return found


def _waiting(connection: sql.Connection, who: _Claimant, project_id: str, moment: int) -> str:
    """What still waits in a project that lets a person in; each look ends at the first slot it finds."""
    here, is_open = slot.project_id == project_id, slot.state == "open"

    def there(*conditions: sql.ColumnElement[bool]) -> bool:
        return bool(connection.execute(sql.select(sql.exists().where(here, *conditions))).scalar())

    anybody, ran_out = slot.reserved_for == "", sql.and_(slot.state == "leased", slot.lease_until < moment)
    some = [(state, anybody, slot.language == each) for state in (is_open, ran_out) for each in who.languages]
    if any(there(*each) for each in some):
        met = sql.exists().where(_other.task_id == slot.task_id, _other.person_id == who.id)
        looked = (~met, seen.saw(who.id, slot.task_id, slot.project_id))
        return REASONS["seen" if any(there(*each, *looked) for each in some) else "met"]
    if there(is_open, anybody, slot.language.not_in(who.languages)):
        return REASONS["language"]
    if there(slot.state == "leased", slot.lease_until >= moment):
        return REASONS["held"]
    if there(sql.or_(is_open, slot.state == "leased")):
        return REASONS["reserved"]
    return REASONS["done"] if there() else REASONS["none"]


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
