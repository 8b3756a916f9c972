"""Exact and near duplicates. MinHash with banding, vectorised over all texts, checked by the true Jaccard index.

Broder 1997 (MinHash), Leskovec et al. ch. 3 (banding). Hashes come from blake2b and fixed odd multipliers, so the same
texts give the same clusters everywhere.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

U64 = NDArray[np.uint64]
_WORD = re.compile(r"\w+")
_MIX = np.uint64(0x9E3779B97F4A7C15)
_NOT_WORD = re.compile(r"[\W_]+")


@dataclass(frozen=True, slots=True)
class Words:
    """The words of many texts as 64-bit hashes, one after the other; text `i` is `hashes[starts[i]:starts[i + 1]]`."""

    hashes: U64
    starts: NDArray[np.int64]

    def lengths(self) -> NDArray[np.int64]:
        """Words of each text."""
        return np.diff(self.starts)


class _Numbers(dict[str, int]):
    """Numbers words in the order in which they are first asked for."""

    def __missing__(self, word: str) -> int:
        self[word] = number = len(self)
        return number


def words_of(texts: Sequence[str]) -> Words:
    """Case-folded words (letters, digits, underscore) of each text."""
    table = _Numbers()
    ids: list[int] = []
    starts = np.zeros(len(texts) + 1, dtype=np.int64)
    for place, text in enumerate(texts):
        ids.extend(map(table.__getitem__, _WORD.findall(text.casefold())))
        starts[place + 1] = len(ids)
    return Words(_hashes(list(table))[np.array(ids, dtype=np.int64)], starts)


def grams(words: Words, size: int) -> tuple[U64, NDArray[np.int64]]:
    """Hashes of every run of `size` words, and the text each stands in. No run crosses texts."""
    count = len(words.hashes) - size + 1
    if count <= 0:
        return np.zeros(0, dtype=np.uint64), np.zeros(0, dtype=np.int64)
    mixed = np.zeros(count, dtype=np.uint64)
    for offset in range(size):
        mixed = mixed * _MIX + words.hashes[offset : offset + count]
    mixed ^= mixed >> np.uint64(29)
    owner = np.repeat(np.arange(len(words.starts) - 1), words.lengths())
    inside = owner[:count] == owner[size - 1 :]
    return mixed[inside], owner[:count][inside]


def exact_key(text: str) -> bytes:
    """16 bytes that are equal for texts with the same letters and digits, whatever their case and punctuation."""
    return hashlib.blake2b(_NOT_WORD.sub(" ", text.casefold()).strip().encode(), digest_size=16).digest()


def exact(texts: Sequence[str]) -> list[int]:
    """For each text the first one that is equal to it (itself when it is the first)."""
    first: dict[bytes, int] = {}
    return [first.setdefault(exact_key(text), place) for place, text in enumerate(texts)]


def near(
    words: Words,
    threshold: float = 0.8,
    *,
    gram: int = 3,
    bands: int = 24,
    rows: int = 4,
    check: Callable[[], None] = lambda: None,
) -> list[int]:
    """For each text a text before it that is kept and near to it (itself when there is none: it is kept).

    Two texts are near when the Jaccard index of their sets of word `gram`-grams reaches `threshold`; a text with fewer
    than `gram` words is near to none. Nearness is not passed on: a text goes only if what it is near to stays.
    Candidates share a band: with 24 bands of 4 rows, a pair at 0.8 is missed once in a million, at 0.6 three times in
    a hundred.
    """
    kept = list(range(len(words.starts) - 1))
    sets = _Sets(words, gram)
    near_to: dict[int, list[int]] = {}
    for a, b in sorted(sets.sharing(bands, rows, check)):
        if jaccard(sets.of(a), sets.of(b)) >= threshold:
            near_to.setdefault(int(sets.texts[b]), []).append(int(sets.texts[a]))
    for place in sorted(near_to):
        first = next((other for other in sorted(near_to[place]) if kept[other] == other), None)
        kept[place] = place if first is None else first
    return kept


def groups(
    words: Words,
    threshold: float = 0.5,
    *,
    gram: int = 3,
    bands: int = 32,
    rows: int = 3,
    check: Callable[[], None] = lambda: None,
) -> list[int]:
    """For each text the first text of its group: texts near to each other, those near to these, and so on.

    Here nearness is passed on, as it must be where no text of one group may be near to a text of another. With 32 bands
    of 3 rows a pair at 0.5 is missed once in seventy.
    """
    first = list(range(len(words.starts) - 1))
    sets = _Sets(words, gram)

    def root(place: int) -> int:
        while first[place] != place:
            first[place] = place = first[first[place]]
        return place

    known: dict[int, frozenset[int]] = {}
    for a, b in sorted(sets.sharing(bands, rows, check)):
        one, two = root(int(sets.texts[a])), root(int(sets.texts[b]))
        if one == two:
            continue
        for place in (a, b):
            if place not in known:
                known[place] = frozenset(sets.of(place).tolist())
        shared = len(known[a] & known[b])
        if shared >= threshold * (len(known[a]) + len(known[b]) - shared):
            first[max(one, two)] = min(one, two)
    return [root(place) for place in first]


class _Sets:
    """The word `gram`-grams of those texts that have any. Places count these texts; `texts` holds their numbers."""

    def __init__(self, words: Words, gram: int) -> None:
        self._hashes, owner = grams(words, gram)
        self.texts = np.unique(owner)
        self._starts = np.searchsorted(owner, self.texts)
        self._ends = np.append(self._starts[1:], len(owner))

    def of(self, place: int) -> U64:
        """The grams of one text, as they follow in it."""
        return self._hashes[self._starts[place] : self._ends[place]]

    def sharing(self, bands: int, rows: int, check: Callable[[], None]) -> set[tuple[int, int]]:
        """Pairs of places, the smaller first, whose smallest hashes agree under every permutation of some band."""
        pairs: set[tuple[int, int]] = set()
        if not len(self.texts):
            return pairs
        multipliers = _hashes([f"permutation {place}" for place in range(bands * rows)]) | np.uint64(1)
        for band in range(bands):
            check()
            key = np.zeros(len(self.texts), dtype=np.uint64)
            for row in range(rows):
                scattered = self._hashes * multipliers[band * rows + row]
                scattered ^= scattered >> np.uint64(32)
                key = key * _MIX + np.minimum.reduceat(scattered, self._starts)
            pairs |= _sharing(key)
        return pairs


def _sharing(key: U64) -> set[tuple[int, int]]:
    """Pairs of places with equal keys: each with the one before it and with the first of its group."""
    order = np.argsort(key, kind="stable")
    ordered = key[order]
    new = np.append(True, ordered[1:] != ordered[:-1])
    first = order[np.maximum.accumulate(np.where(new, np.arange(len(key)), 0))]
    at = np.flatnonzero(~new)
    before = zip(order[at - 1].tolist(), order[at].tolist(), strict=True)
    return set(before) | set(zip(first[at].tolist(), order[at].tolist(), strict=True))


def jaccard(one: NDArray[Any], two: NDArray[Any]) -> float:
    """Shared elements over all elements of two sets given as arrays; 0 when both are empty."""
    a, b = np.unique(one), np.unique(two)
    shared = len(np.intersect1d(a, b, assume_unique=True))
    whole = len(a) + len(b) - shared
    return shared / whole if whole else 0.0


def _hashes(words: Sequence[str]) -> U64:
    packed = b"".join(hashlib.blake2b(word.encode(), digest_size=8).digest() for word in words)
    return np.frombuffer(packed, dtype="<u8").astype(np.uint64)
