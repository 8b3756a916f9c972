"""A guard reads what is written, and what a model reads out of it: codes, leet, letters kept apart (text/views.py).

What it says of the view counts as if it had said it of the text: the higher score, and each finding over the original
characters that it was decoded from. Nothing that may still be such a code is scored before its end is known.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tutelage.core.records import Example, Verdict
from tutelage.judge.judge import Judge, Progress, Tap, Watcher, answer_of, ask, highest
from tutelage.text.views import Reader, View, decoded


def ask_twice(judge: Judge, examples: Sequence[Example]) -> list[Verdict]:
    """`ask`, also of what the texts hold decoded."""
    views = [(at, view) for at, each in enumerate(examples) if (view := decoded(answer_of(each))) is not None]
    said = ask(judge, [*examples, *(_as(examples[at], view.text) for at, view in views)])
    found = said[: len(examples)]
    for (at, view), verdict in zip(views, said[len(examples) :], strict=True):
        found[at] = highest([found[at], _moved(verdict, view.span)])
    return found


def _as(example: Example, text: str) -> Example:
    last = example.messages[-1].model_copy(update={"content": text})
    return example.model_copy(update={"messages": (*example.messages[:-1], last)})


def _moved(verdict: Verdict, place: Callable[[int, int], tuple[int, int]]) -> Verdict:
    """The verdict with its findings where they stand in the original."""
    if not verdict.spans:
        return verdict
    spans = {(*place(span.start, span.end), span.type): span for span in verdict.spans}
    moved = tuple(span.model_copy(update={"start": at[0], "end": at[1]}) for at, span in spans.items())
    return verdict.model_copy(update={"spans": moved})


class Decoding:
    """A watcher that follows an answer and, once there is one, its view: by a second watcher of the same guard."""

    def __init__(self, first: Watcher, again: Callable[[], Watcher]) -> None:
        self._first, self._again, self._reader = first, again, Reader()
        self._second: Watcher | None = None
        self._starts: list[int] = []
        self._ends: list[int] = []
        """Where each character of the view stands in the answer."""
        self._scored = 0
        """Characters of the view that are scored."""
        if stride := getattr(first, "stride", None):
            self.stride = stride

    def feed(self, text: str, taps: Sequence[Tap] = ()) -> Progress:
        """More of the answer."""
        said = self._first.feed(text, taps)
        return self._joined(said, self._read(self._reader.feed(text)), self._reader.open)

    def close(self) -> Progress:
        """The end of both."""
        said, heard = self._first.close(), self._read(self._reader.close())
        if self._second is not None:
            heard = self._second.close()
            self._scored = heard.scored_to
        return self._joined(said, heard, said.scored_to)

    def _read(self, view: View) -> Progress | None:
        self._starts += view.starts
        self._ends += view.ends
        if view.text and self._second is None:
            self._second = self._again()
        if self._second is None or not view.text:
            return None
        heard = self._second.feed(view.text)
        self._scored = heard.scored_to
        return heard

    def _joined(self, said: Progress, heard: Progress | None, open_: int) -> Progress:
        until = min(said.scored_to, open_)
        if self._scored < len(self._starts):
            until = min(until, self._starts[self._scored])
        if heard is None or heard.verdict is None:
            return Progress(until, said.verdict)
        verdict = _moved(heard.verdict, self._span)
        return Progress(until, verdict if said.verdict is None else highest([said.verdict, verdict]))

    def _span(self, start: int, end: int) -> tuple[int, int]:
        return min(self._starts[start:end]), max(self._ends[start:end])
