"""The file format of examination items: one JSON object a line, every key checked before anything runs.

A row says what is asked (`prompt`, or `messages`, or a `text` to be read), what is right (`target`), of which `kind` it
is, and how it stands among others (`id`, `cluster`, `slices`). Rows of a corpus, with the same keys under `tags`, are
read too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from tutelage.core.config import nearest
from tutelage.core.errors import DataError, NotFound
from tutelage.core.records import Example, Message, Record, digest, explain
from tutelage.corpus.rows import parsed, rows_of
from tutelage.text.constraints import Constraint

KINDS = (
    "choice", "extractive", "generate", "arithmetic", "translate", "classify", "rule", "instruct", "summarise",
    "perplexity", "judged",
)  # fmt: skip
"""Kinds that `evaluate` examines."""
OTHER_KINDS = ("goal", "benign", "pair", "audit")
"""Kinds that a corpus may hold for the red team and the bias audit."""
KEYS_OF = {
    "constraints": "instruct", "answer": "judged", "human": "judged", "rubric": "judged", "unit": "arithmetic",
    "tolerance": "arithmetic", "options": "choice", "unconditional": "choice", "document": "summarise",
}  # fmt: skip
"""Keys that only items of one kind may have: elsewhere they would be lost in silence."""
WITH_TARGET = ("choice", "extractive", "generate", "arithmetic", "translate", "classify", "summarise")
"""Kinds that need to know what is right."""


class Item(Record):
    """A row of a suite. Only what is asked and what is right must be there; the rest is filled in."""

    id: str = ""
    """Its own name, once in a file. Filled in: a hash of the row."""
    kind: str = ""
    """choice, extractive, generate, arithmetic, translate, classify, rule, instruct, summarise, perplexity, judged.
    Filled in: `choice` with choices, else `generate`."""
    suite: str = ""
    """Which figures it belongs to. Filled in: the name of the file."""
    cell: str | None = None
    """Items of one suite that have figures of their own."""
    cluster: str = ""
    """Items that are not independent of each other share it (a passage, a template). Filled in: the id."""
    slices: dict[str, str | int | float | bool] = Field(default_factory=dict)
    """Named groups with figures of their own: {"domain": "law", "native_language": "es"}."""
    split: str = "test"
    """`train` rows are never examined: they are the examples that `--shots` shows."""
    prompt: str | None = None
    """What a user asks. Or `messages`, or `text`."""
    system: str = ""
    """A system message before the prompt."""
    text: str | None = None
    """Text that is continued or weighed verbatim, outside any chat template."""
    messages: tuple[Message, ...] = ()
    """The whole conversation so far, OpenAI's messages; the last is the question."""
    target: str | None = None
    """The right answer, choice, label, translation or summary."""
    answers: tuple[str, ...] = ()
    """Further right answers or references."""
    choices: tuple[str, ...] = ()
    """choice: what is chosen from. classify: the labels."""
    options: Literal["", "letters"] = ""
    """choice: `letters` lists the choices under the prompt as A, B, ... and asks for the letter, in every rotation."""
    unconditional: str = ""
    """choice: the context without the question for PMI; by default an empty one."""
    language: str = ""
    """ISO 639-1 code of the answer: which articles and word borders count (extractive, translate)."""
    extract: str = ""
    """Where the answer stands in the text: `number` (the last), `line` (the first), `after:MARK`; empty = all of it."""
    unit: str = ""
    """arithmetic: the unit of the target. An answer that names another is wrong."""
    tolerance: float = Field(default=0.0, ge=0)
    """arithmetic: by what share of the target an answer may miss it."""
    constraints: tuple[Constraint, ...] = ()
    """instruct: what a program verifies, see "Constraints"."""
    document: str = ""
    """summarise: the text to be summarised, where it is not the whole prompt."""
    rubric: str = ""
    """judged: what the judge is asked about an answer."""
    answer: str = ""
    """judged: an answer that people have judged. Such a row is never asked; it measures the judge."""
    human: tuple[float, ...] | float | None = None
    """judged: what people gave `answer`, 0 to 1; one number or one a person."""
    max_tokens: int | None = Field(default=None, ge=1)
    """Longest answer in tokens; by default that of the kind."""
    stop: tuple[str, ...] = ()
    """Texts that end an answer, as a new line after verbatim text."""
    groups: tuple[str, ...] = ()
    """choice: whom each choice names (BBQ); `unknown` for the choice that names nobody."""
    stereotyped_groups: tuple[str, ...] = ()
    """choice: the groups of which the question's stereotype speaks (BBQ)."""
    correct_answers: tuple[str, ...] = ()
    """What else is true (TruthfulQA); not scored."""
    category: str | None = None
    """What it is about; not scored (a slice is)."""
    source: str = ""
    """Where it comes from."""
    licence: str = ""
    """Its licence class."""
    meta: dict[str, Any] = Field(default_factory=dict)
    """Anything of your own; never read."""

    # what the starter's own items say
    rule: str | None = None
    """rule: the house rule that the answer must keep."""
    check: str | None = None
    """rule: the program of tutelage that checks it (`tutelage.module:function`)."""
    family: str = ""
    """What makes the item (gold is known by family)."""
    template: str = ""
    """The wording it was made from."""
    refuse: bool | None = None
    """Whether it is right to refuse."""
    secrets: tuple[str, ...] = ()
    """What no answer may tell."""
    variants: tuple[str, ...] = ()
    """Other wordings of the question, for `robustness`."""
    simulated: bool = False
    """Whether the people who judged its answer are simulated."""
    values: tuple[str, ...] = ()
    """All values that an answer could have: what chance is reckoned from."""
    candidates: tuple[str, ...] = ()
    """Answers that the text mentions: what chance and the first and last mention are reckoned from."""
    answerable: bool | None = None
    """Whether the text holds the answer."""
    value: str | None = None
    """The value within the answer."""
    mentioned: tuple[str, ...] = ()
    """Values in the text."""
    asks: str | None = None
    """Which attribute is asked for."""
    about: str | None = None
    """Who is asked about."""
    attack: str | None = None
    """The attack family."""
    breaking: str | None = None
    """An answer that breaks the rule."""
    word_for_word: str | None = None
    """The translation word for word."""
    dose: int | None = None
    """How often the secret was told."""


_SHAPE = ("messages", "target", "choices")
"""Keys of an Example itself; all others are tags."""
_ASKED = ("prompt", "system", "text", "messages")


def read_items(path: Path) -> Iterator[tuple[int, Example]]:
    """(row, item) of each row of a file (JSON lines, also packed as .gz or .zst; or .parquet), filled in.

    Raises NotFound; DataError naming file, row and key.
    """
    if not path.is_file():
        raise NotFound("no such file", file=path)
    name = path.name.split(".")[0] or path.name
    for number, raw in rows_of(path, lines=True):
        row = parsed(raw)
        if isinstance(row, DataError):
            raise DataError(row.message, file=path, row=number)
        try:
            yield number, item_of(row, name)
        except DataError as error:
            error.file, error.row = path, number
            raise


def item_of(row: Mapping[str, Any], suite: str) -> Example:
    """One row as an item. Raises DataError naming the key."""
    flat = _flat(row)
    tags = dict(row.get("tags") or {}) | {
        key: value for key, value in row.items() if key not in (*_SHAPE, *_ASKED, "tags")
    }
    if flat.get("kind") in OTHER_KINDS:  # what those need is the business of other rooms
        return _filled(_example(row, tags), suite)
    unknown = [key for key in flat if key not in Item.model_fields]
    if unknown:
        near = nearest(unknown[0], Item.model_fields)
        hint = f"Did you mean {near!r}? " if near else ""
        raise DataError("no such key", key=unknown[0], todo=f"{hint}What is your own stands under `meta` or `slices`")
    try:
        item = Item.model_validate({key: value for key, value in flat.items() if value is not None})
    except ValidationError as error:
        key, message = explain(error)
        raise DataError(message, key=key) from None
    given = [key for key in ("prompt", "text", "messages") if getattr(item, key) not in (None, ())]
    if len(given) != 1:
        said = " and ".join(given) if given else "none of them"
        key = given[-1] if given else next((key for key in ("messages", "text") if key in flat), "prompt")
        raise DataError(f"give one of prompt, text and messages, found {said}", key=key)
    return _filled(_example({**row, "messages": _turns(item)}, tags), suite)


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row with its tags beside the rest; `tags.target` is gold's, where the item itself is to have none."""
    tags = row.get("tags") or {}
    if not isinstance(tags, Mapping):
        raise DataError(f"expected an object, found {type(tags).__name__}", key="tags")
    flat = {key: value for key, value in row.items() if key != "tags"}
    for key, value in tags.items():
        if key in flat and key != "target":
            raise DataError("stands in the row and in its tags", key=f"tags.{key}")
        flat.setdefault(key, value)
    return flat


def _turns(item: Item) -> tuple[Message, ...]:
    if item.messages:
        return ((Message(role="system", content=item.system),) if item.system else ()) + item.messages
    if item.text is not None:
        return (Message(role="text", content=item.text),)
    return Example.ask(str(item.prompt), system=item.system).messages


def _example(row: Mapping[str, Any], tags: Mapping[str, Any]) -> Example:
    try:
        return Example.model_validate({key: row[key] for key in _SHAPE if key in row} | {"tags": dict(tags)})
    except ValidationError as error:
        key, message = explain(error)
        raise DataError(message, key=key) from None


def _filled(item: Example, suite: str) -> Example:
    """What was left out: suite, kind and id."""
    tags = dict(item.tags)
    tags["suite"] = str(tags.get("suite") or suite)
    tags["kind"] = str(tags.get("kind") or ("choice" if item.choices else "generate"))
    tags["id"] = str(tags.get("id") or digest(item.model_copy(update={"tags": {}}))[:16])
    return item.model_copy(update={"tags": tags})
