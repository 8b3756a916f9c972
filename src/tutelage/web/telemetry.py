"""What the service tells those who operate it, of each request once: Prometheus figures, a line of JSON, a span.

Labels are bounded. No word of a request or an answer is in any of it, but in lines whose settings ask for `content`,
with personal data masked.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TextIO

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from tutelage.core.errors import ConfigError, MissingExtra
from tutelage.core.records import Action, Verdict
from tutelage.guard.policy import strictest
from tutelage.guard.request import Finished
from tutelage.text.pii import find, redact
from tutelage.web import semconv
from tutelage.web.settings import Telemetry as Settings

BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
STAGES = ("input_guards", "output_guards", "first_byte", "total")
"""Of a request: what guards took on what was asked and on what was answered, until something was sent, and in all."""
RECENT_S = 300.0
"""How far back the rules for incidents look."""


class Telemetry:
    """Figures, lines and spans of a service.

    Raises MissingExtra where spans are asked for without `otel`, ConfigError for a file that cannot be written.
    """

    def __init__(self, settings: Settings, folder: Path, *, taxonomy: Callable[[], Iterable[str]] = tuple) -> None:
        self.registry = CollectorRegistry()
        made: dict[str, Any] = {"registry": self.registry}
        self.stage = Histogram(
            "tutelage_stage_seconds", f"Seconds by stage: {', '.join(STAGES)}", ["stage"], buckets=BUCKETS, **made
        )
        of_guards = ["guard", "category", "status"]
        self.verdicts = Counter("tutelage_verdicts", "Verdicts by guard, highest category, status", of_guards, **made)
        self.blocks = Counter("tutelage_withheld", "Answers and requests withheld", ["category", "action"], **made)
        self.tokens = Counter("tutelage_tokens", "Tokens", ["tenant", "kind"], **made)
        self.sheds = Counter("tutelage_sheds", "Requests refused before they began", ["tenant", "reason"], **made)
        self.traces_lost = Gauge("tutelage_traces_lost", "Traces that could not be written at all", **made)
        self.breakers = Gauge("tutelage_breaker_open", "1: a guard's or an upstream's breaker is open", ["of"], **made)
        self.incidents = Gauge("tutelage_incidents_open", "Incidents that nobody has closed", ["kind"], **made)
        self._taxonomy = taxonomy
        self._content = settings.content
        self._log = _opened(settings.logs, folder)
        self._spans = Spans(settings.traces, folder) if settings.traces else None
        self._tenants: set[str] = set()
        self._recent: deque[tuple[float, bool]] = deque(maxlen=20_000)
        """When requests ended of late, and whether by a failure of the upstream."""

    # what the gateway tells

    def first_byte(self, seconds: float) -> None:
        """Something of an answer may be sent."""
        self.stage.labels("first_byte").observe(seconds)

    def shed(self, tenant: str, reason: str) -> None:
        """A request was refused before it began."""
        self.sheds.labels(self._bounded(tenant), reason).inc()
        self._line("shed", {"tenant": tenant, "reason": reason})

    def ended(self, outcome: str) -> None:
        """A request ended: `ok`, `withheld`, `upstream` ..."""
        self._recent.append((time.monotonic(), outcome == "upstream"))

    def upstream_failures(self) -> tuple[int, int]:
        """Of the requests of late: how many failed at the upstream, and how many there were."""
        since = time.monotonic() - RECENT_S
        found = [failed for at, failed in [*self._recent] if at >= since]
        return sum(found), len(found)

    def finished(self, done: Finished) -> None:
        """A request was served, or was left in the middle; its record is on its way to the store."""
        ask = done.ask
        said = [("input", done.input.decision, done.input.verdicts)]
        said += [("output", each.decision, each.verdicts) for each in done.answers if each.decision.policy]
        for direction, decision, verdicts in said:
            cost = sum(each.cost_ms for each in verdicts)
            self.stage.labels(f"{direction}_guards").observe(cost / 1000)
            for verdict in verdicts:
                self.verdicts.labels(verdict.judge[:60], self._category(verdict), verdict.status).inc()
            if decision.action in ("block", "review"):
                self.blocks.labels(self._category(*verdicts), decision.action).inc()
        self.stage.labels("total").observe(done.milliseconds / 1000)
        prompt = max((each.usage[0] for each in done.answers), default=0)
        made = sum(each.usage[1] for each in done.answers)
        tenant = self._bounded(ask.tenant)
        self.tokens.labels(tenant, "prompt").inc(prompt)
        self.tokens.labels(tenant, "completion").inc(made)
        action: Action = strictest(decision.action for _, decision, _ in said)
        if self._log is not None:
            self._line("request", self._told(done, action, prompt, made))
        if self._spans is not None:
            self._spans.write(done, action, prompt, made)

    def _told(self, done: Finished, action: Action, prompt: int, made: int) -> dict[str, Any]:
        ask = done.ask
        told: dict[str, Any] = {
            "id": ask.id,
            "conversation": done.conversation,
            "tenant": ask.tenant,
            "surface": ask.surface,
            "stream": ask.stream,
            "people": ask.people,
            "release": done.release,
            "policy": done.input.decision.policy[:16],
            "action": action,
            "rules": sorted({reason.partition(":")[0] for reason in _reasons(done)}),
            "failed": sorted({f"{v.judge} {v.status}" for v in _verdicts(done) if v.status != "ok"}),
            "finish": [each.finish for each in done.answers],
            "prompt_tokens": prompt,
            "completion_tokens": made,
            "milliseconds": round(done.milliseconds, 3),
            "error": done.error.partition(" (it said:")[0],
        }
        if self._content:
            told["asked"] = [{"role": each.role, "content": _masked(each.content)} for each in done.masked]
            told["answered"] = ["" if each.finish == "blocked" else _masked(each.made) for each in done.answers]
        return told

    def _category(self, *verdicts: Verdict) -> str:
        """The category with the highest score: one of the taxonomy, so that labels stay bounded."""
        scored = [(score, name) for each in verdicts if each.status == "ok" for name, score in each.scores.items()]
        name = max(scored, default=(0.0, ""))[1]
        return name if name in self._taxonomy() else "other" if name else "none"

    def _bounded(self, tenant: str) -> str:
        """A tenant as a label: the first hundred by name, the others together."""
        if len(self._tenants) < 100:
            self._tenants.add(tenant)
        return tenant if tenant in self._tenants else "other"

    def _line(self, event: str, told: Mapping[str, Any]) -> None:
        if self._log is not None:
            self._log.write({"at": round(time.time(), 3), "event": event, **told})

    def log(self, event: str, told: Mapping[str, Any]) -> None:
        """A line about the service itself."""
        self._line(event, {name: _masked(value) if isinstance(value, str) else value for name, value in told.items()})

    def close(self) -> None:
        """Write what waits."""
        for each in (self._log, self._spans):
            if each is not None:
                each.close()


def _reasons(done: Finished) -> list[str]:
    return [*done.input.decision.reasons, *(r for each in done.answers for r in each.decision.reasons)]


def _verdicts(done: Finished) -> list[Verdict]:
    return [*done.input.verdicts, *(v for each in done.answers for v in each.verdicts)]


def _masked(text: str) -> str:
    """Also what a placeholder was never put for: logs may be read by more people than the store."""
    return redact(text, find(text))


class _Lines:
    """Lines of JSON to a stream, whole ones, from any thread. A line holds no line end: nothing can forge another."""

    def __init__(self, stream: TextIO, mine: bool) -> None:
        self._stream, self._mine, self._lock = stream, mine, threading.Lock()

    def write(self, value: Mapping[str, Any]) -> None:
        line = json.dumps(value, ensure_ascii=True, separators=(",", ":"), default=str)
        with self._lock:
            try:
                self._stream.write(line + "\n")
                self._stream.flush()
            except (OSError, ValueError):  # a full disk or a closed stream stops no request
                return

    def close(self) -> None:
        if self._mine:
            with self._lock:
                self._stream.close()


def _opened(where: str, folder: Path) -> _Lines | None:
    if not where:
        return None
    if where == "stderr":
        return _Lines(sys.stderr, False)
    path = folder / where
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return _Lines(path.open("a", encoding="utf-8"), True)
    except OSError as error:
        raise ConfigError(f"cannot be written: {error.strerror}", file=path, key="telemetry") from None


class Spans:
    """A span for each request, with its decisions and verdicts as events.

    Args:
        where: `provider` uses the process's own tracer provider; else lines of JSON go to `stderr` or a file.
    """

    def __init__(self, where: str, folder: Path) -> None:
        try:
            from opentelemetry import trace
            from opentelemetry.sdk.resources import SERVICE_NAME, Resource
            from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter
        except ImportError:
            raise MissingExtra("opentelemetry-sdk", "otel") from None
        self._kind, self._provider, self._file = trace.SpanKind.SERVER, None, None
        self._status = trace.Status(trace.StatusCode.ERROR)
        if where == "provider":
            self._tracer = trace.get_tracer(semconv.SCOPE)
            return
        self._provider = TracerProvider(resource=Resource.create({SERVICE_NAME: semconv.SCOPE}), shutdown_on_exit=False)
        lines = _opened(where, folder)
        assert lines is not None
        self._file = lines

        def line(span: ReadableSpan) -> str:
            return json.dumps(json.loads(span.to_json()), separators=(",", ":")) + "\n"

        exporter = ConsoleSpanExporter(out=lines._stream, formatter=line)
        self._provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=1000))
        self._tracer = self._provider.get_tracer(semconv.SCOPE)

    def write(self, done: Finished, action: Action, prompt: int, made: int) -> None:
        """The span of a request that has ended now."""
        ask, end = done.ask, time.time_ns()
        operation = semconv.OPERATIONS.get(ask.surface, ask.surface)
        values: dict[str, Any] = {
            semconv.OPERATION: operation,
            semconv.PROVIDER: semconv.SCOPE,
            semconv.REQUEST_MODEL: done.model,
            semconv.RESPONSE_MODEL: done.model,
            semconv.RESPONSE_ID: ask.id,
            semconv.FINISH: [each.finish for each in done.answers if each.index < ask.sampling.n],
            semconv.INPUT_TOKENS: prompt,
            semconv.OUTPUT_TOKENS: made,
            semconv.CONVERSATION: done.conversation,
            semconv.MAX_TOKENS: ask.sampling.max_tokens,
            semconv.TEMPERATURE: ask.sampling.temperature,
            semconv.CHOICES: ask.sampling.n,
            semconv.TENANT: ask.tenant,
            semconv.RELEASE: done.release,
            semconv.POLICY: done.input.decision.policy,
            semconv.SURFACE: ask.surface,
            semconv.STREAM: ask.stream,
            semconv.ACTION: action,
            semconv.RULES: sorted({reason.partition(":")[0] for reason in _reasons(done)}),
        }
        begun = end - int(done.milliseconds * 1e6)
        name = f"{operation} {done.model}"
        span = self._tracer.start_span(name, kind=self._kind, attributes=values, start_time=begun)
        said = [("input", done.input.decision, done.input.verdicts)]
        said += [("output", each.decision, each.verdicts) for each in done.answers if each.decision.policy]
        for direction, decision, verdicts in said:
            told: dict[str, Any] = {semconv.DIRECTION: direction, semconv.ACTION: decision.action}
            span.add_event(semconv.DECISION_EVENT, told, timestamp=end)
            for verdict in verdicts:
                seen: dict[str, Any] = {
                    semconv.DIRECTION: direction,
                    semconv.GUARD: verdict.judge,
                    semconv.STATUS: verdict.status,
                    semconv.COST: verdict.cost_ms,
                    semconv.CATEGORY: max(verdict.scores, key=verdict.scores.__getitem__, default=""),
                }
                span.add_event(semconv.VERDICT_EVENT, seen, timestamp=end)
        if done.error:
            span.set_attribute(semconv.ERROR, done.error.partition(" (it said:")[0][:200])
            span.set_status(self._status)
        span.end(end_time=end)

    def close(self) -> None:
        """Write what waits."""
        if self._provider is not None:
            self._provider.shutdown()
        if self._file is not None:
            self._file.close()
