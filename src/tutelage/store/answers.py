"""What people said: written once, numbered in the order of commits, corrected by a later revision, never changed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import sqlalchemy as sql

from tutelage.core.records import canonical, digest
from tutelage.store import gold, ledger, places, schema, seen, texts, webhooks
from tutelage.store.engine import Reader, Store, derived_id, next_numbers, now

WHOLE = -1
"""The candidate number of an answer about the whole task."""

FLAG = "flag"
"""The question whose answer says what is wrong with a candidate."""


@dataclass(frozen=True)
class Value:
    """One answer to one question, about one candidate or (WHOLE) the task."""

    question: str
    candidate: int = WHOLE
    number: float | None = None
    text: str | None = None
    value: Any = None
    typed: bool = False
    """`value` lists words of the person's own, of a question FLAG: erasing them leaves an empty list."""


@dataclass(frozen=True)
class NewAnnotation:
    """One person's answer to one slot, checked against the form already."""

    slot: str
    epoch: int
    key: str
    status: str = "submitted"
    reason: str = ""
    shown: Sequence[int] = ()
    values: Sequence[Value] = ()
    ranks: Sequence[tuple[int, int | None]] = ()
    """(candidate, tier; None = unrankable)."""
    spans: Sequence[tuple[str, int, int, int, str]] = ()
    """(field, candidate, start, end, label)."""
    suggestion_seen: bool = False
    active_ms: int = 0
    lease_ms: int = 0
    """How long the place stays one's own after an answer was withdrawn."""


@dataclass(frozen=True)
class Receipt:
    """What became of an answer: stored, repeated (it was there already), or stale (the slot is another's now)."""

    slot: str
    annotation: str
    status: Literal["stored", "repeated", "stale"]
    why: str = ""


@dataclass(frozen=True)
class Annotation:
    """One answer as it is read back."""

    id: str
    seq: int
    slot: str
    task: str
    project: str
    person: str
    pseudonym: str
    name: str
    people: str
    form: str
    revision: int
    status: str
    reason: str
    shown: tuple[int, ...]
    active_ms: int
    at: int
    suggestion_seen: bool = False
    """Whether they had seen what others answered, or a suggestion, before."""
    tiers: tuple[tuple[int, ...], ...] = ()
    unrankable: tuple[int, ...] = ()
    values: tuple[Value, ...] = ()
    spans: tuple[tuple[str, int, int, int, str], ...] = field(default=())

    def scores(self) -> dict[str, dict[int, float]]:
        """Criterion -> candidate -> score, of the questions asked for each candidate."""
        found: dict[str, dict[int, float]] = {}
        for value in self.values:
            if value.candidate != WHOLE and value.number is not None:
                found.setdefault(value.question, {})[value.candidate] = value.number
        return found

    def value(self, question: str) -> Any:
        """The answer to a question about the whole task: its number, list or text; None when not given."""
        for each in self.values:
            if each.question == question and each.candidate == WHOLE:
                return each.number if each.number is not None else each.value if each.value is not None else each.text
        return None


def submit(store: Store, person: str, people: str, new: Sequence[NewAnnotation]) -> list[Receipt]:
    """Store answers in one transaction; when this returns they are on disk.

    A key that was seen before gives `repeated`. A slot that another person holds by now, or whose epoch has moved
    on, gives `stale` and nothing is stored for it. A second answer to one's own finished slot is a revision. A slot
    whose answer is withdrawn, or that is answered after it was skipped, is one's own again, unless the person who was
    to be asked instead has begun: a task never gets more answers than it wants.
    """
    receipts: dict[int, Receipt] = {}
    with store.write() as connection:
        known = _known(connection, [each.key for each in new])
        rows = _slots(connection, [each.slot for each in new])
        fresh: list[tuple[int, NewAnnotation, Any]] = []
        keys: set[str] = set()
        moved: set[str] = set()
        for at, each in enumerate(new):
            row = rows.get(each.slot)
            if each.key in known:
                receipts[at] = Receipt(each.slot, known[each.key], "repeated")
            elif each.key in keys:
                receipts[at] = Receipt(each.slot, _annotation_id(each.key), "repeated")
            elif (
                row is None
                or row.person_id != person
                or row.lease_epoch != each.epoch
                or row.state == "void"
                or each.slot in moved
            ):
                receipts[at] = Receipt(each.slot, "", "stale")
            elif why := places.kept_from(connection, each.status, row):
                receipts[at] = Receipt(each.slot, "", "stale", why)
            else:
                keys.add(each.key)
                if each.status != "submitted" or row.state in places.PASSED:
                    moved.add(each.slot)  # its row has changed since it was read
                fresh.append((at, each, row))
        if fresh:
            _write(connection, store, person, people, fresh, receipts)
    return [receipts[at] for at in range(len(new))]


def _annotation_id(key: str) -> str:
    return derived_id("annotation", key)


def _known(connection: sql.Connection, keys: Sequence[str]) -> dict[str, str]:
    table = schema.annotation
    found: dict[str, str] = {}
    for some in texts.chunks(keys):
        rows = connection.execute(sql.select(table.c.key, table.c.id).where(table.c.key.in_(some)))
        found.update((row.key, row.id) for row in rows)
    return found


def _slots(connection: sql.Connection, ids: Sequence[str]) -> dict[str, Any]:
    slot, task = schema.slot, schema.task
    found: dict[str, Any] = {}
    for some in texts.chunks(list(dict.fromkeys(ids))):
        query = sql.select(slot, task.c.form_id).join(task, task.c.id == slot.c.task_id).where(slot.c.id.in_(some))
        found.update((row.id, row) for row in connection.execute(query))
    return found


def _write(
    connection: sql.Connection,
    store: Store,
    person: str,
    people: str,
    fresh: Sequence[tuple[int, NewAnnotation, Any]],
    receipts: dict[int, Receipt],
) -> None:
    at = now()
    seq = next_numbers(connection, "annotation", len(fresh))
    again = [row.id for _, _, row in fresh if row.state != "leased" or row.lease_epoch > 1]
    earlier = _revisions(connection, again, person)
    had_seen = seen.of(connection, person, sorted({row.task_id for _, _, row in fresh}))
    rows: dict[str, list[dict[str, Any]]] = {"annotation": [], "answer": [], "rank": [], "span": []}
    words: list[tuple[str, str, str]] = []
    for number, (index, each, row) in enumerate(fresh, seq):
        id = _annotation_id(each.key)
        revision, before = earlier.get(row.id, (0, None))
        earlier[row.id] = (revision + 1, id)
        receipts[index] = Receipt(each.slot, id, "stored")
        reason_id = derived_id("text", id, "reason") if each.reason else None
        if reason_id:
            words.append((reason_id, each.reason, ""))
        rows["annotation"].append(
            {
                "id": id,
                "seq": number,
                "slot_id": row.id,
                "task_id": row.task_id,
                "project_id": row.project_id,
                "person_id": person,
                "people": people,
                "form_id": row.form_id,
                "revision": revision + 1,
                "supersedes_id": before,
                "status": each.status,
                "reason_id": reason_id,
                "shown": list(each.shown),
                "suggestion_seen": each.suggestion_seen or row.task_id in had_seen,
                "active_ms": each.active_ms,
                "key": each.key,
                "at": at,
            }
        )
        for value in each.values:
            text_id = None
            written = canonical(value.value).decode() if value.typed else value.text
            if written is not None:
                text_id = derived_id("text", id, value.question, value.candidate)
                words.append((text_id, written, ""))
            rows["answer"].append(
                {
                    "annotation_id": id,
                    "question": value.question,
                    "candidate_no": value.candidate,
                    "number": value.number,
                    "text_id": text_id,
                    "value": None if value.typed else value.value,
                }
            )
        for candidate, tier in each.ranks:
            rows["rank"].append(
                {"annotation_id": id, "candidate_no": candidate, "tier": tier, "unrankable": tier is None}
            )
        for order, (where, candidate, start, stop, label) in enumerate(each.spans):
            rows["span"].append(
                {
                    "id": derived_id("span", id, order),
                    "annotation_id": id,
                    "field": where,
                    "candidate_no": candidate,
                    "start": start,
                    "stop": stop,
                    "label": label,
                }
            )
    texts.put(connection, words)
    for name, made in rows.items():
        if made:
            connection.execute(sql.insert(schema.metadata.tables[name]), made)
    golden = [
        (_annotation_id(each.key), row.task_id, said(each))
        for _, each, row in fresh
        if row.purpose == gold.PURPOSE and each.status == "submitted"
    ]
    if golden:
        gold.judge(connection, store, person, golden)
    hooks = webhooks.listening(connection)
    stood = webhooks.states(connection, sorted({row.task_id for _, _, row in fresh})) if hooks else {}
    places.settle(connection, [places.Left(row, each.status, each.lease_ms) for _, each, row in fresh])
    if hooks:
        purposes = [row.purpose for _, _, row in fresh]
        webhooks.tell_answers(connection, hooks, rows["annotation"], purposes, stood)
    ledger.append(
        connection,
        person,
        "answers",
        fresh[0][2].project_id,
        {"first": seq, "count": len(fresh), "people": people, "digest": digest(rows["answer"] + rows["rank"])},
    )
    drafts = schema.draft
    connection.execute(
        sql.delete(drafts).where(drafts.c.person_id == person, drafts.c.slot_id.in_([row.id for _, _, row in fresh]))
    )


def said(given: NewAnnotation) -> gold.Said:
    """What of an answer can be compared with another one."""
    values = {
        (each.question, each.candidate): each.number if each.number is not None else each.value
        for each in given.values
        if each.text is None
    }
    return gold.Said(dict(given.ranks), values, given.spans)


def _revisions(connection: sql.Connection, slots: Sequence[str], person: str) -> dict[str, tuple[int, str | None]]:
    """Slot -> (number of the newest revision, its id) for those of these slots that this person has answered before."""
    table = schema.annotation
    found: dict[str, tuple[int, str | None]] = {}
    if slots:
        query = (
            sql.select(table.c.slot_id, table.c.revision, table.c.id)
            .where(table.c.slot_id.in_(list(slots)), table.c.person_id == person)
            .order_by(table.c.revision)
        )
        found = {row.slot_id: (row.revision, row.id) for row in connection.execute(query)}
    return found


def read(
    store: Reader,
    project: str | None = None,
    *,
    person: str | None = None,
    task: str | Sequence[str] | None = None,
    slot: str | None = None,
    people: str | None = None,
    status: str | None = "submitted",
    newest: bool = True,
    purpose: str = schema.ORDINARY,
    own: bool = False,
    limit: int | None = None,
    before: int | None = None,
    after: int | None = None,
) -> list[Annotation]:
    """Answers in the order they were given, up to a snapshot's watermark; of revisions only the newest one.

    `project` is a name, `person`, `task` and `slot` are ids, `people` live | simulated | replayed; `status` None reads
    skipped and flagged ones as well. `limit` keeps the last ones, with `after` the first ones; `before` and `after`
    are numbers (`seq`) that are left out themselves.

    `purpose` says of which places. Answers to gold tasks that people were given on the way are no data, and what an
    adjudicator decided (`adjudicate`), having seen the others' answers, is no voice among them: both are left out.
    `own` reads all three: to whoever gave them they look alike.
    """
    table, who = schema.annotation, schema.person
    query = sql.select(table, who.c.pseudonym, who.c.name).join(who, who.c.id == table.c.person_id)
    if project is not None:
        query = query.join(schema.project, schema.project.c.id == table.c.project_id)
        query = query.where(schema.project.c.name == project)
    if not own:
        query = query.join(schema.slot, schema.slot.c.id == table.c.slot_id)
        query = query.where(schema.slot.c.purpose == purpose)
    for column, wanted in ((table.c.person_id, person), (table.c.slot_id, slot), (table.c.people, people)):
        if wanted is not None:
            query = query.where(column == wanted)
    if task is not None:
        query = query.where(table.c.task_id.in_([task] if isinstance(task, str) else list(task)))
    if before is not None:
        query = query.where(table.c.seq < before)
    if after is not None:
        query = query.where(table.c.seq > after)
    if store.until is not None:
        query = query.where(table.c.seq <= store.until)
    if newest:
        query = query.where(_stands(store))
    if status is not None:
        query = query.where(table.c.status == status)
    query = query.order_by(table.c.seq if after is not None or not limit else table.c.seq.desc()).limit(limit)
    with store.read() as connection:
        rows = sorted(connection.execute(query).all(), key=lambda row: row.seq)
        return _with_details(connection, rows)


def _stands(store: Reader) -> sql.ColumnElement[bool]:
    """That no later revision, up to a snapshot's watermark, corrects or withdraws an answer."""
    table = schema.annotation
    later = table.alias("later")
    corrected = [later.c.slot_id == table.c.slot_id, later.c.supersedes_id == table.c.id]
    if store.until is not None:
        corrected.append(later.c.seq <= store.until)
    return ~sql.exists().where(*corrected)


def _with_details(connection: sql.Connection, rows: Sequence[Any]) -> list[Annotation]:
    ids = [row.id for row in rows]
    given: dict[str, list[Any]] = {}
    order: dict[str, list[Any]] = {}
    marks: dict[str, list[Any]] = {}
    for name, into in (("answer", given), ("rank", order), ("span", marks)):
        table = schema.metadata.tables[name]
        for some in texts.chunks(ids):
            for row in connection.execute(sql.select(table).where(table.c.annotation_id.in_(some))):
                into.setdefault(row.annotation_id, []).append(row)
    written = [row.text_id for some in given.values() for row in some] + [row.reason_id for row in rows]
    words = texts.bodies(connection, written)
    return [
        Annotation(
            id=row.id,
            seq=row.seq,
            slot=row.slot_id,
            task=row.task_id,
            project=row.project_id,
            person=row.person_id,
            pseudonym=row.pseudonym,
            name=row.name,
            people=row.people,
            form=row.form_id,
            revision=row.revision,
            status=row.status,
            reason=words.get(row.reason_id or "", ""),
            shown=tuple(row.shown),
            active_ms=row.active_ms,
            at=row.at,
            suggestion_seen=row.suggestion_seen,
            tiers=_tiers(order.get(row.id, ())),
            unrankable=tuple(sorted(each.candidate_no for each in order.get(row.id, ()) if each.unrankable)),
            values=tuple(
                _value(each, words)
                for each in sorted(given.get(row.id, ()), key=lambda each: (each.question, each.candidate_no))
            ),
            spans=tuple(
                (each.field, each.candidate_no, each.start, each.stop, each.label)
                for each in sorted(marks.get(row.id, ()), key=lambda each: (each.field, each.candidate_no, each.start))
            ),
        )
        for row in rows
    ]


def _value(row: Any, words: Mapping[str, str]) -> Value:
    text = words.get(row.text_id or "")
    if row.question == FLAG and row.text_id:
        return Value(FLAG, row.candidate_no, value=json.loads(text or "[]"), typed=True)
    return Value(row.question, row.candidate_no, row.number, text, row.value)


def _tiers(ranks: Sequence[Any]) -> tuple[tuple[int, ...], ...]:
    placed: dict[int, list[int]] = {}
    for row in ranks:
        if row.tier is not None:
            placed.setdefault(row.tier, []).append(row.candidate_no)
    return tuple(tuple(sorted(placed[tier])) for tier in sorted(placed))


@dataclass(frozen=True)
class Tally:
    """How much one person, or everybody, has answered."""

    person: str
    pseudonym: str
    people: str
    answers: int
    first_at: int
    last_at: int
    median_active_ms: float | None = None


def tallies(store: Reader, project: str, status: str = "submitted") -> list[Tally]:
    """Answers per person in a project, most first; without those to gold tasks and those that adjudicate."""
    table, who = schema.annotation, schema.person
    count = sql.func.count(sql.distinct(table.c.slot_id))
    query = (
        sql.select(
            table.c.person_id,
            who.c.pseudonym,
            table.c.people,
            count.label("n"),
            sql.func.min(table.c.at).label("first_at"),
            sql.func.max(table.c.at).label("last_at"),
        )
        .join(who, who.c.id == table.c.person_id)
        .join(schema.project, schema.project.c.id == table.c.project_id)
        .join(schema.slot, schema.slot.c.id == table.c.slot_id)
        .where(schema.project.c.name == project, table.c.status == status, schema.slot.c.purpose == schema.ORDINARY)
        .where(_stands(store))
        .group_by(table.c.person_id, who.c.pseudonym, table.c.people)
        .order_by(count.desc(), who.c.pseudonym)
    )
    if store.until is not None:
        query = query.where(table.c.seq <= store.until)
    with store.read() as connection:
        return [
            Tally(row.person_id, row.pseudonym, row.people, row.n, row.first_at, row.last_at)
            for row in connection.execute(query)
        ]


def how_many(store: Reader, projects: Sequence[str], people: str | None = None) -> dict[str, int]:
    """Task id -> number of people who have answered it in its places, in these projects (by name)."""
    table = schema.annotation
    query = (
        sql.select(table.c.task_id, sql.func.count(sql.distinct(table.c.slot_id)).label("n"))
        .join(schema.project, schema.project.c.id == table.c.project_id)
        .join(schema.slot, schema.slot.c.id == table.c.slot_id)
        .where(schema.project.c.name.in_(list(projects)), table.c.status == "submitted", _stands(store))
        .where(schema.slot.c.purpose == schema.ORDINARY)
        .group_by(table.c.task_id)
    )
    if people is not None:
        query = query.where(table.c.people == people)
    if store.until is not None:
        query = query.where(table.c.seq <= store.until)
    with store.read() as connection:
        return {row.task_id: row.n for row in connection.execute(query)}


def details(annotation: Annotation) -> Mapping[str, Any]:
    """An answer as plain JSON, for export and for pages."""
    return {
        "id": annotation.id,
        "task": annotation.task,
        "person": annotation.pseudonym,
        "people": annotation.people,
        "status": annotation.status,
        "reason": annotation.reason,
        "tiers": [list(tier) for tier in annotation.tiers],
        "unrankable": list(annotation.unrankable),
        "shown": list(annotation.shown),
        "suggestion_seen": annotation.suggestion_seen,
        "values": [
            {
                "question": each.question,
                "candidate": each.candidate,
                "number": each.number,
                "text": each.text,
                "value": each.value,
            }
            for each in annotation.values
        ],
        "spans": [list(each) for each in annotation.spans],
        "revision": annotation.revision,
        "at": annotation.at,
    }
