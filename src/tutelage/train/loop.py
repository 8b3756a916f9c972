"""The training loop: pre-training, tuning, reward models and reinforcement all pass through `fit`.

A step: sum the counts of its micro-batches (and ranks), backpropagate the sum over terms of weight * sum / count,
clip, move. A step is judged before it moves anything: where its loss or gradient is not finite, or the loss explodes,
its batch is passed over; a second one in a row says that the weights are at fault, and they go back to the snapshot.

Snapshots are taken at every `good_every`th step, once a further step was found good on these weights and before it
moves them: a snapshot is always a good state. Everything a step depends on is in it, and checkpoints are snapshots on
disk: a run that was killed at any instant goes on, from a state that it also had without the kill, to the same bytes.
"""

from __future__ import annotations

import gc
import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from dataclasses import field as default
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import nn

from tutelage.core.artifact import disk_errors
from tutelage.core.errors import DataError, Diverged, Stopped
from tutelage.core.events import Reporter, silent
from tutelage.core.stage import Watch, never
from tutelage.train import snapshot
from tutelage.train.batch import Batch, Sampled, State, Steps
from tutelage.train.best import Best
from tutelage.train.device import describe, rank, shared, sum_over_ranks, told
from tutelage.train.gradient import backward, counted
from tutelage.train.logs import Log, plain, shown
from tutelage.train.objectives import Objective
from tutelage.train.optim import Optimizer, load_weights, weights
from tutelage.train.parallel import gathered
from tutelage.train.patience import Patience
from tutelage.train.spikes import Spikes

B = TypeVar("B", bound=Batch)
Flips = tuple[Mapping[str, float], Mapping[str, list[str]]]


@dataclass(frozen=True)
class Run:
    """How long a run is and where it keeps what survives a kill.

    Attributes:
        total: optimizer steps.
        work: folder for checkpoints, `metrics.jsonl` and `watch.jsonl`.
        good_every: a snapshot after so many steps: what a rewind goes back to, and what checkpoints are made of.
        checkpoint_seconds: the next snapshot after so many seconds is written to disk; its moment never changes what
            is computed.
        checkpoint_every: the next snapshot after so many steps is, too; 0 for never.
        keep: checkpoints kept.
        spike: deviations above the median of the losses before, beyond which a step is exploding; 0 for never.
        rewinds: times that the weights may go back before the run is given up.
        best: the watched figure whose best weights the model is left with (see `Best`); empty for the last ones.
        patience: looks in a row without a sure gain in that figure after which the run ends (see `Patience`).
    """

    total: int
    work: Path
    say: Reporter = default(default_factory=silent)
    stop: Callable[[], bool] = never
    checkpoint_seconds: float = 20.0
    checkpoint_every: int = 0
    good_every: int = 10
    keep: int = snapshot.KEEP
    spike: float = 10.0
    rewinds: int = 3
    best: str = ""
    patience: int = 0


@dataclass(frozen=True)
class Fitted:
    """What a run did.

    Attributes:
        steps: optimizer steps taken, skipped ones included.
        skipped: steps that were passed over and changed nothing.
        counts: what the whole run learned from, per term (tokens, rankings ...).
        last: the last metrics row.
        kept: the step after which the weights were that the model is left with.
        best: for the stage's metrics: which look's weights the model has, where one was asked for, and where the run
            was ended early.
    """

    steps: int
    skipped: int
    counts: Mapping[str, float]
    last: Mapping[str, Any]
    kept: int
    best: Mapping[str, Any]


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

    def values(self, name: str) -> Mapping[str, tuple[float, str]]:
        """The last look's values of a figure, item by item; empty where no watch has them."""
        return next((found for watch in self.watches if (found := values_of(watch, name))), {})

    def higher(self, name: str) -> bool | None:
        """Whether more of a figure is better; None where no watch knows it."""
        return next((found for watch in self.watches if (found := higher_of(watch, name)) is not None), None)

    def flips(self, before: Mapping[str, float]) -> Flips:
        """From the watch that can tell, see `flips_of`."""
        return next((found for watch in self.watches if (found := flips_of(watch, before))[0]), ({}, {}))


def values_of(watch: Watch | None, name: str) -> Mapping[str, tuple[float, str]]:
    """The values of a watch's figure, item by item, as far as it knows them."""
    known = getattr(watch, "values", None)
    return known(name) if known else {}


def higher_of(watch: Watch | None, name: str) -> bool | None:
    """Whether more of a watch's figure is better, as far as it knows."""
    known = getattr(watch, "higher", None)
    return known(name) if known else None


def flips_of(watch: Watch | None, before: Mapping[str, float]) -> Flips:
    """Every item's value at a watch's last look, and which were fixed and which broken since one with the values
    `before` (empty where that was none); empty where the watch cannot tell."""
    known = getattr(watch, "flips", None)
    return known(before) if known else ({}, {})


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
        Stopped: `run.stop()` said so; the newest snapshot was written.
        Diverged: rewinding did not help.
        NoSpace: the disk is full; the checkpoint before is intact.
        DataError: the data ended before the run did, or a batch is empty.
        ConfigError: `run.best` is no figure that is watched.
    """
    with disk_errors(run.work), _quiet_collector():
        loop = _Loop(model, steps, objective, optim, run, watch)
        try:
            return loop.go()
        except BaseException:
            loop.writer.give_up()
            raise
        finally:
            loop.writer.wait()


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
        self.device = next(model.parameters()).device
        self.made_on = describe(self.device)
        first = rank() == 0
        self.metrics, self.seen = Log(run.work / "metrics.jsonl", first), Log(run.work / "watch.jsonl", first)
        self.checkpoints = run.work / "checkpoints"
        self.writer = snapshot.Writer(self.checkpoints, run.keep, self._sync_logs)
        better = higher_of(watch, run.best.rpartition(":")[2])
        self.spikes, self.best = Spikes(run.spike), Best(run.best, better)
        self.patience = Patience(run.best, run.patience, better)
        self.step = self.skipped = self.in_a_row = self.rewinds = 0
        self.proven = False  # went back to good weights and has not moved since: what is wrong now, they did not do
        self.counts: dict[str, float] = {}
        self.last: dict[str, Any] = {}
        self.good: State | None = None
        self.values: Mapping[str, float] = {}
        self.due = True
        self.places = snapshot.Places()
        self._saved, self._saved_step = time.monotonic(), 0

    def go(self) -> Fitted:
        run = self.run
        if not self._resume():
            self.metrics.cut(0)
            self.seen.cut(0)
            self._look()
        self.model.train()
        self.batches = iter(self.steps)
        while self.step < run.total and not self.patience.enough:
            if self._stop():
                raise Stopped(f"stopped after {self.step} of {run.total} steps", todo="Run the same command to go on")
            self.writer.check()
            self.due |= self.step % run.good_every == 0
            self._one(*self._next())
            if self.watch and (self.step == run.total or (self.watch.every and self.step % self.watch.every == 0)):
                self._look()
            run.say.progress(self.step, run.total, "steps", **shown(self.last))
            if self.step % 200 == 0:
                gc.collect(1)
        self.writer.join()
        self.metrics.close()
        self.seen.close()
        kept = self.best.restore(self.model, self.step)
        report = self.best.report() | self.patience.report(self.step, run.total)
        return Fitted(self.step, self.skipped, self.counts, self.last, kept, report)

    def _next(self) -> tuple[Sequence[B], State]:
        """The next step's micro-batches, on every rank the same; and the position before them, where one is due."""
        while True:
            before = self._position() if self.due else {}
            try:
                found = next(self.batches, None)
            except Diverged as error:  # the weights cannot even be sampled from
                if self.good is None:
                    raise
                self._rewind(error.message)
                self.batches = iter(self.steps)
                continue
            if found is None:
                raise DataError(f"the data ended after {self.step} of {self.run.total} steps")
            return found, before

    def _one(self, batches: Sequence[B], before: State) -> None:
        """One optimizer step, taken or passed over, and its metrics row."""
        terms = self.objective.weights
        counts = counted(batches)
        if not any(counts.values()):
            raise DataError(f"the batch of step {self.step + 1} is empty: nothing in it can be learned from")
        self.optim.clear()
        sums, metrics = backward(self.model, self.objective, batches, counts, self.optim.parameters)
        norm = self.optim.norm()
        loss = sum(weight * sums[n] / counts[n] for n, weight in terms.items() if n in sums and counts.get(n))
        row: dict[str, Any] = {"step": self.step + 1, "loss": loss}
        fault = self._judge(loss, norm)
        if fault:
            self.skipped, self.in_a_row = self.skipped + 1, self.in_a_row + 1
            row["skipped"] = fault
        else:
            if self.due:
                self._take(before)
            row["rate"] = self.optim.step(self.step, norm)
            self.spikes.accept(loss)
            self.in_a_row, self.proven = 0, False
        row["norm"] = norm
        row |= {name: sums[name] / counts[name] for name in sums if counts.get(name) and len(sums) > 1}
        row |= {f"n_{name}": count for name, count in counts.items()}
        row |= {name: value / count if count else None for name, (value, count) in metrics.items()}
        for name, count in counts.items():
            self.counts[name] = self.counts.get(name, 0.0) + count
        self.step += 1
        self.last = plain(row)
        self.metrics.write(self.last)
        if fault:
            self._pass_over(fault)

    # out of the ordinary

    def _judge(self, loss: float, norm: float) -> str:
        """What is wrong with a step, empty when it may be taken."""
        fault = self.spikes.fault(loss, norm)
        if fault and self.proven and math.isfinite(loss) and math.isfinite(norm):
            # good weights, and the loss is as high as on those that were given up: other data have begun
            self.rewinds -= 1
            self.spikes.restart()
            self._note(f"the loss stays at {loss:.4g} on good weights: the data have changed, it is taken as it is")
            return ""
        return fault

    def _pass_over(self, fault: str) -> None:
        self.run.say.note(f"step {self.step}: {fault}; nothing changed, its batch is passed over")
        if self.in_a_row > 1:
            self._rewind(fault)
        elif self.skipped > 20 and self.skipped > self.step / 10:
            raise Diverged(
                f"{self.skipped} of {self.step} steps had to be passed over; at the last one {fault}",
                todo="Look at the data of the steps marked `skipped` in metrics.jsonl, or lower the learning rate",
            )

    def _rewind(self, fault: str) -> None:
        """Put weights and optimizer back to the snapshot; step and data go on."""
        self.rewinds, self.in_a_row = self.rewinds + 1, 0
        if self.rewinds > self.run.rewinds:
            raise Diverged(
                f"step {self.step}: {fault}, again after the weights went back {self.run.rewinds} times",
                todo="Lower the learning rates, or look at the data of the steps marked `skipped` in metrics.jsonl",
            )
        if self.good is None:
            return self._note(f"{fault} twice in a row before any step was good")
        load_weights(self.model, self.good["weights"])
        self.optim.load(self.good["optimizer"])
        self.spikes.restart(self.good["loop"]["losses"])
        self.proven = True
        if isinstance(self.steps, Sampled):
            self.steps.resample()
        self._note(f"{fault}: back to the weights after step {self.good['step']}; the data go on")

    def _note(self, text: str) -> None:
        self.run.say.note(f"step {self.step}: {text}")
        self.metrics.write({"step": self.step, "note": text})

    # looks, snapshots, checkpoints

    def _look(self) -> None:
        """Ask the watch, leaving mode and every random state as they were."""
        figures: dict[str, Any] = {}
        values: Mapping[str, tuple[float, str]] = {}
        model = gathered(self.model) if self.watch is not None else None
        if self.watch is not None and model is not None:  # rank 0 looks alone
            state, training = snapshot.random_state(), model.training
            model.eval()
            try:
                with torch.no_grad():
                    figures = dict(self.watch(model, self.step))
            finally:
                model.train(training)
                snapshot.set_random_state(state)
            if self.patience.name in figures:  # of several watches, not each is asked at every look
                values = values_of(self.watch, self.patience.name)
        figures, known = shared([figures, bool(values)])[0]
        if self.step == 0:
            self.best.check(figures)
            self.patience.check(known)
        if self.watch is not None and model is not None:
            figures |= self.patience.look(self.step, values)
            if "watched_items" in figures:  # of several watches, not each is asked at every look
                self.values, flips = flips_of(self.watch, self.values)
                figures |= {"flips": flips} if flips else {}
            self.seen.write(plain({"step": self.step, **figures}))
        if self.patience.looks:
            self.patience.load(shared(self.patience.state())[0])
        self.best.look(self.model, self.step, figures)

    def _position(self) -> State:
        """What a resumed run needs beside weights and optimizer, as it is before the next step's batch is made."""
        return {
            "step": self.step,
            "steps": self.steps.state(),
            "random": snapshot.random_state(),
            "logs": {"metrics": self.metrics.size(), "watch": self.seen.size()},
            "loop": {
                "skipped": self.skipped,
                "in_a_row": self.in_a_row,
                "rewinds": self.rewinds,
                "proven": self.proven,
                "losses": list(self.spikes.losses),
                "counts": dict(self.counts),
            },
            "best": self.best.state(),
            "patience": self.patience.state(),
            "values": dict(self.values),
            "made_on": self.made_on,
        }

    def _take(self, position: State) -> None:
        """Copy weights and optimizer beside their position: the snapshot. Written to disk when that is due."""
        now = {"weights": weights(self.model), "optimizer": self.optim.state()}
        self.good, self.due = position | self.places.copy(now, self.writer.writing), False
        every, new = self.run.checkpoint_every, position["step"] - self._saved_step
        late = time.monotonic() - self._saved > self.run.checkpoint_seconds and not self.writer.writing
        if told(bool(new and (late or (every and new >= every)))):
            self._save()

    def _save(self) -> None:
        """Begin to write the newest snapshot."""
        assert self.good is not None
        self.writer.write(self.good)
        self._saved, self._saved_step = time.monotonic(), self.good["step"]

    def _stop(self) -> bool:
        """Whether any rank is to stop; the newest snapshot is then on disk."""
        asked = torch.tensor(float(self.run.stop()), device=self.device)
        sum_over_ranks(asked)
        if not asked.item():
            return False
        if self.good is not None and self.good["step"] > self._saved_step:
            self._save()
        self.writer.join()
        return True

    def _resume(self) -> bool:
        state = snapshot.latest(self.checkpoints, self.run.say, self._check_logs)
        if state is None:
            return False
        load_weights(self.model, state["weights"])
        self.optim.load(state["optimizer"])
        self.steps.load(state["steps"])
        snapshot.set_random_state(state["random"])
        self.metrics.cut(state["logs"]["metrics"])
        self.seen.cut(state["logs"]["watch"])
        self.best.load(state["best"], self.model)
        if "patience" in state:
            self.patience.load(state["patience"])
            self.values = dict(state.get("values", {}))
        was = state["loop"]
        self.skipped, self.in_a_row, self.rewinds = was["skipped"], was["in_a_row"], was["rewinds"]
        self.proven, self.counts = was["proven"], dict(was["counts"])
        self.spikes.restart(was["losses"])
        self.step = self._saved_step = state["step"]
        self._take({name: value for name, value in state.items() if name not in ("weights", "optimizer")})
        self.run.say.note(f"going on from the checkpoint after step {self.step}")
        changed = {name: now for name, now in self.made_on.items() if state["made_on"].get(name) != now}
        if changed:
            what = ", ".join(f"{name} {state['made_on'].get(name)} -> {now}" for name, now in sorted(changed.items()))
            self._note(f"continued, not bit-identical: {what}")
        return True

    def _sync_logs(self) -> None:
        self.metrics.sync()
        self.seen.sync()

    def _check_logs(self, state: State) -> None:
        """ValueError when a log is shorter than it was when the checkpoint was made."""
        for log, size in ((self.metrics, state["logs"]["metrics"]), (self.seen, state["logs"]["watch"])):
            if log.size() < size:
                raise ValueError(f"{log.path.name} is shorter than it was")


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
