"""A store to a file and back, while others go on using it; and whether it is whole.

A backup is one SQLite file, whatever the store lies in: of SQLite by its online backup, of PostgreSQL row by row, one
consistent state each, however many write meanwhile. So a store also moves from one to the other. A backup holds
people's words and is written for its owner alone. Profiles and the vault stay encrypted in it: `ROOT/secret.key` opens
them and is kept apart.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy as sql
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from tutelage.core.artifact import Root, disk_errors, sync_directory
from tutelage.core.errors import Busy, DataError, NotFound, TutelageError, UsageError
from tutelage.store import connect, engine, schema
from tutelage.store.engine import HEAD, Store

ROWS = 2000
"""How many rows are copied at a time."""


def backup(root: Root, target: Path) -> int:
    """Copy the store of a root into a new file, and check the copy. Returns its size in bytes.

    Raises NotFound without a store or for a folder that is not there, UsageError when the target exists, NoSpace.
    """
    if not engine.exists(root):
        raise NotFound("there is no store to back up", file=root.store_path)
    if target.exists():
        raise UsageError("it exists already and is left as it is", file=target, todo="Name a new file")
    if not target.parent.is_dir():
        raise NotFound("no such folder", file=target.parent, todo="Make it first, or name another place")
    aside = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with disk_errors(target):
            os.close(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
            if root.database:
                with engine.open(root, writable=False) as store, _copied(root, aside) as copy, copy.write() as new:
                    _pour(store, new)
            else:
                _copy(root.store_path, aside)
            with _open(aside, write=True) as copied:  # one file by itself: its reader needs no log beside it
                copied.execute("PRAGMA journal_mode=DELETE")
            if faults := check(aside):
                raise DataError(f"the store is damaged: {faults[0]}", file=engine.location(root))
            with aside.open("rb") as file:
                os.fsync(file.fileno())
            os.rename(aside, target)
            sync_directory(target.parent)
    finally:
        aside.unlink(missing_ok=True)
    return target.stat().st_size


def restore(root: Root, source: Path, replace: bool = False) -> Path | None:
    """Put a backup in the place of a root's store. What was there is kept as a file in the root; returns it, or None.

    Raises NotFound, DataError for a file that is no whole store of this or an earlier schema, UsageError when a store
    is there and `replace` was not said, Busy while another process writes.
    """
    if not source.is_file():
        raise NotFound("no such file", file=source)
    if faults := check(source):
        raise DataError(f"this is no whole store: {faults[0]}", file=source)
    root.create()
    if root.database:
        return _restore_postgres(root, source, replace)
    kept = None
    if root.store_path.is_file():
        if not replace:
            raise _here(root)
        kept = _aside(root)
        backup(root, kept)
    with disk_errors(root.store_path):
        _copy(source, root.store_path)
    return kept


def _here(root: Root) -> UsageError:
    todo = "Say --replace: the store that is there is kept beside it"
    return UsageError("a store is here already", file=engine.location(root), todo=todo)


def _aside(root: Root) -> Path:
    return root.store_path.with_name(f"store.db.before-{time.strftime('%Y%m%dT%H%M%S')}")


def _restore_postgres(root: Root, source: Path, replace: bool) -> Path | None:
    """The rows of a backup into a PostgreSQL database, in one transaction: all of them, or what was there stays."""
    kept, aside = None, root.path / f".restore.{os.getpid()}.db"
    try:
        os.close(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        with disk_errors(aside):
            _copy(source, aside)  # a backup of an earlier schema is brought up, and itself stays as it is
        with _copied(root, aside) as old, engine.open(root) as store, store.write() as new:  # nobody else writes now
            new.exec_driver_sql("SET LOCAL idle_in_transaction_session_timeout = 0")
            if any(new.execute(sql.select(sql.exists().select_from(each))).scalar() for each in _tables()):
                if not replace:
                    raise _here(root)
                kept = _aside(root)
                backup(root, kept)
                _empty(new)
            _pour(old, new)
    finally:
        for end in ("", "-wal", "-shm"):
            aside.with_name(aside.name + end).unlink(missing_ok=True)
    return kept


def _tables() -> list[sql.Table]:
    """The tables that people and services fill, those first that others refer to."""
    return [table for table in schema.metadata.sorted_tables if table is not schema.counter]


def _copied(root: Root, file: Path) -> Store:
    """The store in a file that is not the root's."""
    return engine.open(root, url=sql.URL.create("sqlite", database=str(file)).render_as_string())


def _empty(connection: sql.Connection) -> None:
    """Take all rows out of a PostgreSQL database; its triggers stand aside for as long as this transaction lasts."""
    for table in _tables():
        connection.exec_driver_sql(f'ALTER TABLE "{table.name}" DISABLE TRIGGER USER')
    names = ", ".join(f'"{table.name}"' for table in _tables())
    connection.exec_driver_sql(f"TRUNCATE {names}")
    for table in _tables():
        connection.exec_driver_sql(f'ALTER TABLE "{table.name}" ENABLE TRIGGER USER')


def _pour(source: Store, new: sql.Connection) -> None:
    """Copy every row of a store into a database that has the tables and no rows."""
    new.execute(sql.delete(schema.counter))  # making the tables writes its rows
    with source.read() as old:
        for table in (schema.counter, *_tables()):
            with connect.clear_errors(f"table {table.name}"):
                rows = old.execute(sql.select(table).execution_options(yield_per=ROWS)).mappings()
                for part in rows.partitions():
                    new.execute(sql.insert(table), [dict(row) for row in part])


def check_root(root: Root) -> list[str]:
    """What is wrong with a root's store; empty when nothing is. Reads only."""
    if not root.database:
        return check(root.store_path)
    faults: list[str] = []
    try:
        with engine.open(root, writable=False) as store, store.read() as connection:
            changes = compare_metadata(MigrationContext.configure(connection), schema.metadata)
            if changes:
                return [f"its tables are not those of schema {HEAD}: {len(changes)} differ"]
            awake = connection.exec_driver_sql(
                "SELECT tgname FROM pg_trigger "
                "WHERE NOT tgisinternal AND tgenabled IN ('O', 'A') AND pg_table_is_visible(tgrelid)"
            )
            names = set(awake.scalars())
            wanted = {name: {f"{name}_append_only", f"{name}_no_truncate"} for name in schema.APPEND_ONLY}
            wanted["text"] = {"text_erase_only", "text_keep", "text_no_truncate"}
            faults += [f"{name} has lost its append-only triggers" for name in wanted if not wanted[name] <= names]
            for table in schema.metadata.sorted_tables:  # every row is read, with what is stored beside it
                connection.exec_driver_sql(f'SELECT count("{table.name}"::text) FROM "{table.name}"')
                for key in table.foreign_keys:
                    parent = key.column.table.alias("parent")
                    lost = ~sql.exists().where(parent.c[key.column.name] == key.parent)
                    found = sql.select(sql.func.count()).select_from(table).where(key.parent.is_not(None), lost)
                    if many := connection.execute(found).scalar():
                        faults.append(f"{many} rows of {table.name} name a {key.column.table.name} that is not there")
    except Busy:
        raise
    except TutelageError as error:
        faults.append(error.message)
    return faults


def check(file: Path) -> list[str]:
    """What is wrong with a store's file; empty when nothing is. Reads only."""
    if not file.is_file():
        return ["the file is missing"]
    faults: list[str] = []
    try:
        with _open(file, write=False) as connection:
            faults += [str(row[0]) for row in connection.execute("PRAGMA integrity_check(20)") if row[0] != "ok"]
            for table, row, parent, _ in connection.execute("PRAGMA foreign_key_check"):
                faults.append(f"row {row} of {table} names a {parent} that is not there")
            names = {str(row[0]) for row in connection.execute("SELECT name FROM sqlite_master")}
            if "alembic_version" not in names:
                return [*faults, "it holds no tables of tutelage"]
            version = connection.execute("SELECT version_num FROM alembic_version").fetchone()
            if version is None or str(version[0]) > HEAD:
                faults.append(f"its schema is {version and version[0]}, this code knows up to {HEAD}")
            guarded = {
                str(row[0]) for row in connection.execute("SELECT tbl_name FROM sqlite_master WHERE type='trigger'")
            }
            tables = [name for name in schema.APPEND_ONLY if name in names]
            faults += [f"{name} has lost its append-only triggers" for name in tables if name not in guarded]
    except sqlite3.DatabaseError as error:
        faults.append(f"{error}")
    return faults


@contextmanager
def _open(file: Path, write: bool) -> Iterator[sqlite3.Connection]:
    mode = "rwc" if write else "ro"
    connection = sqlite3.connect(f"{file.absolute().as_uri()}?mode={mode}", uri=True, timeout=15)
    try:
        yield connection
    finally:
        connection.close()


def _copy(source: Path, target: Path) -> None:
    try:
        with _open(source, write=False) as old, _open(target, write=True) as new:
            old.backup(new, pages=4096, sleep=0.01)
    except sqlite3.OperationalError as error:
        if "locked" in str(error) or "busy" in str(error):
            raise Busy("the store is held by another process", file=target, todo="Try again in a moment") from None
        raise DataError(f"it cannot be copied: {error}", file=source) from None
    except sqlite3.DatabaseError as error:
        raise DataError(f"it cannot be copied: {error}", file=source) from None
