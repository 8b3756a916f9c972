"""Opening, migrating, append-only triggers, erasure, watermarks, damage."""

from __future__ import annotations

import itertools
import multiprocessing
import stat
import threading

import pytest
import sqlalchemy as sql
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from tutelage.core.artifact import Root
from tutelage.core.errors import TutelageError, UsageError
from tutelage.store import engine, keys, ledger, schema, slots, texts


def test_migrations_give_exactly_the_tables_of_the_schema(tmp_path):
    store = engine.open(tmp_path)
    with store.read() as connection:
        found = compare_metadata(MigrationContext.configure(connection), schema.metadata)
    assert found == []


def test_opening_makes_a_secret_only_the_owner_can_read(tmp_path):
    engine.open(tmp_path)
    assert stat.S_IMODE((tmp_path / "secret.key").stat().st_mode) == 0o600


def test_wal_and_full_synchronous_for_words(tmp_path):
    store = engine.open(tmp_path)
    with store.write() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2
    with store.write(durable=False) as connection:
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 1


@pytest.mark.parametrize("act", ["UPDATE", "DELETE", "REPLACE"])
def test_append_only_tables_refuse_changes(tmp_path, act):
    store = engine.open(tmp_path)
    ledger.record(store, "a", "did")
    line = {
        "UPDATE": "UPDATE audit SET actor = 'b'",
        "DELETE": "DELETE FROM audit",
        "REPLACE": "REPLACE INTO audit SELECT seq, previous, hash, 'b', action, object, body, at FROM audit",
    }[act]
    with pytest.raises(TutelageError, match="append-only"), store.write() as connection:
        connection.exec_driver_sql(line)
    assert [row.actor for row in ledger.rows(store)] == ["a"]


def test_every_append_only_table_has_both_triggers(tmp_path):
    store = engine.open(tmp_path)
    with store.read() as connection:
        names = set(connection.exec_driver_sql("SELECT name FROM sqlite_master WHERE type = 'trigger'").scalars())
    assert {f"{table}_no_{act}" for table in schema.APPEND_ONLY for act in ("update", "delete")} <= names


def test_text_can_be_erased_and_nothing_else(tmp_path):
    store = engine.open(tmp_path)
    with store.write() as connection:
        texts.put(connection, [("t1", "secret words", "masked"), ("t2", "others", "")])
    for line in ("UPDATE text SET body = 'x' WHERE id = 't1'", "DELETE FROM text", "UPDATE text SET body = NULL"):
        with pytest.raises(TutelageError, match=r"append-only|only be erased"), store.write() as connection:
            connection.exec_driver_sql(line)
    with store.write() as connection:
        assert texts.erase(connection, ["t1"]) == 1
        assert texts.erase(connection, ["t1"]) == 0
    with store.read() as connection:
        assert texts.bodies(connection, ["t1", "t2"]) == {"t2": "others"}
        assert connection.exec_driver_sql("SELECT count(*) FROM text").scalar() == 2


def test_ledger_is_chained_and_a_change_shows(tmp_path):
    store = engine.open(tmp_path)
    for number in range(5):
        ledger.record(store, "a", "did", f"o{number}", {"n": number})
    rows = list(ledger.rows(store))
    assert [row.seq for row in rows] == [1, 2, 3, 4, 5]
    assert all(row.hash == row.linked() for row in rows)
    assert all(after.previous == before.hash for before, after in itertools.pairwise(rows))
    with store._words.begin() as connection:
        connection.exec_driver_sql("DROP TRIGGER audit_no_update")
        connection.exec_driver_sql("UPDATE audit SET actor = 'b' WHERE seq = 3")
    assert [row.seq for row in ledger.rows(store) if row.hash != row.linked()] == [3]


def test_ledger_row_and_act_live_and_die_together(tmp_path):
    store = engine.open(tmp_path)
    with pytest.raises(ZeroDivisionError), store.write() as connection:
        ledger.append(connection, "a", "did")
        raise ZeroDivisionError
    assert list(ledger.rows(store)) == []


def _append(where: str, count: int) -> None:
    store = engine.open(where)
    for number in range(count):
        ledger.record(store, f"p{number}", "did")


def test_two_processes_open_a_fresh_root_and_share_one_chain(tmp_path):
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_append, args=(str(tmp_path), 25)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0]
    rows = list(ledger.rows(engine.open(tmp_path)))
    assert [row.seq for row in rows] == list(range(1, 51))
    assert all(row.hash == row.linked() for row in rows)


def test_threads_queue_for_the_one_writer(tmp_path):
    store = engine.open(tmp_path)
    threads = [threading.Thread(target=lambda: ledger.record(store, "t", "did")) for _ in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(list(ledger.rows(store))) == 24


def test_a_file_that_is_no_database_is_one_clear_error(tmp_path):
    (tmp_path / "store.db").write_bytes(b"this is not a database, however long it is " * 40)
    with pytest.raises(TutelageError, match="damaged"):
        engine.open(tmp_path)


def test_a_store_of_a_newer_version_is_left_alone(tmp_path):
    store = engine.open(tmp_path)
    with store._words.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(UsageError, match="9999"):
        engine.open(tmp_path)


def test_read_only_store_refuses_to_write(tmp_path):
    engine.open(tmp_path)
    store = engine.open_store("store:", Root(tmp_path), writable=False)
    with pytest.raises(UsageError, match="reading only"), store.write():
        pass
    assert store.watermark(["nothing"]) == 0


def test_identifiers_sort_by_time_and_derived_ones_repeat():
    made = [keys.uuid7() for _ in range(5000)]
    assert made == sorted(made) and len(set(made)) == 5000
    assert {each[14] for each in made} == {"7"}
    assert keys.derived_id("a", 1) == keys.derived_id("a", 1) != keys.derived_id("a1")
    assert keys.derived_id("a", 1)[14] == "8"


def test_sealed_bytes_open_only_with_the_same_key_and_place(tmp_path):
    store = engine.open(tmp_path)
    sealed = store.keys.seal("vault", b"0170 123", "row1")
    assert b"0170" not in sealed and store.keys.unseal("vault", sealed, "row1") == b"0170 123"
    for purpose, where in (("profile", "row1"), ("vault", "row2")):
        with pytest.raises(TutelageError, match="does not open"):
            store.keys.unseal(purpose, sealed, where)


@pytest.mark.parametrize("column", ["priority", "turn"])
def test_an_earlier_store_is_brought_up_with_its_data(tmp_path, monkeypatch, column):
    """Schema 0002 with slots in it, as it was shipped and as it was for a while; the order of tasks must hold."""
    with monkeypatch.context() as earlier:
        earlier.setattr(engine, "HEAD", "0002")
        store = engine.open(tmp_path)
    with store.write() as connection:
        if column == "turn":
            connection.exec_driver_sql("ALTER TABLE slot RENAME COLUMN priority TO turn")
        there = sql.MetaData()
        there.reflect(connection)

        def put(table, **values):
            connection.execute(sql.insert(there.tables[table]).values(at=1, **values))

        put("person", id="anna", name="anna", pseudonym="l-1", languages="[]")
        put("project", id="p", name="p", kind="tag", settings="{}")
        put("form", id="f", project_id="p", version=1, questions="[]", guideline="")
        connection.execute(sql.insert(there.tables["text"]).values(id="t", body="[]"))
        for position, (name, priority) in enumerate((("low", 1), ("high", 9), ("none", 0))):
            put("task", id=name, project_id="p", position=position, kind="tag", form_id="f", prompt_id="t",
                priority=priority, language="de", meta="{}")  # fmt: skip
            values = {"id": name, "task_id": name, "project_id": "p", "position": position}
            values[column] = priority if column == "priority" else -priority
            connection.execute(sql.insert(there.tables["slot"]).values(**values))
    store.close()
    again = engine.open(tmp_path)
    held = slots.claim(again, "anna", ["p"], 3, 60_000)
    assert [each.task for each in held] == ["high", "low", "none"]
    with again.read() as connection:
        assert compare_metadata(MigrationContext.configure(connection), schema.metadata) == []
        assert set(connection.execute(sql.select(schema.slot.c.language)).scalars()) == {"de"}
