"""What this machine can do, measured in seconds, and what a training stage will therefore take."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping
from dataclasses import replace

import torch

from tutelage.core.stage import STEP, Cost, Machine, Size
from tutelage.model.transformer import Decoder, DecoderConfig
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


def settle(shape: DecoderConfig, micro: int, machine: Machine, seconds: float = 2.0) -> dict[str, str]:
    """What `auto` comes to at this shape: {precision, activations}; bf16 where it is a tenth faster, as timed here.

    Activations of a micro-batch of `micro` tokens are recomputed where keeping them would not fit into memory.
    """
    block = 14 * shape.hidden_size + 4 * shape.intermediate_size
    scores = shape.num_attention_heads * min(micro, shape.max_position_embeddings)
    kept = 4.0 * micro * shape.num_hidden_layers * (block + scores)
    full = 16.0 * shape.parameters + kept + 4e8 > machine.memory
    fp32, bf16 = step_seconds(shape, micro, seconds, threads=machine.threads)
    return {
        "precision": "bf16" if bf16 < 0.9 * fp32 else "fp32",
        "activations": "recompute" if full else "keep",
    }


def step_seconds(shape: DecoderConfig, micro: int, seconds: float, *, threads: int = THREADS) -> tuple[float, float]:
    """Seconds of a forward and backward pass of one layer of this shape, in fp32 and in bf16, taking turns."""
    layer = replace(shape, num_hidden_layers=1, vocab_size=256)
    lengths = (min(micro, shape.max_position_embeddings),) * max(1, micro // shape.max_position_embeddings)
    ids = torch.zeros(1, sum(lengths), dtype=torch.int64)
    models = [Decoder(layer, seed=0).train(), Decoder(layer, seed=0).train()]
    models[1].bf16 = True
    best, before = [math.inf, math.inf], torch.get_num_threads()
    torch.set_num_threads(threads)
    end, rounds = time.perf_counter() + seconds, 0
    while rounds < 3 or time.perf_counter() < end:  # the first of them warms up
        for which, model in enumerate(models):
            started = time.perf_counter()
            model(ids, lengths=lengths).sum().backward()
            if rounds:
                best[which] = min(best[which], time.perf_counter() - started)
        rounds += 1
    torch.set_num_threads(before)
    return best[0], best[1]


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
