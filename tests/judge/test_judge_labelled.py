"""Labelled rows: no twin on two sides, every side there is to be had, and windows that length tells nothing about."""

import random
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from tutelage.core.records import Example, Message, write_jsonl
from tutelage.corpus.dedup import jaccard
from tutelage.judge.labelled import Row, clustered, lengths_matched, read_rows, trigger_negatives

WORDS = [f"{a}{b}" for a in ("ba", "ke", "mi", "lo", "tu", "za", "pe") for b in ("rn", "ll", "st", "gan", "mo", "rit")]


def example(number: int, text: str, split: str, label: float = 0, source: str = "one", **tags: object) -> Example:
    said = {"id": f"r{number}", "split": split, "direction": "input", "source": source, "cluster": f"r{number}"}
    return Example(
        messages=(Message(role="user", content=text),), tags={**said, "categories": {"jailbreak": label}, **tags}
    )


def read(tmp_path: Path, rows: list[Example], **config: float) -> list[Row]:
    write_jsonl(tmp_path / "labels.jsonl", rows)
    return read_rows([tmp_path / "labels.jsonl"], **config).rows["input"]  # type: ignore[arg-type]


def text(dice: random.Random, words: int = 30) -> str:
    return " ".join(dice.choices(WORDS, k=words))


def twin(dice: random.Random, of: str) -> str:
    """The same but for three words."""
    words = of.split()
    for _ in range(3):
        words[dice.randrange(len(words))] = dice.choice(WORDS)
    return " ".join(words)


def alike(one: str, two: str) -> float:
    sets = [
        np.array([hash(tuple(words[n : n + 3])) for n in range(len(words) - 2)]) for words in (one.split(), two.split())
    ]
    return jaccard(*sets)


def test_near_twins_never_stand_on_two_sides(tmp_path: Path) -> None:
    """Twins of training rows among the held-out ones, under names of their own, in a chain of twins of twins."""
    dice = random.Random(4)
    rows = [example(n, text(dice), ("train", "validation", "test")[n % 3]) for n in range(120)]
    for split in ("train", "validation", "test"):
        for n in range(40):
            rows.append(example(len(rows), twin(dice, rows[n].messages[0].content), split))
    found = read(tmp_path, rows)
    sides = {side: [row for row in found if row.side == side] for side in ("train", "calibration", "test")}
    assert all(len(each) > 20 for each in sides.values())
    for one in sides:
        for two in sides:
            if one < two:
                assert not {row.cluster for row in sides[one]} & {row.cluster for row in sides[two]}
                worst = max(alike(a.text, b.text) for a in sides[one] for b in sides[two])
                assert worst < 0.5, f"{one} and {two} share a twin"
    assert len(sides["test"]) == sum(row.tags["split"] == "test" for row in rows), "test rows stay as they are"


def test_without_nearness_only_names_and_equal_texts_count(tmp_path: Path) -> None:
    dice = random.Random(5)
    rows = [example(n, text(dice), "train") for n in range(5)]
    rows += [
        example(5, twin(dice, rows[0].messages[0].content), "test"),
        example(6, rows[1].messages[0].content.upper(), "test"),
    ]
    assert [row.side for row in read(tmp_path, rows, near=0.0, held_out=0.0)] == [
        "train", "train", "train", "train", "test", "test",
    ]  # fmt: skip
    assert [row.side for row in read(tmp_path, rows, held_out=0.0)] == ["train", "train", "train", "test", "test"]


def test_a_source_without_a_split_of_its_own_gives_shares(tmp_path: Path) -> None:
    dice = random.Random(6)
    rows = [example(n, text(dice), ("train", "validation", "test")[n % 3]) for n in range(90)]
    rows += [example(100 + n, text(dice), "train", source="two") for n in range(400)]
    rows += [example(600 + n, text(dice), ("train", "test")[n % 2], source="three") for n in range(400)]
    found = read(tmp_path, rows)
    count = {
        name: [
            sum(row.source == name and row.side == side for row in found) for side in ("train", "calibration", "test")
        ]
        for name in ("one", "two", "three")
    }
    assert count["one"] == [30, 30, 30]
    assert 270 < count["two"][0] < 330 and 50 < count["two"][1] < 100 and 8 < count["two"][2] < 45
    assert 130 < count["three"][0] < 170 and 30 < count["three"][1] < 70 and count["three"][2] == 200


def test_clusters_join_by_name_text_and_nearness() -> None:
    dice = random.Random(7)
    first = text(dice)
    rows = [
        Row("a", first, "x", "train", {"c": 0}),
        Row("b", twin(dice, first), "y", "train", {"c": 0}),
        Row("c", text(dice), "y", "train", {"c": 0}),
        Row("d", text(dice), "z", "train", {"c": 0}),
        Row("e", "Go on!", "v", "train", {"c": 0}),
        Row("f", "go  on!", "w", "train", {"c": 0}),
    ]
    assert [row.cluster for row in clustered(rows, 0.5)] == ["x", "x", "x", "z", "v", "v"]
    assert clustered([], 0.5) == []


def confounded(dice: random.Random, longer: bool) -> list[Row]:
    """Positives of one length and harmless texts of another, on each side."""
    rows = []
    for side in ("train", "calibration", "test"):
        for n in range(120):
            bad = n % 3 == 0
            words = dice.randrange(40, 200) if bad == longer else dice.randrange(5, 30)
            rows.append(Row(f"{side}{n}", text(dice, words), f"{side}{n}", side, {"jailbreak": float(bad)}))  # type: ignore[arg-type]
    return rows


@pytest.mark.parametrize("longer", [True, False])
def test_length_tells_nothing_on_matched_rows(longer: bool) -> None:
    """By length alone the raw rows are told apart; positives beside their matched windows are not."""
    rows = confounded(random.Random(8), longer)
    windows = lengths_matched(rows, "jailbreak")
    for side in ("train", "calibration", "test"):
        bad = [row for row in rows if row.side == side and row.categories["jailbreak"] >= 0.5]
        fine = [row for row in windows if row.side == side]
        raw = [row for row in rows if row.side == side]
        assert floor(raw) > 0.95
        assert len(fine) == len(bad) and all(row.harmless for row in fine)
        assert floor([*bad, *fine]) < 0.62


def floor(rows: list[Row]) -> float:
    """The better average precision of length alone, as it is and turned round."""
    truth = [row.categories["jailbreak"] >= 0.5 for row in rows]
    length = np.array([float(len(row.text)) for row in rows])
    return max(average_precision_score(truth, length), average_precision_score(truth, -length))


def test_a_window_says_only_what_all_its_texts_say() -> None:
    rows = [
        Row("bad", "x " * 60, "bad", "train", {"hate": 1.0}),
        Row("a", "one two", "a", "train", {"hate": 0.0, "crime": 0.0}),
        Row("b", "three four", "b", "train", {"hate": 0.0, "sexual": 0.25}),
        Row("c", "five six", "c", "train", {"hate": 0.0, "sexual": 1.0}),
        Row("d", "seven eight", "d", "test", {"hate": 0.0}),
    ]
    (window,) = lengths_matched(rows, "hate")
    assert window.categories == {"hate": 0.0} and window.side == "train" and abs(len(window.text) - 120) < 12
    assert "five" not in window.text and "seven" not in window.text
    assert lengths_matched(rows[:1], "hate") == [], "no harmless text, no window"


def test_harmless_texts_are_made_for_the_words_that_give_a_text_away() -> None:
    dice, rows = random.Random(5), []
    for n in range(200):
        bad = n % 2 == 0
        words = [*dice.choices(WORDS, k=12), "kill" if bad else "feed", *(["both"] if n % 3 else [])]
        rows.append(Row(f"r{n}", " ".join(words), f"r{n}", "test" if n % 10 == 9 else "train", {"crime": float(bad)}))
    made = trigger_negatives(rows, "crime")
    by_word = {row.id.rpartition("/")[2]: row for row in made}
    assert next(iter(by_word)) == "kill", "the most telling word comes first"
    assert list(by_word).index("both") > 3 and "feed" not in by_word, "what stands everywhere tells little"
    given = {row.cluster: row for row in rows}
    for word, row in by_word.items():
        source = given[row.cluster]
        assert row.side == "train" and row.harmless and source.side == "train" and word in row.text.split()
        assert sorted(row.text.split()) == sorted([*source.text.split(), word])
    assert made == trigger_negatives(rows, "crime") and trigger_negatives(rows, "hate") == []
    fine = [row for row in rows if not row.harmless]
    assert trigger_negatives(fine, "crime") == [], "without a harmless text there is nothing to put a word into"
