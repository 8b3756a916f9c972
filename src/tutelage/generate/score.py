"""Log-probabilities of given continuations, with every common beginning read once.

In C (model/native.py) a token's numbers are its own to the bit, so what stands here is exactly what each sequence gives
when it is read by itself, in any company and any order. `weigh_in_torch` is for other devices and models: prompts that
are equal are read once, and neighbours enter through rounding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tutelage.model.cache import Cache
from tutelage.model.native import PASS, Native
from tutelage.model.prefix import LEAST, Part, parts, shared
from tutelage.model.transformer import Decoder


class Row(NamedTuple):
    """A continuation as tokens: `read` (at least one) stands before it, `said` (at least one) is weighed."""

    read: tuple[int, ...]
    said: tuple[int, ...]

    @property
    def tokens(self) -> tuple[int, ...]:
        """What the model must read: all but the last token."""
        return self.read + self.said[:-1]


class Weighed(NamedTuple):
    """Log-probability in nats, summed over the tokens said, and whether each was the likeliest."""

    logprob: float
    greedy: bool


# ---------------------------------------------------------------------------------------------------------------- in C


def weigh(native: Native, rows: Sequence[Row]) -> list[Weighed]:
    """Weigh every row, in order. `native` must be idle; every row fits its capacity.

    Logits exist for the tokens before those that are weighed, of one pass at a time.
    """
    native.refresh()
    order = sorted(range(len(rows)), key=lambda place: rows[place].tokens)
    logprobs, greedy = np.zeros(len(rows)), np.ones(len(rows), bool)
    kept: tuple[int, ...] = ()
    slot = native.slots - 1
    room = max(1, native.slots - 1)  # one slot keeps the last sequence of the batch before
    for first in range(0, len(order), room):
        places = order[first : first + room]
        batch = [rows[place] for place in places]
        sequences = [row.tokens for row in batch]
        planned = parts(sequences, kept[: _takes(batch, sequences, kept)])
        slots = [each for each in range(native.slots) if each != slot][: len(batch)] or [slot]
        for wave in _waves(batch, sequences, planned):
            _read(native, wave, [*slots, slot], [places[row] for row in wave.rows], logprobs, greedy)
        if native.slots > 1 and (last := planned[-1].path[-1][1]) >= 0:
            kept, slot = sequences[last], slots[last]
    return [Weighed(float(logprob), bool(best)) for logprob, best in zip(logprobs, greedy, strict=True)]


def _takes(batch: Sequence[Row], sequences: Sequence[tuple[int, ...]], kept: tuple[int, ...]) -> int:
    """How much of the sequence kept may be built upon: its logits are gone, so what is asked of it is read again."""
    most, alike = len(kept), len(kept)
    before = kept
    for row, sequence in zip(batch, sequences, strict=True):
        alike = min(alike, shared(before, sequence))
        if alike < LEAST:
            break
        most, before = min(most, len(row.read) - 1), sequence
    return most


class _Wave(NamedTuple):
    """Tokens that are read together, and which of them are asked for what follows."""

    copies: list[tuple[int, int, int]]
    """(source row, row, tokens) to be copied before."""
    ids: list[int]
    owners: list[int]
    """Whose tokens they are."""
    positions: list[int]
    asked: list[int]
    """Of each question which token it is asked of, ascending."""
    targets: list[int]
    rows: list[int]
    """And for which row."""


def _waves(batch: Sequence[Row], sequences: Sequence[tuple[int, ...]], planned: Sequence[Part]) -> list[_Wave]:
    questions: list[dict[int, list[tuple[int, int]]]] = [{} for _ in batch]
    """Of each row that reads: position -> (target, row that asks)."""
    for row, (part, each) in enumerate(zip(planned, batch, strict=True)):
        for position, target in enumerate(each.said, len(each.read) - 1):
            owner = row if part.start <= position else part.owner(position)
            questions[owner].setdefault(position, []).append((target, row))
    waves = [_Wave([], [], [], [], [], [], []) for _ in range(1 + max(part.wave for part in planned))]
    for row, (part, sequence) in enumerate(zip(planned, sequences, strict=True)):
        wave, own = waves[part.wave], len(sequence) - part.start
        if not own:
            continue
        if part.start:
            wave.copies.append((part.source, row, part.start))
        for position, asking in sorted(questions[row].items()):
            wave.asked.extend([len(wave.ids) + position - part.start] * len(asking))
            wave.targets.extend(target for target, _ in asking)
            wave.rows.extend(who for _, who in asking)
        wave.ids.extend(sequence[part.start :])
        wave.owners.extend([row] * own)
        wave.positions.extend(range(part.start, len(sequence)))
    return waves


def _read(
    native: Native,
    wave: _Wave,
    slots: Sequence[int],
    places: Sequence[int],
    logprobs: np.ndarray,
    greedy: np.ndarray,
) -> None:
    """Read a wave pass by pass; what is asked is added to `logprobs` and `greedy` at `places`."""
    for source, row, length in wave.copies:
        native.copy(slots[source], [slots[row]], length)
    ids, positions = torch.tensor(wave.ids), torch.tensor(wave.positions)
    into = torch.tensor(slots)[torch.tensor(wave.owners, dtype=torch.long)]
    asked, targets, where = np.array(wave.asked, int), np.array(wave.targets, int), np.array(places, int)
    for start in range(0, len(ids), PASS):
        part, first, last = slice(start, start + PASS), *np.searchsorted(asked, (start, start + PASS))
        rows, which = np.unique(asked[first:last], return_inverse=True)
        logits, _ = native.forward(ids[part], into[part], positions[part], torch.from_numpy(rows - start))
        if len(rows):
            normalisers, likeliest = native.normalise(logits)
            wanted = targets[first:last]
            found = logits.numpy()[which, wanted].astype(np.float64) - normalisers.numpy()[which]
            np.add.at(logprobs, where[first:last], found)
            np.logical_and.at(greedy, where[first:last], likeliest.numpy()[which] == wanted)


# ------------------------------------------------------------------------------------------------------------ in torch


def weigh_in_torch(decoder: Decoder, rows: Sequence[Row], most: int) -> list[Weighed]:
    """`weigh` on any device and of any model, at most 4 * `most` rows at a time."""
    found: dict[int, Weighed] = {}
    for places in _batches(rows, most, decoder.config.max_position_embeddings):
        found.update(zip(places, _weigh(decoder, [rows[place] for place in places]), strict=True))
    return [found[place] for place in range(len(rows))]


def _weigh(decoder: Decoder, rows: Sequence[Row]) -> list[Weighed]:
    """Read each distinct prompt once, then all choices but their last tokens, each behind a copy of its prompt."""
    device = decoder.device
    slots: dict[tuple[int, ...], list[int]] = {}
    for slot, row in enumerate(rows):
        slots.setdefault(row.read, []).append(slot)
    lengths = [len(prompt) for prompt in slots]
    said = max(len(row.said) for row in rows)
    config = decoder.config
    shape = (config.num_hidden_layers, len(rows), config.num_key_value_heads, max(lengths) + said - 1)
    cache = Cache(*shape, config.head_dim, device=device, dtype=decoder.head_weight.dtype)
    ids = torch.tensor([[token for prompt in slots for token in prompt]], device=device)
    where = cache.prefill([each[0] for each in slots.values()], lengths) if said > 1 else None
    read = decoder(ids, lengths=lengths, cache=where)[0, torch.tensor(lengths).cumsum(0) - 1]
    state = torch.empty(len(rows), said, config.hidden_size, device=device, dtype=read.dtype)
    for index, (prompt, each) in enumerate(slots.items()):
        state[torch.tensor(each), 0] = read[index]
        if said > 1:
            cache.copy(each[0], each[1:], len(prompt))
    targets = torch.zeros(len(rows), said, dtype=torch.long)
    for slot, row in enumerate(rows):
        targets[slot, : len(row.said)] = torch.tensor(row.said)
    targets = targets.to(device)
    if said > 1:
        starts = torch.tensor([len(row.read) for row in rows], device=device)
        state[:, 1:] = decoder(targets[:, :-1], cache=cache.extend(starts, said - 1, cache.capacity))
    inside = torch.arange(said) < torch.tensor([len(row.said) for row in rows])[:, None]
    chosen, best = _judge(decoder, state[inside.to(device)], targets[inside.to(device)])
    sizes = [len(row.said) for row in rows]
    return [
        Weighed(float(logprob.sum()), bool(greedy.all()))
        for logprob, greedy in zip(torch.split(chosen.double(), sizes), torch.split(best, sizes), strict=True)
    ]


def _judge(decoder: Decoder, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probability of each target, and whether it was the likeliest."""
    chosen, best = [], []
    for states, wanted in zip(torch.split(hidden, 512), torch.split(targets, 512), strict=True):
        logs = torch.log_softmax(decoder.logits(states), -1)
        chosen.append(logs.gather(1, wanted[:, None])[:, 0])
        best.append(logs.argmax(-1) == wanted)
    return torch.cat(chosen), torch.cat(best)


def _batches(rows: Sequence[Row], most: int, context: int) -> Iterator[list[int]]:
    """Rows of like length together, and rows that share a prompt: at most 4 * `most`, or 8,192 tokens with padding."""
    batch: list[int] = []
    read = said = 0
    for place in sorted(
        range(len(rows)), key=lambda place: (len(rows[place].said), len(rows[place].read), rows[place])
    ):
        row = rows[place]
        read, said = max(read, len(row.read)), max(said, len(row.said))
        full = len(batch) == 4 * most or (read + said) * (len(batch) + 1) > 8192 or read + said - 1 > context
        if batch and full:
            yield batch
            batch, read, said = [], len(row.read), len(row.said)
        batch.append(place)
    if batch:
        yield batch
