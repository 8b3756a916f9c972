"""Constraints are data: each is kept and broken by texts written for it, strictly and loosely, in several languages."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tutelage.core.errors import DataError
from tutelage.text.constraints import constraints, from_ifeval, sentences, verify, words

ENGLISH = "The house is near the river and the people are at the market today."
GERMAN = "Das Haus ist nicht weit von dem Fluss und die Leute sind auf dem Markt."
CASES = [
    ({"type": "words", "at_most": 3}, "one two three", "one two three four"),
    ({"type": "words", "at_least": 4}, "你好世界", "你好"),
    ({"type": "sentences", "exactly": 2}, "Mr. Smith went home. It rained!", "It rained."),
    ({"type": "sentences", "exactly": 2}, "你好。再见。", "你好"),
    ({"type": "paragraphs", "exactly": 2}, "a\n\nb", "a\nb"),
    ({"type": "paragraphs", "between": "stars", "exactly": 2}, "a\n***\nb", "a\n\nb"),
    ({"type": "keyword", "word": "bread"}, "Bread is here", "breadth is here"),
    ({"type": "keyword", "word": "bread", "at_least": 2}, "bread, BREAD", "bread"),
    ({"type": "keyword", "word": "bread", "exactly": 0}, "butter", "bread"),
    ({"type": "letter", "letter": "e", "at_most": 1}, "bed", "Eel"),
    ({"type": "capital_words", "at_least": 1}, "this is GOOD", "This Is Good"),
    ({"type": "bullets", "exactly": 2}, "* a\n* b", "* a\n* b\n- c"),
    ({"type": "highlights", "at_least": 1}, "a *fine* day", "a fine day"),
    ({"type": "placeholders", "at_least": 2}, "Dear [name], at [street]", "Dear [name]"),
    ({"type": "sections", "word": "Part", "at_least": 2}, "Part 1\nx\nPART II\ny", "Part 1\nparty 2"),
    ({"type": "forbidden", "words": ["bad", "ugly"]}, "badge", "it is Bad"),
    ({"type": "case", "case": "lower"}, "all small, 3 words", "All small"),
    ({"type": "case", "case": "upper"}, "ALL 3", "All 3"),
    ({"type": "language", "language": "de"}, GERMAN, ENGLISH),
    ({"type": "json", "keys": ["a"]}, '```json\n{"a": [1]}\n```', '{"b": 1}'),
    ({"type": "json"}, "[1, 2]", "{a: 1}"),
    ({"type": "starts_with", "text": "Dear Ana"}, "dear  Ana, hello", "Hello, dear Ana"),
    ({"type": "ends_with", "text": "Your desk"}, "Bye. Your desk", "Your desk."),
    ({"type": "paragraph_starts", "number": 2, "word": "then", "of": 2}, "First.\n\nThen more.", "First.\n\nSo more."),
    ({"type": "quoted"}, "„so ist es“", '"no'),
    ({"type": "no_comma"}, "a and b", "a، b"),
    ({"type": "title"}, "<<A day>>\ntext", "<<>>"),
    ({"type": "postscript"}, "Bye.\nPS: one more", "Bye. Psalm"),
    ({"type": "one_of", "options": ["My answer is yes.", "My answer is no."]}, "my answer is no", "no"),
    ({"type": "two_answers"}, "a\n******\nb", "a\n******\na"),
    ({"type": "repeat_prompt"}, "Say hello. Hello!", "Hello!"),
]


@pytest.mark.parametrize(("given_", "kept", "broken"), CASES, ids=lambda each: str(each)[:40])
def test_each_constraint_is_kept_and_broken(given_, kept, broken):
    assert verify([given_], kept, "Say hello.")[0].strict is True
    assert verify([given_], broken, "Say hello.")[0].strict is False
    assert verify([given_], "   ", "Say hello.")[0].strict is False, "nothing said keeps nothing"


def test_loosely_a_first_line_a_last_line_and_stars_are_forgiven():
    (found,) = verify([{"type": "words", "exactly": 2}], "Sure, here it is:\ntwo words", "x")
    assert (found.strict, found.loose) == (False, True)
    (found,) = verify([{"type": "starts_with", "text": "fine"}], "**fine** day", "x")
    assert (found.strict, found.loose) == (False, True)


def test_what_cannot_be_told_is_neither_kept_nor_broken():
    (found,) = verify([{"type": "language", "language": "en"}], "xq zzv", "x")
    assert (found.strict, found.loose) == (None, None)


@pytest.mark.parametrize(
    ("bad", "where"),
    [
        ({"type": "words"}, "at_least"),
        ({"type": "words", "at_least": 5, "at_most": 2}, "more than"),
        ({"type": "words", "exactly": 5, "at_most": 2}, "alone"),
        ({"type": "wrods", "at_most": 2}, "does not match"),
        ({"type": "keyword", "word": "a", "pattern": ".*"}, "pattern"),
        ({"type": "language", "language": "english"}, "match"),
    ],
)
def test_bad_constraints_are_refused(bad, where):
    with pytest.raises(ValidationError, match=where):
        constraints([bad])


def test_a_keyword_is_text_and_never_a_pattern():
    assert verify([{"type": "keyword", "word": ".*"}], "anything", "x")[0].strict is False
    assert verify([{"type": "keyword", "word": "c++ (new)"}], "I like C++ (new) a lot", "x")[0].strict is True


@given(st.text(max_size=80))
def test_any_text_is_counted(text):
    assert sentences(text) >= 0
    for given_, _, _ in CASES:
        assert verify([given_], text, text)[0].strict in (True, False, None)
    assert sum(map(len, words(text))) <= len(text)


def test_ifeval_rows():
    ids = ["length_constraints:number_words", "keywords:existence", "detectable_format:number_bullet_lists"]
    arguments = [
        {"num_words": 300, "relation": "less than", "keywords": None},
        {"keywords": ["a", "b"]},
        {"num_bullets": 3},
    ]
    found = constraints(from_ifeval(ids, arguments))
    assert [(each.type, each.model_dump(exclude_defaults=True)) for each in found] == [
        ("words", {"at_most": 299}),
        ("keyword", {"word": "a", "at_least": 1}),
        ("keyword", {"word": "b", "at_least": 1}),
        ("bullets", {"exactly": 3}),
    ]
    with pytest.raises(DataError, match="no such instruction"):
        from_ifeval(["keywords:magic"], [{}])
    with pytest.raises(DataError, match="lacks 'num_words'"):
        from_ifeval(["length_constraints:number_words"], [{"relation": "at least"}])
    with pytest.raises(DataError, match="as many kwargs"):
        from_ifeval(["punctuation:no_comma"], [])
