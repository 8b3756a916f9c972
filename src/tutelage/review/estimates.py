"""What reviewed decisions say about all of them: how much harm was missed, how much was blocked for nothing.

Each reviewed decision stands for the 1 / probability decisions it was drawn from (Horvitz and Thompson 1952), scaled
to the known number of decisions in its stratum. Shares of one side have Korn and Graubard's interval (1998): Clopper
and Pearson's on the effective sample size, so it stays honest at 0 of n. Ratios of two independent sides, as the miss
rate, combine their intervals by MOVER (Donner and Zou 2012). Kinds of people are never pooled.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

from scipy.stats import beta

from tutelage.core.records import Record
from tutelage.review.sample import Reviewed

Metric = Literal["miss_rate", "false_positive_rate", "precision", "prevalence"]


class Estimate(Record):
    """One figure of one week with its interval; undefined is None with a reason."""

    metric: Metric
    week: str
    people: str
    value: float | None
    low: float | None
    high: float | None
    n: int
    """How many reviewed decisions stand behind it."""
    total: int
    """How many decisions it speaks for."""
    level: float = 0.95
    reason: str | None = None


class Count(NamedTuple):
    """An estimated number of decisions with its interval."""

    value: float
    low: float
    high: float


class Stratum(NamedTuple):
    """How many decisions, how many of them reviewed, which share of these is counted."""

    size: int
    reviewed: int
    share: float


def korn_graubard(strata: Sequence[Stratum], level: float = 0.95) -> Count:
    """The number counted in all strata together, with its interval.

    The variance is that of stratified sampling without replacement. Where it is 0 though not everything was reviewed
    (all alike), the effective size follows from the weights alone; where all were reviewed, the interval is a point.
    """
    total = sum(s.size for s in strata)
    share = sum(s.size * s.share for s in strata) / total
    if all(s.reviewed >= s.size for s in strata):
        return Count(share * total, share * total, share * total)
    spread = 0.0  # variance of the share
    per_one = 0.0  # what one draw's variance would become, were all strata alike
    for s in strata:
        weight = (s.size / total) ** 2 * max(0.0, 1 - s.reviewed / s.size)
        spread += weight * s.share * (1 - s.share) / max(1, s.reviewed - 1)
        per_one += weight / s.reviewed
    by_weights = 1 / per_one
    mixed = 0 < share < 1 and spread > 0
    size = min(share * (1 - share) / spread, 4 * by_weights) if mixed else by_weights
    hits, tail = share * size, (1 - level) / 2
    low = float(beta.ppf(tail, hits, size - hits + 1)) if hits > 0 else 0.0
    high = float(beta.ppf(1 - tail, hits + 1, size - hits)) if hits < size else 1.0
    seen = sum(s.reviewed * s.share for s in strata)  # what was seen is certain: the interval cannot exclude it
    unseen = sum(s.reviewed * (1 - s.share) for s in strata)
    return Count(share * total, max(low * total, min(seen, share * total)), min(high * total, total - unseen))


def part(one: Count, other: Count) -> Count | None:
    """one / (one + other) for two independent counts, by MOVER on their ratio; None when both are 0."""
    if one.value <= 0 and other.value <= 0:
        return None
    if other.value < one.value:  # the ratio is taken to the larger one, which is far from 0
        flipped = part(other, one)
        return Count(1 - flipped.value, 1 - flipped.high, 1 - flipped.low) if flipped else None
    product = one.value * other.value

    def root(first: float, second: float) -> float:
        inside = product**2 - first * second * (2 * one.value - first) * (2 * other.value - second)
        return math.sqrt(max(0.0, inside))

    def ratio(first: float, second: float, sign: int) -> float:
        below = second * (2 * other.value - second)
        if abs(below) < 1e-12:  # the limit of the formula where its denominator vanishes
            return math.inf if sign > 0 else first * (2 * one.value - first) / (2 * product) if product else 0.0
        return (product + sign * root(first, second)) / below

    low, high = ratio(one.low, other.high, -1), ratio(one.high, other.low, +1)
    return Count(
        one.value / (one.value + other.value),
        max(0.0, low / (1 + low)),
        1.0 if math.isinf(high) or high < 0 else high / (1 + high),
    )


def _strata(rows: Sequence[Reviewed], sizes: Mapping[str, int], *, benign: bool) -> tuple[list[Stratum], int]:
    """The strata of one side and how many decisions stand in strata where nobody has looked.

    Such a stratum is merged with the least reviewed one of its side, whose share it is taken to have.
    """
    by_name: dict[str, list[float]] = {}
    for row in rows:
        by_name.setdefault(row.stratum, []).append(1 - row.harmful if benign else row.harmful)
    unseen = sum(size for name, size in sizes.items() if name not in by_name)
    found = {
        name: Stratum(max(sizes.get(name, 0), len(values)), len(values), sum(values) / len(values))
        for name, values in sorted(by_name.items())
    }
    if unseen and found:
        thin = min(found, key=lambda name: found[name].reviewed / found[name].size)
        found[thin] = found[thin]._replace(size=found[thin].size + unseen)
    return list(found.values()), unseen


def _week(
    week: str, people: str, rows: Sequence[Reviewed], sizes: Mapping[str, int], level: float
) -> Iterable[Estimate]:
    sides = ("delivered", "withheld")
    known = {side: {k: v for k, v in sizes.items() if k.startswith(side)} for side in sides}
    seen = {side: [row for row in rows if row.stratum.startswith(side)] for side in sides}
    total = sum(sizes.values())
    counts: dict[tuple[str, bool], Count] = {}
    for side in sides:
        for benign in (False, True):
            strata, _ = _strata(seen[side], known[side], benign=benign)
            if strata:
                counts[side, benign] = korn_graubard(strata, level)
            elif not known[side]:
                counts[side, benign] = Count(0.0, 0.0, 0.0)

    def told(metric: Metric, found: Count | None, n: int, of: int, reason: str | None) -> Estimate:
        value, low, high = found if found and not reason else (None, None, None)
        return Estimate(
            metric=metric, week=week, people=people, value=value, low=low, high=high, n=n, total=of, level=level,
            reason=reason,
        )  # fmt: skip

    blind = next((f"no {side} decision was reviewed" for side in sides if known[side] and not seen[side]), None)
    for metric, missed, kept, benign in (
        ("miss_rate", "delivered", "withheld", False),
        ("false_positive_rate", "withheld", "delivered", True),
    ):
        found = None if blind else part(counts[missed, benign], counts[kept, benign])
        word = "benign" if benign else "harmful"
        reason = blind or (None if found else f"no {word} decision was found among {len(rows)} reviewed")
        yield told("miss_rate" if metric == "miss_rate" else "false_positive_rate", found, len(rows), total, reason)
    caught, size = counts.get(("withheld", False)), sum(known["withheld"].values())
    reason = None if seen["withheld"] else "nothing was withheld" if not size else "no withheld decision was reviewed"
    share = Count(*(each / size for each in caught)) if caught and size and not reason else None
    yield told("precision", share, len(seen["withheld"]), size, reason)
    strata, _ = _strata(rows, sizes, benign=False)
    every = korn_graubard(strata, level) if strata and not blind else None
    share = Count(*(each / max(1, total) for each in every)) if every else None
    yield told("prevalence", share, len(rows), total, blind)


def estimates(
    reviewed: Sequence[Reviewed], population: Mapping[str, Mapping[str, int]], *, level: float = 0.95
) -> list[Estimate]:
    """Miss rate, false-positive rate, precision and prevalence of each week, for each kind of people by itself.

    `population` is `sample.population(draws)`. A week in which nobody looked yields estimates without a value and the
    reason; so does a figure whose denominator was not seen.
    """
    found: list[Estimate] = []
    kinds = sorted({row.people for row in reviewed}) or ["live"]
    for week, sizes in population.items():
        for people in kinds:
            rows = [row for row in reviewed if row.week == week and row.people == people]
            found += _week(week, people, rows, sizes, level)
    return found
