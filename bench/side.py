"""The same work by two sides, in turn, each run a process of its own; medians, and what they say about a target.

A bench is a module with `measure(settings) -> list[Part]` and the two sides `ours(options)` and `peer(options)`. Each
side measures itself, drops the first repetition and returns figures; `python -m bench.NAME ours|peer OPTIONS` runs one
and prints its figures as the last line.
"""

from __future__ import annotations

import json
import os
import platform
import re
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar

from bench.environments import HOME, here, versions

THREADS = 2
MICRO = (512, 1024, 2048, 4096)
"""Tokens of a micro-batch that are tried."""
PRECISIONS = ("float32", "bfloat16")
Figures = dict[str, Any]
T = TypeVar("T")


@dataclass(frozen=True)
class Settings:
    """How a bench is run.

    Attributes:
        quick: A B A B with less work in each run, within 4 minutes; else A B A B A B.
        work: folder for weights and data that both sides read.
        root: a finished life, for the benches that read one.
        float32: hold both sides to float32; else each trains in what is fastest on this machine, as a user would.
    """

    quick: bool
    work: Path
    root: Path = Path("life")
    float32: bool = False

    @property
    def rounds(self) -> int:
        return 2 if self.quick else 3

    @property
    def precision(self) -> dict[str, str]:
        """The option of a side that may not choose its precision."""
        return {"precision": "float32"} if self.float32 else {}


@dataclass(frozen=True)
class Part:
    """One figure of both sides.

    Attributes:
        peer: None where there is nobody beside us.
        target: None where the figure is reported only.
        holds: what the target bounds: our figure over the peer's, or ours by itself.
    """

    name: str
    unit: str
    better: Literal["lower", "higher"]
    ours: float | None
    peer: float | None = None
    target: float | None = None
    holds: Literal["ratio", "ours"] = "ratio"

    @property
    def ratio(self) -> float | None:
        """Ours over the peer's; None where either is missing."""
        return self.ours / self.peer if self.ours is not None and self.peer else None

    @property
    def met(self) -> bool | None:
        """Whether the target is met, False where there is no figure to hold against it; None without a target."""
        if self.target is None:
            return None
        value = self.ratio if self.holds == "ratio" else self.ours
        if value is None:
            return False
        return value <= self.target if self.better == "lower" else value >= self.target

    def plain(self) -> dict[str, Any]:
        """As JSON, four significant digits."""
        numbers = {"ours": self.ours, "peer": self.peer, "ratio": self.ratio, "target": self.target}
        shown = {key: None if value is None else float(f"{value:.4g}") for key, value in numbers.items()}
        return {"name": self.name, "unit": self.unit, "better": self.better, **shown, "met": self.met}


def result(name: str, parts: Sequence[Part], machine: Mapping[str, Any]) -> dict[str, Any]:
    """The last line of `--json`: the first part's figures, and `met` only if every part with a target is."""
    first = {key: value for key, value in parts[0].plain().items() if key not in ("name", "met")}
    asked = [part.met for part in parts if part.met is not None]
    met = all(asked) if asked else None
    return {"name": name, **first, "met": met, "parts": [part.plain() for part in parts], "machine": dict(machine)}


@dataclass(frozen=True)
class Runs:
    """What the runs of both sides returned, in their order."""

    ours: Sequence[Figures]
    peer: Sequence[Figures]

    def part(
        self,
        name: str,
        unit: str,
        key: str,
        better: Literal["lower", "higher"] = "higher",
        target: float | None = None,
        holds: Literal["ratio", "ours"] = "ratio",
    ) -> Part:
        """Medians of the figure `key` of both sides."""
        return Part(self.named(name), unit, better, median(self.ours, key), median(self.peer, key), target, holds)

    def named(self, name: str) -> str:
        """A part's name with the precision of both sides, where one of them is not float32."""
        ours, peer = (
            " and ".join(sorted({each.get("precision", "float32") for each in runs})) for runs in (self.ours, self.peer)
        )
        if ours == peer:
            return name if ours == "float32" else f"{name}, both in {ours}"
        return f"{name}, ours in {ours}, peer in {peer}"

    def memory(self, name: str) -> Part:
        """Peak resident memory of the processes, without the first, which may have tried several settings."""
        return Runs(self.ours[1:], self.peer[1:]).part(name, "MiB", "peak", "lower")


def median(runs: Sequence[Figures], key: str) -> float | None:
    """The median of a figure over runs; None where a run has none."""
    values = [each.get(key) for each in runs]
    known = [float(value) for value in values if value is not None]
    return statistics.median(known) if known and len(known) == len(values) else None


def alternate(
    module: str,
    settings: Settings,
    peer_python: Path,
    ours: Mapping[str, Any],
    peer: Mapping[str, Any],
    *,
    keep: Sequence[str] = (),
    say: Callable[[str], None] | None = None,
    ours_python: Path | None = None,
) -> Runs:
    """Run ours and the peer in turn, `settings.rounds` times each.

    Args:
        ours, peer: the options of each side.
        keep: figures of a side's first run that are options of its later ones: what it chose by trying.
        ours_python: where ours runs, if not in this environment.
    """
    say = say or tell
    found: tuple[list[Figures], list[Figures]] = ([], [])
    sides = (("ours", ours_python or Path(sys.executable), dict(ours)), ("peer", peer_python, dict(peer)))
    for turn in range(settings.rounds):
        for (name, python, options), runs in zip(sides, found, strict=True):
            figures = run(python, module, name, options)
            runs.append(figures)
            options.update({key: figures[key] for key in keep if key in figures})
            last = {key: value[-1] if isinstance(value, list) else value for key, value in figures.items()}
            shown = {key: float(f"{value:.4g}") if isinstance(value, float) else value for key, value in last.items()}
            say(f"{module} {name} {turn + 1}/{settings.rounds}: {json.dumps(shown)}")
    return Runs(*found)


def run(python: Path, module: str, side: str, options: Mapping[str, Any]) -> Figures:
    """One run of one side: its figures, its largest resident memory (`peak`, MiB) among them.

    Raises SystemExit with the end of its error output when it fails.
    """
    command = [str(python), "-m", module, side, json.dumps(dict(options))]
    with tempfile.TemporaryFile() as said, tempfile.TemporaryFile() as complained:
        code = subprocess.run(command, env=environment(side), cwd=HOME, stdout=said, stderr=complained).returncode
        said.seek(0)
        complained.seek(0)
        lines = said.read().decode(errors="replace").strip().splitlines()
        if code:
            trouble = complained.read().decode(errors="replace").strip()
            raise SystemExit(f"{module} {side} failed with code {code}:\n{trouble[-4000:]}")
    figures: Figures = json.loads(lines[-1])
    return figures


def peak() -> float:
    """Largest resident memory of this process so far, in MiB.

    Linux tells it per address space; what `getrusage` says of a child there includes its parent when it forked.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        return int(re.findall(r"VmHWM:\s*(\d+) kB", status.read_text())[0]) / 2**10
    unit = 2**20 if platform.system() == "Darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def environment(side: str) -> dict[str, str]:
    """The variables of a side's process: two threads, no network, our sources for ours only."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(THREADS))
    offline = dict.fromkeys(("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE"), "1")
    path = [str(HOME), *([str(HOME / "src")] if side == "ours" else [])]
    still = {"CUDA_VISIBLE_DEVICES": "", "TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": os.pathsep.join(path)}
    return {**os.environ, **threads, **offline, **still}


def main(ours: Callable[[Mapping[str, Any]], Figures], peer: Callable[[Mapping[str, Any]], Figures]) -> None:
    """The entry of a side's process."""
    figures = {"ours": ours, "peer": peer}[sys.argv[1]](json.loads(sys.argv[2]))
    print(json.dumps({**figures, "peak": peak()}), flush=True)


def best(choices: Sequence[T], rate: Callable[[T], float]) -> T:
    """The choice with the highest rate, each tried once."""
    rates = [rate(choice) for choice in choices]
    return choices[rates.index(max(rates))]


def refuse(text: str) -> NoReturn:
    """End with code 2: what the bench was given cannot be used."""
    tell(text)
    raise SystemExit(2)


def tell(text: str) -> None:
    """Progress, beside the result."""
    print(text, file=sys.stderr, flush=True)


def machine(peer_python: Path | None) -> dict[str, Any]:
    """Date, hardware and versions that a figure belongs to; no name and no path."""
    found: dict[str, Any] = {"date": date.today().isoformat(), "hardware": hardware(), "threads": THREADS}
    ours = {name: version for name, version in here().items() if name in ("python", "torch")}
    found["versions"] = {"ours": ours} | ({"peer": versions(peer_python)} if peer_python else {})
    return found


def hardware() -> str:
    """Such as `2 cores AVX2, 24 GiB`."""
    cores = os.cpu_count() or 1
    memory = round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30 + 0.3)
    info = Path("/proc/cpuinfo")
    flags = set(info.read_text().split()) if info.is_file() else set()
    wide = {"avx512f": "AVX-512", "avx2": "AVX2", "asimd": "NEON"}
    kind = next((name for flag, name in wide.items() if flag in flags), platform.machine())
    return f"{cores} cores {kind}, {memory} GiB"
