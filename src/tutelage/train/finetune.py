"""Stage `finetune`: a pre-trained model learns to answer, on dialogues, while it goes on reading some old text.

Only the assistant's words are learned from. `replay` mixes in pre-training text; what is forgotten all the same is
measured: the likelihood of held-out pre-training text before and after stands in the manifest.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from tutelage.core.errors import DataError
from tutelage.core.stage import Context, Cost, Input, Inputs, Machine, Size, stage
from tutelage.measure.statistics import plain
from tutelage.model.checkpoint import load_decoder, save
from tutelage.tokens.tokenizer import Tokenizer, load
from tutelage.train.batch import Source, TokenSteps, open_source
from tutelage.train.calibrate import looks, training_cost, watching
from tutelage.train.loop import Watches, fit, keep_logs
from tutelage.train.objectives import NextToken
from tutelage.train.parallel import whole
from tutelage.train.pretrain import accumulate, check_vocabulary, per_character
from tutelage.train.scalable import Scalable
from tutelage.train.validation import LIMIT, Validation


class Finetune(Scalable):
    """How long a model is taught, and how much of what it read before it goes on reading."""

    matrix_rate: float = Field(default=0.01, gt=0)
    """Learning rate of the matrices inside the layers (Muon)."""
    embedding_rate: float = Field(default=0.003, gt=0)
    """Learning rate of embeddings and heads (AdamW)."""
    scalar_rate: float = Field(default=0.003, gt=0)
    """Learning rate of norms and biases (AdamW)."""
    decay: float = Field(default=0.8, ge=0, le=1)
    """Share of the run in which the learning rate falls (`wsd`)."""
    steps: int = Field(default=330, ge=1)
    """Optimizer steps, of about `batch` tokens each, prompts and replay included."""
    replay: float = Field(default=0.1, ge=0, lt=1)
    """Share of tokens taken from the pre-training text."""
    validate_every: int = Field(default=0, ge=0)
    """Steps between looks at the held-out dialogues; 0 for a tenth of the run."""


def finetune_cost(config: Finetune, inputs: Mapping[str, Mapping[str, float]], machine: Machine) -> Cost:
    """As for pre-training; the held-out dialogues at every look, the held-out text before and after."""
    size, text = Size.of(inputs.get("model", {})), inputs.get("tokens", {})
    answers = min(LIMIT, text.get("validation_dialogue_tokens", LIMIT))
    flops = size.spoken(text.get("tokens_per_dialogue", 50.0))
    read = answers * flops * (looks(config.steps, config.validate_every or math.ceil(config.steps / 10)) + 1)
    memory = min(LIMIT, text.get("validation_tokens", LIMIT)) * size.flops
    read += 4 * memory  # by itself and in the watch, before and after
    watched, tokens = watching(inputs, config.steps, size, machine), float(config.steps * config.batch)
    return training_cost(size, flops, tokens, config.steps, machine, read=read, beside=watched)


@stage(
    makes="model",
    config=Finetune,
    inputs={"model": Input(kind="model", default="pretrain"), "tokens": Input(kind="tokens", default="encode")},
    cost=finetune_cost,
)
def finetune(config: Finetune, inputs: Inputs, out: Path, context: Context) -> dict[str, Any]:
    """Teach the model on the dialogues; writes Hugging Face files, `metrics.jsonl` and `watch.jsonl`."""
    device = config.prepare()
    tokenizer: Tokenizer = load(inputs.model.path)
    folder: Path = inputs.tokens.path
    meta = json.loads((folder / "meta.json").read_text())
    check_vocabulary(meta, tokenizer, folder)
    model = load_decoder(inputs.model.path).to(device)
    longest = model.config.max_position_embeddings
    dialogues, text = open_source(folder, "dialogues"), open_source(folder, "train")
    check_end(dialogues, tokenizer.end, folder)
    steps = TokenSteps(
        dialogues,
        longest,
        config.micro,
        accumulate(config),
        seed=config.seed,
        shuffle=True,
        replay=text if config.replay else None,
        ratio=config.replay,
    )
    total = config.steps
    every = config.validate_every or math.ceil(total / 10)
    answers = Validation("validation", open_source(folder, "dialogues.validation"), longest, every=every)
    memory = Validation(
        "pretraining", open_source(folder, "validation"), longest, characters=per_character(meta, "validation")
    )
    before = memory.measure(model)
    watch = Watches(total, answers, memory, context.watch(tokenizer) if context.watch else None)
    model = config.placed(model, device)
    fitted = fit(model, steps, NextToken(), config.optimizer(model, total), run=config.run(context, total), watch=watch)
    model = whole(model)
    save(model, out, inputs.model.path)
    keep_logs(context.work, out)
    return {
        "steps": fitted.steps,
        "skipped": fitted.skipped,
        **fitted.best,
        "tokens": int(fitted.counts.get("tokens", 0)),
        "dialogues": len(dialogues.offsets) - 1,
        "loss": fitted.last.get("loss"),
        "validation": plain(answers.measure(model)),
        "pretraining_before": plain(before),
        "pretraining_after": plain(memory.measure(model)),
    }


def check_end(dialogues: Source, end: int, folder: Path) -> None:
    """DataError when no answer ends in the end token as a target: such a model would never stop."""
    marked = dialogues.tokens if dialogues.mask is None else dialogues.tokens[np.asarray(dialogues.mask, bool)]
    if len(dialogues.offsets) < 2 or not len(marked):
        raise DataError("there is no dialogue to learn from", file=folder / "dialogues.npy")
    if not (marked == end).any():
        raise DataError(
            "no answer ends in the end token, so the model would never learn to stop",
            file=folder / "dialogues.npy",
            todo="Look at one with `tutelage show-mask`",
        )
