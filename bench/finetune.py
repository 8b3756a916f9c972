"""`finetune`: tokens per second, padding not counted, of tuning on prompts with their answers, shape S.

Real prompts and answers of up to 256 tokens, about 8,192 tokens per optimizer step, loss on the answers. The peers:
TRL's SFTTrainer with packing (best-fit, no attention across documents), and as it comes, with padding.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bench import data, shapes, side
from bench.environments import python_of
from bench.side import Figures, Part, Settings

ENVIRONMENT = "hf"
BATCHES = (1, 2, 4, 8, 16)
"""Rows of a micro-batch that the peer tries."""


def measure(settings: Settings) -> list[Part]:
    shape = shapes.SHAPES["S"]
    tokenizer = data.tokenizer(shape.vocabulary, settings.work / "tokenizer")
    model = shapes.save(shape, settings.work / "S", settings.work / "tokenizer")
    rows = []
    for prompt, answer in data.dialogues():
        asked, said = tokenizer.encode(prompt), [*tokenizer.encode(answer), tokenizer.eos]
        if len(asked) + len(said) <= shape.context:
            rows.append({"ids": asked + said, "asked": len(asked)})
    file = settings.work / "dialogues.json"
    file.write_text(json.dumps(rows))
    parts: list[Part] = []
    options = {"model": str(model), "data": str(file), "steps": 2 if settings.quick else 6}
    for name, packing, target in (("packed", True, 1.5), ("default", False, 3.0)):
        options |= settings.precision
        peer = options | {"packing": packing}
        keep = ("micro", "precision", "batch")
        runs = side.alternate("bench.finetune", settings, python_of(ENVIRONMENT), options, peer, keep=keep)
        parts.append(runs.part(f"beside SFTTrainer, {name}", "tokens/s", "tokens", target=target))
        parts.append(runs.memory(f"beside SFTTrainer, {name}: memory"))
    return parts


def ours(options: Mapping[str, Any]) -> Figures:
    from bench.ours import settled, tokens, train
    from tutelage.model.checkpoint import load_decoder
    from tutelage.train.batch import Source, TokenSteps, token_batch
    from tutelage.train.device import setup
    from tutelage.train.objectives import NextToken

    setup(threads=side.THREADS)
    shape, rows = shapes.SHAPES["S"], json.loads(Path(options["data"]).read_text())
    model, objective = load_decoder(Path(options["model"])), NextToken()
    offsets = np.cumsum([0, *(len(row["ids"]) for row in rows)])
    ids = np.concatenate([np.array(row["ids"]) for row in rows])
    mask = np.concatenate([np.arange(len(row["ids"])) >= row["asked"] for row in rows])
    source = Source(ids, offsets, mask)

    def once(micro: int) -> None:
        last = int(np.searchsorted(offsets, micro, "right")) - 1
        parts = [slice(offsets[row], offsets[row + 1]) for row in range(last)]
        batch = token_batch([ids[part] for part in parts], [mask[part] for part in parts])
        (objective(model, batch).terms["tokens"] / batch.counts["tokens"]).backward()

    chosen = settled(model, options, once)
    micro = chosen["micro"]
    steps = TokenSteps(source, shape.context, micro, shapes.STEP_TOKENS // micro, shuffle=True)
    return chosen | {"tokens": train(model, steps, objective, options["steps"], tokens)}


def peer(options: Mapping[str, Any]) -> Figures:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    from bench import peers

    peers.setup()
    rows = json.loads(Path(options["data"]).read_text())
    learned = [[-100] * row["asked"] + row["ids"][row["asked"] :] for row in rows]
    dataset = Dataset.from_dict({"input_ids": [row["ids"] for row in rows], "labels": learned})
    precision = peers.precision(options, peers.load(options["model"]))
    context, mean = shapes.SHAPES["S"].context, float(np.mean([len(row["ids"]) for row in rows]))
    whole = round(shapes.STEP_TOKENS / (context if options["packing"] else mean) / max(BATCHES)) * max(BATCHES)

    with tempfile.TemporaryDirectory() as work:

        def make(batch: int, steps: int) -> SFTTrainer:
            settings = peers.settings(
                Path(work),
                steps,
                precision,
                packing=options["packing"],
                max_length=context,
                per_device_train_batch_size=batch,
                gradient_accumulation_steps=whole // batch,
                learning_rate=1e-4,
            )
            model, tokenizer = peers.load(options["model"], use_cache=False), peers.tokenizer(options["model"])
            return SFTTrainer(model, args=SFTConfig(**settings), train_dataset=dataset, processing_class=tokenizer)

        clock, batch = peers.trained(options, make, BATCHES)
    read = clock.read[-1] - clock.read[0]
    return {"tokens": read / clock.seconds, "batch": batch, "precision": precision}


if __name__ == "__main__":
    side.main(ours, peer)
