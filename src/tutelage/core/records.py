"""The values that flow through a model's life: frozen, plain, equal when their content is equal.

Identity is a matter of storage: `digest(record)` is the sha256 of its canonical JSON.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from tutelage.core.errors import DataError, NotFound

Role = Literal["system", "user", "assistant", "tool", "text"]
Finish = Literal["stop", "length", "tool", "blocked", "error"]
Status = Literal["ok", "timeout", "malformed", "unsupported", "error"]
Action = Literal["allow", "flag", "redact", "rewrite", "review", "block"]
ACTIONS: tuple[Action, ...] = ("allow", "flag", "redact", "rewrite", "review", "block")
"""Mildest first; the strictest wins."""


class Record(BaseModel):
    """A frozen value. Unknown fields are refused, so that a misspelt key is never lost."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class ToolCall(Record):
    """One call of a tool, as in OpenAI's schema; `arguments` is the JSON text as the model wrote it."""

    id: str
    name: str
    arguments: str = ""


class Part(Record):
    """One part of a message with several: a text, or something else that is kept by reference only."""

    type: str = "text"
    text: str = ""
    ref: str = ""


class Message(Record):
    """One turn. Role `text` is verbatim text that no chat template touches."""

    role: Role
    content: str = ""
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    name: str | None = None
    parts: tuple[Part, ...] = ()


class Document(Record):
    """A text to read, with where it came from and under which licence class."""

    text: str
    source: str
    licence: str = "not-stated"
    meta: dict[str, Any] = Field(default_factory=dict)


class Example(Record):
    """A conversation, perhaps with a target, choices, and tags (split, provenance, licence, cluster, slices)."""

    messages: tuple[Message, ...]
    target: str | None = None
    choices: tuple[str, ...] = ()
    tags: dict[str, Any] = Field(default_factory=dict)

    @classmethod
    def ask(cls, prompt: str, *, system: str = "", target: str | None = None, **tags: Any) -> Self:
        """The commonest example: one user turn, perhaps under a system prompt."""
        head = (Message(role="system", content=system),) if system else ()
        return cls(messages=(*head, Message(role="user", content=prompt)), target=target, tags=tags)


class Response(Record):
    """What a generator answered. `tokens` and their `logprobs` (nats) are there when the generator knows them."""

    message: Message
    finish: Finish
    usage: dict[str, int] = Field(default_factory=dict)
    generator: str = ""
    seed: int | None = None
    tokens: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    error: str = ""
    """Why there is no answer, where `finish` is `error`."""


class Ranking(Record):
    """One person's order of a task's candidates: `tiers` best first, same tier = tie, `shown` = order on screen."""

    task: str
    person: str
    tiers: tuple[tuple[int, ...], ...]
    unrankable: tuple[int, ...] = ()
    shown: tuple[int, ...] = ()
    at: str = ""

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        placed = [candidate for tier in self.tiers for candidate in tier] + list(self.unrankable)
        if len(placed) != len(set(placed)):
            raise ValueError(f"each candidate stands in one place only, found {placed}")
        return self


class Score(Record):
    """One person's score of one candidate on one criterion; `scale` is (lowest, highest)."""

    task: str
    person: str
    candidate: int
    criterion: str
    value: float
    scale: tuple[float, float]
    at: str = ""

    @model_validator(mode="after")
    def _on_scale(self) -> Self:
        if not self.scale[0] <= self.value <= self.scale[1]:
            raise ValueError(f"value {self.value} is outside the scale {self.scale}")
        return self


class Label(Record):
    """One person's tag of one subject (a text's digest or a task id), whole or on a span of characters."""

    subject: str
    person: str
    category: str
    value: float
    span: tuple[int, int] | None = None
    at: str = ""


class Preference(Record):
    """What reward and dpo read: candidates with tiers and/or scores. `rows` leads back to the store."""

    prompt: tuple[Message, ...]
    candidates: tuple[Message, ...]
    tiers: tuple[tuple[int, ...], ...] = ()
    scores: tuple[float | None, ...] = ()
    weight: float = 1.0
    rows: tuple[str, ...] = ()
    tags: dict[str, Any] = Field(default_factory=dict)


class Span(Record):
    """Characters `start` to `end` (exclusive) of the original text, and what they are."""

    start: int
    end: int
    type: str
    score: float = 1.0


class Verdict(Record):
    """What a judge says. Only status `ok` carries an opinion; nothing else may ever be read as 'fine'."""

    judge: str
    status: Status = "ok"
    scores: dict[str, float] = Field(default_factory=dict)
    spans: tuple[Span, ...] = ()
    cost_ms: float = 0.0
    certificate: str | None = None
    reason: str = ""
    """Why there is no opinion."""


class Decision(Record):
    """What the safety policy decided, with reasons, and the policy's content hash."""

    action: Action
    reasons: tuple[str, ...] = ()
    redactions: tuple[Span, ...] = ()
    policy: str = ""


def canonical(value: Any) -> bytes:
    """Canonical JSON: sorted keys, no spaces, UTF-8, no NaN. Equal values give equal bytes."""
    plain = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
    return json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def digest(value: Any) -> str:
    """sha256 (64 hex digits) of the canonical JSON of a record or a plain JSON value."""
    return hashlib.sha256(canonical(value)).hexdigest()


R = TypeVar("R", bound=BaseModel)


def explain(error: ValidationError) -> tuple[str | None, str]:
    """The first fault of a validation as (key, message): one clear sentence, not pydantic's list."""
    first = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in first["loc"]) or None
    text = first["msg"].removeprefix("Value error, ")
    text = text[:1].lower() + text[1:]
    if first["type"] == "literal_error" and isinstance(first["input"], str):
        known = re.findall("'([^']*)'", first["ctx"]["expected"])
        near = difflib.get_close_matches(first["input"], known, n=1, cutoff=0.5)
        text += f", found {first['input'][:80]!r}" + "".join(f"; did you mean {each!r}?" for each in near)
    return key, text


def read_jsonl(path: Path, model: type[R]) -> Iterator[R]:
    """Rows of a JSON-lines file as records. Raises DataError naming file, row and key; NotFound if it is missing."""
    if not path.is_file():
        raise NotFound("no such file", file=path)
    with path.open(encoding="utf-8") as lines:
        for row, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                yield model.model_validate_json(line)
            except ValidationError as error:
                key, message = explain(error)
                raise DataError(message, file=path, row=row, key=key) from None


def write_jsonl(path: Path, rows: Iterable[BaseModel | Mapping[str, Any]]) -> int:
    """Write records (or plain mappings) as JSON lines with sorted keys; returns how many."""
    count = 0
    with path.open("w", encoding="utf-8") as out:
        for row in rows:
            plain = row.model_dump(mode="json") if isinstance(row, BaseModel) else dict(row)
            out.write(json.dumps(plain, sort_keys=True, ensure_ascii=False) + "\n")
            count += 1
    return count
