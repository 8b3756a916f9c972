"""One model on several ranks: its weights divided by FSDP2, its matrices made whole where an optimizer needs them.

A single process never comes here: `divided` and `whole` give back what they were given.

Source: Zhao et al., 2023 (FSDP); torch's `fully_shard`, which divides every weight by its rows.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from safetensors import safe_open
from torch import Tensor, nn

from tutelage.train.device import rank, ranks

M = TypeVar("M", bound=nn.Module)


class Helped(Exception):
    """A rank that only helped to train has nothing more to do in this stage; its launcher takes over."""


class Part(NamedTuple):
    """Rows `first` and following of a tensor that has `rows` of them: what one rank holds."""

    tensor: Tensor
    first: int
    rows: int


class Scattered:
    """A tensor of a checkpoint that several ranks wrote; `scattered[2:5]` reads these rows and no others.

    Args:
        shape: of the whole.
        parts: (file, its first row, the row behind its last), in the order of rows.
    """

    def __init__(self, name: str, shape: Sequence[int], parts: Sequence[tuple[Path, int, int]]) -> None:
        self.name, self.shape, self.parts = name, tuple(shape), list(parts)

    def __getitem__(self, wanted: slice) -> Tensor:
        first, stop, _ = wanted.indices(self.shape[0])
        found = []
        for file, low, high in self.parts:
            begin, end = max(first, low), min(stop, high)
            if begin < end:
                with safe_open(file, framework="pt") as handle:
                    found.append(handle.get_slice(self.name)[begin - low : end - low])
        return torch.cat(found) if found else torch.empty(0, *self.shape[1:])


def divided(model: M) -> M:
    """Divide a model among the ranks, block by block: each rank keeps a share of every weight's rows.

    In place. Gradients are summed over ranks, not averaged: the loss is a sum over global counts already. What lies
    outside the blocks stays whole from the forward to the end of the backward, since objectives use the head directly.
    """
    if ranks() == 1:
        return model
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard

    device = next(model.parameters()).device
    mesh = init_device_mesh(device.type, (ranks(),))
    empty = copy.deepcopy(model, {id(parameter): _on_meta(parameter) for parameter in model.parameters()})
    layers: Any = model.layers
    for block in layers:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh, reshard_after_forward=False)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo has no product-and-sum
    object.__setattr__(model, "_empty", empty)  # no submodule
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    return model


def _on_meta(parameter: nn.Parameter) -> nn.Parameter:
    return nn.Parameter(parameter.detach().to("meta"), requires_grad=parameter.requires_grad)


def gathered(model: M) -> M | None:
    """The model as one process would have it: a copy on rank 0, None on the others. All ranks must call this.

    A weight that stands in several places, as tied embeddings do, is one weight in the copy, too.
    """
    empty: M | None = getattr(model, "_empty", None)
    if empty is None:
        return model
    made: dict[int, nn.Parameter] = {}
    for parameter in model.parameters():
        full: Any = parameter
        full = full.full_tensor() if is_divided(parameter) else full
        if rank() == 0:
            made[id(parameter)] = nn.Parameter(full.detach(), parameter.requires_grad)
    if rank() != 0:
        return None
    found: M = copy.deepcopy(empty)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owner, _, last = name.rpartition(".")
        setattr(found.get_submodule(owner), last, made[id(parameter)])
    return found.train(model.training)


def whole(model: M) -> M:
    """The trained model for what follows training, which rank 0 does alone. Raises Helped on the other ranks."""
    found = gathered(model)
    if found is None:
        raise Helped
    return found


def is_divided(tensor: object) -> bool:
    """Whether each rank holds only a share of this: a DTensor (whose module takes half a second to load)."""
    return hasattr(tensor, "full_tensor")


def local(tensor: Any) -> Tensor:
    """This rank's rows of a divided tensor, to be written into; any other tensor as it is."""
    found: Tensor = tensor.to_local() if is_divided(tensor) else tensor
    return found


def bounds(rows: int, which: int | None = None) -> tuple[int, int]:
    """(first, stop) of a rank's rows among `rows`, as `fully_shard` divides them."""
    size, nth = -(-rows // ranks()), rank() if which is None else which
    return min(nth * size, rows), min((nth + 1) * size, rows)


def part_of(tensor: Tensor) -> Tensor | Part:
    """A divided tensor as this rank's part; any other as it is."""
    return Part(local(tensor), bounds(len(tensor))[0], len(tensor)) if is_divided(tensor) else tensor


class Exchange:
    """Matrices of one shape that lie by rows on all ranks: matrix i goes to rank i modulo ranks, and back.

    Args:
        spans: of every matrix, (rows of the divided parameter that holds it, its first row there, the row behind it).
        columns: of every matrix.
    """

    def __init__(self, spans: Sequence[tuple[int, int, int]], columns: int) -> None:
        self.columns, self.mine = columns, range(rank(), len(spans), ranks())
        self.held: list[list[tuple[int, int]]] = []
        """Per rank and matrix: (first, stop) of the matrix's rows that lie there."""
        for which in range(ranks()):
            self.held.append([])
            for rows, start, stop in spans:
                low, high = bounds(rows, which)
                first = min(max(low, start), stop) - start
                self.held[-1].append((first, max(first, min(high, stop) - start)))
        each = range(ranks())
        self._sent = [self._numbers(rank(), range(other, len(spans), ranks())) for other in each]
        self._received = [self._numbers(other, self.mine) for other in each]

    def _numbers(self, which: int, matrices: range) -> int:
        return self.columns * sum(stop - first for first, stop in (self.held[which][index] for index in matrices))

    def gather(self, pieces: Sequence[Tensor]) -> Tensor:
        """This rank's rows of every matrix -> its matrices, whole [mine, m, n]."""
        count = len(pieces)
        flat = torch.cat([pieces[i].reshape(-1) for owner in range(ranks()) for i in range(owner, count, ranks())])
        found = flat.new_empty(sum(self._received))
        torch.distributed.all_to_all_single(found, flat, self._received, self._sent)
        parts = [
            torch.split(from_one, [self._numbers(which, range(index, index + 1)) for index in self.mine])
            for which, from_one in enumerate(torch.split(found, self._received))
        ]
        whole = [torch.cat(each).view(-1, self.columns) for each in zip(*parts, strict=True)]
        return torch.stack(whole) if whole else found.new_empty(0, 1, self.columns)

    def spread(self, matrices: Tensor) -> list[Tensor]:
        """The way back: this rank's matrices -> its rows of every matrix."""
        sent = [
            matrices[place, slice(*self.held[which][index])].reshape(-1)
            for which in range(ranks())
            for place, index in enumerate(self.mine)
        ]
        found = matrices.new_empty(sum(self._sent))
        flat = torch.cat(sent) if sent else matrices.new_empty(0)
        torch.distributed.all_to_all_single(found, flat, self._sent, self._received)
        count, pieces = len(self.held[0]), {}
        order = [index for owner in range(ranks()) for index in range(owner, count, ranks())]
        sizes = [self._numbers(rank(), range(index, index + 1)) for index in order]
        for index, piece in zip(order, torch.split(found, sizes), strict=True):
            pieces[index] = piece.view(-1, self.columns)
        return [pieces[index] for index in range(count)]
