"""The whole decoder: RMSNorm, rotary positions, grouped-query attention, SwiGLU. Token ids in, hidden states out.

Configuration fields bear their Hugging Face names. Two things are stored otherwise than in a Hugging Face file and
translated by `checkpoint.py`, without loss: query, key and value (and gate and up) are one matrix each, because one
wide product is faster than three narrow ones; and the two numbers that a rotary angle turns stand side by side, so
that rotation is one complex product.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, NamedTuple, Self, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tutelage.core.errors import ConfigError, UsageError
from tutelage.model.cache import Extended, Written, groups_of
from tutelage.model.kernels import Places, attend, attend_cached, rms_norm, swiglu, turn

Family = Literal["llama", "mistral", "qwen2", "qwen3"]
ARCHITECTURES: dict[str, str] = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3"}
"""Model type of a Hugging Face configuration -> prefix of its class names."""
SCALINGS: dict[str, tuple[str, ...]] = {
    "linear": ("factor",),
    "dynamic": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": ("factor", "original_max_position_embeddings"),
}
"""Kind of rotary scaling -> the keys it cannot do without."""


@dataclass(frozen=True)
class DecoderConfig:
    """The shape of a decoder, in Hugging Face's names. Raises ConfigError if it is not one we can build."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int = 0
    """0: hidden_size / num_attention_heads."""
    max_position_embeddings: int = 128
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    rope_scaling: Mapping[str, Any] | None = None
    """None, or the `linear`, `dynamic`, `llama3` or `yarn` scaling of Hugging Face."""
    tie_word_embeddings: bool = True
    attention_bias: bool = False
    """Llama, Mistral, Qwen3: bias on all four attention matrices. Qwen2: its query, key and value bias."""
    mlp_bias: bool = False
    model_type: Family = "llama"

    def __post_init__(self) -> None:
        if self.model_type not in ARCHITECTURES:
            raise ConfigError(
                f"model_type {self.model_type!r} is not one of {', '.join(ARCHITECTURES)}",
                key="model_type",
                todo="Convert the model to one of these shapes",
            )
        if self.head_dim == 0:
            object.__setattr__(self, "head_dim", self.hidden_size // self.num_attention_heads)
            if self.hidden_size % self.num_attention_heads:
                raise ConfigError(f"{self.num_attention_heads} heads do not divide {self.hidden_size}")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ConfigError(
                f"{self.num_key_value_heads} key-value heads do not divide {self.num_attention_heads} heads",
                key="num_key_value_heads",
            )
        if self.head_dim % 2:
            raise ConfigError(f"rotary positions need an even head_dim, found {self.head_dim}", key="head_dim")
        if self.rope_scaling is not None:
            _check_scaling(self.rope_scaling)

    @property
    def qk_norm(self) -> bool:
        """Whether queries and keys are normalised per head before rotation."""
        return self.model_type == "qwen3"

    @property
    def qkv_sizes(self) -> tuple[int, int, int]:
        """Rows of query, key and value inside the fused matrix."""
        return tuple(
            heads * self.head_dim
            for heads in (self.num_attention_heads, self.num_key_value_heads, self.num_key_value_heads)
        )  # type: ignore[return-value]

    @property
    def matrix_parameters(self) -> int:
        """Weights a token is multiplied with in the blocks."""
        query, key, value = self.qkv_sizes
        block = (query + key + value) * self.hidden_size + query * self.hidden_size
        return self.num_hidden_layers * (block + 3 * self.hidden_size * self.intermediate_size)

    @property
    def parameters(self) -> int:
        """All weights of the model (biases and norms aside)."""
        embeddings = self.vocab_size * self.hidden_size
        return self.matrix_parameters + embeddings * (1 if self.tie_word_embeddings else 2)

    @property
    def flops_per_token(self) -> int:
        """Floating-point operations of one token's forward: 2N, N without an untied input embedding."""
        return 2 * (self.matrix_parameters + self.vocab_size * self.hidden_size)

    @classmethod
    def from_hf(cls, values: Mapping[str, Any]) -> Self:
        """Read the content of a Hugging Face `config.json`; what is absent has the family's own default."""
        family = values.get("model_type")
        known = {field.name for field in fields(cls)}
        found = {name: value for name, value in values.items() if name in known and value is not None}
        for name in ("rope_parameters", "rope_scaling"):
            if not isinstance(values.get(name) or {}, Mapping):
                raise ConfigError(f"not the keys of a rotary scaling: {values[name]!r}", key=name)
        rope = dict(values.get("rope_parameters") or values.get("rope_scaling") or {})
        rope.setdefault("rope_type", rope.pop("type", "default"))
        found["rope_theta"] = float(rope.pop("rope_theta", None) or values.get("rope_theta") or 10000.0)
        if rope.pop("partial_rotary_factor", None) not in (None, 1):
            raise ConfigError("rotation of a part of each head is not supported", key="partial_rotary_factor")
        found["rope_scaling"] = None if rope["rope_type"] == "default" else rope
        found.setdefault("num_key_value_heads", values.get("num_attention_heads"))
        found.setdefault("tie_word_embeddings", False)
        found.setdefault("max_position_embeddings", 2048)
        if family == "qwen2":
            found["attention_bias"] = True
        missing = sorted(field.name for field in fields(cls)[:6] if found.get(field.name) is None)
        if missing:
            raise ConfigError(f"the model configuration lacks {', '.join(missing)}", key=missing[0])
        for name in (field.name for field in fields(cls) if field.type == "int"):
            value = found.get(name, 1)
            if not isinstance(value, int) or value < 1:
                raise ConfigError(f"expected a number of at least 1, found {value!r}", key=name)
        if values.get("hidden_act", "silu") != "silu":
            raise ConfigError(f"activation {values['hidden_act']!r} is not silu", key="hidden_act")
        if values.get("sliding_window") and values.get("use_sliding_window", family == "mistral"):
            limit = int(values["sliding_window"])  # within the window, sliding attention is full attention
            found["max_position_embeddings"] = min(found["max_position_embeddings"], limit)
        return cls(**found)

    def to_hf(self, head: str = "ForCausalLM") -> dict[str, Any]:
        """The content of a Hugging Face `config.json` for this shape."""
        values: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        values["rope_scaling"] = dict(self.rope_scaling) if self.rope_scaling else None
        if self.model_type != "llama":
            del values["mlp_bias"]
        if self.model_type in ("mistral", "qwen2"):
            del values["attention_bias"]
            values |= {"sliding_window": None} if self.model_type == "mistral" else {"use_sliding_window": False}
        name = ARCHITECTURES[self.model_type]
        return values | {"architectures": [name + head], "hidden_act": "silu", "torch_dtype": "float32"}


# ---------------------------------------------------------------------------------------------------------- the model


class Norm(nn.Module):
    """RMSNorm with its weight."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_autocast_enabled(x.device.type):  # a product of bfloat16 reads it
            return rms_norm(x.float(), self.weight, self.eps, rounded=True)
        return rms_norm(x.to(self.weight.dtype), self.weight, self.eps).to(x.dtype)


class Attention(nn.Module):
    """Grouped-query attention (Ainslie et al., 2023), with optional norms on queries and keys."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.sizes, self.head_dim = config.qkv_sizes, config.head_dim
        bias = config.attention_bias
        self.qkv_proj = nn.Linear(config.hidden_size, sum(self.sizes), bias=bias)
        self.o_proj = nn.Linear(self.sizes[0], config.hidden_size, bias=bias and config.model_type != "qwen2")
        self.q_norm = Norm(config.head_dim, config.rms_norm_eps) if config.qk_norm else None
        self.k_norm = Norm(config.head_dim, config.rms_norm_eps) if config.qk_norm else None

    def forward(self, x: Tensor, places: Places, layer: int) -> Tensor:
        parts = self.qkv_proj(x).split(self.sizes, -1)
        query, key, value = (part.unflatten(-1, (-1, self.head_dim)) for part in parts)
        if self.q_norm is not None and self.k_norm is not None:
            query, key = self.q_norm(query), self.k_norm(key)
        if places.extended is not None:
            return self.o_proj(attend_cached(query, key, value, places, layer))  # type: ignore[no-any-return]
        if places.written is not None:
            places.written.write(layer, turn(key, places.by_token), value)
        return self.o_proj(attend(query, key, value, places))  # type: ignore[no-any-return]


class MLP(nn.Module):
    """SwiGLU feed-forward."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.gate_up_proj = nn.Linear(config.hidden_size, 2 * config.intermediate_size, bias=config.mlp_bias)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(swiglu(self.gate_up_proj(x)))  # type: ignore[no-any-return]


class Block(nn.Module):
    """One layer: attention and feed-forward, each behind a norm, each added to the residual stream."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.input_layernorm = Norm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = Norm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, places: Places, layer: int) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), places, layer)
        return x + self.mlp(self.post_attention_layernorm(x))  # type: ignore[no-any-return]


class Matrix(NamedTuple):
    """A weight matrix of a block; `rows` are the (start, stop) of the independent matrices fused in it."""

    name: str
    parameter: nn.Parameter
    rows: tuple[tuple[int, int], ...]


class Decoder(nn.Module):
    """A language model without its loss: `hidden = decoder(ids)`, `decoder.logits(hidden)`.

    Weights depend on `seed` alone: matrices normal with deviation 1/sqrt(inputs), those that write to the residual
    stream smaller by sqrt(2 * layers), embeddings 0.02 (tied: first losses near log of the vocabulary). None: undrawn.
    """

    recompute = False
    """Keep the input of each block alone for the backward, which then runs the block again (Chen et al., 2016)."""
    bf16 = False
    """In training, multiply in bf16 inside the blocks; weights and sums of the residual stream stay fp32."""

    def __init__(self, config: DecoderConfig, seed: int | None = 0) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self.norm = Norm(config.hidden_size, config.rms_norm_eps)
        tied = config.tie_word_embeddings
        self.lm_head = None if tied else nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self._rotation = torch.empty(0)
        if seed is not None:
            self.initialise(seed)

    @property
    def rounds(self) -> bool:
        """Whether products are bf16 now."""
        return self.bf16 and self.training

    @torch.no_grad()
    def initialise(self, seed: int) -> None:
        """Draw all weights anew."""
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            if parameter.dim() < 2:
                parameter.fill_(0.0 if name.endswith("bias") else 1.0)
                continue
            deviation = 0.02 if name.startswith(("embed", "lm_head")) else parameter.shape[1] ** -0.5
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                deviation /= math.sqrt(2 * self.config.num_hidden_layers)
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * deviation)

    @property
    def head_weight(self) -> Tensor:
        """[vocabulary, width]: the embedding itself when tied."""
        return self.embed_tokens.weight if self.lm_head is None else self.lm_head.weight

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.embed_tokens.weight.device

    def logits(self, hidden: Tensor) -> Tensor:
        """Unnormalised log-probabilities [.., vocabulary] of the next token after hidden states [.., width]."""
        return F.linear(hidden, self.head_weight)

    @overload
    def forward(
        self, ids: Tensor, *, lengths: Sequence[int] | None = ..., cache: Written | Extended | None = ...
    ) -> Tensor: ...
    @overload
    def forward(
        self,
        ids: Tensor,
        *,
        lengths: Sequence[int] | None = ...,
        cache: Written | Extended | None = ...,
        taps: Sequence[int],
    ) -> tuple[Tensor, dict[int, Tensor]]: ...
    def forward(
        self,
        ids: Tensor,
        *,
        lengths: Sequence[int] | None = None,
        cache: Written | Extended | None = None,
        taps: Sequence[int] | None = None,
    ) -> Tensor | tuple[Tensor, dict[int, Tensor]]:
        """Hidden states [batch, time, width] after the final norm, of ids [batch, time].

        Without `lengths` each row is one causal sequence (padding at its end is harmless). With `lengths` ids is
        [1, total]: packed segments, each of which sees only itself and counts its positions from 0. `cache` is
        `Cache.prefill(...)` beside `lengths`, or `Cache.extend(...)` for tokens behind cached ones.
        `taps` asks also for {layer: [batch, time, width]}: the residual stream after that many blocks, 0 = embedding.
        """
        batch, time = ids.shape
        places = self._places(ids, lengths, cache)
        x = self.embed_tokens(ids.reshape(-1))
        tapped, wanted = {}, self.check_layers(taps)
        for index, block in enumerate(self.layers):
            if index in wanted:
                tapped[index] = x.view(batch, time, -1)
            with torch.autocast(ids.device.type, torch.bfloat16, enabled=self.rounds):
                if self.recompute and torch.is_grad_enabled():
                    x = checkpoint(block, x, places, index, use_reentrant=False, preserve_rng_state=False)
                else:
                    x = block(x, places, index)
        if len(self.layers) in wanted:
            tapped[len(self.layers)] = x.view(batch, time, -1)
        hidden: Tensor = self.norm(x).view(batch, time, -1)
        return hidden if taps is None else (hidden, tapped)

    def check_layers(self, taps: Sequence[int] | None) -> Sequence[int]:
        """The layers asked for. UsageError for one that is not there."""
        if unknown := set(taps or ()) - set(range(len(self.layers) + 1)):
            raise UsageError(f"no layer {min(unknown)} in a model of {len(self.layers)} layers")
        return taps or ()

    def _places(self, ids: Tensor, lengths: Sequence[int] | None, cache: Written | Extended | None) -> Places:
        batch, time = ids.shape
        if isinstance(cache, Extended):
            self._fits(cache.span)
            turns = self.turns()[cache.written.positions][:, None]
            return Places((), turns, turns, extended=cache)
        if lengths is not None and (batch != 1 or sum(lengths) != time):
            raise UsageError(f"segments of {sum(lengths)} tokens in all need ids [1, total], found [{batch}, {time}]")
        if ids.numel() == 0:
            raise UsageError("an empty batch has nothing to read")
        groups = groups_of(lengths if lengths is not None else [time] * batch, ids.device)
        longest = max(group.time for group in groups)
        self._fits(longest)
        turns = self.turns()[:longest]
        return Places(groups, turns, turns if cache is None else turns[cache.positions][:, None], written=cache)

    def _fits(self, length: int) -> None:
        if length > self.config.max_position_embeddings:
            raise UsageError(
                f"a sequence of {length} tokens is longer than the context of {self.config.max_position_embeddings}"
            )

    def turns(self) -> Tensor:
        """Rotations [max_position_embeddings, D/2] as complex numbers."""
        weight = self.embed_tokens.weight
        kind = torch.complex128 if weight.dtype == torch.float64 else torch.complex64
        if self._rotation.dtype != kind or self._rotation.device != weight.device:
            self._rotation = rotations(self.config).to(kind).to(weight.device)
        return self._rotation

    def matrices(self) -> list[Matrix]:
        """The matrices of the blocks, for optimizers that treat them as matrices; the rest is embeddings and gains."""
        query, key, value = self.config.qkv_sizes
        parts = {"qkv_proj": (query, key, value), "gate_up_proj": (self.config.intermediate_size,) * 2}
        found = []
        for name, parameter in self.layers.named_parameters(prefix="layers"):
            if name.endswith(".weight") and parameter.dim() == 2:
                sizes = parts.get(name.split(".")[-2], (parameter.shape[0],))
                stops = torch.tensor(sizes).cumsum(0).tolist()
                found.append(Matrix(name, parameter, tuple(zip([0, *stops[:-1]], stops, strict=True))))
        return found

    def clone(self) -> Decoder:
        """A frozen copy: the reference of a reinforcement run."""
        return copy.deepcopy(self).requires_grad_(False).eval()

    @torch.no_grad()
    def copy_from(self, other: Decoder) -> None:
        """Take over the weights of a decoder of the same shape."""
        for mine, theirs in zip(self.parameters(), other.parameters(), strict=True):
            mine.copy_(theirs)


def rotations(config: DecoderConfig) -> Tensor:
    """Complex rotations [max_position_embeddings, D/2] in double precision, with the configuration's scaling.

    Their modulus is 1 but for `yarn`, whose factor on queries and keys alike it carries. `dynamic` scaling begins
    beyond max_position_embeddings, which nothing here reads: up to there it is the plain rotation.
    """
    scaling = config.rope_scaling or {}
    modulus = yarn_magnitude(scaling) if scaling.get("rope_type") == "yarn" else 1.0
    angles = torch.arange(config.max_position_embeddings, dtype=torch.float64)[:, None] * speeds(config)
    return torch.polar(torch.full_like(angles, modulus), angles)


def speeds(config: DecoderConfig) -> Tensor:
    """Angle per position [D/2] of each rotary pair, in radians, in double precision."""
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float64) / config.head_dim
    plain: Tensor = config.rope_theta**-exponents
    scaling = config.rope_scaling or {}
    factor = float(scaling.get("factor", 1))
    if scaling.get("rope_type") == "linear":
        return plain / factor
    if scaling.get("rope_type") == "llama3":
        turns = scaling["original_max_position_embeddings"] * plain / (2 * math.pi)
        low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
        kept: Tensor = ((turns - low) / (high - low)).clamp(0, 1)
    elif scaling.get("rope_type") == "yarn":
        first, last = yarn_range(config.head_dim, config.rope_theta, scaling)
        kept = 1 - ((torch.arange(len(plain)) - first) / (last - first)).clamp(0, 1)
    else:
        return plain
    return plain * (kept + (1 - kept) / factor)


def yarn_range(width: int, theta: float, scaling: Mapping[str, Any]) -> tuple[float, float]:
    """The rotary pairs between which YaRN goes over from unscaled to scaled angles (Peng et al., 2023, section 3.2).

    They are those that turn `beta_fast` and `beta_slow` times within the original context; as in transformers.
    """
    length = scaling["original_max_position_embeddings"]
    turns = (scaling.get("beta_fast") or 32, scaling.get("beta_slow") or 1)
    first, last = (width * math.log(length / (each * 2 * math.pi)) / (2 * math.log(theta)) for each in turns)
    if scaling.get("truncate", True):
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, width - 1)
    return first, last + 0.001 if first == last else last


def yarn_magnitude(scaling: Mapping[str, Any]) -> float:
    """YaRN's factor on rotated queries and on rotated keys: 0.1 log(factor) + 1 unless stated otherwise."""
    if scaling.get("attention_factor") is not None:
        return float(scaling["attention_factor"])
    grown = 0.1 * math.log(max(scaling["factor"], 1))
    if scaling.get("mscale") and scaling.get("mscale_all_dim"):
        return float((grown * scaling["mscale"] + 1) / (grown * scaling["mscale_all_dim"] + 1))
    return grown + 1


def _check_scaling(scaling: Mapping[str, Any]) -> None:
    kind = scaling.get("rope_type")
    if kind not in SCALINGS:
        raise ConfigError(f"rope scaling {kind!r} is not supported, only {', '.join(SCALINGS)}", key="rope_scaling")
    for key in SCALINGS[kind]:
        if not isinstance(scaling.get(key), int | float) or scaling[key] <= 0:
            raise ConfigError(f"rope scaling {kind!r} needs a number above 0 as {key}", key=f"rope_scaling.{key}")
