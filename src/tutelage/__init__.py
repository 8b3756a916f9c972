"""tutelage raises a language model: `run`, `stages`, `open`, `find`, `load` (tutelage.api) and `feedback` (its client),
imported at first use."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tutelage import feedback
    from tutelage.api import find, load, open, run, stages

__all__ = ["feedback", "find", "load", "open", "run", "stages"]


def __getattr__(name: str) -> Any:
    if name == "feedback":
        return import_module("tutelage.feedback")
    if name in __all__:
        from tutelage import api

        return getattr(api, name)
    raise AttributeError(f"module 'tutelage' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
