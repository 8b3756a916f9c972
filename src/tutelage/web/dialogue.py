"""The page of free dialogue, and its requests: what is written goes to blind generators, whose answers stand side by
side."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, Response
from starlette.concurrency import run_in_threadpool

from tutelage.core.errors import TutelageError
from tutelage.feedback import dialogue
from tutelage.feedback.wire import EndDialogue
from tutelage.store.engine import uuid7
from tutelage.web import render
from tutelage.web.feedback import failure, mount
from tutelage.web.tasks import Desk


def router(state: Any) -> APIRouter:
    """The page and the requests of this file; `state` has `store` and `speaker`."""
    routes, desk = APIRouter(), Desk(state)
    table = dialogue.routes(dialogue.Speakers(state.speaker))
    for route in table:
        mount(routes, state, route, table)

    @routes.get("/dialogue/{project}", include_in_schema=False)
    def talk(request: Request, project: str) -> HTMLResponse:
        person = render.signed_in(request)
        try:
            now = dialogue.view(state.store, person, project)
        except TutelageError as error:
            raise failure(error) from None
        if now.item:
            return desk.page(request, person, [now.item])
        return render.page(request, "dialogue.html", now=now, key=uuid7())

    @routes.post("/dialogue/{project}/end", include_in_schema=False)
    async def end(request: Request, project: str) -> Response:
        person = render.signed_in(request)
        form = await request.form()
        render.checked(request, str(form.get("csrf") or ""))
        asked = EndDialogue(dialogue=str(form.get("dialogue") or "")[:120])
        try:
            await run_in_threadpool(dialogue.end, state.store, person, project, asked)
        except TutelageError as error:
            raise failure(error) from None
        return render.see(f"/dialogue/{quote(project, safe='')}")

    return routes
