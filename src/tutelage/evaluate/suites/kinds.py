"""Which figures each kind of item has, the headline first: means of what every answer scored, or figures of a corpus.

One mechanism for all. A `Metric` says which answers it is of and either what each of them scores, whose mean is taken,
or what is summed over them and the function of those sums. From that follow its value, its interval, the paired
difference of two systems with its test, and its resamples for ranks: whoever states the figure has it from here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from tutelage.core.records import Example
from tutelage.evaluate.suite import Result, golds_of
from tutelage.evaluate.suites.answers import language_of
from tutelage.evaluate.suites.judged import Agreement, corrected, corrected_difference
from tutelage.evaluate.suites.stereotypes import CONDITIONS, bias, takes_side
from tutelage.measure.calibration import ece
from tutelage.measure.clusters import Floats, Partition
from tutelage.measure.intervals import Interval, Sums, bootstrap_sums, mean, negative, per_item, rate, undefined
from tutelage.measure.paired import Tested, paired_calibration, paired_means, paired_sums
from tutelage.measure.sequences import betting_by_clusters
from tutelage.measure.text import corpus_sums, macro_f1_sums, translation_metric

Rows = Sequence[Result]
V = TypeVar("V", float, Floats)
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
    higher: bool | None = True
    """Whether more is better. None: neither more nor less is."""
    best: float | None = None
    """The value that is best where neither more nor less is better; without one the figure only describes."""
    bounds: tuple[float, float] | None = (0.0, 1.0)
    """Between which values it lies; None where nothing bounds it."""
    step: float | None = 0.5
    """By how much one item's value must get better or worse to count as fixed or broken: any change of what is right or
    wrong, half the range of what lies between. None: no size is stated, and nothing counts."""
    score: Callable[[Result], float | None] | None = None
    """What one answer scores; None takes its score of this name. The figure is their mean."""
    sums: Callable[[Rows, Ground], Built] | None = None
    """The figure of a corpus instead: what is summed over the answers, and the function of the sums."""
    interval: Callable[[Rows, Ground, float], Interval] | None = None
    """The figure with an interval of its own kind at a level, where neither a mean nor the bootstrap is right."""
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

    def figure(self, rows: Rows, ground: Ground, *, level: float = 0.95, sure: bool = False) -> tuple[Interval, str]:
        """The figure of the rows that have a value, with its interval, and its signature or "". `sure`: of a mean an
        interval that covers at least as often as it says, whatever the values (rates have one anyway)."""
        known = self.rows(rows, ground)
        if not known:
            return undefined(0, "no item was measured", level=level), ""
        if self.interval is not None:
            return self.interval(known, ground, level), ""
        clusters = [each.cluster for each in known]
        if self.sums is not None:
            built = self.sums(known, ground)
            if isinstance(built, str):
                return undefined(len(known), built, method="bootstrap", level=level), ""
            sums, signature = built
            return bootstrap_sums(*sums, clusters=clusters, resamples=ground.resamples, level=level), signature
        values, _ = self.values(known)
        if set(values) <= {0.0, 1.0} and self.bounds == (0.0, 1.0):
            return rate(values, clusters, level), ""
        if sure and self.bounds is not None:
            return betting_by_clusters(values, clusters, self.bounds, level), ""
        return mean(values, clusters, level, bounds=self.bounds), ""

    @property
    def describes(self) -> bool:
        """Whether no value of it is better than another."""
        return self.higher is None and self.best is None

    @property
    def plain(self) -> bool:
        """Whether it is the mean of what each answer scored, and nothing else."""
        return self.sums is None and self.interval is None

    @property
    def share(self) -> bool:
        """Whether it runs from 0 to 1 and more is better: such figures have a common mean."""
        return bool(self.higher) and self.bounds == (0.0, 1.0)

    def worth(self, value: V) -> V:
        """How good a value is, in the figure's own unit: more is better. Where it only describes, all are alike."""
        if self.best is not None:
            return -abs(value - self.best)
        return 0.0 * value if self.higher is None else value if self.higher else -value

    def gain(self, before: float, after: float) -> float:
        """How much better an item is after than before; negative where it is worse."""
        return self.worth(after) - self.worth(before)

    def upward(self, gap: Interval, before: float | None, after: float | None) -> Interval:
        """A difference, after minus before, with better pointing up; undefined where that cannot be said."""
        more = self.higher
        if self.best is not None and before is not None and after is not None:
            if (before - self.best) * (after - self.best) < 0:
                reason = f"the two lie on both sides of {self.best:g}, which is best"
                return undefined(gap.n, reason, method=gap.method, level=gap.level)
            more = before + after < 2 * self.best
        if more is None:
            return undefined(gap.n, "neither more nor less of it is better", method=gap.method, level=gap.level)
        return gap if more else negative(gap)

    def right(self, value: float) -> bool | None:
        """Whether a value is the best there is, or the worst (False); None between them, and where there are none."""
        if self.bounds is None or self.higher is None or value not in self.bounds:
            return None
        return value == self.bounds[1 if self.higher else 0]

    def turned(self, before: float, after: float) -> int:
        """1 where an item was fixed, -1 where it was broken, 0 where it did not change by `step`."""
        gain = self.gain(before, after)
        return 0 if self.step is None or abs(gain) < self.step - 1e-9 else 1 if gain > 0 else -1

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

    def per_item(self, rows: Rows, ground: Ground) -> list[float]:
        """One value for each of these rows, which all have one and are the figure's, whose mean is the figure: what the
        answer scored, or what it is to a corpus figure. Nothing where there is no such figure of them."""
        if self.sums is None:
            return [self.scored(each) or 0.0 for each in rows]
        built = self.sums(rows, ground) if rows else ""
        values = [] if isinstance(built, str) else per_item(built[0]).tolist()
        return values if all(map(math.isfinite, values)) else []

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
            sides_ = self.values(first)[0], self.values(second)[0]
            found = paired_means(*sides_, clusters, bounds=self.bounds, level=level, seed=seed)
        by, values = self, [(self.scored(b), self.scored(a)) for a, b in both]
        if self.apart is not None or self.sums is not None:  # no mean of answers: they count as they were valued
            by, values = metric_of(first[0].kind, first[0].metric), [(b.value, a.value) for a, b in both]
        gains = [by.gain(before or 0.0, after or 0.0) for before, after in values]
        told = {"better": sum(gain > 0 for gain in gains), "worse": sum(gain < 0 for gain in gains)}
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


def _how_sure(rows: Rows) -> tuple[str, str]:
    """The scores that say how sure an answer was and whether it was right: of weighed labels, both as weighed."""
    how = "_by_likelihood" if any("confidence_by_likelihood" in each.scores for each in rows) else ""
    return f"confidence{how}", f"accuracy{how}"


def _sure(rows: Rows, ground: Ground) -> list[bool]:
    return [all(name in each.scores for name in _how_sure(rows)) for each in rows]


def _sureness(rows: Rows) -> tuple[list[float], list[float]]:
    said, right = _how_sure(rows)
    return [each.scores[said] for each in rows], [float(each.scores[right] == 1.0) for each in rows]


def _calibration(rows: Rows, ground: Ground, level: float) -> Interval:
    return ece(*_sureness(rows), clusters=[each.cluster for each in rows], level=level)


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


def _people(rows: Rows, ground: Ground) -> Sequence[Agreement]:
    """What people found of the judge: each suite has its own judge's error, and of several together it is not known."""
    suites = {each.suite for each in rows}
    return ground.people.get(rows[0].suite, ()) if len(suites) == 1 else ()


def _judged(rows: Rows, ground: Ground, level: float) -> Interval:
    return corrected(*_said_of(rows), _people(rows, ground), level)


def _judged_apart(first: Rows, second: Rows, ground: Ground, other: Ground, level: float) -> Tested:
    (one, clusters), (two, _) = _said_of(first), _said_of(second)
    return corrected_difference(one, two, clusters, _people(first, ground), _people(second, other), level)


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

    return Metric(f"bias_{condition}", higher=None, best=0.0, bounds=(-1.0, 1.0), sums=build, of=of)


_UNREAD = Metric("unextracted", higher=False, score=_unextracted)
_CALIBRATION = Metric("calibration_error", higher=False, interval=_calibration, apart=_calibration_apart, of=_sure)
_MACRO = Metric("macro_f1", sums=_macro_f1, of=_of_shared_labels)
_CHRF = Metric("chrf", step=0.2, sums=_translation("chrf"))

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
        Metric("rouge_l", step=0.2),
        Metric("rouge_l_summary"),
        _CHRF,
        Metric("reference_coverage"),
        Metric("source_coverage"),
        Metric("compression", higher=None, bounds=None, step=None),
        Metric("novelty", higher=None, step=None),
        Metric("copied", higher=None, step=None),
        Metric("density", higher=None, bounds=None, step=None),
        _UNREAD,
    ),
    "perplexity": (
        Metric("bits_per_byte", higher=False, bounds=None, step=0.1, sums=_ratio("bits", "bytes")),
        Metric("tokens_per_byte", higher=False, bounds=None, step=None, sums=_ratio("tokens", "bytes")),
    ),
    "judged": (Metric("score", interval=_judged, apart=_judged_apart), Metric("judge")),
}
"""The figures of each kind, the headline first."""

HEADLINE: Mapping[str, str] = {kind: metrics[0].name for kind, metrics in KIND.items()}
"""The metric that `Result.value` holds, by kind."""

NAMED: Mapping[str, Metric] = {
    **{name: Metric(name, higher=False) for name in ("attack_success", "refused", "blocked", "invented")},
    **{name: Metric(name, higher=False) for name in ("harmful content", "toxic", "brier")},
    "perplexity": Metric("perplexity", higher=False, bounds=None, step=None),
    **{each.name: each for metrics in KIND.values() for each in metrics},
}
"""Every metric by its name, those of the red team and of older results among them: the one place that knows which way
is better and what it lies between."""


def named(name: str) -> Metric:
    """The metric of a row of results (`Result.metric`)."""
    return NAMED.get(name) or Metric(name)


def common(rows: Rows) -> Metric | None:
    """What these rows measure together: their metric, or of several that are means of answers, run the same way and lie
    between the same bounds, the mean of what each answer is worth; None where there is no such figure."""
    found = {(each.kind, each.metric): metric_of(each.kind, each.metric) for each in rows}
    metrics = {each.name: each for each in found.values()}
    first = next(iter(metrics.values()), Metric(""))
    if len(metrics) < 2:
        return first
    ways = {(each.plain, each.higher, each.bounds) for each in metrics.values()}
    if len(ways) > 1 or not first.plain or first.bounds is None:
        return None
    return Metric("value", higher=first.higher, bounds=first.bounds, score=value_of)


def value_of(row: Result) -> float | None:
    """What an answer is worth by its own metric."""
    return row.value


def metric_of(kind: str, name: str) -> Metric:
    """A figure of a kind by its name; of the red team's and of older results the mean of what they scored."""
    return next((each for each in KIND.get(kind, ()) if each.name == name), named(name))
