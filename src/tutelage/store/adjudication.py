"""Adjudication: where people differ, one who has seen all their answers decides, and says why they differed.

The place of an adjudicator is no place of its task: it fills none, and what is answered there is no voice among others.
Nobody adjudicates a task that they have answered: a task has one place for each person.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import sqlalchemy as sql

from tutelage.store import ledger, schema, tasks, texts
from tutelage.store.engine import Reader, Store

PURPOSE = "adjudicate"
ROLE = "adjudicator"
METHOD = "adjudication"
CAUSE, NOTE = "cause", "cause_note"
"""Names of the answers that say why people differed, and how the guideline could say it better."""
CAUSES: Mapping[str, str] = {
    "guideline_unclear": "the guideline can be read in two ways",
    "slip": "somebody slipped; the guideline says it",
    "ambiguous": "the text itself can be read in two ways",
    "contested": "both views are legitimate",
    "data_error": "the task is broken; nothing can be asked of it",
    "taxonomy_gap": "no label fits",
}
CONTESTED, BROKEN = "contested", "data_error"
"""Causes under which nothing is decided: a legitimate disagreement stands as it is, a broken task has no answer."""

slot, task = schema.slot.c, schema.task.c


def open_places(store: Store, project_id: str, ids: Sequence[str], by: str) -> list[str]:
    """Ask for an adjudicator in each of these tasks (of this project); returns those where there was none yet.

    A task is passed over while its own people are still asked, while it has no answer, and once it was adjudicated or
    waits for it. Where an adjudicator skipped it, the next one is asked.
    """
    opened: list[str] = []
    with store.write() as connection:
        for some in texts.chunks(list(dict.fromkeys(ids))):
            there = sql.exists().where(
                slot.task_id == task.id, slot.purpose == PURPOSE, slot.state.in_(("open", "leased", "done"))
            )
            answered = sql.exists().where(
                slot.task_id == task.id, slot.purpose == schema.ORDINARY, slot.state == "done"
            )
            for key in (task.id, schema.gold.c.task_id):  # others would take the same number, or open the same task
                connection.execute(sql.select(key).where(key.in_(some)).order_by(key).with_for_update()).all()
            query = sql.select(schema.task).where(
                task.id.in_(some), task.project_id == project_id, task.state != "open", answered, ~there
            )
            found = connection.execute(query.order_by(task.position)).all()
            rows = []
            for row in found:
                number = tasks.next_place(connection, row.id)
                rows.append(
                    tasks.slot_row(
                        row.id, number, project_id, row.priority, row.position, ROLE, row.language, purpose=PURPOSE
                    )
                )
            if rows:
                connection.execute(sql.insert(schema.slot), rows)
                opened += [row.id for row in found]
        if opened:
            ledger.append(connection, by, "adjudication.open", project_id, {"tasks": len(opened)})
    return opened


def places(connection: sql.Connection, project_id: str) -> dict[str, int]:
    """Adjudicators' places of a project by state, of those that are open, leased or done."""
    mine = (slot.project_id == project_id, slot.state.in_(("open", "leased", "done")), slot.reserved_for == ROLE)
    query = sql.select(slot.state, sql.func.count()).where(*mine, slot.purpose == PURPOSE).group_by(slot.state)
    return {state: number for state, number in connection.execute(query)}


def states(store: Reader, ids: Sequence[str]) -> dict[str, str]:
    """Task id -> how far its adjudication is (open, leased or done), of these tasks those that have one."""
    found: dict[str, str] = {}
    with store.read() as connection:
        for some in texts.chunks(ids):
            query = sql.select(slot.task_id, slot.state).where(
                slot.task_id.in_(some), slot.purpose == PURPOSE, slot.state.in_(("open", "leased", "done"))
            )
            found.update((row.task_id, row.state) for row in connection.execute(query))
    return found
