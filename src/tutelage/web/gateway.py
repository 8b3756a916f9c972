"""The OpenAI-compatible service in front of the guarded model, and the guards by themselves.

Nothing is sent that did not come out of `Pipeline.serve`. A text that the policy withholds ends with finish reason
`content_filter`, and the field `guard` says under which policy and why.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import ExitStack, aclosing
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from tutelage.core.errors import Busy, NoSpace, NotFound, TutelageError, UpstreamError, UsageError
from tutelage.core.records import Decision, Finish, Message
from tutelage.guard.limits import Denied, Grant
from tutelage.guard.pipeline import Pipeline
from tutelage.guard.policy import SURFACES, Surface
from tutelage.guard.request import Ask, Chunk, Ending
from tutelage.store import traffic
from tutelage.store.keys import uuid7
from tutelage.web import auth, wire
from tutelage.web.state import State
from tutelage.web.wire import Fault

FINISH: Mapping[Finish, str] = {
    "stop": "stop",
    "length": "length",
    "tool": "tool_calls",
    "blocked": "content_filter",
    "error": "stop",
}
NAMES = frozenset(("tutelage", "default", "release:current"))
"""What clients may call the model that answers, beside its release, its bundle and its own name."""
MOST_SCANS = 256


class Metrics:
    """Prometheus figures; labels are bounded."""

    def __init__(self, state: State) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("tutelage_requests", "Requests", ["surface", "status"], registry=self.registry)
        self.decisions = Counter("tutelage_decisions", "Decisions", ["direction", "action"], registry=self.registry)
        buckets = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
        self.seconds = Histogram("tutelage_seconds", "Time to the last byte", buckets=buckets, registry=self.registry)
        waiting = Gauge("tutelage_traces_waiting", "Traces not written yet", registry=self.registry)
        waiting.set_function(lambda: float(state.writer.lag))
        refused = Gauge("tutelage_traces_refused", "Traces that found no room", registry=self.registry)
        refused.set_function(lambda: float(state.writer.refused))


def router(state: State) -> APIRouter:
    """The service's routes."""
    routes = APIRouter()
    metrics = Metrics(state)

    @routes.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        return await _complete(state, metrics, request, "chat")

    @routes.post("/v1/completions")
    async def completions(request: Request) -> Response:
        return await _complete(state, metrics, request, "completions")

    @routes.get("/v1/models")
    async def models(request: Request) -> Response:
        auth.asker(request)
        return JSONResponse({"object": "list", "data": [_model(state)] if state.pipeline else []})

    @routes.get("/v1/models/{name:path}")
    async def model(request: Request, name: str) -> Response:
        auth.asker(request)
        with state.lease() as pipeline:
            _named(pipeline, name)
        return JSONResponse(_model(state))

    @routes.post("/v1/moderations")
    async def moderations(request: Request) -> Response:
        return await _moderate(state, request)

    @routes.post("/v1/embeddings")
    async def embeddings(request: Request) -> Response:
        auth.asker(request)
        raise Fault("no encoder is configured", status=501, code="not_implemented", kind="not_implemented_error")

    @routes.post("/v1/feedback")
    async def feedback(request: Request) -> Response:
        return await _feedback(state, request)

    @routes.post("/guard/scan")
    async def scan(request: Request) -> Response:
        return await _scan(state, request)

    @routes.get("/guard/coverage")
    async def coverage(request: Request) -> Response:
        asker = auth.asker(request)
        with state.lease() as pipeline:
            policy = pipeline.policy
            rows = policy.coverage(SURFACES, asker.tenant)
        return JSONResponse({"policy": policy.hash, "standing": state.standing, "coverage": rows})

    @routes.get("/health")
    async def health() -> Response:
        ready = state.pipeline is not None and state.writer.healthy and not state.draining
        told = {
            "status": "draining" if state.draining else "ready" if ready else "waiting",
            "release": state.pipeline.release if state.pipeline else None,
            "guards": state.standing,
            "problem": state.problem or None,
            "traces_waiting": state.writer.lag,
            "traces_refused": state.writer.refused,
        }
        return JSONResponse(told, 200 if ready else 503)

    @routes.get("/metrics")
    async def figures(request: Request) -> Response:
        auth.asker(request)
        return Response(generate_latest(metrics.registry), media_type="text/plain; version=0.0.4")

    return routes


def _model(state: State) -> dict[str, Any]:
    return {"id": "tutelage", "object": "model", "created": int(state.started), "owned_by": "tutelage"}


def _named(pipeline: Pipeline, name: str) -> None:
    """Refuse a model that does not answer here."""
    if name not in NAMES | {pipeline.release, pipeline.upstream.name, pipeline.model}:
        message = f"the model {name!r} does not answer here; ask for 'tutelage'"
        raise Fault(message, status=404, param="model", code="model_not_found")


# completions


async def _ask(
    state: State, request: Request, surface: Surface, lent: ExitStack
) -> tuple[Ask, dict[str, Any], Pipeline]:
    """Read and check a request; the pipeline is lent until `lent` is closed."""
    who = auth.asker(request)
    tenant = state.tenant(who.tenant)
    body = await wire.read_json(request, tenant.limits.body_bytes)
    wire.known(body, wire.SAMPLING | {"messages" if surface == "chat" else "prompt"})
    pipeline = lent.enter_context(state.lease())
    _named(pipeline, wire.text(body, "model", 256, "tutelage"))
    if surface == "chat":
        messages = wire.messages(body, tenant.limits.characters)
    else:
        messages = (Message(role="text", content=wire.prompts(body, tenant.limits.characters)),)
    person = who.person
    return (
        Ask(
            messages=messages,
            sampling=wire.sampling(body, state.settings.default_tokens, state.settings.max_tokens),
            surface=surface,
            tenant=who.tenant,
            conversation=request.headers.get("x-conversation-id", "")[:200],
            subject=wire.text(body, "user", 256) or (person.id if person and request.state.session else ""),
            language=tenant.language or _language(request),
            stream=wire.flag(body, "stream"),
            people=person.kind if person and person.kind in ("simulated", "replayed") else "live",  # type: ignore[arg-type]
            id=uuid7(),
            meta=wire.metadata(body),
        ),
        body,
        pipeline,
    )


def _language(request: Request) -> str:
    return request.headers.get("accept-language", "")[:2].lower()


async def _complete(state: State, metrics: Metrics, request: Request, surface: Surface) -> Response:
    """One completion, whole or as a stream."""
    with ExitStack() as lent:
        return await _begin(state, metrics, request, surface, lent)


async def _begin(state: State, metrics: Metrics, request: Request, surface: Surface, lent: ExitStack) -> Response:
    started = time.perf_counter()
    status = "error"
    try:
        ask, body, pipeline = await _ask(state, request, surface, lent)
        usage = wire.stream_usage(body)
        if not state.writer.healthy:
            raise Fault("the service can not keep traces now", status=503, code="overloaded", retry_after=1.0)
        grant = _admit(state, ask)
        status = "ok"
    finally:
        metrics.requests.labels(surface, status).inc()
    shape = _Chat(ask, pipeline) if surface == "chat" else _Text(ask, pipeline)
    headers = _headers(pipeline, ask)
    served = _served(state, metrics, pipeline, ask, grant, started, lent.pop_all())
    try:
        first = await anext(served)  # what is wrong before the first byte is still an honest status
    except BaseException:
        await served.aclose()
        raise
    if ask.stream:
        return StreamingResponse(_events(shape, first, served, usage), media_type="text/event-stream", headers=headers)
    answers: dict[int, list[Chunk]] = {}
    async with aclosing(served):
        answers.setdefault(first.choice, []).append(first)
        async for chunk in served:
            answers.setdefault(chunk.choice, []).append(chunk)
    return JSONResponse(shape.whole(answers), headers=headers)


def _admit(state: State, ask: Ask) -> Grant:
    """Reserve what the request may use, or refuse it with 429."""
    limits = state.tenant(ask.tenant).limits
    read = sum(len(message.content) for message in ask.messages) // 3 + 1
    most = (read + ask.sampling.max_tokens) * ask.sampling.n
    grant = state.limiter.acquire(ask.tenant, limits, most, time.monotonic())
    if isinstance(grant, Denied):
        raise Fault(
            f"rate limit: {grant.reason}",
            status=429,
            code="rate_limit_exceeded",
            kind="rate_limit_error",
            retry_after=grant.retry_after,
        )
    return grant


async def _served(
    state: State, metrics: Metrics, pipeline: Pipeline, ask: Ask, grant: Grant, started: float, lent: ExitStack
) -> AsyncGenerator[Chunk]:
    """The pipeline's chunks, after what a person has answered in this conversation meanwhile.

    At the end, however it comes, limits are settled and the pipeline is given back.
    """
    used = 0
    try:
        given = await run_in_threadpool(state.pending, pipeline.conversation(ask)) if ask.conversation else []
        if given:
            await run_in_threadpool(state.delivered, [name for name, _ in given])
            for choice in range(ask.sampling.n):
                yield Chunk(choice, "".join(f"{message.content}\n\n" for _, message in given))
        async with aclosing(pipeline.serve(ask)) as chunks:
            async for chunk in chunks:
                if chunk.finish is not None:
                    used += sum(chunk.usage)
                    direction = "output" if chunk.finish != "blocked" else "any"
                    metrics.decisions.labels(direction, chunk.decision.action if chunk.decision else "allow").inc()
                yield chunk
    finally:
        lent.close()
        state.limiter.settle(grant, state.tenant(ask.tenant).limits, used, time.monotonic())
        metrics.seconds.observe(time.perf_counter() - started)


def _headers(pipeline: Pipeline, ask: Ask) -> dict[str, str]:
    return {
        "x-request-id": ask.id,
        "x-conversation-id": ask.conversation or pipeline.conversation(ask),
        "x-tutelage-release": pipeline.release,
        "x-tutelage-policy": pipeline.policy.hash[:16],
        "cache-control": "no-store",
    }


def _guard(pipeline: Pipeline, decision: Decision | None) -> dict[str, Any]:
    """What the client is told about a decision: no scores, which would teach how to pass."""
    reasons = sorted({reason.partition(":")[0] for reason in decision.reasons}) if decision else []
    action = decision.action if decision else "allow"
    return {"action": action, "rules": reasons, "policy": pipeline.policy.hash[:16], "release": pipeline.release}


class _Chat:
    """Chat completions."""

    name, piece = "chat.completion", "chat.completion.chunk"

    def __init__(self, ask: Ask, pipeline: Pipeline) -> None:
        self.ask, self.pipeline = ask, pipeline
        self.base = {"id": ask.id, "created": int(time.time()), "model": pipeline.model}

    def part(self, chunk: Chunk, opening: bool) -> dict[str, Any]:
        """One event of a stream."""
        delta: dict[str, Any] = {"role": "assistant"} if opening else {}
        if chunk.text or opening:
            delta["content"] = chunk.text
        return {**self.base, "object": self.piece, "choices": [self._choice(chunk, {"delta": delta})]}

    def whole(self, answers: Mapping[int, list[Chunk]]) -> dict[str, Any]:
        """The whole answer."""
        choices = []
        for index in sorted(answers):
            text = "".join(chunk.text for chunk in answers[index])
            message = {"role": "assistant", "content": text, "refusal": None}
            choices.append(self._choice(answers[index][-1], {"message": message}))
        ends = [chunks[-1] for chunks in answers.values()]
        return {**self.base, "object": self.name, "choices": choices, "usage": usage_of(ends)}

    def _choice(self, chunk: Chunk, said: dict[str, Any]) -> dict[str, Any]:
        finish = FINISH[chunk.finish] if chunk.finish is not None else None
        choice = {"index": chunk.choice, **said, "logprobs": None, "finish_reason": finish}
        return choice if finish is None else {**choice, "guard": _guard(self.pipeline, chunk.decision)}


class _Text(_Chat):
    """Completions of a text."""

    name = piece = "text_completion"

    def part(self, chunk: Chunk, opening: bool) -> dict[str, Any]:
        """One event of a stream."""
        return {**self.base, "object": self.piece, "choices": [self._choice(chunk, {"text": chunk.text})]}

    def whole(self, answers: Mapping[int, list[Chunk]]) -> dict[str, Any]:
        """The whole answer."""
        choices = [
            self._choice(answers[index][-1], {"text": "".join(chunk.text for chunk in answers[index])})
            for index in sorted(answers)
        ]
        ends = [chunks[-1] for chunks in answers.values()]
        return {**self.base, "object": self.name, "choices": choices, "usage": usage_of(ends)}


def usage_of(ends: list[Chunk]) -> dict[str, int]:
    """Tokens of a request: the prompt is counted once."""
    prompt = max((chunk.usage[0] for chunk in ends), default=0)
    made = sum(chunk.usage[1] for chunk in ends)
    return {"prompt_tokens": prompt, "completion_tokens": made, "total_tokens": prompt + made}


async def _events(shape: _Chat, first: Chunk, rest: AsyncGenerator[Chunk], usage: bool) -> AsyncIterator[bytes]:
    """A stream as server-sent events. An error after the first byte is an event too, and no `[DONE]` follows it."""
    opened: set[int] = set()
    ends: list[Chunk] = []

    def event(value: Mapping[str, Any]) -> bytes:
        return f"data: {json.dumps(value, ensure_ascii=False, separators=(',', ':'))}\n\n".encode()

    def part(chunk: Chunk) -> bytes:
        made = shape.part(chunk, chunk.choice not in opened)
        opened.add(chunk.choice)
        if chunk.finish is not None:
            ends.append(chunk)
        return event({**made, "usage": None} if usage else made)

    async with aclosing(rest):
        try:
            yield part(first)
            async for chunk in rest:
                yield part(chunk)
        except TutelageError as error:
            yield event(fault_of(error).body)
            return
    if usage:
        yield event({**shape.base, "object": shape.piece, "choices": [], "usage": usage_of(ends)})
    yield b"data: [DONE]\n\n"


# the guards by themselves


async def _moderate(state: State, request: Request) -> Response:
    """OpenAI's moderation: every category with its calibrated probability, flagged where a rule would fire."""
    who = auth.asker(request)
    body = await wire.read_json(request, state.tenant(who.tenant).limits.body_bytes)
    wire.known(body, frozenset(("model", "input")))
    given = body.get("input")
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list) or not 0 < len(texts) <= MOST_SCANS or not all(isinstance(t, str) for t in texts):
        wire.refuse(f"'input' must be a text or a list of 1 to {MOST_SCANS} texts", "input")
    results = []
    with state.lease() as pipeline:
        for text in texts:
            message = (Message(role="user", content=text),)
            found = await run_in_threadpool(pipeline.scan, message, surface="moderations", tenant=who.tenant)
            scores = found.scores
            fired = {reason.split()[1] for reason in found.input.decision.reasons if len(reason.split()) > 2}
            categories = {name: name in fired for name in scores}
            results.append({"flagged": found.action != "allow", "categories": categories, "category_scores": scores})
    return JSONResponse({"id": f"modr-{uuid7()}", "model": "tutelage", "results": results})


async def _scan(state: State, request: Request) -> Response:
    """Scan texts or conversations: one line of results each, as `tutelage guard scan` prints them."""
    who = auth.asker(request)
    body = await wire.read_json(request, state.tenant(who.tenant).limits.body_bytes)
    rows = body.get("rows", [body])
    if not isinstance(rows, list) or not 0 < len(rows) <= MOST_SCANS:
        wire.refuse(f"'rows' must be a list of 1 to {MOST_SCANS} rows", "rows")
    lines = []
    with state.lease() as pipeline:
        for index, row in enumerate(rows):
            messages, answer = _row(row, f"rows[{index}]", state.tenant(who.tenant).limits.characters)
            found = await run_in_threadpool(pipeline.scan, messages, answer, tenant=who.tenant)
            lines.append(found.line(str(row.get("id", index))))
    return JSONResponse({"results": lines, "policy": pipeline.policy.hash, "release": pipeline.release})


def _row(row: Any, where: str, most: int) -> tuple[tuple[Message, ...], str | None]:
    if not isinstance(row, dict):
        wire.refuse(f"{where} must be an object with 'text' or 'messages'", where)
    answer = row.get("answer")
    if answer is not None and not isinstance(answer, str):
        wire.refuse(f"{where}.answer must be a text", f"{where}.answer")
    if isinstance(row.get("text"), str):
        if len(row["text"]) > most:
            wire.refuse(f"{where}.text is longer than {most} characters", f"{where}.text")
        return (Message(role="user", content=row["text"]),), answer
    return wire.messages(row, most), answer


async def _feedback(state: State, request: Request) -> Response:
    """What an end user says about an answer: a thumb, a comment, an appeal."""
    who = auth.asker(request)
    body = await wire.read_json(request, 65_536)
    kind = wire.text(body, "kind", 20, "thumb")
    if kind not in ("thumb", "comment", "appeal", "score"):
        wire.refuse("'kind' must be thumb, score, comment or appeal", "kind")
    name = wire.text(body, "request", 64)
    value = wire.number(body, "value", 0, -1e6, 1e6) if body.get("value") is not None else None
    if kind == "thumb" and value not in (1, -1):
        wire.refuse("a thumb has the value 1 or -1", "value")
    people_kind = who.person.kind if who.person and who.person.kind in ("simulated", "replayed") else "live"

    def keep() -> str:
        state.flush()
        found = traffic.requests(state.store, ids=[name], tenant=who.tenant)
        if not found:
            raise NotFound(f"there is no request {name!r}", key="request")
        text = wire.text(body, "text", 20_000)
        key = wire.text(body, "key", 120) or None
        actor = who.person.id if who.person else who.tenant
        return traffic.add_feedback(
            state.store, name, kind, value=value, text=text, actor=actor, people=people_kind, key=key
        )

    return JSONResponse({"id": await run_in_threadpool(keep), "object": "feedback"}, 201)


# errors


def fault_of(error: Exception) -> Fault:
    """Any error of ours as OpenAI words it."""
    if isinstance(error, Fault):
        return error
    if isinstance(error, HTTPException):
        kind = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
        code = {401: "invalid_api_key"}.get(error.status_code)
        word = kind.get(error.status_code, "invalid_request_error")
        return Fault(str(error.detail), status=error.status_code, code=code, kind=word)
    if isinstance(error, NotFound):
        if error.key == "request":
            return Fault(error.message, status=404, param="request", code="not_found")
        return Fault(str(error), status=503, code="no_model", kind="server_error", retry_after=5.0)
    if isinstance(error, UsageError):
        return Fault(
            error.message, param=error.key, code="context_length_exceeded" if error.key == "messages" else None
        )
    if isinstance(error, UpstreamError):
        return Fault(error.message, status=502, code="upstream_error", kind="server_error")
    if isinstance(error, Ending):
        return Fault(error.message, status=503, code="server_shutdown", kind="server_error", retry_after=5.0)
    if isinstance(error, Busy | NoSpace):
        return Fault(error.message, status=503, code="overloaded", kind="server_error", retry_after=1.0)
    return Fault("something failed inside the service", status=500, code="internal_error", kind="server_error")


def respond(fault: Fault) -> JSONResponse:
    """A fault as a response."""
    headers = {"retry-after": str(max(1, round(fault.retry_after)))} if fault.retry_after is not None else {}
    if fault.status == 401:
        headers["www-authenticate"] = "Bearer"
    return JSONResponse(fault.body, fault.status, headers=headers)
