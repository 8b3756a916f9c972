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
STEP = 2000.0
"""Operations of an optimizer step for each parameter: Muon's matrices are made orthogonal, however small the batch."""
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

    @model_validator(mode="before")
    @classmethod
    def _of_earlier_plans(cls, value: Any) -> Any:
        """Plans sealed before 2026-11-26 hold an `overhead` that was never learned: their choices stay readable."""
        return {key: each for key, each in value.items() if key != "overhead"} if isinstance(value, Mapping) else value

    def learn(self, flops: float) -> float:
        """Seconds of forward and backward passes of so many operations."""
        return flops / (LEARN * self.gemm)

    def read(self, flops: float) -> float:
        """Seconds of forward passes over whole texts."""
        return flops / (READ * self.gemm)

    def answer(
        self, flops: float, number: float, prompt: float, said: float, calls: float = 1.0, *, drawn: bool = False
    ) -> float:
        """Seconds to read `number` prompts of `prompt` tokens and answer each with `said` tokens, in so many calls of
        the generator; `flops` is the forward of one token, `drawn` by chance or else the likeliest."""
        rounds = number * said / BATCH + calls * TAIL
        writing = number * said * flops / (self.gemm * (DRAW if drawn else WRITE))
        return self.read(number * prompt * flops) + writing + rounds * ROUND


class Size(NamedTuple):
    """A model as its price sees it; the defaults are those of the starter's model."""

    parameters: float = 1.57e6
    flops: float = 3.13e6
    """Operations of one token's forward."""
    head: float = 0.66e6
    """How many of these are the head's."""
    attention: float = 1920.0
    """And how many come to them for each token of the text that it stands in."""

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


class Cost(Record):
    """What a stage is expected to take, and the sizes of what it makes, which later stages' costs read."""

    seconds: float = 0.0
    memory: float = 0.0
    tokens: float = 0.0
    flops: float = 0.0
    sizes: dict[str, float] = Field(default_factory=dict)
