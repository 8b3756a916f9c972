"""Building `native.c` for the processor at hand, once, and loading it.

Where there is no C compiler, or `TUTELAGE_NATIVE=off`, there is no library and everything runs on torch.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

SOURCE = Path(__file__).with_name("native.c")
FLAGS = ("-O2", "-march=native", "-ffp-contract=fast", "-fno-math-errno", "-fopenmp", "-shared", "-fPIC", "-std=gnu11")


@functools.cache
def load() -> ctypes.CDLL | None:
    """The built `native.c`, or None where it cannot be built or is switched off."""
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None or os.environ.get("TUTELAGE_NATIVE") == "off":
        return None
    built = _folder() / f"native-{_identity(compiler)}.so"
    if not built.exists() and not _build(compiler, built):
        return None
    try:
        return ctypes.CDLL(str(built))
    except OSError:  # built on another machine, or damaged
        built.unlink(missing_ok=True)
        return ctypes.CDLL(str(built)) if _build(compiler, built) else None


def identity() -> str:
    """What results of the engine depend on besides torch: which library makes its steps, or that torch does."""
    found = load()
    return "torch" if found is None else Path(found._name).stem


def _folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "tutelage"


def _identity(compiler: str) -> str:
    """What a built library depends on: the source, the flags, the compiler and the processor it was built for."""
    version = subprocess.run([compiler, "--version"], capture_output=True, check=False).stdout
    try:
        flags = next(line for line in Path("/proc/cpuinfo").read_bytes().splitlines() if line.startswith(b"flags"))
    except (OSError, StopIteration):
        flags = platform.processor().encode()
    parts = (SOURCE.read_bytes(), " ".join(FLAGS).encode(), version, platform.machine().encode(), flags)
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def _build(compiler: str, target: Path) -> bool:
    """Compile into a file of its own and move it into place, so that nobody ever loads a half-written one."""
    try:
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            part = Path(folder) / target.name
            command = [compiler, *FLAGS, "-o", str(part), str(SOURCE), "-lm"]
            if subprocess.run(command, capture_output=True, check=False, timeout=120).returncode:
                return False
            part.replace(target)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return True
