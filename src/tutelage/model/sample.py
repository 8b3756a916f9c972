"""Drawing the next token: the inverse of the cumulative distribution at one uniform number per row.

One number, not one per word of the vocabulary: that is the cheapest exact draw, and a row's draw depends on nothing
but its own number.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Draw(NamedTuple):
    """How each of n rows is drawn. None switches a feature off for all rows, and saves its cost."""

    uniforms: Tensor | None
    """[n] in [0, 1); None: all rows take the likeliest token."""
    cold: Tensor | None = None
    """[n] 1 / temperature; None: 1."""
    greedy: Tensor | None = None
    """[n] bool: rows that take the likeliest token all the same."""
    top_k: Tensor | None = None
    """[n] int, 0 = all."""
    top_p: Tensor | None = None
    """[n] float, 1 = all."""
    banned: Tensor | None = None
    """[n, vocabulary] bool: tokens that may not be drawn."""

    @property
    def cuts(self) -> bool:
        """Whether any token is kept from being drawn."""
        return not (self.top_k is None and self.top_p is None and self.banned is None)


FEW = 64
"""A nucleus is first looked for among so many likeliest tokens, before the whole vocabulary is sorted."""


def draw(logits: Tensor, how: Draw) -> tuple[Tensor, Tensor]:
    """Next tokens [n] and their log-probabilities [n] from logits [n, vocabulary], which are overwritten.

    The log-probability is that of softmax(logits / temperature), whole: before `top_k`, `top_p` and `banned` cut it.
    So it is the number that a policy gradient needs, and that `model.logprob.logprobs` gives at that temperature.
    """
    if how.cold is not None:
        logits.mul_(how.cold[:, None])
    top = logits.amax(-1, keepdim=True)
    weights = (logits - top).exp_()
    normaliser = weights.sum(-1).log_().add_(top[:, 0])
    if how.banned is not None:
        weights.masked_fill_(how.banned, 0.0)
        likeliest = weights.argmax(-1) if how.uniforms is None or how.greedy is not None else None
    else:
        likeliest = logits.argmax(-1) if how.uniforms is None or how.greedy is not None else None
    if how.uniforms is None:
        assert likeliest is not None
        ids = likeliest
    else:
        cut = how.top_k is not None or how.top_p is not None
        ids = _drawn_from_few(weights, how) if cut else _inverse(weights.cumsum(-1), how.uniforms)
        if how.greedy is not None and likeliest is not None:
            ids = torch.where(how.greedy, likeliest, ids)
    return ids, logits.gather(1, ids[:, None])[:, 0].sub_(normaliser)


def _inverse(cumulative: Tensor, uniforms: Tensor) -> Tensor:
    # A hair below 1, so that rounding never leads past the last token that has any weight.
    aim = cumulative[:, -1:] * uniforms.clamp(max=1 - 1e-6)[:, None]
    return torch.searchsorted(cumulative, aim, right=True)[:, 0].clamp_(max=cumulative.shape[1] - 1)


def _drawn_from_few(weights: Tensor, how: Draw) -> Tensor:
    """Draw among each row's `top_k` likeliest, of these among the fewest that hold `top_p` of their weight."""
    rows, vocabulary = weights.shape
    top_k = torch.zeros(rows, dtype=torch.long) if how.top_k is None else how.top_k
    top_k = torch.where(top_k > 0, top_k, vocabulary).to(weights.device)
    top_p = torch.ones(rows, device=weights.device) if how.top_p is None else how.top_p
    whole = weights.sum(-1)
    most = int(top_k.max())
    for size in dict.fromkeys((min(most, FEW), min(most, vocabulary))):
        sizes, places = weights.topk(size, -1)
        kept = sizes.masked_fill_(torch.arange(size, device=weights.device) >= top_k[:, None], 0.0)
        total = torch.where(top_k <= size, kept.sum(-1), whole)
        cumulative = kept.cumsum(-1)
        enough = (top_k <= size) | (cumulative[:, -1] >= top_p * total)
        if size == min(most, vocabulary) or bool(enough.all()):
            break
    before = cumulative - kept
    kept = kept.masked_fill_(before >= (top_p * total)[:, None], 0.0)
    assert how.uniforms is not None
    return places.gather(1, _inverse(kept.cumsum(-1), how.uniforms)[:, None])[:, 0]
