"""Who has seen what others answered. They are not asked about the same task any more; where they are all the same,
because the task was in their hands or kept for them by name, their answer says that they had seen it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import sqlalchemy as sql

from tutelage.store import schema, texts
from tutelage.store.engine import Store, now

seen, given = schema.seen.c, schema.annotation.alias("given").c


def note(store: Store, person: str, tasks: Iterable[str]) -> None:
    """Keep that a person was shown others' answers to these tasks (ids)."""
    wanted = sorted(set(tasks))
    with store.read() as connection:  # a page that is looked at again holds up nobody who writes
        known = {id for some in texts.chunks(wanted) for id in connection.execute(_of(person, some)).scalars()}
    if missing := [id for id in wanted if id not in known]:
        with store.write(durable=False) as connection:
            rows = [{"person_id": person, "subject": id, "at": now()} for id in missing]
            connection.execute(store.insert(schema.seen).on_conflict_do_nothing(), rows)


def note_all(store: Store, person: str, project_id: str) -> None:
    """Keep that a person was shown all that was answered in a project until now."""
    number = schema.annotation.c
    with store.write(durable=False) as connection:
        last = sql.select(sql.func.max(number.seq)).where(number.project_id == project_id)
        values = {"through": connection.execute(last).scalar() or 0, "at": now()}
        connection.execute(
            store.insert(schema.seen)
            .values(person_id=person, subject=project_id, **values)
            .on_conflict_do_update(index_elements=["person_id", "subject"], set_=values)
        )


def of(connection: sql.Connection, person: str, tasks: Sequence[str]) -> set[str]:
    """Those of these tasks to which a person has seen others' answers."""
    found: set[str] = set()
    for some in texts.chunks(tasks):
        found.update(connection.execute(_of(person, some)).scalars())
        whole = (
            sql.select(given.task_id)
            .join(schema.seen, sql.and_(seen.subject == given.project_id, seen.person_id == person))
            .where(given.task_id.in_(some), given.person_id != person, given.seq <= seen.through)
        )
        found.update(connection.execute(whole).scalars())
    return found


def _of(person: str, tasks: Sequence[str]) -> sql.Select[Any]:
    return sql.select(seen.subject).where(seen.person_id == person, seen.subject.in_(tasks))


def saw(person: Any, task_id: Any, project_id: Any) -> sql.ColumnElement[bool]:
    """For a WHERE: that a person has seen others' answers to a task. Each is a column or a bound parameter."""
    one = sql.exists().where(seen.person_id == person, seen.subject == task_id)
    all_of_it = schema.seen.alias("all_of_it").c  # beside `given`: a query within would not know `task_id`
    whole = sql.exists().where(
        given.task_id == task_id,
        all_of_it.person_id == person,
        all_of_it.subject == project_id,
        given.seq <= all_of_it.through,
    )
    return sql.or_(one, whole)
