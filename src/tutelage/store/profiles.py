"""What people chose to say about themselves: encrypted, withdrawn at any time, read by others in groups only."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping

import sqlalchemy as sql

from tutelage.store import ledger, schema
from tutelage.store.engine import Reader, Store, now


def set_profile(store: Store, person: str, attributes: Mapping[str, str], consent: str = "1") -> None:
    """Keep what a person chose to say about themselves, encrypted, with the version of the consent they gave."""
    set_profiles(store, {person: attributes}, consent)


def set_profiles(store: Store, profiles: Mapping[str, Mapping[str, str]], consent: str = "1") -> None:
    """Profiles of several people (by id) in one transaction."""
    with store.write() as connection:
        for person, attributes in profiles.items():
            sealed = store.keys.seal("profile", json.dumps(dict(attributes), sort_keys=True).encode(), person)
            set_to = {"consent": consent, "sealed": sealed, "updated_at": now()}
            connection.execute(
                store.insert(schema.profile)
                .values(person_id=person, **set_to)
                .on_conflict_do_update(index_elements=["person_id"], set_=set_to)
            )
            ledger.append(connection, person, "profile.set", person, {"consent": consent})


def profile(store: Reader, person: str) -> dict[str, str]:
    """What a person said about themselves ({} when nothing). For that person's own eyes; reports use `groups`."""
    table = schema.profile
    with store.read() as connection:
        sealed = connection.execute(sql.select(table.c.sealed).where(table.c.person_id == person)).scalar()
    return json.loads(store.keys.unseal("profile", sealed, person)) if sealed else {}


def withdraw(store: Store, person: str, by: str) -> None:
    """Withdraw consent: the profile is cleared; what was counted before stays counted nowhere."""
    with store.write() as connection:
        connection.execute(
            sql.update(schema.profile)
            .where(schema.profile.c.person_id == person)
            .values(sealed=None, consent="withdrawn", updated_at=now())
        )
        ledger.append(connection, by, "profile.withdraw", person)


def groups(store: Reader, attribute: str, k: int = 5, kind: str | None = None) -> dict[str, list[str]]:
    """Value of an attribute -> ids of the people who gave it; values of fewer than k people are left out.

    A single hidden group could be had by subtraction: when exactly one is too small, the next smallest goes as well.
    """
    query = sql.select(schema.profile.c.person_id, schema.profile.c.sealed).where(schema.profile.c.sealed.is_not(None))
    if kind:
        query = query.join(schema.person, schema.person.c.id == schema.profile.c.person_id).where(
            schema.person.c.kind == kind
        )
    with store.read() as connection:
        rows = connection.execute(query).all()
    found: dict[str, list[str]] = {}
    for row in rows:
        value = json.loads(store.keys.unseal("profile", row.sealed, row.person_id)).get(attribute)
        if value:
            found.setdefault(str(value), []).append(row.person_id)
    sizes = Counter({value: len(members) for value, members in found.items()})
    small = {value for value, size in sizes.items() if size < k}
    if len(small) == 1 and len(sizes) > 1:
        small.add(min((value for value in sizes if value not in small), key=lambda value: (sizes[value], value)))
    return {value: sorted(members) for value, members in sorted(found.items()) if value not in small}
