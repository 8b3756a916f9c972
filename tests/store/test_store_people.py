"""Accounts, ways in, and profiles that only groups are read of."""

from __future__ import annotations

import hashlib
import time

import pytest
import sqlalchemy as sql
from argon2 import PasswordHasher

from tutelage.core.errors import UsageError
from tutelage.store import access, engine, ledger, people, profiles, qualifications, releases, review, schema, tasks


def test_profiles_are_encrypted_and_can_be_withdrawn(tmp_path):
    store = engine.open(tmp_path)
    ana, ben = (people.create(store, name) for name in ("ana", "ben"))
    given = profiles.tidy({"native_language": " Basque\n", "gender": "", "region": "Western  Europe"})
    assert given == {"native_language": "Basque", "region": "Western Europe"}
    profiles.set_profile(store, ana.id, given, "1")
    profiles.set_profile(store, ben.id, {"native_language": "basque"}, "1")
    raw = (tmp_path / "store.db").read_bytes() + (tmp_path / "store.db-wal").read_bytes()
    assert b"Basque" not in raw and b"Western" not in raw
    held = profiles.profile(store, ana.id)
    assert held.attributes == given and held.consent == "1"
    assert profiles.members(store, "native_language", [ana.id, ben.id]) == {"basque": {ana.id, ben.id}}
    assert profiles.members(store, "native_language", [ben.id]) == {"basque": {ben.id}}, "of those asked for alone"
    before = profiles.profile(store, ben.id).at
    time.sleep(0.002)
    profiles.withdraw(store, ana.id, by=ana.id)
    held = profiles.profile(store, ana.id)
    assert held.attributes == {} and held.consent == "withdrawn"
    with store.read() as connection:
        sealed = connection.execute(sql.select(schema.profile.c.sealed).where(schema.profile.c.person_id == ana.id))
        assert sealed.scalar_one() is None
    assert profiles.members(store, "region", [ana.id]) == {}
    assert profiles.changed_since(store, [ana.id, ben.id], before) == {ana.id}
    for wrong in ({"shoe": "42"}, {"gender": "x" * 61}):
        with pytest.raises(UsageError):
            profiles.tidy(wrong)


def test_the_text_that_people_agreed_to_is_kept_once(tmp_path):
    store = engine.open(tmp_path)
    for _ in range(2):
        profiles.keep_consent(store, "1", "We ask, you may answer.")
    profiles.keep_consent(store, "2", "We ask for more.")
    kept = ledger.acts(store, "consent.text")
    assert [(each.object, each.body["text"]) for each in kept] == [
        ("2", "We ask for more."),
        ("1", "We ask, you may answer."),
    ]


def test_older_hashes_hold_and_are_renewed_at_log_in(tmp_path):
    store = engine.open(tmp_path)
    lena = people.create(store, "lena")
    salt = bytes(range(16))
    made = hashlib.scrypt(b"from another year", salt=salt, n=2**14, r=8, p=1).hex()

    def stored():
        with store.read() as connection:
            return connection.execute(sql.select(schema.person.c.password)).scalar_one()

    with store.write() as connection:
        connection.execute(sql.update(schema.person).values(password=f"scrypt$16384$8$1${salt.hex()}${made}"))
    assert access.check_password(store, "lena", "from another place") is None and stored().startswith("scrypt$")
    assert access.check_password(store, "lena", "from another year") == lena
    assert stored().startswith("$argon2id$")
    assert access.check_password(store, "lena", "from another year") == lena
    assert access.check_password(store, "lena", "from another place") is None
    weak = PasswordHasher(time_cost=1, memory_cost=64).hash("from another year")
    with store.write() as connection:
        connection.execute(sql.update(schema.person).values(password=weak))
    assert access.check_password(store, "lena", "from another year") == lena and stored() != weak
    with pytest.raises(UsageError, match="characters"):
        access.set_password(store, lena.id, "too short")


def test_links_sessions_tokens_and_identities_of_one_person(tmp_path):
    store = engine.open(tmp_path)
    lena, otto = (people.create(store, name) for name in ("lena", "otto"))
    first, second = access.invite(store, lena.id), access.invite(store, lena.id)
    assert access.invited(store, first) is None and access.invited(store, second) == lena
    assert access.redeem(store, first) is None and access.redeem(store, second) == lena
    cookies = [access.open_session(store, lena.id)[0] for _ in range(3)]
    other = access.open_session(store, otto.id)[0]
    found = access.visits(store, lena.id, cookies[0])
    assert len(found) == 3 and [each.here for each in found].count(True) == 1
    away = next(each.id for each in found if not each.here)
    assert access.end_visits(store, otto.id, otto.id, away) == 0, "nobody else's"
    assert access.end_visits(store, lena.id, lena.id, away) == 1
    assert access.end_visits(store, lena.id, lena.id) == 2 and access.by_session(store, other) is not None
    token = access.issue_token(store, lena.id, ("chat",), "mine", 30)
    (held,) = access.tokens(store, lena.id)
    assert held.label == "mine" and held.scopes == ("chat",)
    assert not access.end_token(store, otto.id, held.id, by=otto.id)
    assert access.end_token(store, lena.id, held.id, by=lena.id) and access.by_token(store, token) is None
    access.link_identity(store, lena.id, "https://id.example.org", "7")
    assert access.by_identity(store, "https://id.example.org", "7") == lena
    assert access.by_identity(store, "https://other.example.org", "7") is None
    with pytest.raises(UsageError, match="already"):
        access.link_identity(store, otto.id, "https://id.example.org", "7")


def test_who_is_shut_out_is_out_at_once_and_the_last_owner_stays(tmp_path):
    store = engine.open(tmp_path)
    olga = people.create(store, "olga", roles=("owner",))
    ana = people.create(store, "ana")
    access.set_password(store, ana.id, "long enough 1")
    cookie, token, link = access.open_session(store, ana.id)[0], access.issue_token(store, ana.id), None
    link = access.invite(store, ana.id)
    people.set_status(store, ana.id, "inactive", by=olga.id)
    assert access.by_session(store, cookie) is None and access.by_token(store, token) is None
    assert access.redeem(store, link) is None and access.check_password(store, "ana", "long enough 1") is None
    people.set_status(store, ana.id, "active", by=olga.id)
    assert access.check_password(store, "ana", "long enough 1") is not None
    for act in (
        lambda: people.set_status(store, olga.id, "inactive", by=olga.id),
        lambda: people.revoke(store, olga.id, "owner", by=olga.id),
    ):
        with pytest.raises(UsageError, match="last owner"):
            act()
    for _ in range(2):
        people.grant(store, ana.id, "owner", by=olga.id)
    given = [each for each in ledger.acts(store, "role.grant", ana.id) if each.body["role"] == "owner"]
    assert len(given) == 1, "what was held already is no act"
    people.revoke(store, olga.id, "owner", by=ana.id)


def test_a_lead_gives_what_a_lead_may_and_takes_over_nobody(tmp_path):
    store = engine.open(tmp_path)
    for name in ("desk", "shop"):
        tasks.make_project(store, name, kind="ranking", questions=[], guideline="", per_task=1, settings={}, by="x")
    desk, shop = (tasks.get_project(store, name).id for name in ("desk", "shop"))
    olga = people.create(store, "olga", roles=("owner",))
    chief = people.create(store, "chief", roles=("lead",))
    lea = people.create(store, "lea", roles=("lead",), project="desk")
    ana = people.create(store, "ana", project="desk")
    bob = people.create(store, "bob", project="shop")
    sam = people.create(store, "sam", roles=("safety",))
    assert people.may_grant(lea, "annotator", desk) and people.may_grant(lea, "lead", desk)
    assert not people.may_grant(lea, "annotator", shop) and not people.may_grant(lea, "annotator")
    for role in ("owner", "safety", "operator", "service"):
        assert (
            people.may_grant(olga, role) and not people.may_grant(chief, role) and not people.may_grant(lea, role, desk)
        )
    assert not people.may_grant(ana, "annotator", desk)
    assert people.may_manage(lea, ana) and not people.may_manage(lea, bob) and people.may_manage(chief, bob)
    for person in (olga, chief, lea, sam):
        assert not people.may_manage(chief, person) and people.may_manage(olga, person)


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
    access.revoke_tokens(store, [token])
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


def test_what_is_there_already_is_no_act_again(store):
    ana = people.create(store, "ana").id
    for _ in range(2):
        tasks.make_project(store, "p", kind="ranking", questions=[])
        qualifications.grant(store, ana, "medicine", "lead")
        review.save_policy(store, {"rate": 0.1}, "seed")
    release = releases.create(store, "bundle:a", name="one")
    for _ in range(2):
        releases.approve(store, release, ana, "fine")
    acts = [row.action for row in ledger.rows(store)]
    for name in ("project.create", "qualification.grant", "sample.policy", "release.approve"):
        assert acts.count(name) == 1, name


def _ten_thousand(store):
    """As `create_many` makes them, without ten thousand rows of the ledger; every fourth works in one project."""
    names = [f"{'Ann' if n % 3 else 'bea'} {n:05}" for n in range(10_000)]
    rows = [
        {"id": f"p{n}", "name": name, "pseudonym": f"l-{n}", "languages": [], "at": 1} for n, name in enumerate(names)
    ]
    where = tasks.make_project(store, "desk", kind="ranking", questions=[]).id
    roles = [
        {"id": f"g{n}", "person_id": f"p{n}", "project_id": where if n % 4 == 0 else "", "role": "annotator", "at": 1}
        for n in range(10_000)
    ]
    with store.write() as connection:
        connection.execute(sql.insert(schema.person), rows)
        connection.execute(sql.insert(schema.role_grant), roles)
    return names, where


def test_ten_thousand_people_are_met_page_by_page_each_once(store):
    names, where = _ten_thousand(store)
    met, after = [], ""
    while True:
        page = people.page(store, after=after, most=500)
        assert page.total == 10_000 and all(each.roles for each in page.rows)
        met += [each.name for each in page.rows]
        if not (after := page.after):
            break
    assert sorted(met) == sorted(names) and len(met) == 10_000
    few = people.page(store, containing="aNN 0001")
    assert [each.name for each in few.rows] == [name for name in sorted(names) if name.startswith("Ann 0001")]
    assert few.total == len(few.rows) and few.after == ""
    here = people.page(store, projects=[where])
    assert (
        here.total == 2500 and len(here.rows) == people.PAGE and all(int(each.name[-5:]) % 4 == 0 for each in here.rows)
    )
    assert people.page(store, projects=[]).total == 0
    assert people.known(store, "l-77").id == "p77" and people.known(store, "p77").id == "p77"
    assert people.names(store, ["p1", "p2", "nobody"]) == {"p1": names[1], "p2": names[2]}
    assert people.named(store, [*names[:700], "nobody"]) == {name: f"p{n}" for n, name in enumerate(names[:700])}


def test_a_search_takes_letters_as_they_stand_and_passes_over_who_was_erased(store):
    for name in ("100% Ann", "1000 Ann", "a_b", "acb", "Ben\\", "robot"):
        people.create(store, name, kind="service" if name == "robot" else "live")
    found = {
        asked: [each.name for each in people.page(store, containing=asked).rows] for asked in ("0%", "_", "\\", "O")
    }
    assert found == {"0%": ["100% Ann"], "_": ["a_b"], "\\": ["Ben\\"], "O": ["robot"]}
    assert [each.name for each in people.page(store, kinds=("service",)).rows] == ["robot"]
    with store.write() as connection:
        connection.execute(sql.update(schema.person).where(schema.person.c.name == "acb").values(status="erased"))
    assert people.page(store).total == 5 and "acb" not in [each.name for each in people.page(store).rows]
