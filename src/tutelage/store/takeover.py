"""Conversations that are with a person: begun by a decision `review` or by a reviewer, ended by people.

While one is with a person the model says nothing in it. What the user sends is kept as requests with holds, what people
say is the answer of a hold, and is given to the user in the same conversation.
"""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sql

from tutelage.core.errors import DataError, NotFound
from tutelage.core.records import Message
from tutelage.store import ledger, schema, texts
from tutelage.store.engine import Reader, Store, derived_id, now, uuid7

POLICY = "policy"
"""Who began it where the policy did."""
taken, hold = schema.takeover.c, schema.hold.c


@dataclass(frozen=True)
class Takeover:
    """A stretch of a conversation that people answer. `waiting` messages of the user have no answer yet."""

    id: str
    conversation: str
    tenant: str
    by: str
    reason: str
    person: str
    at: int
    touched_at: int
    ended_at: int | None
    waiting: int = 0


def begun(
    store: Store, connection: sql.Connection, conversation: str, tenant: str = "", by: str = POLICY, reason: str = ""
) -> None:
    """From the end of this transaction on the conversation is with a person; if it is already, nothing changes."""
    at = now()
    row = {"id": uuid7(), "conversation_id": conversation, "open_as": conversation, "tenant": tenant[:120], "by": by}
    made = connection.execute(
        store.insert(schema.takeover)
        .values(**row, reason=reason[:300], at=at, touched_at=at)
        .on_conflict_do_nothing()
        .returning(taken.id)
    ).first()
    if made is None:
        mine = sql.update(schema.takeover).where(taken.open_as == conversation)
        connection.execute(mine.values(touched_at=at))
    elif by != POLICY:  # what a policy decides stands with the request
        ledger.append(connection, by, "takeover.begin", conversation, {"reason": reason[:300]})


def begin(store: Store, conversation: str, *, by: str, reason: str) -> None:
    """A person takes a conversation over. Raises NotFound for one that nobody has had, DataError without a reason."""
    if not reason.strip():
        raise DataError("say why the conversation is taken over: it is kept for good", key="reason")
    with store.write() as connection:
        query = sql.select(schema.conversation.c.tenant).where(schema.conversation.c.id == conversation)
        row = connection.execute(query).first()
        if row is None:
            raise NotFound(f"there is no conversation {conversation[:40]!r}", key="conversation")
        begun(store, connection, conversation, row.tenant, by, reason.strip())


def end(store: Store, conversation: str, by: str) -> bool:
    """Give a conversation back to the model; False when it was with nobody. What waits is waited for no more."""
    with store.write() as connection:
        return _ended(connection, conversation, by)


def _ended(connection: sql.Connection, conversation: str, by: str) -> bool:
    at = now()
    mine = sql.update(schema.takeover).where(taken.open_as == conversation)
    ended = bool(connection.execute(mine.values(open_as=None, ended_at=at, ended_by=by)).rowcount)
    waits = sql.update(schema.hold).where(hold.conversation_id == conversation, hold.answered_at.is_(None))
    connection.execute(waits.values(answered_at=at, by=by))
    if ended:
        ledger.append(connection, by, "takeover.end", conversation)
    return ended


def say(store: Store, conversation: str, message: Message, by: str, *, stay: bool = True, at_hold: str = "") -> str:
    """A person's words to the user of a conversation; returns the id under which they are delivered.

    They answer all that waits there (up to hold `at_hold` where it is named). `stay`: the conversation stays with the
    person. Raises NotFound for a conversation without a request.
    """
    with store.write() as connection:
        waits = sql.select(hold.id, hold.request_id, hold.at).where(
            hold.conversation_id == conversation, hold.answered_at.is_(None)
        )
        waiting = list(connection.execute(waits.order_by(hold.at, hold.id)))
        if at_hold:
            waiting = waiting[: next((at + 1 for at, row in enumerate(waiting) if row.id == at_hold), 0)]
            if not waiting:
                raise DataError("this was answered already", key="hold")
        if waiting:
            mine, request = waiting[-1].id, waiting[-1].request_id
        else:
            mine, request = _further(connection, conversation)
        text_id, at = derived_id("text", mine, "delivered"), now()
        texts.put(connection, [(text_id, texts.pack([message]), "")])
        for row in waiting[:-1]:
            earlier = sql.update(schema.hold).where(hold.id == row.id)
            connection.execute(earlier.values(by=by, answered_at=at))
        answered = sql.update(schema.hold).where(hold.id == mine)
        connection.execute(answered.values(text_id=text_id, by=by, answered_at=at))
        ledger.append(connection, by, "hold.answer", mine, {"request": request})
        if stay or len(connection.execute(waits).all()):  # what came meanwhile still waits for a person
            with_them = sql.update(schema.takeover).where(taken.open_as == conversation)
            connection.execute(with_them.values(person_id=by[:36], touched_at=at))
        else:
            _ended(connection, conversation, by)
    return str(mine)


def _further(connection: sql.Connection, conversation: str) -> tuple[str, str]:
    """A place for words that answer nothing in particular, at the newest request."""
    request = schema.request.c
    newest = sql.select(request.id).where(request.conversation_id == conversation).order_by(request.at.desc())
    row = connection.execute(newest.limit(1)).first()
    if row is None:
        raise NotFound(f"there is no conversation {conversation[:40]!r}", key="conversation")
    id = uuid7()
    place = {"id": id, "request_id": row.id, "conversation_id": conversation, "by": "", "at": now()}
    connection.execute(sql.insert(schema.hold).values(place))
    return id, row.id


def opened(store: Reader) -> list[Takeover]:
    """The conversations that are with a person, those that wait longest first."""
    waits = sql.select(sql.func.count()).where(
        hold.conversation_id == taken.conversation_id, hold.answered_at.is_(None)
    )
    query = sql.select(schema.takeover, waits.scalar_subquery().label("waiting")).where(taken.open_as.is_not(None))
    with store.read() as connection:
        rows = connection.execute(query.order_by(taken.touched_at, taken.id)).all()
    found = [_takeover(row, row.waiting) for row in rows]
    return sorted(found, key=lambda each: not each.waiting)


def conversations(store: Reader) -> frozenset[str]:
    """The names of the conversations that are with a person."""
    with store.read() as connection:
        return frozenset(connection.execute(sql.select(taken.open_as).where(taken.open_as.is_not(None))).scalars())


def of(store: Reader, conversation: str) -> list[Takeover]:
    """The stretches of a conversation that people answered, the newest first."""
    query = sql.select(schema.takeover).where(taken.conversation_id == conversation)
    with store.read() as connection:
        return [_takeover(row) for row in connection.execute(query.order_by(taken.at.desc(), taken.id.desc()))]


def said(store: Reader, conversation: str) -> list[tuple[int, str, Message, int | None]]:
    """What people have said in a conversation: when, who, what, when it was delivered; no erased words."""
    query = sql.select(schema.hold).where(hold.conversation_id == conversation, hold.text_id.is_not(None))
    with store.read() as connection:
        rows = connection.execute(query.order_by(hold.answered_at, hold.id)).all()
        words = texts.bodies(connection, [row.text_id for row in rows])
    return [
        (row.answered_at, row.by, texts.unpack(words[row.text_id])[0], row.delivered_at)
        for row in rows
        if row.text_id in words
    ]


def expire(store: Store, before: int) -> int:
    """Give back what nobody has touched since a time (ms): its users are answered by the model again."""
    query = sql.select(taken.conversation_id).where(taken.open_as.is_not(None), taken.touched_at < before)
    with store.write() as connection:
        left = list(connection.execute(query).scalars())
        for conversation in left:
            _ended(connection, conversation, "system")
    return len(left)


def _takeover(row: sql.Row[tuple[object, ...]], waiting: int = 0) -> Takeover:
    values = row._mapping
    names = ("id", "tenant", "by", "reason", "at", "touched_at", "ended_at")
    given = {name: values[name] for name in names}
    return Takeover(conversation=values["conversation_id"], person=values["person_id"], waiting=waiting, **given)
