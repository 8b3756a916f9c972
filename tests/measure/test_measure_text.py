"""Text figures against known values and sacrebleu itself."""

import pytest
import sacrebleu

from tutelage.measure import text as t
from tutelage.measure.clusters import Partition


def test_exact_match_and_f1():
    assert t.exact_match("The red Door.", ["red door"]) == 1.0
    assert t.exact_match("red", ["red door"]) == 0.0
    assert t.token_f1("a red door", ["the blue door", "red gate"]) == pytest.approx(0.5)
    assert t.token_f1("", [""]) == 1.0
    assert t.token_f1("", ["x"]) == 0.0
    assert t.token_f1("x", []) == 0.0


def whole(sums):
    return sums.whole(Partition.of(None, len(sums.columns)))


def test_macro_f1():
    from sklearn.metrics import f1_score

    gold, said = ["a", "b", "c", "a", "b", "a"], ["a", "b", "a", "a", "c", "z"]
    sums = t.macro_f1_sums(said, gold)
    assert whole(sums) == pytest.approx(f1_score(gold, said, average="macro", labels=["a", "b", "c"], zero_division=0))
    some = sums.of(sums.columns[[0, 3]].sum(axis=0)[None])
    assert some == [1.0], "the classes that were not drawn do not count"
    with pytest.raises(ValueError, match="one reference per answer"):
        t.macro_f1_sums(["a"], [])


ANSWERS = ["the cat sat on the mat today", "a small boat crosses the wide river", "he said no", ""]
GOLDS = [
    ["the cat sat on a mat today"],
    ["a small boat crossed the wide river", "the little boat crosses the river"],
    ["she said no"],
    ["nothing"],
]


def test_corpus_figures_equal_sacrebleu():
    streams = [[g[0] for g in GOLDS], [g[1] if len(g) > 1 else None for g in GOLDS]]
    for name, theirs, signature in (
        ("chrf", sacrebleu.CHRF(), "nc:6"),
        ("bleu", sacrebleu.BLEU(force=True), "version:"),
    ):
        sums, told = t.corpus_sums(t.translation_metric(name), ANSWERS, GOLDS)
        assert whole(sums) == pytest.approx(theirs.corpus_score(ANSWERS, streams).score) and signature in told
    with pytest.raises(ValueError, match="at least one reference"):
        t.corpus_sums(t.translation_metric("chrf"), ["a"], [[]])


def test_sentence_chrf():
    assert t.sentence_chrf("red door", ["red door"]) == pytest.approx(100.0)
    assert t.sentence_chrf("", ["red door"]) == 0.0
    assert t.sentence_chrf("red gate", ["blue gate", "red gates"]) > 60
