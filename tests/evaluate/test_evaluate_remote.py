"""Examinations over the network, against a real server that misbehaves: whatever it does wrong is `unknown` with its
reason, lowers coverage and fails the gate; nothing is asked or paid twice; no key is written anywhere."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from endpoints import KEY, PROGRAM, Endpoint, Quiet, gated, questions

from tutelage.core.artifact import Root
from tutelage.core.errors import Stopped
from tutelage.core.records import Example, Message
from tutelage.evaluate.ask import examine
from tutelage.evaluate.further import Examination
from tutelage.evaluate.run import evaluate_reference
from tutelage.evaluate.suite import Suite
from tutelage.generate.local import LocalGenerator
from tutelage.generate.score import Row
from tutelage.model.transformer import Decoder, DecoderConfig
from tutelage.tokens.chat import render
from tutelage.tokens.tokenizer import learn


def examined(there: Any, wrong: str, root: Root, suites: list[Suite] | None = None, **more: Any) -> dict[str, Any]:
    hasty = {"retries": 0, "timeout": 0.3, "concurrency": 4}
    return evaluate_reference(f"{there[0]}/{wrong}/v1#m", suites or questions(12), root=root, **hasty | more)


WRONGS = {
    "html": "no JSON object: '<html>",
    "truncated": "IncompleteRead",
    "half": "no JSON object",
    "types": "expected a text, found dict",
    "empty": "gave no completion",
    "null": "expected a text, found NoneType",
    "errors": "status 500: out of memory",
    "throttles": "it asks to wait 3600 s",
    "unpaid": "insufficient_quota",
    "unknown-key": "status 401",
    "hangs": "no answer within 0.3 s",
    "drips": "no answer within 0.3 s",
}


@pytest.mark.parametrize("wrong", WRONGS)
def test_what_goes_wrong_is_unknown_and_fails_the_gate(there: Any, wrong: str, tmp_path: Path) -> None:
    found = examined(there, wrong, Root(tmp_path))
    assert [row.outcome for row in found["results"]] == ["unknown"] * 12
    assert all(row.value is None and not row.scores for row in found["results"])
    assert WRONGS[wrong] in found["results"][0].reason, found["results"][0].reason
    assert "\n" not in found["results"][0].reason
    cell = found["cells"][0]
    assert (cell["value"], cell["asked"], cell["unmeasured"]) == (None, 12, 12)
    verdict = gated(found["results"])
    assert not verdict.promote and "not enough data" in verdict.reason


def test_one_bad_answer_does_not_stop_the_others_and_still_fails_the_gate(there: Any, tmp_path: Path) -> None:
    found = examined(there, "some", Root(tmp_path), questions(30))
    outcomes = Counter(row.outcome for row in found["results"])
    assert outcomes == {"answered": 20, "unknown": 10}
    assert found["cells"][0]["value"] == 1.0 and found["cells"][0]["unmeasured"] == 10
    verdict = gated(found["results"])
    assert not verdict.promote and "20 of 30 answers were measured, needs 90%" in verdict.reason
    assert all(there[1][f"some Is it so, number {place}?"] == 1 for place in range(30)), "asked again for nothing"
    assert gated(examined(there, "good", Root(tmp_path))["results"]).promote


def test_an_endpoint_that_is_down_is_left_alone(there: Any, tmp_path: Path) -> None:
    before = sum(count for asked, count in there[1].items() if asked.startswith("errors"))
    found = examined(there, "errors", Root(tmp_path), questions(200))
    assert "requests in a row failed" in found["results"][-1].reason
    asked = sum(count for asked, count in there[1].items() if asked.startswith("errors")) - before
    assert asked < 30, asked
    before = sum(count for asked, count in there[1].items() if asked.startswith("unknown-key"))
    examined(there, "unknown-key", Root(tmp_path), questions(100))
    asked = sum(count for asked, count in there[1].items() if asked.startswith("unknown-key")) - before
    assert asked <= 8, asked


@pytest.mark.parametrize("kind", ["generate", "choice"])
@pytest.mark.parametrize("rooted", [True, False])
def test_one_that_hangs_costs_itself_alone(there: Any, tmp_path: Path, kind: str, rooted: bool) -> None:
    """The first of its chunk gets no answer: all others of the chunk are kept, and asked once."""
    there[1].clear()
    root: Any = Root(tmp_path) if rooted else None
    found = examined(there, "one-hangs", root, questions(40, kind))
    lost = [row for row in found["results"] if row.outcome == "unknown"]
    assert [row.item for row in lost] == ["q0"] and "no answer within 0.3 s" in lost[0].reason
    assert sum(row.value == 1.0 for row in found["results"]) == 39
    assert found["cells"][0]["unmeasured"] == 1
    each = 1 if kind == "generate" else 2  # a request for every choice
    asked = {name: count for name, count in there[1].items() if "number" in name and "number 0?" not in name}
    assert len(asked) == 39 * each and set(asked.values()) == {1}, "what was answered is not asked again"


def test_several_in_a_row_are_the_endpoints_end(there: Any, tmp_path: Path) -> None:
    there[1].clear()
    found = examined(there, "hangs", Root(tmp_path), questions(60), concurrency=2)
    assert sum(there[1].values()) <= 10
    assert "8 requests in a row failed, the last: TimeoutError: no answer within 0.3 s" in found["results"][-1].reason


def test_what_may_pass_is_tried_again_after_the_pause_it_asks_for(there: Any, tmp_path: Path) -> None:
    found = examined(there, "flaky", Root(tmp_path), questions(3), retries=3, timeout=20)
    assert [row.value for row in found["results"]] == [1.0] * 3
    assert (found["endpoint"]["requests"], found["endpoint"]["retried"]) == (3, 6)


def test_likelihoods_where_there_are_any_and_a_reason_where_not(there: Any, tmp_path: Path) -> None:
    choices = questions(8, "choice")
    good = examined(there, "good", Root(tmp_path), choices)
    assert [row.value for row in good["results"]] == [1.0] * 8
    for wrong, said in (("nan", "no finite number"), ("nologs", "gives no log-probabilities of a prompt")):
        found = examined(there, wrong, Root(tmp_path), choices)
        assert {row.outcome for row in found["results"]} == {"unknown"}, wrong
        assert said in found["results"][0].reason
        assert not gated(found["results"]).promote
    asked = sum(count for asked, count in there[1].items() if asked.startswith("nologs"))
    assert asked <= 8, "an endpoint that gives none is asked no further"
    turns = [
        Suite(
            "asked", [each.model_copy(update={"messages": Example.ask("Is it?").messages}) for each in choices[0].items]
        )
    ]
    found = examined(there, "good", Root(tmp_path), turns)
    assert "weighs choices after verbatim text only" in found["results"][0].reason


class Weighing(Endpoint):
    """A real model of ours behind the protocol as vLLM speaks it; the path says what begins a text or is wrong."""

    model: LocalGenerator

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        wrong, text = self.path.split("/")[1], body["prompt"]
        assert self.path.endswith("/completions") and body["echo"] and body["max_tokens"] == 1
        ids = render((Message(role="text", content=text),), self.model.tokenizer)
        if len(ids) > self.model.decoder.config.max_position_embeddings:
            self.say(400, b'{"error": {"message": "This model\'s maximum context length is 48 tokens"}}')
            return
        with self.lock:  # the engine is stepped by one thread
            found = self.model.weigh([Row(tuple(ids[:at]), (ids[at],)) for at in range(1, len(ids))])
        rows = [each.logprob for each in found]
        tokens = ["<s>", *(self.model.tokenizer.decode([each]) for each in ids[1:])]
        values: list[float | None] = [None, *rows]
        if wrong == "bare":  # nothing stands before a text
            tokens, values = tokens[1:], [None, *rows[1:]]
        if wrong == "numbers":
            tokens = [f"token_id:{each}" for each in ids]
        echoed = text[5:] if wrong == "cuts" else "" if wrong == "silent" else text
        logs = {"tokens": [*tokens, " x"], "token_logprobs": [*values, -0.1], "text_offset": []}
        usage = {"prompt_tokens": len(tokens), "completion_tokens": 1}
        self.say(200, json.dumps({"choices": [{"text": f"{echoed} x", "logprobs": logs}], "usage": usage}).encode())


@pytest.fixture(scope="module")
def weighing() -> Iterator[tuple[str, LocalGenerator]]:
    sentence = "the cat sat on the mat and the dog ran to the park. Häuser stehen dort. "
    tokenizer = learn([sentence * 10], 320, 2)
    decoder = Decoder(DecoderConfig(tokenizer.size, 16, 24, 1, 2, 2, max_position_embeddings=48), seed=1)
    model = LocalGenerator(decoder.requires_grad_(False), tokenizer, name="small")
    server = Quiet(("127.0.0.1", 0), type("Handler", (Weighing,), {"model": model}))
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", model
    server.shutdown()
    server.server_close()


def documents(*texts: str) -> list[Suite]:
    tags = {"suite": "read", "kind": "perplexity"}
    made = [
        Example(messages=(Message(role="text", content=text),), tags=tags | {"id": f"d{place}"})
        for place, text in enumerate(texts)
    ]
    return [Suite("read", made)]


TEXTS = ("the cat sat on the mat", "the dog ran to Häuser dort", "ran to the park. the cat")


def test_running_text_weighs_the_same_behind_an_endpoint_as_here(weighing: Any, tmp_path: Path) -> None:
    """The bits of a real model through the protocol are those of the model itself; without a token that begins a text,
    those of all but its first token, over their bytes."""
    url, model = weighing
    here = examine(model, documents(*TEXTS)[0].items, target="small")
    there = evaluate_reference(f"{url}/begins/v1#m", documents(*TEXTS), root=Root(tmp_path), timeout=20)["results"]
    for one, other in zip(sorted(here, key=lambda row: row.item), there, strict=True):
        assert other.value == pytest.approx(one.value, abs=1e-5)
        assert (other.scores["bytes"], other.scores["tokens"]) == (one.scores["bytes"], one.scores["tokens"])
    bare = evaluate_reference(f"{url}/bare/v1#m", documents(TEXTS[0]), root=Root(tmp_path), timeout=20)["results"][0]
    ids = render((Message(role="text", content=TEXTS[0]),), model.tokenizer)
    first = model.tokenizer.decode([ids[1]])
    bits = -model.weigh([Row(tuple(ids[:2]), tuple(ids[2:]))])[0].logprob / math.log(2)
    assert bare.scores["bytes"] == len(TEXTS[0].encode()) - len(first.encode())
    assert bare.scores["tokens"] == len(ids) - 2
    assert bare.scores["bits"] == pytest.approx(bits, abs=1e-4)
    assert bare.value == pytest.approx(bare.scores["bits"] / bare.scores["bytes"])


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("cuts", "the text that came back is not the one that was sent"),
        ("silent", "the text that came back is not the one that was sent"),
        ("numbers", "does not begin the text"),
    ],
)
def test_what_cannot_be_trusted_to_be_the_whole_text_is_unknown(
    weighing: Any, tmp_path: Path, wrong: str, said: str
) -> None:
    found = evaluate_reference(f"{weighing[0]}/{wrong}/v1#m", documents(*TEXTS), root=Root(tmp_path), timeout=20)
    assert {row.value for row in found["results"]} == {None} and said in found["results"][0].reason
    assert (found["cells"][0]["value"], found["cells"][0]["unmeasured"]) == (None, 3)


def test_running_text_that_no_endpoint_weighs_is_unknown_with_its_reason(
    weighing: Any, there: Any, tmp_path: Path
) -> None:
    long = documents("the cat sat on the mat", "the cat sat on the mat and the dog ran to the park. " * 5)
    found = evaluate_reference(f"{weighing[0]}/begins/v1#m", long, root=Root(tmp_path), timeout=20)["results"]
    assert [row.value is None for row in found] == [False, True] and "maximum context length" in found[1].reason
    none = examined(there, "nologs", Root(tmp_path), documents(*TEXTS))["results"]
    assert {row.value for row in none} == {None} and "gives no log-probabilities of a prompt" in none[0].reason
    strided = Examination(how={"stride": 8})
    told = evaluate_reference(f"{weighing[0]}/begins/v1#m", documents(*TEXTS), strided, root=Root(tmp_path))
    assert {row.reason for row in told["results"]} == {
        "key 'stride': an endpoint weighs a text whole. Leave the stride out"
    }


def test_cost_is_counted_and_a_budget_stops_and_goes_on(there: Any, tmp_path: Path) -> None:
    price = {"input": 10.0, "output": 100.0}  # an answer: 100 tokens at 10 and 10 at 100 a million = 0.002
    root = Root(tmp_path)
    suites = questions(20)
    with pytest.raises(Stopped, match=r"the budget of 0\.03 holds no further request"):
        examined(there, "good", root, suites, price=price, budget=0.03, concurrency=1)
    found = examined(there, "good", root, suites, price=price, budget=1.0)
    bill = found["endpoint"]
    assert bill["cost"] == pytest.approx(20 * 0.002) and bill["input_tokens"] == 2000
    assert bill["kept"] >= 10 and bill["kept"] + bill["requests"] == 20 and bill["models"] == ["m-2026"]
    assert examined(there, "good", root, suites, price=price)["endpoint"]["requests"] == 0
    again = examined(there, "good", root, suites, price=price, fresh=True)["endpoint"]
    assert (again["requests"], again["kept"]) == (20, 0)


def test_killed_anywhere_nothing_is_asked_twice_and_the_key_is_nowhere(there: Any, tmp_path: Path) -> None:
    suite, root, count = tmp_path / "own.jsonl", tmp_path / "life", 60
    rows = [
        {"messages": [{"role": "user", "content": f"Is it so, number {n}?"}], "target": "yes"} for n in range(count)
    ]
    suite.write_text("\n".join(map(json.dumps, rows)))
    there[1].clear()
    command = [
        *(sys.executable, "-c", PROGRAM, "evaluate", f"{there[0]}/slow/v1#m", "key=env:MY_KEY", "concurrency=2"),
        *("price.input=10", "--suite", str(suite), "--root", str(root)),
    ]
    environment = os.environ | {"MY_KEY": KEY}
    first = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while sum(there[1].values()) < 20 and first.poll() is None:
        time.sleep(0.005)
    first.send_signal(signal.SIGKILL)
    assert first.wait(20) == -signal.SIGKILL
    killed = sum(there[1].values())
    assert 20 <= killed < count
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert len(there[1]) == count and sum(there[1].values()) <= count + 2, "only what was under way is asked again"
    assert "kept from before" in done.stdout and "cost " in done.stdout and "n=60" in done.stdout
    wrong = [each.replace("/slow/", "/unknown-key/") for each in command]
    refused = subprocess.run(wrong, env=environment, capture_output=True, text=True, timeout=120)
    assert refused.returncode == 1 and "Bearer [key]" in refused.stderr
    said = done.stdout + done.stderr + refused.stdout + refused.stderr
    files = b"".join(each.read_bytes() for each in root.rglob("*") if each.is_file())
    assert KEY not in said and KEY.encode() not in files and files.count(b'"key"') >= count


def test_we_ask_as_the_official_client_asks(there: Any, tmp_path: Path) -> None:
    """The same body and authorization, and the same answer read."""
    bodies: list[tuple[dict[str, Any], str]] = []

    class Recorder(Endpoint):
        seen, over = Counter(), threading.Event()

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            bodies.append((body, self.headers["authorization"]))
            message = {"role": "assistant", "content": "yes", "refusal": None}
            choice = {"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}
            usage = {"prompt_tokens": 9, "completion_tokens": 1, "total_tokens": 10}
            found = {
                "id": "1",
                "object": "chat.completion",
                "created": 1,
                "model": "m",
                "choices": [choice],
                "usage": usage,
            }
            self.say(200, json.dumps(found).encode(), ("content-type", "application/json"))

    server = Quiet(("127.0.0.1", 0), Recorder)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        url = f"http://127.0.0.1:{server.server_port}/v1"
        (tmp_path / "key").write_text(KEY)
        ours = evaluate_reference(f"{url}#m", questions(1), root=Root(tmp_path), key=f"file:{tmp_path / 'key'}")
        body = bodies[0][0]
        theirs = openai.OpenAI(base_url=url, api_key=KEY).chat.completions.create(**body)
        assert bodies[1] == bodies[0]
        assert theirs.choices[0].message.content == ours["results"][0].output == "yes"
        assert theirs.usage is not None and ours["endpoint"]["input_tokens"] == theirs.usage.prompt_tokens
    finally:
        server.shutdown()
        server.server_close()
