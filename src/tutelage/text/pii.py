"""Personal data in text: where it stands, and the text without it.

Each detector is a cheap pattern followed by a check (Luhn for cards, ISO 7064 mod 97-10 for IBAN, `ipaddress` for
addresses of machines), because what looks like personal data is far more frequent than what is. A detector runs only
when its rarest character occurs. Finding is on the normal form (text/normalise.py) when the text is not plain ASCII.
"""

from __future__ import annotations

import ipaddress
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from tutelage.core.records import Span
from tutelage.text.normalise import normalise

TYPES = ("email", "phone", "ip", "card", "iban", "key", "address")
"""Every type there is; where two finds overlap the longer one stands."""

_EMAIL = re.compile(
    r"(?<![\w.+%-])[a-z0-9_](?:[\w.+%'-]{0,62}[\w+-])?@(?:[a-z0-9](?:[a-z0-9-]{0,62}[a-z0-9])?\.)+([a-z]{2,24})(?![\w@-])",
    re.IGNORECASE,
)
_HINT = re.compile(r"[\d@\uff20\ufe6b]|-----BEGIN")  # every type holds a digit, an at sign, or this opening
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

_IBAN = re.compile(r"(?<![a-z0-9])[a-z]{2}\d{2}(?: ?[a-z0-9]){11,30}(?![a-z0-9])", re.IGNORECASE)
_IBAN_LENGTH = dict(
    AD=24, AE=23, AL=28, AT=20, AZ=28, BA=20, BE=16, BG=22, BH=22, BR=29, BY=28, CH=21, CR=22, CY=28, CZ=24, DE=22,
    DK=18, DO=28, EE=20, EG=29, ES=24, FI=18, FO=18, FR=27, GB=22, GE=22, GI=23, GL=18, GR=27, GT=28, HR=21, HU=28,
    IE=22, IL=23, IQ=23, IS=26, IT=27, JO=30, KW=30, KZ=20, LB=28, LC=32, LI=21, LT=20, LU=20, LV=21, MC=27, MD=24,
    ME=22, MK=19, MR=27, MT=31, MU=30, NL=18, NO=15, PK=24, PL=28, PS=29, PT=25, QA=29, RO=24, RS=22, SA=24, SC=31,
    SE=24, SI=19, SK=24, SM=27, ST=25, SV=28, TL=23, TN=24, TR=26, UA=29, VA=22, VG=24, XK=20,
)  # fmt: skip

_KEYS = re.compile(
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----(?:[\s\S]{0,8192}?-----END [A-Z ]*PRIVATE KEY-----)?"
    r"|\b[spr]k[-_][A-Za-z0-9_-]{16,}"
    r"|\bgh[pousr]_[A-Za-z0-9]{30,}|\bgithub_pat_[A-Za-z0-9_]{22,}|\bglpat-[A-Za-z0-9_-]{20,}|\bhf_[A-Za-z0-9]{30,}"
    r"|\b(?:AKIA|ASIA)[0-9A-Z]{16}\b|\bAIza[0-9A-Za-z_-]{35}|\bxox[abeoprs]-[A-Za-z0-9-]{10,}"
    r"|\beyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}"
)
_KEY_STARTS = ("PRIVATE KEY-", "sk", "pk", "rk", "gh", "glpat-", "hf_", "AKIA", "ASIA", "AIza", "xox", "eyJ")
_KEY_NAMES = ("key", "token", "bearer", "secret", "password", "pwd")
_NAMED_KEY = re.compile(
    r"\b(?:api[ _-]?key|access[ _-]?(?:key|token)|auth[ _-]?token|secret(?:[ _-]?key)?|bearer|token|password|pwd)\b"
    r"(?:\s*(?:is|[:=]))?\s*[\"'`]?([A-Za-z0-9_\-./+=]{12,})",
    re.IGNORECASE,
)

_ADDRESS = re.compile(
    r"(?<![\w.,-])\d{1,5}[a-zA-Z]? (?:[A-Z][\w'’-]+ ){1,3}"
    r"(?:Street|St|Road|Rd|Avenue|Ave|Lane|Ln|Drive|Dr|Boulevard|Blvd|Way|Court|Ct|Place|Pl|Square|Sq|Terrace|Close|"
    r"Row|Walk|Gardens|Crescent|Alley|Quay)\b\.?"
    r"|\b[A-ZÄÖÜ][\wäöüß-]+(?:straße|strasse|gasse|weg|allee|platz) \d{1,4}[a-z]?\b"
)


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
    normal = None if text.isascii() else normalise(text)
    plain = normal.text if normal else text
    found: list[Span] = []
    has_digit = any(char in plain for char in "0123456789")
    for name, needs, detector in _DETECTORS:
        if name in wanted and (has_digit if needs == "0" else needs in plain):
            found.extend(detector(plain))
    kept = _without_overlap(found)
    if normal is None:
        return kept
    moved = ((*normal.span(span.start, span.end), span) for span in kept)
    return [span.model_copy(update={"start": start, "end": end}) for start, end, span in moved]


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


def _emails(text: str) -> list[Span]:
    return [
        Span(start=match.start(), end=match.end(), type="email")
        for match in _EMAIL.finditer(text)
        if match[1].lower() not in _FILE_ENDINGS and ".." not in match[0]
    ]


def _phones(text: str) -> list[Span]:
    found = []
    for match in _PHONE.finditer(text):
        if score := _phone_score(match[0], match[1], text[max(0, match.start() - 40) : match.start()]):
            found.append(Span(start=match.start(), end=match.end(), type="phone", score=score))
    return found


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


def _machines(text: str) -> list[Span]:
    found = []
    for match in _IP4.finditer(text):
        valid = all(int(part) <= 255 and (part == "0" or part[0] != "0") for part in match[0].split("."))
        if valid and not _VERSION.search(text[max(0, match.start() - 16) : match.start()]):
            found.append(Span(start=match.start(), end=match.end(), type="ip"))
    for match in _IP6.finditer(text) if text.count(":") > 1 else ():
        groups = [group for group in match[0].split(":") if group]
        if len(groups) < 2 or not any(char.isdigit() for char in match[0]):
            continue
        try:
            ipaddress.IPv6Address(match[0])
        except ValueError:
            continue
        found.append(Span(start=match.start(), end=match.end(), type="ip"))
    return found


def _cards(text: str) -> list[Span]:
    found = []
    for match in _CARD.finditer(text):
        digits = re.sub(r"\D", "", match[0])
        if len(set(digits)) > 1 and luhn(digits):
            found.append(Span(start=match.start(), end=match.end(), type="card"))
    return found


def _accounts(text: str) -> list[Span]:
    found = []
    for match in _IBAN.finditer(text):
        length = _IBAN_LENGTH.get(match[0][:2].upper())
        if length is None:
            continue
        solid = [place for place, char in enumerate(match[0], 1) if char != " "]
        if len(solid) < length:
            continue
        taken = solid[length - 1]  # the pattern may have run on into the next words
        written, after = match[0][:taken], match[0][taken : taken + 1]
        if after in ("", " ") and mod97(written.replace(" ", "").upper()):
            found.append(Span(start=match.start(), end=match.start() + taken, type="iban"))
    return found


def _keys(text: str) -> list[Span]:
    shaped = _KEYS.finditer(text) if any(start in text for start in _KEY_STARTS) else ()
    found = [Span(start=match.start(), end=match.end(), type="key") for match in shaped]
    lowered = text.lower()
    for match in _NAMED_KEY.finditer(text) if any(name in lowered for name in _KEY_NAMES) else ():
        value = match[1].rstrip(".")
        if _entropy(value) >= 3.0 and re.search(r"\d", value) and re.search(r"[A-Za-z]", value):
            found.append(Span(start=match.start(1), end=match.start(1) + len(value), type="key", score=0.8))
    return found


def _entropy(value: str) -> float:
    """Shannon entropy of the characters, in bits each."""
    counts = Counter(value)
    return -sum(n / len(value) * math.log2(n / len(value)) for n in counts.values())


def _matches(pattern: re.Pattern[str], type_: str, text: str) -> list[Span]:
    return [Span(start=match.start(), end=match.end(), type=type_, score=0.7) for match in pattern.finditer(text)]


def _without_overlap(found: list[Span]) -> list[Span]:
    kept: list[Span] = []
    order = {name: place for place, name in enumerate(("key", "iban", "card", "email", "ip", "phone", "address"))}
    for span in sorted(found, key=lambda span: (span.start - span.end, order[span.type], span.start)):
        if all(span.end <= other.start or span.start >= other.end for other in kept):
            kept.append(span)
    return sorted(kept, key=lambda span: span.start)


# (type, a character without which it cannot occur, "0" = any digit; "" = always, detector)
_DETECTORS: tuple[tuple[str, str, Callable[[str], list[Span]]], ...] = (
    ("email", "@", _emails),
    ("phone", "0", _phones),
    ("ip", "0", _machines),
    ("card", "0", _cards),
    ("iban", "0", _accounts),
    ("key", "", _keys),
    ("address", "0", partial(_matches, _ADDRESS, "address")),
)
