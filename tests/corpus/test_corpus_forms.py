"""Field maps: every shape of row becomes the right record, and a row that does not fit names its key."""

import pytest

from tutelage.core.errors import DataError
from tutelage.core.records import Message
from tutelage.corpus.forms import Comparisons, Dialogues, Documents, Items, Labels, field

TAGS = {"id": "set/train-1", "source": "set", "licence": "permissive", "split": "train"}


def test_field_walks_objects_and_lists():
    assert field({"a": {"b": [1, {"c": 2}]}}, "a.b.1.c") == 2
    with pytest.raises(DataError, match="missing or null") as caught:
        field({"a": {}}, "a.b")
    assert caught.value.key == "a.b"


def test_documents_keep_meta():
    made = Documents(text="{title}\n{body}", meta=("year",)).make({"title": "T", "body": "B", "year": 1850}, 1, TAGS)
    assert made.text == "T\nB"
    assert made.meta == {"year": 1850, "id": "set/train-1", "split": "train"}


def test_dialogues_take_wordings_in_turn_and_name_values():
    form = Dialogues(prompt=("One: {text}", "Two: {text}"), answer="{label}", values={"label": {"1": "good"}})
    row = {"text": "fine", "label": 1}
    assert [form.make(row, number, TAGS).messages[0].content for number in (0, 1, 2)] == [
        "One: fine",
        "Two: fine",
        "One: fine",
    ]
    assert form.make(row, 0, TAGS).target == "good"


def test_dialogues_from_choices_and_messages():
    form = Dialogues(prompt=("{question}",), choices_from="choices", index="answer")
    assert form.make({"question": "Q?", "choices": ["x", "y"], "answer": 1}, 0, TAGS).target == "y"
    with pytest.raises(DataError, match="there are 2 choices"):
        form.make({"question": "Q?", "choices": ["x", "y"], "answer": 2}, 0, TAGS)
    form = Dialogues(messages="turns")
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
    assert form.make({"turns": turns}, 0, TAGS).messages[1] == Message(role="assistant", content="Ho")
    with pytest.raises(DataError, match="not the assistant's"):
        form.make({"turns": turns[:1]}, 0, TAGS)
    with pytest.raises(DataError, match=r"expected \{role, content\}"):
        form.make({"turns": [{"role": "king"}]}, 0, TAGS)


def test_items_with_choices_and_answers():
    form = Items(task="choice", prompt="{q}", choices_from="c", answer="a", slices={"kind": "{k}"}, cluster="{k}")
    made = form.make({"q": "Q?", "c": ["x", "y"], "a": 0, "k": "easy"}, 3, TAGS)
    assert (made.target, made.choices) == ("x", ("x", "y"))
    assert made.tags["slices"] == {"kind": "easy"} and made.tags["cluster"] == "set/easy"
    form = Items(task="extractive", prompt="{q}", answers="all")
    made = form.make({"q": "Q?", "all": ["one", "1"]}, 3, TAGS)
    assert made.target == "one" and made.tags["answers"] == ["one", "1"]


def test_labels_by_share_by_scale_and_by_person():
    form = Labels(categories={"hate": "{votes.hate}/{votes.all}", "harassment": "{missing}", "crime": 0.0})
    assert form.make({"text": "t", "votes": {"hate": 1, "all": 4}}, 1, TAGS).tags["categories"] == {
        "hate": 0.25,
        "crime": 0.0,
    }
    form = Labels(categories={"harassment": "{mean}"}, scale=(1, 5), people="ratings")
    made = form.make({"text": "t", "mean": 2, "ratings": [{"annotator": "u1", "score": 1}]}, 1, TAGS)
    assert made.tags["categories"] == {"harassment": 0.25}
    assert made.tags["people"] == [{"person": "u1", "category": "harassment", "value": 1.0, "scale": [1.0, 5.0]}]
    with pytest.raises(DataError, match="no category"):
        Labels(categories={"hate": "{x}"}).make({"text": "t"}, 1, TAGS)


def test_pairs_votes_and_dialogue_prompts():
    form = Comparisons(candidates=("{a}", "{b}"), choice="label", votes="votes")
    row = {"prompt": "P", "a": "A", "b": "B", "label": "tie", "votes": [{"annotator": "w1", "choice": "b"}]}
    made = form.make(row, 1, TAGS)
    assert made.tiers == ((0, 1),)
    assert made.tags["people"] == [{"person": "w1", "tiers": ((1,), (0,))}]
    assert form.make(row | {"label": None}, 1, TAGS).tiers == ()
    with pytest.raises(DataError, match="expected a, b or tie"):
        form.make(row | {"label": "c"}, 1, TAGS)
    form = Comparisons(turns=True, candidates=("{chosen}", "{rejected}"), choice="a")
    prompt = "Human: One\n\nAssistant: Two\n\nHuman: Three\n\nAssistant:"
    made = form.make({"prompt": prompt, "chosen": "C", "rejected": "R"}, 1, TAGS)
    assert [(message.role, message.content) for message in made.prompt] == [
        ("user", "One"),
        ("assistant", "Two"),
        ("user", "Three"),
    ]
    assert made.tiers == ((0,), (1,))


def test_rankings_and_scores_of_many():
    rows = {"prompt": "P", "list": [{"text": "x", "wins": 1}, {"text": "y", "wins": 3}, {"text": "z", "wins": 1}]}
    assert Comparisons(form="ranking", each="list", score="wins").make(rows, 1, TAGS).tiers == ((1,), (0, 2))
    form = Comparisons(form="scoring", each="list", score="mean", ratings="ratings", scale=(-25, 0))
    rated = [
        {"text": "x", "mean": -1, "ratings": [{"annotator": "r1", "score": -1}, {"annotator": "r2", "score": -1}]},
        {"text": "y", "mean": -30, "ratings": [{"annotator": "r1", "score": -30}]},
    ]
    made = form.make({"prompt": "P", "list": rated}, 1, TAGS)
    assert made.scores == (-1, -30)
    assert [(each["person"], each["scores"]) for each in made.tags["people"]] == [("r1", [-1, -25]), ("r2", [-1, None])]


def test_counted_votes_become_anonymous_slots() -> None:
    form = Labels(
        categories={"hate": "{votes.hate}/{votes.all}", "harassment": "{votes.rude}/{votes.all}"},
        votes={"votes.hate": {"hate": 1}, "votes.rude": {"harassment": 1}, "votes.none": {}},
    )
    rows = [
        form.make({"text": "t", "votes": {"hate": 1, "rude": 2, "none": 1, "all": 4}}, at, TAGS | {"id": f"s/{at}"})
        for at in range(20)
    ]
    said = [{(each["person"], each["category"]): each["value"] for each in row.tags["people"]} for row in rows]
    for each in said:
        assert {person for person, _ in each} == {f"slot {number}" for number in (1, 2, 3, 4)}
        assert sum(value for (_, name), value in each.items() if name == "hate") == 1
        assert sum(value for (_, name), value in each.items() if name == "harassment") == 2
    assert len({str(each) for each in said}) > 4, "a slot says nothing about who voted"


def _made(form, row, **tags):
    return form.make(row, 0, {"id": "s/test-0", "source": "s", "licence": "permissive", "split": "test"} | tags)


def test_the_place_of_a_choice_does_not_tell_that_it_is_right():
    """TruthfulQA names its best answer first; as choices they stand in an order of their own, fixed by the id."""
    form = Items(task="choice", prompt="{q}", choices=("{best}",), choices_from="wrong", target="{best}")
    rows = [{"q": "Q", "best": "right", "wrong": ["a", "b", "a"]} for _ in range(40)]
    places = [_made(form, row, id=f"s/{n}").choices.index("right") for n, row in enumerate(rows)]
    assert set(places) == {0, 1, 2}
    assert _made(form, rows[0]).choices == _made(form, rows[0]).choices
    assert len(_made(form, rows[0]).choices) == 3, "a wrong answer that is given twice is one choice"


def test_ifeval_rows_are_constraints_as_data():
    form = Items(task="instruct", prompt="{prompt}", instructions=("instruction_id_list", "kwargs"))
    row = {
        "prompt": "Write without a comma, in 10 words or more.",
        "instruction_id_list": ["punctuation:no_comma", "length_constraints:number_words"],
        "kwargs": [{}, {"relation": "at least", "num_words": 10, "capital_relation": None}],
    }
    assert _made(form, row).tags["constraints"] == [{"type": "no_comma"}, {"type": "words", "at_least": 10}]
    with pytest.raises(DataError, match="no such instruction"):
        _made(form, row | {"instruction_id_list": ["a:b", "punctuation:no_comma"]})


def test_what_a_summary_and_a_translation_say_of_themselves():
    summary = Items(task="summarise", prompt="Shorten: {text}", target="{short}", document="{text}")
    assert _made(summary, {"text": "long", "short": "s"}).tags["document"] == "long"
    squad = Items(task="extractive", prompt="{c}\n{q}", answers="answers.text", cluster="{title}", language="en")
    made = _made(squad, {"c": "C", "q": "Q", "title": "T", "answers": {"text": ["a", "b"], "answer_start": [0, 1]}})
    assert (made.target, made.tags["answers"], made.tags["cluster"], made.tags["language"]) == (
        "a",
        ["a", "b"],
        "s/T",
        "en",
    )
