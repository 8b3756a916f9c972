"""Home, and the JSON API of the feedback rooms."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import APIRouter, HTTPException, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from starlette.concurrency import run_in_threadpool

from tutelage.core.errors import TutelageError
from tutelage.feedback import api, openapi
from tutelage.feedback.routes import BASE, ROUTES, File, Route, dispatch
from tutelage.store import slots, standing, tasks
from tutelage.store.people import Person
from tutelage.web import render

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


def cards(store: Any, person: Person) -> list[dict[str, Any]]:
    """What the home page shows of the projects in which somebody may answer: their own part, and whether something
    waits for them. Nothing here counts a whole project."""
    found = [each for each in tasks.projects(store) if person.has(*api.answerers(each), project=each.id)]
    why = standing.prospects(store, person.id, [each.id for each in found if each.state == "open"])
    made = []
    for each in found:
        talks = each.kind == "dialogue" and each.state == "open"  # a turn is made when somebody speaks
        reason = "" if talks else why.get(each.id, f"The project is {each.state}.")
        mine = slots.answered(store, person.id, each.id)
        made.append({"project": each, "mine": mine, "reason": reason})
    return made


def router(state: Any) -> APIRouter:
    """The pages and the API of this file; `state` has `store`."""
    routes = APIRouter()
    store = state.store
    for route in ROUTES:
        mount(routes, state, route)

    @routes.get(f"{BASE}/openapi.json", include_in_schema=False)
    def described() -> dict[str, Any]:
        return openapi.document()

    @routes.get("/", include_in_schema=False)
    def home(request: Request) -> HTMLResponse:
        person = render.signed_in(request)
        fresh = person.has("lead") and not tasks.projects(store)
        return render.page(request, "home.html", cards=cards(store, person), fresh=fresh)

    return routes


def mount(routes: APIRouter, state: Any, route: Route, table: Sequence[Route] = ROUTES) -> None:
    """One route of the feedback API, of those in `table`. Tokens need its scope; sessions need their token in
    `x-csrf-token`."""

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
        status, told = await run_in_threadpool(dispatch, state.store, person, route.method, path, body, query, table)
        return download(told) if isinstance(told, File) else JSONResponse(told, status)

    routes.add_api_route(route.path, call, methods=[route.method], include_in_schema=False, response_model=None)


def download(file: File) -> Response:
    """A file as it is sent."""
    headers = {f"x-{name}": value for name, value in file.facts.items()}
    headers |= {"content-disposition": f'attachment; filename="{file.name}"', "cache-control": "no-store"}
    return Response(file.body, media_type=file.media, headers=headers)


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
        given = request.headers.get("authorization")
        said = (
            "this API token is not known, has expired or was revoked"
            if given
            else ("send `Authorization: Bearer` with an API token")
        )
        raise HTTPException(401, said, headers={"www-authenticate": "Bearer"})
    if request.method != "GET":
        render.checked(request, request.headers.get("x-csrf-token"))
    return render.signed_in(request)
