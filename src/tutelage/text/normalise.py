"""One normal form of a text, with a map back to the original characters.

What is shown and what is compared are two things: a guard, a duplicate filter and a PII detector read the normal form,
and what they find is marked in the text as it was given. `normalise` therefore never loses a position.

What it does, in this order: compatibility form (NFKC) of each base character with its marks; characters without ink
(zero-width, bidirectional controls, tags, variation selectors, soft hyphens, control codes) out; every kind of blank to
one space and runs to one; every line break to a newline; letters of other scripts that look Latin, inside words that
mix scripts or stand in Latin text, to Latin.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

_PLAIN = re.compile(r"[\n!-~]*(?: [\n!-~]+)* ?")
_PIECE = re.compile(r"[\x00-\x7f]+|[^\x00-\x7f]+")
_WORD = re.compile(r"[^\W\d_]+")
_LATIN = re.compile(r"[A-Za-z\u00c0-\u024f]")
_BREAKS = frozenset("\n\r\x0b\x0c\x85\u2028\u2029")
_NO_INK = frozenset(
    chr(code)
    for block in (
        (0x034F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x2800, 0x3164, 0xFFA0),
        *(range(0x180B, 0x1810), range(0xFE00, 0xFE10), range(0xE0000, 0xE01F0)),
    )
    for code in block
)

# Letters of other scripts that most fonts draw like a Latin letter.
_LOOKS: dict[str, str] = {
    "a": "аɑα", "b": "Ьƅ", "c": "сϲᴄ", "d": "ԁɗ", "e": "еҽє", "f": "ғſ", "g": "ɡց", "h": "һհ", "i": "іıιɩ",
    "j": "јϳ", "k": "кκᴋ", "l": "ӏⅼ", "m": "мᴍ", "n": "пոռ", "o": "оοσօᴏ", "p": "рρ", "q": "ԛզ", "r": "гᴦ",
    "s": "ѕꜱ", "t": "тτᴛ", "u": "υսᴜ", "v": "ѵνᴠ", "w": "ԝωѡ", "x": "хχ", "y": "уγү", "z": "ᴢ",
    "A": "АΑ", "B": "ВΒ", "C": "СϹ", "D": "Ꭰ", "E": "ЕΕ", "F": "Ϝ", "G": "Ԍ", "H": "НΗ", "I": "ІΙӀ", "J": "Ј",
    "K": "КΚ", "L": "Ꮮ", "M": "МΜ", "N": "Ν", "O": "ОΟՕ", "P": "РΡ", "Q": "Ԛ", "R": "Ꭱ", "S": "ЅՏ", "T": "ТΤ",
    "U": "Ս", "V": "Ѵ", "W": "Ԝ", "X": "ХΧ", "Y": "ҮΥ", "Z": "Ζ",
}  # fmt: skip
_FOLD = {ord(other): latin for latin, others in _LOOKS.items() for other in others}


@dataclass(frozen=True, slots=True)
class Normal:
    """A normal form. Character `i` of `text` was made from the original characters `starts[i]` to `ends[i]`."""

    text: str
    starts: Sequence[int]
    ends: Sequence[int]

    def span(self, start: int, end: int) -> tuple[int, int]:
        """The original characters behind the normal characters `start` to `end` (exclusive)."""
        if start >= end:
            here = self.starts[start] if start < len(self.text) else (self.ends[-1] if self.text else 0)
            return here, here
        return self.starts[start], self.ends[end - 1]


def normalise(text: str, *, fold: bool = False) -> Normal:
    """The normal form of `text`; with `fold` also case-folded. Linear in its length; plain ASCII costs almost nothing.

    >>> found = normalise("pass\\u200bword")
    >>> found.text, found.span(0, 8)
    ('password', (0, 9))
    """
    if _PLAIN.fullmatch(text):
        return Normal(text.lower() if fold else text, range(len(text)), range(1, len(text) + 1))
    out: list[str] = []
    starts: list[int] = []
    ends: list[int] = []
    for start, end, plain in _pieces(text):
        piece = text[start:end]
        if plain and not (piece[0] == " " and out and out[-1][-1] == " "):
            out.append(piece.lower() if fold else piece)
            starts.extend(range(start, end))
            ends.extend(range(start + 1, end + 1))
            continue
        places = [(start, end)] if not plain else [(place, place + 1) for place in range(start, end)]
        for first, last in places:
            shown = text[first:last]
            if not shown.isascii():
                shown = "".join(char for char in unicodedata.normalize("NFKC", shown) if _has_ink(char))
            for char in shown.casefold() if fold else shown:
                if char in _BREAKS:
                    char = "\n"
                    if out and out[-1][-1] == "\n" and first and text[first - 1 : last] == "\r\n":
                        ends[-1] = last
                        continue
                elif char.isspace():
                    char = " "
                elif char < " " or char == "\x7f":
                    continue
                if char == " " and out and out[-1][-1] == " ":
                    ends[-1] = last
                    continue
                out.append(char)
                starts.append(first)
                ends.append(last)
    joined = "".join(out)
    latin = _latinise(joined)
    if latin == text or (latin == joined and unicodedata.is_normalized("NFKC", joined)):
        return Normal(latin, starts, ends)
    again = normalise(latin, fold=fold)  # a mark may join the letter that now stands before it
    return Normal(again.text, [starts[start] for start in again.starts], [ends[end - 1] for end in again.ends])


def _pieces(text: str) -> list[tuple[int, int, bool]]:
    """Runs of plain ASCII as (start, end, True); base characters with the marks that NFKC may join to them as False."""
    found: list[tuple[int, int, bool]] = []
    for match in _PIECE.finditer(text):
        start, end = match.span()
        if match[0].isascii():
            base = end < len(text) and _joins(text[end])  # its last character may take a mark
            stop = end - base
            if stop > start and _PLAIN.fullmatch(text, start, stop):
                found.append((start, stop, True))
            else:
                found.extend((place, place + 1, False) for place in range(start, stop))
            found.extend((place, place + 1, False) for place in range(stop, end))
            continue
        for place in range(start, end):
            if _joins(text[place]) and found and not found[-1][2]:
                found[-1] = (found[-1][0], place + 1, False)
            else:
                found.append((place, place + 1, False))
    return found


def _joins(char: str) -> bool:
    """Whether NFKC may join a character to the one before it: marks, and the later parts of Hangul syllables."""
    return bool(unicodedata.combining(char)) or unicodedata.category(char) == "Mn" or "\u1160" <= char <= "\u11ff"


def _has_ink(char: str) -> bool:
    return char.isascii() or not (unicodedata.category(char) == "Cf" or char in _NO_INK)


def _latinise(text: str) -> str:
    """Look-alike letters to Latin, where a reader would read Latin. One character for one, so no position moves."""
    if text.isascii():
        return text
    text = _WORD.sub(lambda match: _fold_word(match[0], disguised=False), text)
    latin = len(_LATIN.findall(text))
    if 2 * latin > sum(len(word) for word in _WORD.findall(text)):
        text = _WORD.sub(lambda match: _fold_word(match[0], disguised=True), text)
    return text


def _fold_word(word: str, *, disguised: bool) -> str:
    """A word that mixes scripts, or (`disguised`) one whose every letter has a Latin twin."""
    if word.isascii():
        return word
    folded = word.translate(_FOLD)
    return folded if _LATIN.search(word) or (disguised and folded.isascii()) else word
