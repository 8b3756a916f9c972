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
import stat
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
    try:
        built = _folder() / f"native-{_identity(compiler)}.so"
        if not built.exists():
            _build(compiler, built)
        try:
            return ctypes.CDLL(str(built))
        except OSError:  # built on another machine, or damaged
            built.unlink()
            _build(compiler, built)
            return ctypes.CDLL(str(built))
    except (OSError, RuntimeError, subprocess.SubprocessError):  # no compiler that works, or nowhere to keep it
        return None


def identity() -> str:
    """What results depend on besides torch: which library makes engine steps, norms and gates, or that torch does."""
    found = load()
    return "torch" if found is None else Path(found._name).stem


def _folder() -> Path:
    """Where built libraries are kept. OSError where others could write: what lies there is run."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    if not base.is_absolute():
        raise OSError(f"{base} is no place that stays")
    folder = base / "tutelage"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise OSError(f"{folder} belongs to others as well")
    return folder


def _identity(compiler: str) -> str:
    """What a built library depends on: the source, the flags, the compiler and the processor it was built for."""
    version = subprocess.run([compiler, "--version"], capture_output=True, check=False, timeout=20).stdout
    known = (b"flags", b"Features", b"CPU part")
    try:
        lines = Path("/proc/cpuinfo").read_bytes().splitlines()
        flags = b"\n".join(sorted({line for line in lines if line.startswith(known)}))
    except OSError:
        flags = platform.processor().encode()
    parts = (SOURCE.read_bytes(), " ".join(FLAGS).encode(), version, platform.machine().encode(), flags)
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def _build(compiler: str, target: Path) -> None:
    """Compile into a file of its own and move it into place, so that nobody ever loads a half-written one."""
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        part = Path(folder) / target.name
        command = [compiler, *FLAGS, "-o", str(part), str(SOURCE), "-lm"]
        if subprocess.run(command, capture_output=True, check=False, timeout=120).returncode:
            command.remove("-fopenmp")  # a compiler without it: one thread
            subprocess.run(command, capture_output=True, check=True, timeout=120)
        part.replace(target)
