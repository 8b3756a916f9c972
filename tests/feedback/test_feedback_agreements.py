"""What is chosen for each candidate has figures of agreement, as what is chosen for the whole has; one list for all."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tutelage.core.records import Message
from tutelage.feedback import agreement, desk
from tutelage.feedback.agreements import agreed, agreements
from tutelage.feedback.figures import Read
from tutelage.store import tasks
from tutelage.store.answers import Annotation, Value

PEOPLE, TASKS, SIZE = ("p", "q", "r"), 12, 3


def words() -> Read:
    """Three people choose a tone, some faults and yes or no for each of three candidates of each task."""
    stream = np.random.default_rng(0)
    given: list[Annotation] = []
    for at in range(TASKS):
        truth = stream.integers(0, 3, SIZE)
        for who in PEOPLE:
            said = np.where(stream.random(SIZE) < 0.8, truth, stream.integers(0, 3, SIZE))
            values: list[Value] = []
            for no, one in enumerate(said.tolist()):
                if who == "r" and no == 2:
                    continue  # did not look at the last one
                faults = ["long", "false", "rude"][:one]
                values += [Value("tone", no, value="abc"[one]), Value("faults", no, value=faults)]
                values.append(Value("good", no, number=float(one == 0)))
            given.append(Annotation(f"{at}{who}", at, f"{at}{who}", f"t{at:02}", "p", who, who, who, "live", "f", 1,
                                    "submitted", "", (), 0, 0, values=tuple(values)))  # fmt: skip
    known = {
        f"t{at:02}": tasks.Task(f"t{at:02}", "p", "scoring", "f", (Message(role="user", content="?"),), ("a", "b", "c"),
                                ("x", "y", "z"), ({}, {}, {}), 3, 0, "", "", "done", None, None, {}, at)
        for at in range(TASKS)
    }  # fmt: skip
    asked = {
        "tone": {"kind": "choice", "choices": ["a", "b", "c"], "per_candidate": True},
        "faults": {"kind": "choices", "choices": ["long", "false", "rude"], "per_candidate": True},
        "good": {"kind": "boolean", "choices": [], "per_candidate": True},
    }
    return Read(given, known, PEOPLE, {("f", "good"): (0.0, 1.0)}, asked)


def columns(read: Read, key: str) -> list[list[Any]]:
    """The same by hand: [people, task x candidate]."""
    found = []
    for who in PEOPLE:
        mine = {each.task: each for each in read.given if each.pseudonym == who}
        row = []
        for at in range(TASKS):
            said = {v.candidate: v for v in mine[f"t{at:02}"].values if v.question == key}
            row += [
                (said[no].number if said[no].number is not None else said[no].value) if no in said else None
                for no in range(SIZE)
            ]
        found.append(row)
    return found


def test_what_is_picked_for_each_candidate_has_its_figures() -> None:
    read = words()
    found = agreed(read)["questions"]
    within = [f"t{at:02}" for at in range(TASKS) for _ in range(SIZE)]
    tone = [[None if each is None else float("abc".index(each)) for each in row] for row in columns(read, "tone")]
    wanted = agreement.alpha(tone, "nominal", clusters=within)
    assert 0.3 < wanted.value < 1 and found["tone"]["alpha_nominal"]["value"] == wanted.value
    assert found["tone"]["alpha_nominal"]["low"] == wanted.low, "candidates of one task are drawn together"
    assert found["tone"]["alpha_nominal"]["clusters"] == TASKS and found["tone"]["alpha_nominal"]["n"] == 36
    assert found["tone"]["ac1"]["value"] == agreement.ac1(tone, classes=3, clusters=within).value
    faults = [[None if each is None else frozenset(each) for each in row] for row in columns(read, "faults")]
    assert found["faults"]["alpha_masi"]["value"] == agreement.alpha_of_sets(faults, clusters=within).value
    assert set(found["faults"]["labels"]) == {"long", "false"}
    good = columns(read, "good")
    assert found["good"]["alpha_nominal"]["value"] == agreement.alpha(good, "nominal", clusters=within).value
    assert set(found["good"]) == {"alpha_nominal", "ac1"}, "yes and no are no scale"


def test_the_page_shows_what_the_table_holds() -> None:
    read = words()
    shown = {(each.about, each.measure): each.figure.value for each in desk.agreements(read)}
    table = agreed(read)["questions"]
    assert shown["tone", "alpha, nominal"] == table["tone"]["alpha_nominal"]["value"]
    assert shown["faults: long", "AC1"] == table["faults"]["labels"]["long"]["ac1"]["value"]
    assert len(shown) == len(agreements(read)) == 9
    few = agreements(read, labels=1)
    assert [each.about for each in few if each.about.startswith("faults: ")] == ["faults: long"] * 2
    assert next(each for each in few if each.measure == "alpha, MASI").figure.value == pytest.approx(
        table["faults"]["alpha_masi"]["value"]
    )
