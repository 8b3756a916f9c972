"""The whole life in miniature: the starter recipe at a tenth, every stage real, run as a user runs it."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tutelage import life
from tutelage.core.artifact import Root
from tutelage.recipe import read_recipe

HOME = Path(__file__).resolve().parents[1]
RECIPE = HOME / "recipes" / "starter.yaml"
pytestmark = pytest.mark.timeout(600)


def small() -> list[str]:
    """The overrides that make a tenth of the starter life."""
    lines = (HOME / "tests" / "small_life.txt").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def tutelage(*arguments: str, seconds: float = 300) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tutelage", *arguments]
    return subprocess.run(
        command, cwd=HOME, env=environment, capture_output=True, text=True, timeout=seconds, check=False
    )


@pytest.fixture(scope="module")
def lived(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    root = tmp_path_factory.mktemp("life") / "root"
    done = tutelage("run", str(RECIPE), *small(), "--root", str(root))
    assert done.returncode in (0, 4), done.stderr
    return root, done


def test_every_stage_is_sealed_and_whole(lived: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    root, _ = lived
    made = life.last(Root(root))
    recipe = read_recipe(RECIPE)
    assert list(made) == list(recipe.sections)
    for artifact in made.values():
        artifact.verify()
        assert artifact.manifest.licences, f"{artifact} has lost its licences"


def test_simulated_people_are_marked_wherever_they_stand(lived: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    made = life.last(Root(lived[0]))
    assert not made["finetune"].manifest.simulated
    for name in ("preferences", "reward", "rlhf", "dpo", "bundle", "release"):
        assert made[name].manifest.simulated, name


def test_the_same_command_again_makes_nothing_anew(lived: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    root, first = lived
    before = {artifact.ref: artifact.path.stat().st_mtime for artifact in Root(root).list()}
    again = tutelage("run", str(RECIPE), *small(), "--root", str(root))
    assert again.returncode == first.returncode, again.stderr
    assert {artifact.ref: artifact.path.stat().st_mtime for artifact in Root(root).list()} == before
    assert again.stderr.count("made already") == len(read_recipe(RECIPE).sections)


def test_it_says_what_was_learned_and_what_comes_next(lived: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    root, done = lived
    assert "finetune" in done.stdout
    assert ("careless: refused" in done.stdout) == (done.returncode == 0), "the wheel is told"
    assert (f"serve --root {root}" in done.stdout) == (done.returncode == 0), "what was refused is not served"
    assert tutelage("report", "--root", str(root)).returncode == 0
    page = (root / "reports" / "life.html").read_text()
    assert "<svg" in page and "simulated" in page and "http://" not in page.replace("http://www.w3.org", "")


def test_the_wheel_tells_its_weeks_and_keeps_the_careless_out(
    lived: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    told = json.loads(life.last(Root(lived[0]))["cycle"].file("cycle.json").read_text())
    assert set(told["weeks"]) == {"1", "2", "3", "4"} and told["simulated"]
    for week in (*told["weeks"].values(), told["fresh"]):
        assert week["truth"]["miss_rate"]["n"] > 0 and week["estimates"]
    verdict = told["candidates"]["careless"]["verdict"]
    assert not verdict["promote"] and verdict["reason"].startswith("refused")


def test_lineage_leads_back_to_the_first_text(lived: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    done = tutelage("lineage", "bundle", "--root", str(lived[0]), "--json")
    stages = {each["stage"] for each in json.loads(done.stdout)}
    assert {
        "prepare",
        "tokenizer",
        "encode",
        "pretrain",
        "finetune",
        "collect",
        "preferences",
        "reward",
        "rlhf",
    } <= stages


def until(file: Path, text: str, seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if file.is_file() and text in file.read_text():
            return
        time.sleep(0.02)
    pytest.fail(f"{file} never said {text!r}")


@pytest.mark.parametrize("number", (signal.SIGKILL, signal.SIGINT))
def test_stopped_at_any_moment_it_ends_with_the_same_bits(
    lived: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path, number: signal.Signals
) -> None:
    """Killed or interrupted in the middle of training, the same command ends with the very same artifacts."""
    whole = life.last(Root(lived[0]))
    root = tmp_path / "root"
    command = [
        sys.executable,
        "-m",
        "tutelage",
        "run",
        str(RECIPE),
        *small(),
        "--root",
        str(root),
        "--until",
        "finetune",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    draw = random.Random(int(number))
    for stage in ("pretrain", "finetune"):
        with subprocess.Popen(command, cwd=HOME, env=environment, stderr=subprocess.PIPE, text=True) as running:
            until(root / "events" / f"{stage}.jsonl", '"progress"', 120)
            time.sleep(draw.uniform(0.05, 0.8))
            running.send_signal(number)
            running.wait(60)
            if number == signal.SIGINT and running.returncode:
                assert running.returncode == 130 and "stopped" in str(running.stderr and running.stderr.read())
    done = subprocess.run(command, cwd=HOME, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    parts = life.last(Root(root))
    assert {name: artifact.id for name, artifact in parts.items()} == {name: whole[name].id for name in parts}


def test_two_runs_on_one_root_do_not_disturb_each_other(tmp_path: Path) -> None:
    root = tmp_path / "root"
    command = [
        sys.executable,
        "-m",
        "tutelage",
        "run",
        str(RECIPE),
        *small(),
        "--root",
        str(root),
        "--until",
        "prepare",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    both = [
        subprocess.Popen(command, cwd=HOME, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    errors = [each.communicate(timeout=120)[1] for each in both]
    codes = sorted(each.returncode for each in both)
    assert codes in ([0, 0], [0, 1]), errors
    if codes == [0, 1]:
        assert any("is at work on it already" in error and "Traceback" not in error for error in errors)
    life.last(Root(root))["prepare"].verify()
