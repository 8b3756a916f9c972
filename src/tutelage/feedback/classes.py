"""What people together say to a question of choices: how probable each choice is, by the model that the votes allow.

Dawid and Skene's model tells how each person confuses each pair of choices, MACE only how often they know and what they
say otherwise; both need votes on the same things to tell it from. Of several labels each is a question of its own: is
it there or not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tutelage.feedback.consensus import Codes, dawid_skene, soft_labels
from tutelage.feedback.mace import mace
from tutelage.store.answers import Annotation

Thing = tuple[str, int]
"""Task and candidate (WHOLE: the task itself)."""

NAMED = ("choice", "boolean", "choices", "tags")
"""Kinds of question whose answers are choices."""
LISTED = ("choices", "tags")
FEWEST = 10
"""Votes beside others, of the median person, from which MACE is asked; for Dawid-Skene so many for each choice."""
PRIOR = 1.0
"""Votes of the average person that Dawid-Skene adds to everybody's table: a person with few is taken for no oracle."""
SHARES = "shares"


@dataclass(frozen=True)
class Chances:
    """What people together say of one thing."""

    probabilities: Mapping[str, float]
    weight: float
    """1 where all is certain, 0 where nothing is (`consensus.soft_labels`); of several labels, their mean."""
    model: str
    """dawid-skene | mace | shares."""
    why: str
    """Why these are shares of people and no posterior; empty where they are."""
    n: int
    """People who answered."""


def together(given: Sequence[Annotation], question: Mapping[str, Any]) -> dict[Thing, Chances]:
    """The probability of each choice, for each thing that somebody answered a question of choices about."""
    key, kind = str(question["key"]), str(question["kind"])
    said: dict[Thing, dict[str, Any]] = {}
    for each in given:
        for value in each.values:
            if value.question == key:
                answer = value.number if value.number is not None else value.value
                said.setdefault((each.task, value.candidate), {})[each.pseudonym] = answer
    named = {each for voices in said.values() for voice in voices.values() for each in _names(kind, voice)}
    choices = ["no", "yes"] if kind == "boolean" else [str(each) for each in question["choices"]]
    choices += sorted(named - set(choices))
    if kind not in LISTED:
        return _fitted(said, choices, lambda voice: _spread(kind, voice))
    found: dict[Thing, list[tuple[str, Chances]]] = {}
    for name in choices:
        yes = _fitted(
            said, ["no", "yes"], lambda voice, name=name: {"yes" if name in _names(kind, voice) else "no": 1.0}
        )
        for thing, chances in yes.items():
            found.setdefault(thing, []).append((name, chances))
    return {thing: _joined(some) for thing, some in found.items()}


def _names(kind: str, voice: Any) -> list[str]:
    if kind == "boolean":
        return []
    return [str(each) for each in (voice if isinstance(voice, list) else [voice])]


def _spread(kind: str, voice: Any) -> dict[str, float]:
    """One person's answer over the choices: a number between no and yes is shared out between both."""
    if kind == "boolean":
        return {"no": 1 - float(voice), "yes": float(voice)}
    return {str(voice): 1.0}


def _joined(some: Sequence[tuple[str, Chances]]) -> Chances:
    """Several labels of one thing as one answer."""
    parts = [chances for _, chances in some]
    models = Counter(each.model for each in parts)
    model = SHARES if SHARES in models else models.most_common(1)[0][0]
    return Chances(
        {name: chances.probabilities["yes"] for name, chances in some},
        round(sum(each.weight for each in parts) / len(parts), 6),
        model,
        next((each.why for each in parts if each.model == model), ""),
        parts[0].n,
    )


def _fitted(said: Mapping[Thing, Mapping[str, Any]], choices: Sequence[str], spread: Any) -> dict[Thing, Chances]:
    things, place = list(said), {name: at for at, name in enumerate(choices)}
    people = {name: at for at, name in enumerate(sorted({name for voices in said.values() for name in voices}))}
    shares = np.zeros((len(things), len(choices)))
    rows: list[tuple[int, int, int]] = []
    whole = True
    for at, voices in enumerate(said.values()):
        for name, voice in voices.items():
            for choice, part in spread(voice).items():
                shares[at, place[choice]] += part / len(voices)
                whole &= part in (0.0, 1.0)
                if part == 1.0:
                    rows.append((at, people[name], place[choice]))
    votes = np.array(rows, dtype=np.int64).reshape(-1, 3)
    model, why = chosen(votes[:, 0], votes[:, 1], votes[:, 2]) if whole else (SHARES, "answers lie between no and yes")
    if model == "dawid-skene":
        shares = dawid_skene(votes[:, 0], votes[:, 1], votes[:, 2], len(choices), prior=PRIOR).posteriors
    elif model == "mace":
        shares = mace(votes[:, 0], votes[:, 1], votes[:, 2], len(choices)).posteriors
    soft = soft_labels(shares, choices)
    return {
        thing: Chances(found, weight, model, why, len(said[thing]))
        for thing, (found, weight) in zip(things, soft, strict=True)
    }


def chosen(things: Codes, people: Codes, said: Codes) -> tuple[str, str]:
    """The model that these votes allow, and why it is none.

    A table of confusions has a number for each pair of choices, MACE one for each choice: so the first is asked where
    the median person has ten votes beside others for each choice that anybody took, the second where they have ten.
    """
    if len(np.unique(said)) < 2:
        return SHARES, "all chose the same"
    beside = np.bincount(things)[things] > 1
    counts = np.bincount(people[beside], minlength=int(people.max()) + 1)
    if np.count_nonzero(counts) < 3:
        return SHARES, "fewer than three people answered beside others"
    middle = float(np.median(counts[counts > 0]))
    if middle < FEWEST:
        return SHARES, f"too few votes: {middle:g} beside others of the median person, {FEWEST} are needed"
    return ("dawid-skene", "") if middle >= FEWEST * len(np.unique(said)) else ("mace", "")
