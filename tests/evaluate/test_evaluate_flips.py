"""What was fixed and what was broken, item by item; and what was met in training, by looking it up."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as arrow
import pyarrow.parquet as parquet
import pytest

from tutelage.core.artifact import Artifact, Manifest, Root, file_entries
from tutelage.core.records import Example, Message, Preference, digest, write_jsonl
from tutelage.evaluate import contamination
from tutelage.evaluate.flips import Flips, between, told
from tutelage.evaluate.suite import Result
from tutelage.evaluate.suites.kinds import Ground
from tutelage.measure.statistics import mcnemar


def result(
    target: str, item: str, value: float | None, suite: str = "own", cluster: str = "", metric: str = "accuracy"
) -> Result:
    outcome = "unknown" if value is None else "answered"
    scores = {"bits": 80 * value, "bytes": 80.0} if metric == "bits_per_byte" and value is not None else {}
    return Result(
        target=target, suite=suite, item=item, cluster=cluster or item, kind="choice", metric=metric, value=value,
        outcome=outcome, scores=scores,
    )  # fmt: skip


def flipped(before: list[float], after: list[float], **more: Any) -> Flips:
    rows = [result(name, str(i), v, **more) for name, side in (("a", before), ("b", after)) for i, v in enumerate(side)]
    return between(rows, [("a", "b")])[-1]


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


def test_what_a_flip_is_each_metric_says() -> None:
    """0.49 and 0.51 of F1 are no wrong and right; of bits per byte less is better, and 0.4 is no failure."""
    small = flipped([0.49] * 8, [0.51] * 8, metric="f1")
    assert (small.n, small.fixed, small.broken, small.steps) == (8, (), (), {"f1": 0.5})
    assert flipped([0.2, 0.9, 0.4], [0.75, 0.3, 0.8], metric="f1").model_dump(include={"fixed", "broken"}) == {
        "fixed": ("0",), "broken": ("1",),
    }  # fmt: skip
    bits = flipped([2.4, 1.3, 1.6, 0.4], [1.9, 1.9, 1.65, 0.45], metric="bits_per_byte")
    assert (bits.fixed, bits.broken) == (("0",), ("1",)), "fewer bits are better, above and below 0.5"
    assert flipped([0.4] * 3, [0.6] * 3, metric="bits_per_byte").broken == ("0", "1", "2")
    dense = flipped([2.0, 3.0], [9.0, 1.0], metric="density")
    assert dense.n == 0
    assert "no size is stated" in dense.left_out["density"]
    assert dense.difference.reason == "no flip is defined"
    mixed = [result(name, "x", value, metric=metric) for name, value, metric in (("a", 0.0, "f1"), ("b", 1.0, "exact"))]
    assert "different metrics" in between(mixed, [("a", "b")])[0].left_out["f1, exact"]


def test_items_of_one_cluster_are_no_independent_evidence() -> None:
    """Twenty items of one passage that flip together are one piece of evidence, and not twenty."""
    before, after = [0.0] * 20, [1.0] * 20
    alone = flipped(before, after)
    assert alone.p is not None and alone.p < 1e-4 and alone.evidence > 1000
    rows = [
        result(name, f"{item}", value, cluster=f"c{item // 10}")
        for name, value in (("a", 0.0), ("b", 1.0))
        for item in range(20)
    ]
    together = between(rows, [("a", "b")])[0]
    assert together.p == pytest.approx(2 / 4), "two clusters, four ways to sign them"
    assert together.evidence < 2
    assert together.fixed == alone.fixed and together.difference.value == 1.0


def test_by_clusters_models_alike_are_seldom_called_different() -> None:
    """Control: whole passages flip by chance; p and evidence keep their level, which McNemar's by items does not."""
    source = np.random.default_rng(1)
    names, wrong = np.repeat(np.arange(15), 8), {"p": 0, "evidence": 0, "by items": 0}
    for _ in range(150):
        better, moved = source.integers(0, 2, 15)[names] == 1, source.random(120) < 0.6
        rows = [
            result(target, str(item), float(value), cluster=f"c{names[item]}")
            for target, side in (("a", moved & ~better), ("b", moved & better))
            for item, value in enumerate(side)
        ]
        found = between(rows, [("a", "b")])[0]
        wrong["p"] += found.p is not None and found.p < 0.05
        wrong["evidence"] += found.evidence >= 20
        wrong["by items"] += (mcnemar((moved & better).astype(float), (moved & ~better).astype(float)).p or 1.0) < 0.05
    assert wrong["p"] <= 15 and wrong["evidence"] <= 8, wrong
    assert wrong["by items"] > 30, wrong


# ------------------------------------------------------------------------------------------------------ contamination

NOTHING = Ground({})
HELD = "nine plain words that nobody but the judges of the test ever saw"
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
    gone = "corpus:" + "0" * 64
    tuned = seal(root, lambda folder: None, "model", inputs={"model": model.ref, "gone": gone, "base": "hf:org/name"})
    found, lost = contamination.learned([tuned], root)
    assert [each.id for each in found] == [source.id]
    assert lost == [gone, "hf:org/name"], "what is not here may hold anything"
    assert contamination.learned([model], root)[1] == []


def test_figures_of_clean_and_of_dirty_items_and_their_difference() -> None:
    rows = [result("a", str(place), float(place < 30 or place % 2)) for place in range(80)]
    found = contamination.split([*rows, *(each.model_copy(update={"target": "b"}) for each in rows)], {
        "a": {str(place) for place in range(30)},
    }, NOTHING)  # fmt: skip
    assert len(found) == 1, "what is not known to be clean is not called so"
    row = found[0]
    assert (row["clean"]["n"], row["dirty"]["n"]) == (50, 30)
    assert row["difference"]["value"] == pytest.approx(-0.5) and row["difference"]["high"] < 0
    bare = contamination.split(rows, {"a": set()}, NOTHING)[0]
    assert bare["dirty"]["value"] is None and bare["dirty"]["reason"] == "no item is dirty"
    assert bare["difference"]["value"] is None and bare["difference"]["reason"] == "no item is dirty"


def test_where_a_corpus_is_lost_no_item_is_called_clean() -> None:
    rows = [result("a", str(place), float(place % 2)) for place in range(40)]
    found = contamination.split(rows, {"a": {"3", "5"}}, NOTHING, lost={"a": ["corpus:0000"]})[0]
    assert found["dirty"]["value"] == 1.0
    assert found["clean"]["value"] is None and "not here (corpus:0000)" in found["clean"]["reason"]
    assert found["difference"]["value"] is None
    here = contamination.split(rows, {"a": {"3", "5"}}, NOTHING, lost={"a": []})[0]
    assert here["clean"]["value"] is not None


def test_of_items_without_a_run_of_their_own_it_cannot_be_told(tmp_path: Path) -> None:
    """Short ones, and those that are wording alone, are neither clean nor dirty."""
    wording = "please answer the following question in one single short word only"
    items = [item("short", "who was it"), item("own", f"{LONG} number one")]
    items += [item(f"w{place}", wording) for place in range(9)]
    hidden = contamination.unexaminable(items)
    assert hidden == {"short", *(f"w{place}" for place in range(9))}
    assert contamination.unexaminable(items, gram=3) == {f"w{place}" for place in range(9)}
    rows = [result("a", name, float(place % 2)) for place, name in enumerate(sorted(hidden | {"own", "met"}))]
    (row,) = contamination.split(rows, {"a": {"met"}}, NOTHING, hidden=hidden)
    assert [row[side]["n"] for side in ("clean", "dirty", "not_examinable")] == [1, 1, 10]
    (all_,) = contamination.split([result("a", "short", 1.0)], {"a": set()}, NOTHING, hidden=hidden)
    assert all_["clean"]["value"] is None and all_["clean"]["reason"] == "no item is clean"
    assert all_["not_examinable"]["value"] == 1.0


def test_what_people_judged_is_training_text_too(tmp_path: Path) -> None:
    """A model that learned from preferences met what stands in their prompts and answers, also through its reward."""
    root = Root(tmp_path).create()
    items = [item("prompt", f"is it so that {LONG}"), item("answer", OTHER), item("held", HELD)]

    def write(folder: Path) -> None:
        def preference(asked: str, *said: str, **tags: Any) -> Preference:
            answers = tuple(Message(role="assistant", content=each) for each in said)
            return Preference(prompt=(Message(role="user", content=asked),), candidates=answers, tags=tags)

        rows = [
            preference(f"is it so that {LONG}", "yes", f"well {OTHER}"),
            preference("why?", HELD, split="test"),
        ]
        write_jsonl(folder / "preferences.jsonl", rows)
        said = (Message(role="user", content="Tell."), Message(role="assistant", content="a demonstration of one"))
        write_jsonl(folder / "demonstrations.jsonl", [Example(messages=said)])

    judged = seal(root, write, "preferences")
    assert contamination.dirty(items, judged) == {"prompt", "answer"}, "what is held out for a test is not learned from"
    reward = seal(root, lambda folder: None, "reward", inputs={"preferences": judged.ref})
    tuned = seal(root, lambda folder: None, "model", inputs={"reward": reward.ref})
    assert [each.ref for each in contamination.learned([tuned], root)[0]] == [judged.ref]


def test_bits_per_byte_are_not_clipped_and_have_their_way() -> None:
    source = np.random.default_rng(0)
    rows = [
        result("a", str(place), 3.0 - (place < 20) + float(bits), metric="bits_per_byte")
        for place, bits in enumerate(source.normal(0, 0.2, 60))
    ]
    found = contamination.split(rows, {"a": {str(place) for place in range(20)}}, NOTHING)[0]
    assert found["higher_is_better"] is False and found["metric"] == "bits_per_byte"
    assert found["clean"]["low"] < 3.0 < found["clean"]["high"] and found["dirty"]["high"] < 2.2
    assert found["difference"]["low"] > 0.8
