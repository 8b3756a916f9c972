"""The operator's pages: chat, runs with live progress, reports and artifacts, releases and traffic."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Form, HTTPException, Request
from fastapi.responses import HTMLResponse, Response
from markupsafe import Markup

from tutelage import life
from tutelage.core.artifact import Artifact, Root, atomic_write
from tutelage.core.errors import NotFound, Refused, TutelageError
from tutelage.report import tables
from tutelage.report.pages import life_page
from tutelage.store import releases, review, standings
from tutelage.web import live, render, runs

Form_ = Annotated[str, Form()]


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
    def operate(request: Request, told: str = "", span: str = "day") -> HTMLResponse:
        render.signed_in(request, *READERS)
        every = {each.id: each for each in releases.every(state.store)}
        current = releases.current(state.store)
        earlier = current is not None and any(
            event.after == "live" and event.release != current.id for event in releases.history(state.store)
        )
        return render.page(
            request,
            "operate.html",
            current=current,
            releases=list(reversed(every.values())),
            events=list(reversed(releases.history(state.store)))[:40],
            again=AGAIN,
            waiting=len(review.holds(state.store, waiting=True)),
            can_roll_back=earlier,
            told=told[:300],
            switching=standings.guard_events(state.store)[-20:][::-1],
            names=[each.name for each in (state.pipeline.policy.guards if state.pipeline else ())],
            **live.values(state, span if span in live.SPANS else "day"),
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
