"""The one log-probability function against log_softmax, value and gradient."""

from __future__ import annotations

import pytest
import torch

from tutelage.core.errors import UsageError
from tutelage.model import logprob
from tutelage.model.logprob import logprobs, next_tokens, sequence_logprobs
from tutelage.model.transformer import Decoder, DecoderConfig

LENGTHS = [4, 9, 2, 1, 7]


def decoder_of(tied: bool = True) -> Decoder:
    config = DecoderConfig(37, 16, 24, 1, 2, 1, max_position_embeddings=16, tie_word_embeddings=tied)
    decoder = Decoder(config).double()
    decoder.head_weight.data *= 40  # far from uniform
    return decoder


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("temperature", [1.0, 0.3, torch.linspace(0.5, 2, 18, dtype=torch.float64)])
def test_equal_to_log_softmax(tied: bool, temperature: float | torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logprob, "_chunks", lambda n, v: [slice(0, 7), slice(7, 14), slice(14, n)])
    decoder = decoder_of(tied)
    ids = torch.randint(37, (1, sum(LENGTHS)), generator=torch.Generator().manual_seed(0))
    before, after = next_tokens(LENGTHS)
    weights = torch.randn(2, len(after), generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    hidden = decoder(ids, lengths=LENGTHS)[0, before]
    chosen, entropy = logprobs(decoder, hidden, ids[0, after], temperature=temperature, entropy=True)
    assert entropy is not None
    ours = torch.autograd.grad((chosen * weights[0] + entropy * weights[1]).sum(), list(decoder.parameters()))

    hidden = decoder(ids, lengths=LENGTHS)[0, before]
    scale = temperature[:, None] if isinstance(temperature, torch.Tensor) else temperature
    logs = torch.log_softmax(decoder.logits(hidden) / scale, -1)
    plain, spread = logs.gather(1, ids[0, after, None])[:, 0], -(logs.exp() * logs).sum(-1)
    theirs = torch.autograd.grad((plain * weights[0] + spread * weights[1]).sum(), list(decoder.parameters()))

    torch.testing.assert_close(chosen, plain)
    torch.testing.assert_close(entropy, spread)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("entropy", [True, False])
def test_gradcheck(entropy: bool) -> None:
    draw = torch.Generator().manual_seed(3)
    hidden, weight = (torch.randn(5, 4, generator=draw, dtype=torch.float64, requires_grad=True) for _ in range(2))
    targets = torch.tensor([0, 4, 2, 2, 1])

    def both(hidden: torch.Tensor, weight: torch.Tensor) -> object:
        found = logprob._LogProbs.apply(hidden, weight, targets, entropy, False)
        return found if entropy else found[0]

    assert torch.autograd.gradcheck(both, (hidden, weight))


@pytest.mark.parametrize("kept", [True, False])
def test_rounded_products_are_near(kept: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not kept:
        monkeypatch.setattr(logprob, "KEPT", 0)
    draw = torch.Generator().manual_seed(3)
    hidden, weight = (torch.randn(size, 32, generator=draw, requires_grad=True) for size in (40, 50))
    targets = torch.randint(50, (40,), generator=draw)
    found = []
    for rounded in (False, True):
        chosen = logprob._LogProbs.apply(hidden, weight, targets, False, rounded)[0]
        found.append([chosen.detach(), *torch.autograd.grad(chosen.sum(), (hidden, weight))])
    for exact, rough in zip(*found, strict=True):
        assert rough.dtype == torch.float32
        assert 1e-5 < float((rough - exact).norm() / exact.norm()) < 0.02


def test_the_usual_chunks_are_used_and_cover_everything() -> None:
    chunks = logprob._chunks(5000, 4096)
    assert chunks[0] == slice(0, 512)
    assert [each.start for each in chunks[1:]] == [each.stop for each in chunks[:-1]]
    assert logprob._chunks(0, 4096) == []


def test_segments_in_order() -> None:
    decoder = decoder_of()
    ids = torch.randint(37, (1, sum(LENGTHS)), generator=torch.Generator().manual_seed(4))
    packed, none = sequence_logprobs(decoder, ids, LENGTHS)
    assert none is None
    alone = [sequence_logprobs(decoder, each[None], [len(each)])[0] for each in torch.split(ids[0], LENGTHS)]
    torch.testing.assert_close(packed, torch.cat(alone))
    assert len(packed) == sum(LENGTHS) - len(LENGTHS)


def test_nothing_to_weigh_is_no_error_and_has_no_gradient() -> None:
    decoder = decoder_of()
    hidden = torch.zeros(0, 16, dtype=torch.float64, requires_grad=True)
    chosen, _ = logprobs(decoder, hidden, torch.zeros(0, dtype=torch.long))
    chosen.sum().backward()
    assert chosen.shape == (0,)
    assert not decoder.head_weight.grad.any()  # type: ignore[union-attr]


def test_wrong_shapes_are_named() -> None:
    with pytest.raises(UsageError, match=r"hidden \[n, width\]"):
        logprobs(decoder_of(), torch.zeros(1, 3, 16), torch.zeros(3, dtype=torch.long))
