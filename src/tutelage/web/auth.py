"""Who asks: signed-in people by cookie, programs by API key; and the doors that every request passes.

Cookies are HttpOnly and SameSite=Lax, forms and calls with a session carry its CSRF token, keys are compared as hashes.
A service on a loopback address answers only to names of its own, so that a web page elsewhere cannot reach it.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import re
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

from fastapi import APIRouter, Form, HTTPException, Request
from fastapi.responses import RedirectResponse, Response
from starlette.concurrency import run_in_threadpool
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tutelage.core.errors import TutelageError
from tutelage.guard.limits import Denied, Grant, Limits
from tutelage.store import access, people
from tutelage.web.state import State

COOKIE = "tutelage"
REMEMBER = 3.0
"""Seconds for which a session or key is not looked up again; a revoked one works that much longer at most."""
READING = ("GET", "HEAD", "OPTIONS")
HEADERS = {
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'; base-uri 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
}
"""Of every answer that has no stricter or looser ones of its own."""
TRIES = Limits(requests_per_minute=10, concurrent=4)
"""Log-ins per name and minute."""
TRIES_FROM = Limits(requests_per_minute=30, concurrent=8)
"""Log-ins per address and minute, whatever the name."""
DOORS = ("/login", "/logout", "/welcome/", "/account", "/people")
"""What is changed here changes who gets in: nothing that was looked up before is remembered."""
OWN = ("/login", "/logout", "/welcome/", "/account/password", "/account/sign-out")
"""The changes that one who only reads may make: to their own way in."""


class Page(Protocol):
    """Renders a page of the console: `web/render.page`, which stands below this file."""

    def __call__(self, request: Request, template: str, status: int = 200, **values: Any) -> Response: ...


class Asker(NamedTuple):
    """Who sends a request to the model: a tenant, and the person behind it where one is known."""

    tenant: str
    person: people.Person | None


class _Recent:
    """Remembers look-ups for a few seconds."""

    def __init__(self, most: int = 4096) -> None:
        self._found: OrderedDict[str, tuple[float, Any]] = OrderedDict()
        self._most = most

    def get(self, key: str) -> Any:
        at, value = self._found.get(key, (0.0, None))
        return value if time.monotonic() - at < REMEMBER else None

    def put(self, key: str, value: Any) -> None:
        self._found[key] = (time.monotonic(), value)
        while len(self._found) > self._most:
            self._found.popitem(last=False)

    def clear(self) -> None:
        self._found.clear()


class Doors:
    """ASGI: fills `request.state.session`, `.caller` and `.tenant`, checks the host, adds security headers."""

    def __init__(self, app: ASGIApp, state: State, failed: Callable[[Request, Exception], Awaitable[Response]]) -> None:
        self.app, self.state, self._failed = app, state, failed
        self._recent = _Recent()
        self._hosts = {"localhost", "127.0.0.1", "[::1]", state.settings.host.lower(), *state.settings.hosts}
        self._check_host = _loopback(state.settings.host)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name: value for name, value in scope["headers"]}
        host = headers.get(b"host", b"").decode("latin-1").lower()
        if self._check_host and re.sub(r":\d+$", "", host) not in self._hosts:
            body = json.dumps({"error": {"message": f"this service does not answer to the name {host!r}"}}).encode()
            await _plain(send, 421, body)
            return
        known = scope.setdefault("state", {})
        known.update(session=None, caller=None, tenant=None, scopes=frozenset())
        try:
            await self._recognise(known, headers)
        except TutelageError as error:  # a store that does not answer: nobody can be recognised
            response = await self._failed(Request(scope), error)
            await response(scope, receive, send)
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                present = {name.lower() for name, _ in message["headers"]}
                extra = [
                    (name.encode(), value.encode()) for name, value in HEADERS.items() if name.encode() not in present
                ]
                message["headers"] = [*message["headers"], *extra]
            await send(message)

        await self.app(scope, receive, guarded)
        if scope["method"] not in READING and scope["path"].startswith(DOORS):
            self._recent.clear()

    async def _recognise(self, known: MutableMapping[str, Any], headers: dict[bytes, bytes]) -> None:
        given = headers.get(b"authorization", b"").decode("latin-1")
        if given[:7].lower() == "bearer ":
            token = given[7:].strip()
            mark = hashlib.sha256(token.encode("utf-8", "replace")).hexdigest()
            owner = self.state.tenancy.owns(mark)
            if owner is not None:
                known.update(tenant=owner.tenant, scopes=owner.scopes)
                return
            known["caller"] = await self._remembered(f"key/{mark}", access.by_token, token)
            if known["caller"] is not None:
                scopes = known["caller"].scopes
                named = sorted(scope.partition(":")[2] for scope in scopes if scope.startswith("tenant:"))
                known["tenant"] = named[0] if named else "default"
            return
        cookie = _cookie(headers.get(b"cookie", b"").decode("latin-1"))
        if cookie:
            mark = hashlib.sha256(cookie.encode()).hexdigest()
            known["session"] = await self._remembered(f"session/{mark}", access.by_session, cookie)

    async def _remembered(self, key: str, look: Callable[..., Any], value: str) -> Any:
        found = self._recent.get(key)
        if found is None:
            found = await run_in_threadpool(look, self.state.store, value)
            if found is not None:
                self._recent.put(key, found)
        return found


def asker(request: Request, *parts: str, chat: bool = True) -> Asker:
    """Who may use the model: a key with scope `chat` (unless told otherwise) or one of `parts`, a key of the settings,
    or a signed-in person with CSRF token.

    Raises HTTPException 401 or 403.
    """
    caller, session = request.state.caller, request.state.session
    if caller is not None or request.state.tenant is not None:
        scopes = caller.scopes if caller is not None else request.state.scopes
        wanted = [*(["chat"] if chat else []), *parts]
        if not {"*", *wanted} & set(scopes):
            raise HTTPException(403, f"this key lacks the scope {' or '.join(map(repr, wanted))}")
        return Asker(str(request.state.tenant), caller.person if caller is not None else None)
    if session is not None:
        checked(request)
        return Asker("console", session.person)
    given = request.headers.get("authorization")
    said = "this API key is not known, or was revoked" if given else "send `Authorization: Bearer` with an API key"
    raise HTTPException(401, said, headers={"www-authenticate": "Bearer"})


async def may_write(request: Request) -> None:
    """Of every route: refuse (403) a change by somebody who is an auditor and nothing else."""
    who = getattr(request.state, "session", None) or getattr(request.state, "caller", None)
    changes = request.method not in READING and not request.url.path.startswith(OWN)
    if changes and who is not None and who.person.reads_only:
        raise HTTPException(403, "an auditor looks at everything and changes nothing")


def checked(request: Request, given: str | None = None) -> None:
    """Refuse (403) a call with a session that does not carry its token in `x-csrf-token` or in the form."""
    session = request.state.session
    token = given if given is not None else request.headers.get("x-csrf-token", "")
    if session is not None and request.method not in ("GET", "HEAD") and not _same(token, session.csrf):
        raise HTTPException(403, "this call does not carry its session's token; load the page again")


def _same(one: str, other: str) -> bool:
    return hashlib.sha256(one.encode()).digest() == hashlib.sha256(other.encode()).digest()


@contextmanager
def tries(state: State, request: Request, name: str = "") -> Iterator[Denied | None]:
    """Count a try to get in, by name and by address; gives why there are too many, or None."""
    grants: list[tuple[Grant, Limits]] = []
    denied: Denied | None = None
    wanted = ((f"login from {_address(request)}", TRIES_FROM), *(((f"login as {name[:120]}", TRIES),) if name else ()))
    for key, limits in wanted:
        got = state.limiter.acquire(key, limits, 0, time.monotonic())
        if isinstance(got, Denied):
            denied = got
            break
        grants.append((got, limits))
    try:
        yield denied
    finally:
        for grant, limits in grants:
            state.limiter.settle(grant, limits, 0, time.monotonic())


def _address(request: Request) -> str:
    """Where a request comes from; of IPv6 the network, since one machine has 2^64 addresses."""
    host = request.client.host if request.client else ""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    return str(ipaddress.ip_network((address, 64), strict=False)) if address.version == 6 else host


TOO_MANY = "Too many tries; wait a minute."


def router(state: State, page: Page) -> APIRouter:
    """Log-in, log-out, and one-time links."""
    routes = APIRouter(include_in_schema=False)
    provider = state.settings.oidc.name if state.settings.oidc else ""

    @routes.get("/login")
    def login_page(request: Request, next: str = "/") -> Response:
        return page(request, "login.html", next=local(next), error="", provider=provider)

    @routes.post("/login")
    def login(request: Request, name: str = Form(), password: str = Form(), next: str = Form("/")) -> Response:
        def again(status: int, error: str) -> Response:
            return page(request, "login.html", status, next=local(next), error=error, provider=provider)

        with tries(state, request, name) as denied:
            if denied:
                return again(429, TOO_MANY)
            person = access.check_password(state.store, name[:120], password[: access.LONGEST])
        if person is None:
            return again(401, "Name and password do not fit.")
        return enter(state, request, person.id, local(next))

    @routes.post("/logout")
    def logout(request: Request, csrf: str = Form("")) -> Response:
        checked(request, csrf)
        access.close_session(state.store, request.cookies.get(COOKIE, ""))
        gone = RedirectResponse("/login", status_code=303)
        gone.delete_cookie(COOKIE)
        return gone

    def used_up(request: Request) -> Response:
        title, text = "This link is used up", "It works once and for a day; ask a lead for another."
        return page(request, "problem.html", status=410, title=title, text=text)

    @routes.get("/welcome/{token}")
    def welcome_page(request: Request, token: str) -> Response:
        person = access.invited(state.store, token)
        if person is None:
            return used_up(request)
        return page(request, "welcome.html", name=person.name, error="", provider=provider, token=token)

    @routes.post("/welcome/{token}")
    def welcome(request: Request, token: str, password: str = Form(), again: str = Form()) -> Response:
        person = access.invited(state.store, token)
        if person is not None and (error := new_password(password, again)):
            return page(request, "welcome.html", 422, name=person.name, error=error, provider=provider, token=token)
        person = access.redeem(state.store, token)
        if person is None:
            return used_up(request)
        access.set_password(state.store, person.id, password)
        return enter(state, request, person.id, "/")

    return routes


def new_password(password: str, again: str) -> str:
    """What is wrong with a new password, "" when nothing is."""
    if access.SHORTEST <= len(password) <= access.LONGEST and password == again:
        return ""
    return f"Give the same password twice, of at least {access.SHORTEST} characters."


def enter(state: State, request: Request, person: str, next: str) -> Response:
    """Sign somebody in and go on."""
    cookie, _ = access.open_session(state.store, person)
    going = RedirectResponse(next, status_code=303)
    secure = request.url.scheme == "https"
    going.set_cookie(COOKIE, cookie, max_age=12 * 3600, httponly=True, samesite="lax", secure=secure, path="/")
    return going


def local(where: str) -> str:
    """A path of this service; anything that could lead elsewhere becomes `/`."""
    safe = where.startswith("/") and not where.startswith(("//", "/\\")) and where.isprintable()
    return where if safe else "/"


def _cookie(header: str) -> str:
    for part in header.split(";"):
        name, _, value = part.strip().partition("=")
        if name == COOKIE:
            return value.strip('"')
    return ""


def _loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


async def _plain(send: Callable[[Message], Awaitable[None]], status: int, body: bytes) -> None:
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
