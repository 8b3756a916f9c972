"""Answers given without looking: the same one again and again, or faster than anybody could read.

Careless responding in the sense of Meade and Craig 2012 (Psychological Methods 17): long strings of one answer, and
response times. Each figure is held against the crowd's on the same tasks, with bounds so wide that a whole crowd of
careful people is flagged less often than once in twenty (Bonferroni over people); `tests` state the rate that was
found. A finding is a reason to look and to talk, never a verdict, and never by itself a reason to pay less or not to
pay.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

from tutelage.measure.statistics import Interval, clopper_pearson, undefined
from tutelage.store.answers import WHOLE, Annotation


@dataclass(frozen=True)
class Habits:
    """Bounds of the findings."""

    alarms: float = 0.05
    """Chance that anybody of a careful crowd is flagged by one check, at most."""
    least: int = 10
    """Answers below which nothing is said of a person."""
    margin: float = 0.3
    """How far above the crowd's the share of a person's commonest answer must surely lie."""
    run: int = 10
    """The shortest run of equal answers that can be a finding."""
    speed: float = 1 / 3
    """The share of the crowd's time for a word below which a person's must surely lie."""


@dataclass(frozen=True)
class Straight:
    """How far one person gives the same answer to everything.

    Attributes:
        question: on which question (`ranking`: the order) it is worst.
        share: of their answers that are their commonest one, with its interval.
        expected: share of that same answer among the others on the same tasks; None where nobody else answered.
        answer: which it is, in words.
        longest: the longest run of equal answers in the order they were given.
        chance: of a run as long or longer anywhere, at most, if answers came in any order.
        flagged: whether it is a finding, and why.
    """

    question: str
    share: Interval
    expected: float | None
    answer: str
    longest: int
    chance: float
    flagged: bool
    reason: str


@dataclass(frozen=True)
class Speed:
    """How long one person takes for a word, beside the others on the same tasks."""

    ratio: Interval
    """Median over answers of their time for a word over the others' (1 = as long as they)."""
    ms_per_word: float | None
    flagged: bool
    reason: str


def patterns(given: Annotation) -> dict[str, Hashable]:
    """Question (`ranking` for the order) -> the answer as it looked on the screen, so that the same gesture is the same
    pattern whatever was judged.

    The extremes are the same for tasks of any size: everything tied, everything scored alike, everything as it was
    shown or the other way round.
    """
    order = list(given.shown) or sorted({no for tier in given.tiers for no in tier} | set(given.unrankable))
    place = {no: at for at, no in enumerate(order)}
    found: dict[str, Hashable] = {}
    if given.tiers:
        tiers = [sorted(place.get(no, no) for no in tier) for tier in given.tiers]
        flat = [at for tier in tiers for at in tier]
        strict = all(len(tier) == 1 for tier in tiers)
        if len(tiers) == 1:
            found["ranking"] = "all tied"
        elif strict and flat == sorted(flat):
            found["ranking"] = "as shown"
        elif strict and flat == sorted(flat, reverse=True):
            found["ranking"] = "as shown, turned round"
        else:
            found["ranking"] = tuple(map(tuple, tiers))
    for criterion, scores in sorted(given.scores().items()):
        values = tuple(score for _, score in sorted(scores.items(), key=lambda each: place.get(each[0], each[0])))
        found[criterion] = values[0] if len(set(values)) == 1 else values
    for value in given.values:
        if value.candidate == WHOLE and value.text is None:
            said = value.number if value.number is not None else value.value
            found[value.question] = tuple(said) if isinstance(said, list) else said
    return found


def straight_lining(answers: Sequence[Annotation], rules: Habits | None = None) -> dict[str, Straight]:
    """For each person (pseudonym) how far they give the same answer to everything, on the question where it is
    worst."""
    rules = rules or Habits()
    seen: dict[tuple[str, str], Counter[Hashable]] = {}
    given: dict[str, dict[str, list[tuple[str, Hashable]]]] = {}
    for each in sorted(answers, key=lambda each: (each.at, each.seq)):
        mine = given.setdefault(each.pseudonym, {})
        for question, look in patterns(each).items():
            seen.setdefault((question, each.task), Counter())[look] += 1
            mine.setdefault(question, []).append((each.task, look))
    alarms = rules.alarms / (2 * max(1, sum(len(mine) for mine in given.values())))
    found = {}
    for name, mine in sorted(given.items()):
        lines = [_straight(question, rows, seen, rules, alarms) for question, rows in sorted(mine.items())]
        nothing = Straight("", undefined(0, "nothing was answered"), None, "", 0, 1.0, False, "nothing was answered")
        found[name] = max(lines, key=lambda each: (each.flagged, _excess(each)), default=nothing)
    return found


def _excess(line: Straight) -> float:
    return (line.share.value or 0.0) - (line.expected or 0.0)


def _straight(
    question: str,
    rows: Sequence[tuple[str, Hashable]],
    seen: Mapping[tuple[str, str], Counter[Hashable]],
    rules: Habits,
    alarms: float,
) -> Straight:
    n = len(rows)
    counts = Counter(look for _, look in rows)
    common, hits = min(counts.items(), key=lambda each: (-each[1], str(each[0])))
    share = clopper_pearson(hits, n)
    beside = [
        (seen[question, task][common] - (look == common)) / (seen[question, task].total() - 1)
        for task, look in rows
        if seen[question, task].total() > 1
    ]
    expected = float(np.mean(beside)) if beside else None
    longest, run = 0, 0
    for at, (_, look) in enumerate(rows):
        run = run + 1 if at and rows[at - 1][1] == look else 1
        longest = max(longest, run)
    chance = min(1.0, n * sum((count / n) ** longest for count in counts.values()))
    found = Straight(question, share, expected, _told(common), longest, chance, False, "")
    if n < rules.least:
        return _with(found, False, f"fewer than {rules.least} answers")
    if longest >= rules.run and chance < alarms:
        return _with(found, True, f"the same answer {longest} times in a row ({found.answer})")
    if expected is None:
        return _with(found, False, "nobody else answered the same tasks")
    sure = clopper_pearson(hits, n, 1 - 2 * alarms).low
    if sure is not None and sure > expected + rules.margin:
        return _with(found, True, f"{hits} of {n} answers are the same ({found.answer}); of others' {expected:.0%}")
    return found


def _with(found: Straight, flagged: bool, reason: str) -> Straight:
    return replace(found, flagged=flagged, reason=f"{found.question}: {reason}" if flagged else reason)


def _told(look: Hashable) -> str:
    return look if isinstance(look, str) else str(look)[:60]


def speed(answers: Sequence[Annotation], words: Mapping[str, int], rules: Habits | None = None) -> dict[str, Speed]:
    """For each person (pseudonym) their time for a word of a task beside the others'; `words` counts those to read.

    Times of 0 were not taken (recorded and simulated people) and say nothing.
    """
    rules = rules or Habits()
    logs: dict[str, list[tuple[str, float]]] = {}
    by_person: dict[str, list[tuple[str, float]]] = {each.pseudonym: [] for each in answers}
    for each in answers:
        if each.active_ms > 0 and words.get(each.task, 0) > 0:
            took = math.log(each.active_ms / words[each.task])
            logs.setdefault(each.task, []).append((each.pseudonym, took))
            by_person[each.pseudonym].append((each.task, took))
    timed = [name for name, rows in by_person.items() if rows]
    alarms = rules.alarms / max(1, len(timed))
    everybody = {name: float(np.median([took for _, took in by_person[name]])) for name in timed}
    found = {}
    for name in sorted(by_person):
        crowd = [median for other, median in everybody.items() if other != name]
        gaps = []
        for task, took in by_person[name]:
            others = [each for who, each in logs[task] if who != name]
            if len(others) >= 2 or crowd:
                gaps.append(took - float(np.median(others if len(others) >= 2 else crowd)))
        found[name] = _speed(gaps, everybody.get(name), rules, alarms)
    return found


def _speed(gaps: Sequence[float], usual: float | None, rules: Habits, alarms: float) -> Speed:
    per_word = None if usual is None else math.exp(usual)
    if len(gaps) < rules.least:
        reason = "no times were taken" if usual is None else f"fewer than {rules.least} timed answers beside others'"
        return Speed(undefined(len(gaps), reason, method="median ratio"), per_word, False, reason)
    low, high = _median_bounds(gaps, 0.05)
    ratio = Interval(
        value=math.exp(float(np.median(gaps))), low=math.exp(low), high=math.exp(high), n=len(gaps),
        method="median ratio, order statistics",
    )  # fmt: skip
    flagged = math.exp(_median_bounds(gaps, 2 * alarms)[1]) < rules.speed
    reason = f"takes {ratio.value:.0%} of the others' time for a word ({per_word:.0f} ms)" if flagged else ""
    return Speed(ratio, per_word, flagged, reason)


def _median_bounds(values: Sequence[float], alarms: float) -> tuple[float, float]:
    """Interval of a median that needs no shape (David and Nagaraja 2003, section 7.1); infinite where too few."""
    ordered = sorted(values)
    n = len(ordered)
    below = int(stats.binom.ppf(alarms / 2, n, 0.5))
    if stats.binom.cdf(below, n, 0.5) > alarms / 2:
        below -= 1
    if below < 0:
        return -math.inf, math.inf
    return ordered[below], ordered[n - 1 - below]
