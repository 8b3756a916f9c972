"""JSON as texts to be read: keys, texts and numbers once escapes are undone, and back where they came from."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

DEPTH = 64
_HALF = re.compile("[\ud800-\udfff]")
"""Half a surrogate pair, which an escape can name and no text can hold."""


class Verbatim(str):
    """Arguments that are no JSON."""


def parsed(text: str) -> Any:
    """JSON as values; a text that is none as Verbatim, with its escapes of characters undone all the same."""
    try:
        found = json.loads(text or "{}", parse_constant=_no_number)
        if _depth(found) > DEPTH:
            return Verbatim(_undone(text))
    except (ValueError, RecursionError):
        return Verbatim(_undone(text))
    texts = list(leaves(found))
    if any(map(_HALF.search, texts)):
        return replanted(found, iter([_HALF.sub("\ufffd", each) for each in texts]))
    return found


def _undone(text: str) -> str:
    found = re.sub(r"\\u([0-9a-fA-F]{4})", lambda match: chr(int(match[1], 16)), text)
    return _HALF.sub("\ufffd", found.encode("utf-16", "surrogatepass").decode("utf-16", "replace"))


def _no_number(name: str) -> Any:
    raise ValueError(name)


def _depth(value: Any) -> int:
    if isinstance(value, dict | list):
        return 1 + max(map(_depth, value.values() if isinstance(value, dict) else value), default=0)
    return 0


def written(value: Any) -> str:
    """Values as JSON text; Verbatim as it stands."""
    return str(value) if isinstance(value, Verbatim) else json.dumps(value, ensure_ascii=False)


def leaves(value: Any) -> Iterator[str]:
    """Every text in a JSON value: keys, texts, numbers."""
    if isinstance(value, dict):
        for key, each in value.items():
            yield key
            yield from leaves(each)
    elif isinstance(value, list):
        for each in value:
            yield from leaves(each)
    elif isinstance(value, str):
        yield value
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield repr(value)


def replanted(value: Any, texts: Iterator[str]) -> Any:
    """The value with its leaves, in their order, taken from `texts`; a number that changed becomes a text."""
    if isinstance(value, dict):
        made: dict[str, Any] = {}
        for each in value.values():
            key = name = next(texts)
            while key in made:  # two names of which the same is left
                key = f"{name}_{len(made)}"
            made[key] = replanted(each, texts)
        return made
    if isinstance(value, list):
        return [replanted(each, texts) for each in value]
    if isinstance(value, str):
        return type(value)(next(texts))
    if isinstance(value, int | float) and not isinstance(value, bool):
        text = next(texts)
        return value if text == repr(value) else text
    return value


def unescaped(text: str) -> str:
    """What JSON says where it has escapes, a leaf a line; "" for anything else."""
    if "\\" not in text or text.lstrip()[:1] not in ("{", "[", '"'):
        return ""
    found = parsed(text)
    return "" if isinstance(found, Verbatim) else "\n".join(leaves(found))
