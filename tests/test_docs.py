"""The documents cannot rot: every code block says whether it is run, and the marked ones are run here.

A block's first line reads ```bash test, ```bash test slow, ```bash test background or ```bash no-test: reason.
"""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

HOME = Path(__file__).resolve().parents[1]
DOCUMENTS = [HOME / "README.md", *sorted((HOME / "docs").glob("*.md"))]
LANGUAGES = ("bash", "python", "yaml", "json", "text", "")


class Block:
    def __init__(self, file: Path, line: int, info: str, code: str) -> None:
        self.file, self.line, self.code = file, line, code
        self.language, _, self.mark = info.strip().partition(" ")

    def __repr__(self) -> str:
        return f"{self.file.name}:{self.line}"


def blocks() -> list[Block]:
    found = []
    for file in DOCUMENTS:
        text = file.read_text(encoding="utf-8")
        for match in re.finditer(r"^```([^\n]*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
            line = text[: match.start()].count("\n") + 1
            found.append(Block(file, line, match[1], match[2]))
    return found


RUNNABLE = [block for block in blocks() if block.language in ("bash", "python")]


@pytest.mark.parametrize("block", RUNNABLE, ids=repr)
def test_every_block_says_whether_it_is_run(block: Block) -> None:
    assert re.fullmatch(r"test( slow| background)?|no-test: \S.*", block.mark), (
        f"{block}: write `test`, `test slow`, `test background` or `no-test: reason` behind ```{block.language}"
    )


def command(block: Block) -> list[str]:
    return (
        ["bash", "-euo", "pipefail", "-c", block.code]
        if block.language == "bash"
        else [sys.executable, "-c", block.code]
    )


def environment() -> dict[str, str]:
    path = f"{HOME / '.venv' / 'bin'}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"}


def run(block: Block, seconds: float) -> None:
    done = subprocess.run(
        command(block), cwd=HOME, env=environment(), capture_output=True, text=True, timeout=seconds, check=False
    )
    assert done.returncode == 0, f"{block} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"


@pytest.mark.parametrize("block", [each for each in RUNNABLE if each.mark == "test"], ids=repr)
def test_blocks_run(block: Block) -> None:
    run(block, 60)


@pytest.mark.slow
@pytest.mark.parametrize("block", [each for each in RUNNABLE if each.mark == "test slow"], ids=repr)
def test_slow_blocks_run(block: Block) -> None:
    run(block, 1100)


@pytest.mark.slow
@pytest.mark.parametrize("block", [each for each in RUNNABLE if each.mark == "test background"], ids=repr)
def test_services_stay_up(block: Block) -> None:
    service = subprocess.Popen(
        command(block), cwd=HOME, env=environment(), stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        time.sleep(8)
        assert service.poll() is None, f"{block} ended by itself:\n{service.stderr and service.stderr.read()}"
    finally:
        os.killpg(service.pid, signal.SIGTERM)
        service.wait(20)


def test_the_help_of_every_command_stands_in_the_docs() -> None:
    from typer.main import get_command

    from tutelage.cli import app

    text = "\n".join(file.read_text(encoding="utf-8") for file in DOCUMENTS)
    named = set(get_command(app).commands)  # type: ignore[attr-defined]
    missing = sorted(name for name in named if f"`{name}" not in text and f"tutelage {name}" not in text)
    assert not missing, f"no document mentions: {missing}"
