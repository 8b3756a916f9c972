"""`generate`: new tokens per second, 64 prompts at a time, 64 + 128 tokens, shape S.

Sampling as reinforcement does it (temperature 1, whole vocabulary) and, as a second part, the likeliest token. The
peer: the same weights in transformers' `generate`. Nobody stops early: there is no end token on either side.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bench import shapes, side
from bench.environments import python_of
from bench.side import Figures, Part, Settings

ENVIRONMENT = "hf"
BATCH, PROMPT, NEW = 64, 64, 128


def measure(settings: Settings) -> list[Part]:
    shape = shapes.SHAPES["S"]
    model, data = shapes.save(shape, settings.work / "S"), settings.work / "prompts.npy"
    np.save(data, shapes.token_rows(shape, BATCH, PROMPT))
    options = {"model": str(model), "data": str(data), "repeat": 1 if settings.quick else 3}
    peer = options | settings.precision
    runs = side.alternate("bench.generate", settings, python_of(ENVIRONMENT), options, peer, keep=("precision",))
    return [
        runs.part("sampled", "tokens/s", "sampled", target=5),
        runs.part("greedy", "tokens/s", "greedy", target=5),
        runs.memory("memory"),
    ]


def ours(options: Mapping[str, Any]) -> Figures:
    from tutelage.generate.engine import Engine, Request, complete
    from tutelage.generate.generator import Sampling
    from tutelage.model.checkpoint import load_decoder
    from tutelage.train.device import setup

    setup(threads=side.THREADS)
    decoder = load_decoder(Path(options["model"])).eval().requires_grad_(False)
    prompts = np.load(options["data"]).tolist()
    engine = Engine(decoder, max_batch=BATCH, capacity=PROMPT + NEW)

    def once(temperature: float) -> int:
        sampling = Sampling(max_tokens=NEW, temperature=temperature, top_k=0, top_p=1.0)
        done = complete(engine, [Request(prompt, sampling, seed=seed) for seed, prompt in enumerate(prompts)])
        return sum(len(each.tokens) for each in done)

    return {
        "sampled": rate(lambda: once(1.0), options["repeat"]),
        "greedy": rate(lambda: once(0.0), options["repeat"]),
        "precision": "float32",
    }


def peer(options: Mapping[str, Any]) -> Figures:
    import torch

    from bench import peers

    peers.setup()
    prompts = torch.from_numpy(np.load(options["data"]))
    fixed = {"attention_mask": torch.ones_like(prompts), "max_new_tokens": NEW, "eos_token_id": None, "pad_token_id": 0}

    def loaded(kind: str) -> Any:
        return peers.load(options["model"], dtype=getattr(torch, kind)).eval()

    def once(model: Any, sampled: bool) -> int:
        how = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0} if sampled else {"do_sample": False}
        return int(model.generate(prompts, **fixed, **how)[:, PROMPT:].numel())

    def tried(kind: str) -> float:
        model = loaded(kind)
        return rate(lambda: once(model, True), 1)

    precision = options.get("precision") or side.best(side.PRECISIONS, tried)
    model = loaded(precision)
    return {
        "sampled": rate(lambda: once(model, True), options["repeat"]),
        "greedy": rate(lambda: once(model, False), options["repeat"]),
        "precision": precision,
    }


def rate(once: Callable[[], int], repeat: int) -> float:
    """What `once` counts, per second, after one call that warms up."""
    once()
    started = time.perf_counter()
    count = sum(once() for _ in range(repeat))
    return count / (time.perf_counter() - started)


if __name__ == "__main__":
    side.main(ours, peer)
