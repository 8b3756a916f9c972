"""Open-ended answers by a judge, whose agreement with people is measured and whose error is carried into the figure.

People have judged some answers (`answer` and `human` of an item); the judge judges the same ones. What it is off there,
on average, is taken off what it says of the model, and the interval holds both errors (prediction-powered inference:
Angelopoulos et al. 2023, arXiv 2301.09633). Without such items the judge's word is shown and has no interval.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import special

from tutelage.core.errors import Stopped
from tutelage.core.records import Example, Message, Response
from tutelage.evaluate.suite import cluster_of, people_of
from tutelage.evaluate.suites.figure import Figure, unknown
from tutelage.judge.judge import Judge, ask, value
from tutelage.measure.clusters import normal_quantile
from tutelage.measure.corrections import Count, prediction_powered, summed
from tutelage.measure.paired import Tested
from tutelage.measure.statistics import Interval, mean, paired, undefined

FEWEST = 10
"""Answers judged by people below which a judge counts as unmeasured."""


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
    """Who judges open-ended answers, by rubric; an empty one is the judge's own.

    Args:
        judges: the judge for a rubric.
        asked: the generator behind them, where they are prompted; an endpoint's bill and end are the bench's.
    """

    def __init__(self, judges: Callable[[str], Judge], asked: Any = None) -> None:
        self._judges, self._asked = judges, asked

    def __call__(self, rubric: str) -> Judge:
        return self._judges(rubric)

    def identities(self, items: Sequence[Example]) -> list[str]:
        """For each item what its judge's word follows from beside it, as far as the judge can say that."""
        rubrics = [_rubric(item) for item in items]
        known = {rubric: str(getattr(self._judges(rubric), "identity", "")) for rubric in dict.fromkeys(rubrics)}
        return [known[rubric] for rubric in rubrics]

    @property
    def bill(self) -> Any:
        """What an endpoint was asked and cost; None where the judge is none."""
        return getattr(self._asked, "bill", None)

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
        groups.setdefault(_rubric(item), []).append(place)
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


def _rubric(item: Example) -> str:
    return str(item.tags.get("rubric") or "")


def _whole(item: Example, answer: str) -> Example:
    said = Message(role="assistant", content=answer)
    return item.model_copy(update={"messages": (*item.messages, said), "choices": ()})


def read(response: Response, verdict: float | str) -> Figure:
    """The figure of one answer from the judge's word."""
    text = response.message.content
    if isinstance(verdict, str):
        return unknown(verdict, text)
    return Figure(verdict, "blocked" if response.finish == "blocked" else "answered", text, {"judge": verdict})


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


def corrected(
    scores: Sequence[float], clusters: Sequence[str], measured: Sequence[Agreement], level: float = 0.95
) -> Interval:
    """The mean score with what the judge is off taken off; both errors are in the interval.

    The judge's own mean without an interval where fewer than ten answers were judged by people.
    """
    raw = mean(list(scores), list(clusters), level, bounds=(0.0, 1.0))
    both = [each for each in measured if each.judge is not None]
    if raw.value is None:
        return raw
    if reason := _unmeasured(measured):
        return undefined(raw.n, reason, value=raw.value, method="judge", level=level)
    # the labelled answers are others than those of the model: only what the judge is off carries over, untuned
    found = prediction_powered(
        [each.human for each in both], [float(each.judge or 0.0) for each in both], list(scores),
        clusters=[each.cluster for each in both], other_clusters=list(clusters), tune=False, level=level,
        bounds=(0.0, 1.0),
    )  # fmt: skip
    return found.model_copy(update={"n": raw.n, "clusters": raw.clusters})


def corrected_difference(
    first: Sequence[float],
    second: Sequence[float],
    clusters: Sequence[str],
    measured: Sequence[Agreement],
    other: Sequence[Agreement],
    level: float = 0.95,
) -> Tested:
    """First minus second of two corrected means over the same items; `measured` and `other` measured their judges.

    That a judge is off alike on both sides nobody has measured, so each side is granted its error by itself. Undefined
    where either error is not known, or where a judge's word does not surely go with people's: then a difference in it
    decides nothing.
    """
    said, test = paired(first, second, clusters, level).difference, "z, with the judge's error"
    off, reason = [], said.reason if not said.defined else None
    for people in (measured, other):
        both = [each for each in people if each.judge is not None]
        gaps = [each.human - float(each.judge or 0.0) for each in both]
        off.append(mean(gaps, [each.cluster for each in both], level, bounds=(-1.0, 1.0)))
    if unmeasured := _unmeasured(measured) or _unmeasured(other):
        reason = unmeasured
    elif not all(each.defined for each in off):
        reason = next((each.reason for each in off if each.reason), None) or "undefined"
    elif not (follows(measured) and follows(other)):
        reason = "the judge's word does not surely go with people's: a difference in it decides nothing"
    if reason or said.value is None:
        nothing = undefined(said.n, reason or "undefined", value=said.value, method="prediction-powered", level=level)
        return Tested(difference=nothing, p=None)
    counts = [Count(float(each.value or 0.0), float(each.low or 0.0), float(each.high or 0.0)) for each in (said, *off)]
    value, low, high = summed([*counts[:2], Count(-counts[2].value, -counts[2].high, -counts[2].low)])
    told = {"value": value, "low": max(-1.0, low), "high": min(1.0, high), "method": "prediction-powered"}
    reach = (value - low if value > 0 else high - value) / normal_quantile((1 + level) / 2)
    p = float(2 * special.ndtr(-abs(value) / reach)) if reach > 0 else None
    return Tested(
        difference=said.model_copy(update=told),
        p=p,
        test=test if p is not None else "",
        tests={} if p is None else {test: p},
    )


def _unmeasured(measured: Sequence[Agreement]) -> str:
    """Why the judge's error is not known; empty where enough answers were judged by people and by the judge."""
    both = sum(each.judge is not None for each in measured)
    if both >= FEWEST:
        return ""
    if len(measured) >= FEWEST:
        why = f"of {len(measured)} answers that people judged the judge had an opinion on {both}"
    else:
        why = f"only {len(measured)} answers were judged by people" if measured else "no answer was judged by people"
    return f"{why}: the judge's error is not known"


def follows(measured: Sequence[Agreement]) -> bool:
    """Whether what the judge says surely rises with what people say (one-sided, 5%)."""
    both = [(each.human, float(each.judge), each.cluster) for each in measured if each.judge is not None]
    if len(both) < FEWEST:
        return False
    human, judge = np.array([each[0] for each in both]), np.array([each[1] for each in both])
    together = ((human - human.mean()) * (judge - judge.mean())).tolist()
    low = mean(together, [each[2] for each in both], 0.9).low
    return low is not None and low > 0


def told_in(judges: Iterable[Mapping[str, Any]]) -> dict[str, tuple[Agreement, ...]]:
    """Suite -> answers that people and the judge judged, from `judges` of an examination's summary."""
    return {str(each["suite"]): tuple(Agreement(**one) for one in each.get("answers", ())) for each in judges}


def report(judge: str, measured: Sequence[Agreement]) -> dict[str, Any]:
    """How far a judge and people agree: mean difference (judge minus people), mean distance, rank correlation; and
    the answers that say so, from which figures of the same judge are corrected later."""
    both = [each for each in measured if each.judge is not None]
    gaps = [float(each.judge or 0.0) - each.human for each in both]
    clusters = [each.cluster for each in both]

    def plain(found: Interval) -> dict[str, Any]:
        return {key: getattr(found, key) for key in ("value", "low", "high", "n", "reason")}

    enough = len(both) >= FEWEST
    why = f"fewer than {FEWEST} answers were judged by people"
    return {
        "judge": judge,
        "follows": follows(measured) if enough else None,
        "judged_by_people": len(measured),
        "without_opinion": len(measured) - len(both),
        "difference": plain(mean(gaps, clusters, bounds=(-1.0, 1.0)) if enough else undefined(len(both), why)),
        "distance": plain(
            mean([abs(g) for g in gaps], clusters, bounds=(0.0, 1.0)) if enough else undefined(len(both), why)
        ),
        "correlation": _spearman(both) if enough else None,
        "simulated": any(each.simulated for each in measured),
        "reason": None if enough else why,
        "answers": [each._asdict() for each in measured],
    }


def _spearman(both: Sequence[Agreement]) -> float | None:
    """Rank correlation, None where one side does not vary."""
    from scipy.stats import rankdata

    human, judge = rankdata([each.human for each in both]), rankdata([each.judge for each in both])
    if np.ptp(human) == 0 or np.ptp(judge) == 0:
        return None
    return float(np.corrcoef(human, judge)[0, 1])
