"""Pages of the people who judge: home, next task, own answers; and the JSON API of the feedback rooms."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from fastapi import APIRouter, HTTPException, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool

from tutelage.core.errors import DataError, NotFound, TutelageError
from tutelage.core.records import explain
from tutelage.feedback import api
from tutelage.feedback.api import Answers, Claim
from tutelage.review import queue
from tutelage.store import answers, tasks
from tutelage.store.engine import uuid7
from tutelage.store.people import Person
from tutelage.web import forms, render


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


def _told(state: Any, person: Person, slot: str, stale: bool) -> dict[str, str] | None:
    """What the last answer came to: of a review, what the guards had decided; blind first, revealed later."""
    if stale:
        return {"tone": "warn", "text": "Your time for that task ran out and somebody else holds it now."}
    found = queue.reveal(state.store, person.id, slot) if slot else None
    if found is None:
        return None
    score = "" if found.score is None else f", highest score {found.score:.2f} for {found.category or 'no category'}"
    did = {"block": "blocked it", "review": "held it for a person", "redact": "masked parts of it"}
    text = f"Stored. You said {found.said}; the guards {did.get(found.action, 'let it through')}{score}."
    return {"tone": "good" if found.agrees is not False else "warn", "text": text}


def _next(project: str, slot: str = "", stale: bool = False) -> str:
    wanted = [("project", project), ("after", slot), ("stale", "1" if stale else "")]
    query = "&".join(f"{name}={quote(value)}" for name, value in wanted if value)
    return f"/task/next{'?' if query else ''}{query}"


def _said(each: answers.Annotation) -> dict[str, Any]:
    parts = []
    if each.tiers or each.unrankable:
        order = " > ".join("=".join(str(no + 1) for no in tier) for tier in each.tiers)
        parts.append(
            order + (f" (not rankable: {', '.join(str(no + 1) for no in each.unrankable)})" * bool(each.unrankable))
        )
    for value in each.values:
        shown = value.number if value.number is not None else value.value if value.value is not None else value.text
        if shown == [] or shown == "":
            continue
        where = f" of {value.candidate + 1}" if value.candidate >= 0 else ""
        parts.append(
            f"{value.question.replace('_', ' ')}{where}: {shown:g}"
            if isinstance(shown, float)
            else f"{value.question}: {shown}"
        )
    if each.status != "submitted":
        parts.append(f"{each.status}: {each.reason}")
    return {"person": each.pseudonym, "people": each.people, "text": "; ".join(parts), "seconds": each.active_ms / 1000}


def router(state: Any) -> APIRouter:
    """The pages and the API of this file; `state` has `store`."""
    routes = APIRouter()
    store = state.store
    for route in api.ROUTES:
        _mount(routes, state, route)

    @routes.get("/", include_in_schema=False)
    def home(request: Request) -> HTMLResponse:
        person = render.signed_in(request)
        cards = [_card(state, person, view) for view in api.projects(store, person)]
        return render.page(request, "home.html", projects=cards, any_open=any(card["open"] for card in cards))

    @routes.get("/task/next", include_in_schema=False)
    def next_task(request: Request, project: str = "", after: str = "", stale: str = "") -> Response:
        person = render.signed_in(request)
        told = _told(state, person, after, bool(stale))
        try:
            claimed = api.claim(store, person, Claim(project=project))
        except TutelageError as error:
            raise failure(error) from None
        if claimed.items:
            return _task_page(request, person, claimed.items[0], told)
        return render.page(request, "nothing.html", reason=claimed.reason, project=project, told=told)

    def _task_page(
        request: Request, person: Person, item: api.Item, told: dict[str, str] | None = None, again: str = ""
    ) -> HTMLResponse:
        moment = api.progress(store, person, item.project)
        return render.page(
            request,
            "task.html",
            item=item,
            view=forms.view(item),
            key=uuid7(),
            told=told,
            draft=again or (json.dumps(item.draft) if item.draft else ""),
            mine=sum(each.answers for each in moment.per_person if each.person == person.pseudonym),
            left=moment.needed - moment.answers,
            again=bool(again),
        )

    @routes.get("/task/{slot}", include_in_schema=False)
    def task(request: Request, slot: str) -> Response:
        person = render.signed_in(request)
        try:
            item = api.held_item(store, person, slot)
        except TutelageError as error:
            raise failure(error) from None
        before = [each for each in answers.read(store, person=person.id, task=item.task) if each.slot == slot]
        again = json.dumps(forms.fields_of(before[-1])) if before else ""
        return _task_page(request, person, item, again=again)

    @routes.post("/task/{slot}", include_in_schema=False)
    async def answer(request: Request, slot: str) -> Response:
        person = render.signed_in(request)
        fields = await fields_of(request)
        render.checked(request, request.headers.get("x-csrf-token") or one(fields, "csrf"))
        wants_json = "application/json" in request.headers.get("accept", "")

        def reply(status: int, error: str, where: str = "") -> Response:
            if wants_json:
                return JSONResponse({"error": error, "next": where} if where else {"error": error}, status)
            if where:
                return render.see(where)
            return render.page(request, "problem.html", status, title="Not stored", text=error, back=f"/task/{slot}")

        try:
            item = api.held_item(store, person, slot)
            status = one(fields, "status", "submitted")
            epoch = int(one(fields, "epoch", "0"))
            given = forms.answer_of(item, fields, key=one(fields, "key"), epoch=epoch, status=status)
            receipt = api.submit(store, person, Answers(answers=(given,))).receipts[0]
        except NotFound:
            return reply(409, "this task is no longer yours", _next(one(fields, "project"), stale=True))
        except TutelageError as error:
            return reply(api.status_of(error), str(error))
        except ValidationError as error:
            return reply(422, explain(error)[1])
        except (ValueError, OverflowError):
            return reply(422, "a field holds no number where one is due")
        if receipt.status == "refused":
            return reply(422, receipt.error)
        if receipt.status == "stale":
            return reply(409, receipt.error, _next(item.project, stale=True))
        where = _next(item.project, slot)
        return JSONResponse({"next": where, "status": receipt.status}) if wants_json else render.see(where)

    @routes.get("/history", include_in_schema=False)
    def history(request: Request, project: str = "") -> HTMLResponse:
        person = render.signed_in(request)
        mine = answers.read(store, project or None, person=person.id, status=None, limit=100)[::-1]
        known = tasks.load(store, sorted({each.task for each in mine}), masked=True)
        names = {each.id: each.name for each in tasks.projects(store)}
        rows = [
            {
                "slot": each.slot,
                "at": each.at,
                "project": names.get(each.project, ""),
                "said": _said(each)["text"],
                "revision": each.revision,
                "prompt": known[each.task].messages[-1].content[:200] if known[each.task].messages else "(erased)",
            }
            for each in mine
        ]
        return render.page(request, "history.html", rows=rows, project=project)

    return routes


def _mount(routes: APIRouter, state: Any, route: api.Route) -> None:
    """One route of the feedback API. Tokens need its scope; sessions need their token in `x-csrf-token`."""

    async def call(request: Request) -> JSONResponse:
        person = _caller(request, route.scope)
        body: Any = None
        if route.body is not None:
            try:
                body = json.loads(await request.body() or b"null")
            except ValueError as error:
                return JSONResponse(DataError(f"the body is no JSON: {error}").as_dict(), 422)
        query = {key: value for key, value in request.query_params.items()}
        path = request.url.path
        status, told = await run_in_threadpool(api.dispatch, state.store, person, route.method, path, body, query)
        return JSONResponse(told, status)

    extra: dict[str, Any] = {}
    if route.body is not None:
        extra["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": route.body.model_json_schema()}},
        }
    routes.add_api_route(
        route.path,
        call,
        methods=[route.method],
        summary=route.summary,
        response_model=None,
        responses={200: {"model": route.answer}},
        openapi_extra=extra or None,
        name=f"{route.method} {route.path}",
    )


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
