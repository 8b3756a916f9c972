"""`consensus`: the true labels of a million votes, and whom to trust, beside crowd-kit on the same votes.

200,000 things of 5 classes, 5 votes each of 1,000 people of whom a fifth does not look. Each side fits Dawid-Skene
(its default steps) and MACE (ours ten starts, crowd-kit's one: its ten are drawn from one seed and are all the same).
The floor of a step is what passes through memory: 12 bytes a vote and 8 bytes a probability, twice, so 40 MB here and
4 ms at 10 GB/s; told beside it is what a step of ours takes.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bench import side
from bench.side import Figures, Part, Settings

TARGET = 10.0
"""Seconds for a million votes."""


def votes(things: int, people: int, classes: int, each: int, seed: int = 0) -> tuple[Any, ...]:
    """Votes (thing, person, class) numbered by first appearance, which crowd-kit's MACE needs, and the true classes."""
    stream = np.random.default_rng(seed)
    truth = stream.integers(0, classes, things)
    skill = np.where(stream.random(people) < 0.2, 0.0, stream.uniform(0.4, 0.95, people))
    strategy = np.cumsum(stream.dirichlet(np.ones(classes), people), axis=1)
    thing = np.repeat(np.arange(things), each)
    apart = np.cumsum(stream.integers(1, people // each, (things, each)), axis=1)
    who = ((stream.integers(0, people, (things, 1)) + apart) % people).reshape(-1)
    guess = (stream.random((len(thing), 1)) > strategy[who]).sum(axis=1).clip(max=classes - 1)
    said = np.where(stream.random(len(thing)) < skill[who], truth[thing], guess)
    return thing, _by_appearance(who)[0], *_by_appearance(said, truth)


def _by_appearance(codes: Any, also: Any = None) -> tuple[Any, ...]:
    names, first = np.unique(codes, return_index=True)
    place = np.empty(int(names.max()) + 1, dtype=np.int64)
    place[names[np.argsort(first)]] = np.arange(len(names))
    return (place[codes],) if also is None else (place[codes], place[also])


def measure(settings: Settings) -> list[Part]:
    shape = {"things": 20_000 if settings.quick else 200_000, "people": 1_000, "classes": 5, "each": 5}
    runs = side.alternate("bench.consensus", settings, Path(sys.executable), shape, shape)  # crowd-kit is of `dev`
    steps = side.median(runs.ours, "step")
    side.tell("" if steps is None else f"a step of our Dawid-Skene takes {1000 * steps:.1f} ms")
    many = f"{shape['things'] * shape['each']:,} votes"
    return [
        runs.part(f"Dawid-Skene of {many}", "s", "dawid_skene", "lower", TARGET, "ours"),
        runs.part(f"MACE of {many}", "s", "mace", "lower", TARGET, "ours"),
        runs.part("labels right, Dawid-Skene", "share", "dawid_skene_right"),
        runs.part("labels right, MACE", "share", "mace_right"),
        runs.memory("memory"),
    ]


def ours(options: Mapping[str, Any]) -> Figures:
    from tutelage.feedback.consensus import dawid_skene
    from tutelage.feedback.mace import mace

    thing, who, said, truth = votes(**{name: int(options[name]) for name in ("things", "people", "classes", "each")})
    begun = time.perf_counter()
    one = dawid_skene(thing, who, said, int(options["classes"]))
    between = time.perf_counter()
    other = mace(thing, who, said, int(options["classes"]))
    ended = time.perf_counter()
    return {
        "dawid_skene": between - begun, "step": (between - begun) / one.steps, "mace": ended - between,
        "dawid_skene_right": float((one.posteriors.argmax(1) == truth).mean()),
        "mace_right": float((other.posteriors.argmax(1) == truth).mean()),
    }  # fmt: skip


def peer(options: Mapping[str, Any]) -> Figures:
    import pandas as pd
    from crowdkit.aggregation import MACE, DawidSkene

    thing, who, said, truth = votes(**{name: int(options[name]) for name in ("things", "people", "classes", "each")})
    table = pd.DataFrame({"task": thing, "worker": who, "label": said})
    begun = time.perf_counter()
    one = DawidSkene().fit_predict(table)
    between = time.perf_counter()
    other = MACE(n_restarts=1).fit_predict(table)
    ended = time.perf_counter()
    return {
        "dawid_skene": between - begun, "mace": ended - between,
        "dawid_skene_right": float((one.sort_index().to_numpy() == truth).mean()),
        "mace_right": float((other.sort_index().to_numpy() == truth).mean()),
    }  # fmt: skip


if __name__ == "__main__":
    side.main(ours, peer)
