"""What the serving path is asked, what it gives, and what is left of it for the trace."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from tutelage.core.errors import Busy
from tutelage.core.records import Decision, Finish, Message, ToolCall, Verdict
from tutelage.generate.generator import Sampling
from tutelage.guard.scan import Seen
from tutelage.guard.tools import PLAIN, Call, LogProb, Wants
from tutelage.guard.written import Channel, Surface
from tutelage.store.keys import uuid7


@dataclass(frozen=True)
class Ask:
    """One request for answers."""

    messages: tuple[Message, ...]
    sampling: Sampling = field(default_factory=Sampling)
    wants: Wants = PLAIN
    """Tools, a shape for the answer, log-probabilities."""
    surface: Surface = "chat"
    tenant: str = ""
    conversation: str = ""
    """Its name; a keyed hash of tenant, system prompt and first user message when empty."""
    subject: str = ""
    """Who asks, as the tenant names its users."""
    language: str = ""
    stream: bool = False
    people: Literal["live", "simulated", "replayed"] = "live"
    id: str = field(default_factory=uuid7)
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def deliverable(self) -> bool:
        """Whether what a person answers later reaches who asked, and nobody else: without a name of the conversation
        or of the user, another who begins with the same words would be taken for them."""
        return bool(self.conversation or self.subject)

    @property
    def text(self) -> str:
        """What was said last by whoever asks, whose language is answered in."""
        return next((each.content for each in reversed(self.messages) if each.role in ("user", "text")), "")


class Chunk(NamedTuple):
    """A part of answer number `choice` that may be sent. The last one of an answer has its finish."""

    choice: int
    text: str
    finish: Finish | None = None
    decision: Decision | None = None
    usage: tuple[int, int] = (0, 0)
    """Tokens of the prompt and of this answer with all its tries, known at the end."""
    channel: Channel = "content"
    call: Call | None = None
    """A whole call of a tool."""
    logprobs: tuple[LogProb, ...] = ()
    """Of tokens that have left by now, none of whose text was redacted."""


WAITING = Chunk(-1, "")
"""No part of any answer: a person is to answer and has not yet. It keeps a connection open."""


@dataclass
class Meter:
    """Tokens that a request has used so far, for its limits: also what was withheld and what nobody waited for.

    `prompt` is 0 while the upstream has not said it; what was written is guessed where it does not say that.
    """

    prompt: int = 0
    written: int = 0

    def spent(self, read: int) -> int:
        """All tokens; `read` is a guess at the prompt's. Nothing as long as nothing was written."""
        return (self.prompt or read) + self.written if self.written else self.prompt


@dataclass
class Answer:
    """What became of one answer."""

    index: int
    made: str = ""
    """What the model wrote, also what was withheld."""
    reasoning: str = ""
    """What the model thought, also what was withheld, with personal data out of it."""
    calls: tuple[ToolCall, ...] = ()
    """The tools it calls, also what was withheld, with personal data out of it."""
    left: bool = False
    """Whether anything of it was sent."""
    finish: Finish = "error"
    decision: Decision = field(default_factory=lambda: Decision(action="allow"))
    verdicts: tuple[Verdict, ...] = ()
    """On its content; places in it are of `made`."""
    beside: tuple[tuple[Channel, Decision, tuple[Verdict, ...]], ...] = ()
    """What was decided on its other channels, each in places of its own text."""
    usage: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class Finished:
    """A finished request, for the trace."""

    ask: Ask
    release: str
    model: str
    input: Seen
    masked: tuple[Message, ...]
    answers: tuple[Answer, ...]
    """Behind those that were asked for: first tries that were withheld and written anew."""
    milliseconds: float
    error: str = ""
    conversation: str = ""
    """The conversation's name, as the pipeline that served it gives names."""
    held: bool = False
    """Whether a person is to answer it, whatever the guards said."""


class Ending(Busy):
    """The service is being stopped: nothing new is begun, and what is not finished ends here, said and not cut."""
