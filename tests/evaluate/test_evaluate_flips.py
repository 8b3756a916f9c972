"""What was fixed and what was broken, item by item; and what was met in training, by looking it up."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as arrow
import pyarrow.parquet as parquet
import pytest

from tutelage.core.artifact import Artifact, Manifest, Root, file_entries
from tutelage.core.records import Example, Message, digest, write_jsonl
from tutelage.evaluate import contamination
from tutelage.evaluate.flips import between, evidence, told
from tutelage.evaluate.suite import Result


def result(target: str, item: str, value: float | None, suite: str = "own", cluster: str = "") -> Result:
    outcome = "unknown" if value is None else "answered"
    return Result(
        target=target, suite=suite, item=item, cluster=cluster or item, kind="choice", metric="accuracy", value=value,
        outcome=outcome,
    )  # fmt: skip


def test_fixed_broken_and_not_measured() -> None:
    before = [result("a", str(place), float(place % 2)) for place in range(40)]
    after = [result("b", str(place), float(place % 2 or place < 20)) for place in range(39)]
    after[1] = result("b", "1", 0.0)
    after[3] = result("b", "3", None)
    whole, own = between([*before, *after], [("a", "b")])
    assert whole.suite is None and own.suite == "own"
    assert whole.fixed == tuple(sorted(str(place) for place in range(0, 20, 2))) and whole.broken == ("1",)
    assert (whole.n, whole.unmeasured) == (38, 2), "what one side did not answer is no flip"
    assert whole.difference.value == pytest.approx((10 - 1) / 38)
    assert whole.difference.low is not None and whole.difference.low > 0
    assert whole.p is not None and whole.p < 0.02
    row = told([whole, own])
    assert len(row) == 1 and (row[0]["fixed"], row[0]["broken"]) == (10, 1)
    nothing = between([result("a", "x", None), result("b", "x", 1.0)], [("a", "b")])[0]
    assert nothing.n == 0 and nothing.p is None and nothing.difference.reason and nothing.evidence == 1.0


def test_the_evidence_may_be_looked_at_after_every_flip() -> None:
    """Coverage: of runs without an effect at most 5% ever reach 20; with one, it is found."""
    source = np.random.default_rng(0)
    assert evidence(0, 0) == pytest.approx(1) and evidence(1, 0) == pytest.approx(1)
    assert evidence(30, 5) > 20 > evidence(12, 10)

    def crosses(share: float) -> bool:
        fixed = np.cumsum(source.random(200) < share)
        return any(evidence(int(f), n - int(f)) >= 20 for n, f in enumerate(fixed, 1))

    assert np.mean([crosses(0.5) for _ in range(300)]) <= 0.05
    assert np.mean([crosses(0.75) for _ in range(50)]) >= 0.9
    assert np.isfinite(evidence(100_000, 0))


# ------------------------------------------------------------------------------------------------------ contamination

LONG = "the quick brown fox jumps over the lazy dog while the small cat sleeps"
OTHER = "nobody in this town has ever seen a green horse walk along the river at night"


def item(name: str, text: str) -> Example:
    made = Example(messages=(Message(role="user", content=text),), target="yes")
    return made.model_copy(update={"tags": {"id": name, "suite": "own", "kind": "generate"}})


def seal(root: Root, write: Callable[[Path], None], kind: str = "corpus", **more: object) -> Artifact:
    folder = root.work / f"making-{digest(repr(more))[:8]}-{kind}"
    folder.mkdir(parents=True)
    write(folder)
    manifest = Manifest(kind=kind, stage="test", version=1, files=file_entries(folder), **{"config": {}, **more})
    return root.seal(folder, manifest, digest([kind, manifest.id]))


def corpus(root: Root, texts: list[str], items: list[Example], **more: object) -> Artifact:
    def write(folder: Path) -> None:
        split = ["validation" if "held" in text else "train" for text in texts]
        rows = {"id": [str(i) for i in range(len(texts))], "text": texts, "split": split}
        parquet.write_table(arrow.table(rows), folder / "documents.parquet")
        said = (Message(role="user", content="Tell."), Message(role="assistant", content=f"Well: {OTHER}."))
        write_jsonl(folder / "dialogues.jsonl", [Example(messages=said, tags={"split": "train"})])
        write_jsonl(folder / "items.jsonl", items)

    return seal(root, write, **more)


def test_what_was_met_is_looked_up(tmp_path: Path) -> None:
    root = Root(tmp_path).create()
    items = [
        item("met", f"Is it so that {LONG}?"),
        item("said", f"Think: {OTHER.upper()}!"),
        item("short", "the quick brown fox jumps"),
        item("held", "this is held back and nobody may ever learn from it"),
        item("new", "seven words that stand nowhere else at all today or tomorrow"),
    ]
    source = corpus(root, [f"Once {LONG}.", "this is held back and nobody may ever learn from it"], items)
    assert contamination.dirty(items, source) == {"met", "said"}
    assert contamination.dirty(items, source, gram=4) == {"met", "said", "short"}
    assert not contamination.cleared(items, source)
    clean = corpus(root, ["nothing"], items, metrics={"contamination_left": 0}, config={"gram": 8})
    assert contamination.cleared(items, clean) and not contamination.cleared(items, clean, gram=6)
    assert not contamination.cleared([*items, item("own", LONG)], clean), "an item of one's own was not compared"
    model = seal(root, lambda folder: None, "model", inputs={"corpus": source.ref})
    tuned = seal(root, lambda folder: None, "model", inputs={"model": model.ref, "gone": "corpus:" + "0" * 64})
    assert [each.id for each in contamination.corpora(tuned, root)] == [source.id]


def test_figures_of_clean_and_of_dirty_items_and_their_difference() -> None:
    rows = [result("a", str(place), float(place < 30 or place % 2)) for place in range(80)]
    found = contamination.split([*rows, *(each.model_copy(update={"target": "b"}) for each in rows)], {
        "a": {str(place) for place in range(30)},
    })  # fmt: skip
    assert len(found) == 1, "what is not known to be clean is not called so"
    row = found[0]
    assert (row["clean"]["n"], row["dirty"]["n"]) == (50, 30)
    assert row["difference"]["value"] == pytest.approx(-0.5) and row["difference"]["high"] < 0
    bare = contamination.split(rows, {"a": set()})[0]
    assert bare["dirty"]["value"] is None and bare["dirty"]["reason"] == "no item is dirty"
    assert bare["difference"]["value"] is None and bare["difference"]["reason"] == "no item is dirty"
