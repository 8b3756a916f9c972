"""The life on public data in its small form: real sets, real people's recorded answers, a tiny model, every stage."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tutelage import life
from tutelage.core.artifact import Artifact, Root
from tutelage.core.records import read_jsonl
from tutelage.evaluate.suite import Result
from tutelage.govern.card import model_card
from tutelage.recipe import read_recipe

HOME = Path(__file__).resolve().parents[1]
RECIPE = HOME / "recipes" / "public.yaml"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        not Path(os.environ.get("TUTELAGE_DATA") or "/nowhere").is_dir(),
        reason="TUTELAGE_DATA names no folder with the public sets, and this test downloads nothing",
    ),
]


def tutelage(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tutelage", *arguments]
    return subprocess.run(command, cwd=HOME, env=environment, capture_output=True, text=True, timeout=800, check=False)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Root:
    root = tmp_path_factory.mktemp("public") / "root"
    lines = (HOME / "tests" / "public_small.txt").read_text().splitlines()
    small = [line for line in lines if line and not line.startswith("#")]
    done = tutelage("run", str(RECIPE), *small, "--root", str(root))
    assert done.returncode == 0, done.stderr
    return Root(root)


@pytest.fixture(scope="module")
def made(root: Root) -> dict[str, Artifact]:
    return life.last(root)


def told(artifact: Artifact, name: str) -> Any:
    return json.loads(artifact.file(name).read_text())


def test_every_stage_is_sealed_and_its_licences_travelled(root: Root, made: dict[str, Artifact]) -> None:
    assert list(made) == list(read_recipe(RECIPE).sections)
    for artifact in made.values():
        artifact.verify()
        assert {"permissive", "non-commercial", "not-stated"} <= set(artifact.manifest.licences), artifact.ref
    card = model_card(root, made["bundle"])
    assert "non-commercial" in card and "internal use" in card and "replayed" in card


def test_the_people_are_real_and_marked_replayed(made: dict[str, Artifact]) -> None:
    for artifact in made.values():
        assert not artifact.manifest.simulated, artifact.ref
    sources = {"pref_pandalm", "pref_ukp_arguments", "rank_translation_en_de", "rank_translation_zh_en"}
    projects = told(made["collect"], "summary.json")["projects"]
    assert {name.partition("-")[2].partition("-")[2] for name in projects} == sources
    assert told(made["preferences"], "agreement.json")["people"] == "replayed"
    assert made["preferences"].metrics["persons"] > 20


def test_the_reward_model_stands_beside_what_the_people_agree_on(made: dict[str, Artifact]) -> None:
    found = made["reward"].metrics
    assert found["people"] == ["replayed"], "unnamed comparisons are counted by themselves"
    for name in ("accuracy", "ceiling"):
        assert 0 <= found[name]["low"] <= found[name]["value"] <= found[name]["high"] <= 1 and found[name]["n"]
    assert found["ceiling"]["value"] > 0.5 and found["unnamed"]["n"]


def test_recorded_votes_review_the_service(made: dict[str, Artifact]) -> None:
    story = told(made["cycle"], "cycle.json")
    assert story["people"] == "replayed" and not story["simulated"]
    assert sorted(story["weeks"]) == ["1", "2", "3"]
    estimates = [each for week in (*story["weeks"].values(), story["fresh"]) for each in week["estimates"]]
    assert estimates and {each["people"] for each in estimates} == {"replayed"}
    assert all(each["low"] <= each["value"] <= each["high"] for each in estimates if each["value"] is not None)
    for candidate in ("careless", "retrained"):
        assert story["candidates"][candidate]["verdict"]["reason"]


def test_the_models_are_examined_and_attacked(made: dict[str, Artifact]) -> None:
    rows = list(read_jsonl(made["evaluate"].file("results.jsonl"), Result))
    kinds = {row.metric for row in rows if row.value is not None}
    assert {"f1", "chrf", "accuracy"} <= kinds
    bias = told(made["redteam"], "bias.json")
    assert {"bbq", "crows_pairs", "winobias"} == {each["suite"] for each in bias["stereotypes"]}


def test_the_report_is_written(root: Root, made: dict[str, Artifact]) -> None:
    assert tutelage("report", "--root", str(root.path)).returncode == 0
    page = (root.path / "reports" / "life.html").read_text()
    assert "<svg" in page and "replayed" in page and "non-commercial" in page
