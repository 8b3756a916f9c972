"""What an OpenAI-compatible address sends, read as if by somebody who means ill: whatever has not OpenAI's form is an
error in our words, and nothing that no guard reads is taken over."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from tutelage.core.records import Finish
from tutelage.guard.tools import CallPart, LogProb
from tutelage.guard.upstream import Misbehaved
from tutelage.guard.written import Channel

_FINISH: dict[str, Finish] = {
    "stop": "stop",
    "length": "length",
    "content_filter": "blocked",
    "tool_calls": "tool",
    "function_call": "tool",
}
MOST_TOP = 20
"""Likeliest tokens beside each token."""
LONGEST_TOKEN = 256
_HALF = re.compile("[\ud800-\udfff]")


class Event(NamedTuple):
    """What one event of an upstream says."""

    texts: tuple[tuple[Channel, str], ...] = ()
    calls: tuple[CallPart, ...] = ()
    logprobs: tuple[LogProb, ...] = ()
    finish: Finish | None = None
    usage: tuple[int, int] | None = None

    @property
    def says(self) -> bool:
        """Whether it brings the answer on: comments and empty events do not."""
        return bool(self.texts or self.calls or self.logprobs or self.finish or self.usage)


NOTHING = Event()


def read(line: str, tools: bool = False) -> Event | None:
    """What a line of an event stream says; None at the end. Raises Misbehaved for whatever has not OpenAI's form, and
    for a tool that is called where none was offered."""
    if not line.startswith("data:"):
        return NOTHING
    data = line[5:].strip()
    if data == "[DONE]":
        return None
    try:
        event = json.loads(data)
    except (ValueError, RecursionError):
        raise Misbehaved("the upstream sent an event that is no JSON", said=data) from None
    if (text := _plain(event)) is not None:
        return Event((("content", text),))
    if isinstance(event, dict) and event.get("error") is not None:
        raise Misbehaved("the upstream sent an error in place of an answer", said=data)
    try:
        return _read(event, tools)
    except _Malformed as wrong:
        raise Misbehaved(f"the upstream sent an event that has not OpenAI's form: {wrong}", said=data) from None


_SAID, _ONE = frozenset(("role", "content")), frozenset(("index", "delta", "finish_reason", "logprobs"))


def _plain(event: Any) -> str | None:
    """The text of the commonest event, a piece of what is said and nothing else; None of any other."""
    if type(event) is not dict or event.get("error") is not None or event.get("usage"):
        return None
    choices = event.get("choices")
    if type(choices) is not list or len(choices) != 1 or type(choice := choices[0]) is not dict:
        return None
    if not choice.keys() <= _ONE or choice.get("finish_reason") is not None or choice.get("logprobs"):
        return None
    delta, index = choice.get("delta"), choice.get("index", 0)
    if type(delta) is not dict or not delta.keys() <= _SAID or type(index) is not int or index:
        return None
    text = delta.get("content")
    return text if type(text) is str and text and (text.isascii() or not _HALF.search(text)) else None


def joined(events: Sequence[Event]) -> list[Event]:
    """Events that came together, as few: the guards read once what could be read at once."""
    found: list[Event] = []
    for event in events:
        last = found[-1] if found else NOTHING
        alone = len(last.texts) == len(event.texts) == 1 and not (last.calls or event.calls or last.finish)
        if not alone or last.texts[0][0] != event.texts[0][0]:
            found.append(event)
            continue
        channel, before = last.texts[0]
        texts = ((channel, before + event.texts[0][1]),)
        found[-1] = Event(texts, finish=event.finish, usage=event.usage or last.usage)
    return found


class _Malformed(Exception):
    """Which part of an event is not as it must be, in our words."""


def _read(event: Any, tools: bool) -> Event:
    _must(isinstance(event, dict), "an object was expected")
    choices, usage = event.get("choices"), event.get("usage")
    _must(choices is None or isinstance(choices, list), "'choices' is no list")
    _must(usage is None or isinstance(usage, dict), "'usage' is no object")
    _must(len(choices or ()) <= 1, "it has several choices, one was asked for")
    found = Event(usage=_usage(usage) if usage else None)
    for choice in choices or ():
        _must(isinstance(choice, dict), "a choice is no object")
        _must(choice.get("index") in (None, 0), "it is of a choice that was not asked for")
        delta, finish = choice.get("delta"), choice.get("finish_reason")
        _must(delta is None or isinstance(delta, dict), "'delta' is no object")
        _must(finish is None or isinstance(finish, str), "'finish_reason' is no text")
        _must(tools or finish not in ("tool_calls", "function_call"), "it ended for a tool, and none was offered")
        written = choice.get("text")  # of a completion of running text
        _must(written is None or isinstance(written, str), "'text' is no text")
        delta = delta or ({"content": written} if written else {})
        found = found._replace(
            texts=_texts(delta),
            calls=_calls(delta, tools),
            logprobs=_logprobs(choice.get("logprobs")),
            finish=_FINISH.get(finish or ""),
        )
    return found


def _texts(delta: dict[str, Any]) -> tuple[tuple[Channel, str], ...]:
    """The texts of a delta, each with the channel under which it is guarded; a refusal is what is said."""
    if delta.get("audio"):
        raise _Malformed("it holds sound, which nobody can guard")
    for name in ("content", "refusal", "reasoning_content", "reasoning"):
        _text(delta.get(name), name)
    thought = delta.get("reasoning_content") or delta.get("reasoning")  # some send it under both names
    found: tuple[tuple[Channel, str | None], ...] = (
        ("reasoning", thought),
        ("content", delta.get("content")),
        ("content", delta.get("refusal")),
    )
    return tuple((channel, text) for channel, text in found if text)


def _calls(delta: dict[str, Any], tools: bool) -> tuple[CallPart, ...]:
    given = delta.get("tool_calls")
    if not given and not delta.get("function_call"):
        return ()
    _must(tools and not delta.get("function_call"), "it calls a tool, and none was offered")
    _must(isinstance(given, list), "'tool_calls' is no list")
    found = []
    for place, each in enumerate(given or ()):
        _must(isinstance(each, dict), "a call is no object")
        index, function = each.get("index", place), each.get("function") or {}
        _must(isinstance(index, int) and not isinstance(index, bool) and 0 <= index < 1 << 20, "a call has no number")
        _must(isinstance(function, dict), "'function' is no object")
        _must(each.get("type") in (None, "function"), "it calls something that is no function")
        found.append(
            CallPart(index, _text(function.get("name"), "name"), _text(function.get("arguments"), "arguments"))
        )
    return tuple(found)


def _logprobs(given: Any) -> tuple[LogProb, ...]:
    if not given:
        return ()
    _must(isinstance(given, dict), "'logprobs' is no object")
    content = given.get("content") or ()
    _must(isinstance(content, list | tuple), "'logprobs.content' is no list")
    return tuple(_token(each, top=True) for each in content)


def _token(given: Any, top: bool = False) -> LogProb:
    _must(isinstance(given, dict), "a token is no object")
    text, value, raw = _text(given.get("token"), "token"), given.get("logprob"), given.get("bytes")
    fine = isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value) and value <= 1e-3
    _must(fine and len(text) <= LONGEST_TOKEN, "a token has no log-probability")
    whole = raw is None or (isinstance(raw, list) and len(raw) <= 4 * LONGEST_TOKEN)
    _must(whole and all(isinstance(b, int) and 0 <= b < 256 for b in raw or ()), "a token's bytes are no bytes")
    likely = (given.get("top_logprobs") or ()) if top else ()
    _must(isinstance(likely, list | tuple) and len(likely) <= MOST_TOP, "'top_logprobs' is no short list")
    best = tuple((each.token, each.logprob) for each in map(_token, likely))
    return LogProb(text, max(float(value), -9999.0), best, None if raw is None else bytes(raw))


def _text(given: Any, name: str) -> str:
    _must(given is None or isinstance(given, str), f"{name!r} is no text")
    _must(not _HALF.search(given or ""), f"{name!r} holds half a surrogate pair, which is no text")
    return given or ""


def _usage(usage: dict[str, Any]) -> tuple[int, int]:
    counts = [usage.get(name) or 0 for name in ("prompt_tokens", "completion_tokens")]
    _must(all(isinstance(each, int) and 0 <= each < 1 << 40 for each in counts), "'usage' holds no numbers of tokens")
    return int(counts[0]), int(counts[1])


def _must(fine: bool, wrong: str) -> None:
    if not fine:
        raise _Malformed(wrong)
