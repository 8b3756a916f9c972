"""What is written down of a request that was served: its traces, and what the guards in shadow would have said.

Nothing is lost without a word. The writer's queue is bounded and what finds no room in it is refused; guards in shadow
that had no time, or failed, are noted as guards that gave no opinion.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

from tutelage.core.records import Message, Status, Verdict
from tutelage.guard.breaker import Breakers
from tutelage.guard.request import Answer, Finished
from tutelage.guard.scan import Scanner
from tutelage.guard.written import Direction
from tutelage.judge.judge import failed
from tutelage.store import traces
from tutelage.store.keys import derived_id
from tutelage.text.pii import redact

SHADOWED = 256
"""Requests that wait at once for the guards in shadow; what comes beyond them is kept without their opinion."""


class Recorder:
    """Hands what was served to the trace writer.

    Args:
        collects: whether people may be asked about a tenant's requests.
    """

    def __init__(self, writer: traces.Writer, collects: Callable[[str], bool]) -> None:
        self._writer, self._collects = writer, collects
        self._jobs, self._breakers = ThreadPoolExecutor(2, "shadow"), Breakers()
        self._places = threading.BoundedSemaphore(SHADOWED)
        self._closing = False

    def record(self, scanner: Scanner, done: Finished) -> Future[None] | None:
        """Hand a request that these guards served to the trace writer. Raises Full when there is no room for it.

        Where a person is to answer, what it gives is done when that is on disk.
        """
        made = _traces(done, self._collects(done.ask.tenant))
        if any(trace.held for trace in made):  # nobody waits for an opinion that decides nothing
            return self._writer.put(*(_unheard(scanner, trace, "unsupported") for trace in made))
        if not scanner.shadow:
            self._writer.put(*made)
            return None
        self._writer.reserve(len(made))
        if not self._closing and self._places.acquire(blocking=False):
            self._jobs.submit(self._shadowed, scanner, made)
        else:
            self._writer.fill([_unheard(scanner, trace, "timeout") for trace in made])
        return None

    def _shadowed(self, scanner: Scanner, made: Sequence[traces.Trace]) -> None:
        """Ask the guards in shadow what they would have said, then keep the traces, whatever came of that."""
        kept = []
        for trace in made:
            try:
                if self._closing:
                    raise TimeoutError
                said = scanner.shadows(trace.messages, trace.answer.content if trace.answer else None, self._breakers)
                kept.append(_with_shadows(trace, said))
            except Exception as error:  # it decides nothing, and may cost no record
                kept.append(_unheard(scanner, trace, "timeout" if isinstance(error, TimeoutError) else "error"))
        self._places.release()
        self._writer.fill(kept)

    def close(self) -> None:
        """Hand over what waits for the guards in shadow, without asking them."""
        self._closing = True
        self._jobs.shutdown()
        self._breakers.close()


def _traces(done: Finished, collect: bool) -> list[traces.Trace]:
    """One trace per answer; the request's own decision stands with the first."""
    ask = done.ask
    allowed = collect and ask.meta.get("collect", "yes") != "no"
    meta = {name: value for name, value in ask.meta.items() if name != "collect"}
    meta |= {"collect": True} if allowed else {}
    asked = traces.Decided(
        direction="input",
        channel=done.input.channel,
        action=done.input.decision.action,
        reasons=done.input.decision.reasons,
        redactions=done.input.decision.redactions,
        policy=done.input.decision.policy,
        latency_ms=round(sum(each.cost_ms for each in done.input.verdicts), 3),
        verdicts=done.input.verdicts,
    )
    made = [
        traces.Trace(
            id=ask.id if answer.index == 0 else derived_id("choice", ask.id, answer.index),
            conversation=done.conversation,
            tenant=ask.tenant,
            subject=ask.subject,
            release=done.release,
            model=done.model,
            surface=ask.surface,
            language=ask.language,
            people=ask.people,
            messages=done.masked,
            answer=_kept(answer),
            finish=answer.finish,
            usage={"prompt_tokens": answer.usage[0], "completion_tokens": answer.usage[1]},
            latency_ms=round(done.milliseconds, 3),
            stream=ask.stream,
            meta={**meta, **({"error": done.error} if done.error else {}), "choice": answer.index},
            decisions=((asked,) if answer.index == 0 else ()) + _decided(answer),
        )
        for answer in done.answers
    ]
    if not ask.deliverable:  # nobody was promised a person's answer, and none could be given
        return made
    return [replace(each, held=done.held or any(said.action == "review" for said in each.decisions)) for each in made]


def _with_shadows(trace: traces.Trace, said: Sequence[tuple[Direction, Verdict]]) -> traces.Trace:
    """The trace with what the guards in shadow said."""
    extra = (traces.Decided(direction=direction, shadow=True, verdicts=(verdict,)) for direction, verdict in said)
    return replace(trace, decisions=(*trace.decisions, *extra))


def _unheard(scanner: Scanner, trace: traces.Trace, status: Status) -> traces.Trace:
    """The trace where the guards in shadow were not heard: each is noted as one that gave no opinion."""
    return _with_shadows(trace, [("input", failed(name, status)) for name in scanner.shadow])


def _decided(answer: Answer) -> tuple[traces.Decided, ...]:
    """The decisions on an answer, one a channel; none if nothing was generated."""
    if not answer.decision.policy:
        return ()
    return tuple(
        traces.Decided(
            direction="output",
            channel=channel,
            action=decision.action,
            reasons=decision.reasons,
            redactions=decision.redactions,
            policy=decision.policy,
            latency_ms=round(sum(each.cost_ms for each in verdicts), 3),
            verdicts=verdicts,
        )
        for channel, decision, verdicts in (("content", answer.decision, answer.verdicts), *answer.beside)
    )


def _kept(answer: Answer) -> Message | None:
    """What the model wrote, also what was withheld, with personal data out of it."""
    if not answer.made and not answer.reasoning and not answer.calls:
        return None
    said = redact(answer.made, answer.decision.redactions)
    return Message(role="assistant", content=said, reasoning=answer.reasoning, tool_calls=answer.calls)
