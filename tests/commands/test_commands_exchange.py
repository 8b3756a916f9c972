"""`import` and `export`: licences are kept, refusals are clear, and nothing of one's own is overwritten."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tutelage import life
from tutelage.core.artifact import Manifest, Root, file_entries
from tutelage.core.records import Example, read_jsonl
from tutelage.store import engine, ledger


def test_internal_data_leaves_only_when_its_class_is_accepted(tutelage: Any, little: Root, tmp_path: Path) -> None:
    folder, where = tmp_path / "out", ("--root", little.path)
    done = tutelage("export", "data", "prepare", folder, *where)
    assert done.code == 2 and "--accept non-commercial" in done.err and not folder.exists()
    assert "is no class" in tutelage("export", "data", "prepare", folder, "--accept", "noncommercial", *where).err
    done = tutelage("export", "data", "prepare", folder, "--accept", "non-commercial", *where, "--json")
    assert done.code == 0 and done.json["accepted"] == ["non-commercial"]
    assert len(list(read_jsonl(folder / "dialogues.jsonl", Example))) == 60
    assert "non-commercial" in (folder / "README.md").read_text() and (folder / "manifest.json").is_file()
    with engine.open(little, writable=False) as store:
        (entry,) = [each for each in ledger.rows(store) if each.action == "artifact.export"]
    assert entry.body["accepted"] == ["non-commercial"] and entry.object == life.last(little)["prepare"].ref
    again = tutelage("export", "data", "prepare", folder, "--accept", "non-commercial", *where)
    assert again.code == 2 and "left as it is" in again.err


def test_the_licence_follows_what_learned_from_it(tutelage: Any, little: Root, tmp_path: Path) -> None:
    done = tutelage("export", "model", "tokenizer", tmp_path / "out", "--root", little.path)
    assert done.code == 2 and "internal" in done.err
    done = tutelage("export", "model", "encode", tmp_path / "out", "--root", little.path)
    assert done.code == 2 and "is of kind tokens" in done.err
    assert tutelage("export", "model", "model:0000", tmp_path / "out", "--root", little.path).code == 2


def test_an_artifact_without_a_licence_is_not_stated(tutelage: Any, tmp_path: Path) -> None:
    root = Root(tmp_path / "life").create()
    (root.work / "m").mkdir()
    (root.work / "m" / "config.json").write_text("{}")
    manifest = Manifest(kind="model", stage="x", version=1, config={}, files=file_entries(root.work / "m"))
    made = root.seal(root.work / "m", manifest, "k")
    done = tutelage("export", "model", made.ref, tmp_path / "out", "--root", root.path)
    assert done.code == 2 and "--accept not-stated" in done.err
    accepted = ("--accept", "not-stated", "--root", root.path)
    assert tutelage("export", "model", made.ref, tmp_path / "out", *accepted).code == 0
    (made.path / "config.json").chmod(0o600)
    (made.path / "config.json").write_text("{ }")
    done = tutelage("export", "model", made.ref, tmp_path / "two", "--accept", "not-stated", "--root", root.path)
    assert done.code == 1 and "differs from what was sealed" in done.err


def test_a_model_of_others_comes_in_and_goes_out(tutelage: Any, little: Root, tmp_path: Path) -> None:
    from tutelage.model.checkpoint import save
    from tutelage.model.transformer import Decoder, DecoderConfig
    from tutelage.tokens.tokenizer import load

    words = life.last(little)["tokenizer"].path
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
    config = DecoderConfig.from_hf(
        {"model_type": "llama", "vocab_size": load(words).size, "intermediate_size": 64, **shape}
    )
    save(Decoder(config), tmp_path / "theirs", words)
    where = ("--root", tmp_path / "life")
    assert tutelage("import", "model", tmp_path / "none", *where).code == 2
    assert "licence class" in tutelage("import", "model", tmp_path / "theirs", "--licence", "free", *where).err
    done = tutelage("import", "model", tmp_path / "theirs", "--licence", "permissive", *where, "--json")
    assert done.code == 0, done.err
    again = tutelage("import", "model", tmp_path / "theirs", "--licence", "permissive", *where, "--json")
    assert again.json == done.json
    made = done.json["model"]
    done = tutelage("export", "model", made, tmp_path / "out", *where)
    assert done.code == 0 and (tmp_path / "out" / "model.safetensors").is_file()
    where = (*where, "--format", "gguf-f16")
    done = tutelage("export", "model", made, tmp_path / "out.gguf", *where)
    assert done.code == 2 and "in a folder, with its card" in done.err
    done = tutelage("export", "model", made, tmp_path / "one-file", *where, "--json")
    assert done.code == 0 and set(done.json["files"]) == {"README.md", "manifest.json", "model-f16.gguf"}
    assert (tmp_path / "one-file" / "model-f16.gguf").read_bytes()[:4] == b"GGUF"
    words = tutelage("export", "model", "tokenizer", tmp_path / "x", "--root", little.path, "--format", "gguf")
    assert words.code == 2 and "has no GGUF form" in words.err
    done = tutelage("import", "model", tmp_path / "theirs", *where[:2], "--json")  # of a licence that is not stated
    done = tutelage("export", "model", done.json["model"], tmp_path / "y", *where)
    assert done.code == 2 and "--accept not-stated" in done.err and not (tmp_path / "y").exists()


def test_an_adapter_comes_in_over_its_base_and_goes_out_alone(tutelage: Any, little: Root, tmp_path: Path) -> None:
    from tutelage.model.checkpoint import load_decoder, save
    from tutelage.model.lora import Lora, adapt
    from tutelage.model.peft import save_adapter
    from tutelage.model.transformer import Decoder, DecoderConfig
    from tutelage.tokens.tokenizer import load

    words = life.last(little)["tokenizer"].path
    base = Decoder(DecoderConfig(load(words).size, 16, 24, 1, 2, 1))
    adapted = adapt(base, Lora(2, 4.0, ("q_proj", "down_proj")))
    adapted.layers[0].mlp.down_proj.lora_B.data.fill_(0.1)
    save(base, tmp_path / "base", words)
    save_adapter(adapted, tmp_path / "adapter")
    where = ("--licence", "permissive", "--root", tmp_path / "life")
    under = tutelage("import", "model", tmp_path / "base", *where, "--json").json["model"]
    done = tutelage("import", "model", tmp_path / "adapter", *where)
    assert done.code == 2 and "--base" in done.err
    done = tutelage("import", "model", tmp_path / "base", "--base", under, *where)
    assert done.code == 2 and "no adapter here" in done.err
    done = tutelage("import", "model", tmp_path / "adapter", "--base", "model:0000", *where)
    assert done.code == 2 and "0000" in done.err
    save(Decoder(base.config, seed=1), tmp_path / "wrong", words)
    done = tutelage("import", "model", tmp_path / "adapter", "--base", tmp_path / "wrong", *where)
    assert done.code == 2 and "made for other weights" in done.err
    done = tutelage("import", "model", tmp_path / "adapter", "--base", under, *where, "--json")
    assert done.code == 0 and not done.err, done.err
    made = done.json["model"]
    assert Root(tmp_path / "life").find(made).manifest.inputs == {"base": under}
    out = ("--adapter", "--root", tmp_path / "life")
    done = tutelage("export", "model", made, tmp_path / "out", *out)
    assert done.code == 0, done.err
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"adapter_config.json", "adapter_model.safetensors", "base.json", "README.md", "manifest.json"}
    file = "adapter_model.safetensors"
    assert (tmp_path / "out" / file).read_bytes() == (tmp_path / "adapter" / file).read_bytes()
    done = tutelage("export", "model", under, tmp_path / "none", *out)
    assert done.code == 2 and "has no adapter" in done.err
    (tmp_path / "adapter" / "base.json").unlink()  # as others save it
    done = tutelage("import", "model", tmp_path / "adapter", "--base", tmp_path / "wrong", *where)
    assert done.code == 0 and done.err.startswith("note: the adapter does not say which weights")
    found = load_decoder(Root(tmp_path / "life").find(made).path).layers[0].mlp.down_proj.weight
    assert not found.equal(base.layers[0].mlp.down_proj.weight)


VOTERS = ("ann", "ben")
PAIRS = [
    {
        "prompt": f"Where is house {n}?",
        "a": f"House {n} is by the mill.",
        "b": "I do not know.",
        "votes": [{"annotator": name, "choice": "a" if (n + at) % 5 else "b"} for at, name in enumerate(VOTERS)],
    }
    for n in range(20)
]


def test_recorded_answers_come_in_as_replayed(tutelage: Any, tmp_path: Path) -> None:
    file, root = tmp_path / "pairs.jsonl", Root(tmp_path / "life")
    file.write_text("\n".join(map(json.dumps, PAIRS)))
    done = tutelage("import", "feedback", file, "--project", "town", "--root", root.path, "--json")
    assert done.code == 0, done.err
    assert done.json["tasks"] == 20 and done.json["answers"] == 40
    from tutelage.store import answers

    with engine.open(root, writable=False) as store:
        given = answers.read(store, done.json["projects"][0])
    assert len(given) == 40 and {each.people for each in given} == {"replayed"}
    again = tutelage("import", "feedback", file, "--project", "town", "--root", root.path, "--json")
    assert again.json["collection"] == done.json["collection"], "the same file is imported once"


def own(at: int) -> dict[str, Any]:
    """A row as `export feedback` writes it: two or three people rank three answers, one skips."""
    orders = [[[2], [0], [1]] if (at + 3 * n) % 10 == 0 else [[0], [1, 2]] for n in range(2 + at % 2)]
    told: list[dict[str, Any]] = [
        {"person": name, "tiers": order} for name, order in zip(("ann", "ben", "cas"), orders, strict=False)
    ]
    told.append({"person": "dee", "status": "skipped", "reason": "not mine"})
    candidates = [f"By the mill, {at}.", "No idea.", "Why?"]
    return {"key": f"k{at}", "prompt": f"Where is house {at}?", "candidates": candidates, "answers": told}


def argilla(at: int) -> dict[str, Any]:
    """A record as Argilla writes it, with a ranking of two fields."""
    told = []
    for n, name in enumerate(("ann", "ben")):
        ranks = (2, 1) if (at + 3 * n) % 10 == 0 else (1, 2)
        value = [{"value": field, "rank": rank} for field, rank in zip(("first", "second"), ranks, strict=True)]
        told.append({"user_id": name, "status": "submitted", "value": value})
    fields = {"prompt": f"Where is {at}?", "first": f"By the mill, {at}.", "second": "No idea."}
    return {"id": f"r{at}", "fields": fields, "metadata": {}, "responses": {"better": told}, "suggestions": {}}


@pytest.mark.parametrize(
    ("name", "rows", "people", "answers_", "more"),
    [
        ("own.jsonl", own, 3, 50, ()),
        ("records.json", argilla, 2, 40, ("--response", "first", "--response", "second")),
    ],
)
def test_imported_comparisons_flow_into_what_learns_from_them(
    tutelage: Any, tmp_path: Path, name: str, rows: Any, people: int, answers_: int, more: tuple[str, ...]
) -> None:
    file, root = tmp_path / name, ("--root", tmp_path / "life")
    made = [rows(at) for at in range(20)]
    file.write_text(json.dumps(made) if name.endswith(".json") else "\n".join(map(json.dumps, made)))
    done = tutelage("import", "feedback", file, "--project", "town", "--licence", "permissive", *more, *root, "--json")
    assert done.code == 0, done.err
    collection = done.json["collection"]
    again = tutelage("import", "feedback", file, "--project", "town", "--licence", "permissive", *more, *root, "--json")
    assert again.json["collection"] == collection, "the same answers are one collection"
    done = tutelage("preferences", f"collection={collection}", *root, "--json")
    assert done.code == 0, done.err
    life = Root(tmp_path / "life")
    joined = next(each for each in life.list() if each.kind == "preferences")
    assert sum(joined.metrics["rows"].values()) == 20 and not joined.manifest.simulated
    stated = json.loads(joined.file("agreement.json").read_text())
    assert (stated["people"], stated["answers"], stated["persons"]) == ("replayed", answers_, people)
    assert joined.manifest.licences == ["permissive"]
    rows_ = [json.loads(line) for line in joined.file("preferences.jsonl").read_text().splitlines()]
    assert all(len(row["candidates"]) == len(made[0].get("candidates", "ab")) for row in rows_)


@pytest.mark.parametrize(
    ("text", "said"),
    [('{"prompt": "a"}', "no tasks or answers"), ("[]", "no row"), ("{torn", "not JSON"), ("", "no row")],
)
def test_a_file_that_is_no_feedback(tutelage: Any, tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(text)
    done = tutelage("import", "feedback", file, "--root", tmp_path / "life")
    assert done.code == 2 and said in done.err
    assert tutelage("import", "feedback", tmp_path / "none.jsonl", "--root", tmp_path / "life").code == 2


def test_answers_leave_as_rows_for_a_trainer(tutelage: Any, tmp_path: Path) -> None:
    file, root = tmp_path / "pairs.jsonl", Root(tmp_path / "life")
    file.write_text("\n".join(map(json.dumps, PAIRS)))
    done = tutelage("import", "feedback", file, "--licence", "permissive", "--root", root.path, "--json")
    where = (done.json["projects"][0], tmp_path / "set", "--for", "dpo", "--root", root.path)
    done = tutelage("export", "feedback", *where, "--json")
    assert done.code == 0, done.err
    assert done.json["people"] == "replayed" and not done.json["simulated"]
    assert {Path(name).relative_to(tmp_path).parts[1] for name in done.json["files"]} == {"README.md", "data"}
    again = tutelage("export", "feedback", *where)
    assert again.code == 2 and "left as it is" in again.err
    where = (where[0], tmp_path / "rows.jsonl", *where[2:])
    done = tutelage("export", "feedback", *where, "--by", "person")
    assert done.code == 0 and done.out.startswith(f"{tmp_path / 'rows.jsonl'}: 40 rows of replayed people")
    row = json.loads((tmp_path / "rows.jsonl").read_text().splitlines()[0])
    assert row["people"] == "replayed" and row["chosen"] and row["annotations"]
    done = tutelage("export", "feedback", where[0], tmp_path / "x", "--for", "ppo", "--root", root.path)
    assert done.code == 2 and "nobody reads 'ppo'" in done.err
    done = tutelage("export", "feedback", where[0], tmp_path / "x", "--for", "kto", "--people", "live", *where[4:])
    assert done.code == 2 and "no answers of live people" in done.err and not (tmp_path / "x").exists()
