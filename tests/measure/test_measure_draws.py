"""Variance of draws beside that of items, and paired tests of figures of a whole corpus, held to simulations."""

import numpy as np
import pytest

from tutelage.measure.draws import over_draws
from tutelage.measure.paired import paired_statistic
from tutelage.measure.text import corpus_statistic, translation_metric


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


def test_a_paired_test_of_a_corpus_figure_holds_its_level_and_finds_a_difference():
    rng = np.random.default_rng(1)

    def p_of(shift):
        first, second = rng.normal(shift, 1, 40), rng.normal(0, 1, 40)
        both = np.concatenate([first, second])
        return paired_statistic(lambda drawn: float(both[drawn].mean()), 40, resamples=200).p

    assert np.mean([p_of(0.0) < 0.05 for _ in range(200)]) < 0.09
    assert np.mean([p_of(1.0) < 0.05 for _ in range(40)]) > 0.9


def test_translations_are_compared_as_a_corpus():
    references = [[f"the {a} sits on the {b}"] for a in ("cat", "dog", "hen", "cow") for b in ("mat", "hill", "cart")]
    good = [gold[0] for gold in references]
    bad = ["the cat is here now" for _ in references]
    statistic, signature = corpus_statistic(translation_metric("chrf"), [*good, *bad], [*references, *references])
    found = paired_statistic(statistic, len(good), resamples=300)
    assert found.difference.low > 20 and found.p < 0.01 and "nc:6" in signature
    same = paired_statistic(
        corpus_statistic(translation_metric("bleu"), [*good, *good], [*references, *references])[0], len(good)
    )
    assert same.difference.value == 0.0 and same.p == 1.0
    assert "tok:zh" in str(corpus_statistic(translation_metric("bleu", "zh"), ["你好"], [["你好"]])[1])
