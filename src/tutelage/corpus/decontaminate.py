"""No run of words of a held-out item in training text.

A run of `gram` words (8 by default) that stands in an item and in a training text betrays the item. Runs that stand in
many items are no secret of any of them: they are the wording of the question ("Read the passage and answer ..."), and
are left out of the comparison above `common` items. The report says how many runs there were of each kind.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from tutelage.core.records import Record
from tutelage.corpus.dedup import U64, Words, grams, words_of


class Contamination(Record):
    """What was compared, and what was dropped."""

    items: int = 0
    gram: int = 8
    runs: int = 0
    """Different runs of words that belong to few items: the ones that were looked for."""
    wording: int = 0
    """Different runs that more than `common` items share, not looked for."""
    common: int = 0
    dropped: dict[str, int] = Field(default_factory=dict)
    """Kind of record -> how many training texts held a run."""
    left: int = 0
    """Training texts that still hold one, counted again at the end: must be 0."""
    examples: list[dict[str, str]] = Field(default_factory=list)


class HeldOut:
    """The runs of words of all held-out items."""

    def __init__(self, items: Sequence[str], gram: int = 8, common: int = 5) -> None:
        self.items, self.gram, self.common = len(items), gram, common
        hashes, owner = grams(words_of(items), gram)
        if len(hashes):  # each run once per item
            pairs = np.unique(np.stack([hashes, owner.astype(np.uint64)], axis=1), axis=0)
            hashes = pairs[:, 0]
        runs, counts = np.unique(hashes, return_counts=True)
        self.runs: U64 = runs[counts <= common]
        self.wording = int((counts > common).sum())

    def found_in(self, words: Words) -> NDArray[np.bool_]:
        """For each text whether it holds a run of an item."""
        found = np.zeros(len(words.starts) - 1, dtype=np.bool_)
        hashes, owner = grams(words, self.gram)
        if len(hashes) and len(self.runs):
            place = np.minimum(np.searchsorted(self.runs, hashes), len(self.runs) - 1)
            found[np.unique(owner[self.runs[place] == hashes])] = True
        return found
