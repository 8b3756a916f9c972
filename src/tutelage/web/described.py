"""The gateway's part of the OpenAPI document: what each route of /v1 and /guard takes and answers.

Only what this service supports stands here; `additionalProperties: false` says that all else is refused.
"""

from __future__ import annotations

from typing import Any

from tutelage.web import wire

_NUMBER = {"type": ["number", "null"]}
_FLAG = {"type": ["boolean", "null"]}


def _text(most: int, least: int = 0) -> dict[str, Any]:
    return {"type": "string", "maxLength": most, "minLength": least}


def _object(properties: dict[str, Any], *required: str) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": [*required], "additionalProperties": False}


def _whole(low: int, high: int) -> dict[str, Any]:
    return {"type": ["integer", "null"], "minimum": low, "maximum": high}


def _between(low: float, high: float) -> dict[str, Any]:
    return {**_NUMBER, "minimum": low, "maximum": high}


_STOP = {
    "anyOf": [
        {"type": "null"},
        _text(256, 1),
        {"type": "array", "items": _text(256, 1), "maxItems": 4},
    ]
}
_METADATA = {"type": ["object", "null"], "maxProperties": 16, "additionalProperties": _text(512)}
_SAMPLING: dict[str, Any] = {
    "model": {"const": "tutelage"},
    "stream": _FLAG,
    "max_tokens": _whole(1, 64),
    "temperature": _between(0, 2),
    "top_p": _between(0, 1),
    "top_k": _whole(0, 1_000_000),
    "min_p": _between(0, 1),
    "n": _whole(1, 4),
    "seed": _whole(-(2**62), 2**62),
    "stop": _STOP,
    "user": {"type": ["string", "null"], "maxLength": 120},
    "metadata": _METADATA,
}
_PART = _object({"type": {"const": "text"}, "text": _text(2000)}, "type", "text")
_CONTENT = {"anyOf": [_text(2000), {"type": "array", "items": _PART, "maxItems": 4}]}
_MESSAGE = _object(
    {
        "role": {"enum": [*wire.ROLES]},
        "content": _CONTENT,
        "name": _text(64),
    },
    "role",
    "content",
)
_SPOKEN = {"type": {"const": "message"}, "role": {"enum": ["system", "user", "assistant"]}, "content": _text(2000)}
_ITEM = _object(_SPOKEN, "role", "content")
_SCHEMA = {"type": "object"}
_FUNCTION = _object(
    {"name": {"type": "string", "pattern": "^[A-Za-z0-9_.-]{1,64}$"}, "description": _text(500), "parameters": _SCHEMA},
    "name",
)
_ROW = _object({"id": _text(64), "text": _text(2000), "answer": _text(2000)}, "text")

CHAT = _object(
    {
        **_SAMPLING,
        "messages": {"type": "array", "items": _MESSAGE, "minItems": 1, "maxItems": 20},
        "logprobs": _FLAG,
        "tools": {
            "type": "array",
            "maxItems": 1,
            "items": _object({"type": {"const": "function"}, "function": _FUNCTION}, "type", "function"),
        },
    },
    "messages",
)
COMPLETIONS = _object({**_SAMPLING, "prompt": _text(2000, 1)}, "prompt")
RESPONSES = _object(
    {
        "model": {"const": "tutelage"},
        "input": {"anyOf": [_text(2000), {"type": "array", "items": _ITEM, "minItems": 1, "maxItems": 20}]},
        "instructions": {"type": ["string", "null"], "maxLength": 2000},
        "max_output_tokens": _whole(1, 64),
        "temperature": _between(0, 2),
        "top_p": _between(0, 1),
        "stream": _FLAG,
        "store": {"enum": [False, None]},
        "metadata": _METADATA,
    },
    "input",
)
EMBEDDINGS = _object(
    {
        "model": _text(256),
        "input": {"anyOf": [_text(2000, 1), {"type": "array", "items": _text(2000, 1), "minItems": 1, "maxItems": 9}]},
        "encoding_format": {"enum": ["float", "base64"]},
    },
    "input",
)
MODERATIONS = _object(
    {
        "model": _text(256),
        "input": {"anyOf": [_text(2000), {"type": "array", "items": _text(2000), "minItems": 1, "maxItems": 9}]},
    },
    "input",
)
SCAN = _object({"rows": {"type": "array", "items": _ROW, "minItems": 1, "maxItems": 9}}, "rows")
FEEDBACK = _object(
    {
        "kind": {"const": "thumb"},
        "request": _text(64),
        "value": {"enum": [1, -1]},
        "text": _text(2000),
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
            "properties": {"message": _text(10_000, 1), "type": {"type": "string"}},
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
