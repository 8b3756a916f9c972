"""What this machine can do, measured in seconds, and what a training stage will therefore take."""

from __future__ import annotations

import os
import time

import torch

from tutelage.core.stage import Cost, Machine
from tutelage.train.device import THREADS

SHARE = 0.5
"""Share of the GEMM rate that a small model reaches in a whole training step (0.52 was seen on such a shape)."""


def calibrate(*, threads: int = THREADS, seconds: float = 2.0) -> Machine:
    """Measure GEMM rate and memory bandwidth, about `seconds` in all.

    The rate is the best of several repetitions: what the machine can do, not what it was busy with.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.no_grad():
            return Machine(
                threads=threads,
                gemm=_gemm(seconds * 0.6),
                bandwidth=_bandwidth(seconds * 0.3),
                memory=_memory(),
            )
    finally:
        torch.set_num_threads(before)


def training_cost(parameters: int, flops_per_token: int, tokens: float, machine: Machine, share: float = SHARE) -> Cost:
    """Forward and backward of `tokens` tokens: three times the forward, at `share` of the GEMM rate.

    Memory: weights, gradient and two moments at four bytes, activations not counted (micro-batches are small).
    """
    flops = 3.0 * flops_per_token * tokens
    seconds = flops / (machine.gemm * share)
    return Cost(
        seconds=seconds,
        memory=16.0 * parameters + 4e8,
        tokens=tokens,
        flops=flops,
        sizes={"parameters": float(parameters), "flops_per_token": float(flops_per_token)},
    )


def _gemm(seconds: float) -> float:
    size = 1024
    left, right = torch.rand(size, size), torch.rand(size, size)
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end or best == float("inf"):
        started = time.perf_counter()
        left @ right
        best = min(best, time.perf_counter() - started)
    return 2.0 * size**3 / best


def _bandwidth(seconds: float) -> float:
    source = torch.rand(16 * 2**20)
    target = torch.empty_like(source)
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end or best == float("inf"):
        started = time.perf_counter()
        target.copy_(source)
        best = min(best, time.perf_counter() - started)
    return 2.0 * source.numel() * source.element_size() / best


def _memory() -> float:
    return 0.8 * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
