"""Public texts that both sides learn from, as text and as token ids; `TUTELAGE_DATA` names the folder they lie in."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from bench import side

if TYPE_CHECKING:
    from tutelage.tokens.tokenizer import Tokenizer


def rows(name: str, split: str = "train") -> Iterator[dict[str, Any]]:
    """The rows of a set. Raises SystemExit when it is not there."""
    folder = os.environ.get("TUTELAGE_DATA")
    if not folder:
        side.refuse("this bench reads public texts: set TUTELAGE_DATA to the folder that holds them")
    path = Path(folder) / name / f"{split}.jsonl.gz"
    if not path.is_file():
        side.refuse(f"TUTELAGE_DATA holds no {name}/{split}.jsonl.gz")
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        yield from map(json.loads, lines)


class Dialogue(NamedTuple):
    """A prompt and its answer."""

    prompt: str
    answer: str


class Pair(NamedTuple):
    """A prompt, the answer people preferred, the other."""

    prompt: str
    chosen: str
    rejected: str


def dialogues() -> list[Dialogue]:
    """Short tasks of many kinds."""
    return [Dialogue(row["prompt"].strip() + "\n", row["response"].strip()) for row in rows("instruct_p3")]


def pairs() -> list[Pair]:
    """People's preferences between two answers."""
    found = []
    for row in rows("pref_hh_harmless"):
        prompt = row["prompt"].strip() + "\n\nAssistant:"
        found.append(Pair(prompt, " " + row["chosen"].strip(), " " + row["rejected"].strip()))
    return found


def tokenizer(vocabulary: int, folder: Path) -> Tokenizer:
    """A tokenizer learned from those texts, saved in a folder for both sides."""
    from tutelage.tokens.tokenizer import learn

    texts = [text for dialogue in dialogues() for text in dialogue] + [text for pair in pairs() for text in pair]
    made = learn(texts, vocabulary)
    made.save(folder)
    return made
