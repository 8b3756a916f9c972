"""Whose requests these are and whether they may begin now: keys of the settings, limits, budgets, load."""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Mapping
from typing import NamedTuple

from tutelage.core.artifact import Root
from tutelage.core.config import secret
from tutelage.guard.limits import Budgets, Denied, Grant, Limiter, Shedder, periods
from tutelage.store import budgets
from tutelage.store.engine import Store
from tutelage.web.settings import Key, Settings


class Owner(NamedTuple):
    """Whose key it is, what it may ask, and until when (seconds since 1970)."""

    tenant: str
    scopes: frozenset[str]
    ends: float | None = None


class Tenancy:
    """The tenants of a service. What they used is kept in the store with `sync`, at short intervals."""

    def __init__(self, settings: Settings, environment: Mapping[str, str], root: Root, store: Store) -> None:
        self._settings, self._store = settings, store
        self.limiter, self.budgets, self.shedder = Limiter(), Budgets(), Shedder(settings.capacity)
        self._keys: dict[str, Owner] = {}
        for name, tenant in settings.tenants.items():
            for number, given in enumerate(tenant.keys):
                key = given if isinstance(given, Key) else Key(key=given)
                value = secret(key.key, environment, f"tenants.{name}.keys.{number}", root.path)
                digest = hashlib.sha256(value.encode()).hexdigest()
                self._keys[digest] = Owner(name, frozenset(key.scopes), key.ends)
        self.sync()

    def owns(self, digest: str) -> Owner | None:
        """Whose key of the settings this is, by its sha256; compared in constant time. None for one that has ended."""
        found = None
        for known, owner in self._keys.items():
            if hmac.compare_digest(known, digest):
                found = owner
        return found if found is not None and (found.ends is None or time.time() < found.ends) else None

    def admit(self, tenant: str, tokens: int) -> Grant | Denied:
        """Leave for one request of at most `tokens` tokens, to be given back with `settle`; else why not."""
        given = self._settings.tenant(tenant)
        if denied := self.shedder.acquire(given.priority):
            return denied
        if denied := self.budgets.acquire(tenant, given.budget, tokens, time.time()):
            self.shedder.release()
            return denied
        grant = self.limiter.acquire(tenant, given.limits, tokens, time.monotonic())
        if isinstance(grant, Denied):
            self.budgets.release(tenant, tokens)
            self.shedder.release()
        return grant

    def settle(self, grant: Grant, spent: int) -> None:
        """The request has ended, however it did, and has used so many tokens."""
        self.limiter.settle(grant, self._settings.tenant(grant.tenant).limits, spent, time.monotonic())
        self.budgets.settle(grant.tenant, grant.tokens, spent, time.time())
        self.shedder.release()

    def spending(self) -> list[tuple[str, str, int, int]]:
        """(tenant, day or month, tokens used, tokens allowed) of every budget there is."""
        day, month = periods(time.time())
        found = []
        for name, tenant in sorted(self._settings.tenants.items()):
            given = tenant.budget
            for word, period, most in (("day", day, given.day_tokens), ("month", month, given.month_tokens)):
                if most:
                    found.append((name, word, self.budgets.used(name, period), most))
        return found

    def sync(self) -> None:
        """Keep what was used, and see what others used. Raises Busy; what could not be kept is kept the next time."""
        new = self.budgets.take()
        try:
            budgets.add(self._store, new)
        except BaseException:
            self.budgets.put_back(new)
            raise
        if any(each.budget.day_tokens or each.budget.month_tokens for each in self._settings.tenants.values()):
            found = budgets.used(self._store, list(periods(time.time())))
            self.budgets.know({key: tokens for key, (tokens, _) in found.items()})
