"""Taking a person's words out of the store: the words go, the rows and what they are linked to stay."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import sqlalchemy as sql

from tutelage.core.errors import NotFound
from tutelage.store import dialogues, gold, ledger, profiles, retention, schema, texts
from tutelage.store.engine import Reader, Store


@dataclass(frozen=True)
class Words:
    """Everything one person wrote: as one who judges, and as a user of the service."""

    annotations: tuple[str, ...] = ()
    """Ids of answers given; they lead to the artifacts that learned from them."""
    requests: tuple[str, ...] = ()
    conversations: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()
    """Ids of texts with words of this person."""
    kept: Mapping[str, int] = field(default_factory=dict)
    """Why requests are left as they are, a legal hold each -> how many."""


def words_of(store: Reader, *, person: str = "", subject: str = "") -> Words:
    """What a person (id) answered, and what a user (subject of traffic) asked and said.

    Of a person also what they asked in the console, and what they said there about answers. What is under a legal
    hold is left out and named.
    """
    annotation, answer, request = schema.annotation.c, schema.answer.c, schema.request.c
    said, hold, who = schema.feedback.c, schema.hold.c, schema.person.c
    annotations: list[str] = []
    requests: list[str] = []
    conversations: set[str] = set()
    found: set[str] = set()
    kept: dict[str, int] = {}
    with store.read() as connection:
        if person:
            annotations = list(
                connection.execute(
                    sql.select(annotation.id).where(annotation.person_id == person).order_by(annotation.seq)
                ).scalars()
            )
            for some in texts.chunks(annotations):
                for column, key in ((answer.text_id, answer.annotation_id), (annotation.reason_id, annotation.id)):
                    wrote = sql.select(column).where(key.in_(some), column.is_not(None))
                    found.update(connection.execute(wrote).scalars())
            found.update(
                connection.execute(
                    sql.select(hold.text_id)
                    .join(schema.request, request.id == hold.request_id)
                    .where(hold.by == person, hold.text_id.is_not(None), ~retention.kept_request())
                ).scalars()
            )
            names = [person, *connection.execute(sql.select(who.pseudonym).where(who.id == person)).scalars()]
            comments = (
                sql.select(said.text_id)
                .join(schema.request, request.id == said.request_id)
                .where(said.actor.in_(names), said.text_id.is_not(None), ~retention.kept_request())
            )
            found.update(connection.execute(comments).scalars())
            spoken = (
                sql.select(schema.task.c.id)
                .join(schema.slot, schema.slot.c.task_id == schema.task.c.id)
                .where(schema.task.c.kind == "dialogue", schema.slot.c.reserved_for == person)
            )
            found.update(_asked(connection, spoken))
        if subjects := [each for each in (person, subject) if each]:
            rows = connection.execute(
                sql.select(request.id, request.conversation_id)
                .where(request.subject.in_(subjects), ~retention.kept_request())
                .order_by(request.at)
            ).all()
            kept = retention.reasons(connection, request.subject.in_(subjects))
            requests = [row.id for row in rows]
            conversations = {row.conversation_id for row in rows}
            for some in texts.chunks(requests):
                found |= retention.texts_of(connection, some)
    return Words(tuple(annotations), tuple(requests), tuple(sorted(conversations)), tuple(sorted(found)), kept)


def _asked(connection: sql.Connection, asked: sql.Select[tuple[str]]) -> set[str]:
    """Texts of these tasks: what a person said, and what models answered to it, which may repeat it."""
    task, candidate = schema.task.c, schema.candidate.c
    wanted = (
        sql.select(task.prompt_id).where(task.id.in_(asked)),
        sql.select(candidate.text_id).where(candidate.task_id.in_(asked)),
    )
    return {id for query in wanted for id in connection.execute(query).scalars()}


def erase(store: Store, words: Words, *, person: str = "", subject: str = "", by: str) -> int:
    """Erase these words, the account's name, profile, figures and ways to sign in, and the vault of the
    conversations.

    Returns how many texts still had words. The act itself is recorded, without a word of what was erased.
    """
    with store.write() as connection:
        gone = texts.erase(connection, words.texts)
        for some in texts.chunks(words.conversations):
            connection.execute(
                sql.delete(schema.vault).where(schema.vault.c.conversation_id.in_(some), ~retention.kept_vault())
            )
        if person:
            _account(connection, person)
        body = {"texts": gone, "annotations": len(words.annotations), "requests": len(words.requests)}
        ledger.append(connection, by, "person.erase", person or f"subject:{subject}", body)
    return gone


def _account(connection: sql.Connection, person: str) -> None:
    table = schema.person
    row = connection.execute(sql.select(table.c.pseudonym).where(table.c.id == person)).first()
    if not row:
        raise NotFound(f"there is no person {person!r}", key="person")
    connection.execute(
        sql.update(table)
        .where(table.c.id == person)
        .values(name=f"erased {row.pseudonym}", email=None, password=None, status="erased", languages=[])
    )
    profiles.clear(connection, person)
    ways_in = (schema.session, schema.api_token, schema.invitation, schema.identity)
    of_them = (
        schema.draft,
        schema.qualification,
        schema.role_grant,
        schema.pause,
        schema.seen,
    )
    for held in (*ways_in, *of_them):
        connection.execute(sql.delete(held).where(held.c.person_id == person))
    slot = schema.slot
    connection.execute(  # what they had in hand goes to somebody else
        sql.update(slot)
        .where(slot.c.person_id == person, slot.c.state == "leased")
        .values(state="open", person_id=None, lease_until=0, lease_epoch=slot.c.lease_epoch + 1)
    )
    task = schema.task
    waits = (slot.c.reserved_for == person, slot.c.state.in_(("open", "leased")))
    talks = slot.c.task_id.in_(sql.select(task.c.id).where(task.c.kind == dialogues.KIND))
    unheld = list(connection.execute(sql.select(slot.c.task_id).where(*waits, talks)).scalars())
    theirs = sql.or_(talks, slot.c.purpose == gold.PURPOSE)  # nobody else goes on with these
    connection.execute(sql.update(slot).where(*waits, theirs).values(state="void"))
    for some in texts.chunks(unheld):
        connection.execute(sql.update(task).where(task.c.id.in_(some)).values(state="closed"))
    asked = sql.select(task.c.language).where(task.c.id == slot.c.task_id).scalar_subquery()
    connection.execute(sql.update(slot).where(*waits).values(reserved_for="", language=asked))
