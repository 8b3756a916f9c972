"""Examples never give an item away; draws, forms and judges are reported beside the figures."""

import json

import pytest

from tutelage.core.errors import DataError
from tutelage.core.records import Example, Message, write_jsonl
from tutelage.evaluate import ways
from tutelage.evaluate.further import Examination
from tutelage.evaluate.run import evaluate_reference
from tutelage.evaluate.suite import Suite, load
from tutelage.evaluate.suites.shots import drawn, raw, shown, templated
from tutelage.evaluate.ways import Asking, Way
from tutelage.generate import fake
from tutelage.generate.local import LocalGenerator
from tutelage.model.transformer import Decoder, DecoderConfig
from tutelage.tokens.tokenizer import learn


def item(number, split="test", cluster=None, role="user", **tags):
    base = {"id": f"{split}{number}", "suite": "sums", "kind": "generate", "split": split, "slices": {}}
    base["cluster"] = cluster or f"c{number}"
    text = f"{number} + 1?"
    return Example(messages=(Message(role=role, content=text),), target=str(number + 1), tags=base | tags)


POOL = [item(n, "train") for n in range(20, 32)]


def examination(resamples=1000, **how):
    return Examination(how=Asking(**how), resamples=resamples)


def test_examples_are_turns_before_the_question():
    asked = shown(item(1), drawn(POOL, 0, 0), 2)
    assert [each.role for each in asked.messages] == ["user", "assistant"] * 2 + ["user"]
    assert asked.messages[-1].content == "1 + 1?" and asked.tags["id"] == "test1"
    number = int(asked.messages[0].content.split()[0])
    assert asked.messages[1].content == str(number + 1)
    text = shown(item(1, role="text"), drawn(POOL, 0, 0), 1)
    assert text.messages[0].content == f"{number} + 1? {number + 1}\n\n1 + 1?"


def test_never_the_item_itself_its_cluster_or_its_question():
    pool = [item(1, "train"), item(2, "train", cluster="c1"), item(3, "train", cluster="c3")]
    twin = item(9).model_copy(update={"messages": (Message(role="user", content=" 3  + 1? "),)})
    for draw in range(6):
        said = shown(item(1), drawn(pool, 0, draw), 1).messages
        assert said[0].content == "3 + 1?"
        assert shown(twin, drawn([*pool[:1], pool[2], POOL[0]], 0, draw), 1).messages[0].content in (
            "20 + 1?",
            "1 + 1?",
        )
    with pytest.raises(DataError, match="were asked for, 1 are left"):
        shown(item(1), drawn(pool, 0, 0), 2)


def test_draws_differ_and_are_fixed():
    orders = [[row.tags["id"] for row in drawn(POOL, 0, draw)] for draw in range(3)]
    assert len({tuple(order) for order in orders}) == 3
    assert orders[0] == [row.tags["id"] for row in drawn(list(reversed(POOL)), 0, 0)]
    assert orders[0] != [row.tags["id"] for row in drawn(POOL, 1, 0)]


def test_lettered_examples_are_asked_as_the_item_is():
    def lettered(number, split):
        asked = item(number, split, kind="choice", options="letters")
        return asked.model_copy(update={"choices": (f"{number + 1}", "0")})

    asked = shown(lettered(1, "test"), [lettered(n, "train") for n in range(5, 8)], 1)
    assert asked.messages[0].content.endswith("A. 6\nB. 0\nAnswer:") and asked.messages[1].content == "A"


def test_the_other_form():
    conversation = shown(item(1), drawn(POOL, 0, 0), 1)
    text = raw(conversation)
    assert text.messages[0].role == "text" and text.tags["stop"] == ["\n"]
    assert text.messages[0].content.endswith("\n\n1 + 1?\n")
    assert templated(item(1, role="text")).messages[0].role == "user"
    assert raw(text) is text and templated(conversation) is conversation


class Learner(fake.FakeGenerator):
    """Right where an example of an even number stands before the question, and only in a conversation."""

    def _answer(self, prompt, sample):
        if prompt.messages[0].role == "text":
            return "nothing"
        first = int(prompt.messages[0].content.split()[0])
        number = int(prompt.messages[-1].content.split()[0])
        return str(number + 1) if len(prompt.messages) == 1 or first % 2 == 0 or number % 3 == 0 else "no"


@pytest.fixture
def learner(monkeypatch):
    found = Learner(name="learner")
    monkeypatch.setattr(fake, "open_fake", lambda ref, root=None, **options: found)
    return found


def test_draws_and_forms_stand_beside_the_figures(learner, tmp_path):
    file = tmp_path / "sums.jsonl"
    write_jsonl(file, [item(n) for n in range(1, 13)] + POOL)
    found = evaluate_reference("fake:learner", file, examination(50, shots=1, draws=6, other_form=True))
    (head,) = [cell for cell in found["cells"] if cell["headline"]]
    assert head["n"] == 12, "rows to train on are never examined; draws are no further items"
    (drawn_,) = found["draws"]
    assert drawn_["draws"] == 6 and len(drawn_["means"]) == 6
    assert set(map(lambda each: round(each, 3), drawn_["means"])) == {round(4 / 12, 3), 1.0}
    assert drawn_["deviation"] > 0.2
    assert drawn_["high"] - drawn_["low"] > head["high"] - head["low"], "another draw is part of the error"
    (form,) = found["forms"]
    assert (form["form"], form["other"]) == ("chat", "raw")
    assert form["difference"]["value"] == pytest.approx(0 - head["value"])
    plain = evaluate_reference("fake:learner", file, examination(50))
    assert "draws" not in plain and "forms" not in plain and plain["cells"][0]["value"] == 1.0


def test_examples_from_a_file_and_from_training_dialogues(learner, tmp_path):
    write_jsonl(tmp_path / "shots.jsonl", POOL)
    write_jsonl(tmp_path / "sums.jsonl", [item(n) for n in range(1, 4)])
    evaluate_reference(
        "fake:learner", tmp_path / "sums.jsonl", examination(shots=2, shots_from=str(tmp_path / "shots.jsonl"))
    )
    assert len(learner.asked[-1].messages) == 5
    dialogue = Example(
        messages=(Message(role="user", content="40 + 1?"), Message(role="assistant", content="41")),
        tags={"suite": "sums", "split": "train"},
    )
    evaluate_reference("fake:learner", tmp_path / "sums.jsonl", examination(shots=1), dialogues=[dialogue])
    assert learner.asked[-1].messages[1].content == "41"
    with pytest.raises(DataError, match="examples of the kind generate were asked for"):
        evaluate_reference("fake:learner", tmp_path / "sums.jsonl", examination(shots=1))


def test_answers_that_people_judged_measure_the_judge_and_are_never_asked(monkeypatch, tmp_path):
    generator = fake.FakeGenerator(lambda example, n: "SCORE: 4" if "SCORE" in example.messages[-1].content else "fine")
    monkeypatch.setattr(fake, "open_fake", lambda ref, root=None, **options: generator)
    rows = [{"kind": "judged", "prompt": f"Question {n}?", "id": f"q{n}"} for n in range(12)]
    rows += [
        {
            "kind": "judged",
            "prompt": f"Asked {n}?",
            "id": f"p{n}",
            "answer": "it is so",
            "human": [0.5, 0.5 + n % 3 / 10],
        }
        for n in range(15)
    ]
    (tmp_path / "talk.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = evaluate_reference("fake:x", tmp_path / "talk.jsonl", examination(judge="prompted:fake:x"))
    score = next(cell for cell in found["cells"] if cell["metric"] == "score")
    put = [each.messages[0].content for each in generator.asked if "SCORE" not in each.messages[0].content]
    assert score["n"] == 12 and len(put) == 12 and not any("Asked" in each for each in put)
    (judge,) = found["judges"]
    assert judge["judged_by_people"] == 15 and judge["simulated"] is False
    assert judge["difference"]["value"] == pytest.approx(0.75 - 0.55)
    assert score["value"] == pytest.approx(0.55) and score["low"] < 0.55 < score["high"]
    other = tmp_path / "people.jsonl"
    other.write_text(json.dumps({"kind": "judged", "prompt": "x", "answer": "y"}) + "\n")
    with pytest.raises(DataError, match="needs `answer` and `human`"):
        ways.labelled_answers([], str(other))


LONG = "the cat sat on the mat and the dog ran to the park. " * 12


@pytest.fixture(scope="module")
def small():
    tokenizer = learn([LONG], 300, 2)
    config = DecoderConfig(tokenizer.size, 16, 24, 1, 2, 2, max_position_embeddings=48)
    return LocalGenerator(Decoder(config, seed=1).requires_grad_(False), tokenizer, name="small")


KINDS = ["choice", "letters", "extractive", "generate", "arithmetic", "translate", "classify", "rule", "instruct"]
KINDS += ["summarise", "judged"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_prompt_over_the_context_is_unknown_and_never_cut(small, kind):
    tags = {"constraints": [{"type": "no_comma"}]} if kind == "instruct" else {}
    tags |= {"options": "letters"} if kind == "letters" else {}
    tags |= {"rule": "pin"} if kind == "rule" else {}
    choices = ("1", "2") if kind in ("choice", "letters", "classify") else ()
    real = "choice" if kind == "letters" else kind
    items = [
        Example.ask(text, target="1").model_copy(
            update={"choices": choices, "tags": {"id": text[:9], "suite": "s", "kind": real} | tags}
        )
        for text in ("short?", LONG)
    ]
    results, _ = Way().examined(small, items, target="small")
    short, long = results
    assert (long.value, long.outcome) == (None, "unknown") and "context is 48" in long.reason
    assert short.value is not None or real == "judged"


def test_running_text_over_the_context_is_weighed_in_windows(small):
    text = Example(messages=(Message(role="text", content=LONG),), tags={"id": "1", "suite": "s", "kind": "perplexity"})
    whole, _ = Way().examined(small, [text], target="small")
    narrow, _ = Way(Asking(stride=8)).examined(small, [text], target="small")
    assert whole[0].value > 0 and narrow[0].value != whole[0].value
    assert whole[0].scores["tokens"] > 48 and whole[0].scores["bytes"] == len(LONG)


def test_suites_of_one_kind_go_through_load(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", [item(1), item(2, "train")])
    (suite,) = load(tmp_path / "a.jsonl")
    assert isinstance(suite, Suite) and len(suite) == 2
