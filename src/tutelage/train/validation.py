"""Held-out likelihood as a watch: nats per token with an interval over documents, and nats per character."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from tutelage.measure.statistics import Floats, Interval, linearised, mean, undefined
from tutelage.model.logprob import logprobs
from tutelage.train.batch import Source, spread, token_batch

MICRO = 4096
"""Tokens per forward pass."""
LIMIT = 60_000
"""Tokens looked at, at most, unless another number is given."""


class Validation:
    """Mean negative log-likelihood of a held-out source, as a watch.

    Args:
        name: the figure's name; `NAME` is nats per token, `NAME_per_character` nats per character.
        source: documents with, perhaps, a mask of the tokens that count.
        context: longest piece.
        every: interval in steps, 0 for begin and end only.
        limit: tokens looked at, at most; documents are taken at equal distances.
        characters: characters per token of the source, to state the loss independent of the tokenizer.
    """

    def __init__(
        self,
        name: str,
        source: Source,
        context: int,
        *,
        every: int = 0,
        limit: int = LIMIT,
        characters: float | None = None,
    ) -> None:
        self.name, self.source, self.every, self.characters = name, source, every, characters
        pieces = source.pieces(context)
        total = int(pieces[:, 1].sum()) if len(pieces) else 0
        if total > limit:
            number = max(1, round(len(pieces) * limit / total))
            pieces = pieces[np.linspace(0, len(pieces) - 1, number).round().astype(np.int64)]
        self.pieces = pieces
        self.documents: list[int] = source.documents(pieces).tolist()
        self._last: tuple[Floats, Floats] = np.zeros(0), np.zeros(0)

    def __call__(self, model: Any, step: int) -> dict[str, Any]:
        self._last = self.losses(model)
        found = self.per_token(*self._last)
        figures: dict[str, Any] = {self.name: found.value}
        if self.characters and found.value is not None:
            figures[f"{self.name}_per_character"] = found.value / self.characters
        return figures

    def higher(self, name: str) -> bool | None:
        """Losses: less is better."""
        return False if name in (self.name, f"{self.name}_per_character") else None

    def values(self, name: str) -> dict[str, tuple[float, str]]:
        """Of the last look what each piece adds to the nats per token; its document is its cluster."""
        losses, counts = self._last
        if name != self.name or not len(losses):
            return {}
        each = (losses / counts.mean()).tolist()
        return {str(place): (value, str(self.documents[place])) for place, value in enumerate(each)}

    def measure(self, model: Any) -> Interval:
        """Nats per token; the interval treats documents as independent (ratio of sums, linearised)."""
        return self.per_token(*self.losses(model))

    def losses(self, model: Any) -> tuple[Floats, Floats]:
        """Nats lost on each piece, and its tokens that count, both [pieces]."""
        losses, counts = np.zeros(len(self.pieces)), np.zeros(len(self.pieces))
        device = next(model.parameters()).device
        was = model.training
        model.eval()
        with torch.no_grad():
            for items in spread(self.pieces[:, 1], max(MICRO, 2 * int(self.pieces[:, 1].max()))) if len(losses) else ():
                segments, masks = [], []
                for start, length in self.pieces[items]:
                    segments.append(self.source.tokens[start : start + length])
                    mask = self.source.mask
                    masks.append(np.ones(length, bool) if mask is None else np.asarray(mask[start : start + length]))
                batch = token_batch(segments, masks).to(device)
                hidden = model(batch.ids, lengths=batch.lengths)[0]
                logprob, _ = logprobs(model, hidden[batch.at], batch.targets)
                segment = torch.bucketize(batch.at, batch.ends).cpu().numpy()
                losses[items] = np.bincount(segment, -logprob.cpu().double().numpy(), minlength=len(items))
                counts[items] = np.bincount(segment, minlength=len(items))
        model.train(was)
        return losses, counts

    def per_token(self, losses: Floats, counts: Floats) -> Interval:
        """What pieces lose per token. Of two models' differences piece by piece it is the paired difference."""
        if not len(self.pieces):
            return undefined(0, "nothing is held out")
        found = mean(linearised(losses, counts), clusters=self.documents)
        return found.model_copy(update={"n": int(counts.sum()), "method": "ratio of sums, clustered by document"})
