"""Several addresses that answer alike: the first that is well is asked, the next when it fails before its first byte.

An address that failed in a row is left alone for a while, then one request tries it. What has begun to answer is never
replaced: nobody could tell which bytes to take back.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any

from tutelage.core.errors import MissingExtra, UpstreamError
from tutelage.core.records import Message
from tutelage.generate.generator import Sampling
from tutelage.guard.breaker import Breaker, Health
from tutelage.guard.remote import Patience, RemoteUpstream
from tutelage.guard.tools import PLAIN, Wants
from tutelage.guard.upstream import QUEUE, Delta, EngineUpstream, GeneratorUpstream, Misbehaved, Refusing, Upstream

FAILURES = 3
"""In a row, before an address is left alone."""
REST_S, LONGEST_REST_S = 2.0, 60.0
"""Seconds it is left alone first, and at most: they double."""
ROUNDS = 2
"""How often the list is gone through for one answer."""
PAUSE_S = 0.2


class Pool:
    """Upstreams in the order in which they are to be asked."""

    def __init__(self, upstreams: Sequence[Upstream], *, clock: Callable[[], float] = time.monotonic) -> None:
        self.name = upstreams[0].name
        self._members = [(each, Breaker(FAILURES, REST_S, LONGEST_REST_S, clock)) for each in upstreams]

    @property
    def health(self) -> list[Health]:
        """How each address does, in their order."""
        return [breaker.state for _, breaker in self._members]

    def states(self) -> dict[str, Health]:
        """The same by name, numbered where several addresses have the same one."""
        return {f"{number}. {each.name}": breaker.state for number, (each, breaker) in enumerate(self._members, 1)}

    async def stream(
        self, messages: Sequence[Message], sampling: Sampling, sample: int = 0, wants: Wants = PLAIN
    ) -> AsyncGenerator[Delta]:
        """Pieces of the first address that begins to answer. Raises Misbehaved when none does."""
        failure: UpstreamError | None = None
        for round_ in range(ROUNDS):
            if round_:
                await asyncio.sleep(PAUSE_S)
            for upstream, breaker in self._members:
                if not breaker.may():
                    continue
                pieces = upstream.stream(messages, sampling, sample, wants)
                begun = False
                try:
                    async for piece in pieces:
                        if not begun:
                            begun = True
                            breaker.fine()
                        yield piece
                    return
                except Refusing:
                    breaker.fine()
                    raise
                except UpstreamError as error:
                    breaker.failed()
                    if begun:
                        raise
                    failure = error
                finally:
                    breaker.over()
                    await pieces.aclose()
        raise failure or Misbehaved("no upstream is well; each is left alone for a while")

    async def close(self) -> None:
        """Close all connections."""
        for upstream, _ in self._members:
            await upstream.close()


def remote(addresses: Sequence[tuple[str, str | None]], patience: Patience | None = None) -> Upstream:
    """`https://host/v1#model` addresses with their keys: one by itself tries again, several stand in for each other."""
    pairs = [(url.partition("#")[0], url.partition("#")[2] or "default", key) for url, key in addresses]
    if len(pairs) == 1:
        return RemoteUpstream(*pairs[0], patience=patience)
    return Pool([RemoteUpstream(*each, tries=1, patience=patience) for each in pairs])


def open_upstream(
    ref: str, root: Any = None, *, key: str | None = None, max_batch: int = 64, int8: bool = False, queue: int = QUEUE
) -> Upstream:
    """Open `model:<id>` as an embedded engine, `https://host/v1#model` as a remote one, `fake:...` as a generator.

    `int8`: the embedded engine rounds its matrices; UsageError where it cannot. `queue`: answers that may wait for it.
    """
    if ref.startswith(("http://", "https://")):
        return remote([(ref, key)])
    from tutelage.core import refs

    generator = refs.open(ref, root)
    if not ref.startswith("model:"):
        return GeneratorUpstream(generator)
    try:
        from tutelage.generate.engine import Engine
    except ModuleNotFoundError as error:
        raise MissingExtra(error.name or "torch", "train") from None
    more: Any = {"max_batch": max_batch, "tokenizer": generator.tokenizer, "int8": int8}
    engine = Engine(generator.decoder, eos=generator.eos, **more)
    return EngineUpstream(engine, generator.tokenizer, generator.name, queue=queue)
