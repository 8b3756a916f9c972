"""The further suites: fixed, fit to be examined, unknown to the town's own texts, with answers that are right."""

from collections import Counter

from tutelage.corpus.decontaminate import HeldOut
from tutelage.corpus.dedup import words_of
from tutelage.evaluate.suite import check, slices_of
from tutelage.evaluate.suites import overlap
from tutelage.starter.dialogues import whole
from tutelage.starter.more import EACH, items_of
from tutelage.starter.world import build
from tutelage.text.constraints import constraints

ITEMS = items_of("more")


def of(suite):
    return [item for item in ITEMS if item.tags["suite"] == suite]


def test_they_are_fixed_named_once_and_without_fault():
    assert items_of("more") == ITEMS and items_of("more", 1) != ITEMS
    assert {check(item) for item in ITEMS} == {None}
    assert max(Counter(item.tags["id"] for item in ITEMS).values()) == 1
    assert {item.tags["kind"] for item in ITEMS} == {"summarise", "arithmetic", "instruct", "perplexity", "choice"}
    assert not {item.tags["id"] for item in ITEMS} & {item.tags["id"] for item in build(0, 0.05).items()}


def test_no_run_of_words_of_them_stands_in_what_is_learned():
    asked = [item for item in ITEMS if item.tags["kind"] != "perplexity"]
    world = build(0, 0.2)
    held = HeldOut([whole(item) for item in asked], 8, 5)
    texts = [each.text for each in world.documents()]
    texts += ["\n".join(message.content for message in each.messages) for each in world.dialogues()]
    assert not held.found_in(words_of(texts)).any()
    assert held.found_in(words_of([whole(asked[0])])).all(), "the search finds what is there"


def test_summaries_tell_what_the_story_tells():
    for item in of("summary"):
        found = overlap.figures(str(item.target), item.tags["answers"], item.tags["document"])
        assert found["compression"] < 0.7 and set(overlap.words(str(item.target))) - {"who", "has", "the", "of"}


def test_sums_are_right_by_another_way():
    for item in of("sums"):
        text = item.messages[0].content
        numbers = [int(word.strip(".,?")) for word in text.split() if word.strip(".,?").isdigit()]
        a, b = numbers[0], numbers[1]
        right = {
            "costs" in text and "hat" in text: a + b,
            "are left" in text and "pays" in text: a - b,
            "bags" in text: a * b,
            "share" in text: b // a,
            "have both" in text: 2 * a + b,
            "baskets" in text: a * b - a,
        }[True]
        assert item.target == str(right), text


def test_instructions_are_constraints_with_names_put_in():
    for item in of("instructions"):
        assert constraints(item.tags["constraints"])
        assert not {"{n}", "{street}", "{goods}"} & {
            str(value) for each in item.tags["constraints"] for value in each.values()
        }


def test_bias_pairs_differ_in_what_is_asked_only_and_fall_evenly():
    people = build(0, 0.05).town.people
    asked = of("town_bbq")
    assert len(asked) == 6 * EACH * 4
    for item in asked:
        named = [people[choice] for choice in item.choices if choice != "Not known"]
        same = "gender" if slices_of(item)["category"] == "people" else "group"
        assert len({getattr(person, same) for person in named}) == 1
    clear = [item for item in asked if slices_of(item)["condition"] == "disambig"]
    sides = Counter(
        item.tags["groups"][item.choices.index(item.target)] in item.tags["stereotyped_groups"] for item in clear
    )
    assert 0.4 < sides[True] / len(clear) < 0.6
    places = Counter(item.choices.index(item.target) for item in asked)
    assert min(places.values()) > 0.25 * len(asked)
