"""Where every token of a forward stands: in which row of a pack, and in which slot of the key-value cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tutelage.core.errors import UsageError


@dataclass(frozen=True)
class Group:
    """Sequences that are attended to together: `rows` of `time` tokens, each from its own position 0.

    `gather` [rows * time] says which flat token stands where; short rows end in padding that repeats a token. Nobody
    sees it: attention is causal. `scatter` leads back, padding goes to one row past the end. Both None: as they stand.
    """

    rows: int
    time: int
    gather: Tensor | None = None
    scatter: Tensor | None = None
    valid: Tensor | None = None


def round_up(length: int) -> int:
    """The next of 8, 12, 16, 24, 32, 48, 64, 96 ...: two sizes per octave, so padding stays under a third."""
    size = 8
    while size < length:
        size = size * 3 // 2 if size & (size - 1) == 0 else size * 4 // 3
    return size


def groups_of(lengths: Sequence[int], device: torch.device) -> tuple[Group, ...]:
    """Sort the segments of a pack into few groups of similar length, so that attention is a few batched calls.

    One group for segments of one length; else one for each size of `round_up` that occurs.
    """
    if not lengths or min(lengths) < 1:
        raise UsageError(f"a pack needs segments of at least one token, found lengths {list(lengths)[:8]}")
    total = sum(lengths)
    if min(lengths) == max(lengths):
        return (Group(len(lengths), lengths[0]),)
    sizes: dict[int, list[tuple[int, int]]] = {}
    start = 0
    for length in lengths:
        sizes.setdefault(round_up(length), []).append((start, length))
        start += length
    groups = []
    for members in sizes.values():
        time = max(length for _, length in members)
        starts = torch.tensor([start for start, _ in members])[:, None]
        ends = torch.tensor([length for _, length in members])[:, None]
        places = torch.arange(time)[None, :]
        inside = places < ends
        gather = starts + torch.minimum(places, ends - 1)
        scatter = torch.where(inside, gather, total)
        full = bool(inside.all())
        groups.append(
            Group(
                len(members),
                time,
                gather.flatten().to(device),
                scatter.flatten().to(device),
                None if full else inside.flatten().to(device),
            )
        )
    return tuple(groups)


def positions_of(lengths: Sequence[int]) -> Tensor:
    """Positions [total] of the tokens of packed segments: each segment counts from 0."""
    return torch.cat([torch.arange(length) for length in lengths])


class Cache:
    """Keys and values of up to `slots` sequences of up to `capacity` tokens, allocated once and never grown.

    `keys`, `values`: [layers, slots, kv_heads, capacity, head_dim]. Keys are stored after rotation.
    """

    def __init__(
        self,
        layers: int,
        slots: int,
        kv_heads: int,
        capacity: int,
        head_dim: int,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        # Zeros, not empty: a masked place still enters 0 * value, and 0 * garbage may be NaN.
        shape = (layers, slots, kv_heads, capacity, head_dim)
        self.keys = torch.zeros(shape, device=device, dtype=dtype)
        self.values = torch.zeros(shape, device=device, dtype=dtype)
        self.slots, self.capacity, self.kv_heads = slots, capacity, kv_heads
        self._places = torch.arange(capacity, device=device)
        self._heads = torch.arange(kv_heads, device=device) * capacity

    @property
    def bytes(self) -> int:
        """Memory of the cache."""
        return 2 * self.keys.numel() * self.keys.element_size()

    def copy(self, source: int, targets: Sequence[int], length: int) -> None:
        """Copy the first `length` tokens of one slot into others: a shared prompt, or a slot that moves."""
        for target in targets:
            self.keys[:, target, :, :length] = self.keys[:, source, :, :length]
            self.values[:, target, :, :length] = self.values[:, source, :, :length]

    def prefill(self, slots: Sequence[int], lengths: Sequence[int]) -> Written:
        """Where the tokens of packed prompts go: segment i from the start of slot `slots[i]`."""
        if max(lengths) > self.capacity:
            raise UsageError(f"a prompt of {max(lengths)} tokens does not fit a cache of {self.capacity}")
        slot = torch.tensor(slots).repeat_interleave(torch.tensor(lengths))
        return self._written(slot.to(self._places.device), positions_of(lengths).to(self._places.device))

    def extend(self, starts: Tensor, time: int, span: int) -> Extended:
        """Where `time` new tokens of each of slots 0 .. n-1 go, which hold `starts` [n] tokens already.

        `span` is the longest sequence afterwards (tokens): attention looks no further.
        """
        if span > self.capacity:
            raise UsageError(f"a sequence of {span} tokens does not fit a cache of {self.capacity}")
        rows = starts.shape[0]
        positions = (starts[:, None] + self._places[:time]).flatten()
        slot = torch.arange(rows, device=starts.device).repeat_interleave(time) if time > 1 else self._rows(rows)
        hidden = self._places[:span] > positions.view(rows, time, 1)
        mask = torch.zeros(hidden.shape, device=starts.device, dtype=self.keys.dtype).masked_fill_(hidden, -torch.inf)
        return Extended(self._written(slot, positions), rows, time, span, mask)

    def _rows(self, rows: int) -> Tensor:
        return torch.arange(rows, device=self._places.device)

    def _written(self, slot: Tensor, positions: Tensor) -> Written:
        flat = (slot * (self.kv_heads * self.capacity) + positions)[:, None] + self._heads
        return Written(self, positions, flat.flatten())


@dataclass(frozen=True)
class Written:
    """Where new keys and values go: flat rows of a layer seen as [slots * kv_heads * capacity, head_dim]."""

    cache: Cache
    positions: Tensor
    rows: Tensor

    def write(self, layer: int, keys: Tensor, values: Tensor) -> None:
        """Store rotated keys and values [tokens, kv_heads, head_dim] of a layer."""
        width = keys.shape[-1]
        self.cache.keys[layer].view(-1, width).index_copy_(0, self.rows, keys.reshape(-1, width))
        self.cache.values[layer].view(-1, width).index_copy_(0, self.rows, values.reshape(-1, width))


@dataclass(frozen=True)
class Extended:
    """New tokens behind those in slots 0 .. rows-1. `mask` [rows, time, span] is 0 or -inf, added to the scores."""

    written: Written
    rows: int
    time: int
    span: int
    mask: Tensor
