"""What work costs: a machine's rates, a model's size, and what a stage is expected to take of both.

`train/calibrate.py` measures the rates, each stage prices itself, `plan.py` adds up.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from pydantic import Field, model_validator

from tutelage.core.records import Record

LEARN, READ, WRITE, DRAW = 0.6, 0.62, 0.55, 0.26
"""Share of the best matrix product's rate that a small model reaches forward and backward, in a forward pass over whole
texts, in writing the likeliest token, and in drawing one; seen at a width of 160, contexts of 128 and 384."""
MUON = 0.85
"""Share of it that Muon reaches in making gradients orthogonal; seen at widths of 160 and 320."""
MUON_SHARE = 0.15
"""The largest share of a training step that Muon should take."""
BASE = 3.7e8
"""Bytes that a process takes before any model: Python, torch, the libraries; seen."""
SHORT, BLOCK = 512, 64
"""Tokens of a text up to which attention keeps its scores for the backward pass; each block of queries those it may
look at."""
ROUND = 0.0015
"""Seconds that a step of the generating engine takes however few answers are at work."""
BATCH, TAIL = 64, 20
"""Answers that advance together; and the steps that the last answers of a call run on alone."""


class Machine(Record):
    """What `plan` measured: rates per second on this machine."""

    threads: int = 2
    gemm: float = 5e10
    """Floating-point operations per second of the best matrix product."""
    bandwidth: float = 1e10
    """Bytes per second from memory."""
    memory: float = 8e9
    """Bytes of memory that may be used."""
    learning: float = 0.0
    """Operations per second forward and backward, at the recipe's own shape; 0: the usual share of `gemm`."""
    reading: float = 0.0
    """Operations per second in a forward pass over texts; 0: the usual share of `gemm`."""
    writing: float = 0.0
    """Operations per second in writing the likeliest token of many answers; 0: the usual share of `gemm`."""
    round: float = ROUND
    """Seconds of a step of the generating engine beside its operations."""

    @model_validator(mode="before")
    @classmethod
    def _of_earlier_plans(cls, value: Any) -> Any:
        """Plans sealed before 2026-11-26 hold an `overhead` that was never learned: their choices stay readable."""
        return {key: each for key, each in value.items() if key != "overhead"} if isinstance(value, Mapping) else value

    def learn(self, flops: float) -> float:
        """Seconds of forward and backward passes of so many operations."""
        return flops / (self.learning or LEARN * self.gemm)

    def read(self, flops: float) -> float:
        """Seconds of forward passes over whole texts."""
        return flops / (self.reading or READ * self.gemm)

    def orthogonalise(self, flops: float) -> float:
        """Seconds in which Muon makes gradients orthogonal, of so many operations."""
        return flops / (MUON * self.gemm)

    def answer(
        self, flops: float, number: float, prompt: float, said: float, calls: float = 1.0, *, drawn: bool = False
    ) -> float:
        """Seconds to read `number` prompts of `prompt` tokens and answer each with `said` tokens, in so many calls of
        the generator; `flops` is the forward of one token, `drawn` by chance or else the likeliest."""
        rounds = number * said / BATCH + calls * TAIL
        rate = (self.writing or WRITE * self.gemm) * (DRAW / WRITE if drawn else 1.0)
        return self.read(number * prompt * flops) + number * said * flops / rate + rounds * self.round


class Size(NamedTuple):
    """A model as its price sees it; the defaults are those of the starter's model."""

    parameters: float = 1.57e6
    flops: float = 3.13e6
    """Operations of one token's forward."""
    head: float = 0.66e6
    """How many of these are the head's."""
    attention: float = 1920.0
    """And how many come to them for each token of the text that it stands in."""
    optimizer: float = 4.17e9
    """Operations by which Muon makes a step's gradients orthogonal, however small the batch."""
    kept: float = 1.35e4
    """Numbers that the forward of one token keeps for the backward."""
    scores: float = 20.0
    """And how many come to them for each token of the text that it stands in: attention's weights."""
    cached: float = 1280.0
    """Numbers that one token takes in the cache of the generating engine."""

    @classmethod
    def of(cls, sizes: Mapping[str, float]) -> Size:
        """As the stage that made the model stated it."""
        known = Size()
        return cls(*(sizes.get(name, getattr(known, name)) for name in cls._fields))

    def text(self, length: float) -> float:
        """Operations of a token of texts of this length."""
        return self.flops + self.attention * length

    def spoken(self, length: float = 30.0, answered: float = 0.3) -> float:
        """Operations of a token of dialogues of this length: the head is computed for what was answered only."""
        return self.text(length) - (1 - answered) * self.head

    def taught(self, micro: float, length: float = 128.0, models: float = 1.0, frozen: float = 0.0) -> float:
        """Bytes of training: weights, gradient and two moments of `models`, weights of `frozen` further ones, what a
        micro-batch of `micro` tokens in texts of `length` keeps for the backward pass, and the process itself."""
        activations = 4 * micro * (self.kept + self.scores * (min(length, SHORT) + BLOCK) / 2)
        return BASE + (16 * models + 4 * frozen) * self.parameters + activations

    def answering(self, length: float, slots: float = BATCH) -> float:
        """Bytes of the engine's cache of keys and values, for `slots` conversations of `length` tokens."""
        return 4 * slots * length * self.cached


class Cost(Record):
    """What a stage is expected to take, and the sizes of what it makes, which later stages' costs read."""

    seconds: float = 0.0
    memory: float = 0.0
    tokens: float = 0.0
    flops: float = 0.0
    muon: float = 0.0
    """Share of a training step in which Muon makes gradients orthogonal."""
    sizes: dict[str, float] = Field(default_factory=dict)
