"""The serving path: guards read the request while the answer begins; the answer leaves through the barrier alone.

`Pipeline.serve` gives chunks that may be sent as they are. Everything that happened is handed to `record` at the end,
also when the client went away.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import aclosing, suppress
from functools import partial
from typing import Any, TypeVar

from tutelage.core.errors import Busy
from tutelage.core.records import Decision, Message, Span, Verdict
from tutelage.guard import tools
from tutelage.guard.barrier import stops
from tutelage.guard.breaker import Breakers
from tutelage.guard.cascade import Said, doubts, note
from tutelage.guard.lane import PIECE, Lane
from tutelage.guard.policy import Policy
from tutelage.guard.request import Answer, Ask, Chunk, Ending, Finished, Meter
from tutelage.guard.scan import Piece, Scan, Scanner, Seen, pieces, redacted
from tutelage.guard.upstream import EngineUpstream, Misbehaved, Upstream
from tutelage.guard.vault import Vault
from tutelage.guard.work import Work, told, worded
from tutelage.guard.written import PII, Direction, Surface, Where
from tutelage.judge.judge import failed
from tutelage.text.leaves import replanted, written
from tutelage.text.pii import find, redact, united

UNARY = 48
"""Characters gathered before the guards look again when nobody watches the stream."""
FEW = 32
"""Texts of one request that are read and decided on at once on the event loop; more of them beside it."""
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
        standing: what its guards rest on, as clients are told.
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
        standing: str = "",
        vaults: Callable[[str], Vault] | None = None,
        record: Callable[[Finished], Future[None] | None] | None = None,
    ) -> None:
        self.scanner, self.upstream, self.system = scanner, upstream, system
        self.release, self.model, self.standing = release, model, standing
        self._key = key
        self._vaults = vaults or (lambda conversation: Vault(key, conversation))
        self._record = record
        self._breakers = Breakers()
        self._vaulting = ThreadPoolExecutor(4, "vault")
        self._open: set[asyncio.Queue[Chunk | BaseException]] = set()

    @property
    def policy(self) -> Policy:
        """The policy in force."""
        return self.scanner.policy

    @property
    def breakers(self) -> Breakers:
        """The rooms in which slow guards are asked."""
        return self._breakers

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

    async def examine(
        self, messages: Sequence[Message], answer: str | None = None, *, surface: Surface = "scan", tenant: str = ""
    ) -> Scan:
        """`scan` beside the event loop, each guard within its budget."""
        at = Where("input", "content", surface, tenant)
        seen = await self._read(pieces(messages), at)
        if answer is None:
            return Scan(seen)
        return Scan(seen, await self._read([Piece("content", answer)], at._replace(direction="output")))

    async def serve(self, ask: Ask, meter: Meter | None = None) -> AsyncGenerator[Chunk]:
        """The guarded answers, in chunks that may be sent as they are; `meter` follows what they cost.

        Raises Misbehaved, TooLong: errors whose message is in our own words; Busy when the store does not answer,
        Ending when the service is being stopped.
        """
        started = time.perf_counter()
        meter = Meter() if meter is None else meter
        at = Where("input", "content", ask.surface, ask.tenant)
        vault = self._vaults(self.conversation(ask))
        beside = tools.told(ask.wants)
        found = pieces((*ask.messages, *beside))
        personal = await self._personal(ask, found)
        verdict = asyncio.ensure_future(self._read(found, at, personal))
        verdict.add_done_callback(_heard)
        try:
            early = self._spans(at, found, personal) or await verdict  # unread, it goes to no model
            shown = (*ask.messages, *beside)
            if early.redactions:
                shown = await self._in_vault(partial(redacted, shown, early.redactions, vault.mask))
            masked, beside = shown[: len(ask.messages)], shown[len(ask.messages) :]
            wants, trace = tools.retold(ask.wants, beside), (*tools.transcript(beside), *masked)
        except BaseException:
            verdict.cancel()
            raise
        answers = [Answer(index) for index in range(ask.sampling.n)]
        made = list(answers)
        queue: asyncio.Queue[Chunk | BaseException] = asyncio.Queue(64)
        work = [Work(ask, wants, masked, vault, verdict, each, made, queue, meter) for each in answers]
        self._open.add(queue)
        tasks = [asyncio.ensure_future(self._answer(each)) for each in work]
        open_answers, error = len(tasks), ""
        promises: list[Chunk] = []
        try:
            while open_answers:
                chunk = await queue.get()
                if isinstance(chunk, BaseException):
                    error = told(chunk)
                    raise chunk
                if chunk.finish is not None:
                    open_answers -= 1
                    if open_answers and chunk.decision is not None and chunk.decision.action == "review":
                        promises.append(chunk)
                        continue
                    if not open_answers:
                        kept = self._finish(ask, trace, await verdict, made, started, "")
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
                for unfinished in work:
                    unfinished.note()
                done = verdict.done() and not verdict.cancelled() and not verdict.exception()
                seen = verdict.result() if done else early
                with suppress(Busy):  # nobody hears it any more; the writer counts what it has no room for
                    self._finish(ask, trace, seen, made, started, error or "the client went away")

    async def _personal(self, ask: Ask, found: Sequence[Piece]) -> list[Verdict]:
        """Personal data alone, first: the model begins on the masked conversation, while other guards still read."""
        if not any(bound.rule.pii for bound in self.policy.rules(ask.tenant)):
            return []
        return await self._ask(PII, found, "input")

    def _spans(self, at: Where, found: Sequence[Piece], said: Sequence[Verdict]) -> Seen | None:
        """What of these texts is masked before the model sees them; None if they could not be read in time."""
        if any(verdict.status != "ok" for verdict in said):
            return None
        spans: dict[tuple[int, str], list[Span]] = {}
        said = said or [Verdict(judge=PII)] * len(found)
        for piece, verdict in zip(found, said, strict=True):
            for where, span in piece.placed(self.policy.personal(at._replace(channel=piece.channel), verdict)):
                spans.setdefault(where, []).append(span)
        cuts = {where: united(found) for where, found in spans.items()}
        return Seen(Decision(action="allow", policy=self.policy.hash), redactions=cuts)

    async def _read(self, found: Sequence[Piece], at: Where, personal: Sequence[Verdict] = ()) -> Seen:
        """All guards on all texts; each within its budget, else its verdict is `timeout`. `personal`: what the guard of
        personal data has said of them already."""
        names = sorted(self.scanner.needed(found, at))
        asked = [name for name in names if name in self.scanner.judges and not (name == PII and personal)]
        heard = await asyncio.gather(*(self._ask(name, found, at.direction) for name in asked))
        said: Said = {name: [*verdicts] for name, verdicts in zip(asked, heard, strict=True)}
        if PII in names and personal:
            said[PII] = [*personal]
        places = [at._replace(channel=piece.channel) for piece in found]
        while unsure := doubts(self.policy, places, said):
            for name, indexes in unsure.items():
                told = await self._ask(name, [found[index] for index in indexes], at.direction)
                note(said, name, indexes, told, len(found))
        said = {name: said[name] for name in sorted(said)}
        if len(found) <= FEW:
            return self.scanner.decide(found, at, said)
        return await asyncio.to_thread(self.scanner.decide, found, at, said)

    async def _ask(self, name: str, found: Sequence[Piece], direction: Direction) -> list[Verdict]:
        """A guard's word on texts. One of bounded cost reads a few short ones at once; each has its budget for every
        PIECE of long ones, and for every FEW of many."""
        judge, budget, quick = (
            self.scanner.judges[name],
            self.policy.budget(name),
            self.scanner.quick([name]),
        )
        parts = 1 + sum(len(piece.text) for piece in found) // PIECE + len(found) // FEW
        work = partial(self.scanner.verdicts, name, judge, direction, found)
        if quick and parts == 1:
            return work()
        try:
            return await self._breakers.call(name, work, parts * budget)
        except TimeoutError:
            return [failed(name, "timeout", budget) for _ in found]

    async def _in_vault(self, work: Callable[[], T]) -> T:
        """Read or write the vault, whose store may be held by another, in a thread of its own. Raises Busy."""
        running = asyncio.get_running_loop().run_in_executor(self._vaulting, work)
        try:
            async with asyncio.timeout(VAULT_S):
                return await running
        except TimeoutError:
            todo = "Try again in a moment"
            raise Busy("personal data can not be masked now: the store does not answer", todo=todo) from None

    async def _answer(self, work: Work) -> None:
        """Make one answer and put its chunks into the queue; the last has a finish, or it is an exception."""
        try:
            await self._write(work)
        except asyncio.CancelledError:
            raise
        except Exception as error:
            await work.queue.put(worded(error))

    async def _write(self, work: Work) -> None:
        ask, answer, verdict = work.ask, work.answer, work.verdict
        conversation = (*((Message(role="system", content=self.system),) if self.system else ()), *work.masked)
        if verdict.done() and await self._withheld(work, await verdict):
            return
        for attempt in range(2):
            pump = asyncio.ensure_future(self._pump(work, conversation, attempt))
            pump.add_done_callback(_heard)
            try:
                await asyncio.wait((pump, verdict), return_when=asyncio.FIRST_COMPLETED)
                seen = await verdict if verdict.done() or pump.done() else None
                work.note()
                if seen is not None and await self._withheld(work, seen):
                    return
                stopped = await pump
                work.note()
            finally:
                pump.cancel()
            if stopped is None:
                await work.queue.put(Chunk(answer.index, "", answer.finish, answer.decision, work.usage))
                return
            if stopped.action == "rewrite" and not answer.left and attempt == 0:
                hint = Message(role="system", content=self.policy.instruction(stopped, ask.language, ask.tenant))
                conversation = (*conversation, hint)
                work.again()
                continue
            text = "" if answer.left else self.message(ask, stopped)
            await self._last(work, text, stopped)
            return

    async def _withheld(self, work: Work, seen: Seen) -> bool:
        """End the answer if the guards stop the request itself."""
        if not stops(seen.decision):
            return False
        await self._last(work, self.message(work.ask, seen.decision), seen.decision)
        return True

    def message(self, ask: Ask, decision: Decision) -> str:
        """What the user reads instead. A person's answer is promised only where it can be delivered."""
        if decision.action == "review" and not ask.deliverable:
            decision = decision.model_copy(update={"action": "block"})
        return self.policy.message(decision, ask.language, ask.tenant, ask.text)

    async def receive(self, ask: Ask) -> Decision:
        """Take a message that a person is to answer: it is read by the guards, masked and kept like any other, and
        nothing is generated. Where the guards stop it, it waits for nobody. Raises Busy when it cannot be kept."""
        started = time.perf_counter()
        vault = self._vaults(self.conversation(ask))
        seen = await self._read(pieces(ask.messages), Where("input", "content", ask.surface, ask.tenant))
        masked = ask.messages
        if seen.redactions:
            masked = await self._in_vault(partial(redacted, ask.messages, seen.redactions, vault.mask))
        held = not stops(seen.decision) or seen.decision.action == "review"
        answer = Answer(0, finish="blocked")
        kept = self._finish(ask, masked, seen, [answer], started, "", held)
        if kept is not None:
            await _promised(kept)
        return seen.decision

    async def opened(self, ask: Ask, text: str) -> str:
        """A person's words with this conversation's placeholders opened, as the model's words are."""
        vault = self._vaults(self.conversation(ask))
        return text if vault.ready(text) else await self._in_vault(partial(vault.unmask, text))

    def _lane(self, conversation: Sequence[Message], at: Where, vault: Vault) -> Lane:
        watchers = self.scanner.watchers(conversation, at)
        slow = frozenset(name for name in watchers if not self.scanner.quick([name]))
        further = self.scanner.further(conversation, at)
        return Lane(self.policy, watchers, slow, at, self._breakers, vault, self._in_vault, further)

    async def _pump(self, work: Work, conversation: Sequence[Message], attempt: int) -> Decision | None:
        """Bring an answer through the barriers of its channels; the decision that stopped it, if one did.

        Nothing is put into the queue before the guards have let the request itself pass.
        """
        ask, answer = work.ask, work.answer
        at = Where("output", "content", ask.surface, ask.tenant)
        lanes = work.lanes = {"content": self._lane(conversation, at, work.vault)}
        least, tokens = 1 if ask.stream else UNARY, isinstance(self.upstream, EngineUpstream)
        count = 0
        sample = answer.index + attempt * ask.sampling.n
        async with aclosing(self.upstream.stream(conversation, ask.sampling, sample, work.wants)) as deltas:
            async for delta in deltas:
                last = delta.finish is not None
                if delta.call is not None:
                    count += 1
                    self._take(work, delta.call)
                    work.count(delta, max(count, work.calls.size // 4))
                    continue
                if delta.channel not in lanes:
                    lanes[delta.channel] = self._lane(conversation, at._replace(channel=delta.channel), work.vault)
                lane = lanes[delta.channel]
                lane.take(delta.text, tokens, delta.logprobs)
                count += 1
                work.count(delta, max(count, sum(each.size for each in lanes.values()) // 4))
                if not last and len(lane.waiting) < least:
                    continue
                # what was thought before what was said, where both end here
                for each in sorted(lanes.values(), key=lambda one: one is lanes["content"]) if last else [lane]:
                    passed = await each.show(last)
                    if (passed.text or last) and not stops((await asyncio.shield(work.verdict)).decision):
                        text = await each.open(passed.text, last)
                        due = () if passed.stop is not None else each.due(last)
                        await work.send(each.barrier.at.channel, text, due)
                    if passed.stop is not None:
                        return passed.stop
                if delta.finish is not None:
                    if work.calls.parts and (stop := await self._call(work, at)) is not None:
                        return stop
                    answer.finish = delta.finish
                    if delta.finish in ("stop", "tool"):  # some say the one, some the other
                        answer.finish = "tool" if work.calls.parts else "stop"
                    return None
        raise Misbehaved("the upstream ended its answer without a finish")

    def _take(self, work: Work, part: tools.CallPart) -> None:
        try:
            work.calls.take(part)
        except tools.Untold as wrong:
            raise Misbehaved(f"the upstream's answer can not be used: {wrong}") from None

    async def _call(self, work: Work, at: Where) -> Decision | None:
        """Bring the calls of an answer before the guards, all at once, and send what may leave of them; the decision
        that stops them, if one does."""
        ask, answer = work.ask, work.answer
        try:
            called = work.calls.read(work.wants.tools)
        except tools.Untold as wrong:
            raise Misbehaved(f"the upstream's answer can not be used: {wrong}") from None
        texts, found = tools.said(called)
        seen = work.called = await self._read(found, at._replace(channel="tool_call")) if found else None
        cuts = {field: spans for (_, field), spans in seen.redactions.items()} if seen else {}
        personal = [redact(text, find(text)) for text in texts]  # for the trace, whatever the policy says
        clean = [redact(text, cuts.get(f"parts.{index}.text", ())) for index, text in enumerate(texts)]
        ids = [tools.call_id(ask.id, answer.index, index) for index in range(len(called))]
        answer.calls = tools.kept(self._refilled(called, personal), ids)
        if seen is not None and stops(seen.decision):
            return seen.decision
        if stops((await asyncio.shield(work.verdict)).decision):
            return None
        if all(map(work.vault.ready, clean)):
            opened = [work.vault.unmask(text) for text in clean]
        else:
            opened = await self._in_vault(lambda: [work.vault.unmask(text) for text in clean])
        for index, (name, arguments) in enumerate(self._refilled(called, opened)):
            answer.left = True
            call = tools.Call(index, ids[index], name, written(arguments))
            await work.queue.put(Chunk(answer.index, "", channel="tool_call", call=call))
        return None

    def _refilled(self, called: Sequence[tuple[str, Any]], texts: Sequence[str]) -> list[tuple[str, Any]]:
        """The calls with other texts in the places of theirs."""
        left = iter(texts)
        return [(name, replanted(arguments, left)) for name, arguments in called]

    async def _last(self, work: Work, text: str, decision: Decision) -> None:
        """End an answer that was withheld, with the policy's message in its place."""
        answer = work.answer
        answer.finish = "blocked"
        await work.queue.put(Chunk(answer.index, text, answer.finish, decision, work.usage))

    def _finish(
        self,
        ask: Ask,
        masked: tuple[Message, ...],
        seen: Seen,
        answers: Sequence[Answer],
        started: float,
        error: str,
        held: bool = False,
    ) -> Future[None] | None:
        if self._record is None:
            return None
        spent, name = 1000 * (time.perf_counter() - started), self.conversation(ask)
        if stops(seen.decision) and any(bound.rule.pii for bound in self.policy.rules(ask.tenant)):
            masked = tuple(_without_personal(each) for each in masked)  # a rule that stops a text has masked nothing
        return self._record(
            Finished(ask, self.release, self.model, seen, masked, tuple(answers), spent, error, name, held)
        )

    def stop(self) -> None:
        """End every answer that is under way, on its event loop, with an error that says why: `Ending`."""
        for queue in self._open:
            while not queue.empty():  # what was not sent yet is not sent after the end
                queue.get_nowait()
            queue.put_nowait(Ending("the service is being stopped: this answer ends here", todo="Ask again"))

    async def close(self, upstream: bool = True) -> None:
        """Let go of threads, and of the upstream unless another pipeline still has it."""
        self._breakers.close()
        self._vaulting.shutdown(wait=False, cancel_futures=True)
        if upstream:
            await self.upstream.close()


def _without_personal(message: Message) -> Message:
    parts = tuple(part.model_copy(update={"text": redact(part.text, find(part.text))}) for part in message.parts)
    said = {name: redact(text, find(text)) for name in ("content", "reasoning") if (text := getattr(message, name))}
    return message.model_copy(update={**said, "parts": parts})


async def _promised(kept: Future[None]) -> None:
    """Wait until it is on disk that a person is to answer. Raises Busy when the store takes too long over it."""
    try:
        async with asyncio.timeout(PROMISE_S):
            await asyncio.wrap_future(kept)
    except TimeoutError:
        todo = "Try again in a moment"
        raise Busy("a person can not be asked now: the store does not answer", todo=todo) from None


def _heard(task: asyncio.Future[Any]) -> None:
    """Take note of how a task ended, so that one that nobody waits for any more does not complain."""
    if not task.cancelled():
        task.exception()
