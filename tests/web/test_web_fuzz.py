"""Whatever comes in, from clients, upstreams or guards, the answer is typed: no 500, no traceback, no leak.

A short form in every run; the long one (Schemathesis and the fuzzers with many examples) is slow.
"""

from __future__ import annotations

import contextlib
import copy
import json
import random
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
import schemathesis
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    status_code_conformance,
)

sys.path.insert(0, str(Path(__file__).parents[1] / "guard"))
sys.path.insert(0, str(Path(__file__).parent))
from guard_house import make_bundle, make_root
from openai_house import CODE, HELLO, endpoint, running

from tutelage.core.records import Example, Verdict
from tutelage.guard.events import read
from tutelage.guard.upstream import Misbehaved
from tutelage.judge.judge import WindowedJudge
from tutelage.store import traffic
from tutelage.web import described, patience, wire
from tutelage.web.addresses import EncoderSettings, PatienceSettings, UpstreamSettings
from tutelage.web.app import Server, create_app
from tutelage.web.settings import Settings, Tenant

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, negative_data_rejection]
TENANTS = {"default": Tenant(limits={"requests_per_minute": 0, "concurrent": 0})}
TYPED = {400, 401, 403, 404, 408, 413, 415, 422, 429, 499, 501, 502, 503}


@pytest.fixture(scope="module")
def behind() -> Iterator[tuple[FastAPI, str]]:
    app = endpoint()
    with running(app) as url:
        yield app, url


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory, behind: tuple[FastAPI, str]) -> Iterator[Server]:
    root = make_root(tmp_path_factory.mktemp("fuzz"))
    bundle = make_bundle(root, tmp_path_factory.mktemp("policy"))
    settings = Settings(
        serve=bundle.ref,
        upstream=UpstreamSettings(url=behind[1], model="m"),
        encoder=EncoderSettings(url=behind[1]),
        patience=PatienceSettings(first_s=1.0, idle_s=0.8, total_s=8.0),
        tenants=TENANTS,
    )
    with Server(create_app(root, settings)) as server:
        yield server


@pytest.fixture(scope="module")
def web(serving: Server) -> Iterator[httpx.Client]:
    head = {"authorization": f"Bearer {serving.key()}"}
    with httpx.Client(base_url=serving.url, headers=head, timeout=30) as client:
        yield client


def chat(text: str, **more: Any) -> dict[str, Any]:
    return {"model": "tutelage", "messages": [{"role": "user", "content": text}], **more}


def fine(reply: httpx.Response) -> None:
    """An answer, or an error with OpenAI's form that tells nothing of our inside."""
    if reply.status_code in (200, 201):
        return
    assert reply.status_code in TYPED, (reply.status_code, reply.text)
    error = reply.json()["error"]
    assert error["message"] and error["type"] and {"param", "code"} <= set(error)
    assert not any(word in reply.text for word in ("Traceback", "site-packages", 'File "'))


# what clients send

TOOL = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}
SCHEMA = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}, "strict": True}}
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": "\\ud800 \\u0069"}'}}
TURNS = [
    {"role": "system", "content": "be kind"},
    {"role": "user", "content": [{"type": "text", "text": "hello"}], "name": "ann"},
    {"role": "assistant", "content": None, "tool_calls": [CALL], "reasoning_content": "hm"},
    {"role": "tool", "content": "42", "tool_call_id": "c1"},
]
ITEMS = [
    {"role": "user", "content": [{"type": "input_text", "text": "hello"}]},
    {"type": "reasoning", "id": "r", "summary": [{"type": "summary_text", "text": "hm"}]},
    {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"},
    {"type": "function_call_output", "call_id": "c1", "output": "42"},
]
FLAT = {"type": "function", "name": "f", "parameters": {}}
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {
        **chat("hello"), "messages": TURNS, "tools": [TOOL], "tool_choice": "auto", "response_format": SCHEMA,
        "logprobs": True, "top_logprobs": 2, "max_tokens": 9, "temperature": 0.5, "top_p": 0.9, "n": 2, "seed": 3,
        "stop": ["x"], "user": "u", "metadata": {"a": "b"}, "stream": False, "parallel_tool_calls": True,
    },
    "/v1/completions": {"model": "tutelage", "prompt": "once", "max_tokens": 9, "stop": "x", "n": 1, "seed": 1},
    "/v1/responses": {
        "model": "tutelage", "input": ITEMS, "instructions": "be kind", "tools": [FLAT], "tool_choice": "none",
        "text": {"format": {"type": "text"}}, "max_output_tokens": 9, "metadata": {"a": "b"}, "include": [],
        "temperature": 1, "top_p": 1, "stream": False, "store": False,
    },
    "/v1/embeddings": {"model": "tutelage", "input": ["a", "b"], "encoding_format": "float"},
    "/v1/moderations": {"model": "x", "input": ["a", {"type": "text", "text": "b"}]},
    "/v1/feedback": {"kind": "thumb", "request": "r", "value": 1, "text": "t", "key": "k"},
    "/guard/scan": {"rows": [{"id": 1, "text": "a"}, {"messages": TURNS, "answer": "b"}]},
}  # fmt: skip
ODD: list[Any] = [
    None, True, 0, -1, 1e308, 2**70, "", "x", "\x00", "x" * 5000, [], [[]], {}, {"a": {}}, [None], ["x"] * 300,
    [1.5, {"b": []}], {"type": "x"}, "\u202e\u200b", {"role": "user"}, -0.0,
]  # fmt: skip


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if at:
        yield at
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield from places(value[key], (*at, key))


def mangled(body: dict[str, Any], dice: random.Random) -> dict[str, Any]:
    """The body with one to three parts replaced, removed, added or doubled."""
    body = copy.deepcopy(body)
    for _ in range(dice.randint(1, 3)):
        found = list(places(body))
        if not found:
            break
        *path, last = dice.choice(found)
        parent: Any = body
        for key in path:
            parent = parent[key]
        how = dice.randrange(4)
        if how == 0:
            parent[last] = copy.deepcopy(dice.choice(ODD))
        elif how == 1:
            del parent[last]
        elif how == 2 and isinstance(parent, dict):
            parent[dice.choice(["surprise", "type", "name", "stream", "n", "audio"])] = copy.deepcopy(dice.choice(ODD))
        else:
            parent[last] = [parent[last], copy.deepcopy(parent[last])]
    return body


def fuzz(web: httpx.Client, rounds: int, seed: int) -> None:
    dice = random.Random(seed)
    for path, body in BODIES.items():
        fine(web.post(path, json=body))
        for _ in range(rounds):
            made = mangled(body, dice)
            reply = web.post(path, json=made)
            try:
                fine(reply)
            except AssertionError as wrong:
                raise AssertionError(f"{path} {json.dumps(made)[:2000]}") from wrong


def test_bodies_with_odd_parts_are_typed_errors(web: httpx.Client) -> None:
    fuzz(web, 25, 1)


@pytest.mark.slow
def test_many_bodies_with_odd_parts(web: httpx.Client) -> None:
    fuzz(web, 500, 2)


RAW: dict[str, tuple[bytes, int]] = {
    "nothing": (b"", 400),
    "no object": (b"[1]", 400),
    "no utf-8": (b'{"input": "\xff\xfe"}', 400),
    "half a surrogate": (b'{"input": "\\ud800"}', 400),
    "surrogates the wrong way round": (b'{"input": "\\udc00\\ud800", "messages": []}', 400),
    "deep": (b'{"input": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", 400),
    "deep objects": (b'{"a":' * 70 + b"1" + b"}" * 70, 400),
    "a key twice": (b'{"input": "a", "input": "b"}', 400),
    "not a number": (b'{"input": NaN}', 400),
    "an endless number": (b'{"input": ' + b"9" * 6000 + b"}", 400),
    "cut off": (b'{"input": "a', 400),
    "many keys": (b"{" + b",".join(b'"k%d":1' % n for n in range(20_000)) + b"}", 400),
}


@pytest.mark.parametrize("name", sorted(RAW))
def test_bytes_that_are_no_request(web: httpx.Client, name: str) -> None:
    body, status = RAW[name]
    for path in BODIES:
        reply = web.post(path, content=body, headers={"content-type": "application/json"})
        fine(reply)
        assert reply.status_code in (status, 413), (path, reply.text)
    assert web.post("/v1/responses", content=b"{}", headers={"content-type": "text/plain"}).status_code == 415


def speak(url: str, head: str, body: bytes = b"") -> tuple[socket.socket, str]:
    """A connection that has sent this, and the host it named."""
    host, port = urlsplit(url).hostname or "", urlsplit(url).port or 0
    line = socket.create_connection((host, port), timeout=20)
    line.sendall(head.replace("HOST", f"{host}:{port}").replace("\n", "\r\n").encode() + body)
    return line, host


def heard(line: socket.socket) -> bytes:
    """All that comes until the other side closes."""
    found = b""
    with contextlib.suppress(ConnectionError):
        while part := line.recv(65536):
            found += part
    line.close()
    return found


POST = "POST /v1/chat/completions HTTP/1.1\nhost: HOST\nauthorization: Bearer KEY\ncontent-type: application/json\n"


@pytest.mark.parametrize("how", ["said before", "in chunks"])
def test_a_hundred_megabytes_are_not_read(serving: Server, how: str) -> None:
    head = POST.replace("KEY", serving.key("large"))
    if how == "said before":
        line, _ = speak(serving.url, f"{head}content-length: 104857600\n\n", b'{"a": "')
        assert b" 413 " in line.recv(4096)
        line.close()
        return
    line, _ = speak(serving.url, f"{head}transfer-encoding: chunked\n\n")
    sent, said = 0, b""
    line.setblocking(False)
    piece = b"10000\r\n" + b"x" * 65536 + b"\r\n"
    while sent < 100 << 20 and not said:
        with contextlib.suppress(BlockingIOError):
            sent += line.send(piece)
        with contextlib.suppress(BlockingIOError, ConnectionError):
            said = line.recv(4096)
    assert b" 413 " in said and sent < 20 << 20
    line.close()


# clients that wait, and clients that leave


def test_a_head_that_does_not_come_is_not_waited_for(serving: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "HEAD_S", 0.3)
    for begun in ("", "POST /v1/chat/completions HTTP/1.1\nhost: HOST\n"):
        line, _ = speak(serving.url, begun)
        assert heard(line) == b""


def test_a_body_that_drips_is_not_waited_for(serving: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    head = POST.replace("KEY", serving.key("drip")) + "content-length: 500\n\n"
    with monkeypatch.context() as patched:
        patched.setattr(wire, "BODY_S", 0.3)
        line, _ = speak(serving.url, head, b'{"mess')
        assert b" 408 " in line.recv(4096)
        line.close()
    monkeypatch.setattr(patience, "BODY_S", 0.3)
    line, _ = speak(serving.url, head, b'{"mess')
    assert b" 200 " not in heard(line)


def test_a_connection_too_many_is_told_to_come_again(tmp_path: Path, behind: tuple[FastAPI, str]) -> None:
    from tutelage.core.artifact import Root

    settings = Settings(upstream=UpstreamSettings(url=behind[1]), connections=3)
    with Server(create_app(Root(tmp_path / "few"), settings)) as server:
        held = [speak(server.url, "")[0] for _ in range(3)]
        until = time.monotonic() + 10
        while len(server._server.server_state.connections) < 3 and time.monotonic() < until:
            time.sleep(0.01)
        line, _ = speak(server.url, "")
        said = heard(line)
        assert b" 503 " in said and b"retry-after: 1" in said and json.loads(said.partition(b"\r\n\r\n")[2])["error"]
        for each in held:
            each.close()


def test_who_reads_nothing_holds_nothing(
    serving: Server, behind: tuple[FastAPI, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "READ_S", 0.3)
    body = json.dumps(chat("endless", stream=True)).encode()
    host = serving.url.removeprefix("http://")
    line = socket.socket()
    line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    line.connect((host.partition(":")[0], int(host.partition(":")[2])))
    head = POST.replace("KEY", serving.key("slow")).replace("HOST", host) + f"content-length: {len(body)}\n\n"
    line.sendall(head.replace("\n", "\r\n").encode() + body)
    assert ended(serving, lambda: serving.state.busy == 0 and line.recv(1) is not None)
    line.close()


def ended(serving: Server, done: Any, seconds: float = 30) -> bool:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if done():
            return True
        time.sleep(0.02)
    return False


def test_who_leaves_in_mid_stream_stops_the_generation_and_is_kept(serving: Server, web: httpx.Client) -> None:
    text = "slowly say:" + "the mill is open. " * 200
    with web.stream("POST", "/v1/chat/completions", json=chat(text, stream=True)) as reply:
        name = reply.headers["x-request-id"]
        for _, _ in zip(range(3), reply.iter_lines(), strict=False):
            pass
    assert ended(serving, lambda: serving.state.busy == 0)
    serving.state.writer.flush()
    (kept,) = traffic.requests(serving.state.store, ids=[name])
    assert kept.meta["error"] and kept.answer and len(kept.answer.content) < 3000


# upstreams


@settings(max_examples=150, deadline=None)
@given(
    st.one_of(
        st.text(max_size=60).map(lambda text: f"data: {text}"),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.text(max_size=9),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(
                    st.sampled_from(
                        ["choices", "delta", "content", "tool_calls", "function", "index", "logprobs", "usage", "error"]
                    ),
                    inner,
                    max_size=4,
                )
            ),
            max_leaves=12,
        ).map(lambda value: f"data: {json.dumps(value)}"),
    ),
    st.booleans(),
)
@example('data: {"choices": [{"delta": {"tool_calls": [{"index": 1e400}]}}]}', True)
def test_whatever_an_upstream_sends_is_read_or_refused(line: str, tools: bool) -> None:
    with contextlib.suppress(Misbehaved):
        read(line, tools)


@contextlib.contextmanager
def raw_upstream(replies: list[bytes]) -> Iterator[str]:
    """An upstream that answers one connection after the other with these bytes."""
    listening = socket.create_server(("127.0.0.1", 0))
    ending = threading.Event()

    def serve() -> None:
        listening.settimeout(0.1)
        for number in range(100_000):
            while True:
                try:
                    line, _ = listening.accept()
                    break
                except TimeoutError:
                    if ending.is_set():
                        return
            line.settimeout(1)
            with contextlib.suppress(OSError):
                line.recv(65536)
                line.sendall(replies[number % len(replies)])
            line.close()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
    finally:
        ending.set()
        thread.join(5)
        listening.close()


OK = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n"
GARBAGE = {
    "no http": b"\x00\xff\x00 nonsense\r\n\r\n",
    "nothing": b"",
    "cut head": b"HTTP/1.1 200 OK\r\ncontent-le",
    "no json": OK + b"data: " + CODE.encode() + b"\n\n",
    "an endless line": OK + b"data: " + b"x" * (3 << 20),
    "no finish": OK + b'data: {"choices": [{"delta": {"content": "hi"}}]}\n\n',
    "broken utf-8": OK + b'data: {"choices": [{"delta": {"content": "\xff\xfe"}}]}\n\n',
    "an error": OK + b'data: {"error": {"message": "' + CODE.encode() + b'"}}\n\n',
    "moved": b"HTTP/1.1 302 Found\r\nlocation: http://example.org/\r\ncontent-length: 0\r\n\r\n",
    "bad chunks": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nZZ\r\n",
    "a long refusal": b"HTTP/1.1 400 Bad\r\n\r\n" + CODE.encode() * 1000,
    "down": b"HTTP/1.1 503 no\r\ncontent-length: 0\r\n\r\n",
}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from tutelage.core.artifact import Root

    return lambda: Root(tmp_path_factory.mktemp("small") / "root")


def test_an_upstream_that_sends_garbage_is_a_typed_error(small: Any) -> None:
    now = [b""]
    with raw_upstream(now) as url:
        made = Settings(
            upstream=UpstreamSettings(url=url), tenants=TENANTS, patience=PatienceSettings(first_s=1, idle_s=1)
        )
        with Server(create_app(small(), made)) as server:
            head = {"authorization": f"Bearer {server.key()}"}
            with httpx.Client(base_url=server.url, headers=head, timeout=30) as client:
                for name, reply in GARBAGE.items():
                    now[0] = reply
                    whole = client.post("/v1/chat/completions", json=chat("hello"))
                    fine(whole)
                    told = client.post("/v1/chat/completions", json=chat("hello", stream=True))
                    assert whole.status_code in (400, 502), (name, whole.text)
                    assert "upstream" in whole.json()["error"]["message"]
                    assert '"error"' in told.text and "[DONE]" not in told.text
                    assert "4471" not in whole.text + told.text, name


def test_an_upstream_that_stalls_or_drips_is_given_up(web: httpx.Client) -> None:
    long = "say:" + "the mill is open. " * 40
    for text, stream in (("stall", False), (f"drip {long}", True), ("stall", True), (f"drip {long}", False)):
        reply = web.post("/v1/chat/completions", json=chat(text, stream=stream))
        assert "has gone silent" in reply.text
        assert reply.status_code == (200 if stream and "drip" in text else 502)


def test_another_upstream_stands_in(small: Any, behind: tuple[FastAPI, str]) -> None:
    with raw_upstream([GARBAGE["down"], GARBAGE["nothing"], GARBAGE["no http"]]) as url:
        made = Settings(
            upstream=UpstreamSettings(url=url), fallbacks=(UpstreamSettings(url=behind[1], model="m"),), tenants=TENANTS
        )
        with Server(create_app(small(), made)) as server:
            head = {"authorization": f"Bearer {server.key()}"}
            with httpx.Client(base_url=server.url, headers=head, timeout=30) as client:
                for _ in range(5):
                    reply = client.post("/v1/chat/completions", json=chat("where is it"))
                    assert reply.json()["choices"][0]["message"]["content"] == HELLO
                told = client.get("/health").json()
                assert told["upstreams"] == ["open", "closed"] and told["status"] == "ready"


# guards


class Odd(WindowedJudge):
    """A guard that does not do what guards do."""

    def __init__(self, name: str, way: str, free: threading.Event) -> None:
        self.name, self.way, self.free = name, way, free

    def judge(self, examples: Sequence[Example]) -> list[Verdict]:
        if self.way == "raises":
            raise RuntimeError(f"guard down: {CODE}")
        if self.way == "hangs":
            self.free.wait(60)
        score = float("nan") if self.way == "nan" else 7.0 if self.way == "out of range" else 0.0
        if self.way == "too few":
            return []
        scores = {} if self.way == "no scores" else {"crime": score, "prompt_injection": score}
        return [Verdict(judge=self.name, scores=scores) for _ in examples]


@pytest.mark.parametrize("way", ["raises", "hangs", "nan", "out of range", "too few", "no scores"])
def test_a_guard_that_fails_lets_nothing_out(
    serving: Server, web: httpx.Client, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = serving.state.pipeline
    (name,) = [name for name in pipeline.scanner.judges if name != "pii"]
    free = threading.Event()
    monkeypatch.setitem(pipeline.scanner.judges, name, Odd(name, way, free))
    defaults = pipeline.policy.file.defaults.model_copy(update={"budget_ms": 150.0})
    monkeypatch.setattr(pipeline.policy, "file", pipeline.policy.file.model_copy(update={"defaults": defaults}))
    monkeypatch.setattr(pipeline.scanner, "_memory", type(pipeline.scanner._memory)())
    try:
        for path, body in (
            ("/v1/chat/completions", chat(f"hello {way}")),
            ("/v1/chat/completions", chat(f"hello {way}", stream=True)),
            ("/v1/responses", {"input": f"hello {way}"}),
            ("/v1/completions", {"prompt": f"hello {way}"}),
            ("/v1/embeddings", {"input": f"hello {way}"}),
            ("/v1/moderations", {"input": f"hello {way}"}),
            ("/guard/scan", {"text": f"hello {way}", "answer": "good day"}),
        ):
            reply = web.post(path, json=body)
            fine(reply)
            assert HELLO[:12] not in reply.text and "guard down" not in reply.text, (path, reply.text)
            if path == "/v1/embeddings":
                assert reply.json()["error"]["code"] == "content_filter"
            elif path == "/v1/moderations":
                assert reply.json()["results"][0]["flagged"]
            elif path == "/guard/scan":
                assert reply.json()["results"][0]["decision"] == "block"
            else:
                assert "content_filter" in reply.text
    finally:
        free.set()


# Schemathesis


def tried(serving: Server, examples: int, phases: list[Phase]) -> dict[str, int]:
    """Every operation with generated requests, good and bad ones; how often each was called."""
    schema = schemathesis.openapi.from_dict(described.document())
    schema.config.update(base_url=serving.url)
    headers = {"authorization": f"Bearer {serving.key('generated')}"}
    called: dict[str, int] = {}

    def call(case: Any) -> None:
        called[case.operation.label] = called.get(case.operation.label, 0) + 1
        reply = case.call(headers=headers)
        # 501 and 502 say what is so: nothing here embeds, an upstream refused
        excused: list[Any] = [not_a_server_error] if reply.status_code in (501, 502, 503) else []
        excused += [negative_data_rejection] if reply.status_code == 413 else []  # refused, too
        case.validate_response(
            reply, checks=CHECKS, excluded_checks=excused, headers=headers, transport_kwargs={"headers": headers}
        )

    how = settings(
        max_examples=examples, derandomize=True, database=None, phases=phases, suppress_health_check=list(HealthCheck)
    )
    modes = (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE)
    for operation in schema.get_all_operations():
        for mode in modes if operation.ok().method == "post" else modes[:1]:  # where nothing is taken nothing is wrong
            how(given(case=operation.ok().as_strategy(generation_mode=mode))(call))()
    return called


def test_a_few_generated_requests(serving: Server) -> None:
    called = tried(serving, 4, [Phase.generate])
    assert len(called) == len(described.POSTS) + len(described.GETS)


@pytest.mark.slow
def test_many_generated_requests(serving: Server) -> None:
    called = tried(serving, 60, [Phase.explicit, Phase.generate, Phase.shrink])
    assert sum(called.values()) > 60 * len(described.POSTS)


def test_every_route_is_described(serving: Server, web: httpx.Client) -> None:
    told = web.get("/openapi.json").json()["paths"]
    for path in (*described.POSTS, *described.GETS):
        assert "responses" in (told[path].get("post") or told[path]["get"])
    served = {path for path in get_openapi(title="", version="", routes=serving.app.routes)["paths"]}
    ours = {path for path in served if path.startswith(("/v1/", "/guard/"))}
    assert ours - {"/v1/models/{name}"} == set(described.POSTS) | set(described.GETS)


def test_the_loop_is_alive_after_all_that(web: httpx.Client) -> None:
    reply = web.post("/v1/chat/completions", json=chat("where is the parcel"))
    assert reply.json()["choices"][0]["message"]["content"] == HELLO
