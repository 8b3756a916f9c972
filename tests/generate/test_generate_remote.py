"""The remote generator against a small endpoint in a thread: protocol, order, retries, failures."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tutelage.core.errors import ConfigError, Unreachable, UpstreamError, UsageError
from tutelage.core.records import Example, Message, ToolCall
from tutelage.generate.endpoint import Endpoint
from tutelage.generate.generator import Generator, Sampling
from tutelage.generate.remote import RemoteGenerator, open_remote


class Speaker:
    """Answers with the last message in capitals; `failures` are statuses it gives first."""

    def __init__(self) -> None:
        self.failures: list[int] = []
        self.asked: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.reply: Any = None
        lock = threading.Lock()
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                with lock:
                    endpoint.asked.append(body)
                    endpoint.headers.append(dict(self.headers))
                    status = endpoint.failures.pop(0) if endpoint.failures else 200
                found = endpoint.answer(self.path, body) if endpoint.reply is None else endpoint.reply
                data = found if isinstance(found, bytes) else json.dumps(found).encode()
                self.send_response(status)
                if status == 429:
                    self.send_header("retry-after", "7")
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def answer(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        usage = {"prompt_tokens": 3, "completion_tokens": 1, "details": {"cached": 0}}
        if path.endswith("/chat/completions"):
            said = {"content": body["messages"][-1]["content"].upper()}
            return {"choices": [{"message": said, "finish_reason": "stop"}], "usage": usage}
        text = body["prompt"]
        if not body.get("echo"):
            return {"choices": [{"text": text + "!", "finish_reason": "length"}], "usage": usage}
        offsets = [place for place in range(len(text)) if place == 0 or text[place] == " "] + [len(text)]
        values = [None, *(-float(place) for place in range(1, len(offsets)))]
        top = [{} if value is None else {"a": value, "b": -2.0} for value in values]
        logs = {"text_offset": offsets, "token_logprobs": values, "top_logprobs": top}
        return {"choices": [{"text": text, "logprobs": logs}]}


@pytest.fixture
def endpoint() -> Iterator[Speaker]:
    found = Speaker()
    yield found
    found.server.shutdown()
    found.server.server_close()


@pytest.fixture
def naps() -> list[float]:
    return []


@pytest.fixture
def remote(endpoint: Speaker, naps: list[float]) -> Iterator[RemoteGenerator]:
    clock = [0.0]

    def sleep(seconds: float) -> None:
        naps.append(seconds)
        clock[0] += seconds

    settings = Endpoint(retries=3, timeout=60)
    given: dict[str, Any] = {"key": "secret", "sleep": sleep, "clock": lambda: clock[0], "jitter": lambda: 1.0}
    with RemoteGenerator(endpoint.url, "m", settings, **given) as found:
        yield found


def test_answers_in_order(endpoint: Speaker, remote: RemoteGenerator) -> None:
    assert isinstance(remote, Generator)
    prompts = [Example.ask(f"q{place}", system="be brief") for place in range(20)]
    found = remote.generate(prompts, Sampling(n=2, stop=("x",), temperature=0.5, seed=3, max_tokens=9))
    assert [[each.message.content for each in row] for row in found] == [[f"Q{place}"] * 2 for place in range(20)]
    first = found[0][0]
    assert (first.finish, first.usage) == ("stop", {"prompt_tokens": 3, "completion_tokens": 1})
    body = endpoint.asked[0]
    assert (body["model"], body["max_tokens"], body["temperature"], body["stop"]) == ("m", 9, 0.5, ["x"])
    assert body["messages"][0] == {"role": "system", "content": "be brief"}
    assert len({body["seed"] for body in endpoint.asked}) == 40
    assert endpoint.headers[0]["authorization"] == "Bearer secret"


def test_what_openai_does_not_know_is_sent_where_it_is_asked_for(endpoint: Speaker, remote: RemoteGenerator) -> None:
    more = {"top_k", "min_p", "min_tokens", "repetition_penalty", "repeat_penalty", "repeat_last_n"}
    remote.generate([Example.ask("x")], Sampling())
    assert not more & endpoint.asked[-1].keys()
    remote.generate([Example.ask("x")], Sampling(top_k=5, min_p=0.1, min_tokens=2, repetition_penalty=1.3))
    assert {name: endpoint.asked[-1][name] for name in more} == {
        "top_k": 5,
        "min_p": 0.1,
        "min_tokens": 2,
        "repetition_penalty": 1.3,
        "repeat_penalty": 1.3,  # llama.cpp's name; it reads the last 64 tokens only, unless told
        "repeat_last_n": -1,
    }


def test_text_goes_to_completions_and_tools_travel(endpoint: Speaker, remote: RemoteGenerator) -> None:
    text = Example(messages=(Message(role="text", content="once upon"),))
    assert remote.generate([text], Sampling())[0][0].message.content == "once upon!"
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    said = {"content": None, "tool_calls": [call], "reasoning_content": "hm"}
    endpoint.reply = {"choices": [{"message": said, "finish_reason": "tool_calls"}]}
    turns = (
        Message(role="user", content="go"),
        Message(role="assistant", tool_calls=(ToolCall(id="c0", name="g", arguments="{}"),)),
        Message(role="tool", content="done", tool_call_id="c0"),
    )
    found = remote.generate([Example(messages=turns)], Sampling())[0][0]
    assert found.finish == "tool"
    assert found.message.tool_calls == (ToolCall(id="c1", name="f", arguments="{}"),)
    assert found.message.reasoning == "hm"
    assert endpoint.asked[-1]["messages"][1]["tool_calls"][0]["function"]["name"] == "g"
    assert endpoint.asked[-1]["messages"][2]["tool_call_id"] == "c0"
    with pytest.raises(UsageError, match="cannot be mixed"):
        remote.generate([Example(messages=(*turns, *text.messages))], Sampling())


def test_likelihoods_by_echo(remote: RemoteGenerator) -> None:
    text = Example(messages=(Message(role="text", content="a b "),))
    scores = remote.loglikelihood([text], [["c", "c d"]])[0]
    assert [(each.logprob, each.tokens, each.greedy) for each in scores] == [(-2.0, 1, True), (-5.0, 2, False)]
    with pytest.raises(UsageError, match="verbatim text only"):
        remote.loglikelihood([Example.ask("x")], [["y"]])


def test_what_may_pass_is_tried_again(endpoint: Speaker, remote: RemoteGenerator, naps: list[float]) -> None:
    endpoint.failures = [503, 429]
    assert remote.generate([Example.ask("x")], Sampling())[0][0].message.content == "X"
    assert naps == [0.5, 7.0]


def test_failures_are_one_clear_error(endpoint: Speaker, remote: RemoteGenerator, naps: list[float]) -> None:
    endpoint.failures = [500] * 4
    with pytest.raises(UpstreamError, match="status 500"):
        remote.generate([Example.ask("x")], Sampling())
    assert len(naps) == 3
    endpoint.failures = [401]
    with pytest.raises(UpstreamError, match="status 401"):
        remote.generate([Example.ask("x")], Sampling())
    assert len(naps) == 3
    for reply, message in ((b"<html>", "no JSON object"), ({"choices": []}, "gave no completion"), ([], "no JSON")):
        endpoint.reply = reply
        with pytest.raises(UpstreamError, match=message):
            remote.generate([Example.ask("x")], Sampling())
    endpoint.reply = {"choices": [{"text": "", "logprobs": None}]}
    with pytest.raises(UpstreamError, match="no log-probabilities of a prompt"):
        remote.loglikelihood([Example(messages=(Message(role="text", content="a"),))], [["b"]])


def test_nobody_there() -> None:
    remote = RemoteGenerator("http://127.0.0.1:9/v1", "m", Endpoint(retries=1, timeout=1), sleep=lambda _: None)
    with pytest.raises(Unreachable, match=r"9/v1#m failed"):
        remote.generate([Example.ask("x")], Sampling())


def test_references(endpoint: Speaker, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("from a file\n")
    remote = open_remote(f"{endpoint.url}#big", key=f"file:{tmp_path / 'key'}")
    remote.generate([Example.ask("x")], Sampling())
    assert endpoint.asked[0]["model"] == "big"
    assert endpoint.headers[0]["authorization"] == "Bearer from a file"
    with pytest.raises(UsageError, match="names no model"):
        open_remote(endpoint.url)
    with pytest.raises(UsageError, match="not an http address"):
        open_remote("ftp://x#m")
    with pytest.raises(ConfigError, match="missing or empty"):
        open_remote(f"{endpoint.url}#m", key="file:/nowhere/key")
    with pytest.raises(ConfigError, match="never in the file itself"):
        open_remote(f"{endpoint.url}#m", key="sk-in-clear-text")
    with pytest.raises(UsageError, match="holds no password"):
        open_remote("http://me:word@x/v1#m")
