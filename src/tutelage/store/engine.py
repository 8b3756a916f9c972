"""The database behind a root: connections, transactions, migrations, watermarks.

Writers of people's words commit with synchronous=FULL: an answer is acknowledged when it is on disk. SQLite has one
writer at a time; inside a process a lock queues them fairly, across processes SQLite's own lock does.
"""

from __future__ import annotations

import builtins
import fcntl
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import sqlalchemy as sql
from sqlalchemy import event
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DatabaseError, IntegrityError, OperationalError

from tutelage.core.artifact import Root
from tutelage.core.errors import Busy, DataError, NoSpace, TutelageError, UsageError
from tutelage.store import schema
from tutelage.store.keys import Keys, derived_id, now, uuid7

__all__ = ["HEAD", "Reader", "Snapshot", "Store", "derived_id", "now", "open", "open_store", "uuid7"]

HEAD = "0004"
"""The schema version this code reads and writes: the last file in migrations/versions."""

WAIT_MS = 15_000
"""How long a writer waits for another process before it gives up with Busy."""


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

    def __init__(self, url: sql.URL, keys: Keys, where: Path, writable: bool = True) -> None:
        self.where, self.keys, self.writable = where, keys, writable
        self.dialect = url.get_backend_name()
        self._reading = _engine(url, begin="BEGIN", durable=False)
        self._words = _engine(url, begin="BEGIN IMMEDIATE", durable=True)
        self._traces = _engine(url, begin="BEGIN IMMEDIATE", durable=False)
        self._writer = _writer_lock(str(url)) if self.dialect == "sqlite" else None

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
        with _clear_errors(self.where), self._reading.connect() as connection:
            yield connection

    @contextmanager
    def write(self, durable: bool = True) -> Iterator[sql.Connection]:
        """A transaction: all of it or nothing. Not `durable`: the last moments may be lost with the machine."""
        if not self.writable:
            raise UsageError("this store was opened for reading only", file=self.where)
        engine = self._words if durable else self._traces
        with _clear_errors(self.where):
            if self._writer is None:
                with engine.begin() as connection:
                    yield connection
            else:
                with self._writer, engine.begin() as connection:
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

    `url` names another database than ROOT/store.db (`postgresql+psycopg://...`). Raises UsageError when the file was
    written by a newer version.
    """
    place = root if isinstance(root, Root) else Root(root)
    place.path.mkdir(parents=True, exist_ok=True)
    target = sql.make_url(url) if url else sql.URL.create("sqlite+pysqlite", database=str(place.store_path))
    if target.get_backend_name() == "postgresql":
        target = target.set(drivername="postgresql+psycopg")
    store = Store(target, Keys(place.secret), place.store_path, writable)
    version = _version(store)
    if version != HEAD:
        with builtins.open(place.path / ".store.lock", "a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if _version(store) != HEAD:
                _migrate(store)
    return store


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


def _engine(url: sql.URL, *, begin: str, durable: bool) -> sql.Engine:
    if url.get_backend_name() != "sqlite":
        engine = sql.create_engine(url, pool_pre_ping=True, pool_size=8)
        if not durable and begin != "BEGIN":

            @event.listens_for(engine, "connect")
            def _fast(connection: Any, _: Any) -> None:
                connection.cursor().execute("SET synchronous_commit = off")

        return engine
    engine = sql.create_engine(
        url,
        connect_args={"check_same_thread": False, "timeout": WAIT_MS / 1000, "isolation_level": None},
        pool_size=16,
        max_overflow=48,
    )

    @event.listens_for(engine, "connect")
    def _prepare(connection: Any, _: Any) -> None:
        cursor = connection.cursor()
        for line in (
            "journal_mode=WAL",
            f"synchronous={'FULL' if durable else 'NORMAL'}",
            f"busy_timeout={WAIT_MS}",
            "foreign_keys=ON",
            "recursive_triggers=ON",  # so that INSERT OR REPLACE cannot pass by the append-only triggers
            "cache_size=-16000",
            "temp_store=MEMORY",
        ):
            cursor.execute(f"PRAGMA {line}")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _begin(connection: sql.Connection) -> None:
        connection.exec_driver_sql(begin)

    return engine


_locks: dict[str, threading.Lock] = {}
_locks_lock = threading.Lock()


def _writer_lock(url: str) -> threading.Lock:
    """One lock per database file and process: threads queue here instead of polling SQLite."""
    with _locks_lock:
        return _locks.setdefault(url, threading.Lock())


@contextmanager
def _clear_errors(where: Path) -> Iterator[None]:
    """Database errors as one clear sentence."""
    try:
        yield
    except (OperationalError, DatabaseError) as error:
        text = str(error.orig).strip().splitlines()[0] if error.orig else str(error)
        if "locked" in text or "busy" in text:
            raise Busy("the store is held by another process", file=where, todo="Try again in a moment") from error
        if "full" in text:
            todo = "Free some space and run the same command again: what is finished is kept"
            raise NoSpace("the disk is full", file=where, todo=todo) from error
        if "malformed" in text or "not a database" in text:
            raise TutelageError("the store is damaged", file=where, todo="Restore it from a backup") from error
        if isinstance(error, IntegrityError):
            raise DataError(f"the store refuses this: {text}", file=where) from error
        raise TutelageError(f"the store failed: {text}", file=where) from error


def _version(store: Store) -> str:
    """The schema version of the database, "" when it is empty."""
    with store.read() as connection:
        if not sql.inspect(connection).has_table("alembic_version"):
            return ""
        return str(connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar() or "")


def _migrate(store: Store) -> None:
    """Bring the schema up to HEAD. Alembic is imported only here: an up-to-date store opens without it."""
    from alembic import command
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    version = _version(store)
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    if version and version not in known:
        todo = "Install the version of tutelage that wrote it, or a newer one"
        raise UsageError(f"the store has schema {version}, this code knows up to {HEAD}", file=store.where, todo=todo)
    with _clear_errors(store.where), store._words.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, HEAD)
