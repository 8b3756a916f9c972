"""One answer being made: what its channels come to, what it costs, and what of it is sent."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace

from tutelage.core.errors import UpstreamError
from tutelage.core.records import Decision, Message
from tutelage.guard.lane import Lane
from tutelage.guard.policy import strictest
from tutelage.guard.request import Answer, Ask, Chunk, Meter
from tutelage.guard.scan import Seen
from tutelage.guard.tools import Calls, LogProb, Wants
from tutelage.guard.upstream import Delta, Misbehaved
from tutelage.guard.vault import Vault
from tutelage.guard.written import Channel
from tutelage.text.pii import find, redact, united


@dataclass
class Work:
    """One answer being made."""

    ask: Ask
    wants: Wants
    """What is asked beside the conversation, as the model may see it."""
    masked: tuple[Message, ...]
    vault: Vault
    verdict: asyncio.Future[Seen]
    answer: Answer
    made: list[Answer]
    """All answers of the request; a try that was withheld is added to them."""
    queue: asyncio.Queue[Chunk | BaseException]
    meter: Meter
    lanes: dict[Channel, Lane] = field(default_factory=dict)
    """The channels of the try under way."""
    calls: Calls = field(default_factory=Calls)
    """The tools it calls, held back whole."""
    called: Seen | None = None
    """What the guards made of them."""
    before: int = 0
    """Tokens of a try before this one."""
    counted: int = 0
    """Tokens of this try that the meter knows of."""

    @property
    def usage(self) -> tuple[int, int]:
        """Tokens of the prompt and of all tries, as the upstream counts them."""
        return self.answer.usage[0], self.before + self.answer.usage[1]

    def count(self, delta: Delta, guess: int) -> None:
        """Take note of what was written so far: as the upstream says, or as a guess."""
        if delta.prompt or delta.completion:
            self.answer.usage = (delta.prompt, delta.completion)
        now = delta.completion or guess
        self.meter.prompt = max(self.meter.prompt, delta.prompt)
        self.meter.written += now - self.counted
        self.counted = now

    def note(self) -> None:
        """What the channels have come to, for the trace: as far as the guards have read."""
        if not self.lanes:
            return
        answer, content = self.answer, self.lanes["content"]
        found, at = [lane.barrier for lane in self.lanes.values()], content.barrier.at
        decided = [each.decision for each in found] + ([self.called.decision] if self.called else [])
        answer.made = content.made[: content.read]
        if thought := self.lanes.get("reasoning"):
            text = thought.made[: thought.read]
            answer.reasoning = redact(text, find(text))
        reasons = dict.fromkeys(reason for each in decided for reason in each.reasons)
        action = strictest(each.action for each in decided)
        cuts = content.barrier.decision.redactions
        if content.barrier.masks:  # a guard that had not settled on them yet, or that stops what it finds, cut nothing
            cuts = united([*cuts, *find(answer.made)])
        told = {"action": action, "reasons": tuple(reasons), "redactions": cuts}
        answer.decision = content.barrier.decision.model_copy(update=told)
        answer.verdicts = content.barrier.verdicts
        beside = [(each.at.channel, each.decision, each.verdicts) for each in found if each.at != at]
        if self.called:
            beside.append(("tool_call", self.called.decision, self.called.verdicts))
        answer.beside = tuple(beside)

    async def send(self, channel: Channel, text: str, logprobs: tuple[LogProb, ...] = ()) -> None:
        """Text that may leave, with what placeholders stand for."""
        self.answer.left = self.answer.left or bool(text)
        if text or logprobs:
            await self.queue.put(Chunk(self.answer.index, text, channel=channel, logprobs=logprobs))

    def again(self) -> None:
        """The answer was withheld and is written anew: this try stays in the trace, numbered behind the answers."""
        self.made.append(replace(self.answer, index=self.answer.index + self.ask.sampling.n, finish="blocked"))
        self.before, self.counted = self.before + self.counted, 0
        self.answer.made = self.answer.reasoning = ""
        self.answer.calls = ()
        self.lanes, self.calls, self.called = {}, Calls(), None
        self.answer.decision, self.answer.verdicts, self.answer.beside = Decision(action="allow"), (), ()
        self.answer.usage = (self.answer.usage[0], 0)


def worded(error: Exception) -> Exception:
    """The error in our own words: what another program said may hold what no guard has read."""
    if isinstance(error, UpstreamError) and not isinstance(error, Misbehaved):
        return Misbehaved("the upstream failed", said=str(error))
    return error


def told(error: BaseException) -> str:
    """The error for the trace, with what the other side said; personal data is out of it."""
    said = str(getattr(error, "said", ""))
    return f"{error} (it said: {redact(said, find(said))})" if said else str(error)
