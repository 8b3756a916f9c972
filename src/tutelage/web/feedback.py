"""Home, the pages of projects, and the JSON API of the feedback rooms."""

from __future__ import annotations

import io
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote

from fastapi import APIRouter, HTTPException, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool

from tutelage.core.errors import DataError, TutelageError
from tutelage.core.records import explain
from tutelage.feedback import adjudicate, api, openapi
from tutelage.feedback.api import NewProject, NewTask
from tutelage.feedback.routes import BASE, ROUTES, File, Route, dispatch
from tutelage.review import queue
from tutelage.store import answers, tasks
from tutelage.store.adjudication import ROLE
from tutelage.store.people import Person
from tutelage.web import forms, render

LEADERS = ("lead", "operator", "auditor")
MOST_UPLOAD = 20_000_000
"""Bytes of a file with tasks."""
MOST_BODY = 32_000_000
"""Bytes of one request to the API."""


def failure(error: TutelageError) -> HTTPException:
    """An error of the house as an HTTP one."""
    return HTTPException(api.status_of(error), str(error))


async def fields_of(request: Request) -> dict[str, list[str]]:
    """The fields of a form, each with all its values."""
    form = await request.form(max_fields=2000)
    found: dict[str, list[str]] = {}
    for name, value in form.multi_items():
        if isinstance(value, str):
            found.setdefault(name, []).append(value)
    return found


def one(fields: Mapping[str, Sequence[str]], name: str, default: str = "") -> str:
    """The first value of a field."""
    return (fields.get(name) or [default])[0]


def _card(state: Any, person: Person, view: api.ProjectView) -> dict[str, Any]:
    """What the home page shows of a project."""
    moment = api.progress(state.store, person, view.name)
    mine = sum(each.answers for each in moment.per_person if each.person == person.pseudonym)
    left = moment.needed - moment.answers
    where = tasks.get_project(state.store, view.name).id
    if person.has(ROLE, project=where):
        left += adjudicate.waiting(state.store, where)
    reason = "" if left else "Everything here is answered." if moment.needed else "No tasks have been added yet."
    return {
        "name": view.name,
        "kind": view.kind,
        "answers": moment.answers,
        "needed": moment.needed,
        "mine": mine,
        "open": left > 0 and view.state == "open",
        "reason": reason if view.state == "open" else f"The project is {view.state}.",
        "simulated": bool(moment.people.get("simulated")),
        "people": moment.people,
        "hours_left": moment.hours_left,
        "per_hour": moment.per_hour,
        "state": view.state,
    }


def _project_rows(state: Any, project: str, limit: int = 40) -> list[dict[str, Any]]:
    """The last tasks that were answered, with all answers side by side."""
    by_task: dict[str, list[answers.Annotation]] = {}
    for each in answers.read(state.store, project, status=None, limit=400):
        by_task.setdefault(each.task, []).append(each)
    newest = list(by_task)[::-1][:limit]
    known = tasks.load(state.store, newest, masked=True)
    return [{"task": known[id], "answers": [_said(each) for each in by_task[id]]} for id in newest if id in known]


def _said(each: answers.Annotation) -> dict[str, Any]:
    return {
        "person": each.pseudonym, "people": each.people, "text": forms.said(each), "seconds": each.active_ms / 1000
    }  # fmt: skip


def tasks_from(data: bytes, kind: str) -> list[NewTask]:
    """Tasks of an uploaded JSON-lines file: `prompt` or `messages`, and `candidates` (texts).

    Raises DataError naming the row.
    """
    found: list[NewTask] = []
    try:
        lines = data.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"the file is no UTF-8 text: {error.reason} at byte {error.start}") from None
    for row, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            raw = json.loads(line)
            if not isinstance(raw, dict):
                raise DataError("expected an object", row=row)
            messages = raw.get("messages") or [{"role": "user", "content": raw["prompt"]}]
            candidates = [{"content": c} if isinstance(c, str) else c for c in raw.get("candidates", ())]
            made = {"key": str(raw.get("key") or raw.get("id") or f"row {row}"), "kind": kind, "messages": messages,
                    "candidates": candidates}  # fmt: skip
            found.append(NewTask.model_validate(made))
        except KeyError:
            raise DataError("a row needs `prompt` or `messages`", row=row) from None
        except ValidationError as error:
            key, message = explain(error)
            raise DataError(message, row=row, key=key) from None
        except ValueError as error:
            raise DataError(f"no JSON: {error}", row=row) from None
    if not found:
        raise DataError("the file holds no tasks", todo="One JSON object a line, with `prompt` and `candidates`")
    return found


STANDARD: dict[str, list[dict[str, Any]]] = {
    "ranking": [],
    "scoring": [
        {"key": "right", "kind": "scale", "scale": [1, 5], "per_candidate": True, "prompt": "is it right?",
         "anchors": {"1": "wrong", "3": "partly", "5": "right and complete"}},
        {"key": "clear", "kind": "scale", "scale": [1, 5], "per_candidate": True, "prompt": "is it clear?",
         "anchors": {"1": "confusing", "5": "clear"}},
    ],
    "pair": [],
    "tag": [{"key": "categories", "kind": "choices", "choices": list(queue.CATEGORIES),
             "prompt": "Which of these does the text contain?"}],
    "rewrite": [],
}  # fmt: skip
"""Forms for projects made in the console; others are made through the API."""


def router(state: Any) -> APIRouter:
    """The pages and the API of this file; `state` has `store`."""
    routes = APIRouter()
    store = state.store
    for route in ROUTES:
        _mount(routes, state, route)

    @routes.get(f"{BASE}/openapi.json", include_in_schema=False)
    def described() -> dict[str, Any]:
        return openapi.document()

    @routes.get("/", include_in_schema=False)
    def home(request: Request) -> HTMLResponse:
        person = render.signed_in(request)
        cards = [_card(state, person, view) for view in api.projects(store, person)]
        return render.page(request, "home.html", projects=cards, any_open=any(card["open"] for card in cards))

    # leads

    @routes.get("/projects", include_in_schema=False)
    def projects(request: Request, told: str = "") -> HTMLResponse:
        person = render.signed_in(request, *LEADERS, "adjudicator")
        cards = [_card(state, person, view) for view in api.projects(store, person)]
        return render.page(request, "projects.html", projects=cards, kinds=list(STANDARD), told=told[:300])

    @routes.post("/projects", include_in_schema=False)
    async def new_project(request: Request) -> Response:
        person = render.signed_in(request, "lead", "operator")
        form = await request.form()
        render.checked(request, str(form.get("csrf") or ""))
        upload = form.get("file")
        try:
            data = await upload.read(MOST_UPLOAD + 1) if upload is not None and not isinstance(upload, str) else b""
            if len(data) > MOST_UPLOAD:
                raise DataError("the file is larger than 20 MB", todo="Send it in parts, or through the API")
            kind = str(form.get("kind") or "ranking")
            new = tasks_from(data, kind)
            wanted = {"questions": STANDARD.get(kind, []), "guideline": str(form.get("guideline") or "")}
            made = {"name": form.get("name"), "kind": kind, "form": wanted, "per_task": form.get("per_task") or 3}
            view = api.create_project(store, person, NewProject.model_validate(made))
            added = api.add_tasks(store, person, view.name, new)
        except ValidationError as error:
            key, message = explain(error)
            return render.page(
                request, "problem.html", 422, title="Not made", text=f"{key}: {message}", back="/projects"
            )
        except TutelageError as error:
            status = api.status_of(error)
            return render.page(request, "problem.html", status, title="Not made", text=str(error), back="/projects")
        return render.see(f"/projects/{quote(view.name)}?told={len(added)}+tasks+are+open")

    @routes.get("/projects/{name}", include_in_schema=False)
    def project(request: Request, name: str, told: str = "") -> HTMLResponse:
        person = render.signed_in(request, *LEADERS, "adjudicator")
        try:
            found = tasks.get_project(store, name)
            moment = api.progress(store, person, name)
        except TutelageError as error:
            raise failure(error) from None
        return render.page(
            request, "project.html", project=found, progress=moment, rows=_project_rows(state, name), told=told[:300]
        )

    @routes.get("/projects/{name}/export.jsonl", include_in_schema=False)
    def export(request: Request, name: str) -> Response:
        person = render.signed_in(request, *LEADERS)
        del person
        try:
            tasks.get_project(store, name)
        except TutelageError as error:
            raise failure(error) from None

        async def lines() -> AsyncIterator[bytes]:
            for each in answers.read(store, name, status=None):
                out = io.StringIO()
                json.dump(dict(answers.details(each)), out, ensure_ascii=False, default=str)
                yield out.getvalue().encode() + b"\n"

        headers = {"content-disposition": 'attachment; filename="answers.jsonl"', "cache-control": "no-store"}
        return StreamingResponse(lines(), media_type="application/x-ndjson", headers=headers)

    return routes


def _mount(routes: APIRouter, state: Any, route: Route) -> None:
    """One route of the feedback API. Tokens need its scope; sessions need their token in `x-csrf-token`."""

    async def call(request: Request) -> Response:
        try:
            person = _caller(request, route.scope)
            body = await _body(request) if route.body is not None else None
        except HTTPException as error:
            kind = {401: "Unauthorized", 403: "Forbidden", 413: "TooLarge"}.get(error.status_code, "DataError")
            told = {"error": kind, "message": str(error.detail), "exit_code": 2}
            return JSONResponse(told, error.status_code, headers=error.headers)
        query = {key: value for key, value in request.query_params.items()}
        path = request.scope["path"]
        status, told = await run_in_threadpool(dispatch, state.store, person, route.method, path, body, query)
        if isinstance(told, File):
            headers = {f"x-{name}": value for name, value in told.facts.items()}
            headers |= {"content-disposition": f'attachment; filename="{told.name}"', "cache-control": "no-store"}
            return Response(told.body, media_type=told.media, headers=headers)
        return JSONResponse(told, status)

    routes.add_api_route(route.path, call, methods=[route.method], include_in_schema=False, response_model=None)


async def _body(request: Request) -> Any:
    """The body as JSON. Raises HTTPException 413 for one that is too large, 422 for one that is no JSON."""
    held = bytearray()
    async for part in request.stream():
        held += part
        if len(held) > MOST_BODY:
            raise HTTPException(413, f"the body is larger than {MOST_BODY // 1_000_000} MB; send it in parts")
    try:
        return json.loads(bytes(held) or b"null")
    except (ValueError, RecursionError) as error:
        raise HTTPException(422, f"the body is no JSON: {error}") from None


def _caller(request: Request, scope: str) -> Person:
    """Who calls the API: a token with the scope, or a signed-in person whose request carries the session's token."""
    caller = getattr(request.state, "caller", None)
    if caller is not None:
        wanted = scope.partition(":")[0]
        if not {scope, wanted, "*"} & set(caller.scopes):
            raise HTTPException(403, f"this token lacks the scope {scope!r}")
        person: Person = caller.person
        return person
    if getattr(request.state, "session", None) is None:
        raise HTTPException(
            401, "send `Authorization: Bearer` with an API token", headers={"www-authenticate": "Bearer"}
        )
    if request.method != "GET":
        render.checked(request, request.headers.get("x-csrf-token"))
    return render.signed_in(request)
