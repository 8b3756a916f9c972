"""Paired differences of means, of figures of sums and of calibration errors: exact where they can be, and simulated."""

import numpy as np
import pytest
from scipy import stats

from tutelage.measure.clusters import Partition
from tutelage.measure.intervals import Sums
from tutelage.measure.paired import error_of, paired_calibration, paired_means, paired_sums, swapped
from tutelage.measure.statistics import permutation
from tutelage.measure.text import corpus_sums, macro_f1_sums, translation_metric


def ratio(sums):
    return sums[:, 0] / sums[:, 1]


def two(first, second):
    return Sums(first, ratio), Sums(second, ratio)


def texts(rng, count, shift):
    """Documents of very different lengths: bits of two models and bytes."""
    size = rng.lognormal(4, 1, count).round() + 1
    bits = size * (2.0 + 0.3 * rng.standard_normal(count))
    other = bits + size * (shift + 0.1 * rng.standard_normal(count))
    return np.column_stack([other, size]), np.column_stack([bits, size])


# -- means


@pytest.mark.parametrize("count", [6, 40, 700])
def test_where_all_items_agree_the_test_says_how_unlikely_that_is(count):
    """All gaps alike: two of 2^n flips are as extreme, and no rounding of a permutation hides it."""
    clusters = [str(place) for place in range(count)]
    whole = paired_means([0.75] * count, [0.5] * count, clusters)
    assert whole.p == pytest.approx(2.0 ** (1 - count)) and whole.difference.value == 0.25
    right = paired_means([1.0] * count, [0.0] * count, clusters)
    assert right.test == "exact McNemar" and right.p == pytest.approx(2.0 ** (1 - count))
    assert (right.better, right.worse) == (count, 0)
    assert paired_means([0.5] * count, [0.5] * count, clusters).p == 1.0


def test_what_nothing_bounds_is_not_clipped_and_what_is_bounded_is():
    """Bits or nats that happen to lie between 0 and 1 may differ by more than 1; shares never do."""
    first, second = [0.9, 0.95, 0.1], [0.05, 0.02, 0.9]
    clusters = ["a", "b", "c"]
    free, held = (paired_means(first, second, clusters, bounds=each).difference for each in (None, (0.0, 1.0)))
    assert free.value == held.value and free.high > 1.0 and held.high == 1.0 and held.low == -1.0
    alike = paired_means([0.6] * 4, [0.5] * 4, list("abcd"), bounds=None).difference
    assert not alike.defined and alike.value == pytest.approx(0.1), "without bounds equal gaps say nothing of others"
    assert paired_means([0.6] * 4, [0.5] * 4, list("abcd")).difference.defined


def test_sign_flips_are_exact_where_all_that_differ_agree():
    gaps = [0.1, 0.4, 0.0, 0.2, 0.0, 0.3, 0.3]
    assert permutation(gaps, [0.0] * 7) == pytest.approx(2 / 2**5)
    flips = np.array([[1 - 2 * (turn >> bit & 1) for bit in range(7)] for turn in range(2**7)])
    assert permutation(gaps, [0.0] * 7) == (np.abs(flips @ gaps) >= sum(gaps) - 1e-12).mean()
    assert permutation([1.0, -1.0, 0.5], [0.0] * 3) == 1.0
    assert permutation([0.0] * 30, [0.0] * 30) == 1.0
    assert permutation([0.2] * 30, [0.1] * 30, ["one"] * 30) == 1.0, "one cluster shows nothing"


# -- figures of sums


def test_few_swaps_are_all_gone_through():
    first, second = texts(np.random.default_rng(0), 6, 1.0)
    found = paired_sums(*two(first, second))
    assert found.p == 2 / 2**6 and found.test == "approximate randomization"
    names = ["a", "a", "a", "b", "b", "c"]
    assert paired_sums(*two(first, second), names).p == 2 / 2**3
    assert (
        paired_sums(*two(first, second), ["a"] * 6).p is None
        and "two clusters" in paired_sums(*two(first, second), ["a"] * 6).difference.reason
    )
    same = paired_sums(*two(second, second))
    assert same.p == 1.0 and same.difference.reason == "no variation between resamples"
    with pytest.raises(ValueError, match="need the same items"):
        paired_sums(*two(first, second[:5]))


def test_items_that_were_said_alike_do_not_count_as_evidence():
    """Three of forty differ: at best 2 of the 8 ways to swap them are as extreme, whatever the rounds say."""
    first, second = texts(np.random.default_rng(1), 40, 0.0)
    first[3:] = second[3:]
    first[:3, 0] = second[:3, 0] + 5
    assert paired_sums(*two(first, second)).p == 2 / 2**3


def test_a_tail_beyond_the_rounds_is_never_beyond_all_swaps():
    first, second = texts(np.random.default_rng(2), 14, 2.0)
    p = swapped(*two(first, second), Partition.of(None, 14), rounds=500)
    assert 2 / 2**14 <= p < 2e-3
    many = swapped(*two(*texts(np.random.default_rng(2), 200, 1.0)), Partition.of(None, 200), rounds=500)
    assert many < 1e-10, "a thousand rounds say nothing about one in a million: the tail is a normal one"


def test_a_difference_of_sums_covers_and_its_test_keeps_its_level():
    rng, truth, held, false, found = np.random.default_rng(3), 0.05, 0, 0, 0
    for turn in range(300):
        some = paired_sums(*two(*texts(rng, 60, truth)), resamples=200, seed=turn)
        none = paired_sums(*two(*texts(rng, 60, 0.0)), resamples=200, seed=turn)
        held += some.difference.low <= truth <= some.difference.high
        found, false = found + (some.p < 0.05), false + (none.p < 0.05)
    assert 0.90 <= held / 300 <= 0.985 and false / 300 <= 0.09 and found / 300 > 0.5
    assert error_of(some.difference) == pytest.approx(some.difference.half_width / 2.0, rel=0.02)


def test_translations_are_compared_as_a_corpus():
    references = [[f"the {a} sits on the {b}"] for a in ("cat", "dog", "hen", "cow") for b in ("mat", "hill", "cart")]
    good, bad = [gold[0] for gold in references], ["the cat is here now" for _ in references]
    one, signature = corpus_sums(translation_metric("chrf"), good, references)
    other, _ = corpus_sums(translation_metric("chrf"), bad, references)
    found = paired_sums(one, other, resamples=300)
    assert found.difference.low > 20 and found.p < 0.01 and "nc:6" in signature
    blue, _ = corpus_sums(translation_metric("bleu"), good, references)
    same = paired_sums(blue, blue)
    assert same.difference.value == 0.0 and same.p == 1.0
    assert "tok:zh" in corpus_sums(translation_metric("bleu", "zh"), ["你好"], [["你好"]])[1]


def test_macro_f1_is_compared_over_the_same_classes():
    rng = np.random.default_rng(4)
    gold = [("good", "bad", "mixed")[place % 3] for place in range(90)]
    worse = [each if rng.random() < 0.5 else "bad" for each in gold]
    found = paired_sums(macro_f1_sums(gold, gold), macro_f1_sums(worse, gold), resamples=300)
    assert found.difference.low > 0.2 and found.p < 1e-4 and found.difference.value < 1


# -- calibration errors


def sure(rng, count, off):
    """Probabilities, and outcomes that come `off` seldomer."""
    p = rng.uniform(0.3, 0.95, count)
    return p, (rng.random(count) < p - off).astype(float)


def test_a_difference_of_calibration_errors_covers_and_its_test_keeps_its_level():
    rng, held, false, found, turns = np.random.default_rng(5), 0, 0, 0, 60
    for turn in range(turns):
        one, two, three = sure(rng, 400, 0.25), sure(rng, 400, 0.05), sure(rng, 400, 0.05)
        some = paired_calibration(one, two, resamples=200, seed=turn)
        none = paired_calibration(two, three, resamples=200, seed=turn)
        held += some.difference.low <= 0.2 <= some.difference.high
        false, found = false + (none.p < 0.05), found + (some.p < 0.05)
    assert held / turns >= 0.9 and false / turns <= 0.12 and found / turns > 0.9
    few = paired_calibration(sure(rng, 100, 0.0), sure(rng, 100, 0.0))
    assert few.difference.value is None and few.p is None and "fewer than 300" in few.difference.reason


def test_the_p_of_means_is_that_of_its_sources():
    rng = np.random.default_rng(6)
    one, two = (rng.random(50) < 0.6).astype(float), (rng.random(50) < 0.4).astype(float)
    found = paired_means(one, two, [str(n) for n in range(50)])
    assert found.p == pytest.approx(stats.binomtest(found.better, found.better + found.worse).pvalue)
    assert found.tests["cluster-robust t"] == pytest.approx(stats.ttest_rel(one, two).pvalue)
    grouped = paired_means(one, two, [str(n // 5) for n in range(50)])
    assert grouped.test == "sign-flip permutation" and grouped.p == grouped.tests[grouped.test]
    many = paired_means(rng.random(900), rng.random(900), [str(n) for n in range(900)])
    assert many.test == "cluster-robust t"
    assert paired_means([], [], []).p is None
