"""Stage `finetune`: a pre-trained model learns to answer, on dialogues, while it goes on reading some old text.

Only the assistant's words are learned from. `mix` weighs the tasks of the dialogues; `replay` mixes in pre-training
text, and dialogues of tunings before this one where `earlier` names them. What is forgotten all the same is measured
on held-out text and dialogues of these, and on the watch's items: after minus before, paired, with its interval.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
from pydantic import Field, model_validator

from tutelage.core.errors import ConfigError, DataError
from tutelage.core.price import Cost, Machine, Size
from tutelage.core.stage import Context, Input, Inputs, stage
from tutelage.measure.statistics import Floats, plain
from tutelage.model.checkpoint import load_decoder, save
from tutelage.model.transformer import Decoder
from tutelage.tokens.tokenizer import Tokenizer, load
from tutelage.train.batch import Source, TokenSteps, joined, open_source
from tutelage.train.calibrate import looks, training_cost, watched_memory, watching
from tutelage.train.loop import Watches, fit, keep_logs
from tutelage.train.mixture import weights_of
from tutelage.train.objectives import NextToken
from tutelage.train.parallel import whole
from tutelage.train.pretrain import accumulate, check_vocabulary, per_character
from tutelage.train.training import Scalable, settled
from tutelage.train.validation import LIMIT, Validation


class Finetune(Scalable):
    """How long a model is taught, and how much of what it read before it goes on reading."""

    matrix_rate: float = Field(default=0.02, gt=0)
    """Learning rate of the matrices inside the layers (Muon)."""
    embedding_rate: float = Field(default=0.006, gt=0)
    """Learning rate of embeddings and heads (AdamW)."""
    scalar_rate: float = Field(default=0.006, gt=0)
    """Learning rate of norms and biases (AdamW)."""
    decay: float = Field(default=0.8, ge=0, le=1)
    """Share of the run in which the learning rate falls (`wsd`)."""
    steps: int = Field(default=330, ge=1)
    """Optimizer steps, of about `batch` tokens each, prompts and replay included."""
    replay: float = Field(default=0.1, ge=0, lt=1)
    """Share of tokens taken from the pre-training text; none where the tokens hold no text."""
    replay_dialogues: float = Field(default=0.1, ge=0, lt=1)
    """Share of tokens taken from the dialogues of `earlier`, where it is given."""
    mix: dict[str, float] = Field(default_factory=dict)
    """Task -> weight. A task is the `family` of its dialogues; at weight 2 they are met twice as often as those of a
    task that is not named, at 0 not at all. Every dialogue of a task is met once before any is met again."""
    validate_every: int = Field(default=0, ge=0)
    """Steps between looks at the held-out dialogues; 0 for a tenth of the run."""

    @model_validator(mode="after")
    def _something_new(self) -> Self:
        if self.replay + self.replay_dialogues >= 1:
            raise ValueError("replay and replay_dialogues together leave no room for what is to be learned")
        return self


def finetune_cost(config: Finetune, inputs: Mapping[str, Mapping[str, float]], machine: Machine) -> Cost:
    """As for pre-training; the held-out dialogues at every look, the held-out text before and after."""
    size, text = Size.of(inputs.get("model", {})), inputs.get("tokens", {})
    answers = min(LIMIT, text.get("validation_dialogue_tokens", LIMIT))
    flops = size.spoken(text.get("tokens_per_dialogue", 50.0))
    read = answers * flops * (looks(config.steps, config.validate_every or math.ceil(config.steps / 10)) + 1)
    memory = min(LIMIT, text.get("validation_tokens", LIMIT)) * size.flops
    read += 4 * memory  # by itself and in the watch, before and after
    earlier = inputs.get("earlier", {})
    if earlier.get("count"):
        read += 4 * flops * earlier["count"] * min(LIMIT, earlier.get("validation_dialogue_tokens", LIMIT))
    watched, tokens = watching(inputs, config.steps, size, machine), float(config.steps * config.batch)
    learned, length = (config.learned(size),), text.get("tokens_per_dialogue", 50.0)
    bytes_ = size.taught(config.micro, length, learned=learned) + watched_memory(inputs, size)
    known = {"memory": bytes_, "read": read, "beside": watched}
    return training_cost(size, flops, tokens, config.steps, machine, **known, learned=learned)


@stage(
    makes="model",
    config=Finetune,
    inputs={
        "model": Input(kind="model", default="pretrain"),
        "tokens": Input(kind="tokens", default="encode"),
        "earlier": Input(
            kind="tokens", many=True, optional=True, help="What was learned before: replayed, and tested."
        ),
    },
    cost=finetune_cost,
)
def finetune(config: Finetune, inputs: Inputs, out: Path, context: Context) -> dict[str, Any]:
    """Teach the model on the dialogues; writes Hugging Face files, `metrics.jsonl` and `watch.jsonl`."""
    device = config.prepare()
    tokenizer: Tokenizer = load(inputs.model.path)
    folder: Path = inputs.tokens.path
    meta = json.loads((folder / "meta.json").read_text())
    for path in (folder, *(each.path for each in inputs.earlier)):
        check_vocabulary(json.loads((path / "meta.json").read_text()), tokenizer, path)
    base = load_decoder(inputs.model.path).to(device)
    model = config.learner(base)
    longest = model.config.max_position_embeddings
    dialogues = open_source(folder, "dialogues")
    if endless := check_end(dialogues, tokenizer, folder):
        context.say.note(f"{endless} of {len(dialogues.offsets) - 1} dialogues do not end in an end token")
    if config.lora:
        check_known(base, dialogues, tokenizer.end)
    steps = TokenSteps(
        dialogues,
        longest,
        config.micro,
        accumulate(config),
        seed=config.seed,
        shuffle=True,
        replay=_replayed(config, folder, [each.path for each in inputs.earlier], context),
        weights=_weights(config, dialogues, meta, folder),
    )
    total = config.steps
    every = config.validate_every or math.ceil(total / 10)
    answers = Validation("validation", open_source(folder, "dialogues.validation"), longest, every=every)
    known = [
        Validation(
            "pretraining", open_source(folder, "validation"), longest, characters=per_character(meta, "validation")
        )
    ]
    if inputs.earlier:
        held = joined([open_source(each.path, "dialogues.validation") for each in inputs.earlier])
        known.append(Validation("earlier", held, longest))
    before = [Known(each, *each.losses(model)) for each in known]
    examiner = context.watch(tokenizer) if context.watch else None
    if examiner:
        examiner.begin(model)
    watch = Watches(total, answers, *known, examiner)
    model = config.placed(model, device)
    fitted = fit(model, steps, NextToken(), config.optimizer(model, total), run=config.run(context, total), watch=watch)
    model = settled(whole(model), out, inputs.model.ref)
    save(model, out, inputs.model.path)
    keep_logs(context.work, out)
    return {
        "steps": fitted.steps,
        "skipped": fitted.skipped,
        **fitted.best,
        "tokens": int(fitted.counts.get("tokens", 0)),
        "dialogues": len(dialogues.offsets) - 1,
        **({"mixed": _shares(steps, meta)} if config.mix else {}),
        "loss": fitted.last.get("loss"),
        "validation": plain(answers.measure(model)),
        **{key: value for each in before for key, value in each.forgotten(model).items()},
        **({"examined": examiner.change(model, fitted.kept)} if examiner else {}),
    }


def check_known(model: Decoder, dialogues: Source, end: int) -> None:
    """ConfigError when the end token is less likely than chance where it is due: the model has never met it.

    An adapter leaves embedding and head as they are, so what was never learned there cannot be said.
    """
    ends = dialogues.tokens == end
    if dialogues.mask is not None:
        ends &= np.asarray(dialogues.mask, bool)
    found = Validation(
        "end", Source(dialogues.tokens, dialogues.offsets, ends), model.config.max_position_embeddings, limit=4000
    )
    nats = found.measure(model).value
    if nats is not None and nats > math.log(model.config.vocab_size):
        raise ConfigError(
            "the model has never met the token that ends an answer, and an adapter leaves its embedding as it is",
            key="lora",
            todo="Tune the whole model first (lora: 0), and give its result an adapter",
        )


class Known(NamedTuple):
    """What the model knew before: held-out pieces, what it lost on each and how many tokens counted."""

    held_out: Validation
    losses: Floats
    counts: Floats

    def forgotten(self, model: Any) -> dict[str, Any]:
        """Nats per token before, after, and after minus before: the same pieces, so the difference is paired."""
        after, name = self.held_out.losses(model)[0], self.held_out.name
        told = {"before": self.losses, "after": after, "forgotten": after - self.losses}
        return {f"{name}_{when}": plain(self.held_out.per_token(each, self.counts)) for when, each in told.items()}


def _replayed(config: Finetune, folder: Path, earlier: Sequence[Path], context: Context) -> list[tuple[Source, float]]:
    """What is learned again beside the dialogues, and its share of the tokens."""
    found = []
    if config.replay:
        text = open_source(folder, "train")
        if len(text.tokens):
            found.append((text, config.replay))
        else:
            context.say.note("the tokens hold no pre-training text: none is replayed")
    if earlier and config.replay_dialogues:
        found.append((joined([open_source(each, "dialogues") for each in earlier]), config.replay_dialogues))
    return found


def _weights(config: Finetune, dialogues: Source, meta: Mapping[str, Any], folder: Path) -> list[float] | None:
    """The weight of each task of the dialogues; None where nothing is weighed."""
    if not config.mix:
        return None
    if dialogues.tasks is None or "tasks" not in meta:
        todo = "They were made by an earlier version: run `encode` again"
        raise DataError(
            "these tokens do not say which task a dialogue is of", file=folder, key="finetune.mix", todo=todo
        )
    return weights_of(config.mix, meta["tasks"], "finetune.mix")


def _shares(steps: TokenSteps, meta: Mapping[str, Any]) -> dict[str, float]:
    """Each task's share of the dialogues that were met."""
    assert steps.mixture is not None
    return {name: round(share, 6) for name, share in zip(meta["tasks"], steps.mixture.shares(), strict=True)}


def check_end(dialogues: Source, tokenizer: Tokenizer, folder: Path) -> int:
    """How many dialogues end what is learned otherwise than in a token at which an answer stops.

    DataError when no answer ends so: such a model would never stop. Where padding and end are one token, as in many
    published tokenizers, a mask that leaves out padding leaves out every end: that is said.
    """
    ids = np.asarray(dialogues.tokens)
    learned = np.ones(len(ids), bool) if dialogues.mask is None else np.asarray(dialogues.mask, bool)
    at = np.flatnonzero(learned)
    if len(dialogues.offsets) < 2 or not len(at):
        raise DataError("there is no dialogue to learn from", file=folder / "dialogues.npy")
    ends = np.isin(ids, tokenizer.stops)
    if not (ends & learned).any():
        why = "no answer ends in the end token, so the model would never learn to stop"
        if tokenizer.pad in tokenizer.stops and ends.any():
            pad = tokenizer.decode([tokenizer.pad], skip_special=False)
            why = f"{pad!r} is both padding and end, and the mask leaves it out, so the model would never learn to stop"
        elif ends.any():
            why = "the mask leaves out the end of every answer, so the model would never learn to stop"
        raise DataError(why, file=folder / "dialogues.npy", todo="Look at one with `tutelage show-mask`")
    dialogue = np.searchsorted(dialogues.offsets, at, side="right")
    last = at[np.flatnonzero(np.diff(dialogue, append=-1))]
    return int((~ends[last]).sum())
