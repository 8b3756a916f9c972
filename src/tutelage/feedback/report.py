"""What a lead reads of a project's people: one row for each person, and what they say together.

A row says how somebody judges, never what they should be paid: nothing here is used for pay by itself.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tutelage.core.errors import DataError
from tutelage.feedback import careless, quality, votes
from tutelage.feedback.agreements import said_to
from tutelage.feedback.consensus import Floats
from tutelage.feedback.figures import Read
from tutelage.feedback.mace import mace
from tutelage.feedback.ordinal import graded_response
from tutelage.feedback.rankings import plackett_luce
from tutelage.measure.statistics import Interval, clopper_pearson, mean, plain, undefined
from tutelage.store import answers, figures, gold
from tutelage.store.answers import WHOLE, Annotation
from tutelage.store.engine import Reader
from tutelage.store.people import KINDS

SPREAD = 1.5
"""Standard deviation of the log-worths of candidates of one task, before anybody has ranked them."""
GOLD = 0.7
"""Share of hidden questions that a person should surely answer right."""


def read(store: Reader, project: str, people: str = "") -> Read:
    """The words of a project's people. Raises DataError where the project mixes kinds of people and none is chosen, and
    for a kind that there is not."""
    if people and people not in KINDS:
        raise DataError(f"{people!r} is no kind of people", key="people", todo=f"One of: {', '.join(KINDS)}")
    given = answers.read(store, project, people=people or None)
    kinds = sorted({each.people for each in given})
    if len(kinds) > 1:
        message = f"{project} holds answers of {' and '.join(kinds)} people, which are never pooled"
        raise DataError(message, key="people", todo=f"Choose one: {', '.join(kinds)}")
    return Read.of(store, sorted(given, key=lambda each: (each.task, each.pseudonym)))


def hidden(store: Reader, project_id: str) -> dict[str, tuple[int, int]]:
    """Pseudonym -> (right, seen) of the gold tasks of a project that somebody answered since a lead last looked."""
    return {each.pseudonym: (each.right, each.n) for each in gold.standings(store, project_id)}


# people


def people_table(
    words: Read,
    gold: Mapping[str, tuple[int, int]] | None = None,
    *,
    habits: careless.Habits | None = None,
    rules: quality.Rules | None = None,
) -> list[dict[str, Any]]:
    """One row for each person, by pseudonym: how much they did, how they agree, hidden questions (`gold`: right, seen),
    position, straight-lining, speed, strictness, and what was found, with the reason. Undefined figures say why."""
    texts = {id: task.candidates for id, task in words.tasks.items()}
    table = votes.table(words.given, texts, words.people, words.scales)
    judged = {each.person: each for each in quality.judge_people(table.votes, rules)} if len(table.votes) else {}
    lines = careless.straight_lining(words.given, habits)
    long = {id: _words(task.messages, task.candidates) for id, task in words.tasks.items()}
    paces = careless.speed(words.given, long, habits)
    counts = Counter(each.pseudonym for each in words.given)
    strict = _strictness(words)
    beside = _with_others(words)
    rows = []
    for at, name in enumerate(words.people):
        one, line, pace = judged.get(at), lines[name], paces[name]
        right, seen = (gold or {}).get(name, (0, 0))
        known = clopper_pearson(right, seen) if seen else undefined(0, "no hidden question was answered")
        pairs = one.agreement if one is not None and one.agreement.value is not None else beside[name]
        found = [
            (one.finding, _reason(one)) if one is not None and one.finding else None,
            ("gold", f"{right} of {seen} hidden questions right")
            if known.high is not None and known.high < GOLD
            else None,
            ("straight-lining", line.reason) if line.flagged else None,
            ("fast", pace.reason) if pace.flagged else None,
        ]
        told = [each for each in found if each]
        rows.append(
            {
                "person": name,
                "answers": counts[name],
                "agreement": plain(pairs),
                "gold": plain(known),
                "first_shown": plain(one.first if one else undefined(0, "nothing was ranked")),
                "same_answer": {
                    **plain(line.share), "question": line.question, "expected": line.expected, "answer": line.answer,
                    "longest_run": line.longest,
                },
                "speed": {**plain(pace.ratio), "ms_per_word": pace.ms_per_word},
                "strictness": strict.get(name, plain(undefined(0, "nothing was scored"))),
                "findings": [str(kind) for kind, _ in told],
                "reason": "; ".join(why for _, why in told) or (one.reason if one else ""),
            }
        )  # fmt: skip
    return rows


def _words(messages: Sequence[Any], candidates: Sequence[str]) -> int:
    return sum(len(text.split()) for text in (*(each.content for each in messages), *candidates))


def _reason(found: quality.Quality) -> str:
    """A finding of `judge_people` as a sentence."""
    figure = {"first": found.first, "longest": found.longest}.get(str(found.finding), found.agreement)
    share = "" if figure.value is None else f"{figure.value:.0%} of {figure.n}"
    return {
        "hostile": f"chooses against the others: agrees in {share} choices",
        "random": f"agrees with the others hardly more than by chance: {share} choices",
        "first": f"chooses what is shown first: {share} choices",
        "longest": f"chooses the longer answer where the others prefer the shorter one: {share} choices",
    }[str(found.finding)]


def _with_others(words: Read) -> dict[str, Interval]:
    """For each person the mean share of the others on the same task who said the same, where classes were chosen."""
    found: dict[str, list[float]] = {name: [] for name in words.people}
    for key, question in words.questions.items():
        if question["per_candidate"] or question["kind"] not in ("choice", "choices", "boolean"):
            continue
        said = said_to(words, key)[0]
        for at in range(len(words.tasks)):
            given = [(name, str(row[at])) for name, row in zip(words.people, said, strict=True) if row[at] is not None]
            counts = Counter(voice for _, voice in given)
            for name, voice in given:
                if len(given) > 1:
                    found[name].append((counts[voice] - 1) / (len(given) - 1))
    return {
        name: mean(shares, bounds=(0.0, 1.0)) if shares else undefined(0, "no class was chosen beside others")
        for name, shares in found.items()
    }


# consensus


def _scale_votes(words: Read, key: str) -> tuple[list[tuple[str, int]], Floats]:
    """Scores as rows (thing, person, step) with the things' names, steps in the order of the values that occurred."""
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


MOST_STEPS = 20
"""Steps of a scale up to which its answers are taken for classes in an order."""


def _graded(words: Read, key: str) -> tuple[Any, list[tuple[str, int]], Floats, Floats] | None:
    things, rows = _scale_votes(words, key)
    if not len(rows):
        return None
    values, steps = np.unique(rows[:, 2], return_inverse=True)
    if not 2 <= len(values) <= MOST_STEPS or len(np.unique(rows[:, 1])) < 2:
        return None
    fitted = graded_response(rows[:, 0].astype(int), rows[:, 1].astype(int), steps.reshape(-1), len(values))
    return fitted, things, values, rows


def _scale_keys(words: Read) -> list[str]:
    scored = {value.question for each in words.given for value in each.values if value.number is not None}
    return [key for key, one in words.questions.items() if one["kind"] == "scale" and key in scored]


def _strictness(words: Read) -> dict[str, Any]:
    """For each person how strict they are, on the first scale that can be fitted, in standard deviations of quality."""
    for key in _scale_keys(words):
        graded = _graded(words, key)
        if graded is not None:
            fitted, _, _, rows = graded
            counts = np.bincount(rows[:, 1].astype(int), minlength=len(words.people))
            numbers = zip(fitted.strictness.tolist(), fitted.strictness_errors.tolist(), counts.tolist(), strict=False)
            return {
                name: plain(_interval(value, error, n))
                for name, (value, error, n) in zip(words.people, numbers, strict=False)
                if n
            }
    return {}


def _interval(value: float, error: float, n: int) -> Interval:
    if math.isnan(error):
        return undefined(n, "too many people for standard errors", value=value, method="graded response")
    return Interval(value=value, low=value - 1.96 * error, high=value + 1.96 * error, n=n, method="graded response")


def consensus_of(words: Read) -> tuple[list[figures.Agreed], list[figures.Told]]:
    """What people together say on each question of each task, and each person's figures, ready for the store.

    Rankings by Plackett-Luce with ties, votes weighed by people's quality; classes by MACE; scales by graded response.
    """
    agreed_on: list[figures.Agreed] = []
    told: list[figures.Told] = []
    ids = {each.pseudonym: each.person for each in words.given}
    ranked = [each for each in words.given if each.tiers]
    if ranked:
        made, weights = _ranked(words, ranked)
        agreed_on += made
        told += [
            figures.Told(ids[words.people[one.person]], "ranking", "agreement", one.agreement.value,
                         _error(one.agreement), one.n)
            for one in weights
        ]  # fmt: skip
    for key, question in words.questions.items():
        if question["per_candidate"] or question["kind"] not in ("choice", "boolean"):
            continue
        said = _coded_with(words, key)
        if said is None:
            continue
        names, rows, known = said
        fitted = mace(rows[:, 0], rows[:, 1], rows[:, 2], len(names))
        counts = Counter(rows[:, 0].tolist())
        agreed_on += [
            figures.Agreed(id, key, "mace", _soft(names, fitted.posteriors[at]), counts[at])
            for at, id in enumerate(known)
        ]
        spoken = Counter(rows[:, 1].tolist())
        told += [
            figures.Told(ids[name], key, "mace", float(value), float(error), spoken[at])
            for at, (name, value, error) in enumerate(
                zip(words.people, fitted.competence, fitted.standard_errors, strict=False)
            )
            if spoken[at]
        ]
    for key in _scale_keys(words):
        graded = _graded(words, key)
        if graded is None:
            continue
        scores, things, values, rows = graded
        counts = Counter(rows[:, 0].astype(int).tolist())
        for at, (id, candidate) in enumerate(things):
            name = key if candidate == WHOLE else f"{key}/{candidate}"
            soft = _soft([f"{value:g}" for value in values], scores.posteriors[at])
            agreed_on.append(figures.Agreed(id, name, "graded response", soft, counts[at]))
        spoken = Counter(rows[:, 1].astype(int).tolist())
        for name, numbers, errors in (
            ("strictness", scores.strictness, scores.strictness_errors),
            ("sureness", scores.sureness, scores.sureness_errors),
        ):
            told += [
                figures.Told(ids[who], key, name, float(numbers[at]), _or_none(errors[at]), spoken[at])
                for at, who in enumerate(words.people) if spoken[at]
            ]  # fmt: skip
    return agreed_on, told


def _ranked(words: Read, ranked: Sequence[Annotation]) -> tuple[list[figures.Agreed], list[quality.Quality]]:
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
        return [], judged
    fitted = plackett_luce(
        [[[start[each.task] + no for no in tier] for tier in each.tiers] for each in trusted],
        items,
        weights=[weight.get(each.pseudonym, 1.0) for each in trusted],
        spread=SPREAD,
    )
    counts = Counter(each.task for each in trusted)
    made = []
    for id, first in start.items():
        if not counts[id]:
            continue
        size = len(texts[id])
        worths = [round(float(value), 6) for value in fitted.worth[first : first + size]]
        errors = [_or_none(value) for value in fitted.worth_errors[first : first + size]]
        chances = {
            f"{one}>{other}": round(fitted.between(first + one, first + other)[0], 6)
            for one in range(size) for other in range(size) if one != other
        }  # fmt: skip
        posterior = {"worth": worths, "standard_error": errors, "probabilities": chances}
        made.append(figures.Agreed(id, "ranking", "plackett-luce", posterior, counts[id]))
    return made, judged


def _coded_with(words: Read, key: str) -> tuple[list[str], Any, list[str]] | None:
    """Classes chosen as rows (task, person, class), the names of classes and the ids of tasks."""
    order = {name: at for at, name in enumerate(words.people)}
    said = [(each, each.value(key)) for each in words.given]
    given = [
        (each.task, order[each.pseudonym], voice if isinstance(voice, str) else f"{voice:g}")
        for each, voice in said
        if voice is not None
    ]
    names = sorted({voice for _, _, voice in given})
    if len(names) < 2:
        return None
    place = {name: at for at, name in enumerate(names)}
    known = {id: at for at, id in enumerate(dict.fromkeys(id for id, _, _ in given))}
    return names, np.array([(known[id], person, place[voice]) for id, person, voice in given]), list(known)


def _soft(names: Sequence[str], chances: Floats) -> dict[str, float]:
    return {name: round(float(chance), 6) for name, chance in zip(names, chances, strict=True)}


def _error(interval: Interval) -> float | None:
    return None if interval.half_width is None else interval.half_width / 1.96


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else round(float(value), 6)
