"""The OpenAPI document of the feedback API, made of the models that check and answer its requests."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaMode, models_json_schema

from tutelage.core import refs
from tutelage.feedback import dialogue, layout
from tutelage.feedback.routes import BASE, ROUTES, File, Route
from tutelage.feedback.rows import CONSUMERS
from tutelage.feedback.wire import Problem

EVERY = (*ROUTES, *dialogue.routes(dialogue.Speakers(refs.open)))
"""Every request there is; those of dialogues are answered where generators can be opened."""

SCOPES: Mapping[str, str] = {
    "feedback:read": "see projects and where they stand",
    "feedback:answer": "hold tasks, answer them, read one's own answers",
    "feedback:lead": "make projects and tasks, export answers, register webhooks",
}
"""What a token may be given; `feedback` stands for all three. Roles of the person behind it still decide."""

ERRORS: Mapping[int, str] = {
    401: "No token, or one that is not known, has expired or was revoked",
    403: "The token lacks the scope, or the person behind it the role",
    404: "What the path names is not there",
    413: "The body is too large",
    422: "The request does not say what it should; `key` names the place, nothing was changed",
    503: "The store is busy or cannot be reached; the same request may be sent again",
}

ABOUT = """People score, rank and tag. Every write may be sent twice: answers carry a `key`, tasks have theirs.

Send `Authorization: Bearer TOKEN`. Scopes of a token:
{scopes}

A page of the console sends its session's cookie instead, and the session's token in `x-csrf-token`."""

NAMED: Mapping[str, Sequence[str]] = {"consumer": tuple(CONSUMERS), "format": tuple(layout.MEDIA)}
"""Parts of paths that have few values."""
REF = "#/components/schemas/{model}"


def document() -> dict[str, Any]:
    """The OpenAPI 3.1 document, made of the models that check and answer the requests."""
    wanted: list[tuple[type[BaseModel], JsonSchemaMode]] = [(Problem, "serialization")]
    for route in EVERY:
        if not issubclass(route.answer, File):
            wanted.append((route.answer, "serialization"))
        wanted += [(model, "validation") for model in (route.body, route.query) if model]
    known, made = models_json_schema(list(dict.fromkeys(wanted)), ref_template=REF)
    schemas: dict[str, Any] = dict(made.get("$defs", {}))
    paths: dict[str, dict[str, Any]] = {}
    for route in EVERY:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, known, schemas)
    for model in {route.query for route in EVERY if route.query}:  # its fields stand with the parameters
        schemas.pop(known[model, "validation"]["$ref"].rsplit("/", 1)[1], None)
    scopes = "\n".join(f"- `{name}`: {text}" for name, text in SCOPES.items())
    return {
        "openapi": "3.1.0",
        "info": {"title": "tutelage feedback", "version": "1", "description": ABOUT.format(scopes=scopes)},
        "paths": paths,
        "components": {
            "schemas": dict(sorted(schemas.items())),
            "securitySchemes": {
                "token": {"type": "http", "scheme": "bearer", "description": "An API token: `tut_...`"}
            },
        },
    }


def _operation(route: Route, known: Mapping[Any, Any], schemas: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {
        "operationId": _name(route),
        "tags": ["feedback"],
        "summary": route.summary,
        "security": [{"token": [route.scope]}],
        "responses": {"200": _answered(route, known)},
    }
    problem = {"application/json": {"schema": known[Problem, "serialization"]}}
    found["responses"] |= {str(code): {"description": text, "content": problem} for code, text in ERRORS.items()}
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": _part(name)}
        for name in re.findall(r"\{(\w+)\}", route.path)
    ]
    if route.query:
        asked = schemas[known[route.query, "validation"]["$ref"].rsplit("/", 1)[1]]
        required: Sequence[str] = asked.get("required", ())
        parameters += [
            {"name": name, "in": "query", "required": name in required, "schema": schema}
            for name, schema in asked["properties"].items()
        ]
    if parameters:
        found["parameters"] = parameters
    if route.body:
        content = {"application/json": {"schema": known[route.body, "validation"]}}
        found["requestBody"] = {"required": True, "content": content}
    return found


def _part(name: str) -> dict[str, Any]:
    return {"type": "string", "enum": list(NAMED[name])} if name in NAMED else {"type": "string", "minLength": 1}


def _answered(route: Route, known: Mapping[Any, Any]) -> dict[str, Any]:
    if issubclass(route.answer, File):
        raw = {"schema": {"type": "string", "format": "binary"}}
        return {"description": "The file", "content": dict.fromkeys(layout.MEDIA.values(), raw)}
    schema = known[route.answer, "serialization"]
    return {"description": (route.answer.__doc__ or "").strip(), "content": {"application/json": {"schema": schema}}}


def _name(route: Route) -> str:
    """A name for the operation, as clients that are generated call it: `post_projects_tasks`."""
    parts = re.findall(r"\w+", re.sub(r"\{\w+\}", "", route.path.removeprefix(BASE)))
    tail = [each for each in re.findall(r"\{(\w+)\}", route.path)[-1:] if route.path.endswith("}")]
    return "_".join([route.method.lower(), *parts, *(["by", *tail] if tail else [])])
