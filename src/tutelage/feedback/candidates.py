"""Responses to be judged: sampled, near-identical ones merged, those that tell who made them left out."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import zip_longest

from tutelage.core.records import Example
from tutelage.feedback.assign import seeded
from tutelage.generate.generator import Generator, Sampling

LEAKS = (
    r"\bas an? (ai|artificial intelligence|language model|large language model)\b",
    r"\bi(?:'m| am) (?:an? )?(?:ai|chatgpt|gpt-?\d*|claude|gemini|llama|mistral|qwen|deepseek|bard|bing)\b",
    r"\b(?:developed|trained|created|made) by (?:openai|anthropic|google|meta|mistral|alibaba|deepseek|microsoft)\b",
)
"""What tells which model wrote a text: such a response is not judged blind."""

WORDS = re.compile(r"[^\W_]+")


@dataclass
class Candidate:
    """One response that stands for all that are nearly the same; `alike` counts them."""

    text: str
    producer: str
    seed: int | None
    finish: str
    alike: int = 1


@dataclass
class Pool:
    """The candidates of one prompt, and what was left out with the reason."""

    prompt: Example
    kept: list[Candidate] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)


def gather(
    generators: Sequence[Generator],
    prompts: Sequence[Example],
    *,
    wanted: int,
    samples: int,
    sampling: Sampling,
    alike: float = 0.9,
    leaks: Sequence[str] = LEAKS,
) -> list[Pool]:
    """For each prompt up to `wanted` different responses out of `samples`, drawn from the generators in turn.

    Two responses are near-identical when their sets of character trigrams overlap by at least `alike` (Jaccard).
    """
    each, rest = divmod(samples, len(generators))
    names = [re.escape(one.name) for one in generators if len(one.name) > 3]
    telling = re.compile("|".join([*leaks, *names]), re.IGNORECASE)
    pools = [Pool(prompt) for prompt in prompts]
    drawn: list[list[list[Candidate]]] = [[] for _ in prompts]
    for at, generator in enumerate(generators):
        many = each + (at < rest)
        if not many:
            continue
        found = generator.generate(prompts, sampling.model_copy(update={"n": many}))
        for mine, responses in zip(drawn, found, strict=True):
            mine.append(
                [Candidate(one.message.content.strip(), generator.name, one.seed, one.finish) for one in responses]
            )
    for pool, mine in zip(pools, drawn, strict=True):
        in_turn = [one for row in zip_longest(*mine) for one in row if one is not None]
        _choose(pool, in_turn, wanted, alike, telling)
    return pools


def _choose(pool: Pool, drawn: Sequence[Candidate], wanted: int, alike: float, telling: re.Pattern[str]) -> None:
    shapes: list[frozenset[str]] = []
    for one in drawn:
        if not one.text:
            pool.dropped["empty"] += 1
        elif telling.search(one.text):
            pool.dropped["tells who made it"] += 1
        else:
            shape = trigrams(one.text)
            twin = next((at for at, other in enumerate(shapes) if overlap(shape, other) >= alike), None)
            if twin is not None:
                pool.kept[twin].alike += 1
                pool.dropped["near-identical"] += 1
            else:
                pool.kept.append(one)
                shapes.append(shape)
    if len(pool.kept) > wanted:
        pool.dropped["more than wanted"] += len(pool.kept) - wanted
        pool.kept = pool.kept[:wanted]


def trigrams(text: str) -> frozenset[str]:
    """The character trigrams of a text without case, punctuation and spacing."""
    plain = "  " + " ".join(WORDS.findall(text.casefold())) + " "
    return frozenset(plain[at : at + 3] for at in range(len(plain) - 2))


def overlap(one: frozenset[str], other: frozenset[str]) -> float:
    """Jaccard overlap of two sets."""
    return len(one & other) / len(one | other) if one or other else 1.0


def pick(prompts: Sequence[Example], wanted: int, seed: int) -> list[Example]:
    """Prompts in a seeded order that goes through the families in turn, so that small ones are not drowned."""
    groups: dict[str, list[Example]] = {}
    for each in prompts:
        groups.setdefault(str(each.tags.get("family", "")), []).append(each)
    stream = seeded("prompts", seed)
    for name in sorted(groups):
        stream.shuffle(groups[name])
    order = sorted(groups)
    chosen: list[Example] = []
    while len(chosen) < wanted and any(groups.values()):
        for name in order:
            if groups[name] and len(chosen) < wanted:
                chosen.append(groups[name].pop())
    return chosen
