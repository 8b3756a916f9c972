"""Sequences that begin alike are read once: who reads which tokens, and in which order.

In lexicographic order a sequence shares most with the one before it. It takes over the cache up to where they part and
reads the rest; sequences whose beginnings are there already are read together, wave after wave. A few-shot header, the
question behind it and its choices are three waves, however many questions there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

LEAST = 16
"""Tokens that two sequences must share: below that, reading them again is cheaper than a wave of its own."""
KEPT = -1
"""The row of a sequence that was read before."""


class Part(NamedTuple):
    """What is read of one sequence: its tokens from `start` on, behind the first `start` tokens of row `source`."""

    start: int
    source: int
    wave: int
    path: tuple[tuple[int, int], ...]
    """(position, row): from this position on, the sequence's tokens were read by that row."""

    def owner(self, position: int) -> int:
        """The row that reads the token at a position of this sequence."""
        return next(row for first, row in reversed(self.path) if first <= position)


def shared(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two sequences have in common at their beginning."""
    most = min(len(one), len(other))
    if one[:most] == other[:most]:
        return most
    return next(place for place in range(most) if one[place] != other[place])


def parts(sequences: Sequence[tuple[int, ...]], kept: tuple[int, ...] = (), least: int = LEAST) -> list[Part]:
    """One Part per sequence; `sequences` are sorted. `kept` lies in the cache already, as row `KEPT` (wave -1)."""
    found: list[Part] = []
    before, path = kept, [(0, KEPT)] if kept else []
    for row, sequence in enumerate(sequences):
        start = shared(before, sequence)
        start = start if start >= least else 0
        path = [each for each in path if each[0] < start]
        source = path[-1][1] if path else KEPT
        wave = 0 if not path or source == KEPT else found[source].wave + 1
        if start < len(sequence):
            path = [*path, (start, row)]
        found.append(Part(start, source, wave, tuple(path)))
        before = sequence
    return found
