"""Where a lead asks for somebody who decides where people differ, and reads why they did."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, Response
from markupsafe import Markup
from starlette.concurrency import run_in_threadpool

from tutelage.core.errors import TutelageError
from tutelage.feedback import adjudicate, assign, desk
from tutelage.feedback.api import status_of
from tutelage.report import charts
from tutelage.store import adjudication, oversight, tasks
from tutelage.store.people import Person
from tutelage.store.tasks import Project
from tutelage.web import forms, render
from tutelage.web.editor import part, whole
from tutelage.web.feedback import fields_of, one
from tutelage.web.gold import decision, item_of, text_of
from tutelage.web.lead import address, gone, led_by, shown
from tutelage.web.projects import WATCHERS

LISTED = 50
"""Decided tasks on the page, the newest ones."""
ABOVE, MOST = 0.5, 20
"""What the form proposes: the disagreement that a task must exceed, and how many tasks at most."""


def shares(causes: Mapping[str, int]) -> list[tuple[str, int, Markup]]:
    """(cause, times, its share as a drawing), the commonest first."""
    every = sorted(causes.items(), key=lambda each: (-each[1], each[0]))
    total = sum(causes.values()) or 1
    return [(cause, many, Markup(charts.bar(many / total))) for cause, many in every]


def router(state: Any) -> APIRouter:
    """The pages of this file; `state` has `store` and `figures`."""
    routes = APIRouter(include_in_schema=False)
    store, kept = state.store, state.figures

    def page(
        request: Request, where: Project, status: int = 200, told: str = "", error: str = "", **typed: str
    ) -> HTMLResponse:
        moment = kept.get(("standing", where.id), lambda: desk.standing(store, where))
        found = list(adjudicate.decided(store, [where.name], None).values())
        found = sorted(found, key=lambda each: -each.seq)
        seen = adjudicate.view(store, where)
        loaded = tasks.load(store, [each.task for each in found[:LISTED]], masked=True)
        rows = [
            (each, text_of(task), forms.said(decision(adjudicate.masked(where, each)), item_of(store, where, task)))
            for each in found[:LISTED]
            for task in (loaded[each.task],)
        ]
        assign.showed(store, render.signed_in(request), where, [each.task for each in found[:LISTED]])
        there = [each for each in oversight.members(store, where.id) if _decides(each)]
        return shown(
            request, "adjudication.html", where, status, told=told[:300], error=error, seen=seen, rows=rows,
            total=len(found), kinds=list(moment.kinds), causes=adjudication.CAUSES, adjudicators=there,
            cause_of=adjudicate.cause_of, above=typed.get("above", f"{ABOVE:g}"), most=typed.get("most", str(MOST)),
            wanted=typed.get("people", moment.main), shares=shares,
        )  # fmt: skip

    @routes.get("/projects/{name}/adjudication")
    def look(request: Request, name: str, told: str = "") -> HTMLResponse:
        _, where = led_by(store, request, name, *WATCHERS)
        return page(request, where, told=told)

    @routes.post("/projects/{name}/adjudication")
    async def ask(request: Request, name: str) -> Response:
        person, where = led_by(store, request, name)
        fields = await fields_of(request)
        render.checked(request, one(fields, "csrf"))
        return await run_in_threadpool(asked, request, person, where, fields)

    def asked(request: Request, person: Person, where: Project, fields: Mapping[str, list[str]]) -> Response:
        """Named tasks, or by rule those on which people differ most."""
        typed = {name: one(fields, name) for name in ("above", "most", "people") if name in fields}
        try:
            named = tuple(each[:36] for each in fields.get("task", ()))
            rule: dict[str, Any] = {}
            if not named:
                above, most = part(typed.get("above", ""), "above", 0, 0.99), typed.get("most", "")
                rule = {"above": above, "most": whole(most, "most", 1, 10_000), "people": typed.get("people", "")}
            made = adjudicate.open_by(store, person, where, adjudicate.NewAdjudications(tasks=named, **rule)).opened
        except TutelageError as error:
            return page(request, where, status_of(error), "", str(error), **typed)
        kept.forget()
        told = f"An adjudicator is asked about {len(made)} task{'' if len(made) == 1 else 's'}"
        if not made:
            told = "Nobody is asked: every task that fits waits for an adjudicator, or was decided"
        if "back" in fields:  # asked about one of the disagreements: back to where it stands
            query = dict(parse_qsl(one(fields, "back")[:500]))
            return render.see(address(where, "/disagreements", **{**query, "told": told}))
        return gone(where, "/adjudication", told)

    return routes


def _decides(member: oversight.Member) -> bool:
    return bool({adjudication.ROLE, "owner"} & {*member.here, *member.everywhere})
