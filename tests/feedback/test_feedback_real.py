"""Real people's recorded answers through the store: agreement is that of the reference on the same rows.

Slow, and only where TUTELAGE_DATA names the mirror of the public sets. What it prints stands in docs/agreement.md.
"""

from __future__ import annotations

import gzip
import json
import math
import os
from pathlib import Path

import krippendorff
import numpy as np
import pytest

from tutelage.core.artifact import Manifest, Root, file_entries
from tutelage.core.records import Example, Message, write_jsonl
from tutelage.core.stage import run_stage
from tutelage.corpus.prepare import prepare
from tutelage.feedback import agreement, agreements, report
from tutelage.feedback.collect import collect
from tutelage.store import engine

DATA = Path(os.environ.get("TUTELAGE_DATA") or "/nowhere")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not DATA.is_dir(), reason="TUTELAGE_DATA names no folder with the public sets"),
]
CHOICES = {"a": 1.0, "tie": 0.0, "b": -1.0}


def rows_of(name):
    """A set's rows by the ends of the ids that reading gives them: split and number."""
    found = {}
    for file in sorted((DATA / name).glob("*.jsonl.gz")):
        with gzip.open(file, "rt", encoding="utf-8") as lines:
            split = file.name.partition(".")[0]
            found |= {f"{split}-{number}": json.loads(line) for number, line in enumerate(lines, 1)}
    return found


def replay(tmp_path, name, kind, rows=0):
    """A set through prepare, collect and the API into the store; the words that are read back, and whose they are."""
    root = Root(tmp_path / "life").create()
    source = {"source": f"catalog:{name}", "kinds": [kind]}
    corpus = run_stage(prepare, root, config={"sources": [source], "mirror": str(DATA), "rows": rows}, inputs={})
    return replayed(root, corpus, name)


def replayed(root, corpus, name):
    config = {"people": "replayed", "over": "direct", "labels": True, "comparisons": 10**6, "batch": 64}
    made = run_stage(collect, root, config={**config, "project": "real"}, inputs={"corpus": corpus})
    with engine.open(root) as store:
        words = report.read(store, f"real-{name}")
    assert len(words.given) == made.manifest.metrics["expected"] > 0 and {e.people for e in words.given} == {"replayed"}
    return words


def asked(words):
    """The ids of the set's rows that were asked, in the order of the store."""
    return [str(task.meta["id"]).rpartition("/")[2] for task in words.tasks.values()]


def reference(columns, level):
    """`krippendorff` of columns of {person: value}."""
    people = sorted({person for column in columns for person in column})
    table = np.full((len(people), len(columns)), math.nan)
    for at, column in enumerate(columns):
        for person, value in column.items():
            table[people.index(person), at] = value
    return krippendorff.alpha(reliability_data=table, level_of_measurement=level)


def told(name, words, ours, theirs):
    print(f"{name}: {len(words.tasks)} tasks, {len(words.given)} answers, {len(words.people)} people: "
          f"alpha {ours['value']:.4f} [{ours['low']:.3f}, {ours['high']:.3f}], krippendorff {theirs:.4f}")  # fmt: skip
    assert abs(ours["value"] - theirs) < 0.005


@pytest.mark.parametrize(("name", "rows"), [("pref_pandalm", 0), ("pref_ukp_arguments", 400)])
def test_pairs_of_named_people(tmp_path, name, rows):
    words = replay(tmp_path, name, "comparisons", rows)
    raw = rows_of(name)
    columns = [{vote["annotator"]: CHOICES[vote["choice"]] for vote in raw[id]["votes"]} for id in asked(words)]
    told(name, words, agreements.agreed(words)["ranking"]["pairs_alpha"], reference(columns, "nominal"))


@pytest.mark.parametrize("name", ["rank_translation_en_de", "rank_translation_zh_en"])
def test_scores_of_ten_candidates_by_three_experts(tmp_path, name):
    words = replay(tmp_path, name, "comparisons")
    raw = rows_of(name)
    for level in ("interval", "ordinal"):
        columns = [
            {each["annotator"]: max(-25.0, each["score"]) for each in candidate["ratings"]}
            for id in asked(words) for candidate in raw[id]["candidates"]
        ]  # fmt: skip
        told(f"{name} {level}", words, agreements.agreed(words)["questions"]["quality"][f"alpha_{level}"],
             reference(columns, level))  # fmt: skip


def test_offensiveness_on_a_scale_by_about_eight_people(tmp_path):
    words = replay(tmp_path, "scores_offensiveness", "labels", 300)
    raw = rows_of("scores_offensiveness")
    columns = [{each["annotator"]: each["score"] for each in raw[id]["ratings"]} for id in asked(words)]
    for level in ("ordinal", "interval"):
        ours = agreements.agreed(words)["questions"]["harassment"][f"alpha_{level}"]
        told(f"scores_offensiveness {level}", words, ours, reference(columns, level))


def test_hate_and_offence_from_counts_of_votes(tmp_path):
    """Nobody is named here: votes stand in slots, and alpha does not ask whose they are."""
    words = replay(tmp_path, "guard_davidson", "labels", 300)
    raw = rows_of("guard_davidson")
    columns = []
    for id in asked(words):
        votes = raw[id]["votes"]
        cast = [1] * votes["hate_speech"] + [2] * votes["offensive"] + [0] * votes["neither"]
        columns.append(dict(enumerate(cast)))
    for key, code in (("hate", 1), ("harassment", 2)):
        marked = [{who: float(vote == code) for who, vote in column.items()} for column in columns]
        ours = agreements.agreed(words)["questions"][key]["alpha_nominal"]
        told(f"guard_davidson {key}", words, ours, reference(marked, "nominal"))


def test_several_labels_of_one_pair_of_sentences(tmp_path):
    """The bias types that five people saw in a pair: sets of labels. The set is for evaluation only: nothing is made of
    it here but a figure."""
    root = Root(tmp_path / "life").create()
    rows, sets = [], []
    kinds = sorted(
        {kind for row in rows_of("bias_crows_pairs").values() for said in row["annotations"] for kind in said}
    )
    for row in list(rows_of("bias_crows_pairs").values())[:300]:
        said = [frozenset(each) for each in row["annotations"]]
        sets.append(said)
        people = [
            {"person": f"slot {at}", "category": kind, "value": float(kind in each), "scale": [0, 1]}
            for at, each in enumerate(said) for kind in kinds
        ]  # fmt: skip
        text = f"{row['sent_more']}\n{row['sent_less']}"
        tags = {"id": str(row["id"]), "split": "test", "source": "bias_crows_pairs", "licence": "share-alike"}
        rows.append(Example(messages=(Message(role="user", content=text),), tags=tags | {"people": people}))
    out = root.work / "corpus"
    out.mkdir(parents=True)
    write_jsonl(out / "comparisons.jsonl", [])
    write_jsonl(out / "labels.jsonl", rows)
    manifest = Manifest(kind="corpus", stage="prepare", version=1, config={}, files=file_entries(out))
    corpus = root.seal(out, manifest, "0" * 64)
    words = replayed(root, corpus, "bias_crows_pairs")
    taken = {str(task.meta["id"]) for task in words.tasks.values()}
    columns = [said for row, said in zip(rows, sets, strict=True) if row.tags["id"] in taken]
    found = agreements.agreed(words)["questions"]
    for kind in ("race-color", "gender"):
        marked = [{at: float(kind in each) for at, each in enumerate(said)} for said in columns]
        told(f"bias_crows_pairs {kind}", words, found[kind]["alpha_nominal"], reference(marked, "nominal"))
    known = sorted({each for said in columns for each in said}, key=sorted)
    place = {each: at for at, each in enumerate(known)}

    def metric(first, second, **_):
        return np.vectorize(lambda one, other: agreement.masi(known[int(one)], known[int(other)]))(first, second)

    coded = [{at: float(place[each]) for at, each in enumerate(said)} for said in columns]
    told("bias_crows_pairs masi", words, found["*"]["alpha_masi"], reference(coded, metric))
