"""A real server that misbehaves as its path says, and what is asked of it: as an endpoint under test, or as a judge."""

from __future__ import annotations

import json
import re
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tutelage.adapt.gate import CheckRule, ReleasePolicy, decide
from tutelage.core.records import Example, Message
from tutelage.evaluate.suite import Suite

KEY = "sk-very-secret-0451"
PROGRAM = "from tutelage.cli import main; main()"


def said(asked: str) -> str:
    """As a model under test, and as a judge: of answers to odd questions it thinks more."""
    if "SCORE: n" not in asked:
        return "yes"
    return f"SCORE: {4 + int(re.search('number ([0-9]+)', asked.lower())[1]) % 2}"  # type: ignore[index]


class Endpoint(BaseHTTPRequestHandler):
    """Answers "yes" to every question; what it does wrong is the first part of the path: /hang/v1/chat/completions."""

    protocol_version = "HTTP/1.1"
    seen: Counter[str]
    lock = threading.Lock()
    over: threading.Event

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        wrong = self.path.split("/")[1]
        asked = body["messages"][-1]["content"] if "messages" in body else body["prompt"]
        with self.lock:
            self.seen[f"{wrong} {asked}"] += 1
            count = self.seen[f"{wrong} {asked}"]
        good: dict[str, Any] = {
            "model": "m-2026",
            "choices": [{"message": {"role": "assistant", "content": said(asked)}, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 100, "completion_tokens": 10},
        }
        if "echo" in body:
            at = [0, len(asked.rpartition(" ")[0])]
            value = -0.5 if asked.endswith("yes") else -3.0
            logs = {"text_offset": at, "token_logprobs": [None, value], "top_logprobs": [{}, {"x": value}]}
            good["choices"] = [{"text": asked, "logprobs": logs}]
        if wrong == "html":
            self.say(200, b"<html><script>alert(1)</script>Welcome to the hotel</html>")
        elif wrong == "truncated":
            self.send_response(200)
            self.send_header("content-length", "500")
            self.end_headers()
            self.wfile.write(json.dumps(good).encode()[:40])
            self.close_connection = True
        elif wrong == "half":
            self.say(200, json.dumps(good).encode()[:40])
        elif wrong == "types":
            self.say(200, json.dumps(good | {"choices": [{"message": {"content": {"a": 1}}}]}).encode())
        elif wrong == "empty":
            self.say(200, json.dumps(good | {"choices": []}).encode())
        elif wrong == "null":
            self.say(200, json.dumps(good | {"choices": [{"message": {"content": None}}]}).encode())
        elif wrong == "nan":
            if "echo" in body:
                good["choices"][0]["logprobs"]["token_logprobs"] = [None, float("nan")]
            self.say(200, json.dumps(good).encode())
        elif wrong == "nologs":
            good["choices"][0].pop("logprobs", None)
            self.say(200, json.dumps(good).encode())
        elif wrong == "errors":
            self.say(500, b"out of memory")
        elif wrong == "throttles":
            self.say(429, b"slow down", ("retry-after", "3600"))
        elif wrong == "unpaid":
            self.say(429, b'{"error": {"code": "insufficient_quota"}}')
        elif wrong == "unknown-key":
            self.say(401, f"Incorrect API key provided: {self.headers['authorization']}".encode())
        elif wrong == "flaky" and count < 3:
            self.say(429 if count == 1 else 503, b"busy", ("retry-after-ms", "10"))
        elif wrong == "hangs" or (wrong == "one-hangs" and "number 0?" in asked):
            self.over.wait(20)
            self.close_connection = True
        elif wrong == "drips":
            self.send_response(200)
            self.send_header("content-length", "500")
            self.end_headers()
            while not self.over.wait(0.05):
                self.wfile.write(b" ")
        elif wrong == "some" and int(asked.rpartition(" ")[2].rstrip("?")) % 3 == 0:
            self.say(500, b"this one never works")
        else:
            self.over.wait(0.02 if wrong == "slow" else 0)
            self.say(200, json.dumps(good).encode())

    def say(self, status: int, data: bytes, *headers: tuple[str, str]) -> None:
        self.send_response(status)
        for name, value in (*headers, ("content-length", str(len(data)))):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


class Quiet(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Whoever hangs up on us is right."""


def questions(count: int, kind: str = "generate") -> list[Suite]:
    made = []
    for place in range(count):
        tags = {"id": f"q{place}", "suite": "asked", "kind": kind}
        text = f"Is it so, number {place}?"
        if kind == "choice":
            item = Example(messages=(Message(role="text", content=text),), choices=(" yes", " no"))
        else:
            item = Example.ask(text)
        made.append(item.model_copy(update={"target": " yes" if kind == "choice" else "yes", "tags": tags}))
    return [Suite("asked", made)]


def gated(results: Any) -> Any:
    rule = CheckRule(
        id="asked",
        source="evaluation",
        where={"suite": "asked"},
        kind="at_least",
        bound=0.5,
        min_n=5,
        sentence="is bad",
    )
    return decide(ReleasePolicy(checks=(rule,)), {"evaluation": results}, {}, against="nothing")
