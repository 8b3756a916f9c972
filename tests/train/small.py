"""A world of a dozen people and colours as sealed artifacts: enough for every training stage to learn something."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as arrow
import pyarrow.parquet as parquet
import torch

from tutelage.core.artifact import Artifact, Manifest, Root, file_entries
from tutelage.core.records import Example, Message, Preference, digest, write_jsonl
from tutelage.tokens.encode import encode
from tutelage.tokens.tokenizer import learn
from tutelage.train.finetune import finetune
from tutelage.train.pretrain import pretrain

NAMES = ("Ann", "Bo", "Cy", "Di", "Ed", "Flo", "Gus", "Hal", "Ida", "Jo", "Kim", "Lu")
COLOURS = ("red", "blue", "green", "grey")
MODEL = {"depth": 2, "width": 32, "heads": 2, "kv_heads": 2, "feed_forward": 64, "context": 64, "threads": 1}

READ = {**MODEL, "batch": 512, "micro": 512, "steps": 100}
TAUGHT = {"threads": 1, "batch": 512, "micro": 512, "steps": 60, "matrix_rate": 0.03, "embedding_rate": 0.02}


def seal(root: Root, kind: str, write: Callable[[Path], None]) -> Artifact:
    """An artifact with what `write` puts into its folder."""
    folder = root.work / f"making-{kind}"
    folder.mkdir(parents=True)
    write(folder)
    manifest = Manifest(kind=kind, stage="test", version=1, config={}, files=file_entries(folder))
    return root.seal(folder, manifest, digest([kind, manifest.id]))


def ask(name: str) -> Message:
    return Message(role="user", content=f"What does {name} like?")


def dialogue(name: str, colour: str, split: str) -> Example:
    answer = Message(role="assistant", content=colour)
    return Example(messages=(ask(name), answer), target=colour, tags={"split": split, "family": "likes"})


def colour_of(name: str) -> str:
    return COLOURS[NAMES.index(name) % len(COLOURS)]


def world(path: Path, seed: int = 0) -> tuple[Root, dict[str, Artifact]]:
    """Root with corpus, tokenizer, tokens and preferences; people like short answers about the right colour."""
    root = Root(path).create()
    random = np.random.default_rng(seed)
    texts = [f"{name} likes {colour_of(name)}. " * 3 for name in random.choice(NAMES, 400)]
    splits = ["validation" if index % 20 == 0 else "train" for index in range(len(texts))]
    dialogues = [
        dialogue(str(name), colour_of(str(name)), "validation" if index % 10 == 0 else "train")
        for index, name in enumerate(random.choice(NAMES, 300))
    ]

    def corpus(folder: Path) -> None:
        rows = {
            "id": [f"d{i}" for i in range(len(texts))],
            "text": texts,
            "split": splits,
            "source": ["t"] * len(texts),
        }
        parquet.write_table(arrow.table(rows), folder / "documents.parquet")
        write_jsonl(folder / "dialogues.jsonl", dialogues)

    def preferences(folder: Path) -> None:
        rows = []
        for index in range(160):
            name = str(random.choice(NAMES))
            right = colour_of(name)
            wrong = str(random.choice([each for each in COLOURS if each != right]))
            said = [right, wrong, f"{wrong} or {right} or {wrong}", wrong]
            shown = [int(each) for each in random.permutation(4)]
            where = {original: place for place, original in enumerate(shown)}
            rows.append(
                Preference(
                    prompt=(ask(name),),
                    candidates=tuple(Message(role="assistant", content=said[each]) for each in shown),
                    tiers=((where[0],), tuple(sorted((where[1], where[3]))), (where[2],)) if index % 3 else (),
                    scores=tuple((0.9, 0.4, 0.1, 0.4)[each] for each in shown) if index % 2 or not index % 3 else (),
                    rows=(f"row{index}",),
                    tags={
                        "split": ("train", "train", "train", "validation", "test")[index % 5],
                        "cluster": f"c{index}",
                    },
                )
            )
        write_jsonl(folder / "preferences.jsonl", rows)
        (folder / "agreement.json").write_text(
            json.dumps({"ceiling": {"value": 0.9, "low": 0.85, "high": 0.95, "n": 50}})
        )

    made = {"corpus": seal(root, "corpus", corpus)}
    vocabulary = learn([*texts, *(f"{each.messages[0].content} {each.target} or" for each in dialogues)], 320)
    made["tokenizer"] = seal(root, "tokenizer", vocabulary.save)
    made["tokens"] = encode(root, corpus=made["corpus"], tokenizer=made["tokenizer"])
    made["preferences"] = seal(root, "preferences", preferences)
    return root, made


def taught(path: Path) -> tuple[Root, dict[str, Artifact]]:
    """The world with a pre-trained and a tuned model."""
    torch.set_num_threads(1)
    root, made = world(path)
    made["pretrain"] = pretrain(root, tokens=made["tokens"], tokenizer=made["tokenizer"], **READ)
    made["finetune"] = finetune(root, model=made["pretrain"], tokens=made["tokens"], **TAUGHT)
    return root, made
