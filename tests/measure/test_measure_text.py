"""Text figures against known values and sacrebleu itself."""

import pytest
import sacrebleu

from tutelage.measure import text as t


def test_exact_match_and_f1():
    assert t.exact_match("The red Door.", ["red door"]) == 1.0
    assert t.exact_match("red", ["red door"]) == 0.0
    assert t.token_f1("a red door", ["the blue door", "red gate"]) == pytest.approx(0.5)
    assert t.token_f1("", [""]) == 1.0
    assert t.token_f1("", ["x"]) == 0.0
    assert t.token_f1("x", []) == 0.0


def test_accuracy_and_macro_f1():
    from sklearn.metrics import f1_score

    gold, said = ["a", "b", "c", "a", "b", "a"], ["a", "b", "a", "a", "c", "z"]
    assert t.accuracy(said, gold) == pytest.approx(3 / 6)
    theirs = f1_score(gold, said, average="macro", labels=["a", "b", "c"], zero_division=0)
    assert t.macro_f1(said, gold) == pytest.approx(theirs)
    assert t.macro_f1_interval(said * 10, gold * 10).value == pytest.approx(theirs)
    assert t.accuracy([], []) is None
    assert t.macro_f1([], []) is None
    with pytest.raises(ValueError, match="one reference per answer"):
        t.accuracy(["a"], [])


ANSWERS = ["the cat sat on the mat today", "a small boat crosses the wide river", "he said no", ""]
GOLDS = [
    ["the cat sat on a mat today"],
    ["a small boat crossed the wide river", "the little boat crosses the river"],
    ["she said no"],
    ["nothing"],
]


def test_corpus_figures_equal_sacrebleu():
    streams = [[g[0] for g in GOLDS], [g[1] if len(g) > 1 else None for g in GOLDS]]
    ours = t.chrf(ANSWERS, GOLDS)
    assert ours.value == pytest.approx(sacrebleu.CHRF().corpus_score(ANSWERS, streams).score)
    assert "nc:6" in ours.signature
    assert ours.interval.low < ours.value < ours.interval.high
    ours = t.bleu(ANSWERS, GOLDS)
    assert ours.value == pytest.approx(sacrebleu.BLEU(force=True).corpus_score(ANSWERS, streams).score)
    assert "version:" in ours.signature
    assert t.bleu(["red door"], [["red door"]]).interval.reason == "no reference has four words"
    assert t.chrf([], []).interval.reason == "no items"
    with pytest.raises(ValueError, match="at least one reference"):
        t.chrf(["a"], [[]])


def test_sentence_chrf():
    assert t.sentence_chrf("red door", ["red door"]) == pytest.approx(100.0)
    assert t.sentence_chrf("", ["red door"]) == 0.0
    assert t.sentence_chrf("red gate", ["blue gate", "red gates"]) > 60
