"""Who is asked what, and in which order they see it. Everything here is decided by ids and seeds, never by a clock."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Sequence

from tutelage.store import seen
from tutelage.store.engine import Store
from tutelage.store.people import Person
from tutelage.store.settings import ProjectSettings
from tutelage.store.tasks import Project

ANSWERERS = ("annotator", "reviewer", "adjudicator", "lead", "safety")
LEASE_S = 900
"""Seconds a person may hold a task before it goes to somebody else."""

MOST_HELD = 64
"""Tasks one person may hold at a time."""


def seeded(*parts: object) -> random.Random:
    """A random stream that these parts always give."""
    total = hashlib.sha256("\x1f".join(str(part) for part in parts).encode()).digest()
    return random.Random(int.from_bytes(total[:8], "big"))


def shown_order(task: str, person: str, count: int) -> tuple[int, ...]:
    """The order in which a person sees a task's candidates: shuffled for each person, the same at every visit."""
    order = list(range(count))
    seeded("shown", task, person).shuffle(order)
    return tuple(order)


def answerers(project: Project) -> tuple[str, ...]:
    """The roles that may answer in a project."""
    return ProjectSettings.of(project.settings).roles or ANSWERERS


def showed(store: Store, person: Person, project: Project, tasks: Iterable[str] | None = None) -> None:
    """Keep that a person was shown what others answered to these tasks (None: to all), or what is expected of them.

    Whoever shows answers calls this: who may answer here is then not asked the same. Others are never asked.
    """
    if person.has(*answerers(project), project=project.id):
        if tasks is None:
            seen.note_all(store, person.id, project.id)
        else:
            seen.note(store, person.id, tasks)


def panels(tasks: int, people: Sequence[str], per_task: int, seed: int) -> list[tuple[str, ...]]:
    """For each task the people who answer it: exactly `per_task` different ones, everybody's load within one task.

    Rounds through all people in a fresh random order keep the load even and mix who meets whom.
    """
    per_task = min(per_task, len(people))
    stream = seeded("panels", seed, *sorted(people))
    load = dict.fromkeys(people, 0)
    chosen: list[tuple[str, ...]] = []
    for _ in range(tasks):
        order = list(people)
        stream.shuffle(order)
        order.sort(key=load.__getitem__)  # stable: the shuffle decides between equals
        panel = tuple(order[:per_task])
        for person in panel:
            load[person] += 1
        chosen.append(panel)
    return chosen
