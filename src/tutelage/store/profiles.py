"""What people chose to say about themselves: encrypted, withdrawn at any time, read by others in groups only.

No function gives one person's attributes to anybody else: `profile` is for a person's own page, `members` for
`govern/diversity.py`, which gives out figures of groups.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import sqlalchemy as sql

from tutelage.core.errors import DataError
from tutelage.store import ledger, schema, texts
from tutelage.store.engine import Reader, Store, now

LONGEST = 60
"""Characters of one value."""


@dataclass(frozen=True)
class Question:
    """One thing that people may say about themselves: each is optional, and own words stand for any choice."""

    label: str
    why: str
    choices: tuple[str, ...]


QUESTIONS: Mapping[str, Question] = {
    "gender": Question(
        "Gender",
        "What is rude, safe or helpful is often judged differently by women, men and people of other genders.",
        ("woman", "man", "non-binary"),
    ),
    "ethnicity": Question(
        "Ethnicity",
        "Words that hurt one group go unseen by another: we look whether all groups find answers acceptable.",
        (
            "African or Black",
            "Arab or Middle Eastern",
            "East Asian",
            "Indigenous",
            "Latin American or Hispanic",
            "South Asian",
            "Southeast Asian",
            "White or European",
            "of several",
        ),
    ),
    "native_language": Question(
        "Native language",
        "Who grew up with a language hears what others miss.",
        (
            "Arabic",
            "Bengali",
            "Chinese",
            "English",
            "French",
            "German",
            "Hindi",
            "Indonesian",
            "Italian",
            "Japanese",
            "Korean",
            "Polish",
            "Portuguese",
            "Russian",
            "Spanish",
            "Swahili",
            "Turkish",
            "Urdu",
            "Vietnamese",
        ),
    ),
    "age_band": Question(
        "Age",
        "Old and young expect different tones and know different things.",
        ("18 to 24", "25 to 34", "35 to 44", "45 to 54", "55 to 64", "65 or older"),
    ),
    "region": Question(
        "Where you live",
        "Laws, customs and what goes without saying differ between regions.",
        (
            "Central and West Africa",
            "Central Asia",
            "East and Southern Africa",
            "East Asia",
            "Eastern Europe",
            "Middle East and North Africa",
            "North America",
            "Oceania",
            "South Asia",
            "South or Central America",
            "Southeast Asia",
            "Western Europe",
        ),
    ),
}
ATTRIBUTES = tuple(QUESTIONS)
_SPELLED = {choice.casefold(): choice for question in QUESTIONS.values() for choice in question.choices}


@dataclass(frozen=True)
class Given:
    """What a person has given: for that person's own eyes."""

    attributes: Mapping[str, str]
    consent: str
    """The version of the text they agreed to; `withdrawn` after that."""
    at: int


def tidy(attributes: Mapping[str, str]) -> dict[str, str]:
    """Attributes as they are kept: known ones, on one line, those left empty left out. Raises DataError."""
    found: dict[str, str] = {}
    for name, value in attributes.items():
        if name not in QUESTIONS:
            raise DataError(f"{name!r} is not asked", key=name, todo=f"One of: {', '.join(ATTRIBUTES)}")
        words = " ".join("".join(c if c.isprintable() else " " for c in value).split())
        if len(words) > LONGEST:
            raise DataError(f"at most {LONGEST} characters, found {len(words)}", key=name)
        if words:
            found[name] = words
    return found


def spelled(value: str) -> str:
    """A group's name: letter case tells no groups apart."""
    return _SPELLED.get(value.casefold(), value.casefold())


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


def keep_consent(store: Store, version: str, text: str) -> None:
    """Write a consent's text into the ledger when it is first used: what people agreed to can be read for good."""
    row = schema.audit.c
    with store.write() as connection:
        kept = sql.select(row.seq).where(row.action == "consent.text", row.object == version)
        if connection.execute(kept).first() is None:
            ledger.append(connection, "system", "consent.text", version, {"text": text})


def profile(store: Reader, person: str) -> Given | None:
    """What a person said about themselves. For that person's own eyes; reports use `members`."""
    table = schema.profile
    with store.read() as connection:
        row = connection.execute(sql.select(table).where(table.c.person_id == person)).first()
    if row is None:
        return None
    held = json.loads(store.keys.unseal("profile", row.sealed, person)) if row.sealed else {}
    return Given(held, row.consent, row.updated_at)


def withdraw(store: Store, person: str, by: str) -> None:
    """Withdraw consent: the attributes are cleared at once. Answers stay, and no new report counts them in a group."""
    with store.write() as connection:
        clear(connection, person)
        ledger.append(connection, by, "profile.withdraw", person)


def clear(connection: sql.Connection, person: str) -> None:
    """Clear a person's attributes inside the caller's transaction."""
    table = schema.profile
    connection.execute(
        sql.update(table).where(table.c.person_id == person).values(sealed=None, consent="withdrawn", updated_at=now())
    )


def members(store: Reader, attribute: str, people: Collection[str]) -> dict[str, frozenset[str]]:
    """Value of an attribute (`spelled`) -> ids of those of these people who gave it.

    For figures of groups only: whoever calls this must not give the ids out.
    """
    table = schema.profile.c
    found: dict[str, set[str]] = {}
    with store.read() as connection:
        for some in texts.chunks(sorted(people)):
            query = sql.select(table.person_id, table.sealed)
            for row in connection.execute(query.where(table.person_id.in_(some), table.sealed.is_not(None))):
                value = json.loads(store.keys.unseal("profile", row.sealed, row.person_id)).get(attribute)
                if value:
                    found.setdefault(spelled(str(value)), set()).add(row.person_id)
    return {value: frozenset(ids) for value, ids in sorted(found.items())}


def changed_since(store: Reader, people: Collection[str], moment: int) -> set[str]:
    """Those of these people whose profile was given, changed or withdrawn after a moment (ms since 1970)."""
    table = schema.profile.c
    found: set[str] = set()
    with store.read() as connection:
        for some in texts.chunks(sorted(people)):
            query = sql.select(table.person_id).where(table.person_id.in_(some), table.updated_at > moment)
            found.update(connection.execute(query).scalars())
    return found
