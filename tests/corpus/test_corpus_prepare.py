"""The stage prepare: several sources of every kind at once, one report, and the truth where it is known."""

import json
import random
from pathlib import Path

import pyarrow.parquet as parquet
import pytest
from pydantic import ValidationError

from tutelage.core.artifact import Artifact, Root
from tutelage.core.errors import DataError, NotFound
from tutelage.core.records import Example, Preference, read_jsonl
from tutelage.core.stage import run_stage
from tutelage.corpus.prepare import Prepare, prepare
from tutelage.corpus.report import Report

NAMES = ("Ann", "Bea", "Cid", "Dan", "Eva", "Fay", "Gus", "Hal", "Ida", "Jon", "Kim", "Lea", "Max", "Nan", "Oto", "Pia")
PLACES = ("mill", "harbour", "market", "tower", "well", "bridge", "garden", "school")
VERBS = ("saw", "met", "fed", "lost", "sold", "drew", "hid", "mended")


def story(place: int) -> str:
    """Five sentences that no other number gives."""
    rng = random.Random(place)
    return " ".join(
        f"{rng.choice(NAMES)} {rng.choice(VERBS)} the {rng.choice(PLACES)} {rng.choice(VERBS)} {rng.choice(NAMES)}."
        for _ in range(5)
    )


def lines(path: Path, rows: list[object]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"file:{path}"


def make(tmp_path: Path) -> list[dict[str, object]]:
    texts = [{"text": story(place)} for place in range(60)]
    texts += [{"text": story(3)}, {"text": f"{story(4)} As told."}, {"text": "# % & 1 2 3 4 5 6"}]
    texts += [{"text": f"{story(100)} Write to ann@example.org today."}, {"text": f"{story(101)} {story(500)}"}]
    dialogues = [{"q": f"Where is {name}?", "a": f"At the {PLACES[place % 8]}."} for place, name in enumerate(NAMES)]
    dialogues += [dialogues[0], {"q": story(501), "a": "Yes."}]
    items = [{"prompt": story(500), "answer": "mill"}, {"prompt": story(501), "answer": "well"}]
    pairs = [{"prompt": "Which?", "x": "This one.", "y": "That one."}]
    labels = [{"text": "Give me the code of the locker.", "bad": 1}]
    return [
        {"source": lines(tmp_path / "texts.jsonl", texts), "licence": "public-domain"},
        {
            "source": lines(tmp_path / "dialogues.jsonl", dialogues),
            "form": {"kind": "dialogues", "prompt": ["{q}"], "answer": "{a}"},
            "licence": "permissive",
        },
        {
            "source": lines(tmp_path / "items.jsonl", items),
            "form": {"kind": "items", "task": "generate", "target": "{answer}"},
            "split": "test",
            "licence": "permissive",
        },
        {
            "source": lines(tmp_path / "pairs.jsonl", pairs),
            "form": {"kind": "comparisons", "candidates": ["{x}", "{y}"], "choice": "a"},
        },
        {
            "source": lines(tmp_path / "labels.jsonl", labels),
            "form": {"kind": "labels", "categories": {"crime": "{bad}"}},
            "licence": "share-alike",
        },
    ]


def report_of(corpus: Artifact) -> Report:
    return Report.model_validate_json(corpus.file("report.json").read_text())


def test_every_kind_at_once(tmp_path: Path):
    corpus = run_stage(prepare, Root(tmp_path / "life"), config={"sources": make(tmp_path), "validation": 0.05})
    rows = parquet.read_table(corpus.file("documents.parquet")).to_pylist()
    report = report_of(corpus)
    assert {name: each.count for name, each in report.drops.items()} == {
        "exact duplicate": 1,
        "few letters": 1,
        "holds a run of a held-out item": 1,
        "near duplicate": 1,
    }
    assert len(rows) == 61 and len({row["id"] for row in rows}) == 61
    assert {row["split"] for row in rows} == {"train", "validation"}
    assert any("Write to [EMAIL] today." in row["text"] for row in rows)
    assert not any(story(500) in row["text"] for row in rows)
    assert report.personal.found == {"email": 1}
    dialogues = list(read_jsonl(corpus.file("dialogues.jsonl"), Example))
    assert len(dialogues) == 16 and report.duplicates.dialogues == 1
    assert report.contamination.dropped == {"documents": 1, "dialogues": 1} and report.contamination.left == 0
    (pair,) = read_jsonl(corpus.file("comparisons.jsonl"), Preference)
    assert pair.tiers == ((0,), (1,))
    assert corpus.manifest.licences == ["not-stated", "permissive", "public-domain", "share-alike"]
    assert report.licences["public-domain"] == {"documents": 61}
    assert report.truth is None


def test_the_same_data_elsewhere_is_the_same_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    made = []
    for number, (name, inner) in enumerate((("one", "left"), ("two/of/them", "right"))):
        home = tmp_path / name
        (home / inner).mkdir(parents=True)
        (home / "folder" / "deep").mkdir(parents=True)
        sources = make(home)
        again = lines(home / inner / "texts.jsonl", [{"text": story(place)} for place in range(200, 230)])
        lines(home / "folder" / "a.jsonl", [{"text": story(place)} for place in range(300, 310)])
        lines(home / "folder" / "deep" / "a.jsonl", [{"text": story(310)}, {"body": "a bad row"}])
        suite = home / inner / "items.jsonl"
        suite.write_text(Example.ask(story(205)).model_dump_json() + "\n")
        sources += [{"source": again, "weight": 2}, {"source": f"file:{home / 'folder'}"}]
        if number:  # also named from where one stands
            monkeypatch.chdir(home / "folder")
            sources[-1]["source"], sources[-2]["source"] = "file:.", "file:../right/texts.jsonl"
        values = {"sources": sources, "held_out": [str(suite)], "validation": 0.1}
        made.append(run_stage(prepare, Root(tmp_path / f"life {name[:3]}"), config=values))
    first, second = made
    for name in first.manifest.files:
        written = first.file(name).read_bytes()
        assert written == second.file(name).read_bytes(), name
        assert str(tmp_path).encode() not in written, name
    assert first.id == second.id and str(tmp_path) not in first.manifest.model_dump_json()
    rows = parquet.read_table(first.file("documents.parquet")).to_pylist()
    assert {row["source"] for row in rows} == {"texts.jsonl", "texts.jsonl@2", "folder"}
    assert {row["split"] for row in rows} == {"train", "validation"}
    assert {row["id"].rpartition("/")[0] for row in rows} == {"texts.jsonl", "texts.jsonl@2", "folder"}
    assert set(first.config["data"]) > {"texts.jsonl", "texts.jsonl@2", "items.jsonl@2", "folder/a.jsonl"}
    (bad,) = [each for each in report_of(first).sources if each.bad_rows]
    assert bad.source == "file:folder"
    assert bad.bad_examples == ["folder/deep/a.jsonl, row 2, key 'text': the field is missing or null"]


def test_another_file_of_the_same_name_changes_the_key(tmp_path: Path):
    """Two files of one name in a folder once stood under one name, and only the last was looked at."""
    (tmp_path / "a").mkdir()
    source = f"file:{tmp_path}"
    lines(tmp_path / "texts.jsonl", [{"text": story(0)}])
    lines(tmp_path / "a" / "texts.jsonl", [{"text": story(1)}])
    before = Prepare.model_validate({"sources": [source]}).resolved()
    for place in (tmp_path, tmp_path / "a"):
        lines(place / "texts.jsonl", [{"text": story(2)}])
        after = Prepare.model_validate({"sources": [source]}).resolved()
        assert after != before
        before = after


def test_changed_data_is_another_corpus(tmp_path: Path):
    root, path = Root(tmp_path / "life"), tmp_path / "texts.jsonl"
    source = lines(path, [{"text": story(place)} for place in range(30)])
    first = run_stage(prepare, root, config={"sources": [source]})
    assert run_stage(prepare, root, config={"sources": [source]}).id == first.id
    lines(path, [{"text": story(place)} for place in range(31)])
    assert run_stage(prepare, root, config={"sources": [source]}).id != first.id


def test_weight_repeats_under_new_ids(tmp_path: Path):
    source = lines(tmp_path / "texts.jsonl", [{"text": story(place)} for place in range(20)])
    corpus = run_stage(
        prepare, Root(tmp_path / "life"), config={"sources": [{"source": source, "weight": 2}], "validation": 0}
    )
    ids = parquet.read_table(corpus.file("documents.parquet"))["id"].to_pylist()
    assert len(ids) == 40 == len(set(ids))


def test_held_out_files_are_compared_too(tmp_path: Path):
    source = lines(tmp_path / "texts.jsonl", [{"text": story(place)} for place in range(20)])
    suite = tmp_path / "suite.jsonl"
    suite.write_text(Example.ask(story(7)).model_dump_json() + "\n")
    corpus = run_stage(prepare, Root(tmp_path / "life"), config={"sources": source, "held_out": [str(suite)]})
    assert report_of(corpus).contamination.dropped == {"documents": 1}
    with pytest.raises(NotFound, match="no such file"):
        run_stage(prepare, Root(tmp_path / "life"), config={"sources": source, "held_out": ["none.jsonl"]})


def test_bad_input(tmp_path: Path):
    source = lines(tmp_path / "texts.jsonl", [{"text": "1 2 3 4 5 6 7 8"}] * 3)
    with pytest.raises(DataError, match=r"nothing is left to train on; dropped: \{'few letters': 3\}"):
        run_stage(prepare, Root(tmp_path / "life"), config={"sources": [source]})
    with pytest.raises(ValidationError, match="unknown types"):
        Prepare(personal=("e-mail",))
    with pytest.raises(ValidationError, match="less than or equal to 1"):
        Prepare(scale=2)
    empty = lines(tmp_path / "empty.jsonl", [])
    with pytest.raises(DataError, match="gives no records"):
        run_stage(prepare, Root(tmp_path / "life"), config={"sources": [empty]})


def test_the_starter_tells_how_well_it_went(tmp_path: Path):
    corpus = run_stage(prepare, Root(tmp_path), config={"scale": 0.1})
    report = report_of(corpus)
    assert report.truth is not None
    for name, least in (("duplicates", 0.95), ("personal", 0.85), ("broken", 0.7)):
        found = report.truth[name]
        assert found.recall.value is not None and found.recall.value >= least, (name, found)
        assert found.precision.value is not None and found.precision.value >= least, (name, found)
        assert found.recall.n > 0 and found.recall.low is not None
    assert report.truth["personal"].spared is not None and report.truth["personal"].spared.value == 1.0
    assert report.contamination.left == 0
    assert corpus.metrics["dialogues"] > 100 and corpus.metrics["items"] > 100


def test_two_seeds_are_two_towns(tmp_path: Path):
    one, two = (run_stage(prepare, Root(tmp_path), config={"scale": 0.02, "seed": seed}) for seed in (0, 1))
    again = run_stage(prepare, Root(tmp_path / "again"), config={"scale": 0.02, "seed": 0})
    assert one.id != two.id and one.id == again.id
