"""Which figures each kind of item has, the headline first: means of what every answer scored, or figures of a corpus.

One mechanism for all: a `Metric` either names a score of the answers, whose mean is taken, or brings a `statistic`, a
function of the items drawn, from which the bootstrap gives intervals and the paired tests their differences.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from tutelage.core.records import Example
from tutelage.evaluate.suite import Result, golds_of, slices_of
from tutelage.evaluate.suites.answers import language_of
from tutelage.evaluate.suites.judged import Agreement, corrected
from tutelage.evaluate.suites.stereotypes import CONDITIONS, bias, takes_side
from tutelage.measure.calibration import ece
from tutelage.measure.statistics import Indices, Interval, bootstrap, mean, rate, undefined
from tutelage.measure.text import corpus_statistic, macro_f1_statistic, translation_metric

Rows = Sequence[Result]
Statistic = Callable[[Indices], float]
Built = tuple[Statistic, str] | str
"""A statistic and its signature (empty where it has none); or why there is none on these items."""


@dataclass(frozen=True)
class Ground:
    """What figures are computed from beside the results."""

    items: Mapping[str, Example]
    people: Mapping[str, Sequence[Agreement]] = field(default_factory=dict)
    """Suite -> answers that people and the judge judged."""
    resamples: int = 200


@dataclass(frozen=True)
class Metric:
    """One figure of a kind."""

    name: str
    higher: bool = True
    """Whether more is better."""
    bounds: tuple[float, float] | None = (0.0, 1.0)
    """Between which values it lies."""
    statistic: Callable[[Rows, Ground], Built] | None = None
    """The figure of a corpus; None takes the mean of the answers' scores of this name."""
    interval: Callable[[Rows, Ground], Interval] | None = None
    """The figure with an interval of its own kind, where neither a mean nor the bootstrap is right."""
    apt: Callable[[Rows, Ground], bool] | None = None
    """Whether the items have such a figure at all; by default: a statistic always, a score where any answer has it."""

    def fits(self, rows: Rows, ground: Ground) -> bool:
        """Whether these items have the figure."""
        if self.apt is not None:
            return self.apt(rows, ground)
        return bool(self.statistic or self.interval) or any(self.name in each.scores for each in rows)

    def figure(self, rows: Rows, ground: Ground) -> tuple[Interval, str]:
        """The figure of the rows that have a value, with its interval, and its signature or ""."""
        known = measured(rows)
        if self.interval is not None:
            return self.interval(known, ground), ""
        if self.statistic is not None:
            if not known:
                return undefined(0, "no item was measured", method="bootstrap"), ""
            built = self.statistic(known, ground)
            if isinstance(built, str):
                return undefined(len(known), built, method="bootstrap"), ""
            clusters = [each.cluster for each in known]
            return bootstrap(built[0], len(known), clusters=clusters, resamples=ground.resamples), built[1]
        values, clusters = self.values(known)
        if not values:
            return undefined(0, "no item was measured"), ""
        if set(values) <= {0.0, 1.0} and self.bounds == (0.0, 1.0):
            return rate(values, clusters), ""
        return mean(values, clusters, bounds=self.bounds), ""

    def values(self, rows: Rows) -> tuple[list[float], list[str]]:
        """The answers' scores of this name, and their clusters."""
        has = [each for each in rows if self.name in each.scores]
        return [each.scores[self.name] for each in has], [each.cluster for each in has]


def measured(rows: Rows) -> list[Result]:
    """The rows that have a value; the others lower coverage, which the caller counts."""
    return [each for each in rows if each.value is not None]


def _said(rows: Rows) -> list[str]:
    return [each.output if each.outcome == "answered" else "" for each in rows]


def _translation(name: str) -> Callable[[Rows, Ground], Built]:
    def build(rows: Rows, ground: Ground) -> Built:
        items = [ground.items[each.item] for each in rows]
        references = [golds_of(item) for item in items]
        languages = {language_of(item) for item in items}
        spaced = not languages & {"zh", "ja", "th"}
        if name == "bleu" and spaced and all(len(gold.split()) < 4 for golds in references for gold in golds):
            return "no reference has four words"
        metric = translation_metric(name, next(iter(languages)) if len(languages) == 1 else "")
        statistic, signature = corpus_statistic(metric, _said(rows), references)
        return (lambda drawn: statistic(drawn) / 100), signature

    return build


def _one_set_of_labels(rows: Rows, ground: Ground) -> bool:
    """Without classes that all items share there is no F1 of a class."""
    return len({ground.items[each.item].choices for each in rows}) == 1


def _macro_f1(rows: Rows, ground: Ground) -> Built:
    return macro_f1_statistic(_said(rows), [str(ground.items[each.item].target) for each in rows]), ""


def _calibration(rows: Rows, ground: Ground) -> Interval:
    told = [each for each in rows if "confidence" in each.scores and "accuracy" in each.scores]
    key = "accuracy_by_likelihood" if any("accuracy_by_likelihood" in each.scores for each in told) else "accuracy"
    told = [each for each in told if key in each.scores]
    right = [float(each.scores[key] == 1.0) for each in told]
    clusters = [each.cluster for each in told]
    return ece([each.scores["confidence"] for each in told], right, clusters=clusters, resamples=ground.resamples)


def _has_confidence(rows: Rows, ground: Ground) -> bool:
    return any("confidence" in each.scores for each in rows)


def _ratio(above: str, below: str) -> Callable[[Rows, Ground], Built]:
    """Sum over sum: long documents count for as much as they are long."""

    def build(rows: Rows, ground: Ground) -> Built:
        top = np.array([each.scores.get(above, 0.0) for each in rows])
        bottom = np.array([each.scores.get(below, 0.0) for each in rows])

        def statistic(drawn: Indices) -> float:
            whole = float(bottom[drawn].sum())
            return float(top[drawn].sum()) / whole if whole else float("nan")

        return statistic, ""

    return build


def _followed(how: str) -> Callable[[Rows, Ground], Built]:
    """The share of all constraints that were kept (IFEval's instruction level)."""

    def build(rows: Rows, ground: Ground) -> Built:
        kept = [[value for key, value in each.scores.items() if key.endswith(f"/{how}")] for each in rows]
        if not any(kept):
            return "no constraint was decided"
        hits, counts = np.array([sum(each) for each in kept]), np.array([len(each) for each in kept])

        def statistic(drawn: Indices) -> float:
            whole = int(counts[drawn].sum())
            return float(hits[drawn].sum()) / whole if whole else float("nan")

        return statistic, ""

    return build


def _unextracted(rows: Rows, ground: Ground) -> Interval:
    return rate([float(each.outcome == "unextracted") for each in rows], [each.cluster for each in rows])


def _judged(rows: Rows, ground: Ground) -> Interval:
    suite = rows[0].suite if rows else ""
    return corrected(
        [float(each.value or 0.0) for each in rows], [each.cluster for each in rows], ground.people.get(suite, ())
    )


def _bias(condition: str) -> Metric:
    def here(rows: Rows, ground: Ground) -> list[Result]:
        return [each for each in rows if slices_of(ground.items[each.item]).get("condition") == condition]

    def apt(rows: Rows, ground: Ground) -> bool:
        return any(ground.items[each.item].tags.get("groups") for each in here(rows, ground))

    def interval(rows: Rows, ground: Ground) -> Interval:
        rows = here(rows, ground)
        items = [ground.items[each.item] for each in rows]
        sides = [takes_side(item, each.output) for item, each in zip(items, rows, strict=True)]
        if all(side is None for side in sides):
            return undefined(len(rows), "no answer takes a side", method="bootstrap")
        right = [each.output == item.target for item, each in zip(items, rows, strict=True)]
        statistic, clusters = bias(sides, right, CONDITIONS[condition]), [each.cluster for each in rows]
        return bootstrap(statistic, len(rows), clusters=clusters, resamples=ground.resamples)

    return Metric(f"bias_{condition}", higher=False, bounds=(-1.0, 1.0), interval=interval, apt=apt)


_UNREAD = Metric("unextracted", higher=False, interval=_unextracted)
_CALIBRATION = Metric("calibration_error", higher=False, interval=_calibration, apt=_has_confidence)
_MACRO = Metric("macro_f1", statistic=_macro_f1, apt=_one_set_of_labels)
_CHRF = Metric("chrf", statistic=_translation("chrf"))

KIND: Mapping[str, tuple[Metric, ...]] = {
    "choice": (
        Metric("accuracy"),
        _MACRO,
        Metric("accuracy_per_token"),
        Metric("accuracy_per_character"),
        Metric("accuracy_per_byte"),
        Metric("accuracy_pmi"),
        Metric("accuracy_order_averaged"),
        Metric("accuracy_over_orders"),
        Metric("order_consistency"),
        Metric("probability"),
        _CALIBRATION,
        *map(_bias, CONDITIONS),
    ),
    "classify": (
        Metric("accuracy"),
        _MACRO,
        Metric("accuracy_by_likelihood"),
        Metric("probability"),
        _CALIBRATION,
        _UNREAD,
        *map(_bias, CONDITIONS),
    ),
    "extractive": (Metric("f1"), Metric("exact"), _UNREAD),
    "generate": (Metric("exact"), Metric("f1"), _UNREAD),
    "arithmetic": (Metric("exact"), Metric("marked"), Metric("unit"), _UNREAD),
    "translate": (_CHRF, Metric("bleu", statistic=_translation("bleu")), Metric("exact"), _UNREAD),
    "rule": (Metric("kept"), Metric("right")),
    "instruct": (
        Metric("strict"),
        Metric("loose"),
        Metric("constraints_strict", statistic=_followed("strict")),
        Metric("constraints_loose", statistic=_followed("loose")),
        _UNREAD,
    ),
    "summarise": (
        Metric("rouge_l"),
        Metric("rouge_l_summary"),
        _CHRF,
        Metric("reference_coverage"),
        Metric("source_coverage"),
        Metric("compression", bounds=None),
        Metric("novelty"),
        Metric("copied"),
        Metric("density", bounds=None),
        _UNREAD,
    ),
    "perplexity": (
        Metric("bits_per_byte", higher=False, bounds=None, statistic=_ratio("bits", "bytes")),
        Metric("tokens_per_byte", higher=False, bounds=None, statistic=_ratio("tokens", "bytes")),
    ),
    "judged": (Metric("score", interval=_judged), Metric("judge")),
}
"""The figures of each kind, the headline first."""

HEADLINE: Mapping[str, str] = {kind: metrics[0].name for kind, metrics in KIND.items()}
"""The metric that `Result.value` holds, by kind."""

LOWER_IS_BETTER = frozenset(each.name for metrics in KIND.values() for each in metrics if not each.higher) | {
    *("attack_success", "refused", "invented", "toxic", "perplexity", "brier"),
}
"""Metrics of which less is better, those of the red team and of older results among them."""


def metric_of(kind: str, name: str) -> Metric:
    """A figure of a kind by its name."""
    return next((each for each in KIND[kind] if each.name == name), Metric(name))
