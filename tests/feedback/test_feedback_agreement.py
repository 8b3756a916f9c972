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


def test_ac1_gives_the_published_value_where_ratings_are_missing():
    """Gwet's own example (irrCAC, data set cac.raw4raters) is the same table: AC1 0.77544, observed 0.81818, by chance
    0.19032."""
    found = agreement.ac1(PUBLISHED)
    assert found.value == pytest.approx(0.77544, abs=5e-6) and found.n == 11
    assert found.low < found.value <= found.high
    observed, chance = 0.8181818, 0.1903212
    assert found.value == pytest.approx((observed - chance) / (1 - chance), abs=1e-5)


def test_ac1_stays_high_where_nearly_everything_is_of_one_class():
    """The paradox that AC1 was made for: 123 of 125 things alike, and alpha is about zero."""
    first, second = [0] * 123 + [1, 0], [0] * 123 + [0, 1]
    assert agreement.alpha([first, second]).value < 0
    share = np.mean(first + second)
    chance = 2 * share * (1 - share)  # two classes
    assert agreement.ac1([first, second]).value == pytest.approx((123 / 125 - chance) / (1 - chance))
    assert "say how many" in agreement.ac1([[1, 1, 1], [1, 1, 1]]).reason
    assert agreement.ac1([[1, 1, 1], [1, 1, 1]], classes=2).value == 1


def test_intervals_over_groups_are_wider_where_groups_hang_together():
    stream = np.random.default_rng(0)
    offset = np.repeat(stream.integers(0, 2, 30), 10)  # in half of the tasks people see everything otherwise
    real = stream.integers(0, 2, 300)
    ratings = np.array([real, np.where(offset, 1 - real, real)], float)
    alone = agreement.alpha(ratings)
    grouped = agreement.alpha(ratings, clusters=np.repeat(np.arange(30), 10).tolist())
    assert grouped.value == alone.value and grouped.clusters == 30 and grouped.n == 300
    assert grouped.half_width > 2 * alone.half_width
    each = agreement.alpha(ratings, clusters=list(range(300)))
    assert each.half_width == pytest.approx(alone.half_width, rel=0.15)


def test_sets_of_labels_are_compared_by_masi():
    """Passonneau 2006: equal 0; one holds the other 1 - 2/3 Jaccard; overlap 1 - 1/3 Jaccard; apart 1."""
    sets = [frozenset(each) for each in ("ab", "a", "abc", "bd", "c", "")]
    assert agreement.masi(sets[0], sets[0]) == 0 == agreement.masi(sets[5], frozenset())
    assert agreement.masi(sets[0], sets[1]) == pytest.approx(1 - 2 / 3 * 1 / 2)
    assert agreement.masi(sets[0], sets[2]) == pytest.approx(1 - 2 / 3 * 2 / 3)
    assert agreement.masi(sets[0], sets[3]) == pytest.approx(1 - 1 / 3 * 1 / 3)
    assert agreement.masi(sets[0], sets[4]) == 1 == agreement.masi(sets[0], sets[5])


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 4), st.integers(4, 12), st.integers(0, 10**6))
def test_alpha_of_sets_equals_the_reference(people, things, seed):
    """nltk's masi_distance and AnnotationTask.alpha, which know no missing answers."""
    masi = pytest.importorskip("nltk.metrics").masi_distance
    task = pytest.importorskip("nltk.metrics.agreement").AnnotationTask
    stream = np.random.default_rng(seed)
    said = [[frozenset(np.array(list("abc"))[stream.random(3) < 0.5]) for _ in range(things)] for _ in range(people)]
    if len({each for row in said for each in row} - {frozenset()}) < 2:
        return
    said = [[each or frozenset("z") for each in row] for row in said]  # nltk divides by the size of the union
    rows = [(str(p), str(t), said[p][t]) for p in range(people) for t in range(things)]
    assert agreement.alpha_of_sets(said).value == pytest.approx(task(data=rows, distance=masi).alpha(), abs=1e-9)


def test_each_label_has_its_own_agreement():
    said = [
        [frozenset("ab"), frozenset("a"), frozenset(), frozenset("a"), None],
        [frozenset("a"), frozenset("a"), frozenset("b"), frozenset("a"), frozenset("b")],
    ]
    found = agreement.alpha_by_label(said)
    plain = [[None if each is None else float("a" in each) for each in row] for row in said]
    assert set(found) == {"a", "b"} and found["a"][0].value == agreement.alpha(plain).value == 1
    assert (
        found["b"][0].value < 0
        and found["b"][0].n == 4
        and found["b"][1].value == agreement.ac1([[1, 0, 0, 0, None], [0, 0, 1, 0, 1]], classes=2).value
    )
    assert agreement.alpha_of_sets([[frozenset("a")] * 4] * 2).reason.startswith("all ratings are equal")
