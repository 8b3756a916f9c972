"""Opening, migrating, append-only triggers, erasure, watermarks, damage."""

from __future__ import annotations

import itertools
import multiprocessing
import sqlite3
import stat
import threading

import pytest
import sqlalchemy as sql
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from tutelage.core.artifact import Root
from tutelage.core.errors import DataError, TutelageError, UsageError
from tutelage.store import answers, engine, erasure, keys, ledger, schema, slots, texts


def test_migrations_give_exactly_the_tables_of_the_schema(home):
    store = engine.open(home)
    with store.read() as connection:
        found = compare_metadata(MigrationContext.configure(connection), schema.metadata)
    assert found == []


def test_opening_makes_a_secret_only_the_owner_can_read(home):
    engine.open(home)
    assert stat.S_IMODE((home / "secret.key").stat().st_mode) == 0o600


def test_words_are_on_disk_when_they_are_acknowledged(home, database):
    store = engine.open(home)
    shows = ("SHOW synchronous_commit", "on", "off") if database else ("PRAGMA synchronous", 2, 1)
    with store.write() as connection:
        assert connection.exec_driver_sql(shows[0]).scalar() == shows[1]
        assert database or connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
    with store.write(durable=False) as connection:
        assert connection.exec_driver_sql(shows[0]).scalar() == shows[2]


@pytest.mark.parametrize("act", ["UPDATE", "DELETE", "all at once"])
def test_append_only_tables_refuse_changes(home, database, act):
    store = engine.open(home)
    ledger.record(store, "a", "did")
    line = {
        "UPDATE": "UPDATE audit SET actor = 'b'",
        "DELETE": "DELETE FROM audit",
        "all at once": "TRUNCATE audit"
        if database
        else "REPLACE INTO audit SELECT seq, previous, hash, 'b', action, object, body, at FROM audit",
    }[act]
    with pytest.raises(TutelageError, match="append-only"), store.write() as connection:
        connection.exec_driver_sql(line)
    assert [row.actor for row in ledger.rows(store)] == ["a"]


def test_every_append_only_table_has_its_triggers(home, database):
    store = engine.open(home)
    query = "SELECT tgname FROM pg_trigger" if database else "SELECT name FROM sqlite_master WHERE type = 'trigger'"
    with store.read() as connection:
        names = set(connection.exec_driver_sql(query).scalars())
    ends = ("append_only", "no_truncate") if database else ("no_update", "no_delete")
    assert {f"{table}_{end}" for table in schema.APPEND_ONLY for end in ends} <= names


def test_text_can_be_erased_and_nothing_else(home):
    store = engine.open(home)
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


def test_ledger_is_chained_and_a_change_shows(home, database):
    store = engine.open(home)
    for number in range(5):
        ledger.record(store, "a", "did", f"o{number}", {"n": number})
    rows = list(ledger.rows(store))
    assert [row.seq for row in rows] == [1, 2, 3, 4, 5]
    assert all(row.hash == row.linked() for row in rows)
    assert all(after.previous == before.hash for before, after in itertools.pairwise(rows))
    with store._words.begin() as connection:
        connection.exec_driver_sql(
            "DROP TRIGGER audit_append_only ON audit" if database else "DROP TRIGGER audit_no_update"
        )
        connection.exec_driver_sql("UPDATE audit SET actor = 'b' WHERE seq = 3")
    assert [row.seq for row in ledger.rows(store) if row.hash != row.linked()] == [3]


def test_ledger_row_and_act_live_and_die_together(home):
    store = engine.open(home)
    with pytest.raises(ZeroDivisionError), store.write() as connection:
        ledger.append(connection, "a", "did")
        raise ZeroDivisionError
    assert list(ledger.rows(store)) == []


def _append(where: str, count: int) -> None:
    store = engine.open(where)
    for number in range(count):
        ledger.record(store, f"p{number}", "did")


def test_two_processes_open_a_fresh_root_and_share_one_chain(fresh):
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_append, args=(str(fresh), 25)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0]
    rows = list(ledger.rows(engine.open(fresh)))
    assert [row.seq for row in rows] == list(range(1, 51))
    assert all(row.hash == row.linked() for row in rows)


def test_threads_queue_for_the_one_writer(home):
    store = engine.open(home)
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


def test_a_store_of_a_newer_version_is_left_alone(home):
    store = engine.open(home)
    with store._words.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(UsageError, match="9999"):
        engine.open(home)


def test_read_only_store_refuses_to_write(home):
    engine.open(home)
    store = engine.open_store("store:", Root(home), writable=False)
    with pytest.raises(UsageError, match="reading only"), store.write():
        pass
    assert store.watermark(["nothing"]) == 0


def test_identifiers_sort_by_time_and_derived_ones_repeat():
    made = [keys.uuid7() for _ in range(5000)]
    assert made == sorted(made) and len(set(made)) == 5000
    assert {each[14] for each in made} == {"7"}
    assert keys.derived_id("a", 1) == keys.derived_id("a", 1) != keys.derived_id("a1")
    assert keys.derived_id("a", 1)[14] == "8"


def test_sealed_bytes_open_only_with_the_same_key_and_place(home):
    store = engine.open(home)
    sealed = store.keys.seal("vault", b"0170 123", "row1")
    assert b"0170" not in sealed and store.keys.unseal("vault", sealed, "row1") == b"0170 123"
    for purpose, where in (("profile", "row1"), ("vault", "row2")):
        with pytest.raises(TutelageError, match="does not open"):
            store.keys.unseal(purpose, sealed, where)


@pytest.mark.parametrize("column", ["priority", "turn"])
def test_the_order_of_tasks_is_brought_up(fresh, monkeypatch, column):
    """Schema 0002 with slots in it, as it was shipped and as it was for a while; the order of tasks must hold."""
    with monkeypatch.context() as earlier:
        earlier.setattr(engine, "HEAD", "0002")
        store = engine.open(fresh)
    with store.write() as connection:
        if column == "turn":
            connection.exec_driver_sql("ALTER TABLE slot RENAME COLUMN priority TO turn")
        there = sql.MetaData()
        there.reflect(connection)

        def put(table, **values):
            connection.execute(sql.insert(there.tables[table]).values(at=1, **values))

        put("person", id="anna", name="anna", pseudonym="l-1", languages=["de"])
        put("project", id="p", name="p", kind="tag", settings={})
        put("form", id="f", project_id="p", version=1, questions="[]", guideline="")
        connection.execute(sql.insert(there.tables["text"]).values(id="t", body="[]"))
        for position, (name, priority) in enumerate((("low", 1), ("high", 9), ("none", 0))):
            put("task", id=name, project_id="p", position=position, kind="tag", form_id="f", prompt_id="t",
                priority=priority, language="de", meta="{}")  # fmt: skip
            values = {"id": name, "task_id": name, "project_id": "p", "position": position}
            values[column] = priority if column == "priority" else -priority
            connection.execute(sql.insert(there.tables["slot"]).values(**values))
    store.close()
    again = engine.open(fresh)
    held = slots.claim(again, "anna", ["p"], 3, 60_000)
    assert [each.task for each in held] == ["high", "low", "none"]
    with again.read() as connection:
        assert compare_metadata(MigrationContext.configure(connection), schema.metadata) == []
        assert set(connection.execute(sql.select(schema.slot.c.language)).scalars()) == {"de"}


def _value(column, table, number, keys):
    """Something that a column can hold; a reference names the row of its table."""
    for key in column.foreign_keys:
        return keys[key.column.table.name][key.column.name]
    if isinstance(column.type, sql.JSON):
        return {"of": table}
    if isinstance(column.type, sql.Boolean):
        return True
    if isinstance(column.type, sql.LargeBinary):
        return b"\x01\x02"
    if isinstance(column.type, sql.Float):
        return 0.25
    return number if isinstance(column.type, sql.Integer) else f"{table}-{column.name}"[: column.type.length or 100]


REVISIONS = {"0001": 20, "0002": 35, "0003": 35, "0004": 38, "0005": 39, "0006": 37, "0007": 37}
"""Every earlier schema, and how many tables it has at least."""
DROPPED = {"consensus", "person_statistic"}
"""Tables that 0006 took away: what was computed of people's words is computed again."""


def _filled(home, monkeypatch, revision, **changed):
    """A store of an earlier schema with a row in every table, every column of it filled: table -> row. `changed` names
    columns, as `table_column`, that hold something else."""
    with monkeypatch.context() as earlier:
        earlier.setattr(engine, "HEAD", revision)
        store = engine.open(home)
    there, keys = sql.MetaData(), {}
    with store.write() as connection:
        there.reflect(connection)
        for number, table in enumerate(there.sorted_tables, 1):
            # nothing ever wrote to the outbox before it knew whom it was for
            if table.name not in ("alembic_version", "counter", *(("outbox",) if revision < "0004" else ())):
                row = {
                    column.name: changed.get(f"{table.name}_{column.name}", _value(column, table.name, number, keys))
                    for column in table.columns
                }
                keys[table.name] = row
                connection.execute(sql.insert(table).values(**row))
        connection.execute(sql.update(there.tables["counter"]).values(value=7))
    store.close()
    return keys


@pytest.mark.parametrize("revision", REVISIONS)
def test_every_earlier_schema_is_brought_up_with_its_data(fresh, monkeypatch, revision):
    """What was there is there after the upgrade as it was written."""
    keys = _filled(fresh, monkeypatch, revision)
    assert len(keys) >= REVISIONS[revision]
    with engine.open(fresh) as again, again.read() as connection:
        assert compare_metadata(MigrationContext.configure(connection), schema.metadata) == []
        for name, row in keys.items():
            if name in DROPPED:
                continue
            query = sql.select(schema.metadata.tables[name])
            if name == "text":
                query = query.where(schema.text.c.id == row["id"])
            found = dict(connection.execute(query).mappings().one())
            if name == "slot":  # 0003 turned the order round
                row = {**row, "turn": -row["priority"] if "priority" in row else row["turn"]}
                row.pop("priority", None)
            if name == "annotation" and "reason" in row:  # 0005 keeps its words among the texts
                row = dict(row)
                assert texts.bodies(connection, [found["reason_id"]]) == {found["reason_id"]: row.pop("reason")}
            assert {key: found[key] for key in row} == row, name
        assert set(connection.execute(sql.select(schema.counter.c.value)).scalars()) <= {0, 7}


@pytest.mark.parametrize("revision", [each for each in REVISIONS if each < "0005"])
@pytest.mark.parametrize("tree", [True, False])
def test_words_of_earlier_schemas_can_be_erased_and_nothing_else_can_be_changed(fresh, monkeypatch, revision, tree):
    """Flags are a person's own words where the form has no taxonomy to choose them from."""
    said = {"answer_question": "flag", "answer_candidate_no": 0, "answer_value": ["rude", 'my "own" \u00fc'],
            "answer_text_id": None, "answer_number": None, "annotation_reason": "I know who wrote this"}  # fmt: skip
    keys = _filled(fresh, monkeypatch, revision, **said | ({} if tree else {"form_taxonomy_id": None}))
    person = keys["annotation"]["person_id"]
    with engine.open(fresh) as store:
        (given,) = answers.read(store, own=True, status=None, newest=False)
        assert given.reason == "I know who wrote this"
        assert given.values == (answers.Value("flag", 0, value=["rude", 'my "own" \u00fc'], typed=not tree),)
        words = erasure.words_of(store, person=person)
        erasure.erase(store, words, person=person, by="lead")
        (left,) = answers.read(store, own=True, status=None, newest=False)
        assert left.reason == "" and left.values[0].value == (["rude", 'my "own" \u00fc'] if tree else [])
        for line in ("UPDATE annotation SET active_ms = 1", "UPDATE answer SET number = 1", "DELETE FROM answer"):
            with pytest.raises(TutelageError, match="append-only"), store.write() as connection:
                connection.exec_driver_sql(line)


def _bytes(home):
    """All that the files of a SQLite store hold."""
    return b"".join(file.read_bytes() for file in home.glob("store.db*"))


WORDS = [f"{name} {number:03}, said nobody else. " * length for number in range(60)
         for name, length in (("taken", 1), ("kept", 2), ("taken out", 200))]  # fmt: skip
"""Texts that share pages with others, and such as fill several."""


def _said(store):
    with store.write() as connection:
        texts.put(connection, [(f"t{at}", word, word.upper()) for at, word in enumerate(WORDS)])
    return [f"t{at}" for at, word in enumerate(WORDS) if word.startswith("taken")]


def test_no_byte_of_what_was_erased_is_left_in_the_files(tmp_path):
    with engine.open(tmp_path) as store:
        gone = _said(store)
        before = _bytes(tmp_path)
        assert all(word[:20].encode() in before for word in WORDS)
        with store.write() as connection:
            texts.erase(connection, gone)
        assert b"taken 007" in _bytes(tmp_path), "in the log: otherwise nothing is shown here"
        assert store.forget() == ""
        after = _bytes(tmp_path)
        assert b"taken" not in after and b"TAKEN" not in after and after.count(b"kept 007") == 2
        with store.read() as connection:
            assert len(texts.bodies(connection, [f"t{at}" for at in range(len(WORDS))])) == 60


def test_where_somebody_reads_meanwhile_it_is_said_what_remains(tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "PATIENCE_MS", 20)
    with engine.open(tmp_path) as store:
        gone = _said(store)
        with store.read() as connection:
            connection.execute(sql.select(schema.text)).first()
            with store.write() as writing:
                texts.erase(writing, gone)
            assert "those who are reading" in store.forget()
        assert store.forget() == "" and b"taken" not in _bytes(tmp_path)


def test_what_earlier_versions_only_forgot_is_gone_after_the_upgrade(tmp_path, monkeypatch):
    with monkeypatch.context() as earlier:
        earlier.setattr(engine, "HEAD", "0005")
        with engine.open(tmp_path) as store:
            gone = _said(store)
    with sqlite3.connect(tmp_path / "store.db") as raw:
        raw.execute("PRAGMA secure_delete=OFF")
        raw.executemany(
            "UPDATE text SET body = NULL, redacted = NULL, erased_at = 1 WHERE id = ?", [(id,) for id in gone]
        )
    raw.close()
    assert b"taken" in _bytes(tmp_path), "that version left it there"
    with engine.open(tmp_path):
        assert b"taken" not in _bytes(tmp_path) and b"kept 007" in _bytes(tmp_path)


def test_a_reader_sees_one_state_however_much_is_written(store):
    ledger.record(store, "a", "did")
    with store.read() as connection:
        count = sql.select(sql.func.count()).select_from(schema.audit)
        before = connection.execute(count).scalar()
        ledger.record(store, "a", "did")
        assert connection.execute(count).scalar() == before == 1
    assert len(list(ledger.rows(store))) == 2


def test_a_number_is_never_seen_before_a_smaller_one(store):
    """What a watermark rests on: rows become visible in the order of their numbers, however writers overlap."""
    over, holes = threading.Event(), []

    def write(name):
        while not over.is_set():
            with store.write() as connection:
                ledger.append(connection, name, "did")

    writers = [threading.Thread(target=write, args=(f"w{n}",)) for n in range(4)]
    for each in writers:
        each.start()
    seq, seen = schema.audit.c.seq, 0
    while seen < 60:
        with store.read() as connection:
            seen = connection.execute(sql.select(sql.func.max(seq))).scalar() or 0
        with store.read() as connection:
            if connection.execute(sql.select(sql.func.count()).where(seq <= seen)).scalar() != seen:
                holes.append(seen)
    over.set()
    for each in writers:
        each.join()
    assert holes == []


def test_what_a_column_cannot_hold_is_one_clear_error(store):
    with pytest.raises(DataError, match="surrogate"):
        ledger.record(store, "half \ud800", "did")
    with pytest.raises(DataError, match="refuses"), store.write() as connection:
        connection.execute(sql.insert(schema.draft).values(slot_id="none", person_id="none", body={}, updated_at=1))
    assert list(ledger.rows(store)) == []
