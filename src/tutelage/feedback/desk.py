"""What a lead's pages tell of a project: where it stands, how far people agree, who answers how.

Figures rest on the newest answers of one kind of people (live, simulated and replayed ones are never pooled), at most
SAMPLE of them, and say how many they rest on.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from tutelage.core.errors import TutelageError
from tutelage.feedback import api, forecast, report
from tutelage.feedback.agreements import Agreement
from tutelage.feedback.agreements import agreements as agreements_of
from tutelage.feedback.figures import Read
from tutelage.store import answers, oversight
from tutelage.store import standing as stored
from tutelage.store.engine import Reader, now
from tutelage.store.tasks import Project

T = TypeVar("T")

SAMPLE = 5_000
"""Answers that figures rest on, at most: the newest ones."""
MOST_CATEGORIES = 12
"""Categories of a question with many choices whose agreement is told, the commonest ones."""


class Kept:
    """Figures that take time: whoever asks gets the last ones, which are made anew behind them.

    What takes less than `quick` seconds is made each time; the rest is kept for twenty times as long as it took, so
    that looking costs a twentieth of a processor, however many look.
    """

    def __init__(self, quick: float = 0.25, share: float = 20.0, most: int = 256) -> None:
        self._quick, self._share, self._most = quick, share, most
        self._held: dict[Any, tuple[float, Any]] = {}
        self._busy: set[Any] = set()
        self._lock = threading.Lock()

    def get(self, key: Any, make: Callable[[], T]) -> T:
        """The figure of this key."""
        with self._lock:
            held = self._held.get(key)
            behind = held is not None and time.monotonic() >= held[0] and key not in self._busy
            if behind:
                self._busy.add(key)
        if held is None:
            return self._make(key, make)
        if behind:
            threading.Thread(target=self._again, args=(key, make), name="figures", daemon=True).start()
        return held[1]  # type: ignore[no-any-return]

    def forget(self) -> None:
        """Something was changed on purpose: everything is made anew."""
        with self._lock:
            self._held.clear()

    def _make(self, key: Any, make: Callable[[], T]) -> T:
        began = time.monotonic()
        value = make()
        ended = time.monotonic()
        if ended - began > self._quick:
            with self._lock:
                while len(self._held) >= self._most:
                    self._held.pop(next(iter(self._held)))
                self._held[key] = (ended + self._share * (ended - began), value)
        return value

    def _again(self, key: Any, make: Callable[[], T]) -> None:
        try:
            self._make(key, make)
        except TutelageError:
            pass  # a store that fails for a moment: the next who asks tries again
        finally:
            with self._lock:
                self._busy.discard(key)


# where a project stands


@dataclass(frozen=True)
class Standing:
    """Where a project stands."""

    counts: stored.Counts
    tallies: tuple[answers.Tally, ...]
    kinds: Mapping[str, int]
    """Kind of people -> answers."""
    main: str
    """The kind the forecast is about: live people where there are any."""
    target: int
    """Answers that are enough: the lead's own number, or all that tasks want."""
    since: int
    """Since when the pace is measured."""
    forecast: forecast.Forecast
    idle: tuple[str, ...]
    """Why people may find nothing to do, in sentences."""
    daily: Mapping[str, tuple[tuple[float, float], ...]]
    """Kind of people -> (days from now, answers) of the last two weeks."""
    at: int


def standing(store: Reader, project: Project) -> Standing:
    """Where a project stands now."""
    moment = now()
    counts = stored.counts(store, project.id)
    tallies = tuple(answers.tallies(store, project.name))
    ahead = forecast.ahead(store, project, counts, tallies, moment)
    return Standing(
        counts=counts,
        tallies=tallies,
        kinds=ahead.kinds,
        main=ahead.main,
        target=ahead.target,
        since=ahead.since,
        forecast=ahead.forecast,
        idle=tuple(_idle(store, project, counts)),
        daily=_daily(store, project, moment),
        at=moment,
    )


def _daily(store: Reader, project: Project, moment: int, days: int = 14) -> dict[str, tuple[tuple[float, float], ...]]:
    found = oversight.pace(store, project.id, moment - days * forecast.DAY, forecast.DAY)
    return {
        kind: tuple((float(at - days + 1), float(many.get(at, 0))) for at in range(days))
        for kind, many in sorted(found.items())
    }


def answerers(store: Reader, project: Project) -> list[oversight.Member]:
    """The people who may answer in a project."""
    roles = {*api.answerers(project), "owner"}
    return [each for each in oversight.members(store, project.id) if roles & {*each.here, *each.everywhere}]


def _idle(store: Reader, project: Project, counts: stored.Counts) -> list[str]:
    """Why people may find nothing to do."""
    if project.state != "open":
        return [f"The project is {project.state}: nobody is asked until it is opened again."]
    if not counts.tasks:
        return ["No tasks have been added yet."]
    waiting = oversight.waiting(store, project.id)
    able = answerers(store, project)
    kept, said = sum(waiting.kept.values()), []
    if not able and (waiting.free or kept):
        said.append("Nobody holds a role that may answer here: give one under Settings.")
    spoken = {language for each in able for language in each.languages}
    if able:  # who named no language is given only tasks without one
        for language, many in sorted(waiting.languages.items()):
            if language and language not in spoken:
                said.append(
                    f"{many} free places ask for the language {language!r}, and nobody who may answer speaks it."
                )
    if not waiting.free:
        if counts.leased:
            said.append(
                f"No place is free: {counts.leased} are in people's hands and come back if their time runs out."
            )
        if kept:
            named = {each.id: each.name for each in able}
            who = ", ".join(sorted(named.get(id, id if len(id) < 36 else "one person") for id in waiting.kept))
            said.append(f"{_many(kept, 'place is', 'places are')} kept for {who[:200]}, and open to nobody else.")
        if counts.stuck:
            said.append(
                f"{_many(counts.stuck, 'task is', 'tasks are')} stuck: skipped or flagged too often, see below."
            )
        if not said and counts.answered >= counts.slots:
            said.append("Every task has all the answers it wants.")
    return said


def _many(number: int, one: str, more: str) -> str:
    return f"{number} {one if number == 1 else more}"


# what figures rest on


def sample(store: Reader, project: str, people: str, before: int | None = None) -> Read:
    """The newest answers of one kind of people (before a number), with their tasks."""
    given = answers.read(store, project, people=people, limit=SAMPLE, before=before)
    return Read.of(store, given, masked=True)


def agreements(words: Read) -> list[Agreement]:
    """How far people agree about everything that was asked; of questions with many labels, about the commonest ones."""
    return agreements_of(words, labels=MOST_CATEGORIES)


# people


@dataclass(frozen=True)
class Judged:
    """How one person answers. Never used for pay by itself."""

    pseudonym: str
    answers: int
    seconds: float | None
    """Median active time of an answer."""
    row: Mapping[str, Any] | None
    """Their row of `report.people_table`; None for who gave none of the newest answers."""


def people(words: Read, totals: Mapping[str, int], gold: Mapping[str, tuple[int, int]] | None = None) -> list[Judged]:
    """Everybody, most answers first; `totals` are answers by pseudonym over the whole project, `gold` how many hidden
    questions they got right, of how many."""
    spent: dict[str, list[int]] = {}
    for each in words.given:
        if each.active_ms > 0:
            spent.setdefault(each.pseudonym, []).append(each.active_ms)
    rows = {row["person"]: row for row in report.people_table(words, gold)} if words.given else {}
    found = [
        Judged(
            pseudonym=name,
            answers=totals.get(name, 0),
            seconds=float(np.median(spent[name])) / 1000 if name in spent else None,
            row=rows.get(name),
        )
        for name in {**totals, **dict.fromkeys(words.people, 0)}
    ]
    return sorted(found, key=lambda each: (-each.answers, each.pseudonym))
