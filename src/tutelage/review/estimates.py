"""What reviewed decisions say about all of them: how much harm was missed, how much was blocked for nothing.

Each reviewed decision stands for the 1 / probability decisions it was drawn from (Horvitz and Thompson 1952), scaled
to the known number of decisions in its stratum. Each stratum has Clopper and Pearson's interval, so it stays honest at
0 of n; their sums, and ratios of two independent sides such as the miss rate, combine intervals by MOVER (Zou and
Donner 2008, 2012). Where decisions with two voices tell how often reviewers slip, counts are corrected for it (Rogan
and Gladen 1978) and their intervals are as much wider. Kinds of people are never pooled.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

from scipy.stats import beta

from tutelage.core.records import Record
from tutelage.measure.corrections import Count, complement, part, rogan_gladen, summed
from tutelage.measure.intervals import Interval
from tutelage.review.sample import Reviewed
from tutelage.review.slips import Slips, slips

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
    corrected: bool = False
    """Whether reviewers' slips are taken out; not so where too few decisions have two voices to know them."""
    raw: tuple[float, float, float] | None = None
    """(value, low, high) of the voices as they were given, beside a corrected figure."""


class Stratum(NamedTuple):
    """How many decisions, how many of them reviewed, which share of these is counted."""

    size: int
    reviewed: int
    share: float


def _limits(stratum: Stratum, level: float, left: float) -> tuple[float, float]:
    """Clopper and Pearson's interval of a stratum's share, of whose variance a part `left` is left."""
    if left <= 0:
        return stratum.share, stratum.share
    size = stratum.reviewed / left
    hits, tail = stratum.share * size, (1 - level) / 2
    low = float(beta.ppf(tail, hits, size - hits + 1)) if hits > 0 else 0.0
    high = float(beta.ppf(1 - tail, hits + 1, size - hits)) if hits < size else 1.0
    return low, high


def _sized(stratum: Stratum, limits: tuple[float, float]) -> Count:
    return Count(*(stratum.size * share for share in (stratum.share, *limits)))


def counted(strata: Sequence[Stratum], level: float = 0.95) -> Count:
    """The number counted in all strata together, with its interval.

    Each stratum brings its own exact interval, so one in which nothing was seen still widens the whole by what it may
    hide. Where all were reviewed the interval is a point.
    """
    found = summed(_sized(s, _limits(s, level, 1 - s.reviewed / s.size)) for s in strata)
    seen = sum(s.reviewed * s.share for s in strata)  # what was seen is certain: the interval cannot exclude it
    most = sum(s.size - s.reviewed * (1 - s.share) for s in strata)
    return Count(found.value, max(found.low, min(seen, found.value)), min(found.high, most))


def corrected(strata: Sequence[Stratum], errors: Slips, level: float = 0.95) -> Count:
    """The number of harmful decisions in all strata, slips taken out: (said - alarm * size) / (1 - alarm - oversight).

    The interval adds up, as squares, what the count and each error rate may be off. To have reviewed everything takes
    the chance of the draw away, not that of the slips: another set of voices would have slipped elsewhere.
    """
    total = sum(s.size for s in strata)
    alarm, oversight = errors.alarm.value or 0.0, errors.oversight.value or 0.0

    def left(s: Stratum) -> float:
        drawn = max(0.0, (s.share - alarm) * (1 - oversight - s.share))  # variance of harm itself
        return 1 - s.reviewed / s.size * drawn / (s.share * (1 - s.share)) if drawn else 1.0

    said = summed(_sized(s, _limits(s, level, left(s))) for s in strata)
    flagged = Interval(
        value=said.value / total, low=said.low / total, high=said.high / total, n=total, level=level, method="mover"
    )
    share = rogan_gladen(flagged, complement(errors.oversight), complement(errors.alarm))
    low, high = (0.0, 1.0) if share.low is None or share.high is None else (share.low, share.high)
    return Count(total * (share.value or 0.0), total * low, total * high)


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


Found = tuple[Count | None, int, int, str | None]
"""A figure, how many reviewed decisions stand behind it, how many it speaks for, and why there is none."""


def _figures(
    rows: Sequence[Reviewed], sizes: Mapping[str, int], level: float, errors: Slips | None
) -> dict[Metric, Found]:
    sides = ("delivered", "withheld")
    known = {side: {k: v for k, v in sizes.items() if k.startswith(side)} for side in sides}
    seen = {side: [row for row in rows if row.stratum.startswith(side)] for side in sides}
    total = sum(sizes.values())

    def count(rows: Sequence[Reviewed], sizes: Mapping[str, int], *, benign: bool) -> Count | None:
        strata, _ = _strata(rows, sizes, benign=benign and errors is None)
        if not strata:
            return None if sizes else Count(0.0, 0.0, 0.0)
        if errors is None:
            return counted(strata, level)
        harmful, size = corrected(strata, errors, level), sum(s.size for s in strata)
        return Count(size - harmful.value, size - harmful.high, size - harmful.low) if benign else harmful

    blind = next((f"no {side} decision was reviewed" for side in sides if known[side] and not seen[side]), None)
    found: dict[Metric, Found] = {}
    parts: tuple[tuple[Metric, str, str, bool], ...] = (
        ("miss_rate", "delivered", "withheld", False),
        ("false_positive_rate", "withheld", "delivered", True),
    )
    for metric, missed, kept, benign in parts:
        one, other = (count(seen[side], known[side], benign=benign) for side in (missed, kept))
        ratio = part(one, other) if one and other and not blind else None
        none = f"no {'benign' if benign else 'harmful'} decision was found among {len(rows)} reviewed"
        found[metric] = ratio, len(rows), total, blind or (None if ratio else none)
    caught, size = count(seen["withheld"], known["withheld"], benign=False), sum(known["withheld"].values())
    reason = None if seen["withheld"] else "nothing was withheld" if not size else "no withheld decision was reviewed"
    share = Count(*(each / size for each in caught)) if caught and size and not reason else None
    found["precision"] = share, len(seen["withheld"]), size, reason
    every = count(rows, sizes, benign=False) if rows and not blind else None
    share = Count(*(each / max(1, total) for each in every)) if every else None
    found["prevalence"] = share, len(rows), total, blind
    return found


def _week(
    week: str, people: str, rows: Sequence[Reviewed], sizes: Mapping[str, int], level: float, errors: Slips | None
) -> Iterable[Estimate]:
    raw = _figures(rows, sizes, level, None)
    for metric, (found, n, total, reason) in (_figures(rows, sizes, level, errors) if errors else raw).items():
        value, low, high = found if found and not reason else (None, None, None)
        before = raw[metric][0] if errors and not raw[metric][3] else None
        yield Estimate(
            metric=metric, week=week, people=people, value=value, low=low, high=high, n=n, total=total, level=level,
            reason=reason, corrected=errors is not None and value is not None, raw=tuple(before) if before else None,
        )  # fmt: skip


def estimates(
    reviewed: Sequence[Reviewed],
    population: Mapping[str, Mapping[str, int]],
    *,
    level: float = 0.95,
    voices: Sequence[Reviewed] = (),
) -> list[Estimate]:
    """Miss rate, false-positive rate, precision and prevalence of each week, for each kind of people by itself.

    `population` is `sample.population(draws)`. A week in which nobody looked yields estimates without a value and the
    reason; so does a figure whose denominator was not seen. Slips are told from all weeks of `reviewed` together, and
    from `voices` beside them: decisions that the same people reviewed at other times.
    """
    found: list[Estimate] = []
    kinds = sorted({row.people for row in reviewed}) or ["live"]
    known = {(row.subject, row.people): row for row in (*voices, *reviewed)}.values()
    errors = {people: slips([row for row in known if row.people == people], level=level) for people in kinds}
    for week, sizes in population.items():
        for people in kinds:
            rows = [row for row in reviewed if row.week == week and row.people == people]
            found += _week(week, people, rows, sizes, level, errors[people])
    return found
