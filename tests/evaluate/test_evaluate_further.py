"""What is asked beyond the items is asked as the items are: two answers differ in nothing but what is examined."""

import json
from hashlib import sha256

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tutelage.core.records import Example, Message, write_jsonl
from tutelage.evaluate.ask import AnswerLog
from tutelage.evaluate.further import Examination, Further
from tutelage.evaluate.robustness import AGAIN, WORST, Forms
from tutelage.evaluate.run import evaluate_reference
from tutelage.evaluate.suite import item_id, suites
from tutelage.evaluate.ways import way_of
from tutelage.generate import fake
from tutelage.generate.local import LocalGenerator
from tutelage.model.transformer import Decoder, DecoderConfig
from tutelage.tokens.tokenizer import learn

KINDS = ("choice", "letters", "generate", "classify", "perplexity")
FAMILIES = ("typos", "casing", "prompt")


def item(kind, number, role="user", split="test", **tags):
    """An item whose answer is one of two words; the question says nothing about which."""
    words = ("mill", "gate")
    target = words[number % 2]
    base = {"id": f"{split}-{kind}-{number}", "suite": kind, "kind": "choice" if kind == "letters" else kind}
    base |= {"split": split, "options": "letters" if kind == "letters" else ""}
    text = f"where is the {kind} of house number {number} to be found?"
    if kind == "perplexity":
        return Example(messages=(Message(role="text", content=text),), tags=base | tags)
    choices = () if kind == "generate" else words
    return Example(messages=(Message(role=role, content=text),), target=target, choices=choices, tags=base | tags)


def identity(items):
    """Every item as several other forms of itself, about which nothing is changed but their names."""
    made = [
        each.model_copy(
            update={
                "tags": each.tags | {"id": f"{item_id(each)}~{name}", "perturbation": name, "original": item_id(each)}
            }
        )
        for each in items
        for name in FAMILIES
    ]
    return Forms(tuple(made), tuple(items), {})


class Minding(fake.FakeGenerator):
    """Minds every letter that it is shown, and nothing else: any other context gives any other answer."""

    def generate(self, prompts, sampling):
        self.asked += prompts
        return [[self._response(prompt, 0, sampling)] for prompt in prompts]

    def _answer(self, prompt, sample):
        return ("mill", "gate", "the mill", "nowhere")[self._hash(prompt) % 4]

    def _weigh(self, prompt, choice):
        return -1.0 - self._hash(prompt, choice) % 7919 / 1000

    def rolling(self, prompts, stride=0):
        return [self.loglikelihood([each], [["x"]])[0][0].model_copy(update={"characters": 9}) for each in prompts]

    @staticmethod
    def _hash(prompt, choice=""):
        shown = json.dumps([[each.role, each.content] for each in prompt.messages] + [choice])
        return int.from_bytes(sha256(shown.encode()).digest()[:6], "big")


def asked_of(generator):
    return {(tuple((each.role, each.content) for each in one.messages), one.choices) for one in generator.asked}


def beyond(generator, rows, config):
    """(results of the items, what was found beyond them, what was asked for the items, what beyond them)."""
    chosen = suites([row for row in rows if row.tags["split"] == "test"])
    way = way_of(config.how, rows, [])
    further = Further(config, chosen, way, AnswerLog())
    items = [each for suite in chosen for each in suite.items]
    further.forms = identity(items)
    results, _ = way.examined(generator, items, target="m", log=further.log)
    first = asked_of(generator)
    generator.asked = []
    steps = []
    further.ask(generator, "m", "m", results, steps.append)
    assert sum(steps) == further.count, "as much is asked as was foretold"
    return results, further, first, asked_of(generator)


WAYS = st.fixed_dictionaries(
    {
        "shots": st.integers(0, 3),
        "form": st.sampled_from(("written", "chat", "raw")),
        "weigh_labels": st.booleans(),
    }
)
"""Every way of asking that changes what an item looks like."""


@settings(max_examples=25, derandomize=True, deadline=None)
@given(how=WAYS, role=st.sampled_from(("user", "text")), drawn=st.booleans(), seed=st.integers(0, 3))
def test_a_form_that_changes_nothing_costs_nothing_however_items_are_asked(how, role, drawn, seed):
    """With or without examples, raw or templated, under letters or not: the loss is that of the change alone. Every
    prompt that is asked beyond the items is one that was asked for an item."""
    rows = [item(kind, n, role) for kind in KINDS for n in range(6)]
    rows += [item(kind, n, role, "train") for kind in KINDS for n in range(20, 26)]
    config = Examination(
        how=how,
        seed=seed,
        robustness={"items": 6, "temperature": 0.7 if drawn else 0.0},
        reliability={"items": 6, "repeats": 2, "same": 3},
        resamples=50,
    )
    results, further, first, then = beyond(Minding(), rows, config)
    assert then <= first
    told = {each.item: each for each in results}
    assert len(further.changed) == 5 * 6 * len(FAMILIES) + (2 * 6 * len(FAMILIES) if drawn else 0)
    for row in (*further.changed, *(row for run in further.runs for row in run)):
        assert (row.output, row.value) == (told[row.item].output, told[row.item].value), row
    found = further.found(results)
    for entry in found["robustness"]:
        assert entry["value"] == 0.0 or (entry["family"] == WORST and "fewer than 30" in entry["reason"]), entry
        assert not entry.get("better") and not entry.get("worse")
    assert {entry["value"] for entry in found["reliability"]["determinism"]} == {0.0}
    for entry in found["reliability"]["consistency"]:
        assert (entry["agreement"]["value"], entry["majority_minus_greedy"]["value"]) == (1.0, 0.0)
    certain = {each.suite for each in further.points}
    assert certain == {"choice", "letters"} | ({"classify"} if how["weigh_labels"] else set())


def test_a_changed_question_stands_behind_the_examples_of_the_question_as_it_stands():
    """Rows of the examples' file are the items themselves: changed, a question must not find itself among them."""
    rows = [item("generate", n) for n in range(5)]
    rows += [each.model_copy(update={"tags": each.tags | {"split": "train"}}) for each in rows]
    config = Examination(how={"shots": 2}, robustness={"items": 5, "families": ["typos", "prompt"]})
    chosen = suites([row for row in rows if row.tags["split"] == "test"])
    generator, way = Minding(), way_of(config.how, rows, [])
    further = Further(config, chosen, way, AnswerLog())
    assert len(further.forms.items) > 5
    further.ask(generator, "m", "m", [], lambda done: None)
    plainly = {item_id(each): each for each in way.prepared(chosen[0].items)}
    for each in generator.asked:
        original = plainly[str(each.tags["original"])]
        assert each.messages[:-1] == original.messages[:-1], "the examples are the same, and unchanged"
        assert each.messages[-1] != original.messages[-1]
        assert original.messages[-1] not in each.messages[:-1], "nor does one of them give it away"


class NeedsExamples(fake.FakeGenerator):
    """Right behind two examples, and lost without them."""

    def _answer(self, prompt, sample):
        number = [int(word) for word in prompt.messages[-1].content.split() if word.isdigit()]
        return ("mill", "gate")[number[0] % 2] if len(prompt.messages) == 5 and number else "what?"


def test_the_price_of_a_form_is_not_that_of_the_examples(monkeypatch, tmp_path):
    generator = NeedsExamples(name="m")
    monkeypatch.setattr(fake, "open_fake", lambda ref, root=None, **options: generator)
    write_jsonl(tmp_path / "own.jsonl", [item("generate", n, split="train" if n > 39 else "test") for n in range(44)])
    config = Examination(
        how={"shots": 2},
        robustness={"items": 40, "families": ["prompt", "casing"]},
        reliability={"items": 5, "repeats": 2, "same": 5},
    )
    found = evaluate_reference("fake:m", tmp_path / "own.jsonl", config)
    assert found["cells"][0]["value"] == 1.0
    for row in found["robustness"]:
        assert row["value"] == 0.0 and row["n"] >= 30, row
    assert all(row["majority_minus_greedy"]["value"] == 0.0 for row in found["reliability"]["consistency"])
    assert {row["value"] for row in found["reliability"]["determinism"]} == {0.0}


def test_judged_answers_to_changed_questions_are_judged_too(monkeypatch, tmp_path):
    said = fake.FakeGenerator(lambda example, n: "SCORE: 4" if "SCORE" in example.messages[-1].content else "fine")
    monkeypatch.setattr(fake, "open_fake", lambda ref, root=None, **options: said)
    rows = [{"kind": "judged", "prompt": f"What is the name of the street by house number {n}?"} for n in range(6)]
    (tmp_path / "talk.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = Examination(
        how={"judge": "prompted:fake:x"},
        robustness={"items": 6, "families": ["prompt"]},
        reliability={"items": 6, "repeats": 2},
    )
    found = evaluate_reference("fake:x", tmp_path / "talk.jsonl", config)
    assert [row.value for row in found["perturbed"]] == [row.value for row in found["results"]] == [0.75] * 6
    assert found["robustness"][0]["value"] == 0.0
    assert found["reliability"]["consistency"][0]["coverage"] == 1.0


def test_on_the_real_engine_behind_examples_the_same_is_the_same():
    """A model of ours with drawn weights, a real tokenizer, the real engine: nothing changed, nothing lost."""
    words = " ".join(item("generate", n).messages[0].content + " mill gate" for n in range(30))
    tokenizer = learn([words], 320, 2)
    decoder = Decoder(DecoderConfig(tokenizer.size, 32, 48, 2, 4, 2, max_position_embeddings=512), seed=1)
    decoder.requires_grad_(False)
    for parameter in decoder.parameters():
        parameter *= 2
    generator = LocalGenerator(decoder, tokenizer, name="small")
    rows = [item(kind, n) for kind in ("letters", "generate", "choice") for n in range(6)]
    rows += [item(kind, n, split="train") for kind in ("letters", "generate", "choice") for n in range(20, 26)]
    config = Examination(how={"shots": 2}, reliability={"same": 3}, resamples=50)
    chosen = suites([row for row in rows if row.tags["split"] == "test"])
    items = [each for suite in chosen for each in suite.items]
    way = way_of(config.how, rows, [])
    further = Further(config, chosen, way, AnswerLog())
    further.forms = identity(items)
    results, _ = way.examined(generator, items, target="m", log=further.log)
    further.log = AnswerLog()  # everything is asked anew
    further.ask(generator, "m", "m", results, lambda done: None)
    told = {each.item: each.output for each in results}
    assert [row.output for row in further.changed] == [told[row.item] for row in further.changed]
    table = further.found(results)
    assert all(row["value"] == 0.0 for row in table["robustness"] if row["family"] not in (WORST, AGAIN))
    for row in table["reliability"]["determinism"]:
        assert row["value"] == 0.0 and row["largest"] < 1e-4


def test_calibration_reads_what_was_asked():
    """Letters by the letters' own probabilities; an item with two right answers is right with either."""
    rows = [item("letters", n) for n in range(4)] + [item("letters", n, split="train") for n in range(8, 12)]
    config = Examination(how={"shots": 1, "form": "raw"})
    results, further, _, _ = beyond(Minding(), rows, config)
    told = {each.cluster: each for each in results}
    assert len(further.points) == 4
    for point in further.points:
        assert point.right == told[point.cluster].scores["accuracy"]
        assert point.confidence == pytest.approx(told[point.cluster].scores["confidence"])
    either = [each.model_copy(update={"tags": each.tags | {"answers": ["mill", "gate"]}}) for each in rows]
    _, further, _, _ = beyond(Minding(), either, config)
    assert {point.right for point in further.points} == {1.0}
