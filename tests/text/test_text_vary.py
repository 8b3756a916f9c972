"""Other forms of a text keep what they promise: the answer, the content words, the way back."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tutelage.text import vary

LETTER = (
    "Please tell me, is the red locker open on Monday? I need the information about my order. He wants two boxes. "
    "It is very late, although the desk is open, the staff is not here. I have waited for three weeks."
)


@pytest.mark.parametrize("kind", sorted(vary.PERTURBATIONS))
def test_perturbations_change_the_text_and_keep_the_answer(kind):
    found = [vary.perturb(LETTER, kind, seed, keep=["red locker", "Monday"]) for seed in range(10)]
    assert any(found)
    for text in filter(None, found):
        assert text != LETTER
        assert "red locker" in text
        assert "Monday" in text
    assert found == [vary.perturb(LETTER, kind, seed, keep=["red locker", "Monday"]) for seed in range(10)]


def test_a_perturbation_that_would_glue_a_kept_word_is_refused():
    joined = [vary.perturb("is Maro in", "spacing", seed, keep=["Maro"]) for seed in range(50)]
    assert all(text is None or " Maro " in f" {text} " for text in joined)


@given(st.text(alphabet="abcdefgh ijklmnop qrstuvwxyz'.,?", max_size=60), st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_any_text_survives(text, seed):
    for kind in vary.PERTURBATIONS:
        found = vary.perturb(text, kind, seed)
        assert found is None or found != text
    for kind in (*vary.LEARNERS, *vary.DIALECTS):
        found = vary.write_as(text, kind, seed)
        assert found is None or vary.same_content(text, found)


@pytest.mark.parametrize("kind", sorted(vary.ENCODINGS))
def test_encodings_decode(kind):
    encoded = vary.encode("tell me the secret of the desk", kind)
    assert encoded
    assert vary.ENCODINGS[kind].decode(encoded).lower() == "tell me the secret of the desk"


def test_an_encoding_that_loses_something_is_none():
    assert vary.encode("locker 12", "leet") is None


def test_gender_swaps_resolve_her_and_his():
    she = vary.swap_gender("He gave her his book and his mother said it was his. Sir, the man is with him.", "female")
    assert she == "She gave her her book and her mother said it was hers. Madam, the woman is with her."
    he = vary.swap_gender("SHE gave him her book. We saw her today. Madam, it is hers.", "male")
    assert he == "HE gave him his book. We saw him today. Sir, it is his."


def test_counterfactuals_differ_in_the_name_only():
    groups = vary.NAMES["ethnicity"]
    found = vary.counterfactuals("My name is Maro. Maro's order is late.", "Maro", groups, seed=3)
    assert set(found) == set(groups)
    assert len({text.count("order is late") for text in found.values()}) == 1
    assert len(set(found.values())) == len(groups)
    assert vary.counterfactuals("No name here", "Maro", groups) is None
    assert vary.counterfactuals("Maros", "Maro", groups) is None


def test_name_lists_form_pairs():
    for groups in vary.NAMES.values():
        assert len({len(names) for names in groups.values()}) == 1
        everyone = [name for names in groups.values() for name in names]
        assert len(everyone) >= 16


@pytest.mark.parametrize("kind", [*vary.LEARNERS, *vary.DIALECTS])
def test_learners_and_dialects_change_forms_and_keep_content(kind):
    sentences = [
        LETTER,
        "They are not here. I don't know the small boat, but it costs two coins. My friends are coming.",
        "I want the key. He needs help and she says that it is lost. Yes, people are very kind.",
    ]
    found = [vary.write_as(text, kind, seed) for text in sentences for seed in range(6)]
    assert sum(text is not None for text in found) >= 6
    for place, text in enumerate(found):
        if text is not None:
            assert vary.same_content(sentences[place // 6], text)
            assert text[0].isupper()


def test_same_content():
    assert vary.same_content("He wants two boxes.", "he want two box")
    assert not vary.same_content("He wants two boxes.", "He wants three boxes.")
    assert not vary.same_content("door 12", "door 13")


def test_swap_words_keeps_capitals_and_swaps_at_once():
    assert vary.swap_words("Ana met Bo. ANA left.", {"ana": "bo", "bo": "ana"}) == "Bo met Ana. BO left."
    assert vary.swap_words("x", {}) == "x"
    assert vary.typos("a an", random.Random(0)) == "a an"
