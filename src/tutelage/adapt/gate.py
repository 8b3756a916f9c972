"""May this candidate replace what is served? Decided on the bounds of intervals, check by check, in one sentence.

A check that has not enough data has not passed. Usefulness is compared item by item with what would be replaced (the
incumbent release; before the first release, the bare model inside the bundle).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from tutelage.core.config import build, load_yaml
from tutelage.core.errors import ConfigError
from tutelage.core.records import Record, digest
from tutelage.evaluate.suite import Result
from tutelage.evaluate.suites.judged import Agreement, corrected, corrected_difference
from tutelage.measure.statistics import Interval, Test, mean, non_inferior, paired, rate

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
    """non_inferior: how much worse it may be, with confidence."""
    bound: float | None = None
    """at_least, at_most: what the interval must clear."""
    min_n: int = 30
    coverage: float = Field(0.9, ge=0, le=1)
    """Share of the rows read that must have been measured: what an endpoint or a judge did not answer is not known,
    and a check on the rest alone has not passed."""
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


def _picked(rows: Sequence[Result], rule: CheckRule) -> tuple[dict[str, float], int]:
    """The rows a check reads: item (and attack) -> figure, and how many there are. What was not measured has none."""
    found: dict[str, float] = {}
    count = 0
    for row in rows:
        fields: Mapping[str, Any] = {
            **row.slices,
            **row.model_dump(include=set(Result.model_fields) - {"scores", "slices"}),
        }
        wanted = {name: value if isinstance(value, list) else [value] for name, value in rule.where.items()}
        if all(str(fields.get(name)) in values for name, values in wanted.items()):
            count += 1
            value = float(row.outcome == "blocked") if rule.measure == "blocked" else row.value
            if value is not None and row.outcome != "unknown":
                found[f"{row.suite}/{row.item}/{row.attack or ''}"] = value
    return found, count


def _clusters(rows: Sequence[Result]) -> dict[str, str]:
    return {f"{row.suite}/{row.item}/{row.attack or ''}": row.cluster for row in rows}


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
    (mine, rows), clusters = _picked(candidate, rule), _clusters(candidate)
    read = [row for row in candidate if f"{row.suite}/{row.item}/{row.attack or ''}" in mine]
    measured = _judge_of(read, rule, people or {})
    limit = rule.margin if rule.margin is not None else rule.bound
    assert limit is not None
    if rule.kind == "non_inferior":
        theirs, _ = _picked(incumbent, rule)
        items = sorted(set(mine) & set(theirs))
        sides = [mine[item] for item in items], [theirs[item] for item in items], [clusters[item] for item in items]
        if measured is None:
            figure = paired(*sides, level=level).difference
        else:
            figure = corrected_difference(*sides, measured, measured, level).difference
        lower_is_better = rule.measure == "blocked" or rule.source == "redteam"
        if lower_is_better and figure.value is not None and figure.low is not None and figure.high is not None:
            figure = figure.model_copy(update={"value": -figure.value, "low": -figure.high, "high": -figure.low})
        test: Test = non_inferior(figure, limit)
        passed, n = test.passed, len(items)
        reason = f"difference {_said(figure)}, may be down to -{limit:g}"
    else:
        items = sorted(mine)
        values, hang = [mine[item] for item in items], [clusters[item] for item in items]
        counted = set(values) <= {0.0, 1.0}  # F1 and chrF lie between
        figure = rate(values, hang, level=level) if counted else mean(values, hang, level=level, bounds=(0.0, 1.0))
        if measured is not None:
            figure = corrected(values, hang, measured, level)
        n = len(items)
        if figure.low is None or figure.high is None:
            passed = None
        else:
            passed = figure.low >= limit if rule.kind == "at_least" else figure.high <= limit
        word = "at least" if rule.kind == "at_least" else "at most"
        reason = f"{_said(figure)}, must be {word} {limit:g} with {level:.0%} confidence"
    if n < rule.min_n:
        passed, reason = None, f"not enough data (n={n}, needs {rule.min_n})"
    elif len(mine) < rule.coverage * rows:
        reason = f"not enough data ({len(mine)} of {rows} answers were measured, needs {rule.coverage:.0%})"
        passed = None
    return Check(id=rule.id, passed=passed, figure=figure, limit=limit, n=n, reason=reason)


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
