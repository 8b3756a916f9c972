"""Log-probabilities of given tokens, and entropies: the one function under every objective.

Positions go through the head in chunks. While all logits together are few they wait for the backward; beyond that
each chunk is computed again there, so logits of n positions over a large vocabulary never exist at once. Masked
positions are left out before the call, so they cost nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tutelage.core.errors import UsageError
from tutelage.model.transformer import Decoder

CHUNK = 1 << 21
"""Logits of a chunk (8 MiB in fp32): a CPU's cache still holds them between passes, and the head is read less often."""
KEPT = 1 << 24
"""Logits that may wait for the backward (64 MiB in fp32); reading them again is a tenth of the product's time."""


class _LogProbs(torch.autograd.Function):
    """(log p(target), entropy) of softmax(hidden @ weight^T), streamed over positions.

    With log-probabilities l, p = exp l and entropy H = -sum p l, the logits' gradient is
    g (onehot - p) - e p (l + H), for incoming gradients g and e. `rounded`: products of bfloat16, all else in float32.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, entropy: bool, rounded: bool
    ) -> tuple[Tensor, Tensor]:
        chosen, normaliser = hidden.new_empty(len(targets)), hidden.new_empty(len(targets))
        spread = hidden.new_empty(len(targets) if entropy else 0)
        keep = any(ctx.needs_input_grad[:2]) and len(targets) * len(weight) <= KEPT
        kept = []
        inputs, head = _rounded(hidden, rounded), _rounded(weight, rounded)
        for part in _chunks(len(targets), len(weight)):
            logits = F.linear(inputs[part], head).to(hidden.dtype)
            picked, top = logits.gather(1, targets[part, None]), logits.amax(-1, keepdim=True)
            logs = logits.sub_(top)
            weights = logs.exp() if entropy else logs.exp_()
            total = weights.sum(-1)
            normaliser[part] = total.log() + top[:, 0]
            chosen[part] = picked[:, 0] - normaliser[part]
            if entropy:
                spread[part] = total.log() - torch.linalg.vecdot(weights, logs) / total
            if keep:  # logits below their largest, or where no entropy is asked their exponentials
                kept += [logs, total]
        ctx.save_for_backward(hidden, weight, targets, normaliser, spread, *kept)
        ctx.rounded = rounded
        return chosen, spread

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, targets, normaliser, spread, *kept = ctx.saved_tensors
        inputs, head = _rounded(hidden, ctx.rounded), _rounded(weight, ctx.rounded)
        hidden_grad = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        weight_grad = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None  # none for a frozen head
        for index, part in enumerate(_chunks(len(targets), len(weight))):
            factor = grads[0][part, None]
            if kept and not len(spread):
                weights, total = kept[2 * index : 2 * index + 2]
                grad = weights * (-factor / total[:, None])
            else:
                if kept:
                    logs = kept[2 * index] - kept[2 * index + 1].log()[:, None]
                else:
                    logs = F.linear(inputs[part], head).to(hidden.dtype).sub_(normaliser[part, None])
                if len(spread):
                    slope = (logs + spread[part, None]).mul_(grads[1][part, None]).add_(factor)
                    grad = logs.exp_().mul_(slope.neg_())
                else:
                    grad = logs.exp_().mul_(-factor)
            grad = _rounded(grad.scatter_add_(1, targets[part, None], factor), ctx.rounded)
            if hidden_grad is not None:
                hidden_grad[part] = grad @ head
            if weight_grad is not None:
                if ctx.rounded:
                    weight_grad += grad.t() @ inputs[part]
                else:
                    weight_grad.addmm_(grad.t(), inputs[part])
        return hidden_grad, weight_grad, None, None, None


def _rounded(x: Tensor, rounded: bool) -> Tensor:
    return x.bfloat16() if rounded else x


def _chunks(positions: int, vocabulary: int) -> list[slice]:
    rows = max(64, CHUNK // vocabulary)
    return [slice(start, start + rows) for start in range(0, positions, rows)]


def logprobs(
    decoder: Decoder,
    hidden: Tensor,
    targets: Tensor,
    *,
    temperature: float | Tensor = 1.0,
    entropy: bool = False,
    rounded: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Log-probabilities [n] in nats of `targets` [n] after hidden states [n, width], and entropies [n] if asked.

    The distribution is softmax(logits / temperature); `temperature` is one number or [n], above 0. Differentiable in
    `hidden` and in the head's weight. Equals `log_softmax` and `gather` within rounding. `rounded` multiplies in
    bfloat16: faster, and to two or three digits; good for a loss, not where log-probabilities are compared.
    """
    if hidden.dim() != 2 or targets.shape != hidden.shape[:1]:
        raise UsageError(f"expected hidden [n, width] and targets [n], found {hidden.shape} and {targets.shape}")
    if isinstance(temperature, Tensor):
        hidden = hidden / temperature[:, None]
    elif temperature != 1:
        hidden = hidden / temperature
    chosen, spread = _LogProbs.apply(hidden, decoder.head_weight, targets, entropy, rounded)  # type: ignore[no-untyped-call]
    return chosen, spread if entropy else None


def sequence_logprobs(
    decoder: Decoder,
    ids: Tensor,
    lengths: Sequence[int],
    *,
    temperature: float = 1.0,
    entropy: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Log-probability of every token of packed segments ids [1, total] but each segment's first, in order.

    Returns [total - segments] numbers, segment after segment: what a rollout's old, reference and new values are.
    """
    hidden = decoder(ids, lengths=lengths)[0]
    before, after = next_tokens(lengths, ids.device)
    return logprobs(decoder, hidden[before], ids[0, after], temperature=temperature, entropy=entropy)


def next_tokens(lengths: Sequence[int], device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """Flat places (of the tokens that predict, of the tokens predicted) in packed segments, both [total - segments]."""
    firsts = torch.ones(sum(lengths), dtype=torch.bool)
    firsts[torch.tensor([0, *lengths[:-1]]).cumsum(0)] = False
    after = firsts.nonzero()[:, 0].to(device)
    return after - 1, after
