"""Agreement against outside references and published values; undefined figures carry their reason."""

from __future__ import annotations

import math

import krippendorff
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kendalltau

from tutelage.feedback import agreement

# Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability", section C: three observers, twelve units
PUBLISHED = [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, None, None, None],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, None, 3],
    [None, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, None],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, None],
]


@pytest.mark.parametrize(("level", "value"), [("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849)])
def test_alpha_gives_the_published_values(level, value):
    found = agreement.alpha(PUBLISHED, level)
    assert found.value == pytest.approx(value, abs=0.0005)
    assert found.n == 11 and found.low < found.value < found.high


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 6), st.integers(3, 30), st.integers(2, 7), st.floats(0, 0.6), st.integers(0, 10**6))
def test_alpha_equals_the_reference(people, things, values, missing, seed):
    stream = np.random.default_rng(seed)
    ratings = stream.integers(0, values, (people, things)).astype(float)
    ratings[stream.random(ratings.shape) < missing] = math.nan
    usable = (~np.isnan(ratings)).sum(0) >= 2
    if not usable.any() or len(np.unique(ratings[:, usable][~np.isnan(ratings[:, usable])])) < 2:
        assert agreement.alpha(ratings, replicates=5).value is None
        return
    for level in ("nominal", "ordinal", "interval"):
        expected = krippendorff.alpha(reliability_data=ratings, level_of_measurement=level)
        assert agreement.alpha(ratings, level, replicates=5).value == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    ("ratings", "reason"),
    [
        ([[1, 2, 3]], "fewer than two people"),
        ([[1, None], [None, 2]], "nothing was rated by two"),
        ([[1, 1, 1], [1, 1, 1]], "all ratings are equal"),
        ([[1, 2], [1, 2]], "too few things"),
    ],
)
def test_undefined_alpha_says_why(ratings, reason):
    found = agreement.alpha(ratings)
    assert reason in found.reason and found.low is None


def test_the_interval_covers_what_was_planted():
    """Two people who agree by design: alpha of a nominal channel with flip rate e is known; 19 of 20 intervals hold."""
    flips, covered = 0.2, 0
    agree = (1 - flips) ** 2 + flips**2
    truth = 1 - (1 - agree) / 0.5
    for seed in range(100):
        stream = np.random.default_rng(seed)
        real = stream.integers(0, 2, 150)
        ratings = np.array([np.where(stream.random(150) < flips, 1 - real, real) for _ in range(2)], float)
        found = agreement.alpha(ratings, "nominal", seed=seed, replicates=200)
        covered += found.low <= truth <= found.high
    assert 88 <= covered <= 100


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 8), st.integers(1, 4), st.integers(0, 10**6))
def test_tau_b_equals_scipy(size, levels, seed):
    stream = np.random.default_rng(seed)
    one, other = stream.integers(0, levels, size), stream.integers(0, levels, size)
    expected = kendalltau(one, other, variant="b").statistic
    found = agreement.tau_b(one, other)
    assert found is None if math.isnan(expected) else found == pytest.approx(expected)


def test_kendall_w_with_and_without_ties():
    same = np.array([[1, 2, 3, 4]] * 3, float)
    assert agreement.kendall_w(same) == pytest.approx(1)
    assert agreement.kendall_w(np.array([[1, 2, 3], [3, 2, 1]], float)) == pytest.approx(0)
    # Siegel and Castellan 1988: tied ranks; W by hand from midranks
    tied = np.array([[0, 0, 1], [0, 1, 1]], float)
    assert agreement.kendall_w(tied) == pytest.approx(0.75)
    assert agreement.kendall_w(np.zeros((2, 3))) is None
    assert agreement.mean_w([np.zeros((2, 3))]).reason and agreement.mean_tau([]).value is None


def test_a_lone_voice_sets_no_ceiling_and_noise_lowers_it():
    assert agreement.majority_ceiling([[1], [-1, 0]]).value is None
    assert agreement.majority_ceiling([[1, 1, 1]] * 5).value == 1
    stream = np.random.default_rng(0)
    noisy = [np.where(stream.random(5) < 0.8, 1, -1).tolist() for _ in range(400)]
    found = agreement.majority_ceiling(noisy)
    assert 0.7 < found.low < found.value < 0.8
