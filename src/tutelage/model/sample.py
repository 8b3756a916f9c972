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
    min_p: Tensor | None = None
    """[n] float, 0 = all: tokens below this share of the likeliest one's probability are cut (Nguyen et al. 2024)."""
    repetition_penalty: Tensor | None = None
    """[n] float, 1 = none: divides the positive and multiplies the negative logits of `seen` (Keskar et al. 2019)."""
    seen: Tensor | None = None
    """[n, m] token ids of prompt and answer so far, in any order and as often as one likes; for the penalty."""
    banned: Tensor | None = None
    """[n, vocabulary] bool: tokens that may not be drawn."""

    @property
    def cuts(self) -> bool:
        """Whether any row departs from softmax(logits / temperature)."""
        cuts = (self.top_k, self.top_p, self.min_p, self.repetition_penalty, self.banned)
        return any(each is not None for each in cuts)


FEW = (64, 1024)
"""A nucleus is first looked for among so many likeliest tokens, before the whole vocabulary is sorted."""


def draw(logits: Tensor, how: Draw) -> tuple[Tensor, Tensor]:
    """Next tokens [n] and their log-probabilities [n] from logits [n, vocabulary], which are overwritten.

    The penalty comes first, then the temperature, then `top_k`, `top_p` among what it leaves, and `min_p`; each row is
    drawn as if it were alone. The log-probability is that of softmax(logits / temperature), whole: before any penalty
    and before `top_k`, `top_p`, `min_p` and `banned` cut it. So it is the number that a policy gradient needs, and that
    `model.logprob.logprobs` gives at that temperature.
    """
    if how.cold is not None:
        logits.mul_(how.cold[:, None])
    scores = _scores(logits, how)
    if how.uniforms is None:
        ids = scores.argmax(-1)
        return ids, logits.log_softmax(-1).gather(1, ids[:, None])[:, 0]
    top = logits.amax(-1, keepdim=True)
    weights = (logits - top).exp_()
    normaliser = weights.sum(-1).log_().add_(top[:, 0])
    if scores is not logits:
        weights = torch.sub(scores, scores.amax(-1, keepdim=True), out=weights).exp_()
    ids = _drawn(weights, how, how.uniforms)
    if how.greedy is not None:
        ids = torch.where(how.greedy, scores.argmax(-1), ids)
    return ids, logits.gather(1, ids[:, None])[:, 0].sub_(normaliser)


def _scores(logits: Tensor, how: Draw) -> Tensor:
    """Logits after penalty and ban: a copy, or `logits` itself where there is neither.

    The temperature has divided them already; the penalty keeps a logit's sign, so that their order does not matter.
    """
    scores = logits
    if how.repetition_penalty is not None:
        assert how.seen is not None
        said, penalty = logits.gather(1, how.seen), how.repetition_penalty[:, None]
        scores = logits.scatter(1, how.seen, torch.where(said < 0, said * penalty, said / penalty))
    if how.banned is not None:
        scores = scores.masked_fill(how.banned, -torch.inf)
    return scores


def _drawn(weights: Tensor, how: Draw, uniforms: Tensor) -> Tensor:
    """Draw from weights whose largest is 1 in each row; each row in its own way, whatever its neighbours ask for."""
    if how.top_k is None and how.top_p is None:
        return _in_order(weights, how, uniforms)
    cut = torch.zeros_like(uniforms, dtype=torch.bool)
    if how.top_k is not None:
        cut |= how.top_k > 0
    if how.top_p is not None:
        cut |= how.top_p < 1
    few = _from_few(weights, how, uniforms, cut)
    return few if bool(cut.all()) else torch.where(cut, few, _in_order(weights, how, uniforms))


def _in_order(weights: Tensor, how: Draw, uniforms: Tensor) -> Tensor:
    """Draw among all tokens that `min_p` leaves, in the order of the vocabulary."""
    if how.min_p is not None:
        # 1.0 where a token stays: on a CPU several times faster than masked_fill.
        weights = torch.ge(weights, how.min_p[:, None], out=torch.empty_like(weights)).mul_(weights)
    return _inverse(weights.cumsum(-1), uniforms)


def _inverse(cumulative: Tensor, uniforms: Tensor) -> Tensor:
    # A hair below 1, so that rounding never leads past the last token that has any weight.
    aim = cumulative[:, -1:] * uniforms.clamp(max=1 - 1e-6)[:, None]
    return torch.searchsorted(cumulative, aim, right=True)[:, 0].clamp_(max=cumulative.shape[1] - 1)


def _from_few(weights: Tensor, how: Draw, uniforms: Tensor, cut: Tensor) -> Tensor:
    """Draw among each row's `top_k` likeliest, of these among the fewest that hold `top_p` of their weight.

    Rows outside `cut` [n bool] ask for neither; what they get means nothing, and they do not widen the search.
    """
    rows, vocabulary = weights.shape
    top_k = torch.zeros_like(cut, dtype=torch.long) if how.top_k is None else how.top_k
    top_k = torch.where(cut, torch.where(top_k > 0, top_k, vocabulary), 1)
    top_p = torch.ones(rows, device=weights.device) if how.top_p is None else how.top_p
    whole = weights.sum(-1)
    most = int(top_k.max())
    for size in dict.fromkeys(min(most, each) for each in (*FEW, vocabulary)):
        sizes, places = weights.topk(size, -1)
        kept = sizes.masked_fill_(torch.arange(size, device=weights.device) >= top_k[:, None], 0.0)
        cumulative = kept.cumsum(-1)
        total = torch.where(top_k <= size, cumulative[:, -1], whole)
        enough = (top_k <= size) | ((top_k >= vocabulary) & (cumulative[:, -1] >= top_p * total))
        if size == min(most, vocabulary) or bool(enough.all()):
            break
    before = cumulative - kept
    kept = kept.masked_fill_(before >= (top_p * total)[:, None], 0.0)
    if how.min_p is not None:
        kept = kept.masked_fill_(kept < how.min_p[:, None], 0.0)
    return places.gather(1, _inverse(kept.cumsum(-1), uniforms)[:, None])[:, 0]
