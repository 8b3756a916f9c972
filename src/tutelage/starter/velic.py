"""Velic, an invented language: another order of words, adjectives after nouns, a word for 'several' before them.

A clause is `the [adjective] noun  verb  [the [adjective] noun]  [at the place]`; persons may stand for a noun.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from tutelage.starter.material import lines

NAME = "Velic"
ORDERS = ("VSO", "VOS", "OSV", "OVS")


@dataclass(frozen=True)
class Noun:
    """Who or what: a noun of the lexicon, singular or plural, or a person's name as it is."""

    word: str
    adjective: str | None = None
    plural: bool = False
    name: bool = False


@dataclass(frozen=True)
class Clause:
    """One sentence before it is put into any language."""

    subject: Noun
    verb: str
    object: Noun | None = None
    place: str | None = None

    def words(self) -> set[str]:
        """The lexicon words (base forms) and names in it."""
        nouns = [self.subject, *([self.object] if self.object else [])]
        found = {self.verb, *(noun.word for noun in nouns), *(noun.adjective for noun in nouns if noun.adjective)}
        return found | ({self.place} if self.place else set())


class Velic:
    """The language of one town: its words and its order are drawn from the town's seed."""

    def __init__(self, rng: random.Random) -> None:
        lexicon = lines("words")
        self.nouns: dict[str, str] = lexicon["nouns"]
        self.verbs: dict[str, str] = {**lexicon["verbs"], **lexicon["rests"]}
        self.order = ORDERS[rng.randrange(len(ORDERS))]
        base = [*self.nouns, *lexicon["places"], *self.verbs, *lexicon["adjectives"], "<several>", "<at>"]
        self.table: dict[str, str] = dict(zip(base, self._coin(rng, len(base)), strict=True))
        self.back_table = {foreign: english for english, foreign in self.table.items()}
        self._kind = {word: "noun" for word in self.nouns} | {word: "place" for word in lexicon["places"]}
        self._kind |= {word: "verb" for word in self.verbs} | {word: "adjective" for word in lexicon["adjectives"]}
        self._base = {many: one for one, many in self.nouns.items()}
        self._third = {third: base for base, third in self.verbs.items()}

    @staticmethod
    def _coin(rng: random.Random, count: int) -> list[str]:
        """Distinct words of one or two syllables, none of them English."""
        heads, hearts, tails = (
            ["b", "d", "f", "g", "k", "l", "m", "n", "r", "s", "t", "v", "z", "ts", "kh", "zh"],
            ["a", "e", "i", "o", "u", "ai", "au"],
            ["", "l", "m", "n", "r", "k"],
        )
        taken: dict[str, None] = {}
        english = {
            "bed",
            "bag",
            "bar",
            "ban",
            "bin",
            "but",
            "can",
            "dim",
            "din",
            "far",
            "for",
            "fun",
            "gun",
            "him",
            "let",
            "man",
            "men",
            "met",
            "not",
            "no",
            "so",
            "to",
            "do",
            "be",
            "me",
            "de",
            "la",
            "run",
            "sun",
            "son",
            "sin",
            "sir",
            "ten",
            "tin",
            "tan",
            "van",
            "ram",
            "rim",
            "mail",
            "rain",
            "main",
            "sail",
            "tail",
            "nail",
            "fail",
            "dark",
            "bark",
            "mark",
            "park",
            "fur",
            "bulk",
            "silk",
            "milk",
            "sum",
            "gum",
            "ran",
            "lark",
            "fork",
            "sol",
            "dal",
            "bail",
            "rail",
            "faun",
            "maul",
            "haul",
            "win",
            "war",
            "tar",
            "tor",
            "bum",
            "fir",
            "fan",
            "fin",
            "go",
        }
        names = {
            (head + middle + end).lower()
            for how in lines("words")["names"].values()
            for head in how["heads"]
            for middle in how["middles"]
            for ends in how["ends"]
            for end in ends
        }
        while len(taken) < count:
            word = rng.choice(heads) + rng.choice(hearts) + rng.choice(tails)
            if rng.random() < 0.5:
                word = rng.choice(heads) + rng.choice(hearts) + rng.choice(heads)[0] + rng.choice(hearts)[0]
            if len(word) > 2 and word not in english and word not in names:
                taken.setdefault(word)
        return list(taken)

    def english(self, clause: Clause) -> str:
        """The clause in English, lower case, without a full stop."""
        verb = clause.verb if clause.subject.plural else self.verbs[clause.verb]
        parts = [self._english(clause.subject), verb]
        if clause.object:
            parts.append(self._english(clause.object))
        if clause.place:
            parts.append(f"at the {clause.place}")
        return " ".join(parts)

    def velic(self, clause: Clause) -> str:
        """The clause in Velic."""
        slots = {"S": self._velic(clause.subject), "V": self.table[clause.verb]}
        slots["O"] = self._velic(clause.object) if clause.object else ""
        parts = [slots[letter] for letter in self.order if slots[letter]]
        if clause.place:
            parts.append(f"{self.table[clause.place]} {self.table['<at>']}")
        return " ".join(parts)

    def _english(self, noun: Noun) -> str:
        if noun.name:
            return noun.word
        word = self.nouns[noun.word] if noun.plural else noun.word
        return f"the {noun.adjective} {word}" if noun.adjective else f"the {word}"

    def _velic(self, noun: Noun) -> str:
        if noun.name:
            return noun.word
        several = [self.table["<several>"]] if noun.plural else []
        after = [self.table[noun.adjective]] if noun.adjective else []
        return " ".join([*several, self.table[noun.word], *after])

    def translate(self, english: str) -> str | None:
        """English to Velic; None when a word or the form is not in the closed grammar."""
        clause = self._read_english(english.strip().rstrip(".").split())
        return self.velic(clause) if clause else None

    def back(self, velic: str) -> str | None:
        """Velic to English; None when it does not parse."""
        clause = self._read_velic(velic.strip().rstrip(".").split())
        return self.english(clause) if clause else None

    def word_for_word(self, english: str) -> str:
        """The dictionary alone, in the order of the English: the baseline of translation."""
        found = []
        for word in english.rstrip(".").split():
            base = self._base.get(word, self._third.get(word, word))
            if base != "the":
                found.append(self.table.get("<at>" if base == "at" else base, word))
        return " ".join(found)

    def back_word_for_word(self, velic: str) -> str:
        """The dictionary backwards, in the order of the Velic."""
        found = [self.back_table.get(word, word) for word in velic.rstrip(".").split()]
        return " ".join(word.strip("<>") for word in found if word != "<several>")

    def _noun(self, group: list[str]) -> Noun | None:
        if len(group) == 1 and group[0][:1].isupper():
            return Noun(group[0], name=True)
        if not group or group[0] != "the" or not 2 <= len(group) <= 3:
            return None
        *adjective, word = group[1:]
        base = self._base.get(word, word)
        if self._kind.get(base) != "noun" or (adjective and self._kind.get(adjective[0]) != "adjective"):
            return None
        return Noun(base, adjective[0] if adjective else None, plural=word in self._base)

    def _read_english(self, tokens: list[str]) -> Clause | None:
        if tokens and tokens[0] == "The":
            tokens = ["the", *tokens[1:]]
        place = None
        if len(tokens) > 3 and tokens[-3:-1] == ["at", "the"] and self._kind.get(tokens[-1]) == "place":
            tokens, place = tokens[:-3], tokens[-1]
        at = next((i for i, word in enumerate(tokens) if i and (word in self.verbs or word in self._third)), None)
        if at is None:
            return None
        subject, rest = self._noun(tokens[:at]), tokens[at + 1 :]
        thing = self._noun(rest) if rest else None
        if subject is None or (rest and thing is None):
            return None
        return Clause(subject, self._third.get(tokens[at], tokens[at]), thing, place)

    def _read_velic(self, tokens: list[str]) -> Clause | None:
        place = None
        if len(tokens) > 2 and tokens[-1] == self.table["<at>"]:
            tokens, place = tokens[:-2], self.back_table.get(tokens[-2])
        verb, several, nouns = None, False, list[Noun]()
        for token in tokens:
            base = self.back_table.get(token)
            kind = self._kind.get(base or "", "name" if token[:1].isupper() else "")
            if base == "<several>":
                several = True
            elif kind == "verb":
                verb = base
            elif kind == "adjective" and nouns:
                nouns[-1] = Noun(nouns[-1].word, base, nouns[-1].plural, nouns[-1].name)
            elif kind in ("noun", "name"):
                nouns.append(Noun(base or token, plural=several, name=kind == "name"))
                several = False
            else:
                return None
        if verb is None or not 1 <= len(nouns) <= 2:
            return None
        first_subject = len(nouns) == 1 or self.order.index("S") < self.order.index("O")
        subject, thing = (nouns[0], nouns[-1]) if first_subject else (nouns[-1], nouns[0])
        return Clause(subject, verb, thing if len(nouns) == 2 else None, place)
