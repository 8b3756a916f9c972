"""What a step is made of: typed batches that know their counts before the forward, packed without crop or padding.

A batch is a run of **segments** laid end to end: `ids` is [1, total], `lengths` says where segments end. Segments
attend only to themselves, so a batch needs no padding and no mask, and what shares a batch never changes a result.
"""

from __future__ import annotations

import bisect
import heapq
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, Protocol, Self, TypeVar, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from tutelage.core.errors import DataError, NotFound
from tutelage.train.mixture import Mixture

State = dict[str, Any]
"""Nested mappings of JSON values and tensors: everything a checkpoint can hold."""


class Batch(Protocol):
    """One micro-batch. `counts` gives, per term of the objective, what its sum will be divided by."""

    @property
    def counts(self) -> Mapping[str, float]: ...


B_co = TypeVar("B_co", bound=Batch, covariant=True)


class Steps(Protocol[B_co]):
    """An addressable sequence of optimizer steps, each a list of micro-batches.

    `state()` describes the position after the last step that was handed out, and is not changed by later ones; `load()`
    returns there, so that the iterator made next goes on as if it had never stopped. A step's content does not depend
    on the number of processes: of R, process r takes the micro-batches r, r + R, ...
    """

    def __iter__(self) -> Iterator[Sequence[B_co]]: ...
    def state(self) -> State: ...
    def load(self, state: State) -> None: ...


@runtime_checkable
class Sampled(Protocol):
    """Steps whose batches are made by the weights that train."""

    def resample(self) -> None:
        """The weights went back to an earlier state: what was made by the later ones is dropped."""


@dataclass(frozen=True)
class Segments:
    """Token ids laid end to end.

    Attributes:
        ids: int64 [1, total].
        lengths: tokens per segment; they add up to total.
    """

    ids: Tensor
    lengths: tuple[int, ...]

    @property
    def ends(self) -> Tensor:
        """Index of each segment's last token, int64 [segments]."""
        return torch.tensor(np.cumsum(self.lengths) - 1, dtype=torch.int64, device=self.ids.device)

    def to(self, device: torch.device) -> Self:
        """The same batch with every tensor on a device; itself when they are there already."""
        if self.ids.device == device:
            return self
        moved: dict[str, Any] = {
            name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)
        }
        return replace(self, **moved)


@dataclass(frozen=True)
class TokenBatch(Segments):
    """Segments with the positions that are learned from.

    Attributes:
        at: int64 [n], indices into total whose hidden state predicts a target.
        targets: int64 [n], the tokens to be predicted there.
    """

    at: Tensor
    targets: Tensor

    @property
    def counts(self) -> Mapping[str, float]:
        return {"tokens": float(self.targets.numel())}


@dataclass(frozen=True)
class Judged:
    """One prompt's candidates as people judged them, by index into the batch's segments.

    Attributes:
        tiers: candidates best first, same tier = tie; empty when there was no ranking.
        scores: (segment, score in 0..1) pairs.
        weight: how much this judgement counts.
        person: whose it is, by index into the model's offsets; -1 for the people's consensus.
    """

    tiers: tuple[tuple[int, ...], ...] = ()
    scores: tuple[tuple[int, float], ...] = ()
    weight: float = 1.0
    person: int = -1


@dataclass(frozen=True)
class PreferenceBatch(Segments):
    """Prompt + candidate segments and what people said about them.

    Attributes:
        answered: tokens at each segment's end that are the candidate.
    """

    judged: tuple[Judged, ...] = ()
    answered: tuple[int, ...] | None = None

    @property
    def counts(self) -> Mapping[str, float]:
        rankings = sum(each.weight for each in self.judged if len(each.tiers) > 1 or any_tie(each.tiers))
        ratings = sum(each.weight * len(each.scores) for each in self.judged)
        return {"rankings": rankings, "ratings": ratings}


def any_tie(tiers: Sequence[Sequence[int]]) -> bool:
    """Whether two candidates share a tier: also a judgement, though an order of one tier says only 'equal'."""
    return any(len(tier) > 1 for tier in tiers)


@dataclass(frozen=True)
class PairBatch(TokenBatch):
    """Chosen and rejected answers: segment 2i was preferred to segment 2i + 1.

    Attributes:
        segment: int64 [n], the segment of each target.
        reference: float [segments], summed log-probability of each answer under the reference.
        weight: float [pairs].
        tie: float [pairs], 1 where people found both equal.
    """

    segment: Tensor
    reference: Tensor
    weight: Tensor
    tie: Tensor

    @property
    def counts(self) -> Mapping[str, float]:
        return {"pairs": float(self.weight.sum()), "tokens": float(self.targets.numel())}


@dataclass(frozen=True)
class PolicyBatch(TokenBatch):
    """Sampled answers with what reinforcement needs, all float [n] beside `targets`.

    Attributes:
        old: log-probability under the weights that sampled.
        reference: log-probability under the reference.
        advantage: how much better than expected.
        returns: what the critic should have said (unused without a critic).
        value: what the critic said when the answer was sampled.
        beta: weight of the divergence from the reference in the loss (0 where it is part of the reward).
        figures: (sum, count) by name, of the rollouts this batch comes from; on every micro-batch of their first step.
    """

    old: Tensor
    reference: Tensor
    advantage: Tensor
    returns: Tensor
    value: Tensor
    beta: float = 0.0
    figures: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def counts(self) -> Mapping[str, float]:
        n = float(self.targets.numel())
        return {"policy": n, "value": n, "divergence": n, "entropy": n}


def lay(segments: Sequence[Sequence[int] | np.ndarray]) -> tuple[Tensor, tuple[int, ...]]:
    """Lay token ids end to end: (ids [1, total], lengths)."""
    lengths = tuple(len(segment) for segment in segments)
    if not lengths or min(lengths) == 0:
        raise DataError("a batch needs at least one segment, and no empty one")
    ids = np.concatenate([np.asarray(segment, dtype=np.int64) for segment in segments])
    return torch.from_numpy(ids)[None], lengths


def token_batch(segments: Sequence[np.ndarray], masks: Sequence[np.ndarray] | None = None) -> TokenBatch:
    """Segments to learn the next token from; `masks` marks the tokens that count as targets (default: all).

    A segment's first token is never a target, since nothing stands before it.
    """
    ids, lengths = lay(segments)
    wanted = np.ones(ids.shape[1], bool) if masks is None else np.concatenate([np.asarray(m, bool) for m in masks])
    wanted[np.cumsum((0, *lengths[:-1]))] = False
    position = torch.from_numpy(np.flatnonzero(wanted))
    return TokenBatch(ids=ids, lengths=lengths, at=position - 1, targets=ids[0, position])


def best_fit(lengths: Sequence[int] | np.ndarray, capacity: int) -> list[list[int]]:
    """Pack items into bins of at most `capacity`: each, in the order given, goes where it leaves the least room.

    Nothing is cropped; an item longer than the capacity is an error of the caller. Returns indices per bin.
    """
    bins: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (free, bin), ascending
    for index, length in enumerate(int(each) for each in lengths):
        if length > capacity:
            raise DataError(f"a segment of {length} tokens does not fit into {capacity}")
        place = bisect.bisect_left(room, (length, -1))
        if place == len(room):
            bins.append([index])
            bisect.insort(room, (capacity - length, len(bins) - 1))
        else:
            free, where = room.pop(place)
            bins[where].append(index)
            bisect.insort(room, (free - length, where))
    return bins


def spread(lengths: Sequence[int] | np.ndarray, capacity: int) -> list[list[int]]:
    """Pack items into as few bins as will do, of nearly equal size and like mixture: longest first, emptiest bin.

    Where nothing is padded, unused room costs nothing, but steps of unequal size would weigh tokens unequally.
    Returns indices per bin, each bin at most `capacity` long.
    """
    sizes = [int(length) for length in lengths]
    if max(sizes) > capacity:
        raise DataError(f"a segment of {max(sizes)} tokens does not fit into {capacity}")
    order = sorted(range(len(sizes)), key=lambda index: -sizes[index])
    number = -(-sum(sizes) // capacity)
    while True:
        filled = [(0, place) for place in range(number)]
        bins: list[list[int]] = [[] for _ in range(number)]
        for index in order:
            size, place = heapq.heappop(filled)
            bins[place].append(index)
            heapq.heappush(filled, (size + sizes[index], place))
        if max(size for size, _ in filled) <= capacity:
            return bins
        number += 1


@dataclass(frozen=True)
class Source:
    """Documents laid end to end in a memory-mapped array.

    Attributes:
        tokens: ids, 1-D, any unsigned integer type.
        offsets: int64 [documents + 1].
        mask: bool, beside tokens: which count as targets; None for all.
        tasks: the task of each document, by index; None where nobody wrote it down.
    """

    tokens: np.ndarray
    offsets: np.ndarray
    mask: np.ndarray | None = None
    tasks: np.ndarray | None = None

    def documents(self, pieces: np.ndarray) -> np.ndarray:
        """Index of the document that each piece [n, 2] stands in."""
        starts = pieces[:, 0] if len(pieces) else pieces.reshape(-1)
        return np.searchsorted(self.offsets, starts, side="right") - 1

    def pieces(self, context: int) -> np.ndarray:
        """Cut into pieces of at most `context` tokens, int64 [n, 2] of (start, length), in order.

        Pieces of one document overlap by a token, so that every token but the first is a target exactly once.
        Pieces without a target (one token, or nothing that the mask marks) are left out.
        """
        starts, ends = self.offsets[:-1].astype(np.int64), self.offsets[1:].astype(np.int64)
        lengths = ends - starts
        stride = context - 1
        number = np.maximum(1, -(-(lengths - 1) // stride))
        first = np.repeat(starts, number)
        nth = np.arange(number.sum()) - np.repeat(np.cumsum(number) - number, number)
        begin = first + nth * stride
        length = np.minimum(context, np.repeat(ends, number) - begin)
        keep = length > 1
        if self.mask is not None:
            marked = np.concatenate([[0], np.cumsum(self.mask, dtype=np.int64)])
            keep &= marked[begin + length] - marked[np.minimum(begin + 1, begin + length)] > 0
        found: np.ndarray = np.stack([begin, length], axis=1)[keep]
        return found


def joined(sources: Sequence[Source]) -> Source:
    """Several sources as one, in order, read into memory; their tasks are left behind."""
    sizes = np.cumsum([0, *(len(each.tokens) for each in sources)])
    offsets = [each.offsets[1:].astype(np.int64) + start for each, start in zip(sources, sizes, strict=False)]
    masks = [np.ones(len(each.tokens), bool) if each.mask is None else np.asarray(each.mask) for each in sources]
    tokens = np.concatenate([np.asarray(each.tokens) for each in sources])
    return Source(tokens, np.concatenate([np.zeros(1, np.int64), *offsets]), np.concatenate(masks))


@dataclass
class TokenSteps:
    """Steps over a token source, and perhaps others that are replayed, in a fixed order: a function of the seed and the
    position only.

    Pieces are taken in pools of `pool` (in the order given, or shuffled over the whole source when `shuffle`); within
    a pool they are shuffled, spread over micro-batches of at most `micro` tokens, and handed out `accumulate` at a
    time. Each pool also holds the given share of its tokens from every source of `replay`. Where `weights` are given,
    one for each of the source's tasks, tasks are mixed by them (see Mixture) in every pool, whatever `shuffle` says.

    The last pool of an epoch may be short; epochs follow each other without end, the loop decides when to stop.
    """

    source: Source
    context: int
    micro: int
    accumulate: int = 1
    seed: int = 0
    shuffle: bool = False
    pool: int = 512
    replay: Sequence[tuple[Source, float]] = ()
    weights: Sequence[float] | None = None
    mixture: Mixture | None = field(init=False, repr=False, default=None)
    _pieces: np.ndarray = field(init=False, repr=False)
    _replay: list[np.ndarray] = field(init=False, repr=False, default_factory=list)
    _at: tuple[int, int, int] = field(init=False, default=(0, 0, 0))

    def __post_init__(self) -> None:
        if self.micro < self.context:
            raise DataError(f"a micro-batch of {self.micro} tokens cannot hold a piece of {self.context}")
        self._pieces = self.source.pieces(self.context)
        if not len(self._pieces):
            raise DataError("the data set holds no text to learn from", todo="Look at the corpus report")
        if self.weights is not None and self.source.tasks is not None:
            tasks = np.asarray(self.source.tasks)[self.source.documents(self._pieces)]
            groups = [np.flatnonzero(tasks == number) for number in range(len(self.weights))]
            self.mixture = Mixture(groups, self.weights, self.seed)
        self._replay = [source.pieces(self.context) for source, _ in self.replay]
        if not all(map(len, self._replay)):
            raise DataError("the replay source holds no text to learn from")

    @property
    def tokens(self) -> int:
        """Tokens of one epoch of the first source, counting the overlap of pieces."""
        return int(self._pieces[:, 1].sum())

    def state(self) -> State:
        epoch, pool, bin_ = self._at
        return {"epoch": epoch, "pool": pool, "bin": bin_}

    def load(self, state: State) -> None:
        self._at = (int(state["epoch"]), int(state["pool"]), int(state["bin"]))

    def __iter__(self) -> Iterator[Sequence[TokenBatch]]:
        epoch, pool, bin_ = self._at
        step: list[TokenBatch] = []
        while True:
            bins = self._bins(epoch, pool)
            while bin_ < len(bins):
                step.append(bins[bin_].batch())
                bin_ += 1
                if len(step) == self.accumulate:
                    self._at = (epoch, pool, bin_)
                    yield step
                    step = []
            bin_, pool = 0, pool + 1
            if pool * self.pool >= len(self._pieces):
                epoch, pool = epoch + 1, 0

    def _bins(self, epoch: int, pool: int) -> list[_Bin]:
        """The micro-batches of one pool, in order: a function of (seed, epoch, pool) alone."""
        random = np.random.default_rng([self.seed, epoch, pool + 1])
        chosen = self._pieces[self._chosen(epoch, pool)]
        entries = [(self.source, int(start), int(length)) for start, length in chosen]
        rest = 1 - sum(ratio for _, ratio in self.replay)
        for (source, ratio), pieces in zip(self.replay, self._replay, strict=True):
            wanted = ratio / rest * chosen[:, 1].sum()
            picks = random.integers(len(pieces), size=max(1, round(wanted / pieces[:, 1].mean())))
            entries += [(source, int(start), int(length)) for start, length in pieces[picks]]
        entries = [entries[index] for index in random.permutation(len(entries))]
        bins = spread([length for _, _, length in entries], self.micro)
        return [_Bin([entries[index] for index in items]) for items in bins]

    def _chosen(self, epoch: int, pool: int) -> np.ndarray:
        """The pieces of one pool, by index."""
        total = len(self._pieces)
        if self.mixture is not None:  # pools of an epoch are as many as ever, and all equally large
            size = min(self.pool, total)
            place = (epoch * -(-total // self.pool) + pool) * size
            return self.mixture.take(place, place + size)
        order: np.ndarray = np.arange(total)
        if self.shuffle:
            order = np.random.default_rng([self.seed, epoch]).permutation(total)
        return order[pool * self.pool : (pool + 1) * self.pool]


@dataclass(frozen=True)
class _Bin:
    entries: list[tuple[Source, int, int]]

    def batch(self) -> TokenBatch:
        """Read the tokens. Longest pieces first, equal lengths together: attention then runs in few calls."""
        entries = sorted(self.entries, key=lambda entry: -entry[2])
        segments = [source.tokens[start : start + length] for source, start, length in entries]
        masks = [
            np.ones(length, bool) if source.mask is None else source.mask[start : start + length]
            for source, start, length in entries
        ]
        return token_batch(segments, masks)


@dataclass
class ItemSteps(Generic[B_co]):
    """Steps over items that come as a whole (a prompt with its candidates, a pair), shuffled anew every epoch.

    Args:
        sizes: tokens of each item; one above `micro` is an error.
        collate: makes a micro-batch of the items with these indices.
        per_step: items of one optimizer step, cut into micro-batches of at most `micro` tokens.
    """

    sizes: Sequence[int]
    collate: Callable[[Sequence[int]], B_co]
    per_step: int
    micro: int
    seed: int = 0
    _at: tuple[int, int] = field(init=False, default=(0, 0))

    def __post_init__(self) -> None:
        if not len(self.sizes):
            raise DataError("there is nothing to learn from")

    def state(self) -> State:
        return {"epoch": self._at[0], "item": self._at[1]}

    def load(self, state: State) -> None:
        self._at = (int(state["epoch"]), int(state["item"]))

    def __iter__(self) -> Iterator[Sequence[B_co]]:
        per_step = min(self.per_step, len(self.sizes))
        while True:
            epoch, item = self._at
            order = np.random.default_rng([self.seed, epoch]).permutation(len(self.sizes))
            while item + per_step <= len(order):  # a short rest is left to the next epoch's shuffle
                chosen = order[item : item + per_step]
                bins = best_fit([self.sizes[index] for index in chosen], self.micro)
                item += per_step
                self._at = (epoch, item)
                yield [self.collate([int(chosen[place]) for place in places]) for places in bins]
            self._at = (epoch + 1, 0)


def open_source(folder: Path, name: str) -> Source:
    """A source of a tokens artifact by name: `train`, `validation`, `dialogues`, `dialogues.validation`.

    Raises DataError when its files do not fit together, NotFound when there are none.
    """

    def read(part: str) -> np.ndarray:
        path = folder / f"{name}{part}.npy"
        if not path.is_file():
            raise NotFound(
                "no such file", file=path, todo="The tokens were made by another version: run `encode` again"
            )
        try:
            found = np.load(path, mmap_mode="r", allow_pickle=False)
        except ValueError as error:
            raise DataError(f"not an array ({error})", file=path) from None
        return np.asarray(found) if part == ".offsets" else found

    tokens, offsets = read(""), read(".offsets")
    mask = read(".mask") if (folder / f"{name}.mask.npy").is_file() else None
    if not len(offsets) or offsets[0] != 0 or offsets[-1] != len(tokens) or (np.diff(offsets) < 0).any():
        raise DataError("the offsets do not fit the tokens", file=folder / f"{name}.offsets.npy")
    if mask is not None and len(mask) != len(tokens):
        raise DataError("the mask does not fit the tokens", file=folder / f"{name}.mask.npy")
    tasks = read(".tasks") if (folder / f"{name}.tasks.npy").is_file() else None
    if tasks is not None and len(tasks) != len(offsets) - 1:
        raise DataError("the tasks do not fit the offsets", file=folder / f"{name}.tasks.npy")
    return Source(tokens, offsets, mask, tasks)
