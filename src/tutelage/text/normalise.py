"""One normal form of a text, with a map back to the original characters.

What is shown and what is compared are two things: a guard, a duplicate filter and a PII detector read the normal form,
and what they find is marked in the text as it was given. `normalise` therefore never loses a position.

What it does, in this order: compatibility form (NFKC) of each base character with its marks; characters without ink
(zero-width, bidirectional controls, variation selectors, soft hyphens, control codes) out, but for the joiners that
Persian, the scripts of India and emoji need; ASCII hidden in tag characters and variation selectors shown; every kind
of blank to one space and runs to one; every line break to a newline; letters of other scripts that look Latin, inside
words that mix scripts or stand in Latin text, to Latin.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

_PLAIN = re.compile(r"[\n!-~]*(?: [\n!-~]+)* ?")
_SOLID = re.compile(r"[!-~][\n!-~]*(?: [\n!-~]+)*")
_PIECE = re.compile(r"[\x00-\x7f]+|[^\x00-\x7f]+")
_WORD = re.compile(r"[^\W\d_]+")
_LATIN = re.compile(r"[A-Za-z\u00c0-\u024f]")
_BREAKS = frozenset("\n\r\x0b\x0c\x85\u2028\u2029")
MARKS = 30
"""Marks that are read together with the letter they stand on (the Stream-Safe Text Format of UAX #15): putting more of
them in order would take time with the square of their number."""

_CONTROLS = ((0x00, 0x08), (0x0E, 0x1B), (0x7F, 0x84), (0x86, 0x9F))
_DRAWN_AS_NOTHING = (
    (0xAD, 0xAD), (0x34F, 0x34F), (0x600, 0x605), (0x61C, 0x61C), (0x6DD, 0x6DD), (0x70F, 0x70F), (0x890, 0x891),
    (0x8E2, 0x8E2), (0x115F, 0x1160), (0x17B4, 0x17B5), (0x180B, 0x180F), (0x200B, 0x200F), (0x202A, 0x202E),
    (0x2060, 0x206F), (0x2800, 0x2800), (0x3164, 0x3164), (0xFE00, 0xFE0F), (0xFEFF, 0xFEFF), (0xFFA0, 0xFFA0),
    (0xFFF0, 0xFFFB), (0x110BD, 0x110BD), (0x110CD, 0x110CD), (0x13430, 0x1343F), (0x1BCA0, 0x1BCA3),
    (0x1D173, 0x1D17A), (0xE0000, 0xE001F), (0xE007F, 0xE010F), (0xE016F, 0xE0FFF),
)  # fmt: skip
"""Format characters (Cf) and what Unicode calls default ignorable."""
_NO_INK = frozenset(chr(code) for first, last in _CONTROLS + _DRAWN_AS_NOTHING for code in range(first, last + 1))
HIDDEN = {chr(base + code): chr(code) for base in (0xE0000, 0xE00F0) for code in range(32, 127)}
"""ASCII as tag characters, and as bytes in the supplementary variation selectors: nobody sees it, a model reads it."""


def _class(*blocks: tuple[int, int]) -> str:
    return "[" + "".join(f"\\U{first:08x}-\\U{last:08x}" for first, last in blocks) + "]"


_MARKS = ((0x300, 0x36F), (0x483, 0x489), (0x1AB0, 0x1AFF), (0x1DC0, 0x1DFF), (0x20D0, 0x20FF), (0xFE20, 0xFE2F))
_BETWEEN = _class(*_CONTROLS, *_DRAWN_AS_NOTHING, *_MARKS) + "*"
_SECRET = re.compile(f"(?:{_class((0xE0020, 0xE007E), (0xE0110, 0xE016E))}{_BETWEEN})+")
_INKLESS = re.compile(_class(*_CONTROLS, *_DRAWN_AS_NOTHING))
_ON_ASCII = re.compile(
    r"(?<![^!-~])" + _class((0x300, 0x36F), (0x483, 0x489), (0x1AB0, 0x1AFF), (0x1DC0, 0x1DFF), (0x20D0, 0x20FF)) + "+"
)
_JOINERS = frozenset("\u200c\u200d")
_JOINED = ((0x600, 0x8FF), (0x900, 0x109F), (0x1780, 0x18AF))
"""Where a joiner is spelling: Arabic and Syriac script, the scripts of India, Tibet, Burma, Cambodia, Mongolia."""

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
_SKELETON = {code: code for code in range(0x600)} | _FOLD
"""The same with the letters around them: a miss in a table costs more than a hit."""


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


def normalise(text: str, *, fold: bool = False, latin: bool = False) -> Normal:
    """The normal form of `text`; with `fold` also case-folded. Linear in its length; plain ASCII costs almost nothing.

    With `latin` every look-alike becomes Latin, wherever it stands: the form to find patterns of ASCII in. It is local:
    what follows a blank does not change what stands before it.

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
            if shown[0] in HIDDEN:  # one alone is padding between letters, two are a message
                shown = HIDDEN[shown[0]] if _in_company(text, first, last) else ""
            elif not shown.isascii():
                joins = not latin and shown[0] in _JOINERS and out and _takes_joiner(out[-1][-1])
                shown = unicodedata.normalize("NFKC", shown)
                shown = "".join(char for at, char in enumerate(shown) if char not in _NO_INK or (joins and not at))
            for char in shown.casefold() if fold else shown:
                if char in _BREAKS:
                    char = "\n"
                    if out and out[-1][-1] == "\n" and first and text[first - 1 : last] == "\r\n":
                        ends[-1] = last
                        continue
                elif char.isspace():
                    char = " "
                elif char in _NO_INK and char not in _JOINERS:
                    continue
                if char == " " and out and out[-1][-1] == " ":
                    ends[-1] = last
                    continue
                out.append(char)
                starts.append(first)
                ends.append(last)
    joined = "".join(out)
    found = joined.translate(_FOLD) if latin else _latinise(joined)
    if found == text or (found == joined and unicodedata.is_normalized("NFKC", joined)):
        return Normal(found, starts, ends)
    again = normalise(found, fold=fold, latin=latin)  # a mark may join the letter that now stands before it
    return Normal(again.text, [starts[start] for start in again.starts], [ends[end - 1] for end in again.ends])


def _in_company(text: str, first: int, last: int) -> bool:
    """Whether a hidden character stands beside another, with nothing between them but marks and what has no ink."""
    while last < len(text) and (text[last] in _NO_INK or unicodedata.combining(text[last])):
        last += 1
    while first and (text[first - 1] in _NO_INK or unicodedata.combining(text[first - 1])):
        first -= 1
    return text[last : last + 1] in HIDDEN or (first > 0 and text[first - 1] in HIDDEN)


def before_hidden(text: str) -> int:
    """Where the hidden characters at the end of a text begin: what they say is known once more text has come."""
    end = len(text)
    while end and text[end - 1] in HIDDEN:
        end -= 1
    return end


def inked(text: str) -> str:
    """Without the characters that have no ink, hidden ASCII apart. Character by character, so the same in parts."""
    return text if text.isprintable() else _INKLESS.sub("", text)


def skeleton(word: str) -> str:
    """The form in which a run without blanks is counted (after UTS #39): compatibility form, case folded, every
    look-alike as its Latin letter, no marks on ASCII; what tag characters and variation selectors hide comes behind a
    space, so that neither hides the other.

    >>> skeleton("\u0440\u0430\u0455\u0455")
    'pass'
    """
    if word.isascii():
        return word.lower()
    secrets = ("".join(HIDDEN.get(char, "") for char in secret) for secret in _SECRET.findall(word))
    hidden = "".join(secret for secret in secrets if len(secret) > 1)  # one alone is padding between letters
    shown = unicodedata.normalize("NFKC", _SECRET.sub("", word)).translate(_SKELETON).casefold().translate(_SKELETON)
    shown = _ON_ASCII.sub("", shown)
    return f"{shown} {hidden.lower()}".strip() if hidden.strip() else shown


def latin_letters(text: str) -> str:
    """Each character as the one it looks like or stands for, one for one, so that no position moves: full-width and
    bold forms, letters of other scripts that look Latin."""
    if text.isascii():
        return text
    return text.translate(_ALIKE)


class _Alike(dict[int, int]):
    """Made as it is asked; it keeps what is common or changes."""

    def __missing__(self, code: int) -> int:
        plain = unicodedata.normalize("NFKC", chr(code))
        found = _FOLD.get(ord(plain), plain) if len(plain) == 1 else chr(code)
        if code < 0x3000 or ord(found) != code:
            self[code] = ord(found)
        return ord(found)


_ALIKE = _Alike()


def _pieces(text: str) -> list[tuple[int, int, bool]]:
    """Runs of plain ASCII as (start, end, True); base characters with the marks that NFKC may join to them as False."""
    found: list[tuple[int, int, bool]] = []
    for match in _PIECE.finditer(text):
        start, end = match.span()
        if match[0].isascii():
            base = end < len(text) and _joins(text[end])  # its last character may take a mark
            stop = end - base
            at = start
            for solid in _SOLID.finditer(text, start, stop):
                found.extend((place, place + 1, False) for place in range(at, solid.start()))
                at = solid.end()
                found.append((solid.start(), at, True))
            found.extend((place, place + 1, False) for place in range(at, stop))
            found.extend((place, place + 1, False) for place in range(stop, end))
            continue
        for place in range(start, end):
            if _joins(text[place]) and found and not found[-1][2] and place - found[-1][0] <= MARKS:
                found[-1] = (found[-1][0], place + 1, False)
            else:
                found.append((place, place + 1, False))
    return found


def _joins(char: str) -> bool:
    """Whether NFKC may join a character to the one before it: marks, and the later parts of Hangul syllables."""
    mark = unicodedata.combining(char) or unicodedata.category(char) == "Mn" or "\u1160" <= char <= "\u11ff"
    return bool(mark) and char not in HIDDEN


def _takes_joiner(char: str) -> bool:
    """Whether a joiner after it is spelling: after a letter or mark of a joining script, or a sign such as an emoji."""
    kind = unicodedata.category(char)
    if kind in ("So", "Sk"):
        return not char.isascii()
    return kind[0] in "LM" and char not in _JOINERS and any(first <= ord(char) <= last for first, last in _JOINED)


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
