"""What a running service holds: its settings, the store, the guarded model that answers now, and the trace writer.

The release that answers is followed while the service runs: `reload` opens the new bundle beside the old one and swaps
them at once; requests that are under way finish with what they began with.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, cast

from tutelage.core import refs
from tutelage.core.artifact import Root
from tutelage.core.config import build, load_yaml
from tutelage.core.errors import NotFound, TutelageError, UsageError
from tutelage.core.records import Message, digest
from tutelage.feedback.desk import Kept
from tutelage.generate.generator import Generator
from tutelage.guard.opened import bare, bundle_of, open_parts, stand
from tutelage.guard.pipeline import Pipeline
from tutelage.guard.policy import Policy
from tutelage.guard.pool import open_upstream
from tutelage.guard.request import Ending, Finished
from tutelage.guard.scan import Scanner
from tutelage.guard.upstream import Upstream
from tutelage.guard.vault import Vault
from tutelage.guard.written import PolicyFile
from tutelage.review import queue
from tutelage.store import engine, incidents, releases, retention, review, standings, takeover, traces
from tutelage.store.keys import now
from tutelage.web import watch
from tutelage.web.addresses import Addresses, Encoder
from tutelage.web.recorder import Recorder
from tutelage.web.settings import Settings, Tenant
from tutelage.web.telemetry import Telemetry
from tutelage.web.tenancy import Tenancy

SYNC_S = 5.0
"""How often what tenants used is kept, and the rules for incidents are looked at."""
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
    standing: str
    """What its guards rest on: `rules`, `demo` or `trained`."""
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
        self.tenancy = Tenancy(self.settings, self.environment, self.root, self.store)
        self.limiter = self.tenancy.limiter
        self.figures = Kept()
        self.started = time.time()
        self.problem = ""
        """Why nothing answers, for `/health` and for errors."""
        self.draining = False
        """Whether the service is being stopped: it begins nothing new."""
        self._now: Serving | None = None
        self._earlier: list[Serving] = []
        self._upstream_url = upstream
        self._upstreams: dict[str, Upstream] = {}
        self._answered: frozenset[str] = frozenset()
        self._taken: frozenset[str] = frozenset()
        self._fresh: dict[str, float] = {}
        """Conversations that went to a person since the store was last looked at, and when that was on disk."""
        self._opening, self._counting, self._looking = threading.Lock(), threading.Lock(), threading.Lock()
        self._away = Addresses(self.root, self.environment)
        self._recorder = Recorder(self.writer, lambda tenant: self.tenant(tenant).collect)
        self.telemetry = Telemetry(self.settings.telemetry, root.path, taxonomy=self._categories)
        self._looked, self._synced, self._lost = now(), 0.0, 0
        self.reload()

    # who asks

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
                    self.problem = ""
                    return False
                made = self._open(wanted, law)
            except TutelageError as error:
                self.problem = str(error)
                return False
            self._stand(made)
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
        taxonomy. Raises ConfigError."""
        if not self.settings.policy:
            return ""
        path = self.root.path / self.settings.policy
        values = build(PolicyFile, load_yaml(path), file=path).model_dump(mode="json")
        return digest([values, load_yaml(path.parent / str(values.get("taxonomy", "taxonomy.yaml")))])

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
        else:
            scanner, system, model = Scanner(Policy.load(file), {}) if file else bare(), "", ""
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
            record=partial(self._record, scanner),
        )
        return Serving(made, wanted, source, law, standing)

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
            given = None if self._upstream_url else self.settings.upstream
            others = () if self._upstream_url else self.settings.fallbacks
            if source.startswith(("http://", "https://")):
                self._upstreams[source] = self._away.upstream(source, given, others, self.settings.patience)
            else:
                self._upstreams[source] = self._local(source)
        return self._upstreams[source]

    def _local(self, model: str) -> Upstream:
        settings = self.settings
        how: Any = {"max_batch": settings.workers, "int8": settings.weights == "int8", "queue": settings.queue}
        return open_upstream(model, self.root, **how)

    @cached_property
    def encoder(self) -> Encoder | None:
        """What embeds texts, opened at first use; None where there is none."""
        return self._away.encoder(self.settings.encoder) if self.settings.encoder else None

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
        self.stand()
        self.look()
        if time.monotonic() - self._synced >= SYNC_S:
            self._synced = time.monotonic()
            self.tenancy.sync()
            self.watch()
        queue.open_held(self.store)

    def watch(self) -> None:
        """Open incidents for what the rules find, and let guards stand as people and drift have decided."""
        began, lost = now(), self.writer.lost
        policy = self._now.pipeline.policy if self._now is not None else None
        watch.look(self.store, policy, self.telemetry, self.breakers, lost - self._lost, self._looked)
        self._looked, self._lost = began, lost
        self.stand()
        for kind in incidents.KINDS:
            self.telemetry.incidents.labels(kind).set(0)
        for kind, n in incidents.counts(self.store).items():
            self.telemetry.incidents.labels(kind).set(n)
        for name, state in self.breakers.items():
            self.telemetry.breakers.labels(name[:60]).set(state == "open")
        self.telemetry.traces_lost.set(lost)

    def stand(self) -> None:
        """Tell the policy that answers which guards are in shadow and which certificates have expired."""
        if self._now is not None:
            self._stand(self._now)

    def _stand(self, serving: Serving) -> None:
        policy, switched = serving.pipeline.policy, standings.switches(self.store)
        if serving.standing == "trained" and self.settings.new_guards == "shadow":
            for name in sorted({guard.name for guard in policy.guards} - switched.keys()):
                standings.switch(self.store, name, "shadow", reason="new guards watch first", by=standings.SERVICE)
                switched[name] = "shadow"
        elif self.settings.new_guards == "on":  # nobody has said that they should watch
            switched = standings.switches(self.store, by_people=True)
        stand(policy, switched, standings.expired(self.store))
        only_watch = serving.standing == "trained" and policy.shadowed >= {guard.name for guard in policy.guards}
        serving.pipeline.standing = "shadow" if only_watch else serving.standing

    @property
    def breakers(self) -> dict[str, str]:
        """Guard or upstream -> whether its breaker is `closed`, `open` or `half` open."""
        if self._now is None:
            return {}
        pipeline = self._now.pipeline
        found: dict[str, str] = {}
        for prefix, part in (("", pipeline.breakers), ("upstream ", pipeline.upstream)):
            states = getattr(part, "states", None)  # an upstream by itself has none
            if callable(states):
                found |= {f"{prefix}{name}": str(state) for name, state in states().items()}
        return found

    def _categories(self) -> frozenset[str]:
        return frozenset(self._now.pipeline.policy.taxonomy.categories) if self._now is not None else frozenset()

    def look(self) -> None:
        """Which conversations are with a person, and in which of them there is something to deliver."""
        with self._looking:  # one after the other: what was read earlier is never kept later
            begun = time.monotonic()
            taken = takeover.conversations(self.store)  # first: who answers and gives back in one is not missed between
            self._answered, self._taken = review.undelivered(self.store), taken
            for name, at in [*self._fresh.items()]:
                if at < begun:
                    self._fresh.pop(name, None)

    def sweep(self) -> int:
        """Forget words, and what placeholders stand for, that are older than the settings keep them, but for those
        under a legal hold; says how many there were. Conversations that people have left go back to the model."""
        given, gone = self.settings.retention, 0
        if given.vault_hours:
            gone += review.vault_expire(self.store, now() - int(3_600_000 * given.vault_hours))
        if given.days:
            gone += retention.sweep(self.store, now() - int(86_400_000 * given.days)).texts
        if gone:
            self.store.forget()
        if idle := self.settings.takeover.idle_hours:
            takeover.expire(self.store, now() - int(3_600_000 * idle))
        return gone

    def _record(self, scanner: Scanner, done: Finished) -> Future[None] | None:
        """Hand over what was served; a conversation whose answer a person is to give is with them from now on."""
        kept = self._recorder.record(scanner, done)
        self.telemetry.finished(done)
        if kept is not None:
            self._fresh[done.conversation] = math.inf
            kept.add_done_callback(lambda _: self._fresh.update({done.conversation: time.monotonic()}))
        return kept

    def taken(self, conversation: str) -> bool:
        """Whether a conversation is with a person: the model says nothing in it."""
        return conversation in self._taken or conversation in self._fresh

    def waits(self, conversation: str) -> bool:
        """Whether it is worth waiting for a person's words in a conversation."""
        return self.taken(conversation) or self.answered(conversation)

    def answered(self, conversation: str) -> bool:
        """Whether there are words of people that a conversation has not been given; as `look` last saw it."""
        return conversation in self._answered

    def pending(self, conversation: str) -> list[tuple[str, Message]]:
        """Answers by people that a conversation has not been given yet; as `look` last saw it."""
        return review.pending(self.store, conversation) if conversation in self._answered else []

    def delivered(self, ids: Sequence[str]) -> None:
        """These answers are on their way to the user."""
        review.delivered(self.store, ids)
        self.look()

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
        with contextlib.suppress(TutelageError):
            await asyncio.to_thread(self.tenancy.sync)
        await asyncio.to_thread(self.telemetry.close)
        for each in self._all:
            await each.pipeline.close(upstream=False)
        for upstream in self._upstreams.values():
            await upstream.close()
        await self._away.close()
        try:
            self.writer.close()
        finally:
            self.store.close()
