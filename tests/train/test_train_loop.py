"""The loop: equal gradients however a step is cut, exact resume after any kill, damaged checkpoints, divergence."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from killing import checkpoints, kill_through, waiting
from tiny import Tiny, text, train

from tutelage.core.errors import DataError, NoSpace, Stopped
from tutelage.train import snapshot
from tutelage.train.batch import TokenSteps, token_batch
from tutelage.train.loop import Run, Watches, fit
from tutelage.train.objectives import NextToken
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


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[Path, Tiny]:
    """A run that nothing came between."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, train(folder)


def same(whole: tuple[Path, Tiny], work: Path, model: torch.nn.Module) -> None:
    left, one = whole
    assert (left / "metrics.jsonl").read_bytes() == (work / "metrics.jsonl").read_bytes()
    assert all(torch.equal(a, b) for a, b in zip(weights(one).values(), weights(model).values(), strict=True))


def test_it_learns_and_writes_one_row_a_step(whole):
    rows = [json.loads(line) for line in (whole[0] / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 31))
    assert rows[-1]["loss"] < 0.7 * rows[0]["loss"]
    assert {"loss", "norm", "rate", "n_tokens"} <= set(rows[0])


@pytest.mark.parametrize("after", [1, 5, 9, 29])
def test_stopped_and_started_again(whole, tmp_path, after):
    calls = iter(range(100))
    with pytest.raises(Stopped, match=f"after {after} of 30"):
        train(tmp_path, stop=lambda: next(calls) >= after)
    same(whole, tmp_path, train(tmp_path))


def through(work: Path, seed: int, far: int) -> None:
    """What the process that gets killed does."""
    train(work, total=60, every=4, seed=seed, stop=waiting(work, far))


def test_killed_at_random_instants(tmp_path):
    """Three kills; tests/test_kills.py has the many, in every stage."""
    work = tmp_path / "killed"
    kill_through(through, (work, 0), work, total=60, count=3, seed=0, preload=["tiny"])
    whole = tmp_path / "whole", train(tmp_path / "whole", total=60, every=4)
    same(whole, work, train(work, total=60, every=4))


def test_a_full_disk_is_one_clear_error(whole, tmp_path, monkeypatch):
    real, left = os.fsync, iter(range(100))

    def full(handle):
        if next(left) == 14:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(NoSpace, match="disk is full"):
        train(tmp_path)
    monkeypatch.undo()
    assert not list((tmp_path / "checkpoints").glob(".step*"))
    assert checkpoints(tmp_path), "those before the disk was full are intact"
    same(whole, tmp_path, train(tmp_path))


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


def test_a_watch_disturbs_nothing(whole, tmp_path):
    model, watch = Tiny(), Noisy()
    steps = TokenSteps(text(), 16, 64, accumulate=2, pool=16)
    optim = Optimizer(model, Rates(), Schedule(), 30)
    fit(model, steps, NextToken(), optim, run=Run(30, tmp_path), watch=Watches(30, watch, None))
    assert watch.steps == [0, 7, 14, 21, 28, 30]
    same(whole, tmp_path, model)
    rows = [json.loads(line) for line in (tmp_path / "watch.jsonl").read_text().splitlines()]
    assert rows[1] == {"step": 7, "figure": 7.0, "undefined": None}


class Short(Fixed):
    def __iter__(self):
        yield self.batches


def test_data_that_ends_is_named(tmp_path):
    model = Tiny()
    batches = [token_batch([text(1).tokens])]
    with pytest.raises(DataError, match="1 of 5"):
        fit(model, Short(batches), NextToken(), Optimizer(model, Rates(), Schedule(), 5), run=Run(5, tmp_path))


def test_an_empty_batch_is_named(tmp_path):
    batches = [token_batch([text(1).tokens], [np.zeros(len(text(1).tokens), bool)])]
    for empty in (batches, []):
        with pytest.raises(DataError, match="batch of step 1 is empty"):
            model = Tiny()
            fit(model, Fixed(empty), NextToken(), Optimizer(model, Rates(), Schedule(), 5), run=Run(5, tmp_path))


def test_data_of_less_than_one_batch_are_gone_through_again(tmp_path):
    model, source = Tiny(), text(3, longest=12)
    steps = TokenSteps(source, 16, 64, accumulate=4)
    fit(model, steps, NextToken(), Optimizer(model, Rates(), Schedule(), 8), run=Run(8, tmp_path))
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert all(row["n_tokens"] == 4 * (len(source.tokens) - 3) for row in rows)
    assert rows[-1]["loss"] < rows[0]["loss"]


def test_a_checkpoint_is_written_while_training_goes_on(whole, tmp_path, monkeypatch):
    """The writer is held until 12 more steps are done; what it then writes is the state of its own step."""
    real, held, calls = snapshot.write, threading.Event(), []

    def slow(folder, state, keep, given_up):
        assert held.wait(30)
        return real(folder, state, keep, given_up)

    def count():
        calls.append(1)
        if len(calls) == 16:
            held.set()
        return len(calls) > 20

    monkeypatch.setattr(snapshot, "write", slow)
    with pytest.raises(Stopped):
        train(tmp_path, every=0, good_every=4, checkpoint_seconds=1e-9, keep=9, stop=count)
    monkeypatch.undo()
    *newer, oldest = snapshot.found(tmp_path / "checkpoints")
    assert newer and snapshot.read(oldest)["step"] == 4
    for path in newer:
        shutil.rmtree(path)
    same(whole, tmp_path, train(tmp_path))


@pytest.mark.parametrize("keep", [1, 3])
def test_so_many_checkpoints_are_kept(tmp_path, keep):
    train(tmp_path, keep=keep)
    assert checkpoints(tmp_path) == [16, 20, 24, 28][-keep:]


def test_other_threads_or_another_processor_are_said(tmp_path):
    calls = iter(range(100))
    with pytest.raises(Stopped):
        train(tmp_path, stop=lambda: next(calls) >= 7)
    newest = snapshot.found(tmp_path / "checkpoints")[0]
    state = snapshot.read(newest)
    named, info = state["made_on"]["device"], Path("/proc/cpuinfo")
    assert named == (re.findall("(?m)^model name.*: (.*)$", info.read_text() if info.is_file() else "") or [named])[0]
    state["made_on"] |= {"threads": 64, "device": "AMD K6"}
    snapshot.write(tmp_path / "checkpoints", state)
    train(tmp_path)
    assert f"not bit-identical: device AMD K6 -> {named}, threads 64 -> 1" in (tmp_path / "metrics.jsonl").read_text()
