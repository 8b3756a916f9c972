"""Telling other programs what happens, signed, at least once: the senders behind the store's outbox.

Signature and headers follow Standard Webhooks 1.0 (https://www.standardwebhooks.com): `webhook-id` (the same at every
attempt), `webhook-timestamp` (seconds), and `webhook-signature`: `v1,` and the base64 of HMAC-SHA256 over
`id.timestamp.body`, under the bytes behind `whsec_` in the secret.
"""

from __future__ import annotations

import hashlib
import hmac
import http.client
import ipaddress
import json
import ssl
import threading
import time
from base64 import b64decode, b64encode
from contextlib import suppress
from datetime import UTC, datetime
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from tutelage.core.errors import DataError, TutelageError
from tutelage.feedback.api import Forbidden
from tutelage.feedback.wire import Wire
from tutelage.store import webhooks as outbox
from tutelage.store.engine import Store
from tutelage.store.people import Person
from tutelage.store.webhooks import EVENTS, Delivery

ATTEMPTS = 12
"""After so many it is given up: with these pauses, after about six hours."""
FIRST_S, LONGEST_S = 5.0, 3600.0
"""Pause after the first failure; it doubles up to the longest."""
TIMEOUT_S = 10.0


class NewWebhook(Wire):
    """An address to be told of events."""

    url: str = Field(min_length=8, max_length=500)
    """`https`, or `http` to this machine."""
    events: tuple[str, ...] = Field(min_length=1, max_length=len(EVENTS))
    insecure: bool = False
    """Allow `http` to another machine: whoever listens on the way reads what is told. Only an owner may."""

    @field_validator("events")
    @classmethod
    def _known(cls, events: tuple[str, ...]) -> tuple[str, ...]:
        for name in events:
            if name not in EVENTS:
                raise ValueError(f"there is no event {name[:40]!r}; there are: {', '.join(EVENTS)}")
        return tuple(dict.fromkeys(events))


class WebhookView(Wire):
    """An address, and how far it was told."""

    id: str
    url: str
    events: tuple[str, ...]
    waiting: int = 0
    """What is still to be told, counting what failed and will be tried again."""
    sent: int = 0
    dead: int = 0
    """What was given up after many attempts."""
    error: str = ""
    """The last failure, while something waits or was given up."""


class WebhookMade(WebhookView):
    """A new address, with the secret that signs what it is told: shown this once."""

    secret: str


class Webhooks(Wire):
    """The addresses that are told something."""

    webhooks: list[WebhookView]


class Retried(Wire):
    """How many things are told again that had been given up."""

    count: int


# who is told what


def add(store: Store, person: Person, new: NewWebhook) -> WebhookMade:
    """Register an address. Raises DataError for one that is none, Forbidden for whoever may not."""
    _lead(person)
    check_address(new.url, new.insecure and person.has("owner"))
    made, secret = outbox.register(store, new.url, new.events, person.id)
    return WebhookMade(**_view(made).model_dump(), secret=secret)


def listed(store: Store, person: Person) -> Webhooks:
    """All addresses, with what waits, was sent and was given up."""
    _lead(person)
    return Webhooks(webhooks=[_view(each) for each in outbox.every(store)])


def remove(store: Store, person: Person, id: str) -> None:
    """Tell an address nothing more. Raises NotFound."""
    _lead(person)
    outbox.remove(store, id, person.id)


def retry(store: Store, person: Person, id: str) -> Retried:
    """Tell again what was given up. Raises NotFound."""
    _lead(person)
    return Retried(count=outbox.retry(store, id, person.id))


def _lead(person: Person) -> None:
    if not person.has("lead", "operator"):  # everywhere: what is told is of all projects
        raise Forbidden("webhooks need the role lead or operator", key="role", todo="Ask an owner to grant it")


def _view(made: outbox.Webhook) -> WebhookView:
    return WebhookView(
        id=made.id, url=made.url, events=made.events, waiting=made.waiting, sent=made.sent, dead=made.dead,
        error=made.error,
    )  # fmt: skip


def check_address(url: str, insecure: bool = False) -> None:
    """Refuse what is no address, holds a password, or would send in the clear to another machine. Raises DataError."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
    except ValueError as error:
        raise DataError(f"this is no address: {error}", key="url") from None
    if parts.scheme not in ("http", "https") or not host or any(each <= " " or each == "\x7f" for each in url):
        raise DataError("this is no address such as https://host/path", key="url")
    if not url.isascii():
        raise DataError("write the address in ASCII (xn--... for a host, %.. in a path)", key="url")
    if parts.username is not None or parts.fragment:
        raise DataError(
            "an address holds no user, password or #fragment", key="url", todo="The signature shows who sends"
        )
    if parts.scheme == "http" and not (_loopback(host) or insecure):
        todo = "Use https; an owner may allow http with `insecure`"
        raise DataError("http to another machine can be read and changed on its way", key="url", todo=todo)


def _loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


# sending


def sign(secret: str, id: str, timestamp: int, body: bytes) -> str:
    """The value of `webhook-signature`."""
    key = b64decode(secret.removeprefix("whsec_"))
    made = hmac.new(key, f"{id}.{timestamp}.".encode() + body, hashlib.sha256).digest()
    return f"v1,{b64encode(made).decode()}"


def send_due(
    store: Store, *, most: int = 50, attempts: int = ATTEMPTS, first_s: float = FIRST_S, lease_s: float = 600.0
) -> int:
    """Send what is due; returns how much of it was received. What was not waits longer after every failure.

    The lease must outlast `most` failing sends (`TIMEOUT_S` each), or others begin to send the same.
    """
    received, silent = 0, set[str]()
    for delivery in outbox.take(store, most, lease_s):
        pause = min(LONGEST_S, first_s * 2 ** (delivery.attempts - 1)) * _spread(delivery)
        if delivery.webhook in silent:  # did not answer a moment ago: others need not wait for it again
            outbox.postpone(store, delivery, pause)
            continue
        problem = post(delivery)
        if not problem:
            outbox.sent(store, delivery)
            received += 1
            continue
        if not problem.startswith("status"):
            silent.add(delivery.webhook)
        over = delivery.attempts >= attempts
        told = f"given up after {delivery.attempts} attempts: {problem}" if over else problem
        outbox.failed(store, delivery, told, None if over else pause)
    return received


def _spread(delivery: Delivery) -> float:
    """0.75 to 1.25, another one for each delivery: what failed together does not come again together."""
    return 0.75 + hashlib.sha256(f"{delivery.id}{delivery.attempts}".encode()).digest()[0] / 510


def post(delivery: Delivery) -> str:
    """Send once; the reason if it was not received. Redirects are not followed: they lead to nobody who was named."""
    parts = urlsplit(delivery.url)
    moment = datetime.fromtimestamp(delivery.at / 1000, UTC).isoformat().replace("+00:00", "Z")
    body = json.dumps({"type": delivery.event, "timestamp": moment, "data": delivery.payload}).encode()
    timestamp = int(time.time())
    headers = {
        "content-type": "application/json",
        "user-agent": "tutelage-webhooks/1",
        "webhook-id": delivery.id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": sign(delivery.secret, delivery.id, timestamp, body),
    }
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    host = parts.hostname or ""
    connection: http.client.HTTPConnection
    if parts.scheme == "https":
        context = ssl.create_default_context()
        connection = http.client.HTTPSConnection(host, parts.port, timeout=TIMEOUT_S, context=context)
    else:
        connection = http.client.HTTPConnection(host, parts.port, timeout=TIMEOUT_S)
    try:
        connection.request("POST", path, body, headers)
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    finally:
        connection.close()
    if 200 <= status < 300:
        return ""
    return f"status {status}" + (", a redirect, which is not followed" if 300 <= status < 400 else "")


class Sender:
    """Sends what is due from a thread of its own, as long as the service runs."""

    def __init__(self, store: Store, poll_s: float = 1.0) -> None:
        self._store, self._poll_s = store, poll_s
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._work, name="webhooks", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        while not self._over.is_set():
            done = 0
            with suppress(TutelageError):  # a store that is busy for a moment is looked at again
                done = send_due(self._store, most=10)
            if not done:
                self._over.wait(self._poll_s)

    def close(self) -> None:
        """Finish what is being sent, and end."""
        self._over.set()
        self._thread.join(2 * TIMEOUT_S)
