"""How long words are kept: the sweep takes them out by their age, a legal hold keeps them whatever else is asked.

The words go and the rows stay, as when a person is erased: figures and lineage still hold.
"""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sql

from tutelage.core.errors import DataError, NotFound
from tutelage.store import ledger, schema, texts
from tutelage.store.engine import Reader, Store, now, uuid7

KINDS = ("subject", "conversation", "tenant")
"""What a hold is of: a user as the tenant names them, a conversation by its id in the store, a tenant."""
held, request, conversation = schema.legal_hold.c, schema.request.c, schema.conversation.c


@dataclass(frozen=True)
class LegalHold:
    """Whose words are kept, and why."""

    id: str
    kind: str
    name: str
    reason: str
    by: str
    at: int
    lifted_at: int | None


@dataclass(frozen=True)
class Swept:
    """What a sweep took out, and what it left because of legal holds: reason -> how many requests."""

    texts: int
    requests: int
    kept: dict[str, int]


def place(store: Store, kind: str, name: str, reason: str, by: str) -> str:
    """Keep the words of a subject, a conversation or a tenant until the hold is lifted; returns its id.

    Raises DataError for another kind, without a name or without a reason.
    """
    if kind not in KINDS:
        raise DataError(f"a legal hold is of no {kind[:40]!r}", key="kind", todo=f"One of: {', '.join(KINDS)}")
    for key, value, most in (("name", name, 200), ("reason", reason, 500)):
        if not value.strip() or len(value) > most:
            raise DataError(f"a legal hold needs a {key} of 1 to {most} characters", key=key)
    id = uuid7()
    with store.write() as connection:
        row = {"id": id, "kind": kind, "name": name.strip(), "reason": reason.strip(), "by": by[:120], "at": now()}
        connection.execute(sql.insert(schema.legal_hold).values(**row))
        ledger.append(connection, by, "hold.place", id, {"kind": kind, "reason": reason.strip()})
    return id


def lift(store: Store, id: str, by: str, reason: str) -> None:
    """End a hold, and say why. Raises NotFound for one that is not in force, DataError without a reason."""
    if not reason.strip():
        raise DataError("say why the hold is lifted: it is kept for good", key="reason")
    with store.write() as connection:
        mine = sql.update(schema.legal_hold).where(held.id == id, held.lifted_at.is_(None))
        if not connection.execute(mine.values(lifted_at=now(), lifted_by=by[:120])).rowcount:
            raise NotFound(f"no hold {id!r} is in force", key="hold", todo="`tutelage hold list` names those that are")
        ledger.append(connection, by, "hold.lift", id, {"reason": reason.strip()[:500]})


def holds(store: Reader, lifted: bool = False) -> list[LegalHold]:
    """The holds in force (`lifted`: all there ever were), oldest first."""
    query = sql.select(schema.legal_hold).order_by(held.at, held.id)
    if not lifted:
        query = query.where(held.lifted_at.is_(None))
    with store.read() as connection:
        return [
            LegalHold(row.id, row.kind, row.name, row.reason, row.by, row.at, row.lifted_at)
            for row in connection.execute(query)
        ]


def _covers() -> sql.ColumnElement[bool]:
    """A row of `legal_hold` against one of `request`."""
    return sql.or_(
        sql.and_(held.kind == "subject", held.name == request.subject),
        sql.and_(held.kind == "tenant", held.name == request.tenant),
        sql.and_(held.kind == "conversation", held.name == request.conversation_id),
    )


def kept_request() -> sql.ColumnElement[bool]:
    """The condition on a row of `request`: its words are under a legal hold."""
    query = sql.select(held.id).where(held.lifted_at.is_(None), _covers())
    return query.correlate(schema.request).exists()


def kept_vault() -> sql.ColumnElement[bool]:
    """The condition on a row of `vault`: what it stands for is under a legal hold."""
    here = schema.vault.c.conversation_id
    whole = sql.select(held.id).where(held.lifted_at.is_(None), held.kind == "conversation", held.name == here)
    spoken = sql.select(held.id).join(schema.request, sql.and_(request.conversation_id == here, _covers()))
    spoken = spoken.where(held.lifted_at.is_(None))
    return sql.or_(*(each.correlate(schema.vault).exists() for each in (whole, spoken)))


def reasons(connection: sql.Connection, *conditions: sql.ColumnElement[bool]) -> dict[str, int]:
    """Why requests that meet these conditions are kept: `kind name: reason` -> how many of them."""
    query = (
        sql.select(held.kind, held.name, held.reason, sql.func.count(sql.distinct(request.id)).label("n"))
        .join(schema.request, _covers())
        .where(held.lifted_at.is_(None), *conditions)
        .group_by(held.kind, held.name, held.reason)
    )
    return {f"{row.kind} {row.name}: {row.reason}": row.n for row in connection.execute(query)}


def texts_of(connection: sql.Connection, requests: list[str]) -> set[str]:
    """Ids of all texts with words of these requests: asked, answered, said about them, and copied into tasks."""
    said, hold, decision, task, candidate = (
        schema.feedback.c,
        schema.hold.c,
        schema.decision.c,
        schema.task.c,
        schema.candidate.c,
    )
    asked = sql.select(task.id).where(
        task.decision_id.in_(sql.select(decision.id).where(decision.request_id.in_(requests)))
    )
    queries = (
        sql.select(request.input_id).where(request.id.in_(requests)),
        sql.select(request.output_id).where(request.id.in_(requests)),
        sql.select(said.text_id).where(said.request_id.in_(requests)),
        sql.select(hold.text_id).where(hold.request_id.in_(requests)),
        sql.select(task.prompt_id).where(task.id.in_(asked)),
        sql.select(candidate.text_id).where(candidate.task_id.in_(asked)),
    )
    return {id for query in queries for id in connection.execute(query).scalars() if id}


def sweep(store: Store, before: int, by: str = "system", most: int = 500) -> Swept:
    """Take out the words of requests that came in before a time (ms), but of those under a legal hold.

    `most` requests go in one transaction, so that traffic is written between. What was taken out is recorded.
    """
    old = (request.at < before, schema.text.c.erased_at.is_(None))
    query = (
        sql.select(request.id)
        .join(schema.text, schema.text.c.id == request.input_id)
        .where(*old, ~kept_request())
        .order_by(request.at)
        .limit(most)
    )
    words = gone = 0
    while True:
        with store.write(durable=False) as connection:
            ids = list(connection.execute(query).scalars())
            words += texts.erase(connection, texts_of(connection, ids))
        gone += len(ids)
        if len(ids) < most:
            break
    with store.read() as connection:
        there = sql.exists().where(schema.text.c.id == request.input_id, schema.text.c.erased_at.is_(None))
        kept = reasons(connection, request.at < before, there)
    if gone:
        ledger.record(store, by, "retention.sweep", "", {"texts": words, "requests": gone, "before": before})
    return Swept(words, gone, kept)
