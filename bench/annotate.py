"""`annotate`: how long the next item takes after an answer, and whether every task gets exactly its people.

Nobody stands beside. Each annotator reads for `THINK` seconds in the mean (an exponential draw), which is quicker than
people are; what is timed is the whole request over HTTP: the answer is on disk, and the next item is there. The store
holds a million tasks, a part of them answered, with a language for some, caps, and gold tasks on the way.
"""

from __future__ import annotations

import json
import random
import re
import secrets
import sys
import threading
import time
import urllib.parse
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import numpy as np
import sqlalchemy as sql

from bench import crowd, side
from bench.serving import Service
from bench.side import Figures, Part, Settings
from tutelage.core.errors import TutelageError
from tutelage.core.records import Message
from tutelage.feedback import api
from tutelage.feedback.client import Client
from tutelage.store import access, engine, gold, people, qualifications, schema, standing, tasks
from tutelage.store.engine import Store

NAME = "desk"
THINK = 2.0
ITEMS, ANSWERED, GOLD = 1_000_000, 100_000, 300
PER_TASK = 3
SHORT = 200_000
"""Tasks of a quick run."""
RULES = {"gold_share": 0.05, "most_per_day": 1_000_000, "qualifications": ["house"]}


def measure(settings: Settings) -> list[Part]:
    parts = []
    items, seconds = (SHORT, 20.0) if settings.quick else (ITEMS, 120.0)
    root = settings.work / "many"
    began = time.monotonic()
    fill(root, items=items, answered=items // 10)
    side.tell(f"{items:,} tasks made in {time.monotonic() - began:.0f} s, {_size(root) / 2**30:.1f} GiB")
    for line in plans(root):
        side.tell(line)
    told = f"next item after submit, {items:,} items, 50 annotators, SQLite"
    found = answering(root, annotators=50, seconds=seconds, think=THINK)
    side.tell(json.dumps(found))
    parts.append(Part(f"{told}: p95", "ms", "lower", found["p95"], None, 100.0, "ours"))
    parts.append(Part(f"{told}: median", "ms", "lower", found["median"]))
    parts.append(Part(f"{told}: errors", "", "lower", found["errors"], None, 0.0, "ours"))
    found = answering(root, annotators=50, seconds=seconds, think=THINK, console=True)
    side.tell(json.dumps(found))
    parts.append(Part(f"{told}, sending on a console page: p95", "ms", "lower", found["p95"], None, 100.0, "ours"))
    found = answering(root, annotators=50, seconds=seconds / 2, think=0.0)
    parts.append(Part("answers, nobody reads", "1/s", "higher", found["rate"]))
    parts += _counted(root)
    parts += _claims(settings, "SQLite", "")
    return parts + _postgres(settings, seconds)


def _size(root: Path) -> int:
    return sum(each.stat().st_size for each in root.glob("store.db*"))


def _counted(root: Path) -> list[Part]:
    """What pages of a lead count, beside the way of the next item."""
    with engine.open(root) as store:
        where = tasks.get_project(store, NAME)
        began = time.monotonic()
        standing.counts(store, where.id)
    return [Part("counting all tasks of the project", "s", "lower", time.monotonic() - began)]


def _claims(settings: Settings, name: str, url: str) -> list[Part]:
    """Every task gets exactly its people, whoever crashes."""
    many, kills = (300, 5) if settings.quick else (2500, 20)
    root = settings.work / f"crowd {name}"
    root.mkdir()
    asked, persons = crowd.prepare(root, url, clients=32, tasks_=many, per_task=4, lease_ms=1500)
    found = crowd.run(asked, persons, processes=4, kills=kills, every_s=1.0, seed=1)
    side.tell(json.dumps(asdict(found)))
    told = f"{4 * many:,} slots, 32 clients, {kills} processes killed, {name}"
    return [
        Part(
            f"{told}: tasks with too many or too few people", "", "lower", found.over + found.under, None, 0.0, "ours"
        ),
        Part(f"{told}: acknowledged answers lost", "", "lower", found.lost, None, 0.0, "ours"),
    ]


def _postgres(settings: Settings, seconds: float) -> list[Part]:
    """200 annotators on a PostgreSQL of our own, where there is one."""
    from tests import postgres

    if why := postgres.missing():
        side.tell(f"without PostgreSQL: {why}")
        return []
    server = postgres.Server()
    try:
        root = settings.work / "team"
        root.mkdir()
        (root / "service.yaml").write_text(f"database: {json.dumps(server.create())}\n", "utf-8")
        fill(root, items=20_000, answered=2_000, annotators=200)
        found = answering(root, annotators=200, seconds=seconds, think=5.0)
        side.tell(json.dumps(found))
        told = "200 annotators, PostgreSQL"
        parts = [
            Part(f"{told}: errors", "", "lower", found["errors"], None, 0.0, "ours"),
            Part(f"{told}: p95", "ms", "lower", found["p95"]),
        ]
        return parts + _claims(settings, "PostgreSQL", server.create())
    finally:
        server.close()


# ------------------------------------------------------------------------------------------------------- a full store


def fill(root: Path, *, items: int, answered: int, annotators: int = 50) -> None:
    """A project with `items` tasks of three places each, the first `answered` of which have been answered."""
    root.mkdir(exist_ok=True)
    with engine.open(root) as store:
        form = [{"key": "clear", "kind": "scale", "scale": [1, 5], "per_candidate": True, "required": False}]
        where = tasks.make_project(store, NAME, kind="ranking", questions=form, per_task=PER_TASK, settings=RULES)
        crew = [
            *people.create_many(store, [f"p{n}" for n in range(0, annotators, 2)], languages=["de"]),
            *people.create_many(store, [f"p{n}" for n in range(1, annotators, 2)]),
        ]
        for each in crew:
            qualifications.grant(store, each.id, "house", by="bench")
        golden = _real(store, where, GOLD)
        for id in golden:
            gold.mark(
                store,
                id,
                gold.Said({0: 0, 1: 1}, {}),
                rationale="it is",
                tolerance=0,
                enough=0.5,
                reserve=True,
                by="bench",
            )
        _many(store, where, items)
        _answered(store, where, [each.id for each in crew], answered)
        with store.write() as connection:
            connection.exec_driver_sql("ANALYZE" if store.dialect == "postgresql" else "PRAGMA optimize=0x10002")


def _real(store: Store, where: tasks.Project, many: int) -> list[str]:
    two: Sequence[tuple[str, str, Mapping[str, Any]]] = (
        ("The bread at the market is excellent.", "a", {}),
        ("The bread is good, is it not?", "b", {}),
    )
    asked = (Message(role="user", content="Which sounds better?"),)
    return tasks.add(store, where, [tasks.NewTask(f"g{n}", "ranking", asked, two, required=3) for n in range(many)])


def _many(store: Store, where: tasks.Project, items: int, batch: int = 20_000) -> None:
    """Tasks with their texts and places, through the tables: a million by way of the API would take an hour."""
    with store.write(durable=False) as connection:
        first = engine.next_numbers(connection, "task", items)
    body = json.dumps(
        [{"role": "user", "content": "Say in one sentence why the bread at the market is excellent. " * 3}]
    )
    for start in range(0, items, batch):
        rows: dict[str, list[dict[str, Any]]] = {"text": [], "task": [], "candidate": [], "slot": []}
        for n in range(start, min(items, start + batch)):
            id, texts = _id(), [_id() for _ in range(3)]
            language = "de" if n % 10 == 3 else ""
            rows["text"] += [
                {"id": texts[0], "body": body},
                *(
                    {"id": text, "body": f"Answer {at} of {n}: it is baked at dawn."}
                    for at, text in enumerate(texts[1:])
                ),
            ]
            rows["task"].append(
                {"id": id, "project_id": where.id, "position": first + n, "kind": "ranking", "form_id": where.form,
                 "prompt_id": texts[0], "required": PER_TASK, "language": language, "meta": {"key": f"m{n}"}, "at": 1}
            )  # fmt: skip
            rows["candidate"] += [
                {"task_id": id, "no": no, "text_id": text, "producer": "bench", "meta": {}}
                for no, text in enumerate(texts[1:])
            ]
            rows["slot"] += [
                tasks.slot_row(id, no, where.id, 0, first + n, "", language) | {"id": _id()} for no in range(PER_TASK)
            ]
        with store.write(durable=False) as connection:
            for name, some in rows.items():
                connection.execute(sql.insert(schema.metadata.tables[name]), some)


def _id() -> str:
    made = secrets.token_hex(16)
    return f"{made[:8]}-{made[8:12]}-8{made[13:16]}-8{made[17:20]}-{made[20:]}"


def _answered(store: Store, where: tasks.Project, crew: Sequence[str], many: int) -> None:
    """The first tasks are done, each by three people in turn."""
    slot, task = schema.slot.c, schema.task.c
    with store.write(durable=False) as connection:
        start = connection.execute(sql.select(sql.func.min(slot.position)).where(slot.state == "open")).scalar_one()
        before = sql.and_(slot.project_id == where.id, slot.position < start + many, slot.state == "open")
        rows = connection.execute(sql.select(slot.id, slot.position, slot.no).where(before)).all()
        done = sql.update(schema.slot).where(slot.id == sql.bindparam("which"))
        connection.execute(
            done.values(state="done", lease_epoch=1, person_id=sql.bindparam("who")),
            [{"which": row.id, "who": crew[(PER_TASK * row.position + row.no) % len(crew)]} for row in rows],
        )
        of = sql.and_(task.project_id == where.id, task.position >= start, task.position < start + many)
        connection.execute(sql.update(schema.task).where(of).values(state="done"))


PLANS = ("slot", "task", "annotation", "gold")


def plans(root: Path) -> list[str]:
    """Statements on the way of the next item that SQLite answers by walking over a whole table."""
    found: dict[str, None] = {}
    with engine.open(root) as store:
        where = tasks.get_project(store, NAME)
        person = people.get(store, "p0")

        def look(connection: Any, cursor: Any, statement: str, parameters: Any, context: Any, many: bool) -> None:
            del cursor, context
            if many or not statement.startswith(("SELECT", "UPDATE")):
                return
            raw = connection.connection.cursor()
            for row in raw.execute(f"EXPLAIN QUERY PLAN {statement}", parameters).fetchall():
                if re.match(r"SCAN (\w+)", row[3]) and row[3].split()[1] in PLANS:
                    found[f"walks over a table: {row[3]}: {' '.join(statement.split())[:300]}"] = None

        engines = (store._reading, store._words, store._traces)
        for each in engines:
            sql.event.listen(each, "before_cursor_execute", look)
        held = api.claim(store, person, api.Claim(project=NAME)).items[0]
        answer = api.Answer(slot=held.slot, epoch=held.epoch, key=f"plan-{held.slot}", tiers=((0,), (1,)))
        api.submit(store, person, api.Answers(answers=(answer,), claim=api.Claim(project=NAME)))
        standing.why_empty(store, person.id, [where.id])
        for each in engines:
            sql.event.remove(each, "before_cursor_execute", look)
    return list(found)


# ------------------------------------------------------------------------------------------------ people who answer


def answering(root: Path, *, annotators: int, seconds: float, think: float, console: bool = False) -> Figures:
    """Let people answer for some time over a service of its own: milliseconds, errors, answers a second."""
    with engine.open(root) as store:
        crew = [each for each in people.every(store, "live") if re.fullmatch(r"p\d+", each.name)][:annotators]
        if console:
            doors = [access.open_session(store, each.id) for each in crew]
        else:
            doors = [(token, "") for token in access.issue_tokens(store, [each.id for each in crew])]
    with Service(root) as service:
        options = {"url": service.url, "doors": doors, "seconds": seconds, "think": think, "console": console}
        return side.run(Path(sys.executable), "bench.annotate", "ours", options)


def ours(options: Mapping[str, Any]) -> Figures:
    """The people, in a process of their own, a thread each."""
    began = time.monotonic()
    until = began + options["seconds"]
    found: list[float] = []
    problems: list[str] = []
    one = _on_pages if options["console"] else _on_api
    threads = [
        threading.Thread(
            target=one, args=(options["url"], door, random.Random(at), options["think"], until, found, problems)
        )
        for at, door in enumerate(options["doors"])
    ]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    took = time.monotonic() - began
    low, high = np.quantile(found, [0.5, 0.95]) if found else (None, None)
    return {"answers": len(found), "median": low, "p95": high, "rate": len(found) / took, "errors": len(problems),
            "worst": max(found, default=None), "problem": problems[:1]}  # fmt: skip


def _pause(stream: random.Random, think: float) -> None:
    if think:
        time.sleep(stream.expovariate(1 / think))


def _on_api(
    url: str,
    door: Sequence[str],
    stream: random.Random,
    think: float,
    until: float,
    found: list[float],
    problems: list[str],
) -> None:
    """A program of one person: the answer and the next claim travel together."""
    _pause(stream, think)
    try:
        with Client(url, door[0]) as client:
            items = client.claim(NAME).items
            while items and time.monotonic() < until:
                _pause(stream, think)
                item = items[0]
                order = tuple((each.no,) for each in item.candidates)
                given = api.Answer(slot=item.slot, epoch=item.epoch, key=f"key-{item.slot}", tiers=order)
                began = time.perf_counter()
                done = client.submit([given], then=api.Claim(project=NAME))
                found.append(1000 * (time.perf_counter() - began))
                if done.receipts[0].status != "stored" or not (done.next and done.next.items):
                    problems.append(f"{done.receipts[0]} {done.next.reason if done.next else ''}")
                items = done.next.items if done.next else []
    except TutelageError as error:
        problems.append(str(error))


def _on_pages(
    url: str,
    door: Sequence[str],
    stream: random.Random,
    think: float,
    until: float,
    found: list[float],
    problems: list[str],
) -> None:
    """A browser of one person. The page holds the task after this one; sending brings the one after that.

    Timed is the sending: the task after it is shown before the answer to it is there (static/task.js).
    """
    parts = urlsplit(url)
    connection = HTTPConnection(parts.hostname or "", parts.port, timeout=60)
    headers = {"cookie": f"tutelage={door[0]}", "accept": "application/json"}

    def ask(method: str, path: str, fields: Sequence[tuple[str, str]] = ()) -> str:
        kind = {"content-type": "application/x-www-form-urlencoded"} if fields else {"accept": "text/html"}
        connection.request(method, path, urllib.parse.urlencode(fields) or None, headers | kind)
        answer = connection.getresponse()
        text = answer.read().decode()
        if answer.status != 200:
            raise TutelageError(f"{method} {path}: status {answer.status}: {text[:300]}")
        return text

    _pause(stream, think)
    try:
        forms = _forms(ask("GET", f"/task/next?project={quote(NAME)}"))
        while time.monotonic() < until:
            if not forms:
                problems.append("there is no next task")
                return
            _pause(stream, think)
            slot, fields = forms.pop(0)
            have = [("have", each.rpartition("/")[2]) for each, _ in forms]
            began = time.perf_counter()
            told = json.loads(ask("POST", slot, [*fields, ("tier:0", "1"), ("tier:1", "2"), *have]))
            found.append(1000 * (time.perf_counter() - began))
            forms += [form for each in told["ahead"] for form in _forms(each)]
    except (TutelageError, OSError, KeyError) as error:
        problems.append(str(error))
    finally:
        connection.close()


def _forms(page: str) -> list[tuple[str, list[tuple[str, str]]]]:
    """Where each task of a page is sent, with its hidden fields."""
    _, *rest = re.split(r'action="(/task/[^"]+)"', page)
    hidden = re.compile(r'name="(csrf|epoch|key|project)" value="([^"]*)"')
    return [(slot, hidden.findall(body)) for slot, body in zip(rest[::2], rest[1::2], strict=True)]


if __name__ == "__main__":
    side.main(ours, ours)
