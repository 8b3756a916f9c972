"""OpenAI's requests as this service takes them: what it supports is checked, all else is refused by name.

A parameter that is known but not supported may be there with the value that means nothing is asked (`logprobs: false`).
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

from tutelage.core.errors import Busy, NoSpace, NotFound, UpstreamError, UsageError
from tutelage.core.records import Message, ToolCall
from tutelage.generate.generator import Sampling
from tutelage.guard.request import Ending
from tutelage.guard.upstream import Misbehaved, Refusing
from tutelage.text.leaves import parsed, written

MOST_CHOICES = 16
MOST_MESSAGES = 1000
MOST_CALLS = 128
"""Tool calls of one message."""
MOST_CALLS_IN_ALL = 1000
"""Tool calls of one conversation: each is three texts to every guard."""
LONGEST_NAME = 256
"""Characters of a name, or of the id of a tool call."""
DEPTH = 64
BODY_S = 30.0
"""Seconds for the whole body of a request."""


class Fault(Exception):
    """A request that is refused, as OpenAI words it."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        param: str | None = None,
        code: str | None = None,
        kind: str = "invalid_request_error",
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.retry_after = status, retry_after
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}


def fault_of(error: Exception) -> Fault:
    """Any error of ours as OpenAI words it."""
    if isinstance(error, Fault):
        return error
    if isinstance(error, HTTPException):
        kind = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
        code = {401: "invalid_api_key"}.get(error.status_code)
        word = kind.get(error.status_code, "invalid_request_error")
        return Fault(str(error.detail), status=error.status_code, code=code, kind=word)
    if isinstance(error, NotFound):
        if error.key == "request":
            return Fault(error.message, status=404, param="request", code="not_found")
        return Fault(str(error), status=503, code="no_model", kind="server_error", retry_after=5.0)
    if isinstance(error, UsageError):
        code = "context_length_exceeded" if error.key == "messages" else None
        return Fault(error.message, param=error.key, code=code)
    if isinstance(error, Refusing):
        return Fault(error.message, code="upstream_refused")
    if isinstance(error, UpstreamError):  # only these words are our own; any other's may hold what no guard has read
        message = error.message if isinstance(error, Misbehaved) else "the upstream failed"
        return Fault(message, status=502, code="upstream_error", kind="server_error")
    if isinstance(error, Ending):
        return Fault(error.message, status=503, code="server_shutdown", kind="server_error", retry_after=5.0)
    if isinstance(error, Busy | NoSpace):
        return Fault(error.message, status=503, code="overloaded", kind="server_error", retry_after=1.0)
    return Fault("something failed inside the service", status=500, code="internal_error", kind="server_error")


def respond(fault: Fault) -> JSONResponse:
    """A fault as a response."""
    headers = {"retry-after": str(max(1, round(fault.retry_after)))} if fault.retry_after is not None else {}
    if fault.status == 401:
        headers["www-authenticate"] = "Bearer"
    return JSONResponse(fault.body, fault.status, headers=headers)


def refuse(message: str, param: str, code: str = "invalid_value") -> NoReturn:
    """Refuse a parameter."""
    raise Fault(message, param=param, code=code)


async def read_json(request: Request, most: int) -> dict[str, Any]:
    """The body as a JSON object of at most `most` bytes."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise Fault(f"send `content-type: application/json`, found {kind or 'none'!r}", status=415)
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length) > most:
        raise Fault(f"the body has {length} bytes, {most} are allowed", status=413)
    data = bytearray()
    try:
        async with asyncio.timeout(BODY_S):
            async for part in request.stream():
                data += part
                if len(data) > most:
                    raise Fault(f"the body has more than {most} bytes", status=413)
    except TimeoutError:
        raise Fault(f"the body did not come within {BODY_S:g} seconds", status=408, code="request_timeout") from None
    except ClientDisconnect:
        raise Fault("the client went away", status=499, code="client_closed_request") from None
    return parse(bytes(data))


def parse(data: bytes) -> dict[str, Any]:
    """JSON text as an object: UTF-8, finite numbers, whole Unicode, no key twice, not nested too deep."""
    if _depth(data) > DEPTH:
        raise Fault(f"the JSON is nested deeper than {DEPTH}")
    try:
        found = json.loads(data.decode("utf-8"), parse_constant=_constant, object_pairs_hook=_object)
    except UnicodeDecodeError:
        raise Fault("the body is not UTF-8") from None
    except RecursionError:
        raise Fault(f"the JSON is nested deeper than {DEPTH}") from None
    except ValueError as error:
        raise Fault(f"the body is no JSON: {error}") from None
    if not isinstance(found, dict):
        raise Fault("the body must be a JSON object")
    try:
        json.dumps(found, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise Fault("the body holds half a surrogate pair, which is no text") from None
    return found


def _depth(data: bytes) -> int:
    """Most brackets open at once; brackets in strings count too, which errs on the safe side only for odd texts."""
    if data.count(b"[") + data.count(b"{") <= DEPTH:
        return 0
    deepest = level = 0
    inside = escaped = False
    for byte in data:
        if inside:
            inside = escaped or byte != 34
            escaped = byte == 92 and not escaped
        elif byte == 34:
            inside = True
        elif byte in (91, 123):
            level += 1
            deepest = max(deepest, level)
        elif byte in (93, 125):
            level -= 1
    return deepest


def _constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key stands twice in one object")
    return found


# parameters

NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "audio": (None,),
    "best_of": (None, 1),
    "echo": (None, False),
    "frequency_penalty": (None, 0),
    "function_call": (None, "none"),
    "functions": (None, []),
    "logit_bias": (None, {}),
    "logprobs": (None, False),
    "modalities": (None, ["text"]),
    "prediction": (None,),
    "presence_penalty": (None, 0),
    "prompt_cache_key": (None,),
    "reasoning_effort": (None,),
    "repeat_last_n": (None, -1),
    "safety_identifier": (None,),
    "service_tier": (None, "auto", "default"),
    "store": (None, False),
    "suffix": (None, ""),
    "verbosity": (None,),
    "web_search_options": (None,),
}
"""Parameters of OpenAI and llama.cpp that this service does not support -> the values that ask for nothing."""
SAMPLING = frozenset(
    ("model", "stream", "stream_options", "max_tokens", "temperature", "top_p", "top_k", "n", "seed", "stop", "user")
) | {"metadata", "max_completion_tokens", "min_p", "repetition_penalty", "repeat_penalty"}


def known(body: Mapping[str, Any], own: frozenset[str], neutral: Mapping[str, tuple[Any, ...]] = NEUTRAL) -> None:
    """Refuse by name what is not supported, and what nobody knows."""
    for name, value in body.items():
        if name in own:
            continue
        if name not in neutral:
            refuse(f"unknown parameter {name!r}"[:300], name[:300], "unknown_parameter")
        if not any(value == fine and isinstance(value, bool) == isinstance(fine, bool) for fine in neutral[name]):
            refuse(f"{name!r} is not supported by this service", name, "unsupported_parameter")


def number(
    body: Mapping[str, Any], name: str, default: float, low: float, high: float, *, whole: bool = False
) -> float:
    """A number within bounds."""
    value = body.get(name)
    if value is None:
        return default
    given = value if isinstance(value, int if whole else int | float) and not isinstance(value, bool) else None
    if given is None or not low <= given <= high:
        what = "a whole number" if whole else "a number"
        refuse(f"{name!r} must be {what} from {low:g} to {high:g}, found {value!r}"[:300], name)
    return given


def text(body: Mapping[str, Any], name: str, most: int, default: str = "") -> str:
    """A short text."""
    value = body.get(name)
    if value is None:
        return default
    if not isinstance(value, str) or len(value) > most:
        refuse(f"{name!r} must be a text of at most {most} characters", name)
    return value


def flag(body: Mapping[str, Any], name: str) -> bool:
    """True or false."""
    value = body.get(name)
    if value not in (None, True, False) or (isinstance(value, int) and not isinstance(value, bool)):
        refuse(f"{name!r} must be true or false", name)
    return bool(value)


def left_open(body: Mapping[str, Any]) -> frozenset[str]:
    """What a request leaves to the model that answers it."""
    lengths = ("max_tokens", "max_completion_tokens", "max_output_tokens")
    named = {"max_tokens": lengths, "temperature": ("temperature",), "top_p": ("top_p",), "seed": ("seed",)}
    return frozenset(name for name, said in named.items() if all(body.get(each) is None for each in said))


def sampling(body: Mapping[str, Any], default_tokens: int, most_tokens: int) -> Sampling:
    """How answers are to be drawn."""
    name = "max_completion_tokens" if body.get("max_completion_tokens") is not None else "max_tokens"
    # llama.cpp's name for the same thing; a client that does not know whom it asks sends both.
    penalty = "repetition_penalty" if body.get("repetition_penalty") is not None else "repeat_penalty"
    if penalty == "repetition_penalty" and body.get("repeat_penalty") not in (None, body[penalty]):
        refuse("'repeat_penalty' is another name of 'repetition_penalty', and they differ", "repeat_penalty")
    stop = body.get("stop")
    stops = [stop] if isinstance(stop, str) else ([] if stop is None else stop)
    if (
        not isinstance(stops, list)
        or len(stops) > 4
        or not all(isinstance(s, str) and 0 < len(s) <= 256 for s in stops)
    ):
        refuse("'stop' must be a text or up to 4 texts of at most 256 characters", "stop")
    return Sampling(
        max_tokens=int(number(body, name, min(default_tokens, most_tokens), 1, most_tokens, whole=True)),
        temperature=number(body, "temperature", 1.0, 0, 2),
        top_p=max(1e-6, number(body, "top_p", 1.0, 0, 1)),
        top_k=int(number(body, "top_k", 0, 0, 1_000_000, whole=True)),
        min_p=number(body, "min_p", 0.0, 0, 1),
        repetition_penalty=number(body, penalty, 1.0, 0.01, 100),
        n=int(number(body, "n", 1, 1, MOST_CHOICES, whole=True)),
        seed=int(number(body, "seed", 0, -(2**63), 2**63, whole=True)) % 2**63,
        stop=tuple(stops),
    )


def stream_usage(body: Mapping[str, Any]) -> bool:
    """Whether a stream ends with its usage."""
    options = body.get("stream_options")
    if options is None:
        return False
    if not isinstance(options, dict) or not set(options) <= {"include_usage", "include_obfuscation"}:
        refuse("'stream_options' knows 'include_usage' only", "stream_options", "unsupported_parameter")
    if not body.get("stream"):
        refuse("'stream_options' goes with 'stream: true'", "stream_options")
    return flag(options, "include_usage")


def metadata(body: Mapping[str, Any]) -> dict[str, str]:
    """Up to 16 short texts that are kept with the trace."""
    found = body.get("metadata")
    if found is None:
        return {}
    fine = isinstance(found, dict) and len(found) <= 16
    if not fine or not all(len(k) <= 64 and isinstance(v, str) and len(v) <= 512 for k, v in found.items()):
        refuse("'metadata' must be up to 16 texts of at most 512 characters", "metadata")
    return dict(found)


# messages

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}
FIELDS = frozenset(
    ("role", "content", "name", "tool_calls", "tool_call_id", "reasoning_content", "reasoning", "refusal")
)
EMPTY: Mapping[str, tuple[Any, ...]] = {"audio": (None,), "function_call": (None,), "annotations": (None, [])}
"""What the official client's own messages hold beside -> the values that say nothing."""


def messages(body: Mapping[str, Any], most: int) -> tuple[Message, ...]:
    """The conversation; every part of it must be text, which the guards can read."""
    given = body.get("messages")
    if not isinstance(given, list) or not given or len(given) > MOST_MESSAGES:
        refuse(f"'messages' must be a list of 1 to {MOST_MESSAGES} messages", "messages")
    called = (each.get("tool_calls") for each in given if isinstance(each, dict))
    calls = sum(len(each) for each in called if isinstance(each, list))
    if calls > MOST_CALLS_IN_ALL:
        refuse(f"the conversation has {calls} tool calls, {MOST_CALLS_IN_ALL} are allowed", "messages")
    found = tuple(message(each, f"messages[{index}]") for index, each in enumerate(given))
    total = characters(found)
    if total > most:
        refuse(f"the conversation has {total} characters, {most} are allowed", "messages", "context_length_exceeded")
    return found


def characters(messages: Sequence[Message]) -> int:
    """Characters of all that a conversation holds."""
    return sum(
        sum(map(len, (each.content, each.reasoning, each.name or "", each.tool_call_id or "")))
        + sum(len(call.id) + len(call.name) + len(call.arguments) for call in each.tool_calls)
        for each in messages
    )


def tokens(characters: int) -> int:
    """A guess at the tokens of a text, for limits; rather too many."""
    return characters // 3 + 1


def message(given: Any, where: str) -> Message:
    """One turn in OpenAI's form."""
    if not isinstance(given, dict):
        refuse(f"{where} must be an object", where)
    role = given.get("role")
    if not isinstance(role, str) or role not in ROLES:
        refuse(f"{where}.role must be one of {', '.join(ROLES)}", f"{where}.role")
    for name in given:
        if name not in FIELDS and given[name] not in EMPTY.get(name, ()):
            refuse(f"{where}.{name} is not supported", f"{where}.{name}", "unsupported_parameter")
    reasoning = given.get("reasoning_content") or given.get("reasoning") or ""
    refusal = given.get("refusal") or ""
    _strings(where, reasoning=reasoning, refusal=refusal)
    content = _content(given.get("content"), f"{where}.content")
    return Message(
        role=ROLES[role],
        content=content or refusal,
        reasoning=reasoning,
        name=_optional(given, "name", where),
        tool_call_id=_optional(given, "tool_call_id", where),
        tool_calls=_calls(given.get("tool_calls"), where),
    )


def _strings(where: str, **values: Any) -> None:
    for name, value in values.items():
        if not isinstance(value, str):
            refuse(f"{where}.{name} must be a text", f"{where}.{name}")


def _optional(given: Mapping[str, Any], name: str, where: str) -> str | None:
    value = given.get(name)
    if value is not None and (not isinstance(value, str) or len(value) > LONGEST_NAME):
        refuse(f"{where}.{name} must be a text of at most {LONGEST_NAME} characters", f"{where}.{name}")
    return value


def _content(given: Any, where: str) -> str:
    if given is None:
        return ""
    if isinstance(given, str):
        return given
    if not isinstance(given, list):
        refuse(f"{where} must be a text or a list of text parts", where)
    parts = []
    for index, part in enumerate(given):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind not in ("text", "input_text", "output_text", "refusal"):
            refuse(
                f"{where}[{index}] is of type {kind!r}; only text can be guarded",
                f"{where}[{index}]",
                "unsupported_part",
            )
        value = part.get("refusal" if kind == "refusal" else "text")
        if not isinstance(value, str):
            refuse(f"{where}[{index}].text must be a text", f"{where}[{index}]")
        parts.append(value)
    return "\n".join(parts)


def _calls(given: Any, where: str) -> tuple[ToolCall, ...]:
    if given is None:
        return ()
    where = f"{where}.tool_calls"
    if not isinstance(given, list) or len(given) > MOST_CALLS:
        refuse(f"{where} must be a list of at most {MOST_CALLS} calls", where)
    return tuple(_call(each, f"{where}[{index}]") for index, each in enumerate(given))


def _call(given: Any, where: str) -> ToolCall:
    function = given.get("function") if isinstance(given, dict) else None
    if not isinstance(function, dict) or not all(isinstance(function.get(k), str) for k in ("name", "arguments")):
        refuse(f"{where} must be the call of a function with name and arguments", where)
    only(given, frozenset(("id", "type", "function", "index")), where)
    only(function, frozenset(("name", "arguments")), f"{where}.function")
    if given.get("type", "function") != "function":
        refuse(f"{where}.type must be 'function'", f"{where}.type")
    if len(function["name"]) > LONGEST_NAME:
        refuse(f"{where}.function.name must be a text of at most {LONGEST_NAME} characters", f"{where}.function.name")
    arguments = function["arguments"]
    if "\\u" in arguments:  # so that what the model reads is what the guards read and mask
        arguments = written(parsed(arguments))
    return ToolCall(id=_optional(given, "id", where) or "", name=function["name"], arguments=arguments)


def only(body: Mapping[str, Any], names: frozenset[str], where: str = "") -> None:
    """Refuse by name what nobody knows."""
    for name in body:
        if name not in names:
            path = f"{where}.{name}" if where else name
            refuse(f"unknown parameter {path!r}"[:300], path[:300], "unknown_parameter")


def prompts(body: Mapping[str, Any], most: int) -> str:
    """The prompt of a completion: one text; token ids and lists of several are refused."""
    given = body.get("prompt")
    if isinstance(given, list) and len(given) == 1:
        given = given[0]
    if not isinstance(given, str) or not given:
        refuse("'prompt' must be one text; token ids and several prompts are not supported", "prompt")
    if len(given) > most:
        refuse(f"the prompt has {len(given)} characters, {most} are allowed", "prompt", "context_length_exceeded")
    return given
