"""The same answers over the real service: tokens, roles, kept connections, a server that goes away."""

from __future__ import annotations

import http.client
import socket

import pytest
from test_feedback_stages import answer_in_order, dialogue, gathered, seal

from tutelage.core import refs
from tutelage.core.artifact import Root
from tutelage.core.errors import DataError, UpstreamError
from tutelage.feedback import api
from tutelage.feedback.client import Client, Http
from tutelage.store import access, answers, engine, people, tasks
from tutelage.web import auth


@pytest.fixture
def root(home, monkeypatch) -> Root:
    monkeypatch.setitem(refs.SCHEMES, "speaker", "test_feedback_stages:open_speaker")
    return Root(home).create()


def test_simulated_people_answer_over_http_exactly_as_in_process(root, tmp_path):
    """And in PostgreSQL exactly as in SQLite: the other root is always SQLite, what is sealed has one id."""
    made = []
    for where, over in ((root, "http"), (Root(tmp_path / "other").create(), "direct")):
        corpus = seal(where, "corpus", {"dialogues.jsonl": [dialogue(n) for n in range(40)]}, "c")
        collection = gathered(where, corpus, people="simulated", prompts=20, over=over)
        with engine.open(where) as store:
            given = answers.read(store)
        made.append((collection.id, sorted((each.task, each.pseudonym, each.tiers, each.values) for each in given)))
        assert len(given) == 60 and {each.people for each in given} == {"simulated"}
    assert made[0] == made[1]


def test_tokens_and_roles_hold_over_http(root, monkeypatch):
    monkeypatch.setattr(auth, "REMEMBER", 0.0)  # a revoked token works for that many seconds more: three, as shipped
    with engine.open(root) as store, refs.open("app:", root) as server:
        lead, anna = people.create(store, "lead", roles=["lead"]), people.create(store, "anna")
        scopes = ("feedback:answer", "feedback:read", "feedback:lead")
        chief = Client(server.url, access.issue_token(store, lead.id, scopes))
        token = access.issue_token(store, anna.id, scopes[:2])
        mine = Client(server.url, token)
        chief.create_project(api.NewProject(name="a project", kind="ranking", per_task=1))
        new = api.NewTask(key="t", kind="ranking", messages=({"role": "user", "content": "q"},),
                          candidates=({"content": "<b>a</b>"}, {"content": "b"}))  # fmt: skip
        assert chief.add_tasks("a project", [new]) == chief.add_tasks("a project", [new])
        with pytest.raises(api.Forbidden):
            mine.create_project(api.NewProject(name="mine"))
        with pytest.raises(api.Forbidden):
            Client(server.url, "tut_wrong").claim()
        item = mine.claim("a project").items[0]
        assert {each.content for each in item.candidates} == {"<b>a</b>", "b"}
        assert mine.save_draft(item.slot, item.epoch, {"tiers": [[0]]})
        given = answer_in_order(item)
        assert [mine.submit([given]).receipts[0].status for _ in range(2)] == ["stored", "repeated"]
        assert chief.progress("a project").answers == 1 and len(mine.history()) == 1
        assert "answered" in mine.claim("a project").reason
        with pytest.raises(DataError, match="greater than or equal"):
            mine.claim("a project", count=0)
        access.revoke_tokens(store, [token])
        with pytest.raises(api.Forbidden):
            mine.projects()


def test_a_connection_that_breaks_is_opened_again_and_a_dead_server_is_one_clear_error(root):
    with engine.open(root) as store:
        anna = people.create(store, "anna")
        token = access.issue_token(store, anna.id, ("feedback:answer", "feedback:read"))
        with refs.open("app:", root) as server:
            wire = Http(server.url, token)
            client = Client(wire)
            assert client.projects() == []
            wire._connection.sock.close()
            assert client.projects() == []
    with socket.socket() as held:  # bound and never listening: nobody else's server can stand there
        held.bind(("127.0.0.1", 0))
        gone = Client(Http(f"http://127.0.0.1:{held.getsockname()[1]}", token, retries=1, timeout=2))
        with pytest.raises(UpstreamError, match="failed"):
            gone.projects()
    with pytest.raises(DataError, match="no address"):
        Http("nowhere", token)


def test_an_answer_whose_receipt_was_lost_is_stored_once(root, monkeypatch):
    with engine.open(root) as store, refs.open("app:", root) as server:
        anna = people.create(store, "anna")
        where = tasks.make_project(store, "p", kind="ranking", questions=[])
        tasks.add(store, where, [tasks.NewTask("t", "ranking", (), (("a", "", {}), ("b", "", {})))])
        client = Client(server.url, access.issue_token(store, anna.id, ("feedback:answer",)))
        item = client.claim("p").items[0]
        real, lost = http.client.HTTPResponse.read, []

        def losing(self, *args):
            found = real(self, *args)
            if not lost:
                lost.append(1)
                raise http.client.IncompleteRead(b"")
            return found

        monkeypatch.setattr(http.client.HTTPResponse, "read", losing)
        assert client.submit([answer_in_order(item)]).receipts[0].status == "repeated"
        assert lost and len(answers.read(store, newest=False)) == 1
