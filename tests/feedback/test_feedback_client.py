"""The typed client has a method for every route, and costs little to import."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

import tutelage as tt
from tutelage.core.records import Message
from tutelage.feedback import openapi
from tutelage.feedback.client import Client, Http
from tutelage.feedback.wire import NewGold, NewProject, NewTask


class Heard(Exception):
    """What a client was about to send."""


class Listening:
    """Carries nothing: it says what was to be carried."""

    def send(self, method: str, path: str, query: Mapping[str, str], body: str | None) -> tuple[int, Any]:
        raise Heard(method, path)

    def close(self) -> None:
        """Nothing is open."""


CALLS: dict[str, Any] = {
    "projects": lambda client: client.projects(),
    "create_project": lambda client: client.create_project(NewProject(name="p")),
    "add_tasks": lambda client: client.add_tasks(
        "p", [NewTask(key="k", kind="tag", messages=(Message(role="user", content="q"),))]
    ),
    "progress": lambda client: client.progress("p"),
    "claim": lambda client: client.claim("p"),
    "submit": lambda client: client.submit([]),
    "save_draft": lambda client: client.save_draft("s", 1, {}),
    "give_back": lambda client: client.give_back("s", 1),
    "history": lambda client: client.history(),
    "change_settings": lambda client: client.change_settings("p", {"gold_share": 0.1}),
    "gold": lambda client: client.gold("p"),
    "mark_gold": lambda client: client.mark_gold("p", NewGold(task="t", rationale="why")),
    "retire_gold": lambda client: client.retire_gold("p", "t"),
    "adjudications": lambda client: client.adjudications("p"),
    "adjudicate": lambda client: client.adjudicate("p"),
    "lift": lambda client: client.lift("p", "anna", "we talked it over"),
    "qualifications": lambda client: client.qualifications("anna"),
    "qualify": lambda client: client.qualify("anna", "law"),
    "disqualify": lambda client: client.disqualify("anna", "law"),
    "languages": lambda client: client.languages(),
    "set_languages": lambda client: client.set_languages(["de"]),
    "languages_of": lambda client: client.languages_of("anna"),
    "set_languages_of": lambda client: client.set_languages_of("anna", ["de"]),
    "dialogue": lambda client: client.dialogue("p"),
    "say": lambda client: client.say("p", "hello", "a key of mine"),
    "end_dialogue": lambda client: client.end_dialogue("p"),
    "export": lambda client: client.export("p", "dpo"),
    "webhooks": lambda client: client.webhooks(),
    "add_webhook": lambda client: client.add_webhook("https://host/hook", ["task.done"]),
    "remove_webhook": lambda client: client.remove_webhook("w"),
    "retry_webhook": lambda client: client.retry_webhook("w"),
    "export_file": lambda client: client.export_file("p", "dpo"),
}


def test_every_route_has_a_method_and_every_method_a_route() -> None:
    methods = {name for name in vars(Client) if not name.startswith("_")} - {"close"}
    assert methods == set(CALLS)
    met = set()
    for name, call in CALLS.items():
        try:
            call(Client(Listening()))
        except Heard as heard:
            method, path = heard.args
            found = [each for each in openapi.EVERY if each.method == method and each.pattern.match(path)]
            assert len(found) == 1, f"{name} asks for {method} {path}"
            met.add(found[0])
    assert met == set(openapi.EVERY)


def test_the_client_is_at_hand_and_loads_neither_torch_nor_a_server() -> None:
    assert tt.feedback.Client is Client and "feedback" in dir(tt)
    program = "import tutelage as tt, sys; tt.feedback.Client, tt.feedback.NewTask; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "tutelage.feedback.client" in loaded and not loaded & {"torch", "fastapi", "uvicorn", "sklearn", "pyarrow"}


class LettingGo(BaseHTTPRequestHandler):
    """Answers once on a connection that it promised to keep, then lets go of it; every third answer is "busy"."""

    protocol_version = "HTTP/1.1"
    answered = 0

    def do_GET(self) -> None:
        LettingGo.answered += 1
        body = b"[]"
        self.send_response(503 if LettingGo.answered == 3 else 200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        """Silent."""


def test_a_kept_connection_that_was_let_go_costs_no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), LettingGo)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(LettingGo, "answered", 0)
    monkeypatch.setattr(time, "sleep", pauses.append)
    http = Http(f"http://127.0.0.1:{server.server_port}", "tut_x")
    try:
        assert http.send("GET", "/a", {}, None) == (200, [])
        assert http.send("GET", "/b", {}, None) == (200, [])
        assert not pauses
        assert http.send("GET", "/busy", {}, None) == (200, [])
        assert len(pauses) == 1, "a busy server is given time"
    finally:
        http.close()
        server.shutdown()
        server.server_close()
