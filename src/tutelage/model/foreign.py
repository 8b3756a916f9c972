"""Other architectures: a decoder of `transformers` behind the interface of ours, on our packs and our cache.

The model's own code reads one row of tokens with their positions; where it would attend, it calls `_attend` here,
which knows the segments and the cache. What such a model may do in attention or after it that we cannot honour is
refused by name; and since no list of names is whole, every model is compared with itself on a probe when it is opened.
Needs the extra `hf`. No code from a model's folder is run.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from tutelage.core.errors import ConfigError, CorruptArtifact, MissingExtra, NotFound
from tutelage.model.cache import Cache, Extended, Written, positions_of
from tutelage.model.kernels import Places, attend, attend_cached
from tutelage.model.transformer import Decoder, DecoderConfig, Matrix

NAME = "tutelage"
"""Of our attention, among those of transformers."""
TOLERANCE = 1e-3
"""Largest difference of logits on the probe, of their largest size where that is above 1."""
REFUSED = {
    "is_encoder_decoder": "an encoder beside the decoder",
    "attn_logit_softcapping": "a soft cap on attention scores",
    "final_logit_softcapping": "a soft cap on logits",
    "alibi": "positions as a bias on attention scores (ALiBi)",
}
"""Key of a configuration -> what a value there means."""
UNKNOWN = ("softcap", "s_aux", "position_bias", "alibi", "head_mask", "sinks")
"""What a model may hand to attention that ours does not know."""


@dataclass(frozen=True)
class ForeignConfig(DecoderConfig):
    """The shape of a decoder that is not ours, under the names of ours."""

    total: int = 0
    """Weights in all."""

    def __post_init__(self) -> None:
        pass

    @property
    def matrix_parameters(self) -> int:
        """Weights but for the embeddings: of a mixture of experts all experts."""
        return self.total - self.vocab_size * self.hidden_size * (1 if self.tie_word_embeddings else 2)


class _Current:
    """What the forward under way knows about its tokens; a clone of the model has its own."""

    places: Places | None = None
    calls: int = 0
    shape: tuple[int, int] = (0, 0)
    """Key-value heads, and numbers per head."""


class ForeignDecoder(Decoder):
    """A model of transformers as a Decoder. Its own modules stay as they are; dropout is off, also in training."""

    def __init__(self, model: Any, config: ForeignConfig) -> None:
        nn.Module.__init__(self)
        self.config = config
        head = model.get_output_embeddings()
        self.embed_tokens = model.get_input_embeddings()
        self.lm_head = None if head.weight is self.embed_tokens.weight else head
        self.layers = _blocks(model, config.num_hidden_layers)
        rest = [each for each in model.modules() if isinstance(each, nn.Embedding) and each is not self.embed_tokens]
        self.embeds = nn.ModuleList(rest)  # so that the optimizer sees by its name what is an embedding
        self.model = model
        self._rotation = torch.ones(config.max_position_embeddings, 1, dtype=torch.complex64)
        self._current = _Current()
        for module in model.modules():
            module.tutelage = self._current
        self.eval()

    def train(self, mode: bool = True) -> ForeignDecoder:
        """As any module; the wrapped model itself keeps its dropout off."""
        super().train(mode)
        self.model.eval()
        return self

    def forward(  # type: ignore[override]
        self,
        ids: Tensor,
        *,
        lengths: Sequence[int] | None = None,
        cache: Written | Extended | None = None,
        taps: Sequence[int] | None = None,
    ) -> Tensor | tuple[Tensor, dict[int, Tensor]]:
        """As `Decoder.forward`."""
        batch, time = ids.shape
        places = self._places(ids, lengths, cache)
        if isinstance(cache, Extended):
            positions = cache.written.positions
        else:
            positions = positions_of(lengths if lengths is not None else [time] * batch).to(ids.device)
        self._current.places = places
        tapped: dict[int, Tensor] = {}
        with _tapping(self.layers, self.check_layers(taps), tapped):
            read = self.model.base_model(ids.view(1, -1), position_ids=positions[None], use_cache=False)
        hidden: Tensor = read.last_hidden_state.view(batch, time, -1)
        if taps is None:
            return hidden
        return hidden, {layer: state.reshape(batch, time, -1) for layer, state in tapped.items()}

    def _turns(self) -> Tensor:
        """No rotation: the model has turned queries and keys itself, or has no use for it."""
        if self._rotation.device != self.device:
            self._rotation = torch.ones(self.config.max_position_embeddings, 1, dtype=torch.complex64)
            self._rotation = self._rotation.to(self.device)
        return self._rotation

    def matrices(self) -> list[Matrix]:
        """The matrices of the blocks, each as it stands."""
        named = self.layers.named_parameters(prefix="layers")
        return [Matrix(name, each, ((0, len(each)),)) for name, each in named if each.dim() == 2]


def load(path: Path) -> ForeignDecoder:
    """Open a folder of safetensors whose `config.json` is of another architecture than ours, in fp32.

    Raises MissingExtra, ConfigError (what cannot be honoured, by name), CorruptArtifact (missing, extra, misshapen or
    non-finite weights).
    """
    try:
        import transformers
    except ModuleNotFoundError:
        raise MissingExtra("transformers", "hf") from None
    transformers.AttentionInterface.register(NAME, _attend)
    with _quiet(transformers):
        try:
            config = transformers.AutoConfig.from_pretrained(path, trust_remote_code=False, local_files_only=True)
            _check(config)
            if not any(path.glob("*.safetensors")):
                todo = "Convert older formats with transformers first"
                raise NotFound("no safetensors weights here", file=path, todo=todo)
            loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
                path,
                config=config,
                attn_implementation="eager",
                dtype=torch.float32,
                local_files_only=True,
                output_loading_info=True,
                trust_remote_code=False,
                use_safetensors=True,
            )
        except (ValueError, KeyError, TypeError, ImportError) as error:
            reason = str(error).split("\n", 1)[0]
            raise ConfigError(
                f"transformers cannot open this architecture: {reason}", file=path / "config.json"
            ) from None
        except (OSError, SafetensorError) as error:
            raise CorruptArtifact(f"not readable: {str(error).splitlines()[0]}", file=path) from None
        except RuntimeError as error:
            raise CorruptArtifact(f"the weights do not fit: {str(error).splitlines()[0]}", file=path) from None
        model, told = loaded
        _whole(model, told, path)
        try:
            return _probed(model.eval(), config, path)
        except (TypeError, ValueError, RuntimeError, AttributeError, IndexError) as error:
            reason = str(error).split("\n", 1)[0]
            raise ConfigError(f"{config.model_type} cannot be read in packs: {reason}", file=path) from None


def save(decoder: ForeignDecoder, path: Path, shard_bytes: int) -> dict[str, Any]:
    """Write what transformers writes; gives the content of `config.json`."""
    import transformers

    with _quiet(transformers):
        decoder.model.save_pretrained(path, max_shard_size=shard_bytes)
    return dict(json.loads((path / "config.json").read_text(encoding="utf-8")))


def _check(config: Any) -> None:
    """ConfigError for what a configuration says and we cannot honour."""
    name = config.model_type
    if config.get_text_config() is not config:
        raise ConfigError(f"{name} reads more than text, which is not supported", key="model_type")
    for key, meaning in REFUSED.items():
        if getattr(config, key, None):
            raise ConfigError(f"{name} has {meaning}, which is not supported", key=key)
    for key in ("logit_scale", "logits_scaling"):
        if getattr(config, key, None) not in (None, 1):
            raise ConfigError(f"{name} scales its logits, which is not supported", key=key)
    kinds = set(getattr(config, "layer_types", None) or ())
    if others := kinds - {"full_attention", "sliding_attention"}:
        raise ConfigError(f"{name} has layers of kind {min(others)}, which is not supported", key="layer_types")
    window, context = getattr(config, "sliding_window", None), getattr(config, "max_position_embeddings", None)
    if not context:
        raise ConfigError(f"{name} does not say how long its context is", key="max_position_embeddings")
    slides = "sliding_attention" in kinds if kinds else getattr(config, "use_sliding_window", True)
    if window and slides and window < context:
        raise ConfigError(
            f"{name} attends to {window} tokens of a context of {context}, which is not supported",
            key="sliding_window",
            todo="Within the window all attention is the same: to use it there, set max_position_embeddings to that",
        )
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") == "longrope":
        raise ConfigError(
            f"{name} turns by another angle in longer texts, which is not supported", key="rope_parameters"
        )


def _whole(model: Any, told: dict[str, Any], path: Path) -> None:
    """CorruptArtifact unless every tensor was there, belongs and is finite."""
    for kind, says in (("missing_keys", "is missing"), ("unexpected_keys", "does not belong to this model")):
        if told.get(kind):
            raise CorruptArtifact(f"the tensor {min(told[kind])} {says}", file=path)
    for name, *shapes in told.get("mismatched_keys") or ():
        raise CorruptArtifact(f"the tensor {name} has another shape: {shapes}", file=path)
    for name, tensor in model.state_dict().items():
        if not bool(tensor.isfinite().all()):
            raise CorruptArtifact(f"the tensor {name} holds values that are not finite", file=path)


def shape_of(path: Path) -> ForeignConfig:
    """The shape that a folder's `config.json` states, of a model without weights. Raises MissingExtra, ConfigError."""
    try:
        import transformers
    except ModuleNotFoundError:
        raise MissingExtra("transformers", "hf") from None
    with _quiet(transformers), torch.device("meta"):
        try:
            config = transformers.AutoConfig.from_pretrained(path, trust_remote_code=False, local_files_only=True)
            _check(config)
            empty: Any = transformers.AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
            shape = _shape(empty, config)
        except (ValueError, KeyError, TypeError, ImportError, AttributeError, RuntimeError) as error:
            reason = str(error).split("\n", 1)[0]
            raise ConfigError(
                f"transformers cannot open this architecture: {reason}", file=path / "config.json"
            ) from None
    heads = shape.num_attention_heads
    return replace(
        shape,
        num_key_value_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_dim=getattr(config, "head_dim", None) or shape.hidden_size // heads,
    )


def _shape(model: Any, config: Any) -> ForeignConfig:
    """The shape of a model of transformers; of its keys and values only what the attention itself will tell."""
    head = model.get_output_embeddings()
    return ForeignConfig(
        vocab_size=head.out_features,
        hidden_size=head.in_features,
        intermediate_size=getattr(config, "intermediate_size", None) or 0,
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads,
        num_key_value_heads=config.num_attention_heads,
        head_dim=2,
        max_position_embeddings=config.max_position_embeddings,
        tie_word_embeddings=head.weight is model.get_input_embeddings().weight,
        model_type=config.model_type,
        total=sum(each.numel() for each in model.parameters()),
    )


def _probed(model: Any, config: Any, path: Path) -> ForeignDecoder:
    """The model behind our interface, after it gave there what it gives alone: packed, and continued from a cache."""
    head, name = model.get_output_embeddings(), config.model_type
    if not isinstance(head, nn.Linear) or head.bias is not None:
        raise ConfigError(f"{name} has a head that is not one matrix, which is not supported", file=path)
    shape = _shape(model, config)
    draw = torch.Generator().manual_seed(0)
    lengths = [min(length, shape.max_position_embeddings) for length in (9, 3, 14)]
    ids = torch.randint(shape.vocab_size, (1, sum(lengths)), generator=draw)
    with torch.no_grad():
        alone = torch.cat([model(each[None], use_cache=False).logits[0] for each in ids[0].split(lengths)])
        model.set_attn_implementation(NAME)
        decoder = ForeignDecoder(model, shape)
        packed = decoder.logits(decoder(ids, lengths=lengths))[0]
        if decoder._current.calls != config.num_hidden_layers:
            raise ConfigError(f"{name} has layers that do not attend as transformers' interface says", file=path)
        kv_heads, width = decoder._current.shape
        decoder.config = replace(shape, num_key_value_heads=kv_heads, head_dim=width)
        cache = Cache(shape.num_hidden_layers, 1, kv_heads, sum(lengths), width)
        last = ids[:, -lengths[-1] :]
        read = decoder(last[:, :2], lengths=[2], cache=cache.prefill([0], [2]))
        rest = decoder(last[:, 2:], cache=cache.extend(torch.tensor([2]), lengths[-1] - 2, lengths[-1]))
        continued = decoder.logits(torch.cat([read, rest], 1))[0]
    largest = max(1.0, float(alone.abs().max()))
    for how, found in (("packed", packed), ("continued from a cache", torch.cat([packed[: -lengths[-1]], continued]))):
        gap = float((found - alone).abs().max())
        if not gap <= TOLERANCE * largest:
            raise ConfigError(f"{name} gives other logits {how} than alone (by {gap:.2g}): not supported", file=path)
    return decoder


def _attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    """Our attention in the form of transformers: query [1, H, n, D], key and value [1, K, n, D] -> [1, n, H, D]."""
    current = module.tutelage
    places, layer, kind = current.places, getattr(module, "layer_idx", None), type(module).__name__
    for name in UNKNOWN:
        if more.get(name) is not None:
            raise ConfigError(f"the attention of {kind} has {name}, which is not supported")
    if layer is None or attention_mask is not None or not more.get("is_causal", getattr(module, "is_causal", True)):
        raise ConfigError(f"{kind} is no plain causal attention, which alone is supported")
    width = query.shape[-1]
    if value.shape[-1] != width or key.shape[1] != value.shape[1] or width % 2:
        raise ConfigError(f"{kind} has values of {value.shape[-1]} and keys of {width} numbers: not supported")
    current.calls += 1
    current.shape = (key.shape[1], width)
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))  # [n, heads, D]
    if scaling is not None and scaling != width**-0.5:
        q = q * (scaling * width**0.5)
    if places.extended is not None:
        mixed = attend_cached(q, k, v, places, layer)
    else:
        if places.written is not None:
            places.written.write(layer, k, v)
        mixed = attend(q, k, v, places)
    return mixed.view(1, -1, query.shape[1], width), None


def _blocks(model: Any, count: int) -> nn.ModuleList:
    """The list of a model's layers."""
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module
    raise ConfigError(f"{type(model).__name__} has no list of {count} layers")


@contextmanager
def _tapping(layers: nn.ModuleList, taps: Sequence[int], found: dict[int, Tensor]) -> Iterator[None]:
    """Keep what comes into layer i (tap i), and what leaves the last one."""

    def before(index: int) -> Any:
        def keep(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            found[index] = args[0] if args else kwargs["hidden_states"]

        return keep

    def after(module: Any, args: Any, output: Any) -> None:
        found[len(layers)] = output[0] if isinstance(output, tuple) else output

    hooks = [
        layers[each].register_forward_pre_hook(before(each), with_kwargs=True) for each in taps if each < len(layers)
    ]
    if len(layers) in taps:
        hooks.append(layers[-1].register_forward_hook(after))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """No progress bars and no advice: what matters is an error here."""
    logging = transformers.utils.logging
    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()
