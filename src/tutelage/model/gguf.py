"""A decoder as one GGUF file, which llama.cpp reads: Llama and Mistral as `llama`, Qwen2 as `qwen2`, Qwen3 as `qwen3`.

llama.cpp's `llama` rotates neighbouring numbers, as we do; its `qwen2` and `qwen3` numbers half a head apart, as
Hugging Face's files. It knows the ways to split a text by name only, so a tokenizer must split as one of them does.
Source: llama.cpp, convert_hf_to_gguf.py and src/llama-vocab.cpp. Needs the extra `gguf`.
"""

from __future__ import annotations

import math
import unicodedata
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from tutelage.core.artifact import disk_errors
from tutelage.core.errors import ConfigError, MissingExtra, UsageError
from tutelage.model.checkpoint import to_hf
from tutelage.model.transformer import Decoder, DecoderConfig, speeds, yarn_magnitude
from tutelage.tokens.tokenizer import PIECES, Tokenizer

Precision = Literal["f32", "f16"]
ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
"""Hugging Face's names -> llama.cpp's."""

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SPLITS = {
    _GPT2: "gpt-2",
    _WORDS + r"\p{N}{1,3}" + _REST: "llama-bpe",
    _WORDS + r"\p{N}" + _REST: "qwen2",
}
"""Regular expression of a tokenizer -> llama.cpp's name of the same split."""


def write(
    decoder: Decoder,
    path: Path,
    tokenizer: Tokenizer,
    *,
    precision: Precision = "f32",
    name: str = "model",
    licence: str = "",
) -> None:
    """Write a decoder and its tokenizer as `path`, all at once; the same weights give the same bytes.

    `precision` is that of the matrices; gains and biases stay f32. `name` and `licence` are told in the file. Raises
    ConfigError for a shape, a rotary scaling or a tokenizer that llama.cpp has no place for, UsageError for numbers
    too large for f16, MissingExtra, NoSpace.
    """
    try:
        import gguf
    except ModuleNotFoundError:
        raise MissingExtra("gguf", "gguf") from None
    if decoder.config.model_type not in ARCHITECTURES:
        todo = "Export Hugging Face's files, and convert them with llama.cpp's own script"
        raise ConfigError(f"{decoder.config.model_type!r} is not written as GGUF here", key="model_type", todo=todo)
    aside = path.with_name(path.name + ".part")
    writer = gguf.GGUFWriter(aside, ARCHITECTURES[decoder.config.model_type])
    writer.add_name(name)
    if licence:
        writer.add_license(licence)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16 if precision == "f16" else gguf.LlamaFileType.ALL_F32)
    _shape(writer, decoder.config)
    _words(writer, tokenizer, decoder.config.vocab_size)
    for key, tensor in _tensors(decoder).items():
        half = precision == "f16" and tensor.dim() > 1
        if half and float(tensor.abs().max()) > torch.finfo(torch.float16).max:
            raise UsageError(f"the tensor {key} holds numbers too large for f16", todo="Write f32")
        writer.add_tensor(key, tensor.to(torch.float16 if half else torch.float32).numpy())
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
        except BaseException:
            aside.unlink(missing_ok=True)
            raise
        finally:
            writer.close()
        aside.replace(path)


def _shape(writer: Any, config: DecoderConfig) -> None:
    """The model's shape and its rotation."""
    if config.model_type == "qwen3" and config.attention_bias:
        raise ConfigError("llama.cpp's qwen3 has no attention biases", key="attention_bias")
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    scaling = config.rope_scaling or {}
    kind = scaling.get("rope_type")
    if kind == "linear":
        writer.add_string(f"{writer.arch}.rope.scaling.type", "linear")
        writer.add_rope_scaling_factor(float(scaling["factor"]))
    elif kind == "yarn":
        if not scaling.get("truncate", True):
            raise ConfigError("llama.cpp's yarn rounds the range of its ramp", key="rope_scaling.truncate")
        writer.add_string(f"{writer.arch}.rope.scaling.type", "yarn")
        writer.add_rope_scaling_factor(float(scaling["factor"]))
        writer.add_rope_scaling_orig_ctx_len(int(scaling["original_max_position_embeddings"]))
        writer.add_rope_scaling_yarn_beta_fast(float(scaling.get("beta_fast") or 32))
        writer.add_rope_scaling_yarn_beta_slow(float(scaling.get("beta_slow") or 1))
        grown = 1 + 0.1 * math.log(scaling["factor"])  # llama.cpp multiplies by this itself
        writer.add_rope_scaling_attn_factors(yarn_magnitude(scaling) / grown)
    elif kind == "llama3" and writer.arch != "llama":
        raise ConfigError(f"llama.cpp's {writer.arch} has no llama3 rotary scaling", key="rope_scaling")


def _tensors(decoder: Decoder) -> dict[str, Tensor]:
    """The weights under llama.cpp's names."""
    config, found = decoder.config, {}
    for name, tensor in to_hf(decoder, paired=ARCHITECTURES[decoder.config.model_type] == "llama").items():
        inner, _, kind = name.rpartition(".")
        block = ""
        if inner.startswith("model.layers."):
            number, inner = inner.removeprefix("model.layers.").split(".", 1)
            block = f"blk.{number}."
        found[f"{block}{NAMES[inner]}.{kind}"] = tensor.detach().to("cpu").contiguous()
    scaling = config.rope_scaling or {}
    if scaling.get("rope_type") == "llama3":
        found["rope_freqs.weight"] = speeds(replace(config, rope_scaling=None)) / speeds(config)
    return found


def _words(writer: Any, tokenizer: Tokenizer, size: int) -> None:
    """The vocabulary, padded to the rows of the embedding, and what stands around a text."""
    if tokenizer.size > size:
        raise ConfigError(f"the tokenizer has {tokenizer.size} tokens, the model only {size}")
    told = tokenizer.describe()
    model, added = told["model"], {each["id"]: each for each in told["added_tokens"]}
    texts = {number: text for text, number in model["vocab"].items()}
    texts |= {number: each["content"] for number, each in added.items()}
    kinds = {number: 3 if each["special"] else 4 for number, each in added.items()}  # control, user-defined
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(split_name(tokenizer))
    writer.add_token_list([texts.get(number, f"[PAD{number}]") for number in range(size)])
    writer.add_token_types([kinds.get(number, 1 if number in texts else 5) for number in range(size)])
    writer.add_token_merges([each if isinstance(each, str) else " ".join(each) for each in model["merges"]])
    writer.add_bos_token_id(tokenizer.bos)
    writer.add_eos_token_id(tokenizer.eos)
    writer.add_pad_token_id(tokenizer.pad)
    if tokenizer.end != tokenizer.eos:
        writer.add_eot_token_id(tokenizer.end)
    writer.add_add_bos_token(bool(tokenizer.config.get("add_bos_token", tokenizer.text_of("bos_token") != "")))
    if tokenizer.template is not None:
        writer.add_chat_template(tokenizer.template)


def split_name(tokenizer: Tokenizer) -> str:
    """llama.cpp's name for the way a byte-level tokenizer splits text before it merges. Raises ConfigError."""
    told = tokenizer.describe()
    model, normalizer = told["model"], told.get("normalizer")
    if model.get("type") != "BPE" or model.get("byte_fallback") or tokenizer.pieces is None:
        raise ConfigError("only byte-level BPE tokenizers can be written", file="tokenizer.json", key="model")
    steps = told.get("pre_tokenizer") or {}
    steps = steps["pretokenizers"] if steps.get("type") == "Sequence" else [steps]
    splits = [step for step in steps if step.get("type") == "Split" and step["behavior"] == "Isolated"]
    pattern = "".join(step["pattern"].get("Regex", "") for step in splits if not step["invert"])
    last = steps[-1]
    if last.get("type") == "ByteLevel" and last["use_regex"] and len(steps) == 1:
        pattern = _GPT2
    same = last.get("type") == "ByteLevel" and not last["add_prefix_space"] and len(steps) <= 2
    name = SPLITS.get(pattern)
    if pattern == PIECES and not _joins_numbers(tokenizer.pieces):
        name = "gpt-2"  # it leaves the digits of a number together, and no merge of this vocabulary joins them
    plain = normalizer is None or (normalizer["type"] == "NFC" and name == "qwen2")
    whole = bool(model.get("ignore_merges")) == (name == "llama-bpe")  # llama.cpp ties the one to the other
    if name is None or not same or not plain or not whole:
        raise ConfigError("llama.cpp has no name for the way this tokenizer splits a text", file="tokenizer.json")
    return name


def _joins_numbers(pieces: list[bytes]) -> bool:
    """Whether any token stands across the border between two number characters (Unicode's category N)."""
    every = [char.encode() for char in map(chr, range(0x110000)) if unicodedata.category(char)[0] == "N"]
    ends = {each[place:] for each in every for place in range(len(each))}
    starts = {each[:place] for each in every for place in range(1, len(each) + 1)}
    ends |= {b" " + each for each in every}
    return any(piece[:place] in ends and piece[place:] in starts for piece in pieces for place in range(1, len(piece)))
