r"""Judges that follow a rule: right or wrong by comparison with the target, a pattern, personal data.

References: `rules:exact`, `rules:f1`, `rules:contains`, `rules:numeric`, `rules:choice`, `rules:length=80`,
`rules:pattern=REGEX`, `rules:forbid=REGEX`, `rules:pii`. Each scores 0 to 1 under its own name, except `pii`, whose
findings are spans.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Sequence

from tutelage.core.artifact import Root
from tutelage.core.config import nearest
from tutelage.core.errors import ConfigError, NotFound
from tutelage.core.records import Example, Span, Verdict
from tutelage.judge.judge import Progress, Tap, Watcher, WindowedJudge, answer_of, failed
from tutelage.measure.text import exact_match, token_f1
from tutelage.text.pii import TYPES, find

REACH = 64
"""Characters after which personal data that began has ended: what follows no longer changes what was found."""
RUN = 256
"""Longest word that is kept whole on a stream."""
_NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?")


class RuleJudge(WindowedJudge):
    """A rule as a judge: `check(example) -> 0..1`, or None where the example has no target to compare with."""

    def __init__(self, name: str, check: Callable[[Example], float | None]) -> None:
        self.name, self._check = name, check

    def judge(self, examples: Sequence[Example]) -> list[Verdict]:
        """One verdict per example; without a target `unsupported`."""
        checked = [self._check(example) for example in examples]
        return [
            failed(self.name, "unsupported") if score is None else Verdict(judge=self.name, scores={self.name: score})
            for score in checked
        ]


class ExactJudge(RuleJudge):
    """1 if the answer equals the target in SQuAD's normal form."""

    def __init__(self) -> None:
        super().__init__("exact", _with_target(lambda answer, target: exact_match(answer, [target])))


class PiiJudge:
    """Personal data as spans. On a stream it says how far its findings are final."""

    name = "pii"

    def __init__(self, types: Iterable[str] = TYPES) -> None:
        self.types = tuple(types)

    def judge(self, examples: Sequence[Example]) -> list[Verdict]:
        """One verdict per example with the spans of its last message."""
        found = []
        for example in examples:
            started = time.perf_counter()
            spans = tuple(find(answer_of(example), self.types))
            cost = round(1000 * (time.perf_counter() - started), 4)
            found.append(Verdict(judge=self.name, spans=spans, cost_ms=cost))
        return found

    def watch(self, conversation: Example) -> Watcher:
        """A watcher that scans each part of the answer with its surroundings."""
        return PiiWatcher(self.types)


class PiiWatcher:
    """Finds personal data in a growing text; looks at each character at most a few times.

    A finding is final when it ends `REACH` characters before the end of what is known, or at the end of the answer.
    """

    def __init__(self, types: Iterable[str] = TYPES, *, step: int = 16) -> None:
        self._types, self._step = tuple(types), step
        self._text = ""
        self._base = 0
        self._seen = 0
        self._settled = 0
        self._final: list[Span] = []
        self._open: list[Span] = []

    def feed(self, text: str, taps: Sequence[Tap] = ()) -> Progress:
        """More text; scanned again after every few characters."""
        self._text += text
        end = self._base + len(self._text)
        if end - self._seen >= self._step:
            self._scan(end, end - REACH)
        return self._progress()

    def close(self) -> Progress:
        """The end: everything found is final."""
        end = self._base + len(self._text)
        self._scan(end, end)
        return self._progress()

    def _scan(self, end: int, until: int) -> None:
        found = [s.model_copy(update={"start": s.start + self._base, "end": s.end + self._base}) for s in self._find()]
        found = [s for s in found if s.end > self._settled]
        if until < end:  # a word is not cut: what looks harmless so far may be the first half of an address
            near = self._text[: max(0, until - self._base)][-RUN:]
            word = near.rsplit(None, 1)[-1:] if near and not near[-1].isspace() else []
            until -= len(word[0]) if word and len(word[0]) < RUN else 0
        for span in reversed(found):
            if span.start < until < span.end:
                until = span.start
        until = max(until, self._settled)
        self._final += [s for s in found if s.end <= until]
        self._open = [s for s in found if s.end > until]
        self._settled, self._seen = until, end
        keep = max(self._base, until - REACH)
        for span in self._final[-4:]:
            if span.start < keep < span.end:
                keep = span.start
        self._text, self._base = self._text[keep - self._base :], keep

    def _find(self) -> list[Span]:
        return find(self._text, self._types)

    def _progress(self) -> Progress:
        return Progress(self._settled, Verdict(judge="pii", spans=tuple(self._final + self._open)))


def numbers(text: str) -> list[float]:
    """The numbers in a text, thousands separators understood."""
    return [float(found.replace(",", "")) for found in _NUMBER.findall(text)]


def _with_target(compare: Callable[[str, str], float]) -> Callable[[Example], float | None]:
    def check(example: Example) -> float | None:
        return None if example.target is None else float(compare(answer_of(example), example.target))

    return check


def _numeric(answer: str, target: str) -> float:
    said, wanted = numbers(answer), numbers(target)
    return float(bool(said and wanted) and abs(said[-1] - wanted[-1]) <= 1e-6 * max(1.0, abs(wanted[-1])))


def _contains(answer: str, target: str) -> float:
    return float(" ".join(target.lower().split()) in " ".join(answer.lower().split()))


def _choice(example: Example) -> float | None:
    """1 if the first of the choices that the answer names (by text, or by its letter alone) is the target."""
    if example.target is None or not example.choices:
        return None
    answer = answer_of(example).strip()
    letter = re.fullmatch(r"\(?([A-Z])\)?[.:]?", answer)
    if letter and ord(letter.group(1)) - 65 < len(example.choices):
        return float(example.choices[ord(letter.group(1)) - 65] == example.target)
    places = [(answer.lower().find(choice.lower()), -len(choice), choice) for choice in example.choices]
    named = sorted(place for place in places if place[0] >= 0)
    return float(bool(named) and named[0][2] == example.target)


def _pattern(argument: str, ref: str) -> re.Pattern[str]:
    try:
        return re.compile(argument)
    except re.error as error:
        raise ConfigError(f"not a regular expression ({error})", key=ref) from None


def _length(argument: str, ref: str) -> Callable[[Example], float | None]:
    if not argument.isdigit() or int(argument) < 1:
        raise ConfigError("expected a number of characters, as in `rules:length=80`", key=ref)
    most = int(argument)
    return lambda example: min(1.0, most / max(1, len(answer_of(example))))


RULES = ("exact", "f1", "contains", "numeric", "choice", "length", "pattern", "forbid", "pii")


def open_rules(ref: str, root: Root | None = None, **options: object) -> RuleJudge | PiiJudge:
    """Open `rules:NAME` or `rules:NAME=ARGUMENT`. Raises NotFound naming the nearest rule."""
    name, _, argument = ref.partition(":")[2].partition("=")
    if name == "exact":
        return ExactJudge()
    if name == "f1":
        return RuleJudge(name, _with_target(lambda answer, target: token_f1(answer, [target])))
    if name == "contains":
        return RuleJudge(name, _with_target(_contains))
    if name == "numeric":
        return RuleJudge(name, _with_target(_numeric))
    if name == "choice":
        return RuleJudge(name, _choice)
    if name == "length":
        return RuleJudge(name, _length(argument, ref))
    if name in ("pattern", "forbid"):
        pattern, wanted = _pattern(argument, ref), name == "pattern"
        return RuleJudge(name, lambda example: float(bool(pattern.search(answer_of(example))) == wanted))
    if name == "pii":
        return PiiJudge(argument.split(",") if argument else TYPES)
    near = nearest(name, RULES)
    todo = f"Did you mean `rules:{near}`?" if near else f"Rules: {', '.join(RULES)}"
    raise NotFound(f"there is no rule {name!r}", todo=todo)
