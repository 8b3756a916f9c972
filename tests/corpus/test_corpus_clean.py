"""Filters: what they take out, what they drop and why, and what they leave alone."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tutelage.corpus.clean import FILTERS, Drops, Text, clean, html, improbable, tidy

GOOD = "The baker lives in Mill Street. She sells bread to the mill, and nobody in town sleeps when the oven is hot."


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (GOOD, None),
        ("TheÃ© cafÃ© is opÃ©n, â€™tis said.", "broken characters"),
        ("A lost \ufffd and one more \ufffd here.", "broken characters"),
        ("3#$ %^& 8*( a1 2 3 4 5 6 7 8 9 0 -- == ++ ||", "few letters"),
        ("xkcd bdfg qwrt zpls mnbv hjkl sdfg", "no words"),
        ("Thebakerlivesinmillstreetandsellsbreadtoeveryonewhocomesby", "no words"),
        ("the line again\n" * 6, "repetitive"),
        ("no " * 12, "repetitive"),
        ("Sooooooooooo good it is.", "repetitive"),
        ("Hi.", "too short"),
        ("   \n ", "too short"),
        ("MENENIUS: No, no, no, no, no. Tush, tush, the town is ours, and all its bread is with the tribunes.", None),
        (f"* * * * * * * * * * * *\n{GOOD}\n* * * * * * * *", None),
        ("of <unk> <unk> <unk> <unk> <unk> <unk> <unk> <unk> <unk> <unk> <unk> <unk> <unk> <unk> fame", None),
        ("你好，世界。今天的天气很好，我们去公园。", None),
        ("Naïve café, œuvre, Ångström and «guillemets» – all well.", None),
    ],
)
def test_reasons(text: str, reason: str | None):
    assert clean(text)[1] == reason


def test_only_the_filters_asked_for():
    assert clean("Hi.", ["tidy"])[1] is None
    assert clean("Hi.", [])[0] == "Hi."


def test_tidy():
    assert tidy("a\r\nb \n\n\n\nc\t d  \x07e\ufeff ") == "a\nb\n\nc d e"
    assert tidy("e\u0301") == "é"


def test_html_and_furniture():
    page = (
        "<!DOCTYPE html><html><head><title>T</title><style>p {}</style></head><body>"
        '<div class="top nav"><a href="/">Home</a> | <a>Shop</a></div><h1>Food</h1><p>Bread &amp; jam.<br>Fresh.</p>'
        '<script>alert("x")</script><footer>All rights kept.</footer></body></html>'
    )
    assert clean(page)[0] == "Food\n\nBread & jam.\nFresh."
    assert html("a < b and c > d") == "a < b and c > d"


def test_boilerplate_lines():
    text = f"Home | Shop | Bank\n{GOOD}\nAll rights reserved.\nWe use cookies, accept our policy.\nRead more notices"
    assert clean(text)[0] == GOOD


def test_improbable_letters():
    shuffled = list(GOOD)
    random.Random(0).shuffle(shuffled)
    texts = [f"{GOOD} It was day {place}." for place in range(150)]
    found = improbable([*texts, "".join(shuffled), GOOD.replace(" ", "")], ["a"] * 152)
    assert found == [False] * 150 + [True, True]
    assert improbable([GOOD, "".join(shuffled)], ["a", "a"]) == [False, False]


def test_drops_count_with_examples_without_personal_data():
    drops = Drops()
    for place in range(5):
        drops.add("too short", Text(f"d{place}", "mail a@example.org", "s", "permissive", "train"))
    assert drops.by_reason["too short"].count == 5
    assert [each["text"] for each in drops.by_reason["too short"].examples] == ["mail [EMAIL]"] * 3
    assert set(drops.ids) == {f"d{place}" for place in range(5)}


@given(st.text(max_size=120))
def test_cleaning_twice_changes_nothing(text: str):
    once, reason = clean(text, FILTERS)
    if reason is None:
        assert clean(once, FILTERS)[0] == once
