"""Webhooks against a real receiver: what happened is told, signed, at least once, also when somebody dies between."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import signal
import subprocess
import sys
import threading
import time
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from test_feedback_api import answer, world

from tutelage.core.artifact import Root
from tutelage.core.errors import DataError, NotFound
from tutelage.feedback import api
from tutelage.feedback.client import Client, Direct
from tutelage.feedback.webhooks import check_address, send_due, sign
from tutelage.store import access, engine, ledger, people, webhooks
from tutelage.web.app import Server, create_app
from tutelage.web.settings import Settings


class Receiver(ThreadingHTTPServer):
    """Keeps what it is told. `status` is its answer; `first` is called once, before the first answer."""

    def __init__(self, port: int = 0) -> None:
        self.heard: list[tuple[dict[str, str], bytes]] = []
        self.status, self.location = 204, ""
        self.first: Callable[[], None] | None = None
        super().__init__(("127.0.0.1", port), Hearing)
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/hook?a=1"

    def stop(self) -> None:
        self.shutdown()
        self.server_close()

    def events(self) -> list[str]:
        return [json.loads(body)["type"] for _, body in self.heard]


class Hearing(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.heard.append(({name.lower(): value for name, value in self.headers.items()}, body))
        if first := self.server.first:
            self.server.first = None
            first()
        self.send_response(self.server.status)
        if self.server.location:
            self.send_header("location", self.server.location)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    yield made
    made.stop()


def give(store: engine.Store, person: people.Person, count: int = 1, **fields: Any) -> None:
    items = api.claim(store, person, api.Claim(project="help", count=count)).items
    assert len(items) == count
    told = api.submit(store, person, api.Answers(answers=tuple(answer(each, **fields) for each in items)))
    assert {each.status for each in told.receipts} == {"stored"}


def test_what_happens_is_told_signed_with_ids_and_never_a_text(tmp_path: Path, receiver: Receiver) -> None:
    store, lead, crew, ids = world(tmp_path, tasks_=2, per_task=2)
    made = Client(Direct(store, lead)).add_webhook(receiver.url, [*webhooks.EVENTS])
    give(store, crew[0], 2)
    give(store, crew[2], 1, status="skipped", reason="not anna@example.org's")
    give(store, crew[1], 2)
    assert send_due(store) == 8 and send_due(store) == 0
    heard = receiver.events()
    assert sorted(heard) == sorted(
        ["answer.submitted"] * 4 + ["answer.skipped", "task.done", "task.done", "project.done"]
    )
    for headers, body in receiver.heard:
        told = json.loads(body)
        assert set(told) == {"type", "timestamp", "data"} and told["timestamp"].endswith("Z")
        assert b"answer 0" not in body and b"anna" not in body and b"p0" not in body
        assert set(told["data"]) <= {"annotation", "task", "project", "people", "revision", "tasks"}
        key = b64decode(made.secret.removeprefix("whsec_"))
        signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
        mine = b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
        assert headers["webhook-signature"] == f"v1,{mine}" and len(key) == 32
    assert len({headers["webhook-id"] for headers, _ in receiver.heard}) == 8
    assert {json.loads(body)["data"]["task"] for _, body in receiver.heard if b"task.done" in body} == set(ids)


def test_the_signature_is_that_of_the_standard() -> None:
    # the example of the specification's reference libraries
    secret, id, stamp = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330
    assert sign(secret, id, stamp, b'{"test": 2432232314}') == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_a_correction_is_told_and_ends_nothing_a_second_time(tmp_path: Path, receiver: Receiver) -> None:
    store, lead, crew, _ = world(tmp_path, tasks_=1, per_task=1)
    Client(Direct(store, lead)).add_webhook(receiver.url, ["answer.submitted", "task.done", "project.done"])
    (item,) = api.claim(store, crew[0], api.Claim(project="help")).items
    for key in ("key-first", "key-second"):
        api.submit(store, crew[0], api.Answers(answers=(answer(item, key),)))
    send_due(store)
    assert sorted(receiver.events()) == ["answer.submitted", "answer.submitted", "project.done", "task.done"]
    assert [json.loads(body)["data"].get("revision") for _, body in receiver.heard if b"answer." in body] == [1, 2]


def test_an_outbox_row_exists_exactly_when_its_change_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, lead, crew, _ = world(tmp_path)
    Client(Direct(store, lead)).add_webhook("https://host/hook", ["answer.submitted"])

    def torn(*_: Any, **__: Any) -> None:
        raise DataError("the ledger is gone")

    monkeypatch.setattr("tutelage.store.answers.ledger.append", torn)
    (item,) = api.claim(store, crew[0], api.Claim(project="help")).items
    with pytest.raises(DataError):
        api.submit(store, crew[0], api.Answers(answers=(answer(item),)))
    assert webhooks.every(store)[0].waiting == 0
    monkeypatch.undo()
    give(store, crew[0])
    assert webhooks.every(store)[0].waiting == 1


def test_a_receiver_that_is_down_is_tried_again_until_it_is_up(tmp_path: Path) -> None:
    receiver = Receiver()
    port, url = receiver.server_address[1], receiver.url
    receiver.stop()
    store, lead, crew, _ = world(tmp_path)
    client = Client(Direct(store, lead))
    client.add_webhook(url, ["answer.submitted"])
    give(store, crew[0], 3)
    assert send_due(store, first_s=0) == 0
    (view,) = client.webhooks()
    assert (view.waiting, view.sent, view.dead) == (3, 0, 0) and "refused" in view.error
    assert send_due(store, first_s=60) == 0 and send_due(store) == 0, "and then it waits longer"
    with store.write() as connection:  # a minute later
        connection.exec_driver_sql("UPDATE outbox SET run_after = 0")
    up = Receiver(port)
    try:
        assert send_due(store) == 3
    finally:
        up.stop()
    (view,) = client.webhooks()
    assert (view.waiting, view.sent, view.error) == (0, 3, "")
    with store.read() as connection:
        tries = sorted(connection.exec_driver_sql("SELECT attempts FROM outbox").scalars())
    assert tries == [1, 1, 3], "one was tried for all while nobody answered"


def test_after_many_failures_it_is_given_up_said_so_and_can_be_told_again(tmp_path: Path, receiver: Receiver) -> None:
    store, lead, crew, _ = world(tmp_path)
    client = Client(Direct(store, lead))
    made = client.add_webhook(receiver.url, ["answer.submitted"])
    give(store, crew[0])
    receiver.status = 500
    for _ in range(4):
        assert send_due(store, attempts=3, first_s=0) == 0
    assert len(receiver.heard) == 3 and len({headers["webhook-id"] for headers, _ in receiver.heard}) == 1
    (view,) = client.webhooks()
    assert (view.waiting, view.dead) == (0, 1) and view.error == "given up after 3 attempts: status 500"
    assert [each.object for each in ledger.rows(store) if each.action == "webhook.dead"] == [made.id]
    receiver.status = 200
    assert client.retry_webhook(made.id) == 1 and send_due(store) == 1
    assert client.remove_webhook(made.id) and client.webhooks() == []
    give(store, crew[0])
    assert send_due(store) == 0, "what was removed is told nothing"
    with pytest.raises(NotFound):
        client.remove_webhook(made.id)
    with pytest.raises(NotFound):
        client.retry_webhook(made.id)


def test_a_redirect_is_not_followed(tmp_path: Path, receiver: Receiver) -> None:
    other = Receiver()
    receiver.status, receiver.location = 307, other.url
    store, lead, crew, _ = world(tmp_path)
    Client(Direct(store, lead)).add_webhook(receiver.url, ["answer.submitted"])
    give(store, crew[0])
    send_due(store)
    assert "redirect, which is not followed" in webhooks.every(store)[0].error and not other.heard
    other.stop()


SENDING = """
import sys
from pathlib import Path
from tutelage.core.artifact import Root
from tutelage.feedback.webhooks import send_due
from tutelage.store import engine
send_due(engine.open(Root(Path(sys.argv[1])), url=sys.argv[2]), lease_s=0.05)
"""


def test_a_sender_killed_between_sending_and_noting_it_sends_again(tmp_path: Path, receiver: Receiver) -> None:
    store, lead, crew, _ = world(tmp_path)
    Client(Direct(store, lead)).add_webhook(receiver.url, ["answer.submitted"])
    give(store, crew[0])
    held: list[subprocess.Popen[bytes]] = []
    ready = threading.Event()

    def kill() -> None:
        ready.wait(20)
        held[0].send_signal(signal.SIGKILL)
        held[0].wait()

    receiver.first = kill
    where = [str(tmp_path), Root(tmp_path).database]
    held.append(subprocess.Popen([sys.executable, "-c", SENDING, *where], env=dict(os.environ)))
    ready.set()
    assert held[0].wait(60) == -signal.SIGKILL
    assert webhooks.every(store)[0].sent == 0
    time.sleep(0.06)  # its lease
    assert send_due(store) == 1
    ids = [headers["webhook-id"] for headers, _ in receiver.heard]
    assert len(ids) == 2 and ids[0] == ids[1], "the receiver knows by the id that it heard this before"


def test_a_running_service_tells_by_itself_and_keeps_the_secret_sealed(tmp_path: Path, receiver: Receiver) -> None:
    root = Root(tmp_path / "life").create()
    store, lead, crew, _ = world(root)
    token = access.issue_token(store, lead.id, ("feedback:lead",))
    with Server(create_app(root, Settings())) as server:
        client = Client(server.url, token)
        made = client.add_webhook(receiver.url, ["answer.submitted"])
        give(store, crew[0])
        until = time.monotonic() + 30
        while not (receiver.heard and client.webhooks()[0].sent) and time.monotonic() < until:
            time.sleep(0.05)
        assert client.webhooks()[0].sent == 1 and "secret" not in client.webhooks()[0].model_dump()
    raw = b"".join(path.read_bytes() for path in root.path.glob("store.db*"))
    assert made.secret.encode() not in raw and b64decode(made.secret[6:]) not in raw
    store.close()


@pytest.mark.parametrize(
    ("url", "why"),
    [("http://example.org/hook", "can be read"), ("ftp://host/x", "no address"), ("https://", "no address"),
     ("https://user:pw@host/x", "no user"), ("https://host/x#y", "no user"), ("https://host:port/x", "no address"),
     ("https://[::1/x", "no address"), ("https://host/a b", "no address"), ("https://h\u00f6st/x", "ASCII"),
     ("https://host/x\r\nheader: y", "no address")],
)  # fmt: skip
def test_an_address_that_will_not_do_is_refused(tmp_path: Path, url: str, why: str) -> None:
    store, lead, *_ = world(tmp_path)
    with pytest.raises(DataError, match=why):
        Client(Direct(store, lead)).add_webhook(url, ["task.done"])
    assert webhooks.every(store) == []


def test_only_an_owner_sends_in_the_clear_and_only_a_lead_registers(tmp_path: Path) -> None:
    store, lead, crew, _ = world(tmp_path)
    client = Client(Direct(store, lead))
    check_address("http://localhost:8000/x")
    check_address("http://[::1]/x")
    with pytest.raises(DataError, match="can be read"):
        client.add_webhook("http://example.org/x", ["task.done"], insecure=True)
    people.grant(store, lead.id, "owner")
    owner = Client(Direct(store, people.get(store, lead.id)))
    assert owner.add_webhook("http://example.org/x", ["task.done"], insecure=True).events == ("task.done",)
    with pytest.raises(api.Forbidden, match="role lead"):
        Client(Direct(store, crew[0])).webhooks()
    with pytest.raises(DataError, match="no event 'task"):
        client.add_webhook("https://host/x", ["task.gone"])
