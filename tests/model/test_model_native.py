"""The forward in C against the decoder in torch, and the promise that company does not change a number."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tutelage.core.errors import UsageError
from tutelage.model import library, lora, native
from tutelage.model.native import Native
from tutelage.model.sample import Draw, draw
from tutelage.model.transformer import Decoder, DecoderConfig

if library.load() is None:
    assert os.environ.get("CI") != "true" or os.environ.get("TUTELAGE_NATIVE") == "off", "CI needs a C compiler"
    pytest.skip("no C compiler", allow_module_level=True)

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
SHAPES = {  # widths that fill no panel, heads that share keys by 1, 2, 3 and 4
    "llama": DecoderConfig(77, 40, 56, 3, 4, 2, max_position_embeddings=70, tie_word_embeddings=False),
    "mistral": DecoderConfig(90, 36, 50, 2, 3, 1, model_type="mistral", max_position_embeddings=70),
    "qwen2": DecoderConfig(
        128, 64, 96, 2, 4, 1, model_type="qwen2", attention_bias=True, rope_scaling=LLAMA3, max_position_embeddings=70
    ),
    "qwen3": DecoderConfig(65, 48, 33, 3, 4, 4, 20, 70, model_type="qwen3", attention_bias=True),
    "biased": DecoderConfig(80, 32, 48, 2, 2, 2, attention_bias=True, mlp_bias=True, max_position_embeddings=70),
}
LENGTHS = [70, 5, 31, 17]


def make(name: str) -> Decoder:
    decoder = Decoder(SHAPES[name], seed=2).requires_grad_(False)
    draw = torch.Generator().manual_seed(1)
    for parameter in decoder.parameters():
        if parameter.dim() == 1:  # norms and biases that do something
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=draw))
    return decoder


def texts(decoder: Decoder, lengths: list[int]) -> torch.Tensor:
    draw = torch.Generator().manual_seed(0)
    return torch.randint(decoder.config.vocab_size, (sum(lengths),), generator=draw)


def places(lengths: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Slots in another order than the texts, and positions."""
    slots = torch.tensor([(3 * index + 2) % 5 for index in range(len(lengths))])
    return slots.repeat_interleave(torch.tensor(lengths)), torch.cat([torch.arange(each) for each in lengths])


@torch.no_grad()
@pytest.mark.parametrize("name", SHAPES)
def test_logits_and_states_are_the_decoders(name: str) -> None:
    decoder = make(name)
    ids, vocabulary = texts(decoder, LENGTHS), decoder.config.vocab_size
    hidden, states = decoder(ids[None], lengths=LENGTHS, taps=[0, 2])
    slots, positions = places(LENGTHS)
    rows = torch.randperm(len(ids), generator=torch.Generator().manual_seed(3))
    logits, tapped = Native(decoder, 5, 70).forward(ids, slots, positions, rows, [2, 0])
    torch.testing.assert_close(logits[:, :vocabulary], decoder.logits(hidden)[0, rows], atol=2e-5, rtol=1e-5)
    for layer in (0, 2):
        torch.testing.assert_close(tapped[layer], states[layer][0, rows], atol=2e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(("name", "int8"), [("llama", False), ("qwen2", True), ("qwen3", False)])
def test_company_changes_no_bit(name: str, int8: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = make(name)
    ids, (slots, positions) = texts(decoder, LENGTHS), places(LENGTHS)
    together = Native(decoder, 5, 70, int8=int8).forward(ids, slots, positions, torch.arange(len(ids)))[0]
    alone = Native(decoder, 5, 70, int8=int8)
    for start, length in zip([0, 70, 75, 106], LENGTHS, strict=True):  # one token at a time, another slot
        for place in range(start, start + length):
            here = slice(place, place + 1)
            one = alone.forward(ids[here], torch.tensor([1]), positions[here], torch.tensor([0]))[0]
            assert torch.equal(one[0], together[place])
    monkeypatch.setattr(native, "PASS", 13)  # several passes, other numbers of rows, one thread
    threads = torch.get_num_threads()
    torch.set_num_threads(2 if threads == 1 else 1)
    try:
        several = Native(decoder, 5, 70, int8=int8).forward(ids, slots, positions, torch.arange(len(ids)).flip(0))[0]
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(several.flip(0), together)


@torch.no_grad()
def test_weights_that_changed_are_taken_over() -> None:
    decoder = make("llama")
    step = (torch.tensor([5]), torch.tensor([0]), torch.tensor([0]), torch.tensor([0]))
    running = Native(decoder, 1, 8)
    before = running.forward(*step)[0].clone()
    for parameter in decoder.parameters():
        parameter.mul_(1.1)
    running.refresh()
    after = running.forward(*step)[0]
    assert torch.equal(after, Native(decoder, 1, 8).forward(*step)[0])
    assert not torch.equal(after, before)


@torch.no_grad()
def test_an_adapter_is_part_of_the_weights() -> None:
    decoder = make("llama")
    adapted = lora.adapt(decoder, lora.Lora(rank=2, alpha=4.0))
    running = Native(adapted, 5, 70)
    for layer in lora.adapters(adapted).values():
        layer.lora_B.normal_(generator=torch.Generator().manual_seed(5))
    running.refresh()
    ids, (slots, positions) = texts(decoder, LENGTHS), places(LENGTHS)
    logits = running.forward(ids, slots, positions, torch.arange(len(ids)))[0][:, :77]
    expected = adapted.logits(adapted(ids[None], lengths=LENGTHS))[0]
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(expected, decoder.logits(decoder(ids[None], lengths=LENGTHS))[0], atol=0.1)


@torch.no_grad()
@pytest.mark.parametrize("name", ["llama", "qwen2", "biased"])
def test_int8_is_the_decoder_with_rounded_weights(name: str) -> None:
    decoder = make(name)
    rounded = make(name)
    for matrix in rounded.matrices():
        scale = matrix.parameter.abs().amax(1, keepdim=True) / 127
        matrix.parameter.copy_((matrix.parameter / scale).round() * scale)
    head = rounded.head_weight.clone()
    scale = head.abs().amax(1, keepdim=True) / 127
    head = (head / scale).round() * scale
    ids, (slots, positions) = texts(decoder, LENGTHS), places(LENGTHS)
    logits = Native(decoder, 5, 70, int8=True).forward(ids, slots, positions, torch.arange(len(ids)))[0]
    hidden = rounded(ids[None], lengths=LENGTHS)[0]
    torch.testing.assert_close(logits[:, : len(head)], hidden @ head.t(), atol=5e-5, rtol=1e-4)


def test_a_copied_slot_goes_on_alike() -> None:
    decoder = make("qwen3")
    running = Native(decoder, 5, 70)
    ids = texts(decoder, [18])
    zeros = torch.zeros(18, dtype=torch.long)
    running.forward(ids[:17], zeros[:17], torch.arange(17), zeros[:1])
    running.copy(0, [3, 4], 17)
    more = ids[17:].expand(3).contiguous()
    logits = running.forward(more, torch.tensor([0, 3, 4]), torch.full((3,), 17), torch.arange(3))[0]
    assert torch.equal(logits[0], logits[1])
    assert torch.equal(logits[0], logits[2])


@given(st.integers(1, 70), st.integers(1, 6), st.integers(0, 2**32))
def test_draws_as_torch_draws(vocabulary: int, rows: int, seed: int) -> None:
    source = torch.Generator().manual_seed(seed)
    config = DecoderConfig(vocabulary, 8, 8, 1, 1, 1, max_position_embeddings=8)
    engine = Native(Decoder(config), 1, 8)
    logits = 3 * torch.randn(rows, vocabulary, generator=source)
    room = torch.randn(rows, -(-vocabulary // engine.panel) * engine.panel, generator=source)  # anything lies behind
    room[:, :vocabulary] = logits
    cold, uniforms = torch.rand(rows, generator=source) + 0.5, torch.rand(rows, generator=source)
    greedy = torch.rand(rows, generator=source) < 0.3
    ids, logprobs = engine.choose(room, cold, torch.where(greedy, -1.0, uniforms))
    expected = draw(logits.clone(), Draw(uniforms, cold, greedy))[0]
    torch.testing.assert_close(logprobs, torch.log_softmax(logits * cold[:, None], -1).gather(1, ids[:, None])[:, 0])
    # The same token, but where the number falls between two within rounding.
    share = torch.softmax((logits * cold[:, None]).double(), -1).cumsum(-1)
    edge = (share - uniforms.double()[:, None]).abs().amin(1) < 1e-5
    assert bool(((ids == expected) | edge).all())
    assert torch.equal(ids[greedy], logits[greedy].argmax(-1))


@pytest.mark.parametrize("odd", [float("nan"), float("inf")])
@pytest.mark.parametrize("everywhere", [True, False])
def test_what_is_not_finite_is_no_draw(odd: float, everywhere: bool) -> None:
    engine = Native(make("llama"), 1, 8)
    logits = torch.randn(3, 96)
    logits[1, slice(0, 77) if everywhere else slice(40, 41)] = odd
    ids, logprobs = engine.choose(logits, torch.ones(3), torch.rand(3))
    assert logprobs.isnan().tolist() == [False, True, False]
    assert bool((ids < 77).all())


def test_the_end_of_the_distribution_is_a_token_that_has_weight() -> None:
    config = DecoderConfig(50_000, 8, 8, 1, 1, 1, max_position_embeddings=8)
    engine = Native(Decoder(config, seed=0), 1, 8)
    logits = 0.1 * torch.randn(64, 50_016)
    logits[:, 49_997:] = -300.0
    ids, logprobs = engine.choose(logits, torch.ones(64), torch.full((64,), 1.0))
    assert int(ids.max()) < 49_997 and float(logprobs.min()) > -20


def test_layers_that_are_not_there_are_refused() -> None:
    decoder = make("llama")
    zeros = (torch.tensor([0]),) * 4
    with pytest.raises(UsageError, match="no layer 9"):
        Native(decoder, 1, 8).forward(*zeros, [9])
    twice, once = (Native(decoder, 1, 8).forward(*zeros, taps)[1] for taps in ([2, 2, 0], [2]))
    assert set(twice) == {0, 2} and torch.equal(twice[2], once[2])


# ------------------------------------------------------------------------------------------------------ the library


@pytest.fixture
def anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of its own, and nothing loaded yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(library, "load", library.load.__wrapped__)
    return tmp_path / "tutelage"


def test_it_is_built_once(anew: Path) -> None:
    assert library.load() is not None
    (built,) = anew.iterdir()
    when = built.stat().st_mtime_ns
    assert library.load() is not None
    assert built.stat().st_mtime_ns == when


def test_it_is_built_again_when_damaged(anew: Path) -> None:
    built = anew / f"native-{library._identity(shutil.which('cc') or '')}.so"
    anew.mkdir()
    built.write_bytes(b"\x7fELF of another kind")
    assert library.load() is not None
    assert built.stat().st_size > 10_000


@pytest.mark.parametrize("compiler", ["no-such-compiler", "false"])
def test_without_a_compiler_there_is_none(compiler: str, anew: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", compiler)
    assert library.load() is None
    assert not native.usable(make("llama"))


def test_nowhere_to_keep_it_is_no_error(anew: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    anew.mkdir()
    anew.chmod(0o777)
    assert library.load() is None, "others could put their code there"
    monkeypatch.setenv("XDG_CACHE_HOME", "here")
    assert library.load() is None
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
    assert library.load() is None


def test_a_compiler_without_threads_will_do(anew: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = tmp_path / "plain"
    plain.write_text(f'#!/bin/sh\ncase "$*" in *-fopenmp*) exit 1;; esac\nexec {shutil.which("cc")} "$@"\n')
    plain.chmod(0o755)
    monkeypatch.setenv("CC", str(plain))
    assert library.load() is not None


def test_it_can_be_switched_off(anew: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUTELAGE_NATIVE", "off")
    assert library.load() is None


def test_only_float32_models_of_our_own_run_in_it() -> None:
    assert native.usable(make("llama"))
    assert not native.usable(make("llama").double())
    assert not native.usable(torch.nn.Linear(2, 2))
