"""Guards that may be slow, each in threads of its own and within its budget: one that hangs holds up no other.

A call that is past its budget is left to itself: its thread may go on, but what it makes is thrown away, and nothing of
it is shared with anybody. A guard that was late `LATE` times in a row rests: its calls are over at once, until one of
them, after the rest, is in time again.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from typing import Any, Literal, TypeVar

THREADS = 8
"""Calls of one guard at once."""
LATE = 5
"""Late calls in a row after which a guard rests."""
REST_S, LONGEST_REST_S = 1.0, 30.0
"""Seconds that something rests first, and at most: they double."""
Health = Literal["closed", "half", "open"]
T = TypeVar("T")
_Job = tuple[Future[Any], Callable[[], Any]]


class Breaker:
    """Whether something that may fail is asked (Nygard, Release It!, 2007, chapter 5). Safe to use from many threads.

    `closed`: it is asked; `open`: it rests; `half`: one call may try it.
    """

    def __init__(
        self, failures: int, rest_s: float = REST_S, longest_s: float = LONGEST_REST_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._most, self._rest, self._longest, self._clock = failures, rest_s, longest_s, clock
        self._failures = self._rests = 0
        self._until, self._trying = 0.0, False
        self._lock = threading.Lock()

    @property
    def state(self) -> Health:
        """How it does."""
        if self._failures < self._most:
            return "closed"
        return "open" if self._clock() < self._until else "half"

    def may(self) -> bool:
        """Whether to ask it; of those who may ask while it is `half` open there is one, who says `over` in the end."""
        with self._lock:
            state = self.state
            if state == "open" or (state == "half" and self._trying):
                return False
            self._trying = state == "half"
            return True

    def fine(self) -> None:
        """It has done what it should."""
        with self._lock:
            self._failures = self._rests = 0

    def failed(self) -> None:
        """It has not."""
        with self._lock:
            self._failures += 1
            if self._failures >= self._most:
                self._until = self._clock() + min(self._longest, self._rest * 2**self._rests)
                self._rests += 1

    def over(self) -> None:
        """A call has ended, one way or another."""
        with self._lock:
            self._trying = False


class _Room:
    """The threads of one guard. They are daemons: one that hangs does not keep the program from ending."""

    def __init__(self, name: str, most: int) -> None:
        self._name, self._most = name, most
        self.breaker = Breaker(LATE)
        self._changed = threading.Condition()
        self._waiting: deque[_Job] = deque()
        self._threads = self._idle = 0
        self._closed = False

    def submit(self, work: Callable[[], T]) -> tuple[_Job, Future[T]]:
        job: tuple[Future[T], Callable[[], T]] = Future(), work
        with self._changed:
            if self._closed:
                raise RuntimeError(f"the guard {self._name!r} is closed")
            self._waiting.append(job)
            if self._idle < len(self._waiting) and self._threads < self._most:
                self._threads += 1
                threading.Thread(target=self._work, name=f"guard {self._name}", daemon=True).start()
            self._changed.notify()
        return job, job[0]

    def forget(self, job: _Job) -> None:
        """Nobody waits for this any more; if it has not begun it never will."""
        with self._changed, suppress(ValueError):
            self._waiting.remove(job)

    def close(self) -> None:
        with self._changed:
            self._closed = True
            for future, _ in self._waiting:
                future.cancel()
            self._waiting.clear()
            self._changed.notify_all()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._idle += 1
                self._changed.wait_for(lambda: self._waiting or self._closed)
                self._idle -= 1
                if self._closed:
                    return
                future, work = self._waiting.popleft()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                made = work()
            except BaseException as error:  # whoever waits hears of it; the thread must live
                future.set_exception(error)
            else:
                future.set_result(made)
            del future, work


class Breakers:
    """One room of threads per guard."""

    def __init__(self, most: int = THREADS) -> None:
        self._most, self._lock = most, threading.Lock()
        self._rooms: dict[str, _Room] = {}

    async def call(self, guard: str, work: Callable[[], T], budget_ms: float) -> T:
        """What the guard's work gives. Raises TimeoutError past its budget, the time it waited for a thread included,
        or while it rests, and whatever the work raises."""
        with self._asking(guard, work) as future:
            async with asyncio.timeout(budget_ms / 1000):  # wait_for may swallow that the caller was cancelled
                return await asyncio.wrap_future(future)

    def wait(self, guard: str, work: Callable[[], T], budget_ms: float) -> T:
        """`call` for a thread that may wait."""
        with self._asking(guard, work) as future:
            return future.result(budget_ms / 1000)

    @contextmanager
    def _asking(self, guard: str, work: Callable[[], T]) -> Iterator[Future[T]]:
        room = self._room(guard)
        if not room.breaker.may():
            raise TimeoutError(f"the guard {guard!r} rests")
        job, future = room.submit(work)
        try:
            yield future
        except TimeoutError:
            if future.running():  # one that never had a thread says nothing of the guard
                room.breaker.failed()
            raise
        else:
            room.breaker.fine()
        finally:
            room.breaker.over()
            room.forget(job)

    def states(self) -> dict[str, Health]:
        """How each guard does that was ever asked here."""
        with self._lock:
            return {name: room.breaker.state for name, room in self._rooms.items()}

    def _room(self, guard: str) -> _Room:
        with self._lock:
            return self._rooms.setdefault(guard, _Room(guard, self._most))

    def close(self) -> None:
        """Let go of all threads; those that hang end with the program."""
        with self._lock:
            for room in self._rooms.values():
                room.close()
