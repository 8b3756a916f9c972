"""The gateway's part of the OpenAPI document: what each route of /v1 and /guard takes and answers.

Only what this service supports stands here; `additionalProperties: false` says that all else is refused.
"""

from __future__ import annotations

from typing import Any

from tutelage.web import wire

_FLAG = {"type": ["boolean", "null"]}
_WORDS = {"type": "string"}
"""A text whose length only the tenant's limit bounds."""


def _text(most: int, *, null: bool = True) -> dict[str, Any]:
    return {"type": ["string", "null"] if null else "string", "maxLength": most}


def _object(properties: dict[str, Any], *required: str) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": [*required], "additionalProperties": False}


def _list(items: dict[str, Any], most: int, least: int = 1) -> dict[str, Any]:
    return {"type": "array", "items": items, "minItems": least, "maxItems": most}


def _whole(low: int, high: int | None = None) -> dict[str, Any]:
    return {"type": ["integer", "null"], "minimum": low, **({} if high is None else {"maximum": high})}


def _between(low: float, high: float) -> dict[str, Any]:
    return {"type": ["number", "null"], "minimum": low, "maximum": high}


_STOPS = {"type": "string", "minLength": 1, "maxLength": 256}
_METADATA = {
    "type": ["object", "null"],
    "maxProperties": 16,
    "propertyNames": {"maxLength": 64},
    "additionalProperties": _text(512, null=False),
}
_MODEL = {"enum": ["tutelage", "default", None]}
_SAMPLING: dict[str, Any] = {
    "model": _MODEL,
    "stream": _FLAG,
    "max_tokens": _whole(1),
    "temperature": _between(0, 2),
    "top_p": _between(0, 1),
    "top_k": _whole(0, 1_000_000),
    "min_p": _between(0, 1),
    "n": _whole(1, wire.MOST_CHOICES),
    "seed": _whole(-(2**63), 2**63),
    "stop": {"anyOf": [{"type": "null"}, _STOPS, _list(_STOPS, 4, 0)]},
    "user": _text(120),
    "metadata": _METADATA,
}
_PART = _object({"type": {"enum": ["text", "input_text", "output_text"]}, "text": _WORDS}, "type", "text")
_CONTENT = {"anyOf": [_WORDS, {"type": "null"}, {"type": "array", "items": _PART}]}
_ROLE = {"enum": [*wire.ROLES]}
_MESSAGE = _object({"role": _ROLE, "content": _CONTENT, "name": _text(wire.LONGEST_NAME)}, "role")
_ITEM = _object({"type": {"const": "message"}, "role": _ROLE, "content": _CONTENT}, "role")
_FUNCTION = _object(
    {
        "name": {"type": "string", "pattern": "^[A-Za-z0-9_.-]{1,64}$"},
        "description": {"type": ["string", "null"]},
        "parameters": {"type": ["object", "null"]},
        "strict": _FLAG,
    },
    "name",
)
_TOOL = _object({"type": {"const": "function"}, "function": _FUNCTION}, "type", "function")
_ID = {"anyOf": [_text(256, null=False), {"type": "integer"}]}
_ROW = _object({"id": _ID, "text": _WORDS, "answer": {"type": ["string", "null"]}}, "text")
_MANY = {"anyOf": [_WORDS, _list(_WORDS, 256)]}

CHAT = _object(
    {
        **_SAMPLING,
        "messages": _list(_MESSAGE, wire.MOST_MESSAGES),
        "logprobs": _FLAG,
        "tools": {"anyOf": [{"type": "null"}, _list(_TOOL, 128, 0)]},
    },
    "messages",
)
_PROMPT = {"type": "string", "minLength": 1}
COMPLETIONS = _object({**_SAMPLING, "prompt": {"anyOf": [_PROMPT, _list(_PROMPT, 1)]}}, "prompt")
RESPONSES = _object(
    {
        "model": _MODEL,
        "input": {"anyOf": [_WORDS, _list(_ITEM, wire.MOST_MESSAGES)]},
        "instructions": {"type": ["string", "null"]},
        "max_output_tokens": _whole(1),
        "temperature": _between(0, 2),
        "top_p": _between(0, 1),
        "stream": _FLAG,
        "store": {"enum": [False, None]},
        "user": _text(120),
        "metadata": _METADATA,
    },
    "input",
)
EMBEDDINGS = _object(
    {
        "model": _text(256),
        "input": {"anyOf": [_PROMPT, _list(_PROMPT, 256)]},
        "encoding_format": {"enum": ["float", "base64", None]},
        "user": _text(120),
    },
    "input",
)
MODERATIONS = _object({"model": _text(256), "input": _MANY}, "input")
SCAN = _object({"rows": _list(_ROW, 256)}, "rows")
FEEDBACK = _object(
    {
        "kind": {"enum": ["thumb", None]},
        "request": _text(64, null=False),
        "value": {"enum": [1, -1]},
        "text": _text(20_000),
        "key": _text(120),
    },
    "request",
    "value",
)

_ERROR = _object(
    {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {"message": {"type": "string", "minLength": 1}, "type": {"type": "string"}},
        }
    },
    "error",
)
_FAULTS = {
    "400": "What was asked is not understood or not supported; `param` says which part",
    "401": "No key, or one that is not known",
    "403": "The key may not do this",
    "404": "There is no such thing",
    "408": "The body did not come in time",
    "413": "The body is too large",
    "415": "The body is not sent as JSON",
    "422": "What was asked is not understood",
    "429": "Too much in too short a time; `retry-after` says when to come again",
    "501": "Nothing here can do that",
    "502": "The upstream failed",
    "503": "Too much is asked of the service now; `retry-after` says when to come again",
}
POSTS: dict[str, tuple[dict[str, Any], str]] = {
    "/v1/chat/completions": (CHAT, "Answer a conversation"),
    "/v1/completions": (COMPLETIONS, "Continue a text"),
    "/v1/responses": (RESPONSES, "Answer, in the form of OpenAI's responses"),
    "/v1/embeddings": (EMBEDDINGS, "Embed texts"),
    "/v1/moderations": (MODERATIONS, "What the guards say, in OpenAI's form"),
    "/v1/feedback": (FEEDBACK, "What an end user says about an answer"),
    "/guard/scan": (SCAN, "What the guards say and the policy decides"),
}
GETS: dict[str, str] = {
    "/v1/models": "The model that answers",
    "/guard/coverage": "Which texts which guards read",
}


def paths() -> dict[str, Any]:
    """The gateway's paths of the OpenAPI document."""
    error = {"application/json": {"schema": _ERROR}}
    faults = {status: {"description": said, "content": error} for status, said in _FAULTS.items()}
    answer = {"description": "As asked", "content": {"application/json": {}, "text/event-stream": {}}}
    found: dict[str, Any] = {}
    for path, (schema, said) in POSTS.items():
        body = {"required": True, "content": {"application/json": {"schema": schema}}}
        told = {"201" if path == "/v1/feedback" else "200": answer, **faults}
        found[path] = {"post": {"summary": said, "requestBody": body, "responses": told}}
    for path, said in GETS.items():
        found[path] = {"get": {"summary": said, "responses": {"200": answer, **faults}}}
    return found


def document() -> dict[str, Any]:
    """The gateway's document by itself."""
    return {"openapi": "3.1.0", "info": {"title": "tutelage", "version": "1"}, "paths": paths()}
