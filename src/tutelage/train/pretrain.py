"""Stage `pretrain`: a fresh decoder learns to predict text, in the order the corpus gives it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from tutelage.core.errors import ConfigError, DataError
from tutelage.core.price import Cost, Machine
from tutelage.core.stage import Context, Input, Inputs, stage
from tutelage.measure.statistics import plain
from tutelage.model.checkpoint import save
from tutelage.model.transformer import Decoder, DecoderConfig
from tutelage.tokens.tokenizer import Tokenizer, load
from tutelage.train.batch import Source, TokenSteps, open_source
from tutelage.train.calibrate import looks, size_of, training_cost, watched_memory, watching
from tutelage.train.loop import Watches, fit, keep_logs
from tutelage.train.objectives import NextToken
from tutelage.train.optim import count
from tutelage.train.parallel import whole
from tutelage.train.training import Scalable, Training
from tutelage.train.validation import LIMIT, Validation


class Pretrain(Scalable):
    """How a fresh model is shaped and how long it reads."""

    REFUSED_KEY = frozenset({"lora", "lora_alpha", "lora_targets"})

    depth: int = Field(default=4, ge=1)
    """Layers."""
    width: int = Field(default=160, ge=8)
    """Size of the residual stream."""
    heads: int = Field(default=5, ge=1)
    """Attention heads; they divide the width."""
    kv_heads: int = Field(default=5, ge=1)
    """Key-value heads; they divide the heads."""
    feed_forward: int = Field(default=432, ge=8)
    """Size of the SwiGLU layer."""
    context: int = Field(default=128, ge=8)
    """Longest piece of text, in tokens."""
    family: Literal["llama", "qwen3"] = "llama"
    """Which published architecture the files follow."""
    tie: bool = True
    """Whether the output head is the embedding."""
    rope_theta: float = Field(default=10_000.0, gt=1)
    """Base of the rotary angles."""
    steps: int = Field(default=400, ge=0)
    """Optimizer steps, of about `batch` tokens each; fixed beforehand, never a matter of the clock. 0 reads
    nothing: the control that shows what reading is worth."""
    shuffle: bool = False
    """Read documents in random order instead of the corpus's."""
    pool: int = Field(default=512, ge=1)
    """Pieces that are mixed with each other; the corpus's order holds beyond."""
    validate_every: int = Field(default=0, ge=0)
    """Steps between looks at the held-out text; 0 for a tenth of the run."""

    def shape(self, vocabulary: int) -> DecoderConfig:
        """The decoder's shape. ConfigError names the key that does not fit."""
        if self.width % self.heads:
            raise ConfigError(f"{self.heads} heads do not divide a width of {self.width}", key="pretrain.heads")
        if self.heads % self.kv_heads:
            raise ConfigError(f"{self.kv_heads} key-value heads do not divide {self.heads}", key="pretrain.kv_heads")
        if (self.width // self.heads) % 2:
            raise ConfigError(f"rotary heads need an even size, not {self.width // self.heads}", key="pretrain.heads")
        return DecoderConfig(
            vocab_size=vocabulary,
            hidden_size=self.width,
            intermediate_size=self.feed_forward,
            num_hidden_layers=self.depth,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            max_position_embeddings=self.context,
            rope_theta=self.rope_theta,
            tie_word_embeddings=self.tie,
            model_type=self.family,
        )


def accumulate(config: Training) -> int:
    """Micro-batches per step."""
    return max(1, round(config.batch / config.micro))


def per_character(meta: Mapping[str, Any], split: str) -> float | None:
    """Characters per token of a split, as the tokens' meta.json tells; None where it does not."""
    entry = meta.get("splits", {}).get(split) or {}
    characters, tokens = entry.get("characters"), entry.get("tokens")
    return characters / tokens if characters and tokens else None


def pretrain_cost(config: Pretrain, inputs: Mapping[str, Mapping[str, float]], machine: Machine) -> Cost:
    """6 N per token, N without the input embedding, and attention; held-out text at every look, then by source."""
    text = inputs.get("tokens", {})
    shape = config.shape(int(inputs.get("tokenizer", {}).get("vocabulary", 2048)))
    held, sources = text.get("validation_tokens", float(LIMIT)), text.get("sources", 1.0)
    read = min(LIMIT, held) * (looks(config.steps, config.validate_every or math.ceil(config.steps / 10)) + 1)
    read += min(PART * sources, held) if sources > 1 else 0.0
    size, length = size_of(shape), min(config.context, text.get("document_tokens", config.context))
    flops = size.text(length)
    watched = watching(inputs, config.steps, size, machine)
    tokens, learned = float(config.steps * config.batch), (config.learned(size),)
    memory = size.taught(config.micro, length, learned=learned) + watched_memory(inputs, size)
    known = {"memory": memory, "read": read * flops, "beside": watched}
    return training_cost(size, flops, tokens, config.steps, machine, **known, learned=learned)


@stage(
    makes="model",
    config=Pretrain,
    inputs={
        "tokens": Input(kind="tokens", default="encode"),
        "tokenizer": Input(kind="tokenizer", default="tokenizer"),
    },
    cost=pretrain_cost,
)
def pretrain(config: Pretrain, inputs: Inputs, out: Path, context: Context) -> dict[str, Any]:
    """Train a fresh decoder on the tokens; writes Hugging Face files, `metrics.jsonl` and `watch.jsonl`."""
    if config.lora:
        raise ConfigError("a fresh model has no weights to keep: pre-training moves them all", key="pretrain.lora")
    device = config.prepare()
    tokenizer: Tokenizer = load(inputs.tokenizer.path)
    folder: Path = inputs.tokens.path
    meta = json.loads((folder / "meta.json").read_text())
    check_vocabulary(meta, tokenizer, folder)
    text, held_out = open_source(folder, "train"), open_source(folder, "validation")
    steps = TokenSteps(
        text,
        config.context,
        config.micro,
        accumulate(config),
        seed=config.seed,
        shuffle=config.shuffle,
        pool=config.pool,
    )
    model = config.placed(config.learner(Decoder(config.shape(tokenizer.size), seed=config.seed)), device)
    total = config.steps
    validation = Validation(
        "validation",
        held_out,
        config.context,
        every=config.validate_every or math.ceil(total / 10),
        characters=per_character(meta, "validation"),
    )
    watch = Watches(total, validation, context.watch(tokenizer) if context.watch else None)
    fitted = fit(model, steps, NextToken(), config.optimizer(model, total), run=config.run(context, total), watch=watch)
    model = whole(model)
    save(model, out, inputs.tokenizer.path)
    keep_logs(context.work, out)
    return {
        "parameters": count(model.parameters()),
        "steps": fitted.steps,
        "skipped": fitted.skipped,
        **fitted.best,
        "tokens": int(fitted.counts.get("tokens", 0)),
        "epochs": round(fitted.counts.get("tokens", 0) / steps.tokens, 3),
        "loss": fitted.last.get("loss"),
        "validation": plain(validation.measure(model)),
        "characters_per_token": validation.characters,
        "held_out": by_source(model, held_out, meta, tokenizer, config.context),
    }


PART = 20_000
"""Tokens looked at of each held-out source by itself, at most."""


def by_source(
    model: Decoder, held_out: Source, meta: Mapping[str, Any], tokenizer: Tokenizer, context: int
) -> dict[str, Any]:
    """Nats per character of each held-out source by itself, where there are several (a text of another kind, say)."""
    spans = {name: span for name, span in dict(meta.get("validation_sources") or {}).items() if span[1] > span[0]}
    found: dict[str, Any] = {}
    for name, (first, end) in spans.items() if len(spans) > 1 else ():
        part = Source(held_out.tokens, held_out.offsets[first : end + 1])
        ids = held_out.tokens[part.offsets[0] : part.offsets[-1]][:40_000]
        per_token = len(tokenizer.decode(ids.tolist())) / len(ids)
        figure = Validation(name, part, context, limit=PART).measure(model)
        known = {key: getattr(figure, key) for key in ("value", "low", "high")}  # one document gives no interval
        scaled = {key: value / per_token for key, value in known.items() if value is not None}
        found[name] = plain(figure.model_copy(update=scaled)) | {"unit": "nats per character"}
    return found


def check_vocabulary(meta: Mapping[str, Any], tokenizer: Tokenizer, folder: Path) -> None:
    """DataError when the tokens were made with a tokenizer of another size."""
    size = meta.get("vocabulary")
    if size is not None and size != tokenizer.size:
        raise DataError(
            f"the tokens were made with a vocabulary of {size}, the tokenizer has {tokenizer.size}",
            file=folder / "meta.json",
            todo="Give `tokens` and `tokenizer` of the same run",
        )
