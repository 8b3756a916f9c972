"""The command line in this process, and small roots to use it on."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "guard"))
from guard_house import make_bundle, make_root

from tutelage import life
from tutelage.cli import main
from tutelage.core.artifact import Root
from tutelage.recipe import read_recipe


class Done(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Its output as one JSON value."""
        return json.loads(self.out)


Tutelage = Callable[..., Done]


@pytest.fixture
def tutelage(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Tutelage:
    """Run a command as a user does, without another process: `tutelage("list", "--root", path, stdin="...")`."""

    def run(*arguments: object, stdin: str = "") -> Done:
        monkeypatch.setattr(sys, "argv", ["tutelage", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode()), "utf-8"))
        capsys.readouterr()
        code = 0
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        return Done(code, said.out, said.err)

    return run


@pytest.fixture(scope="session")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Root:
    """A root with a trained guard and two bundles under different policies (`strict` and `lax` beside the root)."""
    folder = tmp_path_factory.mktemp("guarded")
    root = make_root(folder / "life")
    strict = make_bundle(root, folder / "strict")
    make_bundle(root, folder / "lax", input="flag", output="review")
    (root.path / "life.json").write_text(json.dumps({"bundle": strict.ref}))
    return root


DIALOGUES = [
    {"prompt": f"Where is house {n}?", "response": f"House {n} stands beside the mill, past the ferry."}
    for n in range(60)
]


@pytest.fixture(scope="session")
def little(tmp_path_factory: pytest.TempPathFactory) -> Root:
    """A root with a corpus of dialogues and text, its tokenizer and its ids: the first three stages, run."""
    folder = tmp_path_factory.mktemp("little")
    rows = folder / "dialogues.jsonl"
    rows.write_text("\n".join(json.dumps(row) for row in DIALOGUES))
    text = folder / "text.jsonl"
    lines = [f"The ferry number {n} leaves the north pier when the clock strikes {n % 24}." for n in range(300)]
    text.write_text("\n".join(json.dumps({"text": line}) for line in lines))
    sources = [
        {"source": f"file:{text}", "licence": "permissive"},
        {"source": f"file:{rows}", "licence": "non-commercial", "form": {"kind": "dialogues", "family": "where"}},
    ]
    root = Root(folder / "life")
    recipe = {"prepare": {"sources": sources, "near": 0}, "tokenizer": {"vocabulary": 320}, "encode": None}
    life.run(read_recipe(recipe), root)
    (folder / "recipe.yaml").write_bytes(root.recipe_path.read_bytes())  # other tests run other recipes in this root
    return root
