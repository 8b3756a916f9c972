"""The authored lines, and the pen that fills their slots."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from tutelage.core.config import load_yaml

HERE = Path(__file__).parent
_SLOT = re.compile(r"\{(\w+)([\^*]?)\}")
T = TypeVar("T")


@cache
def lines(name: str) -> Any:
    """The content of `lexicon/<name>.yaml`, read once."""
    return load_yaml(HERE / "lexicon" / f"{name}.yaml")


def authored() -> dict[str, int]:
    """How many authored lines (strings with a space in them) each file holds."""

    def count(node: Any) -> int:
        if isinstance(node, dict):
            return sum(map(count, node.values()))
        return sum(map(count, node)) if isinstance(node, list) else isinstance(node, str) and " " in node

    return {path.stem: count(lines(path.stem)) for path in sorted((HERE / "lexicon").glob("*.yaml"))}


@cache
def _parts(template: str) -> tuple[tuple[str, str, str], ...]:
    pieces = _SLOT.split(template)
    return tuple(zip(pieces[0::3], [*pieces[1::3], ""], [*pieces[2::3], ""], strict=True))


def fill(template: str, given: Mapping[str, str], draw: Callable[[str], str] | None = None) -> str:
    """`template` with slots filled from `given`, else by `draw(slot)`. `{x^}` is capitalised; the first letter too."""
    out: list[str] = []
    for literal, slot, mark in _parts(template):
        out.append(literal)
        if slot:
            value = given.get(slot)
            if value is None:
                if draw is None:
                    raise KeyError(slot)
                value = draw(slot)
            out.append(value[:1].upper() + value[1:] if mark == "^" else value)
    text = "".join(out)
    return text[:1].upper() + text[1:]


def pick(rng: random.Random, options: Sequence[T]) -> T:
    """One of `options`; twice as fast as `random.choice` and as even for lists this short."""
    return options[int(rng.random() * len(options))]


def words(text: str) -> list[str]:
    """Lower-case words and numbers, as overlap is counted in."""
    return _WORD.findall(text.lower())


_WORD = re.compile(r"\w+")


def grams(text: str, size: int = 8) -> list[str]:
    """Every run of `size` words of a text."""
    found = words(text)
    return [" ".join(found[place : place + size]) for place in range(len(found) - size + 1)]
