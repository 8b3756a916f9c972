"""What the sides in transformers and TRL have in common: loading, settings, and a clock in the trainer.

Settings are the fastest a user would ordinarily choose on this machine: SDPA attention, PyTorch's fused AdamW, no
gradient checkpointing, and mixed precision in bfloat16 where it is faster here (TRL's own default).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, Trainer, TrainerCallback

from bench import side


def setup() -> None:
    """Threads of this process."""
    torch.set_num_threads(side.THREADS)


def load(folder: str, kind: Any = AutoModelForCausalLM, dtype: torch.dtype = torch.float32, **options: Any) -> Any:
    """A model from Hugging Face files."""
    return kind.from_pretrained(folder, attn_implementation="sdpa", dtype=dtype, **options)


def tokenizer(folder: str) -> Any:
    """The tokenizer beside a model."""
    return AutoTokenizer.from_pretrained(folder)


def autocast(precision: str) -> torch.autocast:
    """Mixed precision, or none for float32."""
    return torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16")


def precision(options: Mapping[str, Any], model: PreTrainedModel, rows: int = 4) -> str:
    """The precision in which forward and backward of `rows` full rows are fastest here, or the one in the options."""
    if "precision" in options:
        return str(options["precision"])
    ids = torch.randint(16, model.config.vocab_size, (rows, min(256, model.config.max_position_embeddings)))

    def rate(kind: str) -> float:
        seconds = []
        for _ in range(4):
            started = time.perf_counter()
            with autocast(kind):
                loss = model(input_ids=ids, labels=ids).loss
            loss.backward()
            seconds.append(time.perf_counter() - started)
        model.zero_grad()
        return 1 / min(seconds)

    return side.best(side.PRECISIONS, rate)


def settings(work: Path, steps: int, precision: str, **options: Any) -> dict[str, Any]:
    """Arguments of every trainer: no logging, nothing saved, no checkpointing of gradients."""
    return {
        "output_dir": str(work),
        "max_steps": steps,
        "bf16": precision == "bfloat16",
        "use_cpu": True,
        "optim": "adamw_torch_fused",
        "lr_scheduler_type": "constant",
        "gradient_checkpointing": False,
        "save_strategy": "no",
        "logging_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "seed": 0,
        **options,
    }


class Clock(TrainerCallback):
    """Notes the end of every optimizer step, and what the model had read by then."""

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.read: list[float] = []
        self.tokens = 0.0

    def watch(self, model: Any) -> None:
        """Count the tokens, padding left out, of every forward."""

        def count(_: torch.nn.Module, __: Any, given: Mapping[str, Any]) -> None:
            mask = given.get("attention_mask")
            padded = mask is not None and mask.dim() == 2
            self.tokens += float(mask.sum()) if mask is not None and padded else given["input_ids"].numel()

        model.register_forward_pre_hook(count, with_kwargs=True)

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.ends.append(time.perf_counter())
        self.read.append(self.tokens)

    @property
    def seconds(self) -> float:
        """Of all steps but the first."""
        return self.ends[-1] - self.ends[0]


def trained(
    options: Mapping[str, Any], make: Callable[[int, int], Trainer], batches: Sequence[int]
) -> tuple[Clock, int]:
    """Train for `steps` steps after one that warms up, with the micro-batch that is fastest, or the one in the options.

    `make(batch, steps)` gives a trainer; `batch` is its micro-batch, in rows.
    """

    def run(batch: int, steps: int) -> Clock:
        trainer, clock = make(batch, steps + 1), Clock()
        trainer.add_callback(clock)
        clock.watch(trainer.model)
        trainer.train()
        return clock

    batch = options.get("batch") or side.best(batches, lambda each: 1 / run(each, 1).seconds)
    return run(batch, options["steps"]), batch
