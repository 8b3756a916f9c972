"""A file that somebody gives to the console, as tasks: JSON lines, one JSON list, or CSV. All of it or nothing.

Columns: `prompt` (or `messages`), `system`, `candidates`, `producers`, and `key`, `cluster`, `language`, `priority`,
`required`, `licence`. In CSV the candidates stand in columns `candidate_1`, `candidate_2`, ... (makers in
`producer_1`, ...), or as a JSON list in one. Other columns are kept with the task as notes.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from tutelage.core.config import nearest
from tutelage.core.errors import DataError
from tutelage.core.records import Message, digest, explain
from tutelage.feedback.wire import NewTask

MOST_BYTES = 20_000_000
"""Bytes of a file that the console takes; larger ones go in parts, or through the API."""
KNOWN = ("prompt", "messages", "system", "candidates", "producers", "key", "id", "cluster", "language", "priority",
         "required", "licence")  # fmt: skip
LISTS = ("messages", "candidates", "producers")
WHOLE_NUMBERS = ("priority", "required")
UNSOUND = re.compile("[\x00\ud800-\udfff]")
NUMBERED = re.compile(r"(candidate|producer)[ _-]?(\d{1,3})$")


@dataclass
class Upload:
    """What a file holds."""

    tasks: list[NewTask]
    doubles: int = 0
    """Rows that say the same as an earlier one; they are left out."""
    notes: tuple[str, ...] = ()
    """Columns that are kept with the task and mean nothing to it."""
    languages: Counter[str] = field(default_factory=Counter)


def tasks_from(data: bytes, kind: str, name: str = "", language: str = "") -> Upload:
    """The tasks of a file; `language` is that of rows that name none. The kind of file is seen from name and content.

    Raises DataError naming file, row and column: CSV rows are counted as a spreadsheet does, the header being row 1.
    """
    check_size(len(data), name)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        row = data[: error.start].count(b"\n") + 1
        todo = "Save it as UTF-8"
        raise DataError(f"this is no UTF-8 text (byte {error.start})", file=name or None, row=row, todo=todo) from None
    found = Upload([])
    seen: dict[str, int] = {}
    said: set[str] = set()
    notes: dict[str, None] = {}
    try:
        for row, raw in _rows(text, name):
            try:
                task = _task(raw, kind, language, notes)
            except DataError as error:
                raise DataError(error.message, row=row, key=error.key, todo=error.todo) from None
            except ValidationError as error:
                key, message = explain(error)
                column = key or ("candidates" if "candidates" in message else None)
                raise DataError(message, row=row, key=column) from None
            if task.meta.pop("named"):
                if task.key in seen:
                    message = f"the key {task.key[:60]!r} stands in row {seen[task.key]} already"
                    raise DataError(message, row=row, key="key")
                seen[task.key] = row
            elif task.key in said:
                found.doubles += 1
                continue
            said.add(task.key)
            found.tasks.append(task)
            found.languages[task.language] += 1
    except DataError as error:
        error.file = name or None
        raise
    if not found.tasks:
        todo = "One JSON object a line, or a CSV table, with `prompt` and the candidates"
        raise DataError("the file holds no tasks", file=name or None, todo=todo)
    found.notes = tuple(notes)
    return found


def check_size(size: int, name: str = "") -> None:
    """Raise DataError for a file of too many bytes."""
    if size > MOST_BYTES:
        todo = "Send it in parts, or through the API"
        raise DataError(f"the file is larger than {MOST_BYTES // 1_000_000} MB", file=name or None, todo=todo)


def _rows(text: str, name: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Numbered raw rows. JSON where the name says so or the text begins like it; CSV otherwise."""
    begins, low = text.lstrip()[:1], name.lower()
    if low.endswith((".jsonl", ".ndjson", ".json")) or (begins in ("{", "[") and not low.endswith((".csv", ".tsv"))):
        yield from _list(text) if begins == "[" else _lines(text)
    else:
        yield from _table(text)


def _lines(text: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for row, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield row, _object(_json(line, row), row)


def _list(text: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for row, raw in enumerate(_json(text, None), 1):
        yield row, _object(raw, row)


def _json(text: str, row: int | None) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        where = f"character {error.pos + 1}" if row else f"line {error.lineno}, character {error.colno}"
        raise DataError(f"this is no JSON: {error.msg} at {where}", row=row) from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"this is no JSON: {error}", row=row) from None


def _object(raw: Any, row: int) -> Mapping[str, Any]:
    if not isinstance(raw, dict):
        raise DataError(f"expected an object, found {type(raw).__name__}", row=row)
    return raw


def _table(text: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    head = text.partition("\n")[0]
    delimiter = max((",", ";", "\t"), key=head.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    row, columns = 1, list[str]()
    try:
        columns = [each.strip() for each in next(reader, [])]
        if len(set(columns)) < len(columns) or "" in columns:
            twice = next((each for each in columns if columns.count(each) > 1), "")
            said = f"the column {twice!r} stands there twice" if twice else "a column has no name"
            raise DataError(said, row=1)
        for row, cells in enumerate(reader, 2):
            if not any(cell.strip() for cell in cells):
                continue
            if len(cells) != len(columns):
                todo = "Put texts that hold separators or line breaks into double quotes"
                raise DataError(f"{len(cells)} cells under {len(columns)} columns", row=row, todo=todo)
            try:
                yield row, _from_cells(dict(zip(columns, cells, strict=True)))
            except DataError as error:
                raise DataError(error.message, row=row, key=error.key) from None
    except csv.Error as error:
        raise DataError(f"this is no CSV: {error}", row=row + 1 if columns else 1) from None


def _from_cells(cells: Mapping[str, str]) -> Mapping[str, Any]:
    """A row of a table as a JSON row would say it; empty cells say nothing."""
    raw: dict[str, Any] = {}
    numbered: dict[str, dict[int, str]] = {"candidate": {}, "producer": {}}
    for column, cell in cells.items():
        if not cell.strip():
            continue
        place = NUMBERED.fullmatch(column)
        if place:
            numbered[place[1]][int(place[2])] = cell
        elif column in LISTS:
            try:
                raw[column] = json.loads(cell)
            except ValueError as error:
                raise DataError(f"expected a JSON list in this cell: {error}", key=column) from None
        elif column in WHOLE_NUMBERS:
            raw[column] = _whole(cell, column)
        else:
            raw[column] = cell
    if numbered["candidate"]:
        order = sorted(numbered["candidate"])
        raw["candidates"] = [numbered["candidate"][no] for no in order]
        if numbered["producer"]:
            raw["producers"] = [numbered["producer"].get(no, "") for no in order]
    return raw


def _whole(cell: Any, column: str) -> int:
    try:
        return int(str(cell).strip())
    except ValueError:
        raise DataError(f"expected a whole number, found {str(cell)[:40]!r}", key=column) from None


def _task(raw: Mapping[str, Any], kind: str, language: str, notes: dict[str, None]) -> NewTask:
    """One row as a task; `meta.named` says whether the row has a key of its own."""
    for column, value in raw.items():
        if any(UNSOUND.search(each) for each in _texts(value)):
            raise DataError("a text holds a NUL or half a character, which no database keeps", key=column)
        if column not in KNOWN and (near := nearest(column, KNOWN)) and len(near) > 3 and near not in raw:
            raise DataError("this column is not known", key=column, todo=f"Did you mean {near!r}? Else rename it")
    messages = raw.get("messages")
    if messages is None:
        if not isinstance(raw.get("prompt"), str) or not raw["prompt"].strip():
            raise DataError("a row needs a text here (or `messages`)", key="prompt")
        messages = [{"role": "user", "content": raw["prompt"]}]
    if not isinstance(messages, list) or not messages:
        raise DataError("expected a list of messages with `role` and `content`", key="messages")
    if raw.get("system"):
        messages = [{"role": "system", "content": raw["system"]}, *messages]
    candidates = _candidates(raw)
    extra = {column: value for column, value in raw.items() if column not in KNOWN}
    notes.update(dict.fromkeys(extra))
    own = raw.get("key", raw.get("id"))
    if raw.get("licence"):
        extra["licence"] = str(raw["licence"])
    said = [[Message.model_validate(each).content for each in messages], [each["content"] for each in candidates]]
    return NewTask.model_validate(
        {
            "key": str(own) if own not in (None, "") else digest(said)[:40],
            "kind": kind,
            "messages": messages,
            "candidates": candidates,
            "language": raw.get("language") or language,
            "cluster": str(raw.get("cluster") or ""),
            "meta": {**extra, "named": own not in (None, "")},
            **{name: _whole(raw[name], name) for name in WHOLE_NUMBERS if raw.get(name) not in (None, "")},
        }
    )


def _texts(value: Any) -> Iterator[str]:
    """Every text inside a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for each in [*value, *value.values()] if isinstance(value, dict) else value:
            yield from _texts(each)


def _candidates(raw: Mapping[str, Any]) -> list[dict[str, Any]]:
    given = raw.get("candidates") or []
    makers = raw.get("producers") or []
    if not isinstance(given, list):
        raise DataError(f"expected a list of texts, found {type(given).__name__}", key="candidates")
    if makers and (not isinstance(makers, list) or len(makers) != len(given)):
        raise DataError(f"expected one maker for each of the {len(given)} candidates", key="producers")
    found: list[dict[str, Any]] = []
    for at, each in enumerate(given):
        one = {"content": each} if isinstance(each, str) else each
        if not isinstance(one, dict) or not str(one.get("content") or "").strip():
            raise DataError(f"candidate {at + 1} has no text", key="candidates")
        found.append({**one, **({"producer": str(makers[at])} if makers else {})})
    return found
