"""May this candidate replace what is served? Decided on the bounds of intervals, check by check, in one sentence.

A check that has not enough data has not passed. Usefulness is compared item by item with what would be replaced (the
incumbent release; before the first release, the bare model inside the bundle).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from pydantic import Field, model_validator

from tutelage.core.config import build, load_yaml
from tutelage.core.errors import ConfigError
from tutelage.core.records import Record, digest
from tutelage.evaluate.suite import Result
from tutelage.evaluate.suites.judged import Agreement, corrected, corrected_difference
from tutelage.evaluate.suites.kinds import Metric, named, on_one_scale
from tutelage.measure.sequences import betting
from tutelage.measure.statistics import (
    Floats,
    Interval,
    group,
    items_needed,
    linearised,
    mean,
    non_inferior,
    paired,
    rate,
    standard_error,
    undefined,
)

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

    def short(self, rule: CheckRule) -> str:
        """Why this side does not carry a check: too much of what was asked was not measured; empty where it does."""
        if len(self.known) >= rule.coverage * len(self.asked):
            return ""
        return f"{len(self.known)} of {len(self.asked)} answers were measured, needs {rule.coverage:.0%}"


def _side(rows: Sequence[Result], rule: CheckRule) -> _Side:
    asked: dict[str, Result] = {}
    for row in rows:
        fields: Mapping[str, Any] = {
            **row.slices,
            **row.model_dump(include=set(Result.model_fields) - {"scores", "slices"}),
        }
        wanted = {name: value if isinstance(value, list) else [value] for name, value in rule.where.items()}
        if all(str(fields.get(name)) in values for name, values in wanted.items()):
            asked[f"{row.suite}/{row.item}/{row.attack or ''}"] = row
    unmeasured = {key for key, row in asked.items() if row.outcome == "unknown"}
    if rule.measure == "value":
        unmeasured |= {key for key, row in asked.items() if row.value is None}
    return _Side(asked, {key: row for key, row in asked.items() if key not in unmeasured})


def _metric(rule: CheckRule, *sides: _Side) -> Metric | None:
    """What a check's figures are; None where their rows are on scales that have no common mean."""
    if rule.measure == "blocked":
        return named("blocked")
    found = {name: named(name) for side in sides for name in sorted({row.metric for row in side.asked.values()})}
    if not on_one_scale(found.values()):
        return None
    return next(iter(found.values()), Metric(""))


def _values(side: _Side, keys: Sequence[str], metric: Metric, weighed: _Side) -> Floats:
    """One value per item whose mean is the figure; how much each counts, as a text is long, `weighed` says."""
    rows = [side.known[key] for key in keys]
    if metric.name == "blocked":
        return np.array([float(row.outcome == "blocked") for row in rows])
    values = np.array([float(row.value or 0.0) for row in rows])
    weights = np.array([weighed.known[key].scores.get(metric.weight, 0.0) for key in keys])
    return linearised(values * weights, weights) if len(keys) and (weights > 0).all() else values


def _figure(values: Floats, clusters: Sequence[str], metric: Metric, level: float) -> Interval:
    """The mean of the items, with an interval that holds: rates are exact; what lies between bounds is bet on by
    clusters' sums, so scaled that their mean is the items', for t covers too little of what is mostly 0; the rest has
    t."""
    if metric.bounds is None:
        return mean(values, clusters, level)
    if metric.bounds == (0.0, 1.0) and set(values.tolist()) <= {0.0, 1.0}:
        return rate(values, clusters, level)
    codes, count = group(clusters, len(values))
    share = count / len(values)
    most = share * float(np.bincount(codes, minlength=count).max(initial=1))
    sums = np.asarray(share * np.bincount(codes, weights=values, minlength=count), dtype=np.float64)
    told = betting(sums, (most * metric.bounds[0], most * metric.bounds[1]), level, anytime=False)
    return told.model_copy(update={"n": len(values), "clusters": count})


People = Mapping[str, Sequence[Agreement]]
"""Suite of open-ended items -> answers that people judged as well as the judge."""


def _judge_of(rows: Sequence[Result], rule: CheckRule, people: People) -> Sequence[Agreement] | None:
    """What people found of the judge whose word a check reads; None where it reads no judge's. Suites have their own
    judge's error each: of several, or of judged and other items together, it is not known."""
    found = {(row.suite, row.kind == "judged") for row in rows if rule.measure == "value"}
    if not any(by_judge for _, by_judge in found):
        return None
    return people.get(next(iter(found))[0], ()) if len(found) == 1 else ()


def _said(figure: Interval) -> str:
    if figure.value is None or figure.low is None or figure.high is None:
        return f"undefined: {figure.reason}"
    return f"{figure.value:.3f} [{figure.low:.3f}, {figure.high:.3f}], n={figure.n}"


def check(
    rule: CheckRule,
    candidate: Sequence[Result],
    incumbent: Sequence[Result],
    level: float,
    people: People | None = None,
) -> Check:
    """Answer one check; what a judge said is read with the error that `people` found it to have."""
    limit = rule.margin if rule.margin is not None else rule.bound
    assert limit is not None
    mine = _side(candidate, rule)
    if rule.kind == "non_inferior":
        theirs = _side(incumbent, rule)
        keys, lacking = sorted(set(mine.known) & set(theirs.known)), mine.short(rule)
        if not lacking and theirs.short(rule):
            lacking = f"of what it would replace {theirs.short(rule)}"
        figure, passed, reason = _compared(rule, mine, theirs, keys, limit, level, people or {})
    else:
        keys, lacking = sorted(mine.known), mine.short(rule)
        figure, passed, reason = _alone(rule, mine, keys, limit, level, people or {})
    if len(keys) < rule.min_n:
        passed, reason = None, f"not enough data (n={len(keys)}, needs {rule.min_n})"
    elif lacking:
        passed, reason = None, f"not enough data ({lacking})"
    return Check(id=rule.id, passed=passed, figure=figure, limit=limit, n=len(keys), reason=reason)


def _mixed(n: int, level: float, *sides: _Side) -> tuple[Interval, None, str]:
    names = sorted({row.metric for side in sides for row in side.asked.values()})
    reason = f"it reads figures that have no common mean ({', '.join(names)}): each needs a check of its own"
    return undefined(n, reason, level=level), None, reason


def _compared(
    rule: CheckRule, mine: _Side, theirs: _Side, keys: Sequence[str], margin: float, level: float, people: People
) -> tuple[Interval, bool | None, str]:
    """The candidate beside what it would replace, item by item: positive is better, whichever way is better."""
    metric = _metric(rule, mine, theirs)
    if metric is None:
        return _mixed(len(keys), level, mine, theirs)
    new, old = _values(mine, keys, metric, mine), _values(theirs, keys, metric, mine)
    first, second = (new, old) if metric.higher else (old, new)
    clusters = [mine.known[key].cluster for key in keys]
    measured = _judge_of([mine.known[key] for key in keys], rule, people)
    if measured is None:
        figure = paired(first, second, clusters, level, metric.bounds).difference
    else:
        figure = corrected_difference(first.tolist(), second.tolist(), clusters, measured, measured, level).difference
    passed = non_inferior(figure, margin).passed
    reason = f"difference {_said(figure)}, may be down to -{margin:g}"
    error = standard_error(first - second, clusters)
    if passed is None and figure.defined and measured is None and error and margin:
        deviation = error * math.sqrt(len(keys) / 2)  # of either side, were they unrelated
        needed = items_needed(margin, deviation, alpha=1 - level)
        reason += f"; some {needed} items would tell" if needed > len(keys) else ""
    return figure, passed, reason


def _alone(
    rule: CheckRule, mine: _Side, keys: Sequence[str], bound: float, level: float, people: People
) -> tuple[Interval, bool | None, str]:
    """The candidate by itself against a bound."""
    metric = _metric(rule, mine)
    if metric is None:
        return _mixed(len(keys), level, mine)
    rows = [mine.known[key] for key in keys]
    values, clusters = _values(mine, keys, metric, mine), [row.cluster for row in rows]
    measured = _judge_of(rows, rule, people)
    if measured is None:
        figure = _figure(values, clusters, metric, level)
    else:
        figure = corrected(values.tolist(), clusters, measured, level)
    passed = None
    if figure.low is not None and figure.high is not None:
        passed = figure.low >= bound if rule.kind == "at_least" else figure.high <= bound
    word = "at least" if rule.kind == "at_least" else "at most"
    return figure, passed, f"{_said(figure)}, must be {word} {bound:g} with {level:.0%} confidence"


def decide(
    policy: ReleasePolicy,
    candidate: Mapping[str, Sequence[Result]],
    incumbent: Mapping[str, Sequence[Result]],
    *,
    against: str,
    people: People | None = None,
) -> GateVerdict:
    """The verdict on a candidate. Both mappings hold rows by source (`evaluation`, `redteam`); `people` judged some
    answers of open-ended suites as well as the judge did. Pure."""
    checks = tuple(
        check(rule, candidate.get(rule.source, ()), incumbent.get(rule.source, ()), policy.level, people)
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
