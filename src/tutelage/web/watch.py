"""The rules that open incidents, looked at by a running service at short intervals.

A rule acts on counts large enough to be sure: a share that surely rose (an interval's lower end), a guard or an
upstream that fails again and again, a breaker that is open, a signal of drift. What it finds is an incident; what drift
says about false positives also expires the certificates of the guards that answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final, Protocol

from tutelage.guard.policy import Policy
from tutelage.measure.statistics import newcombe
from tutelage.store import incidents, overview, review, standings
from tutelage.store.engine import Store, now

WINDOW_MS: Final = 300_000
BEFORE_MS: Final = 86_400_000
LEAST: Final = 10
"""Requests withheld, verdicts failed and requests failed that a rule wants to have seen."""
LEVEL: Final = 0.999
"""Of the interval whose lower end must be above RISE: one look in a thousand errs."""
RISE: Final = 0.05
"""How much the share that is withheld must surely have risen."""
FAILING: Final = 0.1
"""Share of a guard's verdicts, and of requests at the upstream, that may fail."""
CERTIFIED: Final = ("false_positive_rate",)
"""Signals of drift that speak of what certificates promise."""


class Told(Protocol):
    """What a service knows of itself."""

    def upstream_failures(self) -> tuple[int, int]: ...


def look(
    store: Store, policy: Policy | None, telemetry: Told, breakers: Mapping[str, str], lost: int = 0, since: int = 0
) -> list[str]:
    """Open what the rules find; gives the incidents' ids. `since`: drift that was kept after this time (ms) is new."""
    at = now()
    found = [*_blocks(store, at), *_guards(store, at), *_breakers(store, breakers)]
    failed, asked = telemetry.upstream_failures()
    if failed >= LEAST and failed >= FAILING * asked:
        title = f"The upstream failed {failed} of {asked} requests in five minutes"
        detail = {"failed": failed, "requests": asked}
        found.append(incidents.open(store, "upstream", "upstream", title, severity="high", detail=detail))
    if lost:
        title = f"{lost} requests could not be written down"
        found.append(incidents.open(store, "records", "traces", title, severity="high", detail={"lost": lost}))
    return [*found, *_drifts(store, policy, since)]


def _blocks(store: Store, at: int) -> Iterable[str]:
    """Much more is withheld now than in the day before."""
    late = overview.outcomes(store, at - WINDOW_MS, at)
    before = overview.outcomes(store, at - WINDOW_MS - BEFORE_MS, at - WINDOW_MS)
    if late.withheld < LEAST or not before.requests:
        return
    gap = newcombe(late.withheld, late.requests, before.withheld, before.requests, LEVEL)
    if gap.low is not None and gap.low > RISE:
        title = f"{late.withheld} of {late.requests} requests withheld in five minutes, {before.withheld} of "
        title += f"{before.requests} in the day before"
        detail = {"withheld": late.withheld, "requests": late.requests, "rise": gap.value, "at_least": gap.low}
        yield incidents.open(store, "blocks", "all", title, severity="middle", detail=detail)


def _guards(store: Store, at: int) -> Iterable[str]:
    for judge, statuses in overview.statuses(store, at - WINDOW_MS, at).items():
        asked = sum(statuses.values())
        failed = {status: n for status, n in statuses.items() if status != "ok"}
        if sum(failed.values()) >= LEAST and sum(failed.values()) >= FAILING * asked:
            said = ", ".join(f"{n} {status}" for status, n in sorted(failed.items()))
            title = f"{judge[:80]} failed {sum(failed.values())} of {asked} times in five minutes ({said})"
            yield incidents.open(store, "guard", judge, title, severity="high", detail=failed)


def _breakers(store: Store, breakers: Mapping[str, str]) -> Iterable[str]:
    for name, state in sorted(breakers.items()):
        if state == "open":
            title = f"The breaker of {name[:80]} is open: it is not asked for now"
            yield incidents.open(store, "breaker", name, title, severity="high", detail={"state": state})


def _drifts(store: Store, policy: Policy | None, since: int) -> Iterable[str]:
    for each in review.drifts(store, triggered=True, since=since):
        if each.detail.get("people", "live") != "live":  # what simulated people do says nothing of users
            continue
        value = "" if each.value is None else f": {each.value:.3f}"
        title = f"{each.signal.replace('_', ' ')} in {each.period}{value}"
        detail = {"period": each.period, "value": each.value, "threshold": each.threshold}
        yield incidents.open(store, "drift", f"{each.signal} {each.period}", title, detail=detail)
        if policy is not None and any(each.signal.startswith(name) for name in CERTIFIED):
            certificates = {c.id: guard.name for guard in policy.guards for c in guard.certificates}
            standings.expire(store, certificates, reason=f"drift: {title}", by=incidents.SYSTEM)
