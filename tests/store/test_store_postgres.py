"""PostgreSQL: how it is named, what goes wrong with it, and that it goes away and comes back."""

from __future__ import annotations

import signal
import sys

import pytest
import sqlalchemy as sql

from tests.postgres import Server, demand
from tutelage.core.artifact import Root
from tutelage.core.errors import Busy, ConfigError, DataError, MissingExtra, NoSpace, TutelageError, UsageError
from tutelage.store import connect, engine, ledger, schema, texts, traces


def named(tmp_path, line: str, **environment: str) -> Root:
    (tmp_path / "service.yaml").write_text(line)
    return Root(tmp_path, environment)


def test_service_yaml_names_the_database(tmp_path, postgres):
    assert (
        Root(tmp_path).database == named(tmp_path, "port: 1\n").database == named(tmp_path, "database: ''\n").database
    )
    assert not engine.exists(Root(tmp_path))
    (tmp_path / "address").write_text(postgres + "\n")
    roots = [
        named(tmp_path, f"database: {postgres}\n"),
        named(tmp_path, "database: env:TEAM\n", TEAM=postgres),
        named(tmp_path, "database: file:address\n"),
    ]
    for root in roots:
        with engine.open(root) as store:
            ledger.record(store, "a", "did")
    assert len(list(ledger.rows(store))) == len(roots) and not (tmp_path / "store.db").exists()
    assert engine.exists(root)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("postgresql://team:hunter2@db/x", "password"),
        ("postgresql://team@db/x?password=hunter2", "password"),
        ("'postgresql://team:hunter2@[db/x'", "IPv6"),
        ("mysql://team@db/x", "env:NAME"),
        ("3", "expected a text"),
        ("env:NOWHERE", "NOWHERE"),
        ("file:none", "missing"),
        ("env:BARE", "no address"),
        ("env:NAMELESS", "no address"),
        ("env:TWICE", "two @"),
        ("env:PORT", "no address"),
    ],
)
def test_a_wrong_address_is_one_clear_error_without_the_password(tmp_path, line, says):
    given = {
        "BARE": "hunter2",
        "NAMELESS": "postgresql://team:hunter2@db",
        "TWICE": "postgresql://team:x@hunter2@db/x",
        "PORT": "postgresql://team:hunter2@db:hunter2/x",
    }
    with pytest.raises(ConfigError) as caught:
        engine.open(named(tmp_path, f"database: {line}\n", **given))
    assert says in str(caught.value) and "database" in str(caught.value) and "hunter2" not in str(caught.value)


def test_without_psycopg_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(MissingExtra, match=r"\[postgres\]"):
        engine.open(tmp_path, url="postgresql://team@db/x")


def test_a_database_that_cannot_be_reached_never_shows_the_password(tmp_path, postgres, postgres_server):
    socket = f"host={postgres_server.folder}"
    for url in (
        "postgresql://team:hunter2@127.0.0.1:1/x",
        f"postgresql://nobody_here:hunter2@/x?{socket}",
        f"postgresql://postgres:hunter2@/not_made?{socket}",
    ):
        with pytest.raises(Busy, match="does not answer") as caught:
            engine.open(tmp_path, url=url)
        assert "hunter2" not in str(caught.value) + str(caught.value.as_dict())
    store = engine.open(tmp_path, url=postgres.replace("postgres@", "postgres:hunter2@"))
    assert "hunter2" not in repr(store)
    with pytest.raises(TutelageError) as caught, store.read() as connection:
        connection.exec_driver_sql("SELECT nothing")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("state", "kind"),
    [
        ("53100", NoSpace),
        ("40001", Busy),
        ("40P01", Busy),
        ("55P03", Busy),
        ("57014", Busy),
        ("25006", Busy),
        ("22001", DataError),
        ("23505", DataError),
        ("42501", TutelageError),
        ("XX001", TutelageError),
    ],
)
def test_what_postgres_says_is_one_clear_error(tmp_path, postgres, state, kind):
    with engine.open(tmp_path, url=postgres) as store:
        with pytest.raises(TutelageError) as caught, store.write() as connection:
            connection.exec_driver_sql(f"DO $$ BEGIN RAISE EXCEPTION 'oh dear' USING ERRCODE = '{state}'; END $$")
        assert type(caught.value) is kind and "postgresql://postgres@" in str(caught.value)
        assert kind in (TutelageError, DataError) or caught.value.todo
        ledger.record(store, "a", "did")  # and the store goes on


def test_a_writer_that_waits_too_long_is_told_to_try_again(tmp_path, postgres, monkeypatch):
    monkeypatch.setattr(connect, "WAIT_MS", 50)
    with engine.open(tmp_path, url=postgres) as store:
        with store.write() as first:
            ledger.append(first, "a", "did")
            for durable in (True, False):
                with pytest.raises(Busy, match="held by another"), store.write(durable=durable):
                    pass
        with store.write(durable=False), store.write(durable=False):  # working state and traffic go side by side
            pass
        with store.write(durable=False), pytest.raises(Busy), store.write():
            pass
        assert len(list(ledger.rows(store))) == 1


def test_a_writer_that_fell_silent_loses_the_lock(tmp_path, postgres, monkeypatch):
    monkeypatch.setattr(connect, "STUCK_MS", 50)
    with engine.open(tmp_path, url=postgres) as store:
        with pytest.raises(Busy, match="does not answer"), store.write() as silent:
            ledger.append(silent, "a", "lost")
            ledger.record(store, "b", "kept")
            ledger.append(silent, "a", "lost")
        assert [row.action for row in ledger.rows(store)] == ["kept"]


def test_a_text_that_is_too_long_or_holds_a_nul(tmp_path, postgres):
    with engine.open(tmp_path, url=postgres) as store:
        with pytest.raises(DataError, match="too long"):
            ledger.record(store, "a" * 500, "did")
        with store.write() as connection:
            texts.put(connection, [("t", "a\x00b", "")])
            said = {"a\x00": "\\u0000 \x00", "nested": ["\\\x00"]}
            connection.execute(sql.insert(schema.sample_policy).values(id="p", version=1, spec=said, at=1))
        with store.read() as connection:
            assert texts.bodies(connection, ["t"]) == {"t": "a\ufffdb"}
            kept = connection.execute(sql.select(schema.sample_policy.c.spec)).scalar_one()
        assert kept == {"a\ufffd": "\\u0000 \ufffd", "nested": ["\\\ufffd"]}


def test_a_database_that_cannot_hold_a_store_is_refused(tmp_path, postgres_server):
    import psycopg

    with psycopg.connect(postgres_server._conninfo(), autocommit=True) as connection:
        connection.execute("CREATE DATABASE latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0")
        connection.execute("CREATE ROLE guest LOGIN")
    with pytest.raises(UsageError, match="LATIN1"):
        engine.open(tmp_path, url=postgres_server.url("latin"))
    with pytest.raises(TutelageError, match="OWNER TO"):
        engine.open(tmp_path, url=postgres_server.create().replace("postgres@", "guest@"))


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGQUIT])
def test_a_server_that_goes_away_loses_nothing_and_is_used_again(tmp_path, how):
    demand()
    server = Server()
    try:
        with engine.open(tmp_path, url=server.create()) as store:
            ledger.record(store, "a", "before")
            with pytest.raises(Busy, match="does not answer"), store.write() as connection:
                ledger.append(connection, "a", "lost")
                server.stop(how)
            writer = traces.Writer(store, interval=0.01)
            writer.put(traces.Trace(id="t"))  # waits until the server is back
            for _ in range(2):
                with pytest.raises(Busy, match="`database` in"):
                    ledger.record(store, "a", "refused")
            server.start()
            ledger.record(store, "a", "after")
            assert [row.action for row in ledger.rows(store)] == ["before", "after"]
            assert writer.flush() and writer.healthy
            writer.close()
            with store.read() as connection:
                assert connection.execute(sql.select(schema.request.c.id)).scalars().all() == ["t"]
    finally:
        server.close()
