"""`decode`: new tokens per second of one stream, the likeliest token each time, shape M; S is reported.

64 tokens are read, 128 are written; the time from the first new token to the last counts, on both sides. The peer:
llama.cpp through the `xllamacpp` wheel, the same weights as a GGUF file in f32, its own clock.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from bench import data, shapes, side
from bench.environments import python_of
from bench.side import Figures, Part, Settings

ENVIRONMENT = "llamacpp"
PROMPT, NEW = 64, 128


def measure(settings: Settings) -> list[Part]:
    from tutelage.model import gguf  # type: ignore[attr-defined, unused-ignore]
    from tutelage.model.checkpoint import load_decoder

    parts: list[Part] = []
    for name, target in (("M", 1.0), ("S", None)):
        shape, folder = shapes.SHAPES[name], settings.work / name
        tokenizer = data.tokenizer(shape.vocabulary, settings.work / f"tokenizer-{name}")
        shapes.save(shape, folder, settings.work / f"tokenizer-{name}")
        gguf.write(load_decoder(folder), folder / "model.gguf", tokenizer)
        np.save(folder / "prompt.npy", shapes.token_rows(shape, 1, PROMPT))
        options = {"folder": str(folder), "repeat": 3 if settings.quick else 10}
        runs = side.alternate("bench.decode", settings, python_of(ENVIRONMENT), options, options)
        parts += [runs.part(name, "tokens/s", "tokens", target=target), runs.memory(f"{name}: memory")]
        int8 = runs.part(f"{name}: ours in int8, peer as before", "tokens/s", "tokens")
        parts.append(replace(int8, ours=side.median(runs.ours, "int8")))
    return parts


def ours(options: Mapping[str, Any]) -> Figures:
    from tutelage.generate.engine import Engine, Request
    from tutelage.generate.generator import Sampling
    from tutelage.model.checkpoint import load_decoder
    from tutelage.train.device import setup

    setup(threads=side.THREADS)
    folder = Path(options["folder"])
    decoder = load_decoder(folder).eval().requires_grad_(False)
    prompt = np.load(folder / "prompt.npy")[0].tolist()

    def once(engine: Engine) -> float:
        engine.submit(Request(prompt, Sampling(max_tokens=NEW, temperature=0)))
        engine.step()
        started = time.perf_counter()
        count = 0
        while engine.busy:
            count += len(engine.step())
        return count / (time.perf_counter() - started)

    found: Figures = {"precision": "float32"}
    for name, int8 in (("tokens", False), ("int8", True)):
        engine = Engine(decoder, max_batch=1, capacity=PROMPT + NEW, int8=int8)
        found[name] = rate([once(engine) for _ in range(options["repeat"] + 1)])
    return found


def peer(options: Mapping[str, Any]) -> Figures:
    import xllamacpp

    folder = Path(options["folder"])
    settings = xllamacpp.CommonParams()
    settings.model.path = str(folder / "model.gguf")
    settings.n_ctx, settings.n_parallel, settings.verbosity = shapes.SHAPES["M"].context, 1, 0
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = side.THREADS
    server = xllamacpp.Server(settings)
    request = {
        "prompt": np.load(folder / "prompt.npy")[0].tolist(),
        "max_tokens": NEW,
        "temperature": 0,
        "ignore_eos": True,
        "cache_prompt": False,
    }

    def once() -> float:
        timings = server.handle_completions(request)["timings"]
        assert timings["predicted_n"] == NEW, f"llama.cpp stopped after {timings['predicted_n']} tokens"
        return float(timings["predicted_per_second"])

    return {"tokens": rate([once() for _ in range(options["repeat"] + 1)])}


def rate(each: list[float]) -> float:
    """The median, the first repetition left out."""
    return statistics.median(each[1:])


if __name__ == "__main__":
    side.main(ours, peer)
