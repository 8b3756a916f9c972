"""Signing in through an OpenID provider: authorization code with PKCE, state and nonce; nothing unverified is believed.

Sources: OpenID Connect Core 1.0 (3.1, the code flow) and Discovery 1.0; RFC 7636 (PKCE); RFC 9207 (issuer in the
answer); RFC 8725 (algorithms are named, never taken from the token). Needs the extra `oidc`. The provider is the only
address that this file ever calls, and only when service.yaml names one.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

import aiohttp
from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse, Response
from starlette.concurrency import run_in_threadpool

from tutelage.core.config import secret
from tutelage.core.errors import MissingExtra, TutelageError
from tutelage.store import access, people
from tutelage.store.people import Person
from tutelage.web import auth
from tutelage.web.settings import Oidc
from tutelage.web.state import State

COOKIE = "tutelage-oidc"
LASTS = 600.0
"""Seconds in which somebody must come back from the provider."""
MOST = 10_000
"""Sign-ins under way; the oldest are forgotten."""
LARGEST = 1_000_000
"""Bytes of a provider's answer."""
REMEMBER = 3600.0
"""Seconds for which the provider's addresses and keys are kept."""
ANEW = 10.0
"""Seconds between two looks for a key that is not known yet: providers change keys, liars invent them."""
LEEWAY = 60
"""Seconds by which the two clocks may differ."""
ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA", "Ed25519")
"""Signatures with a public key. A token that says `none`, or an HMAC, is refused whatever the provider lists."""


class Refused(Exception):
    """Why somebody is not signed in, and the HTTP status that says so."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


@dataclass(frozen=True)
class _Started:
    """A sign-in that somebody was sent to the provider with."""

    nonce: str
    verifier: str
    browser: str
    """sha256 of the cookie: who comes back must be who was sent."""
    next: str
    link: str
    """The token of a one-time link, where they came with one."""
    back: str
    """The address that the provider sends them back to."""
    at: float


class Provider:
    """One OpenID provider, and the sign-ins that are under way there."""

    def __init__(self, settings: Oidc, client_secret: str = "") -> None:
        try:
            import joserfc  # noqa: F401
        except ImportError:
            raise MissingExtra("joserfc", "oidc") from None
        self.settings, self._secret = settings, client_secret
        self._started: OrderedDict[str, _Started] = OrderedDict()
        self._metadata: tuple[float, dict[str, Any]] = (-REMEMBER, {})
        self._keys: tuple[float, dict[str, Any]] = (-REMEMBER, {})

    async def start(self, next: str, link: str, back: str) -> tuple[str, str]:
        """Where to send somebody, and the cookie that they must bring back."""
        metadata = await self._discover()
        state, cookie = secrets.token_urlsafe(32), secrets.token_urlsafe(32)
        started = _Started(
            secrets.token_urlsafe(32), secrets.token_urlsafe(48), _mark(cookie), next, link, back, time.monotonic()
        )
        self._started[_mark(state)] = started
        while len(self._started) > MOST:
            self._started.popitem(last=False)
        challenge = base64.urlsafe_b64encode(hashlib.sha256(started.verifier.encode()).digest()).rstrip(b"=").decode()
        asked = {
            "response_type": "code",
            "client_id": self.settings.client_id,
            "redirect_uri": back,
            "scope": " ".join(dict.fromkeys(("openid", *self.settings.scopes))),
            "state": state,
            "nonce": started.nonce,
            "code_challenge": challenge,
            "code_challenge_method": "S256",
        }
        where = metadata["authorization_endpoint"]
        return f"{where}{'&' if urlsplit(where).query else '?'}{urlencode(asked)}", cookie

    async def finish(self, given: Mapping[str, str], cookie: str) -> tuple[dict[str, Any], _Started]:
        """The verified claims about whoever came back. Raises Refused; a state works once, whatever comes of it."""
        started = self._started.pop(_mark(given.get("state", "")), None)
        if started is None or time.monotonic() - started.at > LASTS:
            raise Refused(400, "This sign-in is over: it was used already, or took too long. Start it again.")
        if not hmac.compare_digest(started.browser, _mark(cookie)):
            raise Refused(400, "This sign-in was started in another browser. Start it again here.")
        metadata = await self._discover()
        names_itself = metadata.get("authorization_response_iss_parameter_supported") is True
        if given.get("iss", self.settings.issuer if not names_itself else "") != self.settings.issuer:
            raise Refused(401, "The answer came from another provider than the one that was asked.")
        if "error" in given or not given.get("code"):
            raise Refused(401, f"The provider did not sign you in: {given.get('error', 'no code came back')[:100]}.")
        return await self._verified(await self._redeem(metadata, given["code"], started), metadata, started), started

    async def _redeem(self, metadata: Mapping[str, Any], code: str, started: _Started) -> str:
        """The ID token that a code stands for."""
        fields = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": started.back,
            "code_verifier": started.verifier,
            "client_id": self.settings.client_id,
        }
        headers = {"accept": "application/json"}
        if self._secret and "client_secret_basic" in metadata.get(
            "token_endpoint_auth_methods_supported", ["client_secret_basic"]
        ):
            pair = f"{quote(self.settings.client_id, safe='')}:{quote(self._secret, safe='')}"
            headers["authorization"] = f"Basic {base64.b64encode(pair.encode()).decode()}"
        elif self._secret:
            fields["client_secret"] = self._secret
        told = await self._call("POST", metadata["token_endpoint"], data=fields, headers=headers)
        token = told.get("id_token")
        if not isinstance(token, str):
            raise Refused(502, "The provider sent no ID token: is `openid` among its scopes?")
        return token

    async def _verified(self, token: str, metadata: Mapping[str, Any], started: _Started) -> dict[str, Any]:
        """The claims of an ID token: signed by the provider, for us, now, in answer to this sign-in."""
        from joserfc import errors, jwt
        from joserfc.jwk import KeySet

        listed = metadata.get("id_token_signing_alg_values_supported") or ["RS256"]
        algorithms = [each for each in ALGORITHMS if each in listed]
        claims: dict[str, Any] = {}
        try:
            for anew in (False, True):
                keys = KeySet.import_key_set(await self._key_set(metadata, anew))  # type: ignore[arg-type]
                try:
                    claims = jwt.decode(token, keys, algorithms).claims
                    break
                except errors.InvalidKeyIdError:  # a key we have not seen: perhaps it is new
                    if anew:
                        raise
            me = self.settings.client_id
            jwt.JWTClaimsRegistry(
                leeway=LEEWAY,
                iss={"essential": True, "value": self.settings.issuer},
                aud={"essential": True, "value": me},
                sub={"essential": True},
                exp={"essential": True},
                iat={"essential": True},
            ).validate(claims)
            nonce = claims.get("nonce")
            if not isinstance(nonce, str) or not hmac.compare_digest(nonce.encode(), started.nonce.encode()):
                raise errors.InvalidClaimError("nonce")
            several = isinstance(claims["aud"], list) and len(claims["aud"]) > 1
            if claims.get("azp", None if several else me) != me:
                raise errors.InvalidClaimError("azp")
        except (errors.JoseError, ValueError, KeyError, TypeError) as error:
            raise Refused(401, f"The provider's token does not hold: {error}.") from None
        if len(claims["sub"]) > 200:
            raise Refused(401, "The provider's token does not hold: its subject is too long.")
        return claims

    async def _discover(self) -> dict[str, Any]:
        """The provider's addresses; what it says must be about itself, and nothing may be in clear text."""
        at, found = self._metadata
        if found and time.monotonic() - at < REMEMBER:
            return found
        found = await self._call("GET", f"{self.settings.issuer.rstrip('/')}/.well-known/openid-configuration")
        if found.get("issuer") != self.settings.issuer:
            raise Refused(502, f"The provider calls itself {str(found.get('issuer'))[:200]!r}, not what is configured.")
        for name in ("authorization_endpoint", "token_endpoint", "jwks_uri"):
            where = urlsplit(str(found.get(name) or ""))
            plain = urlsplit(self.settings.issuer).scheme == "http"  # on this machine only: the settings see to it
            if where.scheme != "https" and not (plain and where.scheme == "http"):
                raise Refused(502, f"The provider's {name} is missing, or in clear text.")
        self._metadata = (time.monotonic(), found)
        return found

    async def _key_set(self, metadata: Mapping[str, Any], anew: bool) -> dict[str, Any]:
        at, found = self._keys
        age = time.monotonic() - at
        if not found or age > REMEMBER or (anew and age > ANEW):
            told = await self._call("GET", metadata["jwks_uri"])
            keys = told.get("keys")
            usable = [
                key
                for key in (keys if isinstance(keys, list) else ())
                if isinstance(key, dict) and key.get("kty") in ("RSA", "EC", "OKP") and key.get("use", "sig") == "sig"
            ]
            if not usable:
                raise Refused(502, "The provider shows no key to check its tokens with.")
            found = {"keys": usable}
            self._keys = (time.monotonic(), found)
        return found

    async def _call(self, method: str, url: str, **how: Any) -> dict[str, Any]:
        """A JSON object from the provider. Raises Refused (502) for anything else."""
        patience = aiohttp.ClientTimeout(total=self.settings.timeout_s)
        try:
            async with (
                aiohttp.ClientSession(timeout=patience) as session,
                session.request(method, url, allow_redirects=False, **how) as reply,
            ):
                body = b""
                async for part in reply.content.iter_chunked(65536):
                    body += part
                    if len(body) > LARGEST:
                        raise Refused(502, "The provider's answer is too long.")
                told = json.loads(body)
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            why = str(error) or type(error).__name__
            raise Refused(502, f"The provider does not answer as it should ({why[:200]}). Try again later.") from None
        if not isinstance(told, dict):
            raise Refused(502, "The provider's answer is no JSON object.")
        if reply.status != 200:
            raise Refused(401 if reply.status < 500 else 502, f"The provider refused: {_short(told, reply.status)}.")
        return told


def account(state: State, settings: Oidc, claims: Mapping[str, Any], link: str) -> Person:
    """Whose sign-in this is. The first one needs a one-time link, or a verified address of an allowed domain.

    Raises Refused. Equal e-mail addresses never join a sign-in to an account that is there already.
    """
    store, issuer, subject = state.store, settings.issuer, str(claims["sub"])
    person = access.by_identity(store, issuer, subject)
    if person is not None:
        if person.status != "active":
            raise Refused(403, "This account is shut. Ask a lead.")
        return person
    email = str(claims.get("email") or "").strip().lower()
    domain = email.rpartition("@")[2]
    if link:
        person = access.redeem(store, link)
        if person is None:
            raise Refused(410, "The one-time link is used up. Ask a lead for another.")
    elif claims.get("email_verified") is True and domain in {each.lower() for each in settings.domains}:
        if people.find(store, email) or len(email) > 120:
            raise Refused(
                409, f"There is an account named {email[:120]} already. Ask a lead for a one-time link to it."
            )
        person = people.create(store, email, roles=settings.roles, email=email, by=f"oidc {issuer}")
    else:
        raise Refused(403, "You have no account here yet. Ask a lead for a one-time link, and sign in from there.")
    access.link_identity(store, person.id, issuer, subject)
    return person


def router(state: State, page: auth.Page) -> APIRouter:
    """The two pages of the flow; none where no provider is configured."""
    routes = APIRouter(include_in_schema=False)
    settings = state.settings.oidc
    if settings is None:
        return routes
    key = secret(settings.client_secret, state.environment, "oidc.client_secret") if settings.client_secret else ""
    provider = Provider(settings, key)

    def refused(request: Request, error: Refused) -> Response:
        return page(request, "problem.html", error.status, title="Not signed in", text=str(error), back="/login")

    @routes.get("/login/provider")
    async def leave(request: Request, next: str = "/", link: str = "") -> Response:
        back = f"{(settings.address or str(request.base_url)).rstrip('/')}/login/return"
        try:
            with auth.tries(state, request) as denied:
                if denied:
                    raise Refused(429, auth.TOO_MANY)
                where, cookie = await provider.start(auth.local(next), link[:200], back)
        except Refused as error:
            return refused(request, error)
        going = RedirectResponse(where, status_code=303)
        secure = back.startswith("https:")
        going.set_cookie(
            COOKIE, cookie, max_age=int(LASTS), httponly=True, samesite="lax", secure=secure, path="/login"
        )
        return going

    @routes.get("/login/return")
    async def come_back(request: Request) -> Response:
        try:
            claims, started = await provider.finish(dict(request.query_params), request.cookies.get(COOKIE, ""))
            person = await run_in_threadpool(account, state, settings, claims, started.link)
            going = await run_in_threadpool(auth.enter, state, request, person.id, started.next)
        except Refused as error:
            return refused(request, error)
        except TutelageError as error:
            return refused(request, Refused(503, str(error)))
        going.delete_cookie(COOKIE, path="/login")
        return going

    return routes


def _mark(value: str) -> str:
    return hashlib.sha256(value.encode("utf-8", "surrogatepass")).hexdigest()


def _short(told: Mapping[str, Any], status: int) -> str:
    """What a provider's error says, in few words."""
    said = told.get("error_description") or told.get("error") or f"status {status}"
    return str(said)[:200]
