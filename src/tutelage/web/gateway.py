"""The OpenAI-compatible service in front of the guarded model, and the guards by themselves.

Nothing is sent that did not come out of `Pipeline.serve`. A text that the policy withholds ends with finish reason
`content_filter`, and the field `guard` says under which policy and why.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Coroutine
from contextlib import ExitStack, aclosing
from dataclasses import replace
from typing import Any, TypeVar

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from prometheus_client import Counter, Gauge, Histogram, generate_latest
from starlette.concurrency import run_in_threadpool
from starlette.types import Receive, Scope, Send

from tutelage.core.errors import NotFound
from tutelage.core.records import Message
from tutelage.guard.coverage import coverage
from tutelage.guard.limits import RANKS
from tutelage.guard.pipeline import Pipeline
from tutelage.guard.pool import Pool
from tutelage.guard.request import Ask, Chunk, Meter
from tutelage.guard.tools import PLAIN
from tutelage.guard.upstream import Refusing
from tutelage.guard.written import SURFACES, Surface
from tutelage.store import traffic
from tutelage.store.keys import uuid7
from tutelage.web import attended, auth, responses, scanning, wanted, wire
from tutelage.web.admission import Admission
from tutelage.web.chat import Chat, Text, events
from tutelage.web.embeddings import embed
from tutelage.web.responses import Responses
from tutelage.web.state import State
from tutelage.web.wire import Fault

T = TypeVar("T")
NAMES = frozenset(("tutelage", "default", "release:current"))
"""What clients may call the model that answers, beside its release, its bundle and its own name."""


class Metrics:
    """Prometheus figures; labels are bounded."""

    def __init__(self, state: State) -> None:
        self.registry = state.telemetry.registry
        ended = "Requests by how they ended: ok, withheld, refused, limited, overloaded, upstream, gone, error"
        self.requests = Counter("tutelage_requests", ended, ["surface", "status"], registry=self.registry)
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
    underway: set[str] = set()  # answers by people that are on their way to somebody

    @routes.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        return await _complete(state, metrics, underway, request, "chat")

    @routes.post("/v1/responses")
    async def response(request: Request) -> Response:
        return await _complete(state, metrics, underway, request, "responses")

    @routes.post("/v1/completions")
    async def completions(request: Request) -> Response:
        return await _complete(state, metrics, underway, request, "completions")

    @routes.get("/v1/models")
    async def models(request: Request) -> Response:
        auth.asker(request, "answers")
        return JSONResponse({"object": "list", "data": [_model(state)] if state.pipeline else []})

    @routes.get("/v1/models/{name:path}")
    async def model(request: Request, name: str) -> Response:
        auth.asker(request, "answers")
        with state.lease() as pipeline:
            _named(pipeline, name)
        return JSONResponse(_model(state))

    @routes.post("/v1/moderations")
    async def moderations(request: Request) -> Response:
        return await scanning.moderate(state, request)

    @routes.post("/v1/embeddings")
    async def embeddings(request: Request) -> Response:
        return await embed(state, request)

    @routes.post("/v1/feedback")
    async def feedback(request: Request) -> Response:
        return await _feedback(state, request)

    @routes.post("/guard/scan")
    async def scan(request: Request) -> Response:
        return await scanning.scan(state, request)

    @routes.get("/guard/coverage")
    async def covered(request: Request) -> Response:
        asker = auth.asker(request, "guard")
        with state.lease() as pipeline:
            policy = pipeline.policy
            rows = coverage(policy, SURFACES, asker.tenant)
        return JSONResponse({"policy": policy.hash, "standing": state.standing, "coverage": rows})

    @routes.get("/health")
    async def health() -> Response:
        ready = state.pipeline is not None and state.writer.healthy and not state.draining
        told = {
            "status": "draining" if state.draining else "ready" if ready else "waiting",
            "release": state.pipeline.release if state.pipeline else None,
            "guards": state.standing,
            "problem": state.problem or None,
            "upstreams": _health(state.pipeline),
            "traces_waiting": state.writer.lag,
            "traces_refused": state.writer.refused,
            "traces_lost": state.writer.lost,
            "breakers": state.breakers,
        }
        return JSONResponse(told, 200 if ready else 503)

    @routes.get("/metrics")
    async def figures(request: Request) -> Response:
        auth.asker(request, "metrics", chat=False)
        return Response(generate_latest(metrics.registry), media_type="text/plain; version=0.0.4")

    return routes


def _model(state: State) -> dict[str, Any]:
    return {"id": "tutelage", "object": "model", "created": int(state.started), "owned_by": "tutelage"}


def _health(pipeline: Pipeline | None) -> list[str] | None:
    """How each of several addresses does; None where there is one, or the model is here."""
    upstream = pipeline.upstream if pipeline else None
    return [*upstream.health] if isinstance(upstream, Pool) else None


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
    who = auth.asker(request, "answers")
    tenant = state.tenant(who.tenant)
    body = await wire.read_json(request, tenant.limits.body_bytes)
    if surface == "responses":
        wire.known(body, responses.READ, responses.NEUTRAL)
    else:
        wire.known(body, wire.SAMPLING | ({"messages"} | wanted.CHAT if surface == "chat" else {"prompt"}))
    pipeline = lent.enter_context(state.lease())
    _named(pipeline, wire.text(body, "model", 256, "tutelage"))
    wants, most, lengths = PLAIN, tenant.limits.characters, (state.settings.default_tokens, state.settings.max_tokens)
    if surface == "chat":
        wants = wanted.of_chat(body)
        messages = wire.messages(body, most - wanted.characters(wants))
    elif surface == "responses":
        wants = wanted.of_responses(body)
        messages = responses.messages(body, most - wanted.characters(wants))
    else:
        messages = (Message(role="text", content=wire.prompts(body, most)),)
    person = who.person
    return (
        Ask(
            messages=messages,
            sampling=responses.sampling(body, *lengths) if surface == "responses" else wire.sampling(body, *lengths),
            wants=replace(wants, salt=who.tenant, priority=RANKS[tenant.priority], left_open=wire.left_open(body)),
            surface=surface,
            tenant=who.tenant,
            conversation=request.headers.get("x-conversation-id", "")[:200],
            subject=wire.text(body, "user", 120) or (person.id if person and request.state.session else ""),
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


async def _complete(state: State, metrics: Metrics, underway: set[str], request: Request, surface: Surface) -> Response:
    """One completion, whole or as a stream."""
    with ExitStack() as lent:
        return await _begun(state, metrics, underway, request, surface, lent)


async def _begun(
    state: State, metrics: Metrics, underway: set[str], request: Request, surface: Surface, lent: ExitStack
) -> Response:
    started = time.perf_counter()
    try:
        ask, body, pipeline = await _ask(state, request, surface, lent)
        usage = surface != "responses" and wire.stream_usage(body)
        if not state.writer.healthy:
            raise Fault("the service can not keep traces now", status=503, code="overloaded", retry_after=1.0)
        read = wire.tokens(wire.characters(ask.messages) + wanted.characters(ask.wants))
        admission = Admission(state, ask.tenant, read + ask.sampling.max_tokens * ask.sampling.n)
    except Exception as error:
        metrics.requests.labels(surface, _outcome(error)).inc()
        raise
    serving = _Serving(state, metrics, underway, request, pipeline, ask, admission, read, started, lent.pop_all())
    chunks = serving.chunks()
    shape = _shape(ask, pipeline, body)
    headers = _headers(pipeline, ask)
    try:
        if ask.stream:  # what is wrong before the first byte has its status
            first = await _unless_gone(request, _next(chunks))
            told = shape.events(first, chunks) if isinstance(shape, Responses) else events(shape, first, chunks, usage)
            return StreamingResponse(told, media_type="text/event-stream", headers=headers)
        answers = await _unless_gone(request, _gathered(chunks))
    except BaseException:
        await chunks.aclose()
        serving.end("gone")
        raise
    return _Whole(serving, shape.whole(answers), headers)


def _shape(ask: Ask, pipeline: Pipeline, body: dict[str, Any]) -> Chat | Responses:
    """How an answer on this surface is written."""
    if ask.surface == "responses":
        return Responses(ask, pipeline, body)
    return Chat(ask, pipeline) if ask.surface == "chat" else Text(ask, pipeline)


async def _next(chunks: AsyncGenerator[Chunk]) -> Chunk:
    return await anext(chunks)


async def _gathered(chunks: AsyncGenerator[Chunk]) -> dict[int, list[Chunk]]:
    """All chunks by answer."""
    answers: dict[int, list[Chunk]] = {}
    async with aclosing(chunks):
        async for chunk in chunks:
            if chunk.choice >= 0:
                answers.setdefault(chunk.choice, []).append(chunk)
    return answers


async def _unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """What the work gives; it is stopped when the client leaves before."""
    making, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait((making, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not making.done():
            raise Fault("the client went away", status=499, code="client_closed_request")
        return making.result()
    finally:
        leaving.cancel()
        if making.cancel():
            await asyncio.wait((making,))


async def _left(request: Request) -> None:
    """Until the client closes the connection; its body has been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


class _Serving:
    """A request under way: its chunks, what it costs, and how it ends."""

    def __init__(
        self,
        state: State,
        metrics: Metrics,
        underway: set[str],
        request: Request,
        pipeline: Pipeline,
        ask: Ask,
        admission: Admission,
        read: int,
        started: float,
        lent: ExitStack,
    ) -> None:
        self._state, self._metrics, self._request, self._pipeline = state, metrics, request, pipeline
        self._ask, self._admission, self._read, self._started = ask, admission, read, started
        self._meter, self._ended = Meter(), False
        self._underway, self._given = underway, list[str]()
        self._lent = lent

    async def chunks(self) -> AsyncGenerator[Chunk]:
        """The pipeline's chunks, after what a person has answered in this conversation meanwhile."""
        state, pipeline, ask = self._state, self._pipeline, self._ask
        outcome = "gone"
        try:
            given = [await pipeline.opened(ask, message.content) for message in await self._take()]
            for choice in range(ask.sampling.n if given else 0):
                yield Chunk(choice, "".join(f"{words}\n\n" for words in given))
            if given and ask.stream:
                await self._sent()
            withheld = begun = False
            source = attended.served(state, pipeline, ask, self._meter, self._take, self._sent)
            async with aclosing(source) as chunks:
                async for chunk in chunks:
                    if not begun and chunk.choice >= 0:
                        begun = True
                        state.telemetry.first_byte(time.perf_counter() - self._started)
                    if chunk.finish is not None:
                        withheld = withheld or chunk.finish == "blocked"
                        direction = "output" if chunk.finish != "blocked" else "any"
                        action = chunk.decision.action if chunk.decision else "allow"
                        self._metrics.decisions.labels(direction, action).inc()
                    yield chunk
            outcome = "withheld" if withheld else "ok"
        except Exception as error:
            outcome = _outcome(error)
            raise
        finally:
            self.end(outcome)
            if ask.stream or outcome not in ("ok", "withheld"):
                self.release()

    async def _take(self) -> list[Message]:
        """What people have answered in this conversation, and no request has taken along yet."""
        if not self._ask.deliverable:
            return []
        name = self._pipeline.conversation(self._ask)
        given = await run_in_threadpool(self._state.pending, name) if self._state.answered(name) else []
        given = [each for each in given if each[0] not in self._underway]
        self._given += [each for each, _ in given]
        self._underway.update(each for each, _ in given)
        return [message for _, message in given]

    async def _sent(self) -> None:
        """Whoever streams asks for the next part when this one was sent."""
        if not await self._request.is_disconnected():
            await self.deliver()

    def end(self, outcome: str) -> None:
        """Give the pipeline back, settle the limits and count the outcome, once."""
        if self._ended:
            return
        self._ended = True
        self._lent.close()
        self._admission.settle(self._meter.spent(self._read))
        self._metrics.requests.labels(self._ask.surface, outcome).inc()
        self._state.telemetry.ended(outcome)
        self._metrics.seconds.observe(time.perf_counter() - self._started)

    async def deliver(self) -> None:
        """What people answered was sent to the last byte: it will not be sent again."""
        if self._given:
            await run_in_threadpool(self._state.delivered, self._given)

    async def gone(self) -> bool:
        """Whether the client has left; to be asked before the last byte is sent."""
        return await self._request.is_disconnected()

    def release(self) -> None:
        """What people answered is no longer on its way; where it did not arrive, the next request brings it."""
        self._underway.difference_update(self._given)


class _Whole(JSONResponse):
    """A whole answer, which knows when it was sent."""

    def __init__(self, serving: _Serving, content: dict[str, Any], headers: dict[str, str]) -> None:
        super().__init__(content, headers=headers)
        self._serving = serving

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        try:
            gone = await self._serving.gone()
            await super().__call__(scope, receive, send)
            if not gone:
                await self._serving.deliver()
        finally:
            self._serving.release()


def _outcome(error: Exception) -> str:
    """How a request ended that was not answered."""
    if isinstance(error, Refusing):
        return "refused"
    status = wire.fault_of(error).status
    known = {429: "limited", 499: "gone", 502: "upstream", 503: "overloaded"}
    return known.get(status, "refused" if status < 500 else "error")


def _headers(pipeline: Pipeline, ask: Ask) -> dict[str, str]:
    return {
        "x-request-id": ask.id,
        "x-conversation-id": ask.conversation or pipeline.conversation(ask),
        "x-tutelage-release": pipeline.release,
        "x-tutelage-policy": pipeline.policy.hash[:16],
        "x-tutelage-guards": pipeline.standing,
        "cache-control": "no-store",
    }


# what end users say


async def _feedback(state: State, request: Request) -> Response:
    """What an end user says about an answer: a thumb, a comment, an appeal."""
    who = auth.asker(request, "say")
    body = await wire.read_json(request, 65_536)
    wire.only(body, frozenset(("kind", "request", "value", "text", "key")))
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
