"""Stage `dpo`: learn from people's preferences directly, without a reward model and without sampling.

The reference's log-probabilities are computed once, before training; then the reference is let go.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field

from tutelage.core.errors import DataError
from tutelage.core.price import Cost, Machine, Size
from tutelage.core.records import Preference, read_jsonl
from tutelage.core.stage import Context, Input, Inputs, stage
from tutelage.judge.reward import Row, read_rows
from tutelage.measure.statistics import plain, rate
from tutelage.model.checkpoint import load_decoder, save
from tutelage.model.logprob import logprobs
from tutelage.model.transformer import Decoder
from tutelage.tokens.tokenizer import load
from tutelage.train.batch import ItemSteps, PairBatch, spread, token_batch
from tutelage.train.calibrate import training_cost, watched_memory, watching
from tutelage.train.loop import fit, keep_logs
from tutelage.train.objectives import DirectPreference, pairs_of
from tutelage.train.parallel import whole
from tutelage.train.training import Scalable, settled


class Dpo(Scalable):
    """How the model learns from pairs."""

    batch: int = Field(default=24, ge=1)
    """Pairs per optimizer step."""
    steps: int = Field(default=40, ge=1)
    """Optimizer steps."""
    beta: float = Field(default=0.1, gt=0)
    """How strongly the reference holds."""
    smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    """Share of pairs taken to be the wrong way round."""
    likelihood: float = Field(default=0.02, ge=0)
    """Weight of the chosen answers' likelihood, which keeps them from becoming unlikely together with the rejected."""
    ties: bool = True
    """Learn from pairs that people found equal, too."""
    per_prompt: int = Field(default=3, ge=1)
    """Pairs per prompt, at most; those farthest apart first."""
    matrix_rate: float = Field(default=0.001, gt=0)
    """Learning rate of the matrices inside the layers (Muon)."""
    embedding_rate: float = Field(default=0.0003, gt=0)
    """Learning rate of embeddings and heads (AdamW)."""
    scalar_rate: float = Field(default=0.0003, gt=0)
    """Learning rate of norms and biases (AdamW)."""


@dataclass(frozen=True)
class Pair:
    """Two answers to one prompt as token ids, chosen first."""

    segments: tuple[np.ndarray, np.ndarray]
    masks: tuple[np.ndarray, np.ndarray]
    weight: float
    tie: bool
    cluster: str

    @property
    def size(self) -> int:
        return sum(len(segment) for segment in self.segments)


def pairs(rows: Sequence[Row], per_prompt: int, ties: bool) -> list[Pair]:
    """Pairs of every row: those farthest apart in the order first, ties last."""
    found: list[Pair] = []
    for row in rows:
        tiers = row.preference.tiers
        place = {candidate: index for index, tier in enumerate(tiers) for candidate in tier}
        every = [each for each in zip(*pairs_of(tiers), strict=True) if ties or not each[2]]
        every.sort(key=lambda each: (place[each[0]] - place[each[1]], each[:2]))
        for one, other, tie in every[:per_prompt]:
            segments, masks = (row.segments[one], row.segments[other]), (row.masks[one], row.masks[other])
            if not np.array_equal(*segments):
                found.append(Pair(segments, masks, row.preference.weight, tie, row.cluster))
    return found


def collate(chosen: Sequence[Pair], reference: np.ndarray) -> PairBatch:
    """A micro-batch of pairs; `reference` [2 * pairs] are the answers' summed log-probabilities under the reference."""
    laid = token_batch(
        [segment for pair in chosen for segment in pair.segments], [mask for pair in chosen for mask in pair.masks]
    )
    return PairBatch(
        ids=laid.ids,
        lengths=laid.lengths,
        at=laid.at,
        targets=laid.targets,
        segment=torch.bucketize(laid.at, laid.ends),
        reference=torch.as_tensor(reference, dtype=torch.float32),
        weight=torch.tensor([pair.weight for pair in chosen]),
        tie=torch.tensor([float(pair.tie) for pair in chosen]),
    )


@torch.no_grad()
def answer_logprobs(model: Decoder, every: Sequence[Pair], micro: int = 4096) -> np.ndarray:
    """Summed log-probability of every answer, [pairs, 2]; always in fp32, whatever the model trains in."""
    found = np.zeros((len(every), 2))
    if not every:
        return found
    sizes, training = [pair.size for pair in every], model.training
    model.eval()
    for items in spread(sizes, max(micro, 2 * max(sizes))):
        batch = collate([every[item] for item in items], np.zeros(2 * len(items))).to(model.device)
        values, _ = logprobs(model, model(batch.ids, lengths=batch.lengths)[0][batch.at], batch.targets)
        sums = torch.zeros(2 * len(items), dtype=torch.float64).index_add(0, batch.segment.cpu(), values.double().cpu())
        found[items] = sums.reshape(-1, 2).numpy()
    model.train(training)
    return found


def dpo_cost(config: Dpo, inputs: Mapping[str, Mapping[str, float]], machine: Machine) -> Cost:
    """Forward and backward over both answers with their prompt; the reference's forward over all pairs once."""
    size, people = Size.of(inputs.get("model", {})), inputs.get("preferences", {})
    pair, steps = 2 * people.get("answer_tokens", 48.0), config.steps
    flops = size.spoken(pair / 2, people.get("answered", 0.3))
    read = pair * people.get("rows", 300.0) * people.get("pairs", 3.0) * flops
    watched = watching(inputs, steps, size, machine)
    learned, micro = (config.learned(size),), min(config.micro, config.batch * pair)
    memory = size.taught(micro, pair / 2, frozen=1.0, learned=learned) + watched_memory(inputs, size)
    known = {"memory": memory, "read": read, "beside": watched + 0.2}
    return training_cost(size, flops, steps * config.batch * pair, steps, machine, **known, learned=learned)


@stage(
    makes="model",
    config=Dpo,
    inputs={
        "model": Input(kind="model", default="finetune"),
        "preferences": Input(kind="preferences", default="preferences"),
    },
    cost=dpo_cost,
)
def dpo(config: Dpo, inputs: Inputs, out: Path, context: Context) -> dict[str, Any]:
    """Learn from preferences; writes Hugging Face files and `metrics.jsonl`."""
    device = config.prepare()
    tokenizer = load(inputs.model.path)
    model = config.learner(load_decoder(inputs.model.path).to(device))
    source = inputs.preferences.file("preferences.jsonl")
    splits, dropped = read_rows(read_jsonl(source, Preference), tokenizer, model.config.max_position_embeddings)
    train = pairs(splits["train"], config.per_prompt, config.ties)
    if not train:
        raise DataError("no pair of answers to learn from is marked `train`", file=source)
    reference = answer_logprobs(model, train)
    held_out = pairs(splits["test"] or splits["validation"], 64, ties=False)
    before = answer_logprobs(model, held_out)
    steps = ItemSteps(
        [pair.size for pair in train],
        lambda items: collate([train[item] for item in items], reference[list(items)].reshape(-1)),
        per_step=config.batch,
        micro=max(config.micro, max(pair.size for pair in train)),
        seed=config.seed,
    )
    weights = {"pairs": 1.0, "tokens": config.likelihood}
    objective = DirectPreference(weights, beta=config.beta, smoothing=config.smoothing)
    run = config.run(context, config.steps)
    watch = context.watch(tokenizer) if context.watch else None
    model = config.placed(model, device)
    fitted = fit(model, steps, objective, config.optimizer(model, config.steps), run=run, watch=watch)
    model = settled(whole(model), out, inputs.model.ref)
    moved = answer_logprobs(model, held_out) - before
    right = (moved[:, 0] > moved[:, 1]).astype(float).tolist()
    save(model, out, inputs.model.path)
    keep_logs(context.work, out)
    return {
        "steps": fitted.steps,
        "skipped": fitted.skipped,
        **fitted.best,
        "pairs": len(train),
        "ties": sum(pair.tie for pair in train),
        "dropped": dropped,
        "loss": fitted.last.get("loss"),
        "accuracy": plain(rate(right, [pair.cluster for pair in held_out])),
        "chosen_moved": float(moved[:, 0].mean()) if len(moved) else None,
        "rejected_moved": float(moved[:, 1].mean()) if len(moved) else None,
    }
