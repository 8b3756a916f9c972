"""May this candidate replace what is served? Decided on the bounds of intervals, check by check, in one sentence.

A check that has not enough data has not passed. Its figures are those that an examination states (`suites/kinds.py`);
what it may pass on is the bound. Usefulness is compared item by item with what would be replaced (the
incumbent release; before the first release, the bare model inside the bundle).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import Field, model_validator

from tutelage.core.config import build, load_yaml
from tutelage.core.errors import ConfigError
from tutelage.core.records import Record, digest
from tutelage.evaluate.suite import Result
from tutelage.evaluate.suites.kinds import Ground, Metric, common
from tutelage.measure.intervals import upper_bound
from tutelage.measure.paired import error_of
from tutelage.measure.statistics import Interval, items_needed, non_inferior, undefined

Kind = Literal["non_inferior", "at_least", "at_most"]


class CheckRule(Record):
    """One line of a release policy."""

    id: str
    source: Literal["evaluation", "redteam"]
    """Which rows are read."""
    where: dict[str, str | list[str]]
    """Field of a result row -> the value (or values) it must have."""
    kind: Kind
    measure: Literal["value", "blocked"] = "value"
    """`value`: the row's figure (for attacks: 1 = it succeeded); `blocked`: 1 when a guard withheld the answer."""
    margin: float | None = None
    """non_inferior: how much worse it may be, with confidence, in the figure's own unit; which way is worse the figure
    knows (of bits per byte: more)."""
    bound: float | None = None
    """at_least, at_most: what the interval must clear."""
    min_n: int = 30
    coverage: float = Field(0.9, ge=0, le=1)
    """Share of the rows read that must have been measured, of the candidate and of what it would replace: what an
    endpoint or a judge did not answer is not known, and a check on the rest alone has not passed."""
    sentence: str
    """What is wrong when the check fails: completes "refused: the candidate ..."."""

    @model_validator(mode="after")
    def _complete(self) -> CheckRule:
        if (self.kind == "non_inferior") != (self.margin is not None):
            raise ValueError(f"{self.id}: `margin` goes with non_inferior, and only with it")
        if (self.kind != "non_inferior") != (self.bound is not None):
            raise ValueError(f"{self.id}: `bound` goes with at_least and at_most, and only with them")
        return self


class ReleasePolicy(Record):
    """What a release must show. A file that the safety lead signs."""

    version: int = 1
    level: float = 0.95
    checks: tuple[CheckRule, ...]
    production: str = ""
    """What a gate for real users would need beyond this; printed with every verdict."""

    @property
    def hash(self) -> str:
        return digest(self)


def read_policy(path: Path) -> ReleasePolicy:
    """Read a release policy. Raises ConfigError naming file and key."""
    policy = build(ReleasePolicy, load_yaml(path), file=path)
    names = [check.id for check in policy.checks]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"two checks bear the id {twice[0]!r}", file=path, key="checks")
    if not names:
        raise ConfigError("a policy without checks would promote anything", file=path, key="checks")
    return policy


class Check(Record):
    """One check, answered. `passed` None: not enough data."""

    id: str
    passed: bool | None
    figure: Interval
    """The candidate's figure, or its paired difference to the incumbent (positive: the candidate is better)."""
    limit: float
    n: int
    reason: str


class GateVerdict(Record):
    """Promote or refuse, with every check and the reason in one sentence."""

    promote: bool
    reason: str
    checks: tuple[Check, ...]
    policy: str
    against: str
    production: str = ""


class _Side(NamedTuple):
    """What one side shows to a check: key (suite, item, attack) -> row; `known` those that were measured."""

    asked: dict[str, Result]
    known: dict[str, Result]

    def rows(self, keys: Sequence[str]) -> list[Result]:
        return [self.known[key] for key in keys]

    def short(self, rule: CheckRule, asked: Collection[str]) -> str:
        """Why this side does not carry a check: of all that was asked too much was not measured here; empty where it
        does."""
        if len(self.known) >= rule.coverage * len(asked):
            return ""
        return f"{len(self.known)} of {len(asked)} answers were measured, needs {rule.coverage:.0%}"


def _side(rows: Sequence[Result], rule: CheckRule) -> _Side:
    asked: dict[str, Result] = {}
    for row in rows:
        fields: Mapping[str, Any] = {
            **row.slices,
            **row.model_dump(include=set(Result.model_fields) - {"scores", "slices"}),
        }
        wanted = {name: value if isinstance(value, list) else [value] for name, value in rule.where.items()}
        if all(str(fields.get(name)) in values for name, values in wanted.items()):
            if rule.measure == "blocked":
                held = None if row.outcome == "unknown" else float(row.outcome == "blocked")
                row = row.model_copy(update={"metric": "blocked", "value": held, "kind": "", "scores": {}})
            asked[f"{row.suite}/{row.item}/{row.attack or ''}"] = row
    known = {key: row for key, row in asked.items() if row.value is not None and row.outcome != "unknown"}
    return _Side(asked, known)


def _said(figure: Interval) -> str:
    if figure.value is None or figure.low is None or figure.high is None:
        return f"undefined: {figure.reason}"
    return f"{figure.value:.3f} [{figure.low:.3f}, {figure.high:.3f}], n={figure.n}"


def check(
    rule: CheckRule,
    candidate: Sequence[Result],
    incumbent: Sequence[Result],
    level: float,
    ground: Ground | None = None,
) -> Check:
    """Answer one check. `ground`: what figures need beside the rows, the items' texts and what people found of a judge;
    a figure that needs what is not there is undefined, and has not passed."""
    limit, ground = rule.margin if rule.margin is not None else rule.bound, ground or Ground({})
    assert limit is not None
    mine, theirs = _side(candidate, rule), _side(incumbent if rule.kind == "non_inferior" else (), rule)
    keys, asked = list(mine.known), {**theirs.asked, **mine.asked}
    lacking = mine.short(rule, asked)
    if rule.kind == "non_inferior":
        keys = [key for key in keys if key in theirs.known]
        if not lacking and theirs.short(rule, asked):
            lacking = f"of what it would replace {theirs.short(rule, asked)}"
    metric = common([*mine.asked.values(), *theirs.asked.values()])
    if metric is None:
        names = sorted({row.metric for side in (mine, theirs) for row in side.asked.values()})
        reason = f"it reads figures that have no common mean ({', '.join(names)}): each needs a check of its own"
        figure, passed = undefined(len(keys), reason, level=level), None
    elif rule.kind == "non_inferior":
        figure, passed, reason = _compared(metric, mine.rows(keys), theirs.rows(keys), limit, level, ground)
    else:
        figure, passed, reason = _alone(rule.kind, metric, mine.rows(keys), limit, level, ground)
    if len(keys) < rule.min_n:
        passed, reason = None, f"not enough data (n={len(keys)}, needs {rule.min_n})"
    elif lacking:
        passed, reason = None, f"not enough data ({lacking})"
    return Check(id=rule.id, passed=passed, figure=figure, limit=limit, n=len(keys), reason=reason)


def _compared(
    metric: Metric, mine: Sequence[Result], theirs: Sequence[Result], margin: float, level: float, ground: Ground
) -> tuple[Interval, bool | None, str]:
    """The candidate beside what it would replace, item by item: positive is better, whichever way is better."""
    gap = metric.difference(mine, theirs, ground, level=level).difference
    corpus = metric.sums is not None and metric.apart is None and metric.bounds is not None
    if not gap.defined and corpus and [each.output for each in mine] == [each.output for each in theirs]:
        gap = _unchanged(metric, mine, level)
    (new, _), (old, _) = metric.value(mine, ground), metric.value(theirs, ground)
    figure = metric.upward(gap, old, new)
    passed = non_inferior(figure, margin).passed
    reason = f"difference {_said(figure)}, may be down to -{margin:g}"
    error = error_of(figure)
    if passed is None and metric.apart is None and error and margin:
        deviation = error * math.sqrt(len(mine) / 2)  # of either side, were they unrelated
        needed = items_needed(margin, deviation, alpha=1 - level)
        reason += f"; some {needed} items would tell" if needed > len(mine) else ""
    return figure, passed, reason


def _unchanged(metric: Metric, rows: Sequence[Result], level: float) -> Interval:
    """The difference where every answer is what it was: as far as a share of others could still differ, exactly."""
    clusters = len({each.cluster for each in rows})
    assert metric.bounds is not None
    low, high = metric.bounds
    reach = (upper_bound(0, clusters, (1 + level) / 2) or 1.0) * (high - low)
    return Interval(
        value=0.0, low=-reach, high=reach, n=len(rows), clusters=clusters, level=level, method="same answers"
    )


def _alone(
    kind: Kind, metric: Metric, mine: Sequence[Result], bound: float, level: float, ground: Ground
) -> tuple[Interval, bool | None, str]:
    """The candidate by itself against a bound, with an interval that holds for sure where there is one."""
    figure, _ = metric.figure(mine, ground, level=level, sure=True)
    passed = None
    if figure.low is not None and figure.high is not None:
        passed = figure.low >= bound if kind == "at_least" else figure.high <= bound
    word = "at least" if kind == "at_least" else "at most"
    return figure, passed, f"{_said(figure)}, must be {word} {bound:g} with {level:.0%} confidence"


def decide(
    policy: ReleasePolicy,
    candidate: Mapping[str, Sequence[Result]],
    incumbent: Mapping[str, Sequence[Result]],
    *,
    against: str,
    ground: Ground | None = None,
) -> GateVerdict:
    """The verdict on a candidate. Both mappings hold rows by source (`evaluation`, `redteam`); `ground` is what their
    figures need beside them (see `check`). Pure."""
    checks = tuple(
        check(rule, candidate.get(rule.source, ()), incumbent.get(rule.source, ()), policy.level, ground)
        for rule in policy.checks
    )
    failed = [(rule, found) for rule, found in zip(policy.checks, checks, strict=True) if found.passed is False]
    unsure = [(rule, found) for rule, found in zip(policy.checks, checks, strict=True) if found.passed is None]
    if failed:
        rule, found = failed[0]
        more = f"; {len(failed) + len(unsure) - 1} more not passed" if len(failed) + len(unsure) > 1 else ""
        reason = f"refused: the candidate {rule.sentence} ({found.reason}){more}"
    elif unsure:
        rule, found = unsure[0]
        reason = f"refused: whether the candidate {rule.sentence} cannot be told: {found.reason}"
    else:
        reason = f"promoted: all {len(checks)} checks passed against {against}"
    return GateVerdict(
        promote=not failed and not unsure,
        reason=reason,
        checks=checks,
        policy=policy.hash,
        against=against,
        production=policy.production,
    )
