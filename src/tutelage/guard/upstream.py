"""Where answers come from: the engine in this process, a generator, an address (remote.py). All give the same pieces.

The engine is stepped by one thread, which hands its tokens to the asyncio loops that wait for them; everything else of
serving is asyncio.
"""

from __future__ import annotations

import asyncio
import atexit
import json
import threading
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from tutelage.core.errors import Busy, UpstreamError, UsageError
from tutelage.core.records import Example, Finish, Message
from tutelage.generate.generator import Generator, Sampling, seed_of, too_long
from tutelage.guard.tools import PLAIN, CallPart, LogProb, Tool, Wants
from tutelage.guard.written import Channel

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
    call: CallPart | None = None
    logprobs: tuple[LogProb, ...] = ()
    """Of tokens whose text has come by now."""


QUEUE = 256
"""Answers that may wait for a place in the engine before more are refused."""
CALL = 'Answer with one call of a function, as {"name": ..., "arguments": ...}. The functions:'
"""What the embedded model is told where it must call one."""
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


class Refusing(Misbehaved):
    """What answers will not have this request; another address, or another try, would not either."""


class Upstream(Protocol):
    """Answers one conversation at a time, in pieces; closing the iterator stops the generation."""

    name: str

    def stream(
        self, messages: Sequence[Message], sampling: Sampling, sample: int = 0, wants: Wants = PLAIN
    ) -> AsyncGenerator[Delta]:
        """Pieces of sample number `sample`; the last one has a finish. Raises UsageError for what it can not give."""
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

    def __init__(self, engine: Engine, tokenizer: Tokenizer, name: str, *, queue: int = QUEUE) -> None:
        self.name, self._tokenizer, self._engine = name, tokenizer, engine
        self._most, self._running = engine.max_batch + queue, 0
        self._thread = EngineThread(engine)

    async def stream(
        self, messages: Sequence[Message], sampling: Sampling, sample: int = 0, wants: Wants = PLAIN
    ) -> AsyncGenerator[Delta]:
        """Pieces as the engine draws tokens. Raises Busy when too many answers wait already."""
        from tutelage.generate.engine import Request
        from tutelage.tokens.chat import render

        schema = _called(wants)
        if schema is not None:
            messages = _instructed(messages, _offered(wants))
        prompt = tuple(render(list(messages), self._tokenizer))
        room = self._engine.capacity - len(prompt)
        if room < 1:
            todo = "Shorten it or begin a new one"
            raise TooLong(too_long(len(prompt), self._engine.capacity), key="messages", todo=todo)
        if self._running >= self._most:
            raise Busy("too many answers wait for the model", todo="Ask again in a moment")
        sampling = sampling.model_copy(update={"max_tokens": min(sampling.max_tokens, room), "n": 1})
        queue: asyncio.Queue[Token | BaseException] = asyncio.Queue()
        request = Request(
            prompt,
            sampling,
            seed=seed_of(sampling.seed, prompt, sample),
            text=True,
            salt=wants.salt,
            priority=wants.priority,
            top_logprobs=wants.logprobs or 0,
        )
        self._running += 1
        ticket: list[int] = []
        try:
            if schema is not None or wants.shape is not None:
                rules = schema if schema is not None or wants.shape is None else wants.shape.schema
                request = request._replace(grammar=await asyncio.to_thread(self._grammar, rules))
            ticket = self._thread.submit(request, Waiter(asyncio.get_running_loop(), queue))
            count, told, written = 0, _Told(self._tokenizer, self._engine.eos), ""
            while True:
                token = await queue.get()
                if isinstance(token, BaseException):
                    raise Misbehaved("the engine failed", said=str(token)) from token
                if token.finish == "error" and request.grammar is not None:
                    raise Misbehaved("the answer could not follow the schema", said=request.grammar.failed)
                count += 1
                if schema is not None:
                    written += token.text
                    if token.finish == "stop":
                        yield Delta("", None, len(prompt), count, "tool_call", _call(written))
                    yield Delta("", token.finish, len(prompt), count)
                    if token.finish is not None:
                        return
                    continue
                logprobs = told.take(token) if wants.logprobs is not None else ()
                yield Delta(token.text, token.finish, len(prompt), count, logprobs=logprobs)
                if token.finish is not None:
                    return
        finally:
            self._running -= 1
            self._thread.cancel(ticket)

    def _grammar(self, schema: dict[str, Any] | None) -> Any:
        from tutelage.generate.grammar import grammar_for

        size = self._engine.decoder.config.vocab_size
        return grammar_for(self._tokenizer, self._engine.eos, schema, size)

    async def close(self) -> None:
        """End the engine's thread."""
        await asyncio.to_thread(self._thread.close)


def _offered(wants: Wants) -> list[Tool]:
    """The tools that may be called."""
    return [tool for tool in wants.tools if wants.choice in ("required", f":{tool.name}")]


def _called(wants: Wants) -> dict[str, Any] | None:
    """The schema of a call, where the answer must be one. Raises UsageError where the model would have to choose."""
    if not wants.tools or wants.choice == "none":
        return None
    if wants.choice == "auto":
        must = "the embedded model calls a tool only where it must: give 'required', or a function's name"
        raise UsageError(must, key="tool_choice")
    if wants.shape is not None:
        raise UsageError("an answer that must be a call has no other shape", key="response_format")
    calls = [
        {
            "type": "object",
            "properties": {"name": {"const": tool.name}, "arguments": tool.parameters or {"type": "object"}},
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for tool in _offered(wants)
    ]
    return calls[0] if len(calls) == 1 else {"anyOf": calls}


def _instructed(messages: Sequence[Message], offered: Sequence[Tool]) -> tuple[Message, ...]:
    """The conversation with the tools in its system prompt."""
    plain = [{"name": each.name, "description": each.description, "parameters": each.parameters} for each in offered]
    text = f"{CALL} {json.dumps(plain, ensure_ascii=False)}"
    if messages and messages[0].role == "system":
        first = messages[0].model_copy(update={"content": f"{messages[0].content}\n\n{text}"})
        return (first, *messages[1:])
    return (Message(role="system", content=text), *messages)


def _call(written: str) -> CallPart:
    try:
        found = json.loads(written)
    except ValueError:
        raise UsageError("the call was cut by one of the stop strings", key="stop") from None
    return CallPart(0, found["name"], json.dumps(found["arguments"], ensure_ascii=False))


class _Told:
    """Tokens of the engine with their log-probabilities, once all their text has come."""

    def __init__(self, tokenizer: Tokenizer, ends: frozenset[int]) -> None:
        self._tokenizer, self._ends = tokenizer, ends
        self._made = self._shown = 0
        self._waiting = deque[tuple[int, LogProb]]()

    def take(self, token: Token) -> tuple[LogProb, ...]:
        """One more token; those whose text has come. The token that ends an answer has none."""
        self._made += len(token.own)
        self._shown += len(token.text)
        if token.id not in self._ends:
            top = tuple((self._text(number), value) for number, value in token.top)
            raw = self._tokenizer.bytes_of(token.id)
            found = LogProb(self._text(token.id), token.logprob, top, raw)
            self._waiting.append((self._made, found))
        found_now = []
        while self._waiting and self._waiting[0][0] <= self._shown:
            found_now.append(self._waiting.popleft()[1])
        return tuple(found_now)

    def _text(self, number: int) -> str:
        return self._tokenizer.decode([number], skip_special=False)


# a generator


class GeneratorUpstream:
    """Any generator, which answers whole: for fakes, and for models behind a synchronous interface."""

    def __init__(self, generator: Generator) -> None:
        self.name, self._generator = generator.name, generator

    async def stream(
        self, messages: Sequence[Message], sampling: Sampling, sample: int = 0, wants: Wants = PLAIN
    ) -> AsyncGenerator[Delta]:
        """One piece: the whole answer."""
        for name, asked in (
            ("tools", wants.tools),
            ("response_format", wants.shape),
            ("logprobs", wants.logprobs is not None),
        ):
            if asked:
                raise UsageError(f"what answers here does not know {name!r}", key=name)
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
