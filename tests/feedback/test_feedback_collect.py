"""Prompts of three sources, responses of any generators: mixed by share, blind, merged; one failure costs little."""

from __future__ import annotations

import json
import threading
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from test_feedback_stages import answer_in_order, dialogue, gathered, seal

from tutelage.core import refs
from tutelage.core.artifact import Manifest, Root, file_entries
from tutelage.core.errors import ConfigError, DataError, UpstreamError
from tutelage.core.records import Example, Message, write_jsonl
from tutelage.core.stage import run_stage
from tutelage.feedback import api, candidates
from tutelage.feedback.client import Client, Direct
from tutelage.feedback.collect import collect
from tutelage.feedback.preferences import preferences
from tutelage.feedback.prompts import Mixed
from tutelage.generate.fake import FakeGenerator
from tutelage.generate.generator import Sampling
from tutelage.govern import erase
from tutelage.store import engine, erasure, people, tasks, traces, traffic
from tutelage.web import app, state


def say(example: Example, sample: int) -> str:
    """Answers that differ: by the prompt and the sample."""
    return f"{('First', 'Second', 'Third', 'Fourth')[sample % 4]} thought on {example.messages[-1].content[:30]}"


def open_speaker(ref, root=None, **options):
    return FakeGenerator(say, name="speaker")


def open_broken(ref, root=None, **options):
    def fail(example, sample):
        raise UpstreamError("the cable is cut")

    return FakeGenerator(fail, name="broken")


@pytest.fixture
def root(tmp_path, monkeypatch) -> Root:
    monkeypatch.setitem(refs.SCHEMES, "speaker", f"{__name__}:open_speaker")
    monkeypatch.setitem(refs.SCHEMES, "broken", f"{__name__}:open_broken")
    return Root(tmp_path / "life").create()


@pytest.fixture
def corpus(root):
    return seal(root, "corpus", {"dialogues.jsonl": [dialogue(n) for n in range(60)]}, "c")


def asked_of(collection) -> list[dict]:
    return [json.loads(line) for line in collection.file("tasks.jsonl").read_text().splitlines()]


def summary_of(collection) -> dict:
    return json.loads(collection.file("summary.json").read_text())


# three sources


def attempt(number: int, broke: bool) -> Example:
    said = "broke it" if broke else "came near"
    tags = {
        "id": f"{said}{number}",
        "direction": "input",
        "categories": {"crime": 1.0} if broke and number % 2 else {},
        "category": "" if broke else "hate",
        "rule": "lockers",
        "attack": "persuasion",
        "licence": "non-commercial",
        "cluster": f"goal{number % 3}",
        "source": "redteam",
        "target": "rlhf",
    }
    return Example(messages=(Message(role="user", content=f"An attack that {said}, number {number}"),), tags=tags)


def attacked(root: Root, broke: int = 6, near: int = 4):
    out = root.work / "r"
    out.mkdir(parents=True)
    rows = [attempt(n, True) for n in range(broke)]
    answers = [row.model_copy(update={"tags": {**row.tags, "direction": "output", "id": f"o{n}"}})
               for n, row in enumerate(rows)]  # fmt: skip
    write_jsonl(out / "findings.jsonl", rows + answers)
    write_jsonl(out / "near.jsonl", [attempt(n, False) for n in range(near)])
    manifest = Manifest(kind="redteam", stage="redteam", version=4, config={}, files=file_entries(out))
    return root.seal(out, manifest, "2" * 64)


def served(root: Root, count: int = 40, **changes) -> None:
    """Live requests of two tenants, one of which allows that people are asked about them."""
    sent = []
    for at in range(count):
        tenant = "town" if at % 2 else "mill"
        fields = {
            "id": engine.derived_id("request", at),
            "conversation": f"c{at // 4}",
            "tenant": tenant,
            "subject": f"user{at % 5}",
            "release": f"r{at % 4 // 2}",
            "at": 1_700_000_000_000 + at * 86_400_000,
            "messages": (Message(role="user", content=f"Question {at} of ann.lee@example.org please"),),
            "meta": {"collect": True} if tenant == "town" else {},
            "decisions": (traces.Decided(id=engine.derived_id("decision", at)),),
        }
        sent.append(traces.Trace(**fields | changes))
    root.service_path.write_text("tenants: {town: {collect: true}, mill: {}, default: {}}\n")
    with engine.open(root) as store:
        traces.write(store, sent)


def test_three_sources_are_mixed_by_share_and_every_task_says_its_own(root, corpus):
    served(root)
    collection = run_stage(
        collect,
        root,
        config={"prompts": 16, "generators": ["speaker:"], "mix": {"data": 2, "redteam": 1, "traffic": 1},
                "project": "desk"},
        inputs={"corpus": corpus, "findings": [attacked(root)]},
    )  # fmt: skip
    rows = asked_of(collection)
    by = {origin: [row for row in rows if row["origin"] == origin] for origin in ("data", "redteam", "traffic")}
    assert {name: len(found) for name, found in by.items()} == {"data": 8, "redteam": 4, "traffic": 4}
    assert summary_of(collection)["mix"]["redteam"] == {"asked": 4, "tried": 4}
    assert {row["category"] for row in by["redteam"]} == {"crime", "hate", "lockers"}
    assert {row["broke"] for row in by["redteam"]} == {True, False}
    assert all(row["attack"] == "persuasion" and row["source"].startswith("redteam:") for row in by["redteam"])
    assert len({row["prompt"][0]["content"] for row in by["redteam"]}) == 4
    assert {row["licence"] for row in by["redteam"]} == {"non-commercial"}
    assert {row["tenant"] for row in by["traffic"]} == {"town"} and {row["population"] for row in by["traffic"]} == {20}
    assert {row["probability"] for row in by["traffic"]} == {0.2}
    assert all("[EMAIL]" in row["prompt"][0]["content"] for row in by["traffic"])
    assert set(collection.manifest.licences) == {"non-commercial", "not-stated", "permissive"}
    assert [each.kind for each in map(root.find, collection.manifest.parents())] == ["corpus", "redteam"]
    with engine.open(root) as store:
        made = tasks.load(store, project_name="desk")
    assert {each.meta["origin"] for each in made.values()} == set(by)
    assert sorted(each.decision is not None for each in made.values()) == [False] * 12 + [True] * 4


def test_the_same_traffic_is_drawn_again_and_another_seed_draws_other(root, tmp_path):
    drawn = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        where = Root(tmp_path / name).create()
        served(where)
        made = live(where, seed=seed)
        drawn.append([row["prompt"][0]["content"] for row in asked_of(made)])
    assert drawn[0] == drawn[1] != drawn[2] and len(set(drawn[0])) == 6


def live(root: Root, prompts: int = 6, **config):
    settings = {"prompts": prompts, "generators": ["speaker:"], "mix": {"traffic": 1}, "project": "desk", **config}
    return run_stage(collect, root, config=settings)


@pytest.mark.parametrize(
    ("settings", "traffic"),
    [
        ("tenants: {town: {}}", {}),  # taken back since
        (None, {"tenants": ["mill"]}),  # never allowed
        (None, {"releases": ["r9"]}),
        (None, {"until": "2001-01-01"}),
    ],
)
def test_traffic_that_nobody_allowed_is_not_asked_about(root, settings, traffic):
    served(root)
    if settings:
        root.service_path.write_text(settings + "\n")
    with pytest.raises(DataError, match=r"no live request that people may be asked about.*collect: true"):
        live(root, traffic=traffic)


def test_requests_of_programs_and_of_users_who_said_no_are_left_out(root):
    served(root, people="simulated")
    with pytest.raises(DataError, match="no live request"):
        live(root)


def test_the_window_and_the_release_choose(root):
    served(root)
    rows = asked_of(live(root, traffic={"releases": ["r1"], "since": "2023-11-20", "until": "2023-12-20"}))
    assert {row["release"] for row in rows} == {"r1"} and len(rows) == 6
    with pytest.raises(ConfigError, match=r"collect\.traffic\.since.*no day"):
        live(root, traffic={"since": "soon"})


def test_the_service_notes_with_each_request_what_its_tenant_and_user_allow(root):
    settings = state.Settings(tenants={"default": state.Tenant(collect=True)})
    with app.background(root=root, settings=settings, upstream="fake:say Hello there") as server:
        key = server.key("anna", kind="live")
        for told in ({}, {"metadata": {"collect": "no"}}, {"metadata": {"collect": "yes", "note": "x"}}):
            body = {"model": "tutelage", "messages": [{"role": "user", "content": f"Hello {told}"}], **told}
            headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
            url = f"{server.url}/v1/chat/completions"
            urllib.request.urlopen(urllib.request.Request(url, json.dumps(body).encode(), headers)).close()
        server.state.flush()
        kept = traffic.requests(server.state.store)
        assert [each.meta.get("collect") for each in kept] == [True, None, True]
        assert len(traffic.askable(server.state.store)) == 3
    root.service_path.write_text("tenants: {default: {collect: true}}\n")
    assert {row["population"] for row in asked_of(live(root))} == {2}


def test_erasing_a_user_clears_the_task_and_names_what_learned_from_it(root):
    served(root)
    collection = live(root)
    with engine.open(root) as store:
        for name in ("a", "b", "c"):
            client = Client(Direct(store, people.create(store, name)))
            while items := client.claim("desk", 9).items:
                client.submit([answer_in_order(item) for item in items])
    learned = run_stage(preferences, root, inputs={"collection": collection})
    with engine.open(root) as store:
        before = tasks.load(store, project_name="desk")
        prompts = {engine.derived_id("text", id, "prompt") for id in before}
        subject = next(f"user{n}" for n in range(5) if prompts & set(erasure.words_of(store, subject=f"user{n}").texts))
        done = erase.erase(store, root, subject=subject, by="lead")
        after = tasks.load(store, project_name="desk")
        left = len(traffic.askable(store))
    assert {collection.ref, learned.ref} <= set(done.artifacts)
    gone = [task for task in after.values() if not task.messages]
    assert gone and not any(any(task.candidates) for task in gone) and len(gone) < len(after)
    rows = asked_of(live(root, prompts=30, project="later"))
    assert len(rows) < 20 and {row["population"] for row in rows} == {len(rows)}, "a later draw passes over them"
    assert left == 2 * len(rows)  # both tenants, one of which allows it


def test_what_was_drawn_stays_when_the_stage_is_killed_and_more_traffic_comes(root, monkeypatch):
    served(root)
    real, calls = api.add_tasks, []

    def dying(*args, **options):
        calls.append(1)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return real(*args, **options)

    monkeypatch.setattr(api, "add_tasks", dying)
    with pytest.raises(KeyboardInterrupt):
        live(root)
    before = json.loads(next(root.work.glob("*/traffic.json")).read_text())
    with engine.open(root) as store:
        traces.write(
            store,
            [
                traces.Trace(tenant="town", messages=(Message(role="user", content="a late one"),),
                             meta={"collect": True}, decisions=(traces.Decided(),))
                for _ in range(50)
            ],
        )  # fmt: skip
    rows = asked_of(live(root))
    assert [row["population"] for row in rows] == [20] * 6 and not any("late" in str(row["prompt"]) for row in rows)
    assert before["population"] == 20


@pytest.mark.parametrize(
    ("config", "named", "message"),
    [
        ({"mix": {"redteam": 1}}, {}, r"collect\.findings.*no findings are named"),
        ({"mix": {"data": 0}}, {}, r"collect\.mix.*above 0"),
        ({}, {"findings": True}, r"collect\.mix.*no share"),
        ({"mix": {"data": 1}}, {"corpus": False}, r"collect\.corpus"),
        ({"people": "simulated", "mix": {"data": 1, "traffic": 1}}, {}, "simulated people know"),
        ({"generators": ["model:12ab"]}, {}, "under `model`"),
        ({"keys": {"speaker:": "my-secret"}}, {}, r"collect\.keys.*file:PATH"),
        ({"mix": {"news": 1}}, {}, r"collect\.mix.*news"),
    ],
)
def test_a_mix_that_cannot_be_is_one_clear_error(root, corpus, config, named, message):
    inputs = {"corpus": corpus} if named.get("corpus", True) else {}
    inputs |= {"findings": [attacked(root)]} if named.get("findings") else {}
    with pytest.raises(ConfigError, match=message):
        run_stage(collect, root, config={"generators": ["speaker:"], "prompts": 3, **config}, inputs=inputs)


def test_a_source_that_runs_out_leaves_its_share_to_the_others():
    def prompts(name, count):
        return [Example.ask(f"{name} {n}") for n in range(count)]

    mixed = Mixed({"data": prompts("d", 30), "redteam": prompts("r", 2), "traffic": []},
                  {"data": 1, "redteam": 1, "traffic": 1})  # fmt: skip
    first = [name for name, _ in mixed.next(10)]
    assert first.count("redteam") == 2 and first.count("data") == 8
    for name in first:
        mixed.took(name, kept=name == "data")  # no finding got two different responses
    assert [name for name, _ in mixed.next(30)] == ["data"] * 22


# any generators


class Endpoint(BaseHTTPRequestHandler):
    """An OpenAI-compatible endpoint; `#picky` refuses some prompts, `#twin` says what the speaker says."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        said = asked["messages"][-1]["content"]
        self.server.keys.add(self.headers.get("authorization"))
        if asked["model"] == "picky" and "person 1" in said:
            return self.answer(400, {"error": {"message": "too odd"}})
        words = {
            "twin": f"First thought on {said[:30]}",
            "vain": "I was trained by OpenAI.",
            "named-7b": "This was written by named-7b for you.",
        }.get(asked["model"], f"Remote {asked['seed'] % 7} of {said[:20]}")
        message = {"role": "assistant", "content": words}
        return self.answer(200, {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}], "usage": {}})

    def answer(self, status: int, body: dict) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_) -> None:
        """Nothing."""


@pytest.fixture
def endpoint():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Endpoint)
    server.keys = set()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def address(server, model: str) -> str:
    return f"http://127.0.0.1:{server.server_address[1]}/v1#{model}"


def test_remote_endpoints_fakes_and_others_answer_side_by_side(root, corpus, endpoint, tmp_path):
    (tmp_path / "key").write_text("s3cret\n")
    remote = address(endpoint, "other")
    generators = ["speaker:", remote, "fake:say A fixed answer to everything"]
    made = gathered(root, corpus, people="none", prompts=8, generators=generators, samples=6, project="desk",
                    keys={remote: f"file:{tmp_path / 'key'}"})  # fmt: skip
    rows = asked_of(made)
    assert {name for row in rows for by in row["producers"] for name in by} == {"speaker", remote, generators[2]}
    assert all(told["failed"] == 0 for told in summary_of(made)["generators"].values())
    assert endpoint.keys == {"Bearer s3cret"}
    assert "s3cret" not in json.dumps(made.config) and "keys" not in made.config
    with engine.open(root) as store:
        item = Client(Direct(store, people.create(store, "anna"))).claim("desk").items[0]
    assert not any(name in item.model_dump_json() for name in ("speaker", "127.0.0.1", "fake:"))


def test_equal_answers_of_two_generators_are_one_candidate_with_both_names(root, corpus, endpoint):
    generators = ["speaker:", address(endpoint, "twin")]
    rows = asked_of(gathered(root, corpus, people="none", prompts=5, generators=generators, samples=4))
    for row in rows:
        both = [by for text, by in zip(row["candidates"], row["producers"], strict=True) if text.startswith("First")]
        assert both == [["speaker", generators[1]]]
        assert sorted(row["alike"]) == [1, 3]


def test_a_generator_that_tells_who_it_is_is_left_out_and_counted(root, corpus, endpoint):
    generators = ["speaker:", address(endpoint, "vain"), address(endpoint, "named-7b")]
    made = gathered(root, corpus, people="none", prompts=5, generators=generators, samples=6)
    assert summary_of(made)["dropped"]["tells who made it"] == 20
    assert {name for row in asked_of(made) for by in row["producers"] for name in by} == {"speaker"}


def test_a_prompt_that_an_endpoint_refuses_costs_only_its_answers(root, corpus, endpoint):
    generators = ["speaker:", address(endpoint, "picky")]
    made = gathered(root, corpus, people="none", prompts=20, generators=generators, samples=4)
    told = summary_of(made)["generators"][generators[1]]
    assert 0 < told["failed"] < 20 and told["responses"] == 2 * (20 - told["failed"]) and "too odd" in told["error"]
    assert len(asked_of(made)) == 20


def test_a_generator_that_is_gone_is_counted_and_all_of_them_gone_is_an_error(root, corpus):
    made = gathered(root, corpus, people="none", prompts=12, generators=["speaker:", "broken:"], samples=4)
    assert summary_of(made)["generators"] == {
        "broken": {"responses": 0, "failed": 12, "error": "the cable is cut"},
        "speaker": {"responses": 24, "failed": 0},
    }
    with pytest.raises(UpstreamError, match="no generator answers: the cable is cut"):
        gathered(root, corpus, people="none", prompts=12, generators=["broken:"])


def test_a_generator_that_fails_again_and_again_is_not_asked_for_ever():
    calls = []

    def fail(example, sample):
        calls.append(example)
        raise UpstreamError("no")

    asked = [candidates.Asked(FakeGenerator(fail, name="bad")), candidates.Asked(FakeGenerator(say, name="good"))]
    prompts = [Example.ask(f"number {n}") for n in range(30)]
    pools = candidates.gather(asked, prompts, wanted=2, samples=4, sampling=Sampling())
    assert len(calls) == 1 + candidates.FAILURES and asked[0].given_up
    assert all(len(pool.kept) == 2 and pool.failed == {"bad": "no"} for pool in pools)


def test_responses_that_were_paid_for_are_not_drawn_again_after_a_kill(root, corpus, monkeypatch):
    asked = []

    class Counting(FakeGenerator):
        def generate(self, prompts, sampling):
            if len(asked) == 2:
                asked.append("killed")
                raise KeyboardInterrupt
            asked.append(len(prompts))
            return super().generate(prompts, sampling)

    def mostly_alike(example, sample):
        number = int(example.tags["id"][1:])
        return say(example, sample) if number % 2 else "always the same"

    monkeypatch.setitem(globals(), "open_speaker", lambda *_, **__: Counting(mostly_alike, name="speaker"))
    settings = {"people": "none", "prompts": 24, "project": "desk"}
    with pytest.raises(KeyboardInterrupt):
        gathered(root, corpus, **settings)
    before = sum(each for each in asked if isinstance(each, int))
    log = next(root.work.glob("*/pools.jsonl"))
    assert len(log.read_text().splitlines()) == before
    with log.open("a") as out:
        out.write('{"prompt": "torn')
    done = gathered(root, corpus, **settings)
    again = sum(each for each in asked if isinstance(each, int)) - before
    assert done.metrics["prompts_tried"] <= before + again < 2 * before + again
    other = Root(root.path.parent / "other").create()
    monkeypatch.setitem(globals(), "open_speaker", lambda *_, **__: FakeGenerator(mostly_alike, name="speaker"))
    same = gathered(
        other, seal(other, "corpus", {"dialogues.jsonl": [dialogue(n) for n in range(60)]}, "c"), **settings
    )
    assert same.metrics == done.metrics and asked_of(same) == asked_of(done)
