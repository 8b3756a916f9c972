"""How much a tenant may ask: requests and tokens per minute, requests at once. Pure: the clock is given.

Both rates are kept by the generic cell rate algorithm: one number per tenant, no windows whose edges can be used.
Tokens are reserved before an answer is made and settled when its length is known.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from pydantic import Field

from tutelage.core.records import Record


class Limits(Record):
    """What one tenant may ask; 0 = no limit."""

    requests_per_minute: int = Field(600, ge=0)
    tokens_per_minute: int = Field(0, ge=0)
    """Tokens read and written together."""
    concurrent: int = Field(64, ge=0)
    """Requests at once."""
    body_bytes: int = Field(1_000_000, ge=1024)
    """Largest request body."""
    characters: int = Field(200_000, ge=1)
    """Longest conversation, all messages together."""


class Budget(Record):
    """What one tenant may use in all, tokens read and written together; 0 = no limit. Days and months are UTC's."""

    day_tokens: int = Field(0, ge=0)
    month_tokens: int = Field(0, ge=0)


Priority = Literal["low", "normal", "high"]
SHARES: Mapping[Priority, float] = {"low": 0.7, "normal": 0.9, "high": 1.0}
"""How full the service may be for a request of this priority to begin."""
RANKS: Mapping[Priority, int] = {"low": -1, "normal": 0, "high": 1}
"""Whose answers begin first where they wait for the embedded model."""


@dataclass
class _State:
    requests_at: float = 0.0
    tokens_at: float = 0.0
    running: int = 0


@dataclass(frozen=True)
class Grant:
    """Leave to go on. Give it back with `settle`."""

    tenant: str
    tokens: int


@dataclass(frozen=True)
class Denied:
    """Too much: why, and after how many seconds it is worth trying again."""

    reason: str
    retry_after: float
    status: int = 429
    code: str = "rate_limit_exceeded"


class Limiter:
    """Counts what tenants ask. Safe to use from several threads; idle tenants are forgotten."""

    def __init__(self, most_tenants: int = 10_000) -> None:
        self._states: OrderedDict[str, _State] = OrderedDict()
        self._most = most_tenants
        self._lock = threading.Lock()

    def acquire(self, tenant: str, limits: Limits, tokens: int, now: float) -> Grant | Denied:
        """Ask for one request that may use up to `tokens` tokens. `now` is in seconds and never runs backwards."""
        with self._lock:
            state = self._state(tenant)
            if limits.concurrent and state.running >= limits.concurrent:
                return Denied(f"{limits.concurrent} requests are running already", 1.0)
            waits = []
            if limits.requests_per_minute:
                waits.append((_wait(state.requests_at, 1, limits.requests_per_minute, now), "requests"))
            if limits.tokens_per_minute:
                if tokens > limits.tokens_per_minute:
                    most = limits.tokens_per_minute
                    return Denied(f"the request may use {tokens} tokens, {most} per minute are allowed", 60.0)
                waits.append((_wait(state.tokens_at, tokens, limits.tokens_per_minute, now), "tokens"))
            wait, what = max(waits, default=(0.0, ""))
            if wait > 0:
                return Denied(f"too many {what} per minute", wait)
            if limits.requests_per_minute:
                state.requests_at = max(state.requests_at, now) + 60.0 / limits.requests_per_minute
            if limits.tokens_per_minute:
                state.tokens_at = max(state.tokens_at, now) + 60.0 * tokens / limits.tokens_per_minute
            state.running += 1
            return Grant(tenant, tokens)

    def settle(self, grant: Grant, limits: Limits, used: int, now: float) -> None:
        """The answer is finished: what was reserved and not used is free again."""
        with self._lock:
            state = self._state(grant.tenant)
            state.running = max(0, state.running - 1)
            if limits.tokens_per_minute:
                state.tokens_at += 60.0 * (used - grant.tokens) / limits.tokens_per_minute

    def _state(self, tenant: str) -> _State:
        state = self._states.setdefault(tenant, _State())
        self._states.move_to_end(tenant)
        while len(self._states) > self._most:
            oldest = next((name for name, each in self._states.items() if not each.running), None)
            if oldest is None or oldest == tenant:
                break
            del self._states[oldest]
        return state


def _wait(at: float, amount: int, per_minute: int, now: float) -> float:
    """Seconds until `amount` fits: a minute's worth may come at once, then they come evenly."""
    ahead = max(at, now) + 60.0 * amount / per_minute - now
    return 0.0 if ahead <= 60.0 + 1e-9 else math.ceil((ahead - 60.0) * 1000) / 1000


class Shedder:
    """Refuses what a full service cannot do, those of low priority first. Safe to use from several threads."""

    def __init__(self, capacity: int) -> None:
        self._capacity, self.running, self._lock = capacity, 0, threading.Lock()

    def acquire(self, priority: Priority) -> Denied | None:
        """Ask for a place; None gives it, to be given back with `release`."""
        with self._lock:
            if self.running >= max(1, int(self._capacity * SHARES[priority])):
                why = f"the service is busy: {self.running} requests are running"
                return Denied(why, 2.0, 503, "overloaded")
            self.running += 1
            return None

    def release(self) -> None:
        """Give a place back."""
        with self._lock:
            self.running = max(0, self.running - 1)


def periods(at: float) -> tuple[str, str]:
    """The day and the month of a time in seconds since 1970, UTC."""
    day = datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d")
    return day, day[:7]


class Budgets:
    """What tenants have used and may still use in a day and a month. Safe to use from several threads.

    What other processes used is known as of the last `know`; what this one used is counted at once.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], int] = {}
        self._new: dict[tuple[str, str], tuple[int, int]] = {}
        self._reserved: dict[str, int] = {}
        self._lock = threading.Lock()

    def used(self, tenant: str, period: str) -> int:
        """Tokens used in a period, with those that are reserved."""
        return (
            self._known.get((tenant, period), 0)
            + self._new.get((tenant, period), (0, 0))[0]
            + self._reserved.get(tenant, 0)
        )

    def acquire(self, tenant: str, budget: Budget, tokens: int, at: float) -> Denied | None:
        """Reserve tokens; None gives leave, to be settled. `at` is in seconds since 1970."""
        day, month = periods(at)
        with self._lock:
            for period, most, word in ((day, budget.day_tokens, "day"), (month, budget.month_tokens, "month")):
                if most and self.used(tenant, period) + tokens > most:
                    left = max(0, most - self.used(tenant, period))
                    why = f"the budget of this {word} is used up: {left} of {most} tokens are left"
                    return Denied(why, _until_next(at, word), 429, "insufficient_quota")
            self._reserved[tenant] = self._reserved.get(tenant, 0) + tokens
            return None

    def release(self, tenant: str, reserved: int) -> None:
        """What was reserved is not used."""
        with self._lock:
            left = self._reserved.pop(tenant, 0) - reserved
            if left > 0:
                self._reserved[tenant] = left

    def settle(self, tenant: str, reserved: int, used: int, at: float) -> None:
        """A request has ended and has used so many tokens."""
        self.release(tenant, reserved)
        with self._lock:
            for period in periods(at):
                tokens, requests = self._new.get((tenant, period), (0, 0))
                self._new[tenant, period] = tokens + used, requests + 1

    def take(self) -> dict[tuple[str, str], tuple[int, int]]:
        """What was used since the last time, to be kept; it is counted as known from now on."""
        with self._lock:
            new, self._new = self._new, {}
            for key, (tokens, _) in new.items():
                self._known[key] = self._known.get(key, 0) + tokens
            return new

    def put_back(self, new: Mapping[tuple[str, str], tuple[int, int]]) -> None:
        """It could not be kept: it is new again."""
        with self._lock:
            for key, (tokens, requests) in new.items():
                self._known[key] = self._known.get(key, 0) - tokens
                more, often = self._new.get(key, (0, 0))
                self._new[key] = tokens + more, requests + often

    def know(self, used: Mapping[tuple[str, str], int]) -> None:
        """What was used in all, as it is kept after `take`."""
        with self._lock:
            self._known = dict(used)


def _until_next(at: float, word: str) -> float:
    """Seconds until the next day or month begins."""
    now = datetime.fromtimestamp(at, UTC)
    if word == "day":
        return 86_400.0 - (at % 86_400.0)
    following = datetime(now.year + now.month // 12, now.month % 12 + 1, 1, tzinfo=UTC)
    return (following - now).total_seconds()
