"""Whether a changed text still asks the same: what the label of an item hangs on, checked after every change.

The checks know nothing of how a text was changed. They read both texts and say what was lost, so that a perturbation
with a fault is found by them and counted, not used.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence

from tutelage.text.normalise import normalise
from tutelage.text.vary import DIALECTS, LEARNERS, LITTLE, NEGATION, SAME_WORDING, same_content, stems

_NUMBER = re.compile(
    r"\d+(?:[.,:/]\d+)*|\b(?:zero|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|thirteen|fourteen|"
    r"fifteen|sixteen|seventeen|eighteen|nineteen|twenty|thirty|forty|fifty|sixty|seventy|eighty|ninety|hundred|"
    r"thousand|million|half|twice|dozen)\b",
    re.IGNORECASE,
)
_TOKEN = re.compile(r"\w+(?:['\u2019]\w+)*")
_MARK = re.compile(r"\.{3,}|_{2,}|\u2026|\[[A-Z]+\]|\{\w*\}|<\w+>")
_TAG = re.compile(r"(?:,? isn't it| or not)\?", re.IGNORECASE)
_LETTERS = re.compile(r"[^\W_]+")
EDITED = 0.34
"""The largest share of the words that slips of the keyboard may reach."""


def numbers(text: str) -> list[str]:
    """Numbers in digits and in English words, in order."""
    return [found.lower() for found in _NUMBER.findall(text)]


def negations(text: str) -> int:
    """How many words turn a sentence round; `don't` counts as `do not` does, a question tag (`isn't it?`) does not."""
    text = _TAG.sub("?", text)
    return sum(bool(NEGATION.fullmatch(word)) or word.lower() == "ain't" for word in _TOKEN.findall(text))


def names(text: str) -> list[str]:
    """Words with a capital that no beginning of a sentence explains, each once."""
    found: dict[str, None] = {}
    for match in _TOKEN.finditer(text):
        before = text[: match.start()].rstrip(" \t\"'(\u00ab\u201c\u2018")
        if len(match.group()) > 1 and match.group()[0].isupper() and before and before[-1] not in ".!?:\n":
            found.setdefault(match.group())
    return list(found)


def marks(text: str) -> list[str]:
    """Blanks and placeholders (`...`, `___`, `[MASK]`): where they stand is part of the question."""
    return _MARK.findall(text)


def holds(text: str, phrase: str) -> bool:
    """Whether a phrase stands in a text as whole words; case, punctuation and look-alike letters apart."""
    wanted = _words(phrase)
    return bool(wanted) and f" {wanted} " in f" {_words(text)} "


def _often(phrase: str, text: str) -> int:
    return f" {_words(text).replace(' ', '  ')} ".count(f" {_words(phrase)} ")


def _words(text: str) -> str:
    return " ".join(_LETTERS.findall(normalise(text).text.lower()))


def kept_phrases(text: str, answers: Sequence[str]) -> list[str]:
    """What a change of letters may not touch: the answers that stand in the text, its numbers, negations and blanks,
    and every word with a capital, for the first word of a sentence may be a name too."""
    words = [word for word in _TOKEN.findall(text) if NEGATION.fullmatch(word) or word[0].isupper()]
    said = [each for each in answers if each and each in text]
    return list(dict.fromkeys([*said, *_NUMBER.findall(text), *words, *marks(text)]))


def lost(
    before: str, after: str, kind: str, *, answers: Sequence[str] = (), vocabulary: Collection[str] = ()
) -> str | None:
    """What the change of `before` into `after` by a perturbation `kind` lost, or None when the label still holds.

    `answers` are the texts that count (targets and choices): those that stand in `before` must stand in `after`.
    `vocabulary` are words that mean something where the text comes from: a slip must not make one into another.
    Kinds that are not known here are held to what every kind must keep.
    """
    if after == before:
        return "nothing changed"
    plain, changed = normalise(before).text, normalise(after).text
    if Counter(numbers(plain)) != Counter(numbers(changed)):
        return "a number changed"
    if negations(plain) != negations(changed):
        return "a negation changed"
    if Counter(marks(before)) != Counter(marks(after)):
        return "a blank changed"
    free = kind == "variant"  # somebody's own wording may name a name less often
    if any(_often(name, after) < (1 if free else _often(name, before)) for name in names(before)):
        return "a name changed"
    if any(holds(before, each) and not holds(after, each) for each in answers):
        return "the answer is no longer in the text"
    own = _OWN.get(kind)
    if own is not None and (fault := own(before, after)):
        return fault
    return _slips(before, after, vocabulary) if kind == "typos" else None


def _slips(before: str, after: str, vocabulary: Collection[str]) -> str | None:
    old, new = before.split(), after.split()
    if len(old) != len(new):
        return "words were joined or parted"
    changed = [(left, right) for left, right in zip(old, new, strict=True) if left != right]
    if len(changed) > max(1.0, EDITED * len(old)):
        return "too much changed"
    for left, right in changed:
        if not _one_slip(left, right):
            return "a word changed by more than a slip"
        if vocabulary and _words(right) in vocabulary and _words(right) != _words(left):
            return "a word became another word"
    return None


def _one_slip(left: str, right: str) -> bool:
    """Whether one letter was left out, doubled, exchanged with its neighbour or replaced."""
    start = 0
    while start < min(len(left), len(right)) and left[start] == right[start]:
        start += 1
    end = 0
    while end < min(len(left), len(right)) - start and left[-1 - end] == right[-1 - end]:
        end += 1
    old, new = left[start : len(left) - end], right[start : len(right) - end]
    return max(len(old), len(new)) <= 1 or (len(old) == 2 and old[::-1] == new)


def _same(read: Callable[[str], object], said: str) -> Callable[[str, str], str | None]:
    return lambda before, after: None if read(before) == read(after) else said


def _order(before: str, after: str) -> str | None:
    old, new = _TOKEN.findall(before), _TOKEN.findall(after)
    if Counter(old) != Counter(new):
        return "the words changed"
    return None if _carrying(old) == _carrying(new) else "the words that carry the meaning moved"


def _carrying(words: Sequence[str]) -> list[str]:
    return [word for word in words if word.lower() not in LITTLE or NEGATION.fullmatch(word)]


def _wording(before: str, after: str) -> str | None:
    free = stems(" ".join(SAME_WORDING))
    gone, come = stems(before) - stems(after), stems(after) - stems(before)
    return None if not (set(gone) | set(come)) - set(free) else "a content word changed"


def _content(before: str, after: str) -> str | None:
    return None if same_content(before, after) else "a content word changed"


def _around(before: str, after: str) -> str | None:
    return None if before.strip() in after else "the text itself changed"


_OWN: Mapping[str, Callable[[str, str], str | None]] = {
    "casing": _same(str.casefold, "more than the case changed"),
    "spacing": _same(lambda text: "".join(text.split()), "more than the spaces changed"),
    "punctuation": _same(lambda text: "".join(_LETTERS.findall(text)), "more than the punctuation changed"),
    "homoglyphs": _same(lambda text: normalise(text).text, "the normal form does not lead back"),
    "zero-width": _same(lambda text: normalise(text).text, "the normal form does not lead back"),
    "word-order": _order,
    "paraphrase": _wording,
    "prompt": _around,
    "distractor": _around,
    **{f"learner:{name}": _content for name in LEARNERS},
    **{f"dialect:{name}": _content for name in DIALECTS},
}
