"""What a model says of its own certainty is held against what it gets right; agreement and determinism are counted."""

import math
import random

import pytest

from tutelage.core.errors import Unreachable
from tutelage.core.records import Example, Message, Response
from tutelage.evaluate import reliability as r
from tutelage.evaluate.ask import AnswerLog
from tutelage.evaluate.suite import Result, Suite
from tutelage.evaluate.suites.kinds import Ground
from tutelage.evaluate.ways import Way
from tutelage.generate.fake import FakeGenerator
from tutelage.generate.generator import Scored
from tutelage.generate.local import LocalGenerator
from tutelage.model.transformer import Decoder, DecoderConfig
from tutelage.tokens.tokenizer import learn


def points(count, sharp, seed=0, suite="s", clusters=100):
    """Choices between two, whose log-odds are `sharp` times what they should be."""
    rng = random.Random(seed)
    found = []
    for n in range(count):
        odds = rng.gauss(0, 1.5)
        gold = 0 if rng.random() < 1 / (1 + math.exp(-odds)) else 1
        logits = (sharp * odds, 0.0)
        top = max(logits)
        confidence = 1 / sum(math.exp(each - top) for each in logits)
        right = float(logits[gold] == top)
        found.append(r.Point("m", suite, "choices", confidence, right, f"c{n % clusters}", logits, gold))
    return found


def row(table, suite):
    return next(each for each in table if each["suite"] == suite)


def test_calibration_is_refused_below_300_items():
    (one, _) = r.calibration(points(299, 1.0), {("m", "s"): 299})
    for name in ("ece", "ece_after", "gain"):
        assert one[name]["value"] is None, "never a zero"
        assert "300 items" in one[name]["reason"]
    assert one["bins"] == []
    assert one["right"]["value"] > 0.5, "what needs fewer items is stated"
    assert one["aurc"]["value"] is not None


def test_a_sure_but_calibrated_model_and_an_overconfident_one():
    good = row(r.calibration(points(1200, 1.0), {("m", "s"): 1200}), "s")
    assert good["ece"]["low"] < 0.02
    assert sum(0.7 < t < 1.4 for t in good["temperature"].values()) == 1
    loud = row(r.calibration(points(1200, 4.0, seed=1), {("m", "s"): 1200}), "s")
    assert loud["ece"]["low"] > 0.05
    assert loud["temperature"]["s"] == pytest.approx(4.0, rel=0.3)
    assert loud["ece_after"]["value"] < 0.5 * loud["ece"]["value"]
    assert loud["gain"]["low"] > 0, "in nats per item, paired, out of fold"
    assert len(loud["bins"]) == 10
    assert all(each["low"] <= each["value"] <= each["high"] for each in loud["bins"] if each["low"] is not None)


def test_a_temperature_is_of_other_clusters_than_it_is_measured_on():
    """Fitted on the very items a temperature can only lower the loss; out of fold pure noise must not gain."""
    rng = random.Random(5)
    noise = [
        r.Point(
            "m", "s", "choices", 0.6, float(rng.random() < 0.6), f"c{n % 40}", (0.405, 0.0), int(rng.random() < 0.4)
        )
        for n in range(400)
    ]
    found = row(r.calibration(noise, {("m", "s"): 400}), "s")
    assert found["gain"]["low"] <= 0.0


def test_suites_with_other_scales_have_a_temperature_each():
    mixed = points(400, 0.3, suite="quiet") + points(400, 4.0, seed=1, suite="loud")
    whole = row(r.calibration(mixed, {("m", "quiet"): 400, ("m", "loud"): 500}), None)
    assert whole["temperature"]["quiet"] < 1 < whole["temperature"]["loud"]
    assert whole["ece_after"]["value"] < whole["ece"]["value"]
    assert whole["coverage"] == pytest.approx(800 / 900), "what gave no certainty lowers coverage"


def test_who_answers_only_when_sure_is_right_more_often():
    found = row(r.calibration(points(600, 1.0), {("m", "s"): 600}), "s")
    half, whole = dict(r.shown(found))[0.5], dict(r.shown(found))[1.0]
    assert half["value"] > whole["value"] + 0.05
    assert half["low"] < half["value"] < half["high"]
    assert found["aurc"]["value"] < 1 - whole["value"], "below what choosing by chance would leave"


NOTHING = Ground({})


def result(item, value, output="x", suite="s", outcome="answered", **more):
    return Result(target="m", suite=suite, item=str(item), cluster=f"c{item}", kind="generate", metric="exact",
                  value=value, outcome=outcome, output=output, **more)  # fmt: skip


def test_answers_in_words_by_the_probability_of_the_whole_text():
    rows = [result(1, 1.0, scores={"exact": 1.0, "confidence": 0.9}), result(2, None, scores={"confidence": 0.5})]
    rows += [result(3, 0.5, scores={"f1": 0.5, "confidence": 0.5}), result(4, 1.0, scores={"exact": 1.0})]
    (found,) = r.of_answers(rows)
    assert found.confidence == 0.9
    assert found.right == 1.0
    assert found.source == "answers"


def test_choices_that_tie_or_fail_are_not_called_right():
    items = [
        Example.ask(f"a{n}?", target="a", id=str(n), suite="s", kind="choice").model_copy(
            update={"choices": ("a", "b")}
        )
        for n in range(3)
    ]

    class Ties(FakeGenerator):
        def loglikelihood(self, prompts, choices):
            logs = {"0": (-1.0, -2.0), "1": (-1.0, -1.0), "2": (float("nan"), -1.0)}
            return [
                [Scored(logprob=each, tokens=1, characters=1, greedy=None) for each in logs[prompt.tags["id"]]]
                for prompt in prompts
            ]

    found = r.of_choices(Ties(), items, Way(), target="m")
    assert [each.right for each in found] == [1.0, 0.0]
    assert (
        r.of_choices(
            FakeGenerator(), [Example.ask("x", target="y", id="1", suite="s", kind="generate")], Way(), target="m"
        )
        == []
    )


def test_agreement_and_the_commonest_answer():
    runs = [[result(0, 1.0, "The gate"), result(1, 0.0, "a")], [result(0, 1.0, "gate."), result(1, 1.0, "b")],
            [result(0, 0.0, "mill"), result(1, 0.0, "c")]]  # fmt: skip
    greedy = [result(0, 0.0, "mill"), result(1, 1.0, "b")]
    found = row(r.consistency("seeds", runs, greedy, NOTHING), "s")
    assert found["agreement"]["value"] == pytest.approx((1 / 3 + 0) / 2)
    assert found["majority"]["value"] == pytest.approx((1.0 + 1 / 3) / 2), "equally common answers share the place"
    assert found["majority_minus_greedy"]["value"] == pytest.approx(2 / 3 - 0.5)
    assert found["answers"] == 3


def test_all_suites_together_are_shares_alone():
    """Bits per byte have no mean with shares of right answers."""
    runs = [[result(n, 1.0) for n in range(4)] + [bits_of(n) for n in range(4)] for _ in range(2)]
    table = r.consistency("seeds", runs, runs[0], NOTHING)
    assert {each["suite"] for each in table} == {"s", "letters", None}
    assert row(table, None)["majority"]["value"] == 1.0 and row(table, None)["asked"] == 4
    assert row(table, "letters")["majority"]["value"] == 2.5


def bits_of(number):
    more = {
        "suite": "letters",
        "metric": "bits_per_byte",
        "item": f"text{number}",
        "scores": {"bits": 20.0, "bytes": 8.0},
    }
    return result(number, 2.5).model_copy(update=more)


def test_an_answer_that_failed_lowers_coverage():
    runs = [[result(0, None, outcome="unknown"), result(1, 1.0)], [result(0, 1.0), result(1, 1.0)]]
    found = row(r.consistency("seeds", runs, [result(1, 1.0)], NOTHING), "s")
    assert found["coverage"] == 0.5
    assert found["agreement"]["n"] == 1
    assert found["agreement"]["low"] is None, "one item has no interval"


def test_wordings_take_the_item_as_it_stands_too():
    changed = [result(0, 1.0, slices={"perturbation": "prompt"}), result(0, 1.0, slices={"perturbation": "typos"})]
    runs = r.wordings([result(0, 1.0), result(1, 1.0)], changed)
    assert [len(each) for each in runs] == [1, 1]
    assert r.wordings([result(0, 1.0)], changed[1:]) == []


def suite(count=6):
    texts = [Example.ask(f"q{n}", target="a", id=str(n), suite="s", kind="generate") for n in range(count)]
    choice = Example.ask("c", target="a", id="c", suite="s", kind="choice").model_copy(update={"choices": ("a", "b")})
    return Suite("s", [*texts, choice])


def test_a_generator_that_minds_its_neighbours_is_found():
    class Moody(FakeGenerator):
        def generate(self, prompts, sampling):
            said = "alone" if len(prompts) == 1 else "together"
            return [[Response(message=Message(role="assistant", content=said), finish="stop")] for _ in prompts]

    config = r.Reliability(same=10)
    table = r.determinism(Moody(), [suite()], config, Way(), target="m")
    again, alone = (
        next(e for e in table if e["how"] == how and e["suite"] is None) for how in ("asked again", "asked alone")
    )
    assert again["value"] == 0.0
    assert again["high"] > 0.2, "seven items prove little"
    assert alone["value"] == pytest.approx(6 / 7)
    assert r.determinism(Moody(), [suite()], r.Reliability(), Way(), target="m") == []


def test_what_was_too_long_is_unknown_not_the_same():
    class Short(FakeGenerator):
        def loglikelihood(self, prompts, choices):
            none = Scored(logprob=-math.inf, tokens=1, characters=1, greedy=None, error="the context is 8")
            return [[none for _ in each] for each in choices]

    item = Example.ask("a?", target="a", id="1", suite="s", kind="choice").model_copy(update={"choices": ("a", "b")})
    whole = r.determinism(Short(), [Suite("s", [item])], r.Reliability(same=3), Way(), target="m")[0]
    assert (whole["value"], whole["n"]) == (None, 0) and "the context is 8" in whole["reason"]


def test_an_endpoint_that_is_down_is_unknown_not_the_same():
    class Down(FakeGenerator):
        def generate(self, prompts, sampling):
            raise Unreachable("nobody answers")

        def loglikelihood(self, prompts, choices):
            raise NotImplementedError

    whole = r.determinism(Down(), [suite()], r.Reliability(same=10), Way(), target="m")[0]
    assert whole["value"] is None
    assert whole["n"] == 0
    assert whole["asked"] == 7
    assert whole["reason"]


def test_drawn_answers_differ_by_seed_and_are_kept(tmp_path):
    log = AnswerLog(tmp_path / "answers.jsonl")
    generator = FakeGenerator("a")
    config = r.Reliability(items=4, repeats=3)
    runs = r.repeated(generator, [suite()], config, Way(), target="m", log=log)
    assert [len(each) for each in runs] == [4, 4, 4], "choices are weighed, not drawn"
    asked = len(generator.asked)
    r.repeated(generator, [suite()], config, Way(), target="m", log=AnswerLog(tmp_path / "answers.jsonl"))
    assert len(generator.asked) == asked, "the same command goes on from the log"


def test_the_embedded_engine_says_the_same_alone_and_among_many():
    """To the letter, on a real model of ours: drawn weights, the real tokenizer and the real engine."""
    tokenizer = learn(
        ["the cat sat on the mat and the dog ran to the park with a ball. is it true? yes, no. " * 5], 320, 2
    )
    decoder = Decoder(DecoderConfig(tokenizer.size, 32, 48, 2, 4, 2, max_position_embeddings=64), seed=1)
    decoder.requires_grad_(False)
    for parameter in decoder.parameters():
        parameter *= 2
    generator = LocalGenerator(decoder, tokenizer, name="small", max_batch=6)
    items = [
        Example.ask(f"the cat {'sat on ' * n}", target="a", id=str(n), suite="s", kind="generate") for n in range(8)
    ]
    items.append(
        Example.ask("c", target="a", id="c", suite="s", kind="choice").model_copy(update={"choices": ("a", "b")})
    )
    for entry in r.determinism(generator, [Suite("s", items)], r.Reliability(same=20), Way(), target="m"):
        assert entry["value"] == 0.0
        assert entry["n"] == 9
        assert entry["largest"] < 1e-4
