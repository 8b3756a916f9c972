"""The one interface of everything that judges: a reward, a grader and a guard are interchangeable.

What is judged is the **last message** of an example; the messages before it are its context. A judge answers with
verdicts; only status `ok` carries an opinion. `Watcher` is the same judge on an answer that is still being written.
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

from tutelage.core.records import Example, Message, Role, Span, Status, Verdict

WINDOW = 512
"""Characters a windowed watcher shows its judge at once."""
STRIDE = 32
"""Characters after which a windowed watcher asks again: at most half the default hold-back of a stream."""

_WORST: tuple[Status, ...] = ("ok", "unsupported", "timeout", "malformed", "error")


class Tap(NamedTuple):
    """One hidden state of the serving model: which layer, the characters known when it was made, the vector [width]."""

    layer: int
    characters: int
    hidden: Any


class Progress(NamedTuple):
    """How far a watcher has scored (in characters of the answer) and its verdict on all of that, if it has one."""

    scored_to: int
    verdict: Verdict | None


class Watcher(Protocol):
    """Follows one answer in flight; keeps its state, O(n) in all."""

    def feed(self, text: str, taps: Sequence[Tap] = ()) -> Progress:
        """More of the answer (and perhaps the model's hidden states); what is scored by now."""
        ...

    def close(self) -> Progress:
        """The answer has ended: everything is scored, or the verdict says why not."""
        ...


@runtime_checkable
class Judge(Protocol):
    """Gives one verdict per example, in order.

    Example:
        >>> from tutelage.judge.rules import ExactJudge
        >>> said = Message(role="assistant", content="Four")
        >>> ExactJudge().judge([Example(messages=(said,), target="four")])[0].scores
        {'exact': 1.0}
    """

    @property
    def name(self) -> str:
        """How verdicts and reports call this judge."""
        ...

    def judge(self, examples: Sequence[Example]) -> list[Verdict]:
        """One verdict per example."""
        ...

    def watch(self, conversation: Example) -> Watcher:
        """A watcher of the answer that follows this conversation."""
        ...


class WindowedJudge(ABC):
    """Base of judges without a streaming form of their own: overlapping windows over `judge()`."""

    name: str
    window: int = WINDOW
    stride: int = STRIDE

    @abstractmethod
    def judge(self, examples: Sequence[Example]) -> list[Verdict]:
        """One verdict per example."""

    def watch(self, conversation: Example) -> Watcher:
        """Windows of `window` characters, judged again after every `stride` new ones."""
        return WindowWatcher(self, conversation, window=self.window, stride=self.stride)


class WindowWatcher:
    """Default watcher: judges the last `window` characters after every `stride` new ones, so O(n) in all.

    The verdict is the highest of all windows. A window that could not be judged does not advance `scored_to`; its
    failed verdict stands until a later window covers the same text.
    """

    def __init__(self, judge: Judge, conversation: Example, window: int = WINDOW, stride: int = STRIDE) -> None:
        if not 0 < stride <= window:
            raise ValueError(f"stride must be between 1 and the window ({window}), got {stride}")
        self._judge, self._conversation, self._window, self.stride = judge, conversation, window, stride
        self._tail = ""
        self._start = 0
        self._scored = 0
        self._verdict: Verdict | None = None
        self._failed: Verdict | None = None

    def feed(self, text: str, taps: Sequence[Tap] = ()) -> Progress:
        """Take more text; judge when a stride is full."""
        self._tail += text
        while self._start + len(self._tail) - self._scored >= self.stride:
            if not self._score(min(self._scored + self.stride, self._start + len(self._tail))):
                break
        return self._progress()

    def close(self) -> Progress:
        """Judge what is left, at once."""
        end = self._start + len(self._tail)
        while self._scored < end or self._verdict is None:
            if not self._score(min(self._scored + self.stride, end)):
                break
        return self._progress()

    def _score(self, end: int) -> bool:
        """Judge the window that ends at character `end`; False when the judge failed (the text stays unscored)."""
        begin = max(0, end - self._window)
        seen = self._tail[begin - self._start : end - self._start]
        answer = Message(role="assistant", content=seen)
        example = self._conversation.model_copy(update={"messages": (*self._conversation.messages, answer)})
        verdict = ask(self._judge, [example])[0]
        if verdict.status != "ok":
            self._failed = verdict
            return False
        moved = tuple(s.model_copy(update={"start": s.start + begin, "end": s.end + begin}) for s in verdict.spans)
        verdict = verdict.model_copy(update={"spans": moved})
        self._verdict = verdict if self._verdict is None else highest([self._verdict, verdict])
        self._failed = None
        self._scored = end
        keep = max(0, end - self._window)
        if keep > self._start:
            self._tail, self._start = self._tail[keep - self._start :], keep
        return True

    def _progress(self) -> Progress:
        return Progress(self._scored, self._failed or self._verdict)


def failed(judge: str, status: Status, cost_ms: float = 0.0, reason: str = "") -> Verdict:
    """A verdict that carries no opinion."""
    return Verdict(judge=judge, status=status, cost_ms=cost_ms, reason=reason)


def checked(verdict: Verdict) -> Verdict:
    """The verdict, or a `malformed` one when a score is not a finite number: NaN must never pass for 'fine'."""
    if verdict.status == "ok" and not all(math.isfinite(score) for score in verdict.scores.values()):
        return failed(verdict.judge, "malformed", verdict.cost_ms)
    return verdict


def ask(judge: Judge, examples: Sequence[Example], *, through: tuple[type[BaseException], ...] = ()) -> list[Verdict]:
    """`judge.judge` that never raises (but what is let `through`) and never returns too few: what fails is a verdict
    with its status."""
    started = time.perf_counter()
    try:
        verdicts = judge.judge(examples)
    except through:
        raise
    except Exception as error:  # a guard that raises must fail as the policy says, whatever it raised
        status: Status = "timeout" if isinstance(error, TimeoutError) else "error"
        cost, why = 1000 * (time.perf_counter() - started), str(error).split("\n", 1)[0]
        return [failed(judge.name, status, cost, why) for _ in examples]
    if len(verdicts) != len(examples):
        return [failed(judge.name, "malformed") for _ in examples]
    return [checked(verdict) for verdict in verdicts]


def value(verdict: Verdict, key: str | None = None) -> float | None:
    """One number of a verdict: `key`, or its only score. None when it has no opinion (never 0)."""
    if verdict.status != "ok":
        return None
    if key is None:
        return next(iter(verdict.scores.values())) if len(verdict.scores) == 1 else None
    return verdict.scores.get(key)


def highest(verdicts: Sequence[Verdict]) -> Verdict:
    """Several verdicts of one judge on parts of one text as one: worst status, highest scores, all spans."""
    if not verdicts:
        raise ValueError("no verdicts to put together")
    scores: dict[str, float] = {}
    spans: dict[tuple[int, int, str], Span] = {}
    for verdict in verdicts:
        for name, score in verdict.scores.items():
            scores[name] = max(score, scores.get(name, score))
        for span in verdict.spans:
            spans.setdefault((span.start, span.end, span.type), span)
    return Verdict(
        judge=verdicts[0].judge,
        status=max((verdict.status for verdict in verdicts), key=_WORST.index),
        scores=scores,
        spans=tuple(spans[key] for key in sorted(spans)),
        cost_ms=sum(verdict.cost_ms for verdict in verdicts),
        certificate=next((verdict.certificate for verdict in verdicts if verdict.certificate), None),
    )


class WeightedJudge(WindowedJudge):
    """A weighted sum of other judges' numbers, as score `value`; without an opinion if one of them has none.

    Args:
        parts: (judge, score name or None for its only score, weight).
    """

    def __init__(self, parts: Sequence[tuple[Judge, str | None, float]], name: str = "weighted") -> None:
        self.name, self._parts = name, tuple(parts)

    def judge(self, examples: Sequence[Example]) -> list[Verdict]:
        """One sum per example."""
        totals = [0.0] * len(examples)
        status: list[Status] = ["ok"] * len(examples)
        cost = [0.0] * len(examples)
        for part, key, weight in self._parts:
            for index, verdict in enumerate(ask(part, examples)):
                number = value(verdict, key)
                cost[index] += verdict.cost_ms
                if number is None:
                    status[index] = "malformed" if verdict.status == "ok" else verdict.status
                else:
                    totals[index] += weight * number
        return [
            Verdict(judge=self.name, status=s, scores={"value": total} if s == "ok" else {}, cost_ms=c)
            for s, total, c in zip(status, totals, cost, strict=True)
        ]


def answer_of(example: Example) -> str:
    """The text that is judged: the content of the last message."""
    return example.messages[-1].content if example.messages else ""


def judged(text: str, *, role: Role = "user", context: Iterable[Message] = (), **tags: Any) -> Example:
    """An example whose last message is `text`: the shortest way to ask a judge about a string."""
    return Example(messages=(*context, Message(role=role, content=text)), tags=dict(tags))


def scores_of(verdicts: Iterable[Verdict]) -> Mapping[str, float]:
    """Highest score per category over several judges' verdicts that have an opinion."""
    found: dict[str, float] = {}
    for verdict in verdicts:
        if verdict.status == "ok":
            for name, score in verdict.scores.items():
                found[name] = max(score, found.get(name, score))
    return found
