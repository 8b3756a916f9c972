"""When people will have answered enough, at the pace of late, with how sure that is."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scipy import stats

from tutelage.measure.statistics import Interval, undefined
from tutelage.store import oversight
from tutelage.store.answers import Tally
from tutelage.store.engine import Reader
from tutelage.store.settings import ProjectSettings
from tutelage.store.standing import Counts
from tutelage.store.tasks import Project

HOUR = 3_600_000
"""In milliseconds, as all times of the store."""
DAY = 24 * HOUR
WINDOW = 14 * DAY
"""How far back the pace looks."""
STRETCHES = 14
"""Equal parts of that time; how their counts differ says how uneven the pace is."""
SOONEST = 10 * 60_000
"""Before this much time has passed since the first answer, no pace is told."""
STALLED = DAY
"""Without an answer for so long, a project that lacks answers is said to stand still."""


@dataclass(frozen=True)
class Forecast:
    """Answers per hour and when enough will be there (ms since 1970); None where it cannot be told, with `reason`."""

    left: int
    rate: Interval
    soonest: int | None = None
    likely: int | None = None
    latest: int | None = None
    stalled_since: int | None = None
    reason: str = ""


def window(first_at: int, now: int) -> tuple[int, int]:
    """(beginning, width of a stretch in ms) of the time over which the pace is measured."""
    width = max(1, -(-min(now - first_at, WINDOW) // STRETCHES))  # rounded up: the first answer is in it
    return now - STRETCHES * width, width


def pace(counts: Sequence[int], width: int, level: float = 0.95) -> Interval:
    """Answers per hour from the counts of equal stretches of `width` ms.

    The interval is Student's t on the log of the mean, with the larger of the Poisson variance and that between the
    stretches, so that days and nights, and people who come in shifts, widen it.
    """
    total, n = sum(counts), len(counts)
    method = f"{n} stretches, t on the log"
    if not total:
        return undefined(0, "nobody has answered in this time", value=0.0, method=method)
    hours = width / HOUR
    mean = total / n
    between = sum((each - mean) ** 2 for each in counts) / (n - 1) if n > 1 else 0.0
    spread = math.sqrt(max(between, mean) / n) / mean
    reach = math.exp(float(stats.t.ppf((1 + level) / 2, max(1, n - 1))) * spread)
    value = mean / hours
    return Interval(value=value, low=value / reach, high=value * reach, n=total, level=level, method=method)


def forecast(
    counts: Sequence[int], width: int, left: int, first_at: int | None, last_at: int | None, now: int
) -> Forecast:
    """When `left` further answers will be there. `counts` are of equal stretches that end now."""
    none = undefined(0, "nobody has answered yet")
    if left <= 0:
        return Forecast(0, pace(counts, width) if first_at else none, reason="all are there")
    if first_at is None or last_at is None:
        return Forecast(left, none, reason="nobody has answered yet")
    if now - last_at > STALLED:
        return Forecast(left, pace(counts, width), stalled_since=last_at, reason="nobody has answered for a day")
    if now - first_at < SOONEST:
        return Forecast(left, undefined(0, "too early to tell a pace"), reason="too early to tell a pace")
    rate = pace(counts, width)
    if not rate.value or rate.low is None or rate.high is None:
        return Forecast(left, rate, reason=rate.reason or "")

    def at(per_hour: float) -> int:
        return now + int(min(left / per_hour, 24 * 36_500) * HOUR)

    return Forecast(left, rate, at(rate.high), at(rate.value), at(rate.low))


@dataclass(frozen=True)
class Ahead:
    """How many answers of which people a project has, how many it wants, and when they will be there."""

    kinds: Mapping[str, int]
    """Kind of people -> answers, most first."""
    main: str
    """The kind the forecast is about: live people where there are any. Kinds are never pooled."""
    target: int
    """Answers that are enough: the lead's own number, or all that tasks want."""
    since: int
    """Since when the pace is measured."""
    forecast: Forecast


def ahead(store: Reader, project: Project, counts: Counts, tallies: Sequence[Tally], moment: int) -> Ahead:
    """What is ahead of a project at a moment, by where it stands (`standing.counts`, `answers.tallies`)."""
    kinds = Counter[str]()
    for each in tallies:
        kinds[each.people] += each.answers
    main = "live" if kinds["live"] or not kinds else kinds.most_common(1)[0][0]
    mine = [each for each in tallies if each.people == main]
    first, last = (
        min((each.first_at for each in mine), default=None),
        max((each.last_at for each in mine), default=None),
    )
    given = ProjectSettings.of(project.settings).target
    left = given - kinds[main] if given else counts.slots - counts.answered
    since, width = window(first or moment, moment)
    by_stretch = oversight.pace(store, project.id, since, width).get(main, {}) if first else {}
    found = forecast([by_stretch.get(at, 0) for at in range(STRETCHES)], width, left, first, last, moment)
    return Ahead({kind: many for kind, many in kinds.most_common() if many}, main, given or counts.slots, since, found)
