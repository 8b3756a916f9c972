"""Where a stage computes: device, precision and threads, set once at its start and recorded with its checkpoints."""

from __future__ import annotations

import platform
import random

import numpy as np
import torch

THREADS = 2
"""Default of every training stage: the smallest machine the project promises anything for."""


def setup(*, threads: int = THREADS, device: str = "cpu", seed: int = 0) -> torch.device:
    """Prepare this process for a stage whose result may depend on nothing but its key.

    Sets torch's threads, seeds every global generator (own code uses explicit ones) and returns the device.
    `auto` takes the GPU when there is one; a run that resumes elsewhere says so in its metrics.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(max(1, threads))
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)
    torch.set_flush_denormal(True)  # subnormal products cost a hundred cycles each and carry nothing
    return torch.device(device)


def describe(device: torch.device) -> dict[str, str | int]:
    """What bit-identical resuming depends on: torch, threads, device, processor type, number of ranks."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {"torch": torch.__version__, "threads": torch.get_num_threads(), "device": name, "ranks": ranks()}


def ranks() -> int:
    """How many processes train together (1 without torchrun)."""
    return torch.distributed.get_world_size() if _distributed() else 1


def rank() -> int:
    """This process among them; rank 0 writes."""
    return torch.distributed.get_rank() if _distributed() else 0


def sum_over_ranks(*tensors: torch.Tensor) -> None:
    """Add up tensors over all ranks, in place; nothing to do for a single process."""
    if _distributed():
        for tensor in tensors:
            torch.distributed.all_reduce(tensor)


def _distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
