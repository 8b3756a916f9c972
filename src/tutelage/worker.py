"""Runs that are asked for now and made by whoever is free: a worker claims one, holds its lease, and goes on with what
another left unfinished. A run is the same run wherever it is made: what is sealed already is skipped. Between runs a
worker sends what waits for webhooks, as a service does."""

from __future__ import annotations

import os
import platform
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from tutelage import life
from tutelage.core.artifact import Artifact, Root
from tutelage.core.errors import Refused, Stopped, TutelageError, Waiting
from tutelage.core.events import Sink
from tutelage.core.stage import never
from tutelage.feedback import webhooks
from tutelage.recipe import Recipe, read_recipe
from tutelage.store import engine, jobs

KIND = "run"
ALONE = "stage"
"""A job that makes one stage by itself (`life.run_alone`): the console asks for such ones."""
LEASE_S = 60.0
"""A worker that has said nothing for so long is taken for dead, and its run is given to another."""
AGAIN_S = 30.0
"""How long a run that waits for people is left alone before it is tried again."""


def ask(root: Root, recipe: Recipe, until: str | None = None) -> str:
    """Ask for a run of a recipe; returns the job's id. Paths in the recipe must hold where the worker runs."""
    with engine.open(root.create()) as store:
        return jobs.enqueue(store, KIND, {"recipe": recipe.values, "until": until})


def ask_alone(store: engine.Store, section: str, settings: Mapping[str, Any]) -> str:
    """Ask for one stage by itself, under a section name of its own (`collect@...`); returns the job's id.

    Raises the errors of a recipe with this one section, before anything is asked for.
    """
    read_recipe({section: settings})
    return jobs.enqueue(store, ALONE, {"section": section, "settings": dict(settings)}, dedupe=section)


def asked(root: Root) -> list[jobs.Job]:
    """All runs that were asked for, oldest first."""
    with engine.open(root, writable=False) as store:
        return [job for job in jobs.every(store) if job.kind in (KIND, ALONE)]


def work(
    root: Root,
    *,
    once: bool = False,
    defaults: Mapping[str, Any] | None = None,
    sinks: tuple[Sink, ...] = (),
    stop: Callable[[], bool] = never,
    heard: Callable[[jobs.Job, str], None] = lambda job, text: None,
    lease_s: float = LEASE_S,
    poll_s: float = 1.0,
) -> int:
    """Make runs until a stop, or (`once`) until none waits; returns how many were made. `heard` is told of each end.

    A stop leaves the run in hand to the next worker. A run that fails is noted with its reason; others go on.
    """
    name, made = f"{platform.node()}:{os.getpid()}", 0
    with engine.open(root.create()) as store:
        while not stop():
            webhooks.send_due(store)
            job = jobs.claim(store, [KIND, ALONE], name, lease_s)
            if job is None:
                if once:
                    break
                time.sleep(poll_s)
                continue
            heard(job, _make(store, job, root, defaults, sinks, stop))
            made += 1
    return made


def _make(
    store: engine.Store,
    job: jobs.Job,
    root: Root,
    defaults: Mapping[str, Any] | None,
    sinks: tuple[Sink, ...],
    stop: Callable[[], bool],
) -> str:
    """Make one run and note how it ended; returns that in a sentence."""
    with _lease(store, job) as lost:
        try:
            found = _run(job, root, defaults, sinks, lambda: stop() or lost.is_set())
            jobs.finish(store, job, {"made": {section: artifact.ref for section, artifact in found.items()}})
            return "done"
        except Refused as error:
            jobs.finish(store, job, {"refused": str(error)})
            return f"refused: {error}"
        except Waiting as error:
            jobs.fail(store, job, str(error), retry_in_s=AGAIN_S)
            return f"waiting: {error}"
        except Stopped:
            jobs.fail(store, job, "stopped", retry_in_s=0)
            return "stopped; the next worker goes on"
        except TutelageError as error:
            jobs.fail(store, job, str(error))
            return f"failed: {error}"
        except BaseException as error:
            jobs.fail(store, job, f"{type(error).__name__}: {error}")
            raise


def _run(
    job: jobs.Job, root: Root, defaults: Mapping[str, Any] | None, sinks: tuple[Sink, ...], stop: Callable[[], bool]
) -> Mapping[str, Artifact]:
    if job.kind == ALONE:
        section, settings = job.args["section"], job.args["settings"]
        return {section: life.run_alone(section, settings, root, defaults=defaults, sinks=sinks, stop=stop)}
    recipe = read_recipe(job.args["recipe"], (), defaults)
    return life.run(recipe, root, until=job.args.get("until"), sinks=sinks, stop=stop)


@contextmanager
def _lease(store: engine.Store, job: jobs.Job) -> Iterator[threading.Event]:
    """Keep a job's lease from a thread; the event says that the job is another's by now."""
    over, lost = threading.Event(), threading.Event()

    def keep() -> None:
        while not over.wait(job.lease_s / 3):
            try:
                if not jobs.beat(store, job):
                    lost.set()
                    return
            except TutelageError:
                continue  # a store that is busy for a moment is asked again; the lease outlives two misses

    thread = threading.Thread(target=keep, name="lease", daemon=True)
    thread.start()
    try:
        yield lost
    finally:
        over.set()
        thread.join()
