"""The only place where a conversation becomes ids and a loss mask.

A chat template decides what stands between the turns; what people and models wrote is put in as ids, never as template
text. So the ids are those that `transformers.apply_chat_template` gives, and no message can forge a turn: the template
is rendered once per shape of conversation (its roles, and which fields each turn has) with place-holders, its pieces
are encoded with special tokens, all that somebody wrote without: contents, names, ids and arguments of tool calls.
"""

from __future__ import annotations

import functools
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jinja2 import TemplateError, nodes, pass_context
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from tutelage.core.errors import DataError
from tutelage.core.records import Example, Message
from tutelage.tokens.tokenizer import Tokenizer

_FIRST, _LAST, _PAD, _ESCAPED = "\U000f0000", "\U000ffffc", "\U000ffffd", "\ue002"
_PLACE = re.compile(f" ?({_ESCAPED}?)\ue000(\\d+)\ue001 ?|({_ESCAPED}?)([{_FIRST}-{_LAST}]){_PAD}*")
"""Where a text goes: the content of a message by its number, any other field by one character of its own, padded to the
text's length where templates look at lengths. The mark before it: the template puts it there inside JSON."""
_BEGINS = re.compile(f"(?=[\ue000{_FIRST}-{_LAST}])")
MOST_FIELDS = ord(_LAST) - ord(_FIRST)
LONGEST_MARK = 64
"""Characters up to which a template sees the length of an id: some ask for nine."""
CACHED = 128
"""Fields of the longest conversation whose skeleton is kept: the cache stays within some megabytes."""


class Shape(NamedTuple):
    """What a template may look at of a message beside its texts."""

    role: str
    name: bool = False
    answers: int = 0
    """Length of the id of the call that this message answers."""
    calls: tuple[tuple[int, bool, bool], ...] = ()
    """Per tool call: length of its id, whether it has a name, whether it has arguments."""


class Slot(NamedTuple):
    """Where a text stands: which message, which field (`content`, `name`, `tool_call_id`, `0.arguments`)."""

    message: int
    field: str
    escaped: bool
    """Whether the template puts it into JSON."""
    trims: bool
    """Whether the template strips it."""
    said: bool
    """Whether it is to be learned: what the assistant says, and verbatim text."""
    closes: int
    """How many ids of the piece after it belong to the answer: 1 if it begins with a special token."""


class Skeleton(NamedTuple):
    """The template around the texts: `pieces[i]`, then the text of `slots[i]`, ..., the last piece."""

    pieces: tuple[tuple[int, ...], ...]
    slots: tuple[Slot, ...]


def render(messages: Sequence[Message], tokenizer: Tokenizer, open_assistant: bool = True) -> list[int]:
    """Ids of a conversation; with `open_assistant` ready for the assistant to speak.

    A message of role `text` is verbatim: it is encoded after bos, and no turn is opened after it.
    Raises DataError when the tokenizer has no template or the template refuses the conversation.
    """
    return _build(messages, tokenizer, open_assistant)[0]


def encode_dialogue(example: Example, tokenizer: Tokenizer) -> tuple[list[int], list[bool]]:
    """Ids of a whole dialogue, and a mask that marks what the assistant says, with the token that ends its turn."""
    return _build(example.messages, tokenizer, open_assistant=False)


def encode_dialogues(examples: Sequence[Example], tokenizer: Tokenizer) -> list[tuple[list[int], list[bool]]]:
    """`encode_dialogue` of each, with all contents encoded at once on all cores."""
    plans = [_plan(example.messages, tokenizer, open_assistant=False) for example in examples]
    inner = iter(tokenizer.encode_batch([text for _, texts in plans for text in texts]))
    return [_join(frame, [next(inner) for _ in texts]) for frame, texts in plans]


def closing(tokenizer: Tokenizer) -> tuple[int, ...]:
    """The ids by which the template ends what the assistant says: one special token, or none where it has no mark."""
    frame = _skeleton(tokenizer, (Shape("user"), Shape("assistant")), open_assistant=False)
    return frame.pieces[-1][: frame.slots[-1].closes]


def render_text(turns: Sequence[Mapping[str, Any]], tokenizer: Tokenizer, open_assistant: bool = True) -> str:
    """A conversation of {"role", "content"} as the template's text, for those who know strings alone: contents are not
    protected there. Without `open_assistant` the last turn is left open, to be continued.

    Raises DataError when the tokenizer has no template or the template refuses the conversation.
    """
    text = _templated(list(map(dict, turns)), tokenizer, open_assistant)
    if open_assistant or not turns:
        return text
    last = str(turns[-1]["content"]).strip()
    return text[: text.rindex(last) + len(last)]


class Stretch(NamedTuple):
    """Ids beside each other that are all learned from, or all only read."""

    text: str
    """Special tokens show as they are written in the tokenizer."""
    tokens: int
    learned: bool


def stretches(ids: Sequence[int], mask: Sequence[bool], tokenizer: Tokenizer) -> list[Stretch]:
    """A dialogue as training sees it: what is only read, and what is learned from, in turn."""
    found = []
    for learned, group in itertools.groupby(zip(ids, mask, strict=True), key=lambda pair: bool(pair[1])):
        part = [int(number) for number, _ in group]
        found.append(Stretch(tokenizer.decode(part, skip_special=False), len(part), learned))
    return found


def text_of(message: Message) -> str:
    """The text of a message: its content, or its text parts one after the other."""
    return message.content or "".join(part.text for part in message.parts if part.type == "text")


def _build(messages: Sequence[Message], tokenizer: Tokenizer, open_assistant: bool) -> tuple[list[int], list[bool]]:
    frame, texts = _plan(messages, tokenizer, open_assistant)
    return _join(frame, [tokenizer.encode(text) for text in texts])


def _plan(messages: Sequence[Message], tokenizer: Tokenizer, open_assistant: bool) -> tuple[Skeleton, list[str]]:
    """The skeleton of a conversation, and the texts to put into it."""
    if not messages:
        raise DataError("a conversation needs at least one message")
    if all(message.role == "text" for message in messages):
        slots = tuple(Slot(place, "content", False, False, True, 0) for place in range(len(messages)))
        frame = Skeleton(((tokenizer.bos,), *((),) * len(messages)), slots)
    else:
        shapes = tuple(_shape(message) for message in messages)
        small = sum(1 + len(shape.calls) for shape in shapes) <= CACHED
        frame = (_skeleton if small else _skeleton.__wrapped__)(tokenizer, shapes, open_assistant)
    return frame, [_text_at(messages[slot.message], slot) for slot in frame.slots]


def _text_at(message: Message, slot: Slot) -> str:
    number, _, field = slot.field.rpartition(".")
    text = (
        text_of(message)
        if field == "content"
        else getattr(message.tool_calls[int(number)] if number else message, field)
    )
    text = text.strip() if slot.trims else text
    return json.dumps(text, ensure_ascii=False)[1:-1] if slot.escaped else text


def _join(frame: Skeleton, inner: Sequence[Sequence[int]]) -> tuple[list[int], list[bool]]:
    ids = list(frame.pieces[0])
    mask = [False] * len(ids)
    for content, piece, slot in zip(inner, frame.pieces[1:], frame.slots, strict=True):
        ids += [*content, *piece]
        closes = min(slot.closes, len(piece))
        mask += [slot.said] * (len(content) + closes) + [False] * (len(piece) - closes)
    return ids, mask


def _shape(message: Message) -> Shape:
    def mark(text: str | None) -> int:
        return min(len(text or ""), LONGEST_MARK)

    calls = tuple((mark(call.id), bool(call.name), bool(call.arguments)) for call in message.tool_calls)
    return Shape(message.role, bool(message.name), mark(message.tool_call_id), calls)


@functools.lru_cache(maxsize=512)
def _skeleton(tokenizer: Tokenizer, shapes: tuple[Shape, ...], open_assistant: bool) -> Skeleton:
    fields: list[tuple[int, str]] = []

    def place(message: int, field: str, length: int) -> str:
        if not length:
            return ""
        if len(fields) >= MOST_FIELDS:
            raise DataError(f"a conversation with more than {MOST_FIELDS} names and tool calls has no place")
        fields.append((message, field))
        return chr(ord(_FIRST) + len(fields) - 1) + _PAD * (length - 1)

    def turn(at: int, shape: Shape) -> dict[str, Any]:
        found: dict[str, Any] = {"role": shape.role, "content": f" \ue000{at}\ue001 "}
        if shape.name:
            found["name"] = place(at, "name", 1)
        if shape.answers:
            found["tool_call_id"] = place(at, "tool_call_id", shape.answers)
        if shape.calls:
            found["tool_calls"] = [
                {
                    "id": place(at, f"{number}.id", mark),
                    "type": "function",
                    "function": {
                        "name": place(at, f"{number}.name", name),
                        "arguments": place(at, f"{number}.arguments", arguments),
                    },
                }
                for number, (mark, name, arguments) in enumerate(shape.calls)
            ]
        return found

    if any(shape.calls for shape in shapes) and "tool_calls" not in _source(tokenizer):
        raise DataError("the chat template has no place for tool calls", key="chat_template")
    text = _templated([turn(at, shape) for at, shape in enumerate(shapes)], tokenizer, open_assistant, places=True)
    pieces, found, done = [], [], 0
    for match in _PLACE.finditer(text):
        pieces.append(tuple(tokenizer.encode_marked(text[done : match.start()])))
        message, field = (int(match[2]), "content") if match[2] else fields[ord(match[4]) - ord(_FIRST)]
        trims = field == "content" and not (match[0].startswith(" ") and match[0].endswith(" "))
        found.append((message, field, bool(match[1] or match[3]), trims))
        done = match.end()
    pieces.append(tuple(tokenizer.encode_marked(text[done:])))
    if [message for message, field, *_ in found if field == "content"] != list(range(len(shapes))):
        raise DataError("the chat template leaves out, repeats or moves messages", key="chat_template")
    slots = (
        Slot(
            *slot,
            said=slot[1] == "content" and shapes[slot[0]].role in ("assistant", "text"),
            closes=int(slot[1] == "content" and bool(piece) and piece[0] in tokenizer.specials),
        )
        for slot, piece in zip(found, pieces[1:], strict=True)
    )
    return Skeleton(tuple(pieces), tuple(slots))


def _source(tokenizer: Tokenizer) -> str:
    if tokenizer.template is None:
        raise DataError("the tokenizer has no chat template", file="tokenizer_config.json", key="chat_template")
    return tokenizer.template


def _templated(
    turns: Sequence[Mapping[str, Any]], tokenizer: Tokenizer, open_assistant: bool, *, places: bool = False
) -> str:
    names: dict[str, Any] = {
        name: tokenizer.text_of(name) for name in ("bos_token", "eos_token", "pad_token", "unk_token")
    }
    names |= {"messages": turns, "add_generation_prompt": open_assistant, _PLACES: places}
    try:
        found = _compiled(_source(tokenizer)).render(**names)
    except SecurityError as error:
        raise DataError(f"the chat template was stopped: {error}", key="chat_template") from None
    except TemplateError as error:
        raise DataError(f"the chat template refuses this conversation: {error}", key="chat_template") from None
    return str(found)


@functools.lru_cache(maxsize=32)
def _compiled(source: str) -> Any:
    """A template in jinja2's immutable sandbox, set up as Hugging Face's."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda form: ""  # a prompt must not depend on the day it is made
    try:
        return environment.from_string(source)
    except TemplateError as error:
        raise DataError(f"not a chat template: {error}", key="chat_template") from None


_PLACES = "_places"
"""Whether a template is rendered with place-holders."""


@pass_context
def _tojson(context: Context, value: Any, indent: int | None = None) -> str:
    found = json.dumps(value, ensure_ascii=False, indent=indent)
    return _BEGINS.sub(_ESCAPED, found) if context.get(_PLACES) else found


def _refuse(message: str) -> None:
    raise TemplateError(message)


class _Generation(Extension):
    """`{% generation %}`, by which Hugging Face templates mark what the assistant says; the mask here is our own."""

    tags = {"generation"}  # noqa: RUF012 - jinja2's own form

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)
