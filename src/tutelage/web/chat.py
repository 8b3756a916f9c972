"""How answers are written in OpenAI's form: chat completions and completions, whole or as server-sent events."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from tutelage.core.records import Decision, Finish
from tutelage.guard.pipeline import Pipeline
from tutelage.guard.request import Ask, Chunk
from tutelage.guard.tools import Call, LogProb
from tutelage.guard.written import Channel
from tutelage.web.wire import fault_of

FINISH: Mapping[Finish, str] = {
    "stop": "stop",
    "length": "length",
    "tool": "tool_calls",
    "blocked": "content_filter",
    "error": "stop",
}


def guard(pipeline: Pipeline, decision: Decision | None) -> dict[str, Any]:
    """What the client is told about a decision: no scores, which would teach how to pass."""
    reasons = sorted({reason.partition(":")[0] for reason in decision.reasons}) if decision else []
    action = decision.action if decision else "allow"
    return {"action": action, "rules": reasons, "policy": pipeline.policy.hash[:16], "release": pipeline.release}


class Chat:
    """Chat completions."""

    name, piece = "chat.completion", "chat.completion.chunk"

    def __init__(self, ask: Ask, pipeline: Pipeline) -> None:
        self.ask, self.pipeline = ask, pipeline
        self.base = {"id": ask.id, "created": int(time.time()), "model": pipeline.model}

    def part(self, chunk: Chunk, opening: bool) -> dict[str, Any]:
        """One event of a stream."""
        delta: dict[str, Any] = {"role": "assistant"} if opening else {}
        if chunk.call is not None:
            delta["tool_calls"] = [{"index": chunk.call.number, **called(chunk.call)}]
        elif chunk.channel == "reasoning":
            delta["reasoning_content"] = chunk.text
        elif chunk.text or opening:
            delta["content"] = chunk.text
        return {**self.base, "object": self.piece, "choices": [self._choice(chunk, {"delta": delta})]}

    def whole(self, answers: Mapping[int, list[Chunk]]) -> dict[str, Any]:
        """The whole answer."""
        choices = []
        for index in sorted(answers):
            message: dict[str, Any] = {"role": "assistant", "content": joined(answers[index]), "refusal": None}
            if calls := [called(chunk.call) for chunk in answers[index] if chunk.call is not None]:
                message |= {"tool_calls": calls, "content": message["content"] or None}
            if thought := joined(answers[index], "reasoning"):
                message["reasoning_content"] = thought
            told = tuple(each for chunk in answers[index] for each in chunk.logprobs)
            choices.append(self._choice(answers[index][-1]._replace(logprobs=told), {"message": message}))
        ends = [chunks[-1] for chunks in answers.values()]
        return {**self.base, "object": self.name, "choices": choices, "usage": usage_of(ends)}

    def _choice(self, chunk: Chunk, said: dict[str, Any]) -> dict[str, Any]:
        finish = FINISH[chunk.finish] if chunk.finish is not None else None
        told = logprobs(chunk.logprobs) if chunk.logprobs else None
        choice = {"index": chunk.choice, **said, "logprobs": told, "finish_reason": finish}
        return choice if finish is None else {**choice, "guard": guard(self.pipeline, chunk.decision)}


class Text(Chat):
    """Completions of a text."""

    name = piece = "text_completion"

    def part(self, chunk: Chunk, opening: bool) -> dict[str, Any]:
        """One event of a stream."""
        return {**self.base, "object": self.piece, "choices": [self._choice(chunk, {"text": chunk.text})]}

    def whole(self, answers: Mapping[int, list[Chunk]]) -> dict[str, Any]:
        """The whole answer."""
        choices = [self._choice(answers[index][-1], {"text": joined(answers[index])}) for index in sorted(answers)]
        ends = [chunks[-1] for chunks in answers.values()]
        return {**self.base, "object": self.name, "choices": choices, "usage": usage_of(ends)}


def called(call: Call) -> dict[str, Any]:
    """A call of a tool."""
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def logprobs(told: Sequence[LogProb]) -> dict[str, Any]:
    """Tokens that have left, with their log-probabilities."""

    def one(text: str, value: float, raw: bytes) -> dict[str, Any]:
        return {"token": text, "logprob": value, "bytes": list(raw)}

    content = [
        one(each.token, each.logprob, each.bytes)
        | {"top_logprobs": [one(text, value, text.encode()) for text, value in each.top]}
        for each in told
    ]
    return {"content": content, "refusal": None}


def joined(chunks: Sequence[Chunk], channel: Channel = "content") -> str:
    """The text of one channel of an answer."""
    return "".join(chunk.text for chunk in chunks if chunk.channel == channel)


def usage_of(ends: list[Chunk]) -> dict[str, int]:
    """Tokens of a request: the prompt is counted once."""
    prompt = max((chunk.usage[0] for chunk in ends), default=0)
    made = sum(chunk.usage[1] for chunk in ends)
    return {"prompt_tokens": prompt, "completion_tokens": made, "total_tokens": prompt + made}


async def events(shape: Chat, first: Chunk, rest: AsyncGenerator[Chunk], usage: bool) -> AsyncIterator[bytes]:
    """A stream as server-sent events. An error after the first byte is an event too, and no `[DONE]` follows it."""
    opened: set[int] = set()
    ends: list[Chunk] = []

    def event(value: Mapping[str, Any]) -> bytes:
        return f"data: {json.dumps(value, ensure_ascii=False, separators=(',', ':'))}\n\n".encode()

    def part(chunk: Chunk) -> bytes:
        if chunk.choice < 0:
            return b": a person is to answer\n\n"
        made = shape.part(chunk, chunk.choice not in opened)
        opened.add(chunk.choice)
        if chunk.finish is not None:
            ends.append(chunk)
        return event({**made, "usage": None} if usage else made)

    last = b""  # the last finish goes out with what ends the stream
    async with aclosing(rest):
        try:
            chunk: Chunk | None = first
            while chunk is not None:
                made = part(chunk)
                if len(ends) == shape.ask.sampling.n:
                    last += made
                else:
                    yield made
                chunk = await anext(rest, None)
        except Exception as error:  # also what nobody thought of: a stream that ends bare looks like one cut by the net
            yield event(fault_of(error).body)
            return
    if usage:
        last += event({**shape.base, "object": shape.piece, "choices": [], "usage": usage_of(ends)})
    yield last + b"data: [DONE]\n\n"
