"""A bundle, opened: its guards under its policy, and its pipeline behind a synchronous face, the generator that
evaluation and red team address as `bundle:<id>` or `release:current`."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from tutelage.core import refs
from tutelage.core.artifact import Artifact, Root
from tutelage.core.errors import NotFound
from tutelage.core.records import Example, Message, Response
from tutelage.generate.generator import Generator, Sampling, Scored, let_go, weigh_texts
from tutelage.guard.pipeline import Pipeline
from tutelage.guard.policy import Guard, Policy
from tutelage.guard.pool import open_upstream
from tutelage.guard.request import Ask, Chunk
from tutelage.guard.scan import Scanner
from tutelage.guard.upstream import EngineUpstream, TooLong
from tutelage.guard.written import Category, PolicyFile, Rule, Taxonomy, When
from tutelage.judge.classifier import ClassifierJudge
from tutelage.judge.judge import Judge
from tutelage.store import releases
from tutelage.text.pii import TYPES

T = TypeVar("T")


BARE = PolicyFile(
    rules=(
        Rule(id="personal-data-in", when={"direction": "input"}, pii="all", action="redact"),
        Rule(id="personal-data-out", when={"direction": "output"}, pii="all", action="redact"),
    )
)
"""What holds for an upstream before any guard was trained: rules alone."""


def bare() -> Scanner:
    """The guards of a service without a bundle."""
    return Scanner(Policy(BARE, Taxonomy(categories={})), {})


def stand(policy: Policy, switches: Mapping[str, str], expired: Collection[str]) -> None:
    """Tell a policy how its guards stand: who was put into shadow, and whose certificates (by id) hold no longer."""
    policy.shadowed = frozenset(each.name for each in policy.guards if switches.get(each.name) == "shadow")
    policy.expired = frozenset(policy.file.expired) | frozenset(expired)


@dataclass(frozen=True)
class Parts:
    """What a bundle is made of, opened."""

    scanner: Scanner
    system: str
    model: str
    """Reference of the model; empty when the bundle is guards alone."""
    name: str


def open_parts(artifact: Artifact, root: Root, policy_file: Path | None = None) -> Parts:
    """Open a bundle's classifiers and policy, or another policy with its guards. Raises ConfigError where the policy
    names what cannot be guarded, CorruptArtifact where a sealed file is no longer what was sealed."""
    spec = json.loads(artifact.verified().file("bundle.json").read_text(encoding="utf-8"))
    judges: dict[str, Judge] = {}
    for id_ in spec["classifiers"]:
        judge = ClassifierJudge(root.find(f"classifier:{id_}").verified().path)
        judge.warm()
        judges[judge.name] = judge
    path = policy_file or artifact.file("policy.yaml")
    policy = Policy.load(path, [guard_of(judge) for judge in judges.values() if isinstance(judge, ClassifierJudge)])
    shadow = {ref: refs.open(ref, root) for ref in policy.file.shadow}
    return Parts(
        Scanner(policy, judges, shadow),
        spec.get("system", ""),
        f"model:{spec['model']}" if spec["model"] else "",
        artifact.ref[:19],
    )


def alone(judge: ClassifierJudge) -> Scanner:
    """A classifier without a bundle: it flags from its certified thresholds on, and personal data is named."""
    rules = [Rule(id="personal", pii=TYPES, action="flag")]
    for rank in judge.certificates:
        target = min((c.target for c in judge.certificates if c.threshold is not None and (c.category, c.direction) ==
                      (rank.category, rank.direction)), key=lambda rate: abs(rate - 0.01), default=None)  # fmt: skip
        if target == rank.target:
            when = When.model_validate({"direction": rank.direction})
            name = f"{rank.direction}/{rank.category}"
            rules.append(Rule(id=name, when=when, category=rank.category, target_fpr=target, action="flag"))
    taxonomy = Taxonomy(categories={each.category: Category() for each in judge.certificates})
    policy = Policy(PolicyFile(rules=tuple(rules)), taxonomy, [guard_of(judge)])
    return Scanner(policy, {judge.name: judge})


def guard_of(judge: ClassifierJudge) -> Guard:
    """What a classifier covers, as the policy sees it."""
    directions = ("input", "output")
    categories = {each: judge.categories(each) for each in directions}
    more: Any = {name: getattr(judge, name) for name in ("tier", "bands") if hasattr(judge, name)}
    return Guard(judge.name, categories, judge.certificates, **more)


class GuardedGenerator:
    """A bundle as a generator: every answer goes the way of the service. A withheld answer has finish `blocked`.

    Likelihoods are the model's own: no text leaves by them.
    """

    def __init__(
        self,
        pipeline: Callable[[], Pipeline],
        plain: Callable[[], Generator],
        *,
        name: str,
        at_once: int = 64,
        identity: str = "",
    ) -> None:
        self.name, self._make, self._plain, self._at_once = name, pipeline, plain, at_once
        self.identity = identity
        """A hash of what answers; empty where that is not known, as of an address."""
        self._pipeline: Pipeline | None = None
        self._generator: Generator | None = None

    @property
    def pipeline(self) -> Pipeline:
        """The pipeline behind it."""
        if self._pipeline is None:
            self._pipeline = self._make()
        return self._pipeline

    def generate(self, prompts: Sequence[Example], sampling: Sampling) -> list[list[Response]]:
        """`sampling.n` guarded responses per prompt."""
        return finish(self._generate(prompts, sampling))

    async def _generate(self, prompts: Sequence[Example], sampling: Sampling) -> list[list[Response]]:
        gate = asyncio.Semaphore(max(1, self._at_once // sampling.n))

        async def one(prompt: Example) -> list[Response]:
            async with gate:
                return await self._respond(prompt, sampling)

        try:
            return list(await asyncio.gather(*(one(prompt) for prompt in prompts)))
        finally:
            if not isinstance(self.pipeline.upstream, EngineUpstream):
                await self.pipeline.upstream.close()  # its connections belong to this run's event loop

    async def _respond(self, prompt: Example, sampling: Sampling) -> list[Response]:
        texts, ends = [""] * sampling.n, [Chunk(index, "", "error") for index in range(sampling.n)]
        why = ""
        try:
            async for chunk in self.pipeline.serve(Ask(tuple(prompt.messages), sampling, id="")):
                texts[chunk.choice] += chunk.text if chunk.channel == "content" else ""
                if chunk.finish is not None:
                    ends[chunk.choice] = chunk
        except TooLong as error:
            why = error.said or error.message
        return [
            Response(
                message=Message(role="assistant", content=text),
                finish=end.finish or "error",
                usage={"prompt_tokens": end.usage[0], "completion_tokens": end.usage[1]},
                generator=self.name,
                seed=sampling.seed,
                error=why if end.finish == "error" else "",
            )
            for text, end in zip(texts, ends, strict=True)
        ]

    def loglikelihood(self, prompts: Sequence[Example], choices: Sequence[Sequence[str]]) -> list[list[Scored]]:
        """As the model behind the guards weighs them."""
        return self._weighing.loglikelihood(prompts, choices)

    def rolling(self, prompts: Sequence[Example], stride: int = 0) -> list[Scored]:
        """As the model behind the guards weighs them. Raises UsageError where it weighs no running text."""
        return weigh_texts(self._weighing, prompts, stride)

    def close(self) -> None:
        """Let go of threads, connections and engines; asked again, it opens them anew."""
        pipeline, generator = self._pipeline, self._generator
        self._pipeline = self._generator = None
        if pipeline is not None:
            finish(pipeline.close())
        if generator is not None:
            let_go(generator)

    @property
    def _weighing(self) -> Generator:
        if self._generator is None:
            self._generator = self._plain()
        return self._generator


def finish(work: Coroutine[Any, Any, T]) -> T:
    """Run to the end from synchronous code; in a thread of its own where this one has a loop, as in a notebook."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with ThreadPoolExecutor(1) as aside:
        return aside.submit(asyncio.run, work).result()


def open_bundle(ref: str, root: Root | None = None, **options: Any) -> GuardedGenerator:
    """Open `bundle:<id>` as a generator. Option `upstream`: another reference that answers instead of its model."""
    where = root or Root("life")
    artifact = where.find(ref)
    parts = open_parts(artifact, where)
    model = str(options.get("upstream") or parts.model)
    if not model:
        raise NotFound(
            f"{artifact.ref[:19]} has guards and no model", todo="Put it before one: `tutelage guard up URL`"
        )
    key = hmac.new(where.secret, b"tutelage/conversation", hashlib.sha256).digest()

    def pipeline() -> Pipeline:
        upstream = open_upstream(model, where)
        return Pipeline(parts.scanner, upstream, key=key, system=parts.system, release=artifact.ref, model=parts.name)

    identity = f"{artifact.ref} {model}" if model.startswith("model:") else ""
    return GuardedGenerator(pipeline, lambda: refs.open(model, where), name=artifact.ref[:19], identity=identity)


def open_release(ref: str, root: Root | None = None, **options: Any) -> GuardedGenerator:
    """Open `release:current`, or `release:<id>`, as a generator."""
    where = root or Root("life")
    return open_bundle(bundle_of(ref, where), where, **options)


def bundle_of(ref: str, root: Root) -> str:
    """The bundle that a reference names: itself, or what a release points to. Raises NotFound before any release."""
    if not ref.startswith("release:"):
        return ref
    name = ref.partition(":")[2]
    store = refs.open("store:", root, writable=False)
    try:
        found = releases.current(store) if name == "current" else releases.get(store, name)
    finally:
        store.close()
    if found is None:
        todo = "Run the recipe to its end, or promote one: `tutelage release promote bundle:<id>`"
        raise NotFound("nothing has been released yet", todo=todo)
    return found.bundle if ":" in found.bundle else f"bundle:{found.bundle}"
