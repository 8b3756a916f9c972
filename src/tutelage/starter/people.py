"""Simulated people: raters whose taste, noise and faults are known, so that finding them can be scored.

A rater's value of an answer is a weighted sum of what such a person sees (does it seem right, to the point, well
formed, kind, short) plus noise. It is never the gold: a kind and short answer may outweigh a right one, half right
counts half, and who admits not to know is thought better of than who states what is wrong.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache

from tutelage.core.records import Example, Label, Ranking, Score
from tutelage.starter.families import UNKNOWN, UNTOLD
from tutelage.starter.gold import core, plain, question_of, target_of
from tutelage.starter.material import lines, words
from tutelage.starter.rules import refuses

FEATURES = ("right", "relevant", "coherent", "polite", "short")
KINDS = {"random": 2, "longest": 1, "first": 1, "hostile": 1}
"""How many raters of each fault there are; all others are careful."""
HONEST = 0.3
"""How right it seems to admit not to know what could be known."""
TIE = 0.08
"""Values closer than this are a tie to a careful rater."""


@dataclass(frozen=True)
class Rater:
    """One simulated person. `kind` is truth for the report and never goes to the store."""

    id: str
    group: str
    kind: str
    weights: Mapping[str, float]
    noise: float
    slip: float
    """How often a tag is set wrong."""
    profile: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Judged:
    """What one person said of one task."""

    ranking: Ranking
    scores: tuple[Score, ...]
    values: tuple[float, ...]
    """The noisy values behind it, for tests and ceilings."""


def raters(seed: int = 0, count: int = 24) -> tuple[Rater, ...]:
    """The people of a town: two groups that differ in how much kindness counts, and five who cannot be trusted."""
    rng, lexicon = random.Random(f"{seed}/raters"), lines("words")
    kinds = [kind for kind, many in KINDS.items() for _ in range(many)]
    kinds = ["careful"] * max(0, count - len(kinds)) + kinds
    rng.shuffle(kinds)
    found = []
    for place, kind in enumerate(kinds[:count]):
        group = ("market", "hill")[place % 2]
        base = {
            "right": 1.0,
            "relevant": 0.35,
            "coherent": 0.35,
            "polite": 0.1 if group == "market" else 0.6,
            "short": 0.15,
        }
        weights = {name: round(value * rng.uniform(0.8, 1.2), 3) for name, value in base.items()}
        profile = {
            "gender": ("woman", "man")[place // 2 % 2],
            "ethnicity": rng.choice(list(lexicon["names"])),
            "native_language": rng.choice(lexicon["languages"]),
        }
        found.append(
            Rater(
                f"r{place + 1:02d}",
                group,
                kind,
                weights,
                round(rng.uniform(0.12, 0.3), 3),
                round(rng.uniform(0.03, 0.1), 3),
                profile,
            )
        )
    return tuple(found)


@cache
def _lexicon() -> frozenset[str]:
    def leaves(node: object) -> list[str]:
        if isinstance(node, dict):
            return [leaf for key, value in node.items() for leaf in (*leaves(key), *leaves(value))]
        return [leaf for value in node for leaf in leaves(value)] if isinstance(node, list) else [str(node)]

    return frozenset(
        word
        for name in ("words", "chats", "rules", "people", "leaflets", "topics", "market")
        for leaf in leaves(lines(name))
        for word in words(leaf)
    )


def _seems_right(example: Example, answer: str) -> float:
    """As the guideline asks: what is so; not knowing what cannot be known; no refusal of what may be answered."""
    if example.tags.get("refuse") or refuses(answer):
        return float(bool(example.tags.get("refuse")) and refuses(answer))
    said, wanted = words(core(answer)), words(core(target_of(example)))
    admits, unknown = (plain(" ".join(each)) in _ADMISSIONS for each in (said, wanted))
    if admits or unknown:
        return 1.0 if admits and unknown else HONEST if admits else 0.0
    if value := words(str(example.tags.get("value") or "")):  # a fact about somebody: half for the wrong person
        named = all(word in said for word in words(str(example.tags.get("about") or "")))
        return (1.0 if named else 0.5) * float(f" {' '.join(value)} " in f" {' '.join(said)} ")
    shared = sum(min(said.count(word), wanted.count(word)) for word in set(wanted))
    return 2 * shared / (len(said) + len(wanted)) if said and wanted else 0.0


_ADMISSIONS = (plain(UNTOLD), plain(UNKNOWN))


def features(example: Example, answer: str) -> dict[str, float]:
    """What a person sees in an answer, each 0 to 1."""
    said, wanted, asked = words(answer), words(target_of(example)), words(question_of(example))
    known = [word for word in said if word in _lexicon() or word in asked or word in wanted or word.isdigit()]
    repeats = 1 - len(set(said)) / len(said) if said else 1.0
    coherent = (len(known) / len(said) if said else 0.0) * (1 - repeats)
    # who admits not to know answers what was asked; raters who called it off the point taught models to invent
    admits = plain(core(answer)) in _ADMISSIONS
    relevant = float(admits or any(word in asked or word in wanted for word in said))
    polite = float(any(word in lines("words")["polite"] for word in said))
    return {
        "right": _seems_right(example, answer),
        "relevant": relevant,
        "coherent": coherent,
        "polite": polite,
        "short": max(0.0, 1 - len(said) / 20),
    }


def value(example: Example, answer: str, rater: Rater) -> float:
    """A rater's value of an answer without noise, scaled to 0..1 of what they could give."""
    seen = features(example, answer)
    return sum(rater.weights[name] * seen[name] for name in FEATURES) / sum(rater.weights.values())


def judge(
    task: str,
    example: Example,
    candidates: Sequence[str],
    rater: Rater,
    seed: int = 0,
    shown: Sequence[int] | None = None,
    criterion: str = "quality",
    scale: tuple[float, float] = (1, 5),
    at: str = "",
) -> Judged:
    """Rank and score some answers as one person does. The same task, person and seed give the same words."""
    rng = random.Random(f"{seed}/{task}/{rater.id}")
    order = list(range(len(candidates))) if shown is None else list(shown)
    noise = [rng.gauss(0, rater.noise) for _ in candidates]
    if rater.kind == "random":
        values = [rng.random() for _ in candidates]
    elif rater.kind == "longest":
        values = [min(1.0, len(answer) / 80) + each / 4 for answer, each in zip(candidates, noise, strict=True)]
    elif rater.kind == "first":
        values = [1 - order.index(place) / max(1, len(order)) + each / 4 for place, each in enumerate(noise)]
    else:
        true = [value(example, answer, rater) for answer in candidates]
        values = [
            (1 - each if rater.kind == "hostile" else each) + error for each, error in zip(true, noise, strict=True)
        ]
    tiers: list[list[int]] = []
    for place in sorted(order, key=lambda each: (-values[each], order.index(each))):
        if tiers and values[tiers[-1][0]] - values[place] < TIE:
            tiers[-1].append(place)
        else:
            tiers.append([place])
    low, high = scale
    given = [min(high, max(low, round(low + (high - low) * each))) for each in values]
    scores = tuple(
        Score(task=task, person=rater.id, candidate=place, criterion=criterion, value=given[place], scale=scale, at=at)
        for place in order
    )
    ranking = Ranking(task=task, person=rater.id, tiers=tuple(map(tuple, tiers)), shown=tuple(order), at=at)
    return Judged(ranking, scores, tuple(values))


def tag(
    subject: str,
    truth: Mapping[str, float],
    rater: Rater,
    seed: int = 0,
    options: Sequence[str] = (),
    at: str = "",
) -> tuple[Label, ...]:
    """A person's tags of one text: each category of `truth` and `options`, wrong as often as the person slips."""
    rng = random.Random(f"{seed}/{subject}/{rater.id}/tag")
    found = []
    for category in sorted({*truth, *options}):
        real, slipped = truth.get(category, 0.0) >= 0.5, rng.random() < rater.slip
        said = rng.random() < 0.5 if rater.kind == "random" else real != slipped
        found.append(
            Label(
                subject=subject,
                person=rater.id,
                category=category,
                value=float(not said if rater.kind == "hostile" else said),
                at=at,
            )
        )
    return tuple(found)


def agrees(first: float, second: float, rater: Rater) -> float:
    """The chance that a careful rater orders two answers as their true values stand (ties of value: one half)."""
    if first == second:
        return 0.5
    return 0.5 * (1 + math.erf(abs(first - second) / (2 * rater.noise)))


def ceiling(pairs: Sequence[tuple[Example, str, str]], people: Sequence[Rater]) -> float | None:
    """How often the best possible judge agrees with these people's pairwise choices; None without pairs.

    The best judge follows the mean value of the careful; everybody's noise, and those who are not careful, stand
    between it and agreement.
    """
    careful = [rater for rater in people if rater.kind == "careful"]
    if not pairs or not careful:
        return None
    total = 0.0
    for example, one, two in pairs:
        lead = sum(value(example, one, rater) - value(example, two, rater) for rater in careful)
        for rater in people:
            gap = value(example, one, rater) - value(example, two, rater)
            sure = agrees(gap, 0.0, rater)
            same = gap * lead > 0
            share = sure if same else 1 - sure
            total += {"careful": share, "hostile": 1 - share}.get(rater.kind, 0.5)
    return total / (len(pairs) * len(people))
