"""The training loop: pre-training, tuning, reward models and reinforcement all pass through `fit`.

A step: sum the counts of its micro-batches (and ranks), backpropagate the sum over terms of weight * sum / count,
clip, move. Everything a step depends on is in the checkpoint, so a run that was killed at any instant goes on to the
same bytes. A step whose loss or gradient is not finite changes nothing: its batch is passed over and counted. Since
updates are bounded by the clip, the state before the step is always a good one, and no further rewind is needed.
"""

from __future__ import annotations

import gc
import json
import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from dataclasses import field as default
from pathlib import Path
from typing import IO, Any, ClassVar, Generic, Literal, TypeVar

import torch
from pydantic import Field
from torch import nn

from tutelage.core.artifact import disk_errors
from tutelage.core.config import Config
from tutelage.core.errors import DataError, Diverged, Stopped
from tutelage.core.events import Reporter, silent
from tutelage.core.stage import Context, Watch, never
from tutelage.train import snapshot
from tutelage.train.batch import Batch, State, Steps
from tutelage.train.device import THREADS, describe, rank, ranks, setup, sum_over_ranks, told
from tutelage.train.objectives import Objective
from tutelage.train.optim import Optimizer, Rates, Schedule, load_weights, weights
from tutelage.train.parallel import gathered, is_divided

B = TypeVar("B", bound=Batch)


@dataclass(frozen=True)
class Run:
    """How long a run is and where it keeps what survives a kill.

    Attributes:
        total: optimizer steps.
        work: folder for checkpoints, `metrics.jsonl` and `watch.jsonl`.
        checkpoint_seconds: a checkpoint after so many seconds; its moment never changes what is computed.
        checkpoint_every: a checkpoint after so many steps, 0 for never.
        patience: steps in a row that may be not finite before the run is given up; four times as many in all.
    """

    total: int
    work: Path
    say: Reporter = default(default_factory=silent)
    stop: Callable[[], bool] = never
    checkpoint_seconds: float = 20.0
    checkpoint_every: int = 0
    patience: int = 5


@dataclass(frozen=True)
class Fitted:
    """What a run did.

    Attributes:
        steps: optimizer steps taken, skipped ones included.
        skipped: steps that were not finite and changed nothing.
        counts: what the whole run learned from, per term (tokens, rankings ...).
        last: the last metrics row.
    """

    steps: int
    skipped: int
    counts: Mapping[str, float]
    last: Mapping[str, Any]


class Training(Config):
    """What every training stage can be told."""

    OUTSIDE_KEY: ClassVar[frozenset[str]] = frozenset({"checkpoint_seconds"})

    seed: int = 0
    """Decides initial weights, data order and sampling."""
    device: Literal["cpu", "cuda", "auto"] = "cpu"
    """Where to compute."""
    threads: int = Field(default=THREADS, ge=1)
    """Threads of the CPU; part of the result to the last bit."""
    batch: int = Field(default=2048, ge=1)
    """Tokens per optimizer step, about."""
    micro: int = Field(default=2048, ge=1)
    """Tokens per forward and backward pass, at most; changes speed and memory only."""
    matrix_rate: float = Field(default=0.02, gt=0)
    """Learning rate of the matrices inside the layers (Muon)."""
    embedding_rate: float = Field(default=0.005, gt=0)
    """Learning rate of embeddings and heads (AdamW)."""
    scalar_rate: float = Field(default=0.005, gt=0)
    """Learning rate of norms and biases (AdamW)."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decay of the matrices, per step and unit of learning rate."""
    clip: float = Field(default=1.0, ge=0)
    """Largest gradient norm; 0 does not clip."""
    schedule: Literal["wsd", "cosine"] = "wsd"
    """How the learning rate moves: warm up, hold, fall linearly; or along a cosine."""
    warmup: float = Field(default=0.02, ge=0, lt=1)
    """Share of the run in which the learning rate rises."""
    decay: float = Field(default=0.5, ge=0, le=1)
    """Share of the run in which it falls (`wsd`)."""
    floor: float = Field(default=0.0, ge=0, le=1)
    """What is left of the learning rate at the end."""
    checkpoint_seconds: float = Field(default=20.0, gt=0)
    """Seconds between checkpoints; no part of the result."""

    def prepare(self) -> torch.device:
        """Set up this process; returns the device."""
        return setup(threads=self.threads, device=self.device, seed=self.seed)

    def optimizer(self, model: nn.Module, total: int) -> Optimizer:
        """The optimizer of a run of `total` steps."""
        rates = Rates(self.matrix_rate, self.embedding_rate, self.scalar_rate, self.weight_decay)
        schedule = Schedule(self.schedule, self.warmup, self.decay, self.floor)
        return Optimizer(model, rates, schedule, total, clip=self.clip)

    def run(self, context: Context, total: int) -> Run:
        """The run of a stage: its work folder, its reporter, its stop."""
        return Run(total, context.work, context.say, context.stop, checkpoint_seconds=self.checkpoint_seconds)


class Watches:
    """Several watches as one; each is asked at its own interval, all at the beginning and at the end."""

    def __init__(self, total: int, *watches: Watch | None) -> None:
        self.watches = [watch for watch in watches if watch is not None]
        self.total = total
        self.every = math.gcd(*(watch.every for watch in self.watches)) if self.watches else 0

    def __call__(self, model: Any, step: int) -> dict[str, Any]:
        figures: dict[str, Any] = {}
        for watch in self.watches:
            if step in (0, self.total) or (watch.every and step % watch.every == 0):
                figures |= watch(model, step)
        return figures


def keep_logs(work: Path, out: Path) -> None:
    """Copy the metrics of a finished run into a stage's result."""
    for name in ("metrics.jsonl", "watch.jsonl"):
        if (work / name).is_file() and (work / name).stat().st_size:
            shutil.copyfile(work / name, out / name)


def fit(
    model: nn.Module,
    steps: Steps[B],
    objective: Objective[B],
    optim: Optimizer,
    *,
    run: Run,
    watch: Watch | None = None,
) -> Fitted:
    """Train `model` for `run.total` steps, from the newest whole checkpoint in `run.work` if there is one.

    Args:
        steps: handed out once per step, as a list of micro-batches.
        watch: looks at the model at step 0, every `watch.every` steps and at the end; it disturbs nothing.

    Raises:
        Stopped: `run.stop()` said so; a checkpoint was written.
        Diverged: too many steps were not finite.
        NoSpace: the disk is full; the checkpoint before is intact.
        DataError: the data ended before the run did.
    """
    with disk_errors(run.work), _quiet_collector():
        return _Loop(model, steps, objective, optim, run, watch).go()


class _Loop(Generic[B]):
    def __init__(
        self,
        model: nn.Module,
        steps: Steps[B],
        objective: Objective[B],
        optim: Optimizer,
        run: Run,
        watch: Watch | None,
    ) -> None:
        self.model, self.steps, self.objective, self.optim = model, steps, objective, optim
        self.run, self.watch = run, watch
        self.checkpoints = run.work / "checkpoints"
        self.metrics, self.seen = _Log(run.work / "metrics.jsonl"), _Log(run.work / "watch.jsonl")
        self.device = next(model.parameters()).device
        self.step = self.skipped = self.in_a_row = 0
        self.counts: dict[str, float] = {}
        self.last: dict[str, Any] = {}
        self._saved = time.monotonic()

    def go(self) -> Fitted:
        run = self.run
        if not self._resume():
            self.metrics.cut(0)
            self.seen.cut(0)
            self._look()
        self.model.train()
        batches = iter(self.steps)
        while self.step < run.total:
            if told(run.stop()):
                self._save()
                raise Stopped(f"stopped after {self.step} of {run.total} steps", todo="Run the same command to go on")
            batch = next(batches, None)
            if batch is None:
                raise DataError(f"the data ended after {self.step} of {run.total} steps")
            self._one(batch)
            if self.watch and (self.step == run.total or (self.watch.every and self.step % self.watch.every == 0)):
                self._look()
            run.say.progress(self.step, run.total, "steps", **_shown(self.last))
            due = bool(run.checkpoint_every) and self.step % run.checkpoint_every == 0
            if told(self.step < run.total and (due or time.monotonic() - self._saved > run.checkpoint_seconds)):
                self._save()
            if self.step % 200 == 0:
                gc.collect(1)
        self.metrics.close()
        self.seen.close()
        return Fitted(self.step, self.skipped, self.counts, self.last)

    def _one(self, batches: Sequence[B]) -> None:
        """One optimizer step, taken or passed over, and its metrics row."""
        terms = self.objective.weights
        counts: dict[str, float] = {}
        for batch in batches:
            for name, count in batch.counts.items():
                counts[name] = counts.get(name, 0.0) + count
        sums: dict[str, float] = {}
        metrics: dict[str, list[float]] = {}
        self.optim.clear()
        for batch, share in self._mine(batches):
            found = self.objective(self.model, batch)
            parts = [
                found.terms[name] * (share * weight / counts[name])
                for name, weight in terms.items()
                if weight and name in found.terms and counts.get(name)
            ]
            if parts and (loss := torch.stack(parts).sum()).requires_grad:
                loss.backward()  # type: ignore[no-untyped-call]
            if not share:
                continue
            for name, term in found.terms.items():
                sums[name] = sums.get(name, 0.0) + float(term.detach())
            for name, (value, count) in found.metrics.items():
                held = metrics.setdefault(name, [0.0, 0.0])
                held[0], held[1] = held[0] + value, held[1] + count
        if ranks() > 1:
            self._share_gradients()
        sums = self._total(sums)
        norm = self.optim.norm()
        loss_now = sum(weight * sums[n] / counts[n] for n, weight in terms.items() if n in sums and counts.get(n))
        row: dict[str, Any] = {"step": self.step + 1, "loss": loss_now}
        if math.isfinite(loss_now) and math.isfinite(norm):
            row["rate"] = self.optim.step(self.step, norm)
            self.in_a_row = 0
        else:
            self._pass_over(row, loss_now, norm)
        row["norm"] = norm
        row |= {name: sums[name] / counts[name] for name in sums if counts.get(name) and len(sums) > 1}
        row |= {f"n_{name}": count for name, count in counts.items()}
        totals = self._total({f"{name}\t{i}": held[i] for name, held in metrics.items() for i in (0, 1)})
        row |= {n: totals[f"{n}\t0"] / totals[f"{n}\t1"] if totals[f"{n}\t1"] else None for n in metrics}
        for name, count in counts.items():
            self.counts[name] = self.counts.get(name, 0.0) + count
        self.step += 1
        self.last = _plain(row)
        if rank() == 0:
            self.metrics.write(self.last)

    def _pass_over(self, row: dict[str, Any], loss: float, norm: float) -> None:
        self.skipped, self.in_a_row = self.skipped + 1, self.in_a_row + 1
        what = "loss" if not math.isfinite(loss) else "gradient"
        row["skipped"] = f"the {what} was not finite"
        self.run.say.note(f"step {self.step + 1}: the {what} was not finite; nothing changed, its batch is passed over")
        if self.in_a_row >= self.run.patience or self.skipped >= 4 * self.run.patience:
            raise Diverged(
                f"{self.skipped} of {self.step + 1} steps were not finite, {self.in_a_row} in a row",
                todo="Lower the learning rate, or look at the data of these steps",
            )

    def _mine(self, batches: Sequence[B]) -> Iterator[tuple[B, float]]:
        """This rank's micro-batches, each with the factor 1. Where it has fewer than another rank it repeats one with
        the factor 0, since in a divided model every rank takes part in every forward and backward."""
        for first in range(0, len(batches), ranks()):
            mine = first + rank()
            yield (batches[mine], 1.0) if mine < len(batches) else (batches[first], 0.0)

    def _total(self, values: dict[str, float]) -> dict[str, float]:
        """Sums over all ranks, name by name."""
        if ranks() == 1:
            return values
        names = sorted(values)
        tensor = torch.tensor([values[name] for name in names], dtype=torch.float64, device=self.device)
        sum_over_ranks(tensor)
        return dict(zip(names, tensor.tolist(), strict=True))

    def _share_gradients(self) -> None:
        for parameter in self.optim.parameters:
            if is_divided(parameter):  # summed in the backward
                continue
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            sum_over_ranks(parameter.grad)

    def _look(self) -> None:
        """Ask the watch, leaving mode and every random state as they were."""
        if self.watch is None:
            return
        model = gathered(self.model)
        if model is None:  # rank 0 looks alone
            return
        state, training = snapshot.random_state(), model.training
        model.eval()
        try:
            with torch.no_grad():
                figures = self.watch(model, self.step)
        finally:
            model.train(training)
            snapshot.set_random_state(state)
        self.seen.write(_plain({"step": self.step, **figures}))

    def _save(self) -> None:
        state: State = {
            "weights": weights(self.model),
            "optimizer": self.optim.state(),
            "steps": self.steps.state(),
            "random": snapshot.random_state(),
            "logs": {"metrics": self.metrics.sync(), "seen": self.seen.sync()},
            "loop": {"skipped": self.skipped, "in_a_row": self.in_a_row, "counts": self.counts},
            "made_on": describe(self.device),
        }
        snapshot.write(self.checkpoints, self.step, state)
        self._saved = time.monotonic()

    def _resume(self) -> bool:
        found = snapshot.latest(self.checkpoints, self.run.say)
        if found is None:
            return False
        step, state = found
        load_weights(self.model, state["weights"])
        self.optim.load(state["optimizer"])
        self.steps.load(state["steps"])
        snapshot.set_random_state(state["random"])
        self.metrics.cut(state["logs"]["metrics"])
        self.seen.cut(state["logs"]["seen"])
        self.step = step
        self.skipped, self.in_a_row = state["loop"]["skipped"], state["loop"]["in_a_row"]
        self.counts = dict(state["loop"]["counts"])
        self.run.say.note(f"going on from the checkpoint after step {step}")
        changed = {name: now for name, now in describe(self.device).items() if state["made_on"].get(name) != now}
        if changed:
            what = ", ".join(f"{name} {state['made_on'].get(name)} -> {now}" for name, now in sorted(changed.items()))
            note = f"continued, not bit-identical: {what}"
            self.run.say.note(note)
            if rank() == 0:
                self.metrics.write({"step": step, "note": note})
        return True


class _Log:
    """A JSON-lines file that can be cut back to where a checkpoint left it. Rank 0's alone is kept."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file: IO[bytes] = path.open("ab") if rank() == 0 else tempfile.TemporaryFile()  # noqa: SIM115

    def write(self, row: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(row, allow_nan=False).encode() + b"\n")
        self._file.flush()

    def cut(self, size: int) -> None:
        self._file.truncate(size)
        self._file.seek(size)

    def sync(self) -> int:
        """Make durable; returns the size in bytes."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._file.tell()

    def close(self) -> None:
        self._file.close()


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row as JSON: six significant digits, None for what is not a number."""
    found: dict[str, Any] = {}
    for name, value in row.items():
        if isinstance(value, float):
            found[name] = float(f"{value:.6g}") if math.isfinite(value) else None
        else:
            found[name] = value
    return found


def _shown(row: Mapping[str, Any]) -> dict[str, Any]:
    """The few figures of a row that fit beside a progress bar."""
    return {name: row[name] for name in ("loss", "accuracy", "reward") if row.get(name) is not None}


@contextmanager
def _quiet_collector() -> Iterator[None]:
    """Keep Python's cycle collector from walking the model's objects again and again (pauses up to 0.5 s)."""
    was = gc.isenabled()
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.unfreeze()
        if was:
            gc.enable()
