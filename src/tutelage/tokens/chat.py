"""The only place where a conversation becomes ids and a loss mask.

A chat template decides what stands between the turns; what people and models wrote is put in as ids, never as template
text. So the ids are those that `transformers.apply_chat_template` gives, and no message can forge a turn: the template
is rendered once per sequence of roles with place-holders, its pieces are encoded with special tokens, the contents
without.
"""

from __future__ import annotations

import functools
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jinja2 import TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from tutelage.core.errors import DataError
from tutelage.core.records import Example, Message
from tutelage.tokens.tokenizer import Tokenizer

_PLACE = re.compile(" ?\ue000(\\d+)\ue001 ?")


class Skeleton(NamedTuple):
    """The template around the contents: `pieces[i]`, then the content of message `order[i]`, ..., the last piece."""

    pieces: tuple[tuple[int, ...], ...]
    order: tuple[int, ...]
    trims: tuple[bool, ...]
    """Whether the template strips each content."""
    said: tuple[bool, ...]
    """Whether each content is to be learned: what the assistant says, and verbatim text."""
    closes: tuple[int, ...]
    """How many ids of the piece after each content belong to the answer: 1 if it begins with a special token."""


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
    frame = _skeleton(tokenizer, (("user", ""), ("assistant", "")), open_assistant=False)
    return frame.pieces[-1][: frame.closes[-1]]


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
        count = len(messages)
        frame = Skeleton(
            ((tokenizer.bos,), *((),) * count),
            tuple(range(count)),
            *(((False,) * count, (True,) * count, (0,) * count)),
        )
    else:
        frame = _skeleton(tokenizer, tuple(_shape(message) for message in messages), open_assistant)
    texts = [text_of(messages[place]) for place in frame.order]
    return frame, [text.strip() if trims else text for text, trims in zip(texts, frame.trims, strict=True)]


def _join(frame: Skeleton, inner: Sequence[Sequence[int]]) -> tuple[list[int], list[bool]]:
    ids = list(frame.pieces[0])
    mask = [False] * len(ids)
    for content, piece, said, closes in zip(inner, frame.pieces[1:], frame.said, frame.closes, strict=True):
        ids += [*content, *piece]
        mask += [said] * len(content) + [said] * min(closes, len(piece)) + [False] * max(0, len(piece) - closes)
    return ids, mask


def _shape(message: Message) -> tuple[str, str]:
    """What a template may look at beside the text: the role, and the rest as JSON (mostly empty)."""
    rest: dict[str, Any] = {}
    if message.tool_calls:
        rest["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in message.tool_calls
        ]
    if message.tool_call_id:
        rest["tool_call_id"] = message.tool_call_id
    if message.name:
        rest["name"] = message.name
    return message.role, json.dumps(rest, sort_keys=True) if rest else ""


@functools.lru_cache(maxsize=4096)
def _skeleton(tokenizer: Tokenizer, shapes: tuple[tuple[str, str], ...], open_assistant: bool) -> Skeleton:
    source = _source(tokenizer)
    turns = [
        {"role": role, "content": f" \ue000{place}\ue001 ", **(json.loads(rest) if rest else {})}
        for place, (role, rest) in enumerate(shapes)
    ]
    if any("tool_calls" in turn for turn in turns) and "tool_calls" not in source:
        raise DataError("the chat template has no place for tool calls", key="chat_template")
    text = _templated(turns, tokenizer, open_assistant)
    pieces, order, trims, done = [], [], [], 0
    for match in _PLACE.finditer(text):
        pieces.append(tuple(tokenizer.encode_marked(text[done : match.start()])))
        order.append(int(match[1]))
        trims.append(not (match[0].startswith(" ") and match[0].endswith(" ")))
        done = match.end()
    pieces.append(tuple(tokenizer.encode_marked(text[done:])))
    if order != sorted(set(order)) or len(order) != len(shapes):
        raise DataError("the chat template leaves out, repeats or moves messages", key="chat_template")
    closes = tuple(int(bool(piece) and piece[0] in tokenizer.specials) for piece in pieces[1:])
    said = tuple(shapes[place][0] in ("assistant", "text") for place in order)
    return Skeleton(tuple(pieces), tuple(order), tuple(trims), said, closes)


def _source(tokenizer: Tokenizer) -> str:
    if tokenizer.template is None:
        raise DataError("the tokenizer has no chat template", file="tokenizer_config.json", key="chat_template")
    return tokenizer.template


def _templated(turns: Sequence[Mapping[str, Any]], tokenizer: Tokenizer, open_assistant: bool) -> str:
    names = {name: tokenizer.text_of(name) for name in ("bos_token", "eos_token", "pad_token", "unk_token")}
    try:
        found = _compiled(_source(tokenizer)).render(messages=turns, add_generation_prompt=open_assistant, **names)
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
    environment.filters["tojson"] = lambda value, indent=None: json.dumps(value, ensure_ascii=False, indent=indent)
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda form: ""  # a prompt must not depend on the day it is made
    try:
        return environment.from_string(source)
    except TemplateError as error:
        raise DataError(f"not a chat template: {error}", key="chat_template") from None


def _refuse(message: str) -> None:
    raise TemplateError(message)


class _Generation(Extension):
    """`{% generation %}`, by which Hugging Face templates mark what the assistant says; the mask here is our own."""

    tags = {"generation"}  # noqa: RUF012 - jinja2's own form

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)
