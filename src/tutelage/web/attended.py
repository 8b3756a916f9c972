"""Conversations that are with a person, as the user meets them: what they send waits for the person's answer.

Where the answer comes while the request waits, it ends that request; else the next request in the conversation brings
it. A stream that waits is kept open by comments. Nothing that the model could say is said meanwhile.
"""

from __future__ import annotations

import time
from asyncio import sleep
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing

from tutelage.core.records import Decision, Message
from tutelage.guard.barrier import stops
from tutelage.guard.pipeline import Pipeline
from tutelage.guard.request import WAITING, Ask, Chunk, Meter
from tutelage.web.state import State

LOOK_S = 0.1
"""How often a request that waits looks whether a person has answered."""
ALIVE_S = 10.0
"""How often a stream that waits says so."""
Take = Callable[[], Awaitable[Sequence[Message]]]
"""Takes what people have answered and nobody was given yet; it is then on its way with this request."""


async def served(
    state: State, pipeline: Pipeline, ask: Ask, meter: Meter, take: Take, sent: Callable[[], Awaitable[None]]
) -> AsyncGenerator[Chunk]:
    """The chunks of a request: by the pipeline, or by the person who has the conversation.

    `sent` is called when a person's words were taken by whoever sends them.
    """
    if ask.deliverable and state.taken(pipeline.conversation(ask)):
        decision = await pipeline.receive(ask)
        if stops(decision) and decision.action != "review":
            for choice in range(ask.sampling.n):
                yield Chunk(choice, pipeline.message(ask, decision), "blocked", decision)
            return
        async with aclosing(_answered(state, pipeline, ask, take, sent, decision, "")) as words:
            async for chunk in words:
                yield chunk
        return
    async with aclosing(pipeline.serve(ask, meter)) as chunks:
        async for chunk in chunks:
            promise = chunk.finish == "blocked" and chunk.decision is not None and chunk.decision.action == "review"
            if not (promise and ask.stream and ask.deliverable and ask.sampling.n == 1):
                yield chunk
                continue
            yield chunk._replace(finish=None, decision=None)
            said = chunk.decision or Decision(action="review")
            async with aclosing(_answered(state, pipeline, ask, take, sent, said, chunk.text, chunk.usage)) as words:
                async for each in words:
                    yield each


async def _answered(
    state: State,
    pipeline: Pipeline,
    ask: Ask,
    take: Take,
    sent: Callable[[], Awaitable[None]],
    decision: Decision,
    told: str,
    usage: tuple[int, int] = (0, 0),
) -> AsyncGenerator[Chunk]:
    """Wait for a person and end the answer with their words; without them, with the policy's promise, unless that was
    `told` already."""
    held = decision.model_copy(update={"action": "review"})
    given: Sequence[Message] = ()
    name, patience = pipeline.conversation(ask), state.settings.takeover
    wait = patience.stream_s if ask.stream else patience.whole_s
    until = time.monotonic() + (wait if ask.people == "live" else 0.0)  # simulated users wait for nobody
    alive = 0.0
    while time.monotonic() < until and not state.draining and state.waits(name):
        if ask.stream and time.monotonic() >= alive:
            alive = time.monotonic() + ALIVE_S
            yield WAITING
        if given := await take():
            break
        await sleep(LOOK_S)
    given = given or await take()  # they may have answered and given the conversation back in one
    if given:
        words = "\n\n".join([await pipeline.opened(ask, each.content) for each in given])
        for choice in range(ask.sampling.n):
            yield Chunk(choice, f"\n\n{words}" if told else words, "stop", held, usage)
        if ask.stream:
            await sent()
        return
    for choice in range(ask.sampling.n):
        yield Chunk(choice, "" if told else pipeline.message(ask, held), "blocked", held, usage)
