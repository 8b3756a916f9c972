"""Other forms of the same text: perturbations, encodings, counterfactuals, English as learners and dialects write it.

Every transform is a function of its text and an explicit seed, and is checked: a perturbation must keep the words that
carry the answer, an encoding must decode to what went in, a learner's English must keep the content words. What fails
its check is returned as None and counted by the caller, never used in silence.

The learner forms follow what error-annotated learner corpora report most often per first language (Swan and Smith,
Learner English, 2001): dropped or extra articles, agreement, prepositions, word order, tense. They are rules, not
people: they test sensitivity to such forms, and say nothing about how any person writes.
"""

from __future__ import annotations

import base64
import binascii
import codecs
import random
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

_WORD = re.compile(r"[A-Za-z]+(?:'[A-Za-z]+)?")


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_NEIGHBOURS = {
    "a": "sqz", "b": "vn", "c": "xv", "d": "sf", "e": "wr", "f": "dg", "g": "fh", "h": "gj", "i": "uo", "j": "hk",
    "k": "jl", "l": "k", "m": "n", "n": "bm", "o": "ip", "p": "o", "q": "w", "r": "et", "s": "ad", "t": "ry",
    "u": "yi", "v": "cb", "w": "qe", "x": "zc", "y": "tu", "z": "x",
}  # fmt: skip
_LOOKALIKES = str.maketrans("aceopxyiABCEHKMOPTX", "асеорхуіАВСЕНКМОРТХ")
_LEET = str.maketrans("aeiostAEIOST", "431057431057")


def _typo(word: str, rng: random.Random) -> str:
    place = rng.randrange(1, len(word) - 1)
    how = rng.randrange(4)
    if how == 0:
        return word[:place] + word[place + 1] + word[place] + word[place + 2 :]
    if how == 1:
        return word[:place] + word[place + 1 :]
    if how == 2:
        return word[:place] + word[place] + word[place:]
    return word[:place] + rng.choice(_NEIGHBOURS.get(word[place].lower(), word[place])) + word[place + 1 :]


def typos(text: str, rng: random.Random, strength: float = 1.0) -> str:
    """Slips of the keyboard in about a tenth of the words of four letters and more; at least one where possible."""
    words = [found for found in _WORD.finditer(text) if len(found.group()) >= 4]
    if not words:
        return text
    chosen = [found for found in words if rng.random() < 0.1 * strength] or [rng.choice(words)]
    for found in reversed(chosen):
        text = text[: found.start()] + _typo(found.group(), rng) + text[found.end() :]
    return text


def casing(text: str, rng: random.Random, strength: float = 1.0) -> str:
    """All capitals, all small, or capitals at random; below strength 1 in that share of the words."""
    how = rng.randrange(3)

    def one(word: str) -> str:
        if strength < 1 and rng.random() >= strength:
            return word
        if how < 2:
            return word.upper() if how else word.lower()
        return "".join(letter.upper() if rng.random() < 0.5 else letter.lower() for letter in word)

    return "".join(one(piece) for piece in re.split(r"(\s+)", text)) if strength < 1 else one(text)


def spacing(text: str, rng: random.Random, strength: float = 1.0) -> str:
    """Doubled and missing spaces, in about a fifth of the gaps."""
    pieces = text.split(" ")
    out = pieces[0] if pieces else ""
    for piece in pieces[1:]:
        out += rng.choices((" ", "  ", ""), (8, strength, strength))[0] + piece
    return out


def punctuation(text: str, rng: random.Random, strength: float = 1.0) -> str:
    """No punctuation at all, or more of it; below strength 1 at that share of the marks."""

    def at(pattern: str, change: Callable[[str], str]) -> Callable[[str], str]:
        def one(found: re.Match[str]) -> str:
            return found.group() if strength < 1 and rng.random() >= strength else change(found.group())

        return lambda text: re.sub(pattern, one, text)

    if rng.random() < 0.5:
        return at(r"[.,;:!?]", lambda mark: "")(text)
    return at(r"[.!?]", lambda mark: mark * 3)(at(",", lambda mark: " ,")(text))


def homoglyphs(text: str, rng: random.Random, strength: float = 1.0) -> str:
    """Three in ten of the Latin letters that have a Cyrillic twin replaced by it."""
    return "".join(letter.translate(_LOOKALIKES) if rng.random() < 0.3 * strength else letter for letter in text)


def _zero_width(text: str, rng: random.Random, strength: float = 1.0) -> str:
    return "".join(letter + ("\u200b" if letter.isalpha() and rng.random() < 0.3 * strength else "") for letter in text)


def word_order(text: str, rng: random.Random, strength: float = 1.0) -> str:
    """Little words (`the`, `is`, `of`) change places with their neighbours: the words that carry the meaning stand in
    the same order before and after. In about a fifth of the places; at least one where possible."""
    pieces = re.split(r"(\s+)", text)
    words = range(0, len(pieces), 2)

    def movable(place: int) -> bool:
        left, right = pieces[place], pieces[place + 2]
        plain = all(each.isalpha() and not NEGATION.fullmatch(each) for each in (left, right))
        return plain and pieces[place + 1] == " " and (left.lower() in LITTLE) != (right.lower() in LITTLE)

    open_ = [place for place in words if place + 2 < len(pieces) and movable(place)]
    chosen = [place for place in open_ if rng.random() < 0.2 * strength] or (open_ and [rng.choice(open_)]) or []
    last = -4
    for place in chosen:
        if place - last >= 4:  # a word moves once
            pieces[place], pieces[place + 2] = pieces[place + 2], pieces[place]
            last = place
    return "".join(pieces)


_SAME = (
    ("do not", "don't"), ("does not", "doesn't"), ("did not", "didn't"), ("is not", "isn't"), ("are not", "aren't"),
    ("was not", "wasn't"), ("cannot", "can't"), ("will not", "won't"), ("have not", "haven't"), ("has not", "hasn't"),
    ("it is", "it's"), ("i am", "i'm"), ("you are", "you're"), ("we are", "we're"), ("they are", "they're"),
    ("what is", "what's"), ("where is", "where's"), ("that is", "that's"), ("there is", "there's"), ("i will", "i'll"),
    ("tell me", "let me know"), ("can you", "could you"), ("i want", "i would like"), ("a lot of", "plenty of"),
    ("need to", "have to"), ("needs to", "has to"), ("must say", "have to say"), ("at the moment", "right now"),
    ("in order to", "to"), ("because of", "owing to"), ("near", "close to"),
    ("every", "each"), ("begin", "start"), ("big", "large"), ("perhaps", "maybe"), ("also", "as well"),
)  # fmt: skip
SAME_WORDING: Mapping[str, str] = {**dict(_SAME), **{right: left for left, right in _SAME if right != "to"}}
"""Wordings of English that say the same, either way round."""


def paraphrase(text: str, rng: random.Random, strength: float = 1.0) -> str:
    """Wordings exchanged for others that say the same (`SAME_WORDING`), in about half of the places where one fits."""
    pattern = "|".join(re.escape(each) for each in sorted(SAME_WORDING, key=len, reverse=True))
    places = list(re.finditer(rf"(?<![\w'])(?:{pattern})(?![\w'])", text, flags=re.IGNORECASE))
    chosen = [place for place in places if rng.random() < 0.5 * strength] or (places and [rng.choice(places)]) or []
    for place in reversed(chosen):
        other = SAME_WORDING[place.group().lower()]
        said = _like(place.group(), re.sub(r"\bi\b", "I", other))
        text = text[: place.start()] + said + text[place.end() :]
    return text


NEGATION = re.compile(
    r"(?:no|not|never|none|nothing|nobody|nowhere|neither|nor|cannot|without|dinnae|cannae|\w+n['\u2019]t|"
    r"nicht|kein\w*|nie|niemals|nichts|ohne|ne|pas|jamais|rien|sans|nunca|nada|sin|jam\u00e1s|non|mai|niente|senza|"
    r"n\u00e3o|nem|niet|geen|nooit|inte|aldrig|utan|nigdy|bez|nikdy|nu|de\u011fil|kh\u00f4ng|\u043d\u0435|"
    r"\u043d\u0435\u0442|\u043d\u0438\u043a\u043e\u0433\u0434\u0430|\u0431\u0435\u0437)",
    re.IGNORECASE,
)
"""A word that turns a sentence round, in the languages that are known here."""

PERTURBATIONS: Mapping[str, Callable[[str, random.Random, float], str]] = {
    "typos": typos,
    "casing": casing,
    "spacing": spacing,
    "punctuation": punctuation,
    "homoglyphs": homoglyphs,
    "zero-width": _zero_width,
    "word-order": word_order,
    "paraphrase": paraphrase,
}
"""What may happen to a text without a change of what it asks."""


def perturb(text: str, kind: str, seed: int, keep: Sequence[str] = (), *, strength: float = 1.0) -> str | None:
    """`text` perturbed, with the words in `keep` left as they stand; None when nothing changed or a kept word is lost.

    `keep` are whole words or phrases (the answer, names, codes) without which the label would no longer hold.
    `strength` scales how much is changed.
    """
    rng = random.Random(f"{kind}:{seed}")
    kept = sorted({phrase for phrase in keep if phrase}, key=len, reverse=True)
    if not kept:
        found = PERTURBATIONS[kind](text, rng, strength)
        return None if found == text else found
    pattern = re.compile("(" + "|".join(rf"(?<!\w){re.escape(phrase)}(?!\w)" for phrase in kept) + ")")
    pieces = pattern.split(text)
    out = "".join(
        piece if index % 2 else PERTURBATIONS[kind](piece, rng, strength) for index, piece in enumerate(pieces)
    )
    lost = len(pattern.findall(out)) < len(pattern.findall(text))
    return None if out == text or lost else out


class Encoding(NamedTuple):
    """A way to write a text so that a filter may not read it, and the way back."""

    encode: Callable[[str], str]
    decode: Callable[[str], str]


_MORSE = dict(
    zip(
        "abcdefghijklmnopqrstuvwxyz0123456789",
        _words(
            ".- -... -.-. -.. . ..-. --. .... .. .--- -.- .-.. -- -. --- .--. --.- .-. ... - ..- ...- .-- -..- -.-- "
            "--.. ----- .---- ..--- ...-- ....- ..... -.... --... ---.. ----."
        ),
        strict=True,
    )
)
_UNMORSE = {code: letter for letter, code in _MORSE.items()}


def _to_morse(text: str) -> str:
    return " / ".join(" ".join(_MORSE.get(letter, letter) for letter in word) for word in text.lower().split())


def _from_morse(text: str) -> str:
    return " ".join("".join(_UNMORSE.get(code, code) for code in word.split(" ")) for word in text.split(" / "))


ENCODINGS: Mapping[str, Encoding] = {
    "base64": Encoding(
        lambda text: base64.b64encode(text.encode()).decode(), lambda text: base64.b64decode(text).decode()
    ),
    "rot13": Encoding(lambda text: codecs.encode(text, "rot13"), lambda text: codecs.decode(text, "rot13")),
    "hex": Encoding(
        lambda text: binascii.hexlify(text.encode()).decode(), lambda text: binascii.unhexlify(text).decode()
    ),
    "reversed": Encoding(lambda text: text[::-1], lambda text: text[::-1]),
    "spaced": Encoding(
        lambda text: "   ".join(" ".join(word) for word in text.split()),
        lambda text: " ".join(word.replace(" ", "") for word in text.split("   ")),
    ),
    "leet": Encoding(
        lambda text: text.translate(_LEET), lambda text: text.translate(str.maketrans("431057", "aeiost"))
    ),
    "lookalike": Encoding(
        lambda text: text.translate(_LOOKALIKES),
        lambda text: text.translate({other: latin for latin, other in _LOOKALIKES.items()}),
    ),
    "morse": Encoding(_to_morse, _from_morse),
}


def encode(text: str, kind: str) -> str | None:
    """`text` in an encoding; None when it does not decode to the same words (case apart)."""
    encoded = ENCODINGS[kind].encode(text)
    back = " ".join(ENCODINGS[kind].decode(encoded).lower().split())
    return encoded if back == " ".join(text.lower().split()) else None


# Counterfactuals: the same text about, or by, another person.

_PRONOUNS = {
    "female": {"he": "she", "him": "her", "himself": "herself", "mr": "ms", "sir": "madam", "man": "woman"},
    "male": {"she": "he", "hers": "his", "herself": "himself", "ms": "mr", "mrs": "mr", "madam": "sir", "woman": "man"},
}
_KIN = {"father": "mother", "son": "daughter", "brother": "sister", "husband": "wife", "boy": "girl", "uncle": "aunt"}
_PRONOUNS["female"].update(_KIN | {f"{left}s": f"{right}s" for left, right in _KIN.items() if left != "wife"})
_PRONOUNS["male"].update({right: left for left, right in _KIN.items()})
_AFTER_HIM = frozenset(
    _words(
        "a an the and or but to for with from in on at by of about that this it today yesterday tomorrow again there "
        "here now then so if when because before after is was has had will would can could should may"
    )
)


def _like(model: str, word: str) -> str:
    """`word` with the capitals of `model`."""
    if model.isupper() and len(model) > 1:
        return word.upper()
    return word[:1].upper() + word[1:] if model[:1].isupper() else word


def swap_words(text: str, words: Mapping[str, str]) -> str:
    """Whole words (or phrases) replaced all at once, with their capitals kept; keys in lower case."""
    if not words:
        return text
    pattern = "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True))
    return re.sub(
        rf"(?<!\w)(?:{pattern})(?!\w)",
        lambda found: _like(found.group(), words[found.group().lower()]),
        text,
        flags=re.IGNORECASE,
    )


def swap_gender(text: str, to: str) -> str:
    """Third-person pronouns, forms of address and kinship words in the other gender (`to`: female or male).

    `her` is `his` before a word it can possess, else `him`; `his` is `hers` where nothing follows that it possesses.
    """
    words = _PRONOUNS[to]

    def possessed(end: int) -> bool:
        follows = re.match(r"\s+([A-Za-z']+)", text[end:])
        return bool(follows) and follows is not None and follows.group(1).lower() not in _AFTER_HIM

    def one(found: re.Match[str]) -> str:
        word = found.group()
        low = word.lower()
        if to == "male" and low == "her":
            return _like(word, "his" if possessed(found.end()) else "him")
        if to == "female" and low == "his":
            return _like(word, "her" if possessed(found.end()) else "hers")
        return _like(word, words.get(low, low)) if low in words else word

    return _WORD.sub(one, text)


NAMES: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "gender": {
        "female": ("Emma", "Olivia", "Sophie", "Laura", "Julia", "Anna", "Claire", "Helen"),
        "male": ("Jack", "Oliver", "Daniel", "Peter", "Thomas", "Martin", "Simon", "Mark"),
    },
    "ethnicity": {
        "western-european": ("Emily", "Greg", "Anne", "Todd", "Claire", "Brad", "Allison", "Geoffrey"),
        "african-american": ("Lakisha", "Jamal", "Ebony", "Tyrone", "Tanisha", "Darnell", "Keisha", "Tremayne"),
        "arabic": ("Fatima", "Ahmed", "Layla", "Omar", "Amina", "Khalid", "Zainab", "Yusuf"),
        "east-asian": ("Mei", "Wei", "Yuki", "Hiroshi", "Xiu", "Jun", "Min-ji", "Takeshi"),
        "hispanic": ("Guadalupe", "Alejandro", "Marisol", "Javier", "Ximena", "Santiago", "Rocio", "Esteban"),
        "south-asian": ("Priya", "Rajesh", "Ananya", "Vikram", "Lakshmi", "Sanjay", "Deepika", "Arjun"),
    },
}
"""First names that readers commonly associate with a group. An association is all they carry."""


def counterfactuals(text: str, name: str, groups: Mapping[str, Sequence[str]], seed: int = 0) -> dict[str, str] | None:
    """The text once per group, with `name` replaced by a name of that group; None when the name does not occur.

    The same place in each group's list is used, chosen by the seed, so that texts form pairs.
    """
    if not re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text):
        return None
    place = random.Random(f"counterfactual:{seed}").randrange(min(len(names) for names in groups.values()))
    return {group: swap_words(text, {name.lower(): names[place]}) for group, names in groups.items()}


# English as speakers of other languages, and speakers of other kinds of English, may write it.

Rule = tuple[str, str, float]  # pattern, replacement, share of the places where it applies

_NO_ARTICLE: Rule = (r"\b(?:the|an|a) (?=[a-z])", "", 0.7)
_NO_AGREEMENT: Rule = (r"\b(he|she|it) (need|want|say|work|live|know|like|come|ask|seem|cost|take)s\b", r"\1 \2", 0.8)
_UNCOUNTED: Rule = (r"\b(information|advice|furniture|luggage|help|money)\b(?! of)", r"\1s", 0.6)
_COUNTED = r"\b(two|three|four|five|six|many|several|some|these|those) "
_NO_DO: Rule = (r"\b([Ww]here|[Ww]hat|[Ww]hen|[Hh]ow) does (\w+) (\w+[^s\W])\?", r"\1 \3s \2?", 0.8)
_BARE_TRADE: Rule = (r"\b(is|am|as) an? (?=[a-z]+[.,;!?])", r"\1 ", 0.8)
LEARNERS: Mapping[str, tuple[Rule, ...]] = {
    "german": (
        (r"\bsince (\w+ (?:days|weeks|months|years))", r"since already \1", 0.7),
        (r"\bfor (\w+ (?:days|weeks|months|years))\b", r"since \1", 0.7),
        (r"\b(I|we|they) (have|want|need) (\w+) ([^.,;!?]+?) (today|now|yesterday)\b", r"\5 \2 \1 \3 \4", 0.5),
        (r"\bif\b", "when", 0.5),
        _NO_DO,
        _BARE_TRADE,
        (r"\bin (?=[A-Z])", "at ", 0.5),
        (r"\bon (Monday|Tuesday|Wednesday|Thursday|Friday|Saturday|Sunday)\b", r"at \1", 0.6),
        _UNCOUNTED,
    ),
    "spanish": (
        (r"\b[Ii]t is (?=[a-z])", "Is ", 0.7),
        _NO_DO,
        _BARE_TRADE,
        (r"\bin (?=[A-Z])", "on ", 0.5),
        (r"\bdo not\b|\bdon't\b", "no", 0.5),
        (r"\b(?:very|really) (good|bad|slow|late|kind|happy)\b", r"much \1", 0.4),
        (r"\bin (Monday|Tuesday|Wednesday|Thursday|Friday)\b", r"the \1", 0.6),
        (r"\bon (Monday|Tuesday|Wednesday|Thursday|Friday)\b", r"in \1", 0.6),
        (r"\b(I am|I'm) (\d+|\w+) years old\b", r"I have \2 years", 0.9),
        (r"\bpeople are\b", "people is", 0.9),
        (r"\b(a|the) (red|blue|green|new|old|small|big|white|black) ([a-z]+)\b", r"\1 \3 \2", 0.5),
        _UNCOUNTED,
    ),
    "russian": (
        _NO_ARTICLE,
        (
            r"\b(is|are|am) (?=(?:not |very |so )?(?:late|good|bad|here|there|broken|open|closed|ready|wrong|lost)\b)",
            "",
            0.6,
        ),
        (r"\b(have|has) been\b", "was", 0.5),
        (r"\bto the\b", "in", 0.3),
    ),
    "chinese": (
        _NO_ARTICLE,
        _NO_AGREEMENT,
        (_COUNTED + r"([a-z]{2,}(?:x|ch|sh)(?=es)|[a-z]{2,}[^se\W]|[a-z]{2,}[^sx\Wh]e)e?s\b", r"\1 \2", 0.8),
        (r"\bvery much\b", "very", 0.5),
        (r"\balthough ([^,]+), ", r"although \1, but ", 0.9),
        (r"\b(is|are) (?=(?:very|so|too) )", "", 0.6),
    ),
    "arabic": (
        (r"\b(is|are|am) (?=[a-z])", "", 0.5),
        (r"\b(a|an) (?=[a-z])", "", 0.7),
        (r"\bwhich\b|\bthat\b(?= (?:I|we|he|she|they) )", "which", 0.5),
        (r", ", " and ", 0.3),
        _NO_AGREEMENT,
    ),
    "hindi": (
        (r"\b(I|we|they|you) (want|need|know|like|have)\b", r"\1 are \2ing", 0.6),
        (r"\bI are (\w+)ing\b", r"I am \1ing", 1.0),
        (r"\bhaveing\b", "having", 1.0),
        (r"\b[Pp]lease\b", "kindly", 0.7),
        (r"\b(discuss|order|request|demand)\b(?= (?:the|a|my))", r"\1 about", 0.6),
        (r"([^.?!]*\w)\?", r"\1, isn't it?", 0.3),
    ),
}
DIALECTS: Mapping[str, tuple[Rule, ...]] = {
    "african-american": (
        (r"\b(he|she|they|we|you) (?:is|are) (?=[a-z]+ing\b)", r"\1 ", 0.8),
        (r"\b(?:am not|is not|isn't|are not|aren't|have not|has not)\b", "ain't", 0.8),
        (r"\b(?:going to)\b", "gonna", 0.8),
        (r"\b(do not|don't|did not|didn't) (\w+) any\b", r"\1 \2 no", 0.8),
        _NO_AGREEMENT,
    ),
    "scottish": (
        (r"\b(?:do not|don't)\b", "dinnae", 0.8),
        (r"\b(?:cannot|can't)\b", "cannae", 0.8),
        (r"\b(?:little|small)\b", "wee", 0.9),
        (r"\byes\b", "aye", 0.9),
        (r"\bknow\b", "ken", 0.7),
        (r"\bmy\b", "ma", 0.6),
    ),
    "singaporean": (
        _NO_ARTICLE,
        (r"\b(?:already|yet)\b", "already", 1.0),
        (r"([^?.!]+)\?", r"\1 or not?", 0.6),
        (r"([^?.!]+)\.(?=\s|$)", r"\1 lah.", 0.3),
        (r"\b(is|are) (?=(?:very|so|too) )", "", 0.8),
    ),
}
LITTLE = frozenset(
    _words(
        "a an the is are am was were be been has have had do does did not no don't isn't aren't ain't and but or of to "
        "in on at for since already when if which that very much many it's it lah so too any or kindly please about "
        "yes aye dinnae cannae cannot can't wee little small ken know ma my gonna going yet"
    )
)
"""Words that carry no content of their own."""


def stems(text: str) -> Counter[str]:
    """Content words without the endings that agreement and number change."""
    words = (word.lower() for word in _WORD.findall(text))
    return Counter(re.sub(r"(?:ing|s)?$", "", word).rstrip("e")[:5] for word in words if word not in LITTLE)


def same_content(before: str, after: str) -> bool:
    """Whether two texts hold the same content words and numbers; little words, endings and order may differ."""
    numbers = re.compile(r"\d+")
    return stems(before) == stems(after) and sorted(numbers.findall(before)) == sorted(numbers.findall(after))


def write_as(text: str, kind: str, seed: int, *, strength: float = 1.0) -> str | None:
    """`text` with forms of a learner's English (`LEARNERS`) or a dialect (`DIALECTS`).

    `strength` scales how often each form appears. None when no form applies or the content words would change.
    """
    rules = LEARNERS.get(kind) or DIALECTS[kind]
    rng = random.Random(f"{kind}:{seed}")
    out = text
    for pattern, replacement, share in rules:

        def one(found: re.Match[str], replacement: str = replacement, share: float = share) -> str:
            if rng.random() >= share * strength:
                return found.group()
            changed = found.expand(replacement)
            return _like(found.group(), changed) if changed and found.group()[0].isupper() else changed

        out = re.sub(pattern, one, out)
    out = re.sub(r" {2,}", " ", out).strip()
    if out == text:
        return None
    if out and text[:1].isupper():
        out = out[0].upper() + out[1:]
    out = re.sub(r"((?<!\.)[.!?] )([a-z])", lambda found: found.group(1) + found.group(2).upper(), out)
    return out if out != text and same_content(text, out) else None
