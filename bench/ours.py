"""What our sides have in common: the training loop with a clock, run as every stage runs it."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

from torch import nn

from bench import side
from bench.side import Figures
from tutelage.model.transformer import Decoder
from tutelage.train.batch import Batch, Segments, Steps
from tutelage.train.loop import Run, fit
from tutelage.train.objectives import Objective
from tutelage.train.optim import Optimizer, Rates, Schedule

B = TypeVar("B", bound=Batch)


class Clocked(Generic[B]):
    """Steps that note when each was asked for, and what it held."""

    def __init__(self, steps: Steps[B], count: Callable[[B], float]) -> None:
        self.steps, self.count = steps, count
        self.began: list[float] = []
        self.held: list[float] = []

    def __iter__(self) -> Iterator[Sequence[B]]:
        batches = iter(self.steps)
        while True:
            self.began.append(time.perf_counter())
            step = next(batches)
            self.held.append(sum(map(self.count, step)))
            yield step

    def state(self) -> dict[str, Any]:
        return self.steps.state()

    def load(self, state: Mapping[str, Any]) -> None:
        self.steps.load(dict(state))


def tokens(batch: Segments) -> float:
    """All tokens that are read, learned from or not; there is no padding."""
    return float(batch.ids.numel())


def quickest(micros: Sequence[int], options: Mapping[str, Any], rate: Callable[[int, bool], float]) -> Figures:
    """The micro-batch and the precision (bf16 or not) with the highest rate, or those in the options."""
    kinds = [options["precision"]] if "precision" in options else side.PRECISIONS
    tried = [(micro, kind) for kind in kinds for micro in ([options["micro"]] if "micro" in options else micros)]
    if len(tried) > 1:
        for kind in kinds:
            rate(min(micros), kind == "bfloat16")  # warms up
    found = side.best(tried, lambda each: rate(each[0], each[1] == "bfloat16")) if len(tried) > 1 else tried[0]
    return {"micro": found[0], "precision": found[1]}


def settled(model: Decoder, options: Mapping[str, Any], once: Callable[[int], None]) -> Figures:
    """As `quickest`, by the tokens per second of forward and backward, which `once` does for so many tokens; the model
    is left computing so."""

    def rate(micro: int, bf16: bool) -> float:
        model.bf16 = bf16
        started = time.perf_counter()
        once(micro)
        return micro / (time.perf_counter() - started)

    chosen = quickest(side.MICRO, options, rate)
    model.bf16 = chosen["precision"] == "bfloat16"
    return chosen


def train(
    model: nn.Module,
    steps: Steps[B],
    objective: Objective[B],
    number: int,
    count: Callable[[B], float],
    rates: Rates | None = None,
) -> float:
    """Train for `number` steps after one that warms up; what `count` counts, per second, of those steps."""
    clocked = Clocked(steps, count)
    optimizer = Optimizer(model, rates or Rates(), Schedule(), number + 1)
    with tempfile.TemporaryDirectory() as work:
        run = Run(number + 1, Path(work), checkpoint_seconds=math.inf)
        fit(model, clocked, objective, optimizer, run=run)
    return sum(clocked.held[1:]) / (time.perf_counter() - clocked.began[1])
