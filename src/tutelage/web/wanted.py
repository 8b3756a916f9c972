"""What is asked beside the messages: tools, a shape for the answer, log-probabilities; in the forms of both of OpenAI's
interfaces, chat completions and responses."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tutelage.guard.tools import PLAIN, Shape, Tool, Wants
from tutelage.web import wire

MOST_TOOLS = 128
MOST_TOP = 20
CHAT = frozenset(("tools", "tool_choice", "parallel_tool_calls", "response_format", "logprobs", "top_logprobs"))
"""Parameters of chat completions that are read here."""
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


def of_chat(body: Mapping[str, Any]) -> Wants:
    """What a chat completion asks for."""
    offered = _tools(body.get("tools"), nested=True)
    logprobs = wire.flag(body, "logprobs")
    top = int(wire.number(body, "top_logprobs", 0, 0, MOST_TOP, whole=True))
    if top and not logprobs:
        wire.refuse("'top_logprobs' goes with 'logprobs: true'", "top_logprobs")
    return replace(
        PLAIN,
        tools=offered,
        choice=_choice(body.get("tool_choice"), offered, nested=True),
        parallel=_parallel(body),
        shape=_format(body.get("response_format"), "response_format", nested=True),
        logprobs=top if logprobs else None,
    )


def of_responses(body: Mapping[str, Any]) -> Wants:
    """What a response asks for."""
    offered = _tools(body.get("tools"), nested=False)
    told = body.get("text")
    if told is not None and not isinstance(told, dict):
        wire.refuse("'text' must be an object", "text")
    wire.only(told or {}, frozenset(("format", "verbosity")), "text")
    if (told or {}).get("verbosity") is not None:
        wire.refuse("'text.verbosity' is not supported by this service", "text.verbosity", "unsupported_parameter")
    include = body.get("include")
    if include is not None and not (isinstance(include, list) and all(isinstance(each, str) for each in include)):
        wire.refuse("'include' must be a list of texts", "include")
    for each in include or ():
        if each != "message.output_text.logprobs":
            wire.refuse(
                f"'include': {each[:80]!r} is not supported by this service", "include", "unsupported_parameter"
            )
    top = int(wire.number(body, "top_logprobs", 0, 0, MOST_TOP, whole=True))
    return replace(
        PLAIN,
        tools=offered,
        choice=_choice(body.get("tool_choice"), offered, nested=False),
        parallel=_parallel(body),
        shape=_format((told or {}).get("format"), "text.format", nested=False),
        logprobs=top if top or include else None,
    )


def _parallel(body: Mapping[str, Any]) -> bool | None:
    return None if body.get("parallel_tool_calls") is None else wire.flag(body, "parallel_tool_calls")


def _tools(given: Any, nested: bool) -> tuple[Tool, ...]:
    if given is None:
        return ()
    if not isinstance(given, list) or len(given) > MOST_TOOLS:
        wire.refuse(f"'tools' must be a list of at most {MOST_TOOLS} functions", "tools")
    found = tuple(_tool(each, f"tools[{index}]", nested) for index, each in enumerate(given))
    names = [each.name for each in found]
    if twice := next((name for name in names if names.count(name) > 1), None):
        wire.refuse(f"the tool {twice!r} stands twice", "tools")
    return found


def _tool(given: Any, where: str, nested: bool) -> Tool:
    kind = given.get("type") if isinstance(given, dict) else None
    if kind != "function":
        shown = str(kind)[:80]
        wire.refuse(f"{where} is of type {shown!r}; only functions are supported", where, "unsupported_tool")
    body, own = given, frozenset(("type", "name", "description", "parameters", "strict"))
    if nested:
        wire.only(given, frozenset(("type", "function")), where)
        body, where, own = given.get("function"), f"{where}.function", own - {"type"}
    if not isinstance(body, dict):
        wire.refuse(f"{where} must be an object", where)
    wire.only(body, own, where)
    name, description, schema = body.get("name"), body.get("description"), body.get("parameters")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        wire.refuse(f"{where}.name must be up to 64 letters, digits, '_', '-', '.'", f"{where}.name")
    if description is not None and not isinstance(description, str):
        wire.refuse(f"{where}.description must be a text", f"{where}.description")
    if schema is not None and not isinstance(schema, dict):
        wire.refuse(f"{where}.parameters must be a JSON schema", f"{where}.parameters")
    return Tool(name, description or "", schema, _strict(body, where))


def _strict(body: Mapping[str, Any], where: str) -> bool | None:
    found = body.get("strict")
    if found is not None and not isinstance(found, bool):
        wire.refuse(f"{where}.strict must be true or false", f"{where}.strict")
    return found


def _choice(given: Any, offered: tuple[Tool, ...], nested: bool) -> str:
    if given is None or given == "auto":
        return "auto"
    if given == "none":
        return "none"
    if given == "required":
        if not offered:
            wire.refuse("'tool_choice' is 'required', and no tools are offered", "tool_choice")
        return "required"
    body = given.get("function") if nested and isinstance(given, dict) else given
    name = body.get("name") if isinstance(body, dict) else None
    if not isinstance(given, dict) or given.get("type") != "function" or not isinstance(name, str):
        wire.refuse("'tool_choice' must be 'auto', 'none', 'required', or name a function", "tool_choice")
    if name not in {tool.name for tool in offered}:
        wire.refuse(f"'tool_choice' names {name[:80]!r}, which is not offered", "tool_choice")
    return f":{name}"


def _format(given: Any, where: str, nested: bool) -> Shape | None:
    if given is None:
        return None
    kind = given.get("type") if isinstance(given, dict) else None
    if kind == "text":
        wire.only(given, frozenset(("type",)), where)
        return None
    if kind == "json_object":
        wire.only(given, frozenset(("type",)), where)
        return Shape()
    if kind != "json_schema":
        wire.refuse(f"{where!r} must be of type 'text', 'json_object' or 'json_schema'", where)
    body, own = given, frozenset(("type", "name", "schema", "description", "strict"))
    if nested:
        wire.only(given, frozenset(("type", "json_schema")), where)
        body, where, own = given.get("json_schema"), f"{where}.json_schema", own - {"type"}
    if not isinstance(body, dict):
        wire.refuse(f"{where!r} must be an object", where)
    wire.only(body, own, where)
    name, schema, description = body.get("name", "answer"), body.get("schema"), body.get("description")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        wire.refuse(f"{where}.name must be up to 64 letters, digits, '_', '-', '.'", f"{where}.name")
    if not isinstance(schema, dict):
        wire.refuse(f"{where}.schema must be a JSON schema", f"{where}.schema")
    if description is not None and not isinstance(description, str):
        wire.refuse(f"{where}.description must be a text", f"{where}.description")
    return Shape(schema, name, description or "", _strict(body, where))


def characters(wants: Wants) -> int:
    """Characters of all that the client wrote here."""
    told = [json.dumps(each.parameters, ensure_ascii=False) + each.description + each.name for each in wants.tools]
    told += [json.dumps(wants.shape.schema, ensure_ascii=False) + wants.shape.description] if wants.shape else []
    return sum(map(len, told))
