"""Where a stage computes: device, threads and products, set once at its start; and with which other processes."""

from __future__ import annotations

import json
import platform
import random
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from tutelage.model import library
from tutelage.model.kernels import full_width

THREADS = 2
"""Default of every training stage: the smallest machine the project promises anything for."""


def cards() -> list[str]:
    """The names of the graphics cards that torch can use."""
    return [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]


def setup(*, threads: int = THREADS, device: str = "cpu", seed: int = 0) -> torch.device:
    """Prepare this process for a stage whose result may depend on nothing but its key.

    Sets torch's threads, seeds every global generator (own code uses explicit ones) and returns the device.
    `auto` takes the GPU when there is one; a run that resumes elsewhere says so in its metrics.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(max(1, threads))
    full_width()
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)
    torch.set_flush_denormal(True)  # subnormal products cost a hundred cycles each and carry nothing
    return torch.device(device)


def describe(device: torch.device) -> dict[str, str | int]:
    """What bit-identical resuming depends on: torch, threads, the processor by its name, the instructions and the
    precision of its products, number of ranks. Kept in checkpoints, never in an artifact, unless it changes."""
    return {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else processor(),
        "engine": library.identity(),
        "products": f"{torch.backends.cpu.get_cpu_capability()} {torch.get_float32_matmul_precision()}",
        "ranks": ranks(),
    }


def processor() -> str:
    """The processor's name, such as `AMD EPYC 9B14`; its architecture where the system tells no name."""
    info = Path("/proc/cpuinfo")
    named = re.search(r"^model name\s*:\s*(.+?)\s*$", info.read_text(), re.MULTILINE) if info.is_file() else None
    return named[1] if named else platform.processor() or platform.machine()


def ranks() -> int:
    """How many processes train together (1 without torchrun)."""
    return torch.distributed.get_world_size() if _distributed() else 1


def rank() -> int:
    """This process among them; rank 0 writes."""
    return torch.distributed.get_rank() if _distributed() else 0


def meet() -> tuple[Any, int, int]:
    """Find the other processes by what torchrun put into the environment: (their common store, rank, ranks).

    The store is torch's: keys and bytes, held by torchrun or by rank 0.
    """
    found: tuple[Any, int, int] = next(rendezvous("env://", timeout=timedelta(minutes=5)))
    return found


@contextmanager
def joined(store: Any, rank: int, ranks: int, name: str) -> Iterator[None]:
    """Train together with all processes that join under this name, over gloo (NCCL for tensors on a GPU).

    Ranks wait for each other as long as it takes (rank 0 alone looks at examinations): the launcher ends them all when
    one ends.
    """
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    torch.distributed.init_process_group(
        backend,
        store=PrefixStore(name, store),
        rank=rank,
        world_size=ranks,
        timeout=timedelta(days=7),
    )
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


def told(flag: bool) -> bool:
    """What rank 0 says, on every rank: whether to stop, whether a checkpoint is due."""
    if not _distributed():
        return flag
    word = torch.tensor(int(flag))
    torch.distributed.broadcast(word, 0)
    return bool(word)


def shared(value: Any) -> list[Any]:
    """Every rank's value (plain JSON), by rank, on every rank; also a barrier."""
    if not _distributed():
        return [value]
    mine = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
    sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(ranks())]
    torch.distributed.all_gather(sizes, torch.tensor([len(mine)]))
    room = int(max(sizes))
    texts = [torch.zeros(room, dtype=torch.uint8) for _ in sizes]
    torch.distributed.all_gather(texts, torch.cat([mine, mine.new_zeros(room - len(mine))]))
    return [json.loads(text[: int(size)].numpy().tobytes()) for text, size in zip(texts, sizes, strict=True)]


def sum_over_ranks(*tensors: torch.Tensor) -> None:
    """Add up tensors over all ranks, in place; nothing to do for a single process."""
    if _distributed():
        for tensor in tensors:
            torch.distributed.all_reduce(tensor)


def _distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
