"""Low-rank adapters (LoRA; Hu et al. 2021): the weights stay as they are, and a small product beside each one learns.

An adapted matrix gives `x W^T + scale * (x A^T) B^T`. There is one pair A, B for each matrix as Hugging Face names it
(q_proj, k_proj ...); where several are fused in one product, their A's lie stacked, and each B adds to its own rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tutelage.core.errors import UsageError
from tutelage.model.transformer import Decoder, DecoderConfig, Matrix

Target = Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
TARGETS: tuple[Target, ...] = get_args(Target)
"""The matrices of a block under their Hugging Face names."""
FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
"""Which of them are one product here, in the order of its rows."""

Span = tuple[int, int]


@dataclass(frozen=True)
class Lora:
    """The shape of an adapter.

    Attributes:
        rank: rows of each A, columns of each B.
        alpha: the product is scaled by alpha / rank.
        targets: which matrices of every block have one.
        rslora: scale by alpha / sqrt(rank) instead (Kalajdzievski 2023).
    """

    rank: int
    alpha: float
    targets: tuple[str, ...] = TARGETS
    rslora: bool = False

    @property
    def scale(self) -> float:
        """What the low-rank product is multiplied with."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


class Pair(NamedTuple):
    """One adapter: `target`'s A [rank, inputs] and B [outputs, rank], views of what learns."""

    target: str
    a: Tensor
    b: Tensor


class LoraLinear(nn.Module):
    """A linear layer with adapters on some of its rows. `weight` and `bias` keep their names and are never moved.

    A starts uniform within 1 / sqrt(inputs), as PEFT draws it, B at zero: at first nothing is changed.
    """

    def __init__(self, base: nn.Linear, rows: Mapping[str, Span], settings: Lora, draw: torch.Generator) -> None:
        super().__init__()
        self.weight, self.bias = base.weight, base.bias
        self.settings, self.targets, self.spans = settings, tuple(rows), tuple(rows.values())
        inputs = base.weight.shape[1]
        drawn = torch.rand(len(rows) * settings.rank, inputs, generator=draw).mul_(2).sub_(1) / math.sqrt(inputs)
        self.lora_A = nn.Parameter(drawn.to(base.weight))
        self.lora_B = nn.Parameter(
            base.weight.new_zeros(sum(stop - start for start, stop in self.spans), settings.rank)
        )

    def forward(self, x: Tensor) -> Tensor:
        """[n, inputs] -> [n, outputs]."""
        weights = (self.weight, self.bias, self.lora_A, self.lora_B)
        if torch.is_grad_enabled():
            return _Adapted.apply(x, *weights, self.spans, self.settings.scale)  # type: ignore[no-untyped-call, no-any-return]
        return _adapted(x, *weights, self.spans, self.settings.scale)[0]

    def pairs(self) -> Iterator[Pair]:
        """The adapters, in the order of their rows."""
        for target, (part, rows) in zip(self.targets, _places(self.spans, self.settings.rank), strict=True):
            yield Pair(target, self.lora_A[part], self.lora_B[rows])

    def matrices(self) -> list[Matrix]:
        """What learns, as an optimizer of matrices should take it: every A and every B by itself."""
        places = _places(self.spans, self.settings.rank)
        a, b = zip(*(((part.start, part.stop), (rows.start, rows.stop)) for part, rows in places), strict=True)
        return [Matrix("lora_A", self.lora_A, a), Matrix("lora_B", self.lora_B, b)]

    @torch.no_grad()
    def merged(self) -> Tensor:
        """A new weight [outputs, inputs] that does what weight and adapters do together."""
        weight = self.weight.clone()
        for (start, stop), pair in zip(self.spans, self.pairs(), strict=True):
            weight[start:stop].addmm_(pair.b, pair.a, alpha=self.settings.scale)
        return weight


def _places(spans: tuple[Span, ...], rank: int) -> list[tuple[slice, slice]]:
    """Where each adapter lies: its rows of the stacked A, its rows of the stacked B."""
    found, begin = [], 0
    for index, (start, stop) in enumerate(spans):
        found.append((slice(index * rank, (index + 1) * rank), slice(begin, begin + stop - start)))
        begin += stop - start
    return found


def _adapted(
    x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, spans: tuple[Span, ...], scale: float
) -> tuple[Tensor, Tensor]:
    """The product with its adapters [n, outputs], and x A^T [n, adapters * rank], which the backward needs."""
    low = x @ a.t()
    result = F.linear(x, weight, bias)
    for (start, stop), (part, rows) in zip(spans, _places(spans, b.shape[1]), strict=True):
        result[:, start:stop].addmm_(low[:, part], b[rows].t(), alpha=scale)
    return result, low


class _Adapted(torch.autograd.Function):
    """`_adapted` with its gradient: none for the weight, which stays; no pass over [n, outputs] but the products.

    With incoming gradient g and d = scale * g B [n, rank]: B's is scale * g^T (x A^T), A's d^T x, x's g W + d A.
    """

    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu", cast_inputs=torch.bfloat16)  # type: ignore[untyped-decorator]
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        a: Tensor,
        b: Tensor,
        spans: tuple[Span, ...],
        scale: float,
    ) -> Tensor:
        result, low = _adapted(x, weight, bias, a, b, spans, scale)
        ctx.save_for_backward(x, weight, a, b, low)
        ctx.spans, ctx.scale = spans, scale
        return result

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, a, b, low = ctx.saved_tensors
        down, b_grad = torch.empty_like(low), torch.empty_like(b)
        for (start, stop), (part, rows) in zip(ctx.spans, _places(ctx.spans, b.shape[1]), strict=True):
            grad = grads[0][:, start:stop]
            torch.mm(grad, b[rows], out=down[:, part])
            torch.mm(grad.t(), low[:, part], out=b_grad[rows])
        down.mul_(ctx.scale)
        x_grad = (grads[0] @ weight).addmm_(down, a) if ctx.needs_input_grad[0] else None
        return x_grad, None, None, down.t() @ x, b_grad.mul_(ctx.scale), None, None


# --------------------------------------------------------------------------------------------------- on a whole decoder


def adapt(decoder: Decoder, settings: Lora, seed: int = 0) -> Decoder:
    """A decoder that shares every weight of `decoder` and adds adapters; only these require a gradient.

    `decoder` itself stays as it is: the frozen base, and the reference of a reinforcement run. The A's depend on
    `seed` alone. Raises UsageError for an unknown target, another architecture, or where there is an
    adapter already.
    """
    if unknown := [name for name in settings.targets if name not in TARGETS]:
        raise UsageError(f"no matrix of a block is called {unknown[0]!r}", todo=f"There are: {', '.join(TARGETS)}")
    if type(decoder) is not Decoder:
        raise UsageError("an adapter needs a model of our own families", todo="Train its weights: `lora: 0`")
    if adapters(decoder):
        raise UsageError("the model has an adapter already", todo="Merge it first")
    adapted = _plain(decoder.config, decoder.state_dict()).requires_grad_(False)
    draw = torch.Generator().manual_seed(seed)
    for matrix in adapted.matrices():
        owner, _, name = matrix.name.removesuffix(".weight").rpartition(".")
        every = zip(FUSED.get(name, (name,)), matrix.rows, strict=True)
        if rows := {target: span for target, span in every if target in settings.targets}:
            module = adapted.get_submodule(owner)
            setattr(module, name, LoraLinear(getattr(module, name), rows, settings, draw))
    return adapted


def adapters(decoder: Decoder) -> dict[str, LoraLinear]:
    """The adapted layers by name; empty for a plain decoder."""
    return {name: module for name, module in decoder.named_modules() if isinstance(module, LoraLinear)}


def below(decoder: Decoder) -> Decoder:
    """The plain decoder below the adapters, its weights shared."""
    return _plain(decoder.config, {n: tensor for n, tensor in decoder.state_dict().items() if "lora_" not in n})


def sides(config: DecoderConfig) -> dict[str, Span]:
    """Columns and rows of every matrix that can have an adapter."""
    width, inner, (query, key, value) = config.hidden_size, config.intermediate_size, config.qkv_sizes
    found = {"q_proj": (width, query), "k_proj": (width, key), "v_proj": (width, value), "o_proj": (query, width)}
    return found | {"gate_proj": (width, inner), "up_proj": (width, inner), "down_proj": (inner, width)}


def merge(decoder: Decoder) -> Decoder:
    """The plain decoder that does what an adapted one does, within rounding; a plain one is returned as it is.

    What is not adapted is shared, and nothing of the adapted decoder is written to.
    """
    found = adapters(decoder)
    if not found:
        return decoder
    state = below(decoder).state_dict()
    return _plain(decoder.config, state | {f"{name}.weight": layer.merged() for name, layer in found.items()})


def _plain(config: DecoderConfig, state: Mapping[str, Tensor]) -> Decoder:
    """A decoder around tensors, which are shared and not copied."""
    with torch.device("meta"):
        decoder = Decoder(config, seed=None)
    decoder.load_state_dict(state, assign=True)
    return decoder
