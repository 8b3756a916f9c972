r"""Judges that follow a rule: right or wrong by comparison with the target, a pattern, personal data.

References: `rules:exact`, `rules:f1`, `rules:contains`, `rules:numeric`, `rules:choice`, `rules:length=80`,
`rules:pattern=REGEX`, `rules:forbid=REGEX`, `rules:pii`. Each scores 0 to 1 under its own name, except `pii`, whose
findings are spans.
"""

from __future__ import annotations

import re
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence

from tutelage.core.artifact import Root
from tutelage.core.config import nearest
from tutelage.core.errors import ConfigError, NotFound
from tutelage.core.records import Example, Span, Verdict
from tutelage.judge.judge import Progress, Tap, Watcher, WindowedJudge, answer_of, failed
from tutelage.measure.text import exact_match, token_f1
from tutelage.text.normalise import before_hidden, inked, normalise
from tutelage.text.pii import BLOCK, CONTEXT, TYPES, find, located, read

_BLANKS = re.compile(r"(?<=[^\S\n\r\x0b\x0c\x85\u2028\u2029])[^\S\n\r\x0b\x0c\x85\u2028\u2029]")
_END = 80
"""Characters of a key's last line, at most."""
_LETTERS = re.compile(
    r"[a-z ,;!?\n\u00df-\u00f6\u00f8-\u017f\u03b1-\u03c9\u0430-\u045f\u2014\u2018\u2019\u201c\u201d]*+"
)
"""Of these alone no personal data is made; the last word may still go on to be some."""
_NOTHING = Verdict(judge="pii")
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
    """Finds personal data in a growing text, as in the whole, whatever the parts; looks at each character a few times.

    Settled is all before the first thing that more text may still make personal data, or change: the word that is being
    written, digits, a secret without its end. A secret that does not end within `BLOCK` characters is taken for one as
    it stands, with all that belongs to it. `feed` tells what is newly found, `close` everything.
    """

    def __init__(self, types: Iterable[str] = TYPES) -> None:
        self._types = tuple(types)
        self._text = ""
        """What is open, after its context; without what has no ink, blanks in a row as one."""
        self._places: list[int] = []
        """Where each of its characters stands in the answer."""
        self._begin = 0
        """How many of them are context."""
        self._fed = 0
        self._found: list[Span] = []
        self._ends: re.Pattern[str] | None = None
        self._rest: re.Pattern[str] | None = None
        self._patience = 0
        """So much may be open before it is read again, although nothing came that ends it."""

    def feed(self, text: str, taps: Sequence[Tap] = ()) -> Progress:
        """More text."""
        known, told = len(self._text), len(self._found)
        self._take(text)
        if self._rest is not None and len(self._text) > known:
            told -= self._go_on()
        open_ = len(self._text) - self._begin
        if open_ and len(self._text) > known and not self._is_dull(open_):
            ends = self._ends
            if ends is None or open_ > self._patience or ends.search(self._text, max(self._begin, known - _END)):
                self._read()
        new = self._found[told:]
        return Progress(self._settled, Verdict(judge="pii", spans=tuple(new)) if new else _NOTHING)

    def close(self) -> Progress:
        """The end: everything found is final."""
        self._read(last=True)
        return Progress(self._fed, Verdict(judge="pii", spans=tuple(self._found)))

    @property
    def _settled(self) -> int:
        return self._places[self._begin] if self._begin < len(self._places) else self._fed

    def _is_dull(self, open_: int) -> bool:
        """Pass over plain words at once; True if there was nothing else."""
        if open_ > CONTEXT or self._ends is not None:
            return False
        text, begin = self._text, self._begin
        word = max(text.rfind(" ", begin), text.rfind("\n", begin)) + 1
        if not _LETTERS.fullmatch(text, begin):
            return False
        if word > begin:
            self._settle(word)
        return True

    def _take(self, text: str) -> None:
        clean, places = inked(text), range(self._fed, self._fed + len(text))
        kept: Iterable[int] = places
        if len(clean) < len(text):
            kept = [place for place, char in zip(places, text, strict=True) if inked(char)]
        before = self._text[-1:]
        if _BLANKS.search(before + clean):
            lone = [not _BLANKS.match(before + clean, index + len(before)) for index in range(len(clean))]
            kept = [place for place, alone in zip(kept, lone, strict=True) if alone]
            clean = "".join(char for char, alone in zip(clean, lone, strict=True) if alone)
        self._text += clean
        self._places.extend(kept)
        self._fed += len(text)

    def _go_on(self) -> bool:
        """What a secret that was taken as it stood goes on with belongs to it; True if it grew."""
        assert self._rest is not None
        match = self._rest.match(self._text, self._begin)
        end = match.end() if match else self._begin
        if end < len(self._text):
            self._rest = None
        if end == self._begin:
            return False
        self._found[-1] = self._found[-1].model_copy(update={"end": self._places[end - 1] + 1})
        self._settle(end)
        return True

    def _read(self, *, last: bool = False) -> None:
        normal = normalise(self._text, latin=True)
        found = read(normal.text, bisect_left(normal.starts, self._begin), self._types, last=last)
        spans = located(found.spans, normal)
        until = normal.starts[found.until] if found.until < len(normal.text) else len(self._text)
        self._ends = found.ends
        if found.rest is not None and len(self._text) - until > BLOCK + 4 * CONTEXT:
            spans.append(Span(start=until, end=len(self._text), type="key", score=0.5))
            until, self._ends, self._rest = len(self._text), None, found.rest
        elif not last:
            until = max(self._begin, min(until, before_hidden(self._text)))
        self._found += [
            span.model_copy(update={"start": self._places[span.start], "end": self._places[span.end - 1] + 1})
            for span in spans
        ]
        self._settle(until)
        self._patience = max(BLOCK, len(self._text) - self._begin) + BLOCK // 8

    def _settle(self, until: int) -> None:
        gone = max(0, until - 2 * CONTEXT)
        self._text, self._places, self._begin = self._text[gone:], self._places[gone:], until - gone


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
