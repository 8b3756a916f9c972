"""`store`, `audit`, `erase`, `gc`, `worker`: on real stores, with what goes wrong."""

from __future__ import annotations

import json
import sqlite3
import threading
from pathlib import Path
from typing import Any

import pytest

from tutelage import life
from tutelage.core.artifact import Root
from tutelage.core.records import Message
from tutelage.recipe import read_recipe
from tutelage.store import engine, jobs, ledger, people, traces
from tutelage.store.backup import check
from tutelage.worker import KIND, ask, asked, work


@pytest.fixture
def root(tmp_path: Path) -> Root:
    """A root whose store holds two people, one request and some acts."""
    root = Root(tmp_path / "life").create()
    with engine.open(root) as store:
        people.create_many(store, ["ann", "ben"])
        asked_for = traces.Trace(messages=(Message(role="user", content="my secret garden"),), subject="u1")
        traces.write(store, [asked_for])
        for act in ("one", "two", "three"):
            ledger.record(store, "ann", act)
    return root


def rows(file: Path, query: str) -> list[Any]:
    with sqlite3.connect(file) as connection:
        return connection.execute(query).fetchall()


def test_backup_and_restore_give_the_same_store(tutelage: Any, root: Root, tmp_path: Path) -> None:
    copy = tmp_path / "store.backup"
    done = tutelage("store", "backup", copy, "--root", root.path)
    assert done.code == 0 and "whole" in done.out and "secret.key" in done.out
    assert copy.stat().st_mode & 0o077 == 0, "people's words are for their owner alone"
    other = Root(tmp_path / "other")
    assert tutelage("store", "restore", copy, "--root", other.path).code == 0
    query = "SELECT name FROM person ORDER BY name"
    assert rows(other.store_path, query) == rows(root.store_path, query)
    assert tutelage("store", "check", "--root", other.path).code == 0


def test_a_backup_while_others_write_is_one_state(root: Root, tmp_path: Path) -> None:
    from tutelage.store.backup import backup

    over = threading.Event()

    def write() -> None:
        with engine.open(root) as store:
            while not over.is_set():
                ledger.record(store, "ann", "busy")

    thread = threading.Thread(target=write)
    thread.start()
    try:
        for number in range(3):
            backup(root, tmp_path / f"copy{number}.db")
    finally:
        over.set()
        thread.join()
    for number in range(3):
        found = rows(tmp_path / f"copy{number}.db", "SELECT MAX(seq), COUNT(*) FROM audit")
        assert found[0][0] == found[0][1]


def test_restore_keeps_what_was_there(tutelage: Any, root: Root, tmp_path: Path) -> None:
    copy = tmp_path / "copy.db"
    tutelage("store", "backup", copy, "--root", root.path)
    with engine.open(root) as store:
        people.create(store, "late")
    done = tutelage("store", "restore", copy, "--root", root.path)
    assert done.code == 2 and "--replace" in done.err
    done = tutelage("store", "restore", copy, "--replace", "--root", root.path, "--json")
    assert ("late",) in rows(Path(done.json["kept"]), "SELECT name FROM person")
    assert ("late",) not in rows(root.store_path, "SELECT name FROM person")


def test_bad_backups_are_refused(tutelage: Any, root: Root, tmp_path: Path) -> None:
    for name, content in (("text.db", b"not a database at all " * 60), ("empty.db", b"")):
        (tmp_path / name).write_bytes(content)
        done = tutelage("store", "restore", tmp_path / name, "--replace", "--root", root.path)
        assert done.code == 2 and "no whole store" in done.err
    assert tutelage("store", "restore", tmp_path / "none.db", "--root", root.path).code == 2
    assert tutelage("store", "backup", root.store_path, "--root", root.path).code == 2
    assert tutelage("store", "backup", tmp_path / "x.db", "--root", tmp_path / "nothing").code == 2
    with sqlite3.connect(tmp_path / "newer.db") as connection:
        connection.execute("CREATE TABLE alembic_version (version_num TEXT)")
        connection.execute("INSERT INTO alembic_version VALUES ('9999')")
    assert "9999" in tutelage("store", "restore", tmp_path / "newer.db", "--root", tmp_path / "new").err


def test_check_finds_damage(tutelage: Any, root: Root) -> None:
    assert check(root.store_path) == []
    with sqlite3.connect(root.store_path) as connection:
        named = connection.execute(
            "SELECT name FROM sqlite_master WHERE type='trigger' AND tbl_name='audit'"
        ).fetchall()
        for (name,) in named:
            connection.execute(f'DROP TRIGGER "{name}"')
    assert named
    done = tutelage("store", "check", "--root", root.path)
    assert done.code == 1 and "append-only" in done.err


def test_verify_finds_a_changed_past(tutelage: Any, root: Root) -> None:
    whole = tutelage("audit", "verify", "--root", root.path, "--json").json
    assert whole["ok"] and whole["rows"] >= 3
    where = ("audit", "verify", "--root", root.path)
    assert tutelage(*where, "--head", whole["head"]).code == 0
    assert tutelage(*where, "--head", "beef").code == 1
    assert tutelage(*where, "--at-least", "99").code == 1
    with sqlite3.connect(root.store_path) as connection:
        for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type='trigger'").fetchall():
            connection.execute(f'DROP TRIGGER "{name}"')
        connection.execute("UPDATE audit SET action = 'nothing' WHERE action = 'two'")
    done = tutelage(*where)
    assert done.code == 1 and "at row" in done.err and "changed after it was written" in done.err
    assert tutelage("audit", "verify", "--root", root.path / "none").code == 2


def test_erase_asks_and_erases(tutelage: Any, root: Root) -> None:
    where = ("--root", root.path)
    assert tutelage("erase", *where).code == 2
    assert "--yes" in tutelage("erase", "--person", "ann", *where).err
    assert tutelage("erase", "--person", "nobody", "--yes", *where).code == 2
    done = tutelage("erase", "--subject", "u1", "--yes", *where, "--json")
    assert done.json["texts"] == 1 and done.json["requests"] == 1 and done.json["live"] is False
    assert not rows(root.store_path, "SELECT body FROM text WHERE body LIKE '%garden%'")
    assert tutelage("erase", "--person", "ann", "--yes", *where).code == 0
    assert tutelage("audit", "verify", *where).code == 0


def test_a_backup_is_one_file_in_a_folder_that_is_there(tutelage: Any, root: Root, tmp_path: Path) -> None:
    done = tutelage("store", "backup", tmp_path / "nowhere/b.db", "--root", root.path)
    assert done.code == 2 and "no such folder" in done.err and not (tmp_path / "nowhere").exists()
    (tmp_path / "there").mkdir()
    assert tutelage("store", "backup", tmp_path / "there/b.db", "--root", root.path).code == 0
    assert tutelage("store", "restore", tmp_path / "there/b.db", "--replace", "--root", root.path).code == 0
    assert [each.name for each in (tmp_path / "there").iterdir()] == ["b.db"]
    assert not list(root.path.glob(".store.db*-*"))
    assert tutelage("store", "check", "--root", root.path).code == 0


def test_stop_says_whether_a_stage_is_at_work(tutelage: Any, little: Root) -> None:
    assert "no stage is at work" in tutelage("stop", "--root", little.path).out
    assert (little.path / "stop").exists(), "a life may be planning, or waiting for people"
    with little.lock("a key"):
        assert tutelage("stop", "--root", little.path, "--json").json == {"asked": True, "busy": True}
    (little.path / "stop").unlink()
    assert not little.busy()


def test_gc_keeps_the_last_run_and_the_newest(tutelage: Any, little: Root, tmp_path: Path) -> None:
    import shutil

    root = Root(tmp_path / "life")
    shutil.copytree(little.path, root.path)
    for size in (300, 310, 330):
        life.run_alone("tokenizer", {"vocabulary": size}, root)
    found = tutelage("gc", "--dry-run", "--root", root.path, "--json").json
    assert len(found["removed"]) == 2 and len(root.list("tokenizer")) == 4
    assert tutelage("gc", "--keep", "0", "--root", root.path, "--json").json["removed"]
    assert [each.ref for each in root.list("tokenizer")] == [life.made_last(root)["tokenizer"]]
    assert all(artifact.verify() is None for artifact in life.last(root).values())
    assert tutelage("gc", "--root", tmp_path / "none").code == 2


# runs for later


def recipe_of(little: Root) -> dict[str, Any]:
    made = life.last(little)
    return {"tokenizer": {"corpus": made["prepare"].ref, "vocabulary": 305}}


def test_a_worker_makes_what_was_asked_for(tutelage: Any, little: Root, tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(json.dumps(recipe_of(little)))
    done = tutelage("run", file, "--later", "--root", little.path, "--json")
    assert done.code == 0 and done.json["job"]
    assert "waiting" in tutelage("worker", "--list", "--root", little.path).out
    ended = tutelage("worker", "--once", "--root", little.path, "--json").json["runs"]
    assert [each["end"] for each in ended] == ["done"]
    (job,) = [each for each in asked(little) if each.id == done.json["job"]]
    assert job.state == "done" and job.result["made"]["tokenizer"].startswith("tokenizer:")
    assert tutelage("worker", "--once", "--root", little.path, "--json").json["runs"] == []
    assert tutelage("run", file, "--later", "--until", "encode", "--root", little.path).code == 2


def test_a_run_that_fails_is_noted_and_others_go_on(little: Root) -> None:
    bad = read_recipe({"tokenizer": {"corpus": "corpus:0000"}})
    first, second = ask(little, bad), ask(little, read_recipe(recipe_of(little)))
    ends: dict[str, str] = {}
    assert work(little, once=True, heard=lambda job, text: ends.update({job.id: text})) == 2
    assert ends[first].startswith("failed: ") and ends[second] == "done"
    assert {job.id: job.state for job in asked(little)}[first] == "failed"


def test_a_stopped_run_is_left_to_the_next_worker(little: Root) -> None:
    name = ask(little, read_recipe({"tokenizer": {**recipe_of(little)["tokenizer"], "vocabulary": 306}}))
    calls = [False, True, True, True, True, True]  # free to claim, then stopped at the first check within the stage
    ends: list[str] = []
    work(little, stop=lambda: calls.pop(0) if calls else True, heard=lambda job, text: ends.append(text))
    with engine.open(little) as store:
        job = jobs.get(store, name)
        assert job is not None and job.state in ("waiting", "done") and job.attempts == 1
    work(little, once=True)
    with engine.open(little) as store:
        again = jobs.get(store, name)
        assert again is not None and again.state == "done"


def test_a_silent_worker_loses_its_run(little: Root) -> None:
    name = ask(little, read_recipe(recipe_of(little)))
    with engine.open(little) as store:
        mine = jobs.claim(store, [KIND], "dead", lease_s=0)
        assert mine is not None and mine.id == name
        work(little, once=True)
        assert jobs.finish(store, mine) is False, "what came back from the dead changes nothing"
        found = jobs.get(store, name)
        assert found is not None and found.state == "done" and found.attempts == 2


def test_erase_says_what_goes_what_stays_and_what_a_hold_keeps(tutelage: Any, root: Root) -> None:
    where = ("--root", root.path)
    held = tutelage("hold", "place", "subject", "u1", "--reason", "case 12", *where)
    assert held.code == 0
    done = tutelage("erase", "--subject", "u1", "--yes", *where)
    assert (
        "gone:  0 texts" in done.out
        and "kept:  1 request as they are, under a legal hold (subject u1: case 12)" in done.out
    )
    assert "case 12" in tutelage("hold", "list", *where).out
    id = held.out.split()[0]
    assert tutelage("hold", "lift", id, "--reason", "closed", *where).code == 0
    assert tutelage("hold", "lift", id, "--reason", "closed", *where).code == 2
    assert tutelage("hold", "place", "person", "u1", "--reason", "x", *where).code == 2
    said = tutelage("erase", "--subject", "u1", "--yes", *where).out
    assert "gone:  1 text" in said and "stays: 1 request without a word" in said and "'u1'" in said
    with engine.open(root) as store:
        ann = people.get(store, "ann")
    said = tutelage("erase", "--person", "ann", "--yes", *where).out
    assert "the profile and the ways to sign in of ann" in said
    if "stays" in said:
        assert f"under the pseudonym {ann.pseudonym}" in said
    assert tutelage("sweep", "--days", "1", *where).out.startswith("gone:  0 texts of 0 requests")
