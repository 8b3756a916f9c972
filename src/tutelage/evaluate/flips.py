"""Item by item, what one model has gained and lost against another: which items were fixed, which were broken."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from scipy.special import betaln

from tutelage.core.records import Record
from tutelage.evaluate.suite import Result
from tutelage.measure.statistics import Interval, mcnemar, paired, undefined

RIGHT = 0.5
"""A value above this counts as right."""


class Flips(Record):
    """The items that changed sides between two models on the same items."""

    before: str
    after: str
    suite: str | None = None
    """None: all suites together."""
    n: int
    """Items measured on both sides."""
    unmeasured: int = 0
    """Items that one side or the other did not answer: no flip, and no evidence of none."""
    fixed: tuple[str, ...] = ()
    broken: tuple[str, ...] = ()
    difference: Interval
    """Share right after minus before, by clusters."""
    p: float | None
    """Exact McNemar; None when nothing flipped."""
    evidence: float
    """An e-value against `fixed and broken are equally likely`: it may be looked at after every item, and a new look
    at 1 / alpha or more refutes that at level alpha however often was looked before."""


def evidence(fixed: int, broken: int) -> float:
    """2^n B(f + 1, b + 1): the likelihood of the flips under all shares equally, over that under one half.

    A martingale in the flips as they come when either way is as likely (Ville's inequality; Robbins 1970).
    """
    logarithm = (fixed + broken) * math.log(2) + float(betaln(fixed + 1, broken + 1))
    return math.exp(min(logarithm, 700.0))


def compared(before: Iterable[Result], after: Iterable[Result], names: tuple[str, str], suite: str | None) -> Flips:
    """Flips between two models' results on the same items. Attack rows (guarded or not) are no items of a suite."""
    first = {(each.suite, each.item): each for each in before if suite in (None, each.suite)}
    second = {(each.suite, each.item): each for each in after if suite in (None, each.suite)}
    both = sorted(set(first) & set(second))
    known = [key for key in both if first[key].value is not None and second[key].value is not None]
    was = [float((first[key].value or 0.0) > RIGHT) for key in known]
    now = [float((second[key].value or 0.0) > RIGHT) for key in known]
    clusters = [f"{first[key].suite}/{first[key].cluster}" for key in known]
    fixed = tuple(key[1] for key, old, new in zip(known, was, now, strict=True) if new > old)
    broken = tuple(key[1] for key, old, new in zip(known, was, now, strict=True) if new < old)
    nothing = undefined(0, "no item was measured on both sides")
    return Flips(
        before=names[0],
        after=names[1],
        suite=suite,
        n=len(known),
        unmeasured=len(set(first) | set(second)) - len(known),
        fixed=fixed,
        broken=broken,
        difference=paired(now, was, clusters).difference if known else nothing,
        p=mcnemar(now, was).p if known else None,
        evidence=evidence(len(fixed), len(broken)),
    )


def between(results: Sequence[Result], pairs: Sequence[tuple[str, str]]) -> list[Flips]:
    """Flips of each (before, after): of all suites together, then suite by suite."""
    rows: dict[str, list[Result]] = {}
    for each in results:
        rows.setdefault(each.target, []).append(each)
    found = []
    for before, after in pairs:
        one, two = rows.get(before, []), rows.get(after, [])
        for suite in (None, *sorted({each.suite for each in one} & {each.suite for each in two})):
            found.append(compared(one, two, (before, after), suite))
    return found


def told(flips: Sequence[Flips]) -> list[dict[str, Any]]:
    """For a manifest's metrics: counts of all suites together, without the ids."""
    rows: list[dict[str, Any]] = []
    for each in flips:
        if each.suite is None:
            kept: Mapping[str, Any] = each.model_dump(mode="json", exclude={"fixed", "broken", "suite"})
            rows.append({**kept, "fixed": len(each.fixed), "broken": len(each.broken)})
    return rows
