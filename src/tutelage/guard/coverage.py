"""What is guarded and what is not: surface x channel x guard, with tiers, thresholds and what a failure means."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tutelage.core.records import Status
from tutelage.guard.policy import Bound, Policy
from tutelage.guard.written import SERVED, SURFACES, Surface, Where

FAILURES: tuple[Status, ...] = ("timeout", "malformed", "unsupported", "error")


def coverage(policy: Policy, surfaces: Sequence[Surface] = SURFACES, tenant: str = "") -> list[dict[str, Any]]:
    """A row for each surface, direction and channel that is served: its rules, the guards that read every text there,
    and `checks`, each of them a rule by a guard; one in shadow does `watch`. A row without guards is read by nobody."""
    found = []
    for surface in surfaces:
        for direction, channels in SERVED[surface].items():
            for channel in channels:
                at = Where(direction, channel, surface, tenant)
                bounds = [bound for bound in policy.rules(tenant) if bound.rule.when.covers(at)]
                row: dict[str, Any] = {"surface": surface, "direction": direction, "channel": channel}
                row |= {"rules": [bound.rule.id for bound in bounds], "guards": sorted(policy.needed(at))}
                row["checks"] = [check for bound in bounds for check in _checks(policy, bound, direction)]
                found.append(row)
    return found


def _checks(policy: Policy, bound: Bound, direction: str) -> list[dict[str, Any]]:
    rule = bound.rule
    return [
        {
            "rule": rule.id,
            "guard": guard,
            "tier": tier,
            "on": rule.category or list(rule.pii),
            "action": "watch" if guard in policy.shadowed else rule.action,
            "threshold": bound.thresholds.get((guard, direction)),
            "unsure": {"band": bound.bands[guard, direction], "action": rule.unsure}
            if (guard, direction) in bound.bands
            else None,
            "budget_ms": policy.budget(guard),
            "on_error": {status: policy.on_error(rule, guard, status) for status in FAILURES},
        }
        for tier, guards in enumerate(bound.tiers.get(direction, ()))
        for guard in sorted(guards)
    ]


def table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The matrix as lines to print: direction, channel, surfaces, rules with their actions; the same ones together."""
    every = {row["surface"] for row in rows}
    surfaces: dict[tuple[str, str, str], list[str]] = {}
    for row in rows:
        told = ", ".join(dict.fromkeys(f"{each['rule']} ({each['action']})" for each in row["checks"]))
        surfaces.setdefault((row["direction"], row["channel"], told or "NOT GUARDED"), []).append(row["surface"])
    found = {key: "all" if set(named) == every else ", ".join(named) for key, named in surfaces.items()}
    width = max(len(each) for each in (*found.values(), "surfaces")) + 2
    lines = [f"{'direction':<11}{'channel':<13}{'surfaces':<{width}}rules"]
    for (direction, channel, rules), where in found.items():
        lines.append(f"{direction:<11}{channel:<13}{where:<{width}}{rules}")
    return lines
