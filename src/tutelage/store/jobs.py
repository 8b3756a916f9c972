"""Work to be done later, by whoever is free: claimed under a lease, so that a worker that dies loses nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import sqlalchemy as sql

from tutelage.store import schema
from tutelage.store.engine import Reader, Store, now, uuid7

job = schema.job.c


@dataclass(frozen=True)
class Job:
    """One piece of work. `epoch` fences off a worker whose lease was given to another."""

    id: str
    kind: str
    args: Mapping[str, Any]
    state: str
    epoch: int
    attempts: int
    lease_s: float = 60.0
    result: Any = None
    error: str | None = None
    at: int = 0


def enqueue(
    store: Store, kind: str, args: Mapping[str, Any] | None = None, *, dedupe: str | None = None, run_after: int = 0
) -> str:
    """Ask for work; with `dedupe`, the same work is asked for once and its id is returned again."""
    with store.write() as connection:
        return put(connection, store, kind, args, dedupe=dedupe, run_after=run_after)


def put(
    connection: sql.Connection,
    store: Store,
    kind: str,
    args: Mapping[str, Any] | None = None,
    *,
    dedupe: str | None = None,
    run_after: int = 0,
) -> str:
    """Ask for work inside the caller's transaction: it exists exactly when that commits."""
    id = uuid7()
    connection.execute(
        store.insert(schema.job)
        .values(id=id, kind=kind, args=dict(args or {}), state="waiting", dedupe=dedupe, run_after=run_after, at=now())
        .on_conflict_do_nothing()
    )
    if dedupe is None:
        return id
    return str(connection.execute(sql.select(job.id).where(job.dedupe == dedupe)).scalar_one())


def claim(store: Store, kinds: Sequence[str], worker: str, lease_s: float = 60.0) -> Job | None:
    """Take the oldest job that waits or whose worker has gone silent; None when there is nothing to do."""
    moment = now()
    free = sql.or_(
        sql.and_(job.state == "waiting", job.run_after <= moment),
        sql.and_(job.state == "running", job.lease_until < moment),
    )
    with store.write(durable=False) as connection:
        row = connection.execute(
            sql.select(schema.job)
            .where(job.kind.in_(list(kinds)), free)
            .order_by(job.run_after, job.at, job.id)
            .limit(1)
            .with_for_update(skip_locked=True)
        ).first()
        if not row:
            return None
        connection.execute(
            sql.update(schema.job)
            .where(job.id == row.id)
            .values(
                state="running",
                lease_until=moment + int(lease_s * 1000),
                lease_epoch=row.lease_epoch + 1,
                attempts=row.attempts + 1,
                worker=worker,
            )
        )
    return replace(_job(row), state="running", epoch=row.lease_epoch + 1, attempts=row.attempts + 1, lease_s=lease_s)


def beat(store: Store, mine: Job) -> bool:
    """Extend the lease; False when the job is another's by now: stop working on it."""
    return _set(store, mine, lease_until=now() + int(mine.lease_s * 1000))


def finish(store: Store, mine: Job, result: Any = None) -> bool:
    """Done; False when the job is another's by now, and nothing is changed."""
    return _set(store, mine, state="done", result=result, lease_until=0)


def fail(store: Store, mine: Job, error: str, retry_in_s: float | None = None) -> bool:
    """Failed, for good or to be tried again later."""
    if retry_in_s is None:
        return _set(store, mine, state="failed", error=error, lease_until=0)
    later = now() + int(retry_in_s * 1000)
    return _set(store, mine, state="waiting", error=error, lease_until=0, run_after=later)


def every(store: Reader, state: str | None = None) -> list[Job]:
    """All jobs, oldest first."""
    query = sql.select(schema.job).order_by(job.at, job.id)
    with store.read() as connection:
        return [_job(row) for row in connection.execute(query.where(job.state == state) if state else query)]


def newest(store: Reader, kind: str, limit: int = 20) -> list[Job]:
    """The jobs of one kind that were asked for last, newest first."""
    query = sql.select(schema.job).where(job.kind == kind).order_by(job.at.desc(), job.id.desc()).limit(limit)
    with store.read() as connection:
        return [_job(row) for row in connection.execute(query)]


def get(store: Reader, id: str) -> Job | None:
    """A job by its id."""
    with store.read() as connection:
        row = connection.execute(sql.select(schema.job).where(job.id == id)).first()
    return _job(row) if row else None


def _set(store: Store, mine: Job, **values: Any) -> bool:
    with store.write() as connection:
        changed = connection.execute(
            sql.update(schema.job)
            .where(job.id == mine.id, job.lease_epoch == mine.epoch, job.state == "running")
            .values(**values)
        )
        return bool(changed.rowcount)


def _job(row: Any) -> Job:
    return Job(
        row.id, row.kind, row.args, row.state, row.lease_epoch, row.attempts, 60.0, row.result, row.error, row.at
    )
