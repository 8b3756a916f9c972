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
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import aclosing, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from tutelage.core import refs
from tutelage.core.artifact import Artifact, Root
from tutelage.core.errors import Busy, NotFound, UpstreamError
from tutelage.core.records import Decision, Example, Message, Response, Verdict
from tutelage.generate.generator import Generator, Sampling, Scored, weigh_texts
from tutelage.guard.barrier import Barrier, Passed, stops
from tutelage.guard.policy import PII, Guard, Policy, Surface, Where
from tutelage.guard.request import Answer, Ask, Chunk, Ending, Finished
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
PIECE = 4096
"""Characters that guards of bounded cost read on the event loop at once; for each as many they have their budget."""
VAULT_S = 5.0
"""Seconds the store may take over what placeholders stand for."""
PROMISE_S = 5.0
"""Seconds the store may take over a request that a person is to answer, before it is refused."""
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
        record: called with every finished request; may raise Full, then the request fails. Where a person is to answer
            it gives a future, and nobody is told so before that is done.
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
        record: Callable[[Finished], Future[None] | None] | None = None,
    ) -> None:
        self.scanner, self.upstream, self.system = scanner, upstream, system
        self.release, self.model = release, model
        self._key = key
        self._vaults = vaults or (lambda conversation: Vault(key, conversation))
        self._record = record
        self._threads = ThreadPoolExecutor(8, "guard")
        self._vaulting = ThreadPoolExecutor(4, "vault")
        self._open: set[asyncio.Queue[Chunk | BaseException]] = set()

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
        """The guarded answers, in chunks that may be sent as they are.

        Raises UpstreamError, TooLong, Busy when the store does not answer, Ending when the service is being stopped.
        """
        started = time.perf_counter()
        at = Where("input", "content", ask.surface, ask.tenant)
        vault = self._vaults(self.conversation(ask))
        found = pieces(ask.messages)
        personal = await self._personal(ask, found)
        verdict = asyncio.ensure_future(self._input(at, found, personal))
        verdict.add_done_callback(_heard)
        try:
            early = self._spans(at, found, personal) or await verdict  # unread, it goes to no model
            masked = ask.messages
            if early.redactions:
                masked = await self._in_vault(partial(redacted, ask.messages, early.redactions, vault.mask))
        except BaseException:
            verdict.cancel()
            raise
        answers = [Answer(index) for index in range(ask.sampling.n)]
        queue: asyncio.Queue[Chunk | BaseException] = asyncio.Queue(64)
        self._open.add(queue)
        tasks = [asyncio.ensure_future(self._answer(ask, masked, vault, verdict, each, queue)) for each in answers]
        open_answers, error = len(tasks), ""
        promises: list[Chunk] = []
        try:
            while open_answers:
                chunk = await queue.get()
                if isinstance(chunk, BaseException):
                    error = str(chunk)
                    raise chunk
                if chunk.finish is not None:
                    open_answers -= 1
                    if open_answers and chunk.decision is not None and chunk.decision.action == "review":
                        promises.append(chunk)
                        continue
                    if not open_answers:
                        kept = self._finish(ask, masked, await verdict, answers, started, "")
                        if kept is not None:
                            await _promised(kept)
                        for each in promises:
                            yield each
                yield chunk
        except BaseException as fault:
            error = error or type(fault).__name__
            raise
        finally:
            self._open.discard(queue)
            for task in (*tasks, verdict):
                task.cancel()
            if open_answers:
                done = verdict.done() and not verdict.cancelled() and not verdict.exception()
                seen = verdict.result() if done else early
                with suppress(Busy):  # nobody hears it any more; the writer counts what it has no room for
                    self._finish(ask, masked, seen, answers, started, error or "the client went away")

    async def _personal(self, ask: Ask, found: Sequence[Piece]) -> list[Verdict]:
        """Personal data alone, first: the model begins on the masked conversation, while other guards still read."""
        if not any(bound.rule.pii for bound in self.policy.rules(ask.tenant)):
            return []
        return await self._ask(PII, found)

    def _spans(self, at: Where, found: Sequence[Piece], said: Sequence[Verdict]) -> Seen | None:
        """What of these texts is masked before the model sees them; None if they could not be read in time."""
        if any(verdict.status != "ok" for verdict in said):
            return None
        spans = {}
        said = said or [Verdict(judge=PII)] * len(found)
        for piece, verdict in zip(found, said, strict=True):
            cut = self.policy.personal(at._replace(channel=piece.channel), verdict)
            if cut and piece.message is not None:
                spans[piece.message, piece.field] = cut
        return Seen(Decision(action="allow", policy=self.policy.hash), redactions=spans)

    async def _input(self, at: Where, found: Sequence[Piece], personal: list[Verdict]) -> Seen:
        """All guards on everything the client sent; each within its budget, else its verdict is `timeout`."""
        names = sorted(self.scanner.needed(found, at))
        asked = [name for name in names if name in self.scanner.judges and not (name == PII and personal)]
        said = dict(zip(asked, await asyncio.gather(*(self._ask(name, found) for name in asked)), strict=True))
        if PII in names and personal:
            said[PII] = personal
        return self.scanner.decide(found, at, {name: said[name] for name in names if name in said})

    async def _ask(self, name: str, found: Sequence[Piece]) -> list[Verdict]:
        judge = self.scanner.judges[name]
        quick = self.scanner.quick([name])
        parts = 1 + sum(len(piece.text) for piece in found) // PIECE if quick else 1
        if quick and parts == 1:
            return self.scanner.verdicts(name, judge, "input", found)
        try:
            return await self._within(lambda: self.scanner.verdicts(name, judge, "input", found), parts)
        except TimeoutError:
            return [failed(name, "timeout", self.policy.file.defaults.budget_ms) for _ in found]

    async def _within(self, work: Callable[[], T], parts: int = 1) -> T:
        """Run a guard that may be slow in a thread of its own; TimeoutError when it exceeds the policy's budget.

        A guard of bounded cost has the budget for each of so many parts of a long text.
        """
        running = asyncio.get_running_loop().run_in_executor(self._threads, work)
        return await asyncio.wait_for(running, parts * self.policy.file.defaults.budget_ms / 1000)

    async def _in_vault(self, work: Callable[[], T]) -> T:
        """Read or write the vault, whose store may be held by another, in a thread of its own. Raises Busy."""
        running = asyncio.get_running_loop().run_in_executor(self._vaulting, work)
        try:
            return await asyncio.wait_for(running, VAULT_S)
        except TimeoutError:
            todo = "Try again in a moment"
            raise Busy("personal data can not be masked now: the store does not answer", todo=todo) from None

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
        if verdict.done() and await self._withheld(ask, await verdict, answer, queue):
            return
        for attempt in range(2):
            answer.made = ""
            barrier, opened = self._barrier(conversation, at), Unmasker(vault)
            work = self._pump(ask, conversation, barrier, opened, verdict, answer, queue, attempt)
            pump = asyncio.ensure_future(work)
            pump.add_done_callback(_heard)
            try:
                await asyncio.wait((pump, verdict), return_when=asyncio.FIRST_COMPLETED)
                seen = await verdict if verdict.done() or pump.done() else None
                if seen is not None and await self._withheld(ask, seen, answer, queue):
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

    async def _withheld(
        self, ask: Ask, seen: Seen, answer: Answer, queue: asyncio.Queue[Chunk | BaseException]
    ) -> bool:
        """End the answer if the guards stop the request itself."""
        if not stops(seen.decision):
            return False
        answer.finish = "blocked"
        await self._last(queue, answer, self.policy.message(seen.decision, ask.language, ask.tenant), seen.decision)
        return True

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
                passed = await self._fed(barrier, waiting, quick)
                waiting = ""
                if delta.finish is not None and passed.stop is None:
                    answer.finish = delta.finish
                    end = await self._guarded(barrier, barrier.close, quick)
                    passed = Passed(passed.text + end.text, end.stop)
                if passed.text and not stops((await asyncio.shield(verdict)).decision):
                    if not opened.ready(passed.text):
                        await self._in_vault(opened.load)
                    text = opened.feed(passed.text)
                    answer.text, answer.shown = answer.text + text, answer.shown + passed.text
                    if text:
                        await queue.put(Chunk(answer.index, text))
                if passed.stop is not None or delta.finish is not None:
                    return passed.stop
        raise UpstreamError("the upstream ended its answer without a finish")

    async def _fed(self, barrier: Barrier, text: str, quick: bool) -> Passed:
        """Text through the barrier, a piece at a time: between those of a long one other requests go on."""
        passed = await self._guarded(barrier, partial(barrier.feed, text[:PIECE]), quick)
        out = [passed.text]
        for start in range(PIECE, len(text), PIECE):
            if passed.stop is not None:
                break
            await asyncio.sleep(0)
            passed = await self._guarded(barrier, partial(barrier.feed, text[start : start + PIECE]), quick)
            out.append(passed.text)
        return Passed("" if passed.stop is not None else "".join(out), passed.stop)

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
    ) -> Future[None] | None:
        if self._record is None:
            return None
        spent, name = 1000 * (time.perf_counter() - started), self.conversation(ask)
        return self._record(Finished(ask, self.release, self.model, seen, masked, tuple(answers), spent, error, name))

    def stop(self) -> None:
        """End every answer that is under way, on its event loop, with an error that says why: `Ending`."""
        for queue in self._open:
            while not queue.empty():  # what was not sent yet is not sent after the end
                queue.get_nowait()
            queue.put_nowait(Ending("the service is being stopped: this answer ends here", todo="Ask again"))

    async def close(self, upstream: bool = True) -> None:
        """Let go of threads, and of the upstream unless another pipeline still has it."""
        for each in (self._threads, self._vaulting):
            each.shutdown(wait=False, cancel_futures=True)
        if upstream:
            await self.upstream.close()


async def _promised(kept: Future[None]) -> None:
    """Wait until it is on disk that a person is to answer. Raises Busy when the store takes too long over it."""
    try:
        await asyncio.wait_for(asyncio.wrap_future(kept), PROMISE_S)
    except TimeoutError:
        todo = "Try again in a moment"
        raise Busy("a person can not be asked now: the store does not answer", todo=todo) from None


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
