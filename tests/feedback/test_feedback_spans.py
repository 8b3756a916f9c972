"""Agreement on marked spans: the grid, the reference on the same grid, and the reason when undefined."""

from __future__ import annotations

import krippendorff
import numpy as np
import pytest

from tutelage.feedback.spans import Marked, grid, labelled, span_alpha

TEXT = "The mill burnt down, and nobody knows why it did."


def test_words_and_signs_are_the_pieces_and_a_touch_is_enough():
    pieces = grid(TEXT)
    assert [TEXT[start:end] for start, end in pieces[:6]] == ["The", "mill", "burnt", "down", ",", "and"]
    assert len(grid(TEXT, "character")) == len(TEXT)
    said = labelled(pieces, [(5, 12, "event"), (15, 16, "style")])
    assert [sorted(each) for each in said[:5]] == [[], ["event"], ["event"], ["style"], []]


@pytest.mark.parametrize("unit", ["token", "character"])
def test_it_is_krippendorffs_alpha_over_the_grid(unit):
    """One label, several people, some of whom did not read every text: the reference package on the same rows."""
    stream = np.random.default_rng(1)
    texts, rows = [], []
    for _ in range(12):
        marks = {}
        for person in range(4):
            if stream.random() < 0.2:
                continue
            start = int(stream.integers(0, 30))
            marks[f"p{person}"] = [(start, start + int(stream.integers(3, 15)), "bad")] if stream.random() < 0.8 else []
        texts.append(Marked(TEXT, marks))
        if len(marks) < 2:
            continue
        pieces = grid(TEXT, unit)
        block = np.full((4, len(pieces)), np.nan)
        for person, given in marks.items():
            block[int(person[1])] = [float(any(s < end and e > start for s, e, _ in given)) for start, end in pieces]
        rows.append(block)
    expected = krippendorff.alpha(reliability_data=np.hstack(rows), level_of_measurement="nominal")
    for asked in ("bad", "*", None):
        found = span_alpha(texts, label=asked, unit=unit)
        assert found.value == pytest.approx(expected, abs=1e-9)
    assert found.low < found.value < found.high and found.clusters == len(rows)


def test_half_an_overlap_lies_between_none_and_all_and_labels_that_part_count_less():
    def two(second):
        return span_alpha([Marked(TEXT, {"a": [(0, 8, "x")], "b": second})] * 4).value

    assert two([(0, 8, "x")]) == 1
    assert two([(0, 8, "x")]) > two([(0, 8, "x"), (0, 8, "y")]) > two([(0, 8, "y")])
    assert two([(0, 8, "x")]) > two([(4, 8, "x")]) > two([(21, 24, "x")])


def test_undefined_says_why():
    assert "no text was read" in span_alpha([Marked(TEXT, {"a": []})]).reason
    assert "nobody marked" in span_alpha([Marked(TEXT, {"a": [], "b": []})]).reason
    assert "too few" in span_alpha([Marked(TEXT, {"a": [(0, 3, "x")], "b": []})]).reason
