"""The files a run writes a row at a time, and rows as JSON."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class Log:
    """A JSON-lines file that can be cut back to where a checkpoint left it. Only the process that `writes` has one."""

    def __init__(self, path: Path, writes: bool = True) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab") if writes else None

    def write(self, row: Mapping[str, Any]) -> None:
        if self._file:
            self._file.write(json.dumps(row, allow_nan=False).encode() + b"\n")
            self._file.flush()

    def size(self) -> int:
        """Bytes written so far, by whichever process."""
        return self.path.stat().st_size if self.path.exists() else 0

    def cut(self, size: int) -> None:
        if self._file:
            self._file.truncate(size)
            self._file.seek(size)

    def sync(self) -> None:
        """Make durable what was written; may be called from another thread."""
        if self._file:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        if self._file:
            self._file.close()


def plain(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row as JSON: six significant digits, None for what is not a number."""
    found: dict[str, Any] = {}
    for name, value in row.items():
        if isinstance(value, float):
            found[name] = float(f"{value:.6g}") if math.isfinite(value) else None
        else:
            found[name] = value
    return found


def shown(row: Mapping[str, Any]) -> dict[str, Any]:
    """The few figures of a row that fit beside a progress bar."""
    return {name: row[name] for name in ("loss", "accuracy", "reward") if row.get(name) is not None}
