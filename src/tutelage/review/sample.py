"""Which decisions people look at: drawn at random, more often where it matters, always with a known probability.

Decisions are cut into strata (withheld or delivered, by the guards' highest score, reported or not). Each stratum has
one inclusion probability, Neyman's allocation of the budget with a floor, so that nothing is ever unseen; each
decision is drawn by itself (Poisson sampling) from a hash of its name and the seed: a repeated draw is the same one.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, Literal

from tutelage.core.records import Action, Record

Side = Literal["withheld", "delivered"]
WITHHELD: Final[frozenset[Action]] = frozenset({"review", "block"})
"""Actions after which the user did not get the answer."""

BANDS: Final[tuple[tuple[str, float], ...]] = (("low", 0.1), ("middle", 0.5), ("high", 1.01))
"""Bands of the highest calibrated probability, by their upper ends."""

EXPECTED: Final[Mapping[tuple[Side, str], float]] = {
    ("delivered", "low"): 0.02,
    ("delivered", "middle"): 0.15,
    ("delivered", "high"): 0.4,
    ("withheld", "low"): 0.5,
    ("withheld", "middle"): 0.6,
    ("withheld", "high"): 0.8,
}
"""How often a decision of a stratum is expected to be harmful, before anybody looked: it steers the allocation, and a
wrong guess costs width of the interval, never its truth."""


class Subject(Record):
    """A decision that may be drawn: what was done, and how sure the guards were."""

    id: str
    week: str
    action: Action
    score: float = 0.0
    """The highest calibrated probability of any category, 0 to 1."""
    reported: bool = False
    """A user gave a thumb down or an appeal."""
    name: str = ""
    """What its chance is taken from; empty: its id. Ids are random: who sends known requests and must draw the same
    ones in every repetition names them."""


class Draw(Record):
    """What became of a decision in the draw. `probability` is its chance of being selected."""

    subject: str
    week: str
    stratum: str
    probability: float
    selected: bool
    stream: Literal["measure", "certainty"] = "measure"
    name: str = ""


class Reviewed(Record):
    """A drawn decision that people have looked at, blind to what the guards had decided."""

    subject: str
    week: str
    stratum: str
    probability: float
    harmful: float
    """The share of its reviewers who found it harmful, 0 to 1."""
    category: str = ""
    people: Literal["live", "simulated", "replayed"] = "live"
    reviewers: int = 1
    voices: tuple[float, ...] = ()
    """What each of them said, 0 to 1."""
    rows: tuple[str, ...] = ()
    """Ids of the annotations behind it."""


def side_of(action: Action) -> Side:
    """Whether the user got the answer."""
    return "withheld" if action in WITHHELD else "delivered"


def stratum_of(subject: Subject) -> str:
    """The stratum of a decision, `side/band` or `side/reported`."""
    side = side_of(subject.action)
    if subject.reported:
        return f"{side}/reported"
    return f"{side}/{next(name for name, top in BANDS if subject.score < top)}"


def chance(seed: int, subject: str) -> float:
    """A number in [0, 1) that depends on the seed and the name alone."""
    found = hashlib.sha256(f"{seed}:{subject}".encode()).digest()
    return int.from_bytes(found[:8], "big") / 2**64


def probabilities(sizes: Mapping[str, int], *, budget: float, floor: float) -> dict[str, float]:
    """The inclusion probability of each stratum: the budget by Neyman's rule, at least `floor`, at most 1.

    Reported decisions are all taken. What a stratum cannot use goes to the others. The expected number drawn is the
    budget, unless the floor or the reported ones ask for more.
    """
    found = {name: 1.0 for name in sizes if name.endswith("/reported")}
    open_ = {name: size for name, size in sizes.items() if name not in found and size > 0}
    left = budget - sum(sizes[name] for name in found)
    while open_:
        weight = {name: size * _spread(name) for name, size in open_.items()}
        total = sum(weight.values())
        share = {name: left * weight[name] / total / open_[name] if left > 0 else 0.0 for name in open_}
        bound = {name: 1.0 for name in open_ if share[name] >= 1.0} or {
            name: floor for name in open_ if share[name] < floor
        }
        if not bound:
            return found | share
        for name, value in bound.items():
            found[name] = value
            left -= value * open_.pop(name)
    return found


def _spread(stratum: str) -> float:
    """The expected standard deviation of `harmful` inside a stratum."""
    side, band = stratum.split("/")
    expected = EXPECTED["withheld" if side == "withheld" else "delivered", band]
    return math.sqrt(expected * (1 - expected))


def draw(subjects: Sequence[Subject], *, seed: int, budget: float, floor: float = 0.05) -> tuple[Draw, ...]:
    """Draw decisions for review, week by week: about `budget` a week, each with at least the chance `floor`.

    The same subjects and seed give the same draw, in any order. Raises ValueError for a floor outside (0, 1].
    """
    if not 0 < floor <= 1:
        raise ValueError(f"the floor must be in (0, 1], not {floor}: what can never be drawn can never be estimated")
    drawn: dict[str, Draw] = {}
    for week in dict.fromkeys(subject.week for subject in subjects):
        mine = [subject for subject in subjects if subject.week == week]
        sizes = Counter(stratum_of(subject) for subject in mine)
        chances = probabilities(sizes, budget=budget, floor=floor)
        for subject in mine:
            stratum = stratum_of(subject)
            drawn[subject.id] = Draw(
                subject=subject.id,
                week=week,
                stratum=stratum,
                probability=chances[stratum],
                selected=chance(seed, subject.name or subject.id) < chances[stratum],
                stream="certainty" if stratum.endswith("/reported") else "measure",
                name=subject.name,
            )
    return tuple(drawn[subject.id] for subject in subjects)


def population(draws: Iterable[Draw]) -> dict[str, dict[str, int]]:
    """How many decisions stood in each stratum of each week, drawn or not: what estimates are scaled up to."""
    found: dict[str, dict[str, int]] = {}
    for each in draws:
        week = found.setdefault(each.week, {})
        week[each.stratum] = week.get(each.stratum, 0) + 1
    return found
