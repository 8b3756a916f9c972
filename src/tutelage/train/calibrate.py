"""What this machine can do, measured in seconds, and what a training stage will therefore take."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping

import torch

from tutelage.core.price import STEP, Cost, Machine, Size
from tutelage.train.device import THREADS


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


def training_cost(
    size: Size, flops: float, tokens: float, steps: int, machine: Machine, *, read: float = 0.0, beside: float = 0.0
) -> Cost:
    """Forward and backward of `tokens` tokens, three times the forward of `flops` each, and the optimizer's `steps`;
    `read` operations of what is only looked at (validation, a reference); and `beside`, further seconds.

    Memory: weights, gradient and two moments at four bytes, activations not counted (micro-batches are small).
    """
    learned = 3.0 * flops * tokens + STEP * size.parameters * steps
    return Cost(
        seconds=machine.learn(learned) + machine.read(read) + beside,
        memory=16.0 * size.parameters + 4e8,
        tokens=tokens,
        flops=learned + read,
        sizes=dict(size._asdict()),
    )


def looks(steps: int, every: int) -> int:
    """How often a watch is asked: at the beginning, every `every` steps (0: never) and at the end."""
    if not steps:
        return 1
    return 2 + (math.ceil(steps / every) - 1 if every else 0)


ANSWER, KINDS = 12.0, 5
"""Tokens of an examination answer, in the mean; and kinds of item, each answered in a call of its own."""


def watching(inputs: Mapping[str, Mapping[str, float]], steps: int, size: Size, machine: Machine) -> float:
    """Seconds that the recipe's watch takes (`watch` among the inputs: items, every, item_tokens)."""
    watch = inputs.get("watch", {})
    if not watch.get("items"):
        return 0.0
    tokens = watch.get("item_tokens", 60.0)
    once = machine.answer(size.spoken(tokens), watch["items"], tokens, ANSWER, KINDS)
    return 0.3 + looks(steps, int(watch.get("every", 0))) * once  # the items are read once


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
