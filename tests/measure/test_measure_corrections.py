"""Corrections and sequences beside their formulas written out, and what they refuse."""

import itertools
import math

import numpy as np
import pytest
from scipy import special

from tutelage.measure import corrections as k
from tutelage.measure import sequences as q
from tutelage.measure import statistics as s


def test_rogan_gladen():
    se, sp = s.wilson(92, 100), s.wilson(60, 100)
    found = k.rogan_gladen(s.wilson(700, 1000), se, sp)
    assert found.value == pytest.approx((0.7 + 0.6 - 1) / (0.92 + 0.6 - 1))
    assert found.low < found.value < found.high
    assert found.high - found.low > 2 * (s.wilson(700, 1000).high - s.wilson(700, 1000).low)
    nothing = k.rogan_gladen(s.wilson(350, 1000), se, sp)  # fewer flagged than false alarms alone would be
    assert (nothing.value, nothing.low) == (0.0, 0.0)
    assert nothing.high > 0


def test_a_perfect_judge_corrects_nothing():
    perfect = s.Interval(value=1.0, low=1.0, high=1.0, n=1000)
    said = s.wilson(30, 100)
    found = k.rogan_gladen(said, perfect, perfect)
    assert (found.value, found.low, found.high) == pytest.approx((said.value, said.low, said.high))


def test_a_judge_like_chance_says_nothing():
    said = s.wilson(30, 100)
    assert k.rogan_gladen(said, s.wilson(50, 100), s.wilson(40, 100)).reason == "the judge is no better than chance"
    doubtful = k.rogan_gladen(said, s.wilson(6, 10), s.wilson(6, 10))
    assert (doubtful.low, doubtful.reason) == (None, "the judge may be no better than chance")
    assert k.rogan_gladen(said, s.wilson(0, 0), s.wilson(9, 10)).reason == "no items"


def test_complement_turns_an_interval_round():
    miss = k.complement(s.wilson(9, 10))
    assert (miss.value, miss.low, miss.high) == pytest.approx(
        (0.1, 1 - s.wilson(9, 10).high, 1 - s.wilson(9, 10).low)
    )  # fmt: skip


def judged(n, rest, seed=0):
    rng = np.random.default_rng(seed)
    y = rng.normal(size=n + rest)
    f = 0.3 + y + 0.5 * rng.normal(size=n + rest)
    return y[:n], f[:n], f[n:]


def test_prediction_powered_is_its_closed_form():
    """Angelopoulos et al. 2023, algorithm 1, and the weight of PPI++ (their example 6.1)."""
    y, f, rest = judged(4000, 40_000)
    for tune in (False, True):
        weight = np.cov(y, f)[0, 1] / (f.var(ddof=1) * (1 + len(y) / len(rest))) if tune else 1.0
        value = weight * rest.mean() + (y - weight * f).mean()
        error = math.sqrt(weight**2 * rest.var() / len(rest) + (y - weight * f).var() / len(y))
        found = k.prediction_powered(y, f, rest, tune=tune)
        assert found.value == pytest.approx(value, abs=1e-4)
        assert found.half_width == pytest.approx(1.96 * error, rel=0.01)
        assert found.half_width < 0.62 * s.mean(y).half_width


def test_a_useless_judge_costs_nothing_once_it_is_tuned():
    y, _, rest = judged(200, 1000)
    noise = np.random.default_rng(9).normal(size=200)
    tuned, plain = k.prediction_powered(y, noise, rest), s.mean(y)
    assert tuned.half_width < 1.05 * plain.half_width
    assert k.prediction_powered(y, noise, rest, tune=False).half_width > 1.3 * plain.half_width


def test_what_prediction_powered_refuses():
    y, f, rest = judged(20, 50)
    assert k.prediction_powered(y, f, []) == s.mean(y)
    alike = k.prediction_powered([1.0] * 9, [1.0] * 9, [1.0] * 99)
    assert (alike.low, alike.reason) == (None, "all values are equal")
    bounded = k.prediction_powered([1.0] * 9, [1.0] * 9, [1.0] * 99, bounds=(0, 1))
    assert bounded.low < 0.9
    assert bounded.high == 1.0
    with pytest.raises(ValueError, match="one prediction"):
        k.prediction_powered(y, f[1:], rest)


def test_clusters_in_both_samples_are_not_taken_for_independent():
    y, f, rest = judged(60, 60)
    names = [str(place // 2) for place in range(60)]
    apart = k.prediction_powered(y, f, rest, clusters=names, other_clusters=[f"other {name}" for name in names])
    both = k.prediction_powered(y, f, rest, clusters=names, other_clusters=names)
    assert both.value == apart.value
    assert 1.05 * apart.half_width < both.half_width < 1.5 * apart.half_width


def test_evidence_is_the_sequential_mcnemar():
    """Over all bets evenly, 0/1 outcomes have a closed form: 2^(x + y) B(x + 1, y + 1)."""
    for x, y in ((0, 0), (12, 3), (40, 25), (0, 9)):
        first, second = [1.0] * x + [0.0] * y + [1.0] * 20, [0.0] * x + [1.0] * y + [1.0] * 20
        closed = math.exp((x + y) * math.log(2) + special.betaln(x + 1, y + 1))
        found = q.paired_evidence(first, second)
        assert found.e == pytest.approx(closed, rel=2e-3)
        assert found.p == pytest.approx(min(1.0, 1 / closed), rel=2e-3)
        assert (found.better, found.worse, found.n) == (x, y, x + y + 20)


def test_evidence_has_sides_and_margins():
    first, second = np.tile([1.0, 0.0, 1.0, 1.0], 30), np.tile([1.0, 0.0, 0.0, 1.0], 30)
    assert q.paired_evidence(first, second, alternative="greater").e > 1e3
    assert q.paired_evidence(first, second, alternative="less").e < 1
    assert q.paired_evidence(first, first).p == 1.0
    assert q.paired_evidence(first, first, null=-0.2, alternative="greater").e > 20, "surely not 20 points worse"
    assert q.paired_evidence(second, first, null=-0.2, alternative="greater").e < 1
    assert q.paired_evidence(np.ones(5000), np.zeros(5000)).e < math.inf
    assert q.paired_evidence([], []).e is None
    with pytest.raises(ValueError, match="same items"):
        q.paired_evidence([1], [])
    with pytest.raises(ValueError, match="lie between"):
        q.paired_evidence([1.5], [0.0])


def test_betting_is_the_capital_of_a_gambler():
    """Each candidate mean's capital, bet by bet, as the paper writes it down."""
    x, alpha = np.random.default_rng(1).beta(2, 5, 60), 0.05
    found = q.betting(x)

    def ruined(m):
        up = down = 1.0
        total, squares, spread, best = 0.5, 0.25, 0.25, 0.0
        for t, value in enumerate(x, start=1):
            bet = math.sqrt(2 * math.log(2 / alpha) / (spread * t * math.log(t + 1)))
            up *= 1 + min(bet, 0.5 / m) * (value - m)
            down *= 1 - min(bet, 0.5 / (1 - m)) * (value - m)
            best = max(best, up / 2, down / 2)
            total += value
            squares += (value - total / (t + 1)) ** 2
            spread = squares / (t + 1)
        return best >= 1 / alpha

    assert ruined(found.low)
    assert not ruined(found.low + 1 / q.GRID)
    assert not ruined(found.high - 1 / q.GRID)
    assert ruined(found.high)


def test_sequences_only_narrow_and_end_where_they_say():
    x = np.random.default_rng(2).random(300)
    ends = [q.betting(x[:n]) for n in (5, 50, 100, 300)]
    assert all(a.low <= b.low and b.high <= a.high for a, b in itertools.pairwise(ends))
    assert q.betting(x, anytime=False).half_width < ends[-1].half_width
    wide = q.betting(10 * x - 5, bounds=(-5, 5))
    assert (wide.low, wide.high) == pytest.approx((10 * ends[-1].low - 5, 10 * ends[-1].high - 5))
    assert q.betting([1.0] * 200).low > 0.95
    assert q.betting([]).reason == "no items"
    with pytest.raises(ValueError, match="lie between"):
        q.betting([2.0])
    with pytest.raises(ValueError, match="ascend"):
        q.betting([0.0], bounds=(1, 1))


def test_looks_share_the_error_out():
    spent = [1 - q.look_level(look) for look in range(1, 2000)]
    assert sum(spent) < 0.05
    assert sum(spent) == pytest.approx(0.05, rel=1e-3)
    assert spent[0] == pytest.approx(0.025)
    with pytest.raises(ValueError, match="from 1"):
        q.look_level(0)
