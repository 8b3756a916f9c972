"""`reward`: pairs per second of a reward model learning which of two answers people preferred, shape S.

Real pairs of up to 256 tokens an answer with its prompt, 32 pairs per optimizer step. The peer: TRL's RewardTrainer on
the same weights and token ids. Both learn a scalar head at the last token; what our stage adds by default, the
likelihood of the answer under the trunk, is a part by itself.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bench import data, shapes, side
from bench.environments import python_of
from bench.side import Figures, Part, Settings

if TYPE_CHECKING:
    from transformers import Trainer

    from tutelage.train.batch import PreferenceBatch

ENVIRONMENT = "hf"
PAIRS = 32
"""Pairs of an optimizer step."""
MICRO = (1024, 2048, 4096)
"""Tokens of a micro-batch that we try."""
BATCHES = (1, 2, 4, 8)
"""Pairs of a micro-batch that the peer tries."""
Rows = Sequence[Mapping[str, Any]]
"""Pairs as `prepared` writes them."""


def measure(settings: Settings) -> list[Part]:
    model, file = prepared(settings)
    options = {"model": str(model), "data": str(file), "steps": 2 if settings.quick else 6} | settings.precision
    keep = ("micro", "precision", "batch")
    runs = side.alternate("bench.reward", settings, python_of(ENVIRONMENT), options, options, keep=keep)
    return [
        runs.part("pairs", "pairs/s", "pairs", target=2),
        Part(
            runs.named("with the likelihood"),
            "pairs/s",
            "higher",
            side.median(runs.ours, "likelihood"),
            side.median(runs.peer, "pairs"),
        ),
        runs.memory("memory"),
    ]


def prepared(settings: Settings) -> tuple[Path, Path]:
    """Weights with a tokenizer beside them, and a file of pairs as text and as ids."""
    shape = shapes.SHAPES["S"]
    tokenizer = data.tokenizer(shape.vocabulary, settings.work / "tokenizer")
    model = shapes.save(shape, settings.work / "S", settings.work / "tokenizer")
    rows = []
    for pair in data.pairs():
        asked = tokenizer.encode(pair.prompt)
        said = [[*tokenizer.encode(answer), tokenizer.eos] for answer in (pair.chosen, pair.rejected)]
        if len(asked) + max(map(len, said)) <= shape.context:
            rows.append({"text": pair._asdict(), "asked": asked, "chosen": said[0], "rejected": said[1]})
    file = settings.work / "pairs.json"
    file.write_text(json.dumps(rows))
    return model, file


def ours(options: Mapping[str, Any]) -> Figures:
    from bench.ours import quickest, train
    from tutelage.model.checkpoint import load_reward
    from tutelage.train.batch import ItemSteps, Judged, PreferenceBatch, lay
    from tutelage.train.device import setup
    from tutelage.train.objectives import Rewards
    from tutelage.train.optim import Rates

    setup(threads=side.THREADS)
    rows = json.loads(Path(options["data"]).read_text())
    segments = [[np.array(row["asked"] + row[which]) for which in ("chosen", "rejected")] for row in rows]

    def collate(items: Sequence[int], likelihood: bool) -> PreferenceBatch:
        ids, lengths = lay([segment for item in items for segment in segments[item]])
        judged = tuple(Judged(((2 * place,), (2 * place + 1,))) for place in range(len(items)))
        said = tuple(len(rows[item][which]) for item in items for which in ("chosen", "rejected"))
        return PreferenceBatch(ids, lengths, judged, said if likelihood else None)

    def run(micro: int, bf16: bool, number: int = 1, likelihood: bool = False) -> float:
        model = load_reward(Path(options["model"]))
        model.decoder.bf16 = bf16
        if not likelihood:
            model.likelihood.requires_grad_(False)
        sizes = [sum(map(len, each)) for each in segments]
        steps = ItemSteps(sizes, lambda items: collate(items, likelihood), PAIRS, micro)
        return train(model, steps, Rewards(), number, lambda batch: len(batch.judged), Rates(1e-3, 1e-3, 1e-3))

    chosen = quickest(MICRO, options, run)
    how = chosen["micro"], chosen["precision"] == "bfloat16", options["steps"]
    return chosen | {"pairs": run(*how), "likelihood": run(*how, likelihood=True)}


def peer(options: Mapping[str, Any]) -> Figures:
    from datasets import Dataset
    from transformers import AutoModelForSequenceClassification
    from trl import RewardConfig, RewardTrainer

    from bench import peers

    def make(rows: Rows, tokenizer: Any, arguments: Mapping[str, Any]) -> RewardTrainer:
        columns = {f"{which}_ids": [row["asked"] + row[which] for row in rows] for which in ("chosen", "rejected")}
        model = peers.load(options["model"], AutoModelForSequenceClassification, num_labels=1, use_cache=False)
        dataset, config = Dataset.from_dict(columns), RewardConfig(**arguments, learning_rate=1e-4)
        return RewardTrainer(model, args=config, train_dataset=dataset, processing_class=tokenizer)

    return on_pairs(options, make)


def on_pairs(options: Mapping[str, Any], make: Callable[[Rows, Any, dict[str, Any]], Trainer]) -> Figures:
    """A peer that learns from pairs: `make` gives a trainer of rows, their tokenizer and the trainer's arguments."""
    from bench import peers

    peers.setup()
    rows, tokenizer = json.loads(Path(options["data"]).read_text()), peers.tokenizer(options["model"])
    precision = peers.precision(options, peers.load(options["model"]))
    with tempfile.TemporaryDirectory() as work:

        def with_batch(batch: int, steps: int) -> Trainer:
            arguments = peers.settings(
                Path(work),
                steps,
                precision,
                max_length=shapes.SHAPES["S"].context,
                per_device_train_batch_size=batch,
                gradient_accumulation_steps=PAIRS // batch,
            )
            return make(rows, tokenizer, arguments)

        clock, batch = peers.trained(options, with_batch, BATCHES)
    return {"pairs": options["steps"] * PAIRS / clock.seconds, "batch": batch, "precision": precision}


if __name__ == "__main__":
    side.main(ours, peer)
