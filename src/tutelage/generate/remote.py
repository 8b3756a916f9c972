"""Any OpenAI-compatible endpoint as a generator: one connection per thread, retries with patience, clear ends."""

from __future__ import annotations

import http.client
import json
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from tutelage.core.artifact import Root
from tutelage.core.errors import NotFound, Unreachable, UpstreamError, UsageError
from tutelage.core.records import Example, Finish, Message, Response, ToolCall
from tutelage.generate.generator import Sampling, Scored, check_choices, is_text, seed_of, split_spaces

FINISHES: dict[str, Finish] = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "tool",
    "function_call": "tool",
    "content_filter": "blocked",
}
RETRIED = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
T = TypeVar("T")


class RemoteGenerator:
    """A model behind `url` (ending in /v1) that speaks OpenAI's protocol; implements Generator.

    Failures that may pass (timeouts, 429, 5xx) are tried again with growing pauses, or as long as `Retry-After` says;
    then UpstreamError. Use it as a context manager, or `close()` it, to end its threads.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        key: str | None = None,
        threads: int = 8,
        timeout: float = 60.0,
        retries: int = 4,
        name: str | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError(f"{url!r} is not an http address")
        self.model, self.name = model, name or f"{url}#{model}"
        self._parts, self._key, self._timeout, self._retries, self._sleep = parts, key, timeout, retries, sleep
        self._local = threading.local()
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="remote")

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
        done = self._each(lambda one: self._answer(one[0], sampling, one[1]), asked)
        return [done[start : start + sampling.n] for start in range(0, len(done), sampling.n)]

    def loglikelihood(self, prompts: Sequence[Example], choices: Sequence[Sequence[str]]) -> list[list[Scored]]:
        """Log-probabilities by echo of /completions (vLLM, llama.cpp); for prompts of role `text` only.

        Raises UsageError for conversations: the protocol gives no likelihood of a given answer to a chat.
        """
        check_choices(prompts, choices)
        if not all(map(is_text, prompts)):
            raise UsageError(
                "a remote endpoint weighs choices after verbatim text only",
                todo="Ask for the answer itself, or use a local model",
            )
        flat = [(prompt, choice) for prompt, each in zip(prompts, choices, strict=True) for choice in each]
        done = iter(self._each(lambda one: self._weigh(*one), flat))
        return [[next(done) for _ in each] for each in choices]

    # ----------------------------------------------------------------------------------------------------- one request

    def _answer(self, prompt: Example, sampling: Sampling, sample: int) -> Response:
        seed = seed_of(sampling.seed, "\n".join(message.content for message in prompt.messages), sample) & 0x7FFFFFFF
        body = {"model": self.model, **wire_sampling(sampling, seed)}
        text = is_text(prompt)
        if text:
            body["prompt"] = "".join(message.content for message in prompt.messages)
        else:
            body["messages"] = [_plain(message) for message in prompt.messages]
        found = self._post("/completions" if text else "/chat/completions", body)
        try:
            choice = found["choices"][0]
            said = {"content": choice["text"]} if text else choice["message"]
            usage = {name: int(value) for name, value in (found.get("usage") or {}).items() if isinstance(value, int)}
            finish = FINISHES.get(choice.get("finish_reason") or "stop", "error")
            return Response(
                message=Message(
                    role="assistant",
                    content=said.get("content") or "",
                    reasoning=said.get("reasoning_content") or "",
                    tool_calls=tuple(_call(each) for each in said.get("tool_calls") or ()),
                ),
                finish=finish,
                usage=usage,
                generator=self.name,
                seed=seed,
                error=f"it ended for the reason {choice['finish_reason']!r}" if finish == "error" else "",
            )
        except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
            raise UpstreamError(f"{self.name} gave no completion: {type(error).__name__} {error}") from None

    def _weigh(self, prompt: Example, choice: str) -> Scored:
        before, rest = split_spaces("".join(message.content for message in prompt.messages), choice)
        body = {"model": self.model, "prompt": before + rest, "max_tokens": 1, "temperature": 0}
        found = self._post("/completions", body | {"echo": True, "logprobs": 1})
        try:
            logs = found["choices"][0]["logprobs"]
            end = len(before) + len(rest)
            taken = [place for place, at in enumerate(logs["text_offset"]) if len(before) <= at < end]
            values = [logs["token_logprobs"][place] for place in taken]
            best = [max(logs["top_logprobs"][place].values()) for place in taken]
            if not values or None in values:
                raise ValueError("no log-probabilities of the prompt")
            greedy = all(value >= top for value, top in zip(values, best, strict=True))
            return Scored(logprob=float(sum(values)), tokens=len(values), characters=len(choice), greedy=greedy)
        except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
            raise UpstreamError(
                f"{self.name} gives no log-probabilities of a prompt ({error})", todo="Ask for the answer itself"
            ) from None

    def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """POST as JSON; tries again what may pass. Raises UpstreamError, Unreachable."""
        headers = {"content-type": "application/json", "accept": "application/json"}
        if self._key:
            headers["authorization"] = f"Bearer {self._key}"
        data = json.dumps(body).encode()
        trouble, kind = "", UpstreamError
        for attempt in range(self._retries + 1):
            pause = min(30.0, 0.5 * 2**attempt)
            try:
                connection = self._connection()
                connection.request("POST", self._parts.path.rstrip("/") + path, data, headers)
                answer = connection.getresponse()
                content = answer.read()
            except (OSError, http.client.HTTPException) as error:
                self._drop()
                trouble, kind = f"{type(error).__name__}: {error}", Unreachable
            else:
                if answer.status == 200:
                    return self._parsed(content)
                kind = UpstreamError
                trouble = f"status {answer.status}: {content[:200].decode(errors='replace')}"
                if answer.status not in RETRIED:
                    break
                after = answer.headers.get("retry-after", "")
                pause = min(60.0, float(after)) if after.replace(".", "", 1).isdigit() else pause
            if attempt < self._retries:
                self._sleep(pause)
        raise kind(f"{self.name} failed: {trouble}")

    def _parsed(self, content: bytes) -> dict[str, Any]:
        try:
            found = json.loads(content)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise UpstreamError(f"{self.name} answered something that is no JSON object")
        return found

    def _connection(self) -> http.client.HTTPConnection:
        found: http.client.HTTPConnection | None = getattr(self._local, "connection", None)
        if found is None:
            host, port = self._parts.hostname or "", self._parts.port
            if self._parts.scheme == "https":
                context = ssl.create_default_context()
                found = http.client.HTTPSConnection(host, port, timeout=self._timeout, context=context)
            else:
                found = http.client.HTTPConnection(host, port, timeout=self._timeout)
            self._local.connection = found
        return found

    def _drop(self) -> None:
        if (found := getattr(self._local, "connection", None)) is not None:
            found.close()
            self._local.connection = None

    def _each(self, work: Callable[[Any], T], items: Sequence[Any]) -> list[T]:
        """Work on all items in the threads; the first failure cancels what has not begun."""
        futures = [self._pool.submit(work, item) for item in items]
        try:
            return [future.result() for future in futures]
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


def open_remote(ref: str, root: Root | None = None, *, key: str | None = None, **options: Any) -> RemoteGenerator:
    """Open `https://host/v1#model`. `key` is the API key itself, or `file:PATH`."""
    url, _, model = ref.partition("#")
    if not model:
        raise UsageError(f"{ref!r} names no model", todo="Write https://host/v1#model")
    if key is not None and key.startswith("file:"):
        path = Path(key.removeprefix("file:")).expanduser()
        if not path.is_file():
            raise NotFound("no such file for the API key", file=path)
        key = path.read_text(encoding="utf-8").strip()
    return RemoteGenerator(url, model, key=key, name=ref, **options)
