"""tutelage raises a language model: `run`, `stages`, `open`, `find`, `load` (tutelage.api), imported at first use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tutelage.api import find, load, open, run, stages

__all__ = ["find", "load", "open", "run", "stages"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from tutelage import api

        return getattr(api, name)
    raise AttributeError(f"module 'tutelage' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
