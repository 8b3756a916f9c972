"""How the store speaks to its database, SQLite or PostgreSQL: addresses, connections, and errors in one sentence.

Both keep the same promises. A reader sees one state throughout (a SQLite read transaction; REPEATABLE READ). Who writes
people's words is alone while writing, so that what was read still holds when it commits, and numbers are given in the
order of commits: SQLite has one writer at a time, PostgreSQL's writers queue for an advisory lock. Writers of working
state and traffic share that lock, and stand beside each other on PostgreSQL.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sql
from sqlalchemy import event
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from tutelage.core.errors import Busy, ConfigError, DataError, MissingExtra, NoSpace, TutelageError

WAIT_MS = 15_000
"""How long a writer waits for another before it gives up with Busy."""

STUCK_MS = 120_000
"""PostgreSQL takes the locks away from a writer that has said nothing for so long in the middle of a transaction."""

LOCK = 0x7475746C65  # "tutle"
"""The advisory lock of all writers of a PostgreSQL database: shared, or alone for people's words."""


def address(given: str, file: Path) -> sql.URL:
    """The address of a database; "" is SQLite in `file`. Raises ConfigError, never with a password in it."""
    if not given:
        return sql.URL.create("sqlite+pysqlite", database=str(file))
    try:
        url = sql.make_url(given)
    except (ArgumentError, ValueError):
        url = sql.URL.create("unknown")
    if url.get_backend_name() == "sqlite":
        return url
    if url.get_backend_name() != "postgresql" or not url.database:
        todo = "It reads postgresql://USER@HOST:PORT/DATABASE; in a password, @ / # are written %40 %2F %23"
        raise ConfigError("this is no address of a PostgreSQL database", key="database", todo=todo)
    if "@" in (url.host or ""):
        raise ConfigError("the address has two @", key="database", todo="Write an @ in a password as %40")
    return url.set(drivername="postgresql+psycopg")


def shown(url: sql.URL) -> str:
    """An address as it may be shown: the password is hidden."""
    return url.set(drivername=url.get_backend_name(), query={}).render_as_string(hide_password=True)


def sqlite(url: sql.URL, *, begin: str, durable: bool) -> sql.Engine:
    """Connections to a SQLite file, whose transactions begin with `begin`."""
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
            "secure_delete=ON",  # what is erased is overwritten in the file, not only forgotten
        ):
            cursor.execute(f"PRAGMA {line}")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _begin(connection: sql.Connection) -> None:
        connection.exec_driver_sql(begin)

    return engine


def postgres(url: sql.URL) -> sql.Engine:
    """Connections to PostgreSQL. One that broke is found before it is used, so a server that comes back is used again.

    Raises MissingExtra without psycopg.
    """
    try:
        import psycopg  # noqa: F401
        from psycopg.types.string import StrDumper
    except ImportError:
        raise MissingExtra("psycopg", "postgres") from None

    class Text(StrDumper):
        """PostgreSQL's texts cannot hold a NUL; a model may write one."""

        def dump(self, obj: str) -> Any:
            return super().dump(obj.replace("\x00", "\ufffd") if "\x00" in obj else obj)

    given = {"connect_timeout": "5", "keepalives_idle": "15", "keepalives_interval": "5", "keepalives_count": "3"}
    given |= {"tcp_user_timeout": "20000", "application_name": "tutelage"}
    engine = sql.create_engine(
        url,
        connect_args={key: value for key, value in given.items() if key not in url.query},
        json_serializer=_json,
        pool_pre_ping=True,
        pool_size=8,
        max_overflow=32,
    )

    @event.listens_for(engine, "connect")
    def _prepare(connection: Any, _: Any) -> None:
        connection.adapters.register_dumper(str, Text)

    return engine


def _json(value: Any) -> str:
    """JSON without the escape of NUL, which jsonb refuses."""
    return re.sub(r"(?<!\\)((?:\\\\)*)\\u0000", r"\1\\ufffd", json.dumps(value))


def enter(connection: sql.Connection, durable: bool) -> None:
    """Begin to write in PostgreSQL: wait for the lock, and say what holds for this transaction alone."""
    settings = {
        "lock_timeout": f"{WAIT_MS}ms",
        "idle_in_transaction_session_timeout": f"{STUCK_MS}ms",
        "synchronous_commit": "on" if durable else "off",
    }
    parts = [f"set_config('{name}', '{value}', true)" for name, value in settings.items()]
    lock = "pg_advisory_xact_lock" if durable else "pg_advisory_xact_lock_shared"
    connection.exec_driver_sql(f"SELECT {', '.join(parts)}, {lock}({LOCK})")


@contextmanager
def clear_errors(where: str | Path) -> Iterator[None]:
    """Database errors as one clear sentence. What may pass by itself is Busy: it is worth trying again."""
    try:
        yield
    except PoolTimeout as error:
        raise Busy("all connections to the store are in use", file=where, todo="Try again in a moment") from error
    except UnicodeEncodeError as error:
        raise DataError("the text holds half a surrogate pair, which is no text", file=where) from error
    except DBAPIError as error:
        text = (str(error.orig).strip().splitlines() or [""])[0] if error.orig else str(error)
        if error.orig is not None and hasattr(error.orig, "sqlstate"):
            raise _of_postgres(error, error.orig.sqlstate or "", text, where) from error
        raise _of_sqlite(error, text, where) from error


AGAIN = "Free some space and run the same command again: what is finished is kept"


def _of_sqlite(error: DBAPIError, text: str, where: str | Path) -> TutelageError:
    if "locked" in text or "busy" in text:
        return Busy("the store is held by another process", file=where, todo="Try again in a moment")
    if "full" in text:
        return NoSpace("the disk is full", file=where, todo=AGAIN)
    if "malformed" in text or "not a database" in text:
        return TutelageError("the store is damaged", file=where, todo="Restore it from a backup")
    if isinstance(error, IntegrityError):
        return DataError(f"the store refuses this: {text}", file=where)
    return TutelageError(f"the store failed: {text}", file=where)


def _of_postgres(error: DBAPIError, state: str, text: str, where: str | Path) -> TutelageError:
    """An error by its SQLSTATE (PostgreSQL manual, appendix A); while connecting there is none."""
    kind = state[:2]
    if state == "53100":
        return NoSpace("the database's disk is full", file=where, todo=AGAIN)
    if state in ("55P03", "40001", "40P01"):
        return Busy("the store is held by another process", file=where, todo="Try again in a moment")
    if state == "25006":
        return Busy("the database takes no writes, as a standby does", file=where, todo="Name the server that leads")
    if not state or kind in ("08", "53", "57") or state == "25P03" or error.connection_invalidated:
        if not state and not error.connection_invalidated and not isinstance(error, sql.exc.OperationalError):
            return TutelageError(f"the store failed: {text}", file=where)
        text = re.sub(r"^connection (is bad|failed): ", "", text)
        todo = "See whether the server runs and `database` in service.yaml names it; then the same works again"
        return Busy(f"the database does not answer ({text})", file=where, todo=todo)
    if kind in ("22", "23", "P0"):
        return DataError(f"the store refuses this: {text}", file=where)
    if state == "42501":
        todo = "Let its user own the database: ALTER DATABASE name OWNER TO user"
        return TutelageError(f"the database does not allow this: {text}", file=where, todo=todo)
    if kind == "XX":
        return TutelageError(f"the store is damaged: {text}", file=where, todo="Restore it from a backup")
    return TutelageError(f"the store failed: {text}", file=where)
