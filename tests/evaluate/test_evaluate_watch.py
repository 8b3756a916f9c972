"""The watch sees a model in training and leaves no trace; gold and best-of-n are measured by truth."""

import numpy as np
import pytest
import torch

from tutelage.core.errors import DataError
from tutelage.core.records import Example, Message, Response, write_jsonl
from tutelage.evaluate.suite import faults, item_id, select
from tutelage.evaluate.suites.gold import gold
from tutelage.evaluate.watch import watch, watched
from tutelage.model.transformer import Decoder, DecoderConfig
from tutelage.tokens.tokenizer import learn


def _items(count=30):
    found = []
    for suite, kind in (("comprehension", "extractive"), ("sentiment", "choice"), ("translation", "translate")):
        for number in range(count):
            tags = {
                "id": f"{suite}{number}",
                "suite": suite,
                "kind": kind,
                "cell": "AB"[number % 2],
                "cluster": f"c{number % 9}",
            }
            choices = ("good", "bad") if kind == "choice" else ()
            item = Example.ask(f"{number} was it good or bad?", target="good" if number % 2 else "bad")
            found.append(item.model_copy(update={"choices": choices, "tags": tags}))
    return found


@pytest.fixture
def corpus(tmp_path):
    write_jsonl(tmp_path / "items.jsonl", _items())
    return tmp_path


@pytest.fixture
def small():
    tokenizer = learn(["was it good or bad? it was good, it was bad"] * 20, 300)
    return Decoder(DecoderConfig(tokenizer.size, 32, 48, 2, 4, 2, max_position_embeddings=64), seed=1), tokenizer


def test_items_are_fixed_and_shared_between_suites(corpus):
    first = watched(corpus, 20)
    assert first == watched(corpus, 20)
    counts = {
        suite: sum(each.tags["suite"] == suite for each in first)
        for suite in ("comprehension", "sentiment", "translation")
    }
    assert counts == {"comprehension": 7, "sentiment": 6, "translation": 7}
    assert {each.tags["cell"] for each in first} == {"A", "B"}
    assert len({item_id(each) for each in first}) == 20
    assert watched(corpus, 0) == []


def test_the_watch_leaves_no_trace(corpus, small):
    decoder, tokenizer = small
    look = watch(corpus, tokenizer, items=12, every=50)
    assert look.every == 50
    decoder.train()
    torch.manual_seed(5)
    np.random.seed(5)
    before = {name: value.clone() for name, value in decoder.state_dict().items()}
    state = torch.get_rng_state()
    figures = look(decoder, 0)
    assert torch.equal(torch.get_rng_state(), state)
    assert np.random.random() == np.random.RandomState(5).random_sample()
    assert decoder.training
    assert all(torch.equal(value, before[name]) for name, value in decoder.state_dict().items())
    assert all(parameter.grad is None for parameter in decoder.parameters())
    assert figures["watched_items"] == 12
    assert set(figures) >= {"comprehension", "sentiment", "translation", "watched", "watched_error"}
    assert all(0 <= figures[name] <= 1 for name in ("comprehension", "sentiment", "translation", "watched"))
    assert look(decoder, 0) == figures
    assert watch(corpus, tokenizer, items=0)(decoder, 0) == {}


def test_what_changed_is_paired_by_item(corpus, small):
    decoder, tokenizer = small
    look = watch(corpus, tokenizer, items=30)
    look.begin(decoder)
    first = look(decoder, 0)
    same = look.change(decoder, 0)
    assert set(same) == {"comprehension", "sentiment", "translation", "watched"}
    assert all(each["value"] == 0 and each["n"] for each in same.values())
    with torch.no_grad():
        decoder.embed_tokens.weight.mul_(-1)
    last, changed = look(decoder, 5), look.change(decoder, 5)
    for name in ("sentiment", "watched"):
        assert changed[name]["value"] == pytest.approx(last[name] - first[name])
    assert changed["watched"]["low"] <= changed["watched"]["value"] <= changed["watched"]["high"]
    with torch.no_grad():
        decoder.embed_tokens.weight.mul_(-1)
    assert look.change(decoder, 3) == same, "the weights of another look than the last are examined again"
    assert watch(corpus, tokenizer, items=0).change(decoder, 5) == {}


def _texts(count=12):
    """Texts to be read, in a suite of their own and within one that asks too."""
    return [
        Example.ask("").model_copy(
            update={
                "messages": (Message(role="text", content=f"it was good or bad, number {number}"),),
                "tags": {"id": f"text{suite}{number}", "suite": suite, "kind": "perplexity", "cluster": f"t{number}"},
            }
        )
        for suite in ("letters", "sentiment")
        for number in range(count)
    ]


def test_bits_per_byte_are_watched_by_themselves(tmp_path, small):
    """They are no share of right answers: neither in the mean of all nor a flip at one half; less is better."""
    decoder, tokenizer = small
    write_jsonl(tmp_path / "items.jsonl", [*_items(), *_texts()])
    look = watch(tmp_path, tokenizer, items=60)
    look.begin(decoder)
    figures = look(decoder, 0)
    assert figures["letters"] > 1.0 and figures["sentiment bits_per_byte"] > 1.0, "an untrained model needs many bits"
    assert 0 <= figures["sentiment"] <= 1
    shares = look.values("watched")
    assert 0 <= figures["watched"] <= 1 and figures["watched_items"] == len(shares)
    assert not any("text" in name for name in shares) and any("text" in name for name in look.values("letters"))
    assert look.higher("watched") and look.higher("sentiment")
    assert look.higher("letters") is False and look.higher("sentiment bits_per_byte") is False
    assert look.higher("validation") is None
    seen, nothing = look.flips({})
    assert nothing == {}
    text = next(name for name in seen if name.startswith("letters/"))
    label = next(name for name in seen if name.startswith("sentiment/sent"))
    _, moved = look.flips({**seen, text: seen[text] - 0.3, label: 1.0 - seen[label]})
    assert moved["broken"] == sorted([text] + [label] * (seen[label] == 0.0)), "more bits than before: broken"
    assert look.flips({**seen, text: seen[text] - 0.05})[1] == {"fixed": [], "broken": []}, "a little is no flip"
    with torch.no_grad():
        decoder.embed_tokens.weight.normal_(0, 3, generator=torch.Generator().manual_seed(0))
    changed = look.change(decoder, 5)
    assert set(changed) == {
        "comprehension",
        "letters",
        "sentiment",
        "sentiment bits_per_byte",
        "translation",
        "watched",
    }
    assert changed["letters"]["high"] > 1.0, "no difference of bits is clipped at 1"


def test_duplicate_ids_and_faulty_items():
    items = _items(3)
    broken = items[0].model_copy(update={"target": None, "tags": items[0].tags | {"id": "broken"}})
    assert faults([*items, broken]) == {"target: an item of kind extractive needs one": 1}
    assert sum(len(suite) for suite in select([*items, broken], 0)) == len(items)
    with pytest.raises(DataError, match="stands twice"):
        select([*items, items[0]], 0)


def said(text, finish="stop"):
    return Response(message=Message(role="assistant", content=text), finish=finish)


def test_gold_needs_truth_and_blocks_are_no_answers():
    tags = {
        "id": "1",
        "family": "comprehension",
        "asks": "street",
        "values": ["mill street"],
        "candidates": ["Mill Street"],
    }
    item = Example.ask("Ana lives in Mill Street. Where does Ana live?", target="Mill Street")
    item = item.model_copy(update={"tags": tags | {"refuse": False, "answerable": True}})
    language = item.model_copy(update={"tags": item.tags | {"family": "translation"}})
    assert "invented" not in (gold(language, said("Mill Street")) or {}), "nothing is stated that could be invented"
    assert gold(item, said("Mill Street")) == {"right": 1.0, "kept": 1.0, "invented": 0.0, "gold": 1.0}
    assert gold(item, said("", "blocked"))["gold"] == 0.0
    refuse = item.model_copy(update={"tags": item.tags | {"refuse": True}})
    assert gold(refuse, said("", "blocked"))["gold"] == 1.0
    assert gold(item, said("", "error")) is None
    assert gold(Example.ask("Hi", target="Ho"), said("Ho")) is None
