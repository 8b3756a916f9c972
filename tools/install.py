"""Make `.venv` and install tutelage into it: `python tools/install.py base|train|dev`. Standard library only.

PyTorch goes first, because on a machine without a GPU the ordinary wheel brings gigabytes of CUDA that nothing uses:
a configured source that offers a CPU wheel wins, else PyTorch's own CPU wheel index if it answers, else the registry.
"""

import hashlib
import json
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]
VENV = HERE / ".venv"
PYTHON = VENV / "bin" / "python"
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
EXTRAS = {"base": "", "train": "[train]", "dev": "[train,dev]"}


def pip(*arguments: str, python: Path = PYTHON, quiet: bool = True) -> subprocess.CompletedProcess[str]:
    """Run pip in an environment; its output is kept for whoever asks."""
    command = [str(python), "-m", "pip", "--disable-pip-version-check", *arguments]
    return subprocess.run(command, text=True, capture_output=quiet, check=False)


def chosen(*options: str, python: Path = PYTHON) -> str | None:
    """The version of torch that pip would install from these sources, or None when they do not answer."""
    report = pip(
        *("install", "--dry-run", "--no-deps", "--ignore-installed", "--quiet", "--report", "-", *options, torch()),
        python=python,
    )
    if report.returncode:
        return None
    return json.loads(report.stdout)["install"][0]["metadata"]["version"]


def torch() -> str:
    """The requirement as pyproject.toml states it, so that it stands in one place."""
    found = re.search(r'"(torch[~=<>][^"]*)"', (HERE / "pyproject.toml").read_text())
    assert found, "pyproject.toml names no torch"
    return found[1]


def torch_source(python: Path = PYTHON) -> list[str]:
    """Where torch should come from on this machine, as options for pip."""
    wheel_is_small = platform.system() == "Darwin" or platform.machine() != "x86_64"
    if wheel_is_small or shutil.which("nvidia-smi"):
        return []
    configured = chosen(python=python)
    if configured and configured.endswith("+cpu"):
        return []
    if chosen("--index-url", CPU_INDEX, "--timeout", "10", "--retries", "0", python=python):
        return ["--index-url", CPU_INDEX]
    print("No source offers a CPU wheel of PyTorch: the registry's own is taken, about 3 GB with CUDA.", flush=True)
    return []


def install(what: str) -> None:
    """Install one of base, train, dev, unless that (or more) is there already for this pyproject.toml."""
    stamp = VENV / "installed.json"
    mark = hashlib.sha256((HERE / "pyproject.toml").read_bytes()).hexdigest()
    have = json.loads(stamp.read_text()) if stamp.is_file() else {}
    order = list(EXTRAS)
    if have.get("mark") == mark and order.index(have["what"]) >= order.index(what):
        return
    if not PYTHON.is_file():
        print(f"making {VENV.name} with Python {platform.python_version()}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", str(VENV)], check=True)
    if what != "base":
        print(f"installing {torch()}", flush=True)
        run("install", "--quiet", *torch_source(), torch())
    print(f"installing tutelage{EXTRAS[what]}", flush=True)
    run("install", "--quiet", "--editable", f"{HERE}{EXTRAS[what]}")
    stamp.write_text(json.dumps({"mark": mark, "what": what}))


def run(*arguments: str, python: Path = PYTHON) -> None:
    """Run pip and end with its own words when it fails."""
    done = pip(*arguments, python=python)
    if done.returncode:
        sys.exit(f"pip {' '.join(arguments)} failed:\n{done.stderr.strip()}")


if __name__ == "__main__":
    if sys.version_info < (3, 11):  # noqa: UP036 - this very file may be run by an older Python
        sys.exit(f"tutelage needs Python 3.11 or newer, this is {platform.python_version()}")
    if len(sys.argv) != 2 or sys.argv[1] not in EXTRAS:
        sys.exit(__doc__)
    install(sys.argv[1])
