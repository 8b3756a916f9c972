"""Accounts, roles, profiles, groups and uncovered texts, through the pages: and who may do none of it."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from argon2 import PasswordHasher
from fastapi.testclient import TestClient

from tutelage.core.artifact import Root
from tutelage.core.records import Message
from tutelage.feedback import api
from tutelage.govern import audit
from tutelage.store import access, ledger, people, profiles
from tutelage.web import auth
from tutelage.web.app import create_app
from tutelage.web.settings import Settings

HTML = {"accept": "text/html"}
SECRET = re.compile(r'<textarea id="secret"[^>]*>([^<]+)<')


class Town:
    """A service with one of each role in it; `as_` signs somebody in."""

    def __init__(self, where: Path, upstream: str) -> None:
        self.app = create_app(Root(where), Settings(serve="release:none"), upstream=upstream)
        self.house = self.app.state.house
        self.store = self.house.store
        self.people = {
            name: people.create(self.store, name, roles=roles)
            for name, roles in (
                ("olga", ("owner",)),
                ("lea", ("lead",)),
                ("rio", ("reviewer",)),
                ("ana", ("annotator",)),
                ("aud", ("auditor",)),
                ("sam", ("safety",)),
            )
        }
        form = api.Form.model_validate({"questions": [], "guideline": "Better first."})
        for name in ("desk", "shop"):
            api.create_project(self.store, self.people["lea"], api.NewProject(name=name, kind="ranking", form=form))
        task = api.NewTask(
            key="1",
            kind="ranking",
            messages=(Message(role="user", content="Write to ada.byron@example.org about it."),),
            candidates=tuple(
                api.NewCandidate(content=text, producer="m") for text in ("Call +49 30 901820 please.", "I will.")
            ),
        )
        (self.task,) = api.add_tasks(self.store, self.people["lea"], "desk", [task])

    def as_(self, name: str) -> TestClient:
        client = TestClient(self.app, base_url="http://localhost", follow_redirects=False, headers=HTML)
        cookie, client.csrf = access.open_session(self.store, self.people[name].id)  # type: ignore[attr-defined]
        client.cookies.set("tutelage", cookie)
        return client


@pytest.fixture(scope="module")
def town(tmp_path_factory: pytest.TempPathFactory, upstream: str) -> Iterator[Town]:
    made = Town(tmp_path_factory.mktemp("people") / "town", upstream)
    yield made


@pytest.fixture(autouse=True)
def calm(town: Town) -> None:
    town.house.limiter = type(town.house.limiter)()


def send(client: Any, path: str, **fields: Any) -> Any:
    return client.post(path, data={"csrf": client.csrf, **fields})


def every_route(app: Any) -> list[tuple[str, str]]:
    """(method, path) of everything that answers; newer FastAPI keeps the routes of a file together."""
    found = []
    for each in app.routes:
        inner = getattr(each, "original_router", None)
        for route in inner.routes if inner is not None else [each]:
            found += [(method, route.path) for method in sorted(getattr(route, "methods", None) or ())]
    return found


# roles


def test_an_auditor_can_change_nothing(town: Town) -> None:
    client = town.as_("aud")
    client.headers["x-csrf-token"] = client.csrf  # type: ignore[attr-defined]
    tried = 0
    before = len(list(ledger.rows(town.store)))
    for method, path in every_route(town.app):
        if method in ("GET", "HEAD") or path.startswith(auth.OWN):
            continue
        reply = client.request(method, re.sub(r"\{[^}]*\}", "x", path), data={"csrf": client.csrf})  # type: ignore[attr-defined]
        assert reply.status_code == 403 and "changes nothing" in reply.text, f"{method} {path}: {reply.status_code}"
        tried += 1
    assert tried > 25 and len(list(ledger.rows(town.store))) == before
    token = access.issue_token(town.store, town.people["aud"].id, ("*",))
    reply = TestClient(town.app, base_url="http://localhost").post(
        "/api/feedback/projects", json={}, headers={"authorization": f"Bearer {token}"}
    )
    assert reply.status_code == 403
    for path in ("/", "/people", "/people/reveals", "/projects/desk", "/projects/desk/people", "/review", "/operate"):
        assert client.get(path).status_code == 200, path


@pytest.mark.parametrize("path", ["/people", "/people/reveals", "/projects/desk/people"])
@pytest.mark.parametrize("name", ["ana", "rio"])
def test_who_leads_and_audits_nothing_sees_no_people(town: Town, name: str, path: str) -> None:
    client = town.as_(name)
    assert client.get(path).status_code == 403
    assert 'href="/people"' not in client.get("/").text
    other = town.people["lea"].id
    for post in (f"/people/{other}/link", f"/people/{other}/roles", f"/people/{other}/status", "/people"):
        assert send(client, post, role="owner", status="inactive", name="x").status_code == 403


def test_a_token_opens_no_page(town: Town) -> None:
    token = access.issue_token(town.store, town.people["olga"].id, ("feedback", "chat"))
    client = TestClient(town.app, base_url="http://localhost", headers={**HTML, "authorization": f"Bearer {token}"})
    for path in ("/", "/people", "/projects", "/account", "/operate"):
        assert client.get(path).status_code == 403, path
    assert client.post("/operate/rollback", data={"reason": "x"}).status_code == 403
    assert client.post("/account/tokens", data={"label": "x", "scope": "chat", "days": "30"}).status_code == 403


# accounts


def test_a_lead_invites_somebody_who_then_signs_in(town: Town) -> None:
    lead = town.as_("lea")
    made = send(lead, "/people", name=" new  person ", role="annotator", project="desk", languages="en, de")
    assert made.status_code == 201
    link = SECRET.search(made.text)[1]  # type: ignore[index]
    person = people.get(town.store, "new person")
    assert person.languages == ("en", "de") and {role for role, _ in person.roles} == {"annotator"}
    assert send(lead, "/people", name="new person", role="annotator").status_code == 403, "no link to what is there"
    visitor = TestClient(town.app, base_url="http://localhost", follow_redirects=False, headers=HTML)
    page = visitor.get(link)
    assert "new person" in page.text
    assert visitor.post(link, data={"password": "short", "again": "short"}).status_code == 422
    assert visitor.post(link, data={"password": "long enough 1", "again": "long enough 1"}).status_code == 303
    assert visitor.get("/account").status_code == 200 and visitor.get(link).status_code == 410
    assert 'href="/people"' not in visitor.get("/").text
    page = lead.get(f"/people/{person.id}")
    assert "new person" in page.text and "desk" in page.text
    assert send(lead, f"/people/{person.id}/roles", role="reviewer", project="desk").status_code == 303
    assert send(lead, f"/people/{person.id}/roles", role="annotator", project="desk", act="revoke").status_code == 303
    assert {role for role, _ in people.get(town.store, person.id).roles} == {"reviewer"}
    assert send(lead, f"/people/{person.id}/status", status="inactive").status_code == 303
    assert visitor.get("/account").status_code == 303, "out at once"
    assert {each.actor for each in ledger.acts(town.store, "person.invite")} == {town.people["lea"].id}


@pytest.mark.parametrize(
    ("who", "fields"),
    [
        ("lea", {"name": "x1", "role": "owner"}),
        ("lea", {"name": "x2", "role": "safety"}),
        ("lea", {"name": "x3", "role": "king"}),
        ("lea", {"name": "x4", "role": "service", "kind": "service"}),
        ("lea", {"name": "x5", "role": "annotator", "kind": "simulated"}),
        ("lea", {"name": "x6", "role": "annotator", "project": "nowhere"}),
        ("lea", {"name": "", "role": "annotator"}),
        ("lea", {"name": "x" * 121, "role": "annotator"}),
        ("olga", {"name": "x7", "role": "annotator", "kind": "service"}),
    ],
)
def test_what_may_not_be_invited(town: Town, who: str, fields: dict[str, str]) -> None:
    reply = send(town.as_(who), "/people", **fields)
    assert 400 <= reply.status_code < 500 and "Not changed" in reply.text
    assert people.find(town.store, fields["name"]) is None


def test_a_lead_of_one_project_leads_nowhere_else(town: Town) -> None:
    town.people["loc"] = people.create(town.store, "loc", roles=("lead",), project="shop")
    clerk = people.create(town.store, "clerk", roles=("annotator",), project="shop")
    desk = people.create(town.store, "teller", roles=("annotator",), project="desk")
    client = town.as_("loc")
    page = client.get("/people")
    assert "clerk" in page.text and "teller" not in page.text and "olga" not in page.text
    assert client.get(f"/people/{desk.id}").status_code == 404
    assert send(client, f"/people/{desk.id}/link").status_code == 404
    assert send(client, "/people", name="y1", role="annotator", project="desk").status_code == 403
    assert send(client, "/people", name="y2", role="annotator").status_code == 403
    assert send(client, "/people", name="y3", role="annotator", project="shop").status_code == 201
    assert send(client, f"/people/{clerk.id}/link").status_code == 201
    assert client.get("/projects/shop/people").status_code == 200
    assert client.get("/projects/desk/people").status_code == 403


@pytest.mark.parametrize("name", ["olga", "sam", "lea"])
def test_nobody_takes_over_an_account_above_them(town: Town, name: str) -> None:
    client = town.as_("lea")
    other = town.people[name].id
    for post in ("link", "sign-out", "status"):
        assert send(client, f"/people/{other}/{post}", status="inactive").status_code == 403
    assert access.invited(town.store, "x") is None and people.get(town.store, name).status == "active"


def test_the_last_owner_stays(town: Town) -> None:
    owner = town.as_("olga")
    me = town.people["olga"].id
    assert "last owner" in send(owner, f"/people/{me}/roles", role="owner", act="revoke").text
    assert "last owner" in send(owner, f"/people/{me}/status", status="inactive").text


def test_a_program_gets_a_key_of_its_own(town: Town) -> None:
    owner = town.as_("olga")
    made = send(owner, "/people", name="robot", role="service", kind="service")
    where = made.headers["location"].partition("?")[0]
    assert made.status_code == 303 and owner.get(where).status_code == 200
    page = send(owner, f"{where}/tokens", label="nightly", tenant="default")
    token = SECRET.search(page.text)[1]  # type: ignore[index]
    caller = access.by_token(town.store, token)
    assert caller is not None and caller.scopes == {"chat", "tenant:default"} and caller.person.name == "robot"
    (held,) = access.tokens(town.store, caller.person.id)
    assert send(owner, f"{where}/tokens/{held.id}/revoke").status_code == 303
    assert access.by_token(town.store, token) is None
    assert send(owner, f"{where}/tokens", label="x", tenant="nobody").status_code == 422


# one's own account


def test_password_sessions_and_tokens_of_ones_own(town: Town) -> None:
    town.people["own"] = people.create(town.store, "own")
    here, away = town.as_("own"), town.as_("own")
    assert send(here, "/account/password", new="long enough 1", again="long enough 1").status_code == 303
    assert away.get("/account").status_code == 303, "a new password signs out elsewhere"
    again = town.as_("own")
    assert send(again, "/account/password", new="long enough 2", again="long enough 2").status_code == 401
    for new, other in (("short", "short"), ("long enough 2", "long enough 3")):
        reply = send(again, "/account/password", current="long enough 1", new=new, again=other)
        assert reply.status_code == 422
    made = send(again, "/account/tokens", label="script", scope=["feedback:read", "*", "tenant:x"], days="30")
    token = SECRET.search(made.text)[1]  # type: ignore[index]
    caller = access.by_token(town.store, token)
    assert caller is not None and caller.scopes == {"feedback:read"}, "only what is offered"
    assert token not in again.get("/account").text
    (held,) = access.tokens(town.store, town.people["own"].id)
    assert send(town.as_("ana"), f"/account/tokens/{held.id}/revoke").status_code == 404
    assert send(again, f"/account/tokens/{held.id}/revoke").status_code == 303
    for wrong in ({"label": "x"}, {"label": "x", "scope": "*", "days": "30"}, {"scope": "chat", "days": "30"}):
        assert send(again, "/account/tokens", **wrong).status_code == 422
    other = town.as_("own")
    assert send(again, "/account/sign-out").status_code == 303
    assert other.get("/account").status_code == 303 and again.get("/account").status_code == 303


def test_tries_are_counted_by_name_and_by_address(town: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    light = PasswordHasher(time_cost=1, memory_cost=64)  # it is the counting that is looked at here
    monkeypatch.setattr(access, "HASHER", light)
    monkeypatch.setattr(access, "_nobody", lambda: light.hash("nobody"))
    client = TestClient(town.app, base_url="http://localhost", headers=HTML)
    person = people.create(town.store, "tess")
    access.set_password(town.store, person.id, "long enough 1")
    codes = [client.post("/login", data={"name": "tess", "password": "wrong"}).status_code for _ in range(11)]
    assert codes == [401] * 10 + [429]
    assert client.post("/login", data={"name": "tess", "password": "long enough 1"}).status_code == 429
    codes = [client.post("/login", data={"name": f"n{n}", "password": "wrong"}).status_code for n in range(25)]
    assert set(codes) == {401, 429} and codes == sorted(codes), "an address may try 30 names a minute"


@pytest.mark.parametrize(
    "path",
    ["/account/password", "/account/sign-out", "/account/tokens", "/account/profile", "/account/profile/withdraw",
     "/people", "/people/ID/link", "/people/ID/roles", "/people/ID/status", "/people/ID/sign-out",
     "/projects/desk/people", "/tasks/TASK/masked"],
)  # fmt: skip
def test_a_forged_form_changes_nothing(town: Town, path: str) -> None:
    client = town.as_("olga")
    path = path.replace("ID", town.people["ana"].id).replace("TASK", town.task)
    before = len(list(ledger.rows(town.store)))
    for token in ({}, {"csrf": "0" * 32}):
        assert client.post(path, data=token).status_code == 403
    assert len(list(ledger.rows(town.store))) == before


# profiles


def given(client: Any, **fields: str) -> Any:
    version = re.search(r'name="version" value="([^"]+)"', client.get("/account/profile").text)[1]  # type: ignore[index]
    return send(client, "/account/profile", **{"version": version, "agree": "yes", **fields})


def test_a_profile_is_given_never_shown_replaced_and_withdrawn(town: Town) -> None:
    town.people["pia"] = people.create(town.store, "pia")
    client, me = town.as_("pia"), town.people["pia"].id
    first = client.get("/account/profile").text
    assert (
        first.count("<li><strong>") == 4
        and "Nothing is stored" in first
        and "Version 1" in first
        and "prefer not to say" in first
    )
    done = given(client, gender="woman", region_words="<b>the moon</b>", age_band="")
    assert done.status_code == 303
    held = profiles.profile(town.store, me)
    assert held is not None and held.attributes == {"gender": "woman", "region": "<b>the moon</b>"}
    page = client.get("/account/profile").text
    assert "moon" not in page and page.count("<dd>stored</dd>") == 2 and "not given" in page
    assert " selected" not in page, "whoever gets in, by a link of a lead too, reads no value"
    assert given(client, gender="man").status_code == 303
    held = profiles.profile(town.store, me)
    assert held is not None and held.attributes == {"gender": "man"}, "what is left empty is gone"
    assert send(client, "/account/profile/withdraw").status_code == 303
    assert "nothing is stored" in client.get("/account/profile").text
    held = profiles.profile(town.store, me)
    assert held is not None and not held.attributes
    text = str([(each.action, each.body) for each in ledger.rows(town.store)])
    assert "woman" not in text and "moon" not in text and "consent.text" in text


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"gender": "woman", "agree": ""}, 422),
        ({"gender": "woman", "version": "0"}, 409),
        ({"gender_words": "x" * 61}, 422),
        ({}, 422),
    ],
)
def test_nothing_is_stored_without_consent(town: Town, fields: dict[str, str], status: int) -> None:
    client = town.as_("rio")
    reply = given(client, **fields)
    assert reply.status_code == status and 'role="alert"' in reply.text
    assert profiles.profile(town.store, town.people["rio"].id) is None


def test_a_text_of_ones_own_has_a_version_of_its_own(town: Town) -> None:
    file = town.house.root.path / "consent.md"
    file.write_text("# Ours\nWe ask because the law says so.", encoding="utf-8")
    try:
        page = town.as_("rio").get("/account/profile").text
        assert "because the law says so" in page and "Version 1<" not in page
    finally:
        file.unlink()


def test_nobody_has_a_page_with_one_persons_attributes(town: Town) -> None:
    town.people["zoe"] = people.create(town.store, "zoe", project="desk")
    assert given(town.as_("zoe"), gender_words="gzzq", ethnicity_words="ezzq", region_words="rzzq").status_code == 303
    names = ("olga", "lea", "aud", "sam", "rio")
    paths = [path for method, path in every_route(town.app) if method == "GET"]
    seen = 0
    for name in names:
        client = town.as_(name)
        for path in paths:
            made = path.replace("{name}", "desk").replace("{project}", "desk").replace("{task}", town.task)
            made = re.sub(r"\{[^}]*\}", town.people["zoe"].id, made)
            text = client.get(made).text
            assert not re.search("[ger]zzq", text), f"{name} reads it at {made}"
            seen += 1
    assert seen > 100
    assert not re.search("[ger]zzq", town.as_("zoe").get("/account/profile").text), "nor who signs in as zoe"


# what is masked


def test_masked_text_is_uncovered_with_a_reason_and_on_record(town: Town) -> None:
    path = f"/tasks/{town.task}/masked"
    for name in ("ana", "aud", "sam"):
        client = town.as_(name)
        assert client.get(path).status_code == 403 and send(client, path, reason="because I want to").status_code == 403
    client = town.as_("rio")
    page = client.get(path).text
    assert "ada.byron" not in page and "901820" not in page and "The question" in page and "Answer 1" in page
    texts = re.findall(r'name="text" value="([^"]+)"', page)
    assert len(texts) == 2, "the second answer has nothing to hide"
    for fields, status in (
        ({"text": texts[0], "reason": "short"}, 422),
        ({"text": texts[0], "reason": " " * 30}, 422),
        ({"text": "another", "reason": "to check who wrote it"}, 404),
    ):
        reply = send(client, path, **fields)
        assert reply.status_code == status and "ada.byron" not in reply.text
    before = len(ledger.acts(town.store, "text.reveal"))
    shown = send(client, path, text=texts[0], reason="Is ada@byron.example really named in it?")
    assert shown.status_code == 200 and "ada.byron@example.org" in shown.text and "901820" not in shown.text
    assert shown.headers["cache-control"] == "no-store"
    assert "ada.byron" not in client.get(path).text, "shown once"
    entry = ledger.acts(town.store, "text.reveal")[0]
    assert len(ledger.acts(town.store, "text.reveal")) == before + 1
    assert entry.actor == town.people["rio"].id and entry.object == texts[0]
    assert "really named" in entry.body["reason"] and "ada@byron" not in entry.body["reason"]
    log = town.as_("aud").get("/people/reveals").text
    assert "rio" in log and "really named" in log and texts[0] in log and "ada.byron" not in log
    assert audit.verify(town.store).ok
    assert "ada.byron" not in town.as_("lea").get("/projects/desk").text


# by groups


def test_a_lead_makes_a_report_of_groups(town: Town) -> None:
    lead = town.as_("lea")
    assert "No report has been made yet" in lead.get("/projects/desk/people").text
    assert send(lead, "/projects/desk/people").status_code == 303
    page = lead.get("/projects/desk/people").text
    assert "not enough data" in page and "Make it anew" in page
    assert "Nothing has happened" in lead.get(send(lead, "/projects/desk/people").headers["location"]).text
    assert "Make it anew" not in town.as_("aud").get("/projects/desk/people").text
    assert lead.get("/projects/nowhere/people").status_code == 404
    assert lead.get("/projects/desk/people?kind=made-up").status_code == 200


# many people


NEXT = re.compile(r'<a class="button" href="([^"]+)" rel="next">')
ROWS = re.compile(r'<th scope="row">(?:<a href="/people/[^"]+">)?(crowd [^<]+)<')


@pytest.mark.parametrize("path", ["/people", "/projects/shop/settings"])
def test_people_stand_on_pages_and_are_found_by_name(town: Town, path: str) -> None:
    names = [f"crowd {n:03} <b>&" for n in range(130)]
    people.create_many(town.store, names, project="shop")
    lead, met, here = town.as_("lea"), [], f"{path}?q=CROWD"
    while True:
        page = lead.get(here)
        assert page.status_code == 200 and "<b>&" not in page.text and "130, by name" in page.text
        met += ROWS.findall(page.text)
        if not (more := NEXT.search(page.text)):
            break
        here = html.unescape(more[1])
    assert [html.unescape(each) for each in met] == names, "each once, in order"
    assert ROWS.findall(lead.get(path, params={"q": "wd 007"}).text) == ["crowd 007 &lt;b&gt;&amp;"]
    for asked in (
        {"q": "\x00%_<script>"},
        {"after": "zzz"},
        {"q": "x" * 500, "after": "\x00"},
        {"q": "crowd", "after": "crowd 999"},
    ):
        page = lead.get(path, params=asked)
        assert page.status_code == 200 and "Nobody" in page.text and "<script>" not in page.text, asked


def test_what_was_uncovered_stands_on_pages(town: Town) -> None:
    for n in range(60):
        ledger.record(
            town.store, town.people["rio"].id, "text.reveal", f"text-{n}", {"reason": f"why {n}", "project": ""}
        )
    lead = town.as_("lea")
    page = lead.get("/people/reveals").text
    assert page.count("<code>text-") == 50 and "text-59" in page and "rio" in page
    older = lead.get(html.unescape(NEXT.search(page)[1])).text  # type: ignore[index]
    assert "text-9<" in older and "text-59" not in older and 'rel="next"' not in older
    assert lead.get("/people/reveals?before=9999999999999999999").status_code == 404
    assert lead.get("/people/reveals?before=x").status_code == 422
