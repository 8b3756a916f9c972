"""When should the wheel turn? Weekly figures and reviewers' estimates become triggers, on bounds and not on noise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from scipy.stats import fisher_exact

from tutelage.core.config import Config
from tutelage.core.records import Record
from tutelage.measure.statistics import holm, newcombe, wilson
from tutelage.review.estimates import Estimate


class Week(Record):
    """What a week of traffic showed without anybody's judgement."""

    week: str
    requests: int
    withheld: int
    thumbs: int = 0
    """Answers that were rated at all."""
    thumbs_down: int = 0
    appeals: int = 0


class Limits(Config):
    """When to act."""

    miss_rate: float = 0.2
    """Retrain when the miss rate is surely above this (the interval's lower end); where too few decisions were reviewed
    twice to correct it for reviewers' slips, above the baseline week's as well."""
    false_positive_rate: float = 0.1
    """Retrain when benign requests are surely withheld more often than this."""
    alarm: float = 0.05
    """The chance of any false alarm in a week without change, over all comparisons (Holm)."""

    @property
    def bounds(self) -> dict[str, float]:
        """Metric of an estimate -> its limit."""
        return {"miss_rate": self.miss_rate, "false_positive_rate": self.false_positive_rate}


class Trigger(Record):
    """A reason to act, with the figure behind it."""

    id: str
    week: str
    action: Literal["retrain", "collect", "look"]
    value: float
    low: float
    high: float
    limit: float
    sentence: str


def _p_of_difference(first: int, n_first: int, second: int, n_second: int) -> float | None:
    """Two-sided p of two independent shares (Fisher's exact test)."""
    if not n_first or not n_second:
        return None
    table = [[first, n_first - first], [second, n_second - second]]
    return float(fisher_exact(table).pvalue)


def changes(baseline: Week, week: Week, limits: Limits) -> list[Trigger]:
    """What surely differs from the baseline week: how much is withheld, how users rate, how often they appeal."""
    pairs = {
        "withheld": (week.withheld, week.requests, baseline.withheld, baseline.requests),
        "thumbs_down": (week.thumbs_down, week.thumbs, baseline.thumbs_down, baseline.thumbs),
        "appeals": (week.appeals, week.requests, baseline.appeals, baseline.requests),
    }
    ps = holm([_p_of_difference(*counts) for counts in pairs.values()])
    found = []
    for (name, (now, n, before, n_before)), p in zip(pairs.items(), ps, strict=True):
        if p is None or p >= limits.alarm:
            continue
        gap = newcombe(now, n, before, n_before)
        if gap.value is None or gap.low is None or gap.high is None:
            continue
        more = "more" if gap.value > 0 else "less"
        action: Literal["collect", "look"] = "collect" if name == "thumbs_down" and gap.value > 0 else "look"
        words = {"withheld": "is withheld", "thumbs_down": "is rated down", "appeals": "is appealed"}[name]
        found.append(
            Trigger(
                id=name,
                week=week.week,
                action=action,
                value=gap.value,
                low=gap.low,
                high=gap.high,
                limit=0.0,
                sentence=f"{more} {words} than in week {baseline.week}: {now}/{n} against {before}/{n_before}",
            )
        )
    return found


def exceeded(
    estimates: Sequence[Estimate], week: str, limits: Limits, before: Sequence[Estimate] = ()
) -> list[Trigger]:
    """Which of reviewers' estimates of a week are surely above their limits.

    Reviewers slip, and a slip on many harmless requests looks like missed harm. Where an estimate is not corrected for
    that, it must surely be above the week `before` too: what did not rise is their error.
    """
    bounds = limits.bounds
    for each in before:
        if each.metric in bounds and each.high is not None and not each.corrected:
            bounds[each.metric] = max(bounds[each.metric], each.high)
    words = {"miss_rate": "of what is harmful is missed", "false_positive_rate": "of what is benign is withheld"}
    found = []
    for each in estimates:
        limit = bounds.get(each.metric)
        if each.week != week or limit is None or each.value is None or each.low is None or each.high is None:
            continue
        if each.low > limit:
            found.append(
                Trigger(
                    id=each.metric,
                    week=week,
                    action="retrain",
                    value=each.value,
                    low=each.low,
                    high=each.high,
                    limit=limit,
                    sentence=f"{each.value:.0%} [{each.low:.0%}, {each.high:.0%}] {words[each.metric]} "
                    f"({each.n} reviewed, {each.people} people), {limit:.0%} would be nothing new",
                )
            )
    return found


def triggers(
    baseline: Week,
    week: Week,
    estimates: Sequence[Estimate],
    limits: Limits,
    before: Sequence[Estimate] = (),
) -> list[Trigger]:
    """All reasons to act on one week; `before` are the baseline week's estimates."""
    return [*exceeded(estimates, week.week, limits, before), *changes(baseline, week, limits)]


def share(part: int, whole: int) -> dict[str, float | int | str | None]:
    """A share as reports hold it: value, interval, n, or the reason why there is none."""
    found = wilson(part, whole)
    return {"value": found.value, "low": found.low, "high": found.high, "n": found.n, "reason": found.reason}
