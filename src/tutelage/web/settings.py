"""What stands in `ROOT/service.yaml`: how the service of a root is told to be."""

from __future__ import annotations

from datetime import UTC, date, datetime
from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from tutelage.core.artifact import Root
from tutelage.core.config import Config, build, load_yaml
from tutelage.guard.limits import Budget, Limits, Priority
from tutelage.store.access import SCOPES
from tutelage.store.people import JUNIOR
from tutelage.web.addresses import EncoderSettings, PatienceSettings, UpstreamSettings


class Key(Config):
    """An API key of a tenant. To replace one, add the new key and give the old one an end: both work until then."""

    key: str
    """`env:NAME` or `file:PATH`."""
    until: str = ""
    """A time (`2027-01-31` or `2027-01-31T12:00:00Z`) after which it works no more; "" has no end."""
    scopes: tuple[str, ...] = ("chat",)
    """What it may ask: `chat` is all that a tenant's programs need, the others are parts of it."""

    @field_validator("until", mode="before")
    @classmethod
    def _as_written(cls, until: object) -> object:
        return until.isoformat() if isinstance(until, date) else until  # YAML reads 2027-01-31 as a date

    @field_validator("until")
    @classmethod
    def _is_a_time(cls, until: str) -> str:
        if until:
            datetime.fromisoformat(until)
        return until

    @field_validator("scopes")
    @classmethod
    def _are_known(cls, scopes: tuple[str, ...]) -> tuple[str, ...]:
        if wrong := [each for each in scopes if each not in SCOPES]:
            raise ValueError(f"{wrong[0]!r} is no scope; one of {', '.join(SCOPES)}")
        return scopes

    @property
    def ends(self) -> float | None:
        """When it ends, in seconds since 1970; None never."""
        if not self.until:
            return None
        at = datetime.fromisoformat(self.until)
        return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()


class Tenant(Config):
    """Whose traffic: its limits and keys."""

    limits: Limits = Limits()
    """What it may ask."""
    language: str = ""
    """Of the policy's messages."""
    keys: tuple[str | Key, ...] = ()
    """API keys beside those of the store, each as `env:NAME` or `file:PATH`, or with an end and scopes."""
    budget: Budget = Budget()
    """What it may use in a day and in a month."""
    priority: Priority = "normal"
    """Who goes first when the service has more to do than it can: `low` is refused first and waits longest for the
    embedded model."""
    collect: bool = False
    """Whether people may be asked about its requests (stage `collect`, personal data masked). It is noted with each
    request, so it holds for those that come in from then on; set back, it holds for none. A request says no for itself
    with `metadata: {"collect": "no"}`."""


class Oidc(Config):
    """Signing in through an OpenID provider (needs the extra `oidc`)."""

    issuer: str = Field(max_length=300)
    """The provider's address, as its tokens name it."""
    client_id: str
    client_secret: str = ""
    """`env:NAME` or `file:PATH`; none for a public client."""
    name: str = "your organisation"
    """What the button says: Sign in with ..."""
    domains: tuple[str, ...] = ()
    """E-mail domains whose people get an account when they first sign in, if the provider has verified the address.
    Everybody else needs a one-time link."""
    roles: tuple[str, ...] = ("annotator",)
    """What they may do then, everywhere."""
    scopes: tuple[str, ...] = ("openid", "email", "profile")
    address: str = ""
    """This service as browsers call it, behind a proxy. The provider must know `ADDRESS/login/return`."""
    timeout_s: float = Field(10.0, gt=0)
    """How long the provider may take to answer."""

    @field_validator("issuer")
    @classmethod
    def _is_safe(cls, issuer: str) -> str:
        where = urlsplit(issuer)
        if where.scheme != "https" and not (where.scheme == "http" and where.hostname in ("localhost", "127.0.0.1")):
            raise ValueError("a provider's address begins with https://")
        return issuer

    @field_validator("roles")
    @classmethod
    def _are_roles(cls, roles: tuple[str, ...]) -> tuple[str, ...]:
        if wrong := [role for role in roles if role not in JUNIOR]:
            raise ValueError(f"{wrong[0]!r} is not given to whoever comes; one of {', '.join(JUNIOR)}")
        return roles


class Retention(Config):
    """How long the service keeps what it need not keep for ever."""

    days: float = Field(0.0, ge=0)
    """After so many days the words of requests, and of what was answered and said about them, are taken out, but for
    those under a legal hold; their rows stay. 0 keeps them."""
    vault_hours: float = Field(720.0, ge=0)
    """After so many hours it forgets what a placeholder for personal data stands for; 0 keeps it."""


class Takeover(Config):
    """Conversations that are with a person."""

    stream_s: float = Field(60.0, ge=0)
    """Seconds that a stream waits for the person's answer; then the next request brings it."""
    whole_s: float = Field(5.0, ge=0)
    """Seconds that an answer without a stream waits for it."""
    idle_hours: float = Field(24.0, ge=0)
    """A conversation that nobody touched for so long goes back to the model; 0 leaves it with the person."""


class Telemetry(Config):
    """What the service tells those who operate it. Without `content` no word of a request or an answer is in it."""

    logs: str = ""
    """A line of JSON for each request: `stderr`, or a file from the root's folder; "" writes none."""
    traces: str = ""
    """OpenTelemetry spans, a line of JSON each, `stderr` or a file (extra `otel`); `provider` hands them to the tracer
    provider of this process, as `opentelemetry-instrument` sets one; "" makes none."""
    content: bool = False
    """Whether logs hold the words, with personal data masked. Spans never do."""


class Settings(Config):
    """`ROOT/service.yaml`."""

    host: str = "127.0.0.1"
    port: int = Field(8420, ge=0, le=65535)
    hosts: tuple[str, ...] = ()
    """Names by which browsers may call the service, beside its address."""
    database: str = ""
    """Where the store lies: "" is ROOT/store.db; for a team, the address of a PostgreSQL database as `env:NAME` or
    `file:PATH`, or in clear text without a password."""
    serve: str = "release:current"
    """What answers: `release:current`, or a bundle to try out; `rules` before an upstream: no classifier."""
    policy: str = ""
    """A policy file (beside service.yaml) in force instead of the bundle's. A change of it is followed while the
    service runs: all at once, or not at all where the guards cannot keep it."""
    upstream: UpstreamSettings | None = None
    fallbacks: tuple[UpstreamSettings, ...] = ()
    """Addresses that answer in place of `upstream` while it is not well, in this order."""
    patience: PatienceSettings = PatienceSettings()
    """How long an upstream is waited for."""
    encoder: EncoderSettings | None = None
    """What embeds texts; none: `/v1/embeddings` answers 501."""
    generators: dict[str, UpstreamSettings] = Field(default_factory=dict)
    """Names by which projects of kind dialogue may call generators at other addresses."""
    tenants: dict[str, Tenant] = Field(default_factory=lambda: {"default": Tenant()})
    capacity: int = Field(2048, ge=1)
    """Requests at once, of all tenants. From 70% on those of priority `low` are refused (503), from 90% on `normal`."""
    telemetry: Telemetry = Telemetry()
    """Logs and traces."""
    new_guards: Literal["on", "shadow"] = "on"
    """How a guard trained on people's labels stands until somebody has switched it: in `shadow` it decides nothing."""
    max_tokens: int = Field(1024, ge=1)
    """Longest answer that may be asked for."""
    default_tokens: int = Field(128, ge=1)
    """Length of an answer when the request does not say: of the embedded model, and as limits and budgets reckon it."""
    workers: int = Field(64, ge=1)
    """Answers made at once by the embedded model."""
    queue: int = Field(256, ge=0)
    """Answers that may wait for it beside these; what comes then is told to come again."""
    connections: int = Field(4096, ge=1)
    """Connections open at once; one more is told to come again."""
    weights: Literal["float32", "int8"] = "float32"
    """`int8` rounds the embedded model's matrices: up to four times faster for a few answers at once, on a CPU with a C
    compiler. What was evaluated and released are the unrounded ones."""
    oidc: Oidc | None = None
    """Signing in through an OpenID provider."""
    retention: Retention = Retention()
    """How long what is kept is kept."""
    takeover: Takeover = Takeover()
    """How users wait for people."""
    follow_seconds: float = Field(1.0, gt=0)
    """How often the service looks whether another release is live."""
    drain_s: float = Field(30.0, ge=0)
    """Seconds that answers under way have to end once the service is told to stop; then each ends with an error."""

    @field_validator("tenants")
    @classmethod
    def _have_names(cls, tenants: dict[str, Tenant]) -> dict[str, Tenant]:
        if wrong := [name for name in tenants if not 0 < len(name) <= 120]:
            raise ValueError(f"a tenant's name has 1 to 120 characters, found {wrong[0][:40]!r}")
        return tenants

    def tenant(self, name: str) -> Tenant:
        """A tenant's settings; those of `default` when it has none of its own."""
        return self.tenants.get(name) or self.tenants.get("default") or Tenant()


def read_settings(root: Root) -> Settings:
    """The settings of a root; the defaults when there is no file."""
    path = root.service_path
    return build(Settings, load_yaml(path), file=path) if path.is_file() else Settings()


def open_settings(ref: str, root: Root | None = None) -> Settings:
    """Open `settings:`: what the service of a root is told, for stages that must know what its tenants allow."""
    return read_settings(root or Root("life"))
