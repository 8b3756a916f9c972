"""Hashed character and word n-grams, and linear heads over them fused into one pass: the always-on guard's arithmetic.

One table per direction holds, for each bucket, a weight per category and (last column) the square of the bucket's
inverse document frequency. A text's score is the sum of its n-grams' weights divided by the root of that last column,
over windows that end at each token. In a window each n-gram counts once, however often it stands there: counted every
time, a text that only repeats itself would be as far from the border as its repetitions are many. Sums can be carried
along, so an answer in flight costs O(n) in all, and whatever the chunks, the scores are those of the whole text, bit
for bit.

Shapes: P positions (characters of the folded text), K categories.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tutelage.core.records import Record
from tutelage.text.normalise import inked, skeleton

PIECE = 4096
"""Characters of a whole text that are read at once."""
RUN = 48
"""Longest run without a space that is folded as one token."""
_TOKEN = re.compile(rf"\S{{1,{RUN}}}")
_BASE = 0x9E3779B97F4A7C15
_MIX = np.uint64(0xD6E8FEB86659FD93)
_MASK = (1 << 64) - 1
_WORDS, _PAIRS = 101, 102
"""Salts that keep words and word pairs apart from characters."""
_FAR = 1 << 40
"""Positions to an n-gram that was not met."""
_NONE, _ZERO = np.zeros(0, dtype=np.int64), np.zeros(1, dtype=np.int64)

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
    part: int = 0
    """Characters of the shorter windows, which are scored past the first whole one, so that a line of harm is not lost
    in a long harmless text; half a window when 0."""
    minimum: int = 64
    """A window shorter than this is scored only where the text ends."""
    apart: bool = False
    """Words and their pairs have the upper half of the buckets to themselves."""
    prior: float = 0.0
    """Added to a window's sum of squares: the fewer n-grams it has, the less far from the border it can be."""

    @property
    def sizes(self) -> tuple[int, int]:
        """Characters of the whole windows and of the shorter ones."""
        return self.window, self.part or self.window // 2


def fold(text: str) -> str:
    """The form that is counted: each token as its skeleton (text/normalise.py), after one space.

    Tokens are folded one by one, so that the form of a text is the forms of its parts put together.
    """
    tokens = _TOKEN.findall(inked(text))
    if not tokens:
        return ""
    if text.isascii():
        return (" " + " ".join(tokens)).lower()
    return "".join(f" {found}" for found in map(skeleton, tokens) if found)


def complete(text: str) -> int:
    """How many characters of `text` are whole tokens, whatever may follow; the rest must wait for more text.

    The text has no characters without ink, and begins where a token may begin.
    """
    if not text or text[-1].isspace():
        return len(text)
    size = len(text.rsplit(None, 1)[-1])
    return len(text) - size + (size - 1) // RUN * RUN


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
        self._half = 1 << (features.bits - 1) if features.apart else 0
        self._shift = np.uint64(64 - features.bits + features.apart)
        self._orders = features.orders
        self._keep = max(features.orders, default=1) - 1
        self._before = np.zeros(0, dtype=np.uint64)
        self._word: np.uint64 | None = None

    def _bucket(self, hashes: NDArray[np.uint64], salt: int) -> Buckets:
        salted = (hashes + np.uint64((salt * _BASE) & _MASK)) * _MIX
        found = ((salted ^ (salted >> np.uint64(29))) * _MIX >> self._shift).astype(np.int64)
        return found + self._half if salt >= _WORDS else found

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


def windows(text: str, features: Features, most: int = 8) -> list[Buckets]:
    """Buckets, each once, of windows to train on, up to `most` of each size spread evenly over a text; one if it fits a
    window."""
    folded = fold(text)
    parts: list[str] = []
    for size in features.sizes if len(folded) > features.window else (len(folded),):
        count = min(most, -(-len(folded) // max(1, size)))
        starts = np.linspace(0, len(folded) - size, max(1, count)).astype(int)
        parts += [folded[start : start + size] for start in starts]
    return [
        np.unique(np.concatenate([b for _, b in Hashes(features).feed(part)] or [np.zeros(0, np.int64)]))
        for part in parts
    ]


class Met:
    """The n-grams of a growing text in the order of their positions, each with how far back the same one stands, and
    after how many positions it comes again; those more than `reach` positions back are forgotten, and what they were to
    others with them: `back` is asked of new n-grams only."""

    def __init__(self, features: Features, reach: int) -> None:
        self._hashes, self._reach = Hashes(features), reach
        self.begin = 0
        """How many n-grams were forgotten: the number of the first one here."""
        self.length = 0
        """Positions of the text so far."""
        self.at = self.buckets = self.back = self.ahead = np.zeros(0, dtype=np.int64)

    def feed(self, folded: str) -> None:
        """More text; it must end where a token ends."""
        found = self._hashes.feed(folded)
        gone = int(self.at.searchsorted(self.length - self._reach))
        places = np.concatenate([_NONE, *(places for places, _ in found)])
        order = places.argsort(kind="stable")
        self.at = at = np.concatenate([self.at[gone:], places[order] + self.length])
        buckets = np.concatenate([_NONE, *(buckets for _, buckets in found)])[order]
        self.buckets = np.concatenate([self.buckets[gone:], buckets])
        alike = _side_by_side(self.buckets)
        gaps = np.full(len(at) + 1, _FAR)
        names, places = self.buckets[alike], at[alike]
        np.subtract(places[1:], places[:-1], out=gaps[1:-1], where=names[1:] == names[:-1])
        self.back, self.ahead = np.empty_like(at), np.empty_like(at)
        self.back[alike], self.ahead[alike] = gaps[:-1], gaps[1:]
        self.begin += gone
        self.length += len(folded)


def _side_by_side(buckets: Buckets) -> Buckets:
    """An order in which the same buckets stand side by side, as they follow in the text. By two digits, since numpy
    sorts sixteen bits ten times as fast as more."""
    low = buckets.astype(np.uint16).argsort(kind="stable")
    high = (buckets >> 16).astype(np.uint8)[low]
    return low[high.argsort(kind="stable")] if high.any() else low


class Sums:
    """Sums of the table over the n-grams, each counted once, of the last `length` positions before the end of a token.

    An n-gram comes in where it was not met within the length, and leaves when the last of those that stand closer to
    each other than that has left.
    """

    def __init__(self, table: Table, length: int) -> None:
        self._table, self._length = table, length
        self._come = self._gone = 0
        self._now: Floats = np.zeros((1, table.shape[1]))

    def before(self, ends: Buckets, met: Met) -> Floats:
        """[len(ends), K + 1] sums; `ends` rise, and the last of them is the end of the text so far."""
        late = int(met.at.searchsorted(ends[-1] - self._length)) + met.begin
        found = np.concatenate([self._now, self._alone(met, met.back, self._come, met.begin + len(met.at), ends)])
        if late > self._gone:
            found[1:] -= self._alone(met, met.ahead, self._gone, late, ends - self._length)
        np.add.accumulate(found, axis=0, out=found)
        self._come, self._gone, self._now = met.begin + len(met.at), late, found[-1:]
        return found[1:]

    def _alone(self, met: Met, gaps: Buckets, first: int, last: int, ends: Buckets) -> Floats:
        """[len(ends), K + 1] what n-grams `first` to `last` that are alone within the length add before each end."""
        part = slice(first - met.begin, last - met.begin)
        alone = gaps[part] >= self._length
        rows = self._table.take(met.buckets[part][alone], axis=0)
        stops = met.at[part][alone].searchsorted(ends)
        starts = np.concatenate([_ZERO, stops[:-1]])
        found = np.zeros((len(ends), rows.shape[1]))
        some = starts < stops
        if len(rows):
            found[some] = np.add.reduceat(rows, starts[some], axis=0, dtype=np.float64)
        return found


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
        for start in range(0, len(text), PIECE):  # between two other threads have their turn
            stream.feed(text[start : start + PIECE])
        return stream.close()

    def stream(self) -> HeadStream:
        """The same on a text that comes in parts."""
        return HeadStream(self)


class HeadStream:
    """Scores a growing text."""

    def __init__(self, heads: Heads) -> None:
        features = heads.features
        self._heads = heads
        self._met = Met(features, features.window)
        self._full, self._half = Sums(heads.table, features.window), Sums(heads.table, features.sizes[1])
        self._pending = ""
        """The token that is being written, without what has no ink."""
        self._highest: Floats | None = None
        self._taken = self._fed = 0

    @property
    def scored_to(self) -> int:
        """Characters that the scores so far cover: none before the first window is long enough."""
        return 0 if self._highest is None else self._taken

    def feed(self, text: str) -> Floats | None:
        """Take more text; [K] highest log-odds so far, None while no window is long enough."""
        seen, known = inked(text), len(self._pending)
        self._pending += seen
        whole = complete(self._pending)
        if whole:
            self._take(self._pending[:whole])
            self._pending = self._pending[whole:]
            # the token that waited ends in this part of the text
            self._taken = self._fed + (whole - known if len(seen) == len(text) else _reach(text, whole - known))
        self._fed += len(text)
        if not self._pending:
            self._taken = self._fed
        return self._highest

    def close(self) -> Floats:
        """The text has ended; [K] log-odds of all of it."""
        self._take(self._pending)
        self._taken = self._fed
        self._pending = ""
        if self._highest is None:
            self._raise(self._full.before(np.array([self._met.length]), self._met))
        assert self._highest is not None
        return self._highest

    def _take(self, part: str) -> None:
        folded = fold(part)
        if not folded:
            return
        features, begin = self._heads.features, self._met.length
        self._met.feed(folded)
        codes = np.frombuffer(folded.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
        ends = np.flatnonzero(np.append(codes[1:] == 32, True)) + 1 + begin
        full = self._full.before(ends, self._met)
        self._raise(full[ends >= features.minimum])
        if self._met.length >= features.window:  # what came before the first whole window is still remembered then
            self._raise(self._half.before(ends, self._met)[ends >= features.window])

    def _raise(self, sums: Floats) -> None:
        """Raise the highest scores by those of some windows."""
        if not len(sums):
            return
        best = (
            sums[:, :-1] / np.sqrt(np.maximum(sums[:, -1:] + self._heads.features.prior, 1e-12)) + self._heads.bias
        ).max(axis=0)
        self._highest = best if self._highest is None else np.maximum(self._highest, best)


def _reach(text: str, count: int) -> int:
    """How far the first `count` characters with ink reach."""
    at = 0
    while count > 0:
        count -= bool(inked(text[at]))
        at += 1
    return at
