"""The second tier of a classifier: a frozen encoder, asked only where the n-grams cannot tell.

Each head has a band of the n-grams' log-odds. Within it the last `PASSAGE` characters are read by the encoder, at the
end of the text and at every `STRIDE` characters, if the n-grams' score has risen since: an unsure text costs one vector
in most cases, a sure one none. What both say together moves a text within the band and never out of it, so that a
score only rises while a text grows, and the whole is a score like the n-grams' own: its certificates are of the two
tiers as they serve. Cascades of a cheap screen and a dear judge: Viola and Jones 2001; for guards, Cunningham et al.
2026 (arXiv 2601.04603).

Shapes: N texts, K categories, D the encoder's width.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from scipy import optimize, special

from tutelage.core.records import Record
from tutelage.judge.linear import fit_heads
from tutelage.judge.ngrams import Heads
from tutelage.model.encoder import Encoder

Floats = NDArray[np.float64]
Vectors = NDArray[np.float16]

PASSAGE = 1024
"""Characters that the encoder is shown at once."""
STRIDE = 512
"""Characters after which an unsure text is looked at again."""
BLOCK = 512
"""Texts that are embedded before they are kept."""


class Escalation(Record):
    """How one head goes on where its n-grams cannot tell."""

    low: float
    high: float
    """The n-grams' log-odds between which the encoder is asked."""
    ngrams: float
    encoder: float
    bias: float
    """Weights of both log-odds, neither below 0, and what is added."""

    def inside(self, logits: Floats) -> NDArray[np.bool_]:
        """Whether the n-grams cannot tell."""
        found: NDArray[np.bool_] = (logits > self.low) & (logits <= self.high)
        return found

    def joined(self, logits: Floats, said: Floats) -> Floats:
        """Log-odds of both tiers: the n-grams' outside the band, in it by what the encoder said (-inf: nothing)."""
        whole = special.expit(self.ngrams * logits + (self.encoder * said if self.encoder else 0.0) + self.bias)
        return np.where(self.inside(logits), self.low + (self.high - self.low) * whole, logits)


class Tier(NamedTuple):
    """The encoder's heads of one direction."""

    escalations: tuple[Escalation | None, ...]
    """Of each category; None where the n-grams are never in doubt, or the encoder knew no better."""
    table: Floats
    """[D, K]"""
    bias: Floats
    """[K]"""


class Embedder:
    """Texts as vectors of half precision; what was embedded before is kept under `folder`, by text and encoder."""

    def __init__(self, encoder: Encoder, folder: Path | None = None, check: Callable[[], None] = lambda: None) -> None:
        self.encoder, self._check = encoder, check
        self._folder = folder / encoder.identity[:16] if folder else None
        self._known: dict[bytes, Vectors] = {}
        if self._folder and self._folder.is_dir():
            for file in sorted(self._folder.glob("*.safetensors")):
                self._read(file)

    def _read(self, file: Path) -> None:
        try:
            found = load_file(str(file))
            self._known.update(zip(map(bytes, found["keys"]), found["vectors"], strict=True))
        except (SafetensorError, KeyError, ValueError):
            file.unlink()  # a damaged file is only work to do again

    def __call__(self, texts: Sequence[str]) -> Vectors:
        """[N, D]"""
        keys = [hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest() for text in texts]
        missing = {key: text for key, text in zip(keys, texts, strict=True) if key not in self._known}
        found = self._known if self._folder else {}  # in service the guards remember, not this
        order = list(missing)
        for start in range(0, len(order), BLOCK):
            self._check()
            some = order[start : start + BLOCK]
            clean = [missing[key].encode("utf-8", "replace").decode("utf-8") for key in some]
            made = self.encoder.embed(clean).astype(np.float16)
            found.update(zip(some, made, strict=True))
            if self._folder:
                self._keep(self._folder, some, made)
        return np.stack([found[key] for key in keys]) if keys else np.zeros((0, self.encoder.width), np.float16)

    @staticmethod
    def _keep(folder: Path, keys: Sequence[bytes], made: Vectors) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        name = hashlib.sha256(b"".join(keys)).hexdigest()[:24]
        aside = folder / f"{name}.{os.getpid()}.part"
        save_file({"keys": np.frombuffer(b"".join(keys), np.uint8).reshape(-1, 32).copy(), "vectors": made}, str(aside))
        os.replace(aside, folder / f"{name}.safetensors")


class Cascade:
    """The heads of one direction in both tiers.

    Args:
        embed: texts -> [N, D]; needed where the tier has escalations.
    """

    def __init__(self, heads: Heads, tier: Tier | None = None, embed: Callable[[Sequence[str]], Vectors] | None = None):
        self.heads, self.categories = heads, heads.categories
        self.tier = tier if tier and any(tier.escalations) else None
        self._embed = embed
        count = len(heads.categories)
        self.low, self.high = np.full(count, np.inf), np.full(count, -np.inf)
        for column, each in enumerate(self.tier.escalations if self.tier else ()):
            if each:
                self.low[column], self.high[column] = each.low, each.high

    def said(self, texts: Sequence[str]) -> Floats:
        """[N, K] the encoder's log-odds of passages."""
        assert self.tier and self._embed
        found: Floats = self._embed(texts).astype(np.float64) @ self.tier.table + self.tier.bias
        return found

    def joined(self, logits: Floats, said: Floats) -> Floats:
        """[N, K] log-odds of both tiers from those of each."""
        if self.tier is None:
            return logits
        columns = [
            each.joined(logits[:, column], said[:, column]) if each else logits[:, column]
            for column, each in enumerate(self.tier.escalations)
        ]
        return np.stack(columns, axis=1)

    def scores(self, texts: Sequence[str]) -> Floats:
        """[N, K] log-odds of whole texts, with all passages embedded at once."""
        logits = np.zeros((len(texts), len(self.categories)))
        asked: list[tuple[int, str]] = []
        for place, text in enumerate(texts):
            if self.tier is None:
                logits[place] = self.heads.score(text)
                continue
            logits[place], found = passages(self.heads, text, self.low, self.high)
            asked += [(place, each) for each in found]
        said = np.full_like(logits, -np.inf)
        if asked:
            np.maximum.at(said, [place for place, _ in asked], self.said([text for _, text in asked]))
        return self.joined(logits, said)

    def stream(self) -> CascadeStream:
        """The same on a text that comes in parts."""
        return CascadeStream(self)


class Asking:
    """The n-grams on a growing text, and the passages at which the encoder is to be asked.

    Args:
        low, high: [K] the bands.
        ask: called with a passage.
    """

    def __init__(self, heads: Heads, low: Floats, high: Floats, ask: Callable[[str], None]) -> None:
        self._first, self._low, self._high, self._ask = heads.stream(), low, high, ask
        self._tail = ""
        self._fed = 0
        self.highest: Floats | None = None
        self._asked = np.full(len(low), -np.inf)
        """The n-grams' scores when the encoder was asked last."""
        self.settled = 0
        """Characters on which both tiers have said what they can."""

    def feed(self, text: str) -> None:
        """More text, looked at where a stride is full, however it is cut."""
        while text:
            part = text[: STRIDE - self._fed % STRIDE]
            text = text[len(part) :]
            self._take(part, self._first.feed(part))
            if self._fed % STRIDE == 0:
                self._look()

    def close(self) -> Floats:
        """The text has ended; [K] log-odds of the n-grams."""
        self._take("", self._first.close())
        self._look()
        self.settled = self._fed
        assert self.highest is not None
        return self.highest

    def _take(self, part: str, highest: Floats | None) -> None:
        self._fed += len(part)
        self._tail = (self._tail + part)[-PASSAGE:]
        self.highest = highest
        if not self._unsure():
            self.settled = self._first.scored_to

    def _unsure(self) -> bool:
        now = self.highest
        return now is not None and bool(((now > self._low) & (now <= self._high) & (now > self._asked)).any())

    def _look(self) -> None:
        if self._unsure():
            assert self.highest is not None
            self._ask(self._tail)
            self._asked = self.highest.copy()
            self.settled = self._first.scored_to


def passages(heads: Heads, text: str, low: Floats, high: Floats) -> tuple[Floats, list[str]]:
    """[K] log-odds of the n-grams on a whole text, and what of it the encoder is to read."""
    found: list[str] = []
    asking = Asking(heads, low, high, found.append)
    asking.feed(text)
    return asking.close(), found


class CascadeStream:
    """Scores a growing text by both tiers."""

    def __init__(self, cascade: Cascade) -> None:
        self._cascade = cascade
        self._plain = None if cascade.tier else cascade.heads.stream()
        self._said = np.full(len(cascade.categories), -np.inf)
        self._asking = Asking(cascade.heads, cascade.low, cascade.high, self._ask)

    def _ask(self, passage: str) -> None:
        self._said = np.maximum(self._said, self._cascade.said([passage])[0])

    @property
    def scored_to(self) -> int:
        """Characters that the scores so far cover."""
        return self._plain.scored_to if self._plain else self._asking.settled

    def feed(self, text: str) -> Floats | None:
        """Take more text; [K] log-odds so far, None while no window is long enough."""
        if self._plain:
            return self._plain.feed(text)
        self._asking.feed(text)
        return None if self._asking.highest is None else self._joined(self._asking.highest)

    def close(self) -> Floats:
        """The text has ended; [K] log-odds of all of it."""
        return self._plain.close() if self._plain else self._joined(self._asking.close())

    def _joined(self, logits: Floats) -> Floats:
        found: Floats = self._cascade.joined(logits[None], self._said[None])[0]
        return found


class Learned(NamedTuple):
    """A tier, and what it said of the rows it learned from while they were held out."""

    tier: Tier
    said: Floats
    """[N, K] log-odds, NaN where a row was not shown to the encoder."""
    shown: int
    """Rows that were shown to it."""


def learn_tier(
    heads: Heads,
    texts: Sequence[str],
    outside: Floats,
    labels: Floats,
    folds: NDArray[np.int64],
    chosen: NDArray[np.bool_],
    embed: Callable[[Sequence[str]], Vectors],
    *,
    missed: float,
    escalated: float,
    strength: float,
    check: Callable[[], None] = lambda: None,
) -> Learned:
    """Fit the encoder's heads on the rows in any head's band and on a fixed sample.

    Args:
        outside: [N, K] the n-grams' log-odds of rows that they did not learn from; NaN where there are none.
        labels: [N, K] 0 to 1, NaN where a row does not say.
        folds: [N] which part each row is of; rows of a cluster are of one part.
        chosen: [N] the fixed sample.
        missed: share of the harmful that may lie below a band.
        escalated: share of the harmless that may lie in it.
    """
    count = len(heads.categories)
    bands = [_band(outside[:, column], labels[:, column], missed, escalated) for column in range(count)]
    unsure = np.zeros(labels.shape, dtype=bool)
    for column, (low, high) in enumerate(bands):
        known = ~np.isnan(labels[:, column])
        unsure[:, column] = known & (outside[:, column] > low) & (outside[:, column] <= high)
    rows = np.flatnonzero(unsure.any(axis=1) | chosen)
    wide = np.full(count, np.inf)
    # the last passage that would be asked about if every score were unsure: where the n-grams are surest
    vectors = embed([passages(heads, texts[row], -wide, wide)[1][-1] for row in rows.tolist()]).astype(np.float32)
    said = np.full(labels.shape, np.nan)

    def fit(mine: NDArray[np.int64]) -> tuple[Floats, Floats]:
        check()
        return fit_heads(vectors[mine], labels[rows[mine]], np.ones(len(mine)), strength=strength, iterations=200)

    for fold in np.unique(folds[rows]):
        mine, others = np.flatnonzero(folds[rows] == fold), np.flatnonzero(folds[rows] != fold)
        if len(others):
            table, bias = fit(others)
            said[rows[mine]] = vectors[mine].astype(np.float64) @ table + bias
    table, bias = fit(np.arange(len(rows)))
    escalations = tuple(
        _mix(*bands[column], outside[:, column], said[:, column], labels[:, column], unsure[:, column])
        for column in range(count)
    )
    return Learned(Tier(escalations, table, bias), said, len(rows))


def _band(outside: Floats, labels: Floats, missed: float, escalated: float) -> tuple[float, float]:
    """From where only `missed` of the harmful lie below, or `escalated` of the harmless above, to where one harmless
    text in a thousand lies above; empty where that is the other way round."""
    known = ~np.isnan(labels) & ~np.isnan(outside)
    bad, good = outside[known & (labels >= 0.5)], outside[known & (labels < 0.5)]
    if not len(bad) or not len(good):
        return np.inf, -np.inf
    low = max(np.quantile(bad, missed), np.quantile(good, 1 - escalated))
    high = np.quantile(good, 0.999)
    return (float(low), float(high)) if low < high else (np.inf, -np.inf)


def _mix(
    low: float, high: float, outside: Floats, said: Floats, labels: Floats, unsure: NDArray[np.bool_]
) -> Escalation | None:
    """Weigh both log-odds in a band; None where there is too little in it, or the encoder's weight comes to nothing."""
    mine = unsure & ~np.isnan(said)
    truth = labels[mine]
    if min((truth >= 0.5).sum(), (truth < 0.5).sum()) < 8:
        return None
    pair = np.stack([outside[mine], said[mine]], axis=1)

    def loss(theta: Floats) -> tuple[float, Floats]:
        logits = pair @ theta[:2] + theta[2]
        push = (special.expit(logits) - truth) / len(truth)
        value = float((np.logaddexp(0, logits) - truth * logits).mean()) + 5e-4 * float(theta[:2] @ theta[:2])
        return value, np.append(pair.T @ push + 1e-3 * theta[:2], push.sum())

    bounds = [(0, None), (0, None), (None, None)]
    ngrams, encoder, bias = (round(float(x), 9) for x in optimize.fmin_l_bfgs_b(loss, np.zeros(3), bounds=bounds)[0])
    if encoder <= 0:
        return None
    return Escalation(low=low, high=high, ngrams=ngrams, encoder=encoder, bias=bias)
