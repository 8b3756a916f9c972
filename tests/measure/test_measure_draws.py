"""Variance of draws beside that of items, held to simulations."""

import numpy as np
import pytest

from tutelage.measure.draws import over_draws


def crossed(rng, draws, items, between, within=0.3, noise=0.2):
    effect = rng.normal(0, between, (draws, 1)) if between else np.zeros((draws, 1))
    return 0.5 + effect + rng.normal(0, within, (1, items)) + rng.normal(0, noise, (draws, items))


def test_the_part_of_the_draws_is_found_and_the_interval_covers():
    rng = np.random.default_rng(0)
    deviations, covered = [], 0
    for _ in range(300):
        found = over_draws(crossed(rng, 5, 60, 0.1).tolist())
        deviations.append(found.deviation)
        covered += found.figure.low <= 0.5 <= found.figure.high
    assert np.mean(np.square(deviations)) == pytest.approx(0.01, rel=0.15), "the variance of the draws"
    assert 0.92 <= covered / 300 <= 0.99
    none = [over_draws(crossed(rng, 5, 60, 0.0).tolist()).deviation for _ in range(100)]
    assert np.median(none) < 0.02


def test_one_draw_says_nothing_about_others():
    found = over_draws([[1.0, 0.0, 1.0]])
    assert found.deviation is None and found.reason == "one draw says nothing about others"
    assert found.figure.value == pytest.approx(2 / 3) and found.figure.low is None
    assert over_draws([]).figure.value is None
    assert over_draws([[1.0, 1.0], [1.0, 1.0]]).figure.reason == "all values are equal"
