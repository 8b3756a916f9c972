"""Simulated people are marked wherever their words go, and nothing learns from them unless the recipe says so."""

from __future__ import annotations

import pytest
from test_feedback_stages import dialogue, gathered, label, open_speaker, seal

from tutelage import life
from tutelage.core import refs
from tutelage.core.artifact import Manifest, Root, file_entries
from tutelage.core.errors import ConfigError, UsageError
from tutelage.core.records import Message
from tutelage.core.stage import run_stage
from tutelage.feedback import api
from tutelage.feedback.client import Client, Direct
from tutelage.feedback.labels import labels
from tutelage.feedback.preferences import preferences
from tutelage.recipe import read_recipe
from tutelage.store import answers, engine, people, tasks

__all__ = ["open_speaker"]


@pytest.fixture
def root(tmp_path, monkeypatch) -> Root:
    monkeypatch.setitem(refs.SCHEMES, "speaker", f"{__name__}:open_speaker")
    return Root(tmp_path / "life").create()


@pytest.fixture
def collection(root):
    corpus = seal(root, "corpus", {"dialogues.jsonl": [dialogue(n) for n in range(40)]}, "c")
    return gathered(root, corpus, people="simulated", prompts=12)


def test_a_stage_refuses_words_of_simulated_people_unless_it_is_told(root, collection):
    with pytest.raises(UsageError, match=r"preferences would learn from simulated people \(collection:") as refused:
        preferences(root, collection=collection)
    assert refused.value.exit_code == 2 and "simulated: allow" in (refused.value.todo or "")
    made = preferences(root, collection=collection, simulated="allow")
    assert made.manifest.simulated
    with pytest.raises(UsageError, match="simulated"):  # also what is made already
        preferences(root, collection=collection)
    assert run_stage(preferences, root, inputs={"collection": collection}, simulated="allow").id == made.id


def test_what_learned_from_them_is_refused_as_an_input_of_another_recipe(root, collection):
    made = preferences(root, collection=collection, simulated="allow")
    out = root.work / "m"
    out.mkdir(parents=True)
    base = root.seal(out, Manifest(kind="model", stage="x", version=1, config={}, files=file_entries(out)), "1" * 64)
    real = {"reward": {"preferences": made.ref, "model": base.ref, "steps": 1}}
    with pytest.raises(UsageError, match=r"reward would learn from simulated people \(preferences:"):
        life.run_alone("reward", real["reward"], root)


def test_a_stage_alone_does_as_the_recipe_of_its_root(root, collection):
    given = {"collection": collection.ref}
    with pytest.raises(UsageError, match="simulated"):
        life.run_alone("preferences", given, root)
    root.recipe_path.write_text("simulated: allow\ncollect:\n")
    assert life.run_alone("preferences", given, root).manifest.simulated
    with pytest.raises(UsageError, match="simulated"):
        life.run_alone("preferences", {**given, "simulated": "refuse"}, root)


def test_reviewers_who_are_simulated_teach_no_guard_of_a_real_project(root):
    """Who answered in the store is seen when the stage reads it."""
    corpus = seal(root, "corpus", {"labels.jsonl": [label(0)]}, "c")
    with engine.open(root) as store:
        question = api.Question(key="harmful", kind="choice", choices=("yes", "no")).model_dump()
        where = tasks.make_project(store, "review", kind="review", questions=[question])
        tasks.add(store, where, [tasks.NewTask("t", "review", (Message(role="user", content="a text"),))])
        client = Client(Direct(store, people.create(store, "sim", kind="simulated", roles=["reviewer"])))
        (item,) = client.claim("review").items
        client.submit([api.Answer(slot=item.slot, epoch=item.epoch, key="the-key-1", values={"harmful": "no"})])
    settings = {"config": {"projects": ["review"]}, "inputs": {"source": corpus}}
    with pytest.raises(UsageError, match="labels would learn from simulated people"):
        run_stage(labels, root, **settings, simulated="refuse")
    assert run_stage(labels, root, **settings, simulated="allow").manifest.simulated
    alone = run_stage(labels, root, inputs={"source": corpus}, simulated="refuse")
    assert not alone.manifest.simulated


CORPUS = {"prepare": None, "tokenizer": None, "encode": None, "pretrain": None, "finetune": None}


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"collect": {"people": "simulated"}, "preferences": None}, r"preferences would .*\(collect asks them"),
        (
            {"collect": {"people": "simulated"}, "preferences": None, "reward": None, "simulated": "refuse"},
            "preferences would",
        ),
        ({"labels": {"people": "simulated"}}, "labels asks them"),
        ({"cycle": {"release": "release:12ab", "labels": "labels:12ab"}}, "cycle asks them"),
        ({"simulated": "perhaps", "collect": None}, "`refuse` or `allow`, found 'perhaps'"),
    ],
)
def test_a_recipe_is_refused_before_anything_runs(sections, message):
    with pytest.raises(ConfigError, match=message):
        read_recipe({**CORPUS, **sections})


def test_a_recipe_that_asks_people_needs_no_word_and_one_that_allows_runs():
    asked = {**CORPUS, "collect": None, "preferences": None, "reward": None}
    assert read_recipe(asked).simulated == "refuse"
    assert read_recipe({**CORPUS, "collect": {"people": "simulated"}}).simulated == "refuse"  # asking is not learning
    allowed = read_recipe({**asked, "collect": {"people": "simulated"}, "simulated": "allow"})
    assert allowed.simulated == "allow" and "simulated" not in allowed.sections
    assert read_recipe(asked, ["simulated=allow"]).simulated == "allow"


def test_every_answer_that_is_read_back_says_whose_it_is(root, collection):
    with engine.open(root) as store:
        project = str(collection.metrics["projects"][0])
        lead = people.create(store, "lead", roles=["lead"])
        moment = api.progress(store, lead, project)
        assert set(moment.people) == {"simulated"} and {each.people for each in moment.per_person} == {"simulated"}
        given = answers.read(store, project)
        assert {answers.details(each)["people"] for each in given} == {"simulated"}
        person = people.get(store, given[0].person)
        assert {each["people"] for each in api.history(store, person, project)} == {"simulated"}
