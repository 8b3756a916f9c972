"""Personal data in text: where it stands, and the text without it.

Each detector is a cheap pattern followed by a check (Luhn for cards, ISO 7064 mod 97-10 for IBAN, `ipaddress` for
addresses of machines), because what looks like personal data is far more frequent than what is. A detector runs only
when its rarest character occurs. Finding is on the normal form (text/normalise.py), and local: no detector looks back
more than `CONTEXT` characters, and where it stops looking forward can be read from the text. So `read` can say of a
text that still grows what is found for good, and where the first thing begins that more text may make or change.
"""

from __future__ import annotations

import ipaddress
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from typing import NamedTuple

from tutelage.core.records import Span
from tutelage.text.normalise import Normal, normalise

TYPES = ("email", "phone", "ip", "card", "iban", "key", "address")
"""Every type there is; where two finds overlap the longer one stands."""
CONTEXT = 64
"""Characters before it that tell what something is."""
BLOCK = 8192
"""Characters a key in a file's form (PEM) may have between its first line and its last."""
_NEAR = 48
"""Characters from where a secret is named to the secret, at most."""
_LONGEST = 1400
"""Characters of the longest find, keys apart."""

_EMAIL = re.compile(
    r"(?<![\w.+%-])[a-z0-9_](?:[\w.+%'-]{0,62}[\w+-])?@(?:[a-z0-9](?:[a-z0-9-]{0,62}[a-z0-9])?\.){1,20}([a-z]{2,24})(?![\w@-])",
    re.IGNORECASE,
)
_HINT = re.compile(r"[\d@]|-----BEGIN")  # every type holds a digit, an at sign, or this opening
_FILE_ENDINGS = frozenset(
    ("png", "jpg", "jpeg", "gif", "svg", "webp", "bmp", "css", "js", "ts", "html", "txt", "pdf", "zip", "exe", "json")
)

_PHONE = re.compile(r"(?<![\w.,:/@#$€£-])(\+|00)?\(?\d(?:[ ().\u2010-\u2014/-]{0,2}\d){5,15}(?![\w@%]|[.,:/-]\d)")
_DATE = re.compile(r"(?:19|20)\d\d[-./ ]\d{1,2}[-./ ]\d{1,2}|\d{1,2}[-./ ]\d{1,2}[-./ ](?:19|20)?\d\d")
_CALLED = re.compile(
    r"\b(?:phone|tel(?:ephone)?|mobile|cell|fax|call(?: me| us)?|ring(?: me| us)?|whatsapp|sms|text me|telefon|tél|"
    r"number is|reach (?:me|us)|dial)\b[^\d\n]{0,24}$",
    re.IGNORECASE,
)
_NUMBERED = re.compile(
    r"\b(?:order|invoice|ticket|case|part|item|article|serial|model|ref(?:erence)?|id|isbn|issn|sku|batch|lot|parcel|"
    r"tracking|account|customer|receipt|version|room|locker|code|form|page|no|nr)\.?(?: (?:no|nr|number|id|code)\.?)?"
    r"(?: is| was)?[\s:#]*$",
    re.IGNORECASE,
)

_IP4 = re.compile(r"(?<![\w.-])(?:\d{1,3}\.){3}\d{1,3}(?![\w-]|\.\d)")
_IP6 = re.compile(
    r"(?<![\w:.])[0-9a-f]{0,4}(?::[0-9a-f]{0,4}){2,7}(?::(?:\d{1,3}\.){3}\d{1,3})?(?![\w:])", re.IGNORECASE
)
_VERSION = re.compile(
    r"\b(?:v|ver|version|release|firmware|build|section|chapter|clause|paragraph|§)\.?\s*$", re.IGNORECASE
)

_CARD = re.compile(r"(?<![\w.,-])[2-6](?:[ -]?\d){12,18}(?![\w-]|[.,]\d)")

_IBAN_LENGTH = dict(
    AD=24, AE=23, AL=28, AT=20, AZ=28, BA=20, BE=16, BG=22, BH=22, BR=29, BY=28, CH=21, CR=22, CY=28, CZ=24, DE=22,
    DK=18, DO=28, EE=20, EG=29, ES=24, FI=18, FO=18, FR=27, GB=22, GE=22, GI=23, GL=18, GR=27, GT=28, HR=21, HU=28,
    IE=22, IL=23, IQ=23, IS=26, IT=27, JO=30, KW=30, KZ=20, LB=28, LC=32, LI=21, LT=20, LU=20, LV=21, MC=27, MD=24,
    ME=22, MK=19, MR=27, MT=31, MU=30, NL=18, NO=15, PK=24, PL=28, PS=29, PT=25, QA=29, RO=24, RS=22, SA=24, SC=31,
    SE=24, SI=19, SK=24, SM=27, ST=25, SV=28, TL=23, TN=24, TR=26, UA=29, VA=22, VG=24, XK=20,
)  # fmt: skip

_IBAN = re.compile(rf"(?<![a-z0-9])({'|'.join(_IBAN_LENGTH)})\d\d", re.IGNORECASE)

_BLOCK_BEGINS = re.compile(r"-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----")
_BLOCK_ENDS = re.compile(r"-----END [A-Z ]{0,40}PRIVATE KEY-----")
_BLOCK_BODY = re.compile(
    r"(?:\s|\\[nr]|[A-Za-z0-9+/=]{16,}|(?:Proc-Type|DEK-Info):[^\n\\]{0,80})*+[A-Za-z0-9+/=]{0,15}"
)
_BLOCK_LINE = re.compile(r"[A-Za-z0-9+/=]{16}")
_PREFIXES = r"[spr]k[-_]|gh[pousr]_|github_pat_|glpat-|hf_|AKIA|ASIA|AIza|xox[abeoprs]-"
_KEYS = re.compile(
    r"\b[spr]k[-_][A-Za-z0-9_-]{16,}+"
    r"|\bgh[pousr]_[A-Za-z0-9]{30,}+|\bgithub_pat_[A-Za-z0-9_]{22,}+|\bglpat-[A-Za-z0-9_-]{20,}+|\bhf_[A-Za-z0-9]{30,}+"
    r"|\b(?:AKIA|ASIA)[0-9A-Z]{16}\b|\bAIza[0-9A-Za-z_-]{35}|\bxox[abeoprs]-[A-Za-z0-9-]{10,}+"
    r"|(?<![\w-])eyJ[A-Za-z0-9_-]{8,}+\.eyJ[A-Za-z0-9_-]{8,}+\.[A-Za-z0-9_-]{8,}+"
)
_KEY_STARTS = ("sk", "pk", "rk", "gh", "glpat-", "hf_", "AKIA", "ASIA", "AIza", "xox", "eyJ")
_KEY_NAMES = ("key", "token", "bearer", "secret", "password", "pwd")
_NAMED = (
    r"\b(?:api[ _-]?key|access[ _-]?(?:key|token)|auth[ _-]?token|secret(?:[ _-]?key)?|bearer|token|password|pwd)\b"
    r"(?:\s{0,8}(?:is|[:=]))?%s\s{0,8}[\"'`]?"
)
_NAMED_KEY = re.compile(_NAMED % "" + r"([A-Za-z0-9_\-./+=]{12,}+)", re.IGNORECASE)

_STREETS = "straße|strasse|gasse|weg|allee|platz"
_ADDRESS = re.compile(
    r"(?<![\w.,-])\d{1,5}[a-zA-Z]? (?:[A-Z][\w'’-]{1,30} ){1,3}"
    r"(?:Street|St|Road|Rd|Avenue|Ave|Lane|Ln|Drive|Dr|Boulevard|Blvd|Way|Court|Ct|Place|Pl|Square|Sq|Terrace|Close|"
    r"Row|Walk|Gardens|Crescent|Alley|Quay)\b\.?"
    rf"|(?<![\w-])[A-ZÄÖÜ][\w-]{{1,60}}(?:{_STREETS}) \d{{1,4}}[a-z]?\b"
)

# What more text may still make or change, each up to the end of the text. Where it begins, nothing may be cut.
_OPEN: dict[str, str] = {
    "email": r"(?<![\w.+%-])[a-zA-Z0-9_][\w.+%'-]{0,63}(?:@[\w.-]{0,1330})?",
    "phone": r"(?<![\w.,:/@#$€£-])(?:\+\(?|\()?(?:\d[ ().\u2010-\u2014/-]{0,2}){0,17}[.,:/-]?",
    "ip": r"(?<![\w.-])\d{1,3}(?:\.\d{0,3}){0,4}|(?<![\w:.])[0-9a-fA-F]{0,4}(?::[0-9a-fA-F]{0,4}){0,9}[\d.]{0,15}",
    "card": r"(?<![\w.,-])[2-6](?:[ -]?\d){0,18}[ .,-]?",
    "iban": rf"(?<![a-zA-Z0-9])(?:[a-zA-Z]{{1,2}}|(?i:{'|'.join(_IBAN_LENGTH)})\d{{1,2}}(?: ?[a-zA-Z0-9]){{0,30}} ?)",
    "address": r"(?<![\w.,-])\d{1,5}[a-zA-Z]?(?: (?:[A-Z][\w'’-]{1,30} ){0,3}(?:[A-Z][\w'’-]{0,30}\.?)?)?"
    r"|(?<![\w-])[A-ZÄÖÜ][\w-]{0,70}" + rf"|(?<![\w-])[A-ZÄÖÜ][\w-]{{1,60}}(?:{_STREETS}) \d{{0,4}}[a-z]?",
    "key": r"-{1,4}|-----[BEGIN]{0,5}(?: [A-Z ]{0,40}-{0,5})?|\b[A-Za-z_-]{1,11}",
}
_OPEN_KEY = re.compile(rf"(?:\b(?:{_PREFIXES})[A-Za-z0-9_-]*+|(?<![\w-])eyJ[A-Za-z0-9_.-]*+)\Z")
_OPEN_NAMED = re.compile(_NAMED % "?" + r"([A-Za-z0-9_\-./+=]*+)\Z", re.IGNORECASE)
_RUN, _VALUE, _BODY = (re.compile(rf"[{chars}]*+") for chars in (r"\w.-", r"\w./+=-", r"\w+/=\s\\"))
_NOT_RUN, _NOT_VALUE = re.compile(r"[^\w.-]"), re.compile(r"[^\w./+=-]")
_RUN_CHARS = "".join(chr(code) for code in range(128) if chr(code).isalnum()) + "_.-"


def find(text: str, types: Iterable[str] = TYPES) -> list[Span]:
    """Personal data in `text` as spans of the text as given, in order and not overlapping. Unknown types: ValueError.

    >>> [span.type for span in find("Write to Ann.Lee@Example.org or call +44 20 7946 0958.")]
    ['email', 'phone']
    """
    wanted = set(types)
    if unknown := wanted - set(TYPES):
        raise ValueError(f"unknown types of personal data {sorted(unknown)}; there are {', '.join(TYPES)}")
    if not _HINT.search(text):
        return []
    normal = normalise(text, latin=True)
    if not _HINT.search(normal.text):
        return []
    raw = _found(normal.text, 0, wanted)
    return located(_without_overlap([span for _, _, span in raw if span is not None]), normal)


def located(spans: Sequence[Span], normal: Normal) -> list[Span]:
    """Spans of a normal form as spans of the text it was made from."""
    if isinstance(normal.starts, range):
        return list(spans)
    moved = ((*normal.span(span.start, span.end), span) for span in spans)
    return [span.model_copy(update={"start": start, "end": end}) for start, end, span in moved]


class Reading(NamedTuple):
    """What is known of a text that may go on."""

    spans: list[Span]
    """Found for good; all end at or before `until`."""
    until: int
    """Nothing that begins before it changes with what follows; nothing found crosses it."""
    ends: re.Pattern[str] | None = None
    """Without this in what follows, what is open stays open: no need to read again. None: read again."""
    rest: re.Pattern[str] | None = None
    """What belongs to it, if it is taken for a secret before its end is known."""


def read(text: str, begin: int, types: Iterable[str] = TYPES, *, last: bool = False) -> Reading:
    """Personal data in a normal form (`normalise` with `latin`) from `begin` on; what stands before is context.

    Unless it is the `last` of the text, what may still be open at its end is left to the next call, which must begin
    at `until`.
    """
    wanted = set(types)
    raw = _found(text, begin, wanted)
    until, ends, rest = (len(text), None, None) if last else _open(text, begin, wanted)
    for start, end, _ in sorted(raw, key=lambda each: -each[1]):
        if start < until < end:
            until, ends = start, ends if start == until else None
    spans = [span for _, end, span in raw if span is not None and end <= until]
    return Reading(_without_overlap(spans), until, ends, rest)


def _open(text: str, begin: int, wanted: set[str]) -> tuple[int, re.Pattern[str] | None, re.Pattern[str] | None]:
    """Where the first thing begins that may still become personal data, what would end it, and what belongs to it."""
    size = len(text)
    if "key" in wanted:
        for start, _, closed in _blocks(text, begin):
            if not closed:
                return start, _BLOCK_ENDS, _BODY
    found = _opening(frozenset(wanted)).search(text, max(begin, size - _LONGEST))
    until, ends, rest = found.start() if found else size, None, None
    if "key" in wanted:
        # only what stands in the last run of their characters can reach the end of the text
        run, value = (len(text.rstrip(chars)) for chars in (_RUN_CHARS, _RUN_CHARS + "/+="))
        shaped = _OPEN_KEY.search(text, max(begin, run))
        if shaped is not None and shaped.start() <= until:
            until, ends, rest = shaped.start(), _NOT_RUN, _RUN
        named = _OPEN_NAMED.search(text, max(0, begin - _NEAR, value - _NEAR))
        if named is not None and begin <= named.start(1) < min(until, size):
            until, ends, rest = named.start(1), _NOT_VALUE, _VALUE
    return until, ends, rest


@cache
def _opening(wanted: frozenset[str]) -> re.Pattern[str]:
    parts = "|".join(pattern for name, pattern in _OPEN.items() if name in wanted)
    return re.compile(rf"(?:{parts or '(?!)'})\Z|\Z")


def redact(text: str, spans: Sequence[Span], placeholder: Callable[[Span], str] | None = None) -> str:
    """`text` with each span replaced by `placeholder(span)`, by default its type as `[EMAIL]`."""
    pieces: list[str] = []
    done = 0
    for span in sorted(spans, key=lambda span: (span.start, -span.end)):
        if span.start < done:
            continue
        pieces += [text[done : span.start], placeholder(span) if placeholder else f"[{span.type.upper()}]"]
        done = span.end
    return "".join([*pieces, text[done:]])


def united(spans: Sequence[Span]) -> tuple[Span, ...]:
    """The spans in order, those that overlap as one from the first's begin to the last's end."""
    found: list[Span] = []
    for span in sorted(spans, key=lambda each: (each.start, -each.end)):
        if found and span.start < found[-1].end:
            found[-1] = found[-1].model_copy(update={"end": max(found[-1].end, span.end)})
        else:
            found.append(span)
    return tuple(found)


def luhn(digits: str) -> bool:
    """The check digit of ISO/IEC 7812 (payment cards)."""
    total = 0
    for place, char in enumerate(reversed(digits)):
        value = int(char) * (1 + place % 2)
        total += value - 9 if value > 9 else value
    return total % 10 == 0


def mod97(account: str) -> bool:
    """The check digits of ISO 13616 (IBAN): the rearranged account as a number leaves 1 modulo 97."""
    moved = account[4:] + account[:4]
    return int("".join(str(int(char, 36)) for char in moved)) % 97 == 1


Raw = tuple[int, int, Span | None]
"""What a pattern took, and what it is if it is anything: what was taken is not looked at again."""


def _found(text: str, begin: int, wanted: set[str]) -> list[Raw]:
    if not _HINT.search(text, begin):
        return []
    found: list[Raw] = []
    has_digit = re.compile(r"\d").search(text, begin) is not None
    for name, needs, detector in _DETECTORS:
        if name in wanted and (not needs or (has_digit if needs == "0" else text.find(needs, begin) >= 0)):
            found.extend(detector(text, begin))
    return found


def _emails(text: str, begin: int) -> Iterator[Raw]:
    for match in _EMAIL.finditer(text, begin):
        real = match[1].lower() not in _FILE_ENDINGS and ".." not in match[0]
        yield _raw(match, "email" if real else "")


def _raw(match: re.Match[str], type_: str, score: float = 1.0) -> Raw:
    span = Span(start=match.start(), end=match.end(), type=type_, score=score) if type_ else None
    return match.start(), match.end(), span


def _phones(text: str, begin: int) -> Iterator[Raw]:
    for match in _PHONE.finditer(text, begin):
        score = _phone_score(match[0], match[1], text[max(0, match.start() - 40) : match.start()])
        yield _raw(match, "phone" if score else "", score)


def _phone_score(written: str, prefix: str | None, before: str) -> float:
    groups = [group for group in re.split(r"\D+", written) if group]
    count = sum(map(len, groups))
    if prefix == "+":
        return 1.0 if 8 <= count <= 15 else 0.0
    if count > 15 or _DATE.fullmatch(written) or _IP4.fullmatch(written) or _NUMBERED.search(before):
        return 0.0
    if _CALLED.search(before):
        return 0.9 if count >= 6 else 0.0
    if prefix == "00":
        return 0.9 if 10 <= count <= 15 and len(groups) > 2 else 0.0
    sizes = [len(group) for group in groups]
    if sizes in ([3, 3, 4], [1, 3, 3, 4]) and not re.search(r"\d\.\d{3}\.\d{3}\.", written):
        return 0.8
    trunk = groups[0].startswith("0") and len(groups[0]) in (2, 3, 4, 5)
    return 0.7 if trunk and 2 <= len(groups) <= 5 and 9 <= count <= 12 and max(sizes[1:]) <= 8 else 0.0


def _machines(text: str, begin: int) -> Iterator[Raw]:
    for match in _IP4.finditer(text, begin):
        valid = all(int(part) <= 255 and (part == "0" or part[0] != "0") for part in match[0].split("."))
        known = valid and not _VERSION.search(text[max(0, match.start() - 16) : match.start()])
        yield _raw(match, "ip" if known else "")
    for match in _IP6.finditer(text, begin) if text.find(":", begin) >= 0 else ():
        groups = [group for group in match[0].split(":") if group]
        real = len(groups) >= 2 and any(char.isdigit() for char in match[0])
        try:
            ipaddress.IPv6Address(match[0])
        except ValueError:
            real = False
        yield _raw(match, "ip" if real else "")


def _cards(text: str, begin: int) -> Iterator[Raw]:
    for match in _CARD.finditer(text, begin):
        digits = re.sub(r"\D", "", match[0])
        yield _raw(match, "card" if len(set(digits)) > 1 and luhn(digits) else "")


def _accounts(text: str, begin: int) -> Iterator[Raw]:
    for match in _IBAN.finditer(text, begin):
        # a country's accounts have one length: what looks like the beginning of another never hides one
        whole = _account(_IBAN_LENGTH[match[1].upper()] - 4).match(text, match.end())
        if whole is not None and mod97((match[0] + whole[0]).replace(" ", "").upper()):
            yield match.start(), whole.end(), Span(start=match.start(), end=whole.end(), type="iban")


@cache
def _account(length: int) -> re.Pattern[str]:
    return re.compile(rf"(?: ?[a-z0-9]){{{length}}}(?![a-z0-9])", re.IGNORECASE)


def _keys(text: str, begin: int) -> Iterator[Raw]:
    for start, end, _ in _blocks(text, begin):
        yield start, end, Span(start=start, end=end, type="key")
    if any(text.find(start, begin) >= 0 for start in _KEY_STARTS):
        for match in _KEYS.finditer(text, begin):
            yield _raw(match, "key" if re.search(r"\d", match[0]) else "")
    lowered = text.lower()
    for match in _NAMED_KEY.finditer(text, max(0, begin - _NEAR)) if any(n in lowered for n in _KEY_NAMES) else ():
        if match.start(1) < begin:
            continue
        value = match[1].rstrip(".")
        secret = _entropy(value) >= 3.0 and re.search(r"\d", value) and re.search(r"[A-Za-z]", value)
        end = match.start(1) + len(value)
        yield match.start(1), end, Span(start=match.start(1), end=end, type="key", score=0.8) if secret else None


def _blocks(text: str, begin: int) -> Iterator[tuple[int, int, bool]]:
    """Keys in a file's form: from the first line to the last if that comes within `BLOCK`; else what looks like a key's
    lines, so that a key that was broken off is none the less covered. True if no more text can change that."""
    lines = _BLOCK_ENDS.finditer(text, begin) if "-----BEGIN" in text else iter(())
    line, at = next(lines, None), begin
    for first in _BLOCK_BEGINS.finditer(text, begin):
        if first.start() < at:
            continue
        while line is not None and line.start() < first.end():
            line = next(lines, None)
        if line is not None and line.start() - first.end() <= BLOCK:
            at, closed = line.end(), True
        else:
            body = _BLOCK_BODY.match(text, first.end())
            assert body is not None
            lined = _BLOCK_LINE.search(text, first.end(), body.end())
            at = first.end() + len(body[0].rstrip()) if lined else first.end()
            closed = body.end() < len(text) and len(text) - first.end() > BLOCK + 80
        yield first.start(), at, closed


def _entropy(value: str) -> float:
    """Shannon entropy of the characters, in bits each."""
    counts = Counter(value)
    return -sum(n / len(value) * math.log2(n / len(value)) for n in counts.values())


def _addresses(text: str, begin: int) -> Iterator[Raw]:
    return (_raw(match, "address", 0.7) for match in _ADDRESS.finditer(text, begin))


def _without_overlap(found: list[Span]) -> list[Span]:
    """The longest of those that overlap. Those of a type never overlap, so marking each character is linear."""
    kept: list[Span] = []
    taken = bytearray(max((span.end for span in found), default=0))
    order = {name: place for place, name in enumerate(("key", "iban", "card", "email", "ip", "phone", "address"))}
    for span in sorted(found, key=lambda span: (span.start - span.end, order[span.type], span.start)):
        if taken.find(1, span.start, span.end) < 0:
            taken[span.start : span.end] = b"\1" * (span.end - span.start)
            kept.append(span)
    return sorted(kept, key=lambda span: span.start)


# (type, a character without which it cannot occur, "0" = any digit; "" = always, detector)
_DETECTORS: tuple[tuple[str, str, Callable[[str, int], Iterator[Raw]]], ...] = (
    ("email", "@", _emails),
    ("phone", "0", _phones),
    ("ip", "0", _machines),
    ("card", "0", _cards),
    ("iban", "0", _accounts),
    ("key", "", _keys),
    ("address", "0", _addresses),
)
