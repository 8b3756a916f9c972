"""What was computed of people's words: a task's consensus, a person's figures. Rows are added, the newest counts.

Nothing here reads them: they are for whoever asks the database, as it stood when they were kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sql

from tutelage.store import schema
from tutelage.store.engine import Store, derived_id, now


@dataclass(frozen=True)
class Agreed:
    """What people together say on one question of one task."""

    task: str
    question: str
    method: str
    posterior: Any
    n: int


@dataclass(frozen=True)
class Told:
    """One figure of one person on one question."""

    person: str
    question: str
    method: str
    estimate: float | None
    standard_error: float | None
    n: int


def put(store: Store, project: str, agreed: Sequence[Agreed], told: Sequence[Told], made_by: str) -> None:
    """Keep figures of a project (id). The same figure made by the same run again is one row."""
    at = now()
    with store.write() as connection:
        rows: list[dict[str, Any]] = [
            {
                "id": derived_id("consensus", made_by, each.task, each.question, each.method),
                "task_id": each.task, "question": each.question, "method": each.method, "posterior": each.posterior,
                "n": each.n, "adjudication_id": None, "made_by": made_by, "at": at,
            }
            for each in agreed
        ]  # fmt: skip
        _insert(connection, schema.consensus, rows)
        rows = [
            {
                "id": derived_id("person_statistic", made_by, project, each.person, each.question, each.method),
                "person_id": each.person, "project_id": project, "question": each.question, "method": each.method,
                "estimate": each.estimate, "standard_error": each.standard_error, "n": each.n, "made_by": made_by,
                "at": at,
            }
            for each in told
        ]  # fmt: skip
        _insert(connection, schema.person_statistic, rows)


def _insert(connection: sql.Connection, table: sql.Table, rows: Sequence[dict[str, Any]]) -> None:
    known: set[str] = set()
    for begin in range(0, len(rows), 500):
        ids = [row["id"] for row in rows[begin : begin + 500]]
        known.update(connection.execute(sql.select(table.c.id).where(table.c.id.in_(ids))).scalars())
    fresh = [row for row in rows if row["id"] not in known]
    if fresh:
        connection.execute(sql.insert(table), fresh)
