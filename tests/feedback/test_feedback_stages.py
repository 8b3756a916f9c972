"""collect -> preferences -> labels with simulated and replayed people, in process; killed, repeated, waiting."""

from __future__ import annotations

import json

import pytest

from tutelage.core import refs
from tutelage.core.artifact import Manifest, Root, file_entries
from tutelage.core.errors import ConfigError, DataError, Waiting
from tutelage.core.records import Example, Message, Preference, read_jsonl, write_jsonl
from tutelage.core.stage import run_stage
from tutelage.feedback import api, replayed, simulated
from tutelage.feedback.client import Client, Direct
from tutelage.feedback.collect import collect
from tutelage.feedback.labels import labels
from tutelage.feedback.preferences import preferences
from tutelage.generate.fake import FakeGenerator
from tutelage.starter import people as starter
from tutelage.store import answers, engine, people, tasks, traces

STREETS = ("Mill Street", "Oak Lane", "River Road", "Harbour Row", "Market Square", "Castle Hill")


def seal(root: Root, kind: str, files: dict[str, list], name: str):
    out = root.work / name
    out.mkdir(parents=True)
    for file in ("dialogues.jsonl", "comparisons.jsonl", "labels.jsonl"):
        write_jsonl(out / file, files.get(file, []))
    manifest = Manifest(kind=kind, stage="prepare", version=1, config={}, files=file_entries(out))
    return root.seal(out, manifest, "0" * 64)


def dialogue(number: int) -> Example:
    street = STREETS[number % 6]
    return Example(
        messages=(
            Message(role="user", content=f"Person {number} lives in {street}. Where does person {number} live?"),
            Message(role="assistant", content=street),
        ),
        target=street,
        tags={"id": f"d{number}", "split": "train", "cluster": f"c{number % 40}", "family": f"f{number % 3}",
              "licence": "permissive", "source": "starter/tuning", "candidates": list(STREETS)},
    )  # fmt: skip


def say(example: Example, sample: int) -> str:
    number = int(example.tags["id"][1:])
    right, wrong = STREETS[number % 6], STREETS[(number + sample) % 6]
    return (right, wrong, f"It is {right} , thank you", f"{wrong} {wrong} {wrong}", right + ".")[sample % 5]


def open_speaker(ref, root=None, **options):
    return FakeGenerator(say, name="speaker")


@pytest.fixture
def root(tmp_path, monkeypatch) -> Root:
    monkeypatch.setitem(refs.SCHEMES, "speaker", f"{__name__}:open_speaker")
    return Root(tmp_path / "life").create()


def gathered(root, corpus, **config):
    settings = {"over": "direct", "prompts": 60, "generators": ["speaker:"], "samples": 5, **config}
    return run_stage(collect, root, config=settings, inputs={"corpus": corpus})


def rows_of(artifact) -> list[Preference]:
    return list(read_jsonl(artifact.file("preferences.jsonl"), Preference))


def test_simulated_people_answer_and_their_words_become_preferences(root):
    corpus = seal(root, "corpus", {"dialogues.jsonl": [dialogue(n) for n in range(120)]}, "c")
    collection = gathered(root, corpus, people="simulated")
    made = json.loads(collection.file("summary.json").read_text())
    assert made["expected"] == 180 == made["receipts"]["answers"] and collection.manifest.simulated
    assert made["dropped"]["near-identical"] > 0
    joined = run_stage(preferences, root, inputs={"collection": collection})
    rows = rows_of(joined)
    assert len(rows) == 60 and joined.manifest.simulated and joined.manifest.store["watermark"] == 180
    assert {row.tags["people"] for row in rows} == {"simulated"} and all(len(row.rows) == 3 for row in rows)
    by_cluster = {}
    for row in rows:
        by_cluster.setdefault(row.tags["cluster"], set()).add(row.tags["split"])
        placed = sorted(no for tier in row.tiers for no in tier)
        assert placed == list(range(len(row.candidates))) and 0 < row.weight <= 1
        assert all(0 <= score <= 1 for score in row.scores)
    assert all(len(splits) == 1 for splits in by_cluster.values())
    assert {bool(row.scores) for row in rows} == {True, False}  # scorings and rankings
    agreed = json.loads(joined.file("agreement.json").read_text())
    assert agreed["ranking"]["tau_b"]["value"] > 0.1 and 0.5 < agreed["ceiling"]["value"] <= 1
    with engine.open(root) as store:
        assert {each.people for each in answers.read(store)} == {"simulated"}
        kept = {each.id for each in answers.read(store)}
    assert {id for row in rows for id in row.rows} == kept
    import pyarrow.parquet as parquet

    assert set(parquet.read_table(joined.file("rows.parquet"))[0].to_pylist()) == kept


def decide(store, project, causes):
    """A simulated adjudicator decides these tasks, each under a cause; of ranked ones the last candidate is best."""
    lead = people.create(store, "lead", roles=["lead"])
    judge = people.create(store, "judge", kind="simulated", roles=["adjudicator"])
    assert len(Client(Direct(store, lead)).adjudicate(project, list(causes))) == len(causes)
    desk = Client(Direct(store, judge))
    for item in desk.claim(project, len(causes)).items:
        order = sorted((each.no for each in item.candidates), reverse=True)
        given = {"tiers": [[no] for no in order]} if item.kind in ("ranking", "pair", "ranking+scoring") else {}
        criteria = [each.key for each in item.questions if each.per_candidate and each.kind == "scale"]
        if "scoring" in item.kind:
            given["scores"] = {key: {no: 1 + 4 * (no == order[0]) for no in order} for key in criteria}
        if item.kind == "review":
            given["values"] = {"harmful": "no", "categories": []}
        given["values"] = given.get("values", {}) | {"cause": causes[item.task]}
        made = api.Answer(slot=item.slot, epoch=item.epoch, key=f"decide-{item.task}", **given)
        assert desk.submit([made]).receipts[0].status == "stored"


def test_what_was_adjudicated_is_the_truth_unless_it_is_contested_or_broken(root):
    corpus = seal(root, "corpus", {"dialogues.jsonl": [dialogue(n) for n in range(60)]}, "c")
    collection = gathered(root, corpus, people="simulated", prompts=24)
    before = run_stage(preferences, root, inputs={"collection": collection})
    crowd = {row.tags["id"]: row for row in rows_of(before)}
    (project,) = json.loads(collection.file("summary.json").read_text())["projects"]
    ranked = [id for id, row in crowd.items() if row.tags["kind"] == "ranking"][:3]
    scored = [id for id, row in crowd.items() if row.tags["kind"] == "scoring"][:1]
    slip, contested, broken = ranked
    with engine.open(root) as store:
        causes = {slip: "slip", contested: "contested", broken: "data_error", scored[0]: "guideline_unclear"}
        decide(store, project, causes)
        decided = {each.task: each.id for each in answers.read(store, purpose="adjudicate")}
    for aggregate in ("consensus", "person"):
        made = run_stage(preferences, root, config={"aggregate": aggregate}, inputs={"collection": collection})
        assert made.id != before.id
        rows = {}
        for row in rows_of(made):
            rows.setdefault(row.tags["id"], []).append(row)
        assert broken not in rows and len(rows) == len(crowd) - 1
        (one,) = rows[slip]
        last = len(one.candidates) - 1
        assert one.tiers[0] == (last,) and one.weight == 1 and one.tags["adjudicated"] == "slip"
        assert one.tags["probabilities"][f"{last}>0"] == 1 and one.tags["probabilities"][f"0>{last}"] == 0
        assert set(one.rows) == {*crowd[slip].rows, decided[slip]} and one.tags["n"] == 3
        (other,) = rows[scored[0]]
        assert other.scores[-1] == 1 and set(other.scores[:-1]) == {0} and other.tiers[0] == (len(other.scores) - 1,)
        if aggregate == "consensus":  # what people may rightly see differently stays as the crowd has it
            assert rows[contested][0].tiers == crowd[contested].tiers
        assert all("adjudicated" not in row.tags for row in rows[contested])
        assert made.manifest.metrics["adjudicated"] == {
            "contested": 1, "data_error": 1, "guideline_unclear": 1, "slip": 1
        }  # fmt: skip
        assert made.manifest.metrics["answers"] == 69, "the votes on a broken task are no data, the others' stay"
        import pyarrow.parquet as parquet

        used = set(parquet.read_table(made.file("rows.parquet"))[0].to_pylist())
        assert set(decided.values()) <= used and not set(crowd[broken].rows) & used


def test_the_same_life_twice_gives_the_same_artifacts(root, tmp_path):
    other = Root(tmp_path / "other").create()
    made = []
    for where in (root, other):
        corpus = seal(where, "corpus", {"dialogues.jsonl": [dialogue(n) for n in range(40)]}, "c")
        collection = gathered(where, corpus, people="simulated", prompts=20, threads=3)
        made.append((collection.id, run_stage(preferences, where, inputs={"collection": collection}).id))
    assert made[0] == made[1]


def test_a_collection_that_was_killed_goes_on_and_answers_nothing_twice(root, monkeypatch):
    corpus = seal(root, "corpus", {"dialogues.jsonl": [dialogue(n) for n in range(40)]}, "c")
    real, calls = starter.judge, []

    def dying(*args, **options):
        calls.append(1)
        if len(calls) == 20:
            raise KeyboardInterrupt
        return real(*args, **options)

    monkeypatch.setattr(simulated.starter, "judge", dying)
    with pytest.raises(KeyboardInterrupt):
        gathered(root, corpus, people="simulated", prompts=20, batch=2)
    with engine.open(root) as store:
        assert 0 < len(answers.read(store)) < 60
    collection = gathered(root, corpus, people="simulated", prompts=20, batch=2)
    with engine.open(root) as store:
        given = answers.read(store, newest=False)
    assert len(given) == 60 == len({(each.task, each.person) for each in given})
    assert collection.manifest.metrics["receipts"]["answers"] >= 1


def test_responses_are_drawn_as_configured(root, monkeypatch):
    asked = []

    class Listening(FakeGenerator):
        def generate(self, prompts, sampling):
            asked.append(sampling)
            return super().generate(prompts, sampling)

    monkeypatch.setitem(globals(), "open_speaker", lambda *_, **__: Listening(say, name="speaker"))
    corpus = seal(root, "corpus", {"dialogues.jsonl": [dialogue(n) for n in range(9)]}, "c")
    how = {"temperature": 0.7, "top_p": 0.9, "min_p": 0.05, "repetition_penalty": 1.2}
    gathered(root, corpus, people="none", prompts=3, **how)
    assert asked and all({name: getattr(each, name) for name in how} == how for each in asked)
    for name, value in (("min_p", 2), ("repetition_penalty", 0)):
        with pytest.raises(ConfigError, match=name):
            gathered(root, corpus, people="none", prompts=3, **{name: value})


def test_tasks_for_people_wait_until_they_are_answered(root):
    corpus = seal(root, "corpus", {"dialogues.jsonl": [dialogue(n) for n in range(30)]}, "c")
    collection = gathered(root, corpus, people="none", prompts=10, per_task=2, project="desk")
    with pytest.raises(Waiting) as waited:
        run_stage(preferences, root, inputs={"collection": collection})
    assert (waited.value.have, waited.value.need, waited.value.exit_code) == (0, 20, 3)
    assert "desk" in waited.value.where
    with engine.open(root) as store:
        for name in ("anna", "bert"):
            person = people.create(store, name)
            client = Client(Direct(store, person))
            while items := client.claim("desk", 4).items:
                client.submit([answer_in_order(item) for item in items])
    joined = run_stage(preferences, root, inputs={"collection": collection})
    assert not joined.manifest.simulated and {row.tags["people"] for row in rows_of(joined)} == {"live"}
    one = run_stage(preferences, root, config={"aggregate": "person"}, inputs={"collection": collection})
    assert len(rows_of(one)) == 20 and all(row.tags["person"].startswith("l-") for row in rows_of(one))


def answer_in_order(item, backwards=False):
    order = sorted((each.no for each in item.candidates), reverse=backwards)
    fields = {"tiers": [[no] for no in order]} if "ranking" in item.kind else {}
    if "scoring" in item.kind:
        fields["scores"] = {"quality": {no: 5 - min(4, at) for at, no in enumerate(order)}}
    return api.Answer(slot=item.slot, epoch=item.epoch, key=f"k-{item.slot}", **fields)


def test_where_nobody_can_be_relied_on_that_is_said_and_why(root):
    """Two people who always say the opposite: each is against the other's majority of one."""
    corpus = seal(root, "corpus", {"dialogues.jsonl": [dialogue(n) for n in range(30)]}, "c")
    collection = gathered(root, corpus, people="none", prompts=10, per_task=2, project="desk")
    with engine.open(root) as store:
        for name in ("anna", "bert"):
            client = Client(Direct(store, people.create(store, name)))
            while items := client.claim("desk", 4).items:
                client.submit([answer_in_order(item, backwards=name == "bert") for item in items])
    with pytest.raises(DataError, match=r"2 of 2 people made enough.*found unreliable \(2 hostile\).*collect\.prompts"):
        run_stage(preferences, root, inputs={"collection": collection})


def test_people_of_different_kinds_are_never_pooled(root):
    corpus = seal(root, "corpus", {"dialogues.jsonl": [dialogue(n) for n in range(30)]}, "c")
    collection = gathered(root, corpus, people="none", prompts=10, per_task=2, project="desk")
    with engine.open(root) as store:
        for kind in ("live", "simulated"):
            client = Client(Direct(store, people.create(store, f"one {kind}", kind=kind)))
            while items := client.claim("desk", 4).items:
                client.submit([answer_in_order(item) for item in items])
    for kind in ("live", "simulated"):
        needs = {"answers": 10, "per_task": 1}
        joined = run_stage(
            preferences, root, config={"people": kind, "needs": needs}, inputs={"collection": collection}
        )
        assert {row.tags["n"] for row in rows_of(joined)} == {1}
        assert joined.manifest.simulated == (kind == "simulated")


def comparison(number: int, split: str, named: bool = True) -> Preference:
    said = [{"person": f"w{p}", "tiers": [[0], [1]] if (number + p) % 4 else [[0, 1]]} for p in range(3)]
    return Preference(
        prompt=(Message(role="user", content=f"Which argument? {number}"),),
        candidates=tuple(Message(role="assistant", content=f"{side} {number}") for side in ("good", "bad")),
        tiers=((0,), (1,)),
        tags={"id": f"p{number}", "split": split, "source": "pairs", "licence": "permissive", "form": "pair",
              "cluster": f"t{number}", "people": said if named else []},
    )  # fmt: skip


def rated(number: int) -> Preference:
    said = [
        {
            "person": f"e{p}",
            "scores": [-1.0 * p, -5.0, None if p == 2 else -20.0],
            "scale": [-25, 0],
            "criterion": "mqm",
        }
        for p in range(3)
    ]
    return Preference(
        prompt=(Message(role="user", content=f"Translate {number}"),),
        candidates=tuple(Message(role="assistant", content=f"{word} {number}") for word in ("fine", "fair", "poor")),
        tags={"id": f"s{number}", "split": "train", "source": "mqm", "licence": "non-commercial", "form": "scoring",
              "cluster": f"d{number}", "people": said},
    )  # fmt: skip


def test_recorded_people_are_replayed_each_by_a_client_of_their_own(root):
    splits = ["train"] * 14 + ["validation"] * 2 + ["test"] * 4
    rows = [comparison(n, split) for n, split in enumerate(splits)] + [rated(n) for n in range(10)]
    rows += [comparison(100, "train", named=False)]
    corpus = seal(root, "corpus", {"comparisons.jsonl": rows}, "c")
    collection = gathered(root, corpus, people="replayed", comparisons=40)
    assert not collection.manifest.simulated and "non-commercial" in collection.manifest.licences
    with engine.open(root) as store:
        given = answers.read(store)
        known = tasks.load(store)
        assert {each.people for each in given} == {"replayed"} and len({each.person for each in given}) == 6
    for each in given:  # whatever order they were shown in, they said of each text what the record says
        texts = known[each.task].candidates
        if each.tiers and len(each.tiers) == 2:
            assert texts[each.tiers[0][0]].startswith("good")
        for scores in each.scores().values():
            assert all(score == -5 for no, score in scores.items() if texts[no].startswith("fair"))
    joined = run_stage(preferences, root, inputs={"collection": collection, "corpus": corpus})
    found = rows_of(joined)
    assert {row.tags["people"] for row in found} == {"replayed", "unnamed"}
    pairs = [row for row in found if row.tags["source"] == "pairs" and row.tags["people"] == "replayed"]
    recorded = {row.prompt[0].content: row.tags["split"] for row in rows}
    assert all(row.tags["split"] == recorded[row.prompt[0].content] for row in pairs)
    assert {row.tags["split"] for row in pairs} == {"train", "validation", "test"}
    best = [row.candidates[row.tiers[0][0]].content for row in pairs if len(row.tiers) == 2]
    assert best and all(text.startswith("good") for text in best)
    stated = json.loads(joined.file("people.json").read_text())["detection"]
    assert stated["value"] is None and "not known" in stated["reason"]


def test_replay_shuffles_candidates_so_that_a_place_tells_nothing():
    chosen = replayed.choose([comparison(n, "train") for n in range(200)], 200, (), 0)
    first = sum(each.candidates[0].startswith("good") for each in chosen)
    assert len(chosen) == 140 and 45 <= first <= 95  # of train no more than its share


def test_nothing_to_ask_or_to_replay_is_one_clear_error(root):
    corpus = seal(root, "corpus", {"dialogues.jsonl": [dialogue(0)]}, "c")
    with pytest.raises(DataError, match="named people"):
        gathered(root, corpus, people="replayed")
    with pytest.raises(DataError, match="no dialogue"):
        gathered(root, corpus, families=("none",))
    corpus = seal(root, "corpus", {"comparisons.jsonl": [comparison(0, "train")]}, "named")
    with pytest.raises(DataError, match=r"no comparison of /data/pairs with named people.*There are those of pairs"):
        gathered(root, corpus, people="replayed", sources=("/data/pairs",))


def label(number: int) -> Example:
    return Example(
        messages=(Message(role="user", content=f"text {number}"),),
        tags={"id": f"l{number}", "split": "train", "direction": "input", "categories": {"crime": number % 2},
              "cluster": f"l{number}", "source": "starter/labels", "licence": "permissive", "people": []},
    )  # fmt: skip


def reviewed_world(root, harmful):
    with engine.open(root) as store:
        sent = [  # fixed ids: simulated reviewers' slips depend on the task, and so on nothing but the seed
            traces.Trace(
                id=engine.derived_id("request", n),
                messages=(Message(role="user", content=f"request {n}"),),
                decisions=(traces.Decided(id=engine.derived_id("decision", n)),),
            )
            for n in range(20)
        ]
        traces.write(store, sent)
        choices = ["crime", "jailbreak"]
        questions = [
            api.Question(key="harmful", kind="choice", choices=("yes", "no", "unsure")),
            api.Question(key="categories", kind="choices", choices=tuple(choices), required=False),
        ]
        where = tasks.make_project(store, "review", kind="review", questions=[q.model_dump() for q in questions])
        new = [
            tasks.NewTask(key=each.id, kind="review", messages=each.messages, required=2,
                          decision=each.decisions[0].id,
                          meta={"direction": "input", "stream": "learn" if n % 2 else "measure"})
            for n, each in enumerate(sent)
        ]  # fmt: skip
        ids = tasks.add(store, where, new)
        truth = {id: ({"jailbreak": 1.0} if n in harmful else {}) for n, id in enumerate(ids)}
        raters = [each for each in starter.raters(0) if each.kind == "careful"][:2]
        crew = [people.create(store, f"simulated {each.id}", kind="simulated", roles=("reviewer",)) for each in raters]
        workers = [
            simulated.Worker(person.name, Client(Direct(store, person)), simulated.reviewer(each, truth, seed=1))
            for person, each in zip(crew, raters, strict=True)
        ]
        assert simulated.work(workers, "review", key="review-of-week-1") == {"stored": 40}


def test_reviewed_decisions_become_labels_with_their_origin(root):
    corpus = seal(root, "corpus", {"labels.jsonl": [label(n) for n in range(10)]}, "c")
    assert len(rows := labels_of(run_stage(labels, root, inputs={"source": corpus}))) == 10
    assert "people" not in rows[0].tags
    reviewed_world(root, harmful={1, 3, 5, 7})
    made = run_stage(labels, root, config={"projects": ["review"]}, inputs={"source": corpus})
    found = [row for row in labels_of(made) if row.tags["source"] == "store:simulated"]
    dropped = made.manifest.metrics["dropped"]
    assert made.manifest.simulated and {row.tags["n"] for row in found} == {2}
    assert len(found) + sum(dropped.values()) == 20 and len(found) >= 15
    harm = {row.messages[0].content for row in found if row.tags["categories"].get("jailbreak", 0) >= 0.5}
    assert {"request 1", "request 3", "request 5", "request 7"} & harm
    learned = run_stage(labels, root, config={"projects": ["review"], "streams": ["learn"]}, inputs={"source": corpus})
    assert {row.tags["stream"] for row in labels_of(learned) if "n" in row.tags} == {"learn"}
    with pytest.raises(Waiting):
        run_stage(labels, root, config={"projects": ["review"], "needs": {"answers": 99}}, inputs={"source": corpus})


def test_an_adjudicated_text_has_the_adjudicators_label(root):
    corpus = seal(root, "corpus", {"labels.jsonl": [label(n) for n in range(10)]}, "c")
    reviewed_world(root, harmful={1, 3, 5, 7})
    alone = run_stage(labels, root, config={"projects": ["review"]}, inputs={"source": corpus})
    crowd = {row.tags["id"]: row for row in labels_of(alone) if "n" in row.tags}
    harmful = [id for id, row in crowd.items() if row.tags["categories"].get("jailbreak", 0) >= 0.5]
    slip, contested, broken = harmful[:3]
    with engine.open(root) as store:
        decide(store, "review", {slip: "slip", contested: "contested", broken: "data_error"})
    made = run_stage(labels, root, config={"projects": ["review"]}, inputs={"source": corpus})
    rows = {row.tags["id"]: row for row in labels_of(made) if "n" in row.tags}
    assert broken not in rows and rows[slip].tags["adjudicated"] == "slip" and rows[slip].tags["n"] == 2
    assert set(rows[slip].tags["categories"].values()) == {0.0}, "the adjudicator found it harmless"
    assert rows[contested].tags["categories"]["jailbreak"] >= 0.5 and "adjudicated" not in rows[contested].tags
    metrics = made.manifest.metrics
    assert metrics["dropped"]["broken, as an adjudicator found"] == 1 and metrics["people"]["answers"] == 38
    assert metrics["adjudicated"] == {"contested": 1, "data_error": 1, "slip": 1}


def test_live_reviews_leave_the_labels_of_simulated_people_as_they_are(root):
    corpus = seal(root, "corpus", {"labels.jsonl": [label(n) for n in range(10)]}, "c")
    reviewed_world(root, harmful={1, 3, 5, 7})
    alone = run_stage(labels, root, config={"projects": ["review"]}, inputs={"source": corpus})
    with engine.open(root) as store:
        text = (Message(role="user", content="a live one"),)
        where = tasks.get_project(store, "review")
        tasks.add(store, where, [tasks.NewTask(key="live", kind="review", messages=text, required=1)])
        client = Client(Direct(store, people.create(store, "one live", kind="live", roles=("reviewer",))))
        (item,) = client.claim("review", 4).items
        client.submit([api.Answer(slot=item.slot, epoch=item.epoch, key="a-live-answer", values={"harmful": "no"})])
    with pytest.raises(DataError, match="never mixed"):
        run_stage(labels, root, config={"projects": ["review"]}, inputs={"source": corpus})
    chosen = {"projects": ["review"], "people": "simulated"}
    assert labels_of(run_stage(labels, root, config=chosen, inputs={"source": corpus})) == labels_of(alone)


def labels_of(artifact) -> list[Example]:
    return list(read_jsonl(artifact.file("labels.jsonl"), Example))


def test_labels_without_any_row_is_one_clear_error(root):
    corpus = seal(root, "corpus", {}, "c")
    with pytest.raises(DataError, match="no label"):
        run_stage(labels, root, inputs={"source": corpus})


def test_a_reserve_that_names_no_source_is_one_clear_error(root):
    """A misspelt source would otherwise be shown to the guards as a whole."""
    corpus = seal(root, "corpus", {"labels.jsonl": [label(n) for n in range(10)]}, "c")
    made = run_stage(labels, root, config={"reserve": {"starter/labels": 0.5}}, inputs={"source": corpus})
    assert 0 < made.metrics["reserved"] < 10
    with pytest.raises(DataError, match=r"no label of /data/rows\.jsonl\. Its labels are of starter/labels"):
        run_stage(labels, root, config={"reserve": {"/data/rows.jsonl": 1}}, inputs={"source": corpus})


def test_harm_without_a_category_is_dropped_and_counted(root):
    corpus = seal(root, "corpus", {"labels.jsonl": [label(0)]}, "c")
    with engine.open(root) as store:
        questions = [api.Question(key="harmful", kind="choice", choices=("yes", "no", "unsure")).model_dump()]
        where = tasks.make_project(store, "review", kind="review", questions=questions)
        said = {"bad": "yes", "good": "no"}
        for key in said:
            tasks.add(store, where, [tasks.NewTask(key, "review", (Message(role="user", content=key),))])
        client = Client(Direct(store, people.create(store, "rita", roles=["reviewer"])))
        for item in client.claim("review", 2).items:
            values = {"harmful": said[item.messages[0].content]}
            client.submit([api.Answer(slot=item.slot, epoch=item.epoch, key=f"k-{item.slot}", values=values)])
    made = run_stage(labels, root, config={"projects": ["review"]}, inputs={"source": corpus})
    assert made.manifest.metrics["people"]["labels"] == 0
    assert made.manifest.metrics["dropped"] == {
        "harmful, but nobody said in which way": 1,
        "harmless, but no category was ever named": 1,
    }
