"""The serving path: guards read the request while the answer begins; the answer leaves through the barrier alone.

`Pipeline.serve` gives chunks that may be sent as they are. Everything that happened is handed to `record` at the end,
also when the client went away. The same pipeline behind a synchronous face is the generator that evaluation and red
team address as `bundle:<id>` or `release:current`.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from tutelage.core import refs
from tutelage.core.artifact import Artifact, Root
from tutelage.core.errors import NotFound, UpstreamError
from tutelage.core.records import Decision, Example, Message, Response, Verdict
from tutelage.generate.generator import Generator, Sampling, Scored, weigh_texts
from tutelage.guard.barrier import Barrier, Passed, stops
from tutelage.guard.policy import Guard, Policy, Surface, Where
from tutelage.guard.request import Answer, Ask, Chunk, Finished
from tutelage.guard.scan import Piece, Scan, Scanner, Seen, pieces, redacted
from tutelage.guard.upstream import EngineUpstream, RemoteUpstream, TooLong, Upstream, open_upstream
from tutelage.guard.vault import Unmasker, Vault
from tutelage.judge.classifier import ClassifierJudge
from tutelage.judge.judge import Judge, failed
from tutelage.store import releases

HELD_TOKENS = 16
"""Tokens of the embedded engine that are kept back at most, however short they are."""
UNARY = 48
"""Characters gathered before the guards look again when nobody watches the stream."""
T = TypeVar("T")


class Pipeline:
    """A guarded model.

    Args:
        scanner: the guards under their policy.
        upstream: where answers come from.
        key: 32 bytes: names conversations and masks personal data.
        system: put before every conversation.
        release: which bundle or release this is, as traces name it.
        vaults: opens the vault of a conversation; a vault in memory if None.
        record: called with every finished request; may raise Full, then the request fails.
        model: the name clients call it by.
    """

    def __init__(
        self,
        scanner: Scanner,
        upstream: Upstream,
        *,
        key: bytes,
        system: str = "",
        release: str = "",
        model: str = "tutelage",
        vaults: Callable[[str], Vault] | None = None,
        record: Callable[[Finished], None] | None = None,
    ) -> None:
        self.scanner, self.upstream, self.system = scanner, upstream, system
        self.release, self.model = release, model
        self._key = key
        self._vaults = vaults or (lambda conversation: Vault(key, conversation))
        self._record = record
        self._threads = ThreadPoolExecutor(8, "guard")

    @property
    def policy(self) -> Policy:
        """The policy in force."""
        return self.scanner.policy

    def conversation(self, ask: Ask) -> str:
        """A conversation's name: given, or a keyed hash of what it began with."""
        if ask.conversation:
            name = f"{ask.tenant}\0{ask.conversation}"
        else:
            system = next((m.content for m in ask.messages if m.role == "system"), "")
            first = next((m.content for m in ask.messages if m.role in ("user", "text")), "")
            name = f"{ask.tenant}\0\0{ask.subject}\0{system}\0{first}"
        return hmac.new(self._key, name.encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()[:32]

    def scan(
        self, messages: Sequence[Message], answer: str | None = None, *, surface: Surface = "scan", tenant: str = ""
    ) -> Scan:
        """What the policy decides on a conversation and its answer; nothing is generated, nothing recorded."""
        return self.scanner.scan(messages, answer, surface=surface, tenant=tenant)

    async def serve(self, ask: Ask) -> AsyncGenerator[Chunk]:
        """The guarded answers, in chunks that may be sent as they are. Raises UpstreamError, TooLong."""
        started = time.perf_counter()
        at = Where("input", "content", ask.surface, ask.tenant)
        vault = self._vaults(self.conversation(ask))
        early = self._personal(ask, at)
        masked = redacted(ask.messages, early.redactions, vault.mask)
        answers = [Answer(index) for index in range(ask.sampling.n)]
        verdict = asyncio.ensure_future(self._input(ask, at))
        verdict.add_done_callback(_heard)
        queue: asyncio.Queue[Chunk | BaseException] = asyncio.Queue(64)
        tasks = [asyncio.ensure_future(self._answer(ask, masked, vault, verdict, each, queue)) for each in answers]
        open_answers, error = len(tasks), ""
        try:
            while open_answers:
                chunk = await queue.get()
                if isinstance(chunk, BaseException):
                    error = str(chunk)
                    raise chunk
                if chunk.finish is not None:
                    open_answers -= 1
                    if not open_answers:
                        self._finish(ask, masked, await verdict, answers, started, "")
                yield chunk
        except BaseException as fault:
            error = error or type(fault).__name__
            raise
        finally:
            for task in (*tasks, verdict):
                task.cancel()
            if open_answers:
                done = verdict.done() and not verdict.cancelled() and not verdict.exception()
                seen = verdict.result() if done else early
                self._finish(ask, masked, seen, answers, started, error or "the client went away")

    def _personal(self, ask: Ask, at: Where) -> Seen:
        """Personal data alone, at once: the model begins on the masked conversation, while other guards still read."""
        if not any(bound.rule.pii for bound in self.policy.rules(ask.tenant)):
            return Seen(Decision(action="allow", policy=self.policy.hash))
        found = pieces(ask.messages)
        said = self.scanner.verdicts("pii", self.scanner.judges["pii"], "input", found)
        spans = {}
        for piece, verdict in zip(found, said, strict=True):
            cut = self.policy.personal(at._replace(channel=piece.channel), verdict)
            if cut and piece.message is not None:
                spans[piece.message, piece.field] = cut
        return Seen(Decision(action="allow", policy=self.policy.hash), redactions=spans)

    async def _input(self, ask: Ask, at: Where) -> Seen:
        """All guards on everything the client sent; each within its budget, else its verdict is `timeout`."""
        found = pieces(ask.messages)
        names = sorted(self.scanner.needed(found, at))
        known = [name for name in names if name in self.scanner.judges]
        said = await asyncio.gather(*(self._ask(name, found) for name in known))
        return self.scanner.decide(found, at, dict(zip(known, said, strict=True)))

    async def _ask(self, name: str, found: Sequence[Piece]) -> list[Verdict]:
        judge = self.scanner.judges[name]
        if self.scanner.quick([name]):
            return self.scanner.verdicts(name, judge, "input", found)
        try:
            return await self._within(lambda: self.scanner.verdicts(name, judge, "input", found))
        except TimeoutError:
            return [failed(name, "timeout", self.policy.file.defaults.budget_ms) for _ in found]

    async def _within(self, work: Callable[[], T]) -> T:
        """Run a guard that may be slow in a thread of its own; TimeoutError when it exceeds the policy's budget."""
        running = asyncio.get_running_loop().run_in_executor(self._threads, work)
        return await asyncio.wait_for(running, self.policy.file.defaults.budget_ms / 1000)

    async def _answer(
        self,
        ask: Ask,
        masked: tuple[Message, ...],
        vault: Vault,
        verdict: asyncio.Future[Seen],
        answer: Answer,
        queue: asyncio.Queue[Chunk | BaseException],
    ) -> None:
        """Make one answer and put its chunks into the queue; the last has a finish, or it is an exception."""
        try:
            await self._write(ask, masked, vault, verdict, answer, queue)
        except asyncio.CancelledError:
            raise
        except Exception as error:
            await queue.put(error)

    async def _write(
        self,
        ask: Ask,
        masked: tuple[Message, ...],
        vault: Vault,
        verdict: asyncio.Future[Seen],
        answer: Answer,
        queue: asyncio.Queue[Chunk | BaseException],
    ) -> None:
        at = Where("output", "content", ask.surface, ask.tenant)
        conversation = (*((Message(role="system", content=self.system),) if self.system else ()), *masked)
        for attempt in range(2):
            answer.made = ""
            barrier, opened = self._barrier(conversation, at), Unmasker(vault)
            work = self._pump(ask, conversation, barrier, opened, verdict, answer, queue, attempt)
            pump = asyncio.ensure_future(work)
            pump.add_done_callback(_heard)
            try:
                await asyncio.wait((pump, verdict), return_when=asyncio.FIRST_COMPLETED)
                seen = await verdict if verdict.done() or pump.done() else None
                if seen is not None and stops(seen.decision):
                    answer.finish = "blocked"
                    text = self.policy.message(seen.decision, ask.language, ask.tenant)
                    await self._last(queue, answer, text, seen.decision)
                    return
                stopped = await pump
            finally:
                pump.cancel()
            answer.decision, answer.verdicts = barrier.decision, barrier.verdicts
            if stopped is None:
                rest = opened.close()
                answer.text += rest
                await queue.put(Chunk(answer.index, rest, answer.finish, barrier.decision, answer.usage))
                return
            if stopped.action == "rewrite" and not answer.text and attempt == 0:
                hint = Message(role="system", content=self.policy.instruction(stopped, ask.language, ask.tenant))
                conversation = (*conversation, hint)
                continue
            answer.finish = "blocked"
            text = "" if answer.text else self.policy.message(stopped, ask.language, ask.tenant)
            await self._last(queue, answer, text, stopped)
            return

    def _barrier(self, conversation: Sequence[Message], at: Where) -> Barrier:
        watchers = self.scanner.watchers(conversation, at)
        return Barrier(self.policy, watchers, at, hold_back=self.policy.file.defaults.hold_back)

    async def _pump(
        self,
        ask: Ask,
        conversation: Sequence[Message],
        barrier: Barrier,
        opened: Unmasker,
        verdict: asyncio.Future[Seen],
        answer: Answer,
        queue: asyncio.Queue[Chunk | BaseException],
        attempt: int,
    ) -> Decision | None:
        """Bring an answer through the barrier; the decision that stopped it, if one did.

        Nothing is put into the queue before the guards have let the request itself pass.
        """
        waiting, least = "", 1 if ask.stream else UNARY
        quick = self.scanner.quick(self.policy.needed(barrier.at))
        sample = answer.index + attempt * ask.sampling.n
        latest: deque[int] | None = deque(maxlen=HELD_TOKENS) if isinstance(self.upstream, EngineUpstream) else None
        async with aclosing(self.upstream.stream(conversation, ask.sampling, sample)) as deltas:
            async for delta in deltas:
                answer.made += delta.text
                waiting += delta.text
                if latest is not None:  # a delta is one token here, and so many tokens are kept back at most
                    latest.append(len(delta.text))
                    barrier.hold_back = min(self.policy.file.defaults.hold_back, sum(latest))
                if delta.prompt or delta.completion:
                    answer.usage = (delta.prompt, delta.completion)
                if delta.finish is None and len(waiting) < least:
                    continue
                passed = await self._guarded(barrier, partial(barrier.feed, waiting), quick)
                waiting = ""
                if delta.finish is not None and passed.stop is None:
                    answer.finish = delta.finish
                    end = await self._guarded(barrier, barrier.close, quick)
                    passed = Passed(passed.text + end.text, end.stop)
                if passed.text and not stops((await asyncio.shield(verdict)).decision):
                    text = opened.feed(passed.text)
                    answer.text, answer.shown = answer.text + text, answer.shown + passed.text
                    if text:
                        await queue.put(Chunk(answer.index, text))
                if passed.stop is not None or delta.finish is not None:
                    return passed.stop
        raise UpstreamError("the upstream ended its answer without a finish")

    async def _guarded(self, barrier: Barrier, step: Callable[[], Passed], quick: bool) -> Passed:
        if quick:
            return step()
        try:
            return await self._within(step)
        except TimeoutError:
            return barrier.give_up("timeout")

    async def _last(
        self, queue: asyncio.Queue[Chunk | BaseException], answer: Answer, text: str, decision: Decision
    ) -> None:
        """End an answer that was withheld, with the policy's message in its place."""
        answer.text, answer.shown = answer.text + text, answer.shown + text
        await queue.put(Chunk(answer.index, text, answer.finish, decision, answer.usage))

    def _finish(
        self,
        ask: Ask,
        masked: tuple[Message, ...],
        seen: Seen,
        answers: Sequence[Answer],
        started: float,
        error: str,
    ) -> None:
        if self._record is not None:
            spent = 1000 * (time.perf_counter() - started)
            self._record(Finished(ask, self.release, self.model, seen, masked, tuple(answers), spent, error))

    async def close(self) -> None:
        """Let go of threads and connections."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        await self.upstream.close()


def _heard(task: asyncio.Future[Any]) -> None:
    """Take note of how a task ended, so that one that nobody waits for any more does not complain."""
    if not task.cancelled():
        task.exception()


# a bundle, and its face as a generator


@dataclass(frozen=True)
class Parts:
    """What a bundle is made of, opened."""

    scanner: Scanner
    system: str
    model: str
    """Reference of the model; empty when the bundle is guards alone."""
    name: str


def open_parts(artifact: Artifact, root: Root) -> Parts:
    """Open a bundle's classifiers and policy. Raises ConfigError where the policy names what cannot be guarded,
    CorruptArtifact where a sealed file is no longer what was sealed."""
    spec = json.loads(artifact.verified().file("bundle.json").read_text(encoding="utf-8"))
    judges: dict[str, Judge] = {}
    for id_ in spec["classifiers"]:
        judge = ClassifierJudge(root.find(f"classifier:{id_}").verified().path)
        judges[judge.name] = judge
    path = artifact.file("policy.yaml")
    policy = Policy.load(path, [guard_of(judge) for judge in judges.values() if isinstance(judge, ClassifierJudge)])
    shadow = {ref: refs.open(ref, root) for ref in policy.file.shadow}
    return Parts(
        Scanner(policy, judges, shadow),
        spec.get("system", ""),
        f"model:{spec['model']}" if spec["model"] else "",
        artifact.ref[:19],
    )


def guard_of(judge: ClassifierJudge) -> Guard:
    """What a classifier covers, as the policy sees it."""
    directions = ("input", "output")
    return Guard(judge.name, {each: judge.categories(each) for each in directions}, judge.certificates)


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
            if isinstance(self.pipeline.upstream, RemoteUpstream):
                await self.pipeline.upstream.close()  # its connections belong to this run's event loop

    async def _respond(self, prompt: Example, sampling: Sampling) -> list[Response]:
        texts, ends = [""] * sampling.n, [Chunk(index, "", "error") for index in range(sampling.n)]
        why = ""
        try:
            async for chunk in self.pipeline.serve(Ask(tuple(prompt.messages), sampling, id="")):
                texts[chunk.choice] += chunk.text
                if chunk.finish is not None:
                    ends[chunk.choice] = chunk
        except TooLong as error:
            why = error.message
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
