"""`grpo`: completions per second through a whole update, shape S: sample, score, reference, forward, backward, step.

16 prompts of 28 tokens, groups of 8, 64 new tokens. The peer: TRL's GRPOTrainer on the same weights, prompts and reward
(the share of even token ids), with a reference as ours has one. The roofline counts 2N operations for each token that
is sampled or read by the reference (equal prompts once in sampling) and 6N for each that is learned from, at the rate
of the best matrix product. Ours stays in float32: the ratio of the policy to the one that sampled is what it learns
from, and both must be computed alike.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench import data, shapes, side
from bench.environments import python_of
from bench.side import Figures, Part, Settings

ENVIRONMENT = "hf"
PROMPTS, GROUP, PROMPT, NEW = 16, 8, 28, 64
MICRO = (1024, 2048, 4096)
"""Tokens of a micro-batch that we try."""
BATCHES = (8, 16, 32, 64)
"""Completions of a micro-batch that the peer tries."""


def measure(settings: Settings) -> list[Part]:
    shape = shapes.SHAPES["S"]
    tokenizer = data.tokenizer(shape.vocabulary, settings.work / "tokenizer")
    model = shapes.save(shape, settings.work / "S", settings.work / "tokenizer")
    prompts = []
    for dialogue in data.dialogues():
        ids = tokenizer.encode(dialogue.prompt)[:PROMPT]
        text = tokenizer.decode(ids)
        if len(ids) == PROMPT and tokenizer.encode(text) == ids:
            prompts.append(text)
    file = settings.work / "prompts.json"
    file.write_text(json.dumps(prompts[:1024]))
    options = {"model": str(model), "data": str(file), "steps": 2 if settings.quick else 4}
    peer, keep = options | settings.precision, ("micro", "precision", "batch")
    runs = side.alternate("bench.grpo", settings, python_of(ENVIRONMENT), options, peer, keep=keep)
    whole = PROMPT + NEW
    operations = shape.inference * (PROMPT / GROUP + NEW + whole) + shape.training * whole
    roofline = max(each["gemm"] for each in runs.ours) / operations
    done = runs.part("completions", "completions/s", "completions", target=4)
    ours, theirs = ((side.median(each, "completions") or 0.0) / roofline for each in (runs.ours, runs.peer))
    of = f"of the roofline in float32, {roofline:.0f} completions/s"
    return [
        done,
        Part(runs.named(of), "share", "higher", ours, theirs, 0.6, "ours"),
        Part("ours: sampling, of a step", "share", "lower", side.median(runs.ours, "sampling")),
        runs.memory("memory"),
    ]


def ours(options: Mapping[str, Any]) -> Figures:
    from bench.ours import train
    from tutelage.align.advantage import KLControl
    from tutelage.align.rollout import ActorCritic, Answer, Prompt, Rollouts, Settings
    from tutelage.core.records import Example
    from tutelage.model.checkpoint import load_decoder
    from tutelage.tokens.tokenizer import load
    from tutelage.train.device import setup
    from tutelage.train.objectives import PolicyGradient
    from tutelage.train.optim import Rates

    setup(threads=side.THREADS)
    tokenizer = load(options["model"])
    prompts = [
        Prompt(Example(messages=[{"role": "text", "content": text}]), tuple(tokenizer.encode(text)))
        for text in json.loads(Path(options["data"]).read_text())
    ]

    def score(answers: Sequence[Answer]) -> np.ndarray:
        return np.array([np.mean([number % 2 == 0 for number in answer.tokens]) for answer in answers])

    class Timed(Rollouts):
        """Notes how long each iteration sampled."""

        def answers(self, iteration: int) -> Any:
            started = time.perf_counter()
            found = super().answers(iteration)
            sampled.append(time.perf_counter() - started)
            return found

    sampled: list[float] = []

    def run(micro: int, number: int) -> float:
        sampled.clear()
        actor = load_decoder(Path(options["model"]))
        model = ActorCritic(actor, None)
        settings = Settings(
            "grpo", PROMPTS, GROUP, NEW, 1.0, 1, 1, micro, seed=0, trace=0.95, scale=True, unfinished=0.0
        )
        rollouts = Timed(model, actor.clone(), prompts, tokenizer, score, KLControl(0.05, 0.0), settings)
        objective = PolicyGradient({"policy": 1.0, "divergence": 1.0})
        rates = Rates(0.0015, 0.0003, 0.0003)
        return train(model, rollouts, objective, number, lambda batch: len(batch.lengths), rates)

    micro = options.get("micro") or side.best(MICRO, lambda each: run(each, 1))
    rate = shapes.gemm_rate(shapes.SHAPES["S"], micro)
    completions = run(micro, options["steps"])
    share = sum(sampled[1:]) * completions / (options["steps"] * PROMPTS * GROUP)
    return {"completions": completions, "micro": micro, "gemm": rate, "sampling": share}


def peer(options: Mapping[str, Any]) -> Figures:
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    from bench import peers

    peers.setup()
    dataset = Dataset.from_dict({"prompt": json.loads(Path(options["data"]).read_text())})
    tokenizer = peers.tokenizer(options["model"])
    precision = peers.precision(options, peers.load(options["model"]))

    def reward(completion_ids: list[list[int]], **_: Any) -> list[float]:
        return [float(np.mean([number % 2 == 0 for number in ids])) for ids in completion_ids]

    with tempfile.TemporaryDirectory() as work:

        def make(batch: int, steps: int) -> GRPOTrainer:
            settings = peers.settings(
                Path(work),
                steps,
                precision,
                num_generations=GROUP,
                max_completion_length=NEW,
                per_device_train_batch_size=batch,
                gradient_accumulation_steps=PROMPTS * GROUP // batch,
                temperature=1.0,
                beta=0.05,
                learning_rate=1e-6,
            )
            model = peers.load(options["model"])
            return GRPOTrainer(
                model, reward, args=GRPOConfig(**settings), train_dataset=dataset, processing_class=tokenizer
            )

        clock, batch = peers.trained(options, make, BATCHES)
    done = options["steps"] * PROMPTS * GROUP
    return {"completions": done / clock.seconds, "batch": batch, "precision": precision}


if __name__ == "__main__":
    side.main(ours, peer)
