"""Who has shown to be able to judge what: granted and taken away by whoever leads everywhere, asked for by projects."""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import quote

from fastapi import APIRouter, Form, Request
from fastapi.responses import HTMLResponse, Response

from tutelage.core.errors import DataError, TutelageError
from tutelage.feedback import api, leads
from tutelage.store import people, qualifications, tasks
from tutelage.store.settings import ProjectSettings
from tutelage.web import render

READERS = (*api.LEADERS, "auditor")
Field = Annotated[str, Form()]


def router(state: Any) -> APIRouter:
    """The pages of this file; `state` has `store`."""
    routes = APIRouter(include_in_schema=False)
    store = state.store

    def page(request: Request, status: int = 200, told: str = "", error: str = "", **typed: str) -> HTMLResponse:
        person = render.signed_in(request, *READERS)
        held = qualifications.holders(store)
        asked: dict[str, list[str]] = {}
        for project in tasks.projects(store):
            for name in ProjectSettings.of(project.settings).qualifications:
                asked.setdefault(name, []).append(project.name)
        rows = [(name, asked.get(name, []), held.get(name)) for name in sorted({*asked, *held})]
        return render.page(
            request, "qualifications.html", status, told=told[:300], error=error, rows=rows,
            grants=person.has(*api.LEADERS), typed=typed,
        )  # fmt: skip

    @routes.get("/people/qualifications")
    def look(request: Request, told: str = "") -> HTMLResponse:
        return page(request, told=told)

    @routes.post("/people/qualifications")
    def change(
        request: Request, who: Field = "", name: Field = "", act: Field = "grant", back: Field = "", csrf: Field = ""
    ) -> Response:
        person = render.signed_in(request, *api.LEADERS)
        render.checked(request, csrf)
        name = " ".join(name.split())
        try:
            if not who.strip():
                raise DataError("say who", key="who")
            change = leads.disqualify if act == "revoke" else leads.qualify
            made = change(store, person, who.strip(), name)
        except TutelageError as error:
            return page(request, api.status_of(error), error=str(error), who=who, name=name)
        found = people.find(store, who.strip())
        shown = found.name if found else made.person
        told = quote(f"{shown} {'no longer holds' if act == 'revoke' else 'holds'} {name}")
        there = f"/people/{found.id}" if found and back == "person" else "/people/qualifications"
        return render.see(f"{there}?told={told}")

    return routes
