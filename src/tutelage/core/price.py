"""What work costs: a machine's rates, a model's size, and what a stage is expected to take of both.

`train/calibrate.py` measures the rates, each stage prices itself, `plan.py` adds up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from pydantic import Field, model_validator

from tutelage.core.records import Record

LEARN, READ, WRITE, DRAW = 0.6, 0.62, 0.55, 0.26
"""Share of the best matrix product's rate that a small model reaches forward and backward, in a forward pass over whole
texts, in writing the likeliest token, and in drawing one; seen at a width of 160, contexts of 128 and 384."""
MUON = 0.8
"""Share of it that Muon reaches in making gradients orthogonal; seen at widths of 160 and 320."""
MUON_SHARE = 0.15
"""The largest share of a training step that Muon should take."""
BASE = 3.7e8
"""Bytes that a process takes before any model: Python, torch, the libraries; seen."""
SHORT, BLOCK = 512, 64
"""Tokens of a text up to which attention keeps its scores for the backward pass; each block of queries those it may
look at."""
RERUN = 3.0
"""How often over what one layer keeps is held while the backward runs the layers again, one by one: with gradients, and
what the allocator does not give back; seen with 4 and 12 layers of a width of 160."""
ROUND = 0.0005
"""Seconds that a step of the generating engine takes however few answers are at work."""
BATCH, TAIL = 64, 20
"""Answers that advance together; and the steps that the last answers of a call run on alone."""
BF16 = 0.9
"""Share of fp32's time that a step in bf16 must stay below to be worth its rounding."""


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
    bf16: float = 0.0
    """Share of fp32's time that a layer takes in bf16, forward and backward, at the shape of the first stage that may
    use it; 0: not measured, and priced as fp32."""

    @model_validator(mode="before")
    @classmethod
    def _of_earlier_plans(cls, value: Any) -> Any:
        """Plans sealed before 2026-11-26 hold an `overhead` that was never learned: their choices stay readable."""
        return {key: each for key, each in value.items() if key != "overhead"} if isinstance(value, Mapping) else value

    @property
    def precision(self) -> str:
        """What `auto` comes to."""
        return "bf16" if 0 < self.bf16 < BF16 else "fp32"

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
        the generator; `flops` is the forward of one token, `drawn` by chance or else the likeliest.

        Few answers at a time wait for the weights to come from memory: four bytes for every two operations.
        """
        rounds = max(number * said / BATCH + calls * TAIL, calls * said)
        rate = (self.writing or WRITE * self.gemm) * (DRAW / WRITE if drawn else 1.0)
        writing = number * said * flops / rate + rounds * self.round
        return self.read(number * prompt * flops) + max(writing, rounds * 2 * flops / self.bandwidth)


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
    vocabulary: float = 2048.0
    """From here on the dimensions that all of it follows from, as `DecoderConfig` has them."""
    width: float = 160.0
    inner: float = 432.0
    layers: float = 4.0
    heads: float = 5.0
    kv_heads: float = 5.0
    head_dim: float = 32.0
    context: float = 128.0
    tied: float = 1.0
    """Whether the head is the embedding."""
    foreign: float = 0.0
    """Whether it is of another architecture, which has no choice of precision or activations."""

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

    def taught(
        self,
        micro: float,
        length: float = 128.0,
        frozen: float = 0.0,
        learned: Sequence[Learned] = (),
    ) -> float:
        """Bytes of training: weights, gradient and two moments of what is learned (one model, and all of it, where
        nothing is said), weights of `frozen` further models, what a micro-batch of `micro` tokens in texts of `length`
        keeps for the backward pass, and the process itself."""
        learned = learned or (Learned.whole(self),)
        weights = sum(4 * (self.parameters + each.added) + 12 * each.parameters for each in learned)
        kept = self.kept + self.scores * (min(length, SHORT) + BLOCK) / 2
        if learned[0].recompute:
            kept = min(kept, self.layers * self.width + RERUN * kept / self.layers)
        return BASE + weights + 4 * frozen * self.parameters + 4 * micro * kept

    def answering(self, length: float, slots: float = BATCH) -> float:
        """Bytes of an engine: its cache of keys and values, for `slots` conversations of `length` tokens, and the
        weights once more, as its steps in C read them."""
        return 4 * (slots * length * self.cached + self.parameters)


class Learned(NamedTuple):
    """What of a model learns, and how."""

    parameters: float
    """Numbers with a gradient and moments of the optimizer."""
    products: float
    """Operations of one token's forward with weights that learn: their gradient costs as many again."""
    optimizer: float
    """Operations by which Muon makes their gradients orthogonal in a step."""
    added: float = 0.0
    """Numbers of an adapter beside the model."""
    bf16: bool = False
    """Whether the layers multiply in bf16."""
    recompute: bool = False
    """Whether the backward runs the layers again."""

    @classmethod
    def whole(cls, size: Size) -> Learned:
        """All of a model, in fp32, with everything kept."""
        return cls(size.parameters, size.flops, size.optimizer)

    def passes(self, size: Size, flops: float) -> float:
        """Operations of a token's forward (`flops` of them for the model itself) and backward."""
        frozen, again = min(flops, size.flops - self.products), flops * self._layers(size) if self.recompute else 0.0
        return 3.0 * flops - frozen + 6.0 * self.added + again

    def seconds(self, size: Size, operations: float, machine: Machine) -> float:
        """Seconds of so many operations of `passes`."""
        saved = (1 - machine.bf16) * self._layers(size) if self.bf16 and machine.bf16 else 0.0
        return machine.learn(operations) * (1 - saved)

    def _layers(self, size: Size) -> float:
        """The layers' share of a forward; the rest is the head, never run again and priced in fp32."""
        return 1 - size.head / size.flops


class Cost(Record):
    """What a stage is expected to take, and the sizes of what it makes, which later stages' costs read."""

    seconds: float = 0.0
    memory: float = 0.0
    tokens: float = 0.0
    flops: float = 0.0
    muon: float = 0.0
    """Share of a training step in which Muon makes gradients orthogonal."""
    sizes: dict[str, float] = Field(default_factory=dict)
