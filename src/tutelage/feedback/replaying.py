"""Recorded people give their answers again: comparisons and labelled texts with named annotators become tasks."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from itertools import chain
from pathlib import PurePath
from typing import Any

from tutelage.core.errors import ConfigError, DataError
from tutelage.core.records import Example, Preference, read_jsonl
from tutelage.core.stage import Context, Inputs
from tutelage.feedback import api, replayed
from tutelage.feedback.asking import Collect, answered, open_tasks, row_of
from tutelage.store import people
from tutelage.tokens.chat import encode_dialogue
from tutelage.tokens.tokenizer import load


def _readable(rows: Iterable[Preference | Example], inputs: Inputs) -> tuple[list[Preference | Example], int]:
    """Comparisons and texts with named people that fit into the model's context, and how many do not: nothing could be
    learned from an answer about a text that the model cannot read to its end."""
    named = [row for row in rows if row.tags.get("people")]
    reads = next((each for each in inputs.model if each.kind == "model"), None)
    if reads is None:
        return named, 0
    shape = json.loads(reads.file("config.json").read_text(encoding="utf-8"))
    tokenizer, longest = load(reads.path), int(shape.get("max_position_embeddings", 1 << 31))

    def fits(row: Preference | Example) -> bool:
        every = (
            (Example(messages=(*row.prompt, candidate)) for candidate in row.candidates)
            if isinstance(row, Preference)
            else (row,)
        )
        return all(len(encode_dialogue(each, tokenizer)[0]) <= longest for each in every)

    kept = [row for row in named if fits(row)]
    return kept, len(named) - len(kept)


def replay(config: Collect, inputs: Inputs, base: str, context: Context) -> dict[str, Any]:
    """The summary of a collection of recorded answers. Raises ConfigError without a corpus, DataError without rows."""
    if inputs.corpus is None:
        raise ConfigError("recorded comparisons are replayed and no corpus is named", key="collect.corpus")
    source = inputs.corpus.file("comparisons.jsonl")
    texts = inputs.corpus.file("labels.jsonl")
    labelled: Iterable[Preference | Example] = read_jsonl(texts, Example) if config.labels else ()
    fit, left_out = _readable(chain(read_jsonl(source, Preference), labelled), inputs)
    there = {str(row.tags.get("source", "")) for row in fit}
    if unknown := sorted(set(config.sources) - there):
        todo = f"There are those of {', '.join(sorted(there)) or 'no source'}"
        message = f"no comparison of {', '.join(unknown)} with named people to replay"
        raise DataError(message, file=source, key="collect.sources", todo=todo)
    chosen = replayed.choose(fit, config.comparisons, config.sources, config.seed)
    if not chosen:
        raise DataError("no comparison with named people to replay", file=source, todo="See collect.sources")
    summary: dict[str, Any] = {
        "tasks": [], "projects": [], "people": "replayed", "per_task": 1, "expected": 0, "receipts": {},
        "candidates": sum(len(each.candidates) for each in chosen), "too_long": left_out,
    }  # fmt: skip
    for name in sorted({each.source for each in chosen}):
        rows = [each for each in chosen if each.source == name]
        called = _called(name)
        project = f"{base}-{called}"
        new = [
            api.NewTask(
                key=f"{context.key[:16]}/{_short(each.key)}",
                kind=each.kind,
                messages=each.prompt,
                candidates=tuple(api.NewCandidate(content=text, producer=name) for text in each.candidates),
                people=tuple(f"replayed {called} {person}" for person in sorted(each.said)),
                cluster=str(each.tags.get("cluster", each.key))[:120],
                meta={field: each.tags.get(field) for field in ("split", "source", "licence", "id")},
            )
            for each in rows
        ]
        context.licence(*(str(each.tags.get("licence", "not-stated")) for each in rows))
        crew = sorted({person for each in rows for person in each.said})
        persons = people.create_many(context.store, [f"replayed {called} {person}" for person in crew], kind="replayed")
        form = api.Form(questions=replayed.questions(rows), guideline=f"Recorded answers of the people of {called}.")
        ids = open_tasks(context.store, project, form, config, new)
        said: dict[str, dict[str, Any]] = {person: {} for person in crew}
        for id, each in zip(ids, rows, strict=True):
            for person, fields in each.said.items():
                said[person][id] = fields
        answering = [replayed.respond(said[person]) for person in crew]
        expected = sum(len(each.people or ()) for each in new)
        receipts = answered(config, context, persons, answering, project, expected)
        for status, count in receipts.items():
            summary["receipts"][status] = summary["receipts"].get(status, 0) + count
        summary["expected"] += expected
        summary["projects"].append(project)
        summary["tasks"] += [row_of(task, project, []) | {"task": id} for task, id in zip(new, ids, strict=True)]
    return summary


def _called(source: str) -> str:
    """A source as a name may be written: a set's own name, or that of a file without its place."""
    return re.sub(r"[^\w .:@+-]", "-", PurePath(source).name)[:60]


def _short(key: str, most: int = 180) -> str:
    """A key as it is, or (too long for the store) its head and its hash: two long keys never become one."""
    return key if len(key) <= most else f"{key[: most - 33]}#{hashlib.sha256(key.encode()).hexdigest()[:32]}"
