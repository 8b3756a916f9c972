"""What a lead reads of a project's people: one row for each person.

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
from tutelage.feedback.figures import Read
from tutelage.feedback.posteriors import graded, scales
from tutelage.measure.statistics import Interval, clopper_pearson, mean, plain, undefined
from tutelage.store import answers, gold
from tutelage.store.engine import Reader
from tutelage.store.people import KINDS

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


# strictness


def _strictness(words: Read) -> dict[str, Any]:
    """For each person how strict they are, on the first scale that can be fitted, in standard deviations of quality."""
    for key in scales(words):
        found = graded(words, key)
        if found is not None:
            fitted, _, _, rows = found
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
