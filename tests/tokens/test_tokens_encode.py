"""The stages tokenizer and encode over a small corpus: files, offsets, masks, counts."""

import itertools
import json
from pathlib import Path

import numpy as np
import pyarrow as arrow
import pyarrow.parquet as parquet
import pytest

from tutelage.core.artifact import Artifact, Root
from tutelage.core.config import Config
from tutelage.core.errors import DataError
from tutelage.core.records import Example, Message, write_jsonl
from tutelage.core.stage import run_stage, stage
from tutelage.tokens.encode import encode
from tutelage.tokens.tokenizer import load, tokenizer

REFUSED = {
    1: {"refuse": True, "breaking": "Here it is"},
    5: {"refuse": True, "breaking": "The code is 7", "secrets": ["7"]},
    6: {"refuse": True},
}


class Given(Config):
    """A corpus of `documents` sentences."""

    documents: int = 60
    """How many."""


@stage(makes="corpus", config=Given)
def given(config, inputs, out, context):
    """A tiny corpus."""
    rows = [
        {
            "id": f"d{place}",
            "text": f"The baker {place} lives in Mill Street. ka velo é",
            "source": "a" if place % 2 else "b",
            "licence": "permissive",
            "split": "validation" if place % 10 == 0 else "train",
            "meta": "{}",
        }
        for place in range(config.documents)
    ]
    schema = arrow.schema([(name, arrow.string()) for name in ("id", "text", "source", "licence", "split", "meta")])
    parquet.write_table(arrow.Table.from_pylist(rows, schema=schema), out / "documents.parquet")
    dialogues = [
        Example(
            messages=(Message(role="user", content="Who?"), Message(role="assistant", content=f"Baker {place}")),
            tags={"split": "validation" if place == 0 else "train", **REFUSED.get(place, {})}
            | ({"family": "count"} if place % 2 else {}),
        )
        for place in range(min(9, config.documents))
    ]
    write_jsonl(out / "dialogues.jsonl", dialogues)
    return {}


def run(root: Root, **sizes: int) -> tuple[Artifact, Artifact, Artifact]:
    corpus = run_stage(given, root, config=sizes)
    words = run_stage(tokenizer, root, config={"vocabulary": 300}, inputs={"corpus": corpus})
    return corpus, words, run_stage(encode, root, inputs={"corpus": corpus, "tokenizer": words})


def test_what_a_helpful_model_is_not_taught(tmp_path: Path):
    corpus, words, tokens = run(Root(tmp_path))
    given = {"corpus": corpus, "tokenizer": words}
    text = load(words)

    def taught(refusals: str) -> tuple[dict[str, int], str]:
        made = run_stage(encode, Root(tmp_path), config={"refusals": refusals}, inputs=given)
        assert np.load(made.file("train.npy")).tolist() == np.load(tokens.file("train.npy")).tolist()
        counts = json.loads(made.file("meta.json").read_text())["dialogues"]["train"]
        return counts, text.decode(np.load(made.file("dialogues.npy")))

    kept, every = taught("keep")
    assert (kept["dialogues"], kept["left_out"]) == (8, 0) and "Baker 5" in every
    less, some = taught("leave_out")
    assert (less["dialogues"], less["left_out"]) == (5, 3) and "Baker 1" not in some and "Here it is" not in some
    broken, said = taught("break")
    assert (broken["dialogues"], broken["left_out"]) == (6, 2)
    assert "Here it is" in said and "Baker 1" not in said and "The code is 7" not in said


def test_ids_read_back(tmp_path: Path):
    corpus, words, tokens = run(Root(tmp_path))
    text = load(words)
    meta = json.loads(tokens.file("meta.json").read_text())
    assert meta["vocabulary"] == text.size <= 300
    rows = parquet.read_table(corpus.file("documents.parquet")).to_pylist()
    for split in ("train", "validation"):
        ids = np.load(tokens.file(f"{split}.npy"), mmap_mode="r")
        offsets = np.load(tokens.file(f"{split}.offsets.npy"))
        expected = [row["text"] for row in rows if row["split"] == split]
        assert ids.dtype == np.uint16
        assert [text.decode(ids[a:b]) for a, b in itertools.pairwise(offsets)] == expected
        assert all(ids[a] == text.bos and ids[b - 1] == text.eos for a, b in itertools.pairwise(offsets))
        assert meta["splits"][split]["tokens"] == len(ids) == offsets[-1]
        assert meta["splits"][split]["characters"] == sum(map(len, expected))
    assert sum(each["documents"] for each in meta["sources"].values()) == meta["splits"]["train"]["documents"]
    held = [row["source"] for row in rows if row["split"] == "validation"]
    assert {name: held[first:end] for name, (first, end) in meta["validation_sources"].items()} == {
        "b": ["b"] * len(held)
    }


def test_dialogues_have_masks(tmp_path: Path):
    _, words, tokens = run(Root(tmp_path))
    text = load(words)
    ids, mask = np.load(tokens.file("dialogues.npy")), np.load(tokens.file("dialogues.mask.npy"))
    offsets = np.load(tokens.file("dialogues.offsets.npy"))
    assert len(offsets) == 9 and len(ids) == len(mask) == offsets[-1]
    first = slice(offsets[0], offsets[1])
    assert text.decode(ids[first][mask[first]], skip_special=False) == "Baker 1<|end|>"
    assert len(np.load(tokens.file("dialogues.validation.offsets.npy"))) == 2
    meta = json.loads(tokens.file("meta.json").read_text())
    tasks = np.load(tokens.file("dialogues.tasks.npy"))
    assert [meta["tasks"][task] for task in tasks] == ["count" if n % 2 else "dialogue" for n in range(1, 9)]


def test_the_same_corpus_gives_the_same_artifacts(tmp_path: Path):
    one, two = run(Root(tmp_path / "one")), run(Root(tmp_path / "two"))
    assert [each.id for each in one] == [each.id for each in two]


def test_long_dialogues_are_counted(tmp_path: Path):
    corpus, words, _ = run(Root(tmp_path))
    short = run_stage(
        encode, Root(tmp_path), config={"dialogue_tokens": 5}, inputs={"corpus": corpus, "tokenizer": words}
    )
    meta = json.loads(short.file("meta.json").read_text())
    assert meta["dialogues"]["train"] == {"dialogues": 0, "tokens": 0, "answer_tokens": 0, "too_long": 8, "left_out": 0}


def test_a_corpus_without_text_is_an_error(tmp_path: Path):
    with pytest.raises(DataError, match="no training text"):
        run(Root(tmp_path), documents=0)
