"""`serve`, `list`, `replay`, imports: what newcomers meet when something is not there or not whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tutelage.core.artifact import Root
from tutelage.core.errors import install
from tutelage.web.app import announce
from tutelage.web.state import Settings, State


def test_serve_makes_no_life_by_a_slip(tutelage: Any, tmp_path: Path) -> None:
    Root(tmp_path / "life").create()
    done = tutelage("serve", "--root", tmp_path / "lief")
    assert done.code == 2 and f"Did you mean --root {tmp_path / 'life'}?" in done.err and "--new" in done.err
    assert not (tmp_path / "lief").exists()
    assert tutelage("serve", "--root", tmp_path / "no" / "where").code == 2


def test_a_service_without_a_model_says_what_to_type(tmp_path: Path) -> None:
    said: list[str] = []
    state = State(Root(tmp_path / "life").create(), Settings())
    announce(state, said.append, "http://127.0.0.1:1")
    text = "\n".join(said)
    assert f"tutelage run recipes/starter.yaml --root {tmp_path / 'life'}" in text
    assert "--upstream https://host/v1#model" in text
    state.writer.close()
    state.store.close()


def test_list_tells_variants_apart_and_says_when_there_is_nothing(tutelage: Any, little: Root, tmp_path: Path) -> None:
    empty = Root(tmp_path / "empty").create()
    empty.artifacts.mkdir(exist_ok=True)
    assert "nothing has been made here yet" in tutelage("list", "--root", empty.path).out
    listed = tutelage("list", "--root", little.path).out
    assert "tokenizer" in listed and "nothing of kind 'bundle'" in tutelage("list", "bundle", "--root", little.path).out
    file = little.path / "life.json"
    kept = file.read_text()
    known = json.loads(kept)
    try:
        file.write_text(json.dumps(known | {"tokenizer@small": known["tokenizer"]}))
        assert "tokenizer, tokenizer@small" in tutelage("list", "tokenizer", "--root", little.path).out
        rows = tutelage("list", "tokenizer", "--root", little.path, "--json").json
        assert ["tokenizer", "tokenizer@small"] in [row["sections"] for row in rows]
    finally:
        file.write_text(kept)


def test_a_recipe_that_is_not_there_has_a_name_near_it(tutelage: Any, tmp_path: Path) -> None:
    (tmp_path / "starter.yaml").write_text("prepare:\n")
    done = tutelage("run", tmp_path / "starter.yml", "--root", tmp_path / "life")
    assert done.code == 2 and f"Did you mean {tmp_path / 'starter.yaml'}?" in done.err


def test_an_import_that_left_something_out_does_not_end_with_0(tutelage: Any, tmp_path: Path) -> None:
    rows = [
        {"prompt": "Where?", "candidates": ["here", "there"], "answers": [{"person": "ann", "tiers": [[0], [1]]}]},
        {"prompt": "When?", "candidates": ["now", "then"], "answers": [{"person": "ann", "tiers": [[0], [7]]}]},
    ]
    file = tmp_path / "town.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    where = ("--licence", "permissive", "--root", tmp_path / "life")
    done = tutelage("import", "feedback", file, *where)
    assert done.code == 1 and "left out" in done.out and "answers: 1" in done.out
    file.write_text(json.dumps(rows[0]))
    assert tutelage("import", "feedback", file, *where).code == 0


def test_the_command_that_brings_an_extra_can_be_typed_anywhere() -> None:
    assert install("otel").endswith("[otel]'") and " -m pip install " in install("otel")
