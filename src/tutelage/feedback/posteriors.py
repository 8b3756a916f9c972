"""What people together say of each thing they were asked, as far as it is certain: rankings, scales, choices.

Rankings by Plackett and Luce's model with ties, each vote weighed by its person's quality (`rankings.py`); scales by
graded response (`ordinal.py`); choices by the model that the votes allow (`classes.py`).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tutelage.feedback import quality, votes
from tutelage.feedback.classes import NAMED, together
from tutelage.feedback.consensus import Floats
from tutelage.feedback.figures import Read
from tutelage.feedback.ordinal import graded_response
from tutelage.feedback.rankings import plackett_luce
from tutelage.store.answers import WHOLE, Annotation

RANKING = "ranking"
SPREAD = 1.5
"""Standard deviation of the log-worths of candidates of one task, before anybody has ranked them."""
MOST_STEPS = 20
"""Steps of a scale up to which its answers are taken for classes in an order."""


@dataclass(frozen=True)
class Posterior:
    """What people say of one thing (a task, or one of its candidates) on one question."""

    task: str
    candidate: int
    """WHOLE: the task itself."""
    question: str
    model: str
    says: Mapping[str, Any]
    """Choice or step -> probability; of a ranking the candidates' log-`worth`, its `standard_error`, and the
    `probabilities` that one (`0>1`) is better than another."""
    n: int
    """People who were heard."""


def posteriors(words: Read) -> list[Posterior]:
    """Everything that these people together say. Where too few of them say anything, or all say the same, there is no
    posterior of a scale; of choices there are shares then."""
    found = _ranked(words)
    for key, question in words.questions.items():
        if question["kind"] in NAMED:
            for (task, no), chances in together(words.given, question).items():
                found.append(Posterior(task, no, key, chances.model, chances.probabilities, chances.n))
    for key in scales(words):
        if (fitted := graded(words, key)) is None:
            continue
        scores, things, values, rows = fitted
        heard = Counter(rows[:, 0].astype(int).tolist())
        for at, (task, no) in enumerate(things):
            steps = zip(values, scores.posteriors[at], strict=True)
            says = {f"{value:g}": round(float(chance), 6) for value, chance in steps}
            found.append(Posterior(task, no, key, "graded response", says, heard[at]))
    return found


def _ranked(words: Read) -> list[Posterior]:
    ranked = [each for each in words.given if each.tiers]
    if not ranked:
        return []
    texts = {id: task.candidates for id, task in words.tasks.items()}
    judged = quality.judge_people(votes.table(words.given, texts, words.people, words.scales).votes)
    weight = {words.people[each.person]: each.weight for each in judged}
    start: dict[str, int] = {}
    items = 0
    for id in dict.fromkeys(each.task for each in ranked):
        start[id] = items
        items += len(texts[id])
    trusted = [each for each in ranked if weight.get(each.pseudonym, 1.0) > 0]
    if not trusted:
        return []
    fitted = plackett_luce(
        [[[start[each.task] + no for no in tier] for tier in each.tiers] for each in trusted],
        items,
        weights=[weight.get(each.pseudonym, 1.0) for each in trusted],
        spread=SPREAD,
    )
    heard = Counter(each.task for each in trusted)
    made = []
    for id, first in start.items():
        if not heard[id]:
            continue
        size = len(texts[id])
        errors = [None if math.isnan(each) else round(float(each), 6) for each in fitted.worth_errors[first:][:size]]
        chances = {
            f"{one}>{other}": round(fitted.between(first + one, first + other)[0], 6)
            for one in range(size) for other in range(size) if one != other
        }  # fmt: skip
        worth = [round(float(value), 6) for value in fitted.worth[first : first + size]]
        says = {"worth": worth, "standard_error": errors, "probabilities": chances}
        made.append(Posterior(id, WHOLE, RANKING, "plackett-luce", says, heard[id]))
    return made


def scales(words: Read) -> list[str]:
    """The questions whose answers are steps of a scale, and that somebody answered."""
    scored = {value.question for each in words.given for value in each.values if value.number is not None}
    return [key for key, one in words.questions.items() if one["kind"] == "scale" and key in scored]


def graded(words: Read, key: str) -> tuple[Any, list[tuple[str, int]], Floats, Floats] | None:
    """The answers to a scale by graded response: the fit, what was scored (task, candidate), the values that occurred,
    and the answers as rows (thing, person, value). None for one person's answers, and for one value or too many."""
    things, rows = _scored(words, key)
    if not len(rows):
        return None
    values, steps = np.unique(rows[:, 2], return_inverse=True)
    if not 2 <= len(values) <= MOST_STEPS or len(np.unique(rows[:, 1])) < 2:
        return None
    fitted = graded_response(rows[:, 0].astype(int), rows[:, 1].astype(int), steps.reshape(-1), len(values))
    return fitted, things, values, rows


def _scored(words: Read, key: str) -> tuple[list[tuple[str, int]], Floats]:
    order = {name: at for at, name in enumerate(words.people)}
    things: dict[tuple[str, int], int] = {}
    rows = []
    for each in words.given:
        values = [(value.candidate, value.number) for value in each.values if value.question == key]
        for candidate, number in values:
            if number is not None:
                thing = things.setdefault((each.task, candidate), len(things))
                rows.append((thing, order[each.pseudonym], number))
    return list(things), np.array(rows, dtype=float).reshape(-1, 3)


def certain(given: Annotation, questions: Mapping[str, Mapping[str, Any]], model: str) -> list[Posterior]:
    """What one answer says that nobody doubts: an adjudicator's."""
    found = []
    if given.tiers:
        says = {"tiers": [list(tier) for tier in given.tiers], "unrankable": list(given.unrankable)}
        found.append(Posterior(given.task, WHOLE, RANKING, model, says, 1))
    for key, question in questions.items():
        if question["kind"] in NAMED:
            for (task, no), chances in together([given], question).items():
                found.append(Posterior(task, no, key, model, chances.probabilities, 1))
        elif question["kind"] == "scale":
            steps = [each for each in given.values if each.question == key and each.number is not None]
            found += [Posterior(given.task, each.candidate, key, model, {f"{each.number:g}": 1.0}, 1) for each in steps]
    return found


def by_task(some: Sequence[Posterior]) -> dict[str, list[Posterior]]:
    """Task -> what is said of it."""
    found: dict[str, list[Posterior]] = {}
    for each in some:
        found.setdefault(each.task, []).append(each)
    return found
