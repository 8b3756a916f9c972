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
        before, deadline = checkpoints(work), time.monotonic() + 60
        process.start()
        while process.is_alive() and kill % 3 and checkpoints(work) == before:
            assert time.monotonic() < deadline
            time.sleep(0.002)
        wanted = time.monotonic() + (0.3 if kill % 3 != 2 else 0.5) * instants.random()
        while process.is_alive() and time.monotonic() < wanted:
            if kill % 3 == 2 and list(work.glob("checkpoints/.step-*")):
                break
            time.sleep(0.0005)
        process.kill()
        process.join(60)
        assert process.exitcode == -signal.SIGKILL, f"ended by itself with {process.exitcode}"
        torn += bool(list(work.glob("checkpoints/.step-*")))
    process = processes.Process(target=job, args=(*args, total + 1))
    process.start()
    process.join(120)
    assert process.exitcode == 0
    return torn
