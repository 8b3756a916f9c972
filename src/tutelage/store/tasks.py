"""Projects, their forms, and the tasks that people are asked to do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sql

from tutelage.core.config import build
from tutelage.core.errors import NotFound
from tutelage.core.records import Message, digest
from tutelage.store import ledger, schema, taxonomies, texts
from tutelage.store.engine import Reader, Store, derived_id, next_numbers, now
from tutelage.store.settings import ProjectSettings

task, form, project = schema.task.c, schema.form.c, schema.project.c


@dataclass(frozen=True)
class Project:
    """One labelling effort, with the newest version of its form."""

    id: str
    name: str
    kind: str
    state: str
    per_task: int
    settings: Mapping[str, Any]
    form: str
    version: int
    questions: Sequence[Mapping[str, Any]]
    guideline: str
    taxonomy: str | None = None
    """The id of the taxonomy that the form uses."""


@dataclass(frozen=True)
class NewTask:
    """A task to be made. `key` is unique in the project; `people` are ids of persons whose slots are reserved."""

    key: str
    kind: str
    messages: Sequence[Message]
    candidates: Sequence[tuple[str, str, Mapping[str, Any]]] = ()
    """(text, producer, meta) of each candidate, in the order of their numbers."""
    people: Sequence[str] = ()
    required: int = 1
    priority: int = 0
    cluster: str = ""
    language: str = ""
    decision: str | None = None
    draw: str | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)
    masked: Mapping[int, str] = field(default_factory=dict)
    """Texts with personal data masked, by candidate number; -1 is the packed prompt."""


@dataclass(frozen=True)
class Task:
    """A task as it was made; texts are empty when they were erased."""

    id: str
    project: str
    kind: str
    form: str
    messages: tuple[Message, ...]
    candidates: tuple[str, ...]
    producers: tuple[str, ...]
    candidate_meta: tuple[Mapping[str, Any], ...]
    required: int
    priority: int
    cluster: str
    language: str
    state: str
    decision: str | None
    draw: str | None
    meta: Mapping[str, Any]
    position: int


# projects and forms


def make_project(
    store: Store,
    name: str,
    *,
    kind: str,
    questions: Sequence[Mapping[str, Any]],
    guideline: str = "",
    per_task: int = 1,
    settings: Mapping[str, Any] | None = None,
    taxonomy: taxonomies.NewTree | None = None,
    by: str = "system",
) -> Project:
    """Make a project, or return the one of this name.

    Other questions, another guideline or another taxonomy become a new version of the form; tasks that are there keep
    the version they were made under.
    """
    with store.write() as connection:
        put_project(
            connection, store, name, kind=kind, questions=questions, guideline=guideline, per_task=per_task,
            settings=settings, taxonomy=taxonomy, by=by,
        )  # fmt: skip
    return get_project(store, name)


@dataclass(frozen=True)
class Place:
    """Where new tasks go: a project, and the form they are asked under."""

    id: str
    form: str


def put_project(
    connection: sql.Connection,
    store: Store,
    name: str,
    *,
    kind: str,
    questions: Sequence[Mapping[str, Any]],
    guideline: str = "",
    per_task: int = 1,
    settings: Mapping[str, Any] | None = None,
    taxonomy: taxonomies.NewTree | None = None,
    by: str = "system",
) -> Place:
    """`make_project` inside the caller's transaction."""
    id = derived_id("project", name)
    content = {"questions": [dict(each) for each in questions], "guideline": guideline}
    fresh = connection.execute(
        store.insert(schema.project)
        .values(id=id, name=name, kind=kind, state="open", per_task=per_task, settings=dict(settings or {}), at=now())
        .on_conflict_do_nothing()
        .returning(project.id)  # PostgreSQL's driver counts no rows here
    ).first()
    connection.execute(sql.select(project.id).where(project.id == id).with_for_update())  # one version at a time
    tree = taxonomies.publish(connection, id, taxonomy, by) if taxonomy else None
    newest = connection.execute(
        sql.select(schema.form).where(form.project_id == id).order_by(form.version.desc()).limit(1)
    ).first()
    form_id = newest.id if newest else ""
    same = newest and digest({"questions": newest.questions, "guideline": newest.guideline}) == digest(content)
    if not newest or not same or newest.taxonomy_id != tree:
        form_id = put_form(connection, id, newest.version + 1 if newest else 1, content, tree, by)
    if fresh:
        ledger.append(connection, by, "project.create", id, {"name": name, "kind": kind})
    return Place(id, form_id)


def put_form(
    connection: sql.Connection, project_id: str, version: int, content: Mapping[str, Any], tree: str | None, by: str
) -> str:
    """A version of a project's form: `content` has its questions and guideline, `tree` is the id of its taxonomy."""
    id = derived_id("form", project_id, version)
    row = {"id": id, "project_id": project_id, "version": version, "taxonomy_id": tree, "at": now()}
    connection.execute(sql.insert(schema.form).values(**row, **content))
    ledger.append(connection, by, "form.publish", project_id, {"version": version, "digest": digest(content)})
    return id


def get_project(store: Reader, name: str) -> Project:
    """The project with this name. Raises NotFound."""
    found = [each for each in projects(store, name) if name in (each.name, each.id)]
    if not found:
        raise NotFound(f"there is no project {name!r}", key="project")
    return found[0]


def projects(store: Reader, name: str | None = None) -> list[Project]:
    """All projects, oldest first, each with its newest form."""
    each = schema.form.alias("each")
    newest = sql.select(sql.func.max(each.c.version)).where(each.c.project_id == project.id).scalar_subquery()
    query = (
        sql.select(
            schema.project, form.id.label("form_id"), form.version, form.questions, form.guideline, form.taxonomy_id
        )
        .select_from(schema.project)
        .join(schema.form, sql.and_(form.project_id == project.id, form.version == newest))
        .order_by(project.at, project.name)
    )
    if name is not None:
        query = query.where(sql.or_(project.name == name, project.id == name))
    with store.read() as connection:
        return [
            Project(
                row.id,
                row.name,
                row.kind,
                row.state,
                row.per_task,
                row.settings,
                row.form_id,
                row.version,
                row.questions,
                row.guideline,
                row.taxonomy_id,
            )
            for row in connection.execute(query)
        ]


def forms(store: Reader, ids: Sequence[str]) -> dict[str, tuple[int, Sequence[Mapping[str, Any]], str]]:
    """Form id -> (version, questions, guideline)."""
    with store.read() as connection:
        rows = connection.execute(sql.select(schema.form).where(form.id.in_(list(ids)))).all()
    return {row.id: (row.version, row.questions, row.guideline) for row in rows}


def close_project(store: Store, name: str, by: str, state: str = "closed") -> None:
    """Stop handing out a project's tasks (state closed), or go on (open)."""
    with store.write() as connection:
        changed = connection.execute(sql.update(schema.project).where(project.name == name).values(state=state))
        if not changed.rowcount:
            raise NotFound(f"there is no project {name!r}", key="project")
        ledger.append(connection, by, f"project.{state}", derived_id("project", name))


def change_settings(
    store: Store, name: str, settings: Mapping[str, Any], by: str, per_task: int | None = None
) -> Project:
    """Change some settings of a project, and how many people new tasks want; the others stay.

    Raises NotFound, and ConfigError for what is no setting.
    """
    with store.write() as connection:
        row = connection.execute(
            sql.select(schema.project).where(sql.or_(project.name == name, project.id == name)).with_for_update()
        ).first()
        if row is None:
            raise NotFound(f"there is no project {name!r}", key="project")
        before = ProjectSettings.of(row.settings).model_dump(mode="json")
        kept = build(ProjectSettings, {**before, **settings}).model_dump(mode="json", exclude_defaults=True)
        changed = {"per_task": per_task or row.per_task, "settings": kept}
        connection.execute(sql.update(schema.project).where(project.id == row.id).values(**changed))
        ledger.append(connection, by, "project.change", row.id, {"per_task": changed["per_task"], **settings})
    return get_project(store, name)


# tasks


def task_id(project_id: str, key: str) -> str:
    """The id of the task that a key makes in a project."""
    return derived_id("task", project_id, key)


def add(store: Store, where: Project, new: Sequence[NewTask]) -> list[str]:
    """Make tasks with their texts, candidates and slots; those whose key is there already are left as they are."""
    for some in texts.chunks(new, 400):
        with store.write() as connection:
            put(connection, where.id, where.form, some)
    return [task_id(where.id, each.key) for each in new]


def put(connection: sql.Connection, project_id: str, form_id: str, new: Sequence[NewTask]) -> list[str]:
    """Make tasks inside the caller's transaction; those whose key is there already are left as they are."""
    ids = [task_id(project_id, each.key) for each in new]
    at = now()
    for some in texts.chunks(list(dict(zip(ids, new, strict=True)).items()), 400):
        there = set(connection.execute(sql.select(task.id).where(task.id.in_([id for id, _ in some]))).scalars())
        fresh = [(id, each) for id, each in some if id not in there]
        if not fresh:
            continue
        first = next_numbers(connection, "task", len(fresh))
        rows: dict[str, list[dict[str, Any]]] = {"task": [], "candidate": [], "slot": []}
        words: list[tuple[str, str, str]] = []
        for position, (id, each) in enumerate(fresh, first):
            _collect(Place(project_id, form_id), id, each, position, at, rows, words)
        texts.put(connection, words)
        connection.execute(sql.insert(schema.task), rows["task"])
        if rows["candidate"]:
            connection.execute(sql.insert(schema.candidate), rows["candidate"])
        connection.execute(sql.insert(schema.slot), rows["slot"])
    return ids


def _collect(
    where: Place,
    id: str,
    new: NewTask,
    position: int,
    at: int,
    rows: dict[str, list[dict[str, Any]]],
    words: list[tuple[str, str, str]],
) -> None:
    prompt = derived_id("text", id, "prompt")
    words.append((prompt, texts.pack(new.messages), new.masked.get(-1, "")))
    for no, (body, producer, meta) in enumerate(new.candidates):
        text_id = derived_id("text", id, no)
        words.append((text_id, body, new.masked.get(no, "")))
        rows["candidate"].append(
            {"task_id": id, "no": no, "text_id": text_id, "producer": producer, "meta": dict(meta)}
        )
    rows["task"].append(
        {
            "id": id,
            "project_id": where.id,
            "position": position,
            "kind": new.kind,
            "form_id": where.form,
            "prompt_id": prompt,
            "decision_id": new.decision,
            "draw_id": new.draw,
            "required": new.required,
            "priority": new.priority,
            "language": new.language,
            "cluster": new.cluster,
            "state": "open",
            "meta": {"key": new.key, **new.meta},
            "at": at,
        }
    )
    for no in range(max(new.required, len(new.people))):
        reserved = new.people[no] if no < len(new.people) else ""
        language = "" if reserved else new.language
        rows["slot"].append(slot_row(id, no, where.id, new.priority, position, reserved, language))


def slot_row(
    id: str,
    no: int,
    project_id: str,
    priority: int,
    position: int,
    reserved: str = "",
    language: str = "",
    purpose: str = schema.ORDINARY,
) -> dict[str, Any]:
    """The row of a fresh slot; one transaction makes it for a task that has no slot of this number yet.

    `reserved` is a person's id or a role; who is named by id is not asked for the task's language.
    """
    return {
        "id": derived_id("slot", id, no),
        "task_id": id,
        "no": no,
        "project_id": project_id,
        "turn": -priority,
        "position": position,
        "reserved_for": reserved,
        "language": language,
        "state": "open",
        "purpose": purpose,
    }


def next_place(connection: sql.Connection, id: str) -> int:
    """The number of a task's next slot."""
    last = connection.execute(sql.select(sql.func.max(schema.slot.c.no)).where(schema.slot.c.task_id == id)).scalar()
    return 0 if last is None else int(last) + 1


def behind(store: Reader, project_id: str, position: int, limit: int) -> list[str]:
    """Ids of a project's tasks behind a position, in the order they were made."""
    query = sql.select(task.id).where(task.project_id == project_id, task.position > position)
    with store.read() as connection:
        return list(connection.execute(query.order_by(task.position).limit(limit)).scalars())


def of_decisions(store: Reader, ids: Sequence[str]) -> dict[str, str]:
    """Decision id -> the task that asks about it."""
    found: dict[str, str] = {}
    with store.read() as connection:
        for some in texts.chunks(ids):
            query = sql.select(schema.task.c.decision_id, schema.task.c.id).where(schema.task.c.decision_id.in_(some))
            found |= {row.decision_id: row.id for row in connection.execute(query)}
    return found


def load(
    store: Reader, ids: Sequence[str] | None = None, project_name: str | None = None, masked: bool = False
) -> dict[str, Task]:
    """Tasks by id, in the order they were made. `masked` reads texts as annotators see them."""
    query = sql.select(schema.task).order_by(task.position)
    if project_name is not None:
        query = query.join(schema.project, project.id == task.project_id).where(project.name == project_name)
    with store.read() as connection:
        if ids is None:
            found = connection.execute(query).all()
        else:
            found = [
                row
                for some in texts.chunks(list(dict.fromkeys(ids)))
                for row in connection.execute(query.where(task.id.in_(some)))
            ]
        answers: dict[str, list[Any]] = {row.id: [] for row in found}
        for some in texts.chunks(answers):
            table = schema.candidate
            for row in connection.execute(
                sql.select(table).where(table.c.task_id.in_(some)).order_by(table.c.task_id, table.c.no)
            ):
                answers[row.task_id].append(row)
        wanted = [row.prompt_id for row in found] + [each.text_id for rows in answers.values() for each in rows]
        words = texts.bodies(connection, wanted, masked)
    return {
        row.id: Task(
            id=row.id,
            project=row.project_id,
            kind=row.kind,
            form=row.form_id,
            messages=texts.unpack(words.get(row.prompt_id)),
            candidates=tuple(words.get(each.text_id, "") for each in answers[row.id]),
            producers=tuple(each.producer for each in answers[row.id]),
            candidate_meta=tuple(each.meta for each in answers[row.id]),
            required=row.required,
            priority=row.priority,
            cluster=row.cluster,
            language=row.language,
            state=row.state,
            decision=row.decision_id,
            draw=row.draw_id,
            meta=row.meta,
            position=row.position,
        )
        for row in found
    }
