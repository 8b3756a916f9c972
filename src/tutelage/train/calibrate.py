"""What this machine can do, measured in seconds, and what a training stage will therefore take."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from tutelage.core.price import BATCH, ROUND, WRITE, Cost, Learned, Machine, Size
from tutelage.model.kernels import full_width
from tutelage.model.logprob import logprobs
from tutelage.model.sample import Draw
from tutelage.model.steps import steps_for
from tutelage.model.transformer import ARCHITECTURES, Decoder, DecoderConfig
from tutelage.train.device import THREADS

STARTER = DecoderConfig(2048, 160, 432, 4, 5, 5, model_type="qwen3")
"""The shape that is measured where a recipe states none."""
ENGINE = 1.8
"""How much slower a step of the engine is, with its bookkeeping, than the forward and draw that are measured; seen."""
LENGTH = 64
"""Tokens of the texts that are measured with."""
LIFE = 0.7
"""What a stage reaches of what the measurement does, which reads no data and looks at nothing on the way."""


def calibrate(shape: DecoderConfig | None = STARTER, *, threads: int = THREADS, seconds: float = 4.0) -> Machine:
    """Measure GEMM rate, memory bandwidth and what a model of this shape reaches, in about `seconds` (20 at most).
    Without a shape no model is measured: its rates are then shares of the GEMM's.

    A rate is the best of several repetitions: what the machine can do, not what it was busy with.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    full_width()
    try:
        with torch.no_grad():
            gemm, bandwidth = _gemm(seconds * 0.15), _bandwidth(seconds * 0.1)
        machine = Machine(threads=threads, gemm=gemm, bandwidth=bandwidth, memory=available_memory())
        if shape is None:
            return machine
        measured = _Probe(shape, gemm)
        learning, reading = (LIFE * each for each in measured.learning(seconds * 0.4))
        slower = measured.writing(seconds * 0.25)
        rates = {"learning": learning, "reading": reading, "writing": WRITE * gemm / slower, "round": ROUND * slower}
        return machine.model_copy(update=rates)
    finally:
        torch.set_num_threads(before)


def size_of(shape: DecoderConfig) -> Size:
    """A model of this shape as its price sees it."""
    layers, width = shape.num_hidden_layers, shape.hidden_size
    wide = shape.intermediate_size or 4 * width  # some architectures do not say
    query, key, value = shape.qkv_sizes
    matrices = [
        (query, width),
        (key, width),
        (value, width),
        (width, query),
        (wide, width),
        (wide, width),
        (width, wide),
    ]
    kept = 5 * width + 2 * (query + key + value) + query + 3 * wide + (query + key if shape.qk_norm else 0)
    return Size(
        parameters=shape.parameters,
        flops=shape.flops_per_token,
        head=2.0 * shape.vocab_size * width,
        attention=3.0 * layers * query,  # by theory 2, seen 2 to 3
        optimizer=float(layers * sum(map(orthogonal, matrices))),
        kept=float(layers * kept),
        scores=float(layers * shape.num_attention_heads),
        cached=float(layers * (key + value)),
        vocabulary=float(shape.vocab_size),
        width=float(width),
        inner=float(wide),
        layers=float(layers),
        heads=float(shape.num_attention_heads),
        kv_heads=float(shape.num_key_value_heads),
        head_dim=float(shape.head_dim),
        context=float(shape.max_position_embeddings),
        tied=float(shape.tie_word_embeddings),
        foreign=float(shape.model_type not in ARCHITECTURES),
    )


def shape_of(size: Size) -> DecoderConfig:
    """A decoder of ours that is as large; what its size does not say (norms, biases, angles) costs little."""
    return DecoderConfig(
        vocab_size=int(size.vocabulary),
        hidden_size=int(size.width),
        intermediate_size=int(size.inner),
        num_hidden_layers=int(size.layers),
        num_attention_heads=int(size.heads),
        num_key_value_heads=int(size.kv_heads),
        head_dim=int(size.head_dim),
        max_position_embeddings=int(size.context),
        tie_word_embeddings=bool(size.tied),
    )


def orthogonal(matrix: tuple[int, int]) -> float:
    """Operations of Muon's five iterations on one matrix, as `optim.orthogonalise` makes them."""
    short, long = sorted(matrix)
    if 2 * long >= 3 * short:
        return 4.0 * short**2 * long + 34.0 * short**3
    return 5.0 * (4 * short**2 * long + 2 * short**3)


def training_cost(
    size: Size,
    flops: float,
    tokens: float,
    steps: int,
    machine: Machine,
    *,
    memory: float,
    read: float = 0.0,
    beside: float = 0.0,
    learned: Sequence[Learned] = (),
) -> Cost:
    """Forward and backward of `tokens` tokens by each model of which something is learned (all of one where nothing is
    said), the forward alone being `flops` each, and the optimizer's `steps`; `read` operations of what is only looked
    at (validation, a reference); and `beside`, further seconds."""
    learned = learned or (Learned.whole(size),)
    passes = [each.passes(size, flops) * tokens for each in learned]
    learning = sum(each.seconds(size, run, machine) for each, run in zip(learned, passes, strict=True))
    orthogonal = steps * sum(each.optimizer for each in learned)
    muon = machine.orthogonalise(orthogonal)
    return Cost(
        seconds=learning + muon + machine.read(read) + beside,
        memory=memory,
        tokens=tokens * len(learned),
        flops=sum(passes) + orthogonal + read,
        muon=muon / (learning + muon) if steps else 0.0,
        sizes=dict(size._asdict()),
    )


def bf16_share(size: Size, micro: int, machine: Machine, seconds: float = 2.0) -> float:
    """Share of fp32's time that a step of the layers takes in bf16, as timed here."""
    fp32, bf16 = step_seconds(shape_of(size), micro, seconds, threads=machine.threads)
    return bf16 / fp32


def step_seconds(shape: DecoderConfig, micro: int, seconds: float, *, threads: int = THREADS) -> tuple[float, float]:
    """Seconds of a forward and backward pass of one layer of this shape, in fp32 and in bf16, taking turns."""
    layer = replace(shape, num_hidden_layers=1, vocab_size=256)
    lengths = (min(micro, shape.max_position_embeddings),) * max(1, micro // shape.max_position_embeddings)
    ids = torch.zeros(1, sum(lengths), dtype=torch.int64)
    models = [Decoder(layer, seed=0).train(), Decoder(layer, seed=0).train()]
    models[1].bf16 = True
    best, before = [math.inf, math.inf], torch.get_num_threads()
    torch.set_num_threads(threads)
    full_width()
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


def watched_memory(inputs: Mapping[str, Mapping[str, float]], size: Size) -> float:
    """Bytes that the recipe's watch takes: the cache of the engine that answers."""
    watch = inputs.get("watch", {})
    return size.answering(2 * watch.get("item_tokens", 60.0)) if watch.get("items") else 0.0


class _Probe:
    """A short spell of real work at one shape: training steps, forward passes, generation.

    A shape whose step would take long is measured with fewer layers, tokens and words: what counts is operations per
    second.
    """

    def __init__(self, shape: DecoderConfig, gemm: float) -> None:
        def takes(layers: int, tokens: int) -> float:
            return 6 * tokens * replace(shape, num_hidden_layers=layers).parameters / (0.5 * gemm)

        layers, self.tokens = shape.num_hidden_layers, 2048
        while layers > 1 and takes(layers, self.tokens) > 0.5:
            layers = -(-layers // 2)
        while self.tokens > LENGTH and takes(layers, self.tokens) > 0.5:
            self.tokens //= 2
        while shape.vocab_size > 2048 and takes(layers, self.tokens) > 0.5:
            shape = replace(shape, vocab_size=shape.vocab_size // 2)
        self.shape = replace(shape, num_hidden_layers=layers, max_position_embeddings=max(64, LENGTH))
        self.gemm, self.model = gemm, Decoder(self.shape, seed=0)

    def learning(self, seconds: float) -> tuple[float, float]:
        """Operations per second forward and backward, and in a forward pass alone, over texts of `LENGTH` tokens."""
        generator = torch.Generator().manual_seed(0)
        lengths = (LENGTH,) * (self.tokens // LENGTH)
        ids = torch.randint(self.shape.vocab_size, (1, self.tokens), generator=generator)
        flops = size_of(self.shape).text(LENGTH) * self.tokens

        def forward() -> Tensor:
            return logprobs(self.model, self.model(ids, lengths=lengths)[0], ids[0])[0].sum()

        def step() -> None:
            self.model.zero_grad()
            forward().backward()  # type: ignore[no-untyped-call]

        learned = _best(step, 0.7 * seconds)
        with torch.no_grad():
            read = _best(forward, 0.3 * seconds)
        self.model.zero_grad()
        return 3 * flops / learned, flops / read

    def writing(self, seconds: float) -> float:
        """How much slower than foretold a step of the engine is, with `BATCH` answers under way (below 1: faster)."""
        flops, capacity, rows = size_of(self.shape).flops, 32, torch.arange(BATCH)
        steps, lengths = steps_for(self.model, BATCH, capacity), torch.full((BATCH,), capacity // 2)

        def step() -> None:
            logits, _ = steps.read(rows, lengths, {}, ())
            steps.draw(logits, Draw(None))

        with torch.no_grad():
            return ENGINE * _best(step, seconds) / (BATCH * flops / (WRITE * self.gemm) + ROUND)


def _best(work: Callable[[], object], seconds: float) -> float:
    """Seconds of the fastest repetition, after one to warm up; at least two are timed."""
    work()
    best, count, end = float("inf"), 0, time.perf_counter() + seconds
    while count < 2 or time.perf_counter() < end:
        started = time.perf_counter()
        work()
        best, count = min(best, time.perf_counter() - started), count + 1
    return best


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


def available_memory(machine: Path = Path("/")) -> float:
    """Bytes that may be used: four fifths of what the machine has, or of what the process's control group may take.

    Limits of a group hold for those inside it. In a container its own group may be mounted as the outermost one.
    """
    limits = [float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))]
    groups = machine / "sys/fs/cgroup"
    try:
        lines = (machine / "proc/self/cgroup").read_text().splitlines()
    except OSError:  # no Linux
        lines = []
    for line in lines:
        number, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        if number == "0":
            home, name = groups, "memory.max"
        elif "memory" in controllers.split(","):
            home, name = groups / "memory", "memory.limit_in_bytes"
        else:
            continue
        inner = home / group.lstrip("/")
        for folder in (inner, *inner.parents):
            if folder.is_relative_to(home):
                limits += _limit(folder / name)
    return 0.8 * min(limits)


def _limit(file: Path) -> list[float]:
    """The bytes that a control group's file states, in a list; nothing where it states none."""
    try:
        return [float(int(file.read_text()))]
    except (OSError, ValueError):  # not there, or `max`
        return []
