"""Open-ended answers by a judge, whose agreement with people is measured and whose error is carried into every figure.

People have judged some answers (`answer` and `human` of an item); the judge judges the same ones. What it is off there,
on average, is taken off what it says of the model, and the interval holds both errors (prediction-powered inference:
Angelopoulos et al. 2023, arXiv 2301.09633). Without such items the judge's word is shown and has no interval.

What it is off stands in the scores of each row that it judged, so that whoever has the rows (a slice, a difference, a
comparison, a gate) has the error too. A difference of two systems grants the judge that error on either side: that it
is off alike on both is not known. Where its word does not surely go with people's, a difference decides nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from tutelage.core.errors import Stopped
from tutelage.core.records import Example, Message, Response
from tutelage.evaluate.suite import Result, cluster_of, people_of
from tutelage.evaluate.suites.figure import Figure, unknown
from tutelage.judge.judge import Judge, ask, value
from tutelage.measure.corrections import Count, summed
from tutelage.measure.statistics import Comparison, Interval, mean, undefined

FEWEST = 10
"""Answers judged by people below which a judge counts as unmeasured."""
LEVEL = 0.95
"""Of the interval that rows carry."""


class Agreement(NamedTuple):
    """One answer that people and the judge judged, 0 to 1."""

    item: str
    cluster: str
    human: float
    judge: float | None
    """None where the judge had no opinion."""
    reason: str = ""
    simulated: bool = False
    """Whether the people are simulated."""


class Bench:
    """Who judges open-ended answers, by rubric (an empty one is the judge's own), and what people found of their word.

    Args:
        judges: the judge for a rubric.
        asked: the generator behind them, where they are prompted; an endpoint's bill and end are the bench's.
    """

    def __init__(self, judges: Callable[[str], Judge], asked: Any = None) -> None:
        self._judges, self._asked = judges, asked
        self.people: Mapping[str, Sequence[Agreement]] = {}
        """Suite -> answers that people and the judge judged."""

    def __call__(self, rubric: str) -> Judge:
        return self._judges(rubric)

    @property
    def bill(self) -> Any:
        """What an endpoint was asked and cost; None where the judge is none."""
        return getattr(self._asked, "bill", None)

    def marks(self, suite: str) -> dict[str, float]:
        """What the judge is off on a suite, as scores of its rows."""
        return marks(self.people.get(suite, ()))

    def close(self) -> None:
        """End the threads of an endpoint."""
        if (close := getattr(self._asked, "close", None)) is not None:
            close()


def verdicts(bench: Bench, items: Sequence[Example], answers: Sequence[str]) -> list[float | str]:
    """What the judge says of each answer, 0 to 1; a text where it has no opinion, and why.

    Raises Stopped where the judge's budget is spent.
    """
    found: list[float | str] = ["the judge did not answer"] * len(items)
    groups: dict[str, list[int]] = {}
    for place, item in enumerate(items):
        groups.setdefault(str(item.tags.get("rubric") or ""), []).append(place)
    for rubric, places in groups.items():
        judge = bench(rubric)
        said = ask(judge, [_whole(items[place], answers[place]) for place in places], through=(Stopped,))
        for place, verdict in zip(places, said, strict=True):
            score = value(verdict)
            if score is None:
                why = f" ({verdict.reason})" if verdict.reason else ""
                found[place] = f"the judge {judge.name} has no opinion: {verdict.status}{why}"
            elif not 0 <= score <= 1:
                found[place] = f"the judge {judge.name} says {score:.3g}, which is no score from 0 to 1"
            else:
                found[place] = score
    return found


def _whole(item: Example, answer: str) -> Example:
    said = Message(role="assistant", content=answer)
    return item.model_copy(update={"messages": (*item.messages, said), "choices": ()})


def read(response: Response, verdict: float | str, marked: Mapping[str, float]) -> Figure:
    """The figure of one answer from the judge's word, with what the judge is off (`Bench.marks`)."""
    text = response.message.content
    if isinstance(verdict, str):
        return unknown(verdict, text)
    scores = {"judge": verdict, **marked}
    return Figure(verdict, "blocked" if response.finish == "blocked" else "answered", text, scores)


def agreement(items: Sequence[Example], said: Sequence[float | str]) -> list[Agreement]:
    """People's mean beside the judge's word, for items that people judged."""
    return [
        Agreement(
            str(item.tags["id"]),
            cluster_of(item),
            sum(people_of(item)) / len(people_of(item)),
            None if isinstance(word, str) else word,
            word if isinstance(word, str) else "",
            bool(item.tags.get("simulated")),
        )
        for item, word in zip(items, said, strict=True)
    ]


def marks(measured: Sequence[Agreement]) -> dict[str, float]:
    """What a judge is off (people minus judge), as scores of a row: `judge_off` with its 95% interval, from how many
    answers, and whether its word surely goes with people's (one-sided 5%). Only the number where they are too few."""
    both = [(each.human, float(each.judge), each.cluster) for each in measured if each.judge is not None]
    found = {"judge_off_n": float(len(both))}
    if len(both) < FEWEST:
        return found
    human, judge = np.array([each[0] for each in both]), np.array([each[1] for each in both])
    clusters = [each[2] for each in both]
    off = mean((human - judge).tolist(), clusters, LEVEL, bounds=(-1.0, 1.0))
    if off.value is None or off.low is None or off.high is None:
        return found | ({} if off.value is None else {"judge_off": off.value})
    together = mean(((human - human.mean()) * (judge - judge.mean())).tolist(), clusters, 0.9)
    follows = together.low is not None and together.low > 0
    found |= {"judge_off": off.value, "judge_off_low": off.low, "judge_off_high": off.high}
    return found | {"judge_follows": float(follows)}


def off_of(rows: Sequence[Result], level: float = LEVEL) -> Interval:
    """What the judge of these rows is off, from the rows themselves; undefined, with the reason, where that is not
    known."""
    if len({row.suite for row in rows}) > 1:
        why = "these rows are of several suites, and a judge is off on each by its own"
        return undefined(0, why, method="judge", level=level)
    said = _marked(rows)
    n = int(said.get("judge_off_n", 0))
    if n < FEWEST:
        why = f"only {n} answers were" if n else "no answer was"
        reason = f"{why} judged by people: the judge's error is not known"
        return undefined(n, reason, method="judge", level=level)
    middle = said.get("judge_off")
    if middle is None or "judge_off_low" not in said:
        reason = "the judged answers are too much alike: the judge's error is not known"
        return undefined(n, reason, value=middle, method="judge", level=level)
    wide = float(stats.norm.ppf((1 + level) / 2) / stats.norm.ppf((1 + LEVEL) / 2))
    low, high = (middle + wide * (said[f"judge_off_{end}"] - middle) for end in ("low", "high"))
    return Interval(value=middle, low=low, high=high, n=n, clusters=None, level=level, method="judge")


def _marked(rows: Sequence[Result]) -> Mapping[str, float]:
    return next((row.scores for row in rows if "judge_off_n" in row.scores), {})


def corrected(scores: Sequence[float], clusters: Sequence[str], off: Interval, level: float = LEVEL) -> Interval:
    """The mean score with what the judge is off taken off; both errors are in the interval.

    The judge's own mean without an interval where what it is off is not known.
    """
    raw = mean(list(scores), list(clusters), level, bounds=(0.0, 1.0))
    if raw.value is None:
        return raw
    if off.value is None or not off.defined:
        value = raw.value if off.value is None else min(1.0, max(0.0, raw.value + off.value))
        return undefined(raw.n, off.reason or "undefined", value=value, method="judge", level=level)
    middle = min(1.0, max(0.0, raw.value + off.value))
    if not raw.defined:
        return undefined(raw.n, raw.reason or "undefined", value=middle, method="prediction-powered", level=level)
    _, low, high = summed([_count(raw), _count(off)])
    return Interval(
        value=middle, low=min(middle, max(0.0, low)), high=max(middle, min(1.0, high)), n=raw.n, clusters=raw.clusters,
        level=level, method="prediction-powered",
    )  # fmt: skip


def gap(compared: Comparison, rows: Sequence[Result], level: float = LEVEL) -> Comparison:
    """A paired difference of answers that one judge judged, with the judge's error on either side; `rows` are those of
    both sides. p goes with the interval. Undefined where the judge's error, or that it goes with people, is not
    known."""
    found = compared.difference
    if found.value is None:
        return compared
    off, reason = off_of(rows, level), ""
    if not off.defined:
        reason = off.reason or "undefined"
    elif not _marked(rows).get("judge_follows"):
        reason = "the judge's word does not surely go with people's: a difference in it decides nothing"
    elif not found.defined:
        reason = found.reason or "undefined"
    if reason:
        nothing = undefined(found.n, reason, value=found.value, method="prediction-powered", level=level)
        return compared.model_copy(update={"difference": nothing, "p": None})
    own = _count(off)
    below, above = own.low - own.value, own.high - own.value
    here, there = Count(0.0, below, above), Count(0.0, -above, -below)
    value, low, high = summed([_count(found), here, there])
    half = (value - low) if value > 0 else (high - value)  # towards no difference
    p = float(2 * stats.norm.sf(stats.norm.ppf((1 + level) / 2) * abs(value) / half)) if half > 0 else None
    carried = found.model_copy(update={"low": low, "high": high, "method": "prediction-powered"})
    return compared.model_copy(update={"difference": carried, "p": p})


def _count(figure: Interval) -> Count:
    assert figure.value is not None and figure.low is not None and figure.high is not None
    return Count(figure.value, figure.low, figure.high)


def report(judge: str, measured: Sequence[Agreement]) -> dict[str, Any]:
    """How far a judge and people agree: mean difference (judge minus people), mean distance, rank correlation."""
    both = [each for each in measured if each.judge is not None]
    gaps = [float(each.judge or 0.0) - each.human for each in both]
    clusters = [each.cluster for each in both]

    def plain(found: Interval) -> dict[str, Any]:
        return {key: getattr(found, key) for key in ("value", "low", "high", "n", "reason")}

    enough = len(both) >= FEWEST
    why = f"fewer than {FEWEST} answers were judged by people"
    return {
        "judge": judge,
        "follows": marks(measured).get("judge_follows"),
        "judged_by_people": len(measured),
        "without_opinion": len(measured) - len(both),
        "difference": plain(mean(gaps, clusters, bounds=(-1.0, 1.0)) if enough else undefined(len(both), why)),
        "distance": plain(
            mean([abs(g) for g in gaps], clusters, bounds=(0.0, 1.0)) if enough else undefined(len(both), why)
        ),
        "correlation": _spearman(both) if enough else None,
        "simulated": any(each.simulated for each in measured),
        "reason": None if enough else why,
    }


def _spearman(both: Sequence[Agreement]) -> float | None:
    """Rank correlation, None where one side does not vary."""
    from scipy.stats import rankdata

    human, judge = rankdata([each.human for each in both]), rankdata([each.judge for each in both])
    if np.ptp(human) == 0 or np.ptp(judge) == 0:
        return None
    return float(np.corrcoef(human, judge)[0, 1])
