"""The decoder against itself packed, padded and cached, against torch's own attention, and against transformers."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from tutelage.core.errors import ConfigError, UsageError
from tutelage.model import kernels
from tutelage.model.cache import Cache, groups_of, round_up
from tutelage.model.transformer import Decoder, DecoderConfig, Family

LENGTHS = [5, 17, 30, 5, 1, 12, 9]


def shaken(family: Family = "llama", seed: int = 0, **changes: object) -> Decoder:
    """A small decoder in double precision, whose gains and biases are not at their neutral values either."""
    shape = {"vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
    decoder = Decoder(DecoderConfig(**{**shape, **heads, "model_type": family, **changes}), seed).double()  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(seed)
    for parameter in decoder.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return decoder


def packed_ids(lengths: list[int] = LENGTHS, seed: int = 1) -> Tensor:
    return torch.randint(61, (1, sum(lengths)), generator=torch.Generator().manual_seed(seed))


def gradients(decoder: Decoder, hidden: Tensor) -> list[Tensor]:
    probe = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(2), dtype=hidden.dtype)
    return list(torch.autograd.grad((hidden * probe).sum(), list(decoder.parameters())))


@pytest.mark.parametrize("family", ["llama", "qwen3", "qwen2"])
def test_a_pack_equals_its_segments_alone(family: Family) -> None:
    decoder, ids = shaken(family), packed_ids()
    packed = decoder(ids, lengths=LENGTHS)
    alone = torch.cat([decoder(segment[None]) for segment in torch.split(ids[0], LENGTHS)], 1)
    torch.testing.assert_close(packed, alone, rtol=0, atol=1e-12)
    for ours, theirs in zip(gradients(decoder, packed), gradients(decoder, alone), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)


def test_a_pack_equals_the_padded_batch() -> None:
    decoder, ids = shaken(), packed_ids()
    padded = torch.zeros(len(LENGTHS), max(LENGTHS), dtype=torch.long)
    inside = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]
    padded[inside] = ids[0]
    ours = gradients(decoder, decoder(ids, lengths=LENGTHS)[0])
    theirs = gradients(decoder, decoder(padded)[inside])
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10)


def test_no_segment_sees_another() -> None:
    decoder, ids = shaken(), packed_ids()
    before = decoder(ids, lengths=LENGTHS)
    changed = ids.clone()
    changed[0, 5:22] = (ids[0, 5:22] + 1) % 61  # the second segment
    after = decoder(changed, lengths=LENGTHS)
    assert torch.equal(before[0, :5], after[0, :5])
    torch.testing.assert_close(before[0, 22:], after[0, 22:], rtol=0, atol=1e-12)
    assert not torch.allclose(before[0, 5:22], after[0, 5:22])


@pytest.mark.parametrize("lengths", [None, LENGTHS, [11] * 3])
def test_the_fast_attention_equals_torch(lengths: list[int] | None, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = shaken()
    ids = packed_ids(lengths) if lengths else packed_ids([26, 26]).view(2, 26)
    fast = decoder(ids, lengths=lengths)
    fast_grads = gradients(decoder, fast)
    monkeypatch.setattr(kernels, "SHORT", 0)
    plain = decoder(ids, lengths=lengths)
    torch.testing.assert_close(fast, plain, rtol=0, atol=1e-12)
    for ours, theirs in zip(fast_grads, gradients(decoder, plain), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)


def test_the_kernels_have_the_right_gradients() -> None:
    draw = torch.Generator().manual_seed(0)

    def values(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw, dtype=torch.float64, requires_grad=True)

    assert torch.autograd.gradcheck(lambda x, w: kernels.rms_norm(x, w, 1e-3), (values(3, 2, 8), values(8)))
    assert torch.autograd.gradcheck(kernels.swiglu, (values(3, 10),))
    turns = torch.polar(torch.ones(5, 2, dtype=torch.float64), torch.randn(5, 2, generator=draw, dtype=torch.float64))
    places = kernels.Places(groups_of([5, 3, 2], torch.device("cpu")), turns, turns)
    inputs = (values(10, 4, 4), values(10, 2, 4), values(10, 2, 4))
    assert torch.autograd.gradcheck(lambda q, k, v: kernels.attend(q, k, v, places), inputs)


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_a_cache_continues_what_was_read(family: Family) -> None:
    decoder, ids = shaken(family), packed_ids()
    config = decoder.config
    cache = Cache(config.num_hidden_layers, 8, config.num_key_value_heads, 40, config.head_dim, dtype=torch.float64)
    more = packed_ids([4] * len(LENGTHS), seed=5).view(-1, 4)
    with torch.no_grad():
        read = decoder(ids, lengths=LENGTHS, cache=cache.prefill(range(len(LENGTHS)), LENGTHS))
        torch.testing.assert_close(read, decoder(ids, lengths=LENGTHS), rtol=0, atol=1e-12)
        starts = torch.tensor(LENGTHS)
        first = decoder(more[:, :3], cache=cache.extend(starts, 3, 33))
        second = decoder(more[:, 3:], cache=cache.extend(starts + 3, 1, 34))
        segments = torch.split(ids[0], LENGTHS)
        whole = [decoder(torch.cat([old, new])[None])[0, -4:] for old, new in zip(segments, more, strict=True)]
    torch.testing.assert_close(torch.cat([first, second], 1), torch.stack(whole), rtol=0, atol=1e-12)


def test_taps_are_the_residual_stream() -> None:
    decoder, ids = shaken(), packed_ids([9])
    hidden, taps = decoder(ids, taps=(0, 1, 2))
    assert torch.equal(taps[0][0], decoder.embed_tokens(ids[0]))
    torch.testing.assert_close(decoder.norm(taps[2]), hidden)
    torch.testing.assert_close(hidden, decoder(ids))
    with pytest.raises(UsageError, match="no layer 3"):
        decoder(ids, taps=(3,))


def test_weights_depend_on_the_seed_alone() -> None:
    config = shaken().config
    torch.manual_seed(1)
    first = Decoder(config, 7).state_dict()
    torch.manual_seed(2)
    again, other = Decoder(config, 7).state_dict(), Decoder(config, 8).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["embed_tokens.weight"], other["embed_tokens.weight"])


def test_a_fresh_model_knows_nothing() -> None:
    decoder = Decoder(shaken().config)
    logs = torch.log_softmax(decoder.logits(decoder(packed_ids([40]))), -1)
    assert abs(logs.mean().item() + math.log(61)) < 0.05


def test_matrices_name_every_block_weight_once() -> None:
    decoder = shaken("qwen3")
    found = decoder.matrices()
    assert sum(each.parameter.numel() for each in found) == decoder.config.matrix_parameters
    assert {each.name for each in found} <= dict(decoder.named_parameters()).keys()
    fused = next(each for each in found if each.name.endswith("qkv_proj.weight"))
    assert fused.rows == ((0, 32), (32, 48), (48, 64))
    assert all(each.rows[-1][1] == len(each.parameter) for each in found)
    total = sum(parameter.numel() for parameter in decoder.parameters() if parameter.dim() > 1)
    assert total == decoder.config.parameters


def test_groups_hold_every_token_once() -> None:
    for lengths in ([3, 70, 9, 8, 8, 33], [4, 4], [1], list(range(1, 60))):
        groups = groups_of(lengths, torch.device("cpu"))
        if groups[0].scatter is None:
            assert groups[0].rows * groups[0].time == sum(lengths)
            continue
        placed = [int(place) for group in groups if group.scatter is not None for place in group.scatter]
        assert sorted(place for place in placed if place < sum(lengths)) == list(range(sum(lengths)))
        assert len(groups) <= 8
    sizes = [round_up(length) for length in range(1, 200)]
    assert all(size >= length for length, size in enumerate(sizes, 1))
    assert all(after / before <= 1.5 for before, after in itertools.pairwise(sizes))


def test_bad_input_is_named() -> None:
    decoder = shaken()
    with pytest.raises(UsageError, match="longer than the context of 64"):
        decoder(torch.zeros(1, 65, dtype=torch.long))
    with pytest.raises(UsageError, match="segments of 3 tokens"):
        decoder(torch.zeros(1, 4, dtype=torch.long), lengths=[3])
    with pytest.raises(UsageError, match="at least one token"):
        decoder(torch.zeros(1, 4, dtype=torch.long), lengths=[4, 0])
    with pytest.raises(UsageError, match="empty batch"):
        decoder(torch.zeros(2, 0, dtype=torch.long))
    with pytest.raises(ConfigError, match="do not divide"):
        shaken(num_key_value_heads=3)
    with pytest.raises(ConfigError, match="'gpt2'"):
        shaken("gpt2")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="lacks hidden_size"):
        DecoderConfig.from_hf({"model_type": "llama"})


def test_recomputed_layers_keep_less_and_give_the_same_gradients() -> None:
    decoder, ids = shaken(), packed_ids()

    def learn(recompute: bool) -> tuple[list[Tensor], int]:
        kept: list[int] = []
        decoder.recompute = recompute

        def keep(tensor: Tensor) -> Tensor:
            kept.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            hidden = decoder(ids, lengths=LENGTHS)
        return gradients(decoder, hidden), sum(kept)

    (plain, much), (again, little) = learn(False), learn(True)
    assert all(torch.equal(left, right) for left, right in zip(plain, again, strict=True))
    assert little < much / 4


def test_half_precision_is_near_in_training_and_absent_otherwise() -> None:
    decoder, ids = shaken("qwen3").float(), packed_ids()
    exact = decoder(ids, lengths=LENGTHS)
    wanted = gradients(decoder, exact)
    decoder.bf16 = True
    assert torch.equal(decoder.eval()(ids, lengths=LENGTHS), exact)
    rough = decoder.train()(ids, lengths=LENGTHS)
    found = gradients(decoder, rough)
    assert rough.dtype == torch.float32
    assert 1e-5 < float((rough - exact).detach().norm() / exact.detach().norm()) < 0.02
    assert all(each.dtype == torch.float32 for each in found)
    left, right = (torch.cat([each.flatten() for each in gradient]) for gradient in (found, wanted))
    assert float((left - right).norm() / right.norm()) < 0.05
