"""A store to a file and back, and from one engine to the other: row for row."""

from __future__ import annotations

import json
import sqlite3

import pytest
import sqlalchemy as sql

from tutelage.core.artifact import Root
from tutelage.core.errors import DataError, UsageError
from tutelage.core.records import Message, Verdict
from tutelage.store import answers, engine, ledger, people, profiles, releases, review, schema, slots, tasks, traces
from tutelage.store.backup import backup, check_root, restore


@pytest.fixture(autouse=True)
def few(monkeypatch) -> None:
    """Copy few rows at a time, so that some tables take several turns."""
    monkeypatch.setattr("tutelage.store.backup.ROWS", 40)


def fill(root: Root) -> None:
    """Something of every kind: accounts, answers, traffic with verdicts, sealed bytes, numbers, nulls."""
    with engine.open(root) as store:
        anna = people.create(store, "anna", languages=["de"])
        profiles.set_profile(store, anna.id, {"native_language": "German"})
        project = tasks.make_project(store, "p", kind="ranking", questions=[{"key": "q", "b": 1, "a": None}])
        asked = Message(role="user", content="grüß Gott\n")
        new = tasks.NewTask("t", "ranking", (asked,), (("a", "", {}), ("b", "", {})))
        tasks.add(store, project, [new])
        slot = slots.claim(store, anna.id, [project.id], 1, 60_000)[0]
        value = answers.Value("q", 0, 0.1 + 0.2, "because", {"nested": [1, None, "x"]})
        given = answers.NewAnnotation(slot.id, slot.epoch, "k", shown=(1, 0), values=[value], ranks=[(0, 0), (1, None)])
        assert answers.submit(store, anna.id, "live", [given])[0].status == "stored"
        verdict = Verdict(judge="guard", scores={"crime": 1e-12})
        decided = traces.Decided(verdicts=(verdict,), direction="input")
        traces.write(store, [traces.Trace(messages=(asked,), decisions=(decided,))])
        review.vault_put(store, "c1", {"[EMAIL:1]": ("email", "anna@example.org")})
        releases.promote(store, releases.create(store, "bundle:a"), actor="op", reason="first")
        with store.write() as connection:
            for number in range(150):
                ledger.append(connection, "a", "did", f"o{number}")


def rows(root: Root) -> dict[str, list[str]]:
    """Every row of a store."""
    with engine.open(root) as store, store.read() as connection:
        found = {table: connection.execute(sql.select(table)).all() for table in schema.metadata.sorted_tables}
        return {
            table.name: sorted(json.dumps(list(row), sort_keys=True, default=repr) for row in found[table])
            for table in found
        }


def test_a_store_goes_to_a_file_and_back(home, tmp_path):
    root = Root(home).create()
    fill(root)
    copy, before = tmp_path / "copy.db", rows(root)
    size = backup(root, copy)
    assert (
        size == copy.stat().st_size and copy.stat().st_mode & 0o077 == 0 and sorted(tmp_path.glob("*copy*")) == [copy]
    )
    with pytest.raises(UsageError, match="--replace"):
        restore(root, copy)
    with engine.open(root) as store:
        people.create(store, "late")
    kept = restore(root, copy, replace=True)
    assert rows(root) == before and check_root(root) == []
    with sqlite3.connect(kept) as aside:
        assert aside.execute("SELECT count(*) FROM person WHERE name = 'late'").fetchone() == (1,)
    with engine.open(root) as store:  # numbers go on where they stood, and the rules hold again
        people.create(store, "later")
        whole = list(ledger.rows(store))
        assert [row.seq for row in whole] == list(range(1, len(whole) + 1))
        assert all(row.hash == row.linked() for row in whole)
        with pytest.raises(DataError, match="append-only"), store.write() as connection:
            connection.exec_driver_sql("DELETE FROM audit")


def test_a_store_moves_to_postgres_and_back(tmp_path, postgres_empty):
    root, copy = Root(tmp_path).create(), tmp_path / "copy.db"
    fill(root)
    before = rows(root)
    backup(root, copy)
    (tmp_path / "service.yaml").write_text(f"database: {postgres_empty}\n")
    assert restore(root, copy) is None and rows(root) == before and check_root(root) == []
    backup(root, tmp_path / "back.db")
    (tmp_path / "service.yaml").unlink()
    assert restore(root, tmp_path / "back.db", replace=True) is not None and rows(root) == before
    with engine.open(root) as store:
        assert profiles.profile(store, people.get(store, "anna").id).attributes == {"native_language": "German"}


def test_a_backup_of_an_earlier_schema_is_brought_up_in_postgres(tmp_path, postgres, monkeypatch):
    with monkeypatch.context() as earlier:
        earlier.setattr(engine, "HEAD", "0002")
        with engine.open(tmp_path) as store, store.write() as connection:
            connection.exec_driver_sql("INSERT INTO text (id, body) VALUES ('t', 'words')")
    old = (tmp_path / "store.db").rename(tmp_path / "old.db")
    before = old.read_bytes()
    root = Root(tmp_path)
    (tmp_path / "service.yaml").write_text(f"database: {postgres}\n")
    restore(root, old)
    assert rows(root)["text"] == ['["t", "words", null, null]'] and old.read_bytes() == before
    assert not list(tmp_path.glob(".restore*"))


def test_what_cannot_be_restored_leaves_postgres_as_it_was(tmp_path, postgres):
    (tmp_path / "service.yaml").write_text(f"database: {postgres}\n")
    root, other = Root(tmp_path), Root(tmp_path / "other")
    with engine.open(other) as store:
        ledger.record(store, "a" * 500, "SQLite keeps a text that is too long")
    with engine.open(root) as store:
        ledger.record(store, "a", "stays")
    with pytest.raises(DataError, match=r"table audit.*too long"):
        restore(root, other.store_path, replace=True)
    with engine.open(root) as store:
        assert [row.action for row in ledger.rows(store)] == ["stays"]
        with pytest.raises(DataError, match="append-only"), store.write() as connection:
            connection.exec_driver_sql("DELETE FROM audit")
    assert not list(tmp_path.glob(".restore*"))


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("ALTER TABLE audit DISABLE TRIGGER USER", "audit has lost its append-only triggers"),
        ("DROP TRIGGER text_erase_only ON text", "text has lost its append-only triggers"),
        ("ALTER TABLE person DROP COLUMN email", "tables are not those"),
        ("SET LOCAL session_replication_role = replica; "
         "INSERT INTO draft (slot_id, person_id, body, updated_at) VALUES ('s', 'p', '{}', 1)", "draft name a"),
    ],
)  # fmt: skip
def test_check_finds_what_is_wrong_in_postgres(tmp_path, postgres, line, says):
    (tmp_path / "service.yaml").write_text(f"database: {postgres}\n")
    root = Root(tmp_path)
    assert check_root(root) == []
    with engine.open(root) as store, store.write() as connection:
        connection.exec_driver_sql(line)
    found = check_root(root)
    assert found and says in found[0]
