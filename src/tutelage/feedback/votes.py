"""Answers as numbers: choices between pairs, rank tables, score tables."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tutelage.feedback.consensus import Codes, dawid_skene
from tutelage.store.answers import Annotation

Floats = NDArray[np.float64]
PairKey = tuple[str, int, int]


@dataclass(frozen=True)
class Votes:
    """Choices between two answers, one row for each person and pair: `choice` +1 left, -1 right, 0 tie.

    `longer` is +1 where the left answer is the longer one, `earlier` +1 where the left one was shown first (-1 the
    other way, 0 when equal or not known). `pairs` and `tasks` number the pairs and their tasks.
    """

    people: Codes
    pairs: Codes
    tasks: Codes
    choice: Codes
    longer: Codes
    earlier: Codes
    names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.choice)


@dataclass(frozen=True)
class Table:
    """Choices of many people between many pairs; `pairs[n]` says which task and candidates pair n is."""

    votes: Votes
    pairs: tuple[PairKey, ...]
    tasks: tuple[str, ...]


Scales = Mapping[tuple[str, str], tuple[float, float]]
"""(form, criterion) -> lowest and highest score."""


def scales_of(forms: Mapping[str, tuple[int, Sequence[Mapping[str, Any]], str]]) -> Scales:
    """The scales of forms by id; yes and no are 1 and 0."""
    return {
        (form, str(each["key"])): (float(each["scale"][0]), float(each["scale"][1]))
        if each["kind"] == "scale"
        else (0.0, 1.0)
        for form, (_, questions, _) in forms.items()
        for each in questions
        if each["kind"] in ("scale", "boolean")
    }


def ranks(given: Annotation, candidates: int, scales: Scales) -> Floats:
    """The rank of each candidate (0 best, equal = tied, NaN = not ranked), from tiers or else from scores."""
    found = np.full(candidates, math.nan)
    if given.tiers:
        for tier, members in enumerate(given.tiers):
            found[list(members)] = tier
    else:
        for candidate, score in total_scores(given, scales).items():
            found[candidate] = -score
    return found


def scaled(given: Annotation, scales: Scales) -> dict[str, dict[int, float]]:
    """Criterion -> candidate -> score from 0 (the scale's lowest) to 1; raw where no scale is known."""
    found: dict[str, dict[int, float]] = {}
    for criterion, scores in given.scores().items():
        low, high = scales.get((given.form, criterion), (0.0, 1.0))
        found[criterion] = {candidate: (score - low) / (high - low) for candidate, score in scores.items()}
    return found


def total_scores(given: Annotation, scales: Scales) -> dict[int, float]:
    """Candidate -> the mean of its scores over all criteria, each as a part of its scale."""
    found: dict[int, list[float]] = {}
    for scores in scaled(given, scales).values():
        for candidate, score in scores.items():
            found.setdefault(candidate, []).append(score)
    return {candidate: sum(scores) / len(scores) for candidate, scores in found.items()}


def table(
    answers: Sequence[Annotation], texts: Mapping[str, Sequence[str]], people: Sequence[str], scales: Scales
) -> Table:
    """All pairs that somebody judged. `texts` holds the candidates of each task; `people` orders pseudonyms."""
    order = {name: at for at, name in enumerate(people)}
    tasks = tuple(dict.fromkeys(each.task for each in answers))
    place = {task: at for at, task in enumerate(tasks)}
    numbers: dict[PairKey, int] = {}
    rows: list[tuple[int, int, int, int, int, int]] = []
    for each in answers:
        words = texts[each.task]
        rank = ranks(each, len(words), scales)
        shown = {candidate: at for at, candidate in enumerate(each.shown)}
        for left in range(len(words)):
            for right in range(left + 1, len(words)):
                if math.isnan(rank[left]) or math.isnan(rank[right]):
                    continue
                pair = numbers.setdefault((each.task, left, right), len(numbers))
                rows.append(
                    (
                        order[each.pseudonym],
                        pair,
                        place[each.task],
                        _sign(rank[right] - rank[left]),
                        _sign(len(words[left]) - len(words[right])),
                        _sign(shown.get(right, 0) - shown.get(left, 0)),
                    )
                )
    columns = np.array(rows, dtype=np.int64).reshape(-1, 6)
    votes = Votes(
        people=columns[:, 0],
        pairs=columns[:, 1],
        tasks=columns[:, 2],
        choice=columns[:, 3],
        longer=columns[:, 4],
        earlier=columns[:, 5],
        names=tuple(people),
    )
    return Table(votes, tuple(numbers), tasks)


def likely(table: Table, trust: Floats, project: Mapping[str, str], prior: float) -> Floats:
    """Probabilities [pairs, 3] that the right one is better, that they are tied, that the left one is better.

    Each project is fitted by itself. Every vote is given a second time with sides changed, since the lower number means
    nothing. NaN where no reliable person judged a pair: the model would answer with what is common elsewhere, which
    nobody said of this one.
    """
    found = np.full((len(table.pairs), 3), math.nan)
    given = table.votes
    weights = trust[given.people]
    belongs = np.array([project[task] for task, _, _ in table.pairs])
    for name in sorted(set(project.values())):
        mine = (belongs[given.pairs] == name) & (weights > 0) if len(given) else np.zeros(0, dtype=bool)
        if not mine.any():
            continue
        pairs, things = np.unique(given.pairs[mine], return_inverse=True)
        _, people = np.unique(given.people[mine], return_inverse=True)
        said = given.choice[mine] + 1
        fitted = dawid_skene(
            np.concatenate([things, things + len(pairs)]),
            np.concatenate([people, people]),
            np.concatenate([said, 2 - said]),
            3,
            weights=np.concatenate([weights[mine]] * 2),
            prior=prior,
        )
        found[pairs] = fitted.posteriors[: len(pairs)]
    return found


def rank_tables(answers: Sequence[Annotation], sizes: Mapping[str, int]) -> list[Floats]:
    """For each task that was ranked: ranks [people, candidates]."""
    found: dict[str, list[Floats]] = {}
    for each in answers:
        if each.tiers:
            found.setdefault(each.task, []).append(ranks(each, sizes[each.task], {}))
    return [np.array(rows) for rows in found.values()]


def score_table(
    answers: Sequence[Annotation], sizes: Mapping[str, int], people: Sequence[str], criterion: str
) -> tuple[Floats, list[str]]:
    """Scores [people, task x candidate] on one criterion, NaN where nobody scored, and the task of each column."""
    order = {name: at for at, name in enumerate(people)}
    scored = [each for each in answers if criterion in each.scores()]
    start: dict[str, int] = {}
    width = 0
    for task in dict.fromkeys(each.task for each in scored):
        start[task] = width
        width += sizes[task]
    found = np.full((len(people), width), math.nan)
    for each in scored:
        for candidate, score in each.scores()[criterion].items():
            found[order[each.pseudonym], start[each.task] + candidate] = score
    return found, [task for task in start for _ in range(sizes[task])]


def _sign(value: float) -> int:
    return int(value > 0) - int(value < 0)
