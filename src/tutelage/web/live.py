"""What goes through the service now, and how its guards stand: the part of the operator's page that renews itself."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, NamedTuple

from fastapi import APIRouter, Form, HTTPException, Request
from fastapi.responses import HTMLResponse, Response
from markupsafe import Markup

from tutelage.core.errors import DataError
from tutelage.report import charts
from tutelage.store import incidents, overview, review, standings, takeover
from tutelage.store.engine import now
from tutelage.web import render

SPANS: Mapping[str, tuple[str, int, int, int, str]] = {
    "hour": ("The last hour", 3_600_000, 30, 60_000, "minutes"),
    "day": ("The last 24 hours", 86_400_000, 24, 3_600_000, "hours"),
    "week": ("The last week", 604_800_000, 28, 86_400_000, "days"),
}
"""Name -> its title, its length in ms, the stretches it is drawn in, and the unit of its axis."""
READERS = ("lead", "operator", "safety", "auditor")
STATUS_MS = 300_000
"""How far back the guards' own column looks."""
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
    kinds: dict[str, int]
    """Kind of people -> requests of them: `simulated` and `replayed` ones are no traffic of users."""


class GuardRow(NamedTuple):
    """A guard as the page shows it."""

    name: str
    state: str
    """`decides`, `shadow`, or `flags only` where certificates have expired."""
    standing: str
    categories: str
    asked: int
    failed: str
    breaker: str


def quantile(values: Sequence[float], share: float) -> float | None:
    """The value below which this share of the values lies (nearest rank); None of none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, math.ceil(share * len(ordered)) - 1))] if ordered else None


def look_at_traffic(store: Any, span: str, until: int) -> Traffic:
    """Requests, strictest action of each, and latency of a window that ends at `until`."""
    _, length, buckets, unit, word = SPANS[span]
    since, width = until - length, length // buckets
    drawn = {at: (n, k) for at, n, k in overview.by_time(store, since, until, width)}
    counts = [drawn.get(at, (0, 0)) for at in range(buckets)]

    def series(name: str, place: int) -> charts.Series:
        points = [((at - buckets) * width / unit, float(each[place])) for at, each in enumerate(counts)]
        return charts.Series(name, points)

    lines = [series("all", 0), series("withheld", 1)]
    actions, times = overview.actions(store, since, until), overview.latencies(store, since, until)
    up, down, appeals = overview.said(store, since, until)
    return Traffic(
        requests=sum(actions.values()),
        actions=actions,
        categories=overview.categories(store, since, until),
        median_ms=quantile(times, 0.5),
        slow_ms=quantile(times, 0.95),
        chart=Markup(charts.line(lines, title="Requests", x_label=f"{word} from now", zero=True)),
        thumbs=(up, down),
        appeals=appeals,
        kinds=overview.people(store, since, until),
    )


def guards(state: Any, at: int) -> list[GuardRow]:
    """The guards that answer now, and how each of them stands."""
    pipeline = state.pipeline
    if pipeline is None:
        return []
    policy, heard = pipeline.policy, overview.statuses(state.store, at - STATUS_MS, at)
    breakers, standing, found = state.breakers, state.standing, []
    named = {each.name: each for each in policy.guards}
    for name in sorted({*named, *pipeline.scanner.judges, *pipeline.scanner.shadow}):
        guard = named.get(name)
        expired = any(each.id in policy.expired for each in guard.certificates) if guard else False
        shadow = name in policy.shadowed or name in pipeline.scanner.shadow
        said = heard.get(name, {})
        covers = sorted({each for some in guard.categories.values() for each in some}) if guard else ["personal data"]
        if guard is None and name in pipeline.scanner.shadow:
            covers = []
        found.append(
            GuardRow(
                name,
                "shadow" if shadow else "flags only" if expired else "decides",
                standing if guard is not None else "rules" if covers else "shadow",
                ", ".join(each.replace("_", " ") for each in covers),
                sum(said.values()),
                ", ".join(f"{n} {status}" for status, n in sorted(said.items()) if status != "ok"),
                breakers.get(name, "closed"),
            )
        )
    return found


def values(state: Any, span: str) -> dict[str, Any]:
    """What the part that renews itself shows."""
    at, store = now(), state.store
    opened = incidents.every(store, closed=False, limit=6)
    return {
        "span": span,
        "spans": {name: each[0] for name, each in SPANS.items()},
        "traffic": look_at_traffic(store, span, at),
        "guards": guards(state, at),
        "incidents": opened[:5],
        "more_incidents": len(opened) > 5,
        "taken": takeover.opened(store),
        "drifts": list(reversed(review.drifts(store)))[:12],
        "spending": state.tenancy.spending(),
        "lag": state.writer.lag,
        "lost": state.writer.lost,
        "running": state.tenancy.shedder.running,
        "breakers": {name: each for name, each in state.breakers.items() if each != "closed"},
    }


def router(state: Any) -> APIRouter:
    """The pages of this file."""
    routes = APIRouter(include_in_schema=False)

    @routes.get("/operate/live")
    def live(request: Request, span: str = "day") -> HTMLResponse:
        render.signed_in(request, *READERS)
        return render.page(request, "operate_live.html", **values(state, span if span in SPANS else "day"))

    @routes.post("/operate/guards")
    def switch(request: Request, guard: Form_ = "", do: Form_ = "", reason: Form_ = "", csrf: Form_ = "") -> Response:
        person = render.signed_in(request, "lead", "safety")
        render.checked(request, csrf)
        known = {each.name: each for each in (state.pipeline.policy.guards if state.pipeline else ())}
        if guard not in known or do not in ("on", "shadow", "renew"):
            raise HTTPException(422, "choose one of the guards that answer, and what is to become of it")
        try:
            if do == "renew":
                mine = {each.id: guard for each in known[guard].certificates}
                standings.renew(state.store, mine, reason=reason, by=person.id)
            else:
                standings.switch(state.store, guard, "on" if do == "on" else "shadow", reason=reason, by=person.id)
        except DataError as error:
            raise HTTPException(422, str(error)) from None
        state.stand()
        told = {"on": "decides+from+now+on", "shadow": "is+in+shadow+from+now+on", "renew": "is+certified+again"}[do]
        return render.see(f"/operate?told=The+guard+{told}")

    return routes
