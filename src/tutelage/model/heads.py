"""One trunk, other heads: a score at the end of a sequence (reward model), a value at every token (critic)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

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
    """A score per sequence, read at its last token; stored as Hugging Face's sequence classification with one label."""

    def forward(self, ids: Tensor, *, lengths: Sequence[int] | None = None) -> Tensor:
        """Scores [segments] of packed ids [1, total] with `lengths`, or [batch] of whole rows ids [batch, time]."""
        hidden = self.decoder(ids, lengths=lengths)
        if lengths is None:
            return self.head(hidden[:, -1]).squeeze(-1)  # type: ignore[no-any-return]
        last = hidden[0, torch.tensor(lengths, device=ids.device).cumsum(0) - 1]
        return self.head(last).squeeze(-1)  # type: ignore[no-any-return]


class ValueModel(_ScalarHead):
    """A value at every token: what the critic of PPO expects from here on."""

    def forward(self, ids: Tensor, *, lengths: Sequence[int] | None = None) -> Tensor:
        """Values [batch, time]."""
        return self.values(ids, lengths)
