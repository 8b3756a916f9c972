"""A root whose store lies in PostgreSQL: every command finds it, and a store moves there and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tutelage.core.artifact import Root
from tutelage.store import engine, ledger, people, releases
from tutelage.worker import asked


@pytest.fixture
def team(tmp_path: Path, postgres: str, monkeypatch: pytest.MonkeyPatch) -> Root:
    """A root that names a variable of the environment."""
    monkeypatch.setenv("TEAM_DATABASE", postgres)
    (tmp_path / "life").mkdir()
    (tmp_path / "life" / "service.yaml").write_text("database: env:TEAM_DATABASE\n")
    return Root(tmp_path / "life", {"TEAM_DATABASE": postgres}).create()


def test_a_store_moves_to_postgres_and_back(tutelage: Any, team: Root, tmp_path: Path) -> None:
    here = Root(tmp_path / "here")
    with engine.open(here) as store:
        people.create(store, "anna")
    moving = tmp_path / "moving.db"
    assert tutelage("store", "backup", moving, "--root", here.path).code == 0
    done = tutelage("store", "restore", moving, "--root", team.path, "--json")
    assert done.code == 0 and done.json["restored"].startswith("postgresql://") and done.json["kept"] is None
    with engine.open(team) as store:
        people.create(store, "ben")
    checked = tutelage("store", "check", "--root", team.path, "--json")
    assert checked.code == 0 and checked.json["ok"] and checked.json["rows"] == 4
    assert tutelage("audit", "verify", "--root", team.path).code == 0
    assert tutelage("store", "backup", tmp_path / "back.db", "--root", team.path).code == 0
    assert tutelage("store", "restore", tmp_path / "back.db", "--replace", "--root", here.path).code == 0
    with engine.open(here) as store:
        assert [each.name for each in people.every(store)] == ["anna", "ben"]
        assert [row.seq for row in ledger.rows(store)] == [1, 2, 3, 4]
    assert not team.store_path.exists()


def test_every_command_finds_the_store(tutelage: Any, team: Root, tmp_path: Path) -> None:
    with engine.open(team) as store:
        people.create(store, "anna")
        releases.create(store, "bundle:a")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text('prepare: {sources: ["starter:"], scale: 0.01}\n')
    assert tutelage("run", recipe, "--later", "--root", team.path).code == 0
    assert len(asked(team)) == 1
    assert tutelage("worker", "--list", "--root", team.path, "--json").code == 0
    assert tutelage("erase", "--person", "anna", "--yes", "--root", team.path).code == 0
    assert tutelage("gc", "--root", team.path).code == 0
    with engine.open(team) as store:
        assert [each.name.split()[0] for each in people.every(store)] == ["erased"]
    assert not team.store_path.exists(), "nobody made another store beside it"


def test_a_database_that_is_away_or_ill_named_is_one_clear_line(
    tutelage: Any, team: Root, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEAM_DATABASE", "postgresql://team:hunter2@127.0.0.1:1/x")
    done = tutelage("store", "check", "--root", team.path)
    assert done.code == 1 and "does not answer" in done.err and "hunter2" not in done.err
    monkeypatch.delenv("TEAM_DATABASE")
    done = tutelage("store", "check", "--root", team.path)
    assert done.code == 2 and "TEAM_DATABASE" in done.err and "service.yaml" in done.err
