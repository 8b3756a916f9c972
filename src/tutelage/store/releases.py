"""Releases: who promoted what, when and why; which one answers now. Promotion and rollback move one pointer.

Whoever may be stopped in the middle gives a `key`: what was done under it once is not done again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sql

from tutelage.core.errors import DataError, NotFound, Refused
from tutelage.store import ledger, schema
from tutelage.store.engine import Reader, Store, derived_id, next_numbers, now, uuid7

STATES = ("draft", "refused", "shadow", "canary", "live", "retired")


@dataclass(frozen=True)
class Release:
    """A bundle under a name, and the state its last event left it in."""

    id: str
    bundle: str
    name: str
    parent: str | None
    evidence: Mapping[str, Any]
    at: int
    state: str = "draft"


@dataclass(frozen=True)
class Event:
    """One change of a release's state."""

    seq: int
    release: str
    bundle: str
    name: str
    environment: str
    before: str
    after: str
    actor: str
    reason: str
    evidence: Mapping[str, Any] = field(default_factory=dict)
    at: int = 0


def create(
    store: Store,
    bundle: str,
    *,
    name: str = "",
    parent: str | None = None,
    evidence: Mapping[str, Any] | None = None,
    actor: str = "system",
    key: str = "",
) -> str:
    """Note a bundle as a release in state draft; returns the release's id.

    `parent` is the release it would replace. The same bundle and key are noted once, with the parent of that time.
    """
    id = derived_id("release", key, bundle) if key else uuid7()
    with store.write() as connection:
        if key and connection.execute(sql.select(schema.release.c.id).where(schema.release.c.id == id)).first():
            return id
        connection.execute(
            sql.insert(schema.release).values(
                id=id, bundle=bundle, name=name, parent_id=parent, evidence=dict(evidence or {}), at=now()
            )
        )
        _event(connection, id, "", "", "draft", actor, "made", {})
    return id


def move(
    store: Store,
    release: str,
    after: str,
    *,
    actor: str,
    reason: str,
    environment: str = "production",
    evidence: Mapping[str, Any] | None = None,
    key: str = "",
) -> None:
    """Change the state of a release (shadow, canary, retired, refused; `promote` makes it live); once for a key."""
    if after not in STATES:
        raise DataError(f"{after!r} is no state of a release", key="state", todo=f"One of: {', '.join(STATES)}")
    event = _event_id(key, release, after)
    with store.write() as connection:
        before = _state(connection, release)
        if _released(connection, event) is None:
            _event(connection, release, environment, before, after, actor, reason, evidence or {}, event)


def promote(
    store: Store,
    release: str,
    *,
    actor: str,
    reason: str,
    environment: str = "production",
    evidence: Mapping[str, Any] | None = None,
    key: str = "",
) -> str | None:
    """Let a release answer; returns the id of the one it replaces. A refused release stays refused.

    What was promoted under this key before stays as it is, also when another release answers by now.
    """
    event = _event_id(key, release, "live")
    with store.write() as connection:
        if _released(connection, event) is not None:
            return None
        before = _state(connection, release)
        if before == "refused":
            raise Refused("this release was refused", todo="Make a new one")
        replaced = _point(connection, store, environment, release)
        if replaced == release:
            return None
        _event(connection, release, environment, before, "live", actor, reason, evidence or {}, event)
        if replaced:
            _event(connection, replaced, environment, "live", "retired", actor, f"replaced: {reason}", {})
    return replaced


def rollback(store: Store, *, actor: str, reason: str, environment: str = "production", key: str = "") -> Release:
    """Let the release answer that was live before the present one. Raises Refused when there is none.

    What was rolled back under this key before is not rolled back further; the release that it restored is returned.
    """
    restored = _event_id(key, environment, "restored")
    with store.write() as connection:
        already = _released(connection, restored)
        if already is not None:
            return _load(connection, already)
        table = schema.deployment.c
        live = connection.execute(sql.select(table.live_id).where(table.environment == environment)).scalar()
        event = schema.release_event.c
        was_live = connection.execute(
            sql.select(event.release_id)
            .where(event.environment == environment, event.after == "live")
            .order_by(event.seq.desc())
        ).scalars()
        rolled_back = set(
            connection.execute(
                sql.select(event.release_id).where(event.environment == environment, event.after == "rolled_back")
            ).scalars()
        )
        target = next((id for id in was_live if id != live and id not in rolled_back), None)
        if not live or target is None:
            raise Refused("there is no earlier release to go back to")
        _point(connection, store, environment, target)
        _event(connection, live, environment, "live", "rolled_back", actor, reason, {})
        state = _state(connection, target)
        _event(connection, target, environment, state, "live", actor, f"rollback: {reason}", {}, restored)
        return _load(connection, target)


def current(store: Reader, environment: str = "production") -> Release | None:
    """The release that answers now."""
    table = schema.deployment.c
    with store.read() as connection:
        live = connection.execute(sql.select(table.live_id).where(table.environment == environment)).scalar()
        return _load(connection, live) if live else None


def get(store: Reader, release: str) -> Release:
    """A release by its id. Raises NotFound."""
    with store.read() as connection:
        return _load(connection, release)


def every(store: Reader) -> list[Release]:
    """All releases, oldest first."""
    table = schema.release.c
    with store.read() as connection:
        ids = connection.execute(sql.select(table.id).order_by(table.at, table.id)).scalars().all()
        return [_load(connection, id) for id in ids]


def history(store: Reader, environment: str | None = None, release: str | None = None) -> list[Event]:
    """All changes, oldest first."""
    event, table = schema.release_event, schema.release
    query = (sql.select(event, table.c.bundle, table.c.name).join(table, table.c.id == event.c.release_id)).order_by(
        event.c.seq
    )
    if environment is not None:
        query = query.where(event.c.environment == environment)
    if release is not None:
        query = query.where(event.c.release_id == release)
    with store.read() as connection:
        return [
            Event(
                row.seq,
                row.release_id,
                row.bundle,
                row.name,
                row.environment,
                row.before,
                row.after,
                row.actor,
                row.reason,
                row.evidence,
                row.at,
            )
            for row in connection.execute(query)
        ]


def approve(store: Store, release: str, person: str, note: str = "") -> None:
    """A person's signature under a release; each person signs once."""
    with store.write() as connection:
        _state(connection, release)
        made = connection.execute(
            store.insert(schema.approval)
            .values(id=uuid7(), release_id=release, person_id=person, note=note, at=now())
            .on_conflict_do_nothing()
            .returning(schema.approval.c.id)  # PostgreSQL's driver counts no rows here
        )
        if made.first() is not None:
            ledger.append(connection, person, "release.approve", release, {"note": note})


def approvals(store: Reader, release: str) -> list[str]:
    """Ids of the people who signed."""
    table = schema.approval.c
    with store.read() as connection:
        return list(
            connection.execute(
                sql.select(table.person_id).where(table.release_id == release).order_by(table.at)
            ).scalars()
        )


def _point(connection: sql.Connection, store: Store, environment: str, release: str) -> str | None:
    table = schema.deployment
    before = connection.execute(sql.select(table.c.live_id).where(table.c.environment == environment)).scalar()
    connection.execute(
        store.insert(table)
        .values(environment=environment, live_id=release, epoch=1, updated_at=now())
        .on_conflict_do_update(
            index_elements=["environment"],
            set_={"live_id": release, "epoch": table.c.epoch + 1, "updated_at": now(), "canary_id": None},
        )
    )
    return str(before) if before else None


def _state(connection: sql.Connection, release: str) -> str:
    event = schema.release_event.c
    found = connection.execute(
        sql.select(event.after).where(event.release_id == release).order_by(event.seq.desc()).limit(1)
    ).scalar()
    if not found:
        raise NotFound(f"there is no release {release!r}")
    return str(found)


def _load(connection: sql.Connection, release: str) -> Release:
    row = connection.execute(sql.select(schema.release).where(schema.release.c.id == release)).first()
    if not row:
        raise NotFound(f"there is no release {release!r}")
    return Release(row.id, row.bundle, row.name, row.parent_id, row.evidence, row.at, _state(connection, release))


def _event_id(key: str, *parts: str) -> str:
    """The id of what happens under a key, the same each time; a new one where there is no key."""
    return derived_id("release_event", key, *parts) if key else uuid7()


def _released(connection: sql.Connection, event: str) -> str | None:
    """The release that an event was about; None when there is no such event."""
    table = schema.release_event.c
    found = connection.execute(sql.select(table.release_id).where(table.id == event)).scalar()
    return str(found) if found else None


def _event(
    connection: sql.Connection,
    release: str,
    environment: str,
    before: str,
    after: str,
    actor: str,
    reason: str,
    evidence: Mapping[str, Any],
    id: str = "",
) -> None:
    connection.execute(
        sql.insert(schema.release_event).values(
            id=id or uuid7(),
            seq=next_numbers(connection, "release_event"),
            release_id=release,
            environment=environment,
            before=before,
            after=after,
            actor=actor,
            reason=reason,
            evidence=dict(evidence),
            at=now(),
        )
    )
    ledger.append(
        connection, actor, f"release.{after}", release, {"before": before, "environment": environment, "reason": reason}
    )
