"""Intervals cover what they promise, tests keep their level, and nothing undefined is ever 0."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from tutelage.measure import statistics as s


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
    assert s.lower_bound(59, 59) == pytest.approx(0.05 ** (1 / 59))
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


def _clustered(rng, groups, size, spread):
    """Rates drawn per cluster around one half, then items: what i.i.d. errors get wrong."""
    rates = rng.uniform(0.5 - spread, 0.5 + spread, groups)
    return (rng.random((groups, size)) < rates[:, None]).astype(float).ravel()


def coverage(repeats, seed=0):
    """Share of intervals that hold the truth, by method: (name, what, coverage)."""
    rng = np.random.default_rng(seed)
    names = [f"c{i // 8}" for i in range(30 * 8)]
    held = dict.fromkeys(["wilson", "exact", "rate", "mean", "naive", "bootstrap", "paired", "newcombe"], 0)
    for turn in range(repeats):
        k, j = int(rng.binomial(60, 0.2)), int(rng.binomial(80, 0.35))
        held["wilson"] += s.wilson(k, 60).low <= 0.2 <= s.wilson(k, 60).high
        held["exact"] += s.clopper_pearson(k, 60).low <= 0.2 <= s.clopper_pearson(k, 60).high
        gap = s.newcombe(k, 60, j, 80)
        held["newcombe"] += gap.low <= -0.15 <= gap.high
        values = _clustered(rng, 30, 8, 0.45)
        for name, figure in [
            ("rate", s.rate(values, names)),
            ("mean", s.mean(values, names)),
            ("naive", s.mean(values)),
            ("bootstrap", s.bootstrap(lambda d, v=values: v[d].mean(), 240, clusters=names, resamples=200, seed=turn)),
        ]:
            held[name] += figure.low <= 0.5 <= figure.high
        shift = rng.normal(0.1, 0.3, 30).repeat(8)
        noise = rng.normal(size=240)
        both = s.paired(noise + shift + rng.normal(size=240) * 0.2, noise, names).difference
        held["paired"] += both.low <= 0.1 <= both.high
    return {name: count / repeats for name, count in held.items()}


def test_coverage_small():
    found = coverage(200)
    slack = 4 * math.sqrt(0.05 * 0.95 / 200)
    for name in ("wilson", "rate", "mean", "bootstrap", "paired", "newcombe"):
        assert found[name] > 0.95 - slack, (name, found)
    assert found["exact"] > 0.95 - slack / 2
    assert found["naive"] < 0.85, "ignoring clusters must be seen to fail"


@pytest.mark.slow
def test_coverage_full():
    found = coverage(3000, seed=1)
    for name in ("wilson", "rate", "mean", "paired", "newcombe"):
        assert 0.935 < found[name] < 0.975, (name, found)
    assert found["bootstrap"] > 0.92


def test_tests_keep_their_level_and_pairing_pays():
    rng = np.random.default_rng(3)
    false, exact, unpaired = 0, 0, 0
    for _ in range(200):
        latent = rng.normal(size=400)
        first = (latent + 0.4 * rng.normal(size=400) > -0.28).astype(float)
        second = (latent + 0.4 * rng.normal(size=400) > -0.28).astype(float)
        worse = (latent + 0.4 * rng.normal(size=400) > -0.13).astype(float)
        false += s.mcnemar(first, second).p < 0.05
        exact += s.mcnemar(first, worse).p < 0.05
        gap = s.newcombe(int(first.sum()), 400, int(worse.sum()), 400)
        unpaired += gap.low > 0
    assert false / 200 <= 0.08
    assert exact > 1.5 * unpaired


def test_mcnemar_is_the_exact_binomial():
    first, second = [1] * 30 + [0] * 10 + [1] * 5, [1] * 30 + [1] * 10 + [0] * 5
    compared = s.mcnemar(first, second)
    assert (compared.better, compared.worse) == (5, 10)
    assert compared.p == pytest.approx(stats.binomtest(5, 15).pvalue)
    assert s.mcnemar([1, 0, 1], [1, 0, 1]).p is None


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
