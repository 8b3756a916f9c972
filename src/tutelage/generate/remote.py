"""Any OpenAI-compatible endpoint as a generator: one connection per thread, retries with patience, clear ends."""

from __future__ import annotations

import contextlib
import http.client
import json
import math
import random
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from tutelage.core.artifact import Root
from tutelage.core.config import secret
from tutelage.core.errors import ConfigError, Stopped, TutelageError, Unreachable, UpstreamError, UsageError
from tutelage.core.records import Example, Finish, Message, Response, ToolCall, digest
from tutelage.generate.endpoint import (
    TEXT_PER_TOKEN,
    Bill,
    Endpoint,
    Kept,
    Pace,
    asked_pause,
    closed_for,
    settings_of,
)
from tutelage.generate.generator import Sampling, Scored, check_choices, is_text, seed_of, split_spaces

FINISHES: dict[str, Finish] = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "tool",
    "function_call": "tool",
    "content_filter": "blocked",
}
RETRIED = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
HOPELESS = frozenset({401, 402, 403, 404})
"""No other request will fare better: wrong key, nothing paid, no such model."""
IN_A_ROW = 8
"""Requests that fail for good, one after the other, before an examination asks no more."""
MOST_BYTES = 64 << 20
BEGINS = re.compile(r"<\S+>|\[[A-Z]+\]")
"""A token of the endpoint's own before the text: <s>, <|begin_of_text|>, [CLS]."""
A = TypeVar("A")
T = TypeVar("T")


class RemoteGenerator:
    """A model behind `url` (ending in /v1) that speaks OpenAI's protocol; implements Generator.

    To answer changes nothing at an endpoint, so whatever may pass (no connection, no answer in time, 429, 5xx) is tried
    again with growing, jittered pauses, or as long as the endpoint asks; then UpstreamError. With `apart`, as
    examinations ask, a request that failed is an answer of finish `error` (a likelihood with `error`) with its reason,
    the others are kept, and an endpoint that fails all the time is not asked any more. With `kept` answers of earlier
    runs are not asked for again. Use it as a context manager, or `close()` it, to end its threads.
    """

    def __init__(
        self,
        url: str,
        model: str,
        settings: Endpoint | None = None,
        *,
        key: str | None = None,
        name: str | None = None,
        kept: Kept | None = None,
        apart: bool = False,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError(f"{url!r} is not an http address")
        if parts.username or parts.password:
            raise UsageError("an address holds no password", todo="Give it as `key`: env:NAME or file:PATH")
        if key is not None and not (key.isascii() and key.isprintable()):
            raise ConfigError("the API key has characters that no header may hold", key="key")
        self.settings = settings or Endpoint()
        self.model, self.name = model, name or f"{url}#{model}"
        self.pace = Pace(self.settings.requests_per_minute, self.settings.tokens_per_minute, clock, sleep)
        self.bill = Bill(self.settings.price, self.settings.budget)
        self._url, self._parts, self._key, self._kept, self._jitter = url, parts, key, kept, jitter
        self._apart = apart or kept is not None
        for tokens in kept.spent if kept else ():
            self.bill.pay(tokens)
        self._failed: dict[str, TutelageError] = {}
        self._in_a_row, self._down, self._weighs_not = 0, "", ""
        self._lock, self._local = threading.Lock(), threading.local()
        self._pool = ThreadPoolExecutor(self.settings.concurrency, thread_name_prefix="remote")

    def __enter__(self) -> RemoteGenerator:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the threads; answers under way are waited for."""
        self._pool.shutdown()

    def generate(self, prompts: Sequence[Example], sampling: Sampling) -> list[list[Response]]:
        """`sampling.n` responses per prompt, each asked for by itself: not every endpoint knows `n`."""
        asked = [(prompt, sample) for prompt in prompts for sample in range(sampling.n)]

        def lost(why: str, _: tuple[Example, int]) -> Response:
            nothing = Message(role="assistant")
            return Response(message=nothing, finish="error", generator=self.name, error=why)

        done = self._each(lambda one: self._answer(one[0], sampling, one[1]), asked, lost)
        return [done[start : start + sampling.n] for start in range(0, len(done), sampling.n)]

    def loglikelihood(self, prompts: Sequence[Example], choices: Sequence[Sequence[str]]) -> list[list[Scored]]:
        """Log-probabilities by echo of /completions (vLLM, llama.cpp); for prompts of role `text` only.

        Raises UsageError for conversations: the protocol gives no likelihood of a given answer to a chat. Once the
        endpoint has shown that it gives no log-probabilities of a prompt, NotImplementedError says so.
        """
        check_choices(prompts, choices)
        if not all(map(is_text, prompts)):
            raise UsageError(
                "a remote endpoint weighs choices after verbatim text only",
                todo="Ask for the answer itself, or use a local model",
            )
        flat = [(prompt, choice) for prompt, each in zip(prompts, choices, strict=True) for choice in each]

        def lost(why: str, one: tuple[Example, str]) -> Scored:
            return Scored(logprob=-math.inf, tokens=0, characters=len(one[1]), greedy=None, error=why)

        done = iter(self._each(lambda one: self._weigh(*one), flat, lost))
        return [[next(done) for _ in each] for each in choices]

    def rolling(self, prompts: Sequence[Example], stride: int = 0) -> list[Scored]:
        """The log-probability of whole texts by echo of /completions, each weighed whole in one request: what is longer
        than the endpoint's context it refuses. Where it puts nothing before a text, the first token is not weighed.

        Raises UsageError for a stride, which an endpoint does not know; UpstreamError; NotImplementedError once it has
        shown that it gives no log-probabilities of a prompt.
        """
        if stride:
            raise UsageError("an endpoint weighs a text whole", key="stride", todo="Leave the stride out")

        def lost(why: str, text: str) -> Scored:
            return Scored(logprob=-math.inf, tokens=0, characters=len(text), greedy=None, error=why)

        texts = ["".join(message.content for message in prompt.messages) for prompt in prompts]
        return self._each(self._roll, texts, lost)

    # ----------------------------------------------------------------------------------------------------- one request

    def _answer(self, prompt: Example, sampling: Sampling, sample: int) -> Response:
        seed = seed_of(sampling.seed, "\n".join(message.content for message in prompt.messages), sample) & 0x7FFFFFFF
        body = {"model": self.model, **wire_sampling(sampling, seed)}
        text = is_text(prompt)
        if text:
            body["prompt"] = "".join(message.content for message in prompt.messages)
        else:
            body["messages"] = [_plain(message) for message in prompt.messages]

        def read(found: Mapping[str, Any]) -> Response:
            choice = found["choices"][0]
            said = {"content": choice["text"]} if text else choice["message"]
            reason = choice.get("finish_reason") or "stop"
            finish = FINISHES.get(reason, "error")
            calls = tuple(_call(each) for each in said.get("tool_calls") or ())
            return Response(
                message=Message(
                    role="assistant",
                    content=_content(said, bool(calls) or finish in ("length", "blocked")),
                    reasoning=said.get("reasoning_content") or "",
                    tool_calls=calls,
                ),
                finish=finish,
                usage=_usage(found),
                generator=self.name,
                seed=seed,
                error=f"it ended for the reason {reason!r}" if finish == "error" else "",
            )

        return self._ask("/completions" if text else "/chat/completions", body, read, "gave no completion")

    def _weigh(self, prompt: Example, choice: str) -> Scored:
        before, rest = split_spaces("".join(message.content for message in prompt.messages), choice)

        def read(found: Mapping[str, Any], logs: Mapping[str, Any]) -> Scored:
            end = len(before) + len(rest)
            taken = [place for place, at in enumerate(logs["text_offset"]) if len(before) <= at < end]
            values = [logs["token_logprobs"][place] for place in taken]
            if not values or logs["text_offset"][taken[0]] != len(before):
                raise ValueError("a token spans prompt and choice")
            _check_logprobs(values)
            best = [max(logs["top_logprobs"][place].values()) for place in taken]
            greedy = all(value >= top for value, top in zip(values, best, strict=True))
            return Scored(logprob=float(sum(values)), tokens=len(values), characters=len(choice), greedy=greedy)

        return self._echoed(before + rest, read)

    def _roll(self, text: str) -> Scored:
        def read(found: Mapping[str, Any], logs: Mapping[str, Any]) -> Scored:
            if not str(found["choices"][0].get("text", "")).startswith(text):
                raise ValueError("the text that came back is not the one that was sent")
            values = logs["token_logprobs"][: len(logs["token_logprobs"]) - found["usage"]["completion_tokens"]]
            unweighed = ""
            if values and values[0] is None:  # of what begins the text nothing stands before
                first, values = str(logs["tokens"][0]), values[1:]
                if not first or not (text.startswith(first) or BEGINS.fullmatch(first)):
                    raise ValueError(f"the first token, {first!r}, does not begin the text")
                unweighed = first if text.startswith(first) else ""
            _check_logprobs(values)
            left = len(text) - len(unweighed)
            return Scored(logprob=float(sum(values)), tokens=len(values), characters=left, greedy=None)

        return self._echoed(text, read)

    def _echoed(self, text: str, read: Callable[[Mapping[str, Any], Mapping[str, Any]], Scored]) -> Scored:
        """A text with the log-probability of each of its tokens, read by `read(answer, logprobs)`."""
        if self._weighs_not:
            raise NotImplementedError(self._weighs_not)
        body = {"model": self.model, "prompt": text, "max_tokens": 1, "temperature": 0, "echo": True, "logprobs": 1}

        def checked(found: Mapping[str, Any]) -> Scored:
            logs = found["choices"][0].get("logprobs")
            if not logs or not logs.get("token_logprobs"):
                self._weighs_not = f"{self.name} gives no log-probabilities of a prompt"
                raise ValueError("none were sent")
            return read(found, logs)

        return self._ask("/completions", body, checked, "gives no log-probabilities of a prompt")

    def _ask(self, path: str, body: dict[str, Any], read: Callable[[Mapping[str, Any]], T], wrong: str) -> T:
        """What `read` makes of the answer, which may be a kept one. Raises UpstreamError, Unreachable, Stopped."""
        name = digest([self._url, path, body])
        if self._kept and name in self._kept.known:
            self.bill.count("kept")
            return read(self._kept.known[name])
        if name in self._failed:
            raise self._failed[name]
        if self._down:
            raise Unreachable(f"{self.name} was not asked any more: {self._down}")
        try:
            return self._paid(path, body, read, wrong, name)
        except UpstreamError as error:
            if self._apart:
                self._failed[name] = error
            raise

    def _paid(
        self, path: str, body: dict[str, Any], read: Callable[[Mapping[str, Any]], T], wrong: str, name: str
    ) -> T:
        data = json.dumps(body).encode()
        expected = {"input": len(data) // TEXT_PER_TOKEN + 1, "output": int(body["max_tokens"])}
        reserved = self.bill.reserve(expected["input"], expected["output"])
        try:
            found = self._post(path, data, sum(expected.values()))
            tokens = _tokens(found)
            if tokens is None:
                self.bill.count("estimated")
                tokens = expected
            self.pace.settle(sum(expected.values()), sum(tokens.values()))
            self.bill.pay(tokens, found["model"] if isinstance(found.get("model"), str) else "")
        finally:
            self.bill.release(reserved)
        try:
            answer = read(found)
        except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
            if self._kept:
                self._kept.put("", None, tokens)
            told = found.get("error")
            said = self._clean(json.dumps(told)) if told else f"{type(error).__name__} {_first_line(error)}"
            raise UpstreamError(
                f"{self.name} {wrong} ({said})", todo="Ask for the answer itself" if "echo" in body else None
            ) from None
        if self._kept:
            self._kept.put(name, {"choices": found["choices"][:1], "usage": found.get("usage")}, tokens)
        return answer

    def _post(self, path: str, data: bytes, tokens: int) -> dict[str, Any]:
        """POST as JSON; tries again what may pass. Raises UpstreamError, Unreachable."""
        headers = {"content-type": "application/json", "accept": "application/json"}
        if self._key:
            headers["authorization"] = f"Bearer {self._key}"
        where = self._parts.path.rstrip("/") + path + (f"?{self._parts.query}" if self._parts.query else "")
        trouble, kind = "", UpstreamError
        for attempt in range(self.settings.retries + 1):
            self.pace.wait(tokens)
            self.bill.count("retried" if attempt else "requests")
            pause = min(30.0, 0.5 * 2**attempt) * (0.5 + 0.5 * self._jitter())
            try:
                status, told, content = self._exchange(where, data, headers)
            except (OSError, http.client.HTTPException) as error:
                trouble, kind = f"{type(error).__name__}: {_first_line(error)}", Unreachable
            else:
                self.pace.hold(min(self.settings.longest_wait, closed_for(told)))
                if status == 200:
                    return self._parsed(content)
                kind = UpstreamError
                trouble = f"status {status}: {self._clean(content.decode(errors='replace'))[:200]}"
                if status == 401:
                    trouble += ". Its key is named by key=env:NAME, or in endpoints.yaml"
                if status in HOPELESS or b"insufficient_quota" in content[:2000]:
                    self._gone(trouble)
                if status not in RETRIED or b"insufficient_quota" in content[:2000]:
                    break
                asked = asked_pause(told)
                if asked is not None and asked > self.settings.longest_wait:
                    trouble += f", and it asks to wait {asked:.0f} s"
                    break
                if asked is not None and status in (429, 503):
                    self.pace.hold(asked)  # for all threads: it is no fault of this request
                pause = pause if asked is None else asked
            if attempt < self.settings.retries and not self._down:
                self.pace.rest(pause)
            elif self._down:
                break
        else:
            self._failing(trouble)
        raise kind(f"{self.name} failed: {self._clean(trouble)}")

    def _exchange(self, where: str, data: bytes, headers: dict[str, str]) -> tuple[int, Mapping[str, str], bytes]:
        """One request and its whole answer within `timeout` seconds, however slowly it drips."""
        connection = self._connection()
        late = threading.Event()

        def hang_up() -> None:
            late.set()
            if (sock := connection.sock) is not None:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)

        timer = threading.Timer(self.settings.timeout, hang_up)
        timer.daemon = True
        timer.start()
        try:
            connection.request("POST", where, data, headers)
            answer = connection.getresponse()
            content = answer.read(MOST_BYTES + 1)
            if len(content) > MOST_BYTES:
                raise OSError(f"an answer of more than {MOST_BYTES >> 20} MiB")
            if late.is_set():
                raise TimeoutError
            if answer.length:  # a read of at most so many bytes does not tell a connection that broke
                raise http.client.IncompleteRead(content, answer.length)
            if answer.will_close:
                self._drop()
            with self._lock:
                self._in_a_row = 0 if answer.status == 200 else self._in_a_row
            return answer.status, {name.lower(): value for name, value in answer.getheaders()}, content
        except (OSError, http.client.HTTPException) as error:
            self._drop()
            if late.is_set() or isinstance(error, TimeoutError):
                self.bill.count("unanswered")
                raise TimeoutError(f"no answer within {self.settings.timeout:g} s") from None
            raise
        finally:
            timer.cancel()

    def _failing(self, trouble: str) -> None:
        """A request failed for good; so many in a row, and the endpoint is taken for down."""
        with self._lock:
            self._in_a_row += 1
            if self._in_a_row >= max(IN_A_ROW, self.settings.concurrency):
                self._gone(f"{self._in_a_row} requests in a row failed, the last: {self._clean(trouble)}")

    def _gone(self, trouble: str) -> None:
        """Nothing more is asked of this endpoint; only of examinations, which go on another day."""
        if self._apart and not self._down:
            self._down = trouble

    def _clean(self, text: str) -> str:
        """One line without the key, which endpoints like to repeat."""
        text = " ".join(text.split())
        return text.replace(self._key, "[key]") if self._key else text

    def _parsed(self, content: bytes) -> dict[str, Any]:
        try:
            found = json.loads(content)
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            begins = self._clean(content.decode(errors="replace"))[:80]
            raise UpstreamError(f"{self.name} answered something that is no JSON object: {begins!r}")
        return found

    def _connection(self) -> http.client.HTTPConnection:
        found: http.client.HTTPConnection | None = getattr(self._local, "connection", None)
        if found is None:
            host, port = self._parts.hostname or "", self._parts.port
            if self._parts.scheme == "https":
                context = ssl.create_default_context()
                found = http.client.HTTPSConnection(host, port, timeout=self.settings.timeout, context=context)
            else:
                found = http.client.HTTPConnection(host, port, timeout=self.settings.timeout)
            self._local.connection = found
        return found

    def _drop(self) -> None:
        if (found := getattr(self._local, "connection", None)) is not None:
            found.close()
            self._local.connection = None

    def _each(self, work: Callable[[A], T], items: Sequence[A], lost: Callable[[str, A], T]) -> list[T]:
        """Work on all items in the threads. The first failure cancels what has not begun; with `apart` what failed is
        `lost(why, item)`, and only what ends an examination (a spent budget) is raised."""
        futures = [self._pool.submit(work, item) for item in items]
        found: list[T] = []
        try:
            for future, item in zip(futures, items, strict=True):
                try:
                    found.append(future.result())
                except Stopped:
                    raise
                except TutelageError as error:
                    if not self._apart:
                        raise
                    found.append(lost(str(error), item))
            return found
        except BaseException:
            for future in futures:
                future.cancel()
            raise


def wire_sampling(sampling: Sampling, seed: int) -> dict[str, Any]:
    """A sampling as fields of a request's body; `n` is left to the caller.

    OpenAI's protocol has no `top_k`, `min_tokens`, `min_p` and `repetition_penalty`. They go only where they are asked
    for, under the names of vLLM, SGLang and llama.cpp; an endpoint that does not know them refuses or ignores them.
    llama.cpp calls the penalty `repeat_penalty` and looks 64 tokens back unless `repeat_last_n` says -1 (all of them).
    """
    body: dict[str, Any] = {
        "max_tokens": sampling.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "seed": seed,
    }
    if sampling.stop:
        body["stop"] = list(sampling.stop)
    for name in ("top_k", "min_tokens", "min_p"):
        if value := getattr(sampling, name):
            body[name] = value
    if sampling.repetition_penalty != 1:
        body |= {"repetition_penalty": sampling.repetition_penalty, "repeat_penalty": sampling.repetition_penalty}
        body["repeat_last_n"] = -1
    return body


def _check_logprobs(values: Sequence[Any]) -> None:
    if not all(isinstance(value, int | float) and math.isfinite(value) and value <= 1e-3 for value in values):
        raise ValueError("a log-probability is no finite number below 0")


def _plain(message: Message) -> dict[str, Any]:
    """A message as the protocol has it."""
    if message.role == "text":
        raise UsageError("verbatim text cannot be mixed with turns of a conversation")
    found: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.parts:
        found["content"] = [{"type": part.type, "text": part.text} for part in message.parts if part.type == "text"]
    if message.tool_calls:
        found["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in message.tool_calls
        ]
    for key in ("tool_call_id", "name"):
        if (value := getattr(message, key)) is not None:
            found[key] = value
    return found


def _call(value: dict[str, Any]) -> ToolCall:
    function = value["function"]
    return ToolCall(id=value.get("id") or "", name=function["name"], arguments=function.get("arguments") or "")


def _content(said: Mapping[str, Any], may_be_empty: bool) -> str:
    """The text of an answer: a string, parts of type text, or a refusal. Raises ValueError where there is nothing."""
    content = said.get("content")
    if isinstance(content, list):
        content = "".join(part["text"] for part in content if part.get("type") == "text")
    if content is None:
        content = said.get("refusal") or ("" if may_be_empty or said.get("reasoning_content") else None)
    if not isinstance(content, str):
        raise ValueError(f"expected a text, found {type(content).__name__}")
    return content


def _usage(found: Mapping[str, Any]) -> dict[str, int]:
    usage = found.get("usage")
    if not isinstance(usage, Mapping):
        return {}
    return {str(name): value for name, value in usage.items() if type(value) is int and value >= 0}


def _tokens(found: Mapping[str, Any]) -> dict[str, int] | None:
    """What the endpoint counted, or None where it did not."""
    usage = _usage(found)
    if "prompt_tokens" not in usage:
        return None
    return {"input": usage["prompt_tokens"], "output": usage.get("completion_tokens", 0)}


def _first_line(error: BaseException) -> str:
    return str(error).split("\n", 1)[0]


def open_remote(
    ref: str, root: Root | None = None, *, kept: Path | None = None, apart: bool = False, **given: Any
) -> RemoteGenerator:
    """Open `https://host/v1#model` with the settings of `endpoints.yaml` and those given (see Endpoint).

    `kept` is a folder for its answers; `apart` as RemoteGenerator has it. Raises UsageError, ConfigError.
    """
    url, _, model = ref.partition("#")
    if not model:
        raise UsageError(f"{ref!r} names no model", todo="Write https://host/v1#model")
    settings = settings_of(ref, root, given)
    folder, environment = (root.path, root.environment) if root is not None else (Path(), {})
    key = secret(settings.key, environment, "key", folder) if settings.key else None
    answers = Kept(kept, settings.fresh) if kept is not None else None
    return RemoteGenerator(url, model, settings, key=key, name=ref, kept=answers, apart=apart)
