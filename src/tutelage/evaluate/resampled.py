"""One metric of one system as a function of which items were drawn, so that systems are resampled together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from tutelage.evaluate.suite import Result, golds_of
from tutelage.evaluate.systems import System
from tutelage.measure.calibration import bins_of
from tutelage.measure.text import segments

Floats = NDArray[np.float64]

CORPUS = frozenset(("chrf", "bleu", "macro_f1", "calibration_error"))
"""Metrics of a whole set of answers that are no mean over items."""


class Drawn(NamedTuple):
    """One metric of one system on n items: its figure for each row of weights [resamples, n] (how often each item was
    drawn)."""

    figures: Callable[[Floats], Floats]
    values: list[float] | None
    """Per item, where the figure is their mean."""
    signature: str = ""


def _mean(values: Sequence[float]) -> Drawn:
    array = np.asarray(values, dtype=np.float64)
    return Drawn(lambda weights: np.asarray((weights @ array) / weights.sum(axis=1)), list(values))


def _macro_f1(said: Sequence[str], gold: Sequence[str]) -> Drawn:
    """The mean F1 over the classes that were drawn, as measure.text.macro_f1_interval has it."""
    labels = sorted(set(gold))
    truth = np.array([[each == label for label in labels] for each in gold], dtype=np.float64)
    guess = np.array([[each == label for label in labels] for each in said], dtype=np.float64)

    def figures(weights: Floats) -> Floats:
        asked, told, right = weights @ truth, weights @ guess, weights @ (truth * guess)
        with np.errstate(invalid="ignore"):
            return np.asarray(np.nanmean(np.where(asked > 0, 2 * right / (asked + told), np.nan), axis=1))

    return Drawn(figures, None)


def _translated(metric: str, said: Sequence[str], golds: Sequence[Sequence[str]]) -> Drawn | str:
    if metric == "bleu" and all(len(gold.split()) < 4 for each in golds for gold in each):
        return "no reference has four words"
    scorer = CHRF() if metric == "chrf" else BLEU(force=True)
    counts, figure_of = segments(scorer, said, golds)

    def figures(weights: Floats) -> Floats:
        sums = np.rint(weights @ counts).astype(np.int64)
        return np.array([figure_of(each) / 100 for each in sums])

    return Drawn(figures, None, str(scorer.get_signature()))


def _calibration(rows: Sequence[Result]) -> Drawn:
    """The error over bins of equal mass; the bins are those of all items, also for a resample."""
    p = np.array([each.scores["confidence"] for each in rows])
    y = np.array([float(each.scores["accuracy"] == 1.0) for each in rows])
    bins = bins_of(p.tolist())
    gaps = np.zeros((len(p), len(bins)))
    for place, members in enumerate(bins):
        gaps[members, place] = (p - y)[members]
    return Drawn(lambda weights: np.asarray(np.abs(weights @ gaps).sum(axis=1) / weights.sum(axis=1)), None)


def drawn(metric: str, rows: Sequence[Result], system: System) -> Drawn | str:
    """A metric of rows that have a value, or why it cannot be had from what is still known."""
    if metric == "calibration_error":
        return _calibration(rows) if all("confidence" in each.scores for each in rows) else "no confidences were kept"
    if metric in CORPUS:
        if any(each.item not in system.items for each in rows):
            return "the items' texts are no longer there"
        said = [each.output if each.outcome == "answered" else "" for each in rows]
        items = [system.items[each.item] for each in rows]
        if metric == "macro_f1":
            if len({item.choices for item in items}) > 1:
                return "the items have no classes in common"
            return _macro_f1(said, [str(item.target) for item in items])
        return _translated(metric, said, [golds_of(item) for item in items])
    values = [each.value if metric == each.metric else each.scores.get(metric) for each in rows]
    if any(each is None for each in values):
        return "not every answer has this figure"
    return _mean([float(each) for each in values if each is not None])


def weights_of(codes: NDArray[np.int64], count: int, resamples: int, seed: int) -> Floats:
    """How often each item is drawn [resamples, items]: whole clusters, with replacement."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(count, np.full(count, 1 / count), resamples)[:, codes].astype(np.float64)
