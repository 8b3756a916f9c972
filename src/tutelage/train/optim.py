"""Muon for the matrices, AdamW for the rest, schedules and clipping; state is plain tensors under parameter names.

Muon (Jordan et al. 2024) replaces each matrix's momentum by the nearest orthogonal matrix, here by the Polar Express
iteration (Amsel et al. 2025). Matrices of one shape are stacked, so an iteration is a few batched products.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from tutelage.core.errors import CorruptArtifact
from tutelage.train.batch import State
from tutelage.train.device import rank, sum_over_ranks
from tutelage.train.parallel import Exchange, Part, Scattered, bounds, is_divided, local, part_of

POLAR_EXPRESS = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)
"""Quintic coefficients of the iteration, one triple per step (Amsel et al. 2025, table for a lower bound of 1e-3)."""


def orthogonalise(matrices: Tensor, steps: int = 5, *, rounded: bool = False) -> Tensor:
    """The nearest matrices with orthonormal rows or columns, approximately: [k, m, n] -> [k, m, n].

    Every step multiplies by a polynomial in X X^T. Where X is far from square those polynomials are multiplied up first
    and meet X once: a third fewer operations, the same result but for rounding. `rounded` multiplies in bfloat16, step
    by step (Jordan et al. 2024): polynomials multiplied up would blow its rounding up without bound.
    """
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) * 1.01 + 1e-7)
    if rounded:
        x = _by_matrix(x.bfloat16(), steps).to(matrices.dtype)
    else:
        x = _by_gram(x, steps) if 2 * x.shape[-1] >= 3 * x.shape[-2] else _by_matrix(x, steps)
    return x.mT if tall else x


def _by_matrix(x: Tensor, steps: int) -> Tensor:
    for a, b, c in POLAR_EXPRESS[:steps]:
        gram = x @ x.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return x


def _by_gram(x: Tensor, steps: int) -> Tensor:
    gram = x @ x.mT
    product: Tensor | None = None
    for index, (a, b, c) in enumerate(POLAR_EXPRESS[:steps]):
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        polynomial.diagonal(dim1=-2, dim2=-1).add_(a)
        product = polynomial if product is None else polynomial @ product
        if index + 1 < steps:
            gram = polynomial @ gram @ polynomial
    return x if product is None else product @ x


@dataclass(frozen=True)
class Schedule:
    """The learning rate's multiplier over a run.

    Attributes:
        kind: `wsd` warms up, holds, then falls linearly; `cosine` warms up, then falls along a half cosine.
        warmup: share of the run spent rising from 0.
        decay: share of the run spent falling (`wsd` only).
        floor: where the fall ends.
    """

    kind: Literal["wsd", "cosine"] = "wsd"
    warmup: float = 0.02
    decay: float = 0.5
    floor: float = 0.0

    def at(self, step: int, total: int) -> float:
        """The multiplier of step `step` (0-based) of `total`."""
        done = (step + 0.5) / max(1, total)
        if done < self.warmup:
            return done / self.warmup
        if self.kind == "cosine":
            share = (done - self.warmup) / max(1e-9, 1 - self.warmup)
            return self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))
        fall = (1 - done) / self.decay if self.decay > 0 else 1.0
        return self.floor + (1 - self.floor) * min(1.0, max(0.0, fall))


@dataclass(frozen=True)
class Rates:
    """Learning rates and decay. Each stage has defaults of its own; docs/log.md says what `bench/rates.py` found.

    Attributes:
        matrix: Muon's rate for the matrices inside the layers (the change's spectral norm per step).
        embedding: AdamW's rate for embeddings and output heads.
        scalar: AdamW's rate for norms, biases and everything one-dimensional.
        decay: decoupled weight decay of the matrices, multiplied by the schedule as the rate is.
        momentum: Muon's (Nesterov).
        betas: AdamW's.
    """

    matrix: float = 0.02
    embedding: float = 0.005
    scalar: float = 0.005
    decay: float = 0.0
    momentum: float = 0.95
    betas: tuple[float, float] = (0.9, 0.95)


class Block(NamedTuple):
    """Rows `start` to `stop` of a parameter: one matrix, where a model keeps several fused in one parameter."""

    name: str
    parameter: nn.Parameter
    start: int
    stop: int

    @property
    def shape(self) -> tuple[int, int]:
        return self.stop - self.start, self.parameter.shape[1]

    def rows(self, tensor: Tensor) -> Tensor:
        """Its rows of the parameter (or of its gradient), a view; of a divided one those that this rank holds."""
        low = bounds(len(tensor))[0] if is_divided(tensor) else 0
        return local(tensor)[max(0, self.start - low) : max(0, self.stop - low)]


class Muon:
    """Muon over blocks of one shape, stacked. `update` moves the weights from their `.grad`."""

    def __init__(self, blocks: Sequence[Block], rates: Rates, *, rounded: bool = False) -> None:
        self.blocks = list(blocks)
        self._rates, self._rounded = rates, rounded
        rows, columns = blocks[0].shape
        self._scale = math.sqrt(max(1.0, rows / columns))
        self._exchange: Exchange | None = None
        self._momentum: Sequence[Tensor] | Tensor
        if is_divided(blocks[0].parameter):
            self._exchange = Exchange([(len(each.parameter), each.start, each.stop) for each in blocks], columns)
            self._momentum = [torch.zeros_like(each.rows(each.parameter)) for each in blocks]
        else:
            self._momentum = torch.zeros(len(blocks), rows, columns, device=blocks[0].parameter.device)

    def update(self, multiplier: float, step: int) -> None:
        gradients = [block.rows(_gradient(block.parameter)) for block in self.blocks]
        rate = self._rates.matrix * multiplier
        for block, change in zip(self.blocks, self._directions(gradients), strict=True):
            weight = block.rows(block.parameter)
            if self._rates.decay:
                weight.mul_(1 - rate * self._rates.decay)
            weight.add_(change, alpha=-rate * self._scale)

    def _directions(self, gradients: Sequence[Tensor]) -> Sequence[Tensor]:
        momentum = self._rates.momentum
        if self._exchange is None:
            assert isinstance(self._momentum, Tensor)
            stack = torch.stack(list(gradients))
            self._momentum.lerp_(stack, 1 - momentum)
            return self._orthogonal(stack.lerp_(self._momentum, momentum)).unbind(0)
        pieces = []
        for gradient, kept in zip(gradients, self._momentum, strict=True):
            kept.lerp_(gradient, 1 - momentum)
            pieces.append(gradient.lerp(kept, momentum))
        matrices = self._exchange.gather(pieces)  # a share of the stack, so that each rank does a share of the work
        return self._exchange.spread(self._orthogonal(matrices) if len(matrices) else matrices)

    def _orthogonal(self, matrices: Tensor) -> Tensor:
        return orthogonalise(matrices, rounded=self._rounded)

    def tensors(self) -> dict[str, Tensor | Part]:
        """What it remembers, by name; views, so that loading writes into them."""
        names = [f"momentum/{block.name}/{block.start}" for block in self.blocks]
        if self._exchange is None:
            return dict(zip(names, self._momentum, strict=True))
        firsts = [first for first, _ in self._exchange.held[rank()]]
        rows = self.blocks[0].shape[0]
        return {name: Part(kept, first, rows) for name, kept, first in zip(names, self._momentum, firsts, strict=True)}


class AdamW:
    """AdamW (Loshchilov and Hutter 2019) over single tensors."""

    def __init__(self, named: Sequence[tuple[str, nn.Parameter]], rate: float, rates: Rates) -> None:
        self.names = [name for name, _ in named]
        self.parameters = [parameter for _, parameter in named]
        self._rate, self._betas = rate, rates.betas
        self._first = [torch.zeros_like(parameter) for parameter in self.parameters]
        self._second = [torch.zeros_like(parameter) for parameter in self.parameters]

    def update(self, multiplier: float, step: int) -> None:
        one, two = self._betas
        size = self._rate * multiplier / (1 - one**step)
        root = math.sqrt(1 - two**step)
        for parameter, *state in zip(self.parameters, self._first, self._second, strict=True):
            weight, first, second = local(parameter), *map(local, state)
            gradient = local(_gradient(parameter))
            first.lerp_(gradient, 1 - one)
            second.mul_(two).addcmul_(gradient, gradient, value=1 - two)
            weight.addcdiv_(first, second.sqrt().div_(root).add_(1e-10), value=-size)

    def tensors(self) -> dict[str, Tensor | Part]:
        """What it remembers, by name; loading writes into them."""
        first = {f"first/{name}": part_of(tensor) for name, tensor in zip(self.names, self._first, strict=True)}
        return first | {f"second/{name}": part_of(each) for name, each in zip(self.names, self._second, strict=True)}


class Optimizer:
    """All parameters of a model under their optimizers, one schedule, one clip.

    Args:
        model: every parameter that requires a gradient is taken, each once. Where it multiplies in bf16, so does Muon.
        total: steps of the run, the schedule's horizon.
        clip: largest global gradient norm; larger gradients are scaled down to it.
        kind: says per (name, parameter) which rate applies; default `default_kind`.
    """

    def __init__(
        self,
        model: nn.Module,
        rates: Rates,
        schedule: Schedule,
        total: int,
        *,
        clip: float = 1.0,
        kind: Callable[[str, nn.Parameter], Literal["matrix", "embedding", "scalar"]] | None = None,
    ) -> None:
        self.schedule, self.total, self.clip = schedule, total, clip
        self.updates = 0
        chosen = kind or default_kind
        fused, rounded = _fused(model), getattr(model, "bf16", False)
        named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
        self.parameters = [parameter for _, parameter in named]
        shapes: dict[tuple[int, int], list[Block]] = {}
        rest: dict[str, list[tuple[str, nn.Parameter]]] = {"embedding": [], "scalar": []}
        for name, parameter in named:
            which = chosen(name, parameter)
            if which == "matrix":
                for start, stop in fused.get(id(parameter), ((0, parameter.shape[0]),)):
                    block = Block(name, parameter, start, stop)
                    shapes.setdefault(block.shape, []).append(block)
            else:
                rest[which].append((name, parameter))
        self.parts: list[Muon | AdamW] = [Muon(blocks, rates, rounded=rounded) for blocks in shapes.values()]
        for which, rate in (("embedding", rates.embedding), ("scalar", rates.scalar)):
            if rest[which]:
                self.parts.append(AdamW(rest[which], rate, rates))

    def clear(self) -> None:
        """Forget the gradients."""
        for parameter in self.parameters:
            parameter.grad = None

    def norm(self) -> float:
        """Global gradient norm; not finite when any gradient is."""
        norms = [torch.linalg.vector_norm(local(p.grad)) for p in self.parameters if p.grad is not None]
        if not any(map(is_divided, self.parameters)):
            return float(torch.linalg.vector_norm(torch.stack(norms))) if norms else 0.0
        square = sum((norm.square() for norm in norms), torch.zeros((), device=self.parameters[0].device))
        sum_over_ranks(square)
        return float(square.sqrt())

    @torch.no_grad()
    def step(self, step: int, norm: float) -> float:
        """Clip and move; `step` is the run's 0-based step, `norm` what `norm()` gave. Returns the multiplier."""
        multiplier = self.schedule.at(step, self.total)
        if norm > self.clip > 0:
            for parameter in self.parameters:
                if parameter.grad is not None:
                    local(parameter.grad).mul_(self.clip / norm)
        self.updates += 1
        for part in self.parts:
            part.update(multiplier, self.updates)
        return multiplier

    def state(self) -> State:
        """Everything it remembers, under parameter names."""
        tensors = {name: tensor for part in self.parts for name, tensor in part.tensors().items()}
        return {"updates": self.updates, **tensors}

    def load(self, state: State) -> None:
        """Go back to a state. CorruptArtifact names what is missing or does not fit."""
        self.updates = int(state["updates"])
        for part in self.parts:
            for name, tensor in part.tensors().items():
                copy_into(tensor, state.get(name), name)


def default_kind(name: str, parameter: nn.Parameter) -> Literal["matrix", "embedding", "scalar"]:
    """Matrices inside layers to Muon, embeddings and heads to AdamW, everything else is scalar."""
    if parameter.ndim != 2:
        return "scalar"
    outside = any(part in name for part in ("embed", "lm_head", "score", "head."))
    return "embedding" if outside or 1 in parameter.shape else "matrix"


def copy_into(target: Tensor | Part, value: object, name: str) -> None:
    """Copy a saved tensor (into a part its rows) into its place; CorruptArtifact if missing or of another shape."""
    if isinstance(value, Part) or is_divided(value):  # a copy in memory of what this rank holds
        value = part_of(value) if isinstance(value, Tensor) else value
        target = Part(target, 0, len(target)) if isinstance(target, Tensor) else target
        if isinstance(value, Part) and value[1:] == target[1:]:
            with torch.no_grad():
                target.tensor.copy_(value.tensor)
            return
    held, first, rows = target if isinstance(target, Part) else (target, 0, None)
    expected = list(held.shape) if rows is None else [rows, *held.shape[1:]]
    if not isinstance(value, Tensor | Scattered) or list(value.shape) != expected:
        found = list(value.shape) if isinstance(value, Tensor | Scattered) else "nothing"
        raise CorruptArtifact(f"the checkpoint holds {found} for {name!r}, expected {expected}")
    with torch.no_grad():
        held.copy_(value[first : first + len(held)] if held.ndim else value)  # type: ignore[arg-type]


def weights(model: nn.Module) -> dict[str, Tensor]:
    """What a run may change: parameters that require a gradient, persistent buffers; by name, shared ones once."""
    every = dict(model.named_parameters())
    found: dict[str, Tensor] = {name: parameter for name, parameter in every.items() if parameter.requires_grad}
    seen = {id(tensor) for tensor in every.values()}
    shared = {name for name, tensor in model.state_dict(keep_vars=True).items() if id(tensor) not in seen}
    found.update({name: buffer for name, buffer in model.named_buffers() if name in shared})
    return found


def load_weights(model: nn.Module, state: Mapping[str, object]) -> None:
    """Copy saved weights into a model, in place, so that whoever shares them sees the change."""
    for name, tensor in weights(model).items():
        copy_into(part_of(tensor), state.get(name), name)


def _fused(model: nn.Module) -> dict[int, Sequence[tuple[int, int]]]:
    """Row blocks of fused parameters, as every module with a `matrices()` method declares them."""
    found: dict[int, Sequence[tuple[int, int]]] = {}
    for module in model.modules():
        declare = getattr(module, "matrices", None)
        if callable(declare):
            found.update({id(matrix.parameter): matrix.rows for matrix in declare()})
    return found


def _gradient(parameter: nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def count(parameters: Iterable[Tensor]) -> int:
    """How many numbers these tensors hold."""
    return sum(parameter.numel() for parameter in parameters)
