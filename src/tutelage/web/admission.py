"""Leave to go on: what a request may use is reserved before anything is asked, and settled when it is known."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tutelage.guard.limits import Denied
from tutelage.web.state import State
from tutelage.web.wire import Fault


class Admission:
    """A tenant's leave for one request of at most `tokens` tokens. Raises Fault 429 when that is too much now, 503 when
    the service has too much to do."""

    def __init__(self, state: State, tenant: str, tokens: int) -> None:
        self._tenancy = state.tenancy
        grant = self._tenancy.admit(tenant, tokens)
        if isinstance(grant, Denied):
            state.telemetry.shed(tenant, grant.code)
            full = grant.status == 503
            raise Fault(
                grant.reason if full else f"rate limit: {grant.reason}",
                status=grant.status,
                code=grant.code,
                kind="server_error" if full else "rate_limit_error",
                retry_after=grant.retry_after,
            )
        self._grant = grant

    def settle(self, spent: int) -> None:
        """The request has ended, however it did, and has used so many tokens."""
        self._tenancy.settle(self._grant, spent)


@contextmanager
def admitted(state: State, tenant: str, tokens: int) -> Iterator[None]:
    """Leave for what costs what it reserves."""
    admission = Admission(state, tenant, tokens)
    try:
        yield
    finally:
        admission.settle(tokens)
