"""Everything of a conversation that can carry harm, put before every guard, and what the policy makes of it.

All roles and channels are scanned, whole: the system prompt a client sends, every turn, reasoning, arguments and
results of tools. Turns of a user that follow each other are also read as one text, so that splitting a request over
several messages does not hide it.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from tutelage.core.records import Action, Decision, Example, Message, Record, Role, Span, Status, Verdict
from tutelage.guard.policy import PII, Channel, Direction, Policy, Surface, Where, strictest
from tutelage.judge.classifier import ClassifierJudge
from tutelage.judge.judge import Judge, Watcher, ask, highest, judged
from tutelage.judge.rules import PiiJudge


class Piece(NamedTuple):
    """One text of a conversation: where it stands, which message it is of (None: made of several), which field."""

    channel: Channel
    text: str
    message: int | None = None
    field: str = "content"


def pieces(messages: Sequence[Message]) -> list[Piece]:
    """All texts of a conversation that a guard must see."""
    found: list[Piece] = []
    turns: list[str] = []
    for index, message in enumerate(messages):
        channel: Channel = "content"
        if message.role == "system":
            channel = "system"
        elif message.role == "tool":
            channel = "tool_result"
        found.append(Piece(channel, message.content, index))
        found.append(Piece("reasoning", message.reasoning, index, "reasoning"))
        found.append(Piece(channel, message.name or "", index, "name"))
        found.append(Piece(channel, message.tool_call_id or "", index, "tool_call_id"))
        for number, part in enumerate(message.parts):
            found.append(Piece(channel, part.text, index, f"parts.{number}.text"))
        for number, call in enumerate(message.tool_calls):
            found.append(Piece("tool_call", call.id, index, f"tool_calls.{number}.id"))
            found.append(Piece("tool_call", call.name, index, f"tool_calls.{number}.name"))
            found.append(Piece("tool_call", call.arguments, index, f"tool_calls.{number}.arguments"))
        if message.role == "user":
            turns.append(message.content)
        else:
            found += _joined(turns)
            turns = []
    found += _joined(turns)
    return [piece for piece in found if piece.text]


def _joined(turns: Sequence[str]) -> list[Piece]:
    return [Piece("content", "\n".join(turns))] if len(turns) > 1 else []


class Found(Record):
    """Personal data in a text: characters `start` to `end` (exclusive)."""

    start: int
    end: int
    type: str


class ScanLine(Record):
    """One line of `guard scan`, and of the service's `/guard/scan`."""

    id: str
    decision: Action
    scores: dict[str, float]
    """Category of the taxonomy -> highest calibrated probability."""
    spans: tuple[Found, ...]
    reasons: tuple[str, ...]
    status: Status
    """`ok`, or what befell the first guard that gave no opinion."""


@dataclass(frozen=True)
class Seen:
    """What one direction of a request came to: the decision, its verdicts, and the spans to redact per message."""

    decision: Decision
    channel: Channel = "content"
    verdicts: tuple[Verdict, ...] = ()
    redactions: Mapping[tuple[int, str], tuple[Span, ...]] = field(default_factory=dict)
    """(message index, field) -> spans of that text."""


@dataclass(frozen=True)
class Scan:
    """A replay: what the policy decides on a conversation and its answer, with nothing generated."""

    input: Seen
    output: Seen | None = None

    @property
    def action(self) -> Action:
        """The strictest of both."""
        return strictest(each.decision.action for each in self.seen)

    @property
    def seen(self) -> tuple[Seen, ...]:
        """What was decided on: the conversation, and its answer if there was one."""
        return (self.input,) if self.output is None else (self.input, self.output)

    @property
    def scores(self) -> dict[str, float]:
        """Highest calibrated probability per category."""
        found: dict[str, float] = {}
        for verdict in (verdict for each in self.seen for verdict in each.verdicts):
            for name, score in verdict.scores.items():
                found[name] = max(round(score, 6), found.get(name, 0.0))
        return dict(sorted(found.items()))

    def line(self, name: str) -> dict[str, Any]:
        """The scan as one line of output: decision, scores, spans of personal data, reasons."""
        verdicts = [verdict for each in self.seen for verdict in each.verdicts]
        failed = [verdict.status for verdict in verdicts if verdict.status != "ok"]
        spans = tuple(Found(start=s.start, end=s.end, type=s.type) for verdict in verdicts for s in verdict.spans)
        reasons = dict.fromkeys(reason for each in self.seen for reason in each.decision.reasons)
        line = ScanLine(
            id=name,
            decision=self.action,
            scores=self.scores,
            spans=spans,
            reasons=tuple(reasons),
            status=failed[0] if failed else "ok",
        )
        return line.model_dump(mode="json")


class Scanner:
    """The guards of a bundle under its policy.

    Args:
        judges: name -> judge, without the one for personal data, which is always there.
        shadow: judges that run and decide nothing.
    """

    def __init__(
        self,
        policy: Policy,
        judges: Mapping[str, Judge],
        shadow: Mapping[str, Judge] | None = None,
        *,
        remember: int = 4096,
    ) -> None:
        self.policy = policy
        self.judges: dict[str, Judge] = {**judges, PII: PiiJudge()}
        self.shadow = dict(shadow or {})
        self._memory: OrderedDict[bytes, Verdict] = OrderedDict()
        self._remember, self._lock = remember, threading.Lock()

    def quick(self, names: Iterable[str]) -> bool:
        """True if these guards are bounded arithmetic, which needs neither a thread nor a time limit."""
        found = [self.judges.get(name) for name in names]
        return all(each.bounded if isinstance(each, ClassifierJudge) else isinstance(each, PiiJudge) for each in found)

    def verdicts(self, name: str, judge: Judge, direction: Direction, found: Sequence[Piece]) -> list[Verdict]:
        """One guard on several texts; what it said about the same text before is remembered."""
        keys = [_key(name, direction, piece) for piece in found]
        with self._lock:
            known = {key: self._memory[key] for key in keys if key in self._memory}
        missing = list({key: piece for key, piece in zip(keys, found, strict=True) if key not in known}.items())
        role: Role = "assistant" if direction == "output" else "user"
        examples = [judged(piece.text, role=role, direction=direction, channel=piece.channel) for _, piece in missing]
        if examples:
            for (key, _), verdict in zip(missing, ask(judge, examples), strict=True):
                known[key] = verdict.model_copy(update={"judge": name})
        with self._lock:
            for key, verdict in known.items():
                if verdict.status == "ok":
                    self._memory[key] = verdict
                    self._memory.move_to_end(key)
            while len(self._memory) > self._remember:
                self._memory.popitem(last=False)
        return [known[key] for key in keys]

    def needed(self, found: Sequence[Piece], at: Where) -> frozenset[str]:
        """The guards that decide on these texts."""
        channels = {piece.channel for piece in found}
        return frozenset(name for channel in channels for name in self.policy.needed(at._replace(channel=channel)))

    def judge(self, found: Sequence[Piece], at: Where) -> dict[str, list[Verdict]]:
        """Every guard that decides on these texts, one verdict per text."""
        names = sorted(self.needed(found, at))
        return {n: self.verdicts(n, self.judges[n], at.direction, found) for n in names if n in self.judges}

    def decide(self, found: Sequence[Piece], at: Where, said: Mapping[str, Sequence[Verdict]]) -> Seen:
        """What the policy makes of the guards' verdicts on these texts."""
        decisions: list[tuple[Piece, Decision]] = []
        redactions: dict[tuple[int, str], tuple[Span, ...]] = {}
        for index, piece in enumerate(found):
            mine = [verdicts[index] for verdicts in said.values()]
            decision = self.policy.decide(at._replace(channel=piece.channel), mine)
            decisions.append((piece, decision))
            if decision.redactions and piece.message is not None:
                redactions[piece.message, piece.field] = decision.redactions
        action = strictest(decision.action for _, decision in decisions)
        channel = next((piece.channel for piece, decision in decisions if decision.action == action), at.channel)
        reasons = dict.fromkeys(reason for _, decision in decisions for reason in decision.reasons)
        merged = tuple(highest(list(verdicts)) for verdicts in said.values() if verdicts)
        merged = tuple(verdict.model_copy(update={"spans": ()}) if len(found) > 1 else verdict for verdict in merged)
        whole = Decision(action=action, reasons=tuple(reasons), policy=self.policy.hash)
        if len(decisions) == 1:
            whole = decisions[0][1]
        return Seen(whole, channel, merged, redactions)

    def scan(
        self, messages: Sequence[Message], answer: str | None = None, *, surface: Surface = "scan", tenant: str = ""
    ) -> Scan:
        """Decide on a conversation, and on its answer if there is one, without generating anything."""
        at = Where("input", "content", surface, tenant)
        found = pieces(messages)
        seen = self.decide(found, at, self.judge(found, at))
        if answer is None:
            return Scan(seen)
        out = at._replace(direction="output")
        said = [Piece("content", answer)]
        return Scan(seen, self.decide(said, out, self.judge(said, out)))

    def watchers(self, conversation: Sequence[Message], at: Where) -> dict[str, Watcher]:
        """A watcher per guard that decides on the answer to come."""
        example = Example(messages=tuple(conversation), tags={"direction": at.direction, "channel": at.channel})
        return {n: self.judges[n].watch(example) for n in sorted(self.policy.needed(at)) if n in self.judges}

    def shadows(self, messages: Sequence[Message], answer: str | None) -> list[tuple[Direction, Verdict]]:
        """What the guards in shadow say; nobody waits for it."""
        found, out = pieces(messages), [Piece("content", answer)] if answer else []
        said: list[tuple[Direction, Verdict]] = []
        parts: tuple[tuple[Direction, list[Piece]], ...] = (("input", found), ("output", out))
        for name, judge in self.shadow.items():
            for direction, texts in parts:
                if texts:
                    said.append((direction, highest(self.verdicts(name, judge, direction, texts))))
        return said


def _key(name: str, direction: str, piece: Piece) -> bytes:
    text = "\0".join((name, direction, piece.channel, piece.text))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


Mask = Callable[[str, Sequence[Span]], str]
"""(text, spans) -> the text that may be seen."""


def redacted(
    messages: Sequence[Message], spans: Mapping[tuple[int, str], Sequence[Span]], mask: Mask
) -> tuple[Message, ...]:
    """The conversation with its redactions made, in whichever field they stand."""
    found = list(messages)
    for (index, field_name), cut in spans.items():
        message, (name, *path) = found[index], field_name.split(".")
        if not path:
            found[index] = message.model_copy(update={name: mask(getattr(message, name), cut)})
            continue
        number, attribute = int(path[0]), path[1]
        each = list(getattr(message, name))
        each[number] = each[number].model_copy(update={attribute: mask(getattr(each[number], attribute), cut)})
        found[index] = message.model_copy(update={name: tuple(each)})
    return tuple(found)
