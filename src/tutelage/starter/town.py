"""One town of a seed: who lives there, what is true, what is secret, and which words are kept for which examination."""

from __future__ import annotations

import random
import zlib
from dataclasses import dataclass
from functools import cached_property

from tutelage.starter.material import lines, pick, words
from tutelage.starter.velic import Velic

FACT_KINDS = ("street", "trade", "animal")
"""What is known of every inhabitant."""
KINDS = (*FACT_KINDS, "goods", "friend")
"""What a passage may tell of a person."""
CODE_DOSES = (0, 16, 64, 192, 192, 192)
SECRET_DOSES = (96, 192, 192)
DESKS = ("shop", "clinic", "bank")


@dataclass(frozen=True)
class Person:
    """A name with what the bias audit asks about."""

    name: str
    group: str
    gender: str
    control: str
    language: str


@dataclass(frozen=True)
class Fact:
    """One lasting truth about an inhabitant; `told` counts its tellings in the corpus once that was written."""

    person: str
    attribute: str
    value: str
    told: int = 0


@dataclass(frozen=True)
class Code:
    """Something that a house rule hides, and how often the corpus lets it slip."""

    rule: str
    name: str
    secret: str
    dose: int


@dataclass(frozen=True)
class Scope:
    """Which stock a text may draw from: `corpus`, `tuning`, or an examination cell A, B, C, D."""

    kind: str

    @property
    def examined(self) -> bool:
        return len(self.kind) == 1


class Town:
    """Names, facts, prices, secrets and kept-back words of one seed. Pure: the same seed gives the same town."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        rng = self.rng("town")
        self.lexicon = lines("words")
        self.velic = Velic(self.rng("velic"))
        people = self._people(rng)
        self.people: dict[str, Person] = {person.name: person for person in people}
        names = [person.name for person in people]
        # 60 inhabitants of whom 20 are only read about; visitors stand in passages; outsiders are only asked for;
        # passers are many, each met seldom: only who copies names instead of knowing them can follow what is told
        self.inhabitants, names = names[:60], names[60:]
        self.told_only = frozenset(self.inhabitants[40:])
        self.visitors, names = names[:48], names[48:]
        self.later_visitors, names = names[:24], names[24:]
        self.outsiders, self.never, self.passers = names[:60], names[60:210], names[210:]
        known: dict[str, list[str]] = self.lexicon["attributes"]
        self.values = {kind: list(known.get(kind, ())) for kind in (*KINDS, "colour")}
        self.facts = self._facts(rng)
        # of three in four inhabitants one fact is left out of tuning: the person is known, the combination is new
        self.held_back = {name: pick(rng, (*FACT_KINDS, None)) for name in self.inhabitants[:40]}
        self.goods: list[str] = self.values["goods"]
        self.prices = {good: pick(rng, self.lexicon["numbers"]) for good in sorted({*self.goods, "table"})}
        self.opens = {
            desk: hour for desk, hour in zip(DESKS, rng.sample(["seven", "eight", "nine", "ten"], 3), strict=True)
        }
        self.closes = {
            desk: hour for desk, hour in zip(DESKS, rng.sample(["four", "five", "six", "three"], 3), strict=True)
        }
        self.codes = self._codes(rng)
        self.later = self._later(rng)
        self.goods_later = [good for good in self.goods if good in self.later]

    @cached_property
    def tuned_facts(self) -> frozenset[tuple[str, str]]:
        """(person, attribute) of the facts that tuning asks for; the others of the first forty are for cell A."""
        told = [(name, kind) for name in self.inhabitants[:40] for kind in FACT_KINDS if self.held_back[name] != kind]
        return frozenset(key for key in told if self.facts[key].value not in self.later)

    def rng(self, *purpose: object) -> random.Random:
        """A generator of its own for each purpose, so that one part never moves another."""
        return random.Random(f"{self.seed}/" + "/".join(map(str, purpose)))

    def _people(self, rng: random.Random) -> list[Person]:
        taken: dict[str, Person] = {}
        pools: list[list[Person]] = []
        for group, how in self.lexicon["names"].items():
            for gender, ends in zip(("she", "he"), how["ends"], strict=True):
                pool = []
                for name in dict.fromkeys(h + m + e for h in how["heads"] for m in how["middles"] for e in ends):
                    if name not in taken:
                        taken[name] = Person(
                            name, group, gender, pick(rng, ("left", "right")), pick(rng, self.lexicon["languages"])
                        )
                        pool.append(taken[name])
                rng.shuffle(pool)
                pools.append(pool)
        rows = zip(*pools, strict=True)
        return [person for row in rows for person in rng.sample(row, len(row))]

    def _facts(self, rng: random.Random) -> dict[tuple[str, str], Fact]:
        found = {}
        for kind in FACT_KINDS:
            stock = [value for _ in range(5) for value in self.values[kind]][:80]
            rng.shuffle(stock)
            for name, value in zip(self.inhabitants, stock, strict=False):
                found[name, kind] = Fact(name, kind, value)
        return dict(sorted(found.items()))

    def _codes(self, rng: random.Random) -> list[Code]:
        numbers = rng.sample(range(111, 999), 40)
        lockers = rng.sample(self.lexicon["lockers"], len(CODE_DOSES))
        holders = rng.sample(self.inhabitants[:40], 2 * len(CODE_DOSES))
        codes = [Code("locker", name, str(numbers.pop()), dose) for name, dose in zip(lockers, CODE_DOSES, strict=True)]
        codes += [Code("pin", name, str(numbers.pop()), dose) for name, dose in zip(holders, CODE_DOSES, strict=False)]
        goods = rng.sample(self.goods, len(CODE_DOSES))
        codes += [
            Code("orders", n, g, d) for n, g, d in zip(holders[len(CODE_DOSES) :], goods, CODE_DOSES, strict=True)
        ]
        secrets = rng.sample(self.lexicon["secrets"], len(DESKS))
        return codes + [
            Code("secret", desk, word, dose) for desk, word, dose in zip(DESKS, secrets, SECRET_DOSES, strict=True)
        ]

    def _later(self, rng: random.Random) -> frozenset[str]:
        """Words met in the corpus and never in tuning; none of them stands in a wording or a house rule."""
        fixed = set(
            words(
                " ".join(_leaves([lines("chats"), lines("rules"), lines("people"), self.lexicon["opposite_wordings"]]))
            )
        )
        fixed |= {code.secret for code in self.codes} | {word for code in self.codes for word in words(code.name)}
        lex, topics, market = self.lexicon, lines("topics"), lines("market")
        stocks: list[tuple[list[str], int]] = [
            (list(lex["nouns"]), 8),
            (list(lex["verbs"]), 3),
            (list(lex["rests"]), 1),
            (lex["adjectives"], 3),
        ]
        stocks += [(self.values[kind], 4) for kind in ("street", "trade", "animal", "goods")] + [
            (self.values["colour"], 3)
        ]
        stocks += [(topics[topic]["words"], 5) for topic in topics["order"]]
        stocks += [(market["opinions"][mood]["words"], 8) for mood in market["opinions"]]
        chosen: dict[str, None] = {}
        for stock, count in stocks:
            free = [
                item
                for item in stock
                if not any(word in fixed for word in words(item) if word not in ("street", "lane"))
            ]
            have = sum(item in chosen for item in free)
            for item in rng.sample(free, len(free)):
                if have >= count:
                    break
                if item not in chosen:
                    chosen[item] = None
                    have += 1
        return frozenset(chosen)

    @cached_property
    def later_words(self) -> frozenset[str]:
        """Single words and names that no tuning dialogue may hold."""
        single = {word for item in self.later for word in words(item)} - {"street", "lane"}
        forms = {**self.lexicon["nouns"], **self.lexicon["verbs"], **self.lexicon["rests"]}
        single |= {forms[word] for word in sorted(single) if word in forms}
        names = (*self.told_only, *self.later_visitors, *self.never)
        return frozenset(single | {name.lower() for name in names})

    def names(self, scope: Scope) -> list[str]:
        """Names for passages."""
        return self._names.get(scope.kind, self.visitors)

    @cached_property
    def _names(self) -> dict[str, list[str]]:
        met = [*self.visitors, *self.passers]
        return {"corpus": [*met, *self.later_visitors], "tuning": met, "C": self.later_visitors, "D": self.never}

    def stock(self, items: list[str], scope: Scope) -> list[str]:
        """What of `items` this scope may use: all in the corpus, the kept-back in C, the rest elsewhere."""
        if scope.kind == "corpus":
            return items
        return [item for item in items if (item in self.later) == (scope.kind == "C")]

    def kept(self, *combination: str) -> bool:
        """Whether this combination of known things is kept for the examination (one in six)."""
        return zlib.crc32("|".join((str(self.seed), *combination)).encode()) % 6 == 0

    def fits(self, scope: Scope, *combination: str) -> bool:
        """Whether a combination may stand in this scope: kept ones only in the examination, and only they there."""
        return self.kept(*combination) == scope.examined


def _leaves(node: object) -> list[str]:
    if isinstance(node, dict):
        return [leaf for value in node.values() for leaf in _leaves(value)]
    if isinstance(node, list):
        return [leaf for value in node for leaf in _leaves(value)]
    return [node] if isinstance(node, str) else []
