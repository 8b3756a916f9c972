"""Calibration and selection on judges whose truth is known, beside the definitions written out."""

import itertools

import numpy as np
import pytest

from tutelage.measure import calibration as c
from tutelage.measure import selection
from tutelage.measure.clusters import Partition

RNG = np.random.default_rng(0)
P = RNG.uniform(0.05, 0.95, 2000)
HONEST = (RNG.random(2000) < P).astype(float)
BOASTFUL = (RNG.random(2000) < 0.5 + 0.4 * (P - 0.5)).astype(float)


def test_calibration_of_known_judges():
    good, bad = c.ece(P, HONEST), c.ece(P, BOASTFUL)
    true = 0.6 * np.abs(P - 0.5).mean()
    assert good.low == 0.0
    assert good.value < c._error(c._gaps(P, HONEST, 10, Partition.of(None, 2000))) < 0.03, "what a sample shows"
    assert bad.low < true < bad.high
    assert c.brier(P, HONEST).high < c.brier(P, BOASTFUL).low
    assert c.ece(P, HONEST, seed=3) == c.ece(P, HONEST, seed=3)


def test_too_little_is_refused_with_its_reason():
    assert c.ece([0.5] * 299, [1] * 299).reason == "fewer than 300 items"
    assert c.ece([0.5] * 400, [1, 0] * 200, clusters=["a"] * 400).reason == "fewer than 50 clusters"
    assert c.reliability([], []) == ()
    with pytest.raises(ValueError, match="between 0 and 1"):
        c.ece([1.5], [1])
    with pytest.raises(ValueError, match="0 or 1"):
        c.ece([0.5], [0.5])


def test_all_right_is_not_certainly_calibrated():
    """Where every answer is right and said to be sure, the error is small and its interval has a width."""
    sure = c.ece([1.0] * 400, [1.0] * 400)
    assert sure.low == 0.0
    assert 0.0 < sure.high < 0.02
    modest = c.ece([0.7] * 400, [1.0] * 400)
    assert modest.low < 0.3 < modest.high


def test_clusters_widen_the_error():
    names = np.repeat(np.arange(200), 10).tolist()
    same = np.repeat(P[:200], 10), np.repeat(HONEST[:200], 10)
    assert c.ece(*same).low > 0.02, "taken for unrelated, 200 items copied ten times seem to show an error"
    assert c.ece(*same, clusters=names).low == 0.0


def test_bins_keep_equal_probabilities_together():
    bins = c.bins_of([0.1] * 50 + [0.9] * 50, 10)
    assert [len(b) for b in bins] == [50, 50]
    assert c.bins_of([]) == []


def test_the_table_of_bins():
    table = c.reliability(P, HONEST, bins=5)
    assert [each.n for each in table] == [400] * 5
    assert all(each.low <= each.confidence <= each.high for each in table)
    assert all(each.accuracy.low <= each.confidence <= each.accuracy.high for each in table)
    lone = c.reliability([0.2, 0.9], [0, 1], bins=2, clusters=["a", "b"])
    assert lone[0].accuracy.reason == "fewer than two clusters"


def logits(n, seed=1):
    rng = np.random.default_rng(seed)
    drawn = rng.normal(0, 1.5, (n, 4))
    return drawn, (drawn + rng.gumbel(size=drawn.shape)).argmax(1).tolist()


def test_temperature_recovers_the_scale():
    drawn, gold = logits(3000)
    assert c.temperature((drawn * 3).tolist(), gold) == pytest.approx(3.0, rel=0.1)
    assert c.temperature([], []) is None
    assert c.temperature([[9.0, 1.0], [0.0, 2.0, 1.0]], [0, 1]) is None, "all right: any smaller one fits better"
    with pytest.raises(ValueError, match="row 1 has 2 classes"):
        c.temperature([[1.0, 2.0], [1.0, 2.0]], [0, 2])


def test_temperature_out_of_fold():
    drawn, gold = logits(1500)
    clusters = (np.arange(1500) // 3).tolist()
    rows = [
        row[:3] if right < 3 and place % 2 else row
        for place, (row, right) in enumerate(zip((drawn * 3).tolist(), gold, strict=True))
    ]
    found = c.temperature_out_of_fold(rows, gold, clusters=clusters)
    assert [len(row) for row in found.probabilities] == [len(row) for row in rows]
    assert all(sum(row) == pytest.approx(1.0) for row in found.probabilities)
    assert len(set(found.temperatures)) == 5
    own = c.scaled(rows, found.temperatures[0])
    same = [a == pytest.approx(b) for a, b in zip(own, found.probabilities, strict=True)]
    folds = {clusters[place] for place, is_same in enumerate(same) if is_same}
    assert 90 <= len(folds) <= 110, "whole clusters stand in a fold"
    top = np.array([max(row) for row in found.probabilities])
    right = np.array([float(np.argmax(row) == g) for row, g in zip(found.probabilities, gold, strict=True)])
    raw = np.array([max(row) for row in c.scaled(rows, 1.0)])
    assert c.ece(top, right).high < c.ece(raw, right).low
    assert c.temperature_out_of_fold([[1.0, 0.0]], [0]) is None
    with pytest.raises(ValueError, match="positive"):
        c.scaled(rows, 0.0)


def area(right):
    """AURC as it is defined: the mean over i of the error rate among the first i."""
    return float(np.mean([1 - np.mean(right[: i + 1]) for i in range(len(right))]))


def test_area_under_risk_and_coverage():
    sure = RNG.permutation(40) / 40
    right = (RNG.random(40) < sure).astype(float)
    found = selection.selective(sure, right, resamples=50)
    assert found.aurc.value == pytest.approx(area(right[np.argsort(-sure)]))
    assert found.aurc.low < found.aurc.value < found.aurc.high
    tied = [0.9, 0.5, 0.5, 0.5, 0.1]
    orders = [area([1.0, *middle, 1.0]) for middle in itertools.permutations([1.0, 0.0, 0.0])]
    assert selection.selective(tied, [1, 1, 0, 0, 1], resamples=9).aurc.value == pytest.approx(np.mean(orders))
    level = selection.selective([0.5] * 8, [1, 0] * 4, (0.25, 1.0), resamples=9)
    assert level.aurc.value == pytest.approx(0.5)
    assert [point.accuracy.value for point in level.points] == pytest.approx([0.5, 0.5])


def test_resamples_of_a_curve_are_curves_of_resamples():
    sure, right = np.array([0.9, 0.8, 0.5, 0.5, 0.2]), np.array([1.0, 0.0, 1.0, 0.0, 1.0])
    counts = np.array([2.0, 0.0, 1.0, 1.0, 1.0])
    weight = np.add.reduceat(counts, [0, 1, 2, 4])[None]
    wrong = np.add.reduceat(counts * (1 - right), [0, 1, 2, 4])[None]
    found = selection._figures(weight, wrong, (0.4, 0.8))[0]
    orders = [area([1.0, 1.0, *middle, 1.0]) for middle in itertools.permutations([1.0, 0.0])]
    assert found == pytest.approx([np.mean(orders), 0.0, 1 / 4])
    assert sure.argsort()[0] == 4


def test_accuracy_of_the_surest():
    found = selection.selective(P, HONEST, (0.5, 1.0), clusters=(np.arange(2000) // 4).tolist(), resamples=200)
    assert found.points[0].threshold == pytest.approx(np.quantile(P, 0.5), abs=0.01)
    assert found.points[1].accuracy.low < HONEST.mean() < found.points[1].accuracy.high
    assert found.points[0].accuracy.low > found.points[1].accuracy.high
    assert found.points[0].accuracy.clusters == 500
    perfect = selection.selective([0.9] * 30 + [0.1] * 10, [1] * 30 + [0, 1] * 5, (0.25,), resamples=100).points[0]
    assert perfect.accuracy.method == "wilson", "all right, and yet not certain"
    assert perfect.accuracy.low == pytest.approx(0.722, abs=1e-3)
    none = selection.selective([], [], (0.5,))
    assert (none.aurc.reason, none.points[0].threshold) == ("no items", None)
    with pytest.raises(ValueError, match="coverage"):
        selection.selective([0.5], [1], (0.0,))
    with pytest.raises(ValueError, match="one outcome"):
        selection.selective([0.5], [1, 0])
