"""Named filters over texts. A filter changes a text or drops it; every drop has a reason, a count and an example."""

from __future__ import annotations

import operator
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from tutelage.core.records import Record
from tutelage.text import pii

Filter = Literal["tidy", "html", "boilerplate", "encoding", "letters", "repetition", "short", "improbable"]
FILTERS: tuple[Filter, ...] = (
    "tidy", "html", "boilerplate", "encoding", "letters", "repetition", "short", "improbable",
)  # fmt: skip
"""In the order in which they run; the last one looks at a text beside all others of its source."""


@dataclass(slots=True)
class Text:
    """A document on its way through the stage."""

    id: str
    text: str
    source: str
    licence: str
    split: str
    meta: dict[str, Any] = field(default_factory=dict)


class Dropped(Record):
    """How much one reason dropped, with up to three examples (personal data already taken out)."""

    count: int = 0
    characters: int = 0
    examples: list[dict[str, str]] = Field(default_factory=list)


class Drops:
    """What was dropped, by reason."""

    def __init__(self) -> None:
        self.by_reason: dict[str, Dropped] = {}
        self.ids: dict[str, str] = {}

    def add(self, reason: str, text: Text) -> None:
        """Count one dropped text."""
        before = self.by_reason.get(reason, Dropped())
        examples = list(before.examples)
        if len(examples) < 3:
            shown = text.text[:160]
            shown = pii.redact(shown, pii.find(shown))
            examples.append({"id": text.id, "source": text.source, "text": shown})
        self.by_reason[reason] = Dropped(
            count=before.count + 1, characters=before.characters + len(text.text), examples=examples
        )
        self.ids[text.id] = reason


def clean(text: str, filters: Sequence[Filter] = FILTERS, shortest: int = 8) -> tuple[str, str | None]:
    """The text after the filters, and the reason to drop it (None to keep it)."""
    for name in FILTERS:
        if name not in filters:
            continue
        if name == "short":
            if len(text) < shortest:
                return text, "too short"
        elif name in _CHANGES:
            text = _CHANGES[name](text)
        elif name in _CHECKS and (reason := _CHECKS[name](text)):
            return text, reason
    return text, None


def improbable(texts: Sequence[str], groups: Sequence[str], margin: float = 1.5, least: int = 40) -> list[bool]:
    """Texts whose letters do not go together as elsewhere: shuffled, without spaces, in another script.

    Trigrams of bytes are counted over all texts, and over the texts of each group. A text is improbable when its mean
    log-probability per trigram lies `margin` nats below the median text's in both counts: a small group of another
    kind within a group is none. Groups of fewer than `least` texts give no measure.
    """
    rows = []
    for text in texts:
        codes = np.frombuffer(text.lower().encode(), dtype=np.uint8).astype(np.int64)
        rows.append((codes[:-2] * 65_536 + codes[1:-1] * 256 + codes[2:]) % _TRIGRAMS)
    found = _far(rows, margin, least)
    names = np.array(groups)
    for name in sorted(set(groups)):
        mine = np.flatnonzero(names == name)
        found[mine] &= _far([rows[int(place)] for place in mine], margin, least)
    return [bool(each) for each in found]


_TRIGRAMS = 1_048_573  # a prime near 2^20: room for the trigrams of any script


def _far(rows: Sequence[NDArray[np.int64]], margin: float, least: int) -> NDArray[np.bool_]:
    if len(rows) < least:
        return np.zeros(len(rows), dtype=np.bool_)
    counts = np.bincount(np.concatenate(rows), minlength=_TRIGRAMS)
    logs = np.log((counts + 0.5) / (counts.sum() + 0.5 * np.count_nonzero(counts)))
    means = np.array([logs[row].mean() if len(row) else 0.0 for row in rows])
    return np.asarray(means < np.median(means) - margin)


# -- changes

_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\u0080-\u009f\ufeff]")
_UNTIDY = re.compile(r"[\r\t\x00-\x08\x0b\x0c\x0e-\x1f\x7f]| \n|\n\n\n|  |\A\s|\s\Z")


def tidy(text: str) -> str:
    """Composed characters (NFC), one kind of line break, no control codes, no runs of blanks."""
    if not text.isascii():
        text = _CONTROL.sub("", unicodedata.normalize("NFC", text))
    if not _UNTIDY.search(text):
        return text
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    text = _CONTROL.sub("", text).replace("\t", " ")
    text = re.sub(r" {2,}", " ", text)
    text = re.sub(r" *\n *", "\n", text)
    return re.sub(r"\n{3,}", "\n\n", text).strip()


_TAG = re.compile(
    r"<(?:!doctype|/?(?:html|body|div|p|br|a|span|ul|ol|li|table|tr|td|h[1-6]|nav|footer|header)\b)", re.I
)
_FURNITURE = re.compile(
    r"\b(?:nav|navbar|navigation|menu|footer|header|sidebar|breadcrumbs?|cookie|banner|share|social|small|advert)\b",
    re.I,
)
_SKIPPED = frozenset(("script", "style", "nav", "footer", "header", "aside", "form", "button", "head", "noscript"))
_VOID = frozenset(("br", "img", "hr", "input", "meta", "link", "wbr", "source", "area", "col", "embed"))
_BLOCKS = frozenset(
    ("p", "div", "br", "li", "tr", "table", "ul", "ol", "section", "article", "h1", "h2", "h3", "h4", "h5", "h6")
)


def html(text: str) -> str:
    """The readable text of a page: no tags, no navigation, footers, scripts and other furniture."""
    if "<" not in text or not _TAG.search(text):
        return text
    page = _Page()
    page.feed(text)
    page.close()
    return tidy("".join(page.parts))


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self._open: list[tuple[str, bool]] = []  # (tag, whether it hides what is inside)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in _BLOCKS:
            self.parts.append("\n")
        if tag in _VOID:
            return
        marked = any(name in ("class", "id", "role") and _FURNITURE.search(value or "") for name, value in attrs)
        self._open.append((tag, tag in _SKIPPED or (marked and tag not in ("html", "body"))))

    def handle_endtag(self, tag: str) -> None:
        if tag in _BLOCKS:
            self.parts.append("\n")
        for place in range(len(self._open) - 1, -1, -1):
            if self._open[place][0] == tag:
                del self._open[place:]
                return

    def handle_data(self, data: str) -> None:
        if not any(hidden for _, hidden in self._open):
            self.parts.append(data)


_BOILERPLATE = re.compile(
    r"all rights (?:reserved|kept)|copyright (?:©|\(c\))|^\W*©|\bcookies?\b.*\b(?:accept|use|policy|remember)\b|"
    r"\b(?:accept|use|policy|remember)\b.*\bcookies\b|"
    r"^\W*(?:back to top|sign in|log ?in|log out|subscribe|read more.*|print this page|send to a friend|"
    r"share (?:this|on).*|click here.*|skip to content|privacy policy|terms of (?:use|service)|home|menu)\W*$|"
    r"(?:[^|\n]{1,30}\|){2,}[^|\n]{1,30}$",
    re.I,
)


def boilerplate(text: str) -> str:
    """Without short lines that belong to every page of a site (menus, rights, cookies, share buttons)."""
    lowered = text.lower()
    if not any(hint in lowered for hint in _HINTS):
        return text
    kept = [line for line in text.split("\n") if len(line) > 160 or not _BOILERPLATE.search(line.strip())]
    return tidy("\n".join(kept))


_HINTS = (
    *("rights", "copyright", "©", "cookie", "back to", "sign in", "log", "subscribe", "read more", "print this"),
    *("send to", "share ", "click here", "skip to", "privacy", "terms of", "|", "home", "menu"),
)
"""A text without any of these has no such line."""

# -- checks

_MOJIBAKE = re.compile(
    r"Ã[\u0080-\u00bf€‚ƒ„…†‡ˆ‰Š‹Œ]|Â[\u00a0-\u00bf]|â€[\u0080-\u00bf™œž“”˜¦]?|ï¿½|\ufffd|[ÐÑ][\u0080-\u00bf]"
)
_WORD = re.compile(r"[a-zà-öø-ÿ]{2,}", re.I)
_MUTE = re.compile(r"\b[bcdfghjklmnpqrstvwxzç]{2,}\b", re.I)
_LONG = re.compile(r"[a-zà-öø-ÿ]{31,}", re.I)
_RUN = re.compile(r"([^\s.\-_*=~#])\1{7,}")


def encoding(text: str) -> str | None:
    """Characters that went through a wrong encoding, or were lost in one."""
    if text.isascii():
        return None
    bad = len(_MOJIBAKE.findall(text))
    return "broken characters" if bad >= 2 or bad > 0.005 * len(text) else None


def letters(text: str) -> str | None:
    """Too few letters, or words that no tongue could speak."""
    solid = len(text) - text.count(" ") - text.count("\n")
    if sum(map(str.isalpha, text)) < 0.5 * solid:
        return "few letters"
    pieces = text.split()
    mute = len(_MUTE.findall(text))
    long = len(_LONG.findall(text)) if max(map(len, pieces), default=0) > 30 else 0
    if not long and mute <= 0.2 * len(pieces):
        return None
    words = len(_WORD.findall(text))
    return "no words" if (words >= 4 and mute > 0.3 * words) or long > 0.1 * words else None


def repetition(text: str) -> str | None:
    """The same character, word or line again and again."""
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    if len(lines) >= 4 and len(set(lines)) < 0.5 * len(lines):
        return "repetitive"
    if _RUN.search(text):
        return "repetitive"
    words = text.lower().split()
    if len(words) < 10:
        return None
    if any(map(operator.eq, words, words[1:])):
        rows = zip(words, words[1:], words[2:], strict=False)
        same = sum(one == two == three and _spoken(one) for one, two, three in rows)
        if same > max(5, 0.1 * len(words)):
            return "repetitive"
    if len(words) < 40:
        return None
    triples = Counter(zip(words, words[1:], words[2:], strict=False))
    often = [triple for triple, count in triples.items() if count > 0.1 * len(words)]
    return "repetitive" if any(all(map(_spoken, triple)) for triple in often) else None


def _spoken(word: str) -> bool:
    """A word, not a mark such as `*` or `<unk>`, which may stand in rows."""
    return word[0].isalpha()


_CHANGES: dict[str, Callable[[str], str]] = {"tidy": tidy, "html": html, "boilerplate": boilerplate}
_CHECKS: dict[str, Callable[[str], str | None]] = {"encoding": encoding, "letters": letters, "repetition": repetition}
