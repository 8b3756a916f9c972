"""Answers of the actor, scored: sampled by the engine on the very weights that train, never through text.

`Rollouts` are steps like any other: sampling a batch of answers, cutting it into optimizer steps, keeping it in the
checkpoint until it is used up. What is random depends on (seed, iteration, place) alone.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from tutelage.align.advantage import KLControl, generalised, grouped, per_token, token_rewards, whitened
from tutelage.core.errors import DataError, Diverged
from tutelage.core.records import Example, Message
from tutelage.generate.engine import Engine, Request, complete
from tutelage.generate.generator import Sampling
from tutelage.model.heads import ValueModel
from tutelage.model.logprob import logprobs
from tutelage.model.transformer import Decoder
from tutelage.tokens.chat import render
from tutelage.tokens.tokenizer import Tokenizer
from tutelage.train.batch import PolicyBatch, State, best_fit, lay, spread

GAP = 2e-3
"""Largest accepted difference between the engine's and the trainer's log-probability of a token, in nats."""

Scorer = Callable[[Sequence["Answer"]], np.ndarray]
"""Rewards [answers], in standard deviations or on the judge's own scale."""


class Prompt(NamedTuple):
    """A prompt as the actor reads it, and the example it comes from (with its target, for judges that need one)."""

    example: Example
    ids: tuple[int, ...]


class Answer(NamedTuple):
    """One sampled answer: `place` tells equal prompts' answers apart, `stopped` that it came to its end."""

    prompt: Prompt
    tokens: tuple[int, ...]
    text: str
    stopped: bool
    iteration: int
    place: int

    @property
    def example(self) -> Example:
        """The conversation with this answer as its last message."""
        said = Message(role="assistant", content=self.text)
        return self.prompt.example.model_copy(update={"messages": (*self.prompt.example.messages, said)})

    @property
    def ids(self) -> np.ndarray:
        """The whole dialogue as token ids."""
        return np.array((*self.prompt.ids, *self.tokens), dtype=np.int64)


class ActorCritic(nn.Module):
    """What reinforcement trains: the actor and, for PPO, the critic."""

    def __init__(self, actor: Decoder, critic: ValueModel | None) -> None:
        super().__init__()
        self.actor, self.critic = actor, critic


@dataclass(frozen=True)
class Settings:
    """How answers are sampled and what is made of them; the stage's configuration in the words of this module."""

    method: Literal["ppo", "grpo"]
    prompts: int
    group: int
    max_tokens: int
    temperature: float
    epochs: int
    minibatches: int
    micro: int
    seed: int
    trace: float
    scale: bool
    unfinished: float


def read_prompts(examples: Sequence[Example], tokenizer: Tokenizer, longest: int) -> tuple[list[Prompt], int]:
    """Prompts of dialogues (all but the last, the assistant's, message); and how many were too long to answer."""
    found: list[Prompt] = []
    dropped = 0
    for example in examples:
        messages = example.messages[:-1] if example.messages[-1].role == "assistant" else example.messages
        target = example.target or (example.messages[-1].content if len(messages) < len(example.messages) else None)
        ids = tuple(render(messages, tokenizer))
        if len(ids) > longest:
            dropped += 1
        else:
            found.append(Prompt(example.model_copy(update={"messages": messages, "target": target}), ids))
    if not found:
        raise DataError("no prompt is short enough for the model's context", todo="Lower `max_tokens`")
    return found, dropped


@dataclass
class Rollouts:
    """Steps of reinforcement. Each iteration samples `prompts` x `group` answers, and makes
    `epochs` x `minibatches` optimizer steps of them."""

    model: ActorCritic
    reference: Decoder
    prompts: Sequence[Prompt]
    tokenizer: Tokenizer
    score: Scorer
    control: KLControl
    settings: Settings
    iteration: int = field(init=False, default=0)
    history: list[dict[str, float]] = field(init=False, default_factory=list)
    _next: int = field(init=False, default=0)
    _held: dict[str, Tensor] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.engine = Engine(
            self.model.actor, eos=self.tokenizer.stops, max_batch=min(128, self.settings.prompts * self.settings.group)
        )

    @property
    def steps_per_iteration(self) -> int:
        return self.settings.epochs * self.settings.minibatches

    def state(self) -> State:
        return {
            "iteration": self.iteration,
            "next": self._next,
            "beta": self.control.beta,
            "history": list(self.history),
            "held": dict(self._held) if self._next < self.steps_per_iteration else {},
        }

    def load(self, state: State) -> None:
        self.iteration, self._next = int(state["iteration"]), int(state["next"])
        self.control.beta = float(state["beta"])
        self.history = list(state["history"])
        self._held = dict(state.get("held", {}))

    def __iter__(self) -> Iterator[Sequence[PolicyBatch]]:
        while True:
            if not self._held or self._next == self.steps_per_iteration:
                self._held = {}
                self._held, self._next = self._sample(), 0
                self.iteration += 1
            step = self._next
            self._next += 1
            yield self._minibatch(step)

    def resample(self) -> None:
        """The weights went back to an earlier state: drop the answers they gave, and what those did to the weight of
        the divergence. The next step samples anew, under the next iteration's number."""
        if self._held:
            self.control.beta = self.history[-1]["beta"]
        self._held = {}

    # sampling

    def choose(self, iteration: int) -> list[Prompt]:
        """The prompts of an iteration: the shuffled list is gone through again and again, each time anew."""
        found = []
        for place in range(iteration * self.settings.prompts, (iteration + 1) * self.settings.prompts):
            epoch, index = divmod(place, len(self.prompts))
            order = np.random.default_rng([self.settings.seed, epoch]).permutation(len(self.prompts))
            found.append(self.prompts[order[index]])
        return found

    def answers(self, iteration: int) -> tuple[list[Answer], Tensor]:
        """Sample an iteration's answers; and the engine's log-probabilities of their tokens [n]."""
        chosen = [prompt for prompt in self.choose(iteration) for _ in range(self.settings.group)]
        sampling = Sampling(max_tokens=self.settings.max_tokens, temperature=self.settings.temperature)
        seeds = np.random.SeedSequence([self.settings.seed, iteration]).generate_state(len(chosen))
        requests = [Request(p.ids, sampling, seed=int(seed)) for p, seed in zip(chosen, seeds, strict=True)]
        was = self.model.training
        self.model.eval()
        with torch.no_grad():
            done = complete(self.engine, requests)
        self.model.train(was)
        found = [
            Answer(prompt, tuple(one.tokens), self.tokenizer.decode(one.tokens), one.finish == "stop", iteration, place)
            for place, (prompt, one) in enumerate(zip(chosen, done, strict=True))
        ]
        return found, torch.tensor([each for one in done for each in one.logprobs])

    @torch.no_grad()
    def _sample(self) -> dict[str, Tensor]:
        settings = self.settings
        answers, old = self.answers(self.iteration)
        lengths = [len(answer.tokens) for answer in answers]
        reference, entropy, gap, value = self._look(answers, old)
        if not math.isfinite(gap):
            raise Diverged("the log-probabilities of sampled answers were not finite")
        if not gap < GAP:
            raise Diverged(
                f"the engine and the trainer differ by {gap:.2g} nats on a token: they do not run the same model"
            )
        scores = torch.as_tensor(np.asarray(self.score(answers)), dtype=torch.float32)
        scores = scores - settings.unfinished * torch.tensor([0.0 if answer.stopped else 1.0 for answer in answers])
        divergence = old - reference
        silent = 0
        if settings.method == "ppo":
            rewards = token_rewards(scores, divergence, lengths, self.control.beta)
            estimated = generalised(rewards, value, lengths, trace=settings.trace)
            advantage, returns = whitened(estimated.advantage), estimated.returns
        else:
            per_answer, silent = grouped(scores, settings.group, scale=settings.scale)
            advantage, returns = per_token(per_answer, lengths), torch.zeros_like(old)
        kl = float(divergence.mean())
        self.history.append(
            {
                "reward": float(scores.mean()),
                "kl": kl,
                "beta": self.control.beta,
                "length": float(np.mean(lengths)),
                "entropy": float(entropy.mean()),
                "unfinished": float(np.mean([not answer.stopped for answer in answers])),
                "silent_groups": float(silent),
                "logprob_gap": gap,
            }
        )
        self.control.update(kl)
        segments = [answer.ids for answer in answers]
        return {
            "ids": torch.from_numpy(np.concatenate(segments)),
            "sizes": torch.tensor([len(segment) for segment in segments]),
            "lengths": torch.tensor(lengths),
            "old": old,
            "reference": reference,
            "advantage": advantage,
            "returns": returns,
            "value": value,
            "beta": torch.tensor(0.0 if settings.method == "ppo" else self.history[-1]["beta"]),
        }

    def _look(self, answers: Sequence[Answer], old: Tensor) -> tuple[Tensor, Tensor, float, Tensor]:
        """Under reference and critic, and for a few answers under the actor as the trainer runs it:
        (reference log-probability [n], entropy of the few, largest gap of the few, value [n])."""
        segments = [answer.ids for answer in answers]
        lengths = np.array([len(answer.tokens) for answer in answers])
        starts = np.cumsum(lengths) - lengths
        reference, value = torch.zeros(int(lengths.sum())), torch.zeros(int(lengths.sum()))
        few = set(range(0, len(answers), max(1, len(answers) // 16)))
        entropies: list[Tensor] = []
        gaps: list[Tensor] = []
        sizes = [len(segment) for segment in segments]
        for items in spread(sizes, max(self.settings.micro, 2 * max(sizes))):
            ids, total = lay([segments[item] for item in items])
            at, targets, where = places(ids, total, lengths[items])
            hidden = self.reference(ids, lengths=total)[0][at]
            found, _ = logprobs(self.reference, hidden, targets, temperature=self.settings.temperature)
            index = torch.from_numpy(np.concatenate([starts[item] + np.arange(lengths[item]) for item in items]))
            reference[index] = found
            if self.model.critic is not None:
                value[index] = self.model.critic(ids, lengths=total)[0][at]
            if few.intersection(items):
                kept = torch.tensor([items[segment] in few for segment in where.tolist()])
                state = self.model.actor(ids, lengths=total)[0][at[kept]]
                mine, entropy = logprobs(
                    self.model.actor, state, targets[kept], temperature=self.settings.temperature, entropy=True
                )
                gaps.append((mine - old[index[kept]]).abs().max())
                entropies.append(entropy if entropy is not None else torch.zeros(0))
        return reference, torch.cat(entropies), float(torch.stack(gaps).max()), value  # NaN stays NaN

    # optimizer steps

    def _minibatch(self, step: int) -> list[PolicyBatch]:
        """The micro-batches of one step of the iteration that is held."""
        held, settings = self._held, self.settings
        epoch, part = divmod(step, settings.minibatches)
        number = len(held["sizes"])
        order = np.random.default_rng([settings.seed, self.iteration, epoch]).permutation(number)
        chosen = np.array_split(order, settings.minibatches)[part]
        sizes, lengths = held["sizes"].numpy(), held["lengths"].numpy()
        begins, starts = np.cumsum(sizes) - sizes, np.cumsum(lengths) - lengths
        batches: list[PolicyBatch] = []
        for bin_ in best_fit(sizes[chosen], max(settings.micro, int(sizes.max()))):
            items = chosen[bin_]
            ids, total = lay([held["ids"][begins[item] : begins[item] + sizes[item]].numpy() for item in items])
            at, targets, _ = places(ids, total, lengths[items])
            index = torch.from_numpy(np.concatenate([starts[item] + np.arange(lengths[item]) for item in items]))
            batches.append(
                PolicyBatch(
                    ids=ids,
                    lengths=total,
                    at=at,
                    targets=targets,
                    old=held["old"][index],
                    reference=held["reference"][index],
                    advantage=held["advantage"][index],
                    returns=held["returns"][index],
                    value=held["value"][index],
                    beta=float(held["beta"]),
                )
            )
        if step == 0:
            figures = {name: (value, 1.0) for name, value in self.history[-1].items()}
            batches = [replace(batch, figures=figures) for batch in batches]  # a mean: as if said once
        return batches


def places(ids: Tensor, lengths: Sequence[int], answered: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
    """Where the answers at the ends of packed segments are predicted, what they are, and whose: three times [n]."""
    ends = np.cumsum(lengths)
    position = np.concatenate([np.arange(end - n, end) for end, n in zip(ends, answered, strict=True)])
    where = torch.from_numpy(np.repeat(np.arange(len(ends)), answered))
    index = torch.from_numpy(position)
    return index - 1, ids[0, index], where


def random_scores(seed: int) -> Scorer:
    """The control that must fail: a reward that is noise, the same for the same (seed, iteration, place)."""

    def score(answers: Sequence[Answer]) -> np.ndarray:
        def one(answer: Answer) -> float:
            name = f"{seed}/{answer.iteration}/{answer.place}".encode()
            number = int.from_bytes(hashlib.sha256(name).digest()[:8], "big")
            return float(np.random.default_rng(number).standard_normal())

        return np.array([one(answer) for answer in answers])

    return score


def alarms(history: Sequence[dict[str, float]], target: float) -> dict[str, dict[str, Any]]:
    """Signs of a hacked reward, first against last fifth of the iterations; `raised` says which ones went off."""
    if len(history) < 2:
        return {}
    share = max(1, len(history) // 5)

    def ends(name: str) -> tuple[float, float]:
        values = [each[name] for each in history]
        return float(np.mean(values[:share])), float(np.mean(values[-share:]))

    kl, length, entropy, unfinished = (ends(name) for name in ("kl", "length", "entropy", "unfinished"))
    raised = {
        "kl": target > 0 and kl[1] > 3 * target,
        "length": not 0.5 * length[0] < length[1] < 2 * length[0],
        "entropy": entropy[1] < 0.25 * entropy[0],
        "unfinished": unfinished[1] > unfinished[0] + 0.2,
    }
    every = {"kl": kl, "length": length, "entropy": entropy, "unfinished": unfinished}
    return {name: {"first": each[0], "last": each[1], "raised": raised[name]} for name, each in every.items()}
