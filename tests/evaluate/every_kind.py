"""A question of every kind, and a model that answers them all, for figures that are stated in several places."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

from tutelage.core.records import Example, Message, Verdict
from tutelage.evaluate.suites.judged import Agreement
from tutelage.generate.fake import FakeGenerator
from tutelage.generate.generator import Scored
from tutelage.judge.judge import WindowedJudge

LABELS = ("good", "bad")


def chance(*names: object) -> float:
    return zlib.crc32(repr(names).encode()) / 2**32


def question(kind: str, place: int) -> Example:
    """An item of a kind, as its definition asks for it."""
    word = ("red", "blue", "old", "small", "wet")[place % 5]
    target, choices, more = f"the {word} cat {place} sits on the mat", (), {}
    if kind == "choice":
        condition, choices = ("ambig", "disambig")[place % 2], ("The grandfather", "The grandson", "Not known")
        more = {"groups": ["old", "nonOld", "unknown"], "stereotyped_groups": ["old"]}
        more["slices"] = {"condition": condition, "polarity": ("neg", "nonneg")[place // 2 % 2]}
        target = "Not known" if condition == "ambig" else choices[place // 4 % 2]
    elif kind == "classify":
        target, choices = LABELS[place % 2], LABELS
    elif kind == "arithmetic":
        target = str(place)
    elif kind == "rule":
        target, more = "no", {"rule": "pin"}
    elif kind == "instruct":
        target, more = None, {"constraints": [{"type": "words", "at_most": 3}, {"type": "no_comma"}]}
    elif kind in ("perplexity", "judged"):
        target = None
    role = "text" if kind == "perplexity" else "user"
    tags = {"id": f"{kind}-{place}", "suite": kind, "kind": kind, "cluster": f"{kind}-{place // 2}"} | more
    text = f"{word} {'words ' * (place % 7 + 1)}{place}"
    return Example(messages=(Message(role=role, content=text),), target=target, choices=choices, tags=tags)


class Model(FakeGenerator):
    """Right as often as its skill says, and never sure of it."""

    def __init__(self, skill: float) -> None:
        self.skill = skill
        super().__init__(self.said, likelihood=self.weighed)

    def said(self, example: Example, number: int) -> str:
        kind, luck = example.tags["kind"], chance(self.skill, example.tags["id"])
        if kind == "instruct":
            return "two words" if luck < self.skill else "one, two and three or four"
        if kind == "judged":
            return "x" * int(2 + 6 * self.skill + 2 * luck)
        if luck < self.skill:
            return str(example.target)
        return "no idea" if luck > 0.9 else f"{LABELS[0]} or the dog 7 sits on a mat"

    def weighed(self, example: Example, text: str) -> float:
        return -3 * chance(self.skill, example.tags["id"], text) - (text != example.target) * self.skill

    def rolling(self, prompts: Sequence[Example], stride: int = 0) -> list[Scored]:
        return [
            Scored(
                logprob=-(30 + 9 * chance(self.skill, each.tags["id"])) / self.skill,
                tokens=9,
                characters=9,
                greedy=None,
            )
            for each in prompts
        ]


class Lengths(WindowedJudge):
    """Says what the answer's length says."""

    name = "lengths"

    def judge(self, examples: Sequence[Example]) -> list[Verdict]:
        return [Verdict(judge="lengths", scores={"good": len(each.messages[-1].content) / 10}) for each in examples]


def judged_by_people(count: int, off: float = 0.1) -> list[Agreement]:
    """A judge who goes with people, says `off` more than they do, and is not always off by as much."""
    said = [(0.1 + 0.1 * (n % 5), 0.04 * (n // 5 % 3 - 1)) for n in range(count)]
    return [Agreement(str(n), str(n), human, human + off + more) for n, (human, more) in enumerate(said)]
