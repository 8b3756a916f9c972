"""The database behind a root: transactions, migrations, watermarks.

An answer is acknowledged when it is on disk. SQLite has one writer at a time; inside a process a lock queues them
fairly, across processes SQLite's own lock does.
"""

from __future__ import annotations

import builtins
import fcntl
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Protocol

import sqlalchemy as sql
from sqlalchemy.dialects import postgresql, sqlite

from tutelage.core.artifact import Root
from tutelage.core.errors import UsageError
from tutelage.store import connect, schema
from tutelage.store.connect import clear_errors
from tutelage.store.keys import Keys, derived_id, now, uuid7

__all__ = ["HEAD", "Reader", "Snapshot", "Store", "derived_id", "now", "open", "open_store", "uuid7"]

HEAD = "0008"
"""The schema version this code reads and writes: the last file in migrations/versions."""

OVERWRITES = "0006"
"""From this version on, a SQLite file holds nothing that was erased."""

PATIENCE_MS = 2000
"""How long the emptying of SQLite's log waits for those who read."""


class Reader(Protocol):
    """What reading functions take: a store, or a snapshot of it."""

    @property
    def until(self) -> int | None:
        """The highest `seq` of an annotation that may be seen; None sees all."""

    @property
    def keys(self) -> Keys: ...

    def read(self) -> Any:
        """A context manager that gives a connection with one consistent view."""


class Store:
    """An open store. Cheap to open several times; safe to use from several threads."""

    until: int | None = None

    def __init__(self, url: sql.URL, keys: Keys, writable: bool = True) -> None:
        self.keys, self.writable = keys, writable
        self.dialect = url.get_backend_name()
        self.where: str | Path
        """What errors name: the file, or the address without its password."""
        if self.dialect == "sqlite":
            self.where = Path(url.database or "")
            self._reading = connect.sqlite(url, begin="BEGIN", durable=False)
            self._words = connect.sqlite(url, begin="BEGIN IMMEDIATE", durable=True)
            self._traces = connect.sqlite(url, begin="BEGIN IMMEDIATE", durable=False)
            self._writer = _writer_lock(str(url))
        else:
            self.where = connect.shown(url)
            self._words = self._traces = connect.postgres(url)
            self._reading = self._words.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)

    def __repr__(self) -> str:
        return f"Store({str(self.where)!r})"

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the connections back."""
        for engine in (self._reading, self._words, self._traces):
            engine.dispose()

    @contextmanager
    def read(self) -> Iterator[sql.Connection]:
        """A connection that sees one state of the store throughout."""
        with clear_errors(self.where), self._reading.connect() as connection:
            yield connection

    @contextmanager
    def write(self, durable: bool = True) -> Iterator[sql.Connection]:
        """A transaction: all of it or nothing. Not `durable`: the last moments may be lost with the machine."""
        if not self.writable:
            raise UsageError("this store was opened for reading only", file=self.where)
        engine = self._words if durable else self._traces
        with clear_errors(self.where):
            if self.dialect == "sqlite":
                with self._writer, engine.begin() as connection:
                    yield connection
            else:
                with engine.begin() as connection:
                    connect.enter(connection, durable)
                    yield connection

    def insert(self, table: sql.Table) -> Any:
        """An INSERT that can be told to pass over rows that are there already (`.on_conflict_do_nothing()`)."""
        return postgresql.insert(table) if self.dialect == "postgresql" else sqlite.insert(table)

    def watermark(self, scopes: Sequence[str]) -> int:
        """The number of the last annotation in these projects; 0 when nobody has answered."""
        with self.read() as connection:
            found = connection.execute(
                sql.select(sql.func.max(schema.annotation.c.seq))
                .join(schema.project, schema.project.c.id == schema.annotation.c.project_id)
                .where(schema.project.c.name.in_(list(scopes)))
            ).scalar()
        return int(found or 0)

    def forget(self) -> str:
        """Take what was just erased out of the database's files; says where it still stands, "" if nowhere.

        In SQLite's own file it is overwritten (`secure_delete`); its log, which still has the words, is emptied here.
        """
        if self.dialect != "sqlite":
            return "PostgreSQL's files hold it until they are vacuumed and its log and archives are recycled."
        with clear_errors(self.where), self._writer, closing(self._words.raw_connection()) as connection:
            line = connection.cursor()
            line.execute(f"PRAGMA busy_timeout={PATIENCE_MS}")
            (read, *_) = line.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            line.execute(f"PRAGMA busy_timeout={connect.WAIT_MS}")
        return "SQLite's log holds it until those who are reading now have ended and it is emptied." if read else ""

    def snapshot(self, watermark: int) -> Snapshot:
        """What people had said up to a watermark."""
        return Snapshot(self, watermark)


class Snapshot:
    """A read-only view of a store: annotations after the watermark do not exist."""

    def __init__(self, store: Store, watermark: int) -> None:
        self._store, self.until, self.keys = store, watermark, store.keys
        self.watermark = watermark

    def __repr__(self) -> str:
        return f"Snapshot({str(self._store.where)!r}, {self.watermark})"

    def read(self) -> Any:
        """A connection that sees one state of the store throughout."""
        return self._store.read()

    def close(self) -> None:
        """Nothing to give back: the store is closed by whoever opened it."""


def open(root: str | Path | Root, writable: bool = True, url: str = "") -> Store:
    """Open the store of a root; it is made, and brought to this code's schema, when it is opened.

    It lies where `database` in ROOT/service.yaml says, or in ROOT/store.db; `url` names another database. Raises
    ConfigError for an address that is none, MissingExtra for PostgreSQL without psycopg, Busy when the database does
    not answer, UsageError when it was written by a newer version.
    """
    place = root if isinstance(root, Root) else Root(root)
    place.path.mkdir(parents=True, exist_ok=True)
    store = Store(connect.address(url or place.database, place.store_path), Keys(place.secret), writable)
    try:
        if _version(store) != HEAD:
            with builtins.open(place.path / ".store.lock", "a") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                _migrate(store)
    except BaseException:
        store.close()
        raise
    return store


def exists(root: Root) -> bool:
    """Whether a root has a store: whoever only looks makes none."""
    return bool(root.database) or root.store_path.is_file()


def location(root: Root) -> str | Path:
    """Where a root's store lies, as it may be shown: a file, or an address without its password."""
    url = connect.address(root.database, root.store_path)
    return connect.shown(url) if root.database else root.store_path


def open_store(ref: str, root: Root | None = None, writable: bool = True, **options: Any) -> Store:
    """What the reference `store:` opens."""
    del ref, options
    return open(root or Root("life"), writable)


def next_numbers(connection: sql.Connection, name: str, count: int = 1) -> int:
    """The first of `count` fresh numbers, in the order of commits."""
    table = schema.counter
    return (
        int(
            connection.execute(
                sql.update(table)
                .where(table.c.name == name)
                .values(value=table.c.value + count)
                .returning(table.c.value)
            ).scalar_one()
        )
        - count
        + 1
    )


_locks: dict[str, threading.Lock] = {}
_locks_lock = threading.Lock()


def _writer_lock(url: str) -> threading.Lock:
    """One lock per database file and process: threads queue here instead of polling SQLite."""
    with _locks_lock:
        return _locks.setdefault(url, threading.Lock())


def _version(store: Store) -> str:
    """The schema version of the database, "" when it is empty."""
    with store.read() as connection:
        return _version_of(connection)


def _version_of(connection: sql.Connection) -> str:
    if not sql.inspect(connection).has_table("alembic_version"):
        return ""
    return str(connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar() or "")


def _migrate(store: Store) -> None:
    """Bring the schema up to HEAD, in one transaction, alone. Alembic is imported only here: an up-to-date store opens
    without it."""
    from alembic import command
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    if store.dialect == "sqlite" and "" < _version(store) < OVERWRITES:
        with clear_errors(store.where), closing(store._words.raw_connection()) as raw:
            raw.cursor().execute("VACUUM")  # takes along what was erased and only forgotten
    with clear_errors(store.where), store._words.begin() as connection:
        if store.dialect == "postgresql":
            connect.enter(connection, durable=True)
        version = _version_of(connection)  # another process may have been first
        if version and version not in known:
            todo = "Install the version of tutelage that wrote it, or a newer one"
            raise UsageError(
                f"the store has schema {version}, this code knows up to {HEAD}", file=store.where, todo=todo
            )
        if store.dialect == "postgresql" and not version:
            encoding = connection.exec_driver_sql("SHOW server_encoding").scalar()
            if encoding != "UTF8":
                todo = "Make it with CREATE DATABASE name ENCODING 'UTF8' TEMPLATE template0"
                raise UsageError(f"the database keeps texts as {encoding}, not UTF8", file=store.where, todo=todo)
        if version != HEAD:
            config.attributes["connection"] = connection
            command.upgrade(config, HEAD)
    if store.dialect == "sqlite" and version:
        store.forget()
