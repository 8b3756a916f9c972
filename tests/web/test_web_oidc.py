"""Signing in through a real OpenID provider: its own server, spoken to over HTTP; and every lie it could tell."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import httpx
import pytest
from joserfc import jwt
from joserfc.jwk import ECKey, KeySet, RSAKey

from tutelage.core.artifact import Root
from tutelage.core.config import build
from tutelage.core.errors import ConfigError
from tutelage.guard.limits import Limiter
from tutelage.store import access, ledger, people
from tutelage.web.app import Server, create_app
from tutelage.web.settings import Settings

Change = Callable[[dict[str, Any]], None]


@dataclass
class Provider:
    """An OpenID provider for one client; `claims` changes what its next tokens say, `sign` how they are signed."""

    url: str = ""
    user: dict[str, Any] = field(default_factory=dict)
    keys: list[Any] = field(default_factory=lambda: [RSAKey.generate_key(2048, {"kid": "one", "use": "sig"})])
    claims: Change = lambda claims: None
    sign: Callable[[dict[str, Any]], str] | None = None
    answer: Change = lambda query: None
    discovery: Change = lambda said: None
    codes: dict[str, dict[str, str]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    """Every path that was called."""
    secret: str = "s3 cret/"

    def token(self, nonce: str) -> str:
        now = int(time.time())
        said = {"iss": self.url, "aud": "tutelage", "iat": now, "exp": now + 300, "nonce": nonce, **self.user}
        self.claims(said)
        if self.sign is not None:
            return self.sign(said)
        algorithm = "ES256" if isinstance(self.keys[-1], ECKey) else "RS256"
        return jwt.encode({"alg": algorithm, "kid": self.keys[-1].kid}, said, self.keys[-1])


def handler(provider: Provider) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            where = urlsplit(self.path)
            provider.asked.append(where.path)
            query = {name: values[0] for name, values in parse_qs(where.query).items()}
            if where.path == "/.well-known/openid-configuration":
                said: dict[str, Any] = {
                    "issuer": provider.url,
                    "authorization_endpoint": f"{provider.url}/authorize",
                    "token_endpoint": f"{provider.url}/token",
                    "jwks_uri": f"{provider.url}/jwks",
                    "id_token_signing_alg_values_supported": ["RS256", "ES256", "HS256", "none"],
                    "authorization_response_iss_parameter_supported": True,
                }
                provider.discovery(said)
                self.reply(said)
            elif where.path == "/jwks":
                self.reply(KeySet(provider.keys).as_dict(private=False))
            elif where.path == "/authorize":
                assert query["response_type"] == "code" and query["code_challenge_method"] == "S256"
                assert query["client_id"] == "tutelage" and "openid" in query["scope"].split()
                code = secrets.token_urlsafe(8)
                provider.codes[code] = query
                back = {"code": code, "state": query["state"], "iss": provider.url}
                provider.answer(back)
                self.send_response(302)
                self.send_header("location", f"{query['redirect_uri']}?{urlencode(back)}")
                self.end_headers()

        def do_POST(self) -> None:
            provider.asked.append(self.path)
            body = self.rfile.read(int(self.headers["content-length"])).decode()
            sent = {name: values[0] for name, values in parse_qs(body).items()}
            asked = provider.codes.pop(sent.get("code", ""), None)
            digest = hashlib.sha256(sent.get("code_verifier", "").encode()).digest()
            challenge = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
            pair = base64.b64decode(self.headers.get("authorization", "Basic ").split()[1]).decode()
            if pair != "tutelage:s3%20cret%2F":
                self.reply({"error": "invalid_client"}, 401)
            elif asked is None or asked["code_challenge"] != challenge or asked["redirect_uri"] != sent["redirect_uri"]:
                self.reply({"error": "invalid_grant"}, 400)
            else:
                self.reply({"access_token": "a", "token_type": "Bearer", "id_token": provider.token(asked["nonce"])})

        def reply(self, said: object, status: int = 200) -> None:
            data = json.dumps(said).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing."""

    return Handler


@pytest.fixture(scope="module")
def provider() -> Iterator[Provider]:
    made = Provider()
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(made))
    made.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield made
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, provider: Provider, upstream: str) -> Iterator[Server]:
    oidc = {
        "issuer": provider.url,
        "client_id": "tutelage",
        "client_secret": "env:OIDC_SECRET",
        "name": "Example",
        "domains": ["example.org"],
        "timeout_s": 3,
    }
    root = Root(tmp_path_factory.mktemp("oidc") / "town")
    settings = build(Settings, {"serve": "release:none", "oidc": oidc})
    with Server(create_app(root, settings, environment={"OIDC_SECRET": provider.secret}, upstream=upstream)) as made:
        yield made


@pytest.fixture(autouse=True)
def honest(provider: Provider, service: Server) -> None:
    """Each test begins with a provider that lies about nothing, a user it has not met, and no tries to get in."""
    fresh, kept = Provider(keys=provider.keys[:1]), ("url", "asked", "codes")
    for each in fields(Provider):
        if each.name not in kept:
            setattr(provider, each.name, getattr(fresh, each.name))
    name = secrets.token_hex(4)
    provider.user = {"sub": name, "email": f"{name.title()}@Example.org", "email_verified": True}
    service.state.limiter = Limiter()


def accounts(service: Server) -> int:
    return len(people.every(service.state.store, "live"))


def window(service: Server) -> httpx.Client:
    return httpx.Client(base_url=service.url, headers={"accept": "text/html"})


def go(browser: httpx.Client, path: str = "/login/provider") -> httpx.Response:
    """To the provider and back, as a browser goes; the last answer of the service."""
    sent = browser.get(path)
    if sent.status_code != 303:
        return sent
    returned = httpx.get(sent.headers["location"])
    return browser.get(returned.headers["location"])


def test_nothing_is_called_before_somebody_signs_in(service: Server, provider: Provider) -> None:
    before = len(provider.asked)
    with window(service) as browser:
        assert "Sign in with Example" in browser.get("/login").text
    assert len(provider.asked) == before


def test_a_verified_address_of_the_domain_gets_an_account(service: Server, provider: Provider) -> None:
    store, before, name = service.state.store, accounts(service), provider.user["email"].lower()
    with window(service) as browser:
        done = go(browser, "/login/provider?next=/history")
        assert done.status_code == 303 and done.headers["location"] == "/history"
        assert name in browser.get("/account").text
        assert provider.url in browser.get("/account").text
    ada = people.get(store, name)
    assert ada.roles == {("annotator", "")} and not access.has_password(store, ada.id)
    with window(service) as browser:
        assert go(browser).status_code == 303, "again, by issuer and subject"
    assert accounts(service) == before + 1
    provider.user["email"] = "elsewhere@other.org"
    with window(service) as browser:
        assert go(browser).status_code == 303, "the address is nothing that an account is known by"
    people.set_status(store, ada.id, "inactive", by="lead")
    with window(service) as browser:
        assert go(browser).status_code == 403
    assert {each.action for each in ledger.rows(store)} >= {"person.create", "identity.link", "role.grant"}


@pytest.mark.parametrize(
    "user",
    [
        {"email_verified": False},
        {"email_verified": "true"},
        {"email": "ada@example.org.evil.test"},
        {"email": "ada@sub.example.org"},
        {"email": ""},
    ],
)
def test_nobody_else_gets_in_without_a_link(service: Server, provider: Provider, user: dict[str, Any]) -> None:
    provider.user.update(user)
    before = accounts(service)
    with window(service) as browser:
        done = go(browser)
        assert done.status_code == 403 and "one-time link" in done.text
        assert browser.get("/").status_code == 303
    assert accounts(service) == before


def test_a_link_joins_a_sign_in_to_an_account_once(service: Server, provider: Provider) -> None:
    store = service.state.store
    provider.user = {"sub": "linked"}
    lena = people.create(store, "lena", roles=("lead",))
    link = access.invite(store, lena.id)
    with window(service) as browser:
        page = browser.get(f"/welcome/{link}").text
        assert f"/login/provider?link={link}" in page
        assert go(browser, f"/login/provider?link={link}").headers["location"] == "/"
        assert "lena" in browser.get("/account").text
    provider.user = {"sub": "late"}
    with window(service) as browser:
        assert go(browser, f"/login/provider?link={link}").status_code == 410
        assert go(browser).status_code == 403


def test_an_equal_address_joins_no_account_that_is_there(service: Server, provider: Provider) -> None:
    people.create(service.state.store, provider.user["email"].lower(), roles=("owner",))
    with window(service) as browser:
        assert go(browser).status_code == 409


def other_key(claims: dict[str, Any]) -> str:
    return jwt.encode({"alg": "RS256", "kid": "one"}, claims, RSAKey.generate_key(2048))


def unsigned(claims: dict[str, Any]) -> str:
    parts = [json.dumps(part).encode() for part in ({"alg": "none", "kid": "one"}, claims)]
    return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts) + "."


LIES: dict[str, dict[str, Any]] = {
    "nonce": {"claims": lambda said: said.update(nonce="another")},
    "nonce as a list": {"claims": lambda said: said.update(nonce=[said["nonce"]])},
    "no nonce": {"claims": lambda said: said.pop("nonce")},
    "audience": {"claims": lambda said: said.update(aud="somebody else")},
    "audience among others without azp": {"claims": lambda said: said.update(aud=["tutelage", "other"])},
    "azp": {"claims": lambda said: said.update(azp="other")},
    "issuer": {"claims": lambda said: said.update(iss="https://evil.example")},
    "expired": {"claims": lambda said: said.update(exp=int(time.time()) - 120)},
    "no expiry": {"claims": lambda said: said.pop("exp")},
    "from the future": {"claims": lambda said: said.update(iat=int(time.time()) + 3600)},
    "no subject": {"claims": lambda said: said.pop("sub")},
    "a subject that is a number": {"claims": lambda said: said.update(sub=7)},
    "signed with another key": {"sign": other_key},
    "not signed": {"sign": unsigned},
    "no token": {"sign": lambda claims: "no token"},
    "another provider answers": {"answer": lambda back: back.update(iss="https://evil.example")},
    "no provider named": {"answer": lambda back: back.pop("iss")},
    "refusal": {"answer": lambda back: (back.pop("code"), back.update(error="access_denied"))},
    "wrong code": {"answer": lambda back: back.update(code="guessed")},
    "state": {"answer": lambda back: back.update(state="guessed")},
    "no state": {"answer": lambda back: back.pop("state")},
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_signs_nobody_in(service: Server, provider: Provider, lie: str) -> None:
    for name, change in LIES[lie].items():
        setattr(provider, name, change)
    before = accounts(service)
    with window(service) as browser:
        done = go(browser)
        assert done.status_code in (400, 401) and "Not signed in" in done.text and "Traceback" not in done.text
        assert "tutelage=" not in done.headers.get("set-cookie", "") and browser.get("/").status_code == 303
    assert accounts(service) == before


def test_a_token_signed_with_the_public_key_as_a_secret_is_refused(service: Server, provider: Provider) -> None:
    """The old confusion of RS256 and HS256 (RFC 8725, 2.1)."""
    pem = provider.keys[0].as_pem(private=False)

    def sign(claims: dict[str, Any]) -> str:
        parts = [json.dumps(part).encode() for part in ({"alg": "HS256", "kid": "one"}, claims)]
        signed = b".".join(base64.urlsafe_b64encode(part).rstrip(b"=") for part in parts)
        return (signed + b"." + base64.urlsafe_b64encode(hmac.digest(pem, signed, "sha256")).rstrip(b"=")).decode()

    provider.sign = sign
    with window(service) as browser:
        assert go(browser).status_code == 401


def test_a_state_works_once_and_in_its_own_browser(service: Server, provider: Provider) -> None:
    with window(service) as browser:
        tokens = provider.asked.count("/token")
        sent = browser.get("/login/provider")
        back = httpx.get(sent.headers["location"]).headers["location"]
        with window(service) as other:
            assert other.get(back).status_code == 400, "somebody else was sent this address"
        assert browser.get(back).status_code == 400, "and now it is used"
        back = httpx.get(browser.get("/login/provider").headers["location"]).headers["location"]
        cookie = browser.cookies["tutelage-oidc"]
        assert browser.get(back).status_code == 303
        assert "tutelage-oidc" not in browser.cookies
        browser.cookies.set("tutelage-oidc", cookie, domain="127.0.0.1", path="/login")
        assert browser.get(back).status_code == 400
    assert provider.asked.count("/token") == tokens + 1, "a used state redeems no code"


def test_a_new_key_of_the_provider_is_found(service: Server, provider: Provider, monkeypatch: Any) -> None:
    monkeypatch.setattr("tutelage.web.oidc.ANEW", 0.0)
    keys = provider.asked.count("/jwks")
    with window(service) as browser:
        assert go(browser).status_code == 303
        provider.keys.append(ECKey.generate_key("P-256", {"kid": "two", "use": "sig"}))
        assert go(browser).status_code == 303
    assert provider.asked.count("/jwks") <= keys + 2


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda said: said.update(issuer="https://evil.example"), "calls itself"),
        (lambda said: said.update(token_endpoint="ftp://evil.example/token"), "token_endpoint"),
        (lambda said: said.pop("jwks_uri"), "jwks_uri"),
    ],
)
def test_a_provider_that_misdescribes_itself(
    service: Server, provider: Provider, change: Change, text: str, monkeypatch: Any
) -> None:
    provider.discovery = change
    monkeypatch.setattr("tutelage.web.oidc.REMEMBER", 0.0)
    with window(service) as browser:
        done = browser.get("/login/provider")
        assert done.status_code == 502 and text in done.text


def test_a_provider_that_is_away(tmp_path: Path, upstream: str) -> None:
    oidc = {"issuer": "http://127.0.0.1:9", "client_id": "x"}
    with (
        Server(
            create_app(Root(tmp_path), build(Settings, {"oidc": oidc, "serve": "release:none"}), upstream=upstream)
        ) as made,
        window(made) as browser,
    ):
        done = browser.get("/login/provider")
        assert done.status_code == 502 and "does not answer" in done.text
        assert browser.get("/login").status_code == 200, "passwords still work"


@pytest.mark.parametrize(
    ("oidc", "key"),
    [
        ({"issuer": "http://id.example.org", "client_id": "x"}, "oidc.issuer"),
        ({"issuer": "https://id.example.org", "client_id": "x", "roles": ["owner"]}, "oidc.roles"),
        ({"issuer": "https://id.example.org"}, "oidc.client_id"),
    ],
)
def test_settings_that_cannot_be(oidc: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build(Settings, {"oidc": oidc})
    assert caught.value.key == key


def test_a_secret_in_clear_text_is_refused(tmp_path: Path) -> None:
    oidc = {"issuer": "https://id.example.org", "client_id": "x", "client_secret": "hunter2"}
    with pytest.raises(ConfigError, match="never in the file itself"):
        create_app(Root(tmp_path), build(Settings, {"oidc": oidc}))
