"""Answers leave as rows for each trainer: right, marked, with pseudonyms and origin, refused where they must be."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from pyarrow import parquet

from tutelage.core.artifact import Root
from tutelage.core.errors import DataError, LicenceError, NotFound
from tutelage.core.records import Example, Message
from tutelage.evaluate.suite import KINDS
from tutelage.feedback import api, layout
from tutelage.feedback.client import Client, Direct
from tutelage.feedback.export import export
from tutelage.feedback.rows import CONSUMERS
from tutelage.feedback.wire import Answer, Form, MarkedSpan, NewCandidate, NewProject, NewTask, Question
from tutelage.store import engine, ledger, people
from tutelage.store.people import Person

META = {"licence": "permissive", "source": "town"}


@dataclass
class World:
    """A store with answers that were worked out by hand."""

    root: Root
    store: engine.Store
    lead: Person
    crew: list[Person]

    def project(self, name: str, kind: str, questions: tuple[Question, ...] = (), **settings: Any) -> None:
        new = NewProject(name=name, kind=kind, form=Form(questions=questions), per_task=3, settings=settings)
        api.create_project(self.store, self.lead, new)

    def task(self, project: str, kind: str, prompt: str, *texts: str, key: str = "", **meta: Any) -> None:
        new = NewTask(
            key=key or prompt, kind=kind, messages=(Message(role="user", content=prompt),),
            candidates=tuple(NewCandidate(content=text, producer=f"model:{text}") for text in texts),
            meta={**META, **meta}, required=3,
        )  # fmt: skip
        api.add_tasks(self.store, self.lead, project, [new])

    def say(self, project: str, *said: dict[str, Any]) -> None:
        """One answer by each of the crew to the next task of a project."""
        for person, fields in zip(self.crew, said, strict=False):
            client = Client(Direct(self.store, person))
            (item,) = client.claim(project).items
            told = client.submit([Answer(slot=item.slot, epoch=item.epoch, key=f"key-{item.slot}", **fields)])
            assert told.receipts[0].status == "stored", told.receipts[0]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    root = Root(tmp_path / "life").create()
    with engine.open(root) as store:
        lead = people.create(store, "lead", roles=["lead"])
        yield World(root, store, lead, people.create_many(store, ["ann smith", "ben", "cas"]))


GRADE = Question(key="quality", scale=(1, 5), per_candidate=True)


def ranked(world: World) -> None:
    world.project("town", "ranking")
    world.task("town", "ranking", "Where is the mill? Ask anna@example.org", "By the river.", "No idea.", "Who asks?")
    world.say(
        "town",
        {"tiers": [[0], [1], [2]], "all_bad": False},
        {"tiers": [[0], [1, 2]]},
        {"tiers": [[1], [0], [2]], "flags": {2: ["harassment"]}},
    )


def test_pairs_follow_the_majority_and_carry_votes_margin_and_weight(world: World) -> None:
    ranked(world)
    found = {row["id"].split("/")[1]: row for row in export(world.store, "town", "reward").rows}
    assert set(found) == {"0>1", "0>2", "1>2"}
    row = found["0>1"]
    assert row["votes"] == [2, 0, 1] and row["margin"] == round(1 / 3, 6) and row["weight"] == 0.5
    assert found["1>2"]["votes"] == [2, 1, 0] and found["0>2"]["margin"] == 1.0
    assert row["chosen"] == [{"role": "assistant", "content": "By the river."}]
    assert row["rejected"] == [{"role": "assistant", "content": "No idea."}]
    assert row["prompt"] == [{"role": "user", "content": "Where is the mill? Ask [EMAIL]"}], "as the people saw it"
    assert len(row["annotations"]) == len(row["annotators"]) == 3 and "ann smith" not in json.dumps(row)
    assert (row["people"], row["simulated"], row["licence"], row["source"]) == ("live", False, "permissive", "town")
    assert "margin" not in export(world.store, "town", "dpo").rows[0]


def test_by_person_keeps_disagreement(world: World) -> None:
    ranked(world)
    rows = export(world.store, "town", "dpo", by="person").rows
    assert sorted(len([r for r in rows if r["annotators"] == [p.pseudonym]]) for p in world.crew) == [2, 3, 3]
    assert len({row["id"] for row in rows}) == 8


def test_a_tie_is_no_preference_and_is_counted(world: World) -> None:
    world.project("town", "pair")
    world.task("town", "pair", "q", "a", "b")
    world.say("town", {"tiers": [[0], [1]]}, {"tiers": [[1], [0]]}, {"tiers": [[0, 1]]})
    with pytest.raises(DataError, match="Pair that is tied: 1"):
        export(world.store, "town", "dpo")


def test_scores_give_margins_labels_and_an_evaluation_item(world: World) -> None:
    world.project("town", "scoring", (GRADE,))
    world.task("town", "scoring", "q", "good", "middling", "bad")
    scores = [{0: 5, 1: 3, 2: 1}, {0: 4, 1: 3, 2: 2}, {0: 5, 1: 3, 2: 1}]
    world.say("town", *({"scores": {"quality": each}} for each in scores))
    pairs = {row["id"].split("/")[1]: row for row in export(world.store, "town", "reward").rows}
    good, bad = (4 + 3 + 4) / 12, 1 / 12
    assert pairs["0>2"]["margin"] == pytest.approx(good - bad, abs=1e-6)
    assert pairs["0>2"]["score_chosen"] == pytest.approx(good, abs=1e-6)
    made = export(world.store, "town", "kto")
    assert {row["completion"][0]["content"]: row["label"] for row in made.rows} == {"good": True, "bad": False}
    assert made.dropped == {"response neither wanted nor unwanted": 1}
    (item,) = export(world.store, "town", "evaluation").rows
    read = Example.model_validate_json(json.dumps(item))
    assert read.target == "good" and read.choices == ("good", "middling", "bad") and read.tags["kind"] in KINDS
    assert read.tags["suite"] == "town" and read.tags["annotations"]


def test_all_bad_and_flags_speak_before_ranks(world: World) -> None:
    ranked(world)
    world.task("town", "ranking", "second", "x", "y")
    world.say("town", *({"tiers": [[0], [1]], "all_bad": True} for _ in range(2)), {"tiers": [[0], [1]]})
    rows = export(world.store, "town", "kto").rows
    assert {row["completion"][0]["content"]: row["label"] for row in rows} == {
        "By the river.": True, "Who asks?": False, "x": False, "y": False,
    }  # fmt: skip


def test_a_rewrite_is_a_demonstration_and_a_preference(world: World) -> None:
    world.project("town", "rewrite")
    world.task("town", "rewrite", "Where is the mill?", "dunno")
    world.say("town", {"rewrite": "By the river, said ben@example.org."}, {"status": "skipped", "reason": "too hard"})
    (row,) = export(world.store, "town", "sft").rows
    assert [turn["role"] for turn in row["messages"]] == ["user", "assistant"]
    assert row["messages"][1]["content"] == "By the river, said [EMAIL]."
    made = export(world.store, "town", "reward")
    assert made.rows[0]["rejected"][0]["content"] == "dunno" and made.rows[0]["margin"] == 1.0
    assert made.dropped == {"skipped answer": 1} and made.rows[0]["annotators"] == [world.crew[0].pseudonym]
    assert [row["label"] for row in export(world.store, "town", "kto").rows] == [True]
    (item,) = export(world.store, "town", "evaluation").rows
    assert item["tags"]["kind"] == "generate" and item["target"].startswith("By the river")


def test_labels_are_shares_of_people(world: World) -> None:
    tone = Question(key="tone", kind="choice", choices=("kind", "rude", "neither"))
    topics = Question(key="topics", kind="choices", choices=("boats", "bread"), required=False)
    names = Question(key="names", kind="spans", choices=("PERSON",), required=False)
    world.project("town", "tag", (tone, topics, names))
    world.task("town", "tag", "The baker sails, and how.")
    mark = MarkedSpan(field="prompt", start=4, end=9, label="PERSON")
    world.say(
        "town",
        {"values": {"tone": "kind", "topics": ["boats", "bread"]}, "spans": [mark]},
        {"values": {"tone": "kind", "topics": ["boats"]}, "spans": [mark]},
        {"values": {"tone": "rude", "topics": []}},
    )
    found = {row["question"]: row for row in export(world.store, "town", "classifier").rows}
    assert found["tone"]["labels"] == ["kind"] and found["topics"]["labels"] == ["boats"]
    soft = {each["label"]: each["probability"] for each in found["tone"]["soft_labels"]}
    assert soft == {"kind": 0.666667, "rude": 0.333333, "neither": 0.0}
    assert found["tone"]["soft_model"] == "shares" and found["tone"]["soft_reason"] == (
        "too few votes: 1 beside others of the median person, 10 are needed"
    )
    assert {row["soft_model"] for row in export(world.store, "town", "classifier", by="person").rows} == {"shares"}
    assert found["spans"]["spans"] == [
        {"field": "prompt:0", "candidate": -1, "start": 4, "end": 9, "label": "PERSON", "probability": 0.666667}
    ]
    (item,) = export(world.store, "town", "evaluation").rows
    assert item["tags"]["kind"] == "classify" and item["target"] == "kind"


def test_kinds_of_people_are_never_pooled_unasked_and_simulated_ones_are_marked(world: World) -> None:
    ranked(world)
    world.task("town", "ranking", "second", "x", "y")
    robot = people.create(world.store, "robot", kind="simulated")
    client = Client(Direct(world.store, robot))
    (item,) = client.claim("town").items
    client.submit([Answer(slot=item.slot, epoch=item.epoch, key="key-robot", tiers=((0,), (1,)))])
    with pytest.raises(DataError, match="live and simulated people, which are not mixed unasked"):
        export(world.store, "town", "dpo")
    assert {row["simulated"] for row in export(world.store, "town", "dpo", people=["live"]).rows} == {False}
    made = export(world.store, "town", "dpo", people=["simulated"])
    assert made.simulated and {row["simulated"] for row in made.rows} == {True}
    assert "Simulated people stand behind" in layout.folder(made)["README.md"].decode()
    both = export(world.store, "town", "dpo", people=["live", "simulated"])
    assert both.people == "live+simulated" and {row["people"] for row in both.rows} == {"live", "simulated"}
    with pytest.raises(DataError, match="no kind of people"):
        export(world.store, "town", "dpo", people=["robots"])
    with pytest.raises(DataError, match="no answers of replayed people"):
        export(world.store, "town", "dpo", people=["replayed"])


def test_internal_texts_leave_only_when_their_class_is_accepted_and_that_is_recorded(world: World) -> None:
    world.project("town", "pair")
    world.task("town", "pair", "q", "a", "b", licence="non-commercial")
    world.say("town", {"tiers": [[0], [1]]})
    with pytest.raises(LicenceError, match="non-commercial"):
        export(world.store, "town", "dpo")
    made = export(world.store, "town", "dpo", accept=["non-commercial"], actor=world.lead.id)
    assert made.accepted == ("non-commercial",)
    act = [each for each in ledger.rows(world.store) if each.action == "feedback.export"][-1]
    assert act.actor == world.lead.id and act.body["accepted"] == ["non-commercial"] and act.body["rows"] == 1


def filled(world: World) -> None:
    """One project that has something for every consumer."""
    tone = Question(key="tone", kind="choice", choices=("kind", "rude"), required=False)
    world.project("town", "rewrite", (tone,))
    for n in range(4):
        world.task("town", "rewrite", f"question {n}", f"answer {n}", split="test" if n == 3 else "../../train")
        said = {"tiers": [[0]], "rewrite": f"better {n}", "values": {"tone": "kind"}}
        world.say("town", said, said | {"flags": {0: ["crime"]}}, said | {"flags": {0: ["crime"]}})


@pytest.mark.parametrize("consumer", CONSUMERS)
def test_every_file_holds_the_same_rows_and_the_folder_is_a_data_set(
    world: World, consumer: Any, tmp_path: Path
) -> None:
    filled(world)
    made = export(world.store, "town", consumer)
    lines = [json.loads(line) for line in layout.packed(made, "jsonl").splitlines()]
    assert lines == made.rows and len({row.get("tags", row)["id"] for row in lines}) == len(lines)
    table = parquet.read_table(io.BytesIO(layout.packed(made, "parquet"))).to_pylist()
    assert len(table) == len(lines) and table[0].keys() == lines[0].keys()
    with zipfile.ZipFile(io.BytesIO(layout.packed(made, "zip"))) as archive:
        archive.extractall(tmp_path / "set")
        names = archive.namelist()
    assert all(not name.startswith(("/", "..")) for name in names), "a split cannot lead out of the folder"
    head = yaml.safe_load((tmp_path / "set" / "README.md").read_text().split("---\n")[1])
    splits = {each["split"]: each["path"] for each in head["configs"][0]["data_files"]}
    assert set(splits) == ({"test"} if consumer == "evaluation" else {"______train", "test"})
    counted = {each["name"]: each["num_examples"] for each in head["dataset_info"]["splits"]}
    read = {name: parquet.read_table(*(tmp_path / "set").glob(path)) for name, path in splits.items()}
    assert counted == {name: len(part) for name, part in read.items()} and sum(counted.values()) == len(lines)
    assert len({str(part.schema) for part in read.values()}) == 1, "all splits have the same columns"
    assert [each["name"] for each in head["dataset_info"]["features"]] == next(iter(read.values())).schema.names
    assert head["license_name"] == "permissive" and "live" in head["tags"]


def test_the_library_of_such_folders_reads_them(world: World, tmp_path: Path) -> None:
    load = pytest.importorskip("datasets", reason="the library that reads such folders is not installed").load_dataset
    filled(world)
    for consumer in CONSUMERS:
        made = export(world.store, "town", consumer)
        for name, body in layout.folder(made).items():
            place = tmp_path / consumer / name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(body)
        read = load(str(tmp_path / consumer), cache_dir=str(tmp_path / "cache"))
        assert sum(len(part) for part in read.values()) == len(made.rows)


def test_over_the_api_an_export_is_a_file_and_needs_a_lead(world: World) -> None:
    ranked(world)
    chief, ann = (Client(Direct(world.store, person)) for person in (world.lead, world.crew[0]))
    assert chief.export("town", "dpo") == export(world.store, "town", "dpo").rows
    assert chief.export_file("town", "kto", "parquet")[:4] == b"PAR1"
    with pytest.raises(api.Forbidden, match="by a lead"):
        ann.export("town", "dpo")
    with pytest.raises(DataError, match="no format"):
        chief.export_file("town", "dpo", "csv")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="nobody reads"):
        chief.export("town", "ppo")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="task or by person"):
        export(world.store, "town", "dpo", by="team")  # type: ignore[arg-type]
    with pytest.raises(NotFound):
        chief.export("village", "dpo")
