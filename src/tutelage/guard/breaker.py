"""Guards that may be slow, each in threads of its own and within its budget: one that hangs holds up no other.

A call that is past its budget is left to itself: its thread may go on, but what it makes is thrown away, and nothing of
it is shared with anybody. While all threads of a guard hang, its further calls are refused when their time is over.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, TypeVar

THREADS = 8
"""Calls of one guard at once."""
T = TypeVar("T")
_Job = tuple[Future[Any], Callable[[], Any]]


class _Room:
    """The threads of one guard. They are daemons: one that hangs does not keep the program from ending."""

    def __init__(self, name: str, most: int) -> None:
        self._name, self._most = name, most
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
        and whatever the work raises."""
        room = self._room(guard)
        job, future = room.submit(work)
        try:
            async with asyncio.timeout(budget_ms / 1000):  # wait_for may swallow that the caller was cancelled
                return await asyncio.wrap_future(future)
        finally:
            room.forget(job)

    def wait(self, guard: str, work: Callable[[], T], budget_ms: float) -> T:
        """`call` for a thread that may wait."""
        job, future = self._room(guard).submit(work)
        try:
            return future.result(budget_ms / 1000)
        finally:
            self._room(guard).forget(job)

    def _room(self, guard: str) -> _Room:
        with self._lock:
            return self._rooms.setdefault(guard, _Room(guard, self._most))

    def close(self) -> None:
        """Let go of all threads; those that hang end with the program."""
        with self._lock:
            for room in self._rooms.values():
                room.close()
