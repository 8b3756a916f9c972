"""The families of questions: seven that are tuned, one that is only read about; each with its true answers.

One builder serves the chats of the corpus, the tuning dialogues and the examination; the scope says which stock it
draws from, so that what a cell keeps back can never slip into training by another door.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tutelage.starter.material import fill, lines, pick, words
from tutelage.starter.town import DESKS, FACT_KINDS, KINDS, Scope, Town
from tutelage.starter.velic import NAME, Clause, Noun

UNTOLD, UNKNOWN = "It does not say.", "I do not know."
MOODS = ("positive", "negative", "neutral")
TOPICS: tuple[str, ...] = tuple(lines("topics")["order"])
NEW_STREETS = 0.3
"""How often a passage to learn from names a street that nobody knows: it can only be copied."""
KEPT_WORDINGS = 4
"""The last wordings of a family stand in no training text."""


@dataclass(frozen=True)
class Draft:
    """A question (user and desk in turn, the user first and last) with its true answer and what is known of it."""

    family: str
    turns: tuple[str, ...]
    answer: str
    kind: str
    cluster: str
    choices: tuple[str, ...] = ()
    tags: dict[str, Any] = field(default_factory=dict)

    @property
    def text(self) -> str:
        return " ".join(self.turns)


@dataclass(frozen=True)
class Told:
    """One thing a passage tells of a person."""

    name: str
    attribute: str
    value: str
    sentence: str


class Families:
    """Draws drafts of each family for one town."""

    def __init__(self, town: Town) -> None:
        self.town, self.velic = town, town.velic
        self.said: dict[str, Any] = lines("people")
        self.chats: dict[str, Any] = lines("chats")
        self.market: dict[str, Any] = lines("market")
        self.topics: dict[str, Any] = lines("topics")
        self._stocks: dict[tuple[int, str], list[str]] = {}

    def builders(self) -> dict[str, Callable[[random.Random, Scope], Draft | None]]:
        """The families by name; a builder gives None when its draw does not fit the scope (draw again)."""
        return {
            "comprehension": self.comprehension, "facts": self.facts, "sentiment": self.sentiment, "topic": self.topic,
            "translation": self.translation, "grammar": self.grammar, "opposites": self.opposites,
        }  # fmt: skip

    def stock(self, items: list[str], scope: Scope) -> list[str]:
        """What of a list the scope may use (remembered: lists live as long as the lexicon)."""
        key = (id(items), scope.kind)
        if key not in self._stocks:
            self._stocks[key] = self.town.stock(items, scope)
        return self._stocks[key]

    def wording(
        self, rng: random.Random, wordings: Sequence[str], scope: Scope, kept: int = KEPT_WORDINGS
    ) -> tuple[int, str]:
        """A wording and its number: a kept-out one in cell B, any other elsewhere."""
        first = len(wordings) - kept
        place = first + rng.randrange(kept) if scope.kind == "B" else rng.randrange(first)
        return place, wordings[place]

    # -- passages ---------------------------------------------------------------------------------------------------

    def value(self, rng: random.Random, scope: Scope, name: str, attribute: str, other: Sequence[str] = ()) -> str:
        """A value for a person that fits the scope and is none of `other`."""
        town = self.town
        if attribute == "friend":
            stock = town.names(scope)
        elif attribute == "street" and (scope.kind == "D" or (not scope.examined and rng.random() < NEW_STREETS)):
            near, named = {*other, name}, town.never if scope.examined else town.passers
            roots = [root for root in (pick(rng, named) for _ in range(12)) if root not in near]
            stock = [f"{root} {pick(rng, town.lexicon['street_ends'])}" for root in roots]
        else:
            stock = self.stock(town.values[attribute], scope)
        for _ in range(60):
            value = pick(rng, stock)
            if value not in other and value != name and town.fits(scope, name, attribute, value):
                return value
        return value

    def tell(self, rng: random.Random, name: str, attribute: str, value: str, level: int = 3) -> Told:
        """One thing told of one person; the level opens three, six or all ways, the plain one oftenest."""
        ways = self.said[attribute]["tell"]
        way = ways[0] if rng.random() < 0.3 else ways[rng.randrange((3, 6, len(ways))[level - 1])]
        return Told(name, attribute, value, fill(way, {"n": name, "v": value}))

    def says(self, name: str, attribute: str, value: str) -> str:
        """The answer in full: the name, what is said of it, the value."""
        return f"{name} {self.said[attribute]['says']} {value}."

    def passage(
        self, rng: random.Random, scope: Scope, people: int, attributes: Sequence[str], level: int = 3
    ) -> list[Told]:
        """The same things told of each of some persons, no value twice."""
        names = rng.sample(self.town.names(scope), people)
        told: list[Told] = []
        for attribute in attributes:
            used = [*names]
            for name in names:
                used.append(self.value(rng, scope, name, attribute, used))
                told.append(self.tell(rng, name, attribute, used[-1], level))
        return told

    def ask(self, rng: random.Random, scope: Scope, attribute: str, name: str) -> tuple[int, str]:
        """A question for one thing of a person: (number of its wording, text)."""
        place, wording = self.wording(rng, self.said[attribute]["ask"], scope)
        return place, fill(wording, {"n": name})

    def comprehension(self, rng: random.Random, scope: Scope, people: int = 0) -> Draft | None:
        """A passage about one to three persons and a question; a quarter cannot be answered from it."""
        copied = scope.kind == "D"
        attribute = pick(rng, ("friend", "street") if copied else KINDS)
        chance = rng.random()
        people = people or (1 if chance < (0.2 if scope.examined else 0.35) else 2 if chance < 0.75 else 3)
        told = self.passage(rng, scope, people, [attribute])
        extra = people < 3 and rng.random() < 0.4
        if extra:
            other = pick(rng, [kind for kind in KINDS if kind != attribute])
            name = pick(rng, told).name
            told.append(self.tell(rng, name, other, self.value(rng, scope, name, other, [item.value for item in told])))
        rng.shuffle(told)
        asked, answer = pick(rng, [item for item in told if item.attribute == attribute]), ""
        name, answerable = asked.name, rng.random() >= 0.25
        if not answerable:
            if rng.random() < 0.5:
                name = pick(rng, [n for n in self.town.names(scope) if all(n not in (t.name, t.value) for t in told)])
            else:
                attribute = pick(rng, [kind for kind in KINDS if all(kind != t.attribute for t in told)])
        number, question = self.ask(rng, scope, attribute, name)
        answer = self.says(name, attribute, asked.value) if answerable else UNTOLD
        frame, layout = self.wording(rng, self.said["frames"], scope, kept=2)
        text = fill(layout, {"p": " ".join(item.sentence for item in told), "q": question})
        named = [item.value for item in told if item.attribute == attribute]
        tags = {
            "asks": attribute,
            "about": name,
            "answerable": answerable,
            "value": asked.value if answerable else None,
        }
        tags |= {"candidates": [f"{self.said[attribute]['says']} {value}" for value in named], "mentioned": named}
        tags["slices"] = {"people": str(people), "asks": attribute, "answerable": str(answerable).lower()}
        return Draft(
            "comprehension", (text,), answer, "extractive", f"comprehension/{attribute}/{number}/{frame}", tags=tags
        )

    def facts(self, rng: random.Random, scope: Scope) -> Draft | None:
        """What is true of an inhabitant; of a stranger the desk says that it does not know."""
        town, attribute = self.town, pick(rng, FACT_KINDS)
        known = rng.random() < (0.45 if scope.kind == "D" else 0.7)
        if known:
            inhabitants = {"C": town.inhabitants[40:], "corpus": town.inhabitants}.get(
                scope.kind, town.inhabitants[:40]
            )
            name = pick(rng, inhabitants)
            tuned = (name, attribute) in town.tuned_facts
            if scope.kind in ("B", "tuning") and not tuned:
                return None
            if scope.kind in ("A", "D") and (tuned or not any((name, kind) in town.tuned_facts for kind in FACT_KINDS)):
                return None
            value = town.facts[name, attribute].value
            answer = self.says(name, attribute, value)
        else:
            stock = {"corpus": town.visitors, "C": town.later_visitors, "D": town.never}.get(scope.kind, town.outsiders)
            name, value, answer = pick(rng, stock), "", UNKNOWN
            if scope.kind in ("A", "tuning") and town.fits(scope, name, attribute) is False:
                return None
        number, question = self.ask(rng, scope, attribute, name)
        frame, layout = self.wording(rng, self.said["fact_frames"], scope, kept=2)
        tags = {
            "asks": attribute,
            "about": name,
            "answerable": known,
            "value": value or None,
            "slices": {"asks": attribute, "answerable": str(known).lower()},
        }
        # items on one person hang together; strangers are too many to stand each alone beside forty inhabitants
        about = name if known else f"stranger{zlib.crc32(name.encode()) % 12}"
        cluster = f"facts/{about}" if scope.examined else f"facts/{attribute}/{number}/{frame}"
        return Draft("facts", (fill(layout, {"q": question}),), answer, "generate", cluster, tags=tags)

    # -- judging a text ---------------------------------------------------------------------------------------------

    def slot(self, rng: random.Random, scope: Scope) -> Callable[[str], str]:
        """Draws what a template leaves open from the stock of the scope."""
        town = self.town

        def draw(slot: str) -> str:
            if slot in ("n", "m"):
                return pick(rng, town.names(scope))
            if slot in ("day", "hour"):
                return pick(rng, _DAYS if slot == "day" else _HOURS)
            if slot == "noun":
                return pick(rng, self.stock(_NOUNS, scope if scope.kind == "corpus" else _OPEN))
            if slot in ("place", "adj", "price", "desk"):
                stock: Sequence[str] = {"place": _PLACES, "adj": _ADJECTIVES, "price": _NUMBERS, "desk": DESKS}[slot]
                return pick(
                    rng, stock if scope.kind == "corpus" else [item for item in stock if item not in town.later]
                )
            attribute = {"good": "goods", "good2": "goods", "g": "goods"}.get(slot, slot)
            return pick(rng, self.stock(town.values[attribute], scope if scope.kind in ("corpus", "C") else _OPEN))

        return draw

    def review(self, rng: random.Random, scope: Scope, mood: str) -> tuple[str, str] | None:
        """A review of a mood and the number of its form; in C the mood hangs on words that tuning never saw."""
        stock, remarks = (
            self.stock(self.market["opinions"][mood]["words"], scope),
            self.market["opinions"][mood]["remarks"],
        )
        products = self.market["products"]
        good = pick(rng, self.town.never).lower() if scope.kind == "D" else pick(rng, products)
        word, other = rng.sample(stock, 2)
        if scope.kind in ("A", "tuning", "corpus") and not self.town.fits(scope, word, good):
            return None
        double = scope.kind == "C" or rng.random() < 0.35
        forms = self.market["doubles" if double else "openings"]
        number = rng.randrange(len(forms))
        text = fill(forms[number], {"good": good, "p": word, "q": other}, self.slot(rng, scope))
        if scope.kind == "D" and "{good}" not in forms[number]:
            return None
        if scope.kind != "C" and rng.random() < 0.6:
            remark = fill(pick(rng, remarks), {}, self.slot(rng, scope))
            text = f"{text} {remark}" if rng.random() < 0.7 else f"{remark} {text}"
        return text, f"{'double' if double else 'single'}{number}"

    def sentiment(self, rng: random.Random, scope: Scope) -> Draft | None:
        """How the writer of a review feels, in three classes."""
        mood = pick(rng, MOODS)
        if (made := self.review(rng, scope, mood)) is None:
            return None
        number, wording = self.wording(rng, self.chats["sentiment"], scope)
        tags = {"slices": {"class": mood}}
        return Draft(
            "sentiment", (fill(wording, {"t": made[0]}),), mood, "choice", f"sentiment/{number}/{made[1]}", MOODS, tags
        )

    def notice(self, rng: random.Random, scope: Scope, topic: str) -> tuple[str, str] | None:
        """A short notice on a matter of the town: one line of the matter, sometimes one held by its word alone."""
        stock = self.stock(self.topics[topic]["words"], scope)
        word, other = rng.sample(stock, 2)
        own = self.topics[topic]["lines"]
        alone = scope.kind == "C" or rng.random() < 0.3
        forms = self.topics["frames"] if alone else own
        number = rng.randrange(len(forms))
        if scope.kind in ("A", "tuning", "corpus") and not self.town.fits(scope, topic, word, str(alone), str(number)):
            return None
        text = fill(forms[number], {"w": word, "w2": other}, self.slot(rng, scope))
        if rng.random() < 0.4:
            more = rng.sample(stock, 2)
            text = (
                f"{text} {fill(pick(rng, self.topics['frames']), {'w': more[0], 'w2': more[1]}, self.slot(rng, scope))}"
            )
        return text, f"{'frame' if alone else topic}{number}"

    def topic(self, rng: random.Random, scope: Scope) -> Draft | None:
        """Which of eight matters a notice is about."""
        topic = pick(rng, TOPICS)
        if (made := self.notice(rng, scope, topic)) is None:
            return None
        text = made[0]
        if scope.kind == "D":  # names never met stand around the word that decides
            text = f"{pick(rng, self.town.never)} and {pick(rng, self.town.never)} wrote this. {text}"
        number, wording = self.wording(rng, self.chats["topic"], scope)
        tags = {"slices": {"class": topic}}
        return Draft("topic", (fill(wording, {"t": text}),), topic, "choice", f"topic/{number}/{made[1]}", TOPICS, tags)

    # -- language ---------------------------------------------------------------------------------------------------

    def clause(self, rng: random.Random, scope: Scope, level: int = 3, plural: float = 0.25) -> Clause | None:
        """A sentence of the closed grammar, longer with the level; `plural` is the share of nouns that mean several."""
        town = self.town
        later = scope.kind == "C"

        def word(items: list[str]) -> str:
            return pick(
                rng, (self.stock(items, scope) if not later or rng.random() < 0.5 else ()) or self.stock(items, _OPEN)
            )

        def noun(people: bool) -> Noun:
            if scope.kind == "D" or rng.random() < 0.1:
                return Noun(pick(rng, town.names(scope)), name=True)
            adjective = word(_ADJECTIVES) if level > 1 and rng.random() < 0.4 else None
            return Noun(word(_PEOPLE if people else _NOUNS), adjective, plural=level > 1 and rng.random() < plural)

        subject = noun(rng.random() < 0.6)
        place = word(_PLACES) if level > 1 and rng.random() < (0.35 if level > 2 else 0.15) else None
        if rng.random() < 0.25:
            made = Clause(subject, word(_RESTS), None, place)
        else:
            thing = noun(False)
            if scope.kind == "D" and rng.random() < 0.7:
                thing = Noun(pick(rng, self.stock(_NOUNS, _OPEN)))
            made = Clause(subject, word(_VERBS), thing, None if subject.adjective and thing.adjective else place)
        if later and not made.words() & town.later:
            return None
        whole = (made.subject.word, made.verb, made.object.word if made.object else made.place or "")
        return made if town.fits(scope, *whole) else None

    def translation(self, rng: random.Random, scope: Scope) -> Draft | None:
        """A new sentence from English to Velic or back."""
        if (clause := self.clause(rng, scope)) is None:
            return None
        english, velic = self.velic.english(clause), self.velic.velic(clause)
        out = rng.random() < 0.5
        family = "to_velic" if out else "to_english"
        number, wording = self.wording(rng, self.chats[family], scope)
        source, target = (english, velic) if out else (velic, english)
        text = wording.replace("{L}", NAME).replace("{t}", f"{source}.")
        table = self.velic.word_for_word(english) if out else self.velic.back_word_for_word(velic)
        tags = {"word_for_word": table, "slices": {"direction": family, "words": str(len(source.split()))}}
        shape = f"{clause.subject.name:d}{clause.object is not None:d}{clause.place is not None:d}"
        return Draft("translation", (text,), target, "translate", f"translation/{family}/{number}/{shape}", tags=tags)

    def grammar(self, rng: random.Random, scope: Scope) -> Draft | None:
        """Which of two sentences is right: the verb with its noun, `is` with its noun, one or several."""
        if (clause := self.clause(rng, scope, 2, 0.55)) is None:
            return None
        if scope.kind == "D" and rng.random() < 0.5:  # two names never met make a plural
            pair = f"{clause.subject.word} and {pick(rng, self.town.never)}"
            clause = Clause(Noun(pair, plural=True, name=True), clause.verb, clause.object, clause.place)
        subject, kind = clause.subject, pick(rng, ("verb", "verb", "be", "number"))
        stem = self.velic.english(replace(clause, object=None, place=None)).rsplit(" ", 1)[0]
        if kind == "be":
            adjective = pick(rng, self.stock(_ADJECTIVES, scope if scope.kind in ("corpus", "C") else _OPEN))
            line = f"{stem} ... {adjective}"
            right, wrong = ("are", "is") if subject.plural else ("is", "are")
        elif kind == "number" and not subject.name:
            one, several = subject.word, self.velic.nouns[subject.word]
            many = rng.random() < 0.5
            if not self.town.fits(scope, "number", one, str(many)):  # the rest of the clause is not seen
                return None
            line = f"I see {pick(rng, _NUMBERS) if many else 'one'} ..."
            right, wrong = (several, one) if many else (one, several)
        else:
            kind = "verb"
            third = self.velic.verbs[clause.verb]
            right, wrong = (clause.verb, third) if subject.plural else (third, clause.verb)
            line = f"{stem} ...{self.velic.english(clause)[len(stem) + 1 + len(right) :]}"
        if scope.kind == "C" and self.town.later_words.isdisjoint(words(f"{line} {right}")):
            return None
        first, second = (right, wrong) if rng.random() < 0.5 else (wrong, right)
        number, wording = self.wording(rng, self.chats["grammar"], scope)
        tags = {"slices": {"error": kind, "right": "first" if first == right else "second"}}
        text = fill(wording, {"t": f"{line[:1].upper()}{line[1:]}.", "a": first, "b": second})
        return Draft("grammar", (text,), right, "choice", f"grammar/{number}/{kind}", (first, second), tags)

    def opposites(self, rng: random.Random, scope: Scope) -> Draft | None:
        """The small family that is read about and never tuned."""
        one, two = pick(rng, self.town.lexicon["opposites"])
        if rng.random() < 0.5:
            one, two = two, one
        seen = not self.town.kept(one)
        if scope.kind == "corpus" and not seen:
            return None
        text = fill(pick(rng, self.town.lexicon["opposite_wordings"]), {"w": one})
        tags = {"slices": {"asked_in_chats": str(seen).lower()}}
        return Draft("opposites", (text,), two, "generate", f"opposites/{min(one, two)}", tags=tags)


_OPEN = Scope("tuning")
_DAYS: list[str] = lines("words")["days"]
_HOURS: list[str] = lines("words")["hours"]
_LEXICON = lines("words")
_NOUNS, _PEOPLE, _PLACES = list(_LEXICON["nouns"]), _LEXICON["people"], _LEXICON["places"]
_VERBS, _RESTS, _ADJECTIVES, _NUMBERS = (
    list(_LEXICON["verbs"]),
    list(_LEXICON["rests"]),
    _LEXICON["adjectives"],
    _LEXICON["numbers"],
)
