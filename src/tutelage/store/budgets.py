"""What tenants have used in a day and in a month (UTC), shared by all services over one store."""

from __future__ import annotations

from collections.abc import Mapping

import sqlalchemy as sql

from tutelage.store import schema
from tutelage.store.engine import Reader, Store

usage = schema.usage.c
Used = tuple[int, int]
"""Tokens and requests."""


def add(store: Store, used: Mapping[tuple[str, str], Used]) -> None:
    """Add to what was used: (tenant, period) -> tokens and requests."""
    if not used:
        return
    with store.write(durable=False) as connection:
        for (tenant, period), (tokens, requests) in sorted(used.items()):
            new = store.insert(schema.usage).values(
                tenant=tenant[:120], period=period, tokens=tokens, requests=requests
            )
            connection.execute(
                new.on_conflict_do_update(
                    index_elements=["tenant", "period"],
                    set_={
                        "tokens": schema.usage.c.tokens + new.excluded.tokens,
                        "requests": schema.usage.c.requests + new.excluded.requests,
                    },
                )
            )


def used(store: Reader, periods: list[str]) -> dict[tuple[str, str], Used]:
    """(tenant, period) -> tokens and requests, of these periods."""
    query = sql.select(schema.usage).where(usage.period.in_(periods))
    with store.read() as connection:
        return {(row.tenant, row.period): (row.tokens, row.requests) for row in connection.execute(query)}
