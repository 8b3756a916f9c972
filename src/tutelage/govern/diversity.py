"""Who judged what, by groups of those who consented: never a person, nor a group small enough to be one.

What keeps single people out of the figures (k = 5):
- A group of fewer than k people is not shown. Nor does the rest of those who answered (small groups, and people who
  said nothing) ever number 1 to k - 1: the smallest shown group goes as well, so that subtraction tells nothing.
- One attribute at a time: no two are ever crossed. If all who answered are one group, that is not shown either.
- Counts and shares are rounded to fives at random (Fellegi 1975), by a key and the group's members, so that the same
  group is always shown the same and two that differ by one person are not told apart. Other figures are given in
  tenths, at most 0.9 either way: that all of a group and none of another chose an answer would tell who is in which.
- A report is made by hand and kept in the ledger. Another one is made only when at least k people have answered, or
  changed or withdrawn what they said, so that no two reports differ by one person.

This makes it hard, not impossible: who holds single answers beside these figures may guess better than by chance.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from tutelage.core.errors import ConfigError, UsageError
from tutelage.core.records import Record
from tutelage.feedback.votes import scales_of
from tutelage.govern import disagreement
from tutelage.measure.statistics import Interval
from tutelage.store import answers, ledger, profiles, tasks
from tutelage.store.engine import Reader, Store, now

K = 5
"""A group of fewer people is not shown."""
ACT = "people.report"
MOST = 50
"""Findings of each sort that a report keeps."""


class Group(Record):
    """One value of an attribute: its people, and the share of all answers that they gave."""

    value: str
    people: int | None
    """Rounded; None for a group that is wanted and has too few people to be shown, or none."""
    share: float | None
    target: float | None = None
    missing: int | None = None
    """About how many more answers of this group would reach the target."""


class Attribute(Record):
    """Who answered, by one attribute. What no shown group gave was given by others, or by people who did not say."""

    attribute: str
    groups: tuple[Group, ...]
    reason: str | None = None


class Agreed(Record):
    """How far two groups agree on one question: within each, between them, and the first less the second."""

    attribute: str
    question: str
    first: str
    second: str
    within_first: Interval
    within_second: Interval
    between: Interval
    gap: Interval


class Winner(Record):
    """A task whose most chosen answer depends on the group."""

    attribute: str
    task: str
    first: str
    second: str
    winner_first: int
    winner_second: int
    difference: Interval
    """Share of the first group that chose its winner, minus the share of the second that did."""
    p: float


class Report(Record):
    """Who judged in one project, and where groups differ. Simulated, replayed and live people are never pooled."""

    project: str
    kind: str
    at: int
    attributes: tuple[Attribute, ...]
    agreement: tuple[Agreed, ...]
    winners: tuple[Winner, ...]
    compared: int
    """Comparisons of two groups on one task that were made."""


def targets(settings: Mapping[str, object]) -> dict[str, dict[str, float]]:
    """The wanted shares of answers in a project's settings: `coverage: {attribute: {group: share}}`."""
    wanted = settings.get("coverage") or {}
    found: dict[str, dict[str, float]] = {}
    if not isinstance(wanted, Mapping):
        raise ConfigError("expected attributes with shares of groups", key="coverage")
    for attribute, shares in wanted.items():
        where = f"coverage.{attribute}"
        if attribute not in profiles.QUESTIONS:
            raise ConfigError(f"nobody is asked this; one of {', '.join(profiles.ATTRIBUTES)}", key=where)
        if not isinstance(shares, Mapping) or not all(
            isinstance(each, int | float) and not isinstance(each, bool) and 0 < each < 1 for each in shares.values()
        ):
            raise ConfigError("a share lies between 0 and 1", key=where)
        if sum(shares.values()) > 1 + 1e-9:
            raise ConfigError("the shares add up to more than 1", key=where)
        found[str(attribute)] = {profiles.spelled(str(group)): float(share) for group, share in shares.items()}
    return found


def publish(store: Store, project: str, by: str, kind: str = "live") -> Report:
    """Make a report and keep it in the ledger; gives back the last one if nothing has happened since.

    Raises UsageError while fewer than K people have answered or changed what they said.
    """
    where, at = tasks.get_project(store, project), now()
    before = latest(store, project, kind)
    given = answers.read(store, project, people=kind)
    if before is not None:
        people = {each.person for each in answers.read(store, project, people=kind, newest=False)}
        fresh = {each.person for each in given if each.at > before.at}
        fresh |= profiles.changed_since(store, people, before.at)
        if not fresh:
            return before
        if len(fresh) < K:
            raise UsageError(
                f"fewer than {K} people have answered or changed anything since the last report, so it stands",
                todo="Two reports that differ by a person or two would tell who they are",
            )
    made = make(store, project, given, targets(where.settings), kind=kind, at=at)
    ledger.record(store, by, ACT, f"{where.id}/{kind}", made.model_dump(mode="json"))
    return made


def latest(store: Reader, project: str, kind: str = "live") -> Report | None:
    """The report of a project that was made last."""
    found = ledger.acts(store, ACT, f"{tasks.get_project(store, project).id}/{kind}", limit=1)
    return Report.model_validate(found[0].body) if found else None


def make(
    store: Reader,
    project: str,
    given: Sequence[answers.Annotation],
    wanted: Mapping[str, Mapping[str, float]],
    *,
    kind: str = "live",
    at: int = 0,
    attributes: Iterable[str] = profiles.ATTRIBUTES,
) -> Report:
    """A report on these answers. Not to be shown beside an earlier one: `publish` sees to that."""
    amount = Counter(each.person for each in given)
    said = disagreement.rated(given)
    groups = {name: shown(profiles.members(store, name, set(amount)), len(amount)) for name in attributes}
    agreed = [
        _agreed(name, disagreement.agreement(question, ratings, groups[name], first, second))
        for name in groups
        for first, second in itertools.combinations(sorted(groups[name]), 2)
        for question, ratings in said.items()
    ]
    scales = scales_of(tasks.forms(store, sorted({each.form for each in given})))
    depends, compared = disagreement.depending(disagreement.choices(given, scales), groups, K)
    return Report(
        project=project,
        kind=kind,
        at=at or now(),
        attributes=tuple(
            _attribute(store, project, name, groups[name], amount, wanted.get(name, {})) for name in groups
        ),
        agreement=tuple(sorted(agreed, key=_apart)[:MOST]),
        winners=tuple(_winner(each) for each in depends[:MOST]),
        compared=compared,
    )


def _apart(each: Agreed) -> tuple[float, str, str]:
    """Those groups first that surely differ; those of which too little is known last."""
    return (math.inf if each.gap.low is None else -each.gap.low, each.attribute, each.question)


def shown(members: Mapping[str, Collection[str]], answered: int, k: int = K) -> dict[str, frozenset[str]]:
    """The groups that may be shown, of `answered` people in all: see the head of this file."""
    kept = sorted((value for value in members if len(members[value]) >= k), key=lambda value: -len(members[value]))
    while kept:
        rest = answered - sum(len(members[value]) for value in kept)
        if rest >= k or (rest == 0 and len(kept) > 1):
            break
        kept.pop()
    return {value: frozenset(members[value]) for value in sorted(kept)}


def _attribute(
    store: Reader,
    project: str,
    name: str,
    groups: Mapping[str, Collection[str]],
    amount: Mapping[str, int],
    wanted: Mapping[str, float],
) -> Attribute:
    total = sum(amount.values())
    found = []
    for value, ids in groups.items():
        mark = f"{project}/{name}/{value}/{','.join(sorted(ids))}"
        exact = sum(amount[person] for person in ids)
        share = min(1.0, _rounded(store, 20 * exact / total, f"{mark}/{exact}/{total}") / 20)
        target = wanted.get(value)
        missing = None if target is None else 5 * math.ceil(max(0.0, total * (target - share) / (1 - target)) / 5)
        people = 5 * _rounded(store, len(ids) / 5, mark)
        found.append(Group(value=value, people=people, share=share, target=target, missing=missing))
    hidden = [
        Group(value=value, people=None, share=None, target=target)
        for value, target in wanted.items()
        if value not in groups
    ]
    none = None if groups else f"not enough data: no group of {K} people can be shown without telling who is in it"
    return Attribute(attribute=name, groups=(*found, *hidden), reason=none)


def _rounded(store: Reader, value: float, mark: str) -> int:
    """One of the two whole numbers beside a value, at random so that the mean is kept; the same for the same mark."""
    chance = int(store.keys.mark("rounding", mark)[:12], 16) / 16**12
    return math.floor(value) + (chance < value - math.floor(value))


def _agreed(attribute: str, each: disagreement.Agreement) -> Agreed:
    return Agreed(
        attribute=attribute,
        question=each.question,
        first=each.first,
        second=each.second,
        within_first=_coarse(each.within[0]),
        within_second=_coarse(each.within[1]),
        between=_coarse(each.between),
        gap=_coarse(each.gap),
    )


def _winner(each: disagreement.Depends) -> Winner:
    return Winner(
        attribute=each.attribute,
        task=each.task,
        first=each.first,
        second=each.second,
        winner_first=each.winners[0],
        winner_second=each.winners[1],
        difference=_coarse(each.difference),
        p=math.ceil(each.p * 1000) / 1000,
    )


def _coarse(interval: Interval) -> Interval:
    """An interval in tenths, its ends rounded outwards and nothing beyond 0.9, and its n in fives."""

    def tenths(value: float | None, round_: Callable[[float], int]) -> float | None:
        return None if value is None else max(-9, min(9, round_(value * 10))) / 10

    return interval.model_copy(
        update={
            "value": tenths(interval.value, round),
            "low": tenths(interval.low, math.floor),
            "high": tenths(interval.high, math.ceil),
            "n": 5 * round(interval.n / 5),
        }
    )
