"""Accounts, ways in, and profiles that only groups are read of."""

from __future__ import annotations

import pytest
import sqlalchemy as sql

from tutelage.core.errors import UsageError
from tutelage.store import access, engine, people, profiles, schema


def test_profiles_are_encrypted_and_small_groups_hidden(tmp_path):
    store = engine.open(tmp_path)
    for number in range(12):
        person = people.create(store, f"n{number}")
        language = "German" if number < 6 else "Velic" if number < 11 else "Basque"
        profiles.set_profile(store, person.id, {"native_language": language})
    raw = (tmp_path / "store.db").read_bytes() + (tmp_path / "store.db-wal").read_bytes()
    assert b"German" not in raw and b"Basque" not in raw
    assert list(profiles.groups(store, "native_language", k=5)) == ["German"]  # Velic would tell Basque by subtraction
    profiles.withdraw(store, people.get(store, "n0").id, by="n0")
    assert profiles.profile(store, people.get(store, "n0").id) == {}


def test_accounts_tokens_sessions(tmp_path):
    store = engine.open(tmp_path)
    lead = people.create(store, "lena", roles=["lead"])
    access.set_password(store, lead.id, "long enough 1")
    assert people.create(store, "lena", roles=["lead"]).id == lead.id
    assert access.check_password(store, "lena", "long enough 1") == lead
    assert access.check_password(store, "lena", "wrong") is None
    assert access.check_password(store, "nobody", "wrong") is None
    token = access.issue_token(store, lead.id, ["feedback"])
    caller = access.by_token(store, token)
    assert caller is not None and caller.person.has("lead") and not caller.person.has("safety")
    access.revoke_token(store, token)
    assert access.by_token(store, token) is None
    assert access.by_token(store, access.issue_token(store, lead.id, days=-1)) is None
    cookie, csrf = access.open_session(store, lead.id)
    session = access.by_session(store, cookie)
    assert session is not None and session.csrf == csrf
    access.set_password(store, lead.id, "another long one")
    assert access.by_session(store, cookie) is None
    link = access.invite(store, lead.id)
    assert access.redeem(store, link) == lead and access.redeem(store, link) is None
    with store.read() as connection:
        stored = " ".join(connection.execute(sql.select(schema.api_token.c.hash)).scalars())
    assert token not in stored
    with pytest.raises(UsageError, match="role"):
        people.create(store, "x", roles=["king"])
    with pytest.raises(UsageError, match="live"):
        people.create(store, "lena", kind="simulated")
