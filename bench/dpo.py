"""`dpo`: pairs per second of direct preference optimisation, reference included, shape S.

The pairs of `reward`, 32 per optimizer step, each read once by the reference. The peer: TRL's DPOTrainer on the same
weights and texts. Ours reads all pairs with the reference before it trains; those seconds count.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bench import side
from bench.environments import python_of
from bench.reward import MICRO, PAIRS, Rows, on_pairs, prepared
from bench.side import Figures, Part, Settings

ENVIRONMENT = "hf"


def measure(settings: Settings) -> list[Part]:
    model, file = prepared(settings)
    options = {"model": str(model), "data": str(file), "steps": 2 if settings.quick else 6} | settings.precision
    keep = ("micro", "precision", "batch")
    runs = side.alternate("bench.dpo", settings, python_of(ENVIRONMENT), options, options, keep=keep)
    return [runs.part("pairs", "pairs/s", "pairs", target=2), runs.memory("memory")]


def ours(options: Mapping[str, Any]) -> Figures:
    from bench.ours import quickest, train
    from tutelage.align.dpo import Pair, answer_logprobs, collate
    from tutelage.model.checkpoint import load_decoder
    from tutelage.train.batch import ItemSteps
    from tutelage.train.device import setup
    from tutelage.train.objectives import DirectPreference
    from tutelage.train.optim import Rates

    setup(threads=side.THREADS)
    rows = json.loads(Path(options["data"]).read_text())[: (options["steps"] + 1) * PAIRS]

    def pair(row: Mapping[str, Any]) -> Pair:
        chosen, rejected = (np.array(row["asked"] + row[which]) for which in ("chosen", "rejected"))
        asked = len(row["asked"])
        masks = np.arange(len(chosen)) >= asked, np.arange(len(rejected)) >= asked
        return Pair((chosen, rejected), masks, 1.0, False, "")

    every = [pair(row) for row in rows]
    answer_logprobs(load_decoder(Path(options["model"])), every[:PAIRS])  # warms up
    started = time.perf_counter()
    reference = answer_logprobs(load_decoder(Path(options["model"])), every)
    reading = (time.perf_counter() - started) / len(every)  # seconds a pair

    def run(micro: int, bf16: bool, number: int = 1) -> float:
        steps = ItemSteps(
            [each.size for each in every],
            lambda items: collate([every[item] for item in items], reference[list(items)].reshape(-1)),
            PAIRS,
            micro,
        )
        model = load_decoder(Path(options["model"]))
        model.bf16 = bf16
        rates = Rates(1e-3, 3e-4, 3e-4)
        return train(model, steps, DirectPreference(), number, lambda batch: len(batch.weight), rates)

    chosen = quickest(MICRO, options, run)
    rate = run(chosen["micro"], chosen["precision"] == "bfloat16", options["steps"])
    return chosen | {"pairs": 1 / (1 / rate + reading)}


def peer(options: Mapping[str, Any]) -> Figures:
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    from bench import peers

    def make(rows: Rows, tokenizer: Any, arguments: Mapping[str, Any]) -> DPOTrainer:
        model, reference = (peers.load(options["model"], use_cache=False) for _ in range(2))
        dataset, config = Dataset.from_list([row["text"] for row in rows]), DPOConfig(**arguments, learning_rate=1e-5)
        return DPOTrainer(model, reference, args=config, train_dataset=dataset, processing_class=tokenizer)

    return on_pairs(options, make)


if __name__ == "__main__":
    side.main(ours, peer)
