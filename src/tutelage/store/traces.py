"""One request from its first message to its last decision, and the thread that writes it down, in groups.

The serving path hands a finished trace to `Writer.put` and goes on; the writer commits what has come in every 50 ms.
The queue is bounded: when it is full the request is refused (503), nothing is dropped in silence. What a power cut
can lose is the last group and what the operating system had not written yet; what a crash of the process can lose is
the last 50 ms. A trace that waits for a person is written with its hold in one transaction, to the disk itself, and
`put` tells when that is done: nobody is promised a person's answer before.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sql

from tutelage.core.errors import Busy, NoSpace, TutelageError
from tutelage.core.records import Action, Message, Span, Verdict
from tutelage.store import schema, texts
from tutelage.store.engine import Store, derived_id, now, uuid7


class Full(Busy):
    """More traces wait than the queue holds: the request is refused, not forgotten."""


@dataclass(frozen=True)
class Decided:
    """One decision of the policy, with the verdicts it stands on."""

    id: str = field(default_factory=uuid7)
    direction: str = "input"
    channel: str = "content"
    action: Action = "allow"
    reasons: Sequence[str] = ()
    redactions: Sequence[Span] = ()
    policy: str = ""
    latency_ms: float = 0.0
    shadow: bool = False
    verdicts: Sequence[Verdict] = ()

    def highest(self) -> tuple[str, float | None]:
        """The category with the highest score of all verdicts that carry an opinion, and that score."""
        scored = [(score, name) for each in self.verdicts if each.status == "ok" for name, score in each.scores.items()]
        score, name = max(scored, default=(None, ""))
        return name, score


@dataclass(frozen=True)
class Trace:
    """One request from its first message to its last decision."""

    id: str = field(default_factory=uuid7)
    conversation: str = ""
    tenant: str = ""
    subject: str = ""
    release: str = ""
    model: str = ""
    surface: str = "chat"
    language: str = ""
    people: str = "live"
    messages: Sequence[Message] = ()
    answer: Message | None = None
    redacted_messages: Sequence[Message] | None = None
    redacted_answer: Message | None = None
    finish: str = ""
    usage: Mapping[str, int] = field(default_factory=dict)
    latency_ms: float = 0.0
    stream: bool = False
    meta: Mapping[str, Any] = field(default_factory=dict)
    decisions: Sequence[Decided] = ()
    held: bool = False
    """Whether a person has to answer it."""
    at: int = field(default_factory=now)


class Put:
    """Traces that were handed over together, and when they are on disk."""

    def __init__(self, traces: Sequence[Trace]) -> None:
        self.written: Future[None] = Future()
        """Done when all of them are committed; it has the error of one that can never be written."""
        self._open, self._error = len(traces), ""

    def end(self, error: str = "") -> None:
        """One of them is committed, or never will be."""
        self._open, self._error = self._open - 1, self._error or error
        if not self._open and self.written.set_running_or_notify_cancel():
            failure = TutelageError(f"the request could not be written down: {self._error}") if self._error else None
            self.written.set_exception(failure) if failure else self.written.set_result(None)


class Writer:
    """Commits traces in groups from one thread. `put` never waits; `flush` waits until all that was put is there."""

    def __init__(self, store: Store, interval: float = 0.05, capacity: int = 4096) -> None:
        self.store, self.interval, self.capacity = store, interval, capacity
        self._waiting: deque[tuple[Trace, Put]] = deque()
        self._reserved = 0
        self._changed = threading.Condition()
        self._busy = False
        self._closing = False
        self._failure: str = ""
        self.refused = 0
        """How many traces found the queue full, and were refused."""
        self.spoiled: list[tuple[str, str]] = []
        """(id, reason) of traces that can never be written, such as one whose `meta` is no JSON."""
        self._thread = threading.Thread(target=self._work, name="traffic-writer", daemon=True)
        self._thread.start()

    @property
    def lag(self) -> int:
        """How many traces wait, or will come into the places that are kept for them."""
        return len(self._waiting) + self._reserved

    @property
    def healthy(self) -> bool:
        """False while commits fail or the queue is full, and for good when a trace could not be written at all."""
        return not self._failure and not self.spoiled and self.lag < self.capacity

    def put(self, *traces: Trace) -> Future[None]:
        """Hand traces over, all or none; says when they are on disk. Raises Full when the queue is full: answer 503."""
        self.reserve(len(traces))
        return self.fill(traces)

    def reserve(self, count: int) -> None:
        """Keep places for so many traces, which `fill` puts there later. Raises Full where there are not as many."""
        with self._changed:
            if self._closing:
                self.refused += count
                raise Full("the traffic writer is closed")
            if self.lag + count > self.capacity:
                self.refused += count
                why = f": {self._failure}" if self._failure else ""
                raise Full(f"{self.lag} traces wait to be written{why}", todo="Try again in a moment")
            self._reserved += count

    def fill(self, traces: Sequence[Trace]) -> Future[None]:
        """Hand over traces for which places are kept; there is always room, also while the writer is being closed."""
        put = Put(traces)
        with self._changed:
            self._waiting += [(trace, put) for trace in traces]
            self._reserved -= len(traces)
            self._changed.notify_all()
        return put.written

    def flush(self, timeout: float = 10.0) -> bool:
        """Wait until everything put so far is committed; False when that took longer than `timeout` seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: not self.lag and not self._busy, timeout)

    def close(self, timeout: float = 10.0) -> None:
        """Commit what waits and end the thread. Raises TutelageError when traces could not be written."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(timeout)
        if self.lag:
            raise TutelageError(f"{self.lag} traces could not be written: {self._failure}")

    def _work(self) -> None:
        pause = self.interval
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._waiting) or (self._closing and not self._reserved))
                if not self._waiting:
                    return
            if not self._closing:
                time.sleep(pause)  # let a group gather
            with self._changed:
                group = [self._waiting[at] for at in range(min(len(self._waiting), 512))]
                self._busy = True
            ends = self._commit([trace for trace, _ in group])
            pause = self.interval if ends else min(2.0, pause * 2)
            with self._changed:
                for _ in ends:
                    self._waiting.popleft()
                self._busy = False
                self._changed.notify_all()
                if self._closing and not ends:
                    return
            for (_, put), error in zip(group, ends, strict=False):
                put.end(error)

    def _commit(self, group: Sequence[Trace]) -> list[str]:
        """Write a group: for each that needs no other try, what was wrong with it ("" if it is there).

        None at all when the store cannot be written now: the group stays in the queue and is tried again.
        """
        try:
            write(self.store, group)
            self._failure = ""
            return [""] * len(group)
        except (Busy, NoSpace) as error:
            self._failure = str(error)
            return []
        except Exception as error:  # the thread must live: whatever it is, it is said and the other traces go on
            self._failure = str(error)
        ends: list[str] = []
        for trace in group:
            try:
                write(self.store, [trace])
                ends.append("")
            except (Busy, NoSpace):
                break
            except Exception as error:
                ends.append(f"{type(error).__name__}: {error}")
                self.spoiled.append((trace.id, ends[-1]))
        if ends == [""] * len(group):
            self._failure = ""
        return ends


def write(store: Store, traces: Sequence[Trace]) -> None:
    """Commit traces in one transaction, with the holds of those that wait for a person.

    A trace that is there already (same id) is passed over. Where a person was promised, it is on disk when this ends.
    """
    rows: dict[str, list[dict[str, Any]]] = {"conversation": [], "request": [], "decision": [], "verdict": []}
    words: list[tuple[str, str, str]] = []
    with store.write(durable=any(each.held for each in traces)) as connection:
        request = schema.request.c
        known = set(
            connection.execute(sql.select(request.id).where(request.id.in_([each.id for each in traces]))).scalars()
        )
        for trace in {each.id: each for each in traces if each.id not in known}.values():
            _collect(trace, rows, words)
        texts.put(connection, words)
        if rows["conversation"]:
            connection.execute(store.insert(schema.conversation).on_conflict_do_nothing(), rows.pop("conversation"))
        for name, made in rows.items():
            if made:
                connection.execute(sql.insert(schema.metadata.tables[name]), made)
        for trace in traces:
            if trace.held:
                hold(store, connection, trace.id, trace.conversation or trace.id)


def hold(store: Store, connection: sql.Connection, request: str, conversation: str, task: str | None = None) -> str:
    """Note that an answer waits for a person; returns the hold's id (one for each request)."""
    id = derived_id("hold", request)
    row = {"id": id, "request_id": request, "conversation_id": conversation, "task_id": task, "by": "", "at": now()}
    connection.execute(store.insert(schema.hold).values(row).on_conflict_do_nothing())
    return id


def _collect(trace: Trace, rows: dict[str, list[dict[str, Any]]], words: list[tuple[str, str, str]]) -> None:
    conversation = trace.conversation or trace.id
    rows["conversation"].append({"id": conversation, "tenant": trace.tenant, "subject": trace.subject, "at": trace.at})
    asked, answered = derived_id("text", trace.id, "input"), derived_id("text", trace.id, "output")
    masked = texts.pack(trace.redacted_messages) if trace.redacted_messages is not None else ""
    words.append((asked, texts.pack(trace.messages), masked))
    if trace.answer is not None:
        masked = texts.pack([trace.redacted_answer]) if trace.redacted_answer is not None else ""
        words.append((answered, texts.pack([trace.answer]), masked))
    rows["request"].append(
        {
            "id": trace.id,
            "conversation_id": conversation,
            "tenant": trace.tenant,
            "subject": trace.subject,
            "release": trace.release,
            "model": trace.model,
            "surface": trace.surface,
            "language": trace.language,
            "people": trace.people,
            "input_id": asked,
            "output_id": answered if trace.answer is not None else None,
            "finish": trace.finish,
            "usage": dict(trace.usage),
            "latency_ms": trace.latency_ms,
            "stream": trace.stream,
            "meta": dict(trace.meta),
            "at": trace.at,
        }
    )
    for decided in trace.decisions:
        category, score = decided.highest()
        rows["decision"].append(
            {
                "id": decided.id,
                "request_id": trace.id,
                "direction": decided.direction,
                "channel": decided.channel,
                "action": decided.action,
                "reasons": list(decided.reasons),
                "redactions": [each.model_dump(mode="json") for each in decided.redactions],
                "policy": decided.policy,
                "score": score,
                "category": category,
                "shadow": decided.shadow,
                "latency_ms": decided.latency_ms,
                "at": trace.at,
            }
        )
        for no, verdict in enumerate(decided.verdicts):
            rows["verdict"].append(
                {
                    "id": derived_id("verdict", decided.id, no),
                    "decision_id": decided.id,
                    "judge": verdict.judge,
                    "status": verdict.status,
                    "scores": verdict.scores,
                    "spans": [each.model_dump(mode="json") for each in verdict.spans],
                    "certificate": verdict.certificate or "",
                    "cost_ms": verdict.cost_ms,
                }
            )
