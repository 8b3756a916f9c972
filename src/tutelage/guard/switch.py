"""Which trained guards decide: somebody who answers for them switches them on, until then they only watch.

`ROOT/switches.jsonl` is a line for each time, the last one of a bundle holds. A service that runs follows it.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from pydantic import ValidationError

from tutelage.core.artifact import Root
from tutelage.core.errors import DataError
from tutelage.core.records import Record, explain


class Switched(Record):
    """One line of `switches.jsonl`."""

    bundle: str
    on: bool
    by: str = ""
    reason: str = ""
    at: int
    """Milliseconds since 1970."""


def switches(root: Root) -> list[Switched]:
    """All of them, in order. Raises DataError for a line that does not read."""
    path = _path(root)
    if not path.is_file():
        return []
    found = []
    for row, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            found.append(Switched.model_validate_json(line))
        except ValidationError as error:
            key, message = explain(error)
            raise DataError(message, file=path, row=row, key=key) from None
    return found


def is_on(root: Root, bundle: str) -> bool:
    """Whether the guards of a bundle decide."""
    return next((each.on for each in reversed(switches(root)) if each.bundle == bundle), False)


def switch(root: Root, made: Switched) -> None:
    """Put a line behind the others, to the disk."""
    line = json.dumps(made.model_dump(mode="json"), ensure_ascii=False) + "\n"
    with _path(root).open("a", encoding="utf-8") as file:
        file.write(line)
        file.flush()
        os.fsync(file.fileno())


def _path(root: Root) -> Path:
    return root.path / "switches.jsonl"
