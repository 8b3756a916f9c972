"""What other tools and files hold of tasks and answers, in one shape; and how it enters a store, through the API.

People of a file are recorded ones (`replayed`), under names that hold no address. A row or an answer that cannot be
taken is left out and counted with its reason; what is there already stays as it is.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, model_validator

from tutelage.core.errors import DataError, TutelageError
from tutelage.core.records import Message, digest, explain
from tutelage.feedback import api
from tutelage.feedback.wire import (
    Answer,
    Answers,
    Form,
    Kind,
    NewCandidate,
    NewProject,
    NewTask,
    Question,
    Wire,
    storable,
)
from tutelage.store import answers, ledger, people, slots, tasks
from tutelage.store.engine import Store

MOST_TOLD = 20
"""Faults that are told one by one; the others are counted."""
BATCH = 500


class Told(Answer):
    """What one person of a file said of one task: the fields of an answer, without the place it was given in."""

    slot: str = ""
    epoch: int = 0
    key: str = "recorded"
    person: str = Field(min_length=1, max_length=200)
    people: str = ""
    """`simulated` people stay simulated; all others are recorded ones."""
    annotation: str = ""
    """The id it had where it comes from."""

    @property
    def kind(self) -> str:
        """The kind of person it is stored under."""
        return "simulated" if self.people == "simulated" else "replayed"


class Incoming(Wire):
    """One row of a file: a task, and what people said of it. Candidates may be plain texts; `prompt` is short for one
    message of the user. What an export adds (ids, pseudonyms, kinds of people) is read over."""

    key: str = Field(default="", max_length=200)
    kind: Kind | None = None
    messages: tuple[Message, ...] = Field(min_length=1)
    candidates: tuple[NewCandidate, ...] = ()
    answers: tuple[Told, ...] = ()
    cluster: str = Field(default="", max_length=120)
    language: str = Field(default="", max_length=20)
    licence: str = Field(default="", max_length=40)
    source: str = ""
    split: str = ""
    meta: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _short(cls, row: Any) -> Any:
        if not isinstance(row, dict):
            return row
        found = {name: value for name, value in row.items() if value is not None and name not in ORIGIN}
        if "messages" not in found and isinstance(found.get("prompt"), str):
            found["messages"] = [{"role": "user", "content": found.pop("prompt")}]
        if isinstance(found.get("candidates"), list):
            found["candidates"] = [{"content": c} if isinstance(c, str) else c for c in found["candidates"]]
        return found


ORIGIN = frozenset(("id", "task", "annotations", "annotators", "people", "simulated"))


@dataclass
class Batch:
    """What was read of a file. `rows` are numbered as the file numbers them."""

    file: Path
    rows: list[tuple[int, Incoming]] = field(default_factory=list)
    form: Form | None = None
    """What was asked, where the file says so; else it is told from the answers."""
    dropped: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def fault(self, error: TutelageError | str, row: int) -> None:
        """Leave a row out, and say why."""
        why = error.message if isinstance(error, TutelageError) else error
        key = error.key if isinstance(error, TutelageError) else None
        self.dropped["row that cannot be read"] += 1
        self.tell(DataError(why, file=self.file, row=row, key=key))

    def tell(self, error: TutelageError) -> None:
        """Say one fault, as long as they are few."""
        if len(self.problems) < MOST_TOLD:
            self.problems.append(str(error))

    def take(self, row: int, found: Mapping[str, Any]) -> None:
        """Take a row, or leave it out and say why."""
        try:
            storable(found)
            self.rows.append((row, Incoming.model_validate(found)))
        except ValidationError as error:
            key, message = explain(error)
            self.fault(DataError(message, key=key), row)
        except DataError as error:
            self.fault(error, row)


@dataclass(frozen=True)
class Brought:
    """What an import came to. `there` counts answers that had been brought before."""

    project: str
    tasks: int
    answers: int
    there: int
    people: int
    dropped: Mapping[str, int]
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def key_of(name: str) -> str:
    """A name as the key of a question."""
    found = re.sub(r"[^a-z0-9_:.-]+", "_", name.lower()).strip("_")[:60]
    return found if found[:1].isalpha() else f"q_{found}"[:61]


def form_of(rows: Iterable[Incoming], scale: tuple[float, float] | None = None, most: int = 40) -> Form:
    """A form that asks what the answers answer. Texts are choices where there are at most `most` different short ones,
    all of one word, or at most half as many as there are answers."""
    scores: dict[str, list[float]] = {}
    values: dict[str, list[Any]] = {}
    for row in rows:
        for each in row.answers:
            for key, by_number in each.scores.items():
                scores.setdefault(key, []).extend(by_number.values())
            for key, value in each.values.items():
                values.setdefault(key, []).append(value)
    asked = [Question(key=key, per_candidate=True, scale=_scale(some, scale), required=False)
             for key, some in sorted(scores.items())]  # fmt: skip
    for key, some in sorted(values.items()):
        if all(isinstance(each, bool) for each in some):
            asked.append(Question(key=key, kind="boolean", required=False))
        elif all(isinstance(each, int | float) for each in some):
            asked.append(Question(key=key, scale=_scale(some, scale), required=False))
        elif any(isinstance(each, list) for each in some):
            named = [name for each in some for name in (each if isinstance(each, list) else [each])]
            if named:
                choices = tuple(sorted({str(name) for name in named}))
                asked.append(Question(key=key, kind="choices", choices=choices, required=False))
        else:
            names = sorted({str(each) for each in some})
            words = all(len(each) <= 60 and len(each.split()) == 1 for each in names)
            few = len(names) <= most and (words or 2 * len(names) <= len(some)) and max(map(len, names)) <= 60
            if few:
                asked.append(Question(key=key, kind="choice", choices=tuple(names), required=False))
            else:
                asked.append(Question(key=key, kind="text", required=False))
    return Form(questions=tuple(asked))


def _scale(numbers: Sequence[float], given: tuple[float, float] | None) -> tuple[float, float]:
    if given is not None:
        return given
    low, high = min(numbers), max(numbers)
    if low >= 1 and high <= 5:
        return (1, 5)
    return (low, high) if low < high else (low, low + 1)


def bring(
    store: Store,
    batch: Batch,
    project: str,
    *,
    licence: str = "not-stated",
    source: str = "",
    scale: tuple[float, float] | None = None,
    actor: str = "operator",
) -> Brought:
    """Make the tasks of a batch and store what its people said, through the checks that every answer passes.

    Importing the same again changes nothing; what a file has gained is added. Raises DataError when nothing of the
    file can be taken.
    """
    rows = _sound(batch)
    if not rows:
        first = f": {batch.problems[0]}" if batch.problems else ""
        raise DataError(f"nothing in it can be taken{first}", file=batch.file)
    dropped = Counter(batch.dropped)
    lead = people.create(store, "import", kind="service", roles=("lead",))
    marks = {each.person: _called(store, project, each) for _, row in rows for each in row.answers}
    persons: dict[str, people.Person] = {}
    for kind in ("replayed", "simulated"):
        names = sorted({marks[each.person] for _, row in rows for each in row.answers if each.kind == kind})
        persons |= {each.name: each for each in people.create_many(store, names, kind=kind)}
    where = _project(store, lead, batch, rows, project, scale)
    tags = {"licence": licence, "source": source or f"file:{batch.file.name}"}
    new = [_task(where, row, marks, tags) for _, row in rows]
    before = len(tasks.load(store, project_name=project))
    for start in range(0, len(new), BATCH):
        api.add_tasks(store, lead, project, new[start : start + BATCH])
    said: dict[str, dict[str, tuple[int, Told]]] = {}
    for (number, row), made in zip(rows, new, strict=True):
        task = tasks.task_id(where, made.key)
        for each in row.answers:
            said.setdefault(marks[each.person], {})[task] = (number, each)
    stored = there = 0
    for name, mine in sorted(said.items()):
        kept, again = _answer(store, persons[name], where, mine, batch, dropped)
        stored, there = stored + kept, there + again
    added = len(tasks.load(store, project_name=project)) - before
    body = {"file": batch.file.name, "tasks": added, "answers": stored, "dropped": dict(sorted(dropped.items()))}
    if added or stored:
        ledger.record(store, actor, "feedback.import", where, body)
    return Brought(
        project=project,
        tasks=added,
        answers=stored,
        there=there,
        people=len(persons),
        dropped=dict(sorted(dropped.items())),
        problems=tuple(batch.problems),
        notes=tuple(batch.notes),
    )


def _sound(batch: Batch) -> list[tuple[int, Incoming]]:
    """Rows with one answer by each person; a key that comes twice with other content is a fault."""
    found: dict[str, tuple[int, Incoming]] = {}
    for number, row in batch.rows:
        content = [row.model_dump(mode="json", include={"messages", "candidates"})]
        key = row.key or digest(content)[:32]
        if key in found:
            first, other = found[key]
            if (other.messages, other.candidates) != (row.messages, row.candidates):
                batch.fault(f"the key {key!r} stands for another task in row {first}", number)
                continue
            row = other.model_copy(update={"answers": (*other.answers, *row.answers)})
            number = first
        by_person: dict[str, Told] = {}
        for each in row.answers:
            batch.dropped["earlier answer of the same person"] += each.person in by_person
            by_person[each.person] = each
        found[key] = (number, row.model_copy(update={"key": key, "answers": tuple(by_person.values())}))
    batch.dropped = +batch.dropped
    return list(found.values())


def _called(store: Store, project: str, told: Told) -> str:
    """The name a recorded person gets here. An address is replaced by a mark that only this store can make again."""
    name = told.person
    plain = re.sub(r"[^\w .:+-]", "-", name) if "@" not in name else f"#{store.keys.mark('import', name)[:16]}"
    if len(plain) > 60:
        plain = f"{plain[:40]}#{hashlib.sha256(name.encode()).hexdigest()[:16]}"
    return f"{told.kind} {project[:40]} {plain}"


def _project(
    store: Store,
    lead: people.Person,
    batch: Batch,
    rows: Sequence[tuple[int, Incoming]],
    project: str,
    scale: tuple[float, float] | None,
) -> str:
    """The id of the project: one that is there keeps its form, unless the file says what was asked."""
    known = {each.name for each in tasks.projects(store, project)}
    if project in known and batch.form is None:
        return tasks.get_project(store, project).id
    kinds = Counter(_kind(row) for _, row in rows)
    try:
        new = NewProject(
            name=project,
            kind=kinds.most_common(1)[0][0],
            form=batch.form or form_of((row for _, row in rows), scale),
            per_task=max(1, max(len(row.answers) for _, row in rows)),
            settings={"people": "replayed"},
        )
    except ValidationError as error:
        key, message = explain(error)
        raise DataError(message, key=key) from None
    api.create_project(store, lead, new)
    return tasks.get_project(store, project).id


def _kind(row: Incoming) -> Kind:
    """The kind of task that all its answers answer."""
    given = [each for each in row.answers if each.status == "submitted"]
    if row.kind:
        return row.kind
    if len(row.candidates) > 1 and given and all(each.tiers for each in given):
        if all(each.scores for each in given):
            return "ranking+scoring"
        return "pair" if len(row.candidates) == 2 else "ranking"
    if not given and len(row.candidates) > 1:
        return "ranking"
    if row.candidates and any(each.scores or each.tiers for each in given):
        return "scoring"
    return "rewrite" if given and all(each.rewrite for each in given) else "tag"


def _task(where: str, row: Incoming, marks: Mapping[str, str], tags: Mapping[str, Any]) -> NewTask:
    own = {name: value for name, value in (("licence", row.licence), ("source", row.source), ("split", row.split))
           if value}  # fmt: skip
    return NewTask(
        key=row.key,
        kind=_kind(row),
        messages=row.messages,
        candidates=row.candidates,
        people=tuple(marks[each.person] for each in row.answers) or None,
        cluster=row.cluster or row.key[:120],
        language=row.language,
        meta={**tags, **own, **row.meta},
    )


def compares(store: Store, project: str) -> bool:
    """Whether somebody has compared answers in a project: ranked them, or scored several."""
    many = {id for id, task in tasks.load(store, project_name=project).items() if len(task.candidates) > 1}
    given = answers.read(store, project)
    return any(each.task in many and (each.tiers or each.scores()) for each in given)


def _answer(
    store: Store,
    person: people.Person,
    project: str,
    said: Mapping[str, tuple[int, Told]],
    batch: Batch,
    dropped: Counter[str],
) -> tuple[int, int]:
    """Give one person's answers to the places that are kept for them: (stored now, there before)."""
    places = slots.reserved(store, person.id, project)
    done = {each.task for each in answers.read(store, person=person.id, status=None)}
    missing = [task for task in said if task not in places and task not in done]
    dropped["answer to a task that was there without a place for this person"] += len(missing)
    wanted = [task for task in said if task in places and task not in done]
    stored = 0
    for start in range(0, len(wanted), BATCH):
        some = wanted[start : start + BATCH]
        epochs = slots.take(store, person.id, [places[task] for task in some])
        given = [
            Answer.model_validate(
                said[task][1].model_dump(include=set(Answer.model_fields))
                | {"slot": places[task], "epoch": epochs.get(places[task], 0), "key": f"import/{task}"}
            )
            for task in some
        ]
        for task, receipt in zip(some, api.submit(store, person, Answers(answers=tuple(given))).receipts, strict=True):
            stored += receipt.status == "stored"
            if receipt.status == "refused":
                dropped["answer that does not fit its task"] += 1
                batch.tell(DataError(receipt.error, file=batch.file, row=said[task][0]))
    for name in [name for name, count in dropped.items() if not count]:
        del dropped[name]
    return stored, sum(task in done for task in said)
