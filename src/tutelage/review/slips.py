"""How often reviewers slip, told from decisions that two of them judged; no truth is needed.

Two voices on one decision differ only where one of them is wrong. With the share of harm left free in each stratum,
and the same two error rates everywhere, both rates can be told from how often voices agree in strata with much and
with little harm (Hui and Walter 1980; Dawid and Skene 1979 with one table for all). That takes slips to be independent
of each other: what misleads every reviewer alike is not seen here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tutelage.core.records import Record
from tutelage.measure.statistics import Interval
from tutelage.review.sample import Reviewed

LEAST = 20
"""Decisions with two voices below which nothing is said of slips."""
CHAINS, WARM, KEPT = 64, 60, 60
"""Chains of the sampler, steps before anything is kept, and steps kept of each."""
MOST = 0.49
"""Highest error rate: beyond one half, harmful would mean harmless."""

Floats = NDArray[np.float64]


class Slips(Record):
    """The error rates of one kind of reviewers."""

    alarm: Interval
    """How often a voice calls a harmless decision harmful."""
    oversight: Interval
    """How often a voice calls a harmful decision harmless."""
    pairs: int
    """Decisions with more than one voice behind these rates."""


def slips(reviewed: Sequence[Reviewed], *, level: float = 0.95, seed: int = 0) -> Slips | None:
    """Both error rates with credible intervals (medians and quantiles of the posterior); None with too few pairs.

    Gibbs sampling with Jeffreys' priors, all chains at once; the same rows give the same figures.
    """
    voices = [(row.stratum, row.voices or (row.harmful,)) for row in reviewed]
    pairs = sum(len(each) > 1 for _, each in voices)
    if pairs < LEAST:
        return None
    patterns = sorted({(sum(each), len(each)) for _, each in voices})
    strata = sorted({stratum for stratum, _ in voices})
    seen = Counter((stratum, (sum(each), len(each))) for stratum, each in voices)
    counts = np.array([[seen[stratum, pattern] for pattern in patterns] for stratum in strata])
    yes, no = np.array([said for said, _ in patterns]), np.array([of - said for said, of in patterns])
    alarm, oversight = _sampled(counts, yes, no, np.random.default_rng(seed))

    def told(draws: Floats) -> Interval:
        low, value, high = (float(each) for each in np.quantile(draws, [(1 - level) / 2, 0.5, (1 + level) / 2]))
        return Interval(value=value, low=low, high=high, n=pairs, level=level, method="latent class")

    return Slips(alarm=told(alarm), oversight=told(oversight), pairs=pairs)


def _sampled(counts: NDArray[np.int64], yes: Floats, no: Floats, dice: np.random.Generator) -> tuple[Floats, Floats]:
    """Draws of (alarm, oversight); `counts` [strata, patterns], `yes` and `no` voices of each pattern."""
    voices = counts @ (yes + no)
    share = np.clip((counts @ yes) / np.maximum(voices, 1), 0.02, 0.98)
    share = np.tile(share[None, :, None], (CHAINS, 1, 1))
    alarm = oversight = np.full((CHAINS, 1, 1), 0.05)
    every = np.tile(counts[None], (CHAINS, 1, 1))
    kept: list[tuple[Floats, Floats]] = []
    for step in range(WARM + KEPT):
        harmful = np.log(share) + yes * np.log1p(-oversight) + no * np.log(oversight)
        harmless = np.log1p(-share) + yes * np.log(alarm) + no * np.log1p(-alarm)
        bad = dice.binomial(every, 1 / (1 + np.exp(np.clip(harmless - harmful, -50, 50))))
        good = every - bad
        share = _beta(bad.sum(2), good.sum(2), dice, 1 - 1e-6)[:, :, None]
        alarm = _beta((good * yes).sum((1, 2)), (good * no).sum((1, 2)), dice, MOST)[:, None, None]
        oversight = _beta((bad * no).sum((1, 2)), (bad * yes).sum((1, 2)), dice, MOST)[:, None, None]
        if step >= WARM:
            kept.append((alarm.ravel(), oversight.ravel()))
    return np.concatenate([each for each, _ in kept]), np.concatenate([each for _, each in kept])


def _beta(hits: NDArray[Any], others: NDArray[Any], dice: np.random.Generator, most: float) -> Floats:
    """A draw of a rate under Jeffreys' prior."""
    return np.clip(dice.beta(hits + 0.5, others + 0.5), 1e-6, most)
