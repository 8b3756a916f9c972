"""One channel of an answer on its way out: its guards within their budgets, its barrier, its placeholders opened."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType

from tutelage.guard.barrier import Barrier, Passed
from tutelage.guard.breaker import Breakers
from tutelage.guard.policy import Policy
from tutelage.guard.tools import LogProb
from tutelage.guard.vault import Unmasker, Vault
from tutelage.guard.written import Where
from tutelage.judge.judge import Progress, Tap, Watcher, failed

HELD_TOKENS = 16
"""Tokens of the embedded engine that are kept back at most, however short they are."""
PIECE = 4096
"""Characters that guards of bounded cost read on the event loop at once."""


class Aside:
    """A slow guard's watcher, as the barrier sees it: asked beside the event loop first, then it says what it found.

    A watcher that asks its judge at every stride has its budget for each of them. Past its budget it is never asked
    again, and says `timeout` to the end of the answer.
    """

    def __init__(self, name: str, watcher: Watcher, breakers: Breakers, budget_ms: float) -> None:
        self._name, self._watcher, self._breakers, self._budget = name, watcher, breakers, budget_ms
        self._stride = max(1, int(getattr(watcher, "stride", PIECE)))
        self._late = False
        self._progress = Progress(0, None)

    async def ask(self, text: str | None) -> None:
        """Show it more of the answer; None: the answer has ended."""
        if text is None:
            return await self._step(self._watcher.close)
        for start in range(0, len(text), self._stride):
            await self._step(partial(self._watcher.feed, text[start : start + self._stride]))

    async def _step(self, step: Callable[[], Progress]) -> None:
        if self._late:
            return
        try:
            self._progress = await self._breakers.call(self._name, step, self._budget)
        except TimeoutError:
            self._late = True
            self._progress = Progress(0, failed(self._name, "timeout", self._budget))
        except Exception:  # a guard that raises has no opinion; the policy says what that means
            self._progress = Progress(0, failed(self._name, "error"))

    def feed(self, text: str, taps: Sequence[Tap] = ()) -> Progress:
        """What it found when it was asked."""
        return self._progress

    def close(self) -> Progress:
        """What it found when it was asked."""
        return self._progress


class Lane:
    """A channel's way through the barrier.

    Args:
        watchers: guard name -> its watcher of this channel.
        slow: names of those that need a thread and a time limit.
        vault: opens the conversation's placeholders in what may leave.
        beside: runs what may have to wait for the vault's store, beside the event loop.
        further: guards that are asked only where those are not sure, from the begin of the text on.
    """

    def __init__(
        self,
        policy: Policy,
        watchers: Mapping[str, Watcher],
        slow: frozenset[str],
        at: Where,
        breakers: Breakers,
        vault: Vault,
        beside: Callable[[Callable[[], None]], Awaitable[None]],
        further: Mapping[str, Watcher] = MappingProxyType({}),
    ) -> None:
        defaults = policy.file.defaults
        self._slow = {n: Aside(n, watchers[n], breakers, policy.budget(n)) for n in watchers if n in slow}
        self._further = {n: Aside(n, each, breakers, policy.budget(n)) for n, each in further.items()}
        known = {**watchers, **self._slow, **self._further}
        self.barrier = Barrier(policy, known, at, hold_back=defaults.hold_back, asleep=self._further)
        self._most, self._latest = defaults.hold_back, deque[int](maxlen=HELD_TOKENS)
        self._opened, self._beside = Unmasker(vault), beside
        self.waiting = ""
        """What the guards have not been shown yet."""
        self._made: list[str] = []
        self.size = 0
        """Characters of all that was written."""
        self.read = 0
        """Characters of it that the guards have read."""
        self._told = deque[tuple[int, int, tuple[LogProb, ...]]]()
        self._marked = 0

    def take(self, text: str, tokens: bool, logprobs: tuple[LogProb, ...] = ()) -> None:
        """More of the channel. `tokens`: each text is one token, so that so many of them are kept back at most.
        `logprobs`: of tokens within the text that has come since the last ones."""
        self._made.append(text)
        self.size += len(text)
        self.waiting += text
        if logprobs:
            self._told.append((self._marked, self.size, logprobs))
            self._marked = self.size
        if tokens:
            self._latest.append(len(text))
            self.barrier.hold_back = min(self._most, sum(self._latest))

    @property
    def made(self) -> str:
        """All that was written, also what is withheld."""
        self._made = ["".join(self._made)]
        return self._made[0]

    async def show(self, last: bool) -> Passed:
        """Show the guards what waits, a piece at a time: between those of a long text other requests go on.

        What may leave by now, and the decision that stops the rest, if there is one.
        """
        text, self.waiting = self.waiting, ""
        before, out = self.size - len(text), list[str]()
        for start in range(0, len(text), PIECE):
            if start:
                await asyncio.sleep(0)
            piece = text[start : start + PIECE]
            await asyncio.gather(*(each.ask(piece) for each in self._slow.values()))
            passed = self.barrier.feed(piece)
            self.read = before + start + len(piece)
            while await self._woken(False):
                passed = self.barrier.feed("")
            if passed.stop is not None:
                return Passed("" if out else passed.text, passed.stop)
            out.append(passed.text)
        if not last:
            return Passed("".join(out))
        await asyncio.gather(*(each.ask(None) for each in self._slow.values()))
        end = self.barrier.close()
        while await self._woken(True):
            end = self.barrier.close()
        return Passed("".join(out) + end.text, end.stop)

    async def _woken(self, last: bool) -> bool:
        """Ask the guards of a further tier, if the others are not sure; False where they are."""
        names = self.barrier.unsure
        for name in names:
            self._slow[name] = self._further[name]
            await self._slow[name].ask(self.made[: self.read])
            if last:
                await self._slow[name].ask(None)
        self.barrier.wake(names)
        return bool(names)

    async def open(self, text: str, last: bool) -> str:
        """Text that may leave, with the placeholders of its conversation opened; the vault may have to be read."""
        if not self._opened.ready(text):
            await self._beside(self._opened.load)
        found = self._opened.feed(text)
        return found + self._opened.close() if last else found

    def due(self, last: bool) -> tuple[LogProb, ...]:
        """Log-probabilities of tokens whose text has left whole and as it was written."""
        if not self._told:
            return ()
        left = self.barrier.released - (0 if last else self._opened.held)
        cuts, found = self.barrier.decision.redactions, list[LogProb]()
        while self._told and self._told[0][1] <= left:
            start, end, logprobs = self._told.popleft()
            if not any((cut.start < end and cut.end > start) or cut.start <= start < cut.end for cut in cuts):
                found += logprobs
        return tuple(found)
