"""The loop: equal gradients however a step is cut, exact resume after any kill, damaged checkpoints, divergence."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch
from tiny import Tiny, text, train

from tutelage.core.errors import DataError, Diverged, NoSpace, Stopped
from tutelage.core.events import Reporter
from tutelage.train import snapshot
from tutelage.train.batch import TokenSteps, token_batch
from tutelage.train.loop import Run, Watches, fit
from tutelage.train.objectives import NextToken, Sums
from tutelage.train.optim import Optimizer, Rates, Schedule, weights


class Fixed:
    """The same list of micro-batches at every step."""

    def __init__(self, batches):
        self.batches = batches

    def __iter__(self):
        while True:
            yield self.batches

    def state(self):
        return {}

    def load(self, state):
        pass


def gradients(tmp_path, groups, name):
    source = text(8)
    segments = [source.tokens[a:b] for a, b in zip(source.offsets[:-1], source.offsets[1:], strict=True)]
    model = Tiny(dtype=torch.float64)
    optim = Optimizer(model, Rates(), Schedule(), 1, clip=0)
    seen = {}
    optim.step = lambda step, norm: seen.update({n: p.grad.clone() for n, p in model.named_parameters()}) or 1.0
    batches = [token_batch([segments[index] for index in group]) for group in groups]
    fit(model, Fixed(batches), NextToken(), optim, run=Run(1, tmp_path / name))
    return seen


def test_gradients_do_not_depend_on_how_a_step_is_cut(tmp_path):
    whole = gradients(tmp_path, [range(8)], "8x1")
    for name, groups in {"1x8": [[i] for i in range(8)], "uneven": [[0, 1, 2], [3], [4, 5, 6, 7]]}.items():
        other = gradients(tmp_path, groups, name)
        for key, value in whole.items():
            torch.testing.assert_close(other[key], value, rtol=1e-10, atol=1e-12)


def same(left: Path, right: Path, one: torch.nn.Module, two: torch.nn.Module) -> None:
    assert (left / "metrics.jsonl").read_bytes() == (right / "metrics.jsonl").read_bytes()
    assert all(torch.equal(a, b) for a, b in zip(weights(one).values(), weights(two).values(), strict=True))


def test_it_learns_and_writes_one_row_a_step(tmp_path):
    train(tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 31))
    assert rows[-1]["loss"] < 0.7 * rows[0]["loss"]
    assert {"loss", "norm", "rate", "n_tokens"} <= set(rows[0])


@pytest.mark.parametrize("after", [1, 5, 9, 29])
def test_stopped_and_started_again(tmp_path, after):
    whole = train(tmp_path / "whole")
    calls = iter(range(100))
    with pytest.raises(Stopped, match=f"after {after} of 30"):
        train(tmp_path / "cut", stop=lambda: next(calls) >= after)
    same(tmp_path / "whole", tmp_path / "cut", whole, train(tmp_path / "cut"))


def checkpoints(work: Path) -> list[int]:
    """The steps that checkpoints stand at."""
    return sorted(int(each.name.removeprefix("step-")) for each in work.glob("checkpoints/step-*"))


def through(work: Path, seed: int, far: int) -> None:
    """What the process that gets killed does. Past step `far` it waits for that: a slow killer must find it at work."""

    def wait() -> bool:
        if max(checkpoints(work), default=0) >= far:
            time.sleep(60)
        return False

    train(work, total=90, every=4, seed=seed, stop=wait)
    (work / "through").touch()


def kills(tmp_path, seed: int, count: int) -> None:
    """Kill a training process at random instants until it gets through; compare with an uninterrupted run."""
    whole = train(tmp_path / "whole", total=90, every=4, seed=seed)
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["tiny"])  # imports torch once, not once per kill
    instants, killed, work = random.Random(seed), 0, tmp_path / "killed"
    while not (work / "through").exists():
        far = 90 * (killed + 1) // (count + 1) if killed < count else 90
        process = processes.Process(target=through, args=(work, seed, far))
        before = checkpoints(work)
        process.start()
        if killed < count:
            deadline = time.monotonic() + 60
            while process.is_alive() and checkpoints(work) == before:
                assert time.monotonic() < deadline
                time.sleep(0.002)
            time.sleep(instants.random() * 0.05)
            process.kill()
            killed += 1
        process.join(60)
        assert process.exitcode in (0, -signal.SIGKILL)
    assert killed == count
    same(tmp_path / "whole", work, whole, train(work, total=90, every=4, seed=seed))


def test_killed_at_random_instants(tmp_path):
    kills(tmp_path, seed=0, count=4)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 11))
def test_killed_many_times(tmp_path, seed):
    kills(tmp_path, seed=seed, count=5)


def damage(path: Path) -> None:
    file = path / "tensors.safetensors"
    blob = bytearray(file.read_bytes())
    blob[-5] ^= 1
    file.write_bytes(blob)


def test_a_damaged_checkpoint_is_passed_over_and_said(tmp_path):
    whole = train(tmp_path / "whole")
    calls = iter(range(100))
    with pytest.raises(Stopped):
        train(tmp_path / "cut", stop=lambda: next(calls) >= 15)
    newest, before = snapshot.found(tmp_path / "cut" / "checkpoints")
    damage(newest)
    said = []
    say = Reporter("test", sinks=(lambda event: said.append(event.text),))
    again = train(tmp_path / "cut", say=say)
    assert any("damaged" in text and newest.name in text for text in said)
    assert any(f"step {int(before.name[5:])}" in text for text in said)
    same(tmp_path / "whole", tmp_path / "cut", whole, again)
    for name in ("state.json", "checksums.json"):  # torn ones, and none left at all
        calls = iter(range(100))
        with pytest.raises(Stopped):
            train(tmp_path / name, stop=lambda calls=calls: next(calls) >= 15)
        for path in snapshot.found(tmp_path / name / "checkpoints"):
            (path / name).write_bytes((path / name).read_bytes()[:10])
        same(tmp_path / "whole", tmp_path / name, whole, train(tmp_path / name))


def test_a_full_disk_is_one_clear_error(tmp_path, monkeypatch):
    whole = train(tmp_path / "whole")
    real, left = os.fsync, iter(range(100))

    def full(handle):
        if next(left) == 14:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(NoSpace, match="disk is full"):
        train(tmp_path / "cut")
    monkeypatch.undo()
    assert not list((tmp_path / "cut" / "checkpoints").glob(".step*"))
    same(tmp_path / "whole", tmp_path / "cut", whole, train(tmp_path / "cut"))


class Sometimes:
    """Next-token loss that is not a number at some calls."""

    def __init__(self, bad):
        self.bad, self.calls, self.inner = bad, 0, NextToken()
        self.weights = self.inner.weights

    def __call__(self, model, batch):
        self.calls += 1
        found = self.inner(model, batch)
        return Sums({"tokens": found.terms["tokens"] * float("nan")}, {}) if self.calls in self.bad else found


def attempt(tmp_path, bad):
    model, steps = Tiny(), TokenSteps(text(), 16, 64, pool=16)
    optim = Optimizer(model, Rates(), Schedule(), 20)
    return model, fit(model, steps, Sometimes(bad), optim, run=Run(20, tmp_path))


def test_a_step_that_is_not_finite_changes_nothing(tmp_path):
    model, fitted = attempt(tmp_path, {3, 9})
    assert fitted.skipped == 2
    assert all(torch.isfinite(p).all() for p in model.parameters())
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "skipped" in row] == [3, 9]
    assert rows[2]["loss"] is None


def test_too_many_of_them_stop_the_run(tmp_path):
    with pytest.raises(Diverged, match="5 in a row"):
        attempt(tmp_path, set(range(4, 20)))


class Noisy:
    """A watch that misuses every random state and the model's mode."""

    every = 7

    def __init__(self):
        self.steps = []

    def __call__(self, model, step):
        torch.rand(3), torch.manual_seed(step)
        assert not model.training and not torch.is_grad_enabled()
        self.steps.append(step)
        return {"figure": float(step), "undefined": float("nan")}


def test_a_watch_disturbs_nothing(tmp_path):
    whole, watch = train(tmp_path / "plain"), Noisy()
    model = Tiny()
    steps = TokenSteps(text(), 16, 64, accumulate=2, pool=16)
    optim = Optimizer(model, Rates(), Schedule(), 30)
    fit(model, steps, NextToken(), optim, run=Run(30, tmp_path / "watched"), watch=Watches(30, watch, None))
    assert watch.steps == [0, 7, 14, 21, 28, 30]
    same(tmp_path / "plain", tmp_path / "watched", whole, model)
    rows = [json.loads(line) for line in (tmp_path / "watched" / "watch.jsonl").read_text().splitlines()]
    assert rows[1] == {"step": 7, "figure": 7.0, "undefined": None}


class Short(Fixed):
    def __iter__(self):
        yield self.batches


def test_data_that_ends_is_named(tmp_path):
    model = Tiny()
    batches = [token_batch([text(1).tokens])]
    with pytest.raises(DataError, match="1 of 5"):
        fit(model, Short(batches), NextToken(), Optimizer(model, Rates(), Schedule(), 5), run=Run(5, tmp_path))


def test_another_thread_count_is_said(tmp_path):
    calls = iter(range(100))
    with pytest.raises(Stopped):
        train(tmp_path, stop=lambda: next(calls) >= 3)
    newest = snapshot.found(tmp_path / "checkpoints")[0]
    state = snapshot.read(newest)
    state["made_on"]["threads"] = 64
    snapshot.write(tmp_path / "checkpoints", 3, state)
    train(tmp_path)
    assert "not bit-identical: threads 64 -> 1" in (tmp_path / "metrics.jsonl").read_text()
