"""Accounts: who there is, and which roles they hold where."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

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

PAGE = 50
"""Accounts on one page."""

MOST_LANGUAGES = 20
"""Languages that one person names."""
LANGUAGE = re.compile(r"[A-Za-z]{2,8}(-[A-Za-z0-9]{1,8})*\Z")
"""A language tag by its form (RFC 5646, section 2.1)."""

JUNIOR = ("annotator", "reviewer", "adjudicator", "red_teamer")
"""Roles of those who work for a lead."""


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

    def anywhere(self, *roles: str) -> bool:
        """Whether this person holds any of these roles in some project at least."""
        return bool({role for role, _ in self.roles} & {*roles, "owner"})

    @property
    def reads_only(self) -> bool:
        """An auditor and nothing else: looks at everything, changes nothing."""
        return {role for role, _ in self.roles} == {"auditor"}


_people = sql.select(schema.person)
Who = TypeVar("Who")


def create(
    store: Store,
    name: str,
    *,
    kind: str = "live",
    roles: Iterable[str] = ("annotator",),
    project: str | None = None,
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
    email: str | None = None,
    languages: Sequence[str] = (),
    by: str = "system",
) -> list[Person]:
    """Make several accounts in one transaction; those that are there already stay as they are."""
    if kind not in KINDS:
        raise DataError(f"{kind!r} is no kind of person", key="kind", todo=f"One of: {', '.join(KINDS)}")
    wanted = [_role(role) for role in roles]
    spoken = _languages(languages)
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
                        languages=spoken,
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


def known(store: Reader, name: str) -> Person | None:
    """The account with this name or id, else with this pseudonym."""
    return find(store, name) or next(iter(_load(store, _people.where(schema.person.c.pseudonym == name))), None)


def get(store: Reader, name_or_id: str) -> Person:
    """The account with this name or id. Raises NotFound."""
    found = find(store, name_or_id)
    if not found:
        raise NotFound(f"there is no person {name_or_id!r}")
    return found


def every(store: Reader, kind: str | None = None) -> list[Person]:
    """All accounts (of one kind), by name."""
    query = _people.order_by(schema.person.c.name)
    return _load(store, query.where(schema.person.c.kind == kind) if kind else query)


@dataclass(frozen=True)
class Page(Generic[Who]):
    """Some accounts by name. `after` is the name behind which the next page begins, "" on the last one."""

    rows: tuple[Who, ...]
    after: str
    total: int


def page(
    store: Reader,
    *,
    kinds: Collection[str] = KINDS,
    containing: str = "",
    after: str = "",
    projects: Collection[str] | None = None,
    most: int = PAGE,
) -> Page[Person]:
    """The accounts after a name that are not erased: of some kinds, with some letters in their name (capitals or
    not), with a role in one of some projects (ids; None: wherever), and how many there are on all pages."""
    table = schema.person.c
    wanted = [table.kind.in_(list(kinds)), table.status != "erased"]
    if containing:
        wanted.append(table.name.icontains(containing, autoescape=True))
    if projects is not None:
        grants = schema.role_grant.c
        wanted.append(sql.exists().where(grants.person_id == table.id, grants.project_id.in_(list(projects))))
    with store.read() as connection:
        total = connection.execute(sql.select(sql.func.count()).select_from(schema.person).where(*wanted)).scalar()
    found = _load(store, _people.where(*wanted, table.name > after).order_by(table.name).limit(most + 1))
    return Page(tuple(found[:most]), found[most - 1].name if len(found) > most else "", int(total or 0))


def names(store: Reader, ids: Collection[str]) -> dict[str, str]:
    """Id -> name of those of these accounts that there are."""
    return {id: name for id, name in _among(store, schema.person.c.id, ids)}


def named(store: Reader, names: Collection[str]) -> dict[str, str]:
    """Name -> id of those of these accounts that there are."""
    return {name: id for id, name in _among(store, schema.person.c.name, names)}


def _among(store: Reader, column: sql.ColumnElement[str], values: Collection[str]) -> Iterator[tuple[str, str]]:
    """(id, name) of the accounts whose `column` is among these values."""
    table = schema.person.c
    with store.read() as connection:
        for some in texts.chunks(sorted(set(values))):
            for row in connection.execute(sql.select(table.id, table.name).where(column.in_(some))):
                yield row.id, row.name


def may_grant(by: Person, role: str, project: str = "") -> bool:
    """Whether somebody may give and take a role there (project id, "" = everywhere).

    An owner every role; a lead, where they lead, those of their people, and lead and auditor.
    """
    if by.has("owner", project=project):
        return True
    return role in (*JUNIOR, "lead", "auditor") and by.has("lead", project=project)


def may_manage(by: Person, person: Person) -> bool:
    """Whether somebody may make a way in for a person, or shut them out: whoever could would be able to act as them.

    An owner may; a lead, for people who hold nothing but roles that work for this lead.
    """
    if by.has("owner"):
        return True
    works_for = all(role in JUNIOR and by.has("lead", project=where) for role, where in person.roles)
    return works_for and bool(person.roles or by.has("lead"))


def grant(store: Store, person: str, role: str, project: str | None = None, by: str = "system") -> None:
    """Give a role, in one project (by name) or everywhere."""
    with store.write() as connection:
        _grant(connection, store, person, _role(role), project_id(connection, project), by)


def revoke(store: Store, person: str, role: str, project: str | None = None, by: str = "system") -> None:
    """Take a role away. Raises DataError for the owner's of the last owner who can sign in."""
    table = schema.role_grant
    with store.write() as connection:
        where = project_id(connection, project)
        if role == "owner" and not where:
            _keep_an_owner(connection, person)
        connection.execute(
            sql.delete(table).where(table.c.person_id == person, table.c.role == role, table.c.project_id == where)
        )
        ledger.append(connection, by, "role.revoke", person, {"role": role, "project": where})


def set_languages(store: Store, person: str, languages: Sequence[str], by: str) -> tuple[str, ...]:
    """Keep which languages a person (id) can judge; returns them. Tasks in one of them are given to that person.

    Raises DataError for what is no language tag, NotFound for an erased or unknown person.
    """
    table = schema.person.c
    spoken = _languages(languages)
    with store.write() as connection:
        mine = sql.select(table.languages).where(table.id == person, table.status != "erased")
        row = connection.execute(mine).first()
        if row is None:
            raise NotFound("there is no such person", key="person")
        if list(row.languages) != spoken:  # what is there already is no act
            connection.execute(sql.update(schema.person).where(table.id == person).values(languages=spoken))
            ledger.append(connection, by, "person.languages", person, {"languages": spoken})
    return tuple(spoken)


def _languages(tags: Sequence[str]) -> list[str]:
    """Tags as they are kept: each once, in order, as tasks name them; a bare code is in small letters."""
    found: dict[str, None] = {}
    for tag in tags:
        word = tag.strip()
        if len(word) > 20 or not LANGUAGE.match(word):
            todo = "Language tags such as de, en or pt-BR, as the tasks name them"
            raise DataError(f"{word[:40]!r} names no language", key="languages", todo=todo)
        found[word.lower() if len(word) <= 3 else word] = None
    if len(found) > MOST_LANGUAGES:
        raise DataError(f"at most {MOST_LANGUAGES} languages, found {len(found)}", key="languages")
    return list(found)


def set_status(store: Store, person: str, status: str, by: str) -> None:
    """Let a person in (`active`) or keep them out (`inactive`): out at once, their sessions and links end.

    Answers stay, tokens rest until the person is active again. Raises NotFound for an erased or unknown person.
    """
    table = schema.person
    if status not in ("active", "inactive"):
        raise DataError(f"{status!r} is no status", key="status", todo="One of: active, inactive")
    with store.write() as connection:
        if status != "active":
            _keep_an_owner(connection, person)
        held = sql.update(table).where(table.c.id == person, table.c.status != "erased")
        if not connection.execute(held.values(status=status)).rowcount:
            raise NotFound("there is no such person", key="person")
        if status != "active":
            for way in (schema.session, schema.invitation):
                connection.execute(sql.delete(way).where(way.c.person_id == person))
        ledger.append(connection, by, f"person.{status}", person)


def _keep_an_owner(connection: sql.Connection, person: str) -> None:
    """Refuse what would leave nobody who may do everything, if this person is an owner."""
    table, grants = schema.person.c, schema.role_grant.c
    owners = (
        sql.select(table.id)
        .join(schema.role_grant, grants.person_id == table.id)
        .where(grants.role == "owner", grants.project_id == "", table.status == "active", table.kind == "live")
    )
    left = set(connection.execute(owners).scalars())
    if left == {person}:
        raise DataError("this is the last owner", key="person", todo="Make another person an owner first")


def project_id(connection: sql.Connection, name: str | None) -> str:
    """The id of a project by its name; "" stands for everywhere. Raises NotFound."""
    if not name:
        return ""
    found = connection.execute(sql.select(schema.project.c.id).where(schema.project.c.name == name)).scalar()
    if not found:
        raise NotFound(f"there is no project {name!r}", key="project")
    return str(found)


def _role(role: str) -> str:
    if role not in ROLES:
        raise DataError(f"{role!r} is no role", key="role", todo=f"One of: {', '.join(ROLES)}")
    return role


def _grant(connection: sql.Connection, store: Store, person: str, role: str, project: str, by: str) -> None:
    made = connection.execute(
        store.insert(schema.role_grant)
        .values(id=uuid7(), person_id=person, project_id=project, role=role, by=by, at=now())
        .on_conflict_do_nothing()
        .returning(schema.role_grant.c.id)  # PostgreSQL's driver counts no rows here
    )
    if made.first() is not None:
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
