"""Incidents: what somebody has to look at, opened by rules or by people's appeals, noted and closed by people.

The same thing opens one incident: while that is open, being noticed again is a line of its timeline, one a minute at
most. Its timeline is append-only; what people note lies among the texts, where it can be erased.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sql

from tutelage.core.errors import DataError, NotFound
from tutelage.store import ledger, schema, texts
from tutelage.store.engine import Reader, Store, derived_id, now, uuid7

KINDS: Mapping[str, str] = {
    "blocks": "more is withheld than usual",
    "guard": "a guard fails",
    "breaker": "a breaker is open",
    "upstream": "the upstream does not answer",
    "drift": "traffic is not what it was",
    "appeal": "a user appeals",
    "records": "requests could not be written down",
    "note": "somebody opened it by hand",
}
"""Kind -> what it says."""
SEVERITIES = ("low", "middle", "high")
AGAIN_MS = 60_000
"""How often the same thing is noted again in the timeline of its open incident."""
LONGEST = 5_000
"""Characters of a note."""
SYSTEM = "system"
table, event = schema.incident.c, schema.incident_event.c


@dataclass(frozen=True)
class Incident:
    """Something to look at."""

    id: str
    kind: str
    subject: str
    title: str
    severity: str
    at: int
    last_at: int
    closed_at: int | None
    closed_by: str


@dataclass(frozen=True)
class Event:
    """One line of a timeline: `opened`, `seen` again, `noted`, `closed`."""

    kind: str
    by: str
    text: str
    detail: Mapping[str, Any]
    at: int


def opened(
    store: Store,
    connection: sql.Connection,
    kind: str,
    subject: str,
    title: str,
    *,
    severity: str = "middle",
    by: str = SYSTEM,
    detail: Mapping[str, Any] | None = None,
) -> str:
    """Open an incident in the caller's transaction, or note in the open one that it goes on; returns its id."""
    at, same, said = now(), f"{kind}:{subject}"[:250], dict(detail or {})
    id = uuid7()
    row = {"id": id, "kind": kind, "subject": subject[:200], "open_as": same, "title": title[:300], "at": at}
    made = connection.execute(
        store.insert(schema.incident)
        .values(**row, severity=severity, last_at=at)
        .on_conflict_do_nothing()
        .returning(table.id)
    ).first()
    if made is not None:
        _tell(connection, id, "opened", by, said)
        return id
    known = connection.execute(sql.select(table.id, table.last_at).where(table.open_as == same)).one()
    if at - known.last_at >= AGAIN_MS:
        connection.execute(sql.update(schema.incident).where(table.id == known.id).values(last_at=at))
        _tell(connection, known.id, "seen", by, said)
    return str(known.id)


def open(
    store: Store,
    kind: str,
    subject: str,
    title: str,
    *,
    severity: str = "middle",
    by: str = SYSTEM,
    detail: Mapping[str, Any] | None = None,
) -> str:
    """Open an incident, or note that it goes on; returns its id. Raises DataError for an unknown kind or severity."""
    if kind not in KINDS or severity not in SEVERITIES:
        raise DataError(f"an incident is of no {kind!r} and {severity!r}", key="kind")
    with store.write() as connection:
        return opened(store, connection, kind, subject, title, severity=severity, by=by, detail=detail)


def _tell(connection: sql.Connection, id: str, kind: str, by: str, detail: Mapping[str, Any], text: str = "") -> None:
    row = {"id": uuid7(), "incident_id": id, "kind": kind, "by": by[:120], "detail": dict(detail), "at": now()}
    text_id = derived_id("text", row["id"]) if text else None
    if text_id:
        texts.put(connection, [(text_id, text, "")])
    connection.execute(sql.insert(schema.incident_event).values(**row, text_id=text_id))


def note(store: Store, id: str, text: str, by: str, *, close: bool = False) -> None:
    """Write into an incident's timeline, and close it. Raises NotFound, DataError for a note that says nothing or too
    much, and for one on an incident that is closed."""
    text = text.strip()
    if not 0 < len(text) <= LONGEST:
        raise DataError(f"a note has 1 to {LONGEST:,} characters", key="text")
    with store.write() as connection:
        row = connection.execute(sql.select(table.closed_at).where(table.id == id)).first()
        if row is None:
            raise NotFound(f"there is no incident {id[:40]!r}", key="incident")
        if row.closed_at is not None:
            raise DataError("this incident is closed", key="incident", todo="If it happens again, another is opened")
        _tell(connection, id, "closed" if close else "noted", by, {}, text)
        if close:
            done = {"closed_at": now(), "closed_by": by[:120], "open_as": None}
            connection.execute(sql.update(schema.incident).where(table.id == id).values(**done))
            ledger.append(connection, by, "incident.close", id)


def every(store: Reader, *, closed: bool | None = None, limit: int = 50, before: str = "") -> list[Incident]:
    """Incidents, the newest first: all, open ones or closed ones; those before an id."""
    query = sql.select(schema.incident).order_by(table.id.desc()).limit(limit)
    if closed is not None:
        query = query.where(table.closed_at.is_not(None) if closed else table.closed_at.is_(None))
    if before:
        query = query.where(table.id < before)
    with store.read() as connection:
        return [_incident(row) for row in connection.execute(query)]


def counts(store: Reader) -> dict[str, int]:
    """Kind -> how many are open."""
    query = sql.select(table.kind, sql.func.count()).where(table.closed_at.is_(None)).group_by(table.kind)
    with store.read() as connection:
        return {str(kind): int(n) for kind, n in connection.execute(query)}


def get(store: Reader, id: str) -> tuple[Incident, list[Event]]:
    """One incident and its timeline. Raises NotFound."""
    with store.read() as connection:
        row = connection.execute(sql.select(schema.incident).where(table.id == id)).first()
        if row is None:
            raise NotFound(f"there is no incident {id[:40]!r}", key="incident")
        told = connection.execute(
            sql.select(schema.incident_event).where(event.incident_id == id).order_by(event.at, event.id)
        ).all()
        words = texts.bodies(connection, [each.text_id for each in told])
    events = [Event(each.kind, each.by, words.get(each.text_id or "", ""), each.detail, each.at) for each in told]
    return _incident(row), events


def _incident(row: Any) -> Incident:
    return Incident(
        row.id, row.kind, row.subject, row.title, row.severity, row.at, row.last_at, row.closed_at, row.closed_by
    )
