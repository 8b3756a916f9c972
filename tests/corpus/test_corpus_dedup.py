"""Duplicates: the fast search agrees with all pairs. No run of an item is left. The mixture keeps its weights."""

import random

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tutelage.corpus.clean import Text
from tutelage.corpus.decontaminate import HeldOut
from tutelage.corpus.dedup import exact, grams, groups, jaccard, near, words_of
from tutelage.corpus.mix import mix

WORDS = [
    *("baker", "mill", "street", "bread", "town", "oven", "lamp", "river", "bell", "hat"),
    *("cart", "soup", "nurse", "clerk", "form", "door", "hill", "choir", "bag", "note"),
]


NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven")


def test_exact_ignores_case_and_punctuation():
    assert exact(["The mill.", "the mill", "The  MILL!", "the hill", "the hill"]) == [0, 0, 0, 3, 3]


def test_grams_do_not_cross_texts():
    words = words_of(["a b c", "d", "e f g h"])
    hashes, owner = grams(words, 3)
    assert owner.tolist() == [0, 2, 2]
    assert len(np.unique(hashes)) == 3
    assert grams(words_of(["E F", "x e f g"]), 2)[0][0] == grams(words_of(["e f"]), 2)[0][0]


def slow_near(texts: list[str], threshold: float) -> list[int]:
    """All pairs, in order: a text goes when it is near to one that is kept."""
    words = words_of(texts)
    sets = [set(grams(words_of([text]), 3)[0].tolist()) for text in texts]
    kept = list(range(len(texts)))
    for place in range(len(texts)):
        for other in range(place):
            union = sets[place] | sets[other]
            if kept[other] == other and union and len(sets[place] & sets[other]) / len(union) >= threshold:
                kept[place] = other
                break
    assert len(words.starts) == len(texts) + 1
    return kept


def test_groups_pass_nearness_on():
    """As all pairs and their connected parts say; a chain of twins is one group though its ends are far apart."""
    rng = random.Random(3)
    texts = [" ".join(rng.choices(WORDS, k=rng.randrange(12, 40))) for _ in range(60)]
    for _ in range(120):
        copy = rng.choice(texts).split()
        for _ in range(rng.randrange(4)):
            copy[rng.randrange(len(copy))] = rng.choice(WORDS)
        texts.append(" ".join(copy))
    sets = [set(grams(words_of([text]), 3)[0].tolist()) for text in texts]
    pairs = [
        (one, two) for two in range(len(texts)) for one in range(two)
        if len(sets[one] & sets[two]) >= 0.5 * len(sets[one] | sets[two])
    ]  # fmt: skip
    first = list(range(len(texts)))
    for _ in texts:
        for one, two in pairs:
            first[one] = first[two] = min(first[one], first[two])
    found = groups(words_of(texts), 0.5, bands=60)
    assert found == first and len(set(found)) < 80
    assert len(sets[found[-1]] & sets[-1]) < len(sets[-1]), "some member is not equal to the first of its group"
    assert groups(words_of(["too short", "too short", "a b c d", "A b C d"])) == [0, 1, 2, 2]


def test_near_agrees_with_all_pairs():
    rng = random.Random(1)
    texts = [" ".join(rng.choices(WORDS, k=rng.randrange(12, 60))) for _ in range(150)]
    for _ in range(100):
        copy = rng.choice(texts).split()
        for _ in range(rng.randrange(3)):
            copy[rng.randrange(len(copy))] = rng.choice(WORDS)
        texts.append(" ".join(copy))
    assert near(words_of(texts), 0.8) == slow_near(texts, 0.8)


def test_near_is_not_passed_on():
    base = [f"w{place}" for place in range(60)]
    chain = [" ".join(base[:start] + [f"new{at}" for at in range(start)] + base[2 * start :]) for start in (0, 1, 2)]
    assert near(words_of([chain[0], chain[0], "short one"]), 0.9) == [0, 0, 2]


def test_jaccard():
    assert jaccard(np.array([1, 2, 2, 3]), np.array([2, 3, 4])) == 0.5
    assert jaccard(np.array([]), np.array([])) == 0.0


def test_held_out_runs_are_found_and_wordings_are_not():
    wording = "Read the passage and answer the question that follows: "
    items = [f"{wording} {NUMBERS[place]} speaks of " + " ".join(WORDS[place : place + 9]) for place in range(8)]
    held = HeldOut(items, gram=8, common=5)
    assert held.wording == 2  # the runs of eight among the nine words of the wording
    texts = [f"{wording} nothing else", f"They say: {' '.join(WORDS[2:11]).upper()}!", " ".join(WORDS[::-1])]
    assert held.found_in(words_of(texts)).tolist() == [False, True, False]
    assert HeldOut([]).found_in(words_of(texts)).tolist() == [False] * 3


def texts_of(source: str, count: int, level: int = 1) -> list[Text]:
    return [
        Text(f"{source}{level}-{place}", "x", source, "permissive", "train", {"level": level}) for place in range(count)
    ]


@settings(max_examples=30)
@given(st.floats(0, 3), st.integers(0, 3))
def test_weights_are_kept(weight: float, seed: int):
    mixed = mix(texts_of("a", 40) + texts_of("b", 40), {"a": weight}, seed)
    counts = [sum(text.source == name for text in mixed) for name in "ab"]
    assert abs(counts[0] - 40 * weight) <= 1 and counts[1] == 40


def test_order_is_even_repeatable_and_easy_first():
    texts = texts_of("a", 300) + texts_of("b", 100, 1) + texts_of("b", 100, 2) + texts_of("b", 100, 3)
    mixed = mix(texts, {}, seed=0)
    assert [text.id for text in mixed] == [text.id for text in mix(texts, {}, seed=0)]
    assert [text.id for text in mixed] != [text.id for text in mix(texts, {}, seed=1)]
    first, last = mixed[:150], mixed[-150:]
    assert not any(text.meta["level"] == 3 for text in first)
    assert any(text.meta["level"] == 1 and text.source == "b" for text in last)  # the easy is kept
    assert 0.3 < sum(text.source == "a" for text in last) / 150 < 0.7
