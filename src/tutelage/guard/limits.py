"""How much a tenant may ask: requests and tokens per minute, requests at once. Pure: the clock is given.

Both rates are kept by the generic cell rate algorithm: one number per tenant, no windows whose edges can be used.
Tokens are reserved before an answer is made and settled when its length is known.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from dataclasses import dataclass

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
