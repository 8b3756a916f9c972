"""Whom to tell what happens: addresses, and the outbox of what they are to be told.

A row of the outbox is written in the transaction of the change it tells of, so neither is without the other. It holds
ids and counts, never a text. Whoever sends takes rows under a lease: a sender that dies loses nothing.
"""

from __future__ import annotations

import secrets
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sql

from tutelage.core.errors import NotFound
from tutelage.store import ledger, schema
from tutelage.store.engine import Reader, Store, now, uuid7

EVENTS: Mapping[str, str] = {
    "answer.submitted": "somebody answered a task, or corrected an answer",
    "answer.skipped": "somebody skipped a task",
    "answer.flagged": "somebody flagged a task",
    "adjudication.done": "an adjudicator answered",
    "task.done": "a task has all the answers it wants",
    "task.stuck": "a task was passed over so often that it waits for a lead",
    "project.done": "no task of a project is open any more",
}
NEVER = 2**53
"""`run_after` of what was given up."""
KEPT_MS = 30 * 86_400_000
"""How long a row stays after it was sent."""

hook, row = schema.webhook.c, schema.outbox.c


@dataclass(frozen=True)
class Webhook:
    """An address, and how far it was told."""

    id: str
    url: str
    events: tuple[str, ...]
    state: str
    waiting: int = 0
    sent: int = 0
    dead: int = 0
    error: str = ""
    """What the last failure was, while something waits or was given up."""


@dataclass(frozen=True)
class Delivery:
    """One thing to be told to one address."""

    id: str
    webhook: str
    url: str
    secret: str
    event: str
    payload: Mapping[str, Any]
    at: int
    attempts: int


def register(store: Store, url: str, events: Sequence[str], by: str) -> tuple[Webhook, str]:
    """Add an address; returns it with its secret, which is stored sealed and shown this once."""
    id, secret = uuid7(), f"whsec_{b64encode(secrets.token_bytes(32)).decode()}"
    sealed = store.keys.seal("webhook", secret.encode(), id)
    with store.write() as connection:
        connection.execute(
            sql.insert(schema.webhook).values(
                id=id, url=url, secret=sealed, events=list(events), state="active", at=now()
            )
        )
        ledger.append(connection, by, "webhook.create", id, {"events": list(events)})
    return Webhook(id, url, tuple(events), "active"), secret


def remove(store: Store, id: str, by: str) -> None:
    """Tell an address nothing more, also not what waits. Raises NotFound."""
    with store.write() as connection:
        changed = connection.execute(
            sql.update(schema.webhook).where(hook.id == id, hook.state == "active").values(state="removed", secret=None)
        )
        if not changed.rowcount:
            raise NotFound(f"there is no webhook {id!r}", key="webhook")
        ledger.append(connection, by, "webhook.remove", id)


def retry(store: Store, id: str, by: str) -> int:
    """Try again, from the first attempt on, what was given up; returns how many that are. Raises NotFound."""
    with store.write() as connection:
        if not connection.execute(sql.select(hook.id).where(hook.id == id, hook.state == "active")).first():
            raise NotFound(f"there is no webhook {id!r}", key="webhook")
        again = connection.execute(
            sql.update(schema.outbox)
            .where(row.webhook_id == id, row.run_after == NEVER, row.sent_at.is_(None))
            .values(run_after=0, attempts=0)
        ).rowcount
        ledger.append(connection, by, "webhook.retry", id, {"count": again})
    return int(again)


def every(store: Reader) -> list[Webhook]:
    """All addresses that are told something, oldest first, with what waits, was sent and was given up."""
    unsent = row.sent_at.is_(None)
    counts = sql.select(
        row.webhook_id,
        sql.func.sum(sql.case((sql.and_(unsent, row.run_after < NEVER), 1), else_=0)).label("waiting"),
        sql.func.sum(sql.case((unsent, 0), else_=1)).label("sent"),
        sql.func.sum(sql.case((row.run_after == NEVER, 1), else_=0)).label("dead"),
    ).group_by(row.webhook_id)
    failed = sql.select(row.webhook_id, row.error).where(unsent, row.error != "").order_by(row.at)
    with store.read() as connection:
        many = {each.webhook_id: each for each in connection.execute(counts)}
        errors = {each.webhook_id: each.error for each in connection.execute(failed)}
        found = connection.execute(sql.select(schema.webhook).where(hook.state == "active").order_by(hook.at, hook.id))
        return [
            Webhook(
                each.id, each.url, tuple(each.events), each.state,
                *((int(m.waiting), int(m.sent), int(m.dead)) if (m := many.get(each.id)) else (0, 0, 0)),
                errors.get(each.id, ""),
            )
            for each in found
        ]  # fmt: skip


# what happened


def listening(connection: sql.Connection) -> list[tuple[str, frozenset[str]]]:
    """Active webhooks and what they want to hear."""
    found = connection.execute(sql.select(hook.id, hook.events).where(hook.state == "active"))
    return [(each.id, frozenset(each.events)) for each in found]


def states(connection: sql.Connection, tasks: Sequence[str]) -> dict[str, str]:
    """Task id -> state."""
    table = schema.task.c
    found: dict[str, str] = {}
    for start in range(0, len(tasks), 500):
        query = sql.select(table.id, table.state).where(table.id.in_(tasks[start : start + 500]))
        found.update((each.id, each.state) for each in connection.execute(query))
    return found


def tell(
    connection: sql.Connection, hooks: Sequence[tuple[str, frozenset[str]]], told: Sequence[tuple[str, dict[str, Any]]]
) -> None:
    """Put (event, payload) into the outbox of everybody who wants to hear of it, inside the caller's transaction."""
    at = now()
    rows = [
        {"id": uuid7(), "webhook_id": id, "event": event, "payload": payload, "at": at}
        for event, payload in told
        for id, wanted in hooks
        if event in wanted
    ]
    if rows:
        connection.execute(sql.insert(schema.outbox), rows)


def tell_answers(
    connection: sql.Connection,
    hooks: Sequence[tuple[str, frozenset[str]]],
    annotations: Sequence[Mapping[str, Any]],
    purposes: Sequence[str],
    before: Mapping[str, str],
) -> None:
    """Tell of answers just written, of tasks that came to an end with them, and of projects. `annotations` are rows of
    that table, `purposes` those of their slots, `before` the states of their tasks until then."""
    told: list[tuple[str, dict[str, Any]]] = []
    projects = {str(each["task_id"]): str(each["project_id"]) for each in annotations}
    for each, purpose in zip(annotations, purposes, strict=True):
        if purpose == "gold":  # is no data, and whoever hears of it would know which task it was
            continue
        ids = {"annotation": each["id"], "task": each["task_id"], "project": each["project_id"]}
        payload = ids | {"people": each["people"], "revision": each["revision"]}
        told.append((f"answer.{each['status']}", payload))
        if purpose == "adjudicate" and each["status"] == "submitted":
            told.append(("adjudication.done", payload))
    ended = {
        task: state
        for task, state in states(connection, sorted(before)).items()
        if state in ("done", "stuck") and state != before[task]
    }
    told += [(f"task.{state}", {"task": task, "project": projects[task]}) for task, state in sorted(ended.items())]
    slot = schema.slot.c
    for project in sorted({projects[task] for task in ended}):
        waits = (slot.state.in_(("open", "leased")), slot.purpose == schema.ORDINARY)
        open_ = sql.select(slot.id).where(slot.project_id == project, *waits).limit(1)
        if not connection.execute(open_).first():
            table = schema.task.c
            count = sql.select(sql.func.count()).where(table.project_id == project)
            tasks = int(connection.execute(count).scalar_one())
            told.append(("project.done", {"project": project, "tasks": tasks}))
    tell(connection, hooks, told)


# sending


def take(store: Store, most: int = 50, lease_s: float = 60.0) -> list[Delivery]:
    """What is due, oldest first, leased to the caller: until the lease ends nobody else takes it."""
    moment = now()
    due = (
        sql.select(schema.outbox, hook.url, hook.secret)
        .join(schema.webhook, hook.id == row.webhook_id)
        .where(row.sent_at.is_(None), row.run_after <= moment, hook.state == "active")
        .order_by(row.run_after, row.at, row.id)
        .limit(most)
    )
    with store.read() as connection:
        if not connection.execute(due.limit(1)).first():
            return []
    with store.write(durable=False) as connection:
        found = connection.execute(due.with_for_update(skip_locked=True, of=schema.outbox)).all()
        connection.execute(
            sql.update(schema.outbox)
            .where(row.id.in_([each.id for each in found]))
            .values(run_after=moment + int(lease_s * 1000), attempts=row.attempts + 1)
        )
        connection.execute(sql.delete(schema.outbox).where(row.sent_at < moment - KEPT_MS))
    return [
        Delivery(
            each.id, each.webhook_id, each.url, store.keys.unseal("webhook", each.secret, each.webhook_id).decode(),
            each.event, each.payload, each.at, each.attempts + 1,
        )
        for each in found
    ]  # fmt: skip


def sent(store: Store, delivery: Delivery) -> None:
    """It was received."""
    with store.write(durable=False) as connection:
        connection.execute(sql.update(schema.outbox).where(row.id == delivery.id).values(sent_at=now(), error=""))


def failed(store: Store, delivery: Delivery, error: str, again_in_s: float | None) -> None:
    """It was not received: to be tried again later, or (None) given up, which the ledger records."""
    later = NEVER if again_in_s is None else now() + int(again_in_s * 1000)
    with store.write(durable=False) as connection:
        connection.execute(
            sql.update(schema.outbox)
            .where(row.id == delivery.id, row.sent_at.is_(None))
            .values(run_after=later, error=error[:500])
        )
        if again_in_s is None:
            body = {"event": delivery.event, "attempts": delivery.attempts}
            ledger.append(connection, "system", "webhook.dead", delivery.webhook, body)


def postpone(store: Store, delivery: Delivery, later_s: float) -> None:
    """It was not tried: later, and this was no attempt."""
    with store.write(durable=False) as connection:
        connection.execute(
            sql.update(schema.outbox)
            .where(row.id == delivery.id, row.sent_at.is_(None))
            .values(run_after=now() + int(later_s * 1000), attempts=delivery.attempts - 1)
        )
