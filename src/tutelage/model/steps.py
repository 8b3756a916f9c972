"""One step of the engine on its model: read what is new, give the logits and states of each row, draw.

Two ways to do the same: `TorchSteps` on any device and model, `NativeSteps` in C (native.py) on a CPU.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from tutelage.core.errors import UsageError
from tutelage.model import native
from tutelage.model.cache import Cache
from tutelage.model.prefix import parts
from tutelage.model.sample import Draw, draw
from tutelage.model.transformer import Decoder

Prompts = Mapping[tuple[int, ...], Sequence[int]]
"""Distinct prompts and the slots of the rows that begin with them."""
States = dict[int, Tensor]
"""Layer -> [rows, width]."""


class Steps(Protocol):
    """The model and its cache, as the engine uses them. Rows lie in slots 0, 1, 2 ..."""

    shares: bool
    """Whether what different prompts begin with is read once."""

    def read(self, last: Tensor, lengths: Tensor, prompts: Prompts, taps: Sequence[int]) -> tuple[Tensor, States]:
        """Read one more token `last` [running] of each running row, behind the `lengths` [running] tokens it has, and
        the prompts of the rows that follow. Returns the logits [rows, vocabulary] and the states of the layers `taps`.
        """
        ...

    def draw(self, logits: Tensor, how: Draw) -> tuple[Tensor, Tensor]:
        """Next tokens [rows] and their log-probabilities [rows], as `sample.draw`; the logits are overwritten."""
        ...

    def copy(self, source: int, targets: Sequence[int], length: int) -> None:
        """Copy the first `length` tokens of one slot into others."""
        ...


def steps_for(decoder: Decoder, slots: int, capacity: int, *, int8: bool = False) -> Steps:
    """In C where that is possible, else in torch. `int8`: matrices rounded to int8; UsageError where there is no C."""
    if native.usable(decoder):
        return NativeSteps(decoder, slots, capacity, int8=int8)
    if int8:
        raise UsageError(
            "int8 weights need a C compiler, a CPU, and a model of our own families",
            todo="Install a compiler, or serve the weights as they are",
        )
    return TorchSteps(decoder, slots, capacity)


def _ends(prompts: Prompts, running: int) -> Tensor:
    """For each row behind the running ones: which of the prompts' flat tokens is its last."""
    order = torch.empty(sum(map(len, prompts.values())), dtype=torch.long)
    end = -1
    for prompt, slots in prompts.items():
        end += len(prompt)
        order[torch.tensor(slots) - running] = end
    return order


def _joined(found: Sequence[tuple[list[int], Tensor, States]]) -> tuple[Tensor, States]:
    """Logits and states by row of passes that each made some rows."""
    if len(found) == 1:
        return found[0][1:]
    order = torch.tensor([row for rows, _, _ in found for row in rows]).argsort()
    states = {layer: torch.cat([each[layer] for _, _, each in found])[order] for layer in found[0][2]}
    return torch.cat([logits for _, logits, _ in found])[order], states


class NativeSteps:
    """Steps in C. A row's logits are the same to the bit in any company; what prompts begin with alike is read once."""

    shares = True

    def __init__(self, decoder: Decoder, slots: int, capacity: int, *, int8: bool = False) -> None:
        self.native = native.Native(decoder, slots, capacity, int8=int8)
        self._vocabulary = decoder.config.vocab_size
        self._slots = torch.arange(slots)
        self._ones, self._likeliest = torch.ones(slots), torch.full((slots,), -1.0)
        self.copy = self.native.copy

    def read(self, last: Tensor, lengths: Tensor, prompts: Prompts, taps: Sequence[int]) -> tuple[Tensor, States]:
        running = len(last)
        if not prompts:
            return self.native.forward(last, self._slots[:running], lengths, self._slots[:running], taps)
        if not running:
            self.native.refresh()
        ordered = sorted(prompts)
        planned = parts(ordered)
        found: list[tuple[list[int], Tensor, States]] = []
        for wave in range(1 + max(part.wave for part in planned)):
            ids, slots, positions = [last], [self._slots[:running]], [lengths]
            ends = {slot: slot for slot in range(running)}  # row -> the flat token whose logits are its
            if wave:
                ids, slots, positions, ends = [], [], [], {}
            flat = len(ends)
            for prompt, part in zip(ordered, planned, strict=True):
                if part.wave != wave:
                    continue
                first, own = prompts[prompt][0], len(prompt) - part.start
                if part.start:
                    self.copy(prompts[ordered[part.source]][0], [first], part.start)
                ids.append(torch.tensor(prompt[part.start :]))
                slots.append(torch.full((own,), first))
                positions.append(torch.arange(part.start, len(prompt)))
                flat += own
                ends.update((slot, flat - 1) for slot in prompts[prompt])
            rows = sorted(ends)
            asked = torch.tensor([ends[row] for row in rows])
            found.append(
                (rows, *self.native.forward(torch.cat(ids), torch.cat(slots), torch.cat(positions), asked, taps))
            )
        for prompt, (source, *others) in prompts.items():
            self.copy(source, others, len(prompt))
        return _joined(found)

    def draw(self, logits: Tensor, how: Draw) -> tuple[Tensor, Tensor]:
        if how.cuts:
            return draw(logits[:, : self._vocabulary], how)
        rows = len(logits)
        cold = self._ones[:rows] if how.cold is None else how.cold
        return self.native.choose(logits, cold, self._likeliest[:rows] if how.uniforms is None else how.uniforms)


class TorchSteps:
    """Steps on any device, of any model."""

    shares = False

    def __init__(self, decoder: Decoder, slots: int, capacity: int) -> None:
        config, weight = decoder.config, decoder.head_weight
        shape = (config.num_hidden_layers, slots, config.num_key_value_heads, capacity, config.head_dim)
        self._decoder = decoder
        self._cache = Cache(*shape, device=weight.device, dtype=weight.dtype)
        self._logits = torch.empty(slots, config.vocab_size, device=weight.device, dtype=weight.dtype)
        self.copy = self._cache.copy

    def read(self, last: Tensor, lengths: Tensor, prompts: Prompts, taps: Sequence[int]) -> tuple[Tensor, States]:
        running = len(last)
        hidden: list[Tensor] = []
        tapped: dict[int, list[Tensor]] = {layer: [] for layer in taps}
        if running:
            where = self._cache.extend(lengths, 1, int(lengths.max()) + 1)
            read, states = self._decoder(last[:, None], cache=where, taps=taps)
            hidden.append(read[:, 0])
            for layer in taps:
                tapped[layer].append(states[layer][:, 0])
        if prompts:
            read, states = self._prefill(prompts, running, taps)
            hidden.append(read)
            for layer in taps:
                tapped[layer].append(states[layer])
        state = hidden[0] if len(hidden) == 1 else torch.cat(hidden)
        logits = torch.mm(state, self._decoder.head_weight.t(), out=self._logits[: len(state)])
        return logits, {layer: torch.cat(parts) for layer, parts in tapped.items()}

    def _prefill(self, prompts: Prompts, running: int, taps: Sequence[int]) -> tuple[Tensor, States]:
        """Read each distinct prompt once; states [rows, width] at the rows' ends."""
        lengths = [len(prompt) for prompt in prompts]
        ids = torch.tensor([[token for prompt in prompts for token in prompt]], device=self._decoder.device)
        where = self._cache.prefill([each[0] for each in prompts.values()], lengths)
        hidden, states = self._decoder(ids, lengths=lengths, cache=where, taps=taps)
        for prompt, (source, *others) in prompts.items():
            self.copy(source, others, len(prompt))
        last = _ends(prompts, running).to(ids.device)
        return hidden[0, last], {layer: states[layer][0, last] for layer in taps}

    def draw(self, logits: Tensor, how: Draw) -> tuple[Tensor, Tensor]:
        return draw(logits, how)
