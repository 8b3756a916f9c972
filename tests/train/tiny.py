"""A decoder of a few lines with the real one's interface, and steps over random text: for tests of the loop alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from tutelage.train.batch import Source, TokenSteps
from tutelage.train.loop import Run, fit
from tutelage.train.objectives import NextToken
from tutelage.train.optim import Optimizer, Rates, Schedule


class Tiny(nn.Module):
    """One layer of causal averaging and two matrices; segments do not see each other."""

    def __init__(
        self, vocabulary: int = 32, width: int = 16, seed: int = 0, dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(seed)
        self.embed = nn.Parameter(torch.randn(vocabulary, width, generator=random, dtype=dtype) * 0.5)
        self.mix = nn.Parameter(torch.randn(2 * width, width, generator=random, dtype=dtype) * 0.2)
        self.out = nn.Parameter(torch.randn(width, 2 * width, generator=random, dtype=dtype) * 0.2)
        self.norm = nn.Parameter(torch.ones(width, dtype=dtype))

    def forward(self, ids: Tensor, *, lengths: Sequence[int] | None = None) -> Tensor:
        embedded = self.embed[ids[0]]
        parts = []
        for part in embedded.split(list(lengths or [ids.shape[1]])):
            so_far = part.cumsum(0) / torch.arange(1, len(part) + 1)[:, None]
            hidden = torch.tanh((part + so_far) @ self.mix.T)
            parts.append((so_far + hidden @ self.out.T) * self.norm)
        return torch.cat(parts)[None]

    def logits(self, hidden: Tensor) -> Tensor:
        return functional.linear(hidden, self.embed)

    @property
    def head_weight(self) -> Tensor:
        return self.embed


def text(documents: int = 40, seed: int = 0, longest: int = 30, vocabulary: int = 32) -> Source:
    """Random documents in which each token is likely followed by its successor: there is something to learn."""
    random = np.random.default_rng(seed)
    lengths = random.integers(2, longest + 1, documents)
    tokens = [(random.integers(vocabulary) + np.arange(n) + (random.random(n) < 0.1)) % vocabulary for n in lengths]
    return Source(np.concatenate(tokens).astype(np.uint16), np.concatenate([[0], np.cumsum(lengths)]))


def train(work: Path, total: int = 30, every: int = 4, seed: int = 0, **options: Any) -> Tiny:
    """A whole small run in a folder; goes on from its checkpoint when there is one."""
    torch.set_num_threads(1)
    model = Tiny(seed=seed)
    steps = TokenSteps(text(), 16, 64, accumulate=2, seed=seed, pool=16)
    optim = Optimizer(model, Rates(), Schedule(), total)
    options.setdefault("good_every", every)
    fit(model, steps, NextToken(), optim, run=Run(total, work, checkpoint_every=every, **options))
    return model
