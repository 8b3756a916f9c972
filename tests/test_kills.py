"""Every training stage, killed at random instants again and again: the same artifact to the byte as without a kill."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent / "train"))

from killing import kill_through, waiting
from small import READ, TAUGHT, taught

from tutelage.align.dpo import dpo
from tutelage.align.rlhf import rlhf
from tutelage.core.artifact import Artifact, Root
from tutelage.core.stage import open_inputs, run_stage, stage_key
from tutelage.judge.reward import reward
from tutelage.train.finetune import finetune
from tutelage.train.pretrain import pretrain

KILLS = 9
RATES = {"threads": 1, "matrix_rate": 0.01, "embedding_rate": 0.005, "scalar_rate": 0.005}
SAMPLED = {**RATES, "max_tokens": 6, "kl": 0.01, "kl_target": 0.5}
STAGES: dict[str, tuple[Any, tuple[str, ...], dict[str, Any], int]] = {
    "pretrain": (pretrain, ("tokens", "tokenizer"), {**READ, "seed": 1, "best": "validation"}, 100),
    "finetune": (finetune, ("model", "tokens"), {**TAUGHT, "seed": 1}, 60),
    "reward": (reward, ("model", "preferences"), {**RATES, "steps": 60}, 60),
    "ppo": (rlhf, ("model", "reward", "corpus"), {**SAMPLED, "iterations": 9, "prompts": 24, "minibatches": 2}, 36),
    "grpo": (
        rlhf,
        ("model", "reward", "corpus"),
        {**SAMPLED, "method": "grpo", "iterations": 14, "prompts": 16, "group": 4},
        28,
    ),
    "dpo": (dpo, ("model", "preferences"), {**RATES, "steps": 60}, 60),
}
OFTEN = {"good_every": 3, "checkpoint_seconds": 1e-6}


def work_of(root: Root, name: str, inputs: dict[str, str]) -> tuple[Any, dict[str, Any], Path]:
    """Stage, configuration and work folder, as `run_stage` will have them."""
    stage, _, settings, _ = STAGES[name]
    config = stage.config(**settings, **OFTEN)
    return stage, config, root.work / stage_key(stage, config, open_inputs(stage, root, inputs))


def job(path: str, name: str, inputs: dict[str, str], far: int) -> None:
    """What the process that gets killed does: the whole stage, from the artifacts it reads to the one it seals."""
    root = Root(path)
    stage, config, work = work_of(root, name, inputs)
    run_stage(stage, root, config=config, inputs=inputs, stop=waiting(work, far))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Root, dict[str, Artifact]]:
    root, found = taught(tmp_path_factory.mktemp("kills") / "root")
    found["reward"] = reward(root, model=found["finetune"], preferences=found["preferences"], **RATES, steps=40)
    return root, found


@pytest.mark.slow
@pytest.mark.parametrize("name", STAGES)
def test_a_stage_that_is_killed_ends_in_the_same_artifact(made: Any, tmp_path: Path, name: str) -> None:
    root, found = made
    stage, needed, _, total = STAGES[name]
    model = "pretrain" if name == "finetune" else "finetune"
    inputs = {each: found[model if each == "model" else each].ref for each in needed}
    other = Root(tmp_path / "other")
    shutil.copytree(root.path, other.path)
    _, config, work = work_of(other, name, inputs)
    torn = kill_through(
        job, (str(other.path), name, inputs), work, total=total, count=KILLS, seed=len(name), preload=["test_kills"]
    )
    whole = run_stage(stage, root, config=config, inputs=inputs)
    killed = other.find(f"{whole.kind}:{whole.id}")
    killed.verify()
    assert killed.manifest.made["resumed"] and "resumed" not in whole.manifest.made
    for file in sorted(whole.manifest.files):
        assert killed.file(file).read_bytes() == whole.file(file).read_bytes(), file
    assert {"metrics.jsonl", "model.safetensors"} <= set(whole.manifest.files)
    print(name, KILLS, "kills,", torn, "while a checkpoint was being written")
    assert torn, "none was killed while it wrote a checkpoint"
