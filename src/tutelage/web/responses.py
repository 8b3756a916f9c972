"""OpenAI's responses interface, as far as it needs no memory: each request brings its whole conversation.

What would be kept for a later request (`store`, `previous_response_id`, `conversation`), made later (`background`), or
done by OpenAI's own tools is refused by name.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from typing import Any

from tutelage.core.records import Message
from tutelage.generate.generator import Sampling
from tutelage.guard.pipeline import Pipeline
from tutelage.guard.request import Ask, Chunk
from tutelage.guard.tools import Call, LogProb, Wants
from tutelage.web import wire
from tutelage.web.chat import guard, joined, logprobs, usage_of

READ = frozenset(
    ("model", "input", "instructions", "max_output_tokens", "temperature", "top_p", "stream", "tools", "tool_choice")
) | {"parallel_tool_calls", "text", "include", "top_logprobs", "metadata", "user"}
NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "background": (None, False),
    "context_management": (None, []),
    "conversation": (None,),
    "max_tool_calls": (None,),
    "moderation": (None,),
    "previous_response_id": (None,),
    "prompt": (None,),
    "prompt_cache_key": (None,),
    "prompt_cache_options": (None,),
    "prompt_cache_retention": (None,),
    "reasoning": (None, {}),
    "safety_identifier": (None,),
    "service_tier": (None, "auto", "default"),
    "store": (None, False),
    "stream_options": (None, {}, {"include_obfuscation": False}),
    "truncation": (None, "disabled"),
}
"""Parameters that are not supported -> the values that ask for nothing."""
_ITEM = {
    "message": frozenset(("type", "role", "content", "id", "status", "phase")),
    "function_call": frozenset(("type", "call_id", "name", "arguments", "id", "status", "namespace")),
    "function_call_output": frozenset(("type", "call_id", "output", "id", "status")),
    "reasoning": frozenset(("type", "summary", "content", "id", "status", "encrypted_content")),
}


# what is asked


def sampling(body: Mapping[str, Any], default_tokens: int, most_tokens: int) -> Sampling:
    """How the answer is to be drawn."""
    most = min(default_tokens, most_tokens)
    return Sampling(
        max_tokens=int(wire.number(body, "max_output_tokens", most, 1, most_tokens, whole=True)),
        temperature=wire.number(body, "temperature", 1.0, 0, 2),
        top_p=max(1e-6, wire.number(body, "top_p", 1.0, 0, 1)),
    )


def messages(body: Mapping[str, Any], most: int) -> tuple[Message, ...]:
    """Instructions and input as a conversation."""
    given = body.get("input")
    items = [{"role": "user", "content": given}] if isinstance(given, str) else given
    if not isinstance(items, list) or not items or len(items) > wire.MOST_MESSAGES:
        wire.refuse(f"'input' must be a text or a list of 1 to {wire.MOST_MESSAGES} items", "input")
    found: list[Message] = []
    if instructions := wire.text(body, "instructions", most):
        found.append(Message(role="system", content=instructions))
    thought = ""
    for index, item in enumerate(items):
        made = _item(item, f"input[{index}]")
        if isinstance(made, str):
            thought += made
            continue
        if made.role == "assistant":
            made, thought = made.model_copy(update={"reasoning": thought}), ""
            if made.tool_calls and found and found[-1].role == "assistant":
                last = found.pop()
                told = {
                    "tool_calls": (*last.tool_calls, *made.tool_calls),
                    "reasoning": last.reasoning + made.reasoning,
                }
                made = last.model_copy(update=told)
        found.append(made)
    if thought:
        found.append(Message(role="assistant", reasoning=thought))
    total = wire.characters(found)
    if total > most:
        wire.refuse(f"the conversation has {total} characters, {most} are allowed", "input", "context_length_exceeded")
    return tuple(found)


def _item(given: Any, where: str) -> Message | str:
    """A turn, or thoughts that belong to the next one."""
    if not isinstance(given, dict):
        wire.refuse(f"{where} must be an object", where)
    kind = given.get("type", "message")
    if not isinstance(kind, str) or kind not in _ITEM:
        shown = str(kind)[:80]
        wire.refuse(f"{where} is of type {shown!r}, which is not supported", f"{where}.type", "unsupported_item")
    wire.only({name: value for name, value in given.items() if value is not None}, _ITEM[kind], where)
    if kind == "message":
        return wire.message({"role": given.get("role"), "content": given.get("content")}, where)
    if kind == "function_call":
        function = {"name": given.get("name"), "arguments": given.get("arguments")}
        call = {"id": given.get("call_id"), "type": "function", "function": function}
        return wire.message({"role": "assistant", "content": None, "tool_calls": [call]}, where)
    if kind == "function_call_output":
        answer = {"role": "tool", "content": given.get("output"), "tool_call_id": given.get("call_id")}
        return wire.message(answer, where)
    if given.get("encrypted_content"):
        name = f"{where}.encrypted_content"
        wire.refuse(f"{name} can not be read by any guard", name, "unsupported_parameter")
    return "".join(_thoughts(given.get(name), f"{where}.{name}") for name in ("summary", "content"))


def _thoughts(given: Any, where: str) -> str:
    parts = [] if given is None else given
    if not isinstance(parts, list):
        wire.refuse(f"{where} must be a list", where)
    for index, part in enumerate(parts):
        fine = isinstance(part, dict) and part.get("type") in ("summary_text", "reasoning_text")
        if not fine or not isinstance(part.get("text"), str):
            wire.refuse(f"{where}[{index}] must be a text", f"{where}[{index}]")
    return "".join(part["text"] for part in parts)


# what is answered


class Responses:
    """A response, whole or as events."""

    def __init__(self, ask: Ask, pipeline: Pipeline, body: Mapping[str, Any]) -> None:
        self.ask, self.pipeline = ask, pipeline
        wants = ask.wants
        self.base: dict[str, Any] = {
            "id": ask.id,
            "object": "response",
            "created_at": int(time.time()),
            "model": pipeline.model,
            "error": None,
            "instructions": body.get("instructions"),
            "max_output_tokens": body.get("max_output_tokens"),
            "metadata": dict(ask.meta),
            "parallel_tool_calls": wants.parallel is not False,
            "previous_response_id": None,
            "store": False,
            "temperature": ask.sampling.temperature,
            "top_p": ask.sampling.top_p,
            "text": {"format": _format(wants)},
            "tool_choice": _choice(wants),
            "tools": [_tool(each) for each in body.get("tools") or ()],
            "truncation": "disabled",
        }

    def object(self, status: str, output: list[dict[str, Any]], end: Chunk | None = None) -> dict[str, Any]:
        """The response as it stands."""
        found = {**self.base, "status": status, "output": output, "incomplete_details": None, "usage": None}
        if end is None:
            return found
        if end.finish in ("length", "blocked"):
            reason = "max_output_tokens" if end.finish == "length" else "content_filter"
            found |= {"status": "incomplete", "incomplete_details": {"reason": reason}}
        usage = usage_of([end])
        found["usage"] = {
            "input_tokens": usage["prompt_tokens"],
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": usage["completion_tokens"],
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": usage["total_tokens"],
        }
        return {**found, "guard": guard(self.pipeline, end.decision)}

    def whole(self, answers: Mapping[int, list[Chunk]]) -> dict[str, Any]:
        """The whole response."""
        (chunks,) = answers.values()
        output = []
        if thought := joined(chunks, "reasoning"):
            output.append(_reasoning(self.name("rs", 0), thought))
        calls = [chunk.call for chunk in chunks if chunk.call is not None]
        text = joined(chunks)
        if text or not calls:
            told = [each for chunk in chunks for each in chunk.logprobs]
            output.append(_message(self.name("msg", len(output)), text, told))
        for call in calls:
            output.append(_called(self.name("fc", len(output)), call))
        return self.object("completed", output, chunks[-1])

    def name(self, kind: str, place: int) -> str:
        """The name of an item."""
        return f"{kind}_{self.ask.id.replace('-', '')}_{place}"

    async def events(self, first: Chunk, rest: AsyncGenerator[Chunk]) -> AsyncIterator[bytes]:
        """A stream as server-sent events. An error after the first byte is an event too, and the last one."""
        writing = _Writing(self)
        async with aclosing(rest):
            try:
                for event in writing.begin():
                    yield event
                for event in writing.chunk(first):
                    yield event
                async for chunk in rest:
                    for event in writing.chunk(chunk):
                        yield event
            except Exception as error:  # a stream that ends bare looks like one cut by the net
                yield writing.failed(wire.fault_of(error))


class _Writing:
    """The events of one response: items open and close as the channel changes."""

    def __init__(self, shape: Responses) -> None:
        self._shape, self._number = shape, 0
        self._output: list[dict[str, Any]] = []
        self._open = ""
        self._text: list[str] = []
        self._told: list[LogProb] = []

    def _event(self, kind: str, **values: Any) -> bytes:
        body = {"type": kind, "sequence_number": self._number, **values}
        self._number += 1
        return f"event: {kind}\ndata: {json.dumps(body, ensure_ascii=False, separators=(',', ':'))}\n\n".encode()

    def begin(self) -> list[bytes]:
        begun = self._shape.object("in_progress", [])
        return [self._event("response.created", response=begun), self._event("response.in_progress", response=begun)]

    def chunk(self, chunk: Chunk) -> list[bytes]:
        found: list[bytes] = []
        if chunk.choice < 0:
            return [b": a person is to answer\n\n"]
        if chunk.call is not None:
            found += [*self._shut(), *self._call(chunk.call)]
        elif chunk.text or chunk.logprobs:
            found += self._more(chunk)
        if chunk.finish is None:
            return found
        if not self._output and not self._open:
            found += self._begin("content")
        found += self._shut()
        whole = self._shape.object("completed", self._output, chunk)
        return [*found, self._event(f"response.{whole['status']}", response=whole)]

    def failed(self, fault: wire.Fault) -> bytes:
        error = fault.body["error"]
        told = {"code": error["code"], "message": error["message"], "param": error["param"]}
        return self._event("error", **told, error=error)

    def _place(self) -> dict[str, Any]:
        index = len(self._output)
        return {
            "output_index": index,
            "item_id": self._shape.name("rs" if self._open == "reasoning" else "msg", index),
        }

    def _begin(self, channel: str) -> list[bytes]:
        self._open, self._text, self._told = channel, [], []
        place = self._place()
        if channel == "reasoning":
            item: dict[str, Any] = {**_reasoning(place["item_id"], ""), "content": [], "status": "in_progress"}
            part: dict[str, Any] = {"type": "reasoning_text", "text": ""}
        else:
            item = {**_message(place["item_id"], "", ()), "content": [], "status": "in_progress"}
            part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        return [
            self._event("response.output_item.added", output_index=place["output_index"], item=item),
            self._event("response.content_part.added", **place, content_index=0, part=part),
        ]

    def _more(self, chunk: Chunk) -> list[bytes]:
        channel = "reasoning" if chunk.channel == "reasoning" else "content"
        found = []
        if channel != self._open:
            found += [*self._shut(), *self._begin(channel)]
        self._text.append(chunk.text)
        self._told += chunk.logprobs
        if channel == "reasoning":
            kind, more = "response.reasoning_text.delta", {}
        else:
            kind, more = "response.output_text.delta", {"logprobs": _tokens(chunk.logprobs)}
        return [*found, self._event(kind, **self._place(), content_index=0, delta=chunk.text, **more)]

    def _shut(self) -> list[bytes]:
        if not self._open:
            return []
        place, text = self._place(), "".join(self._text)
        if self._open == "reasoning":
            item = _reasoning(place["item_id"], text)
            done = self._event("response.reasoning_text.done", **place, content_index=0, text=text)
        else:
            item = _message(place["item_id"], text, self._told)
            told = _tokens(self._told)
            done = self._event("response.output_text.done", **place, content_index=0, text=text, logprobs=told)
        found = [
            done,
            self._event("response.content_part.done", **place, content_index=0, part=item["content"][0]),
            self._event("response.output_item.done", output_index=place["output_index"], item=item),
        ]
        self._output.append(item)
        self._open = ""
        return found

    def _call(self, call: Call) -> list[bytes]:
        index = len(self._output)
        item = _called(self._shape.name("fc", index), call)
        place = {"output_index": index, "item_id": item["id"]}
        self._output.append(item)
        begun = {**item, "arguments": "", "status": "in_progress"}
        kind, said = "response.function_call_arguments", call.arguments
        return [
            self._event("response.output_item.added", output_index=index, item=begun),
            self._event(f"{kind}.delta", **place, delta=said),
            self._event(f"{kind}.done", **place, name=call.name, arguments=said),
            self._event("response.output_item.done", output_index=index, item=item),
        ]


def _message(name: str, text: str, told: list[LogProb] | tuple[LogProb, ...]) -> dict[str, Any]:
    part = {"type": "output_text", "text": text, "annotations": [], "logprobs": _tokens(told)}
    return {"type": "message", "id": name, "role": "assistant", "status": "completed", "content": [part]}


def _reasoning(name: str, text: str) -> dict[str, Any]:
    content = [{"type": "reasoning_text", "text": text}]
    return {"type": "reasoning", "id": name, "summary": [], "content": content, "status": "completed"}


def _called(name: str, call: Call) -> dict[str, Any]:
    told = {"call_id": call.id, "name": call.name, "arguments": call.arguments}
    return {"type": "function_call", "id": name, **told, "status": "completed"}


def _tokens(told: list[LogProb] | tuple[LogProb, ...]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = logprobs(told)["content"]
    return found


def _format(wants: Wants) -> dict[str, Any]:
    shape = wants.shape
    if shape is None:
        return {"type": "text"}
    if shape.schema is None:
        return {"type": "json_object"}
    return {"type": "json_schema", "name": shape.name, "schema": shape.schema, "strict": shape.strict}


def _choice(wants: Wants) -> Any:
    named = wants.choice.startswith(":")
    return {"type": "function", "name": wants.choice[1:]} if named else wants.choice


def _tool(given: Mapping[str, Any]) -> dict[str, Any]:
    return {"parameters": None, "strict": None, "description": None, **given}
