"""Any OpenAI-compatible address: answers as they are written, and embeddings. Each wait has an end: to be connected, to
the first byte, between two events that say something, for the whole answer."""

from __future__ import annotations

import asyncio
import json
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp

from tutelage.core.errors import UsageError
from tutelage.core.records import Finish, Message
from tutelage.generate.generator import Sampling
from tutelage.generate.remote import wire_sampling
from tutelage.guard.events import Event, joined, read
from tutelage.guard.tools import PLAIN, LogProb, Wants
from tutelage.guard.upstream import Delta, Misbehaved, Refusing, TooLong

LONGEST_LINE = 1 << 20
LONGEST_STREAM = 1 << 26
"""Bytes of the longest answer, with everything around its text."""
PAUSE_S = 2.0
"""Longest pause between two tries; the first is a tenth of it."""


@dataclass(frozen=True)
class Patience:
    """Seconds an upstream may take."""

    connect: float = 5.0
    first: float = 60.0
    """To the first event that says something."""
    idle: float = 60.0
    """Between two of them."""
    total: float = 600.0


class RemoteUpstream:
    """An OpenAI-compatible address. Tries again only before the first byte of an answer."""

    def __init__(
        self, url: str, model: str, key: str | None = None, *, tries: int = 3, patience: Patience | None = None
    ) -> None:
        self.name = model
        self._url, self._key, self._tries = url.rstrip("/"), key, max(1, tries)
        self._patience = patience or Patience()
        self._sessions: dict[asyncio.AbstractEventLoop, aiohttp.ClientSession] = {}

    def _session(self) -> aiohttp.ClientSession:
        loop = asyncio.get_running_loop()
        session = self._sessions.get(loop)
        if session is None or session.closed:
            self._sessions = {each: s for each, s in self._sessions.items() if not each.is_closed()}
            timeout = aiohttp.ClientTimeout(
                total=None,
                sock_connect=self._patience.connect,
                sock_read=max(self._patience.first, self._patience.idle),
            )
            session = self._sessions[loop] = aiohttp.ClientSession(
                timeout=timeout, connector=aiohttp.TCPConnector(limit=4096), trust_env=False
            )
        return session

    async def stream(
        self, messages: Sequence[Message], sampling: Sampling, sample: int = 0, wants: Wants = PLAIN
    ) -> AsyncGenerator[Delta]:
        """Pieces as the other side sends them. Raises Misbehaved for anything it should not have sent."""
        until = time.monotonic() + self._patience.total
        path, body = self._asked(messages, sampling, sample, wants)
        response = await self._open(path, body, until)
        finish: Finish | None = None
        count, tokens = (0, 0), _Tokens()
        try:
            async for events in self._events(response, bool(wants.tools), until):
                for event in events if wants.logprobs is not None else joined(events):
                    count = event.usage or count
                    finish = event.finish or finish
                    told = tokens.take(event) if wants.logprobs is not None else ()
                    for channel, text in event.texts:
                        mine = told if channel == "content" else ()
                        told = () if mine else told
                        yield Delta(text, None, *count, channel, logprobs=mine)
                    if told:
                        yield Delta("", None, *count, logprobs=told)
                    for call in event.calls:
                        yield Delta("", None, *count, "tool_call", call)
            if finish is None:
                raise Misbehaved("the upstream ended its answer without a finish", key=self._url)
            yield Delta("", finish, *count)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise Misbehaved(f"the upstream broke off ({type(error).__name__})", key=self._url) from None
        finally:
            response.close()

    async def _events(self, response: aiohttp.ClientResponse, tools: bool, until: float) -> AsyncIterator[list[Event]]:
        """Events that say something, those that come together at once; whatever else drips in is no sign of life."""
        reads, patience = _reads(response), self._patience
        waits = time.monotonic() + patience.first
        while True:
            left = min(waits, until) - time.monotonic()
            try:
                async with asyncio.timeout(max(0.0, left)):
                    lines = await anext(reads)
            except TimeoutError:
                late = "took too long over its answer" if waits > until else "has gone silent"
                raise Misbehaved(f"the upstream {late}", key=self._url) from None
            except StopAsyncIteration:
                return
            said, wrong, ended = list[Event](), None, False
            for line in lines:
                try:
                    event = read(line, tools)
                except Misbehaved as error:  # what came before it was well-formed
                    wrong = error
                    break
                if event is None:
                    ended = True
                    break
                if event.says:
                    said.append(event)
            if said:
                waits = time.monotonic() + patience.idle
                yield said
            if wrong is not None:
                raise wrong
            if ended:
                return

    def _asked(
        self, messages: Sequence[Message], sampling: Sampling, sample: int, wants: Wants
    ) -> tuple[str, dict[str, Any]]:
        """Path and body of the request."""
        body: dict[str, Any] = {
            "model": self.name,
            "stream": True,
            "stream_options": {"include_usage": True},
            **wire_sampling(sampling, (sampling.seed + sample) % 2**31),
        }
        for name in wants.left_open:
            body.pop(name, None)
        if all(message.role == "text" for message in messages):
            return "/completions", {**body, "prompt": "".join(message.content for message in messages)}
        if any(message.role == "text" for message in messages):  # under a system prompt, say
            raise UsageError("running text stands alone: it is continued, not answered", key="prompt")
        body["messages"] = [_wire(message) for message in messages]
        if wants.tools:
            body["tools"] = [_tool(each.name, each.description, each.parameters, each.strict) for each in wants.tools]
            named = wants.choice.startswith(":")
            body["tool_choice"] = (
                {"type": "function", "function": {"name": wants.choice[1:]}} if named else wants.choice
            )
            if wants.parallel is not None:
                body["parallel_tool_calls"] = wants.parallel
        if wants.shape is not None:
            body["response_format"] = _shape(wants)
        if wants.logprobs is not None:
            body |= {"logprobs": True, "top_logprobs": wants.logprobs}
        return "/chat/completions", body

    async def _open(self, path: str, body: dict[str, Any], until: float) -> aiohttp.ClientResponse:
        url, why = f"{self._url}{path}", ""
        for attempt in range(self._tries):
            if attempt:
                await asyncio.sleep(min(PAUSE_S, 0.1 * 2**attempt))
            left = min(self._patience.first, until - time.monotonic())
            try:
                # a redirection would carry the conversation to an address that nobody named
                async with asyncio.timeout(max(0.0, left)):
                    response = await self._session().post(
                        url, json=body, headers=self._headers(), allow_redirects=False
                    )
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                why = type(error).__name__
                continue
            if response.status == 200:
                return response
            why = f"status {response.status}"
            if final := await _refused(response, self._url):
                raise final
        raise Misbehaved(f"the upstream does not answer ({why}, {self._tries} tries)", key=self._url)

    def _headers(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self._key}"} if self._key else {}

    async def embed(self, texts: Sequence[str]) -> tuple[list[list[float]], int]:
        """One vector per text, and how many tokens were read. Raises Misbehaved."""
        body = {"model": self.name, "input": list(texts), "encoding_format": "float"}
        until = time.monotonic() + self._patience.total
        response = await self._open("/embeddings", body, until)
        try:
            data = bytearray()
            async with asyncio.timeout(max(0.0, until - time.monotonic())):
                async for part in response.content.iter_any():
                    data += part
                    if len(data) > LONGEST_STREAM:
                        raise Misbehaved("the upstream sent an endless answer", key=self._url)
            return _vectors(json.loads(data), len(texts))
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise Misbehaved(f"the upstream broke off ({type(error).__name__})", key=self._url) from None
        except (ValueError, RecursionError):
            raise Misbehaved("the upstream sent no vectors", key=self._url) from None
        finally:
            response.close()

    async def close(self) -> None:
        """Close this loop's connections."""
        session = self._sessions.pop(asyncio.get_running_loop(), None)
        if session:
            await session.close()


class _Tokens:
    """Tokens beside the text they make. What is no part of that text no guard has read, and it is an error."""

    def __init__(self) -> None:
        self._said, self._waiting = b"", deque[LogProb]()

    def take(self, event: Event) -> tuple[LogProb, ...]:
        """The tokens whose text is there by now. Raises Misbehaved for those of another text."""
        content = "".join(text for channel, text in event.texts if channel == "content")
        self._said += content.encode()
        if content or not (event.texts or event.calls):  # else they are of thoughts, or of a call
            self._waiting += event.logprobs
        found = []
        while self._waiting:
            raw = self._waiting[0].bytes
            if not self._said.startswith(raw):
                if raw.startswith(self._said):
                    break
                raise Misbehaved("the upstream sent log-probabilities of another text than its answer")
            self._said = self._said[len(raw) :]
            found.append(self._waiting.popleft())
        return tuple(found)


async def _refused(response: aiohttp.ClientResponse, url: str) -> Exception | None:
    """What a status other than 200 comes to, unless it may pass."""
    said = await _begin(response)
    if response.status >= 500 or response.status in (408, 429):
        return None
    if "context_length_exceeded" in said:
        return TooLong("the conversation does not fit the upstream's context", key="messages")
    why = f"the upstream refused the request (status {response.status})"
    if response.status in (400, 413, 422):
        return Refusing(why, said=said, key=url)
    denied = response.status in (401, 403)
    todo = "Set OPENAI_API_KEY, or upstream.key in service.yaml" if denied else None
    return Misbehaved(why, said=said, key=url, todo=todo)


async def _begin(response: aiohttp.ClientResponse) -> str:
    """How the body of an error begins; what is left of it is not read."""
    try:
        async with asyncio.timeout(5.0):
            return (await response.content.read(4096)).decode("utf-8", "replace")
    except (aiohttp.ClientError, TimeoutError, OSError):
        return ""
    finally:
        response.close()


async def _reads(response: aiohttp.ClientResponse) -> AsyncIterator[list[str]]:
    """Whole lines of an event stream as they come in together; an endless line or stream is an error."""
    held, total = b"", 0
    async for data in response.content.iter_any():
        held += data
        total += len(data)
        *lines, held = held.split(b"\n")
        if len(held) > LONGEST_LINE or total > LONGEST_STREAM:
            raise Misbehaved("the upstream sent an endless answer")
        yield [line.decode("utf-8", "replace").rstrip("\r") for line in lines if len(line) > 1]
    if held:
        yield [held.decode("utf-8", "replace")]


def _vectors(found: Any, count: int) -> tuple[list[list[float]], int]:
    data = found.get("data") if isinstance(found, Mapping) else None
    if not isinstance(data, list) or len(data) != count:
        raise ValueError
    rows: list[Any] = [each.get("embedding") if isinstance(each, Mapping) else None for each in data]
    width = len(rows[0]) if isinstance(rows[0], list) else 0
    for row in rows:
        if not isinstance(row, list) or not width or len(row) != width:
            raise ValueError
        if not all(isinstance(v, int | float) and not isinstance(v, bool) and abs(v) < 1e30 for v in row):
            raise ValueError
    usage = found.get("usage")
    read_ = usage.get("prompt_tokens") if isinstance(usage, Mapping) else 0
    return rows, read_ if isinstance(read_, int) and 0 <= read_ < 1 << 40 else 0


def _wire(message: Message) -> dict[str, Any]:
    found: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.name:
        found["name"] = message.name
    if message.tool_call_id:
        found["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        found["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in message.tool_calls
        ]
    return found


def _tool(name: str, description: str, parameters: Any, strict: bool | None) -> dict[str, Any]:
    function: dict[str, Any] = {"name": name}
    function |= {"description": description} if description else {}
    function |= {"parameters": parameters} if parameters is not None else {}
    function |= {"strict": strict} if strict is not None else {}
    return {"type": "function", "function": function}


def _shape(wants: Wants) -> dict[str, Any]:
    assert wants.shape is not None
    if wants.shape.schema is None:
        return {"type": "json_object"}
    told: dict[str, Any] = {"name": wants.shape.name, "schema": wants.shape.schema}
    told |= {"description": wants.shape.description} if wants.shape.description else {}
    told |= {"strict": wants.shape.strict} if wants.shape.strict is not None else {}
    return {"type": "json_schema", "json_schema": told}
