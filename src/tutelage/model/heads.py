"""One trunk, other heads: a score at the end of a sequence (reward model), a value at every token (critic)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tutelage.model.logprob import logprobs
from tutelage.model.transformer import Decoder


class _ScalarHead(nn.Module):
    """A decoder and one row of weights. It starts at zero: a fresh head says nothing, whatever the seed."""

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.decoder = decoder
        self.head = nn.Linear(decoder.config.hidden_size, 1, bias=False, device=decoder.device)
        nn.init.zeros_(self.head.weight)

    @property
    def config(self) -> object:
        """The decoder's configuration."""
        return self.decoder.config

    def values(self, ids: Tensor, lengths: Sequence[int] | None) -> Tensor:
        """[batch, time]: the head at every token."""
        return self.head(self.decoder(ids, lengths=lengths)).squeeze(-1)  # type: ignore[no-any-return]


class RewardModel(_ScalarHead):
    """A score per sequence: a head at its last token and, where `likelihood` is not 0, how likely the trunk finds the
    answer (mean log-probability of its tokens, in nats, times `likelihood`).

    A trunk that was taught the task knows more of what is right than some hundred judgements can tell a fresh head, and
    finds unlikely what no judge has seen. Stored as Hugging Face's sequence classification with one label, which reads
    the head alone; `likelihood` stands in the configuration beside it.
    """

    def __init__(self, decoder: Decoder, likelihood: float = 0.0) -> None:
        super().__init__(decoder)
        self.likelihood = nn.Parameter(torch.tensor(likelihood, device=decoder.device))

    def forward(
        self, ids: Tensor, *, lengths: Sequence[int] | None = None, answered: Sequence[int] | None = None
    ) -> Tensor:
        """Scores [segments] of packed ids [1, total] with `lengths`, or [batch] of whole rows ids [batch, time].

        `answered` says how many tokens at a segment's end are the answer; without it the likelihood plays no part.
        """
        hidden = self.decoder(ids, lengths=lengths)
        if lengths is None:
            return self.head(hidden[:, -1]).squeeze(-1)  # type: ignore[no-any-return]
        ends = torch.tensor(lengths, device=ids.device).cumsum(0)
        scores: Tensor = self.head(hidden[0, ends - 1]).squeeze(-1)
        if answered is None:
            return scores
        count = torch.tensor(answered, device=ids.device)
        whose = torch.repeat_interleave(torch.arange(len(count), device=ids.device), count)
        place = torch.cat([torch.arange(end - n, end) for end, n in zip(ends.tolist(), answered, strict=True)])
        found, _ = logprobs(self.decoder, hidden[0, place.to(ids.device) - 1], ids[0, place])
        mean = torch.zeros_like(scores).index_add(0, whose, found) / count.clamp(min=1)
        return scores + self.likelihood * mean


class ValueModel(_ScalarHead):
    """A value at every token: what the critic of PPO expects from here on."""

    def forward(self, ids: Tensor, *, lengths: Sequence[int] | None = None) -> Tensor:
        """Values [batch, time]."""
        return self.values(ids, lengths)
