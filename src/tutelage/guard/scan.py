"""Everything of a conversation that can carry harm, put before every guard, and what the policy makes of it.

All roles and channels are scanned, whole: the system prompt a client sends, every turn, reasoning, arguments and
results of tools. All turns of a user are also read as one text, whatever stands between them, so that splitting a
request, or personal data, over several messages does not hide it.
"""

from __future__ import annotations

import hashlib
import threading
from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

from tutelage.core.records import Action, Decision, Example, Message, Record, Role, Span, Status, Verdict
from tutelage.guard.breaker import Breakers
from tutelage.guard.cascade import Said, doubts, note
from tutelage.guard.decoded import Decoding, ask_twice
from tutelage.guard.policy import Policy, strictest
from tutelage.guard.written import PII, Channel, Direction, Surface, Where
from tutelage.judge.classifier import ClassifierJudge
from tutelage.judge.judge import Judge, Watcher, failed, highest, judged
from tutelage.judge.rules import PiiJudge
from tutelage.text.leaves import unescaped
from tutelage.text.pii import united

EDGE = 80
"""Characters at the end and at the beginning of turns that may belong together."""
SHADOW_MS = 5000.0
"""Milliseconds a guard in shadow may take over one direction of a request."""


class Part(NamedTuple):
    """Characters `begin` to `end` of a piece are those of a message from its character `start` on."""

    begin: int
    end: int
    message: int
    start: int = 0


class Piece(NamedTuple):
    """One text of a conversation: where it stands, which message it is of (None: made of several), which field."""

    channel: Channel
    text: str
    message: int | None = None
    field: str = "content"
    parts: tuple[Part, ...] = ()
    """What it was made of, where that is several messages."""

    def placed(self, spans: Sequence[Span]) -> Iterator[tuple[tuple[int, str], Span]]:
        """Spans of this text where they stand: (message, field), span of that field. One over two messages is two."""
        if self.message is not None:
            yield from (((self.message, self.field), span) for span in spans)
        begins = [part.begin for part in self.parts]
        for span in spans if begins else ():
            for part in self.parts[max(0, bisect_right(begins, span.start) - 1) : bisect_left(begins, span.end)]:
                start, end = max(span.start, part.begin), min(span.end, part.end)
                if start < end:
                    moved = {"start": start - part.begin + part.start, "end": end - part.begin + part.start}
                    yield (part.message, self.field), span.model_copy(update=moved)


def pieces(messages: Sequence[Message]) -> list[Piece]:
    """All texts of a conversation that a guard must see."""
    found: list[Piece] = []
    turns: list[tuple[int, str]] = []
    for index, message in enumerate(messages):
        channel: Channel = "content"
        if message.role == "system":
            channel = "system"
        elif message.role == "tool":
            channel = "tool_result"
        found.append(Piece(channel, message.content, index))
        if message.role == "tool":
            found.append(Piece(channel, unescaped(message.content)))
        found.append(Piece("reasoning", message.reasoning, index, "reasoning"))
        found.append(Piece(channel, message.name or "", index, "name"))
        found.append(Piece(channel, message.tool_call_id or "", index, "tool_call_id"))
        for number, part in enumerate(message.parts):
            found.append(Piece(channel, part.text, index, f"parts.{number}.text"))
        for number, call in enumerate(message.tool_calls):
            found.append(Piece("tool_call", call.id, index, f"tool_calls.{number}.id"))
            found.append(Piece("tool_call", call.name, index, f"tool_calls.{number}.name"))
            found.append(Piece("tool_call", call.arguments, index, f"tool_calls.{number}.arguments"))
            found.append(Piece("tool_call", unescaped(call.arguments)))
        if message.role == "user" and message.content:
            turns.append((index, message.content))
    return [piece for piece in found + _joined(turns) if piece.text]


def _joined(turns: Sequence[tuple[int, str]]) -> list[Piece]:
    """The turns as one text, words apart; and their edges alone, as if each turn went on where the last broke off."""
    if len(turns) < 2:
        return []
    texts, parts, at = [], [], 0
    for index, text in turns:
        parts.append(Part(at, at + len(text), index))
        texts.append(text)
        at += len(text) + 1
    edges, seams, at = [], [], 0
    for (before, left), (after, right) in pairwise(turns):
        tail, head = left[-EDGE:], right[:EDGE]
        seams += [Part(at, at + len(tail), before, len(left) - len(tail))]
        seams += [Part(at + len(tail), at + len(tail) + len(head), after)]
        edges.append(tail + head)
        at += len(tail) + len(head) + 2
    whole, across = " ".join(texts), "\n\n".join(edges)
    return [Piece("content", whole, parts=tuple(parts)), Piece("content", across, parts=tuple(seams))]


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
            for (key, _), verdict in zip(missing, ask_twice(judge, examples), strict=True):
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

    def judge(self, found: Sequence[Piece], at: Where) -> Said:
        """Every guard that decides on these texts, one verdict per text that it was asked about."""
        names = [name for name in sorted(self.needed(found, at)) if name in self.judges]
        said: Said = {n: [*self.verdicts(n, self.judges[n], at.direction, found)] for n in names}
        places = [at._replace(channel=piece.channel) for piece in found]
        while asked := doubts(self.policy, places, said):
            for name, indexes in asked.items():
                texts = [found[index] for index in indexes]
                note(said, name, indexes, self.verdicts(name, self.judges[name], at.direction, texts), len(found))
        return said

    def decide(self, found: Sequence[Piece], at: Where, said: Said) -> Seen:
        """What the policy makes of the guards' verdicts on these texts."""
        decisions: list[tuple[Piece, Decision]] = []
        redactions: dict[tuple[int, str], list[Span]] = {}
        for index, piece in enumerate(found):
            mine = [verdict for verdicts in said.values() if (verdict := verdicts[index]) is not None]
            decision = self.policy.decide(at._replace(channel=piece.channel), mine)
            decisions.append((piece, decision))
            for where, span in piece.placed(decision.redactions):
                redactions.setdefault(where, []).append(span)
        action = strictest(decision.action for _, decision in decisions)
        channel = next((piece.channel for piece, decision in decisions if decision.action == action), at.channel)
        reasons = dict.fromkeys(reason for _, decision in decisions for reason in decision.reasons)
        heard = ([verdict for verdict in verdicts if verdict is not None] for verdicts in said.values())
        merged = tuple(highest(verdicts) for verdicts in heard if verdicts)
        merged = tuple(verdict.model_copy(update={"spans": ()}) if len(found) > 1 else verdict for verdict in merged)
        whole = Decision(action=action, reasons=tuple(reasons), policy=self.policy.hash)
        if len(decisions) == 1:
            whole = decisions[0][1]
        return Seen(whole, channel, merged, {where: united(spans) for where, spans in redactions.items()})

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
        return self._watch(conversation, at, self.policy.needed(at))

    def further(self, conversation: Sequence[Message], at: Where) -> dict[str, Watcher]:
        """A watcher per guard that is asked where those are not sure."""
        return self._watch(conversation, at, self.policy.further(at) if self.policy.tiered else ())

    def _watch(self, conversation: Sequence[Message], at: Where, names: Iterable[str]) -> dict[str, Watcher]:
        example = Example(messages=tuple(conversation), tags={"direction": at.direction, "channel": at.channel})
        return {name: _watch(self.judges[name], example) for name in sorted(names) if name in self.judges}

    def shadows(
        self, messages: Sequence[Message], answer: str | None, breakers: Breakers
    ) -> list[tuple[Direction, Verdict]]:
        """What the guards in shadow say, each in threads of its own and within SHADOW_MS; no answer waits for it."""
        found, out = pieces(messages), [Piece("content", answer)] if answer else []
        said: list[tuple[Direction, Verdict]] = []
        parts: tuple[tuple[Direction, list[Piece]], ...] = (("input", found), ("output", out))
        for name, judge in self.shadow.items():
            for direction, texts in parts:
                if not texts:
                    continue
                try:
                    heard = breakers.wait(name, partial(self.verdicts, name, judge, direction, texts), SHADOW_MS)
                    said.append((direction, highest(heard)))
                except TimeoutError:
                    said.append((direction, failed(name, "timeout", SHADOW_MS)))
        return said


def _watch(judge: Judge, example: Example) -> Watcher:
    """A watcher that reads codes too; one that reads a model's hidden states sees what the model makes of them."""
    first = judge.watch(example)
    return first if getattr(judge, "layers", ()) else Decoding(first, lambda: judge.watch(example))


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
