"""What stands of guards and their certificates: what was switched on or into shadow, what expired. Append-only; the
newest row on each counts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import sqlalchemy as sql

from tutelage.core.errors import DataError
from tutelage.store import ledger, schema
from tutelage.store.engine import Reader, Store, now, uuid7

Switch = Literal["on", "shadow"]
SERVICE = "service"
"""Who puts new guards into shadow where the settings say that they watch first."""


@dataclass(frozen=True)
class Happened:
    """One event: of a guard (`on`, `shadow`) or a certificate (`expired`, `renewed`)."""

    what: str
    event: str
    reason: str
    by: str
    at: int
    judge: str = ""


def switch(store: Store, guard: str, event: Switch, *, reason: str, by: str) -> None:
    """Let a guard decide, or put it into shadow: then it is heard and recorded, and decides nothing.

    Raises DataError without a reason.
    """
    if not reason.strip():
        raise DataError("say why: it is kept for good", key="reason")
    row = {"id": uuid7(), "guard": guard[:200], "event": event, "reason": reason.strip()[:300], "by": by[:120]}
    with store.write() as connection:
        connection.execute(sql.insert(schema.guard_event).values(**row, at=now()))
        ledger.append(connection, by, f"guard.{event}", guard, {"reason": row["reason"]})


def switches(store: Reader, at: int | None = None, by_people: bool = False) -> dict[str, str]:
    """Guard -> how it was last switched (before a time, ms; by people alone)."""
    events = (each for each in guard_events(store) if not (by_people and each.by == SERVICE))
    return {each.what: each.event for each in events if at is None or each.at <= at}


def guard_events(store: Reader) -> list[Happened]:
    """All switching, in the order of time."""
    table = schema.guard_event.c
    with store.read() as connection:
        rows = connection.execute(sql.select(schema.guard_event).order_by(table.at, table.id)).all()
    return [Happened(row.guard, row.event, row.reason, row.by, row.at) for row in rows]


def expire(store: Store, certificates: dict[str, str], *, reason: str, by: str) -> int:
    """Certificates (id -> the guard whose it is) hold no longer; returns how many held until now.

    A rule that rests on one may flag from then on, and stop nothing.
    """
    return _tell(store, certificates, "expired", reason, by)


def renew(store: Store, certificates: dict[str, str], *, reason: str, by: str) -> int:
    """They hold again: somebody has looked. Returns how many did not."""
    return _tell(store, certificates, "renewed", reason, by)


def _tell(store: Store, certificates: dict[str, str], event: str, reason: str, by: str) -> int:
    if not reason.strip():
        raise DataError("say why: it is kept for good", key="reason")
    gone = expired(store)
    new = {name: judge for name, judge in certificates.items() if (name in gone) != (event == "expired")}
    with store.write() as connection:
        for name, judge in new.items():
            row = {"id": uuid7(), "certificate": name[:120], "judge": judge[:200], "event": event}
            row |= {"reason": reason.strip()[:300], "by": by[:120]}
            connection.execute(sql.insert(schema.certificate_event).values(**row, at=now()))
        if new:
            body = {"certificates": len(new), "reason": reason.strip()[:300]}
            ledger.append(connection, by, f"certificate.{event}", next(iter(new)), body)
    return len(new)


def certificate_events(store: Reader) -> list[Happened]:
    """All that befell certificates, in the order of time."""
    table = schema.certificate_event.c
    with store.read() as connection:
        rows = connection.execute(sql.select(schema.certificate_event).order_by(table.at, table.id)).all()
    return [Happened(row.certificate, row.event, row.reason, row.by, row.at, row.judge) for row in rows]


def expired(store: Reader, at: int | None = None) -> frozenset[str]:
    """The certificates that do not hold (at a time, ms)."""
    last = {each.what: each.event for each in certificate_events(store) if at is None or each.at <= at}
    return frozenset(name for name, event in last.items() if event == "expired")
