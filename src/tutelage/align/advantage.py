"""How much better an answer was than expected: pure functions on tensors, one per estimator.

Tokens of several answers stand end to end ([n]); `lengths` says how many belong to each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class Estimated(NamedTuple):
    """Per token: the advantage [n] and what the critic should have said [n]."""

    advantage: Tensor
    returns: Tensor


def token_rewards(scores: Tensor, divergence: Tensor, lengths: Sequence[int], beta: float) -> Tensor:
    """Rewards per token [n]: minus beta times the divergence from the reference, plus the score at the last token.

    Args:
        scores: [answers].
        divergence: log pi - log reference, [n].
    """
    rewards = -beta * divergence
    rewards[torch.tensor(lengths).cumsum(0) - 1] += scores
    return rewards


def generalised(
    rewards: Tensor, values: Tensor, lengths: Sequence[int], *, discount: float = 1.0, trace: float = 0.95
) -> Estimated:
    """Generalised advantage estimation (Schulman et al. 2016); after an answer's last token the value is 0."""
    advantage = torch.empty_like(rewards)
    start = 0
    for length in lengths:
        ahead, after = 0.0, 0.0
        reward, value = rewards[start : start + length].tolist(), values[start : start + length].tolist()
        found = [0.0] * length
        for place in range(length - 1, -1, -1):
            surprise = reward[place] + discount * after - value[place]
            ahead = surprise + discount * trace * ahead
            found[place], after = ahead, value[place]
        advantage[start : start + length] = torch.tensor(found, dtype=advantage.dtype)
        start += length
    return Estimated(advantage, advantage + values)


def whitened(values: Tensor) -> Tensor:
    """Mean 0, deviation 1; the deviation is left alone where there is none."""
    centred = values - values.mean()
    deviation = centred.square().mean().sqrt()
    return centred / deviation if deviation > 1e-8 else centred


class Grouped(NamedTuple):
    """Per answer: the advantage [answers]; and how many groups said nothing because all their scores were equal."""

    advantage: Tensor
    silent: int


def grouped(scores: Tensor, size: int, *, scale: bool = True, floor: float = 1e-4) -> Grouped:
    """Scores against the mean of their group of `size` answers to one prompt (Shao et al. 2024).

    `scale` divides by the group's deviation (GRPO); without it small differences stay small (Dr. GRPO, Liu et al.
    2025). Groups with a deviation below `floor` teach nothing: they get 0 and are counted.
    """
    groups = scores.reshape(-1, size)
    centred = groups - groups.mean(1, keepdim=True)
    deviation = centred.square().mean(1, keepdim=True).sqrt()
    alive = deviation > floor
    found = torch.where(alive, centred / deviation.clamp_min(floor) if scale else centred, torch.zeros_like(centred))
    return Grouped(found.reshape(-1), int((~alive).sum()))


def per_token(values: Tensor, lengths: Sequence[int]) -> Tensor:
    """Repeat one number per answer over its tokens: [answers] -> [n]."""
    return values.repeat_interleave(torch.tensor(lengths))


@dataclass
class KLControl:
    """The weight of the divergence from the reference, moved so that it stays near a target (Ziegler et al. 2019).

    Attributes:
        beta: the weight now.
        target: nats per token; 0 keeps the weight as it is.
        horizon: updates in which a divergence of twice the target doubles the weight, about.
        limits: between which the weight stays.
    """

    beta: float
    target: float
    horizon: float = 8.0
    limits: tuple[float, float] = (1e-3, 10.0)

    def update(self, divergence: float) -> float:
        """Take the divergence of the last rollouts into account; returns the new weight. Far beyond the target it may
        double: a reward that is being hacked runs away faster than a tenth a time."""
        if self.target > 0:
            error = max(-0.5, divergence / self.target - 1)
            factor = min(2.0, 1 + error / self.horizon * 0.7)
            self.beta = min(self.limits[1], max(self.limits[0], self.beta * factor))
        return self.beta
