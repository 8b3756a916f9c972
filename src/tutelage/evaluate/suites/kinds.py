"""Which figures each kind of item has, the headline first: means of what every answer scored, or figures of a corpus.

One mechanism for all. A `Metric` says which answers it is of and either what each of them scores, whose mean is taken,
or what is summed over them and the function of those sums. From that follow its value, its interval, the paired
difference of two systems with its test, and its resamples for ranks: whoever states the figure has it from here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from tutelage.core.records import Example
from tutelage.evaluate.suite import Result, golds_of
from tutelage.evaluate.suites.answers import language_of
from tutelage.evaluate.suites.judged import Agreement, corrected, corrected_difference
from tutelage.evaluate.suites.stereotypes import CONDITIONS, bias, takes_side
from tutelage.measure.calibration import ece
from tutelage.measure.clusters import Floats, Partition
from tutelage.measure.intervals import Interval, Sums, bootstrap_sums, mean, rate, undefined
from tutelage.measure.paired import Tested, paired_calibration, paired_means, paired_sums
from tutelage.measure.text import corpus_sums, macro_f1_sums, translation_metric

Rows = Sequence[Result]
Built = tuple[Sums, str] | str
"""What is summed, and its signature (empty where it has none); or why there is no such figure of these items."""


@dataclass(frozen=True)
class Ground:
    """What figures are computed from beside the results."""

    items: Mapping[str, Example]
    people: Mapping[str, Sequence[Agreement]] = field(default_factory=dict)
    """Suite -> answers that people and the judge judged."""
    resamples: int = 200

    def knows(self, rows: Rows) -> bool:
        """Whether the texts of all these items are here."""
        return all(each.item in self.items for each in rows)


@dataclass(frozen=True)
class Metric:
    """One figure of a kind."""

    name: str
    higher: bool = True
    """Whether more is better."""
    bounds: tuple[float, float] | None = (0.0, 1.0)
    """Between which values it lies."""
    score: Callable[[Result], float | None] | None = None
    """What one answer scores; None takes its score of this name. The figure is their mean."""
    sums: Callable[[Rows, Ground], Built] | None = None
    """The figure of a corpus instead: what is summed over the answers, and the function of the sums."""
    interval: Callable[[Rows, Ground], Interval] | None = None
    """The figure with an interval of its own kind, where neither a mean nor the bootstrap is right."""
    apart: Callable[[Rows, Rows, Ground, Ground, float], Tested] | None = None
    """The difference of two such figures, first minus second, on the same items, at a level."""
    of: Callable[[Rows, Ground], list[bool]] | None = None
    """Which of the answers it is of; by default all of a corpus, and those that have the score."""

    def scored(self, row: Result) -> float | None:
        """What one answer scores, None where it has no such score."""
        if self.score is not None:
            return self.score(row)
        return row.scores.get(self.name, row.value if row.metric == self.name else None)

    def _of(self, rows: Rows, ground: Ground) -> list[bool]:
        if self.of is not None:
            return self.of(rows, ground)
        return [True if self.sums else self.scored(each) is not None for each in rows]

    def rows(self, rows: Rows, ground: Ground) -> list[Result]:
        """The answers that have a value and that the figure is of."""
        known = measured(rows)
        return [each for each, here in zip(known, self._of(known, ground), strict=True) if here]

    def pairs(
        self, first: Rows, second: Rows, ground: Ground, other: Ground | None = None
    ) -> list[tuple[Result, Result]]:
        """The same of two systems' answers to the same items in one order: both have a value, and the figure is of
        both."""
        both = [(a, b) for a, b in zip(first, second, strict=True) if a.value is not None and b.value is not None]
        here = self._of([a for a, _ in both], ground), self._of([b for _, b in both], other or ground)
        return [pair for pair, one, two in zip(both, *here, strict=True) if one and two]

    def fits(self, rows: Rows, ground: Ground) -> bool:
        """Whether these items have the figure."""
        return any(self._of(rows, ground))

    def built(self, rows: Rows, ground: Ground) -> Built:
        """The figure as a function of sums over answers that it is of: also a mean, of its scores."""
        if self.sums is not None:
            return self.sums(rows, ground)
        scores = np.array([[self.scored(each) or 0.0, 1.0] for each in rows]).reshape(-1, 2)
        return Sums(scores, _quotient), ""

    def figure(self, rows: Rows, ground: Ground) -> tuple[Interval, str]:
        """The figure of the rows that have a value, with its interval, and its signature or ""."""
        known = self.rows(rows, ground)
        if not known:
            return undefined(0, "no item was measured"), ""
        if self.interval is not None:
            return self.interval(known, ground), ""
        clusters = [each.cluster for each in known]
        if self.sums is not None:
            built = self.sums(known, ground)
            if isinstance(built, str):
                return undefined(len(known), built, method="bootstrap"), ""
            sums, signature = built
            return bootstrap_sums(*sums, clusters=clusters, resamples=ground.resamples), signature
        values, _ = self.values(known)
        if set(values) <= {0.0, 1.0} and self.bounds == (0.0, 1.0):
            return rate(values, clusters), ""
        return mean(values, clusters, bounds=self.bounds), ""

    def value(self, rows: Rows, ground: Ground) -> tuple[float | None, str]:
        """The figure and its signature alone, without what the bootstrap of its interval costs."""
        if self.sums is None:
            figure, signature = self.figure(rows, ground)
            return figure.value, signature
        known = self.rows(rows, ground)
        built = self.sums(known, ground) if known else ""
        if isinstance(built, str):
            return None, ""
        value = built[0].whole(Partition.of([each.cluster for each in known], len(known)))
        return (value if math.isfinite(value) else None), built[1]

    def values(self, rows: Rows) -> tuple[list[float], list[str]]:
        """The answers' scores and their clusters, where the figure is their mean; of a corpus figure, what each answer
        scored by itself."""
        if self.interval is not None:
            return [], []
        has = [(score, each.cluster) for each in rows if (score := self.scored(each)) is not None]
        return [score for score, _ in has], [cluster for _, cluster in has]

    def difference(
        self,
        first: Rows,
        second: Rows,
        ground: Ground,
        other: Ground | None = None,
        *,
        level: float = 0.95,
        seed: int = 0,
    ) -> Tested:
        """First minus second, of two systems' answers to the same items in one order, with its interval and the test
        that fits. `better` and `worse` count the items that became so. `other` is the second's ground where
        another judge judged it."""
        both = self.pairs(first, second, ground, other)
        first, second = [a for a, _ in both], [b for _, b in both]
        if not both:
            return Tested(difference=undefined(0, "no item was measured on both sides", level=level), p=None)
        clusters = [each.cluster for each in first]
        if self.apart is not None:
            found = self.apart(first, second, ground, other or ground, level)
        elif self.sums is not None:
            built = self.sums([*first, *second], ground)
            if isinstance(built, str):
                return Tested(difference=undefined(len(both), built, level=level), p=None)
            columns, of = built[0]
            sides = Sums(columns[: len(both)], of), Sums(columns[len(both) :], of)
            found = paired_sums(*sides, clusters, resamples=ground.resamples, level=level, seed=seed)
        else:
            found = paired_means(self.values(first)[0], self.values(second)[0], clusters, level=level, seed=seed)
        better, worse, higher = found.better, found.worse, self.higher
        if self.apart is not None or self.sums is not None:  # no mean of answers: they count as they were valued
            gaps = [(a.value or 0.0) - (b.value or 0.0) for a, b in both]
            better, worse = sum(gap > 0 for gap in gaps), sum(gap < 0 for gap in gaps)
            higher = metric_of(first[0].kind, first[0].metric).higher
        told = {"better": better, "worse": worse} if higher else {"better": worse, "worse": better}
        return found.model_copy(update=told)


def _quotient(sums: Floats) -> Floats:
    """Sum over sum, NaN over nothing."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(sums[:, 0] / sums[:, 1])


def measured(rows: Rows) -> list[Result]:
    """The rows that have a value; the others lower coverage, which the caller counts."""
    return [each for each in rows if each.value is not None]


GONE = "the items' texts are no longer there"


def _said(rows: Rows) -> list[str]:
    return [each.output if each.outcome == "answered" else "" for each in rows]


def _translation(name: str) -> Callable[[Rows, Ground], Built]:
    def build(rows: Rows, ground: Ground) -> Built:
        if not ground.knows(rows):
            return GONE
        items = [ground.items[each.item] for each in rows]
        references = [golds_of(item) for item in items]
        languages = {language_of(item) for item in items}
        spaced = not languages & {"zh", "ja", "th"}
        if name == "bleu" and spaced and all(len(gold.split()) < 4 for golds in references for gold in golds):
            return "no reference has four words"
        metric = translation_metric(name, next(iter(languages)) if len(languages) == 1 else "")
        (columns, of), signature = corpus_sums(metric, _said(rows), references)
        return Sums(columns, lambda sums: of(sums) / 100), signature

    return build


def _macro_f1(rows: Rows, ground: Ground) -> Built:
    return macro_f1_sums(_said(rows), [str(ground.items[each.item].target) for each in rows]), ""


def _of_shared_labels(rows: Rows, ground: Ground) -> list[bool]:
    """Without classes that all items share there is no F1 of a class."""
    shared = ground.knows(rows) and len({ground.items[each.item].choices for each in rows}) == 1
    return [shared] * len(rows)


def _stated(rows: Rows) -> tuple[str, str]:
    """The scores that say how sure an answer was and whether it was right: of weighed labels, as they were weighed."""
    if any("confidence_by_likelihood" in each.scores for each in rows):
        return "confidence_by_likelihood", "accuracy_by_likelihood"
    weighed = any("accuracy_by_likelihood" in each.scores for each in rows)
    return "confidence", "accuracy_by_likelihood" if weighed else "accuracy"


def _sure(rows: Rows, ground: Ground) -> list[bool]:
    keys = _stated(rows)
    return [all(key in each.scores for key in keys) for each in rows]


def _sureness(rows: Rows) -> tuple[list[float], list[float]]:
    confidence, accuracy = _stated(rows)
    return [each.scores[confidence] for each in rows], [float(each.scores[accuracy] == 1.0) for each in rows]


def _calibration(rows: Rows, ground: Ground) -> Interval:
    return ece(*_sureness(rows), clusters=[each.cluster for each in rows])


def _calibration_apart(first: Rows, second: Rows, ground: Ground, other: Ground, level: float) -> Tested:
    clusters, sides = [each.cluster for each in first], (_sureness(first), _sureness(second))
    return paired_calibration(*sides, clusters, resamples=ground.resamples, level=level)


def _ratio(above: str, below: str) -> Callable[[Rows, Ground], Built]:
    """Sum over sum: long documents count for as much as they are long."""

    def build(rows: Rows, ground: Ground) -> Built:
        return Sums(np.array([[each.scores.get(name, 0.0) for name in (above, below)] for each in rows]), _quotient), ""

    return build


def _followed(how: str) -> Callable[[Rows, Ground], Built]:
    """The share of all constraints that were kept (IFEval's instruction level)."""

    def build(rows: Rows, ground: Ground) -> Built:
        kept = [[value for key, value in each.scores.items() if key.endswith(f"/{how}")] for each in rows]
        if not any(kept):
            return "no constraint was decided"
        return Sums(np.array([[sum(each), len(each)] for each in kept], dtype=np.float64), _quotient), ""

    return build


def _unextracted(row: Result) -> float:
    return float(row.outcome == "unextracted")


def _said_of(rows: Rows) -> tuple[list[float], list[str]]:
    return [float(each.value or 0.0) for each in rows], [each.cluster for each in rows]


def _judged(rows: Rows, ground: Ground) -> Interval:
    return corrected(*_said_of(rows), ground.people.get(rows[0].suite, ()))


def _judged_apart(first: Rows, second: Rows, ground: Ground, other: Ground, level: float) -> Tested:
    (one, clusters), (two, _) = _said_of(first), _said_of(second)
    mine, theirs = (each.people.get(first[0].suite, ()) for each in (ground, other))
    found = corrected_difference(one, two, clusters, mine, theirs, level)
    test = {} if found.p is None else {"z, with the judge's error": found.p}
    return Tested.model_validate(found.model_dump() | {"test": next(iter(test), ""), "tests": test})


def _bias(condition: str) -> Metric:
    def of(rows: Rows, ground: Ground) -> list[bool]:
        here = [each.slices.get("condition") == condition and each.item in ground.items for each in rows]
        grouped = any(yes and ground.items[row.item].tags.get("groups") for yes, row in zip(here, rows, strict=True))
        return [yes and grouped for yes in here]

    def build(rows: Rows, ground: Ground) -> Built:
        items = [ground.items[each.item] for each in rows]
        sides = [takes_side(item, each.output) for item, each in zip(items, rows, strict=True)]
        if all(side is None for side in sides):
            return "no answer takes a side"
        right = [each.output == item.target for item, each in zip(items, rows, strict=True)]
        return bias(sides, right, CONDITIONS[condition]), ""

    return Metric(f"bias_{condition}", higher=False, bounds=(-1.0, 1.0), sums=build, of=of)


_UNREAD = Metric("unextracted", higher=False, score=_unextracted)
_CALIBRATION = Metric("calibration_error", higher=False, interval=_calibration, apart=_calibration_apart, of=_sure)
_MACRO = Metric("macro_f1", sums=_macro_f1, of=_of_shared_labels)
_CHRF = Metric("chrf", sums=_translation("chrf"))

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
    "translate": (_CHRF, Metric("bleu", sums=_translation("bleu")), Metric("exact"), _UNREAD),
    "rule": (Metric("kept"), Metric("right")),
    "instruct": (
        Metric("strict"),
        Metric("loose"),
        Metric("constraints_strict", sums=_followed("strict")),
        Metric("constraints_loose", sums=_followed("loose")),
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
        Metric("bits_per_byte", higher=False, bounds=None, sums=_ratio("bits", "bytes")),
        Metric("tokens_per_byte", higher=False, bounds=None, sums=_ratio("tokens", "bytes")),
    ),
    "judged": (Metric("score", interval=_judged, apart=_judged_apart), Metric("judge")),
}
"""The figures of each kind, the headline first."""

HEADLINE: Mapping[str, str] = {kind: metrics[0].name for kind, metrics in KIND.items()}
"""The metric that `Result.value` holds, by kind."""

LOWER_IS_BETTER = frozenset(each.name for metrics in KIND.values() for each in metrics if not each.higher) | {
    *("attack_success", "refused", "invented", "toxic", "perplexity", "brier"),
}
"""Metrics of which less is better, those of the red team and of older results among them."""


def metric_of(kind: str, name: str) -> Metric:
    """A figure of a kind by its name; of the red team's and of older results the mean of what they scored."""
    known = (each for each in KIND.get(kind, ()) if each.name == name)
    plain = Metric(name, higher=name not in LOWER_IS_BETTER, bounds=None if name == "perplexity" else (0.0, 1.0))
    return next(known, plain)
