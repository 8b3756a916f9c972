"""Review of what the guards decided: estimates by week, new draws, conversations that wait for a person, thumbs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Form, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from markupsafe import Markup
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.concurrency import run_in_threadpool

from tutelage.core.errors import DataError, TutelageError
from tutelage.core.records import explain
from tutelage.feedback import api
from tutelage.report import charts
from tutelage.report.tables import Column, badge, figure, table
from tutelage.review import queue
from tutelage.review.estimates import Estimate, estimates
from tutelage.review.sample import draw, population
from tutelage.store import review as stored
from tutelage.store import takeover, traffic
from tutelage.web import render

READERS = ("lead", "reviewer", "safety", "operator", "auditor")
SHOWN = ("miss_rate", "false_positive_rate")
Form_ = Annotated[str, Form()]


class Thumb(BaseModel):
    """What a user says about one answer."""

    model_config = ConfigDict(extra="forbid")

    request: str = Field(max_length=64)
    kind: Literal["thumb", "comment", "appeal"] = "thumb"
    value: float | None = Field(default=None, ge=-1, le=1)
    text: str = Field(default="", max_length=20_000)
    key: str | None = Field(default=None, max_length=120)


def plots(found: Sequence[Estimate]) -> Markup:
    """Miss rate and false-positive rate by week with their intervals; each kind of people is a line of its own."""
    out = Markup("")
    weeks = {week: place for place, week in enumerate(dict.fromkeys(e.week for e in found), 1)}
    for metric in SHOWN:
        lines = []
        for people in sorted({e.people for e in found}):
            mine = [(float(weeks[e.week]), e) for e in found if e.metric == metric and e.people == people]
            lines.append(
                charts.Series(
                    people,
                    [(x, e.value) for x, e in mine],
                    [(x, e.low) for x, e in mine],
                    [(x, e.high) for x, e in mine],
                )
            )
        title = f"{metric.replace('_', ' ').capitalize()} by week"
        drawn = Markup(charts.line(lines, title=title, x_label="in the order of the table", zero=True))
        out += Markup('<div class="card">{}</div>').format(drawn)
    return Markup('<div class="grid">{}</div>').format(out)


def figures(found: Sequence[Estimate]) -> Markup:
    """The estimates as a table: a row per week and kind of people."""
    rows = []
    for week, people in dict.fromkeys((e.week, e.people) for e in found):
        mine = {e.metric: e for e in found if e.week == week and e.people == people}
        cells = [_cell(mine[m]) if m in mine else "" for m in (*SHOWN, "precision", "prevalence")]
        first = next(iter(mine.values()))
        mark = badge(people, "" if people == "live" else "warn")
        rows.append([Markup("{} {}").format(week, mark), *cells, f"{first.n} of {first.total}"])
    columns: list[Column] = [
        "week",
        "miss rate",
        "false-positive rate",
        "precision",
        "harmful in all",
        ("reviewed", "n"),
    ]
    caption = "95% intervals. Undefined figures say why."
    if any(each.corrected for each in found):
        caption += " Reviewers' slips are taken out, as far as decisions with two voices tell them; below: as given."
    return table(columns, rows, caption=caption)


def _cell(each: Estimate) -> Markup:
    given = Markup("<span class='sub'>as given {:.2f}</span>").format(each.raw[0]) if each.raw else Markup("")
    return Markup("{}{}").format(figure(each.model_dump(), n=False), given)


def router(state: Any) -> APIRouter:
    """The pages of this file; `state` has `store` and `flush`."""
    routes = APIRouter()
    store = state.store

    @routes.get("/review", include_in_schema=False)
    def review(request: Request, told: str = "") -> HTMLResponse:
        person = render.signed_in(request, *READERS)
        draws = queue.draws_of(store)
        answered = queue.reviewed(store)
        found = estimates(answered, population(draws)) if answered else []
        try:
            moment = api.progress(store, person, queue.PROJECT)
        except TutelageError:
            moment = None
        return render.page(
            request,
            "review.html",
            told=told[:300],
            progress=moment,
            drawn=len(draws),
            plots=plots(found) if found else "",
            figures=figures(found) if found else "",
            waiting=_waiting(),
            taken=takeover.opened(store)[:100],
            undrawn=len(traffic.decisions(store, direction="input", undrawn=True, limit=5001)),
        )

    def _waiting() -> list[dict[str, Any]]:
        holds = stored.holds(store, waiting=True)[:50]
        asked = {each.id: each for each in traffic.requests(store, ids=[hold.request for hold in holds], masked=True)}
        return [
            {
                "id": hold.id,
                "conversation": hold.conversation,
                "at": hold.at,
                "messages": asked[hold.request].messages,
                "reasons": [reason for each in asked[hold.request].decisions for reason in each.reasons],
            }
            for hold in holds
            if hold.request in asked
        ]

    @routes.post("/review/draw", include_in_schema=False)
    def new_draw(request: Request, budget: Annotated[int, Form(ge=1, le=5000)], csrf: Form_ = "") -> Response:
        person = render.signed_in(request, "lead", "safety", "operator")
        render.checked(request, csrf)
        seen = {each.subject for each in queue.draws_of(store)}
        subjects = [each for each in queue.subjects(store) if each.id not in seen]
        if not subjects:
            return render.see("/review?told=Every+decision+has+been+in+a+draw+already")
        opened = queue.open_reviews(store, draw(subjects, seed=0, budget=budget), seed=0, by=person.id)
        return render.see(f"/review?told={opened.selected}+of+{opened.drawn}+decisions+are+open+for+review")

    @routes.post("/api/thumbs", summary="Say something about an answer: thumb, comment or appeal")
    async def thumb(request: Request) -> JSONResponse:
        person = render.signed_in(request, scope="chat")
        render.checked(request, request.headers.get("x-csrf-token"))
        try:
            said = Thumb.model_validate(json.loads(await request.body() or b"null"))
            fields = said.model_dump(exclude={"request", "kind"})
            await run_in_threadpool(state.flush)  # an answer is read a moment before it is on disk
            whose = person.kind if person.kind in ("simulated", "replayed") else "live"
            made = traffic.add_feedback(store, said.request, said.kind, actor=person.pseudonym, people=whose, **fields)
        except ValidationError as error:
            key, message = explain(error)
            return JSONResponse(DataError(message, key=key).as_dict(), 422)
        except TutelageError as error:
            return JSONResponse(error.as_dict(), api.status_of(error))
        except ValueError as error:
            return JSONResponse(DataError(f"the body is no JSON: {error}").as_dict(), 422)
        return JSONResponse({"id": made})

    @routes.get("/review/decisions", include_in_schema=False)
    def decisions(request: Request, action: str = "", direction: str = "") -> HTMLResponse:
        render.signed_in(request, "lead", "safety", "operator", "auditor")
        rows = traffic.decisions(
            store, action=action or None, direction=direction or None, newest_first=True, limit=100
        )
        # What is drawn and not yet answered stays covered, so that whoever looks here can still judge it blind.
        drawn = [each.subject for each in queue.draws_of(store) if each.selected]
        answered = {each.subject for each in queue.reviewed(store)}
        covered = set(drawn) - answered
        if action:  # a filter on the decision would tell what stays covered
            rows = [row for row in rows if row.id not in covered]
        asked = traffic.requests(store, ids=sorted({row.request for row in rows}), masked=True)
        said = {each.id: each.messages[-1].content if each.messages else "(erased)" for each in asked}
        return render.page(
            request, "decisions.html", rows=rows, covered=covered, said=said, action=action, direction=direction
        )

    return routes
