"""Responses to be judged: sampled, near-identical ones merged, those that tell who made them left out."""

from __future__ import annotations

import json
import os
import re
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

from tutelage.core.errors import Unreachable, UpstreamError
from tutelage.core.records import Example, Response, digest
from tutelage.feedback.identity import telling
from tutelage.generate.generator import Generator, Sampling

WORDS = re.compile(r"[^\W_]+")

FAILURES = 8
"""Prompts in a row that a generator may fail on before it is not asked any more."""


@dataclass
class Candidate:
    """One response that stands for all that are nearly the same; `alike` counts them, `producers` wrote them."""

    text: str
    producers: list[str]
    seed: int | None
    finish: str
    alike: int = 1


@dataclass
class Pool:
    """The candidates of one prompt, and what was left out with the reason."""

    prompt: Example
    kept: list[Candidate] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)
    answered: Counter[str] = field(default_factory=Counter)
    """Generator -> responses."""
    failed: dict[str, str] = field(default_factory=dict)
    """Generator that gave no answer -> why."""


class Log:
    """Pools of the prompts tried so far, one JSON line each: a stage that was killed goes on with the same responses,
    whatever they cost. A torn last line is cut."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._known: deque[dict[str, Any]] = deque()
        whole = 0
        for line in path.read_bytes().splitlines(keepends=True) if path.is_file() else ():
            try:
                self._known.append(json.loads(line))
            except ValueError:
                break
            whole += len(line)
        if path.is_file():
            os.truncate(path, whole)

    def take(self, prompts: Sequence[Example]) -> list[Pool]:
        """The pools that are known, of the first of these prompts."""
        found = []
        for prompt in prompts:
            if not self._known or self._known[0]["prompt"] != digest(prompt):
                break
            row = self._known.popleft()
            kept = [Candidate(**each) for each in row["kept"]]
            found.append(Pool(prompt, kept, Counter(row["dropped"]), Counter(row["answered"]), row["failed"]))
        return found

    def put(self, pools: list[Pool]) -> list[Pool]:
        """Keep pools; returns them."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as out:
            for pool in pools:
                row = {
                    "prompt": digest(pool.prompt),
                    "kept": [asdict(each) for each in pool.kept],
                    "dropped": pool.dropped,
                    "answered": pool.answered,
                    "failed": pool.failed,
                }
                out.write(json.dumps(row, ensure_ascii=False) + "\n")
        return pools


@dataclass
class Asked:
    """A generator that is asked for responses. One that fails loses its own responses only."""

    generator: Generator
    in_a_row: int = 0
    """Prompts it failed on since it last answered."""
    given_up: bool = False
    error: str = ""
    """Why it failed last."""

    @property
    def name(self) -> str:
        return self.generator.name

    def draw(self, prompts: Sequence[Example], sampling: Sampling) -> list[list[Response] | str]:
        """Responses to each prompt, or why there are none. A batch that fails is asked again prompt by prompt, so that
        one prompt that an endpoint refuses costs the others nothing; whoever is not there is not asked again."""
        if self.given_up:
            return [self.error for _ in prompts]
        try:
            return [self._sound(each) for each in self.generator.generate(prompts, sampling)]
        except Unreachable as error:
            self.error, self.given_up = str(error), True
        except UpstreamError as error:
            self.error = str(error)
        if self.given_up or len(prompts) == 1:
            return [self._sound([]) for _ in prompts]
        return [found for prompt in prompts for found in self.draw([prompt], sampling)]

    def _sound(self, responses: Sequence[Response]) -> list[Response] | str:
        """Those that are answers, or why there are none."""
        sound = [each for each in responses if each.finish != "error"]
        if sound:
            self.in_a_row = 0
            return sound
        self.error = next((each.error for each in responses if each.error), self.error) or "it gave no answer"
        self.in_a_row += 1
        self.given_up = self.given_up or self.in_a_row >= FAILURES
        return self.error


def gather(
    asked: Sequence[Asked],
    prompts: Sequence[Example],
    *,
    wanted: int,
    samples: int,
    sampling: Sampling,
    alike: float = 0.9,
) -> list[Pool]:
    """For each prompt up to `wanted` different responses out of `samples`, drawn from the generators in turn.

    Two responses are near-identical when their sets of character trigrams overlap by at least `alike` (Jaccard).
    Raises UpstreamError when no generator answers any more.
    """
    each, rest = divmod(samples, len(asked))
    tells = telling(one.name for one in asked)
    pools = [Pool(prompt) for prompt in prompts]
    drawn: list[list[list[Candidate]]] = [[] for _ in prompts]
    for at, one in enumerate(asked):
        many = each + (at < rest)
        if not many:
            continue
        found = one.draw(prompts, sampling.model_copy(update={"n": many}))
        for pool, mine, responses in zip(pools, drawn, found, strict=True):
            if isinstance(responses, str):
                pool.failed[one.name] = responses
            else:
                pool.answered[one.name] += len(responses)
                mine.append([_candidate(response, one.name) for response in responses])
    if all(one.given_up for one in asked):
        told = "; ".join(one.error for one in asked)
        raise UpstreamError(f"no generator answers: {told}", todo="Mend one of them, then run the same command again")
    for pool, mine in zip(pools, drawn, strict=True):
        in_turn = [one for row in zip_longest(*mine) for one in row if one is not None]
        choose(pool, in_turn, wanted, alike, tells)
    return pools


def _candidate(response: Response, producer: str) -> Candidate:
    return Candidate(response.message.content.strip(), [producer], response.seed, response.finish)


def choose(pool: Pool, drawn: Sequence[Candidate], wanted: int, alike: float, tells: re.Pattern[str]) -> None:
    """Keep up to `wanted` different responses; those that are empty or tell who wrote them are dropped and counted."""
    shapes: list[frozenset[str]] = []
    for one in drawn:
        if not one.text:
            pool.dropped["empty"] += 1
        elif tells.search(one.text):
            pool.dropped["tells who made it"] += 1
        else:
            shape = trigrams(one.text)
            twin = next((at for at, other in enumerate(shapes) if overlap(shape, other) >= alike), None)
            if twin is not None:
                same = pool.kept[twin]
                same.alike += 1
                same.producers += [name for name in one.producers if name not in same.producers]
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
