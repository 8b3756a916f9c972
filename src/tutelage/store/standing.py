"""Where a project stands, and why somebody is given nothing: counted over a project, told in one sentence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sql

from tutelage.store import adjudication, gold, schema, seen, slots
from tutelage.store.claimants import Claimant, claimant, count, room, rules
from tutelage.store.engine import Reader, now

slot, task = schema.slot.c, schema.task.c


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
        leased = count(
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
        who = claimant(connection, person)
        stopped = gold.paused(connection, person, project_ids)
        asked = rules(connection, project_ids)
        found: list[str] = []
        for id in project_ids:
            left, why = (0, REASONS["paused"]) if id in stopped else room(connection, who, id, asked[id], 1, moment)
            found.append(_waiting(connection, who, id, moment) if left else why)
    known = [sentence for sentence in found if sentence not in REASONS.values()]
    order = [REASONS["paused"], *known, *list(REASONS.values())[1:]]
    return min(found, key=order.index, default=REASONS["none"])


def prospects(store: Reader, person: str, project_ids: Sequence[str]) -> dict[str, str]:
    """Project id -> "" where a person would be given something now, else why not, in a sentence. Takes nothing, and
    looks at the person's own places and the next free ones, never at a whole project."""
    moment, found = now(), {}
    with store.read() as connection:
        who = claimant(connection, person)
        stopped = gold.paused(connection, person, project_ids)
        asked = rules(connection, project_ids)
        mine = sql.and_(slot.person_id == person, slot.state == "leased")
        held = set(connection.execute(sql.select(slot.project_id).where(mine).distinct()).scalars())
        for id in project_ids:
            left, why = (0, REASONS["paused"]) if id in stopped else room(connection, who, id, asked[id], 1, moment)
            if id in held and id not in stopped:
                why = ""
            elif left:
                why = "" if slots.free(connection, who, id, 1, moment) else _waiting(connection, who, id, moment)
            found[id] = why
    return found


def _waiting(connection: sql.Connection, who: Claimant, project_id: str, moment: int) -> str:
    """What still waits in a project that lets a person in; each look ends at the first slot it finds."""
    here, is_open = slot.project_id == project_id, slot.state == "open"

    def there(*conditions: sql.ColumnElement[bool]) -> bool:
        return bool(connection.execute(sql.select(sql.exists().where(here, *conditions))).scalar())

    anybody, ran_out = slot.reserved_for == "", sql.and_(slot.state == "leased", slot.lease_until < moment)
    some = [(state, anybody, slot.language == each) for state in (is_open, ran_out) for each in who.languages]
    if any(there(*each) for each in some):
        other = schema.slot.alias("other").c
        met = sql.exists().where(other.task_id == slot.task_id, other.person_id == who.id)
        looked = (~met, seen.saw(who.id, slot.task_id, slot.project_id))
        return REASONS["seen" if any(there(*each, *looked) for each in some) else "met"]
    if there(is_open, anybody, slot.language.not_in(who.languages)):
        return REASONS["language"]
    if there(slot.state == "leased", slot.lease_until >= moment):
        return REASONS["held"]
    if there(sql.or_(is_open, slot.state == "leased")):
        return REASONS["reserved"]
    return REASONS["done"] if there() else REASONS["none"]
