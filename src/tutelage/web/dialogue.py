"""The page of free dialogue, and its requests: what is written goes to blind generators, whose answers stand side by
side."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, Response
from starlette.concurrency import run_in_threadpool

from tutelage.core.errors import TutelageError
from tutelage.feedback import dialogue
from tutelage.feedback.wire import EndDialogue
from tutelage.store.engine import uuid7
from tutelage.web import forms, render
from tutelage.web.feedback import failure, fields_of, mount, one


def router(state: Any) -> APIRouter:
    """The page and the requests of this file; `state` has `store` and `speaker`."""
    routes = APIRouter()
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
        item = now.item
        return render.page(
            request,
            "dialogue.html",
            now=now,
            item=item,
            view=forms.view(item) if item else None,
            key=uuid7(),
            draft=json.dumps(item.draft) if item and item.draft else "",
            guideline=item.guideline if item else "",
        )

    @routes.post("/dialogue/{project}/end", include_in_schema=False)
    async def end(request: Request, project: str) -> Response:
        person = render.signed_in(request)
        fields = await fields_of(request)
        render.checked(request, one(fields, "csrf"))
        asked = EndDialogue(dialogue=one(fields, "dialogue")[:120])
        try:
            await run_in_threadpool(dialogue.end, state.store, person, project, asked)
        except TutelageError as error:
            raise failure(error) from None
        return render.see(f"/dialogue/{quote(project, safe='')}")

    return routes
