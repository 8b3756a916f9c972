"""Personal data that is masked in what people are shown, and how it is uncovered: with a reason, on the record."""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sql

from tutelage.core.errors import DataError, NotFound
from tutelage.store import ledger, schema, texts
from tutelage.store.engine import Reader, Store
from tutelage.store.ledger import Entry
from tutelage.text import pii

ACT = "text.reveal"
SHORTEST, LONGEST = 10, 300
"""Characters of a reason."""


@dataclass(frozen=True)
class Masked:
    """A text of a task with something masked in it."""

    id: str
    candidate: int | None
    """None for the question."""
    shown: str


def masked(store: Reader, task: str) -> tuple[str, list[Masked]]:
    """The project of a task, and those of its texts in which something is masked. Raises NotFound."""
    text, candidate = schema.text.c, schema.candidate
    with store.read() as connection:
        row = connection.execute(sql.select(schema.task).where(schema.task.c.id == task)).first()
        if row is None:
            raise NotFound("there is no such task", key="task")
        answers = connection.execute(
            sql.select(candidate.c.text_id, candidate.c.no).where(candidate.c.task_id == task).order_by(candidate.c.no)
        ).all()
        places: dict[str, int | None] = {row.prompt_id: None, **{each.text_id: each.no for each in answers}}
        wanted = sql.select(text.id, text.redacted).where(text.id.in_(list(places)), text.redacted.is_not(None))
        found = {each.id: each.redacted for each in connection.execute(wanted)}
    return row.project_id, [
        Masked(id, places[id], found[id] if places[id] is not None else _talk(found[id]))
        for id in places
        if id in found
    ]


def reveal(store: Store, task: str, text: str, reason: str, by: str) -> str:
    """The text as it was written, and a row in the ledger: who, which, why. Raises DataError without a reason.

    The reason goes on record for good, so personal data in it is masked as well.
    """
    said = " ".join(reason.split())
    if not SHORTEST <= len(said) <= LONGEST:
        raise DataError(f"say why, in {SHORTEST} to {LONGEST} characters", key="reason")
    project, known = masked(store, task)
    place = next((each for each in known if each.id == text), None)
    if place is None:
        raise NotFound("nothing is masked there", key="text")
    with store.write() as connection:
        found = texts.bodies(connection, [text]).get(text)
        if found is None:
            raise NotFound("this text was erased", key="text")
        body = {"reason": pii.redact(said, pii.find(said)), "task": task, "project": project}
        ledger.append(connection, by, ACT, text, body)
    return found if place.candidate is not None else _talk(found)


def reveals(store: Reader, limit: int = 200, before: int | None = None) -> list[Entry]:
    """Who uncovered what and why (before a number of the ledger), newest first."""
    return ledger.acts(store, ACT, limit=limit, before=before)


def _talk(packed: str) -> str:
    return "\n\n".join(f"{each.role}: {each.content}" for each in texts.unpack(packed))
