"""What is asked beside a conversation: tools, a shape for the answer, log-probabilities; and the calls that come back.

JSON goes before the guards leaf by leaf: names, texts and numbers as they read once escapes are undone, so that
`"\\u0040"` hides nothing. What is passed on is written anew from what was read: a key that stands twice does not get
through.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from tutelage.core.records import Message, Part, ToolCall
from tutelage.guard.scan import Piece
from tutelage.guard.written import Channel
from tutelage.text.leaves import leaves, parsed, replanted, written

MOST_CALLS = 128
"""Tool calls of one answer."""
LONGEST_CALLS = 1 << 20
"""Characters of all calls of one answer: they are held back whole."""


@dataclass(frozen=True)
class Tool:
    """A function that the client offers to the model."""

    name: str
    description: str = ""
    parameters: dict[str, Any] | None = None
    """JSON schema of its arguments."""
    strict: bool | None = None


@dataclass(frozen=True)
class Shape:
    """What the answer must be: a JSON object, under a schema where there is one."""

    schema: dict[str, Any] | None = None
    name: str = "answer"
    description: str = ""
    strict: bool | None = None


@dataclass(frozen=True)
class Wants:
    """What is asked beside messages and sampling."""

    tools: tuple[Tool, ...] = ()
    choice: str = "auto"
    """`auto`, `none`, `required`, or the name of a tool behind a colon: `:look_up`."""
    parallel: bool | None = None
    shape: Shape | None = None
    logprobs: int | None = None
    """Give each token's log-probability, beside those of so many likeliest ones."""
    salt: str = ""
    """Prompts share what they begin with only under the same salt: a tenant's."""
    priority: int = 0
    """The higher, the sooner, where answers wait."""
    left_open: frozenset[str] = frozenset()
    """What nobody said of the sampling: another's model draws by its own lights there."""


PLAIN = Wants()


class LogProb(NamedTuple):
    """One token of an answer, in nats, and the likeliest ones in its place."""

    token: str
    logprob: float
    top: tuple[tuple[str, float], ...] = ()
    raw: bytes | None = None
    """Its bytes, where they are no whole characters."""

    @property
    def bytes(self) -> bytes:
        """Its bytes."""
        return self.token.encode() if self.raw is None else self.raw


class CallPart(NamedTuple):
    """More of call number `number` of an answer."""

    number: int
    name: str = ""
    arguments: str = ""


class Call(NamedTuple):
    """A call that may leave. `arguments` is JSON, unless the model wrote none."""

    number: int
    id: str
    name: str
    arguments: str


class Untold(Exception):
    """The calls are not as they must be: why, in our words."""


@dataclass
class Calls:
    """The calls of an answer as they come in, whole before any of them leaves."""

    parts: dict[int, list[str]] = field(default_factory=dict)
    """Number -> name and arguments so far."""
    size: int = 0

    def take(self, part: CallPart) -> None:
        """More of a call. Raises Untold when there are too many, or they are too long."""
        if part.number not in self.parts and len(self.parts) >= MOST_CALLS:
            raise Untold(f"it makes more than {MOST_CALLS} calls")
        found = self.parts.setdefault(part.number, ["", ""])
        found[0] += part.name
        found[1] += part.arguments
        self.size += len(part.name) + len(part.arguments)
        if self.size > LONGEST_CALLS:
            raise Untold("its calls are endless")

    def read(self, tools: Sequence[Tool]) -> list[tuple[str, Any]]:
        """(name, arguments) of each in order: as values, or as text where it is no JSON.

        Raises Untold for a tool that was not offered: a name is not free text.
        """
        known, found = {tool.name for tool in tools}, []
        for _, (name, arguments) in sorted(self.parts.items()):
            if name not in known:
                raise Untold("it calls a tool that was not offered")
            found.append((name, parsed(arguments)))
        return found


def call_id(request: str, choice: int, index: int) -> str:
    """A call's id: ours, for what an upstream writes there no guard reads."""
    return "call_" + hashlib.sha256(f"{request}/{choice}/{index}".encode()).hexdigest()[:24]


def said(called: Sequence[tuple[str, Any]]) -> tuple[list[str], list[Piece]]:
    """Texts of calls, and how they go before the guards: each by itself, and all as one text."""
    texts = [leaf for _, arguments in called for leaf in leaves(arguments)]
    channel: Channel = "tool_call"
    found = [Piece(channel, text, 0, f"parts.{index}.text") for index, text in enumerate(texts) if text]
    whole = [Piece(channel, "\n".join(texts))] if len(texts) > 1 else []
    return texts, [*found, *whole]


def kept(called: Sequence[tuple[str, Any]], ids: Sequence[str]) -> tuple[ToolCall, ...]:
    """Calls for the trace."""
    return tuple(ToolCall(id=i, name=n, arguments=written(a)) for i, (n, a) in zip(ids, called, strict=True))


def told(wants: Wants) -> tuple[Message, ...]:
    """What the client wrote into tools and shape, as one message for the guards; none where it wrote nothing."""
    texts = list(leaves(_plain(wants)))
    return (Message(role="system", parts=tuple(Part(text=text) for text in texts)),) if texts else ()


def retold(wants: Wants, messages: Sequence[Message]) -> Wants:
    """The same with the texts as they may be seen."""
    if not messages:
        return wants
    plain = replanted(_plain(wants), iter([part.text for part in messages[0].parts]))
    tools = tuple(
        replace(tool, description=found["description"], parameters=found["parameters"])
        for tool, found in zip(wants.tools, plain["tools"].values(), strict=True)
    )
    shape = wants.shape and replace(
        wants.shape,
        name=plain["shape"]["name"],
        schema=plain["shape"]["schema"],
        description=plain["shape"]["description"],
    )
    return replace(wants, tools=tools, shape=shape)


def _plain(wants: Wants) -> Any:
    if not wants.tools and wants.shape is None:
        return {}
    tools = {tool.name: {"description": tool.description, "parameters": tool.parameters} for tool in wants.tools}
    given = wants.shape
    shape = given and {"name": given.name, "schema": given.schema, "description": given.description}
    return {"tools": tools, "shape": shape}


def transcript(messages: Sequence[Message]) -> tuple[Message, ...]:
    """`told` for the trace: one system turn that can be read."""
    return tuple(
        Message(role="system", name="tools", content="\n".join(p.text for p in m.parts if p.text)) for m in messages
    )
