"""Where answers come from: the engine in this process, any OpenAI-compatible address, or a generator.

All give the same stream of pieces. The engine is stepped by one thread, which hands its tokens to the asyncio loops
that wait for them; everything else of serving is asyncio.
"""

from __future__ import annotations

import asyncio
import atexit
import json
import re
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import aiohttp

from tutelage.core.errors import MissingExtra, UpstreamError, UsageError
from tutelage.core.records import Example, Finish, Message
from tutelage.generate.generator import Generator, Sampling, seed_of, too_long
from tutelage.generate.remote import wire_sampling
from tutelage.guard.policy import Channel

if TYPE_CHECKING:
    from tutelage.generate.engine import Engine, Token
    from tutelage.tokens.tokenizer import Tokenizer


class Delta(NamedTuple):
    """A part of an answer. `prompt` and `completion` are token counts so far, where they are known."""

    text: str
    finish: Finish | None = None
    prompt: int = 0
    completion: int = 0
    channel: Channel = "content"


SAID = 300
"""Characters kept of what an upstream said instead of an answer."""


class TooLong(UsageError):
    """The conversation does not fit the model's context. `said` as in `Misbehaved`."""

    def __init__(self, message: str, *, said: str = "", key: str | None = None, todo: str | None = None) -> None:
        super().__init__(message, key=key, todo=todo)
        self.said = said[:SAID]


class Misbehaved(UpstreamError):
    """What answers failed, or sent what it must not. The message is in our words alone, and may be shown.

    `said` is what the other side said. No guard has read it: it is for the trace, never for a client.
    """

    def __init__(self, message: str, *, said: str = "", key: str | None = None, todo: str | None = None) -> None:
        super().__init__(message, key=key, todo=todo)
        self.said = said[:SAID]


class Upstream(Protocol):
    """Answers one conversation at a time, in pieces; closing the iterator stops the generation."""

    name: str

    def stream(self, messages: Sequence[Message], sampling: Sampling, sample: int = 0) -> AsyncGenerator[Delta]:
        """Pieces of sample number `sample`; the last one has a finish."""
        ...

    async def close(self) -> None:
        """Let go of threads and connections."""
        ...


# the engine in this process


class Waiter(NamedTuple):
    """Who waits for a request's tokens: a queue of an event loop."""

    loop: asyncio.AbstractEventLoop
    queue: asyncio.Queue[Token | BaseException]


class EngineThread:
    """Steps an engine in one thread. Each step's tokens go to their event loops in one call per loop.

    A thread that nobody closed ends with the program, before the interpreter is taken down around it: caught in a
    product of matrices it would bring the whole process to an abort.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._changed = threading.Condition()
        self._new: list[tuple[Any, Waiter, list[int]]] = []
        self._gone: list[list[int]] = []
        self._closing = False
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        atexit.register(self.close)
        self._thread.start()

    def submit(self, request: Any, waiter: Waiter) -> list[int]:
        """Queue a request; the ticket is for `cancel`."""
        ticket: list[int] = []
        with self._changed:
            if self._closing:
                raise UpstreamError("the engine is closed")
            self._new.append((request, waiter, ticket))
            self._changed.notify()
        return ticket

    def cancel(self, ticket: list[int]) -> None:
        """Stop a request; its slot is free at the next step."""
        with self._changed:
            self._gone.append(ticket)
            self._changed.notify()

    def close(self) -> None:
        """End the thread after the current step."""
        atexit.unregister(self.close)
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(10)

    def _work(self) -> None:
        waiting: dict[int, Waiter] = {}
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._new or self._gone or self._closing or self._engine.busy)
                new, gone = self._new, self._gone
                self._new, self._gone = [], []
            if self._closing:
                break
            for request, waiter, ticket in new:
                try:
                    ticket.append(self._engine.submit(request))
                    waiting[ticket[0]] = waiter
                except Exception as error:
                    _deliver([(waiter, error)])
            for ticket in gone:
                if ticket:
                    self._engine.cancel(ticket[0])
                    waiting.pop(ticket[0], None)
            try:
                tokens = self._engine.step()
            except Exception as error:  # whatever the step met, every request that runs must hear of it
                for number in waiting:
                    self._engine.cancel(number)
                _deliver([(waiter, error) for waiter in waiting.values()])
                waiting.clear()
                continue
            _deliver([(waiting[token.request], token) for token in tokens if token.request in waiting])
            for token in tokens:
                if token.finish is not None:
                    waiting.pop(token.request, None)
        for number in waiting:
            self._engine.cancel(number)
        closed = UpstreamError("the engine was closed")
        _deliver([(waiter, closed) for waiter in [*waiting.values(), *(each[1] for each in new)]])


def _deliver(found: Sequence[tuple[Waiter, Token | BaseException]]) -> None:
    """Hand tokens to the loops that wait for them."""
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Queue[Token | BaseException], Any]]] = {}
    for waiter, token in found:
        by_loop.setdefault(waiter.loop, []).append((waiter.queue, token))
    for loop, pairs in by_loop.items():
        with suppress(RuntimeError):  # the loop that asked is gone: nobody waits any more
            loop.call_soon_threadsafe(_put, pairs)


def _put(pairs: Sequence[tuple[asyncio.Queue[Token | BaseException], Token | BaseException]]) -> None:
    for queue, token in pairs:
        queue.put_nowait(token)


class EngineUpstream:
    """The embedded model. Conversations longer than its context are refused, never cut in silence."""

    def __init__(self, engine: Engine, tokenizer: Tokenizer, name: str) -> None:
        self.name, self._tokenizer, self._engine = name, tokenizer, engine
        self._thread = EngineThread(engine)

    async def stream(self, messages: Sequence[Message], sampling: Sampling, sample: int = 0) -> AsyncGenerator[Delta]:
        """Pieces as the engine draws tokens."""
        from tutelage.generate.engine import Request
        from tutelage.tokens.chat import render

        prompt = tuple(render(list(messages), self._tokenizer))
        room = self._engine.capacity - len(prompt)
        if room < 1:
            todo = "Shorten it or begin a new one"
            raise TooLong(too_long(len(prompt), self._engine.capacity), key="messages", todo=todo)
        sampling = sampling.model_copy(update={"max_tokens": min(sampling.max_tokens, room), "n": 1})
        queue: asyncio.Queue[Token | BaseException] = asyncio.Queue()
        request = Request(prompt, sampling, seed=seed_of(sampling.seed, prompt, sample), text=True)
        ticket = self._thread.submit(request, Waiter(asyncio.get_running_loop(), queue))
        count = 0
        try:
            while True:
                token = await queue.get()
                if isinstance(token, BaseException):
                    raise Misbehaved("the engine failed", said=str(token)) from token
                count += 1
                yield Delta(token.text, token.finish, len(prompt), count)
                if token.finish is not None:
                    return
        finally:
            self._thread.cancel(ticket)

    async def close(self) -> None:
        """End the engine's thread."""
        await asyncio.to_thread(self._thread.close)


# any OpenAI-compatible address


class RemoteUpstream:
    """An OpenAI-compatible address. Tries again only before the first byte of an answer."""

    def __init__(
        self, url: str, model: str, key: str | None = None, *, tries: int = 3, connect: float = 5.0, idle: float = 60.0
    ) -> None:
        self.name = model
        self._url, self._key, self._tries = url.rstrip("/"), key, max(1, tries)
        self._timeout = aiohttp.ClientTimeout(total=None, sock_connect=connect, sock_read=idle)
        self._sessions: dict[asyncio.AbstractEventLoop, aiohttp.ClientSession] = {}

    def _session(self) -> aiohttp.ClientSession:
        loop = asyncio.get_running_loop()
        session = self._sessions.get(loop)
        if session is None or session.closed:
            self._sessions = {each: s for each, s in self._sessions.items() if not each.is_closed()}
            session = self._sessions[loop] = aiohttp.ClientSession(
                timeout=self._timeout, connector=aiohttp.TCPConnector(limit=1024), trust_env=False
            )
        return session

    async def stream(self, messages: Sequence[Message], sampling: Sampling, sample: int = 0) -> AsyncGenerator[Delta]:
        """Pieces as the other side sends them. Raises Misbehaved for anything it should not have sent."""
        if any(message.role == "text" for message in messages):
            raise UsageError("an upstream answers conversations; completions need the embedded model", key="prompt")
        body: dict[str, Any] = {
            "model": self.name,
            "messages": [_wire(message) for message in messages],
            "stream": True,
            "stream_options": {"include_usage": True},
            **wire_sampling(sampling, (sampling.seed + sample) % 2**31),
        }
        response = await self._open(body)
        finish: Finish | None = None
        count = (0, 0)
        try:
            async for line in _lines(response):
                event = _event(line)
                if event is None:
                    break
                count = event.usage or count
                finish = event.finish or finish
                for channel, text in event.texts:
                    yield Delta(text, None, *count, channel)
            if finish is None:
                raise Misbehaved("the upstream ended its answer without a finish", key=self._url)
            yield Delta("", finish, *count)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise Misbehaved(f"the upstream broke off ({type(error).__name__})", key=self._url) from None
        finally:
            response.close()

    async def _open(self, body: dict[str, Any]) -> aiohttp.ClientResponse:
        headers = {"authorization": f"Bearer {self._key}"} if self._key else {}
        url, why = f"{self._url}/chat/completions", ""
        for attempt in range(self._tries):
            if attempt:
                await asyncio.sleep(min(2.0, 0.1 * 2**attempt))
            try:
                # a redirection would carry the conversation to an address that nobody named
                response = await self._session().post(url, json=body, headers=headers, allow_redirects=False)
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                why = type(error).__name__
                continue
            if response.status == 200:
                return response
            why = f"status {response.status}"
            said = await _begin(response)
            if response.status < 500 and response.status != 429:
                if "context_length_exceeded" in said:
                    raise TooLong("the conversation does not fit the upstream's context", key="messages")
                denied = response.status in (401, 403)
                todo = "Set OPENAI_API_KEY, or upstream.key in service.yaml" if denied else None
                raise Misbehaved(f"the upstream refused the request ({why})", said=said, key=self._url, todo=todo)
        raise Misbehaved(f"the upstream does not answer ({why}, {self._tries} tries)", key=self._url)

    async def close(self) -> None:
        """Close this loop's connections."""
        session = self._sessions.pop(asyncio.get_running_loop(), None)
        if session:
            await session.close()


_FINISH: dict[str, Finish] = {"stop": "stop", "length": "length", "content_filter": "blocked"}
LONGEST_LINE = 1 << 20
LONGEST_STREAM = 1 << 26
"""Bytes of the longest answer, with everything around its text."""


async def _begin(response: aiohttp.ClientResponse) -> str:
    """How the body of an error begins; what is left of it is not read."""
    try:
        return (await response.content.read(4096)).decode("utf-8", "replace")
    except (aiohttp.ClientError, TimeoutError, OSError):
        return ""
    finally:
        response.close()


async def _lines(response: aiohttp.ClientResponse) -> AsyncIterator[str]:
    """Lines of an event stream, whatever the pieces it comes in; an endless line or stream is an error."""
    held, total = b"", 0
    async for data in response.content.iter_any():
        held += data
        total += len(data)
        *lines, held = held.split(b"\n")
        if len(held) > LONGEST_LINE or total > LONGEST_STREAM:
            raise Misbehaved("the upstream sent an endless answer")
        for line in lines:
            yield line.decode("utf-8", "replace").rstrip("\r")
    if held:
        yield held.decode("utf-8", "replace")


class Event(NamedTuple):
    """What one event of an upstream says."""

    texts: tuple[tuple[Channel, str], ...] = ()
    finish: Finish | None = None
    usage: tuple[int, int] | None = None


def _event(line: str) -> Event | None:
    """What a line of an event stream says; None at the end. Raises Misbehaved for whatever has not OpenAI's form."""
    if not line.startswith("data:"):
        return Event()
    data = line[5:].strip()
    if data == "[DONE]":
        return None
    try:
        event = json.loads(data)
    except (ValueError, RecursionError):
        raise Misbehaved("the upstream sent an event that is no JSON", said=data) from None
    if isinstance(event, dict) and event.get("error") is not None:
        raise Misbehaved("the upstream sent an error in place of an answer", said=data)
    try:
        return _read(event)
    except _Malformed as wrong:
        raise Misbehaved(f"the upstream sent an event that has not OpenAI's form: {wrong}", said=data) from None


class _Malformed(Exception):
    """Which part of an event is not as it must be, in our words."""


def _read(event: Any) -> Event:
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
        _must(finish not in ("tool_calls", "function_call"), "it ended for a tool, and none was offered")
        found = found._replace(texts=_texts(delta or {}), finish=_FINISH.get(finish or ""))
    return found


def _texts(delta: dict[str, Any]) -> tuple[tuple[Channel, str], ...]:
    """The texts of a delta, each with the channel under which it is guarded; a refusal is what is said."""
    if delta.get("tool_calls") or delta.get("function_call"):
        raise _Malformed("it calls a tool, and none was offered")
    if delta.get("audio"):
        raise _Malformed("it holds sound, which nobody can guard")
    for name in ("content", "refusal", "reasoning_content", "reasoning"):
        text = delta.get(name)
        _must(text is None or isinstance(text, str), f"{name!r} is no text")
        _must(not _HALF.search(text or ""), f"{name!r} holds half a surrogate pair, which is no text")
    thought = delta.get("reasoning_content") or delta.get("reasoning")  # some send it under both names
    found: tuple[tuple[Channel, str | None], ...] = (
        ("reasoning", thought),
        ("content", delta.get("content")),
        ("content", delta.get("refusal")),
    )
    return tuple((channel, text) for channel, text in found if text)


_HALF = re.compile("[\ud800-\udfff]")


def _usage(usage: dict[str, Any]) -> tuple[int, int]:
    counts = [usage.get(name) or 0 for name in ("prompt_tokens", "completion_tokens")]
    _must(all(isinstance(each, int) and 0 <= each < 1 << 40 for each in counts), "'usage' holds no numbers of tokens")
    return int(counts[0]), int(counts[1])


def _must(fine: bool, wrong: str) -> None:
    if not fine:
        raise _Malformed(wrong)


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


# a generator


class GeneratorUpstream:
    """Any generator, which answers whole: for fakes, and for models behind a synchronous interface."""

    def __init__(self, generator: Generator) -> None:
        self.name, self._generator = generator.name, generator

    async def stream(self, messages: Sequence[Message], sampling: Sampling, sample: int = 0) -> AsyncGenerator[Delta]:
        """One piece: the whole answer."""
        one = sampling.model_copy(update={"n": 1, "seed": sampling.seed + sample})
        try:
            said = await asyncio.to_thread(self._generator.generate, [Example(messages=tuple(messages))], one)
        except UsageError:
            raise
        except Exception as error:  # a remote generator's errors may hold what the other side said
            raise Misbehaved("the generator failed", said=str(error)) from error
        response = said[0][0]
        if response.finish == "error":
            raise TooLong("the generator gave no answer", said=response.error, key="messages")
        usage = response.usage
        counts = usage.get("prompt_tokens", 0), usage.get("completion_tokens", 0)
        yield Delta(response.message.content, response.finish, *counts)

    async def close(self) -> None:
        """Nothing to let go of."""


def open_upstream(
    ref: str, root: Any = None, *, key: str | None = None, max_batch: int = 64, int8: bool = False
) -> Upstream:
    """Open `model:<id>` as an embedded engine, `https://host/v1#model` as a remote one, `fake:...` as a generator.

    `int8`: the embedded engine rounds its matrices; UsageError where it cannot.
    """
    if ref.startswith(("http://", "https://")):
        url, _, model = ref.partition("#")
        return RemoteUpstream(url, model or "default", key)
    from tutelage.core import refs

    generator = refs.open(ref, root)
    if not ref.startswith("model:"):
        return GeneratorUpstream(generator)
    try:
        from tutelage.generate.engine import Engine
    except ModuleNotFoundError as error:
        raise MissingExtra(error.name or "torch", "train") from None
    more: Any = {"max_batch": max_batch, "tokenizer": generator.tokenizer, "int8": int8}
    engine = Engine(generator.decoder, eos=generator.eos, **more)
    return EngineUpstream(engine, generator.tokenizer, generator.name)
