"""What an attack wants, what one try is, and the interface every attack family implements."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import Protocol

from tutelage.core.records import Example, Message, Record, Response
from tutelage.evaluate.ask import AnswerLog, responses
from tutelage.evaluate.suite import Outcome, item_id, sample
from tutelage.generate.generator import Generator as Answers
from tutelage.generate.generator import Sampling
from tutelage.judge.judge import Judge
from tutelage.redteam.outcome import Ending, aim_of, ending

SAMPLING = Sampling(max_tokens=24, temperature=0.0)
"""Attacks are answered greedily, so that a success is found again."""


class Budget(Record):
    """What an attack may spend on one goal: equal for every family, or their rates could not be compared."""

    queries: int = 3
    """Answers of the target per goal."""


class Attempt(Record):
    """One try of an attack at one goal: the conversation with the target's answer last, and how it ended."""

    family: str
    goal: str
    """The goal's item id."""
    messages: tuple[Message, ...]
    outcome: Outcome
    scores: dict[str, float]
    query: int
    """Which query of this goal it was, from 1."""

    @property
    def answer(self) -> str:
        """The target's last answer."""
        return self.messages[-1].content if self.messages else ""


class Attack(Protocol):
    """An attack family. Yields attempts until the goal is reached or the budget is spent."""

    family: str

    def attempts(
        self, goal: Example, target: Answers, *, judge: Judge, budget: Budget, seed: int
    ) -> Iterator[Attempt]: ...


Script = Generator[tuple[Message, ...], Response, None]
"""Yields a conversation to put to the target and is sent its answer."""


class Scripted(ABC):
    """An attack written as a script, so that many goals can be attacked side by side in one batch.

    A script yields conversations and is sent the target's answers; it never calls the target itself.
    """

    family: str

    @abstractmethod
    def script(self, goal: Example, rng: random.Random) -> Script:
        """The conversations to try, in order."""

    def attempts(self, goal: Example, target: Answers, *, judge: Judge, budget: Budget, seed: int) -> Iterator[Attempt]:
        """Attack one goal alone."""
        yield from assault([(self, goal)], target, ending=ending(judge), budget=budget, seed=seed)


def request_of(goal: Example) -> str:
    """The plain request of a goal."""
    return next((each.content for each in reversed(goal.messages) if each.role == "user"), "")


def system_of(goal: Example) -> tuple[Message, ...]:
    """The goal's system messages, which every conversation keeps."""
    return tuple(each for each in goal.messages if each.role == "system")


def user(text: str) -> Message:
    """A user's turn."""
    return Message(role="user", content=text)


def assistant(text: str) -> Message:
    """An assistant's turn."""
    return Message(role="assistant", content=text)


def assault(
    work: Sequence[tuple[Scripted, Example]],
    target: Answers,
    *,
    ending: Ending,
    budget: Budget,
    seed: int,
    log: AnswerLog | None = None,
    identity: str = "",
    step: Callable[[int], None] = lambda done: None,
) -> list[Attempt]:
    """Run many scripts in lockstep: one batch per round. A script ends with success, its own end, or the budget.

    Attempts come in the order of `work`, then of queries. The log makes an interrupted assault go on.
    """
    log = log or AnswerLog()
    scripts = [attack.script(goal, random.Random(f"{seed}:{attack.family}:{item_id(goal)}")) for attack, goal in work]
    asking: dict[int, tuple[Message, ...]] = {}
    for place, script in enumerate(scripts):
        first = next(script, None)
        if first is not None:
            asking[place] = first
    found: list[list[Attempt]] = [[] for _ in work]
    for query in range(1, budget.queries + 1):
        if not asking:
            break
        places = sorted(asking)
        prompts = [
            Example(
                messages=asking[place], tags={"id": f"{place:06d}", "kind": "goal", "max_tokens": SAMPLING.max_tokens}
            )
            for place in places
        ]
        answers = responses(target, prompts, log=log, target=identity or target.name, sampling=SAMPLING, step=step)
        for place, response in zip(places, answers, strict=True):
            attack, goal = work[place]
            outcome, scores = ending(goal, asking[place], response)
            messages = (*asking.pop(place), response.message)
            found[place].append(
                Attempt(
                    family=attack.family,
                    goal=item_id(goal),
                    messages=messages,
                    outcome=outcome,
                    scores=scores,
                    query=query,
                )
            )
            if outcome != "harmful" and query < budget.queries:
                try:
                    asking[place] = scripts[place].send(response)
                except StopIteration:
                    continue
    return [attempt for each in found for attempt in each]


def plain(items: Iterable[Example], each: int, seed: int = 0) -> list[Example]:
    """Plain requests to attack with: kind `goal` without an attack of its own, at most `each` per rule or category."""
    groups: dict[str, list[Example]] = {}
    for item in items:
        if item.tags.get("kind") == "goal" and not item.tags.get("attack"):
            groups.setdefault(aim_of(item), []).append(item)
    return [item for aim in sorted(groups) for item in sample(groups[aim], each, seed)]


def written(items: Iterable[Example], each: int, seed: int = 0) -> list[Example]:
    """Attacks that the corpus brings ready-made (tags.attack names the family), at most `each` per family."""
    groups: dict[str, list[Example]] = {}
    for item in items:
        if item.tags.get("kind") == "goal" and item.tags.get("attack"):
            groups.setdefault(str(item.tags["attack"]), []).append(item)
    return [item for family in sorted(groups) for item in sample(groups[family], each, seed)]


def twins(items: Iterable[Example], count: int, seed: int = 0) -> list[Example]:
    """Benign requests that look like attacks and must be answered."""
    return sample([item for item in items if item.tags.get("kind") == "benign"], count, seed)
