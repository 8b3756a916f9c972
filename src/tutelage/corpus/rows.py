"""A file as numbered raw rows: found in its folder, unpacked, read; a line is parsed only when it is wanted.

A file that is missing, of an unknown kind or damaged is an error that names it; a line that does not parse stands as
its error in its place, so that whoever reads decides how many of them are too many.
"""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from tutelage.core.errors import DataError, NotFound
from tutelage.corpus.forms import Row

ENDINGS = (".jsonl", ".txt", ".md", ".parquet")

Raw = bytes | Row
"""A line of JSON as it stands, or a row that came parsed."""
Rows = Callable[[], Iterator[tuple[int, Raw]]]
"""Numbered rows from the first one on, each time anew."""


def local_files(path: Path) -> list[Path]:
    """A file, or the data files of a folder. Raises NotFound for none, DataError for one of another kind."""
    if path.is_dir():
        found = sorted(each for each in path.rglob("*") if each.is_file() and _ending(each))
        if not found:
            raise DataError(f"the folder holds no data file ({', '.join(ENDINGS)})", file=path)
        return found
    if not path.is_file():
        todo = None if path.is_absolute() else f"It is looked for from {Path.cwd()}"
        raise NotFound("no such file", file=path, key="prepare.sources", todo=todo)
    if not _ending(path):
        raise DataError(f"expected one of {', '.join(ENDINGS)}, also packed as .gz or .zst", file=path)
    return [path]


def _ending(path: Path) -> str:
    """`.jsonl` of `a.jsonl.gz`; empty for a file of another kind."""
    plain = path.name.removesuffix(".gz").removesuffix(".zst")
    return next((ending for ending in ENDINGS if plain.endswith(ending)), "")


@contextmanager
def _bytes_of(path: Path) -> Iterator[BinaryIO]:
    """An opened file, unpacked. Damage becomes DataError naming the file."""
    try:
        if path.suffix == ".gz":
            with gzip.open(path) as stream:
                yield io.BufferedReader(cast(Any, stream), 1 << 20)  # finds lines ten times as fast as GzipFile
        elif path.suffix == ".zst":
            import zstandard

            with path.open("rb") as packed, zstandard.ZstdDecompressor().stream_reader(packed) as reader:
                yield io.BufferedReader(cast(Any, reader))
        else:
            with path.open("rb") as plain:
                yield plain
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"the packed file is damaged: {error}", file=path) from None
    except Exception as error:
        if type(error).__name__ == "ZstdError":
            raise DataError(f"the packed file is damaged: {error}", file=path) from None
        raise


def rows_of(path: Path, lines: bool = False) -> Iterator[tuple[int, Raw]]:
    """Numbered rows of a file; with `lines` a text of whatever name holds JSON lines."""
    ending = _ending(path)
    if ending == ".parquet":
        yield from _table_rows(path)
        return
    with _bytes_of(path) as stream:
        if lines or ending == ".jsonl":
            yield from ((number, line) for number, line in enumerate(stream, 1) if not line.isspace())
            return
        text = stream.read().decode("utf-8", "replace")
        yield from ((number, {"text": chunk}) for number, chunk in enumerate(_chunks(text), 1))


def parsed(raw: Raw) -> Row | DataError:
    """A row, or the error that stands in its place."""
    if not isinstance(raw, bytes):
        return raw
    try:
        row = json.loads(raw)
    except UnicodeDecodeError:
        return DataError("the row is not UTF-8")
    except (ValueError, RecursionError) as error:
        return DataError(f"the row is not JSON: {error}")
    return row if isinstance(row, dict) else DataError(f"expected an object, found {type(row).__name__}")


def _chunks(text: str, size: int = 4000) -> Iterator[str]:
    """A long text as runs of whole paragraphs of about `size` characters."""
    held: list[str] = []
    length = 0
    for paragraph in text.split("\n\n"):
        if held and length + len(paragraph) > size:
            yield "\n\n".join(held)
            held, length = [], 0
        if paragraph.strip():
            held.append(paragraph.strip("\n"))
            length += len(paragraph) + 2
    if held:
        yield "\n\n".join(held)


def _table_rows(path: Path) -> Iterator[tuple[int, Raw]]:
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    try:
        number = 0
        for batch in parquet.ParquetFile(path).iter_batches(batch_size=1000):
            for row in batch.to_pylist():
                number += 1
                yield number, row
    except (arrow.ArrowInvalid, OSError) as error:
        raise DataError(f"not a parquet file: {error}", file=path) from None


def count(rows: Rows) -> int:
    """How many there are."""
    return sum(1 for _ in rows())


def evenly(rows: Rows, size: int, total: int) -> Iterator[tuple[int, Raw]]:
    """`size` of `total` rows at even distances; all of them when `total` is 0."""
    taken = 0
    for seen, (number, row) in enumerate(rows()):
        if total == 0 or seen * size // total >= taken:
            if total and taken >= size:
                return
            taken += 1
            yield number, row
