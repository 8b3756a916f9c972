"""The engine's forward in C (`native.c`): the same mathematics as `transformer.py`, in float32, on a CPU.

The weights are laid out anew as C reads them. The engine alone runs it; training's forward is torch's, with the norm
and the gate of `fused.py`.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tutelage.model import library
from tutelage.model.lora import merge
from tutelage.model.transformer import Decoder

PASS = 512
"""Tokens that are read in one go; more take several."""


def usable(decoder: torch.nn.Module) -> bool:
    """Whether a model's steps can run in C: one of our own families, float32, on a CPU."""
    return (
        type(decoder) is Decoder
        and all(each.dtype == torch.float32 and each.device.type == "cpu" for each in decoder.parameters())
        and torch.get_default_dtype() == torch.float32
        and library.load() is not None
    )


# --------------------------------------------------------------------------------------------- what C and Python share


class _Matrix(ctypes.Structure):
    _fields_ = (
        ("panels", ctypes.c_void_p),
        ("scales", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("inputs", ctypes.c_int32),
        ("outputs", ctypes.c_int32),
    )


_SIZES = ("layers", "width", "heads", "kv_heads", "head_dim", "inner", "slots", "capacity", "threads", "vocabulary")


class _Shape(ctypes.Structure):
    _fields_ = (*((name, ctypes.c_int32) for name in _SIZES), ("eps", ctypes.c_float))


class _Layer(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("input_norm", "post_norm", "q_norm", "k_norm")),
        *((name, _Matrix) for name in ("qkv", "o", "gate_up", "down")),
    )


class _Work(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int32) for name in ("tokens", "wanted", "taps")),
        *(
            (name, ctypes.c_void_p)
            for name in ("ids", "slots", "positions", "rows", "tap_layers", "logits", "tapped", "hidden")
        ),
    )


class _Memory(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("embedding", "norm", "turns")),
        ("head", _Matrix),
        *(
            (name, ctypes.c_void_p)
            for name in ("keys", "values", "stream", "normed", "qkv", "mixed", "inner", "scores")
        ),
    )


def _up(size: int, step: int) -> int:
    return -(-size // step) * step


class Native:
    """A decoder's steps in C, over a cache of `slots` sequences of up to `capacity` tokens.

    The weights are copied into panels; `refresh` copies those anew that have changed since. `int8` keeps the matrices
    as int8 with one scale for each output (a quarter of the memory to read; log-probabilities change).
    """

    def __init__(self, decoder: Decoder, slots: int, capacity: int, *, int8: bool = False) -> None:
        found = library.load()
        assert found is not None
        self._library, self.decoder, self.int8 = found, decoder, int8
        config = decoder.config
        self.lanes = found.lanes()
        self.panel = 2 * self.lanes
        self.capacity, self.slots = capacity, slots
        kv_heads, head_dim = config.num_key_value_heads, config.head_dim
        heads, layers = config.num_attention_heads, config.num_hidden_layers
        self._shape = _Shape(
            layers,
            config.hidden_size,
            heads,
            kv_heads,
            head_dim,
            config.intermediate_size,
            slots,
            capacity,
            0,
            config.vocab_size,
            config.rms_norm_eps,
        )
        blocks = -(-capacity // self.lanes)
        self.keys = torch.zeros(layers, slots, kv_heads, blocks, head_dim, self.lanes)
        self.values = torch.zeros(layers, slots, kv_heads, capacity, _up(head_dim, self.lanes))
        self._step = _up(config.hidden_size, self.panel)
        self._vocabulary = _up(config.vocab_size, self.panel)
        most = max(slots, PASS)
        self._scratch = {
            "stream": torch.zeros(most, self._step),
            "normed": torch.zeros(most, self._step),
            "qkv": torch.zeros(most, _up(sum(config.qkv_sizes), self.panel)),
            "mixed": torch.zeros(most, heads * head_dim),
            "inner": torch.zeros(most, _up(config.intermediate_size, self.lanes)),
        }
        turns = torch.view_as_real(decoder.turns()).reshape(-1, head_dim)
        self._fixed = {"keys": self.keys, "values": self.values, "turns": turns.contiguous()}
        self._packed: dict[str, tuple[tuple[int, ...], Any]] = {}
        self._layers = (_Layer * layers)()
        self._memory = _Memory()
        for name, tensor in (self._fixed | self._scratch).items():
            setattr(self._memory, name, tensor.data_ptr())
        self.refresh()

    @property
    def cache_bytes(self) -> int:
        """Memory of the cache."""
        return 4 * (self.keys.numel() + self.values.numel())

    # -------------------------------------------------------------------------------------------------------- weights

    @torch.no_grad()
    def refresh(self) -> None:
        """Take over weights that have changed; all of a model that learns, since some optimizers mark nothing.

        While requests run the weights must stay as they are.
        """
        decoder = merge(self.decoder)
        if any(each.requires_grad for each in self.decoder.parameters()):
            self._packed.clear()
        self._memory.embedding = self._vector("embedding", decoder.embed_tokens.weight)
        self._memory.norm = self._vector("norm", decoder.norm.weight)
        self._memory.head = self._matrix("head", decoder.head_weight, None)
        for index, module in enumerate(decoder.layers):
            block: Any = module
            layer, attention, mlp = self._layers[index], block.self_attn, block.mlp
            norms = {"input_norm": block.input_layernorm, "post_norm": block.post_attention_layernorm}
            norms |= {"q_norm": attention.q_norm, "k_norm": attention.k_norm}
            for name, norm in norms.items():
                setattr(layer, name, self._vector(f"{index}.{name}", None if norm is None else norm.weight))
            matrices = {"qkv": attention.qkv_proj, "o": attention.o_proj}
            matrices |= {"gate_up": mlp.gate_up_proj, "down": mlp.down_proj}
            for name, linear in matrices.items():
                setattr(layer, name, self._matrix(f"{index}.{name}", linear.weight, linear.bias))

    def _vector(self, name: str, weight: Tensor | None) -> int | None:
        if weight is None:
            return None
        weight = weight.detach().contiguous()
        self._packed[name] = ((), weight)  # read where it lies; kept alive
        return weight.data_ptr()

    def _matrix(self, name: str, weight: Tensor, bias: Tensor | None) -> _Matrix:
        sources = [weight, *([] if bias is None else [bias])]
        state = tuple(number for each in sources for number in (each.data_ptr(), each._version))
        kept = self._packed.get(name)
        if kept is not None and kept[0] == state:
            return kept[1][0]  # type: ignore[no-any-return]
        halves = name.endswith("gate_up")
        flat = self._rows(weight.detach(), halves)
        added = None if bias is None else self._rows(bias.detach()[:, None], halves).flatten()
        scales = None
        if self.int8:
            scales = flat.abs().amax(1).clamp_(min=1e-12).div_(127)
            flat = (flat / scales[:, None]).round_().to(torch.int8)
        panels = flat.view(-1, self.panel, flat.shape[1]).transpose(1, 2).contiguous()
        matrix = _Matrix(
            panels.data_ptr(),
            None if scales is None else scales.data_ptr(),
            None if added is None else added.data_ptr(),
            flat.shape[1],
            flat.shape[0],
        )
        kept_alive = (panels, scales, added, sources)  # C reads them, and no source's address is used again
        self._packed[name] = (state, (matrix, *kept_alive))
        return matrix

    def _rows(self, weight: Tensor, halves: bool) -> Tensor:
        """Rows filled up to whole panels with zeros; of a gate and what it lets through, LANES of either by turns."""
        inputs = weight.shape[1]
        if not halves:
            return torch.cat([weight, weight.new_zeros(-len(weight) % self.panel, inputs)])
        gate, up = weight.chunk(2)
        fill = weight.new_zeros(-len(gate) % self.lanes, inputs)
        parts = [torch.cat([half, fill]).view(-1, self.lanes, inputs) for half in (gate, up)]
        return torch.cat(parts, 1).view(-1, inputs)

    # -------------------------------------------------------------------------------------------------------- forward

    def copy(self, source: int, targets: Sequence[int], length: int) -> None:
        """Copy the first `length` tokens of one slot into others: a shared prompt, or a slot that moves."""
        blocks = -(-length // self.lanes)
        for target in targets:
            self.keys[:, target, :, :blocks] = self.keys[:, source, :, :blocks]
            self.values[:, target, :, :length] = self.values[:, source, :, :length]

    def forward(
        self, ids: Tensor, slots: Tensor, positions: Tensor, rows: Tensor, taps: Sequence[int] = ()
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """Read tokens `ids` [n] into `slots` [n] at `positions` [n]; tokens of a slot stand in their order.

        Returns of the tokens `rows` [m], in that order, the logits [m, vocabulary and some room, as `choose` wants
        them], and {layer: states [m, width]} of `taps`.
        """
        layers, width = sorted(set(self.decoder.check_layers(taps))), self.decoder.config.hidden_size
        places = torch.tensor(layers, dtype=torch.long)
        logits, tapped = torch.empty(len(rows), self._vocabulary), torch.empty(len(layers), len(rows), width)
        self._use(torch.get_num_threads())
        if len(ids) <= PASS:
            self._run(ids, slots, positions, rows, places, logits, tapped)
        else:
            for start in range(0, len(ids), PASS):
                stop = min(start + PASS, len(ids))
                inside = ((rows >= start) & (rows < stop)).nonzero()[:, 0]
                part, states = logits[inside], tapped[:, inside].contiguous()
                several = (x[start:stop] for x in (ids, slots, positions))
                self._run(*several, rows[inside] - start, places, part, states)
                logits[inside], tapped[:, inside] = part, states
        return logits, {layer: tapped[index] for index, layer in enumerate(layers)}

    def _run(self, *tensors: Tensor) -> None:
        """One pass: ids, slots, positions, rows, layers of the taps, logits, tapped states."""
        ids, rows, taps = tensors[0], tensors[3], tensors[4]
        hidden = torch.empty(len(rows), self._step)
        work = _Work(len(ids), len(rows), len(taps), *(each.data_ptr() for each in (*tensors, hidden)))
        self._library.forward(ctypes.byref(self._shape), self._layers, ctypes.byref(self._memory), ctypes.byref(work))

    def _use(self, threads: int) -> None:
        """Every thread has scores of its own to write to."""
        if threads != self._shape.threads:
            self._shape.threads = threads
            self._scratch["scores"] = torch.zeros(threads, 4, _up(self.capacity, self.lanes))
            self._memory.scores = self._scratch["scores"].data_ptr()

    def choose(self, logits: Tensor, cold: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
        """As `sample.draw` without cuts: tokens [n] and log-probabilities [n]; `uniforms` below 0: the likeliest."""
        rows = len(logits)
        ids, logprobs = torch.empty(rows, dtype=torch.long), torch.empty(rows)
        self._library.choose(
            ctypes.c_int(rows),
            ctypes.c_int(self.decoder.config.vocab_size),
            ctypes.c_int64(self._vocabulary),
            ctypes.c_void_p(logits.data_ptr()),
            ctypes.c_void_p(cold.data_ptr()),
            ctypes.c_void_p(uniforms.data_ptr()),
            ctypes.c_void_p(ids.data_ptr()),
            ctypes.c_void_p(logprobs.data_ptr()),
            ctypes.c_int(torch.get_num_threads()),
        )
        return ids, logprobs

    def normalise(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Of logits as `forward` gives them: log of the sum of their exponentials [n], and the likeliest tokens [n].

        A row that holds no distribution (a number that is not finite) gives NaN and -1.
        """
        normalisers, likeliest = torch.empty(len(logits)), torch.empty(len(logits), dtype=torch.long)
        self._library.normalise_rows(
            ctypes.c_int(len(logits)),
            ctypes.c_int(self.decoder.config.vocab_size),
            ctypes.c_int64(self._vocabulary),
            ctypes.c_void_p(logits.data_ptr()),
            ctypes.c_void_p(normalisers.data_ptr()),
            ctypes.c_void_p(likeliest.data_ptr()),
            ctypes.c_int(torch.get_num_threads()),
        )
        return normalisers, likeliest
