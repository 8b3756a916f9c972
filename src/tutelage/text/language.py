"""Which language a text is written in: by its script, then by its most frequent small words and its letters.

Light on purpose (no model, some microseconds a line) and honest: a text that is too short, or whose words are those of
no language here, is `und` (undetermined, ISO 639-2). An invented language is `und` too.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import NamedTuple


class Language(NamedTuple):
    """An ISO 639-1 code or `und`, and the share of words that speak for it (0 to 1)."""

    code: str
    score: float


_WORDS = {
    "en": "the of and to in is was that it for on with as his he be at by i this had not are but from or have an "
    "they which you were her she there would their we him been has when who will no more if out so said what "
    "up its about than into them can only other do my your how a me our does did why where then could should "
    "just like please am two three man men woman people while outside near down some through over after before "
    "because very here good never always know think want get got went told tell let may much many again "
    "without under between",
    "de": "der die und in den von zu das mit sich des auf für ist im dem nicht ein eine als auch es an werden aus er "
    "hat dass sie nach wird bei einer um am sind noch wie einem über einen so zum war haben nur oder aber vor "
    "zur bis mehr durch man ich du wir ihr mein kein was wo warum bitte ja nein einige zwei",
    "fr": "de la le et les des en un du une que est pour qui dans a par plus pas au sur ne se ce il sont avec son "
    "aux cette ont ses mais comme on ou si leur y dont elle deux ces je vous nous tu mon ma sa été être fait "
    "où très quoi pourquoi",
    "es": "de la que el en y a los se del las un por con no una su para es al lo como más o pero sus le ha me si sin "
    "sobre este ya entre cuando todo esta ser son dos también fue había era muy años hasta desde está mi "
    "porque qué yo tú nos",
    "it": "di e che la il un a per in una mi sono ho non ma lo ha le si ti i con cosa se io come da ci no questo qui "
    "hai sei del della dei delle è gli al alla nel più anche suo sua loro quando dove perché molto era stato",
    "pt": "de a o que e do da em um para é com não uma os no se na por mais as dos como mas foi ao ele das tem à seu "
    "sua ou ser quando muito há nos já está eu também só pelo pela até isso ela entre era depois sem mesmo "
    "você",
    "nl": "de en van ik te dat die in een hij het niet zijn is was op aan met als voor had er maar om hem dan zou of "
    "wat mijn men dit zo door over ze zich bij ook tot je mij uit der daar haar naar heb hoe heeft hebben deze "
    "u want nog zal",
    "sv": "och det att i en jag hon som han på den med var sig för så till är men ett om hade de av icke mig du "
    "henne då sin nu har inte hans honom skulle hennes där min man ej vid kunde något från ut när efter upp vi "
    "dem vara vad över",
    "pl": "i w na z do się nie to że jest o jak a po co tak za od ale przez dla czy tylko być już ma ich są jego "
    "tego był było może ja my wy oni mnie mi ten ta te który która które",
    "cs": "a se v na je že s z do o to i ve jako za by si ale jsou k po které tak od pro jeho který nebo u jsem byl "
    "být co už bylo má při však mezi dva muž muže žena ženy ho ji své",
    "ro": "de și în a la cu pe nu o un din că este se care pentru mai sunt ce au fost sau ca lui prin fi ale dar "
    "după cele",
    "tr": "ve bir bu da de için ile çok ne o daha gibi ben sen var mı mi kadar olan olarak ama en sonra değil ya ki "
    "her iki",
    "vi": "và của là có không được một trong cho tôi đã người với này để các những anh bạn đó khi ở cô ra như đi nó "
    "rất ông làm về từ sẽ cái chúng họ gì tom phải muốn biết",
}
_LETTERS = {
    "de": "äöüß", "fr": "éèêàçùîôûœ", "es": "ñáéíóú¿¡", "it": "èàòùì", "pt": "ãõçáéíóúâê",
    "sv": "åäö", "pl": "ąćęłńśźż",
    "cs": "ěščřžýáíéůúťďň", "ro": "ăâîșț", "tr": "ğışçöü", "vi": "ăâđêôơưạảấầẩẫậắằẳẵặẹẻẽếềểễệỉịọỏốồổỗộớờởỡợụủứừửữựỳỵỷỹ",
}  # fmt: skip
_SETS = {code: frozenset(words.split()) for code, words in _WORDS.items()}
_SCRIPTS: tuple[tuple[str, str], ...] = (
    ("ja", r"[\u3040-\u30ff]"),
    ("ko", r"[\uac00-\ud7af\u1100-\u11ff]"),
    ("zh", r"[\u4e00-\u9fff]"),
    ("ar", r"[\u0600-\u06ff]"),
    ("he", r"[\u0590-\u05ff]"),
    ("th", r"[\u0e00-\u0e7f]"),
    ("hi", r"[\u0900-\u097f]"),
    ("bn", r"[\u0980-\u09ff]"),
    ("el", r"[\u0370-\u03ff]"),
    ("ru", r"[\u0400-\u04ff]"),
)
_SCRIPT = {code: re.compile(pattern) for code, pattern in _SCRIPTS}
_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)?")


def identify(text: str, *, least: float = 0.2, sample: int = 2000) -> Language:
    """The language of the first `sample` characters. `und` when fewer than `least` of the words speak for one.

    >>> identify("The letter was on the table.").code
    'en'
    >>> identify("ka velo mira sontu").code
    'und'
    """
    text = text[:sample]
    if not text.isascii():
        letters = sum(char.isalpha() for char in text)
        for code, pattern in _SCRIPT.items():
            count = len(pattern.findall(text))
            # A few kana are enough: Japanese is written mostly with Chinese characters.
            if letters and count > (0.1 if code == "ja" else 0.5) * letters:
                return Language(code, count / letters)
    words = [word.lower() for word in _WORD.findall(text)]
    if not words:
        return Language("und", 0.0)
    scores: Counter[str] = Counter()
    signs: Counter[str] = Counter() if text.isascii() else Counter(text.lower())
    for code, known in _SETS.items():
        hits = sum(word in known for word in words)
        marks = sum(signs[char] for char in _LETTERS.get(code, "")) if signs else 0
        scores[code] = 2 * hits + min(marks, len(words))  # a letter of its own counts half a word
    (best, points), (_, second) = scores.most_common(2)
    share = min(1.0, points / (2 * len(words)))
    if share < least or (points < 4 and len(words) > 3) or points == second:
        return Language("und", share)
    return Language(best, share)
