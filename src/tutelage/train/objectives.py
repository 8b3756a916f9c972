"""What is learned: next tokens, people's judgements, preferences, rewards. Every objective returns sums, never means.

The loop divides each term by its count over the whole step (all micro-batches, all ranks), so that accumulation,
packing and data parallelism give the same gradient.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor
from torch.nn import functional

from tutelage.model.logprob import logprobs
from tutelage.train.batch import Batch, Judged, PairBatch, PolicyBatch, PreferenceBatch, TokenBatch, any_tie

B_contra = TypeVar("B_contra", bound=Batch, contravariant=True)


class Sums(NamedTuple):
    """What one micro-batch contributes.

    Attributes:
        terms: differentiable sums, one per entry of the objective's weights that has something to say.
        metrics: name -> (sum, count), for the metrics file; the same names for every micro-batch of a step.
    """

    terms: Mapping[str, Tensor]
    metrics: Mapping[str, tuple[float, float]]


class Objective(Protocol[B_contra]):
    """The loss is the sum over terms of weight * sum / count, the counts being the batches'."""

    @property
    def weights(self) -> Mapping[str, float]: ...

    def __call__(self, model: Any, batch: B_contra) -> Sums: ...


@dataclass(frozen=True)
class NextToken:
    """Cross-entropy of the marked tokens, in nats. Where the model multiplies in bf16, its head does so too."""

    weights: Mapping[str, float] = field(default_factory=lambda: {"tokens": 1.0})

    def __call__(self, model: Any, batch: TokenBatch) -> Sums:
        hidden = model(batch.ids, lengths=batch.lengths)[0]
        found, _ = logprobs(model, hidden[batch.at], batch.targets, rounded=getattr(model, "rounds", False))
        return Sums({"tokens": -found.sum()}, {})


@dataclass(frozen=True)
class Rewards:
    """Rankings with ties and scores, learned by one scalar model.

    Rankings: Davidson's (1970) tie model over pairs within a ranking, each ranking's pairs averaged so that a long
    order does not drown a short one; P(i > j) = p_i / (p_i + p_j + t sqrt(p_i p_j)), with p = exp(reward). `tie` is
    log t. Where every tier holds one candidate and `listwise`, the Plackett-Luce likelihood takes its place.
    Scores: Huber distance between a person's score and sigmoid(reward / spread), on the scale 0..1; one reward thus
    explains both. Where a judgement names its person, that person's offset is added first: strict raters stay strict.

    Attributes:
        weights: of the two terms.
        tie: log of Davidson's tie parameter; 0 makes a tie as likely as a win between equals.
        spread: reward units per unit of score log-odds.
        delta: where Huber turns from square to absolute.
        listwise: Plackett-Luce for full orders of three or more.
    """

    weights: Mapping[str, float] = field(default_factory=lambda: {"rankings": 1.0, "ratings": 1.0})
    tie: float = 0.0
    spread: float = 1.0
    delta: float = 0.25
    listwise: bool = False

    def __call__(self, model: Any, batch: PreferenceBatch) -> Sums:
        rewards = model(batch.ids, lengths=batch.lengths, answered=batch.answered)
        rankings, ratings = rewards.new_zeros(()), rewards.new_zeros(())
        right = pairs = 0.0
        for judged in batch.judged:
            if len(judged.tiers) > 1 or any_tie(judged.tiers):
                rankings = rankings + judged.weight * self.ranking(rewards, judged.tiers)
                won, of = agreement(rewards.detach(), judged.tiers)
                right, pairs = right + won, pairs + of
            if judged.scores:
                offset = model.offsets[judged.person] if judged.person >= 0 else 0.0
                ratings = ratings + judged.weight * self.rating(rewards + offset, judged)
        return Sums({"rankings": rankings, "ratings": ratings}, {"accuracy": (right, pairs)})

    def ranking(self, rewards: Tensor, tiers: tuple[tuple[int, ...], ...]) -> Tensor:
        """Negative log-likelihood of one order, per pair (or per place, listwise)."""
        if self.listwise and not any_tie(tiers):
            ordered = rewards[[segment for tier in tiers for segment in tier]]
            later = torch.logcumsumexp(ordered.flip(0), 0).flip(0)
            return (later - ordered)[:-1].mean()
        left, right, tied = pairs_of(tiers)
        gap = rewards[left] - rewards[right]
        # log of (p_i, p_j, t sqrt(p_i p_j)) over their geometric mean: gap / 2, -gap / 2, tie
        total = torch.logsumexp(torch.stack([gap / 2, -gap / 2, torch.full_like(gap, self.tie)]), 0)
        said = torch.where(torch.tensor(tied, device=gap.device), torch.full_like(gap, self.tie), gap / 2)
        return (total - said).mean()

    def rating(self, rewards: Tensor, judged: Judged) -> Tensor:
        """Huber distance between scores and what the rewards say, summed over the candidates scored."""
        segments = [segment for segment, _ in judged.scores]
        wanted = torch.tensor([score for _, score in judged.scores], dtype=rewards.dtype, device=rewards.device)
        said = torch.sigmoid(rewards[segments] / self.spread)
        return functional.huber_loss(said, wanted, reduction="sum", delta=self.delta) / self.delta


def pairs_of(tiers: tuple[tuple[int, ...], ...]) -> tuple[list[int], list[int], list[bool]]:
    """All pairs of an order: (better or first, worse or second, whether they tie)."""
    left: list[int] = []
    right: list[int] = []
    tied: list[bool] = []
    for place, tier in enumerate(tiers):
        for nth, one in enumerate(tier):
            for other in tier[nth + 1 :]:
                left, right, tied = [*left, one], [*right, other], [*tied, True]
            for lower in tiers[place + 1 :]:
                for other in lower:
                    left, right, tied = [*left, one], [*right, other], [*tied, False]
    return left, right, tied


def agreement(rewards: Tensor, tiers: tuple[tuple[int, ...], ...]) -> tuple[float, float]:
    """(pairs ordered as people did, pairs that people did order): ties have no right order."""
    left, right, tied = pairs_of(tiers)
    values = rewards.tolist()
    outcomes = [
        0.5 if values[one] == values[other] else float(values[one] > values[other])
        for one, other, tie in zip(left, right, tied, strict=True)
        if not tie
    ]
    return sum(outcomes), float(len(outcomes))


@dataclass(frozen=True)
class DirectPreference:
    """DPO (Rafailov et al. 2023) with ties and, beside it, some likelihood of the chosen answer.

    Attributes:
        weights: `pairs` is DPO, `tokens` the likelihood of chosen answers, which keeps them from becoming unlikely.
        beta: how strongly the reference holds.
        smoothing: share of pairs taken to be the wrong way round (conservative DPO).
    """

    weights: Mapping[str, float] = field(default_factory=lambda: {"pairs": 1.0, "tokens": 0.0})
    beta: float = 0.1
    smoothing: float = 0.0

    def __call__(self, model: Any, batch: PairBatch) -> Sums:
        hidden = model(batch.ids, lengths=batch.lengths)[0]
        found, _ = logprobs(model, hidden[batch.at], batch.targets)
        answers = torch.zeros(len(batch.lengths), dtype=found.dtype, device=found.device)
        answers = answers.index_add(0, batch.segment, found)
        margin = self.beta * (answers - batch.reference)
        gap = margin[0::2] - margin[1::2]
        believed = torch.where(batch.tie > 0, torch.full_like(gap, 0.5), torch.full_like(gap, 1 - self.smoothing))
        loss = -believed * functional.logsigmoid(gap) - (1 - believed) * functional.logsigmoid(-gap)
        chosen = found[batch.segment % 2 == 0]
        decided = (batch.tie == 0).float()
        metrics = {
            "accuracy": (float(((gap > 0).float() * decided).sum()), float(decided.sum())),
            "margin": (float(gap.detach().sum()), float(gap.numel())),
            "chosen": (float(margin[0::2].detach().sum()), float(gap.numel())),
        }
        return Sums({"pairs": (batch.weight * loss).sum(), "tokens": -chosen.sum()}, metrics)


@dataclass(frozen=True)
class PolicyGradient:
    """PPO's clipped surrogate (Schulman et al. 2017) with a critic and a penalty on the divergence from a reference.

    Without a critic (`value` weight 0) this is GRPO's (Shao et al. 2024) with token-level sums.

    Attributes:
        weights: `policy`, `value`, `divergence` (from the reference; the batch says how heavy it is) and `entropy`
            (negative = a bonus).
        clip: how far the ratio may move, (below, above).
        clip_value: how far the critic may move from what it said.
        temperature: what the answers were sampled at.
    """

    weights: Mapping[str, float] = field(default_factory=lambda: {"policy": 1.0, "value": 0.5})
    clip: tuple[float, float] = (0.2, 0.2)
    clip_value: float = 0.2
    temperature: float = 1.0

    def __call__(self, model: Any, batch: PolicyBatch) -> Sums:
        actor = model.actor
        hidden = actor(batch.ids, lengths=batch.lengths)[0][batch.at]
        found, entropy = logprobs(actor, hidden, batch.targets, temperature=self.temperature, entropy=True)
        ratio = torch.exp(found - batch.old)
        low, high = 1 - self.clip[0], 1 + self.clip[1]
        surrogate = torch.minimum(ratio * batch.advantage, ratio.clamp(low, high) * batch.advantage)
        away = batch.reference - found
        divergence = torch.exp(away) - away - 1  # the unbiased low-variance estimate ("k3")
        n = float(found.numel())
        metrics = dict(batch.figures)
        terms = {"policy": -surrogate.sum(), "divergence": batch.beta * divergence.sum()}
        metrics |= {
            "clipped": (float(((ratio < low) | (ratio > high)).sum()), n),
            "moved": (float((batch.old - found).detach().sum()), n),
        }
        if entropy is not None:
            terms["entropy"] = entropy.sum()
        if self.weights.get("value"):
            said = model.critic(batch.ids, lengths=batch.lengths)[0][batch.at]
            near = batch.value + (said - batch.value).clamp(-self.clip_value, self.clip_value)
            worst = torch.maximum((said - batch.returns) ** 2, (near - batch.returns) ** 2)
            terms["value"] = 0.5 * worst.sum()
        return Sums(terms, metrics)
