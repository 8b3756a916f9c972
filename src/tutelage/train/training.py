"""What a training stage can be told, and what of a model then learns: all of it, a part, or an adapter beside it."""

from __future__ import annotations

import difflib
import fnmatch
import functools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from tutelage.core.config import Config
from tutelage.core.errors import ConfigError
from tutelage.core.price import Learned, Size
from tutelage.core.stage import Context
from tutelage.model.lora import TARGETS, Lora, Target, adapt, adapters, merge, sides
from tutelage.model.peft import FOLDER, save_adapter
from tutelage.model.transformer import Decoder
from tutelage.train import snapshot
from tutelage.train.calibrate import orthogonal, shape_of
from tutelage.train.device import THREADS, ranks, setup
from tutelage.train.loop import Run
from tutelage.train.optim import Optimizer, Rates, Schedule
from tutelage.train.parallel import divided


class Training(Config):
    """What every training stage can be told."""

    OUTSIDE_KEY: ClassVar[frozenset[str]] = frozenset({"checkpoint_seconds", "keep"})

    seed: int = 0
    """Decides initial weights, data order and sampling."""
    device: Literal["cpu", "cuda", "auto"] = "cpu"
    """Where to compute."""
    threads: int = Field(default=THREADS, ge=1)
    """Threads of the CPU; part of the result to the last bit."""
    batch: int = Field(default=2048, ge=1)
    """Tokens per optimizer step, about."""
    micro: int = Field(default=2048, ge=1)
    """Tokens per forward and backward pass, at most; changes speed and memory only."""
    matrix_rate: float = Field(default=0.02, gt=0)
    """Learning rate of the matrices inside the layers (Muon)."""
    embedding_rate: float = Field(default=0.005, gt=0)
    """Learning rate of embeddings and heads (AdamW)."""
    scalar_rate: float = Field(default=0.005, gt=0)
    """Learning rate of norms and biases (AdamW)."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decay of the matrices, per step and unit of learning rate."""
    clip: float = Field(default=1.0, ge=0)
    """Largest gradient norm; 0 does not clip."""
    schedule: Literal["wsd", "cosine"] = "wsd"
    """How the learning rate moves: warm up, hold, fall linearly; or along a cosine."""
    warmup: float = Field(default=0.02, ge=0, lt=1)
    """Share of the run in which the learning rate rises."""
    decay: float = Field(default=0.5, ge=0, le=1)
    """Share of the run in which it falls (`wsd`)."""
    floor: float = Field(default=0.0, ge=0, le=1)
    """What is left of the learning rate at the end."""
    lora: int = Field(default=0, ge=0)
    """Rank of a low-rank adapter (LoRA) that learns in place of the weights; 0 trains the weights themselves."""
    lora_alpha: float = Field(default=0.0, ge=0)
    """Strength of the adapter: what it adds is multiplied by `lora_alpha / lora`. 0 for twice the rank."""
    lora_targets: tuple[Target, ...] = Field(default=TARGETS, min_length=1)
    """Which matrices of every block get an adapter, by their Hugging Face names."""
    freeze: tuple[str, ...] = ()
    """Weights of the model that are not moved: names or patterns such as `embed_tokens`, `layers.0.*`, `*norm`."""
    good_every: int = Field(default=10, ge=1)
    """Steps between snapshots: how far a rewind goes back, and what a stop costs at most, and a step."""
    checkpoint_seconds: float = Field(default=20.0, gt=0)
    """Seconds between checkpoints; no part of the result."""
    keep: int = Field(default=snapshot.KEEP, ge=1)
    """Checkpoints kept, the newest ones; no part of the result. With one, a damaged one means starting over."""
    spike: float = Field(default=10.0, ge=0)
    """Deviations above the median of the last losses beyond which a step is exploding and passed over; 0 for never."""
    rewinds: int = Field(default=3, ge=0)
    """Times that the weights may go back to the last good ones before the stage gives up."""
    best: str = ""
    """A watched figure, `validation` or `watched`: the weights of the look where it was best are saved. Which way is
    better the figure knows; `higher:NAME` and `lower:NAME` say otherwise. Empty: those of the last step."""
    patience: int = Field(default=0, ge=0)
    """Looks in a row without a gain in `best` that is more than chance, item by item, after which the stage ends
    early; 0 never."""

    def prepare(self) -> torch.device:
        """Set up this process; returns the device."""
        return setup(threads=self.threads, device=self.device, seed=self.seed)

    def learner(self, decoder: Decoder) -> Decoder:
        """What learns: the decoder itself, or, with `lora`, an adapted one that shares its weights; less `freeze`.

        Raises ConfigError when a pattern of `freeze` meets nothing, or when the adapter's rank is more than a matrix
        has: the product could then be no more than the matrix itself, at the price of a larger one.
        """
        if self.lora and type(decoder) is Decoder:
            found = sides(decoder.config)
            most, target = min((min(found[target]), target) for target in self.lora_targets)
            if self.lora > most:
                problem = f"an adapter of rank {self.lora} on {target}, whose smaller side is {most}"
                raise ConfigError(problem, key="lora", todo=f"Give at most {most}, or leave {target} out")
        settings = Lora(self.lora, self.lora_alpha or 2.0 * self.lora, self.lora_targets)
        learner = adapt(decoder, settings, self.seed) if self.lora else decoder
        freeze(learner, self.freeze)
        return learner

    def must_learn(self, size: Size) -> None:
        """Raise ConfigError, as `learner` does, for what a model of this size does not have; before it is there."""
        if (self.lora or self.freeze) and not size.foreign:
            with torch.device("meta"):
                model = Decoder(shape_of(size), seed=None)
            self.learner(model)

    def learned(self, size: Size) -> Learned:
        """What of a model of this size learns, and how: what its price depends on."""
        return _adapter(size, self.lora, self.lora_targets) if self.lora else _unfrozen(size, self.freeze)

    def optimizer(self, model: nn.Module, total: int) -> Optimizer:
        """The optimizer of a run of `total` steps. Raises ConfigError when nothing is left to learn."""
        if not any(parameter.requires_grad for parameter in model.parameters()):
            raise ConfigError("every weight is frozen: nothing is left to learn", key="freeze")
        rates = Rates(self.matrix_rate, self.embedding_rate, self.scalar_rate, self.weight_decay)
        schedule = Schedule(self.schedule, self.warmup, self.decay, self.floor)
        return Optimizer(model, rates, schedule, total, clip=self.clip)

    def run(self, context: Context, total: int) -> Run:
        """The run of a stage: its work folder, its reporter, its stop."""
        return Run(
            total,
            context.work,
            context.say,
            context.stop,
            checkpoint_seconds=self.checkpoint_seconds,
            good_every=self.good_every,
            keep=self.keep,
            spike=self.spike,
            rewinds=self.rewinds,
            best=self.best,
            patience=self.patience,
        )


class Scalable(Training):
    """Training of a decoder that may be large."""

    precision: Literal["auto", "fp32", "bf16"] = "fp32"
    """What the layers multiply in, and with them Muon and the head of a language-model loss; weights and residual
    stream stay fp32. `auto`: what the plan measured to be faster on this machine, fp32 where nothing was planned."""
    activations: Literal["auto", "keep", "recompute"] = "keep"
    """What the forward leaves for the backward: everything, or each layer's input alone, at the price of a second
    forward. `auto`: recompute where the plan finds that everything would not fit; keep where nothing was planned."""

    def learned(self, size: Size) -> Learned:
        """As for any training, in the precision and with the activations that are told."""
        told = {"bf16": self.precision == "bf16", "recompute": self.activations == "recompute"}
        return super().learned(size)._replace(**told)

    def placed(self, model: Decoder, device: torch.device) -> Decoder:
        """The model on its device, computing as told, divided among the ranks.

        Raises ConfigError for what another architecture, or an adapter on several ranks, cannot do.
        """
        self.computing(model)
        if self.lora and ranks() > 1:
            raise ConfigError("an adapter learns in one process", key="lora", todo="Leave out --ranks, or `lora: 0`")
        return divided(model.to(device))

    def computing(self, model: Decoder) -> Decoder:
        """The model, set to the precision and the activations that are told.

        Raises ConfigError for what another architecture cannot do.
        """
        told = {"precision": self.precision == "bf16", "activations": self.activations == "recompute"}
        for key in (key for key, asked in told.items() if asked and type(model) is not Decoder):
            raise ConfigError(f"a model of another architecture has no choice of {key}", key=key)
        model.bf16, model.recompute = self.precision == "bf16", self.activations == "recompute"
        return model


def freeze(model: nn.Module, patterns: Sequence[str]) -> None:
    """Require no gradient of the parameters that a pattern names, by themselves or by the module that holds them.

    Raises ConfigError for a pattern that meets nothing, with the names nearest to it.
    """
    named = dict(model.named_parameters())
    for pattern in patterns:
        found = _meant(named, pattern)
        if not found:
            known = sorted({".".join(name.split(".")[: end + 1]) for name in named for end in range(name.count("."))})
            near = difflib.get_close_matches(pattern, known, n=3, cutoff=0.3) or known[:3]
            raise ConfigError(f"no weight is called {pattern!r}", key="freeze", todo=f"Near it: {', '.join(near)}")
        for name in found:
            named[name].requires_grad_(False)


def _meant(names: Iterable[str], pattern: str) -> list[str]:
    """The parameters that a pattern names."""
    return [name for name in names if any(fnmatch.fnmatchcase(name, each) for each in (pattern, f"{pattern}.*"))]


@functools.lru_cache(maxsize=64)
def _unfrozen(size: Size, patterns: tuple[str, ...]) -> Learned:
    """What learns of a model but for what the patterns name; one that names nothing is for the stage to refuse."""
    if not patterns:
        return Learned.whole(size)
    with torch.device("meta"):
        model = Decoder(shape_of(size), seed=None)
    held = {name for pattern in patterns for name in _meant(dict(model.named_parameters()), pattern)}
    frozen = {name: each for name, each in model.named_parameters() if name in held}
    products = sum(each.numel() for name, each in frozen.items() if each.dim() > 1 and _multiplies(name, size))
    matrices = [each for each in model.matrices() if each.name in held]
    saved = sum(orthogonal((stop - start, each.parameter.shape[1])) for each in matrices for start, stop in each.rows)
    return Learned(
        size.parameters - sum(each.numel() for each in frozen.values()),
        size.flops - 2.0 * products,
        size.optimizer - saved,
    )


def _multiplies(name: str, size: Size) -> bool:
    """Whether a matrix is multiplied with: of an embedding only where it is the head, too."""
    return bool(size.tied) or not name.startswith("embed_tokens")


@functools.lru_cache(maxsize=64)
def _adapter(size: Size, rank: int, targets: tuple[Target, ...]) -> Learned:
    """An adapter of this rank beside a model that stays as it is."""
    found = sides(shape_of(size))
    pairs = [found[target] for target in targets]
    added = size.layers * rank * sum(sum(pair) for pair in pairs)
    optimizer = size.layers * sum(orthogonal((rank, side)) for pair in pairs for side in pair)
    return Learned(added, 0.0, optimizer, added)


def settled(learner: Decoder, out: Path, base: str, score: Tensor | None = None) -> Decoder:
    """The plain decoder that a run leaves. An adapted one is merged, and its adapter is written to `out/adapter`.

    `base` names the model it was made for, `score` is a reward model's head.
    """
    if adapters(learner):
        save_adapter(learner, out / FOLDER, base, score)
    return merge(learner)
