"""What one answer is worth, before it is a row of results."""

from __future__ import annotations

from typing import NamedTuple

from tutelage.evaluate.suite import Outcome


class Figure(NamedTuple):
    """What one answer is worth. No value means that it was not measured."""

    value: float | None
    outcome: Outcome
    output: str
    scores: dict[str, float]
    reason: str = ""


def unknown(reason: str, output: str = "") -> Figure:
    """Not measured: no value, lower coverage."""
    return Figure(None, "unknown", output, {}, reason)
