"""An item in another form asks the same, or there is no such form, and why."""

import pytest

from tutelage.core.records import Example, Message
from tutelage.evaluate import perturb as p
from tutelage.text import preserve

PASSAGE = "Maro lives in the red house near the old mill. Sena lives in the town. Where does Maro live?"


def item(text=PASSAGE, target="the red house", choices=(), kind="extractive", role="user", **tags):
    base = {"id": "one", "suite": "s", "kind": kind}
    messages = (Message(role="system", content="Be short."), Message(role=role, content=text))
    return Example(messages=messages, target=target, choices=choices, tags=base | tags)


def forms(given, family, count=12, **more):
    found = (p.perturbed(given, family, seed=seed, **more) for seed in range(count))
    return [each for each in found if not isinstance(each, str)]


@pytest.mark.parametrize("family", [f for f in p.FAMILIES if f not in ("options", "dialect:african-american")])
def test_every_family_keeps_target_choices_and_answer(family):
    given = item("Please tell me if the small house is near the mill. It is not far. Does he need two boxes on Monday?",
                 target="near", choices=("near", "far"), kind="classify")  # fmt: skip
    if family == "paraphrase":  # "near" is the answer here and has another wording
        given = item()
    found = forms(given, family)
    assert found, family
    for each in found:
        assert each.target == given.target
        assert each.choices == given.choices
        assert each.messages[0] == given.messages[0], "the system prompt stays"
        text = each.messages[-1].content
        assert text != given.messages[-1].content
        assert preserve.holds(text, given.target)
        assert each.tags["perturbation"] == family
        assert each.tags["original"] == "one"
        assert each.tags["id"] != "one"
    assert [each.messages for each in found] == [each.messages for each in forms(given, family)], "seeded"


def test_a_perturbation_that_breaks_the_label_is_never_used(monkeypatch):
    """Should a transform have a fault, the check finds it: nothing is asked that does not ask the same."""
    broken = {
        "typos": lambda text, rng, strength: text.replace("Maro", "Moro"),
        "casing": lambda text, rng, strength: text.replace("red", "blue"),
        "spacing": lambda text, rng, strength: text.replace("does", "does not"),
        "homoglyphs": lambda text, rng, strength: text.replace("old", "new"),
        "word-order": lambda text, rng, strength: " ".join(reversed(text.split())),
        "paraphrase": lambda text, rng, strength: text.replace("lives in", "owns"),
    }
    monkeypatch.setattr("tutelage.text.vary.PERTURBATIONS", broken)
    monkeypatch.setattr("tutelage.text.preserve.kept_phrases", lambda text, answers: [])
    reasons = {family: p.perturbed(item(), family) for family in broken}
    assert all(isinstance(reason, str) for reason in reasons.values()), reasons
    assert reasons["typos"] == "a name changed"
    assert reasons["spacing"] == "a negation changed"


@pytest.mark.parametrize(
    ("given", "family", "reason"),
    [
        (item(kind="translate", target="x"), "casing", "does not fit: what is to be translated would change"),
        (item(kind="perplexity", target=None), "typos", "does not fit: the text itself is what is weighed"),
        (item(text="   "), "typos", "there is no text to change"),
        (Example(messages=(), target="x", tags={"id": "1", "kind": "generate"}), "typos", "there is no text to change"),
        (item(text="a b"), "typos", "nothing to change"),
        (
            item(text="Wo wohnt der alte Mann mit dem Hund und der Katze?"),
            "prompt",
            "does not fit: the text is not English",
        ),
        (item(text="The gate is old.", language="de"), "distractor", "does not fit: the text is not English"),
        (item(), "options", "does not fit: there are no choices"),
        (item(choices=("a", "b")), "options", "does not fit: the target is not among the choices"),
        (
            item(choices=("yes", "no"), target="no"),
            "options",
            "does not fit: the options do not stand in the text, once each",
        ),
    ],
)
def test_what_does_not_fit_says_why(given, family, reason):
    assert p.perturbed(given, family) == reason


def test_unknown_names_are_refused_with_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'typos'"):
        p.expand(["typo"])
    assert p.expand(["typos", "learners", "learner:german"]) == ("typos", *p.LEARNERS)
    assert set(p.expand(["all"])) == set(p.FAMILIES)


def test_options_in_the_text_change_places():
    given = item("Good English, helps or help: The cats ... the dogs.", "help", ("helps", "help"), "choice")
    changed = p.perturbed(given, "options")
    assert changed.messages[-1].content == "Good English, help or helps: The cats ... the dogs."
    assert changed.target == "help"


def test_behind_letters_the_target_follows_the_right_text():
    text = "Which is a fruit?\nA. stone\nB. apple\nC. chair\nD. river\nAnswer:"
    given = item(text, "B", ("A", "B", "C", "D"), "choice")
    places = set()
    for seed in range(10):
        changed = p.perturbed(given, "options", seed=seed)
        lines = dict(line.split(". ") for line in changed.messages[-1].content.splitlines()[1:5])
        assert lines[changed.target] == "apple"
        assert sorted(lines.values()) == ["apple", "chair", "river", "stone"]
        assert changed.choices == given.choices
        places.add(changed.target)
    assert len(places) > 2


def test_letters_that_are_listed_when_asked_list_other_texts():
    given = item(
        choices=("the red house", "the mill", "the gate"), kind="choice", options="letters", groups=("a", "b", "c")
    )
    changed = p.perturbed(given, "options")
    assert changed.messages == given.messages and changed.target == given.target
    assert changed.choices != given.choices and sorted(changed.choices) == sorted(given.choices)
    assert dict(zip(changed.choices, changed.tags["groups"], strict=True)) == dict(
        zip(given.choices, given.tags["groups"], strict=True)
    ), "whom a choice names goes with it"


def test_a_text_to_be_continued_gets_nothing_behind_it():
    given = item(
        "Question: where does Maro live and with whom is he there?\nAnswer:", "x", kind="generate", role="text"
    )
    found = forms(given, "prompt")
    assert found
    assert all(each.messages[-1].content.endswith("Answer:") for each in found)


def test_a_distractor_shares_no_word_with_the_item():
    given = item("The kettle and the clock and the curtains stand in the house of Maro. Where is it?", "the house")
    for each in forms(given, "distractor", strength=2.0):
        aside = each.messages[-1].content.removesuffix(given.messages[-1].content)
        assert aside.count(".") == 2
        assert not {"kettle", "clock", "curtains"} & set(aside.lower().replace(".", "").split())


def test_own_wordings_are_used_and_checked_too():
    own = ["In which house is Maro at home: the red house, the old mill? Sena is in town.", "Where is Sena?"]
    given = item(variants=own)
    texts = {each.messages[-1].content for each in forms(given, "paraphrase")}
    assert texts == {own[0]}, "the other one lost the answer"
