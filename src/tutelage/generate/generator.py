"""The interface of everything that answers prompts, so that evaluation, red team and feedback run on any of it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from pydantic import Field

from tutelage.core.errors import UsageError
from tutelage.core.records import Example, Record, Response


class Sampling(Record):
    """How answers are drawn. The defaults draw one answer from the model's own distribution."""

    max_tokens: int = Field(64, ge=1)
    """Longest answer in tokens; the end token counts."""
    min_tokens: int = Field(0, ge=0)
    """No end before so many tokens."""
    temperature: float = Field(1.0, ge=0)
    """Divides the logits; 0 takes the likeliest token each time."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Draw from the fewest tokens that hold this much probability."""
    top_k: int = Field(0, ge=0)
    """Draw from so many likeliest tokens; 0 means all."""
    min_p: float = Field(0.0, ge=0, le=1)
    """Draw from tokens of at least this share of the likeliest one's probability, after the temperature; 0 means all.
    Nguyen et al. 2024."""
    repetition_penalty: float = Field(1.0, ge=0.01, le=100)
    """Divides positive and multiplies negative logits of tokens in prompt and answer; 1 does nothing, below 1 repeats
    more. Acts at temperature 0 too. Keskar et al. 2019."""
    n: int = Field(1, ge=1)
    """Answers to each prompt."""
    seed: int = 0
    """Equal seed and prompt give equal answers."""
    stop: tuple[str, ...] = ()
    """Texts that end an answer; they do not belong to it."""


class Scored(Record):
    """How likely a choice is after a prompt: log-probability in nats, summed over its tokens."""

    logprob: float
    tokens: int
    characters: int
    greedy: bool | None
    """Whether every token was the likeliest; None when unknown."""
    error: str = ""
    """Why there is no log-probability (the prompt is too long, say); `logprob` is then minus infinity."""


@runtime_checkable
class Generator(Protocol):
    """Answers prompts and weighs choices; synchronous, made for batches.

    An example of role `text` alone is continued verbatim; any other goes through the chat template and the assistant
    speaks next.
    """

    name: str

    def generate(self, prompts: Sequence[Example], sampling: Sampling) -> list[list[Response]]:
        """`sampling.n` responses per prompt, in the order of the prompts."""
        ...

    def loglikelihood(self, prompts: Sequence[Example], choices: Sequence[Sequence[str]]) -> list[list[Scored]]:
        """The log-probability of each of `choices[i]` as what follows `prompts[i]`.

        The tokens of a choice are those of prompt + choice that stand after the prompt's; spaces at the prompt's end
        move into the choice. In a conversation the choice is all the assistant says: the token by which the chat
        template ends a turn is weighed with it and counted in `tokens`.
        """
        ...


@runtime_checkable
class WeighsText(Protocol):
    """A generator that weighs running text too."""

    name: str

    def rolling(self, prompts: Sequence[Example], stride: int = 0) -> list[Scored]:
        """The log-probability of each whole text, of which windows weigh `stride` tokens anew (0: as many as they can).

        `characters` counts those that were weighed: the last of the text, where its beginning could not be.
        """
        ...


def weigh_texts(generator: object, prompts: Sequence[Example], stride: int = 0) -> list[Scored]:
    """The log-probability of whole texts by any generator that weighs them. Raises UsageError for one that does not."""
    if not isinstance(generator, WeighsText):
        name = getattr(generator, "name", type(generator).__name__)
        raise UsageError(f"{name} does not weigh running text", todo="A local model does, and what stands before one")
    return generator.rolling(prompts, stride)


def seed_of(seed: int, prompt: str | Sequence[int], sample: int) -> int:
    """The seed (63 bits) of one sample of one prompt: independent of what else is asked, and in which order."""
    what = prompt if isinstance(prompt, str) else ",".join(map(str, prompt))
    return int.from_bytes(hashlib.sha256(f"{seed}/{sample}/{what}".encode()).digest()[:8], "big") >> 1


def too_long(tokens: int, context: int) -> str:
    """What is said of a prompt that leaves no room for an answer."""
    return f"the conversation has {tokens} tokens, the model's context is {context}"


def is_text(prompt: Example) -> bool:
    """Whether a prompt is verbatim text rather than a conversation."""
    return all(message.role == "text" for message in prompt.messages)


def split_spaces(prompt: str, choice: str) -> tuple[str, str]:
    """Move the spaces at a prompt's end into the choice: tokens begin with their space, not end with it."""
    kept = prompt.rstrip(" ")
    return kept, prompt[len(kept) :] + choice


def check_choices(prompts: Sequence[Example], choices: Sequence[Sequence[str]]) -> None:
    """Raises UsageError unless every prompt has choices and none is empty."""
    if len(prompts) != len(choices):
        raise UsageError(f"{len(prompts)} prompts need as many lists of choices, found {len(choices)}")
    for place, each in enumerate(choices):
        if not all(each):
            raise UsageError(f"prompt {place} has an empty choice, which has no likelihood")


def let_go(generator: Generator) -> None:
    """Close a generator that holds threads, connections or an engine; others hold nothing."""
    close = getattr(generator, "close", None)
    if close is not None:
        close()
