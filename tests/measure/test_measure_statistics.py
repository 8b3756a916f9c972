"""Figures are the published formulas', and nothing undefined is ever 0. Coverage stands in test_measure_coverage.py."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import linalg, stats

from tutelage.measure import statistics as s
from tutelage.measure.clusters import Partition


def test_wilson_and_clopper_pearson_agree_with_scipy():
    for successes, n in [(0, 10), (3, 10), (10, 10), (45, 300)]:
        known = stats.binomtest(successes, n)
        ours, theirs = s.wilson(successes, n), known.proportion_ci(method="wilson")
        assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)
        ours, theirs = s.clopper_pearson(successes, n), known.proportion_ci(method="exact")
        assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-9)


@pytest.mark.parametrize(("n", "bound"), [(20, 0.168), (30, 0.116), (50, 0.071), (100, 0.036), (256, 0.014)])
def test_no_success_still_has_an_upper_bound(n, bound):
    assert s.clopper_pearson(0, n).high == pytest.approx(bound, abs=6e-4)
    assert s.clopper_pearson(0, n).low == 0.0


def test_one_sided_bounds():
    assert s.upper_bound(0, 59) == pytest.approx(1 - 0.05 ** (1 / 59))
    assert s.upper_bound(0, 0) is None


@pytest.mark.parametrize("figure", [s.wilson(0, 0), s.clopper_pearson(0, 0), s.rate([]), s.mean([]), s.mean([0.5])])
def test_undefined_is_none_with_a_reason(figure):
    assert figure.low is None
    assert figure.high is None
    assert figure.reason
    assert not figure.defined


def test_one_cluster_is_not_enough():
    for figure in (
        s.rate([1, 0, 1], ["a"] * 3),
        s.mean([0.1, 0.5], ["a", "a"]),
        s.paired([1, 0], [0, 0], "aa").difference,
    ):
        assert figure.low is None
        assert "clusters" in figure.reason


def test_equal_values_never_give_a_zero_width():
    assert s.rate([1.0] * 40, [str(i // 4) for i in range(40)]).low == pytest.approx(0.025**0.1)
    assert s.mean([0.3] * 5).low is None
    exact = s.mean([1.0] * 50, bounds=(0, 1))
    assert exact.low == pytest.approx(1 - (1 - 0.025 ** (1 / 50)))
    same = s.paired([1, 0, 1, 1] * 10, [1, 0, 1, 1] * 10)
    assert same.p == 1.0
    assert same.difference.low < 0 < same.difference.high
    lost = s.paired([0.0] * 40, [1.0] * 40)
    assert lost.difference.high < -0.8
    assert s.non_inferior(lost.difference, 0.05).passed is False


def test_wrong_input_is_named():
    with pytest.raises(ValueError, match="cannot be"):
        s.wilson(5, 4)
    with pytest.raises(ValueError, match="finite"):
        s.mean([1.0, math.nan])
    with pytest.raises(ValueError, match="same items"):
        s.paired([1], [1, 0])
    with pytest.raises(ValueError, match="cluster names"):
        s.mean([1.0, 2.0], ["a"])
    with pytest.raises(ValueError, match="0 or 1"):
        s.rate([0.5])


def test_errors_of_clusters_are_those_of_the_whole_matrices():
    """CR2 and its degrees of freedom in closed form, beside the matrices they are defined by (Bell and McCaffrey)."""
    rng = np.random.default_rng(2)
    sizes = np.array([1, 2, 2, 5, 9])
    codes = np.repeat(np.arange(5), sizes)
    values = rng.normal(size=len(codes)) + np.array([0.0, 1.5, -1.0, 1.0, -0.5])[codes]
    parts = Partition.of(codes.tolist(), len(codes))
    n = len(codes)
    hat = np.full((n, n), 1 / n)
    rows = []
    for each in range(5):
        mine = codes == each
        inner = np.eye(mine.sum()) - hat[np.ix_(mine, mine)]
        root = linalg.fractional_matrix_power(inner, -0.5)
        rows.append(np.full(mine.sum(), 1 / n) @ root @ (np.eye(n) - hat)[mine])
    made = np.array(rows)
    assert parts.error(values) == pytest.approx(math.sqrt(((made @ values) ** 2).sum()))
    between = (sizes * (np.bincount(codes, values) / sizes - values.mean()) ** 2).sum() / 4
    inside = sum(((values[codes == g] - values[codes == g].mean()) ** 2).sum() for g in range(5)) / (n - 5)
    typical = (n - (sizes**2).sum() / n) / 4
    correlation = np.clip((between - inside) / (between + (typical - 1) * inside), 0, 1)
    spread = np.where(codes[:, None] == codes, correlation, 0.0)
    np.fill_diagonal(spread, 1.0)
    small = made @ spread @ made.T
    assert 0.1 < correlation < 0.9
    assert parts.degrees(values) == pytest.approx(np.trace(small) ** 2 / np.trace(small @ small))
    even = Partition.of([0, 0, 1, 1, 2, 2], 6)
    assert even.degrees(values[:6]) == 2.0


def test_means_of_unrelated_items_are_scipys():
    values, others = np.random.default_rng(4).normal(size=(2, 12))
    known = stats.ttest_1samp(values, 0.0).confidence_interval()
    assert (s.mean(values).low, s.mean(values).high) == pytest.approx((known.low, known.high))
    assert s.paired(values, others).p == pytest.approx(stats.ttest_rel(values, others).pvalue)


def test_clusters_with_equal_means_are_not_certain():
    """Each pair holds one right and one wrong: between clusters nothing varies, and that is no proof."""
    outcomes, names = [0.0, 1.0] * 20, [i // 2 for i in range(40)]
    assert s.mean(outcomes, names).reason == "all means of clusters are equal"
    bounded = s.mean(outcomes, names, bounds=(0, 1))
    assert bounded.low == pytest.approx(0.5 * 0.025 ** (1 / 20))
    assert s.rate(outcomes, names).low < 0.4


def test_sums_are_resampled_as_indices_are():
    rng = np.random.default_rng(1)
    values, names = rng.normal(size=60), (np.arange(60) // 4).tolist()
    columns = np.stack([values, np.ones(60)], axis=1)
    for clusters in (None, names):
        slow = s.bootstrap(lambda d: float(values[d].mean()), 60, clusters=clusters, resamples=300, seed=5)
        fast = s.bootstrap_sums(columns, lambda x: x[:, 0] / x[:, 1], clusters=clusters, resamples=300, seed=5)
        assert fast.model_dump() == pytest.approx(slow.model_dump())


def test_resamples_stay_in_bounded_memory(monkeypatch):
    monkeypatch.setattr("tutelage.measure.clusters.CHUNK", 500)
    parts = Partition.of(None, 100)
    chunks = list(parts.counts(23, 0))
    assert [len(chunk) for chunk in chunks] == [5, 5, 5, 5, 3]
    assert all((chunk.sum(axis=1) == 100).all() for chunk in chunks)
    assert len(next(parts.counts(23, 0, width=400))) == 1


def test_few_units_widen_a_percentile_interval():
    few, many = (Partition.of(None, n).tails(0.95) for n in (5, 10_000))
    assert few[0] < 0.002
    assert many[0] == pytest.approx(0.025, abs=1e-4)


def test_studentised_bootstrap_leans_to_the_long_tail():
    values = np.random.default_rng(8).lognormal(0, 1, 40)
    found, plain = s.bootstrap_t(values, seed=1), s.mean(values)
    assert found.high - found.value > 1.2 * (found.value - found.low)
    assert found.high > plain.high
    assert s.bootstrap_t([1.0] * 9).reason == "no variation between resamples"
    assert s.bootstrap_t([1.0]).reason == "fewer than two items"
    assert s.bootstrap_t([]).reason == "no items"


def test_paired_rates_have_bonett_and_prices_interval():
    first, second = [1.0] * 9 + [0.0] * 41, [1.0] * 7 + [0.0] * 40 + [1.0] * 3
    figure = s.paired(first, second).difference
    more, less = 3 / 52, 4 / 52
    half = stats.norm.ppf(0.975) * math.sqrt((more + less - (more - less) ** 2) / 52)
    assert (figure.value, figure.method) == (pytest.approx(-0.02), "bonett-price")
    assert (figure.low, figure.high) == pytest.approx((more - less - half, more - less + half))


def test_mid_p_is_the_published_one():
    """Fagerland, Lydersen and Laake 2013, table 2: 1 and 7 discordant pairs of 21, exact 0.070, mid-p 0.039."""
    first, second = [1] * 1 + [0] * 7 + [1] * 13, [0] * 1 + [1] * 7 + [1] * 13
    assert s.mcnemar(first, second).p == pytest.approx(0.0703, abs=5e-5)
    assert s.mcnemar(first, second, mid=True).p == pytest.approx(0.0391, abs=5e-5)
    assert s.mcnemar([1, 0], [0, 1], mid=True).p == 1.0


def test_mcnemar_is_the_exact_binomial():
    first, second = [1] * 30 + [0] * 10 + [1] * 5, [1] * 30 + [1] * 10 + [0] * 5
    compared = s.mcnemar(first, second)
    assert (compared.better, compared.worse) == (5, 10)
    assert compared.p == pytest.approx(stats.binomtest(5, 15).pvalue)
    assert s.mcnemar([1, 0, 1], [1, 0, 1]).p is None


def test_bounds_are_those_of_the_figure_and_not_of_what_was_seen():
    """Differences of something unbounded are never clipped, and are not certain where all are alike."""
    low, high = np.full(9, 0.2), np.full(9, 0.9)
    assert s.paired(high, low).difference.high <= 1.0
    free = s.paired(high, low, bounds=None).difference
    assert (free.low, free.reason) == (None, "all values are equal")
    wild = s.paired([9.0, 1.0, 5.0], [0.0, 0.0, 0.0], bounds=(0.0, 10.0)).difference
    assert (wild.low, wild.high) == (pytest.approx(-4.94, abs=0.01), 10.0)


def test_values_of_a_ratio_have_its_mean_and_its_spread():
    rng = np.random.default_rng(4)
    below = rng.integers(10, 2000, 300).astype(float)
    above = below * rng.normal(1.4, 0.3, 300)
    told, drawn = s.mean(s.linearised(above, below)), s.bootstrap_sums(
        np.stack([above, below], axis=1), lambda sums: sums[:, 0] / sums[:, 1]
    )  # fmt: skip
    assert told.value == pytest.approx(above.sum() / below.sum()) == pytest.approx(drawn.value)
    assert (told.low, told.high) == pytest.approx((drawn.low, drawn.high), abs=0.004)
    assert len(s.linearised([], [])) == 0


def test_permutation():
    rng = np.random.default_rng(0)
    noise = rng.normal(size=60)
    assert s.permutation(noise + 0.4, noise * 0.9) < 0.01
    assert s.permutation(rng.normal(size=60), rng.normal(size=60)) > 0.05
    assert s.permutation([1.0, 1.0, 1.0], [0.0, 0.0, 0.0]) == pytest.approx(2 / 8)
    assert s.permutation([], []) is None


def test_holm_and_benjamini_hochberg():
    ps = [0.01, None, 0.04, 0.03, 0.5]
    assert s.holm(ps) == [pytest.approx(0.04), None, pytest.approx(0.09), pytest.approx(0.09), pytest.approx(0.5)]
    raw = [0.01, 0.04, 0.03, 0.5]
    theirs = stats.false_discovery_control(raw)
    assert [p for p in s.benjamini_hochberg(ps) if p is not None] == pytest.approx(theirs.tolist())


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 1), max_size=12))
def test_adjusted_p_values_are_ordered_and_no_smaller(ps):
    for adjust in (s.holm, s.benjamini_hochberg):
        adjusted = adjust(ps)
        assert all(a >= p - 1e-12 and a <= 1 for a, p in zip(adjusted, ps, strict=True))
        by_size = [a for _, a in sorted(zip(ps, adjusted, strict=True))]
        assert all(x <= y + 1e-12 for x, y in itertools.pairwise(by_size))
    assert all(h >= b - 1e-12 for h, b in zip(s.holm(ps), s.benjamini_hochberg(ps), strict=True))


def test_minimum_detectable_effect_is_detected_eight_times_in_ten():
    rng = np.random.default_rng(5)
    effect = s.minimum_detectable_effect(1 / math.sqrt(100))
    found = sum(s.paired(rng.normal(effect, 1, 100), np.zeros(100)).p < 0.05 for _ in range(400))
    assert 0.72 < found / 400 < 0.87
    assert s.minimum_detectable_effect(None) is None
    assert s.visible_difference([1.0]) is None
    assert s.visible_difference([1.0] * 20) > 0
    assert s.items_needed(0.03, 0.5) == pytest.approx(4360, rel=0.01)
    assert s.items_needed(0.03, 0.5, correlation=0.75) == pytest.approx(1090, rel=0.01)
    assert s.minimum_detectable_effect(0.1, degrees=4) > 1.3 * s.minimum_detectable_effect(0.1)
    assert s.minimum_detectable_effect(0.1, comparisons=10) > s.minimum_detectable_effect(0.1)
    first, second = rng.normal(size=(2, 50))
    error = s.standard_error(first - second)
    assert s.detectable(first, second) == pytest.approx(s.minimum_detectable_effect(error, degrees=49))
    assert s.detectable([1.0], [0.0]) is None
    assert s.detectable([1.0, 1.0], [1.0, 1.0]) is None


def test_margins_decide_on_bounds():
    sure = s.paired([0.0] * 5 + [0.1] * 95, [0.0] * 100).difference
    assert s.non_inferior(sure, 0.02).passed is True
    assert s.equivalent(sure, 0.2).passed is True
    assert s.equivalent(sure, 0.01).passed is False
    few = s.paired([1, 0, 1], [0, 1, 1]).difference
    assert s.non_inferior(few, 0.02).passed is None
    assert s.non_inferior(s.mean([]), 0.02).passed is None
    assert s.equivalent(s.mean([]), 0.02).passed is None
    assert s.at_least(s.wilson(90, 100), 0.5) is True
    assert s.at_least(s.wilson(0, 0), 0.5) is None


def test_bootstrap_is_seeded_and_says_when_it_cannot():
    values = np.arange(30.0)
    first, second = (s.bootstrap(lambda d: float(values[d].mean()), 30, seed=7) for _ in range(2))
    assert first == second
    assert s.bootstrap(lambda d: math.nan, 5).reason
    assert s.bootstrap(lambda d: 1.0, 5).low is None
    assert s.bootstrap(lambda d: 1.0, 5, clusters="aaaaa").reason == "fewer than two clusters"
