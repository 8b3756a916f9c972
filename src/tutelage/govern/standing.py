"""What a model can do, how far that can be relied upon and whom it harms: one table, a row per figure, per target.

Read from the summaries of evaluations and of red-team runs, which share one schema of rows. Nothing is measured here;
what was not measured, or could not be, is a row without a value and with its reason, and never a zero.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from tutelage.evaluate.reliability import ALL
from tutelage.evaluate.robustness import WORST
from tutelage.evaluate.suites.kinds import named

AREAS = ("capability", "reliability", "robustness", "refusal", "harm", "groups")
"""The parts of the table, in its order."""
NOT_ATTACKED = "not attacked"


class Line(NamedTuple):
    """One figure of one target. `better` is `higher` or `lower`; `coverage` the share of what was asked that could be
    measured (None: not stated)."""

    area: str
    what: str
    target: str
    figure: dict[str, Any]
    better: str
    coverage: float | None = None
    note: str = ""


def _figure(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: row.get(name) for name in ("value", "low", "high", "n", "reason")}


def _rows(value: Any) -> list[Mapping[str, Any]]:
    return [each for each in value if isinstance(each, Mapping)] if isinstance(value, list | tuple) else []


def _part(row: Mapping[str, Any], left: str, asked: str) -> float | None:
    count = row.get(asked)
    return None if not count else 1.0 - float(row.get(left) or 0) / float(count)


def capability(summary: Mapping[str, Any]) -> list[Line]:
    """Every suite and cell by its first metric."""
    return [
        Line(
            "capability",
            f"{cell.get('suite')} {cell.get('cell') or ''}".strip() + f" ({cell.get('metric')})",
            str(cell.get("target")),
            _figure(cell),
            "higher" if named(str(cell.get("metric"))).higher else "lower",
            _part(cell, "unmeasured", "asked"),
        )
        for cell in _rows(summary.get("cells"))
        if cell.get("headline", True)
    ]


def reliability(summary: Mapping[str, Any]) -> list[Line]:
    """Over all suites: calibration, selection, agreement of an answer with itself, determinism."""
    told = summary.get("reliability") or {}
    found: list[Line] = []
    names = {"choices": "choices and labels", "answers": "answers in words"}
    for row in (each for each in _rows(told.get("calibration")) if each.get("suite") is None):
        of, coverage = names.get(str(row.get("source")), str(row.get("source"))), row.get("coverage")
        target = str(row.get("target"))
        for key, what in (
            ("ece", "calibration error"),
            ("ece_after", "calibration error under a temperature"),
            ("aurc", "area under risk and coverage"),
        ):
            found.append(Line("reliability", f"{what}, {of}", target, _figure(row.get(key) or {}), "lower", coverage))
    for row in (each for each in _rows(told.get("consistency")) if each.get("suite") is None):
        what = "agreement with itself, " + ("drawn again" if row.get("how") == "seeds" else "in other words")
        figure = _figure(row.get("agreement") or {})
        found.append(Line("reliability", what, str(row.get("target")), figure, "higher", row.get("coverage")))
    for row in (each for each in _rows(told.get("determinism")) if each.get("suite") is None):
        what = f"answers that differ, {row.get('how')}"
        coverage = float(row.get("n") or 0) / float(row.get("asked") or 1)
        found.append(Line("reliability", what, str(row.get("target")), _figure(row), "lower", coverage))
    return found


def robustness(summary: Mapping[str, Any]) -> list[Line]:
    """What each form costs over all suites, and each suite's worst case (beyond luck)."""
    found: list[Line] = []
    for row in _rows(summary.get("robustness")):
        target, suite, family = str(row.get("target")), row.get("suite"), str(row.get("family"))
        coverage = _part(row, "unmeasured", "asked")
        if family == WORST and (suite is None or (row.get("excess") or {}).get("value") is not None):
            where = suite or ALL
            note = "beyond luck" if row.get("drawn") else "greedy answers"
            for key, what in (("mean_loss", "loss over all forms"), ("excess", "loss in the worst case")):
                figure = _figure(row.get(key) or {})
                found.append(Line("robustness", f"{what}, {where}", target, figure, "lower", coverage, note))
        elif suite is None:
            out = row.get("share_left_out")
            note = f"{out:.0%} of the forms left out" if out else ""
            found.append(Line("robustness", f"loss by {family}", target, _figure(row), "lower", coverage, note))
    return found


def harm(summary: Mapping[str, Any]) -> list[Line]:
    """Over-refusal, harmful compliance, attacks that succeeded, harmful content, from a red-team run."""
    found: list[Line] = []
    for row in _rows(summary.get("benign")):
        coverage = float(row.get("n") or 0) / float(row.get("asked") or 1)
        found.append(
            Line("refusal", "harmless requests refused", str(row.get("target")), _figure(row), "lower", coverage)
        )
    asked: dict[tuple[str, str], tuple[float, float]] = {}
    for row in _rows(summary.get("matrix")):
        if row.get("rule") is None:
            kind = "plain requests answered" if row.get("attack") == "direct" else "attacks that succeeded"
            known, all_ = asked.get((str(row.get("target")), kind), (0.0, 0.0))
            asked[str(row.get("target")), kind] = known + float(row.get("n") or 0), all_ + float(row.get("asked") or 0)
    called = {"plain requests answered": "harmful requests complied with"}
    for row in _rows(summary.get("overall")):
        what, target = str(row.get("what")), str(row.get("target"))
        known, all_ = asked.get((target, what), (0.0, 0.0))
        if what != "benign requests refused":
            coverage_ = known / all_ if all_ else None
            found.append(Line("harm", called.get(what, what), target, _figure(row), "lower", coverage_))
    for row in _rows(summary.get("contents")):
        coverage = float(row.get("n") or 0) / float(row.get("asked") or 1)
        what = f"answers to harmless requests: {row.get('measure')}"
        note = "corrected for the judge's error" if row.get("value") is not None else ""
        found.append(Line("harm", what, str(row.get("target")), _figure(row), "lower", coverage, note))
    return found


def gaps(summary: Mapping[str, Any]) -> list[Line]:
    """The largest gap between groups of people, by attribute and measure."""
    found: list[Line] = []
    for row in _rows(summary.get("groups")):
        between, worst = row.get("between"), row.get("worst")
        note = f"{between[0]} and {between[1]}" if between and row.get("value") else ""
        if note and isinstance(worst, Mapping):
            note += f"; worst: {worst.get('group')}"
        p = row.get("p_holm")
        note += f"; p {p:.2g} (Holm)" if isinstance(p, float) and note else ""
        what = f"{row.get('attribute')}: {row.get('measure')}"
        found.append(Line("groups", what, str(row.get("target")), _figure(row), "lower", row.get("coverage"), note))
    return found


def lines(evaluations: Iterable[Mapping[str, Any]], redteams: Iterable[Mapping[str, Any]]) -> list[Line]:
    """All figures of the targets of these evaluations, with what red-team runs found of the same ones (by id).

    A target that no red team examined has a line for refusal and harm that says so.
    """
    found: list[Line] = []
    known: dict[str, str] = {}
    for summary in evaluations:
        known |= {str(each.get("id")): str(each.get("target")) for each in _rows(summary.get("targets"))}
        found += [*capability(summary), *reliability(summary), *robustness(summary), *gaps(summary)]
    attacked: set[str] = set()
    for summary in redteams:
        named = {str(each.get("target")): str(each.get("id")) for each in _rows(summary.get("targets"))}
        for line in (*harm(summary), *gaps(summary)):
            target = known.get(named.get(line.target, ""), line.target)
            attacked.add(target)
            found.append(line._replace(target=target))
    blank = {"value": None, "low": None, "high": None, "n": 0, "reason": NOT_ATTACKED}
    for target in dict.fromkeys(known.values()):
        if target not in attacked:
            found.append(Line("refusal", "harmless requests refused", target, blank, "lower", 0.0))
            found.append(Line("harm", "harmful requests complied with", target, blank, "lower", 0.0))
    return sorted(found, key=lambda line: AREAS.index(line.area))


def grid(found: Sequence[Line]) -> tuple[list[str], dict[str, dict[str, dict[str, Line]]]]:
    """(targets, area -> what -> target -> line), in order of appearance."""
    table: dict[str, dict[str, dict[str, Line]]] = {}
    for line in found:
        table.setdefault(line.area, {}).setdefault(line.what, {})[line.target] = line
    return list(dict.fromkeys(line.target for line in found)), table
