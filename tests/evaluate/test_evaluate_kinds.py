"""Each kind is scored as its definition says, by values worked out by hand; what was not measured is never a score."""

import json
import math

import pytest

from tutelage.core.records import Example, Message, Response, Verdict
from tutelage.evaluate import ask, run, ways
from tutelage.evaluate.suite import Suite, check, item_id
from tutelage.evaluate.suites import answers as a
from tutelage.evaluate.suites import choice, judged, overlap
from tutelage.evaluate.suites.kinds import HEADLINE, KIND, Ground
from tutelage.generate.fake import FakeGenerator
from tutelage.generate.generator import Scored
from tutelage.judge.judge import WindowedJudge
from tutelage.measure.statistics import paired
from tutelage.measure.text import exact_match, normalise_answer, token_f1


def item(kind, target=None, choices=(), text="Where?", role="user", **tags):
    base = {"id": f"{kind}-{text}", "suite": kind, "kind": kind, "cluster": tags.pop("cluster", text)}
    return Example(messages=(Message(role=role, content=text),), target=target, choices=choices, tags=base | tags)


def said(text, finish="stop"):
    return Response(message=Message(role="assistant", content=text), finish=finish)


def scored(*logprobs, tokens=1, texts=None):
    texts = texts or ["x"] * len(logprobs)
    return [
        Scored(logprob=each, tokens=tokens, characters=len(text), greedy=None)
        for each, text in zip(logprobs, texts, strict=True)
    ]


def examined(generator, items, **options):
    results = ask.examine(generator, items, target="m", **options)
    return results, run.summarise(results, [Suite("s", items)], (), resamples=50)


# -- choice


def test_every_way_to_read_choices_from_one_pass():
    """Bytes are bytes, not characters: a choice of another script is no shorter than it is."""
    asked = item("choice", "мир", ("мир", "peace!"))
    told = scored(-6.0, -6.5, texts=asked.choices)
    found = choice.pick(asked, told, scored(-1.0, -4.0)).scores
    assert found["accuracy"] == 1.0
    assert found["accuracy_per_character"] == 0.0, "-2 a character against -1.08"
    assert found["accuracy_per_byte"] == 1.0, "-1 a byte against -1.083"
    assert found["accuracy_pmi"] == 0.0, "-5 gained against -2.5"
    assert found["probability"] == pytest.approx(1 / (1 + math.exp(-0.5)))


def test_all_is_asked_in_one_list_and_equal_contexts_once():
    items = [item("choice", "yes", ("yes", "no"), text=str(n)) for n in range(5)]
    generator = FakeGenerator(likelihood=lambda example, text: -float(len(text)))
    results, _ = examined(generator, items)
    assert len(generator.asked) == 6, "five questions and one empty context for all"
    assert all({"accuracy_pmi", "accuracy_per_byte", "accuracy_per_token"} <= set(each.scores) for each in results)


def test_the_order_of_lettered_options_is_averaged_out():
    """A model that always says A is right in one order of three; one that knows is right in all."""
    asked = item("choice", "cat", ("dog", "cat", "hen"), options="letters")
    requests = choice.requests(asked)
    assert [each.choices for each in requests] == [("A", "B", "C")] * 3
    assert requests[0].messages[0].content == "Where?\nA. dog\nB. cat\nC. hen\nAnswer:"
    assert requests[1].messages[0].content == "Where?\nA. hen\nB. dog\nC. cat\nAnswer:"
    assert [each.target for each in requests] == ["B", "C", "A"]
    first = choice.read(asked, {item_id(each): scored(-0.1, -3, -3) for each in requests})
    assert first.scores["accuracy"] == 0.0 and first.output == "dog"
    assert first.scores["accuracy_over_orders"] == pytest.approx(1 / 3)
    assert first.scores["accuracy_order_averaged"] == pytest.approx(1 / 3), "all are equal once places are averaged"
    assert first.scores["order_consistency"] == pytest.approx(1 / 3)
    knows = {item_id(e): scored(*(-0.1 if letter == e.target else -3 for letter in e.choices)) for e in requests}
    best = choice.read(asked, knows)
    assert [best.scores[k] for k in ("accuracy", "accuracy_order_averaged", "order_consistency")] == [1.0, 1.0, 1.0]
    assert choice.read(asked, knows | {item_id(requests[2]): "too long"}).outcome == "unknown"


def test_several_right_choices_share_the_probability():
    asked = item("choice", "a", ("a", "b", "c"), answers=["c"])
    found = choice.pick(asked, scored(math.log(0.2), math.log(0.5), math.log(0.3)))
    assert found.scores["probability"] == pytest.approx(0.5) and found.value == 0.0


# -- BBQ


def bbq(number, condition="disambig", polarity="neg", target="The grandson"):
    tags = {
        "slices": {"condition": condition, "polarity": polarity},
        "groups": ["old", "nonOld", "unknown"],
        "stereotyped_groups": ["old"],
    }
    choices = ("The grandfather", "The grandson", "Not known")
    return item("choice", target, choices, text=f"{number} Who?", cluster=f"c{number}", **tags)


def biases(outputs, **tags):
    items = [bbq(number, **tags) for number in range(len(outputs))]
    favoured = {item_id(each): output for each, output in zip(items, outputs, strict=True)}
    generator = FakeGenerator(
        likelihood=lambda example, text: -1.0 if text == favoured.get(example.tags["id"]) else -5.0
    )
    results, found = examined(generator, items)
    return {cell["metric"]: cell for cell in found["cells"] if cell["metric"].startswith("bias")}, results, items


def test_bbq_without_one_stereotyped_answer_is_minus_one_and_not_zero():
    """lm-evaluation-harness gives 0 for none of 100 and -0.98 for one; the paper's formula gives -1 and -0.98."""
    none, _, _ = biases(["The grandson"] * 100)
    assert none["bias_disambig"]["value"] == -1.0 and "bias_ambig" not in none
    one, _, _ = biases(["The grandfather"] + ["The grandson"] * 99)
    assert one["bias_disambig"]["value"] == pytest.approx(-0.98)
    assert one["bias_disambig"]["low"] < -0.97 < one["bias_disambig"]["high"]


def test_bbq_by_hand_and_undefined_without_a_side():
    """8 of 10 answers take a side, 6 with the stereotype: 2 * 6/8 - 1 = 0.5; half are right, so 0.5 * (1 - 0.2)."""
    outputs = ["The grandfather"] * 6 + ["The grandson"] * 2 + ["Not known"] * 2
    found, _, _ = biases(outputs, condition="ambig", target="Not known")
    assert found["bias_ambig"]["value"] == pytest.approx(0.5 * (1 - 2 / 10))
    found, _, _ = biases(outputs, condition="ambig", polarity="nonneg", target="Not known")
    assert found["bias_ambig"]["value"] == pytest.approx(-0.5 * (1 - 2 / 10)), "the other question turns it round"
    silent, _, _ = biases(["Not known"] * 10, condition="ambig", target="Not known")
    assert silent["bias_ambig"]["value"] is None and silent["bias_ambig"]["reason"] == "no answer takes a side"


def test_bbq_an_answer_that_is_no_choice_takes_no_side():
    """Not even where the last choice would be a group: an index of -1 decides nothing here."""
    asked = bbq(0).model_copy(update={"choices": ("Not known", "The grandson", "The grandfather")})
    asked = asked.model_copy(update={"tags": asked.tags | {"groups": ["unknown", "nonOld", "old"]}})
    assert choice.takes_side(asked, "I think it rained") is None
    assert choice.takes_side(asked, "The grandfather") is True


# -- text


def test_a_failure_to_extract_is_counted_apart_with_its_own_interval():
    items = [item("arithmetic", str(n), text=f"{n} + 0?") for n in range(20)]
    generator = FakeGenerator(lambda example, n: "no idea" if int(example.messages[0].content[:2]) % 4 == 0 else "7")
    _, found = examined(generator, items)
    cells = {cell["metric"]: cell for cell in found["cells"]}
    assert cells["unextracted"]["value"] == 0.25
    assert 0 < cells["unextracted"]["low"] < 0.25 < cells["unextracted"]["high"] < 0.6
    assert cells["exact"]["n"] == 20 and cells["exact"]["unextracted"] == 5


def test_worked_solutions():
    gold = item("arithmetic", "18")
    solved = "She has 16 - 3 = 13 eggs.\nThen 9 * 2 = 18.\n#### 18"
    assert a.score(gold, said(solved)).scores == {"exact": 1.0, "marked": 1.0}
    assert a.score(gold, said("First 18, then minus 3 eggs. The answer is $18.00")).value == 1.0
    assert a.score(gold, said("18 eggs, then 17")).value == 0.0, "unmarked, the last number counts"
    assert a.score(gold, said("so \\boxed{18}")).value == 1.0
    assert a.score(gold, said("#### 1,8")).value == 0.0
    assert a.score(gold, said("#### 1e400")).output == "more than 1e308", "whatever a model says, it is read"
    assert a.score(item("arithmetic", "2", unit="km"), said("It is 2000 m.")).value == 1.0
    wrong = a.score(item("arithmetic", "2", unit="km"), said("It is 2 kg."))
    assert (wrong.value, wrong.scores["unit"]) == (0.0, 0.0)
    assert a.score(item("arithmetic", "3.14", tolerance=0.01), said("about 3.15")).value == 1.0


def test_squad_in_several_languages():
    assert normalise_answer("The  Cat, a dog!") == "cat dog"
    assert exact_match("der Hund", ["Hund."], "de") == 1.0
    assert exact_match("der Hund", ["Hund."], "en") == 0.0
    assert token_f1("北京大学", ["北京"], "zh") == pytest.approx(2 * 2 / 6), "two of four characters"
    assert exact_match("«Москва»", ["москва"], "ru") == 1.0
    assert exact_match("الكتاب", ["كتاب"], "ar") == 1.0
    assert exact_match("los gatos", ["gatos"], "es") == 1.0
    german = item("extractive", "Hund", language="de")
    assert a.score(german, said("Der Hund")).value == 1.0


def test_labels_that_are_articles_are_read():
    """`A` is a label here, not an article to be struck out."""
    asked = item("classify", "A", ("A", "B"))
    assert a.score(asked, said("The answer: A.")).value == 1.0
    assert a.score(asked, said("B")).value == 0.0


def test_a_target_in_brackets_stays_text():
    assert a.score(item("generate", "[1, 2]"), said("[1, 2]")).value == 1.0
    assert a.score(item("generate", "[1, 2]"), said("[2, 1]")).value == 0.0


def test_several_references_help_a_translation_and_never_break_it():
    items = [item("translate", f"the cat number {n} sits there", text=str(n)) for n in range(8)]
    also = [{"answers": [f"the cat of number {n} is sitting there"]} for n in range(8)]
    more = [each.model_copy(update={"tags": each.tags | tags}) for each, tags in zip(items, also, strict=True)]
    generator = FakeGenerator(lambda example, n: f"the cat of number {example.messages[0].content} is sitting there")
    _, one = examined(generator, items)
    _, several = examined(generator, more)
    for metric in ("chrf", "bleu"):
        single, double = (next(c for c in found["cells"] if c["metric"] == metric) for found in (one, several))
        assert 0 < single["value"] < 0.9 < double["value"] <= 1.0 + 1e-9
        assert "nrefs:1" in single["signature"] and "nrefs:2" in double["signature"]


def test_classes_are_told_apart():
    items = [item("classify", "good" if n < 6 else "bad", ("good", "bad"), text=str(n)) for n in range(10)]
    generator = FakeGenerator(lambda example, n: "good" if int(example.messages[0].content) < 8 else "hm")
    _, found = examined(generator, items)
    good, bad = found["classes"]
    assert (good["recall"]["value"], good["precision"]["value"]) == (1.0, 0.75)
    assert good["f1"] == pytest.approx(12 / 14) and bad["f1"] == 0.0
    assert bad["taken_for"] == {"good": 2, "None": 2} and bad["precision"]["value"] is None, "never said: undefined"
    macro = next(c for c in found["cells"] if c["metric"] == "macro_f1")
    assert macro["value"] == pytest.approx((12 / 14 + 0) / 2)


def test_labels_are_weighed_for_calibration_when_asked():
    items = [item("classify", "good", ("good", "bad"), text=str(n)) for n in range(4)]
    generator = FakeGenerator("good", likelihood=lambda example, text: -0.1 if text == "bad" else -2.0)
    results, _ = examined(generator, items, weigh_labels=True)
    assert results[0].scores["accuracy"] == 1.0 and results[0].scores["accuracy_by_likelihood"] == 0.0
    assert results[0].scores["confidence_by_likelihood"] == pytest.approx(1 / (1 + math.exp(-1.9)))
    assert "confidence" not in results[0].scores, "that is the probability of the words that were said"


# -- instructions


def test_instructions_strict_and_loose_by_prompt_and_by_constraint():
    wanted = [{"type": "words", "at_most": 2}, {"type": "no_comma"}]
    items = [item("instruct", text=str(n), constraints=wanted) for n in range(4)]
    texts = ["two words", "a, b", "Sure:\ntwo words", "one, two, three"]
    _, found = examined(FakeGenerator(lambda example, n: texts[int(example.messages[0].content)]), items)
    cells = {cell["metric"]: cell["value"] for cell in found["cells"]}
    assert (cells["strict"], cells["loose"]) == (0.25, 0.5)
    assert (cells["constraints_strict"], cells["constraints_loose"]) == (4 / 8, 5 / 8)
    by_kind = {(each["constraint"], each["how"]): each["value"] for each in found["constraints"]}
    assert (by_kind["words", "strict"], by_kind["words", "loose"]) == (0.5, 0.75)
    assert (by_kind["no_comma", "strict"], by_kind["no_comma", "loose"]) == (0.5, 0.5)


def test_a_constraint_that_cannot_be_told_is_unknown_not_broken():
    asked = item("instruct", constraints=[{"type": "language", "language": "en"}, {"type": "no_comma"}])
    figure = a.score(asked, said("xq zzv"))
    assert (figure.value, figure.outcome) == (None, "unknown")
    assert a.score(asked, said("xq, zzv")).value == 0.0, "another one is broken for certain"


# -- summaries


def test_rouge_l_is_lins():
    """The values of Lin 2004, sections 3.1 and 3.2."""
    reference = ["police killed the gunman"]
    assert overlap.rouge_l("police kill the gunman", reference) == 0.75
    assert overlap.rouge_l("the gunman kill police", reference) == 0.5
    assert overlap.rouge_l("the gunman police killed", reference) == 0.5
    union = overlap.rouge_l_summary("w1 w2 w6 w7 w8.\nw1 w3 w8 w9 w5.", ["w1 w2 w3 w4 w5"])
    assert union == pytest.approx(2 * (4 / 10) * (4 / 5) / (4 / 10 + 4 / 5)), "the union holds four of five"


def test_what_was_copied_and_what_is_new():
    document = "the cat sat on the mat and the dog ran to the park"
    found = overlap.figures("the cat sat on grass", ["a cat on the mat"], document)
    assert overlap.fragments(["the", "cat", "sat", "on", "grass"], document.split()) == [4]
    assert found["copied"] == pytest.approx(4 / 5) and found["density"] == pytest.approx(16 / 5)
    assert found["compression"] == pytest.approx(5 / 13) and found["novelty"] == pytest.approx(1 / 4)
    assert found["reference_coverage"] == pytest.approx(1 / 2) and found["source_coverage"] == pytest.approx(2 / 6)
    assert overlap.figures("", ["a"], document)["rouge_l"] == 0.0


# -- running text


class Reader(FakeGenerator):
    """Weighs running text: a nat a word."""

    def rolling(self, prompts, stride=0):
        texts = [prompt.messages[0].content for prompt in prompts]
        return [Scored(logprob=-float(len(t.split())), tokens=9, characters=len(t), greedy=None) for t in texts]


def test_bits_per_byte_of_a_corpus_counts_bytes_and_not_texts():
    texts = [("ab cd", "law"), ("é" * 10, "law"), ("x y z w", "play")]
    items = [
        item("perplexity", text=text, role="text", slices={"domain": domain}, id=str(n))
        for n, (text, domain) in enumerate(texts)
    ]
    results, found = examined(Reader(), items)
    assert results[0].value == pytest.approx(2 / math.log(2) / 5)
    assert results[1].scores["bytes"] == 20
    cell = next(c for c in found["cells"] if c["headline"])
    assert cell["value"] == pytest.approx((2 + 1 + 4) / math.log(2) / (5 + 20 + 7))
    assert cell["higher_is_better"] is False and cell["metric"] == "bits_per_byte"
    none, _ = examined(FakeGenerator("x"), items)
    assert {each.outcome for each in none} == {"unknown"} and "does not weigh running text" in none[0].reason


def test_where_less_is_better_a_fall_is_an_improvement():
    items = [item("perplexity", text=f"a b c {n}", role="text", id=str(n)) for n in range(6)]
    before = ask.examine(Reader(), items, target="before")
    half = [{"value": each.value / 2, "scores": each.scores | {"bits": each.scores["bits"] / 2}} for each in before]
    after = [each.model_copy(update={"target": "after"} | new) for each, new in zip(before, half, strict=True)]
    (entry,) = run.summary.changes([*before, *after], [("before", "after")], {item_id(each): each for each in items})
    assert entry["value"] < 0 and (entry["better"], entry["worse"]) == (6, 0)


# -- judged


class Strict(WindowedJudge):
    """Says what the answer's length says, and nothing about empty ones."""

    name = "strict"

    def judge(self, examples):
        texts = [each.messages[-1].content for each in examples]
        return [
            Verdict(judge="strict", scores={"good": len(text) / 10})
            if text
            else Verdict(judge="strict", status="malformed")
            for text in texts
        ]


def test_a_judge_without_people_has_no_interval_and_says_so():
    items = [item("judged", text=f"{n}?") for n in range(12)]
    results, found = examined(
        FakeGenerator("five5"), items, bench=judged.Bench(lambda rubric: Strict()), judge="strict"
    )
    cells = {cell["metric"]: cell for cell in found["cells"]}
    assert cells["score"]["value"] == 0.5 and cells["score"]["low"] is None
    assert cells["score"]["reason"] == "no answer was judged by people: the judge's error is not known"
    assert cells["judge"]["value"] == 0.5 and results[0].value == 0.5
    unjudged, _ = examined(FakeGenerator("five5"), items)
    assert {(each.value, each.reason) for each in unjudged} == {(None, "no judge was named")}
    silent, _ = examined(FakeGenerator(""), items, bench=judged.Bench(lambda rubric: Strict()), judge="strict")
    assert {each.outcome for each in silent} == {"unknown"} and "malformed" in silent[0].reason


def test_what_the_judge_is_off_is_taken_off_and_its_error_is_carried():
    """The judge says 0.2 more than people do; the corrected figure is lower by that and less certain."""
    measured = [judged.Agreement(str(n), str(n), 0.3 + 0.04 * (n % 5 - 2), 0.5) for n in range(40)]
    scores, clusters = [0.4 + 0.1 * (n % 3) for n in range(60)], [str(n) for n in range(60)]
    raw = judged.mean(scores, clusters, bounds=(0.0, 1.0))
    found = judged.corrected(scores, clusters, measured)
    assert found.value == pytest.approx(raw.value - 0.2)
    assert found.high - found.low > raw.high - raw.low
    told = judged.report("strict", measured)
    assert told["difference"]["value"] == pytest.approx(0.2) and told["correlation"] is None
    assert told["difference"]["low"] <= 0.2 <= told["difference"]["high"]
    few = judged.corrected(scores, clusters, measured[:3])
    assert few.low is None and "only 3 answers" in few.reason


def test_a_correction_covers_the_truth_where_the_judge_is_biased():
    import numpy as np

    rng, covered, plain = np.random.default_rng(0), 0, 0
    for _ in range(200):
        truth = rng.beta(2, 2, 160)
        judge = np.clip(truth + 0.1 + rng.normal(0, 0.1, 160), 0, 1)
        names = [str(n) for n in range(160)]
        measured = [
            judged.Agreement(n, n, float(t), float(j)) for n, t, j in zip(names[:60], truth, judge, strict=False)
        ]
        found = judged.corrected(judge[60:].tolist(), names[60:], measured)
        raw = judged.mean(judge[60:].tolist(), names[60:])
        covered += found.low <= 0.5 <= found.high
        plain += raw.low <= 0.5 <= raw.high
    assert covered / 200 >= 0.92 and plain / 200 < 0.2


def agreed(people, word):
    return [
        judged.Agreement(str(n), str(n), float(p), float(w)) for n, (p, w) in enumerate(zip(people, word, strict=True))
    ]


def test_a_difference_carries_the_judges_error_and_covers_the_truth():
    """Two systems, one truly better by 0.1; the judge is off by a different amount on either. Without its error the
    interval misses more than it promises; with it, it holds."""
    import numpy as np

    rng, covered, plain = np.random.default_rng(1), 0, 0
    names = [str(n) for n in range(80)]
    for _ in range(150):
        quality = rng.beta(4, 4, 40)
        measured = agreed(quality, np.clip(quality + rng.normal(0, 0.15, 40), 0, 1))
        easy = rng.beta(4, 4, 80) * 0.8
        off = rng.normal(0, 0.15 / 40**0.5, 2)  # as far as forty answers can tell
        first = np.clip(easy + 0.1 + off[0] + rng.normal(0, 0.05, 80), 0, 1).tolist()
        second = np.clip(easy + off[1] + rng.normal(0, 0.05, 80), 0, 1).tolist()
        found = judged.corrected_difference(first, second, names, measured, measured)
        raw = paired(first, second, names).difference
        covered += found.difference.low <= 0.1 <= found.difference.high
        plain += raw.low <= 0.1 <= raw.high
        assert (found.p < 0.05) == (found.difference.low > 0 or found.difference.high < 0)
        assert found.difference.value == pytest.approx(raw.value)
    assert covered / 150 >= 0.92 and plain / 150 < 0.6, (covered, plain)


def test_a_judge_that_does_not_go_with_people_decides_nothing():
    import numpy as np

    rng = np.random.default_rng(2)
    unrelated = agreed(rng.beta(2, 2, 60), rng.beta(2, 2, 60))
    names = [str(n) for n in range(200)]
    sides = rng.beta(4, 2, 200).tolist(), rng.beta(2, 4, 200).tolist()  # far apart, by the judge's word
    found = judged.corrected_difference(*sides, names, unrelated, unrelated)
    assert found.difference.low is None and found.p is None and "go with people" in found.difference.reason
    assert found.difference.value > 0.2, "what the judge said is still shown"
    assert judged.report("j", unrelated)["follows"] is False and judged.report("j", unrelated[:3])["follows"] is None
    found = judged.corrected_difference(*sides, names, (), ())
    assert found.p is None and "judge's error is not known" in found.difference.reason
    quality = rng.random(60)
    assert judged.follows(agreed(quality, 0.5 + 0.1 * quality + rng.normal(0, 0.02, 60)))


def test_slices_and_forms_carry_the_judges_error():
    people = {"judged": agreed([n / 40 - 0.1 * (n % 2) for n in range(40)], [n / 40 for n in range(40)])}
    items = [item("judged", text=f"{n}?", slices={"topic": "garden"}) for n in range(40)]
    bench = judged.Bench(lambda rubric: Strict())
    results = ask.examine(FakeGenerator("five5"), items, target="m", bench=bench, judge="strict")
    results = [row.model_copy(update={"value": 0.3 + 0.1 * (n % 3)}) for n, row in enumerate(results)]
    found = run.summarise(results, [Suite("s", items)], (), people=people, resamples=50)
    (cell, *_), (entry,) = found["cells"], found["slices"]
    assert cell["metric"] == entry["metric"] == "score" and cell["low"] is not None
    assert [entry[name] for name in ("value", "low", "high")] == [cell[name] for name in ("value", "low", "high")]
    assert judged.told_in(json.loads(json.dumps([{"suite": "judged"} | judged.report("j", people["judged"])]))) == {
        "judged": tuple(people["judged"])
    }
    by_id = {item_id(each): each for each in items}
    (row,) = ways.forms_table(results, [results], by_id, form="written", people=people)
    assert row["value"] == pytest.approx(cell["value"])


# -- all kinds

ONE = {
    "choice": item("choice", "a", ("a", "b")),
    "extractive": item("extractive", "a"),
    "generate": item("generate", "a"),
    "arithmetic": item("arithmetic", "1"),
    "translate": item("translate", "a b"),
    "classify": item("classify", "a", ("a", "b")),
    "rule": item("rule", "no", rule="pin"),
    "instruct": item("instruct", constraints=[{"type": "no_comma"}]),
    "summarise": item("summarise", "a b"),
    "perplexity": item("perplexity", role="text"),
    "judged": item("judged"),
}


def test_every_kind_has_an_item_a_headline_and_no_fault():
    assert set(ONE) == set(KIND) == set(HEADLINE)
    assert {kind: check(each) for kind, each in ONE.items()} == dict.fromkeys(ONE)
    for kind, metrics in KIND.items():
        assert len({each.name for each in metrics}) == len(metrics), kind
        for metric in metrics:
            interval, _ = metric.figure([], Ground({}))
            assert interval.value is None and interval.reason, f"{kind}/{metric.name}: nothing measured is no zero"


@pytest.mark.parametrize("kind", [kind for kind in ONE if kind not in ("choice", "perplexity")])
def test_a_generator_that_fails_is_unknown_whatever_the_kind(kind):
    class Failing(FakeGenerator):
        def generate(self, prompts, sampling):
            return [[Response(message=Message(role="assistant"), finish="error", error="it is down")] for _ in prompts]

    (found,) = ask.examine(Failing(), [ONE[kind]], target="m", bench=judged.Bench(lambda rubric: Strict()))
    assert (found.value, found.outcome, found.reason) == (None, "unknown", "it is down")


@pytest.mark.parametrize("kind", [kind for kind in ONE if kind not in ("choice", "perplexity", "judged", "rule")])
def test_a_blocked_answer_scores_nothing_in_every_figure(kind):
    figure = a.score(ONE[kind], said("I may not say.", "blocked"))
    assert (figure.value, figure.outcome) == (0.0, "blocked") and set(figure.scores.values()) == {0.0}
