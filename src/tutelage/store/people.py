"""Accounts, roles, tokens, sessions, and the encrypted profiles of people who consented.

Secrets are stored as hashes only: passwords by scrypt, tokens and cookies (256 random bits) by sha256.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sql

from tutelage.core.errors import DataError, NotFound
from tutelage.store import ledger, schema, texts
from tutelage.store.engine import Reader, Store, derived_id, now, uuid7

ROLES = (
    "owner",
    "lead",
    "reviewer",
    "adjudicator",
    "annotator",
    "safety",
    "operator",
    "auditor",
    "red_teamer",
    "service",
)
KINDS = ("live", "simulated", "replayed", "service")
"""Who stands behind a name. Figures of the first three are never pooled."""

SCRYPT = {"n": 2**14, "r": 8, "p": 1}


@dataclass(frozen=True)
class Person:
    """An account. `pseudonym` is what leaves the store; `roles` are (role, project id or "" for everywhere)."""

    id: str
    name: str
    pseudonym: str
    kind: str = "live"
    status: str = "active"
    languages: tuple[str, ...] = ()
    roles: frozenset[tuple[str, str]] = field(default_factory=frozenset)

    def has(self, *roles: str, project: str = "") -> bool:
        """Whether this person holds any of these roles, everywhere or in a project; an owner holds all."""
        held = {role for role, where in self.roles if where in ("", project)}
        return bool(held & {*roles, "owner"})


@dataclass(frozen=True)
class Caller:
    """Who calls with an API token, and what the token allows."""

    person: Person
    scopes: frozenset[str]


@dataclass(frozen=True)
class Session:
    """Who is signed in, and the token that forms must carry."""

    person: Person
    csrf: str


def create(
    store: Store,
    name: str,
    *,
    kind: str = "live",
    roles: Iterable[str] = ("annotator",),
    project: str | None = None,
    password: str | None = None,
    email: str | None = None,
    languages: Sequence[str] = (),
    by: str = "system",
) -> Person:
    """Make an account, or return the one that has this name already (its kind must be the same)."""
    return create_many(
        store,
        [name],
        kind=kind,
        roles=roles,
        project=project,
        password=password,
        email=email,
        languages=languages,
        by=by,
    )[0]


def create_many(
    store: Store,
    names: Sequence[str],
    *,
    kind: str = "live",
    roles: Iterable[str] = ("annotator",),
    project: str | None = None,
    password: str | None = None,
    email: str | None = None,
    languages: Sequence[str] = (),
    by: str = "system",
) -> list[Person]:
    """Make several accounts in one transaction; those that are there already stay as they are."""
    if kind not in KINDS:
        raise DataError(f"{kind!r} is no kind of person", key="kind", todo=f"One of: {', '.join(KINDS)}")
    wanted = [_role(role) for role in roles]
    table = schema.person
    with store.write() as connection:
        where = project_id(connection, project)
        for name in names:
            if not name.strip() or len(name) > 120:
                raise DataError("a name has 1 to 120 characters", key="name")
            found = connection.execute(sql.select(table.c.id, table.c.kind).where(table.c.name == name)).first()
            if found and found.kind != kind:
                raise DataError(f"{name!r} is there already as a {found.kind} person", key="name")
            person = found.id if found else (derived_id("person", kind, name) if kind != "live" else uuid7())
            if not found:
                connection.execute(
                    sql.insert(table).values(
                        id=person,
                        name=name,
                        pseudonym=f"{kind[0]}-{store.keys.mark('pseudonym', person)[:12]}"
                        if kind == "live"
                        else f"{kind[0]}-{hashlib.sha256(name.encode()).hexdigest()[:12]}",
                        kind=kind,
                        email=email,
                        password=hash_password(password) if password else None,
                        languages=list(languages),
                        at=now(),
                    )
                )
                ledger.append(connection, by, "person.create", person, {"kind": kind})
            for role in wanted:
                _grant(connection, store, person, role, where, by)
    made = {person.name: person for person in _load(store, sql.select(table).where(table.c.name.in_(list(names))))}
    return [made[name] for name in names]


def find(store: Reader, name_or_id: str) -> Person | None:
    """The account with this name or id."""
    table = schema.person
    match = sql.or_(table.c.id == name_or_id, table.c.name == name_or_id)
    found = _load(store, sql.select(table).where(match))
    return found[0] if found else None


def get(store: Reader, name_or_id: str) -> Person:
    """The account with this name or id. Raises NotFound."""
    found = find(store, name_or_id)
    if not found:
        raise NotFound(f"there is no person {name_or_id!r}")
    return found


def every(store: Reader, kind: str | None = None) -> list[Person]:
    """All accounts (of one kind), by name."""
    query = sql.select(schema.person).order_by(schema.person.c.name)
    return _load(store, query.where(schema.person.c.kind == kind) if kind else query)


def grant(store: Store, person: str, role: str, project: str | None = None, by: str = "system") -> None:
    """Give a role, in one project (by name) or everywhere."""
    with store.write() as connection:
        _grant(connection, store, person, _role(role), project_id(connection, project), by)


def revoke(store: Store, person: str, role: str, project: str | None = None, by: str = "system") -> None:
    """Take a role away."""
    table = schema.role_grant
    with store.write() as connection:
        where = project_id(connection, project)
        connection.execute(
            sql.delete(table).where(table.c.person_id == person, table.c.role == role, table.c.project_id == where)
        )
        ledger.append(connection, by, "role.revoke", person, {"role": role, "project": where})


def project_id(connection: sql.Connection, name: str | None) -> str:
    """The id of a project by its name; "" stands for everywhere. Raises NotFound."""
    if not name:
        return ""
    found = connection.execute(sql.select(schema.project.c.id).where(schema.project.c.name == name)).scalar()
    if not found:
        raise NotFound(f"there is no project {name!r}", key="project")
    return str(found)


# passwords, tokens, sessions


def hash_password(password: str) -> str:
    """scrypt with its parameters and salt, so that they can be raised later."""
    if len(password) < 8:
        raise DataError("a password has at least 8 characters", key="password")
    salt = secrets.token_bytes(16)
    made = hashlib.scrypt(password.encode(), salt=salt, **SCRYPT)
    return f"scrypt${SCRYPT['n']}${SCRYPT['r']}${SCRYPT['p']}${salt.hex()}${made.hex()}"


def set_password(store: Store, person: str, password: str) -> None:
    """Set a new password and end all sessions of this person."""
    with store.write() as connection:
        connection.execute(
            sql.update(schema.person).where(schema.person.c.id == person).values(password=hash_password(password))
        )
        connection.execute(sql.delete(schema.session).where(schema.session.c.person_id == person))
        ledger.append(connection, person, "person.password", person)


def has_password(store: Reader, person: str) -> bool:
    """Whether this person has ever set one: until then a one-time link is the only way in."""
    with store.read() as connection:
        found = connection.execute(sql.select(schema.person.c.password).where(schema.person.c.id == person)).scalar()
    return found is not None


def check_password(store: Reader, name: str, password: str) -> Person | None:
    """The person, if name and password fit. Takes as long for an unknown name."""
    with store.read() as connection:
        stored = connection.execute(
            sql.select(schema.person.c.password).where(
                schema.person.c.name == name, schema.person.c.status == "active", schema.person.c.kind == "live"
            )
        ).scalar()
    parts = (stored or f"scrypt${SCRYPT['n']}${SCRYPT['r']}${SCRYPT['p']}${'00' * 16}${'00' * 64}").split("$")
    cost, block, lanes, salt, made = int(parts[1]), int(parts[2]), int(parts[3]), parts[4], parts[5]
    tried = hashlib.scrypt(password.encode(), salt=bytes.fromhex(salt), n=cost, r=block, p=lanes)
    fits = hmac.compare_digest(tried.hex(), made)
    return find(store, name) if fits and stored else None


def issue_token(
    store: Store, person: str, scopes: Sequence[str] = ("feedback",), label: str = "", days: float | None = None
) -> str:
    """Make an API token; it is shown once and stored as a hash."""
    return issue_tokens(store, [person], scopes, label, days)[0]


def issue_tokens(
    store: Store,
    persons: Sequence[str],
    scopes: Sequence[str] = ("feedback",),
    label: str = "",
    days: float | None = None,
) -> list[str]:
    """One API token for each of several people, in one transaction."""
    tokens = [f"tut_{secrets.token_urlsafe(32)}" for _ in persons]
    at = now()
    until = at + int(days * 86_400_000) if days is not None else None
    with store.write() as connection:
        for person, token in zip(persons, tokens, strict=True):
            connection.execute(
                sql.insert(schema.api_token).values(
                    id=uuid7(),
                    person_id=person,
                    hash=_hash(token),
                    scopes=list(scopes),
                    label=label,
                    at=at,
                    expires_at=until,
                )
            )
        ledger.append(connection, "system", "token.issue", label, {"people": len(persons), "scopes": list(scopes)})
    return tokens


def by_token(store: Reader, token: str) -> Caller | None:
    """Who holds a token, unless it has expired or was revoked."""
    table = schema.api_token
    with store.read() as connection:
        row = connection.execute(sql.select(table).where(table.c.hash == _hash(token))).first()
    if not row or row.revoked_at is not None or (row.expires_at is not None and row.expires_at < now()):
        return None
    person = find(store, row.person_id)
    return Caller(person, frozenset(row.scopes)) if person and person.status == "active" else None


def revoke_token(store: Store, token: str) -> None:
    """End a token."""
    revoke_tokens(store, [token])


def revoke_tokens(store: Store, tokens: Sequence[str]) -> None:
    """End several tokens in one transaction."""
    table = schema.api_token
    with store.write() as connection:
        for some in texts.chunks(tokens):
            hashes = [_hash(token) for token in some]
            connection.execute(sql.update(table).where(table.c.hash.in_(hashes)).values(revoked_at=now()))


def open_session(store: Store, person: str, hours: float = 12) -> tuple[str, str]:
    """Sign in: the cookie (stored as a hash) and the token that forms must carry."""
    cookie = secrets.token_urlsafe(32)
    csrf = store.keys.mark("csrf", cookie)
    with store.write() as connection:
        connection.execute(sql.delete(schema.session).where(schema.session.c.expires_at < now()))
        connection.execute(
            sql.insert(schema.session).values(
                hash=_hash(cookie), person_id=person, csrf=csrf, at=now(), expires_at=now() + int(hours * 3_600_000)
            )
        )
    return cookie, csrf


def by_session(store: Reader, cookie: str) -> Session | None:
    """Who is signed in with this cookie."""
    with store.read() as connection:
        row = connection.execute(sql.select(schema.session).where(schema.session.c.hash == _hash(cookie))).first()
    if not row or row.expires_at < now():
        return None
    person = find(store, row.person_id)
    return Session(person, row.csrf) if person and person.status == "active" else None


def close_session(store: Store, cookie: str) -> None:
    """Sign out."""
    with store.write() as connection:
        connection.execute(sql.delete(schema.session).where(schema.session.c.hash == _hash(cookie)))


def invite(store: Store, person: str, hours: float = 24) -> str:
    """A one-time link's token: whoever opens it first may set the password."""
    token = secrets.token_urlsafe(32)
    with store.write() as connection:
        connection.execute(
            sql.insert(schema.invitation).values(
                hash=_hash(token), person_id=person, expires_at=now() + int(hours * 3_600_000)
            )
        )
        ledger.append(connection, "system", "person.invite", person)
    return token


def redeem(store: Store, token: str) -> Person | None:
    """Use a one-time link; None if it was used, has expired or never was."""
    table = schema.invitation
    with store.write() as connection:
        row = connection.execute(
            sql.update(table)
            .where(table.c.hash == _hash(token), table.c.used_at.is_(None), table.c.expires_at >= now())
            .values(used_at=now())
            .returning(table.c.person_id)
        ).first()
    return find(store, row.person_id) if row else None


# profiles


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


def _role(role: str) -> str:
    if role not in ROLES:
        raise DataError(f"{role!r} is no role", key="role", todo=f"One of: {', '.join(ROLES)}")
    return role


def _grant(connection: sql.Connection, store: Store, person: str, role: str, project: str, by: str) -> None:
    made = connection.execute(
        store.insert(schema.role_grant)
        .values(id=uuid7(), person_id=person, project_id=project, role=role, by=by, at=now())
        .on_conflict_do_nothing()
    )
    if made.rowcount:
        ledger.append(connection, by, "role.grant", person, {"role": role, "project": project})


def _load(store: Reader, query: sql.Select[Any]) -> list[Person]:
    held: dict[str, set[tuple[str, str]]] = {}
    with store.read() as connection:
        rows = connection.execute(query).all()
        grants = schema.role_grant
        wanted = sql.select(grants.c.person_id, grants.c.role, grants.c.project_id)
        if len(rows) <= 200:
            wanted = wanted.where(grants.c.person_id.in_([row.id for row in rows]))
        for person, role, project in connection.execute(wanted):
            held.setdefault(person, set()).add((role, project))
    return [
        Person(
            row.id, row.name, row.pseudonym, row.kind, row.status, tuple(row.languages), frozenset(held.get(row.id, ()))
        )
        for row in rows
    ]


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
