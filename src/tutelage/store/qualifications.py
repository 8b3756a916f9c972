"""What people have shown to be able to judge: granted by a lead, asked for by projects."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import sqlalchemy as sql

from tutelage.core.errors import DataError
from tutelage.store import ledger, people, schema, texts
from tutelage.store.engine import Reader, Store, now

table = schema.qualification.c
NAME = re.compile(r"[\w][\w .:+-]{0,59}")


def grant(store: Store, person: str, name: str, by: str) -> None:
    """Note that a person (id) is able to do something; once more changes nothing. Raises DataError, NotFound."""
    if not NAME.fullmatch(name):
        raise DataError(f"{name[:70]!r} is no name of a qualification", key="qualification", todo="1 to 60 characters")
    person = people.get(store, person).id
    with store.write() as connection:
        made = connection.execute(
            store.insert(schema.qualification)
            .values(person_id=person, name=name, by=by, at=now())
            .on_conflict_do_nothing()
            .returning(table.name)  # PostgreSQL's driver counts no rows here
        )
        if made.first() is not None:
            ledger.append(connection, by, "qualification.grant", person, {"name": name})


def revoke(store: Store, person: str, name: str, by: str) -> bool:
    """Take a qualification away; False when it was not there."""
    with store.write() as connection:
        gone = connection.execute(
            sql.delete(schema.qualification).where(table.person_id == person, table.name == name)
        ).rowcount
        if gone:
            ledger.append(connection, by, "qualification.revoke", person, {"name": name})
        return bool(gone)


def held(connection: sql.Connection, person: str) -> frozenset[str]:
    """What one person (id) has."""
    return frozenset(connection.execute(sql.select(table.name).where(table.person_id == person)).scalars())


def of(store: Reader, persons: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Person id -> names, in order; people who have none are missing."""
    found: dict[str, list[str]] = {}
    with store.read() as connection:
        for some in texts.chunks(persons):
            query = sql.select(table.person_id, table.name).where(table.person_id.in_(some)).order_by(table.name)
            for row in connection.execute(query):
                found.setdefault(row.person_id, []).append(row.name)
    return {person: tuple(names) for person, names in found.items()}


@dataclass(frozen=True)
class Holders:
    """Who holds a qualification: the first names (id, name), and how many hold it in all."""

    some: tuple[tuple[str, str], ...]
    total: int


def holders(store: Reader, most: int = people.PAGE) -> dict[str, Holders]:
    """Qualification -> who holds it, of people who may sign in or answer; names in order."""
    who, found = schema.person.c, {}
    active = (who.id == table.person_id, who.status == "active", who.kind != "service")
    with store.read() as connection:
        counts = sql.select(table.name, sql.func.count()).join(schema.person, active[0]).where(*active[1:])
        totals = connection.execute(counts.group_by(table.name).order_by(table.name)).all()
        for name, total in totals:
            first = sql.select(who.id, who.name).join(schema.qualification, active[0]).where(*active[1:])
            rows = connection.execute(first.where(table.name == name).order_by(who.name).limit(most))
            found[name] = Holders(tuple((row.id, row.name) for row in rows), total)
    return found


def every(store: Reader) -> list[str]:
    """All names that somebody holds, in order."""
    with store.read() as connection:
        return list(connection.execute(sql.select(table.name).distinct().order_by(table.name)).scalars())
