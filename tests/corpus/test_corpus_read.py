"""Sources: every file format, bad rows counted, and what must not be read refused."""

import gzip
import json
import sys
from pathlib import Path

import pytest

from tutelage.core.errors import DataError, LicenceError, MissingExtra, NotFound
from tutelage.corpus.catalog import CATALOG, entry
from tutelage.corpus.forms import Dialogues, Documents
from tutelage.corpus.read import Source, fingerprint, names_of, read


def lines(path: Path, rows: list[object]) -> Path:
    text = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    elif path.suffix == ".zst":
        zstandard = pytest.importorskip("zstandard")
        path.write_bytes(zstandard.ZstdCompressor().compress(text.encode()))
    else:
        path.write_text(text)
    return path


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst"])
def test_json_lines_packed_or_not(tmp_path: Path, name: str):
    path = lines(tmp_path / name, [{"text": f"row {place}"} for place in range(5)])
    found = read(Source(source=f"file:{path}", licence="permissive"))
    assert [each.text for each in found.documents] == [f"row {place}" for place in range(5)]
    assert found.documents[0].licence == "permissive"


def test_text_parquet_and_folders(tmp_path: Path):
    (tmp_path / "b.txt").write_text("\n\n".join(f"Paragraph {place}. " + "word " * 300 for place in range(6)))
    arrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    parquet.write_table(arrow.table({"text": ["from a table"]}), tmp_path / "c.parquet")
    lines(tmp_path / "a.jsonl", [{"text": "from lines"}])
    texts = [each.text for each in read(Source(source=f"file:{tmp_path}")).documents]
    assert texts[0] == "from lines" and texts[-1] == "from a table"
    assert len(texts) == 5 and all(len(text) <= 4100 for text in texts)


def test_bad_rows_are_counted_and_named(tmp_path: Path):
    path = lines(tmp_path / "a.jsonl", [{"text": "good"}, "{not json", {"body": "x"}, "[1]", {"text": ["list"]}, ""])
    found = read(Source(source=f"file:{path}"))
    assert len(found.documents) == 1 and found.bad == 4
    assert found.bad_examples[0].startswith(f"{path}, row 2: the row is not JSON")
    assert found.bad_examples[1] == f"{path}, row 3, key 'text': the field is missing or null"
    assert "expected an object, found list" in found.bad_examples[2]
    assert found.bad_reported[1] == "a.jsonl, row 3, key 'text': the field is missing or null"
    with pytest.raises(DataError, match=r"row 4: expected an object.*2 bad rows before.*allow more than 2"):
        read(Source(source=f"file:{path}"), bad_rows=2)


def test_bad_files_are_one_clear_error(tmp_path: Path):
    with pytest.raises(NotFound, match="no such file"):
        read(Source(source=f"file:{tmp_path}/none.jsonl"))
    (tmp_path / "a.csv").write_text("x")
    with pytest.raises(DataError, match=r"expected one of \.jsonl"):
        read(Source(source=f"file:{tmp_path}/a.csv"))
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"text": "x"}\n' * 1000)[:40])
    with pytest.raises(DataError, match=r"a\.jsonl\.gz: the packed file is damaged"):
        read(Source(source=f"file:{tmp_path}/a.jsonl.gz"))
    (tmp_path / "a.parquet").write_bytes(b"nothing")
    with pytest.raises(DataError, match="not a parquet file"):
        read(Source(source=f"file:{tmp_path}/a.parquet"))
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(DataError, match="gives no records"):
        read(Source(source=f"file:{tmp_path}/empty.jsonl"))
    with pytest.raises(ValueError, match="expected starter:"):
        Source(source="ftp:somewhere")


def test_limit_takes_rows_evenly(tmp_path: Path):
    path = lines(tmp_path / "a.jsonl", [{"text": str(place)} for place in range(10)])
    found = read(Source(source=f"file:{path}", limit=5))
    assert [each.text for each in found.documents] == ["0", "2", "4", "6", "8"]
    assert len(read(Source(source=f"file:{path}"), characters=3).documents) == 3


def test_own_field_map_and_split(tmp_path: Path):
    path = lines(tmp_path / "a.jsonl", [{"q": "Who?", "a": "Me"}])
    source = Source.model_validate(
        {
            "source": f"file:{path}",
            "form": {"kind": "dialogues", "prompt": ["{q}"], "answer": "{a}"},
            "split": "validation",
        }
    )
    assert isinstance(source.form, Dialogues)
    (found,) = read(source).dialogues
    assert found.target == "Me" and found.tags["split"] == "validation"


def test_fingerprint_follows_content(tmp_path: Path):
    one = lines(tmp_path / "one" / "a.jsonl", [{"text": "x"}])
    two = lines(tmp_path / "two" / "a.jsonl", [{"text": "x"}])
    assert list(fingerprint(Source(source=f"file:{one}"), "").values()) == list(
        fingerprint(Source(source=f"file:{two}"), "").values()
    )
    before = fingerprint(Source(source=f"file:{one}"), "")
    lines(one, [{"text": "another"}])
    assert fingerprint(Source(source=f"file:{one}"), "") != before


def test_a_local_source_is_called_by_its_name_wherever_it_lies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    def called(*sources: str) -> list[str]:
        return names_of([Source(source=each) for each in sources])

    assert called("file:/a/x.jsonl", "file:/b/x.jsonl", "file:/c/x.jsonl") == ["x.jsonl", "x.jsonl@2", "x.jsonl@3"]
    assert called("file:/a/x.jsonl", "file:/a/b/../x.jsonl") == ["x.jsonl", "x.jsonl"]
    assert called("file:/a/x.jsonl@2", "file:/a/x.jsonl", "file:/b/x.jsonl") == ["x.jsonl@2", "x.jsonl", "x.jsonl@3"]
    assert called("file:/a/qa", "catalog:qa", "hf:of/qa", "file:/starter/", "starter:") == [
        "qa@2", "qa", "of/qa", "starter@2", "starter",
    ]  # fmt: skip
    (tmp_path / "texts").mkdir()
    monkeypatch.chdir(tmp_path / "texts")
    assert called("file:.", "file:../texts", "file:x.txt", "file:/") == ["texts", "texts", "x.txt", "files"]


def test_catalog_from_a_mirror(tmp_path: Path):
    lines(
        tmp_path / "sentiment_sst" / "train.jsonl.gz", [{"text": "nice", "label2": 1}, {"text": "so", "label2": None}]
    )
    lines(tmp_path / "sentiment_sst" / "test.jsonl.gz", [{"text": "bad", "label2": 0}])
    found = read(Source(source="catalog:sentiment_sst"), mirror=str(tmp_path))
    assert [each.target for each in found.dialogues] == ["positive"]
    assert [(each.target, each.choices, each.tags["kind"]) for each in found.items] == [
        ("negative", ("negative", "positive"), "classify")
    ]
    assert found.licence == "not-stated"
    with pytest.raises(NotFound, match="the mirror has no pretrain_books"):
        read(Source(source="catalog:pretrain_books"), mirror=str(tmp_path))
    with pytest.raises(NotFound, match="TUTELAGE_DATA"):
        read(Source(source="catalog:pretrain_books"), mirror=str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match="gives dialogues, items, not labels"):
        read(Source(source="catalog:sentiment_sst", kinds=("labels",)), mirror=str(tmp_path))


def test_names_of_the_catalog():
    assert len(CATALOG) == 55
    with pytest.raises(NotFound, match="Did you mean 'pretrain_books'"):
        entry("pretrain_book")
    for known in CATALOG.values():
        assert known.kinds, known.name
        assert not known.evaluation_only or set(known.kinds) == {"items"}, known.name


def test_evaluation_only_sets_are_refused_for_training(tmp_path: Path):
    lines(tmp_path / "truthfulqa" / "test.jsonl.gz", [{"question": "Q?"}])
    for source in (
        Source(source="catalog:truthfulqa", kinds=("dialogues",)),
        Source(source="catalog:truthfulqa", form=Documents(text="{question}", splits={"test": "train"})),
        Source(source="catalog:sentiment_sst", form=Documents(splits={"test": "train"})),
        Source(source="hf:nyu-mll/crows_pairs", form=Documents(text="{sent_more}"), split="test"),
    ):
        with pytest.raises(LicenceError, match="evaluation only"):
            read(source, mirror=str(tmp_path))


def test_the_hub_needs_its_extra(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtra, match=r"pip install -e '\.\[hf\]'"):
        read(Source(source="hf:organisation/name"))
    with pytest.raises(NotFound, match="not on the Hugging Face hub"):
        read(Source(source="catalog:pretrain_speeches"))


MIRROR = next(
    (each / "shared" / "data" for each in Path(__file__).resolve().parents if (each / "shared" / "data").is_dir()), None
)


ELSEWHERE = ("instruct_ifeval", "comprehension_squad")
"""Sets of the catalog that this mirror does not hold; rows of their form stand in test_corpus_catalog.py."""


@pytest.mark.slow
@pytest.mark.skipif(MIRROR is None, reason="no mirror of the public sets (shared/data) beside the checkout")
@pytest.mark.parametrize("name", [name for name in CATALOG if name not in ELSEWHERE])
def test_every_set_of_the_mirror_reads(name: str):
    found = read(Source(source=f"catalog:{name}", limit=200), mirror=str(MIRROR))
    assert {kind for kind, count in found.counts().items() if count} == set(CATALOG[name].kinds)
    assert found.bad <= 10, found.bad_examples
