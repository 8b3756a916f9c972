"""Where a lead makes a project: written, previewed and opened from a file; or asked for, from a model's responses."""

from __future__ import annotations

import json
import re
import secrets
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple
from urllib.parse import quote

from fastapi import APIRouter, HTTPException, Request
from fastapi.responses import HTMLResponse, Response
from starlette.concurrency import run_in_threadpool

from tutelage import worker
from tutelage.core.artifact import Artifact, Root, atomic_write
from tutelage.core.errors import DataError, NotFound, TutelageError, UsageError
from tutelage.core.records import Example, read_jsonl
from tutelage.feedback import api, desk, upload
from tutelage.store import gold, jobs, qualifications, releases, tasks
from tutelage.store.engine import now, uuid7
from tutelage.store.people import Person
from tutelage.store.settings import ProjectSettings
from tutelage.text import pii
from tutelage.web import editor, forms, render, runs
from tutelage.web.editor import KINDS, QUESTION_KINDS, STANDARD, Draft, QuestionFields, whole
from tutelage.web.feedback import failure, fields_of, one

MAKERS = ("lead", "operator")
WATCHERS = ("lead", "operator", "auditor", "adjudicator")
PREVIEWED = 5
"""Items a preview shows."""
MOST_UPLOADS, UPLOAD_HOURS = 20, 24
"""Files that wait for their project, and for how long."""
OFFERED = re.compile(r"(model|bundle|corpus):[0-9a-f]{4,64}")
"""References that a form may send."""
MOST_PROMPTS = 2_000
"""Prompts that one request to a model may carry."""
LOOKED_AT = 5_000
"""Dialogues of a corpus whose families are told."""


class Uploads:
    """Files that were sent and wait for their project, in `ROOT/uploads`: each belongs to one person, for a day."""

    def __init__(self, root: Root) -> None:
        self._folder = root.path / "uploads"

    def keep(self, person: str, name: str, data: bytes) -> str:
        """Keep a file; returns its token."""
        self._folder.mkdir(exist_ok=True)
        files = sorted(self._folder.glob("*.upload"), key=lambda path: path.stat().st_mtime)
        late = time.time() - UPLOAD_HOURS * 3600
        for at, path in enumerate(files):
            if path.stat().st_mtime < late or len(files) - at >= MOST_UPLOADS:
                path.unlink(missing_ok=True)
        token = secrets.token_hex(16)
        head = json.dumps({"person": person, "name": name[:120]}).encode()
        atomic_write(self._folder / f"{token}.upload", head + b"\n" + data, 0o600)
        return token

    def read(self, person: str, token: str) -> tuple[str, bytes]:
        """Name and bytes of a file. Raises NotFound when it is gone, or somebody else's."""
        path = self._folder / f"{token}.upload"
        if len(token) == 32 and token.isalnum() and path.is_file():
            head, _, data = path.read_bytes().partition(b"\n")
            told = json.loads(head)
            if told["person"] == person:
                return str(told["name"]), data
        raise NotFound("the file is no longer here", key="file", todo="Choose it once more")

    def drop(self, token: str) -> None:
        """Its project is made."""
        (self._folder / f"{token}.upload").unlink(missing_ok=True)


@dataclass(frozen=True)
class Sent:
    """What came with a form: the project as it was written, and the tasks of its file."""

    draft: Draft
    file: str
    found: upload.Upload


class Source(NamedTuple):
    """What a lead may choose responses or prompts from."""

    ref: str
    label: str


def models_of(root: Root, store: Any, most: int = 40) -> list[Source]:
    """What can answer prompts here: the release in service, and the newest models of the root."""
    live = releases.current(store)
    found = [Source(live.bundle, f"what is in service now ({live.name or live.bundle[:16]})")] if live else []
    return found + [_source(each) for each in reversed(root.list("model", damaged=[]))][:most]


def corpora_of(root: Root, most: int = 20) -> list[Source]:
    """The newest corpora of the root that hold dialogues."""
    every = reversed(root.list("corpus", damaged=[]))
    return [_source(each) for each in every if "dialogues.jsonl" in each.manifest.files][:most]


def _source(artifact: Artifact) -> Source:
    made = str(artifact.manifest.made.get("at", ""))[:16].replace("T", " ")
    return Source(artifact.ref, f"{artifact.manifest.stage} {artifact.ref[:16]} of {made}")


def families_of(root: Root, ref: str) -> dict[str, int]:
    """Families among the first dialogues of a corpus, commonest first."""
    counted: Counter[str] = Counter()
    for at, each in enumerate(read_jsonl(root.find(ref).file("dialogues.jsonl"), Example)):
        if at >= LOOKED_AT:
            break
        counted[str(each.tags.get("family", ""))] += 1
    return {name: many for name, many in counted.most_common(60) if name}


def asked_for(draft: Draft, prompts: upload.Upload | None) -> dict[str, Any]:
    """A project from a model as the settings of stage `collect`. Raises DataError naming the field."""
    project = draft.project()
    generators = [line.strip() for line in draft.endpoints.split("\n") if line.strip()]
    for each in generators:
        if not each.startswith(("http://", "https://")) or "#" not in each:
            raise DataError(f"an endpoint reads https://host/v1#model, found {each[:60]!r}", key="endpoints")
    for each in (*draft.models, *filter(None, [draft.corpus])):
        if not OFFERED.fullmatch(each):  # a reference may also name code to be imported: not from a form
            raise DataError(f"{each[:60]!r} is none of those offered", key="models")
    if not draft.models and not generators:
        raise DataError("choose at least one model or endpoint that answers the prompts", key="models")
    try:
        temperature = float(draft.temperature)
    except ValueError:
        raise DataError(f"expected a number, found {draft.temperature[:20]!r}", key="temperature") from None
    settings: dict[str, Any] = {
        "people": "none", "project": project.name, "kinds": [draft.kind], "per_task": project.per_task,
        "questions": [each.model_dump(mode="json", exclude_defaults=True) for each in project.form.questions],
        "guideline": draft.guideline, "mask_pii": draft.mask_pii, "generators": generators, "model": draft.models,
        "candidates": whole(draft.candidates, "candidates", 2, 9), "samples": whole(draft.samples, "samples", 2, 64),
        "max_tokens": whole(draft.max_tokens, "max_tokens", 1, 16_384), "temperature": temperature,
    }  # fmt: skip
    if prompts is not None:
        asked: list[dict[str, Any]] = [
            {
                "messages": [message.model_dump(mode="json", exclude_defaults=True) for message in each.messages],
                "tags": {"id": each.key, "cluster": each.cluster or each.key, "language": each.language, **each.meta},
            }
            for each in prompts.tasks[:MOST_PROMPTS]
        ]
        return {**settings, "ask": asked, "prompts": len(asked), "corpus": None}
    if not draft.corpus:
        raise DataError("choose a file of prompts, or a corpus", key="corpus")
    families = [each.strip() for each in draft.families.split(",") if each.strip()]
    many = whole(draft.prompts, "prompts", 1, 100_000)
    return settings | {"prompts": many, "families": families, "corpus": draft.corpus}


def as_seen(task: api.NewTask, mask: bool) -> dict[str, Any]:
    """A task as people will see it, personal data masked where the project masks it."""

    def shown(text: str) -> str:
        return pii.redact(text, pii.find(text)) if mask else text

    return {
        "messages": [each.model_copy(update={"content": shown(each.content)}) for each in task.messages],
        "candidates": [shown(each.content) for each in task.candidates],
        "language": task.language,
        "key": task.key,
    }


def router(state: Any) -> APIRouter:
    """The pages of this file; `state` has `root` and `store`."""
    routes = APIRouter(include_in_schema=False)
    store, root = state.store, state.root
    uploads, kept = Uploads(root), state.figures

    def written(request: Request, person: Person, draft: Draft, source: str, error: str = "") -> HTMLResponse:
        """The editor's page, with what was written so far."""
        held = ""
        if draft.upload:
            try:
                held = uploads.read(person.id, draft.upload)[0]
            except NotFound:
                draft.upload = ""
        corpora = corpora_of(root) if source == "model" else []
        return render.page(
            request, "new_project.html", 422 if error else 200, draft=draft, source=source, error=error, held=held,
            kinds=[(kind, forms.TITLES.get(kind, kind)) for kind in KINDS], question_kinds=QUESTION_KINDS,
            standard=sorted(STANDARD), blank=QuestionFields(), known=qualifications.every(store),
            licences=editor.LICENCES, models=models_of(root, store) if source == "model" else [], corpora=corpora,
            families=families_of(root, corpora[0].ref) if corpora else {},
        )  # fmt: skip

    async def taken(request: Request, person: Person) -> tuple[Draft, Mapping[str, list[str]]]:
        """A form's fields, its file kept aside."""
        length = request.headers.get("content-length", "0")
        if int(length) > upload.MOST_BYTES + 1_000_000:
            upload.check_size(int(length))
        form = await request.form(max_fields=2000)
        fields = await fields_of(request)
        render.checked(request, one(fields, "csrf"))
        draft = Draft.of(one(fields, "draft")) if "draft" in fields else Draft.read(fields)
        sent = form.get("file")
        if sent is not None and not isinstance(sent, str) and sent.filename:
            data = await sent.read(upload.MOST_BYTES + 1)
            upload.check_size(len(data), sent.filename)
            draft.upload = uploads.keep(person.id, sent.filename, data)
        return draft, fields

    def parsed(person: Person, draft: Draft, kind: str) -> Sent:
        name, data = uploads.read(person.id, draft.upload)
        try:
            return Sent(draft, name, upload.tasks_from(data, kind, name, draft.language))
        except UsageError:
            uploads.drop(draft.upload)  # whoever mends it sends it again
            draft.upload = ""
            raise

    @routes.get("/projects")
    def projects(request: Request, told: str = "") -> HTMLResponse:
        person = render.signed_in(request)
        found = [each for each in tasks.projects(store) if person.has(*WATCHERS, project=each.id)]
        if not found and not person.has(*WATCHERS):
            raise HTTPException(403, f"this needs the role {' or '.join(WATCHERS)}")
        cards = [
            (each, kept.get(("standing", each.id), lambda each=each: desk.standing(store, each))) for each in found
        ]
        paused = Counter(each.project for each in gold.pauses(store, [each.id for each in found]))
        making = [each for each in jobs.newest(store, worker.ALONE) if each.state != "done"]
        return render.page(
            request, "projects.html", projects=cards, told=told[:300], may_make=person.has(*MAKERS),
            making=making if person.has(*MAKERS) else [], paused=paused,
        )  # fmt: skip

    @routes.get("/projects/-/new")
    def new_project(request: Request, source: str = "file") -> HTMLResponse:
        person = render.signed_in(request, *MAKERS)
        return written(request, person, Draft(), "model" if source == "model" else "file")

    @routes.post("/projects/-/change")
    async def change(request: Request) -> Response:
        person = render.signed_in(request, *MAKERS)
        try:
            draft, fields = await taken(request, person)
        except TutelageError as error:
            raise failure(error) from None
        return await run_in_threadpool(written, request, person, draft, one(fields, "source", "file"))

    @routes.post("/projects/-/preview")
    async def preview(request: Request) -> Response:
        person = render.signed_in(request, *MAKERS)
        draft = Draft()
        try:
            draft, _ = await taken(request, person)
            if not draft.upload:
                raise DataError("choose the file that holds the tasks", key="file")
            return await run_in_threadpool(previewed, request, person, draft)
        except TutelageError as error:
            return await run_in_threadpool(written, request, person, draft, "file", str(error))

    def previewed(request: Request, person: Person, draft: Draft) -> HTMLResponse:
        if draft.into:
            where = tasks.get_project(store, draft.into)
            form = api.Form.model_validate({"questions": where.questions, "guideline": where.guideline})
            sent, mask = parsed(person, draft, where.kind), ProjectSettings.of(where.settings).mask_pii
            per_task, kind = where.per_task, where.kind
        else:
            project = draft.project()
            if any(each.name == project.name for each in tasks.projects(store, project.name)):
                raise DataError(f"there is a project {project.name!r} already", key="name", todo="Choose another name")
            sent, mask, form = parsed(person, draft, draft.kind), draft.mask_pii, project.form
            per_task, kind = project.per_task, project.kind
        rows = sent.found.tasks
        makers = {each.producer for task in rows for each in task.candidates if each.producer}
        return render.page(
            request, "preview.html", sent=sent, draft=draft, kind=kind, form=form, per_task=per_task,
            makers=len(makers), places=sum(each.required or per_task for each in rows),
            items=[as_seen(each, mask) for each in rows[:PREVIEWED]], mask=mask,
            sizes=sorted({len(each.candidates) for each in rows}), title=forms.TITLES.get(kind, kind),
        )  # fmt: skip

    @routes.post("/projects")
    async def make(request: Request) -> Response:
        person = render.signed_in(request, *MAKERS)
        draft = Draft()
        try:
            draft, _ = await taken(request, person)
            name, many = await run_in_threadpool(made, person, draft)
        except TutelageError as error:
            return await run_in_threadpool(written, request, person, draft, "file", str(error))
        uploads.drop(draft.upload)
        kept.forget()
        return render.see(
            f"/projects/{quote(name, safe='')}?told={many}+{'task+is' if many == 1 else 'tasks+are'}+open"
        )

    def made(person: Person, draft: Draft) -> tuple[str, int]:
        if draft.into:
            where = tasks.get_project(store, draft.into)
            rows = parsed(person, draft, where.kind).found.tasks
            return where.name, len(api.add_tasks(store, person, where.name, rows))
        project = draft.project()
        rows = parsed(person, draft, draft.kind).found.tasks
        return project.name, len(api.open_project(store, person, project, rows))

    # from a model

    @routes.post("/projects/-/collect")
    async def collect(request: Request) -> Response:
        person = render.signed_in(request, *MAKERS)
        draft = Draft()
        try:
            draft, _ = await taken(request, person)
            job = await run_in_threadpool(asked, person, draft)
        except TutelageError as error:
            return await run_in_threadpool(written, request, person, draft, "model", str(error))
        uploads.drop(draft.upload)
        return render.see(f"/projects/-/making/{job}")

    def asked(person: Person, draft: Draft) -> str:
        prompts = parsed(person, draft, "tag").found if draft.upload else None
        settings = asked_for(draft, prompts)
        if tasks.projects(store, draft.name):
            raise DataError(f"there is a project {draft.name!r} already", key="name", todo="Choose another name")
        return worker.ask_alone(store, f"collect@{uuid7()[-12:]}", settings)

    def _moment(id: str) -> dict[str, Any]:
        job = jobs.get(store, id)
        if job is None or job.kind != worker.ALONE:
            raise HTTPException(404, "there is no such request")
        name = str(job.args["settings"].get("project", ""))
        stage = runs.stage(root, str(job.args["section"]))
        waits = now() - job.at > 5_000 and job.state == "waiting"
        there = bool(tasks.projects(store, name))
        return {"job": job, "name": name, "stage": stage, "waits": waits, "there": there, "root": root.path}

    @routes.get("/projects/-/making/{id}")
    def making(request: Request, id: str) -> HTMLResponse:
        render.signed_in(request, *MAKERS)
        return render.page(request, "making.html", **_moment(id))

    @routes.get("/projects/-/making/{id}/state")
    def making_state(request: Request, id: str) -> HTMLResponse:
        render.signed_in(request, *MAKERS)
        return render.page(request, "making_state.html", **_moment(id))

    return routes
