"""The engine against the slow clear loop: one full forward for every token, one prompt at a time."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from tutelage.core.errors import UsageError
from tutelage.generate.engine import Completion, Engine, Request, Token, complete
from tutelage.generate.generator import Sampling
from tutelage.model import checkpoint, library, native
from tutelage.model.logprob import sequence_logprobs
from tutelage.model.transformer import Decoder, DecoderConfig
from tutelage.tokens.tokenizer import Tokenizer, learn

GREEDY = Sampling(max_tokens=12, temperature=0)


def make(family: str = "llama", vocabulary: int = 90, **more: object) -> Decoder:
    config = DecoderConfig(
        vocabulary,
        32,
        48,
        3,
        4,
        2,
        max_position_embeddings=48,
        model_type=family,  # type: ignore[arg-type]
        **more,  # type: ignore[arg-type]
    )
    decoder = Decoder(config, seed=3)
    for parameter in decoder.parameters():
        if parameter.dim() > 1:
            parameter.data *= 3  # opinions, so that greedy choices are no near-ties
    return decoder


@pytest.fixture(params=["native", "torch"], autouse=True)
def steps(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every test runs both ways."""
    if request.param == "torch":
        monkeypatch.setattr(native, "usable", lambda decoder: False)
    elif library.load() is None:
        assert os.environ.get("CI") != "true" or os.environ.get("TUTELAGE_NATIVE") == "off", "CI needs a C compiler"
        pytest.skip("no C compiler")
    return str(request.param)


def prompts(count: int = 9) -> list[list[int]]:
    draw = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 20, (count,), generator=draw).tolist()
    return [torch.randint(90, (length,), generator=draw).tolist() for length in lengths]


@torch.no_grad()
def slowly(decoder: Decoder, prompt: list[int], limit: int) -> list[int]:
    """The reference: read everything again for every token."""
    ids = list(prompt)
    for _ in range(limit):
        ids.append(int(decoder.logits(decoder(torch.tensor([ids]))[0, -1]).argmax()))
    return ids[len(prompt) :]


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize("slots", [2, 16])
def test_greedy_agrees_with_the_slow_loop_token_for_token(family: str, slots: int) -> None:
    decoder = make(family)
    done = complete(Engine(decoder, max_batch=slots), [Request(prompt, GREEDY) for prompt in prompts()])
    assert [each.tokens for each in done] == [slowly(decoder, prompt, 12) for prompt in prompts()]


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}


@pytest.mark.parametrize(
    ("family", "more"),
    [
        ("llama", {}),
        ("llama", {"tie_word_embeddings": False, "attention_bias": True}),
        ("mistral", {"tie_word_embeddings": False}),
        ("qwen2", {"attention_bias": True, "rope_scaling": YARN}),
        ("qwen3", {"head_dim": 16}),
    ],
)
def test_greedy_equals_transformers(family: str, more: dict[str, object], tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    decoder = make(family, **more)
    checkpoint.save(decoder, tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    done = complete(Engine(decoder), [Request(prompt, GREEDY) for prompt in prompts()])
    for prompt, ours in zip(prompts(), done, strict=True):
        ids = torch.tensor([prompt])
        rest = {"attention_mask": torch.ones_like(ids), "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
        out = theirs.generate(ids, max_new_tokens=12, **rest)
        assert out[0, len(prompt) :].tolist() == ours.tokens
    assert len({token for each in done for token in each.tokens}) > 12  # it does not say one word for ever


def test_a_repetition_penalty_equals_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    decoder = make()
    checkpoint.save(decoder, tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    asked = [(prompt, 1.3 if place % 3 else 1.0) for place, prompt in enumerate(prompts())]
    requests = [Request(ids, Sampling(max_tokens=20, temperature=0, repetition_penalty=by)) for ids, by in asked]
    changed = 0
    for (prompt, penalty), ours in zip(asked, complete(Engine(decoder, max_batch=4), requests), strict=True):
        ids = torch.tensor([prompt])
        rest = {"attention_mask": torch.ones_like(ids), "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
        out = theirs.generate(ids, max_new_tokens=20, repetition_penalty=penalty, **rest)
        assert out[0, len(prompt) :].tolist() == ours.tokens
        changed += ours.tokens != slowly(decoder, prompt, 20)
    assert changed > 3


def test_a_penalty_knows_every_token_of_prompt_and_answer() -> None:
    decoder, free = make(), Sampling(max_tokens=10, temperature=0)
    never = Sampling(max_tokens=10, temperature=0, repetition_penalty=100)
    asked = prompts(40)
    said_again = 0
    for prompt, plain in zip(asked, complete(Engine(decoder), [Request(ids, free) for ids in asked]), strict=True):
        said_again += prompt[-1] in plain.tokens
    assert said_again > 0
    for prompt, done in zip(asked, complete(Engine(decoder), [Request(ids, never) for ids in asked]), strict=True):
        assert len({*prompt, *done.tokens}) == len({*prompt}) + 10


def test_neighbours_that_ask_otherwise_change_nothing() -> None:
    decoder = make()
    ways: list[dict[str, float]] = [
        {},
        {"temperature": 0},
        {"temperature": 0, "repetition_penalty": 1.5},
        {"repetition_penalty": 1.5},
        {"min_p": 0.2},
        {"top_p": 0.7},
        {"top_k": 8, "min_p": 0.05, "repetition_penalty": 0.8, "temperature": 1.3},
    ]
    requests = [
        Request(ids, Sampling(max_tokens=6 + place, **ways[place % 7]), seed=place)  # type: ignore[arg-type]
        for place, ids in enumerate(prompts(14))
    ]
    alone = [complete(Engine(decoder, max_batch=1), [request])[0].tokens for request in requests]
    engine = Engine(decoder, max_batch=5)
    for _ in range(2):  # the second time slots hold what others left in them
        assert [each.tokens for each in complete(engine, requests)] == alone


def test_what_a_request_gets_is_its_own() -> None:
    decoder, sampling = make(), Sampling(max_tokens=15, temperature=0.9)
    requests = [Request(prompt, sampling, seed=place) for place, prompt in enumerate(prompts(12))]
    together = complete(Engine(decoder, max_batch=16), requests)
    again = complete(Engine(decoder, max_batch=16), requests)
    assert together == again  # to the bit
    for slots in (1, 5):
        for one, other in zip(together, complete(Engine(decoder, max_batch=slots), requests), strict=True):
            assert one.tokens == other.tokens
            assert one.logprobs == pytest.approx(other.logprobs, abs=1e-5)
    reordered = complete(Engine(decoder, max_batch=5), requests[::-1])[::-1]
    assert [each.tokens for each in reordered] == [each.tokens for each in together]
    other_seeds = complete(Engine(decoder), [request._replace(seed=99) for request in requests])
    assert [each.tokens for each in other_seeds] != [each.tokens for each in together]


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
def test_logprobs_are_the_trainers(temperature: float) -> None:
    decoder = make()
    sampling = Sampling(max_tokens=20, temperature=temperature, top_p=0.9, top_k=30, min_p=0.01, repetition_penalty=1.2)
    requests = [Request(prompt, sampling, seed=place) for place, prompt in enumerate(prompts())]
    for request, done in zip(requests, complete(Engine(decoder, max_batch=4), requests), strict=True):
        whole = torch.tensor([[*request.prompt, *done.tokens]])
        with torch.no_grad():
            found, _ = sequence_logprobs(decoder, whole, [whole.shape[1]], temperature=temperature or 1.0)
        torch.testing.assert_close(torch.tensor(done.logprobs), found[-len(done.tokens) :], rtol=0, atol=1e-5)


def test_the_coldest_draw_is_the_likeliest() -> None:
    decoder = make()
    cold = complete(Engine(decoder), [Request([5, 6, 7], Sampling(max_tokens=12, temperature=1e-40), seed=3)])
    greedy = complete(Engine(decoder), [Request([5, 6, 7], GREEDY)])
    assert cold[0].tokens == greedy[0].tokens


def test_unknown_layers_are_refused_with_the_request() -> None:
    engine = Engine(make())
    with pytest.raises(UsageError, match="no layer 4"):
        engine.submit(Request([1, 2]), layers=[4])
    assert not engine.busy


def test_equal_prompts_are_read_once(steps: str, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = make()
    read = []
    owner: Any = native.Native if steps == "native" else Decoder
    original = owner.forward

    def counted(self: Any, ids: torch.Tensor, *rest: Any, **more: Any) -> Any:
        read.append(ids.numel())
        return original(self, ids, *rest, **more)

    monkeypatch.setattr(owner, "forward", counted)
    sampling = Sampling(max_tokens=6)
    requests = [Request(prompt, sampling, seed=seed) for prompt in ([1, 2, 3], [4, 5, 6, 7]) for seed in range(4)]
    done = complete(Engine(decoder, max_batch=8), requests)
    assert read == [7] + [8] * 5  # 7 tokens of two prompts, then one of each of 8 rows
    monkeypatch.undo()
    alone = [complete(Engine(decoder, max_batch=1), [request])[0] for request in requests]
    assert [each.tokens for each in alone] == [each.tokens for each in done]


def test_the_end_token_ends_and_is_kept() -> None:
    decoder = make()
    free = complete(Engine(decoder), [Request([5, 6], GREEDY)])[0]
    end = free.tokens[4]
    done = complete(Engine(decoder, eos=[end]), [Request([5, 6], GREEDY)])[0]
    stop = free.tokens.index(end) + 1
    assert (done.tokens, done.finish) == (free.tokens[:stop], "stop")
    longer = Sampling(max_tokens=12, temperature=0, min_tokens=stop)
    forced = complete(Engine(decoder, eos=[end]), [Request([5, 6], longer)])[0]
    assert forced.tokens[:stop] != free.tokens[:stop] and end not in forced.tokens[:stop]


@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_the_context_ends_a_sequence(penalty: float) -> None:
    sampling = Sampling(max_tokens=100, temperature=0, repetition_penalty=penalty)
    done = complete(Engine(make()), [Request([1] * 40, sampling)])[0]
    assert (len(done.tokens), done.finish) == (9, "length")  # 40 read, 8 more; the last is drawn and not read


def test_steps_requests_that_come_and_go() -> None:
    decoder = make()
    engine = Engine(decoder, max_batch=3)
    found: dict[int, list[int]] = {}
    texts = prompts(8)
    numbers: dict[int, int] = {}
    for when in range(60):
        if when < 8:
            numbers[engine.submit(Request(texts[when], GREEDY))] = when
        if when == 5:
            engine.cancel(3)
            engine.cancel(77)
        for token in engine.step():
            found.setdefault(token.request, []).append(token.id)
    assert not engine.busy and engine.step() == []
    for number, when in numbers.items():
        expected = slowly(decoder, texts[when], 12)
        if number == 3:
            assert found.get(3, []) == expected[: len(found.get(3, []))] != expected
        else:
            assert found[number] == expected


def test_taps_are_the_states_that_predicted() -> None:
    decoder = make()
    engine = Engine(decoder)
    asked = engine.submit(Request([5, 6, 7], GREEDY), layers=(1, 3))
    engine.submit(Request([8, 9], GREEDY))
    tokens: list[Token] = []
    while engine.busy:
        tokens += engine.step()
    mine = [token for token in tokens if token.request == asked]
    assert all(token.hidden == {} for token in tokens if token.request != asked)
    ids = torch.tensor([[5, 6, 7, *(token.id for token in mine)]])
    with torch.no_grad():
        _, taps = decoder(ids, taps=(1, 3))
    for layer in (1, 3):
        states = torch.stack([token.hidden[layer] for token in mine])
        torch.testing.assert_close(states, taps[layer][0, 2:-1], rtol=1e-3, atol=2e-4)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return learn(["to be or not to be, that is the question. " * 5], 280, 2)


def spoken(tokenizer: Tokenizer, sampling: Sampling) -> tuple[Completion, list[str]]:
    engine = Engine(make(vocabulary=tokenizer.size), tokenizer=tokenizer)
    number = engine.submit(Request([1, 2, 3], sampling, text=True))
    ids, deltas, finish = [], [], None
    while engine.busy:
        for token in engine.step():
            assert token.request == number
            ids.append(token.id)
            deltas.append(token.text)
            finish = token.finish
    assert finish is not None
    return Completion(ids, [], finish, "".join(deltas)), deltas


def test_text_comes_in_whole_characters(tokenizer: Tokenizer) -> None:
    done, deltas = spoken(tokenizer, Sampling(max_tokens=40, seed=4))
    assert done.text == tokenizer.decode(done.tokens)
    assert len([delta for delta in deltas if delta]) > 1


def test_a_stop_string_ends_and_never_shows(tokenizer: Tokenizer) -> None:
    free, _ = spoken(tokenizer, Sampling(max_tokens=30, seed=4))
    stop = free.text[9:13]
    done, deltas = spoken(tokenizer, Sampling(max_tokens=30, seed=4, stop=("never said", stop)))
    assert done.finish == "stop"
    assert done.text == free.text[: free.text.index(stop)]
    assert all(free.text.startswith("".join(deltas[:count])) for count in range(len(deltas)))
    held, _ = spoken(tokenizer, Sampling(max_tokens=30, seed=4, stop=(free.text[-3:] + "x",)))
    assert (held.text, held.finish) == (free.text, "length")  # what was held back is given at the end


def test_bad_input_is_named() -> None:
    engine = Engine(make())
    with pytest.raises(UsageError, match="at least one token"):
        engine.submit(Request([]))
    with pytest.raises(UsageError, match="49 tokens is longer than the context of 48"):
        engine.submit(Request([1] * 49))
    with pytest.raises(UsageError, match=r"within 0 \.\. 89"):
        engine.submit(Request([90]))
    with pytest.raises(UsageError, match="with a tokenizer"):
        engine.submit(Request([1], Sampling(stop=("x",))))
    engine.submit(Request([1]))
    with pytest.raises(UsageError, match="at work"):
        complete(engine, [Request([1])])


def test_what_prompts_begin_with_alike_is_read_once(steps: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A header of examples behind which every question stands; and a prompt that begins another."""
    decoder = make()
    header = [place * 7 % 90 for place in range(20)]
    asked = [[*header, place, place + 1] for place in range(6)] + [header, [*header, 3, 4, 5], [*header, 3, 4, 5]]
    requests = [Request(prompt, Sampling(max_tokens=6), seed) for seed, prompt in enumerate(asked)]
    alone = [complete(Engine(decoder, max_batch=1), [request])[0] for request in requests]
    read: list[int] = []
    forward = native.Native.forward

    def counted(self: Any, ids: Any, *rest: Any) -> Any:
        read.append(len(ids))
        return forward(self, ids, *rest)

    monkeypatch.setattr(native.Native, "forward", counted)
    for slots in (3, 16):
        read.clear()
        together = complete(Engine(decoder, max_batch=slots), requests)
        assert [each.tokens for each in together] == [each.tokens for each in alone]
        if steps == "native":
            assert together == alone, "to the bit"
    if steps == "native":
        assert sum(read) == 20 + 6 * 2 + 1 + sum(len(each.tokens) - 1 for each in alone)
