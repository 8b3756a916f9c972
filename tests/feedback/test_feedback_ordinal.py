"""Scores on a scale: qualities, strictness and sureness recovered, with the stated coverage; gradients by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import approx_fprime
from scipy.special import expit

from tutelage.core.errors import DataError
from tutelage.feedback import ordinal
from tutelage.feedback.ordinal import graded_response

THRESHOLDS = np.array([-1.5, -0.5, 0.5, 1.6])


def scored(seed, things=400, people=12, per_thing=4, discrimination=1.8, blind=()):
    """Scores drawn from the model itself; `blind` people score whatever comes."""
    stream = np.random.default_rng(seed)
    quality, strict, sure = (
        stream.normal(size=things),
        stream.normal(size=people) * 0.7,
        stream.normal(size=people) * 0.4,
    )
    strict, sure = strict - strict.mean(), sure - sure.mean()
    rows = np.repeat(np.arange(things), per_thing)
    who = np.concatenate([stream.choice(people, per_thing, replace=False) for _ in range(things)])
    at_most = expit(
        discrimination * np.exp(sure[who])[:, None] * (THRESHOLDS + strict[who][:, None] - quality[rows][:, None])
    )
    said = (stream.random(len(rows))[:, None] > at_most).sum(axis=1)
    said = np.where(np.isin(who, blind), stream.integers(0, 5, len(rows)), said)
    return rows, who, said, quality, strict, sure


def test_the_slopes_are_those_of_the_likelihood():
    model = ordinal._Model(4, 5, np.linspace(-4, 4, 11), 1.0, 0.5)
    stream = np.random.default_rng(1)
    numbers, counts = stream.normal(size=13) * 0.3, stream.random((4, 5, 11))
    by_hand = approx_fprime(numbers, lambda at: model.lost(at, counts)[0], 1e-6)
    assert model.lost(numbers, counts)[1] == pytest.approx(by_hand, abs=2e-3)


def test_it_knows_things_better_than_the_mean_of_their_scores():
    ours, means = [], []
    for seed in range(4):
        rows, who, said, quality, *_ = scored(seed, per_thing=3, blind=(0, 1, 2))
        found = graded_response(rows, who, said, 5)
        ours.append(np.corrcoef(found.quality, quality)[0, 1])
        means.append(np.corrcoef(np.bincount(rows, said) / 3, quality)[0, 1])
        assert found.sureness[:3].max() < found.sureness[3:].mean() - 0.3
        assert found.posteriors.sum(1) == pytest.approx(1) and (np.diff(found.thresholds) > 0).all()
    assert np.mean(ours) > np.mean(means) + 0.05


def test_one_answer_says_nothing_and_two_steps_are_enough():
    zero = np.zeros(4, dtype=int)
    with pytest.raises(DataError, match="every score is the same"):
        graded_response(np.arange(4), zero, zero, 5)
    rows, who, said, quality, strict, _ = scored(0)
    found = graded_response(rows, who, (said > 2).astype(int), 2)
    assert np.corrcoef(found.quality, quality)[0, 1] > 0.75 and np.corrcoef(found.strictness, strict)[0, 1] > 0.9


@pytest.mark.slow
def test_what_was_planted_is_recovered_with_the_stated_coverage():
    """100 crowds: 400 things scored 1 to 5 by 4 of 12 people. 95% intervals hold 92 to 98 times in 100: 1,200
    strictness, 1,200 sureness, 400 thresholds, 40,000 qualities."""
    held = {"strictness": [], "sureness": [], "thresholds": [], "quality": []}
    for seed in range(100):
        rows, who, said, quality, strict, sure = scored(seed)
        found = graded_response(rows, who, said, 5)
        for name, truth in (
            ("strictness", strict), ("sureness", sure), ("thresholds", THRESHOLDS), ("quality", quality)
        ):  # fmt: skip
            held[name] += list(np.abs(getattr(found, name) - truth) < 1.96 * getattr(found, f"{name}_errors"))
    coverage = {name: float(np.mean(each)) for name, each in held.items()}
    print("coverage of 95% intervals:", {name: (round(value, 3), len(held[name])) for name, value in coverage.items()})
    assert all(0.92 <= value <= 0.98 for value in coverage.values()), coverage
