"""What users asked, what was answered, what the guards decided, read back; and what users say about answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import sqlalchemy as sql

from tutelage.core.errors import DataError, NotFound
from tutelage.core.records import Action, Message, Span, Verdict
from tutelage.store import incidents, schema, texts
from tutelage.store.engine import Reader, Store, derived_id, now, uuid7

FEEDBACK_KINDS = ("thumb", "score", "comment", "edit", "ranking", "appeal", "metric")


@dataclass(frozen=True)
class DecisionRow:
    """A decision as it is read back. `reported`: a user complained about the answer (appeal or thumb down)."""

    id: str
    request: str
    direction: str
    channel: str
    action: Action
    reasons: tuple[str, ...]
    policy: str
    score: float | None
    category: str
    shadow: bool
    at: int
    tenant: str
    release: str
    language: str
    people: str
    conversation: str
    meta: Mapping[str, Any]
    redactions: tuple[Span, ...] = ()
    verdicts: tuple[Verdict, ...] = ()
    reported: bool = False


@dataclass(frozen=True)
class Request:
    """A request as it is read back; texts are () and None when they were erased."""

    id: str
    conversation: str
    tenant: str
    subject: str
    release: str
    model: str
    surface: str
    language: str
    people: str
    messages: tuple[Message, ...]
    answer: Message | None
    finish: str
    usage: Mapping[str, int]
    latency_ms: float | None
    meta: Mapping[str, Any]
    at: int
    decisions: tuple[DecisionRow, ...] = ()


@dataclass(frozen=True)
class Feedback:
    """What a user said about one answer."""

    id: str
    request: str
    kind: str
    value: float | None
    text: str | None
    detail: Any
    actor: str
    people: str
    at: int


def decisions(
    store: Reader,
    *,
    since: int = 0,
    until: int | None = None,
    direction: str | None = None,
    action: str | None = None,
    release: str | None = None,
    tenant: str | None = None,
    shadow: bool | None = False,
    undrawn: bool = False,
    requests: Sequence[str] | None = None,
    ids: Sequence[str] | None = None,
    newest_first: bool = False,
    limit: int | None = None,
) -> list[DecisionRow]:
    """Decisions in the order of time; `undrawn` leaves out those that a sample has seen already."""
    table, request = schema.decision, schema.request
    query = sql.select(
        table,
        request.c.tenant,
        request.c.release,
        request.c.language,
        request.c.people,
        request.c.meta,
        request.c.conversation_id,
    ).join(request, request.c.id == table.c.request_id)
    query = query.where(table.c.at >= since)
    for column, wanted in (
        (table.c.direction, direction),
        (table.c.action, action),
        (request.c.release, release),
        (request.c.tenant, tenant),
        (table.c.shadow, shadow),
    ):
        if wanted is not None:
            query = query.where(column == wanted)
    if until is not None:
        query = query.where(table.c.at < until)
    if undrawn:
        query = query.where(~sql.exists().where(schema.draw.c.decision_id == table.c.id))
    order = (table.c.at.desc(), table.c.id.desc()) if newest_first else (table.c.at, table.c.id)
    query = query.order_by(*order)
    with store.read() as connection:
        if ids is None and requests is None:
            found = list(connection.execute(query.limit(limit) if limit else query))
        else:
            column = table.c.id if ids is not None else table.c.request_id
            found = [
                row
                for some in texts.chunks(ids if ids is not None else requests or ())
                for row in connection.execute(query.where(column.in_(some)))
            ][:limit]
        given = _verdicts(connection, [row.id for row in found])
        unhappy = _reported(connection, [row.request_id for row in found])
    return [
        DecisionRow(
            id=row.id,
            request=row.request_id,
            direction=row.direction,
            channel=row.channel,
            action=row.action,
            reasons=tuple(row.reasons),
            policy=row.policy,
            score=row.score,
            category=row.category,
            shadow=row.shadow,
            at=row.at,
            tenant=row.tenant,
            release=row.release,
            language=row.language,
            people=row.people,
            conversation=row.conversation_id,
            meta=row.meta,
            redactions=tuple(Span(**each) for each in row.redactions),
            verdicts=tuple(given.get(row.id, ())),
            reported=row.request_id in unhappy,
        )
        for row in found
    ]


def _verdicts(connection: sql.Connection, ids: Sequence[str]) -> dict[str, list[Verdict]]:
    table = schema.verdict
    found: dict[str, list[Verdict]] = {}
    for some in texts.chunks(ids):
        for row in connection.execute(sql.select(table).where(table.c.decision_id.in_(some)).order_by(table.c.judge)):
            found.setdefault(row.decision_id, []).append(
                Verdict(
                    judge=row.judge,
                    status=row.status,
                    scores=row.scores,
                    spans=tuple(Span(**each) for each in row.spans),
                    cost_ms=row.cost_ms or 0.0,
                    certificate=row.certificate or None,
                )
            )
    return found


def _reported(connection: sql.Connection, requests: Sequence[str]) -> set[str]:
    table = schema.feedback.c
    unhappy = sql.or_(table.kind == "appeal", sql.and_(table.kind == "thumb", table.value < 0))
    return {
        row.request_id
        for some in texts.chunks(sorted(set(requests)))
        for row in connection.execute(sql.select(table.request_id).where(table.request_id.in_(some), unhappy))
    }


def requests(
    store: Reader,
    *,
    since: int = 0,
    until: int | None = None,
    tenant: str | None = None,
    release: str | None = None,
    conversation: str | None = None,
    ids: Sequence[str] | None = None,
    masked: bool = False,
    newest_first: bool = False,
    limit: int | None = None,
) -> list[Request]:
    """Requests with their texts and decisions, in the order of time. `masked` hides personal data."""
    table = schema.request.c
    query = sql.select(schema.request).where(table.at >= since)
    wanted = ((table.tenant, tenant), (table.release, release), (table.conversation_id, conversation))
    for column, value in wanted:
        if value is not None:
            query = query.where(column == value)
    if until is not None:
        query = query.where(table.at < until)
    order = (table.at.desc(), table.id.desc()) if newest_first else (table.at, table.id)
    query = query.order_by(*order)
    with store.read() as connection:
        if ids is None:
            found = list(connection.execute(query.limit(limit) if limit else query))
        else:
            found = [row for some in texts.chunks(ids) for row in connection.execute(query.where(table.id.in_(some)))][
                :limit
            ]
        wanted_texts = [row.input_id for row in found] + [row.output_id for row in found if row.output_id]
        words = texts.bodies(connection, wanted_texts, masked)
    decided: dict[str, list[DecisionRow]] = {}
    for each in decisions(store, requests=[row.id for row in found], shadow=None):
        decided.setdefault(each.request, []).append(each)
    return [
        Request(
            id=row.id,
            conversation=row.conversation_id,
            tenant=row.tenant,
            subject=row.subject,
            release=row.release,
            model=row.model,
            surface=row.surface,
            language=row.language,
            people=row.people,
            messages=texts.unpack(words.get(row.input_id)),
            answer=next(iter(texts.unpack(words.get(row.output_id or ""))), None),
            finish=row.finish,
            usage=row.usage,
            latency_ms=row.latency_ms,
            meta=row.meta,
            at=row.at,
            decisions=tuple(decided.get(row.id, ())),
        )
        for row in found
    ]


class Outline(NamedTuple):
    """What decides whether a request may be asked about: everything but its words."""

    id: str
    tenant: str
    release: str
    meta: Mapping[str, Any]


def askable(store: Reader, *, since: int = 0, until: int | None = None, people: str = "live") -> list[Outline]:
    """Requests whose words are there and that were decided on, without their words, in the order of time."""
    table, text, decision = schema.request.c, schema.text.c, schema.decision.c
    decided = sql.exists().where(decision.request_id == table.id, decision.direction == "input")
    query = (
        sql.select(table.id, table.tenant, table.release, table.meta)
        .join(schema.text, text.id == table.input_id)
        .where(table.at >= since, table.people == people, text.erased_at.is_(None), decided)
        .order_by(table.at, table.id)
    )
    if until is not None:
        query = query.where(table.at < until)
    with store.read() as connection:
        return [Outline(row.id, row.tenant, row.release, row.meta) for row in connection.execute(query)]


def subject(store: Reader, decision: str, masked: bool = True) -> tuple[tuple[Message, ...], str]:
    """What a reviewer of a decision sees: the conversation up to what was decided on, and its direction."""
    return subjects(store, [decision], masked)[decision]


def subjects(store: Reader, ids: Sequence[str], masked: bool = True) -> dict[str, tuple[tuple[Message, ...], str]]:
    """Decision id -> (conversation up to what was decided on, direction). Raises NotFound for an unknown id."""
    found = decisions(store, ids=ids, shadow=None)
    asked = {each.id: each for each in requests(store, ids=[row.request for row in found], masked=masked)}
    made: dict[str, tuple[tuple[Message, ...], str]] = {}
    for row in found:
        request = asked[row.request]
        answer = (request.answer,) if row.direction == "output" and request.answer else ()
        made[row.id] = ((*request.messages, *answer), row.direction)
    for id in ids:
        if id not in made:
            raise NotFound(f"there is no decision {id!r}")
    return made


# what users say about answers


def add_feedback(
    store: Store,
    request: str,
    kind: str,
    *,
    value: float | None = None,
    text: str = "",
    detail: Any = None,
    actor: str = "",
    people: str = "live",
    key: str | None = None,
) -> str:
    """Keep a thumb (+1, -1), a comment, an appeal ...; returns its id. The same key is kept once."""
    if kind not in FEEDBACK_KINDS:
        raise DataError(f"{kind!r} is no kind of feedback", key="kind", todo=f"One of: {', '.join(FEEDBACK_KINDS)}")
    if len(text) > 20_000:
        raise DataError("the text is longer than 20,000 characters", key="text")
    table, name = schema.feedback, key or uuid7()
    id = derived_id("feedback", request, name)
    with store.write() as connection:
        if not connection.execute(sql.select(schema.request.c.id).where(schema.request.c.id == request)).first():
            raise NotFound(f"there is no request {request!r}", key="trace")
        if connection.execute(sql.select(table.c.id).where(table.c.id == id)).first():
            return id
        text_id = derived_id("text", id) if text else None
        if text_id:
            texts.put(connection, [(text_id, text, "")])
        connection.execute(
            sql.insert(table).values(
                id=id,
                request_id=request,
                kind=kind,
                value=value,
                text_id=text_id,
                detail=detail,
                actor=actor,
                people=people,
                key=f"{request}/{name}",
                at=now(),
            )
        )
        if kind == "appeal" and people == "live":
            said = {"request": request, "feedback": id}
            incidents.opened(store, connection, "appeal", request, "A user appeals against an answer", detail=said)
    return id


def feedback(
    store: Reader, *, request: str | None = None, since: int = 0, kind: str | None = None, limit: int | None = None
) -> list[Feedback]:
    """What users said, in the order of time."""
    table = schema.feedback.c
    query = sql.select(schema.feedback).where(table.at >= since).order_by(table.at, table.id)
    if request is not None:
        query = query.where(table.request_id == request)
    if kind is not None:
        query = query.where(table.kind == kind)
    with store.read() as connection:
        rows = connection.execute(query.limit(limit) if limit else query).all()
        words = texts.bodies(connection, [row.text_id for row in rows if row.text_id])
    return [
        Feedback(
            row.id,
            row.request_id,
            row.kind,
            row.value,
            words.get(row.text_id or ""),
            row.detail,
            row.actor,
            row.people,
            row.at,
        )
        for row in rows
    ]
