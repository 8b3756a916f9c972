"""`step`: tokens per second of forward, backward and optimizer, and the share of the machine's matrix rate that is.

Shapes S and M, rows of 256 tokens, 8,192 tokens per optimizer step. Ours: the training loop with Muon. The peer: the
same weights in transformers, SDPA attention, PyTorch's fused AdamW. Each side takes the micro-batch and the precision
it is fastest with.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bench import shapes, side
from bench.environments import python_of
from bench.side import Figures, Part, Settings

if TYPE_CHECKING:
    from tutelage.train.batch import TokenBatch

ENVIRONMENT = "hf"


def measure(settings: Settings) -> list[Part]:
    parts: list[Part] = []
    for name, shape in shapes.SHAPES.items():
        model = shapes.save(shape, settings.work / name)
        data = settings.work / f"{name}.npy"
        np.save(data, shapes.token_rows(shape, 4 * shapes.STEP_TOKENS // shape.context))
        steps = {"S": (2, 6), "M": (1, 3)}[name][not settings.quick]
        options = {"shape": name, "model": str(model), "data": str(data), "steps": steps}
        options |= settings.precision
        keep = ("micro", "precision")
        runs = side.alternate("bench.step", settings, python_of(ENVIRONMENT), options, options, keep=keep)
        parts.append(runs.part(name, "tokens/s", "tokens", target=1.3))
        rates: dict[str, float] = {}
        for each in (*runs.ours, *runs.peer):
            rates[each["precision"]] = max(each["gemm"], rates.get(each["precision"], 0.0))
        ours, theirs = (
            (side.median(each, "tokens") or 0.0) * shape.training / rates[each[0]["precision"]]
            for each in (runs.ours, runs.peer)
        )
        best = ", ".join(f"{rate / 1e9:.0f} GFLOP/s in {kind}" for kind, rate in rates.items())
        of = runs.named(f"{name}: of the best product ({best})")
        parts.append(Part(of, "share", "higher", ours, theirs, 0.7, "ours"))
        parts.append(runs.memory(f"{name}: memory"))
    return parts


def ours(options: Mapping[str, Any]) -> Figures:
    from bench.ours import settled, tokens, train
    from tutelage.model.checkpoint import load_decoder
    from tutelage.train.batch import token_batch
    from tutelage.train.device import setup
    from tutelage.train.objectives import NextToken

    setup(threads=side.THREADS)
    shape, rows = shapes.SHAPES[options["shape"]], np.load(options["data"])
    model, objective = load_decoder(Path(options["model"])), NextToken()

    def once(micro: int) -> None:
        batch = token_batch(list(rows[: micro // shape.context]))
        (objective(model, batch).terms["tokens"] / batch.counts["tokens"]).backward()

    chosen = settled(model, options, once)
    rate = shapes.gemm_rate(shape, chosen["micro"], chosen["precision"])
    per_second = train(model, Rows(rows, chosen["micro"]), objective, options["steps"], tokens)
    return chosen | {"tokens": per_second, "gemm": rate}


class Rows:
    """The same rows of tokens in every epoch, as steps of micro-batches."""

    def __init__(self, rows: np.ndarray, micro: int) -> None:
        self.rows, self.micro = rows, micro

    def __iter__(self) -> Iterator[Sequence[TokenBatch]]:
        from tutelage.train.batch import token_batch

        while True:
            for step in steps_of(self.rows):
                yield [token_batch(list(part)) for part in np.array_split(step, shapes.STEP_TOKENS // self.micro)]

    def state(self) -> dict[str, Any]:
        return {}

    def load(self, state: Mapping[str, Any]) -> None:
        raise NotImplementedError("a bench does not resume")


def peer(options: Mapping[str, Any]) -> Figures:
    import torch

    from bench import peers

    peers.setup()
    shape, rows = shapes.SHAPES[options["shape"]], torch.from_numpy(np.load(options["data"]))
    model = peers.load(options["model"], use_cache=False).train()
    precision = peers.precision(options, model)

    def backward(ids: torch.Tensor, share: float = 1.0) -> None:
        with peers.autocast(precision):
            loss = model(input_ids=ids, labels=ids).loss
        (loss * share).backward()

    micro = options.get("micro") or fastest(lambda micro: backward(rows[: micro // shape.context]))
    model.zero_grad()
    rate = shapes.gemm_rate(shape, micro, precision)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    started, done = 0.0, -1
    while done < options["steps"]:
        for step in rows.split(shapes.STEP_TOKENS // shape.context):
            parts = step.split(micro // shape.context)
            for part in parts:
                backward(part, 1 / len(parts))
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            done += 1
            started = started or time.perf_counter()  # after the first step, which warms up
            if done == options["steps"]:
                break
    per_second = options["steps"] * shapes.STEP_TOKENS / (time.perf_counter() - started)
    return {"tokens": per_second, "micro": micro, "precision": precision, "gemm": rate}


def steps_of(rows: np.ndarray) -> list[np.ndarray]:
    """The rows of each optimizer step."""
    return np.array_split(rows, rows.size // shapes.STEP_TOKENS)


def fastest(once: Callable[[int], None]) -> int:
    """The micro-batch with the most tokens per second of forward and backward."""
    once(side.MICRO[0])

    def rate(micro: int) -> float:
        started = time.perf_counter()
        once(micro)
        return micro / (time.perf_counter() - started)

    return side.best(side.MICRO, rate)


if __name__ == "__main__":
    side.main(ours, peer)
