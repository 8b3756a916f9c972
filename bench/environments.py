"""Where the other side runs: environments of its own under `bench/.envs/`, made when a bench first needs one."""

from __future__ import annotations

import fcntl
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

HOME = Path(__file__).resolve().parents[1]
ENVIRONMENTS = HOME / "bench" / ".envs"

PACKAGES: dict[str, tuple[str, ...]] = {
    "hf": ("transformers~=5.23", "trl~=1.16", "datasets~=5.0", "accelerate~=1.15"),
    "llamacpp": ("numpy", "xllamacpp==2026.10.11549"),
    "lmeval": ("lm-eval[hf]==0.4.13", "transformers~=5.23", "datasets~=5.0", "sacrebleu>=2.4"),
}
"""Environment -> what its side is made of; those in `WITH_TORCH` get the same torch as ours before that."""
WITH_TORCH = ("hf", "lmeval")

SHOWN = ("torch", "transformers", "trl", "accelerate", "datasets", "lm-eval", "xllamacpp")
"""Packages whose versions stand beside a figure."""


def python_of(name: str) -> Path:
    """The interpreter of an environment; makes the environment first when it is not there or was made of other parts.

    Who asks while another process makes it waits for that one. Raises SystemExit with pip's own words when an
    installation fails.
    """
    ENVIRONMENTS.mkdir(parents=True, exist_ok=True)
    with (ENVIRONMENTS / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return _made(name)


def _made(name: str) -> Path:
    folder = ENVIRONMENTS / name
    python, stamp = folder / "bin" / "python", folder / "installed.json"
    tools = _installer()
    parts = [*([tools.torch()] if name in WITH_TORCH else []), *PACKAGES[name]]
    mark = hashlib.sha256(json.dumps([parts, sys.version_info[:2]]).encode()).hexdigest()
    if stamp.is_file() and json.loads(stamp.read_text())["mark"] == mark:
        return python
    print(f"making bench/.envs/{name}: {', '.join(parts)}", file=sys.stderr, flush=True)
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
    if name in WITH_TORCH:
        tools.run("install", "--quiet", *tools.torch_source(python), tools.torch(), python=python)
    tools.run("install", "--quiet", *PACKAGES[name], python=python)
    stamp.write_text(json.dumps({"mark": mark}))
    return python


def versions(python: Path) -> dict[str, str]:
    """Versions of Python and the `SHOWN` packages in an environment."""
    program = "import bench.environments as e, json; print(json.dumps(e.here()))"
    environment = os.environ | {"PYTHONPATH": str(HOME)}
    done = subprocess.run([str(python), "-c", program], env=environment, capture_output=True, text=True, check=True)
    found: dict[str, str] = json.loads(done.stdout)
    return found


def here() -> dict[str, str]:
    """Versions of Python and the `SHOWN` packages in this very environment."""
    found = {"python": ".".join(map(str, sys.version_info[:3]))}
    for name in SHOWN:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _installer() -> ModuleType:
    """`tools/install.py`, which knows where torch comes from; it is a script, no package."""
    spec = importlib.util.spec_from_file_location("install", HOME / "tools" / "install.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
