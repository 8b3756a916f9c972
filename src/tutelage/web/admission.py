"""Leave to go on: what a request may use is reserved before anything is asked, and settled when it is known."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from tutelage.guard.limits import Denied
from tutelage.web.state import State
from tutelage.web.wire import Fault


class Admission:
    """A tenant's leave for one request of at most `tokens` tokens. Raises Fault 429 when that is too much now."""

    def __init__(self, state: State, tenant: str, tokens: int) -> None:
        self._limiter, self._limits = state.limiter, state.tenant(tenant).limits
        grant = self._limiter.acquire(tenant, self._limits, tokens, time.monotonic())
        if isinstance(grant, Denied):
            raise Fault(
                f"rate limit: {grant.reason}",
                status=429,
                code="rate_limit_exceeded",
                kind="rate_limit_error",
                retry_after=grant.retry_after,
            )
        self._grant = grant

    def settle(self, spent: int) -> None:
        """The request has ended, however it did, and has used so many tokens."""
        self._limiter.settle(self._grant, self._limits, spent, time.monotonic())


@contextmanager
def admitted(state: State, tenant: str, tokens: int) -> Iterator[None]:
    """Leave for what costs what it reserves."""
    admission = Admission(state, tenant, tokens)
    try:
        yield
    finally:
        admission.settle(tokens)
