"""Whether a model knows what it knows: calibration, selection by confidence, agreement with itself, determinism.

What a model says of its own certainty is read in two ways: of choices and labels the share of probability of the
likeliest one, of answers the probability of the whole text. Temperature scaling (Guo et al. 2017) is fitted out of
fold, by cluster, so that the figure after it is one of unseen items. Selective answering follows Geifman and El-Yaniv
2017 (area under the risk-coverage curve), self-consistency Wang et al. 2023 (the commonest of several drawn answers).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from pydantic import Field

from tutelage.core.config import Config
from tutelage.core.errors import Stopped, TutelageError
from tutelage.core.records import Example
from tutelage.evaluate.ask import GREEDY, AnswerLog, likelihoods, sampling_of
from tutelage.evaluate.robustness import WEIGHED
from tutelage.evaluate.suite import Result, Suite, cluster_of, golds_of, item_id, sample
from tutelage.evaluate.suites import choice
from tutelage.evaluate.suites.kinds import Ground, Metric, metric_of, value_of
from tutelage.evaluate.ways import Way
from tutelage.generate.generator import Generator
from tutelage.measure.calibration import brier, ece, reliability, scaled, temperature_out_of_fold
from tutelage.measure.selection import selective
from tutelage.measure.statistics import mean, paired, plain, rate, undefined
from tutelage.measure.text import normalise_answer

FEWEST = 300
"""Items below which calibration is not stated."""
LEVELS = tuple(place / 20 for place in range(1, 21))
"""Shares of the items that are answered, on the risk-coverage curve."""
SHOWN = (0.5, 0.8, 0.9, 1.0)
"""Those of them whose accuracy stands in tables."""
WORDINGS = ("paraphrase", "prompt")
"""Families of perturbations in which the same is asked in other words."""
ALL = "all suites"
FOLDS = 5


class Reliability(Config):
    """How far a model can be relied upon. Calibration needs no further answer (of labels see `how.weigh_labels`); the
    other examinations do."""

    items: int = Field(0, ge=0)
    """Items per suite that are answered several times by chance (self-consistency); 0 leaves it out."""
    repeats: int = Field(5, ge=2)
    """Drawn answers to each of them."""
    temperature: float = Field(1.0, gt=0)
    """At which they are drawn."""
    same: int = Field(0, ge=0)
    """Items per suite that are asked once more, and one by one: the answers must be the same; 0 leaves it out."""


class Point(NamedTuple):
    """One answer with the certainty it was given with. `logits` and `gold` are what a temperature is fitted to."""

    target: str
    suite: str
    source: str
    confidence: float
    right: float
    cluster: str
    logits: tuple[float, ...]
    gold: int


def of_choices(
    generator: Generator,
    items: Sequence[Example],
    way: Way,
    *,
    target: str,
    target_id: str = "",
    log: AnswerLog | None = None,
) -> list[Point]:
    """Items with choices by the shares of probability, read from the log, where they were asked in this very `way`."""
    fit = [item for item in items if len(item.choices) > 1 and item.target in item.choices]
    asked = [choice.requests(item)[0] for item in way.prepared(fit)]
    told = likelihoods(generator, asked, log=log or AnswerLog(), target=target_id or target)
    found: list[Point] = []
    for item, scored in zip(fit, told, strict=True):
        if isinstance(scored, str) or not all(math.isfinite(each.logprob) for each in scored):
            continue
        logits = tuple(each.logprob for each in scored)
        tops = [place for place, each in enumerate(logits) if each == max(logits)]
        right = len(tops) == 1 and item.choices[tops[0]] in golds_of(item)
        confidence = 1.0 / sum(math.exp(each - max(logits)) for each in logits)
        gold = tops[0] if right else item.choices.index(str(item.target))
        suite = str(item.tags["suite"])
        found.append(Point(target, suite, "choices", confidence, float(right), cluster_of(item), logits, gold))
    return found


def of_answers(results: Iterable[Result]) -> list[Point]:
    """Answers in words by the probability of the whole text, where the generator states it and right is yes or no."""
    found: list[Point] = []
    for each in results:
        right = next((each.scores[name] for name in ("right", "exact", "accuracy") if name in each.scores), None)
        if each.kind == "choice" or each.value is None or "confidence" not in each.scores or right not in (0.0, 1.0):
            continue
        p = min(max(each.scores["confidence"], 1e-9), 1 - 1e-9)
        logits = (math.log(p), math.log1p(-p))
        found.append(
            Point(each.target, each.suite, "answers", p, float(right), each.cluster, logits, 0 if right else 1)
        )
    return found


def calibration(
    points: Iterable[Point], asked: Mapping[tuple[str, str], int], *, resamples: int = 200, seed: int = 0
) -> list[dict[str, Any]]:
    """Target x suite x source (and all suites: suite None): calibration before and after a temperature, selection.

    `asked`: items by (target, suite); those without a point lower `coverage`. Calibration is undefined, with the
    reason, below `FEWEST` items.
    """
    groups: dict[tuple[str, str | None, str], list[Point]] = {}
    for each in points:
        for suite in (each.suite, None):
            groups.setdefault((each.target, suite, each.source), []).append(each)
    table: list[dict[str, Any]] = []
    for (target, suite, source), members in groups.items():
        suites = {each.suite for each in members}
        wanted = sum(asked.get((target, name), 0) for name in suites)
        entry: dict[str, Any] = {
            "target": target,
            "suite": suite,
            "source": source,
            "n": len(members),
            "suites": sorted(suites),
        }
        entry["coverage"] = len(members) / wanted if wanted else None
        table.append(entry | _calibrated(members, resamples, seed))
    return table


def _calibrated(members: Sequence[Point], resamples: int, seed: int) -> dict[str, Any]:
    said, right = [each.confidence for each in members], [each.right for each in members]
    clusters = [f"{each.suite}/{each.cluster}" for each in members]
    found: dict[str, Any] = {
        "right": plain(rate(right, clusters)),
        "confidence": plain(mean(said, clusters, bounds=(0.0, 1.0))),
        "ece": plain(ece(said, right, clusters=clusters, fewest=FEWEST)),
        "brier": plain(brier(said, right, clusters)),
    }
    chosen = selective(said, right, LEVELS, clusters=clusters, resamples=resamples, seed=seed)
    found["aurc"] = plain(chosen.aurc)
    found["selective"] = [
        {"coverage": each.coverage, "threshold": each.threshold} | plain(each.accuracy) for each in chosen.points
    ]
    if len(members) < FEWEST:
        fault = plain(undefined(len(members), f"fewer than {FEWEST} items"))
        return found | {"bins": [], "temperature": {}, "ece_after": fault, "brier_after": fault, "gain": fault}
    found["bins"] = [
        {"low": each.low, "high": each.high, "confidence": each.confidence} | plain(each.accuracy)
        for each in reliability(said, right, clusters=clusters)
    ]
    after_scaling, found["temperature"] = _scaled(members, seed)
    answers = members[0].source == "answers"
    after = [min(1.0, row[0] if answers else max(row)) for row in after_scaling]
    found["ece_after"] = plain(ece(after, right, clusters=clusters, fewest=FEWEST))
    found["brier_after"] = plain(brier(after, right, clusters))
    losses = [
        [-math.log(max(row[each.gold], 1e-12)) for row, each in zip(rows, members, strict=True)]
        for rows in (_shares(members), after_scaling)
    ]
    found["gain"] = plain(paired(losses[0], losses[1], clusters, bounds=None).difference)  # in nats
    return found


def _shares(members: Sequence[Point]) -> list[Sequence[float]]:
    """Probabilities as they were stated."""
    return list(scaled([each.logits for each in members], 1.0))


def _scaled(members: Sequence[Point], seed: int) -> tuple[list[Sequence[float]], dict[str, float]]:
    """Probabilities under temperatures that were fitted without the item's cluster, one for each suite: answers of one
    length and kind belong together. And the temperatures (the middle one of the folds); a suite with too few clusters
    to leave any out stays as it is."""
    found = _shares(members)
    fitted: dict[str, float] = {}
    for suite in sorted({each.suite for each in members}):
        places = [place for place, each in enumerate(members) if each.suite == suite]
        here = [members[place] for place in places]
        folded = temperature_out_of_fold(
            [list(each.logits) for each in here],
            [each.gold for each in here],
            folds=FOLDS,
            clusters=[each.cluster for each in here],
            seed=seed,
        )
        if folded is None:
            continue
        fitted[suite] = sorted(folded.temperatures)[len(folded.temperatures) // 2]
        for place, row in zip(places, folded.probabilities, strict=True):
            found[place] = row
    return found, fitted


def repeatable(chosen: Sequence[Suite], config: Reliability, seed: int = 0) -> list[Example]:
    """Some items of each suite that is answered in words."""
    kinds = [[item for item in suite.items if item.tags["kind"] not in WEIGHED] for suite in chosen]
    return [item for items in kinds for item in sample(items, config.items, seed)] if config.items else []


def repeated(
    generator: Generator,
    chosen: Sequence[Suite],
    config: Reliability,
    way: Way,
    *,
    target: str,
    target_id: str = "",
    log: AnswerLog | None = None,
    max_tokens: Mapping[str, int] | None = None,
    seed: int = 0,
    step: Callable[[int], None] = lambda done: None,
) -> list[list[Result]]:
    """The `repeatable` items drawn `repeats` times with a seed each, asked in the `way` of their greedy answers."""
    items = repeatable(chosen, config, seed)
    return [
        way.examine(
            generator,
            items,
            target=target,
            target_id=target_id,
            log=log,
            max_tokens=max_tokens,
            sampling=GREEDY.model_copy(update={"temperature": config.temperature, "seed": seed + turn}),
            step=step,
        )
        for turn in range(config.repeats)
        if items
    ]


def wordings(results: Iterable[Result], changed: Iterable[Result]) -> list[list[Result]]:
    """Items as they stand and in other words (`WORDINGS`), as rows that belong together."""
    forms: dict[str, list[Result]] = {}
    for each in changed:
        if each.slices.get("perturbation") in WORDINGS:
            forms.setdefault(each.slices["perturbation"], []).append(each)
    asked = {(each.target, each.item) for rows in forms.values() for each in rows}
    return [[each for each in results if (each.target, each.item) in asked], *forms.values()] if forms else []


class _Several(NamedTuple):
    """Several answers to one item: how they agree, the commonest (of several equally common ones the first, and what
    all of these are worth in the mean, as if one were drawn), and the greedy one."""

    agreement: float
    worth: float
    commonest: Result
    greedy: Result | None
    cluster: str


def consistency(
    how: str,
    runs: Sequence[Sequence[Result]],
    greedy: Iterable[Result],
    ground: Ground,
    *,
    fewest: int = 2,
) -> list[dict[str, Any]]:
    """Target x suite (and all suites): how often two answers to one item agree, and what the commonest answer is worth
    beside the greedy one (paired). Items with fewer than `fewest` answers are left out and lower `coverage`."""
    told: dict[tuple[str, str], list[Result]] = {}
    for rows in runs:
        for each in rows:
            told.setdefault((each.target, each.item), []).append(each)
    plainly = {(each.target, each.item): each for each in greedy if each.value is not None}
    groups: dict[tuple[str, str | None], list[_Several]] = {}
    asked: Counter[tuple[str, str | None]] = Counter()
    metrics: dict[tuple[str, str | None], Metric] = {}
    for key, rows in told.items():
        known, first = [each for each in rows if each.value is not None], rows[0]
        metric = metric_of(first.kind, first.metric)
        for suite in (first.suite, None) if metric.share else (first.suite,):
            asked[first.target, suite] += 1
            metrics[first.target, suite] = metric if suite else Metric("value", score=value_of)
            if len(known) >= fewest:
                worth, commonest = _commonest(known)
                cluster = f"{first.suite}/{first.cluster}"
                found = _Several(_agreement(known), worth, commonest, plainly.get(key), cluster)
                groups.setdefault((first.target, suite), []).append(found)
    table: list[dict[str, Any]] = []
    for name, count in asked.items():
        members, metric = groups.get(name, []), metrics[name]
        both = [each for each in members if each.greedy is not None]
        majority, drawn = _worths(members, metric, ground), _worths(both, metric, ground)
        greedily = metric.per_item([each.greedy for each in both if each.greedy is not None], ground)
        if len(drawn) != len(greedily):  # there is no such figure of one side
            drawn, greedily = [], []
        clusters, near = [each.cluster for each in members], [each.cluster for each in both][: len(drawn)]
        compared = paired(drawn, greedily, near, bounds=metric.bounds)
        table.append(
            {
                "target": name[0],
                "suite": name[1],
                "how": how,
                "asked": count,
                "coverage": len(members) / count,
                "answers": len(runs),
                "agreement": plain(mean([each.agreement for each in members], clusters, bounds=(0.0, 1.0))),
                "majority": plain(mean(majority, clusters[: len(majority)], bounds=metric.bounds)),
                "greedy": plain(mean(greedily, near, bounds=metric.bounds)),
                "majority_minus_greedy": plain(compared.difference),
                "p": compared.p,
            }
        )
    return table


def _worths(members: Sequence[_Several], metric: Metric, ground: Ground) -> list[float]:
    """What each item's commonest answer is worth; of a corpus figure one value each, whose mean it is."""
    if metric.sums is None:
        return [each.worth for each in members]
    return metric.per_item([each.commonest for each in members], ground)


def _said(row: Result) -> str:
    """What an answer is to be compared by: its words in normal form; one that cannot be read is an answer too."""
    return normalise_answer(row.output) or row.output if row.outcome == "answered" else f"({row.outcome})"


def _agreement(rows: Sequence[Result]) -> float:
    counts = Counter(map(_said, rows)).values()
    return sum(count * (count - 1) for count in counts) / (len(rows) * (len(rows) - 1))


def _commonest(rows: Sequence[Result]) -> tuple[float, Result]:
    """What the commonest answer is worth, of several equally common ones the mean; and the first of them."""
    by_answer: dict[str, list[Result]] = {}
    for each in rows:
        by_answer.setdefault(_said(each), []).append(each)
    most = max(len(same) for same in by_answer.values())
    tops = [same for same in by_answer.values() if len(same) == most]
    worths = [sum(float(each.value or 0.0) for each in same) / most for same in tops]
    return sum(worths) / len(worths), tops[0][0]


def same(chosen: Sequence[Suite], config: Reliability, seed: int = 0) -> list[Example]:
    """Some items of each suite; of running text none, where nothing is answered."""
    kinds = [[item for item in suite.items if item.tags["kind"] != "perplexity"] for suite in chosen]
    return [item for items in kinds for item in sample(items, config.same, seed)] if config.same else []


def determinism(
    generator: Generator,
    chosen: Sequence[Suite],
    config: Reliability,
    way: Way,
    *,
    target: str,
    max_tokens: Mapping[str, int] | None = None,
    seed: int = 0,
    step: Callable[[int], None] = lambda done: None,
) -> list[dict[str, Any]]:
    """Suite (and all suites) x {asked again, asked alone}: the share of items whose greedy answer differs, to the
    letter, from that given among many; and the largest difference of log-probability in nats. No log is read."""
    items = [
        choice.requests(item)[0] if item.tags["kind"] == "choice" else item
        for item in way.prepared(same(chosen, config, seed))
    ]
    first = _once(generator, items, max_tokens)
    step(len(items))
    second = _once(generator, items, max_tokens)
    step(len(items))
    alone: list[_Answer] = []
    for item in items:
        alone += _once(generator, [item], max_tokens)
        step(1)
    table: list[dict[str, Any]] = []
    for how, other in (("asked again", second), ("asked alone", alone)):
        for suite in (None, *dict.fromkeys(str(item.tags["suite"]) for item in items)):
            pairs = [
                (one, two, item)
                for one, two, item in zip(first, other, items, strict=True)
                if suite in (None, item.tags["suite"])
            ]
            known = [(one, two, item) for one, two, item in pairs if one.text is not None and two.text is not None]
            differs = [float(one.text != two.text) for one, two, _ in known]
            found = rate(differs) if known else undefined(0, _why(pairs))
            gaps = [_distance(one.logprobs, two.logprobs) for one, two, _ in known]
            table.append(
                {"target": target, "suite": suite, "how": how, "asked": len(pairs)}
                | plain(found)
                | {"largest": max((gap for gap in gaps if gap is not None), default=None)}
            )
    return table if items else []


class _Answer(NamedTuple):
    text: str | None
    logprobs: tuple[float, ...]
    reason: str = ""


def _why(pairs: Sequence[tuple[_Answer, _Answer, Example]]) -> str:
    return next((each.reason for one, two, _ in pairs for each in (one, two) if each.reason), "no item was asked")


def _once(generator: Generator, items: Sequence[Example], max_tokens: Mapping[str, int] | None) -> list[_Answer]:
    """Every item asked now, all in one call by kind of request; the likeliest choice stands for its text."""
    found: dict[str, _Answer] = {}
    groups: dict[Any, list[Example]] = {}
    for item in items:
        how = "choice" if item.tags["kind"] == "choice" else sampling_of(item, max_tokens or {}, GREEDY)
        groups.setdefault(how, []).append(item)
    for how, members in groups.items():
        try:
            if how == "choice":
                scored = generator.loglikelihood(members, [item.choices for item in members])
                for item, each in zip(members, scored, strict=True):
                    totals = tuple(one.logprob for one in each)
                    fault = next((one.error for one in each if one.error), "")
                    text = None if fault else item.choices[totals.index(max(totals))]
                    found[item_id(item)] = _Answer(text, () if fault else totals, fault)
            else:
                for item, (said, *_) in zip(members, generator.generate(members, how), strict=True):
                    failed = said.finish == "error"
                    text = None if failed else said.message.content
                    found[item_id(item)] = _Answer(text, said.logprobs, said.error if failed else "")
        except Stopped:
            raise
        except (TutelageError, NotImplementedError) as error:
            found.update({item_id(item): _Answer(None, (), str(error) or "the generator failed") for item in members})
    return [found[item_id(item)] for item in items]


def _distance(one: Sequence[float], two: Sequence[float]) -> float | None:
    if not one or len(one) != len(two):
        return None
    return max(abs(left - right) for left, right in zip(one, two, strict=True))


def shown(row: Mapping[str, Any]) -> list[tuple[float, Mapping[str, Any]]]:
    """Of a calibration row the accuracy at the shares that stand in tables."""
    return [(share, each) for share in SHOWN for each in row["selective"] if abs(each["coverage"] - share) < 0.02][:4]


def headline(found: Mapping[str, Any]) -> dict[str, Any]:
    """Target -> suite -> calibration, selection, agreement, determinism, each with its interval and n or a reason."""
    table: dict[str, dict[str, dict[str, Any]]] = {}

    def place(row: Mapping[str, Any]) -> dict[str, Any]:
        return table.setdefault(row["target"], {}).setdefault(row["suite"] or ALL, {})

    for row in found.get("calibration", ()):
        kept: dict[str, Any] = {name: _figure(row[name]) for name in ("ece", "ece_after", "gain", "aurc")}
        if row["suite"] is not None:  # why a suite has no figure stands in summary.json
            kept = {name: figure for name, figure in kept.items() if figure["value"] is not None}
        kept["temperature"] = row["temperature"]
        kept["selective"] = {f"{share:.0%}": _figure(each) for share, each in shown(row)}
        place(row).setdefault("calibration", {})[row["source"]] = kept
    for row in found.get("consistency", ()):
        kept = {name: _figure(row[name]) for name in ("agreement", "majority", "majority_minus_greedy")}
        place(row).setdefault("consistency", {})[row["how"]] = kept
    for row in found.get("determinism", ()):
        place(row).setdefault("differs", {})[row["how"]] = _figure(row) | {"largest": row["largest"]}
    return table


def _figure(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: row.get(name) for name in ("value", "low", "high", "n", "reason")}
