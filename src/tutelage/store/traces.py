"""One request from its first message to its last decision, and the thread that writes it down, in groups.

The serving path hands a finished trace to `Writer.put` and goes on; the writer commits what has come in every 50 ms.
The queue is bounded: when it is full the request is refused (503), nothing is dropped in silence. What a power cut
can lose is the last group and what the operating system had not written yet; what a crash of the process can lose is
the last 50 ms. A trace that waits for a person is written with its hold in one transaction, to the disk itself, and
`put` tells when that is done: nobody is promised a person's answer before.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import sqlalchemy as sql

from tutelage.core.errors import Busy, NoSpace, TutelageError
from tutelage.core.records import Action, Message, Span, Verdict
from tutelage.store import schema, takeover, texts
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
        self.lost = 0
        """How many traces could not be written at all. They stop neither the others nor the service."""
        self.spoiled: deque[tuple[str, str]] = deque(maxlen=100)
        """(id, reason) of the last of them."""
        self._thread = threading.Thread(target=self._work, name="traffic-writer", daemon=True)
        self._thread.start()

    @property
    def lag(self) -> int:
        """How many traces wait, or will come into the places that are kept for them."""
        return len(self._waiting) + self._reserved

    @property
    def healthy(self) -> bool:
        """False while commits fail or the queue is full."""
        return not self._failure and self.lag < self.capacity

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
        except Exception:  # the thread must live: whatever it is, the other traces go on
            pass
        ends: list[str] = []
        for trace in group:
            try:
                ends.append(self._alone(trace))
            except (Busy, NoSpace) as error:
                self._failure = str(error)
                return ends
        self._failure = ""
        return ends

    def _alone(self, trace: Trace) -> str:
        """Write one trace, as it is or with what no store can hold left out; what was wrong with it, "" if it is
        there. Raises Busy and NoSpace: then it is worth trying again."""
        why = ""
        for whole in (True, False):
            try:
                write(self.store, [trace if whole else mended(trace)])
                return ""
            except (Busy, NoSpace):
                raise
            except Exception as error:
                why = f"{type(error).__name__}: {error}"
        self.lost += 1
        self.spoiled.append((trace.id, why))
        return why


def _plain(value: Any) -> Any:
    """What JSON and a database can hold of a value; of the rest, what it was."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(_plain(str(key))): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return f"({type(value).__name__})"


def mended(trace: Trace) -> Trace:
    """A trace without what no store can hold: half characters, values that are no JSON, numbers that are none."""

    def said(messages: Sequence[Message]) -> tuple[Message, ...]:
        return tuple(Message.model_validate(_plain(each.model_dump(mode="python"))) for each in messages)

    masked = trace.redacted_messages
    answers: dict[str, Any] = {}
    for name in ("answer", "redacted_answer"):
        if (answer := getattr(trace, name)) is not None:
            answers[name] = said([answer])[0]
    names = ("conversation", "tenant", "subject", "release", "model", "surface", "language", "people", "finish")
    words: dict[str, Any] = {name: _plain(getattr(trace, name)) for name in names}
    return replace(
        trace,
        messages=said(trace.messages),
        redacted_messages=None if masked is None else said(masked),
        meta=_plain(trace.meta),
        usage={str(key): int(each) for key, each in trace.usage.items()},
        latency_ms=_plain(float(trace.latency_ms)) or 0.0,
        decisions=tuple(
            replace(each, reasons=_plain(list(each.reasons)), verdicts=[_sound(one) for one in each.verdicts])
            for each in trace.decisions
        ),
        **words,
        **answers,
    )


def _sound(verdict: Verdict) -> Verdict:
    scores = {str(_plain(name)): each for name, each in verdict.scores.items() if math.isfinite(each)}
    return verdict.model_copy(update={"scores": scores, "judge": _plain(verdict.judge)})


def fitted(table: str, row: Mapping[str, Any]) -> dict[str, Any]:
    """A row whose short texts fit their columns: PostgreSQL refuses what is longer, SQLite would keep it."""
    lengths = _lengths()[table]
    return {
        name: value[: lengths[name]] if name in lengths and isinstance(value, str) else value
        for name, value in row.items()
    }


@cache
def _lengths() -> dict[str, dict[str, int]]:
    """Table -> column -> characters that it holds."""
    return {
        name: {c.name: int(c.type.length) for c in table.columns if isinstance(c.type, sql.String) and c.type.length}
        for name, table in schema.metadata.tables.items()
    }


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
        kept = {name: [fitted(name, each) for each in made] for name, made in rows.items()}
        if conversations := kept.pop("conversation"):
            connection.execute(store.insert(schema.conversation).on_conflict_do_nothing(), conversations)
        for name, made in kept.items():
            if made:
                connection.execute(sql.insert(schema.metadata.tables[name]), made)
        for trace in traces:
            if trace.held:
                name = fitted("conversation", {"id": trace.conversation or trace.id})["id"]
                hold(store, connection, trace.id, name)
                takeover.begun(store, connection, name, trace.tenant)


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
