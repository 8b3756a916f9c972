"""A store to a file and back, while others go on using it; and whether its file is whole.

The copy is made by SQLite's online backup: one consistent state, however many write meanwhile. A backup holds people's
words, so it is written for its owner alone. Profiles and the vault stay encrypted in it: `ROOT/secret.key` opens them
and is kept apart.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tutelage.core.artifact import Root, disk_errors, sync_directory
from tutelage.core.errors import Busy, DataError, NotFound, UsageError
from tutelage.store import schema
from tutelage.store.engine import HEAD

TODO_POSTGRES = "A PostgreSQL store is backed up with pg_dump"


def backup(root: Root, target: Path) -> int:
    """Copy the store of a root into a new file, and check the copy. Returns its size in bytes.

    Raises NotFound without a store or for a folder that is not there, UsageError when the target exists, NoSpace.
    """
    if not root.store_path.is_file():
        raise NotFound("there is no store to back up", file=root.store_path, todo=TODO_POSTGRES)
    if target.exists():
        raise UsageError("it exists already and is left as it is", file=target, todo="Name a new file")
    if not target.parent.is_dir():
        raise NotFound("no such folder", file=target.parent, todo="Make it first, or name another place")
    aside = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with disk_errors(target):
            os.close(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
            _copy(root.store_path, aside)
            with _open(aside, write=True) as copied:  # one file by itself: its reader needs no log beside it
                copied.execute("PRAGMA journal_mode=DELETE")
            if faults := check(aside):
                raise DataError(f"the store is damaged: {faults[0]}", file=root.store_path)
            with aside.open("rb") as file:
                os.fsync(file.fileno())
            os.rename(aside, target)
            sync_directory(target.parent)
    finally:
        aside.unlink(missing_ok=True)
    return target.stat().st_size


def restore(root: Root, source: Path, replace: bool = False) -> Path | None:
    """Put a backup in the place of a root's store. What was there is kept beside it; returns where, or None.

    Raises NotFound, DataError for a file that is no whole store of this or an earlier schema, UsageError when a store
    is there and `replace` was not said, Busy while another process writes.
    """
    if not source.is_file():
        raise NotFound("no such file", file=source)
    if faults := check(source):
        raise DataError(f"this is no whole store: {faults[0]}", file=source)
    kept = None
    if root.store_path.is_file():
        if not replace:
            todo = "Say --replace: the store that is there is kept beside it"
            raise UsageError("a store is here already", file=root.store_path, todo=todo)
        kept = root.store_path.with_name(f"store.db.before-{time.strftime('%Y%m%dT%H%M%S')}")
        backup(root, kept)
    root.create()
    with disk_errors(root.store_path):
        _copy(source, root.store_path)
    return kept


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
