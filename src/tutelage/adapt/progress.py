"""What a long stage has finished, kept on disk as it goes: the same command goes on behind it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from tutelage.core.artifact import atomic_write
from tutelage.core.errors import DataError

T = TypeVar("T")


class Progress:
    """Steps by name, one JSON file each, under a stage's work folder: that lives until the stage is sealed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def once(self, name: str, kind: type[T], make: Callable[[], T]) -> T:
        """What `make` gave the first time. Raises DataError when what was kept is not of this kind.

        `make` itself may be cut short and called again: what it leaves outside must be the same the second time.
        """
        file, adapter = self.folder / f"{name}.json", TypeAdapter(kind)
        if not file.is_file():
            atomic_write(file, adapter.dump_json(make(), indent=1))
        try:  # read back the first time too: who was never stopped goes on with the very same
            return adapter.validate_json(file.read_bytes())
        except ValidationError as error:
            what = f"the progress kept here cannot be read: {error.error_count()} fields are not as expected"
            raise DataError(what, file=file, todo="Remove the file and run the same command again") from None
