"""The server is killed while people send answers: what was acknowledged is there, once."""

from __future__ import annotations

import random
import threading
import time

import pytest

from bench.serving import Service
from tutelage.core.errors import UpstreamError
from tutelage.feedback.api import Answer
from tutelage.feedback.client import Client, Http
from tutelage.store import access, answers, engine, people, tasks


def prepare(root, clients, per_client):
    """Tasks that wait for one answer each, enough for all; a token for each client."""
    with engine.open(root) as store:
        where = tasks.make_project(store, "p", kind="ranking", questions=[])
        two = (("a", "", {}), ("b", "", {}))
        tasks.add(store, where, [tasks.NewTask(f"t{n}", "ranking", (), two) for n in range(clients * per_client)])
        crew = people.create_many(store, [f"client {n}" for n in range(clients)], kind="simulated")
        return access.issue_tokens(store, [each.id for each in crew], ("feedback:answer",))


def insist(call):
    """As a client does whose server is away: the same request again until it is answered."""
    until = time.monotonic() + 90
    while True:
        try:
            return call()
        except UpstreamError:
            assert time.monotonic() < until, "the server did not come back"
            time.sleep(0.05)


def answer_all(url, token, told, problems):
    """Claim and answer until there is nothing left; each answer keeps its key until it is acknowledged."""
    try:
        client = Client(Http(url, token, timeout=20, retries=0))
        while held := insist(lambda: client.claim("p", count=4)).items:
            for item in held:
                given = Answer(slot=item.slot, epoch=item.epoch, key=f"key-{item.slot}", tiers=((0,), (1,)))
                receipt = insist(lambda given=given: client.submit([given])).receipts[0]
                told.append((item.slot, receipt.status, receipt.annotation))
    except BaseException as error:
        problems.append(error)


def killed_while_they_answer(root, *, clients, per_client, kills, every_s):
    tokens = prepare(root, clients, per_client)
    told, problems, stream = [], [], random.Random(5)
    with Service(root) as service:
        crew = [threading.Thread(target=answer_all, args=(service.url, each, told, problems)) for each in tokens]
        for each in crew:
            each.start()
        done, total = 0, clients * per_client
        while done < kills and any(each.is_alive() for each in crew):
            ready = len(told)
            if ready >= total * (done + 1) / (kills + 2):  # in the middle, however fast this machine is
                time.sleep(every_s * stream.random())
                service.stop()
                service.start()
                done += 1
            time.sleep(0.005)
        for each in crew:
            each.join()
    assert not problems and done == kills
    with engine.open(root) as store:
        kept = answers.read(store, "p", newest=False)
    assert len(kept) == total == len({each.slot for each in kept}), "an answer is doubled or missing"
    assert {each.revision for each in kept} == {1}
    assert {status for _, status, _ in told} <= {"stored", "repeated"}
    ids = {each.slot: each.id for each in kept}
    assert len(told) == total and all(ids[slot] == id for slot, _, id in told), "an acknowledged answer is lost"


def test_no_acknowledged_answer_is_lost_or_doubled_when_the_server_is_killed(tmp_path):
    killed_while_they_answer(tmp_path, clients=4, per_client=40, kills=1, every_s=0.05)


@pytest.mark.slow
def test_ten_thousand_answers_and_ten_kills(tmp_path):
    killed_while_they_answer(tmp_path, clients=16, per_client=625, kills=10, every_s=0.5)
