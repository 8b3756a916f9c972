"""Clients in several processes that claim and answer, forget, come too late, and are killed while they do.

Each client is a person. What a client was told is stored stands in a file of its process, written before it goes on.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

import sqlalchemy as sql

from tutelage.core.errors import Busy
from tutelage.store import answers, engine, people, schema, slots, tasks
from tutelage.store.answers import NewAnnotation
from tutelage.store.engine import Store
from tutelage.store.slots import Slot

NAME = "crowd"


@dataclass(frozen=True)
class Crowd:
    """What the clients work on.

    Attributes:
        url: of the database; "" is SQLite in `root`.
        habits: chances that a client gives a task back, forgets it, or answers after its lease has run out.
    """

    root: str
    url: str
    project: str
    lease_ms: int
    habits: tuple[float, float, float] = (0.04, 0.04, 0.04)

    def told(self) -> list[tuple[str, str]]:
        """(status, annotation) of every receipt that a client was given."""
        lines = [line for each in sorted(Path(self.root).glob("told-*")) for line in each.read_text().splitlines()]
        return [(status, id) for status, _, id in (line.partition(" ") for line in lines)]


@dataclass(frozen=True)
class Outcome:
    """What came of it. `lost` were acknowledged and are not in the store."""

    answers: int
    over: int
    under: int
    lost: int
    stale: int
    kills: int
    seconds: float


def prepare(
    root: Path, url: str, *, clients: int, tasks_: int, per_task: int, lease_ms: int
) -> tuple[Crowd, list[str]]:
    """A project and its people: what they work on, and their ids."""
    with engine.open(root, url=url) as store:
        where = tasks.make_project(store, NAME, kind="ranking", questions=[], per_task=per_task)
        new = [
            tasks.NewTask(f"t{n}", "ranking", (), (("one", "", {}), ("other", "", {})), required=per_task)
            for n in range(tasks_)
        ]
        tasks.add(store, where, new)
        persons = people.create_many(store, [f"client {n}" for n in range(clients)], kind="simulated")
        return Crowd(str(root), url, where.id, lease_ms), [each.id for each in persons]


def run(crowd: Crowd, persons: Sequence[str], *, processes: int, kills: int, every_s: float, seed: int) -> Outcome:
    """Let all clients work until every slot is answered, while processes are killed and started again."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["bench.crowd"])
    groups = [list(persons[part::processes]) for part in range(processes)]

    def start(part: int, life: int) -> BaseProcess:
        process = context.Process(target=work, args=(crowd, groups[part], seed + 100 * life + part), daemon=True)
        process.start()
        return process

    stream, began = random.Random(seed), time.monotonic()
    running = [start(part, 0) for part in range(processes)]
    try:
        for kill in range(1, kills + 1):
            time.sleep(every_s * (0.5 + stream.random()))
            part = stream.randrange(processes)
            pid = running[part].pid
            if pid and running[part].is_alive():
                os.kill(pid, signal.SIGKILL)
            running[part].join()
            running[part] = start(part, kill)
        for process in running:
            process.join()
    finally:
        for process in running:
            process.kill()
    failed = [process.exitcode for process in running if process.exitcode]
    if failed:
        raise SystemExit(f"a client failed with code {failed[0]}")
    return outcome(crowd, kills, time.monotonic() - began)


def outcome(crowd: Crowd, kills: int, seconds: float) -> Outcome:
    """Count who answered what."""
    with engine.open(crowd.root, url=crowd.url) as store:
        wanted = {id: task.required for id, task in tasks.load(store, project_name=NAME).items()}
        kept = answers.read(store, NAME, status=None, newest=False)
    given = Counter(each.task for each in kept)
    distinct = Counter(task for task, _ in {(each.task, each.person) for each in kept})
    told = crowd.told()
    ids = {each.id for each in kept}
    return Outcome(
        answers=len(kept),
        over=sum(given[id] > many for id, many in wanted.items()),
        under=sum(distinct[id] < many for id, many in wanted.items()),
        lost=sum(status in ("stored", "repeated") and id not in ids for status, id in told),
        stale=sum(status == "stale" for status, _ in told),
        kills=kills,
        seconds=seconds,
    )


def work(crowd: Crowd, persons: Sequence[str], seed: int) -> None:
    """One process: a thread for each of its clients, until every slot of the project is answered."""
    told = os.open(Path(crowd.root) / f"told-{os.getpid()}", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    problems: list[BaseException] = []
    with engine.open(crowd.root, url=crowd.url) as store:

        def one(at: int, person: str) -> None:
            try:
                _client(store, crowd, person, random.Random(1000 * seed + at), told)
            except BaseException as error:  # told by the exit code of the process
                problems.append(error)

        threads = [threading.Thread(target=one, args=each) for each in enumerate(persons)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
    if problems:
        raise problems[0]


def _client(store: Store, crowd: Crowd, person: str, stream: random.Random, told: int) -> None:
    returns, forgets, late = crowd.habits
    while True:
        try:
            held = slots.claim(store, person, [crowd.project], stream.randint(1, 4), crowd.lease_ms)
        except Busy:  # all others were before us for a long time: as a client does, once more
            continue
        if not held:
            if _finished(store, crowd):
                return
            time.sleep(0.05 + 0.1 * stream.random())
            continue
        given: list[NewAnnotation] = []
        for each in held:
            choice = stream.random()
            if choice < returns:
                slots.give_back(store, person, each.id, each.epoch)
            elif choice < returns + forgets:
                continue  # the lease must run out before anybody is given it
            elif choice < returns + forgets + late:
                time.sleep(crowd.lease_ms / 1000 * (0.8 + 0.4 * stream.random()))
                given.append(_answer(each))
            else:
                given.append(_answer(each))
        if given:
            for receipt in answers.submit(store, person, "simulated", given):
                os.write(told, f"{receipt.status} {receipt.annotation}\n".encode())


def _answer(held: Slot) -> NewAnnotation:
    return NewAnnotation(held.id, held.epoch, f"{held.id}/{held.epoch}", ranks=((0, 0), (1, 1)), shown=(0, 1))


def _finished(store: Store, crowd: Crowd) -> bool:
    slot = schema.slot.c
    waits = sql.exists().where(slot.project_id == crowd.project, slot.state.in_(("open", "leased")))
    with store.read() as connection:
        return not connection.execute(sql.select(waits)).scalar()
