"""The examples run, in their order, in one folder: what a reader types works."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HOME = Path(__file__).resolve().parents[1]
EXAMPLES = sorted((HOME / "examples").glob("[0-9]*.py"))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("examples") / "life"


def test_they_stand_in_order() -> None:
    assert [int(file.name[:2]) for file in EXAMPLES] == list(range(1, len(EXAMPLES) + 1))
    for file in EXAMPLES:
        text = file.read_text(encoding="utf-8")
        assert f"python examples/{file.name} [ROOT]" in text and len(text.splitlines()) < 60
        compile(text, str(file), "exec")


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_an_example_runs(file: Path, root: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(file), str(root)], cwd=HOME, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert done.stdout.strip() and "Traceback" not in done.stderr
