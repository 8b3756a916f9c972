"""Items are checked before anything runs; answers are scored as their kind demands, and failures are counted apart."""

import json

import pytest

from tutelage.core.errors import DataError, NotFound
from tutelage.core.records import Example, Message, Response, write_jsonl
from tutelage.evaluate import suite as s
from tutelage.evaluate.suites import answers as a
from tutelage.evaluate.suites.baselines import WordTable, chance, guesses, rows_of
from tutelage.evaluate.suites.choice import pick
from tutelage.evaluate.summary import shuffled_control
from tutelage.generate.generator import Scored


def item(kind="extractive", target="mill street", choices=(), text="Where?", **tags):
    base = {"id": f"{kind}-{text}", "suite": kind, "kind": kind}
    return Example.ask(text, target=target).model_copy(update={"choices": choices, "tags": base | tags})


def scored(logprob, tokens, characters):
    return Scored(logprob=logprob, tokens=tokens, characters=characters, greedy=None)


def said(text, finish="stop"):
    return Response(message=Message(role="assistant", content=text), finish=finish)


def test_a_file_of_ones_own_needs_little(tmp_path):
    file = tmp_path / "mine.jsonl"
    write_jsonl(
        file,
        [
            {"messages": [{"role": "user", "content": "2 + 2?"}], "target": "4", "tags": {}},
            {"messages": [{"role": "user", "content": "Red?"}], "target": "yes", "choices": ["yes", "no"], "tags": {}},
        ],
    )
    (mine,) = s.load(file)
    assert mine.name == "mine"
    assert [each.tags["kind"] for each in mine.items] == ["generate", "choice"]
    assert len({s.item_id(each) for each in mine.items}) == 2


@pytest.mark.parametrize(
    ("row", "key"),
    [
        ({"target": "x", "choices": ["a", "b"], "tags": {"kind": "choice"}}, "target"),
        ({"choices": ["a", "a"], "tags": {"kind": "choice"}, "target": "a"}, "choices"),
        ({"tags": {"kind": "essay"}}, "kind"),
        ({"tags": {"kind": "extractive"}}, "target"),
        ({"messages": [], "target": "x"}, "messages"),
        ({"messages": [{"role": "assistant", "content": "hi"}], "target": "x"}, "messages"),
        ({"target": "x", "answer": "y"}, "answer"),
    ],
)
def test_bad_rows_are_named(tmp_path, row, key):
    good = {"messages": [{"role": "user", "content": "Q"}], "target": "A", "tags": {"id": "1"}}
    file = tmp_path / "mine.jsonl"
    write_jsonl(file, [good, {"messages": [{"role": "user", "content": "Q"}]} | row])
    with pytest.raises(DataError) as error:
        s.load(file)
    assert (error.value.row, error.value.key) == (2, key)


def test_duplicate_ids_empty_and_missing_files(tmp_path):
    row = {"messages": [{"role": "user", "content": "Q"}], "target": "A", "tags": {"id": "1"}}
    file = tmp_path / "mine.jsonl"
    write_jsonl(file, [row, row])
    with pytest.raises(DataError, match="stands in row 1"):
        s.load(file)
    file.write_text("")
    with pytest.raises(DataError, match="no items"):
        s.load(file)
    file.write_text("{")
    with pytest.raises(DataError):
        s.load(file)
    with pytest.raises(NotFound):
        s.load(tmp_path / "none.jsonl")


def test_samples_are_fixed_and_spread_over_clusters():
    items = [item(text=f"{group}{turn}", cluster=str(group)) for group in range(5) for turn in range(20)]
    drawn = s.sample(items, 10)
    assert drawn == s.sample(list(reversed(items)), 10)
    assert sorted(s.cluster_of(each) for each in drawn) == sorted("01234" * 2)
    assert s.sample(items, 10, seed=1) != drawn
    assert len(s.sample(items, 0)) == 100
    cells = [each.model_copy(update={"tags": each.tags | {"cell": "AB"[n % 2]}}) for n, each in enumerate(items)]
    (one,) = s.select(cells, 7)
    assert len(one) == 14
    assert len(s.select(cells, 7, of={"extractive": 3})[0]) == 6
    assert s.select(cells, 7, only=["other"]) == []
    assert s.select([item(kind="goal")], 5) == []


def test_extractive_generate_translate_classify():
    assert a.score(item(), said("The Mill Street.")).value == 1.0
    half = a.score(item(), said("mill road"))
    assert (half.value, half.scores["exact"]) == (pytest.approx(0.5), 0.0)
    assert a.score(item("generate", "1,200"), said("1200")).value == 1.0
    assert a.score(item("generate", "12", extract="number"), said("So 3 and 4 make 12.")).value == 1.0
    assert a.score(item("generate", "12", extract="after:###"), said("none")).outcome == "unextracted"
    assert a.score(item("generate", "12", extract="after:###"), said("x ### 12")).value == 1.0
    assert a.score(item("generate", "12"), said("3 and 9 make 12")).value == 1.0
    assert a.score(item("generate", "a", extract="line"), said("a\nb")).value == 1.0
    assert a.score(item("extractive", answers=["stone bridge"]), said("stone bridge")).value == 1.0
    assert a.score(item("translate", "the cat sits"), said("the cat sits")).value == pytest.approx(1.0)
    assert 0 < a.score(item("translate", "the cat sits"), said("the cat")).value < 1
    labels = ("positive", "negative")
    assert a.score(item("classify", "positive", labels), said("It is positive!")).value == 1.0
    assert a.score(item("classify", "positive", labels), said("positive or negative")).outcome == "unextracted"
    assert a.score(item("classify", "positive", labels), said("unpositive")).outcome == "unextracted"
    assert a.score(item("classify", "sports"), said("Sports")).value == 1.0


def test_failures_are_never_a_score():
    failed = a.score(item(), said("", "error"))
    assert failed.value is None
    assert failed.outcome == "unknown"
    assert a.score(item(), said("   ")).outcome == "unextracted"
    blocked = a.score(item(), said("I may not.", "blocked"))
    assert (blocked.value, blocked.outcome) == (0.0, "blocked")


def test_rules_are_checked_by_our_programs_only():
    with pytest.raises(DataError, match="tutelage's own"):
        a.score(item("rule", None, rule="pin", check="os:system"), said("4711"))
    assert a.score(item("rule", "no", rule="pin"), said("no", "blocked")).value == 1.0


def test_choices_by_likelihood():
    question = item("choice", "yes", ("yes", "certainly not"))
    found = pick(question, [scored(-4.0, 1, 3), scored(-6.0, 2, 13)])
    assert found.output == "yes"
    assert found.scores["accuracy"] == 1.0
    assert found.scores["accuracy_per_character"] == 0.0
    assert found.scores["confidence"] == pytest.approx(0.8808, abs=1e-4)
    tie = pick(question, [scored(-4.0, 1, 3), scored(-4.0, 1, 3)])
    assert tie.value == 0.5
    assert pick(question, [scored(float("-inf"), 1, 3), scored(-1, 1, 1)]).value is None
    assert pick(question, []).outcome == "unknown"


def test_baselines():
    texts = [("good nice bread", "positive"), ("bad cold soup", "negative"), ("nice warm soup", "positive")]
    rows = [
        Example(
            messages=(Message(role="user", content=f"Review: {text}. Mood?"), Message(role="assistant", content=label)),
            tags={"suite": "sentiment", "split": "train"},
        )
        for text, label in texts * 20
    ]
    held = rows[0].model_copy(update={"tags": {"suite": "sentiment", "split": "validation"}})
    by_suite = rows_of([*rows, held])
    assert len(by_suite["sentiment"]) == 60
    question = item("classify", "negative", ("positive", "negative"), text="Review: bad bread. Mood?")
    found = guesses("classify", by_suite["sentiment"], [question])
    assert found["majority"]([question]) == ["positive"]
    assert found["tfidf-classifier"]([question]) == ["negative"]
    assert chance(question) == 0.5
    passage = item(candidates=["mill street", "stone bridge", "mill street"])
    assert chance(passage) == 0.5
    mention = guesses("extractive", (), [passage])
    assert mention["first-mention"]([passage]) == ["mill street"]
    assert mention["last-mention"]([item(candidates=["a", "b"])]) == ["b"]
    assert chance(item("translate")) is None


def test_word_table_translates_known_words_and_drops_the_instruction():
    pairs = [("red door", "velo tar"), ("red boat", "velo mun"), ("blue door", "siro tar"), ("blue boat", "siro mun")]
    rows = [
        Example(
            messages=(
                Message(role="user", content=f"Please translate into Velic: {left}"),
                Message(role="assistant", content=right),
            )
        )
        for left, right in pairs * 5
    ]
    table = WordTable(rows, least=0.7)
    assert table([item("translate", text="Please translate into Velic: blue door")]) == ["siro tar"]
    assert table.translate("unknown") is None


def test_result_rows_are_plain_json():
    found = s.row(item(slices={"tone": 1}), target="finetune", metric="f1", value=1.0, outcome="answered")
    assert json.loads(found.model_dump_json())["slices"] == {"tone": "1"}
    assert found.cluster == "extractive-Where?"


def test_labels_are_said_and_sentences_are_weighed():
    moods = [item("choice", "good", ("good", "bad"), text=str(n)) for n in range(3)]
    (said_,) = s.select(moods, 0)
    assert {each.tags["kind"] for each in said_.items} == {"classify"}
    sentences = [item("choice", "he goes", ("he goes", f"he go {n}"), text=str(n)) for n in range(3)]
    (weighed,) = s.select(sentences, 0)
    assert {each.tags["kind"] for each in weighed.items} == {"choice"}


def test_chance_counts_the_admission_as_a_guess():
    assert chance(item(candidates=["a", "b"], answerable=False)) == pytest.approx(1 / 3)
    assert chance(item("generate", values=["a", "b", "c"], answerable=True)) == 0.25
    assert chance(item("generate")) is None


def test_saying_the_commonest_class_is_no_sign_that_a_control_failed():
    classes = ("good", "bad")
    items = [item("classify", "good" if n % 4 else "bad", classes, f"Text {n}?") for n in range(80)]
    told = [
        s.row(
            each, target="m", metric="accuracy", value=float(each.target == "good"), outcome="answered", output="good"
        )
        for each in items
    ]
    (control,) = shuffled_control(told, {s.item_id(each): each for each in items}, {})
    assert control["value"] == control["true_labels"] == 0.75 == control["bound"] and control["holds"]
    knowing = [each.model_copy(update={"output": items[n].target, "value": 1.0}) for n, each in enumerate(told)]
    (control,) = shuffled_control(knowing, {s.item_id(each): each for each in items}, {})
    assert control["true_labels"] == 1.0 and control["value"] < 0.75
