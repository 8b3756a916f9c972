"""Ways in: passwords, API tokens, sessions, one-time links, and identities of an OpenID provider.

Secrets are stored as hashes only: passwords by argon2id (RFC 9106), tokens and cookies (256 random bits) by sha256.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import sqlalchemy as sql
from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from tutelage.core.errors import DataError
from tutelage.store import ledger, people, schema, texts
from tutelage.store.engine import Reader, Store, now, uuid7
from tutelage.store.people import Person

HASHER = PasswordHasher()
"""argon2id with the library's defaults: the second recommended option of RFC 9106, section 4 (64 MiB, 3 passes)."""
SHORTEST, LONGEST = 10, 1000
"""Characters of a password."""
SCOPES = {
    "feedback:read": "see projects and how far they are",
    "feedback:answer": "take tasks and answer them",
    "feedback:lead": "make projects and add tasks",
    "chat": "ask the model, and all that belongs to it",
    "answers": "only chat, completions and responses",
    "guard": "only moderations, scans and what is guarded",
    "embeddings": "only embeddings",
    "say": "only say something about answers",
    "metrics": "only read the service's figures",
}
"""What a token may be allowed, where its person may: a token never allows more than its person's roles do."""


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


@dataclass(frozen=True)
class Token:
    """An API token as its owner sees it: all but the token."""

    id: str
    label: str
    scopes: tuple[str, ...]
    at: int
    expires_at: int | None


@dataclass(frozen=True)
class Visit:
    """A session as its owner sees it. `id` names it and opens nothing."""

    id: str
    at: int
    expires_at: int
    here: bool


# passwords


def hash_password(password: str) -> str:
    """argon2id with its parameters and salt, so that they can be raised later. Raises DataError for a short one."""
    if not SHORTEST <= len(password) <= LONGEST:
        raise DataError(f"a password has {SHORTEST} to {LONGEST} characters", key="password")
    return HASHER.hash(_bytes(password))


def set_password(store: Store, person: str, password: str) -> None:
    """Set a new password and end all sessions of this person."""
    made = hash_password(password)
    with store.write() as connection:
        connection.execute(sql.update(schema.person).where(schema.person.c.id == person).values(password=made))
        connection.execute(sql.delete(schema.session).where(schema.session.c.person_id == person))
        ledger.append(connection, person, "person.password", person)


def has_password(store: Reader, person: str) -> bool:
    """Whether this person has ever set one: until then a one-time link is the only way in."""
    with store.read() as connection:
        found = connection.execute(sql.select(schema.person.c.password).where(schema.person.c.id == person)).scalar()
    return found is not None


def check_password(store: Store, name: str, password: str) -> Person | None:
    """The person, if name and password fit. Takes as long for an unknown name.

    A password that was hashed in an older way is hashed anew, now that it is known.
    """
    table = schema.person.c
    with store.read() as connection:
        row = connection.execute(
            sql.select(table.id, table.password).where(
                table.name == name, table.status == "active", table.kind == "live"
            )
        ).first()
    stored = row.password if row and row.password else None
    if not _fits(stored or _nobody(), password) or row is None or stored is None:
        return None
    if not stored.startswith("$argon2") or HASHER.check_needs_rehash(stored):
        with store.write() as connection:  # nothing is written over a password that was set in between
            mine = sql.update(schema.person).where(table.id == row.id, table.password == stored)
            connection.execute(mine.values(password=HASHER.hash(_bytes(password))))
    return people.find(store, row.id)


def _fits(stored: str, password: str) -> bool:
    if stored.startswith("scrypt$"):  # what passwords were hashed by before argon2
        _, cost, block, lanes, salt, made = stored.split("$")
        how = {"n": int(cost), "r": int(block), "p": int(lanes)}
        tried = hashlib.scrypt(_bytes(password), salt=bytes.fromhex(salt), **how)
        return hmac.compare_digest(tried.hex(), made)
    try:
        return HASHER.verify(stored, _bytes(password))
    except (VerificationError, InvalidHashError):
        return False


def _bytes(password: str) -> bytes:
    return password.encode("utf-8", "surrogatepass")


@cache
def _nobody() -> str:
    """What the password of an unknown name is compared with: nobody knows what it was made from."""
    return HASHER.hash(secrets.token_urlsafe(32))


# tokens


def issue_token(
    store: Store,
    person: str,
    scopes: Sequence[str] = ("feedback",),
    label: str = "",
    days: float | None = None,
    by: str = "system",
) -> str:
    """Make an API token; it is shown once and stored as a hash."""
    return issue_tokens(store, [person], scopes, label, days, by)[0]


def issue_tokens(
    store: Store,
    persons: Sequence[str],
    scopes: Sequence[str] = ("feedback",),
    label: str = "",
    days: float | None = None,
    by: str = "system",
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
        ledger.append(connection, by, "token.issue", label, {"people": len(persons), "scopes": list(scopes)})
    return tokens


def by_token(store: Reader, token: str) -> Caller | None:
    """Who holds a token, unless it has expired or was revoked."""
    table = schema.api_token
    with store.read() as connection:
        row = connection.execute(sql.select(table).where(table.c.hash == _hash(token))).first()
    if not row or row.revoked_at is not None or (row.expires_at is not None and row.expires_at < now()):
        return None
    person = people.find(store, row.person_id)
    return Caller(person, frozenset(row.scopes)) if person and person.status == "active" else None


def revoke_tokens(store: Store, tokens: Sequence[str]) -> None:
    """End several tokens in one transaction."""
    table = schema.api_token
    with store.write() as connection:
        for some in texts.chunks(tokens):
            hashes = [_hash(token) for token in some]
            connection.execute(sql.update(table).where(table.c.hash.in_(hashes)).values(revoked_at=now()))


def tokens(store: Reader, person: str) -> list[Token]:
    """The tokens of a person that still work, newest first."""
    table = schema.api_token.c
    works = sql.or_(table.expires_at.is_(None), table.expires_at >= now())
    query = sql.select(schema.api_token).where(table.person_id == person, table.revoked_at.is_(None), works)
    with store.read() as connection:
        rows = connection.execute(query.order_by(table.id.desc())).all()
    return [Token(row.id, row.label, tuple(row.scopes), row.at, row.expires_at) for row in rows]


def end_token(store: Store, person: str, token: str, by: str) -> bool:
    """End a person's token by its id; False when it is not theirs or has ended."""
    table = schema.api_token
    with store.write() as connection:
        mine = sql.update(table).where(table.c.id == token, table.c.person_id == person, table.c.revoked_at.is_(None))
        ended = bool(connection.execute(mine.values(revoked_at=now())).rowcount)
        if ended:
            ledger.append(connection, by, "token.revoke", person, {"token": token})
    return ended


def rotate(store: Store, person: str, token: str, hours: float, by: str) -> str:
    """A fresh token in the place of a person's token (by its id), which works for some hours more: until then programs
    can be given the new one. Raises DataError for one that is not theirs or has ended."""
    table, at = schema.api_token, now()
    fresh = f"tut_{secrets.token_urlsafe(32)}"
    with store.write() as connection:
        mine = (table.c.id == token, table.c.person_id == person, table.c.revoked_at.is_(None))
        row = connection.execute(sql.select(table).where(*mine)).first()
        if row is None or (row.expires_at is not None and row.expires_at < at):
            raise DataError("this token has ended already", key="token")
        until = at + int(hours * 3_600_000)
        if row.expires_at is None or row.expires_at > until:
            connection.execute(sql.update(table).where(table.c.id == token).values(expires_at=until))
        life = None if row.expires_at is None else at + (row.expires_at - row.at)
        new = {"id": uuid7(), "person_id": person, "hash": _hash(fresh), "scopes": row.scopes, "label": row.label}
        connection.execute(sql.insert(table).values(**new, at=at, expires_at=life))
        ledger.append(connection, by, "token.rotate", person, {"token": token, "hours": hours})
    return fresh


# sessions


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
    person = people.find(store, row.person_id)
    return Session(person, row.csrf) if person and person.status == "active" else None


def close_session(store: Store, cookie: str) -> None:
    """Sign out."""
    with store.write() as connection:
        connection.execute(sql.delete(schema.session).where(schema.session.c.hash == _hash(cookie)))


def visits(store: Reader, person: str, cookie: str = "") -> list[Visit]:
    """Where a person is signed in, newest first; `cookie` marks the one that asks."""
    table = schema.session.c
    with store.read() as connection:
        query = sql.select(schema.session).where(table.person_id == person, table.expires_at >= now())
        rows = connection.execute(query.order_by(table.at.desc())).all()
    return [Visit(row.hash[:16], row.at, row.expires_at, row.hash == _hash(cookie)) for row in rows]


def end_visits(store: Store, person: str, by: str, visit: str = "") -> int:
    """Sign a person out everywhere, or of one session by its id; returns of how many."""
    table = schema.session
    with store.write() as connection:
        wanted = sql.delete(table).where(table.c.person_id == person)
        if visit:
            wanted = wanted.where(sql.func.substr(table.c.hash, 1, 16) == visit)
        ended = connection.execute(wanted).rowcount
        ledger.append(connection, by, "person.sign_out", person, {"sessions": ended})
    return ended


# one-time links


def invite(store: Store, person: str, hours: float = 24, by: str = "system") -> str:
    """A one-time link's token: whoever opens it first may set the password. Links made earlier end."""
    token = secrets.token_urlsafe(32)
    table = schema.invitation
    with store.write() as connection:
        connection.execute(sql.delete(table).where(table.c.person_id == person, table.c.used_at.is_(None)))
        until = now() + int(hours * 3_600_000)
        connection.execute(sql.insert(table).values(hash=_hash(token), person_id=person, expires_at=until))
        ledger.append(connection, by, "person.invite", person)
    return token


def invited(store: Reader, token: str) -> Person | None:
    """Whom a one-time link is for, without using it; None if it was used, has expired or never was."""
    table = schema.invitation.c
    with store.read() as connection:
        query = sql.select(table.person_id).where(
            table.hash == _hash(token), table.used_at.is_(None), table.expires_at >= now()
        )
        found = connection.execute(query).scalar()
    person = people.find(store, found) if found else None
    return person if person and person.status == "active" else None


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
    person = people.find(store, row.person_id) if row else None
    return person if person and person.status == "active" else None


# identities


def by_identity(store: Reader, issuer: str, subject: str) -> Person | None:
    """Whom an OpenID provider's name for somebody stands for here."""
    table = schema.identity.c
    with store.read() as connection:
        query = sql.select(table.person_id).where(table.issuer == issuer, table.subject == subject)
        found = connection.execute(query).scalar()
    return people.find(store, found) if found else None


def link_identity(store: Store, person: str, issuer: str, subject: str) -> None:
    """From now on this name at this provider signs this person in. Raises DataError if it is somebody's already."""
    table = schema.identity
    with store.write() as connection:
        added = connection.execute(
            store.insert(table)
            .values(issuer=issuer, subject=subject, person_id=person, at=now())
            .on_conflict_do_nothing()
            .returning(table.c.person_id)  # PostgreSQL's driver counts no rows here
        )
        if added.first() is None:
            raise DataError("this sign-in belongs to an account already", key="subject")
        ledger.append(connection, person, "identity.link", person, {"issuer": issuer})


def identities(store: Reader, person: str) -> list[tuple[str, int]]:
    """The providers through which a person signs in, and since when."""
    table = schema.identity.c
    with store.read() as connection:
        rows = connection.execute(sql.select(table.issuer, table.at).where(table.person_id == person))
        return [(row.issuer, row.at) for row in rows]


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()
