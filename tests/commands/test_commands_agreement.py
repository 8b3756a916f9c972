"""`tutelage agreement`: figures with intervals, people, causes; and what people together say, exported."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tutelage.core.artifact import Root
from tutelage.core.records import Message
from tutelage.feedback import api
from tutelage.feedback.client import Client, Direct
from tutelage.feedback.wire import NewGold
from tutelage.store import engine, people

FORM = api.Form(
    questions=(
        api.Question(key="sort", kind="choice", choices=("a", "b")),
        api.Question(key="tone", scale=(1, 5)),
    )
)


@pytest.fixture
def filled(home: Path) -> Path:
    """Three people sort twelve texts; the third one errs in every third. One text was adjudicated, another is gold."""
    root = Root(home).create()
    with engine.open(root) as store:
        lead = people.create(store, "lead", roles=["lead"])
        judge = people.create(store, "judge", roles=["adjudicator"])
        api.create_project(store, lead, api.NewProject(name="town", kind="tag", form=FORM, per_task=3))
        new = [
            api.NewTask(key=f"{at}", kind="tag", messages=(Message(role="user", content=f"text {at}"),))
            for at in range(12)
        ]
        desk = Client(Direct(store, lead))
        ids = desk.add_tasks("town", new)
        for at, person in enumerate(people.create_many(store, ["anna", "bert", "carl"])):
            for item in api.claim(store, person, api.Claim(project="town", count=12)).items:
                no = ids.index(item.task)
                right, wrong = ("a", "b") if no % 2 else ("b", "a")
                said = {"sort": wrong if at == 2 and no % 3 == 0 else right, "tone": 1 + (no + (at == 1)) % 5}
                given = api.Answer(slot=item.slot, epoch=item.epoch, key=f"key-{item.slot}", values=said)
                api.submit(store, person, api.Answers(answers=[given]))
        (opened,) = desk.adjudicate("town", most=1)
        (item,) = api.claim(store, judge, api.Claim(project="town")).items
        said = {"sort": "a", "tone": 3, "cause": "guideline_unclear", "cause_note": "Say what a is."}
        given = api.Answer(slot=item.slot, epoch=item.epoch, key="adjudicated", values=said)
        api.submit(store, judge, api.Answers(answers=[given]))
        desk.mark_gold("town", NewGold(task=opened.task, rationale="so"))
        desk.change_settings("town", {"gold_share": 0.5})
        more = api.NewTask(key="more", kind="tag", messages=(Message(role="user", content="more"),))
        desk.add_tasks("town", [more, more.model_copy(update={"key": "most"})])
        dora = people.create(store, "dora")
        for item in api.claim(store, dora, api.Claim(project="town", count=4)).items:
            given = api.Answer(
                slot=item.slot, epoch=item.epoch, key=f"key-{item.slot}", values={"sort": "a", "tone": 3}
            )
            api.submit(store, dora, api.Answers(answers=[given]))
    return home


def test_agreement_people_and_causes_are_printed(tutelage: Any, filled: Path) -> None:
    where = ("agreement", "town", "--root", filled)
    done = tutelage(*where, "--json")
    assert done.code == 0, done.err
    found = done.json
    assert (found["people"], found["answers"], found["persons"]) == ("live", 38, 4)
    alpha = found["questions"]["sort"]["alpha_nominal"]
    assert alpha["low"] < alpha["value"] < alpha["high"] <= 1 and alpha["n"]
    rows = {row["answers"]: row for row in found["persons_table"]}
    assert rows[2]["gold"]["n"] == 1 and rows[2]["gold"]["value"] == 1, "dora answered what was adjudicated, as decided"
    assert rows[12]["gold"]["reason"] == "no hidden question was answered"
    (causes,) = found["adjudication"]["causes"]
    assert causes["causes"] == {"guideline_unclear": 1} and causes["proposals"][0]["text"] == "Say what a is."
    said = tutelage(*where).out
    assert said.startswith("38 answers of 4 live people to 14 tasks") and "sort alpha_nominal" in said
    assert "1 adjudicated by live people: guideline_unclear 1" in said and "Say what a is." in said


def test_what_people_together_say_is_exported(tutelage: Any, filled: Path, tmp_path: Path) -> None:
    file = tmp_path / "together.jsonl"
    done = tutelage(
        "export", "feedback", "town", file, "--for", "consensus", "--accept", "not-stated", "--root", filled
    )
    assert done.code == 0, done.err
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(rows) == 2 * 14 and {row["question"] for row in rows} == {"sort", "tone"}
    assert Counter(row["model"] for row in rows if row["question"] == "tone") == {
        "graded response": 13,
        "adjudication": 1,
    }
    (decided,) = (row for row in rows if row["model"] == "adjudication" and row["question"] == "sort")
    assert decided["says"] == {"a": 1.0, "b": 0.0} and decided["n"] == 1 and len(decided["annotations"]) == 1
    assert all(sum(row["says"].values()) == pytest.approx(1, abs=1e-4) for row in rows)
    assert {row["people"] for row in rows} == {"live"} and not any(row["simulated"] for row in rows)


def test_what_cannot_be_told_is_one_clear_error(tutelage: Any, filled: Path) -> None:
    done = tutelage("agreement", "village", "--root", filled)
    assert done.code == 2 and "there is no project 'village'" in done.err
    with engine.open(filled) as store:
        robot = people.create(store, "robot", kind="simulated")
        lead = people.create(store, "lead", roles=["lead"])
        new = api.NewTask(key="r", kind="tag", messages=(Message(role="user", content="r"),), people=("robot",))
        api.add_tasks(store, lead, "town", [new])
        for item in api.claim(store, robot, api.Claim(project="town", count=4)).items:  # gold is among them
            said = {"sort": "a", "tone": 3}
            given = api.Answer(slot=item.slot, epoch=item.epoch, key=f"key-{item.slot}", values=said)
            api.submit(store, robot, api.Answers(answers=[given]))
    done = tutelage("agreement", "town", "--root", filled)
    assert done.code == 2 and "never pooled" in done.err
    assert tutelage("agreement", "town", "--people", "simulated", "--root", filled, "--json").json["persons"] == 1
    done = tutelage("agreement", "town", "--people", "martian", "--root", filled)
    assert done.code == 2 and "martian" in done.err
