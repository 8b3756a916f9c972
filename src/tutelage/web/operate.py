"""The operator's pages: chat, runs with live progress, reports and artifacts, releases and traffic."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple

from fastapi import APIRouter, Form, HTTPException, Request
from fastapi.responses import HTMLResponse, Response
from markupsafe import Markup

from tutelage import life
from tutelage.core.artifact import Artifact, Root, atomic_write
from tutelage.core.errors import NotFound, Refused, TutelageError
from tutelage.core.records import ACTIONS
from tutelage.report import charts, tables
from tutelage.report.pages import life_page
from tutelage.store import releases, review, traffic
from tutelage.store.engine import now
from tutelage.web import render, runs

HOUR = 3_600_000
WINDOW = 24 * HOUR
"""How far back the traffic page looks, in ms."""

Form_ = Annotated[str, Form()]


class Traffic(NamedTuple):
    """What went through in a window."""

    requests: int
    actions: dict[str, int]
    categories: list[tuple[str, int]]
    median_ms: float | None
    slow_ms: float | None
    chart: Markup
    thumbs: tuple[int, int]
    appeals: int


def quantile(values: Sequence[float], share: float) -> float | None:
    """The value below which this share of the values lies (nearest rank); None of none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, math.ceil(share * len(ordered)) - 1))] if ordered else None


def look_at_traffic(store: Any, since: int, until: int, buckets: int = 24) -> Traffic:
    """Requests, strictest action of each, and latency of a window."""
    decided = traffic.decisions(store, since=since, until=until)
    strictest: dict[str, str] = {}
    category: dict[str, str] = {}
    at: dict[str, int] = {}
    for each in decided:
        at.setdefault(each.request, each.at)
        if ACTIONS.index(each.action) >= ACTIONS.index(strictest.get(each.request, "allow")):
            strictest[each.request] = each.action
            category[each.request] = each.category
    found = traffic.requests(store, since=since, until=until, newest_first=True, limit=5000)
    for request in found:
        strictest.setdefault(request.id, "allow")
        at.setdefault(request.id, request.at)
    width = max(1, (until - since) // buckets)
    total: Counter[int] = Counter((moment - since) // width for moment in at.values())
    stopped = Counter((at[id] - since) // width for id, action in strictest.items() if action in ("block", "review"))

    def series(name: str, counts: Counter[int]) -> charts.Series:
        return charts.Series(name, [((k - buckets) * width / HOUR, float(counts.get(k, 0))) for k in range(buckets)])

    lines = [series("all", total), series("withheld", stopped)]
    latencies = [request.latency_ms for request in found if request.latency_ms is not None]
    said = traffic.feedback(store, since=since)
    withheld = Counter(category[id] for id, action in strictest.items() if action in ("block", "review", "redact"))
    return Traffic(
        requests=len(strictest),
        actions={action: sum(1 for each in strictest.values() if each == action) for action in ACTIONS},
        categories=[(name, n) for name, n in withheld.most_common(12) if name],
        median_ms=quantile(latencies, 0.5),
        slow_ms=quantile(latencies, 0.95),
        chart=Markup(charts.line(lines, title="Requests per hour", x_label="hours from now", zero=True)),
        thumbs=(
            sum(1 for each in said if each.kind == "thumb" and (each.value or 0) > 0),
            sum(1 for each in said if each.kind == "thumb" and (each.value or 0) < 0),
        ),
        appeals=sum(1 for each in said if each.kind == "appeal"),
    )


def _artifact(root: Root, kind: str, id: str) -> Artifact:
    try:
        return root.find(f"{kind}:{id}")
    except NotFound as error:
        raise HTTPException(404, str(error)) from None


def _children(root: Root, artifact: Artifact) -> list[Artifact]:
    return [each for each in root.list() if artifact.ref in each.manifest.parents()]


def _standing(state: Any) -> tuple[str, str]:
    """(name under which it answers, a line about it); two empty strings when nothing is in service."""
    pipeline = getattr(state, "pipeline", None)
    if pipeline is None:
        return "", ""
    live = releases.current(state.store)
    guards = {"rules": "rules only", "demo": "demo guards", "trained": "trained guards"}
    standing = guards.get(str(getattr(state, "standing", "")), "guarded")
    return str(pipeline.model), f"{(live.name or 'a release') + ' is live' if live else 'no release yet'} · {standing}"


AGAIN = ("retired", "rolled_back", "shadow", "canary")
"""States of releases that passed their gate, and may be put in service (again) from the console."""

READERS = ("lead", "operator", "safety", "auditor")


def router(state: Any) -> APIRouter:
    """The pages of this file; `state` has `root`, `store` and perhaps `pipeline`."""
    routes = APIRouter(include_in_schema=False)
    root: Root = state.root

    @routes.get("/chat")
    def chat(request: Request) -> HTMLResponse:
        render.signed_in(request)
        model, standing = _standing(state)
        return render.page(request, "chat.html", model=model, standing=standing)

    @routes.get("/runs")
    def runs_page(request: Request) -> HTMLResponse:
        render.signed_in(request, *READERS)
        found = runs.stages(root)
        return render.page(request, "runs.html", stages=found, left=runs.remaining(found), root=root.path)

    @routes.get("/runs/table")
    def runs_table(request: Request) -> HTMLResponse:
        render.signed_in(request, *READERS)
        found = runs.stages(root)
        return render.page(request, "runs_table.html", stages=found, left=runs.remaining(found), root=root.path)

    @routes.get("/reports")
    def reports(request: Request) -> HTMLResponse:
        render.signed_in(request, *READERS, "reviewer")
        written = sorted(root.reports.glob("*.html")) if root.reports.is_dir() else []
        rows = [(path.name, 1000 * path.stat().st_mtime, path.stat().st_size) for path in written]
        return render.page(request, "reports.html", reports=rows, artifacts=list(life.last(root).items()))

    @routes.post("/reports")
    def write_report(request: Request, csrf: Form_ = "") -> Response:
        render.signed_in(request, *READERS)
        render.checked(request, csrf)
        atomic_write(root.reports / "life.html", life_page(root, life.last(root)).encode())
        return render.see("/reports/life.html")

    @routes.get("/reports/{name}")
    def report(request: Request, name: str) -> Response:
        render.signed_in(request, *READERS, "reviewer")
        path = root.reports / name
        if path.parent != root.reports or path.suffix != ".html" or not path.is_file():
            raise HTTPException(404, f"there is no report {name!r}")
        headers = render.SECURITY | {"content-security-policy": render.REPORT_POLICY}
        return HTMLResponse(path.read_text(encoding="utf-8"), headers=headers)

    @routes.get("/artifacts/{kind}/{id}")
    def artifact(request: Request, kind: str, id: str) -> HTMLResponse:
        render.signed_in(request, *READERS, "reviewer")
        found = _artifact(root, kind, id)
        return render.page(
            request,
            "artifact.html",
            artifact=found,
            parents=found.manifest.parents(),
            children=_children(root, found),
            metrics=tables.anything(found.metrics) if found.metrics else Markup('<p class="none">None.</p>'),
            config=tables.anything(found.config) if found.config else Markup('<p class="none">None.</p>'),
        )

    @routes.get("/operate")
    def operate(request: Request, told: str = "") -> HTMLResponse:
        render.signed_in(request, *READERS)
        moment = now()
        every = {each.id: each for each in releases.every(state.store)}
        live = releases.current(state.store)
        earlier = live is not None and any(
            event.after == "live" and event.release != live.id for event in releases.history(state.store)
        )
        return render.page(
            request,
            "operate.html",
            live=live,
            releases=list(reversed(every.values())),
            events=list(reversed(releases.history(state.store)))[:40],
            traffic=look_at_traffic(state.store, moment - WINDOW, moment),
            again=AGAIN,
            drifts=list(reversed(review.drifts(state.store)))[:12],
            waiting=len(review.holds(state.store, waiting=True)),
            can_roll_back=earlier,
            told=told[:300],
        )

    @routes.post("/operate/rollback")
    def roll_back(request: Request, reason: Form_, csrf: Form_ = "") -> Response:
        person = render.signed_in(request, "operator", "safety", "lead")
        render.checked(request, csrf)
        if not reason.strip():
            raise HTTPException(422, "a rollback needs a reason: it is kept for good")
        try:
            back = releases.rollback(state.store, actor=person.id, reason=reason.strip())
        except Refused as error:
            return render.page(request, "problem.html", 409, title="No rollback", text=str(error), back="/operate")
        return render.see(f"/operate?told=Rolled+back+to+{back.name or back.id}")

    @routes.post("/operate/promote")
    def promote(request: Request, release: Form_, reason: Form_, csrf: Form_ = "") -> Response:
        person = render.signed_in(request, "safety", "lead")
        render.checked(request, csrf)
        if not reason.strip():
            raise HTTPException(422, "a promotion needs a reason: it is kept for good")
        try:
            if releases.get(state.store, release).state not in AGAIN:
                raise Refused("this release has not passed its gate", todo="Run `tutelage release make` for it")
            releases.promote(state.store, release, actor=person.id, reason=reason.strip())
        except TutelageError as error:
            return render.page(request, "problem.html", 409, title="Not promoted", text=str(error), back="/operate")
        return render.see("/operate?told=Promoted")

    return routes
