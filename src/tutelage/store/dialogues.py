"""Turns of conversations that people hold with models: each a task of its own, its one place reserved for who talks."""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sql

from tutelage.core.errors import NotFound
from tutelage.store import schema
from tutelage.store.engine import Reader, Store, now

KIND = "dialogue"
"""The kind of these tasks. A task's cluster names its dialogue, so all turns of one fall into one split."""


@dataclass(frozen=True)
class Turn:
    """One turn as it was opened; `state` is that of its place: open, leased, done, skipped or flagged."""

    task: str
    slot: str
    dialogue: str
    state: str
    epoch: int
    person: str


def turns(store: Reader, project: str, *, person: str = "", dialogue: str = "") -> list[Turn]:
    """The turns of a project (its id), in the order they were opened; of one person or one dialogue."""
    task, slot = schema.task.c, schema.slot.c
    query = (
        sql.select(task.id, task.cluster, slot.id.label("slot"), slot.state, slot.lease_epoch, slot.reserved_for)
        .join(schema.slot, slot.task_id == task.id)
        .where(task.project_id == project, task.kind == KIND)
        .order_by(task.position)
    )
    for column, wanted in ((slot.reserved_for, person), (task.cluster, dialogue)):
        if wanted:
            query = query.where(column == wanted)
    with store.read() as connection:
        return [
            Turn(row.id, row.slot, row.cluster, row.state, row.lease_epoch, row.reserved_for)
            for row in connection.execute(query)
        ]


def take(store: Store, person: str, task: str, lease_ms: int) -> Turn:
    """Hold the place of one's own turn (again). Raises NotFound for a turn of somebody else."""
    slot = schema.slot.c
    mine = (slot.task_id == task, slot.reserved_for == person)
    with store.write(durable=False) as connection:
        free = slot.state == "open"
        late = sql.and_(slot.state == "leased", slot.lease_until < now())
        connection.execute(
            sql.update(schema.slot)
            .where(*mine, sql.or_(free, late))
            .values(person_id=person, state="leased", lease_until=now() + lease_ms, lease_epoch=slot.lease_epoch + 1)
        )
        row = connection.execute(
            sql.select(schema.slot, schema.task.c.cluster)
            .join(schema.task, schema.task.c.id == slot.task_id)
            .where(*mine)
        ).first()
    if row is None:
        raise NotFound("there is no such turn of yours", key="dialogue")
    return Turn(task, row.id, row.cluster, row.state, row.lease_epoch, person)
