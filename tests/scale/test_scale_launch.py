"""Two real processes over gloo: the losses of one process, one artifact, resume on any number of ranks, one error."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import torch
import yaml

sys.path.insert(0, str(Path(__file__).parents[1] / "train"))

from small import MODEL, world

from tutelage.core.artifact import Artifact, Root
from tutelage.core.price import Machine
from tutelage.life import last
from tutelage.life import run as run_life
from tutelage.model.checkpoint import load_decoder
from tutelage.plan import plan
from tutelage.recipe import read_recipe
from tutelage.scale.launch import Meeting
from tutelage.train.finetune import finetune
from tutelage.train.pretrain import pretrain

READ = {**MODEL, "batch": 512, "micro": 128, "steps": 12, "checkpoint_seconds": 600, "best": "validation"}
TAUGHT = {"threads": 1, "batch": 192, "micro": 64, "steps": 6, "activations": "recompute"}
"""Three micro-batches a step: the second of two ranks has one and repeats one."""


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A root with tokens, and what one process makes of them."""
    torch.set_num_threads(1)
    root, made = world(tmp_path_factory.mktemp("scale") / "root")
    read = pretrain(root, tokens=made["tokens"], tokenizer=made["tokenizer"], **READ)
    taught = finetune(root, model=read, tokens=made["tokens"], **TAUGHT)
    return root, made, read, taught


def life(tmp_path: Path, begun, **values: object) -> tuple[Path, Path]:
    """(recipe file, root): the tokens of the world, in a root where no model was made yet."""
    root, made, *_ = begun
    shutil.copytree(root.path, tmp_path / "root", ignore=shutil.ignore_patterns("model", "work"))
    tokens, tokenizer = made["tokens"].ref, made["tokenizer"].ref
    recipe = {
        "pretrain": {**READ, **values, "tokens": tokens, "tokenizer": tokenizer},
        "finetune": {**TAUGHT, "tokens": tokens},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return tmp_path / "recipe.yaml", tmp_path / "root"


def command(recipe: Path, root: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "tutelage", "run", str(recipe), "--root", str(root), *more]


def run(*arguments: object, seconds: float = 120) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command(*arguments), env=environment, capture_output=True, text=True, timeout=seconds, check=False
    )


def losses(artifact: Artifact) -> list[float]:
    rows = [json.loads(line) for line in artifact.file("metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


def same(one: Artifact, other: Artifact, rel: float = 1e-4) -> None:
    """Equal but for the order in which fp32 sums were taken."""
    assert losses(one) == pytest.approx(losses(other), rel=rel)
    for left, right in zip(load_decoder(one.path).parameters(), load_decoder(other.path).parameters(), strict=True):
        torch.testing.assert_close(left, right, rtol=0.02, atol=2e-3)


def test_two_ranks_train_what_one_does(tmp_path, begun):
    recipe, root = life(tmp_path, begun)
    done = run(recipe, root, "--ranks", "2")
    assert done.returncode == 0, done.stderr
    made = last(Root(root))
    same(made["pretrain"], begun[2])
    same(made["finetune"], begun[3])
    assert made["pretrain"].manifest.config == begun[2].manifest.config
    assert {each.id for each in Root(root).list("model")} == {each.id for each in made.values()}
    assert not list((root / "work").glob("*/"))


def test_ranks_that_a_machine_cannot_bear_are_refused(tmp_path, begun):
    recipe, root = life(tmp_path, begun)
    done = run(recipe, root, "--ranks", "999")
    assert done.returncode == 2 and "key '--ranks': 999 ranks are too many for" in done.stderr


def test_a_stage_that_the_ranks_do_not_help_in_says_so_once(tmp_path, begun):
    made, root = begun[1], Root(life(tmp_path, begun)[1])
    given = {"corpus": made["corpus"].ref, "tokenizer": made["tokenizer"].ref}
    recipe = read_recipe({f"encode@{most}": {**given, "dialogue_tokens": most} for most in (199, 200)})
    said = []
    led = Meeting(store=None, rank=0, ranks=2).leads(recipe)
    run_life(led, root, planned=plan(recipe, root, Machine(gemm=1e11)), sinks=(said.append,))
    notes = [(each.stage, each.text) for each in said if "ranks" in each.text]
    assert notes == [("encode@199", "2 ranks train pretrain, finetune and dpo; the other stages are rank 0's")]


@pytest.mark.slow
def test_torchrun_starts_the_same(tmp_path, begun):
    recipe, root = life(tmp_path, begun)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    done = subprocess.run(
        [*torchrun, *command(recipe, root)[2:]], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    same(last(Root(root))["finetune"], begun[3])


def test_an_error_is_said_once_and_ends_all(tmp_path, begun):
    recipe, root = life(tmp_path, begun, micro=32)
    done = run(recipe, root, "--ranks", "2", seconds=60)
    assert done.returncode == 2
    assert done.stderr.count("error: a micro-batch of 32 tokens cannot hold a piece of 64") == 1
    assert "Traceback" not in done.stderr


def checkpoints(root: Path) -> list[int]:
    return sorted(int(each.name.removeprefix("step-")) for each in root.glob("work/*/checkpoints/step-*"))


def ranks_of(parent: int) -> list[int]:
    """Processes that a launcher started, by rank (Linux)."""
    found = []
    for file in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            if int(file.read_text().rpartition(")")[2].split()[1]) == parent:
                found.append(int(file.parent.name))
    return sorted(found)


@contextmanager
def at_work(recipe: Path, root: Path, ranks: int):
    """A run that has written a checkpoint or two."""
    before, environment = checkpoints(root), {**os.environ, "OMP_NUM_THREADS": "1"}
    more = ("--only", "pretrain", "--ranks", str(ranks))
    process = subprocess.Popen(command(recipe, root, *more), env=environment, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 90
        while checkpoints(root) == before and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        yield process
    finally:
        process.kill()
        process.communicate()


LONG = {"steps": 60, "checkpoint_seconds": 0.05, "matrix_rate": 0.004, "embedding_rate": 0.001}
"""Low rates: at high ones rounding grows within some dozen steps."""


def alone(begun, **values):
    root, made, *_ = begun
    return pretrain(root, tokens=made["tokens"], tokenizer=made["tokenizer"], **{**READ, **values})


@pytest.mark.slow
def test_stopped_on_two_ranks_and_ended_by_one(tmp_path, begun):
    (recipe, root), whole = life(tmp_path, begun, **LONG), alone(begun, **LONG)
    with at_work(recipe, root, 2) as process:
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=60)
        assert process.returncode == 130, said
        assert said.count("stopped: stopped after") == 1
    assert list(root.glob("work/*/checkpoints/step-*/tensors-1.safetensors"))
    done = run(recipe, root, "--only", "pretrain")
    assert done.returncode == 0, done.stderr
    same(last(Root(root))["pretrain"], whole, rel=1e-3)
    assert "ranks 2 -> 1" in last(Root(root))["pretrain"].file("metrics.jsonl").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_killed_and_gone_on_by_three_ranks(tmp_path, begun, victim):
    (recipe, root), whole = life(tmp_path, begun, **LONG), alone(begun, **LONG)
    with at_work(recipe, root, 2) as process:
        os.kill(ranks_of(process.pid)[victim], signal.SIGKILL)
        _, said = process.communicate(timeout=90)
        assert process.returncode == 1, said
        assert len(re.findall(r"^error: .* was killed, and all ranks with it", said, re.M)) == 1
        assert "Traceback" not in said
    done = run(recipe, root, "--only", "pretrain", "--ranks", "3")
    assert done.returncode == 0, done.stderr
    same(last(Root(root))["pretrain"], whole, rel=1e-3)
