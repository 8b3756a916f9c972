"""`pretrain`: seconds of training to the same validation loss, in nats per character, on the text of tiny Shakespeare.

Two tasks, each with the peer's usual horizon; what counts is when a side first reaches the best loss of the peer.
Looking at the validation text is not counted, on either side.

- words: our starter's shape (4 x 160, T 128, 2,048 pieces of words). The peer: the same first weights in transformers
  under AdamW with warm-up and a cosine, the best of three learning rates.
- characters: nanoGPT's setting for a CPU (4 x 128, T 64, 12 rows a step, 2,000 steps, learning rate 1e-3 falling to
  1e-4) in transformers' GPT-2, beside our decoder of the same size.
"""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bench import data, shapes, side
from bench.environments import python_of
from bench.shapes import Shape
from bench.side import Figures, Part, Runs, Settings

ENVIRONMENT = "hf"


class Task(NamedTuple):
    """What is learned. `rows` and `steps` are the peer's; `ours` our own recipe."""

    shape: Shape
    rows: int
    steps: int
    rates: tuple[float, ...]
    """Learning rates that the peer tries."""
    betas: tuple[float, float]
    ours: Mapping[str, float]
    """Steps, rows of a step and micro-batch, and learning rates."""


TASKS = {
    "words": Task(
        Shape(4, 160, 5, 5, 432, 2048, 128),
        rows=16,
        steps=400,
        rates=(1e-3, 2e-3, 4e-3),
        betas=(0.9, 0.95),
        ours={"steps": 150, "rows": 16, "matrix": 0.02, "embedding": 0.005, "scalar": 0.005, "decay": 0.5},
    ),
    "characters": Task(
        Shape(4, 128, 4, 4, 344, 65, 64),
        rows=12,
        steps=2000,
        rates=(1e-3,),
        betas=(0.9, 0.99),
        ours={"steps": 600, "rows": 24, "matrix": 0.02, "embedding": 0.005, "scalar": 0.005, "decay": 0.5},
    ),
}
LOOKS = 20
"""Times the validation text is looked at in a run."""


def measure(settings: Settings) -> list[Part]:
    texts = [
        "\n\n".join(row["text"] for row in data.rows("pretrain_tinyshakespeare", s)) for s in ("train", "validation")
    ]
    parts: list[Part] = []
    for name, task in TASKS.items():
        folder = settings.work / name
        vocabulary = prepared(name, task, texts, folder)
        shapes.save(task.shape._replace(vocabulary=vocabulary), folder / "model")
        options = {"task": name, "folder": str(folder), "part": 0.25 if settings.quick else 1.0}
        options["every"] = 4 if settings.quick else 1
        options |= settings.precision
        peer = options | ({"rate": task.rates[0]} if settings.quick else {})
        keep = ("rate", "precision")
        runs = side.alternate("bench.pretrain", settings, python_of(ENVIRONMENT), options, peer, keep=keep)
        parts += compared(name, runs)
    return parts


def compared(name: str, runs: Runs) -> list[Part]:
    """Seconds to the peer's best loss, and the best losses."""
    loss = statistics.median(min(loss for _, loss in run["curve"]) for run in runs.peer)
    ours = [reached(run["curve"], loss) for run in runs.ours]
    peer = [reached(run["curve"], min(loss for _, loss in run["curve"])) for run in runs.peer]
    known = [each for each in ours if each is not None]
    seconds = statistics.median(known) if len(known) == len(ours) else None
    best = statistics.median(min(loss for _, loss in run["curve"]) for run in runs.ours)
    times = runs.named(f"{name}: to {loss:.4f} nats a character")
    return [
        Part(times, "s", "lower", seconds, statistics.median(each for each in peer if each is not None), 0.5),
        Part(runs.named(f"{name}: best validation loss"), "nats per character", "lower", best, loss),
        runs.memory(f"{name}: memory"),
    ]


def reached(curve: Sequence[tuple[float, float]], loss: float) -> float | None:
    """Seconds of training at the first look that found this loss or a lower one; None if there was none."""
    return next((seconds for seconds, found in curve if found <= loss), None)


def prepared(name: str, task: Task, texts: Sequence[str], folder: Path) -> int:
    """Write `train.npy` and `validation.npy`, the texts as ids, and how many characters an id stands for; returns the
    size of the vocabulary."""
    from tutelage.tokens.tokenizer import learn

    folder.mkdir()
    if name == "characters":
        alphabet = sorted(set("".join(texts)))
        number = {character: index for index, character in enumerate(alphabet)}
        ids = [[number[character] for character in text] for text in texts]
        vocabulary = len(alphabet)
    else:
        tokenizer = learn(texts[0].split("\n\n"), task.shape.vocabulary)
        ids = [tokenizer.encode(text) for text in texts]
        vocabulary = tokenizer.size
    for split, found in zip(("train", "validation"), ids, strict=True):
        np.save(folder / f"{split}.npy", np.array(found, dtype=np.int64))
    (folder / "meta.json").write_text(json.dumps({"characters": len(texts[1]) / len(ids[1]), "vocabulary": vocabulary}))
    return vocabulary


def held_out(folder: Path, context: int, every: int) -> np.ndarray:
    """The validation text as rows [n, context] that overlap by a token, every so many of them; a short rest is left
    out."""
    ids = np.load(folder / "validation.npy")
    starts = np.arange(0, len(ids) - context, context - 1)[::every]
    found: np.ndarray = ids[starts[:, None] + np.arange(context)]
    return found


class Curve:
    """Seconds of training and validation loss at each look; the looking itself stops the clock."""

    def __init__(self, look: Callable[[], float]) -> None:
        self.look, self.points = look, list[tuple[float, float]]()
        self.began = time.perf_counter()

    def __call__(self) -> float:
        stopped = time.perf_counter()
        loss = self.look()
        self.points.append((stopped - self.began, loss))
        self.began += time.perf_counter() - stopped
        return loss


def ours(options: Mapping[str, Any]) -> Figures:
    import tempfile

    import torch

    from bench.ours import settled
    from tutelage.model.checkpoint import load_decoder
    from tutelage.model.logprob import logprobs
    from tutelage.train.batch import Source, TokenSteps, token_batch
    from tutelage.train.device import setup
    from tutelage.train.loop import Run, fit
    from tutelage.train.objectives import NextToken
    from tutelage.train.optim import Optimizer, Rates, Schedule

    setup(threads=side.THREADS)
    task, folder = TASKS[options["task"]], Path(options["folder"])
    recipe, context = task.ours, task.shape.context
    total = max(LOOKS, round(recipe["steps"] * options["part"]))
    characters = json.loads((folder / "meta.json").read_text())["characters"]
    ids, rows = np.load(folder / "train.npy"), held_out(folder, context, options["every"])
    source = Source(ids, np.array([0, len(ids)]))

    micro = int(recipe["rows"] * context)
    tried = load_decoder(folder / "model")
    (batch,) = next(iter(TokenSteps(source, context, micro)))

    def once(_: int) -> None:
        (NextToken()(tried, batch).terms["tokens"] / batch.counts["tokens"]).backward()

    precision = settled(tried, {**options, "micro": micro}, once)["precision"]

    def run(number: int) -> list[tuple[float, float]]:
        model = load_decoder(folder / "model")
        model.bf16 = precision == "bfloat16"

        def look() -> float:
            lost, count = 0.0, 0
            with torch.no_grad():
                for part in np.array_split(rows, max(1, rows.size // 8192)):
                    batch = token_batch(list(part))
                    hidden = model(batch.ids, lengths=batch.lengths)[0]
                    lost -= float(logprobs(model, hidden[batch.at], batch.targets)[0].sum())
                    count += len(batch.targets)
            return lost / count / characters

        curve = Curve(look)

        class Watch:
            every = max(1, total // LOOKS)

            def __call__(self, model: Any, step: int) -> dict[str, Any]:
                return {"loss": curve()}

        steps = TokenSteps(source, context, micro, shuffle=True, pool=1 << 20)
        rates = Rates(recipe["matrix"], recipe["embedding"], recipe["scalar"])
        optimizer = Optimizer(model, rates, Schedule("wsd", 0.02, recipe["decay"]), number)
        with tempfile.TemporaryDirectory() as work:
            fit(
                model,
                steps,
                NextToken(),
                optimizer,
                run=Run(number, Path(work), checkpoint_seconds=math.inf),
                watch=Watch(),
            )
        return curve.points

    run(3)  # warms up
    return {"curve": run(total), "precision": precision}


def peer(options: Mapping[str, Any]) -> Figures:
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    from bench import peers

    peers.setup()
    task, folder = TASKS[options["task"]], Path(options["folder"])
    shape, total = task.shape, max(LOOKS, round(task.steps * options["part"]))
    meta = json.loads((folder / "meta.json").read_text())
    ids, rows = (
        torch.from_numpy(np.load(folder / "train.npy")),
        torch.from_numpy(held_out(folder, shape.context, options["every"])),
    )

    def fresh() -> Any:
        if options["task"] == "words":
            return peers.load(str(folder / "model"), use_cache=False)
        torch.manual_seed(0)
        sizes: dict[str, Any] = {
            "n_layer": shape.layers,
            "n_embd": shape.width,
            "n_head": shape.heads,
            "n_positions": shape.context,
        }
        none: dict[str, Any] = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
        return GPT2LMHeadModel(GPT2Config(vocab_size=meta["vocabulary"], use_cache=False, **sizes, **none))

    precision = peers.precision(options, fresh(), task.rows)

    def run(rate: float, number: int) -> list[tuple[float, float]]:
        model = fresh()
        generator = np.random.default_rng(0)
        optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=task.betas, weight_decay=0.1, fused=True)
        warm = max(1, round(0.05 * total))

        def factor(step: int) -> float:
            """Warm up, then a cosine down to a tenth."""
            if step < warm:
                return (step + 1) / warm
            return 0.1 + 0.45 * (1 + math.cos(math.pi * (step - warm) / max(1, total - warm)))

        def look() -> float:
            model.eval()
            with torch.no_grad():
                losses = [
                    model(input_ids=part, labels=part).loss * len(part) for part in rows.split(8192 // shape.context)
                ]
            model.train()
            return float(sum(losses)) / len(rows) / float(meta["characters"])

        curve = Curve(look)
        model.train()
        for step in range(number):
            starts = torch.from_numpy(generator.integers(0, len(ids) - shape.context, task.rows))
            batch = ids[starts[:, None] + torch.arange(shape.context)]
            for group in optimizer.param_groups:
                group["lr"] = rate * factor(step)
            with peers.autocast(precision):
                loss = model(input_ids=batch, labels=batch).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if (step + 1) % max(1, total // LOOKS) == 0:
                curve()
        return curve.points

    run(task.rates[0], 3)  # warms up
    rates = [options["rate"]] if "rate" in options else task.rates
    curves = {rate: run(rate, total) for rate in rates}
    chosen = min(curves, key=lambda rate: min(loss for _, loss in curves[rate]))
    return {"curve": curves[chosen], "rate": chosen, "precision": precision}


if __name__ == "__main__":
    side.main(ours, peer)
