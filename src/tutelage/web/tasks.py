"""The pages on which people answer: the next task with the one after it, one's own answers, corrections, taking back.

A page holds the task in hand and, out of sight, the next one. Sending brings the one after that in the same round
trip, so that the next task shows at once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import parse_qs, quote

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool

from tutelage.core.errors import DataError, NotFound, TutelageError
from tutelage.core.records import explain
from tutelage.feedback import adjudicate, api
from tutelage.feedback.api import Answers, Claim, Item, Submitted
from tutelage.feedback.check import MOST_TEXT
from tutelage.review import queue
from tutelage.store import answers, slots, tasks
from tutelage.store.engine import uuid7
from tutelage.store.people import Person
from tutelage.web import forms, render
from tutelage.web.feedback import failure, one

AHEAD = 2
"""Tasks a page holds: the one in hand and the next."""

MOST_SENT = 2_000_000
"""Bytes of one answer as it is sent."""


async def sent_fields(request: Request) -> dict[str, list[str]]:
    """The fields of a sent answer. Raises DataError for one that is too large, having read it to its end."""
    held = bytearray()
    async for chunk in request.stream():
        if len(held) <= MOST_SENT:
            held += chunk
    if len(held) > MOST_SENT:
        raise DataError(f"an answer has at most {MOST_SENT // 1_000_000} MB, one text at most {MOST_TEXT:,} characters")
    return parse_qs(held.decode("utf-8", "replace"), keep_blank_values=True, max_num_fields=4000)


def _next(project: str, slot: str = "", stale: bool = False) -> str:
    wanted = [("project", project), ("after", slot), ("stale", "1" if stale else "")]
    query = "&".join(f"{name}={quote(value)}" for name, value in wanted if value)
    return f"/task/next{'?' if query else ''}{query}"


def _told(state: Any, person: Person, slot: str, stale: bool = False) -> dict[str, str] | None:
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


class Desk:
    """What the pages of this file share."""

    def __init__(self, state: Any) -> None:
        self.state, self.store = state, state.store

    def values(self, person: Person, item: Item, told: Mapping[str, str] | None = None) -> dict[str, Any]:
        """What the template of one task is given. An answer given before fills it, unless a draft is newer."""
        row = slots.held(self.store, item.slot)
        filled: Mapping[str, Any] | None = item.draft
        if filled is None and (row.lease_epoch > 1 or row.state != "leased"):
            mine = answers.read(self.store, person=person.id, slot=item.slot, newest=False, own=True)
            filled = forms.fields_of(mine[-1], item) if mine else None
        return {
            "item": item,
            "view": forms.view(item),
            "key": uuid7(),
            "told": told,
            "others": self.others(item),
            "draft": json.dumps(filled) if filled else "",
            "mine": slots.answered(self.store, person.id, row.project_id),
            "editing": row.state != "leased",
            "most_text": MOST_TEXT,
        }

    def others(self, item: Item) -> list[tuple[str, str, str]]:
        """To be adjudicated: (pseudonym, kind, what they said) of everybody before, in the letters of this page."""
        if item.others is None:
            return []
        task, where = tasks.load(self.store, [item.task])[item.task], tasks.get_project(self.store, item.project)
        given = adjudicate.earlier(self.store, task, where)
        return [(each.pseudonym, each.people, forms.said(each, item)) for each in given]

    def html(self, request: Request, person: Person, item: Item) -> str:
        """One task as a part of a page."""
        session = getattr(request.state, "session", None)
        template = render.environment().get_template("task_item.html")
        return template.render(csrf=getattr(session, "csrf", ""), person=person, **self.values(person, item))

    def page(
        self, request: Request, person: Person, items: Sequence[Item], told: Mapping[str, str] | None = None
    ) -> HTMLResponse:
        """The page of the first of these tasks; the next one lies ready in it."""
        ahead = [self.html(request, person, each) for each in items[1:AHEAD]]
        return render.page(request, "task.html", ahead=ahead, **self.values(person, items[0], told))

    def answer(self, person: Person, slot: str, fields: Mapping[str, Sequence[str]], claim: bool) -> _Outcome:
        """Store what a form says; with `claim` the next tasks are claimed in the same transaction's wake.

        Raises TutelageError, ValidationError and ValueError for a form that is no answer to this task.
        """
        item = api.held_item(self.store, person, slot)
        editing = slots.held(self.store, slot).state != "leased"
        status, epoch = one(fields, "status", "submitted"), int(one(fields, "epoch", "0"))
        given = forms.answer_of(item, fields, key=one(fields, "key"), epoch=epoch, status=status)
        goes_on = claim and not editing and status != "withdrawn" and item.kind != "dialogue"
        wanted = Claim(project=item.project, count=AHEAD) if goes_on else None
        done = api.submit(self.store, person, Answers(answers=(given,), claim=wanted))
        return _Outcome(item, done, editing, status)


class _Outcome:
    """What became of a sent form, and where the person goes on."""

    def __init__(self, item: Item, done: Submitted, editing: bool, status: str) -> None:
        self.item, self.done, self.receipt = item, done, done.receipts[0]
        back = f"/history?project={quote(item.project)}" if editing else _next(item.project, item.slot)
        self.where = f"/task/{item.slot}" if status == "withdrawn" else back


def router(state: Any) -> APIRouter:
    """The pages of this file; `state` has `store`."""
    routes = APIRouter()
    store, desk = state.store, Desk(state)

    @routes.get("/task/next", include_in_schema=False)
    def next_task(request: Request, project: str = "", after: str = "", stale: str = "") -> Response:
        person = render.signed_in(request)
        told = _told(state, person, after, bool(stale))
        try:
            if project and tasks.get_project(store, project).kind == "dialogue":
                return render.see(f"/dialogue/{quote(project, safe='')}")
            claimed = api.claim(store, person, Claim(project=project, count=AHEAD))
        except TutelageError as error:
            raise failure(error) from None
        if not claimed.items:
            return render.page(request, "nothing.html", reason=claimed.reason, project=project, told=told)
        return desk.page(request, person, claimed.items, told)

    @routes.get("/task/{slot}", include_in_schema=False)
    def task(request: Request, slot: str) -> Response:
        person = render.signed_in(request)
        try:
            return desk.page(request, person, [api.held_item(store, person, slot)])
        except TutelageError as error:
            raise failure(error) from None

    @routes.post("/task/{slot}", include_in_schema=False)
    async def answer(request: Request, slot: str) -> Response:
        person = render.signed_in(request)
        wants_json = "application/json" in request.headers.get("accept", "")

        def refuse(status: int, error: str, where: str = "") -> Response:
            if wants_json:
                return JSONResponse({"error": error, "next": where} if where else {"error": error}, status)
            if where:
                return render.see(where)
            return render.page(request, "problem.html", status, title="Not stored", text=error, back=f"/task/{slot}")

        try:
            fields = await sent_fields(request)
        except (DataError, ValueError) as error:
            return refuse(413, str(error))
        render.checked(request, request.headers.get("x-csrf-token") or one(fields, "csrf"))
        try:
            made = await run_in_threadpool(desk.answer, person, slot, fields, wants_json)
        except NotFound:
            return refuse(409, "This task is no longer yours", _next(one(fields, "project"), stale=True))
        except TutelageError as error:
            return refuse(api.status_of(error), str(error))
        except ValidationError as error:
            return refuse(422, explain(error)[1])
        except (ValueError, OverflowError):
            return refuse(422, "a field holds no number where one is due")
        if made.receipt.status == "refused":
            return refuse(422, made.receipt.error)
        if made.receipt.status == "stale":
            return refuse(409, made.receipt.error, _next(made.item.project, stale=True))
        if not wants_json:
            return render.see(made.where)
        return await run_in_threadpool(stored, request, person, made, set(fields.get("have", ())))

    def stored(request: Request, person: Person, made: _Outcome, have: set[str]) -> JSONResponse:
        """What the page is told: that it is stored, what it came to, and the task after the ones it has."""
        items = made.done.next.items if made.done.next else []
        ahead = [desk.html(request, person, each) for each in items if each.slot not in have]
        told = _told(state, person, made.item.slot)
        return JSONResponse({"status": made.receipt.status, "next": made.where, "told": told, "ahead": ahead})

    @routes.get("/history", include_in_schema=False)
    def history(request: Request, project: str = "") -> HTMLResponse:
        person = render.signed_in(request)
        mine = answers.read(store, project or None, person=person.id, status=None, own=True, limit=100)[::-1]
        known = tasks.load(store, sorted({each.task for each in mine}), masked=True)
        names = {each.id: each.name for each in tasks.projects(store)}
        rows = [
            {
                "slot": each.slot,
                "at": each.at,
                "project": names.get(each.project, ""),
                "said": forms.said(each),
                "revision": each.revision,
                "withdrawn": each.status == "withdrawn",
                "prompt": known[each.task].messages[-1].content[:200] if known[each.task].messages else "(erased)",
            }
            for each in mine
        ]
        return render.page(request, "history.html", rows=rows, project=project)

    return routes
