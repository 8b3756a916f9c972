"""Review of decisions by sample: draws with their probability, held answers, the vault, estimates and drift."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sql

from tutelage.core.errors import DataError, NotFound
from tutelage.core.records import Message
from tutelage.store import ledger, retention, schema, takeover, texts, traces
from tutelage.store.engine import Reader, Store, derived_id, now, uuid7

STREAMS = ("measure", "learn", "certainty")
"""What a drawn decision is for. What is used to measure is not learned from while it measures."""


@dataclass(frozen=True)
class Draw:
    """One decision that a sample looked at: with which probability, and whether it was taken."""

    decision: str
    policy: str
    stratum: str
    probability: float
    selected: bool
    stream: str = "measure"
    id: str = ""
    at: int = 0


def save_policy(store: Store, spec: Mapping[str, Any], seed_commit: str = "", version: int = 1) -> str:
    """Keep a sampling policy before it is used; `seed_commit` is the hash of its seed. Equal policies are kept once."""
    id = derived_id("sample_policy", version, sorted(spec.items()), seed_commit)
    with store.write() as connection:
        made = connection.execute(
            store.insert(schema.sample_policy)
            .values(id=id, version=version, spec=dict(spec), seed_commit=seed_commit, at=now())
            .on_conflict_do_nothing()
            .returning(schema.sample_policy.c.id)  # PostgreSQL's driver counts no rows here
        )
        if made.first() is not None:
            ledger.append(connection, "system", "sample.policy", id, {"seed": seed_commit})
    return id


def save_draws(store: Store, new: Sequence[Draw]) -> int:
    """Keep draws; a decision drawn before by the same policy and stream is passed over. Returns how many were new."""
    for each in new:
        if not 0 < each.probability <= 1:
            raise DataError(f"a probability of {each.probability} cannot be estimated from", key="probability")
        if each.stream not in STREAMS:
            raise DataError(f"{each.stream!r} is no stream", key="stream", todo=f"One of: {', '.join(STREAMS)}")
    made, at = 0, now()
    for some in texts.chunks(new):
        rows = [
            {
                "id": derived_id("draw", each.decision, each.policy, each.stream),
                "decision_id": each.decision,
                "policy_id": each.policy,
                "stratum": each.stratum,
                "probability": each.probability,
                "selected": each.selected,
                "stream": each.stream,
                "at": at,
            }
            for each in some
        ]
        with store.write() as connection:
            known = set(
                connection.execute(
                    sql.select(schema.draw.c.id).where(schema.draw.c.id.in_([row["id"] for row in rows]))
                ).scalars()
            )
            fresh = [row for row in rows if row["id"] not in known]
            if fresh:
                connection.execute(sql.insert(schema.draw), fresh)
            made += len(fresh)
    return made


def draws(
    store: Reader,
    *,
    since: int = 0,
    stream: str | None = None,
    selected: bool | None = None,
    ids: Sequence[str] | None = None,
) -> list[Draw]:
    """Draws in the order of time."""
    table = schema.draw.c
    query = sql.select(schema.draw).where(table.at >= since).order_by(table.at, table.id)
    if stream is not None:
        query = query.where(table.stream == stream)
    if selected is not None:
        query = query.where(table.selected == selected)
    with store.read() as connection:
        rows = (
            list(connection.execute(query))
            if ids is None
            else [row for some in texts.chunks(ids) for row in connection.execute(query.where(table.id.in_(some)))]
        )
    return [
        Draw(row.decision_id, row.policy_id, row.stratum, row.probability, row.selected, row.stream, row.id, row.at)
        for row in rows
    ]


# answers that wait for a person


def hold(store: Store, request: str, conversation: str, task: str | None = None) -> str:
    """Note that an answer waits for a person; returns the hold's id (one for each request)."""
    with store.write() as connection:
        return traces.hold(store, connection, request, conversation, task)


def deliver(store: Store, hold_or_request: str, message: Message, by: str, *, stay: bool = False) -> str:
    """A person's answer: it is delivered in that conversation, which goes back to the model unless they `stay`. The
    first answer counts; it answers what waits there before it as well."""
    table = schema.hold.c
    with store.read() as connection:
        row = connection.execute(
            sql.select(schema.hold).where(sql.or_(table.id == hold_or_request, table.request_id == hold_or_request))
        ).first()
    if not row:
        raise NotFound(f"nothing waits under {hold_or_request!r}")
    return takeover.say(store, row.conversation_id, message, by, stay=stay, at_hold=row.id)


def pending(store: Reader, conversation: str) -> list[tuple[str, Message]]:
    """Answers by people that a conversation has not been given yet: (hold id, message)."""
    table = schema.hold.c
    query = sql.select(schema.hold).where(
        table.conversation_id == conversation, table.text_id.is_not(None), table.delivered_at.is_(None)
    )
    with store.read() as connection:
        rows = connection.execute(query.order_by(table.answered_at)).all()
        words = texts.bodies(connection, [row.text_id for row in rows]) if rows else {}
    return [(row.id, texts.unpack(words[row.text_id])[0]) for row in rows if row.text_id in words]


def undelivered(store: Reader) -> frozenset[str]:
    """The conversations that have not been given all that people answered in them."""
    table = schema.hold.c
    query = sql.select(table.conversation_id).where(table.text_id.is_not(None), table.delivered_at.is_(None))
    with store.read() as connection:
        return frozenset(connection.execute(query).scalars())


def assign(store: Store, tasks: Mapping[str, str]) -> None:
    """Note which task asks reviewers about a held answer: hold id -> task id."""
    table = schema.hold
    with store.write() as connection:
        for hold_id, task in tasks.items():
            mine = sql.update(table).where(table.c.id == hold_id, table.c.task_id.is_(None))
            connection.execute(mine.values(task_id=task))


def delivered(store: Store, ids: Sequence[str]) -> None:
    """Mark answers as given."""
    table = schema.hold
    with store.write() as connection:
        connection.execute(sql.update(table).where(table.c.id.in_(list(ids))).values(delivered_at=now()))


@dataclass(frozen=True)
class Hold:
    """An answer that waits, or waited, for a person."""

    id: str
    request: str
    conversation: str
    task: str | None
    by: str
    at: int
    answered_at: int | None
    delivered_at: int | None


def holds(store: Reader, waiting: bool | None = None, conversation: str | None = None) -> list[Hold]:
    """Held answers, oldest first; `waiting` True leaves out those that a person has answered."""
    table = schema.hold.c
    query = sql.select(schema.hold).order_by(table.at, table.id)
    if waiting is not None:
        query = query.where(table.answered_at.is_(None) if waiting else table.answered_at.is_not(None))
    if conversation is not None:
        query = query.where(table.conversation_id == conversation)
    with store.read() as connection:
        return [
            Hold(
                row.id,
                row.request_id,
                row.conversation_id,
                row.task_id,
                row.by,
                row.at,
                row.answered_at,
                row.delivered_at,
            )
            for row in connection.execute(query)
        ]


# the vault: what placeholders stand for


def vault_put(store: Store, conversation: str, entries: Mapping[str, tuple[str, str]]) -> None:
    """Keep what placeholders of a conversation stand for, encrypted: placeholder -> (kind, value)."""
    at = now()
    rows = [
        {
            "conversation_id": conversation,
            "placeholder": placeholder,
            "kind": kind,
            "sealed": store.keys.seal("vault", value.encode(), f"{conversation}/{placeholder}"),
            "at": at,
        }
        for placeholder, (kind, value) in entries.items()
    ]
    if rows:
        with store.write(durable=False) as connection:
            connection.execute(store.insert(schema.vault).on_conflict_do_nothing(), rows)


def vault_get(store: Reader, conversation: str) -> dict[str, tuple[str, str]]:
    """Placeholder -> (kind, value) of a conversation."""
    table = schema.vault.c
    with store.read() as connection:
        rows = connection.execute(sql.select(schema.vault).where(table.conversation_id == conversation)).all()
    return {
        row.placeholder: (
            row.kind,
            store.keys.unseal("vault", row.sealed, f"{conversation}/{row.placeholder}").decode(),
        )
        for row in rows
    }


def vault_forget(store: Store, conversation: str) -> int:
    """Forget what the placeholders of a conversation stand for; returns how many there were."""
    with store.write() as connection:
        return connection.execute(
            sql.delete(schema.vault).where(schema.vault.c.conversation_id == conversation)
        ).rowcount


def vault_expire(store: Store, before: int, most: int = 2000) -> int:
    """Forget what placeholders stand for that were kept before a time, in milliseconds; returns how many there were.

    `most` go in one transaction, so that traffic is written between. A conversation that goes on keeps them anew.
    Those under a legal hold stay.
    """
    table, gone = schema.vault.c, 0
    old = sql.select(table.conversation_id, table.placeholder).where(table.at < before, ~retention.kept_vault())
    old = old.limit(most)
    while True:
        with store.write(durable=False) as connection:
            rows = connection.execute(
                sql.delete(schema.vault).where(sql.tuple_(table.conversation_id, table.placeholder).in_(old))
            ).rowcount
        gone += rows
        if rows < most:
            return gone


# figures over time


@dataclass(frozen=True)
class Estimate:
    """A figure about live decisions with its interval; undefined is None with a reason."""

    judge: str
    period: str
    metric: str
    value: float | None
    low: float | None = None
    high: float | None = None
    n: int = 0
    n_effective: float | None = None
    slice: str = ""
    reason: str = ""
    people: str = "live"
    policies: Sequence[str] = ()
    at: int = 0


@dataclass(frozen=True)
class Drift:
    """A signal of change: its value, the threshold, and whether it triggered."""

    signal: str
    period: str
    value: float | None
    threshold: float | None
    triggered: bool
    detail: Mapping[str, Any] = field(default_factory=dict)
    at: int = 0


def save_estimates(store: Store, new: Sequence[Estimate]) -> None:
    """Keep estimates."""
    rows = [
        {
            "id": uuid7(),
            "judge": each.judge,
            "period": each.period,
            "slice": each.slice,
            "metric": each.metric,
            "value": each.value,
            "low": each.low,
            "high": each.high,
            "n": each.n,
            "n_effective": each.n_effective,
            "reason": each.reason,
            "people": each.people,
            "policies": list(each.policies),
            "at": each.at or now(),
        }
        for each in new
    ]
    if rows:
        with store.write() as connection:
            connection.execute(sql.insert(schema.estimate), rows)


def estimates(store: Reader, judge: str | None = None, metric: str | None = None) -> list[Estimate]:
    """Estimates in the order they were made."""
    table = schema.estimate.c
    query = sql.select(schema.estimate).order_by(table.id)
    if judge is not None:
        query = query.where(table.judge == judge)
    if metric is not None:
        query = query.where(table.metric == metric)
    with store.read() as connection:
        return [
            Estimate(
                row.judge,
                row.period,
                row.metric,
                row.value,
                row.low,
                row.high,
                row.n,
                row.n_effective,
                row.slice,
                row.reason,
                row.people,
                tuple(row.policies),
                row.at,
            )
            for row in connection.execute(query)
        ]


def save_drift(store: Store, new: Sequence[Drift], key: str = "") -> None:
    """Keep drift signals; under a `key`, each signal of a period once."""
    rows = [
        {
            "id": derived_id("drift", key, each.signal, each.period) if key else uuid7(),
            "signal": each.signal,
            "period": each.period,
            "value": each.value,
            "threshold": each.threshold,
            "triggered": each.triggered,
            "detail": dict(each.detail),
            "at": each.at or now(),
        }
        for each in new
    ]
    if rows:
        with store.write() as connection:
            connection.execute(store.insert(schema.drift).on_conflict_do_nothing(), rows)


def drifts(store: Reader, triggered: bool | None = None, since: int = 0) -> list[Drift]:
    """Drift signals in the order of time."""
    table = schema.drift.c
    query = sql.select(schema.drift).where(table.at >= since).order_by(table.at, table.id)
    if triggered is not None:
        query = query.where(table.triggered == triggered)
    with store.read() as connection:
        return [
            Drift(row.signal, row.period, row.value, row.threshold, row.triggered, row.detail, row.at)
            for row in connection.execute(query)
        ]
