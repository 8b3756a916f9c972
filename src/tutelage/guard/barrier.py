"""What holds a stream back: nothing passes that a blocking guard has not scored past. Pure, no clock, no input/output.

A unary answer is one `feed`. What is released is always a prefix of what was written, cut so that personal data that
a rule redacts, and text that may yet become part of it, does not leave in halves.

How far a stream is held back: `hold_back` characters (the pipeline lowers them to those of the last 16 tokens), and
never past the first thing that a guard can not judge yet, however few tokens are to come: a word that is being written,
personal data that may have begun, the first 64 characters of an answer, the stride of a judge that reads windows.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple

from tutelage.core.records import Decision, Span, Verdict
from tutelage.guard.policy import Policy, strictest
from tutelage.guard.written import Where
from tutelage.judge.judge import Progress, Watcher, checked, failed
from tutelage.text.pii import BLOCK

HOLD_BACK = 64
"""Characters kept back by default."""


class Passed(NamedTuple):
    """What may leave now, and the decision that stops everything after it, if there is one."""

    text: str
    stop: Decision | None = None


Replace = Callable[[Span, str], str]
"""(what it is, the personal data itself) -> what stands in its place."""


class Barrier:
    """The only way out for an answer.

    Args:
        watchers: guard name -> its watcher of this answer. All that the policy needs must be there.
        at: which text this is.
        hold_back: characters kept back behind the point that all guards have scored.
        replace: what a redaction leaves; `[TYPE]` by default.
        asleep: names of watchers that are asked only where others are not sure; then nothing leaves until whoever
            feeds has shown them the text so far and calls `wake`.
    """

    def __init__(
        self,
        policy: Policy,
        watchers: Mapping[str, Watcher],
        at: Where,
        *,
        hold_back: int = HOLD_BACK,
        replace: Replace | None = None,
        asleep: Collection[str] = (),
    ) -> None:
        self._policy, self._watchers, self.at = policy, dict(watchers), at
        self.hold_back, self._replace = hold_back, replace or (lambda span, text: f"[{span.type.upper()}]")
        self._needed = policy.needed(at)
        """Guards without whose verdict nothing leaves."""
        self._asleep = frozenset(asleep)
        self.unsure: frozenset[str] = frozenset()
        """Those asleep whose word is needed now."""
        self._ended: dict[str, Progress] = {}
        self._text = ""
        self._offset = 0
        self._cuts: dict[tuple[int, str], Span] = {}
        """Redactions of what has not left yet: a guard may tell each once."""
        self._closed = False
        self._said: dict[tuple[int, str], Span] = {}
        """All that was redacted, for the trace."""
        self._decision = Decision(action="allow", policy=policy.hash)
        self._reasons: dict[str, str] = {}
        """All that fired so far, each with its latest words: what a guard said once is not unsaid by what follows."""
        self._heard: dict[str, _Heard] = {}

    @property
    def decision(self) -> Decision:
        """The decision on the whole answer so far: the strictest, with every reason and all that was redacted."""
        cuts = tuple(sorted(self._said.values(), key=lambda each: (each.start, each.type)))
        return self._decision.model_copy(update={"reasons": tuple(self._reasons.values()), "redactions": cuts})

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        """What each guard has said of the whole answer so far: worst status, highest scores, all spans."""
        return tuple(heard.verdict for heard in self._heard.values())

    @property
    def masks(self) -> bool:
        """Whether the policy keeps personal data out of this text, or stops it for them."""
        rules = (bound.rule for bound in self._policy.rules(self.at.tenant))
        return any(rule.pii and rule.when.covers(self.at) and rule.action not in ("allow", "flag") for rule in rules)

    @property
    def released(self) -> int:
        """Characters of the answer that have left (before redaction)."""
        return self._offset

    def feed(self, delta: str) -> Passed:
        """More of the answer; what may leave by now."""
        if self._closed:
            return self._shut()
        self._text += delta
        return self._pass([_try(name, w.feed, delta) for name, w in self._awake], last=False)

    def close(self) -> Passed:
        """The answer has ended; what is left may leave if all of it was scored and nothing stops it."""
        if self._closed:
            return self._shut()
        for name, watcher in self._awake:
            if name not in self._ended:
                self._ended[name] = _try(name, watcher.close)[1]
        return self._pass(list(self._ended.items()), last=True)

    def wake(self, names: frozenset[str]) -> None:
        """These have seen the text so far; from now on nothing leaves without them. Feed or close again."""
        self._asleep, self._needed, self.unsure = self._asleep - names, self._needed | names, frozenset()

    @property
    def _awake(self) -> list[tuple[str, Watcher]]:
        return [(name, watcher) for name, watcher in self._watchers.items() if name not in self._asleep]

    def _shut(self) -> Passed:
        return Passed("", self.decision if stops(self._decision) else None)

    def _pass(self, progress: Sequence[tuple[str, Progress]], *, last: bool) -> Passed:
        end = self._offset + len(self._text)
        verdicts: list[Verdict] = []
        scored = dict.fromkeys(self._needed, 0)
        for name, (scored_to, verdict) in progress:
            if verdict is None:
                scored[name] = 0 if not last else end  # at the end, no verdict at all is a failure: `decide` sees it
                continue
            verdict = checked(verdict.model_copy(update={"judge": name}))
            if verdict.status == "ok" and last and scored_to < end:
                verdict = failed(name, "malformed")
            # a failed guard holds nothing back by itself: the policy decides whether it stops the answer
            scored[name] = scored_to if verdict.status == "ok" else end
            verdicts.append(verdict)
        pending = self._asleep | (self._needed - {verdict.judge for verdict in verdicts} if not last else frozenset())
        for verdict in verdicts:
            self._heard.setdefault(verdict.judge, _Heard()).add(verdict)
        now = self._policy.decide(self.at, verdicts, pending)
        self._reasons |= {_unnumbered(reason): reason for reason in now.reasons}
        if now.action != self._decision.action:
            self._decision = now.model_copy(update={"action": strictest((self._decision.action, now.action))})
        told = {(span.start, span.type): span for span in now.redactions}
        self._said |= told
        if stops(self._decision):
            self._closed, self._text = True, ""
            return Passed("", self.decision)
        self._cuts |= told
        self.unsure = self._policy.unsure(self.at, verdicts) & self._asleep if self._asleep else frozenset()
        if self.unsure:
            return Passed("")
        until = end
        if not last:
            behind = min((scored[name] for name in self._needed), default=end)
            until = max(self._offset, min(behind, end - self.hold_back))
        self._closed = last
        return Passed(self._release(until))

    def _release(self, until: int) -> str:
        """The text up to character `until`, redacted; a redaction that reaches past it is not cut in two, unless it is
        so long that it must not be held any more: then what stands for it leaves first, and the rest of it never."""
        spans = sorted((each for each in self._cuts.values() if each.end > self._offset), key=lambda each: each.start)
        for span in spans:
            if span.start < until < span.end and span.end - span.start <= BLOCK and not self._closed:
                until = max(self._offset, span.start)
        out, at = [], self._offset
        for span in spans:
            start, end = max(span.start, at), min(span.end, until)
            if start >= until or end <= start:
                continue
            out.append(self._text[at - self._offset : start - self._offset])
            if span.start >= self._offset:
                out.append(self._replace(span, self._text[start - self._offset : end - self._offset]))
            at = end
        out.append(self._text[at - self._offset : until - self._offset])
        self._text, self._offset = self._text[until - self._offset :], until
        self._cuts = {key: span for key, span in self._cuts.items() if span.end > until}
        return "".join(out)


class _Heard:
    """What one guard has said of a growing text."""

    def __init__(self) -> None:
        self._last = self._worst = Verdict(judge="")
        self._scores: dict[str, float] = {}
        self._spans: dict[tuple[int, str], Span] = {}

    def add(self, verdict: Verdict) -> None:
        """Take what it says now."""
        self._last = verdict
        if verdict.status != "ok":
            self._worst = verdict
        for name, score in verdict.scores.items():
            if score > self._scores.get(name, -1.0):
                self._scores[name] = score
        for span in verdict.spans:
            self._spans[span.start, span.type] = span

    @property
    def verdict(self) -> Verdict:
        """All of it as one verdict."""
        spans = tuple(sorted(self._spans.values(), key=lambda each: (each.start, each.type)))
        kept = {
            "status": self._worst.status,
            "reason": self._worst.reason,
            "scores": dict(self._scores),
            "spans": spans,
        }
        return self._last.model_copy(update=kept)


def _unnumbered(reason: str) -> str:
    """The reason without its score, which rises as the text grows."""
    head, above, _ = reason.rpartition(" > ")
    return head.rpartition(" ")[0] if above else reason


def stops(decision: Decision) -> bool:
    """True if the decision keeps text from being delivered."""
    return decision.action in ("block", "review", "rewrite")


def _try(name: str, step: Callable[..., Progress], *text: str) -> tuple[str, Progress]:
    try:
        return name, step(*text)
    except Exception:  # a guard that raises has no opinion; the policy says what that means
        return name, Progress(0, failed(name, "error"))
