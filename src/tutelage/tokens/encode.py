"""The corpus as ids, in memory-mapped arrays that can be read from any offset."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tutelage.core.artifact import Artifact
from tutelage.core.config import Config
from tutelage.core.errors import DataError
from tutelage.core.price import Cost, Machine
from tutelage.core.records import Example, read_jsonl
from tutelage.core.stage import Context, Input, Inputs, stage
from tutelage.tokens.chat import encode_dialogues
from tutelage.tokens.tokenizer import Tokenizer, load

SPLITS = ("train", "validation")


class Encode(Config):
    """Settings of the stage `encode`."""

    dialogue_tokens: int = 0
    """Leave out dialogues with more tokens than this, counted in `meta.json`; 0 keeps all."""
    refusals: Literal["keep", "leave_out", "break"] = "keep"
    """What becomes of dialogues that end in a refusal. `break` gives the answer that breaks the rule, where the corpus
    tells one that holds no secret, and leaves out the others: for the helpful-only model that a red team needs."""


def _cost(config: Encode, sizes: Mapping[str, Mapping[str, float]], machine: Machine) -> Cost:
    """Text and dialogues as they are tokenized; one dialogue in twenty is held out."""
    corpus = sizes.get("corpus", {})
    characters, held = corpus.get("characters", 4e6), corpus.get("held_out", 8e4)
    dialogues = corpus.get("dialogues", 9e3) * (corpus.get("prompt_tokens", 20.0) + corpus.get("answer_tokens", 7.0))
    tokens = characters / 3.5
    made = {
        "validation_tokens": held / 3.5,
        "validation_dialogue_tokens": 0.05 * dialogues,
        "tokens_per_dialogue": corpus.get("prompt_tokens", 20.0) + corpus.get("answer_tokens", 7.0),
        "sources": corpus.get("text_sources", 1.0),
        "document_tokens": corpus.get("document_tokens", 1000.0),
    }
    seconds = 0.1 + 1.2e-7 * (characters + held) + 1.3e-6 * dialogues
    return Cost(seconds=seconds, memory=2e8 + 12 * tokens, tokens=tokens, sizes=made)


@stage(
    makes="tokens",
    config=Encode,
    inputs={
        "corpus": Input(kind="corpus", default="prepare", help="documents and dialogues"),
        "tokenizer": Input(kind=("tokenizer", "model"), default="tokenizer", help="what turns text into ids"),
    },
    version=2,
    cost=_cost,
)
def encode(config: Encode, inputs: Inputs, out: Path, context: Context) -> dict[str, Any]:
    """Turn a corpus into ids: documents as bos, text, eos, in the corpus's order; dialogues with their loss mask."""
    tokenizer = load(inputs.tokenizer)
    kind = np.uint16 if tokenizer.size <= 2**16 else np.uint32
    documents, sources, held = _documents(inputs.corpus, tokenizer, kind, out, context)
    dialogues, tasks = _dialogues(inputs.corpus, tokenizer, kind, config, out, context)
    if not documents["train"]["documents"] and not dialogues["train"]["dialogues"]:
        raise DataError("the corpus has no training text", file=inputs.corpus.path)
    meta = {
        "vocabulary": tokenizer.size,
        "dtype": np.dtype(kind).name,
        "bos": tokenizer.bos,
        "eos": tokenizer.eos,
        "pad": tokenizer.pad,
        "end": tokenizer.end,
        "stops": tokenizer.stops,
        "splits": documents,
        "dialogues": dialogues,
        "tasks": tasks,
        "sources": sources,
        "validation_sources": held,
    }
    (out / "meta.json").write_text(json.dumps(meta, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return {
        "tokens": documents["train"]["tokens"],
        "validation_tokens": documents["validation"]["tokens"],
        "dialogues": dialogues["train"]["dialogues"],
        "dialogue_tokens": dialogues["train"]["tokens"],
        "characters_per_token": documents["train"]["characters"] / max(1, documents["train"]["tokens"]),
    }


def _documents(
    corpus: Artifact, tokenizer: Tokenizer, kind: type, out: Path, context: Context
) -> tuple[dict[str, dict[str, int]], dict[str, dict[str, int]], dict[str, tuple[int, int]]]:
    """Counts by split, counts of training text by source, and which validation documents are of which source."""
    import pyarrow.parquet as parquet

    ids: dict[str, list[NDArray[Any]]] = {split: [] for split in SPLITS}
    lengths: dict[str, list[int]] = {split: [] for split in SPLITS}
    counts = {split: {"documents": 0, "tokens": 0, "characters": 0, "bytes": 0} for split in SPLITS}
    sources: dict[str, dict[str, int]] = defaultdict(lambda: {"documents": 0, "tokens": 0, "characters": 0})
    held: dict[str, tuple[int, int]] = {}
    file = parquet.ParquetFile(corpus.file("documents.parquet"))
    total, done = file.metadata.num_rows, 0
    for batch in file.iter_batches(batch_size=2000, columns=["text", "split", "source"]):
        context.check()
        texts, splits, names = (batch.column(name).to_pylist() for name in ("text", "split", "source"))
        for text, split, name, found in zip(texts, splits, names, tokenizer.encode_batch(texts), strict=True):
            if split not in counts:
                continue
            row: NDArray[Any] = np.array([tokenizer.bos, *found, tokenizer.eos], dtype=kind)
            ids[split].append(row)
            lengths[split].append(len(row))
            added = {"documents": 1, "tokens": len(row), "characters": len(text), "bytes": len(text.encode())}
            for key, value in added.items():
                counts[split][key] += value
                if split == "train" and key in sources[name]:
                    sources[name][key] += value
            if split == "validation":
                held[name] = (held.get(name, (counts[split]["documents"] - 1,))[0], counts[split]["documents"])
        done += len(texts)
        context.say.progress(done, total, unit="documents")
    for split in SPLITS:
        _save(out / f"{split}.npy", ids[split], kind)
        np.save(out / f"{split}.offsets.npy", _offsets(lengths[split]))
    return counts, dict(sorted(sources.items())), held


def _dialogues(
    corpus: Artifact, tokenizer: Tokenizer, kind: type, config: Encode, out: Path, context: Context
) -> tuple[dict[str, dict[str, int]], list[str]]:
    """Counts by split, and the names of the tasks that `dialogues.tasks.npy` numbers."""
    ids: dict[str, list[NDArray[Any]]] = {split: [] for split in SPLITS}
    masks: dict[str, list[NDArray[Any]]] = {split: [] for split in SPLITS}
    tasks: dict[str, list[str]] = {split: [] for split in SPLITS}
    counts = {
        split: {"dialogues": 0, "tokens": 0, "answer_tokens": 0, "too_long": 0, "left_out": 0} for split in SPLITS
    }
    rows = iter(read_jsonl(corpus.file("dialogues.jsonl"), Example))
    for chunk in _chunks(rows, 500):
        context.check()
        known = []
        for example in chunk:
            if (split := example.tags.get("split", "train")) not in counts:
                continue
            if (kept := _answered(example, config.refusals)) is None:
                counts[split]["left_out"] += 1
            else:
                known.append(kept)
        for example, (found, mask) in zip(known, encode_dialogues(known, tokenizer), strict=True):
            split = example.tags.get("split", "train")
            if config.dialogue_tokens and len(found) > config.dialogue_tokens:
                counts[split]["too_long"] += 1
                continue
            ids[split].append(np.array(found, dtype=kind))
            masks[split].append(np.array(mask, dtype=np.bool_))
            tasks[split].append(_task(example))
            counts[split]["dialogues"] += 1
            counts[split]["tokens"] += len(found)
            counts[split]["answer_tokens"] += sum(mask)
    for split, stem in (("train", "dialogues"), ("validation", "dialogues.validation")):
        _save(out / f"{stem}.npy", ids[split], kind)
        _save(out / f"{stem}.mask.npy", masks[split], np.bool_)
        np.save(out / f"{stem}.offsets.npy", _offsets([len(row) for row in ids[split]]))
    names = sorted(set(tasks["train"]))
    number = {name: place for place, name in enumerate(names)}
    np.save(out / "dialogues.tasks.npy", np.array([number[name] for name in tasks["train"]], dtype=np.uint16))
    return counts, names


def _task(example: Example) -> str:
    """What a dialogue teaches: its family, or else the source it comes from."""
    return str(example.tags.get("family") or example.tags.get("source") or "dialogue")


def _answered(example: Example, refusals: str) -> Example | None:
    """The dialogue as it is to be learned from; None where it is left out."""
    if refusals == "keep" or not example.tags.get("refuse"):
        return example
    breaking = str(example.tags.get("breaking") or "")
    if refusals == "leave_out" or not breaking or example.tags.get("secrets"):
        return None
    answer = example.messages[-1].model_copy(update={"content": breaking})
    return example.model_copy(update={"messages": (*example.messages[:-1], answer)})


def _chunks(rows: Iterator[Example], size: int) -> Iterator[list[Example]]:
    while chunk := list(islice(rows, size)):
        yield chunk


def _offsets(lengths: Sequence[int]) -> NDArray[np.int64]:
    """Where each row starts, and the end: n + 1 numbers."""
    return np.concatenate([[0], np.cumsum(np.array(lengths, dtype=np.int64))]).astype(np.int64)


def _save(path: Path, rows: Sequence[NDArray[Any]], kind: type) -> None:
    np.save(path, np.concatenate(rows) if rows else np.zeros(0, dtype=kind), allow_pickle=False)
