"""What a running service holds: its settings, the store, the guarded model that answers now, and the trace writer.

The release that answers is followed while the service runs: `reload` opens the new bundle beside the old one and swaps
them at once; requests that are under way finish with what they began with.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, cast
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from tutelage.core import refs
from tutelage.core.artifact import Root
from tutelage.core.config import Config, build, load_yaml, secret
from tutelage.core.errors import NotFound, TutelageError, UsageError
from tutelage.core.records import Message, digest
from tutelage.feedback.desk import Kept
from tutelage.generate.generator import Generator
from tutelage.guard.limits import Limiter, Limits
from tutelage.guard.opened import bundle_of, open_parts, watching
from tutelage.guard.pipeline import Pipeline
from tutelage.guard.policy import Policy, PolicyFile, Rule, Taxonomy
from tutelage.guard.request import Ending
from tutelage.guard.scan import Scanner
from tutelage.guard.switch import is_on, switches
from tutelage.guard.upstream import Upstream, open_upstream
from tutelage.guard.vault import Vault
from tutelage.store import engine, releases, review, traces
from tutelage.store.keys import now
from tutelage.store.people import JUNIOR
from tutelage.web.recorder import Recorder


class Tenant(Config):
    """Whose traffic: its limits and keys."""

    limits: Limits = Limits()
    """What it may ask."""
    language: str = ""
    """Of the policy's messages."""
    keys: tuple[str, ...] = ()
    """API keys beside those of the store, each as `env:NAME` or `file:PATH`."""
    collect: bool = False
    """Whether people may be asked about its requests (stage `collect`, personal data masked). It is noted with each
    request, so it holds for those that come in from then on; set back, it holds for none. A request says no for itself
    with `metadata: {"collect": "no"}`."""


class UpstreamSettings(Config):
    """An OpenAI-compatible address that answers instead of the released model."""

    url: str
    model: str = "default"
    key: str = ""
    """`env:NAME` or `file:PATH`."""


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

    vault_hours: float = Field(720.0, ge=0)
    """After so many hours it forgets what a placeholder for personal data stands for; 0 keeps it."""


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
    guards: Literal["on", "switch"] = "on"
    """`switch`: trained guards watch and decide nothing until `tutelage guard switch on`; `guard up` says so."""
    policy: str = ""
    """A policy file (beside service.yaml) in force instead of the bundle's. A change of it is followed while the
    service runs: all at once, or not at all where the guards cannot keep it."""
    upstream: UpstreamSettings | None = None
    generators: dict[str, UpstreamSettings] = Field(default_factory=dict)
    """Names by which projects of kind dialogue may call generators at other addresses."""
    tenants: dict[str, Tenant] = Field(default_factory=lambda: {"default": Tenant()})
    max_tokens: int = Field(1024, ge=1)
    """Longest answer."""
    default_tokens: int = Field(128, ge=1)
    """Length of an answer when the request does not say."""
    workers: int = Field(64, ge=1)
    """Answers made at once by the embedded model."""
    weights: Literal["float32", "int8"] = "float32"
    """`int8` rounds the embedded model's matrices: up to four times faster for a few answers at once, on a CPU with a C
    compiler. What was evaluated and released are the unrounded ones."""
    oidc: Oidc | None = None
    """Signing in through an OpenID provider."""
    retention: Retention = Retention()
    """How long personal data may be opened again."""
    follow_seconds: float = Field(1.0, gt=0)
    """How often the service looks whether another release is live."""
    drain_s: float = Field(30.0, ge=0)
    """Seconds that answers under way have to end once the service is told to stop; then each ends with an error."""

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


BARE = PolicyFile(
    rules=(
        Rule(id="personal-data-in", when={"direction": "input"}, pii="all", action="redact"),
        Rule(id="personal-data-out", when={"direction": "output"}, pii="all", action="redact"),
    )
)
"""What holds for an upstream before any guard was trained: rules alone."""


LAST_S = 5.0
"""Seconds for the last words of answers that are ended when the service stops."""


@dataclass
class Serving:
    """A pipeline that answers, or did, and how many requests it is answering."""

    pipeline: Pipeline
    wanted: str
    """What it was opened for: `release id|bundle`."""
    source: str
    """Its upstream."""
    law: str
    """Content of the policy file that the settings name, as a hash; empty where they name none."""
    users: int = 0


class State:
    """Everything a running service shares. `pipeline` is None while nothing has been released."""

    def __init__(
        self, root: Root, settings: Settings, *, environment: Mapping[str, str] | None = None, upstream: str = ""
    ) -> None:
        self.environment, self.settings = dict(environment or {}), settings
        self.root = Root(root.path, {**root.environment, **self.environment}).create()
        self.store = engine.open(root)
        self.writer = traces.Writer(self.store)
        self.limiter = Limiter()
        self.figures = Kept()
        self.started = time.time()
        self.keys = self._tenant_keys()
        self.problem = ""
        """Why nothing answers, for `/health` and for errors."""
        self.draining = False
        """Whether the service is being stopped: it begins nothing new."""
        self._now: Serving | None = None
        self._earlier: list[Serving] = []
        self._upstream_url = upstream
        self._upstreams: dict[str, Upstream] = {}
        self._answered: frozenset[str] = frozenset()
        self._opening, self._counting = threading.Lock(), threading.Lock()
        self._recorder = Recorder(self.writer, lambda tenant: self.tenant(tenant).collect)
        self.reload()

    # who asks

    def _tenant_keys(self) -> dict[str, str]:
        """sha256 of each key in the settings -> its tenant."""
        found: dict[str, str] = {}
        for name, tenant in self.settings.tenants.items():
            for number, key in enumerate(tenant.keys):
                value = secret(key, self.environment, f"tenants.{name}.keys.{number}", self.root.path)
                found[hashlib.sha256(value.encode()).hexdigest()] = name
        return found

    def tenant(self, name: str) -> Tenant:
        """A tenant's settings."""
        return self.settings.tenant(name)

    # what answers

    def reload(self) -> bool:
        """Follow the release that is live; True if another one answers now. What cannot be opened changes nothing."""
        with self._opening:
            try:
                wanted, law = self._wanted(), self._law()
                if self._now is not None and (wanted, law) == (self._now.wanted, self._now.law):
                    return False
                made = self._open(wanted, law)
            except TutelageError as error:
                self.problem = str(error)
                return False
            with self._counting:
                self._earlier += [self._now] if self._now is not None else []
                self._now, self.problem = made, ""
            return True

    async def tidy(self) -> None:
        """Close the pipelines of earlier releases whose last request has ended, and the upstreams nobody uses now."""
        if not self._opening.acquire(blocking=False):  # another is being opened: the next look will do
            return
        try:
            with self._counting:
                done = [each for each in self._earlier if not each.users]
                self._earlier = [each for each in self._earlier if each.users]
            used = {each.source for each in self._all}
            gone = [self._upstreams.pop(source) for source in [*self._upstreams] if source not in used]
        finally:
            self._opening.release()
        for each in done:
            await each.pipeline.close(upstream=False)
        for upstream in gone:
            await upstream.close()

    @property
    def pipeline(self) -> Pipeline | None:
        """What answers now."""
        return self._now.pipeline if self._now is not None else None

    @property
    def _all(self) -> list[Serving]:
        return [*self._earlier, *([self._now] if self._now is not None else [])]

    @property
    def busy(self) -> int:
        """How many requests are being answered."""
        return sum(each.users for each in self._all)

    def _wanted(self) -> str:
        """What should answer: `release id|bundle`, or a bundle, or the bare rules before an upstream."""
        if self.settings.serve == "rules":
            return "|"
        try:
            if self.settings.serve == "release:current":
                live = releases.current(self.store)
                if live is None:
                    raise NotFound("nothing has been released yet", todo="Run the recipe to its end")
                return f"{live.id}|{live.bundle}"
            return f"|{bundle_of(self.settings.serve, self.root)}"
        except NotFound:
            if self._url():
                return "|"
            raise

    def _url(self) -> str:
        given = self.settings.upstream
        return self._upstream_url or (f"{given.url}#{given.model}" if given else "")

    def _law(self) -> str:
        """What holds beside the bundle: the policy file that the settings name, by its content and that of its
        taxonomy, and which guards are switched on. Raises ConfigError."""
        switched = [each.model_dump() for each in switches(self.root)] if self.settings.guards == "switch" else []
        if not self.settings.policy:
            return digest(switched) if switched else ""
        path = self.root.path / self.settings.policy
        values = load_yaml(path)
        return digest([values, load_yaml(path.parent / str(values.get("taxonomy", "taxonomy.yaml"))), switched])

    def _open(self, wanted: str, law: str) -> Serving:
        file = self.root.path / self.settings.policy if self.settings.policy else None
        standing = "rules"
        release, _, bundle = wanted.partition("|")
        if bundle:
            ref = bundle if ":" in bundle else f"bundle:{bundle}"
            artifact = self.root.find(ref)
            standing = "demo" if artifact.manifest.simulated else "trained"
            if standing == "demo" and self._url() and self.settings.serve == "release:current":
                raise UsageError(
                    "these guards are a demonstration, learned from simulated people, and stand before no other model",
                    todo=f"Ask for them by name (`--guard {artifact.ref[:19]}`), or for `--guard rules`",
                )
            parts = open_parts(artifact, self.root, file)
            scanner, system, model = parts.scanner, parts.system, parts.model
            if standing == "trained" and self.settings.guards == "switch" and not is_on(self.root, artifact.id):
                scanner, standing = watching(scanner), "shadow"
        else:
            policy = Policy.load(file) if file else Policy(BARE, Taxonomy(categories={}))
            scanner, system, model = Scanner(policy, {}), "", ""
        source = self._url() or model
        if not source:
            raise NotFound(f"{bundle[:24]} has guards and no model", todo="Put it before one: `tutelage guard up URL`")
        made = Pipeline(
            scanner,
            self._upstream(source),
            key=self.store.keys.key("conversation"),
            system=system,
            release=release or bundle,
            model="tutelage",
            standing=standing,
            vaults=self._vault,
            record=partial(self._recorder.record, scanner),
        )
        return Serving(made, wanted, source, law)

    def speaker(self, name: str) -> Generator:
        """A generator for dialogues: an artifact or fake by reference, or an address that the settings name."""
        given = self.settings.generators.get(name)
        if given is not None:
            key = {"key": given.key} if given.key else {}
            return cast(Generator, refs.open(f"{given.url}#{given.model}", self.root, retries=1, **key))
        if not name.startswith(("model:", "bundle:", "release:", "fake:")):
            todo = "Name it under `generators` in service.yaml"
            raise NotFound("one of the project's generators is not known to the service", todo=todo)
        return cast(Generator, refs.open(name, self.root))

    def _upstream(self, source: str) -> Upstream:
        """The upstream of a model or an address; a release with the same model keeps the engine that runs."""
        if source not in self._upstreams:
            given = self.settings.upstream
            named = given.key if given and not self._upstream_url else ""
            key = self.environment.get("OPENAI_API_KEY")
            if named:
                key = secret(named, self.environment, "upstream.key", self.root.path)
            how: Any = {"max_batch": self.settings.workers, "int8": self.settings.weights == "int8"}
            self._upstreams[source] = open_upstream(source, self.root, key=key, **how)
        return self._upstreams[source]

    @property
    def standing(self) -> str:
        """What the guards rest on: `rules` alone, `demo` (learned from simulated people), `trained`, or `shadow`:
        trained, and not switched on, so that rules alone decide."""
        return self.pipeline.standing if self.pipeline is not None else "rules"

    @property
    def answering(self) -> str:
        """What answers, in words: an address, a release's bundle, or a bundle to try out."""
        if self._now is None:
            return f"nothing yet: {self.problem}"
        release, _, bundle = self._now.wanted.partition("|")
        named = f"bundle:{bundle.removeprefix('bundle:')[:12]}"
        return self._url() or (f"{named}, the release that is live" if release else f"{named}, to try it out")

    @contextlib.contextmanager
    def lease(self) -> Iterator[Pipeline]:
        """The pipeline that answers, for one request, to whose end it stays open.

        Raises NotFound when there is none, Ending when the service is being stopped.
        """
        with self._counting:
            made = self._now
            if self.draining:
                raise Ending("the service is being stopped", todo="Ask again")
            if made is None:
                raise NotFound(self.problem or "nothing answers yet")
            made.users += 1
        try:
            yield made.pipeline
        finally:
            with self._counting:
                made.users -= 1

    # what is kept

    def _vault(self, conversation: str) -> Vault:
        """The vault of a conversation; new placeholders are kept at once, encrypted."""

        def known() -> Mapping[str, tuple[str, str]]:
            return review.vault_get(self.store, conversation)

        def keep(entries: Mapping[str, tuple[str, str]]) -> None:
            review.vault_put(self.store, conversation, entries)

        return Vault(self.store.keys.key("vault"), conversation, known, keep)

    def flush(self, seconds: float = 5.0) -> None:
        """Wait until every request that was answered is on disk."""
        self.writer.flush(seconds)

    def follow(self) -> None:
        """What the service looks at again and again: the release that is live, and answers that people have given."""
        self.reload()
        self._look()

    def _look(self) -> None:
        given = review.holds(self.store, waiting=False)
        self._answered = frozenset(each.conversation for each in given if each.delivered_at is None)

    def sweep(self) -> int:
        """Forget what placeholders stand for that is older than the settings keep it; says how many there were."""
        hours = self.settings.retention.vault_hours
        gone = review.vault_expire(self.store, now() - int(3_600_000 * hours)) if hours else 0
        if gone:
            self.store.forget()
        return gone

    def pending(self, conversation: str) -> list[tuple[str, Message]]:
        """Answers by people that a conversation has not been given yet; as `follow` last saw it."""
        return review.pending(self.store, conversation) if conversation in self._answered else []

    def delivered(self, ids: Sequence[str]) -> None:
        """These answers are on their way to the user."""
        review.delivered(self.store, ids)
        self._look()

    def owns(self, digest: str) -> str | None:
        """The tenant of a key in the settings, by the key's sha256; compared in constant time."""
        found = None
        for known, tenant in self.keys.items():
            if hmac.compare_digest(known, digest):
                found = tenant
        return found

    async def drain(self) -> None:
        """Begin nothing new, let what is under way end, and after `drain_s` end the rest, each with an error."""
        self.draining = True
        for patience in (self.settings.drain_s, LAST_S):
            until = time.monotonic() + patience
            while self.busy and time.monotonic() < until:
                await asyncio.sleep(0.02)
            for each in self._all:
                each.pipeline.stop()

    async def close(self) -> None:
        """Write what waits, and let go of everything."""
        self.draining = True
        await asyncio.to_thread(self._recorder.close)
        for each in self._all:
            await each.pipeline.close(upstream=False)
        for upstream in self._upstreams.values():
            await upstream.close()
        try:
            self.writer.close()
        finally:
            self.store.close()
