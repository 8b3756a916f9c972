"""The service over a PostgreSQL that goes away and comes back: 503 with a sentence, nothing acknowledged is lost."""

from __future__ import annotations

import json
import signal
import threading
import time
import urllib.error
import urllib.request

import pytest

from tests.postgres import Server as Postgres
from tests.postgres import demand
from tutelage.core.artifact import Root
from tutelage.core.errors import Busy
from tutelage.store import access, answers, people, tasks
from tutelage.web import auth
from tutelage.web.app import Server, create_app
from tutelage.web.settings import Settings


@pytest.fixture
def postgres():
    """A server of this test alone, to be stopped."""
    demand()
    server = Postgres()
    yield server
    server.close()


def call(url, token, path, body=None, accept="application/json"):
    """(status, body) of one request, never repeated by itself."""
    headers = {"authorization": f"Bearer {token}", "content-type": "application/json", "accept": accept}
    request = urllib.request.Request(url + path, json.dumps(body).encode() if body is not None else None, headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_annotators_work_through_a_database_that_goes_away(tmp_path, postgres, monkeypatch):
    monkeypatch.setattr(auth, "REMEMBER", 0.0)  # each request asks the database who it is
    (tmp_path / "service.yaml").write_text(f"database: {postgres.create()}\n")
    root = Root(tmp_path).create()
    with Server(create_app(root, Settings(serve="release:none"))) as server:
        store = server.state.store
        crew = people.create_many(store, [f"p{n}" for n in range(3)])
        tokens = [access.issue_token(store, each.id, ("feedback:answer",)) for each in crew]
        where = tasks.make_project(store, "p", kind="ranking", questions=[])
        pair = (("a", "", {}), ("b", "", {}))
        new = [tasks.NewTask(f"t{n}", "ranking", (), pair, required=3) for n in range(60)]
        tasks.add(store, where, new)
        acknowledged: list[str] = []
        seen: dict[str, list[tuple[int, str]]] = {token: [] for token in tokens}

        def send(token, path, body):
            """Again and again until it is acknowledged, as a page does."""
            while True:
                status, text = call(server.url, token, path, body)
                seen[token].append((status, text))
                if status != 503:
                    return json.loads(text)
                time.sleep(0.05)

        def work(token):
            while items := send(token, "/api/feedback/claim", {"project": "p", "count": 2})["items"]:
                for item in items:
                    given = {"slot": item["slot"], "epoch": item["epoch"], "key": item["slot"], "tiers": [[0], [1]]}
                    receipts = send(token, "/api/feedback/answers", {"answers": [given]})["receipts"]
                    assert receipts[0]["status"] in ("stored", "repeated")
                    acknowledged.append(item["slot"])

        threads = [threading.Thread(target=work, args=(token,)) for token in tokens]
        for each in threads:
            each.start()
        for how in (signal.SIGINT, signal.SIGQUIT):
            so_far = len(acknowledged)
            while len(acknowledged) < so_far + 20:
                time.sleep(0.01)
            before = {token: len(seen[token]) for token in tokens}
            postgres.stop(how)
            while not all(503 in [status for status, _ in seen[token][before[token] :]] for token in tokens):
                time.sleep(0.01)
            assert call(server.url, tokens[0], "/tasks", accept="text/html")[0] == 503
            postgres.start()
        for each in threads:
            each.join(60)
        assert not any(each.is_alive() for each in threads)
        refused = [(status, text) for each in seen.values() for status, text in each if status != 200]
        assert {status for status, _ in refused} == {503}
        assert all("Traceback" not in text and json.loads(text)["todo"] for _, text in refused)
        kept = answers.read(store, "p", newest=False)
        assert sorted(each.slot for each in kept) == sorted(acknowledged) and len(kept) == 180
        assert answers.how_many(store, ["p"]) == {each.task: 3 for each in kept}


def test_a_service_whose_database_is_away_says_so_at_start(tmp_path):
    (tmp_path / "service.yaml").write_text("database: env:TEAM\n")
    root = Root(tmp_path, {"TEAM": "postgresql://team:hunter2@127.0.0.1:1/x"})
    demand()
    with pytest.raises(Busy, match="does not answer") as caught:
        create_app(root, Settings(serve="release:none"))
    assert "hunter2" not in str(caught.value)
