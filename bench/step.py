"""`step`: tokens per second of forward, backward and optimizer, and the share of the machine's matrix rate that is.

Shapes S and M, rows of 256 tokens, 8,192 tokens per optimizer step. Ours: the training loop with Muon. The peer: the same
weights in transformers, SDPA attention, PyTorch's fused AdamW. Each side takes the micro-batch it is fastest with.
"""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench import shapes, side
from bench.environments import python_of
from bench.side import Figures, Part, Settings

ENVIRONMENT = "hf"
MICRO = (1024, 2048, 4096)
"""Tokens of a micro-batch that are tried."""


def measure(settings: Settings) -> list[Part]:
    parts: list[Part] = []
    for name, shape in shapes.SHAPES.items():
        model = shapes.save(shape, settings.work / name)
        data = settings.work / f"{name}.npy"
        np.save(data, shapes.token_rows(shape, 4 * shapes.STEP_TOKENS // shape.context))
        steps = {"S": (2, 6), "M": (1, 3)}[name][not settings.quick]
        options = {"shape": name, "model": str(model), "data": str(data), "steps": steps}
        runs = side.alternate("bench.step", settings, python_of(ENVIRONMENT), options, options, keep=("micro",))
        rate = max(each["gemm"] for each in (*runs.ours, *runs.peer))
        parts.append(runs.part(f"{name}", "tokens/s", "tokens", target=1.3))
        ours, peer = parts[-1].ours, parts[-1].peer
        assert ours is not None and peer is not None
        share = [each * shape.training / rate for each in (ours, peer)]
        parts.append(Part(f"{name}: of {rate / 1e9:.0f} GFLOP/s", "share", "higher", share[0], share[1], 0.7, "ours"))
        parts.append(runs.memory(f"{name}: memory"))
    return parts


def ours(options: Mapping[str, Any]) -> Figures:
    from tutelage.model.checkpoint import load_decoder
    from tutelage.train.batch import TokenBatch, token_batch
    from tutelage.train.device import setup
    from tutelage.train.loop import Run, fit
    from tutelage.train.objectives import NextToken
    from tutelage.train.optim import Optimizer, Rates, Schedule

    setup(threads=side.THREADS)
    shape, rows = shapes.SHAPES[options["shape"]], np.load(options["data"])
    model, objective = load_decoder(Path(options["model"])), NextToken()

    def once(micro: int) -> None:
        batch = token_batch(list(rows[: micro // shape.context]))
        (objective(model, batch).terms["tokens"] / batch.counts["tokens"]).backward()

    micro = options.get("micro") or fastest(once)
    rate = shapes.gemm_rate(shape, (micro,))

    class Clocked:
        """The same rows step after step; `began` holds when each step was asked for."""

        began: list[float] = []  # noqa: RUF012 - one object only

        def __iter__(self) -> Iterator[Sequence[TokenBatch]]:
            while True:
                for chosen in steps_of(rows):
                    self.began.append(time.perf_counter())
                    yield [token_batch(list(part)) for part in np.array_split(chosen, shapes.STEP_TOKENS // micro)]

        def state(self) -> dict[str, Any]:
            return {}

        def load(self, state: Mapping[str, Any]) -> None:
            raise NotImplementedError("a bench does not resume")

    steps, total = Clocked(), options["steps"] + 1
    optimizer = Optimizer(model, Rates(), Schedule(), total)
    with tempfile.TemporaryDirectory() as work:
        fit(model, steps, objective, optimizer, run=Run(total, Path(work), checkpoint_seconds=math.inf))
    return figures([*steps.began, time.perf_counter()], micro, rate)


def peer(options: Mapping[str, Any]) -> Figures:
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(side.THREADS)
    shape, rows = shapes.SHAPES[options["shape"]], np.load(options["data"])
    model = AutoModelForCausalLM.from_pretrained(
        options["model"], attn_implementation="sdpa", dtype=torch.float32, use_cache=False
    )
    model.train()

    def once(micro: int) -> None:
        ids = torch.from_numpy(rows[: micro // shape.context])
        model(input_ids=ids, labels=ids).loss.backward()

    micro = options.get("micro") or fastest(once)
    model.zero_grad()
    rate = shapes.gemm_rate(shape, (micro,))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    times = [time.perf_counter()]
    while len(times) < options["steps"] + 2:
        for chosen in steps_of(rows):
            parts = np.array_split(chosen, shapes.STEP_TOKENS // micro)
            for part in parts:
                ids = torch.from_numpy(part)
                (model(input_ids=ids, labels=ids).loss / len(parts)).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            times.append(time.perf_counter())
    return figures(times[: options["steps"] + 2], micro, rate)


def steps_of(rows: np.ndarray) -> list[np.ndarray]:
    """The rows of each optimizer step."""
    return np.array_split(rows, rows.size // shapes.STEP_TOKENS)


def fastest(once: Callable[[int], None]) -> int:
    """The micro-batch with the most tokens per second of forward and backward."""
    once(MICRO[0])
    rates = {}
    for micro in MICRO:
        started = time.perf_counter()
        once(micro)
        rates[micro] = micro / (time.perf_counter() - started)
    return max(rates, key=lambda micro: rates[micro])


def figures(times: Sequence[float], micro: int, rate: float) -> Figures:
    """Of the moments between steps; the first step warms up."""
    seconds = statistics.median(np.diff(times)[1:].tolist())
    return {"tokens": shapes.STEP_TOKENS / seconds, "micro": micro, "gemm": rate}


if __name__ == "__main__":
    side.main(ours, peer)
