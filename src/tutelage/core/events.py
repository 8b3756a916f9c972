"""Progress, said once and heard everywhere: a terminal line, a JSON line, the console."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from tutelage.core.records import Record


class Event(Record):
    """One thing that happened in a stage. Times are seconds; `rate` is `unit` per second."""

    at: float
    stage: str
    part: str = ""
    """The stage that runs inside this one: of a turn of the wheel `labels`, `classifier` ..."""
    key: str = ""
    kind: Literal["start", "progress", "note", "done", "skip", "fail", "wait"]
    text: str = ""
    done: float = 0
    total: float | None = None
    unit: str = ""
    rate: float | None = None
    eta: float | None = None
    figures: dict[str, Any] = Field(default_factory=dict)


Sink = Callable[[Event], None]


class JsonLines:
    """A sink that appends events to a file. The file is what the console and `report` read."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path

    def __call__(self, event: Event) -> None:
        line = json.dumps(event.model_dump(mode="json", exclude_defaults=True), ensure_ascii=False)
        with self.path.open("a", encoding="utf-8") as out:
            out.write(line + "\n")


class Reporter:
    """What a stage says while it works. Progress is passed on at most every `every` seconds, and always at the end."""

    def __init__(
        self, stage: str, key: str = "", sinks: tuple[Sink, ...] = (), every: float = 0.25, part: str = ""
    ) -> None:
        self.stage, self.key, self.sinks, self.every, self.part = stage, key, sinks, every, part
        self._said = 0.0
        self._unit = ""
        self._seen: deque[tuple[float, float]] = deque(maxlen=40)  # (time, done): rate over the recent past

    def inside(self, name: str) -> Reporter:
        """What the stage `name` says: this reporter for the section's own, or one for a stage that runs inside it."""
        if name == self.stage.partition("@")[0]:
            return self
        return Reporter(self.stage, sinks=self.sinks, every=self.every, part=name)

    def say(self, kind: Any, **fields: Any) -> None:
        """Pass an event to every sink."""
        event = Event(at=time.time(), stage=self.stage, part=self.part, key=self.key, kind=kind, **fields)
        for sink in self.sinks:
            sink(event)

    def progress(self, done: float, total: float | None = None, unit: str = "steps", **figures: Any) -> None:
        """`done` of `total` units are finished; `figures` are shown beside it (loss, accuracy)."""
        now = time.monotonic()
        if unit != self._unit or (self._seen and done < self._seen[-1][1]):
            self._seen.clear()
            self._unit, self._said = unit, 0.0
        finished = total is not None and done >= total
        if now - self._said < self.every and not finished:
            return
        self._said = now
        self._seen.append((now, done))
        (first_at, first_done), (last_at, last_done) = self._seen[0], self._seen[-1]
        rate = (last_done - first_done) / (last_at - first_at) if last_at > first_at else None
        eta = (total - done) / rate if rate and total is not None else None
        self.say("progress", done=done, total=total, unit=unit, rate=rate, eta=eta, figures=figures)

    def note(self, text: str, **figures: Any) -> None:
        """Something a person should read: what was dropped, what was continued, what was chosen."""
        self.say("note", text=text, figures=figures)


def silent() -> Reporter:
    """A reporter that nobody hears, for tests and library use."""
    return Reporter("silent")


def read_events(path: Path) -> list[Event]:
    """Events of a file; a torn last line (a kill while writing) is left out."""
    events = []
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                events.append(Event.model_validate_json(line))
            except ValueError:
                continue
    return events
