"""What people write and tag becomes rows to learn from: rewrites, strengths, rejections, tags by version, spans."""

from __future__ import annotations

import json

import pytest

from tutelage.core.artifact import Manifest, Root, file_entries
from tutelage.core.records import Example, Message, Preference, read_jsonl, write_jsonl
from tutelage.core.stage import run_stage
from tutelage.corpus.prepare import prepare
from tutelage.feedback import api
from tutelage.feedback.client import Client, Direct
from tutelage.feedback.labels import labels
from tutelage.feedback.preferences import preferences
from tutelage.store import answers, engine, people

TREE = [{"key": "harm", "children": [{"key": "threat"}, {"key": "insult"}]}, {"key": "spam"}]
NEWER = {
    "nodes": [{"key": "harm", "children": [{"key": "menace"}, {"key": "insult"}]}, {"key": "advert"}, {"key": "scam"}],
    "migration": {"threat": ["menace"], "spam": ["advert", "scam"]},
}


def sealed(root: Root, kind: str, files: dict[str, list]):
    out = root.work / kind
    out.mkdir(parents=True)
    for name, rows in files.items():
        if name.endswith(".jsonl"):
            write_jsonl(out / name, rows)
        else:
            (out / name).write_text(json.dumps(rows))
    return root.seal(out, Manifest(kind=kind, stage=kind, version=1, config={}, files=file_entries(out)), "0" * 64)


class Town:
    """A root with a store, a lead and some people."""

    def __init__(self, where, crew=3):
        self.root = Root(where / "life").create()
        self.store = engine.open(self.root)
        self.lead = people.create(self.store, "lead", roles=["lead"])
        self.crew = people.create_many(self.store, [f"p{n}" for n in range(crew)])
        empty = {"expected": 0, "per_task": 1, "projects": [], "people": "live"}
        self.collection = sealed(self.root, "collection", {"tasks.jsonl": [], "summary.json": empty})

    def project(self, name, kind, texts=("one", "two"), form=None, many=1, per_task=1, words="prompt", start=0):
        made = {"name": name, "kind": kind, "form": form or {}, "per_task": per_task}
        api.create_project(self.store, self.lead, api.NewProject.model_validate(made))
        new = [
            api.NewTask(
                key=f"{name}-{n}",
                kind=kind,
                messages=(Message(role="user", content=f"{words} {n}"),),
                candidates=tuple(api.NewCandidate(content=f"{text} {n}", producer="model:m") for text in texts),
                meta={"licence": "permissive"},
            )
            for n in range(start, start + many)
        ]
        return api.add_tasks(self.store, self.lead, name, new)

    def answer(self, name, who, say, most=99):
        client = Client(Direct(self.store, self.crew[who]))
        for item in client.claim(name, min(64, most)).items:
            key = f"key-{item.slot}"
            given = {"slot": item.slot, "epoch": item.epoch, "key": key, **say(item)}
            receipt = client.submit([api.Answer.model_validate(given)]).receipts[0]
            assert receipt.status == "stored", receipt.error

    def join(self, *names, **config):
        made = {"projects": list(names), "unnamed": False, **config}
        return run_stage(preferences, self.root, config=made, inputs={"collection": self.collection})

    def label(self, *names, **config):
        corpus = sealed(self.root, "corpus", {"labels.jsonl": []})
        made = {"projects": list(names), "corpus": False, **config}
        return run_stage(labels, self.root, config=made, inputs={"source": corpus})


def rows_of(artifact, name="preferences.jsonl", model=Preference):
    return list(read_jsonl(artifact.file(name), model))


def number(item):
    return int(item.messages[-1].content.split()[-1])


# rewrites


def test_a_rewrite_is_a_demonstration_and_a_preference_that_lead_back_to_the_answer(tmp_path):
    town = Town(tmp_path)
    town.project("better", "rewrite", texts=("write to anna@example.org,",), many=40)
    town.answer(
        "better", 0,
        lambda item: {"as_is": True} if number(item) % 4 == 0 else {"rewrite": f"better {number(item)}"},
    )  # fmt: skip
    made = town.join("better")
    kept = {each.id: each for each in answers.read(town.store, "better")}
    rows = rows_of(made)
    assert len(rows) == made.metrics["rewrites"] == 30 and made.metrics["demonstrations"] == 40
    for row in rows:
        (source,) = row.rows
        assert row.tiers == ((0,), (1,)) and row.candidates[0].content == kept[source].values[0].text
        assert row.candidates[1].content.startswith("write to [EMAIL],"), "what was shown was rewritten"
        assert row.tags["people"] == "live" and row.tags["kind"] == "rewrite"
    train = rows_of(made, "demonstrations.jsonl", Example)
    rest = rows_of(made, "demonstrations.held-out.jsonl", Example)
    assert {row.tags["split"] for row in train} == {"train"} and len(train) + len(rest) == 40 and rest
    assert {id for row in train + rest for id in row.tags["rows"]} == set(kept)
    split = {row.rows[0]: row.tags["split"] for row in rows}
    assert all(split.get(row.tags["rows"][0], row.tags["split"]) == row.tags["split"] for row in train + rest)
    good = [row for row in train + rest if row.tags["kind"] == "as_is"]
    assert len(good) == 10 and all(row.target.startswith("write to [EMAIL],") for row in good)
    import pyarrow.parquet as parquet

    assert set(parquet.read_table(made.file("rows.parquet"))[0].to_pylist()) == set(kept)


def test_demonstrations_are_a_source_that_prepare_reads(tmp_path):
    town = Town(tmp_path)
    town.project("better", "rewrite", many=20)
    town.answer("better", 0, lambda item: {"rewrite": f"a better answer, {number(item)}", "rewritten": 1})
    made = town.join("better")
    file = made.file("demonstrations.jsonl")
    source = {"source": f"file:{file}", "form": {"kind": "dialogues", "messages": "messages"}}
    corpus = run_stage(prepare, town.root, config={"sources": [source | {"licence": "permissive"}]})
    found = rows_of(corpus, "dialogues.jsonl", Example)
    assert [each.target for each in found] and all(each.messages[-1].content == each.target for each in found)
    assert {each.target for each in found} == {each.target for each in rows_of(made, "demonstrations.jsonl", Example)}


def test_several_rewrites_of_one_text_share_its_weight_and_an_erased_one_is_left_out(tmp_path):
    town = Town(tmp_path)
    town.project("better", "rewrite", per_task=2, many=12)
    for who in (0, 1):
        town.answer("better", who, lambda item: {"rewrite": f"better {number(item)}", "rewritten": 0})
    assert {row.weight for row in rows_of(town.join("better"))} == {0.5}


# pairs, rejections


STRENGTH = {"questions": [{"key": "strength", "kind": "strength", "choices": ["slightly", "better", "much"]}]}


def test_the_strength_of_a_pair_is_the_weight_of_its_row(tmp_path):
    town = Town(tmp_path)
    town.project("pairs", "pair", form=STRENGTH, many=30)
    steps = ("slightly", "better", "much")

    def say(item):
        if number(item) % 4 == 3:
            return {"tiers": [[0, 1]]}
        return {"tiers": [[0], [1]], "values": {"strength": steps[number(item) % 4]}}

    town.answer("pairs", 0, say)
    for config in ({}, {"aggregate": "person"}):
        rows = {int(row.prompt[0].content.split()[-1]): row for row in rows_of(town.join("pairs", **config))}
        weights = [rows[n].weight for n in range(3)]
        assert weights[0] < weights[1] < weights[2] and weights[0] == pytest.approx(weights[2] / 3, rel=1e-4)
        assert rows[2].tags["strength"] == 1.0 and "strength" not in rows[3].tags
        assert rows[0].tiers == ((0,), (1,))


def test_none_is_acceptable_is_kept_as_the_lowest_score(tmp_path):
    town = Town(tmp_path)
    town.project("ranks", "ranking", per_task=3, many=12)
    bad, order = {"all_bad": True, "unrankable": [0, 1]}, {"tiers": [[0], [1]]}
    rejected = ({0}, {0, 1}, {0, 1})
    for who in range(3):
        town.answer("ranks", who, lambda item, mine=rejected[who]: bad if number(item) in mine else order)
    rows = {int(row.prompt[0].content.split()[-1]): row for row in rows_of(town.join("ranks"))}
    assert rows[0].scores == (0.0, 0.0) and rows[0].tiers == () and rows[0].tags["all_bad"] == 1.0
    assert rows[1].scores == (0.0, 0.0) and rows[1].tiers == ((0,), (1,)), "the order that one person saw is kept too"
    assert rows[2].scores == ()
    single = rows_of(town.join("ranks", aggregate="person"))
    assert sum(row.scores == (0.0, 0.0) for row in single) == 5


# tags


TAGS = {"questions": [
    {"key": "categories", "kind": "tags"}, {"key": "where", "kind": "spans", "required": False}],
    "taxonomy": {"nodes": TREE}}  # fmt: skip


def by_number(artifact):
    return {int(row.messages[0].content.split()[-1]): row.tags for row in rows_of(artifact, "labels.jsonl", Example)}


def test_tags_become_labels_with_the_share_of_people_who_chose_them(tmp_path):
    town = Town(tmp_path)
    town.project("tags", "tag", texts=(), form=TAGS, many=3, per_task=3)
    chosen = ({0: ["threat"], 1: ["spam"], 2: []}, {0: ["insult"], 1: ["spam"], 2: []}, {0: [], 1: ["spam"], 2: []})
    for who in range(3):
        town.answer("tags", who, lambda item, who=who: {"values": {"categories": chosen[who][number(item)]}})
    found = by_number(town.label("tags"))
    third = pytest.approx(1 / 3, abs=1e-6)
    assert found[0]["categories"] == {
        "harm": pytest.approx(2 / 3, abs=1e-6),
        "insult": third,
        "spam": 0,
        "threat": third,
    }
    assert found[1]["categories"] == {"harm": 0, "insult": 0, "spam": 1, "threat": 0}
    assert set(found[2]["categories"].values()) == {0.0} and found[2]["direction"] == "input"


def test_old_tags_are_read_under_the_newest_taxonomy_and_a_split_says_nothing(tmp_path):
    town = Town(tmp_path)
    town.project("tags", "tag", texts=(), form=TAGS, many=2)
    town.answer("tags", 0, lambda item: {"values": {"categories": ["threat"] if number(item) == 0 else ["spam"]}})
    town.project("tags", "tag", texts=(), form=TAGS | {"taxonomy": NEWER}, many=1, start=2)
    town.answer("tags", 0, lambda item: {"values": {"categories": ["scam"]}})
    made = town.label("tags")
    found = by_number(made)
    assert found[0]["categories"] == {"harm": 1, "menace": 1, "insult": 0, "advert": 0, "scam": 0}
    assert found[1]["categories"] == {"harm": 0, "menace": 0, "insult": 0}, "nobody said which half of spam it was"
    assert found[2]["categories"] == {"harm": 0, "menace": 0, "insult": 0, "advert": 0, "scam": 1}
    assert json.loads(made.file("agreement.json").read_text())["ambiguous_tags"] == 1


def test_marked_words_tag_the_text_and_point_into_it_as_it_was_shown(tmp_path):
    town = Town(tmp_path)
    town.project("spans", "tag", texts=("Dear anna@example.org buy pills",), form=TAGS)
    shown = []

    def say(item):
        shown.append(item.candidates[0].content)
        at = shown[0].index("buy")
        mark = {"field": "candidate", "candidate": 0, "start": at, "end": at + 9, "label": "spam"}
        return {"values": {"categories": []}, "spans": [mark]}

    town.answer("spans", 0, say)
    (row,) = rows_of(town.label("spans"), "labels.jsonl", Example)
    assert row.messages[-1].content == shown[0] == "Dear [EMAIL] buy pills 0" and row.tags["direction"] == "output"
    assert row.tags["categories"] == {"harm": 0, "insult": 0, "threat": 0, "spam": 1}
    (span,) = row.tags["spans"]
    assert row.messages[-1].content[span["start"] : span["end"]] == "buy pills" and span["type"] == "spam"


def test_reports_and_tags_of_single_answers_are_labels_of_those_answers(tmp_path):
    form = {"questions": [{"key": "categories", "kind": "tags", "per_candidate": True}], "taxonomy": {"nodes": TREE}}
    town = Town(tmp_path)
    town.project("scored", "scoring", form=form)
    town.answer("scored", 0, lambda item: {"picks": {"categories": {"0": ["threat"], "1": []}}})
    town.project("ranked", "ranking", form={"taxonomy": {"nodes": TREE}}, per_task=2)
    for who in (0, 1):
        flags = {"1": ["insult"]} if who else {}
        town.answer("ranked", who, lambda item, flags=flags: {"tiers": [[0], [1]], "flags": flags})
    found = {row.messages[-1].content: row.tags for row in rows_of(town.label("scored"), "labels.jsonl", Example)}
    assert found["one 0"]["categories"] == {"harm": 1, "threat": 1, "insult": 0, "spam": 0}
    assert set(found["two 0"]["categories"].values()) == {0.0} and found["two 0"]["direction"] == "output"
    (row,) = rows_of(town.label("ranked"), "labels.jsonl", Example)
    assert row.messages[-1].content == "two 0" and row.tags["categories"] == {"harm": 0.5, "insult": 0.5}
