"""Files of tasks and answers, told apart by what is in them: own rows, Hugging Face columns, Argilla, Label Studio."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import ValidationError

from tutelage.core.errors import DataError, NotFound
from tutelage.core.records import explain
from tutelage.corpus.rows import parsed, rows_of
from tutelage.feedback import argilla, labelstudio
from tutelage.feedback.assign import seeded
from tutelage.feedback.incoming import Batch
from tutelage.feedback.wire import Form, Question

Source = Literal["auto", "own", "huggingface", "argilla", "label-studio"]
MOST_JSON = 2_000_000_000
"""Bytes of a JSON file that is read as a whole."""
Rows = Iterator[tuple[int, Mapping[str, Any]]]


def read(
    path: Path, source: Source = "auto", *, responses: Sequence[str] = (), annotator: str = "", form: Path | None = None
) -> list[Batch]:
    """A file, or every file of a folder, as batches. `responses` names fields that hold what is judged where a tool's
    file does not say so; `annotator` is whose choices a set without names is; `form` (JSON) says what was asked.

    Raises NotFound, DataError (nothing in it that is known).
    """
    if source not in get_args(Source):
        raise DataError(f"{source!r} is no source", key="from", todo=f"One of: {', '.join(get_args(Source))}")
    files = _files(path)
    batches = []
    for file, split in files:
        batch = Batch(file)
        _read(file, split, source, batch, responses, annotator)
        asked = form or (path / "form.json" if (path / "form.json").is_file() else None)
        if asked:
            batch.form = _form(asked)
        batches.append(batch)
    return batches


def _files(path: Path) -> list[tuple[Path, str]]:
    """The files to be read, each with the split that its name says."""
    if path.is_file():
        return [(path, "")]
    if not path.is_dir():
        raise NotFound("no such file or folder", file=path)
    if (path / "records.json").is_file():  # Argilla's `to_disk`
        return [(path / "records.json", "")]
    found = sorted(each for end in ("parquet", "jsonl", "jsonl.gz", "json") for each in path.rglob(f"*.{end}"))
    found = [each for each in found if each.name != "form.json" and not each.name.startswith((".", "dataset_"))]
    if not found:
        raise NotFound("the folder holds no .parquet, .jsonl or .json file", file=path)
    return [(each, re.split(r"[-.]", each.name)[0]) for each in found]


def _form(path: Path) -> Form:
    try:
        return Form.model_validate_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise NotFound(f"the form cannot be read: {error.strerror}", file=path) from None
    except ValidationError as error:
        key, message = explain(error)
        raise DataError(message, file=path, key=key) from None


def _rows(file: Path, batch: Batch) -> Rows:
    """Numbered objects of a file; what is none is a fault."""
    if file.name.endswith(".json"):
        yield from _whole(file, batch)
        return
    if not re.search(r"\.(jsonl|parquet)(\.gz|\.zst)?$", file.name):
        raise DataError("not a .json, .jsonl or .parquet file", file=file)
    for number, raw in rows_of(file):
        row = parsed(raw)
        if isinstance(row, DataError):
            batch.fault(row, number)
        else:
            yield number, row


def _whole(file: Path, batch: Batch) -> Rows:
    if file.stat().st_size > MOST_JSON:
        raise DataError("the file is too large to be read as a whole", file=file, todo="Write it as JSON lines")
    try:
        found = json.loads(file.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"not JSON: {error}", file=file) from None
    if isinstance(found, dict):  # the server's pages hold `items`; `to_dict` with ids as keys holds records
        found = found["items"] if isinstance(found.get("items"), list) else list(found.values())
    if not isinstance(found, list):
        raise DataError("expected a list of tasks or records", file=file)
    for number, row in enumerate(found, 1):
        if isinstance(row, dict):
            yield number, row
        else:
            batch.fault(f"expected an object, found {type(row).__name__}", number)


def _read(file: Path, split: str, source: Source, batch: Batch, responses: Sequence[str], annotator: str) -> None:
    rows = list(_rows(file, batch))
    if not rows:
        first = f": {batch.problems[0]}" if batch.problems else ""
        raise DataError(f"there is no row in it{first}", file=file)
    kind = source if source != "auto" else _told(rows[0][1])
    match kind:
        case "argilla":
            argilla.read(rows, batch, _settings(file), responses)
        case "label-studio":
            labelstudio.read(rows, batch, responses)
        case "own":
            for number, row in rows:
                try:
                    batch.take(number, _own(row))
                except DataError as error:
                    batch.fault(error, number)
        case "huggingface":
            if "completion" in rows[0][1]:
                batch.form = Form(
                    questions=(Question(key="desirable", kind="boolean", per_candidate=True, required=False),)
                )
            for number, row in rows:
                _column_row(number, row, split, batch, annotator)
        case _:
            todo = f"It has {', '.join(map(str, list(rows[0][1])[:12]))}. Name the tool with --from"
            raise DataError(
                "these are no tasks or answers of a form that is known", file=file, row=rows[0][0], todo=todo
            )


def _told(row: Mapping[str, Any]) -> str:
    """What a row is, by its keys."""
    keys = set(row)
    if argilla.is_table(keys) or {"fields", "responses"} <= keys:
        return "argilla"
    if labelstudio.is_task(row):
        return "label-studio"
    if "candidates" in keys or "answers" in keys or ("kind" in keys and keys & {"messages", "prompt"}):
        return "own"
    columns = ({"chosen", "rejected"}, {"prompt", "completion"}, {"messages"}, {"text"})
    return "huggingface" if any(each <= keys for each in columns) else ""


def _settings(file: Path) -> Mapping[str, Any] | None:
    """What Argilla's `to_disk` and `to_hub` write beside the records."""
    for place in (file.parent / ".argilla" / "settings.json", file.parent.parent / ".argilla" / "settings.json"):
        if place.is_file():
            found = json.loads(place.read_text(encoding="utf-8"))
            return found if isinstance(found, dict) else None
    return None


def _own(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of our own; a table holds its answers and meta as JSON text."""
    found = dict(row)
    for name in ("answers", "meta"):
        if isinstance(found.get(name), str):
            try:
                found[name] = json.loads(found[name])
            except ValueError as error:
                raise DataError(f"{name} is no JSON: {error}", key=name) from None
    found["messages"] = _plain(found.get("messages"))
    found["candidates"] = _plain(found.get("candidates"))
    return {name: value for name, value in found.items() if value is not None}


def _plain(value: Any) -> Any:
    """A value of a table without the fields that only other rows have."""
    if isinstance(value, Mapping):
        return {name: _plain(each) for name, each in value.items() if each is not None}
    return [_plain(each) for each in value] if isinstance(value, list) else value


# columns as trainers name them


def _column_row(number: int, row: Mapping[str, Any], split: str, batch: Batch, annotator: str) -> None:
    """A row of a data set: pairs, single responses with a label, conversations, texts with labels."""
    base = {"split": str(row.get("split") or split), "language": str(row.get("language") or "")[:20]}
    base |= {name: str(row[name]) for name in ("licence", "source") if isinstance(row.get(name), str)}
    who = annotator or _only(row.get("annotators"))
    people = "simulated" if row.get("simulated") else ""
    try:
        make = (
            _pair if "chosen" in row and "rejected" in row else _single if "completion" in row
            else _labelled if "text" in row else _conversation
        )  # fmt: skip
        found, said = make(row)
    except (DataError, KeyError, TypeError) as error:
        batch.fault(error if isinstance(error, DataError) else f"a column is missing or wrong: {error}", number)
        return
    if said and not who:
        batch.dropped["choice that names nobody (--annotator says whose they are)"] += 1
    answers = [{"person": who, "people": people, **said}] if said and who else []
    key = str(row.get("id") or "")[:200] if not found.get("candidates") else ""
    batch.take(number, {**base, **found, "key": key, "answers": answers})


def _only(names: Any) -> str:
    return str(names[0]) if isinstance(names, list) and len(names) == 1 else ""


def _turns(value: Any) -> list[dict[str, Any]]:
    if isinstance(value, str):
        return [{"role": "user", "content": value}]
    if not isinstance(value, list) or not all(isinstance(each, Mapping) and "role" in each for each in value):
        raise DataError("expected a text or a list of messages with role and content")
    return [_plain(each) for each in value]


def _response(value: Any) -> str:
    if isinstance(value, str):
        return value
    turns = _turns(value)
    if not turns or turns[-1]["role"] != "assistant":
        raise DataError("a response ends with a message of the assistant")
    return str(turns[-1]["content"])


Made = tuple[dict[str, Any], dict[str, Any] | None]
"""The fields of a row, and those of an answer that it holds."""


def _pair(row: Mapping[str, Any]) -> Made:
    """`chosen` and `rejected`, in an order that tells nothing. Without a `prompt`: what both begin with."""
    chosen, rejected = row["chosen"], row["rejected"]
    if row.get("prompt") is not None:
        messages = _turns(row["prompt"])
    elif isinstance(chosen, list) and isinstance(rejected, list):
        messages = _turns(chosen)[:-1]
        if messages != _turns(rejected)[:-1]:
            raise DataError("chosen and rejected answer different conversations", key="rejected")
    else:
        raise DataError("a pair of texts needs a prompt", key="prompt")
    texts = [_response(chosen), _response(rejected)]
    seed = hashlib.sha256(json.dumps([messages, sorted(texts)]).encode()).hexdigest()
    order = [0, 1]
    seeded("pair", seed).shuffle(order)
    tiers = [[order.index(0)], [order.index(1)]]
    return {"messages": messages, "candidates": [texts[no] for no in order], "kind": "pair"}, {"tiers": tiers}


def _single(row: Mapping[str, Any]) -> Made:
    found = {"messages": _turns(row["prompt"]), "candidates": [_response(row["completion"])]}
    label = row.get("label")
    return found, {"scores": {"desirable": {0: float(bool(label))}}} if isinstance(label, bool | int) else None


def _conversation(row: Mapping[str, Any]) -> Made:
    """A conversation becomes a task to look at its last answer, and to rewrite it."""
    turns = _turns(row["messages"])
    if len(turns) > 1 and turns[-1]["role"] == "assistant":
        return {"messages": turns[:-1], "candidates": [_response(turns)], "kind": "rewrite"}, None
    return {"messages": turns}, None


def _labelled(row: Mapping[str, Any]) -> Made:
    found = {"messages": _turns(row["messages"] if row.get("messages") else row["text"]), "kind": "tag"}
    key = re.sub(r"[^a-z0-9_]", "_", str(row.get("question") or "label").lower())
    labels = row.get("labels") if row.get("labels") is not None else row.get("label")
    if labels is None or labels == []:
        return found, None
    return found, {"values": {key: [str(each) for each in labels] if isinstance(labels, list) else str(labels)}}
