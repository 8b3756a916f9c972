"""Texts: written once, read by id, erased in place."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

import sqlalchemy as sql

from tutelage.core.records import Message, canonical
from tutelage.store.engine import now
from tutelage.store.schema import text

T = TypeVar("T")
CHUNK = 500
"""How many values one IN list holds."""


def chunks(values: Iterable[T], size: int = CHUNK) -> Iterator[list[T]]:
    """Lists of at most `size` values, in order."""
    held: list[T] = []
    for value in values:
        held.append(value)
        if len(held) == size:
            yield held
            held = []
    if held:
        yield held


def put(connection: sql.Connection, rows: Sequence[tuple[str, str, str]]) -> None:
    """Write texts as (id, body, redacted or "")."""
    if rows:
        connection.execute(
            sql.insert(text), [{"id": id, "body": body, "redacted": masked or None} for id, body, masked in rows]
        )


def bodies(connection: sql.Connection, ids: Iterable[str], masked: bool = False) -> dict[str, str]:
    """id -> text; erased ones are missing. `masked` gives the form without personal data where there is one."""
    shown = sql.func.coalesce(text.c.redacted, text.c.body) if masked else text.c.body
    found: dict[str, str] = {}
    for some in chunks(sorted({id for id in ids if id})):
        rows = connection.execute(sql.select(text.c.id, shown.label("shown")).where(text.c.id.in_(some)))
        found.update((row.id, row.shown) for row in rows if row.shown is not None)
    return found


def erase(connection: sql.Connection, ids: Iterable[str]) -> int:
    """Erase texts: the words go, the rows stay. Returns how many still had words."""
    gone = 0
    for some in chunks(sorted({id for id in ids if id})):
        gone += connection.execute(
            sql.update(text)
            .where(text.c.id.in_(some), text.c.erased_at.is_(None))
            .values(body=None, redacted=None, erased_at=now())
        ).rowcount
    return gone


def pack(messages: Sequence[Message]) -> str:
    """Messages as one canonical text."""
    return canonical([message.model_dump(mode="json", exclude_defaults=True) for message in messages]).decode()


def unpack(body: str | None) -> tuple[Message, ...]:
    """Messages from what `pack` wrote; () for an erased text."""
    rows: list[dict[str, Any]] = json.loads(body) if body else []
    return tuple(Message(**row) for row in rows)
