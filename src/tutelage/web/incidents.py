"""Incidents in the console: which are open, what happened, notes, and their end."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Form, HTTPException, Request
from fastapi.responses import HTMLResponse, Response

from tutelage.core.errors import DataError, NotFound
from tutelage.store import incidents, people, traffic
from tutelage.text.pii import find, redact
from tutelage.web import render

READERS = ("lead", "operator", "safety", "auditor", "reviewer")
WRITERS = ("lead", "operator", "safety")
LISTED = 50
"""Incidents on one page."""
Form_ = Annotated[str, Form()]


def router(state: Any) -> APIRouter:
    """The pages of this file; `state` has `store`."""
    routes = APIRouter(include_in_schema=False)
    store = state.store

    @routes.get("/incidents")
    def listing(request: Request, told: str = "", show: str = "open", before: str = "") -> HTMLResponse:
        person = render.signed_in(request, *READERS)
        closed = {"open": False, "closed": True}.get(show)
        found = incidents.every(store, closed=closed, limit=LISTED + 1, before=before[:40])
        return render.page(
            request,
            "incidents.html",
            told=told[:300],
            show=show if show in ("open", "closed") else "all",
            rows=found[:LISTED],
            following=found[LISTED - 1].id if len(found) > LISTED else "",
            may=person.has(*WRITERS),
            longest=incidents.LONGEST,
        )

    @routes.post("/incidents")
    def by_hand(request: Request, title: Form_ = "", text: Form_ = "", csrf: Form_ = "") -> Response:
        person = render.signed_in(request, *WRITERS)
        render.checked(request, csrf)
        if not 0 < len(title.strip()) <= 200 or not text.strip():
            raise HTTPException(422, "an incident needs a title of at most 200 characters, and what was seen")
        try:
            id = incidents.open(store, "note", title.strip(), title.strip(), by=person.id)
            incidents.note(store, id, text, person.id)
        except DataError as error:
            raise HTTPException(422, str(error)) from None
        return render.see(f"/incidents/{id}")

    @routes.get("/incidents/{id}")
    def one(request: Request, id: str, told: str = "") -> HTMLResponse:
        person = render.signed_in(request, *READERS)
        try:
            found, events = incidents.get(store, id)
        except NotFound as error:
            raise HTTPException(404, str(error)) from None
        names = {each: who.name for each in {e.by for e in events} if (who := people.find(store, each)) is not None}
        about = ""
        if found.kind == "appeal":
            asked = traffic.requests(store, ids=[found.subject], masked=True)
            about = f"/review/conversations/{asked[0].conversation}" if asked else ""
        texts = [each.text for each in traffic.feedback(store, request=found.subject, kind="appeal") if each.text]
        said = [redact(text, find(text)) for text in texts]
        return render.page(
            request, "incident.html", one=found, events=events, names=names, told=told[:300], about=about,
            what=incidents.KINDS[found.kind], may=person.has(*WRITERS), longest=incidents.LONGEST,
            said=said if found.kind == "appeal" else [],
        )  # fmt: skip

    @routes.post("/incidents/{id}")
    def tell(request: Request, id: str, text: Form_ = "", do: Form_ = "note", csrf: Form_ = "") -> Response:
        person = render.signed_in(request, *WRITERS)
        render.checked(request, csrf)
        try:
            incidents.note(store, id, text, person.id, close=do == "close")
        except NotFound as error:
            raise HTTPException(404, str(error)) from None
        except DataError as error:
            raise HTTPException(422, str(error)) from None
        return render.see(f"/incidents/{id}?told={'It+is+closed' if do == 'close' else 'Noted'}")

    return routes
