"""Kill a process with SIGKILL at random instants until its work is done, with the imports paid once."""

from __future__ import annotations

import multiprocessing
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def checkpoints(work: Path) -> list[int]:
    """The steps that checkpoints stand at."""
    return sorted(int(each.name.removeprefix("step-")) for each in work.glob("checkpoints/step-*"))


def half_written(work: Path) -> set[tuple[str, int]]:
    """Checkpoints that are being written, or were when a kill came: name and time of making."""
    found = set()
    for path in work.glob("checkpoints/.step-*"):
        try:
            found.add((path.name, path.stat().st_mtime_ns))
        except FileNotFoundError:  # finished between two looks
            continue
    return found


def waiting(work: Path, far: int) -> Callable[[], bool]:
    """A stop that never stops. Past step `far` it waits to be killed: a slow killer must find the process at work."""

    def stop() -> bool:
        if max(checkpoints(work), default=0) >= far:
            time.sleep(60)
        return False

    return stop


def kill_through(
    job: Callable[..., None],
    args: tuple[Any, ...],
    work: Path,
    *,
    total: int,
    count: int,
    seed: int,
    preload: list[str],
) -> int:
    """Run `job(*args, far)` in processes, `count` of which are killed, until one comes to its end.

    A third is killed at any instant after it has begun, a third some time after it wrote a checkpoint, and a third
    while it writes one. Returns how many left a half-written checkpoint behind.
    """
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(preload)
    instants, torn = random.Random(seed), 0
    for kill in range(count):
        far = 2 * total * (kill + 1) // (3 * count)  # well before the end: its checkpoint is written late
        process = processes.Process(target=job, args=(*args, far))
        before, left, deadline = checkpoints(work), half_written(work), time.monotonic() + 60
        process.start()
        while process.is_alive() and kill % 3 == 1 and checkpoints(work) == before:
            assert time.monotonic() < deadline
            time.sleep(0.002)
        if kill % 3 < 2:
            time.sleep(0.3 * instants.random())
        while process.is_alive() and kill % 3 == 2 and max(checkpoints(work), default=0) < far:
            if half_written(work) - left:
                break
            assert time.monotonic() < deadline
            time.sleep(0.0005)
        process.kill()
        process.join(60)
        assert process.exitcode == -signal.SIGKILL, f"ended by itself with {process.exitcode}"
        torn += bool(half_written(work) - left)
    process = processes.Process(target=job, args=(*args, total + 1))
    process.start()
    process.join(120)
    assert process.exitcode == 0
    return torn
