"""The ledger of official acts: each row holds the hash of the one before, so a change of the past shows.

Rows are appended in the caller's transaction: an act without its row, or a row without its act, cannot be.
`govern/audit.py` walks the chain.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sql

from tutelage.core.records import canonical
from tutelage.store.engine import Reader, Store, next_numbers, now
from tutelage.store.schema import audit


@dataclass(frozen=True)
class Entry:
    """One row of the ledger."""

    seq: int
    previous: str
    hash: str
    actor: str
    action: str
    object: str
    body: Mapping[str, Any]
    at: int

    def linked(self) -> str:
        """The hash this row must have, from what it says and the row before."""
        return link(self.previous, self.seq, self.actor, self.action, self.object, self.body, self.at)


def link(previous: str, seq: int, actor: str, action: str, object: str, body: Mapping[str, Any], at: int) -> str:
    """sha256 over the previous hash and the canonical JSON of a row."""
    row = {"seq": seq, "actor": actor, "action": action, "object": object, "body": dict(body), "at": at}
    return hashlib.sha256(previous.encode() + canonical(row)).hexdigest()


def append(
    connection: sql.Connection, actor: str, action: str, object: str = "", body: Mapping[str, Any] | None = None
) -> int:
    """Append one row inside the caller's transaction; returns its number. `body` must hold no personal text."""
    seq = next_numbers(connection, "audit")  # holds the counter: nobody else appends until this transaction ends
    previous = connection.execute(sql.select(audit.c.hash).where(audit.c.seq == seq - 1)).scalar() or ""
    said, at = dict(body or {}), now()
    connection.execute(
        sql.insert(audit).values(
            seq=seq,
            previous=previous,
            hash=link(previous, seq, actor, action, object, said, at),
            actor=actor,
            action=action,
            object=object,
            body=canonical(said).decode(),
            at=at,
        )
    )
    return seq


def record(store: Store, actor: str, action: str, object: str = "", body: Mapping[str, Any] | None = None) -> int:
    """Append one row in a transaction of its own."""
    with store.write() as connection:
        return append(connection, actor, action, object, body)


def rows(store: Reader, after: int = 0) -> Iterator[Entry]:
    """The rows after a number, in order."""
    with store.read() as connection:
        for row in connection.execute(sql.select(audit).where(audit.c.seq > after).order_by(audit.c.seq)):
            yield _entry(row)


def acts(
    store: Reader, action: str, object: str | None = None, limit: int = 200, before: int | None = None
) -> list[Entry]:
    """The last acts of one sort (on one object; before a number of the ledger), newest first."""
    query = sql.select(audit).where(audit.c.action == action).order_by(audit.c.seq.desc()).limit(limit)
    if before is not None:
        query = query.where(audit.c.seq < before)
    with store.read() as connection:
        return [
            _entry(row)
            for row in connection.execute(query.where(audit.c.object == object) if object is not None else query)
        ]


def _entry(row: Any) -> Entry:
    return Entry(row.seq, row.previous, row.hash, row.actor, row.action, row.object, json.loads(row.body), row.at)
