"""Hashed character and word n-grams, and linear heads over them fused into one pass: the always-on guard's arithmetic.

One table per direction holds, for each bucket, a weight per category and (last column) the square of the bucket's
inverse document frequency. A text's score is the sum of its n-grams' weights divided by the root of that last column,
over windows that end at each token: sums can be carried along, so an answer in flight costs O(n) in all, and whatever
the chunks, the scores are those of the whole text, bit for bit.

Shapes: P positions (characters of the folded text), K categories.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tutelage.core.records import Record
from tutelage.text.normalise import normalise

RUN = 48
"""Longest run without a space that is folded as one token."""
_TOKEN = re.compile(rf"\S{{1,{RUN}}}")
_BASE = 0x9E3779B97F4A7C15
_MIX = np.uint64(0xD6E8FEB86659FD93)
_MASK = (1 << 64) - 1
_WORDS, _PAIRS = 101, 102
"""Salts that keep words and word pairs apart from characters."""

Floats = NDArray[np.float64]
Table = NDArray[np.float32]
Buckets = NDArray[np.int64]


class Features(Record):
    """What is counted, and over which windows. All of it is sealed with the weights."""

    bits: int = 16
    """Buckets are 2^bits."""
    orders: tuple[int, ...] = (3, 4, 5)
    """Lengths of character n-grams."""
    window: int = 256
    """Characters a score looks at; a longer text has the highest score of its windows."""
    minimum: int = 64
    """A window shorter than this is scored only where the text ends. Past the first whole window, half windows are
    scored as well, so that a line of harm is not lost in a long harmless text."""


def fold(text: str) -> str:
    """The form that is counted: each token in normal form and lower case, after one space.

    Tokens are folded one by one, so that the form of a text is the forms of its parts put together.
    """
    tokens = _TOKEN.findall(text)
    if not tokens:
        return ""
    if text.isascii():
        return (" " + " ".join(tokens)).lower()
    return " " + " ".join(each.lower() if each.isascii() else normalise(each, fold=True).text for each in tokens)


def complete(text: str) -> int:
    """How many characters of `text` are whole tokens, whatever may follow; the rest must wait for more text."""
    bare = text.rstrip()
    if len(bare) < len(text):
        return len(bare)
    run = re.search(r"\S*\Z", text)
    begin = run.start() if run else 0
    size = len(text) - begin
    if size > RUN:
        return begin + (size - 1) // RUN * RUN
    return len(text[:begin].rstrip())


@functools.cache
def _alphabet() -> NDArray[np.bool_]:
    """Which code points are part of a word."""
    return np.fromiter((chr(code).isalnum() or code == 39 for code in range(0x11000)), dtype=bool, count=0x11000)


@functools.lru_cache(maxsize=8)
def _powers(count: int) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Powers 0..count-1 of the base and of its inverse modulo 2^64 (the base is odd, so it has one)."""

    def series(base: int) -> NDArray[np.uint64]:
        steps = np.full(count, base, dtype=np.uint64)
        steps[0] = 1
        return np.multiply.accumulate(steps)

    return series(_BASE), series(pow(_BASE, -1, 1 << 64))


class Hashes:
    """Turns folded text, part by part, into buckets: [P] per character order, and those of words where they end."""

    def __init__(self, features: Features) -> None:
        self._shift = np.uint64(64 - features.bits)
        self._orders = features.orders
        self._keep = max(features.orders, default=1) - 1
        self._before = np.zeros(0, dtype=np.uint64)
        self._word: np.uint64 | None = None

    def _bucket(self, hashes: NDArray[np.uint64], salt: int) -> Buckets:
        salted = (hashes + np.uint64((salt * _BASE) & _MASK)) * _MIX
        return ((salted ^ (salted >> np.uint64(29))) * _MIX >> self._shift).astype(np.int64)

    def feed(self, text: str) -> list[tuple[Buckets, Buckets]]:
        """Pairs (positions in this part, their buckets); a part must end where a token ends."""
        codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32).astype(np.uint64)
        known, count = len(self._before), len(codes)
        joined = np.concatenate([self._before, codes])
        self._before = joined[len(joined) - min(self._keep, len(joined)) :]
        found: list[tuple[Buckets, Buckets]] = []
        rolling = joined
        for order in range(1, self._keep + 2):
            if order > 1:
                rolling = rolling[:-1] * np.uint64(_BASE) + joined[order - 1 :]
            if order in self._orders and len(rolling):
                fresh = rolling[max(0, known - order + 1) :]  # n-grams that end in this part
                found.append((np.arange(count - len(fresh), count), self._bucket(fresh, order)))
        found += self._words(codes)
        return found

    def _words(self, codes: NDArray[np.uint64]) -> list[tuple[Buckets, Buckets]]:
        inside = np.zeros(len(codes) + 2, dtype=bool)
        inside[1:-1] = _alphabet()[np.minimum(codes, 0x10FFF)]
        edges = np.flatnonzero(inside[1:] != inside[:-1])
        begins, ends = edges[0::2], edges[1::2]
        if not len(begins):
            return []
        up, down = _powers(1 << max(10, len(codes).bit_length()))
        sums = np.zeros(len(codes) + 1, dtype=np.uint64)
        np.cumsum(codes * up[: len(codes)], out=sums[1:])
        words = (sums[ends] - sums[begins]) * down[begins]
        found = [(ends - 1, self._bucket(words, _WORDS))]
        previous = words[:-1] if self._word is None else np.concatenate([[self._word], words[:-1]])
        at = ends[len(ends) - len(previous) :] - 1
        pairs = previous * _MIX + words[len(words) - len(previous) :]
        self._word = words[-1]
        if len(pairs):
            found.append((at, self._bucket(pairs, _PAIRS)))
        return found


def windows(text: str, features: Features, most: int = 3) -> list[Buckets]:
    """Buckets of up to `most` windows spread evenly over a text, to train on; one if it fits a window."""
    folded = fold(text)
    size = features.window
    if len(folded) <= size:
        parts = [folded]
    else:
        count = min(most, -(-len(folded) // size))
        starts = np.linspace(0, len(folded) - size, count).astype(int)
        parts = [folded[start : start + size] for start in starts]
    return [np.concatenate([b for _, b in Hashes(features).feed(part)] or [np.zeros(0, np.int64)]) for part in parts]


class Heads:
    """The fused heads of one direction.

    Args:
        table: [2^bits, K + 1] weights times inverse document frequency, and its square.
        bias: [K].
    """

    def __init__(self, features: Features, categories: Sequence[str], table: Table, bias: Table) -> None:
        if table.shape != (1 << features.bits, len(categories) + 1) or bias.shape != (len(categories),):
            raise ValueError(
                f"expected a table ({1 << features.bits}, {len(categories) + 1}) and a bias ({len(categories)},), "
                f"got {table.shape} and {bias.shape}"
            )
        self.features, self.categories = features, tuple(categories)
        self.table, self.bias = np.ascontiguousarray(table), bias.astype(np.float64)

    def score(self, text: str) -> Floats:
        """[K] log-odds of a whole text: the highest over its windows."""
        stream = self.stream()
        stream.feed(text)
        return stream.close()

    def stream(self) -> HeadStream:
        """The same on a text that comes in parts."""
        return HeadStream(self)


class HeadStream:
    """Scores a growing text."""

    def __init__(self, heads: Heads) -> None:
        self._heads = heads
        self._hashes = Hashes(heads.features)
        self._pending = ""
        self._sums = np.zeros((1, len(heads.categories) + 1))  # running sums at the last `window` positions
        self._position = 0
        self._highest: Floats | None = None
        self._taken = 0

    @property
    def scored_to(self) -> int:
        """Characters that the scores so far cover: none before the first window is long enough."""
        return 0 if self._highest is None else self._taken

    def feed(self, text: str) -> Floats | None:
        """Take more text; [K] highest log-odds so far, None while no window is long enough."""
        self._pending += text
        whole = complete(self._pending)
        if whole:
            self._take(self._pending[:whole])
            self._pending = self._pending[whole:]
            self._taken += whole
        return self._highest

    def close(self) -> Floats:
        """The text has ended; [K] log-odds of all of it."""
        self._take(self._pending)
        self._taken += len(self._pending)
        self._pending = ""
        if self._highest is None:
            self._keep(np.array([len(self._sums) - 1]), len(self._sums) - 1 - self._position)
        assert self._highest is not None
        return self._highest

    def _take(self, part: str) -> None:
        folded = fold(part)
        if not folded:
            return
        table = self._heads.table
        here = np.zeros((len(folded), table.shape[1]), dtype=np.float32)
        for positions, buckets in self._hashes.feed(folded):
            rows = table.take(buckets, axis=0)
            if len(positions) == len(folded):
                here += rows
            else:
                here[positions] += rows
        sums = np.empty((len(self._sums) + len(folded), table.shape[1]))
        sums[: len(self._sums)] = self._sums
        sums[len(self._sums) :] = here
        np.add.accumulate(sums[len(self._sums) - 1 :], axis=0, out=sums[len(self._sums) - 1 :])
        base = len(self._sums)
        codes = np.frombuffer(folded.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
        ends = np.flatnonzero(np.append(codes[1:] == 32, True)) + base
        self._sums = sums
        minimum = self._heads.features.minimum
        first = base - 1 - self._position
        self._keep(ends[ends - first >= minimum], first)
        self._position += len(folded)
        self._sums = self._sums[-(self._heads.features.window + 1) :]

    def _keep(self, ends: NDArray[np.int64], first: int) -> None:
        """Raise the highest scores by the windows that end at these rows of the running sums; `first` is the row at
        which the text begins, negative if it lies further back."""
        if not len(ends):
            return
        features = self._heads.features
        late = ends[ends - first >= features.window]
        starts = np.concatenate([np.maximum(ends - features.window, 0), late - features.window // 2])
        inside = self._sums[np.concatenate([ends, late])] - self._sums[starts]
        norm = np.sqrt(np.maximum(inside[:, -1:], 1e-12))
        best = (inside[:, :-1] / norm + self._heads.bias).max(axis=0)
        self._highest = best if self._highest is None else np.maximum(self._highest, best)
