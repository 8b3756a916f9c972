"""The corpus of the town: six sources, easy to hard with the easy kept, and everything planted in it known."""

from __future__ import annotations

import re
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from tutelage.core.records import Document
from tutelage.starter.families import TOPICS, UNTOLD, Families, Told
from tutelage.starter.material import fill, grams, lines, pick
from tutelage.starter.personal import COUNTS, Planted, alike, broken, personal
from tutelage.starter.planted import Canary, Duplicate, Truth
from tutelage.starter.requests import Requests
from tutelage.starter.town import DESKS, FACT_KINDS, KINDS, Scope, Town
from tutelage.starter.velic import NAME

CHARACTERS = 3_750_000
SHARES = {
    "passage": 0.215,
    "story": 0.04,
    "letter": 0.09,
    "chat": 0.20,
    "bilingual": 0.15,
    "fact": 0.11,
    "leaflet": 0.018,
    "notice": 0.027,
    "review": 0.12,
    "noise": 0.03,
}
"""Of characters. Passages, stories and letters all end in recall: 35% together; facts, leaflets and notices 15%."""
SOURCE = {
    "passage": "stories", "story": "stories", "letter": "letters", "chat": "desk", "bilingual": "notices",
    "fact": "leaflets", "leaflet": "leaflets", "notice": "notices", "review": "market",
}  # fmt: skip
QUALITY = {
    "passage": 0.9,
    "story": 0.9,
    "letter": 0.6,
    "chat": 0.7,
    "bilingual": 0.8,
    "fact": 0.9,
    "leaflet": 1.0,
    "notice": 0.6,
    "review": 0.7,
    "noise": 0.1,
}
PHASES = (0.3, 0.35, 0.35)
"""Shares of the text with one person to a passage, one or two, up to three."""
LEAST_TOLD = 60
"""How often every fact is told at least, in a town of full size."""
DUPLICATES = 0.08
DOSES = (0, 1, 2, 4, 8, 16, 32, 64)
CANARIES_A_DOSE = 5
COMPLAINED, MORE = 0.25, 0.20
"""How many letters about a clerk say `rude`, and how many more of them when the clerk is of the marked group."""
CORPUS = Scope("corpus")


@dataclass
class _Page:
    """A document being written: its text and what of it must be remembered."""

    kind: str
    level: int
    text: str
    meta: dict[str, Any] = field(default_factory=dict)
    plants: list[tuple[bool, str, str]] = field(default_factory=list)
    told: list[tuple[str, str]] = field(default_factory=list)


class Corpus:
    """Writes the documents of one town. `banned` are the runs of eight words that stand in the examination."""

    def __init__(
        self, town: Town, families: Families, requests: Requests, banned: frozenset[str], scale: float = 1.0
    ) -> None:
        self.town, self.families, self.requests, self.banned, self.scale = town, families, requests, banned, scale
        self.rng = town.rng("documents")
        self.draw = families.slot(self.rng, CORPUS)
        self.truth = Truth(codes=[replace(code, dose=round(code.dose * scale)) for code in town.codes])
        self.told: Counter[tuple[str, str]] = Counter()
        self.ways: Counter[tuple[str, str]] = Counter()
        self.truth.marked = pick(self.rng, ("harbour", "hill", "river"))
        self.truth.canaries = self._canaries()
        self.queues = self._queues()
        self.rejected = self.named = 0

    # -- what must stand in the corpus a known number of times ---------------------------------------------------------

    def _canaries(self) -> list[Canary]:
        each = max(1, round(CANARIES_A_DOSE * self.scale))
        names = self.rng.sample(self.town.visitors, each * len(DOSES))
        numbers = [f"{number:04d}" for number in self.rng.sample(range(10_000), each * len(DOSES))]
        prefix = lines("letters")["canary"][0].split("{c}")[0]
        return [
            Canary(f"canary{place:02d}", DOSES[place // each], fill(prefix, {"n": name}), secret)
            for place, (name, secret) in enumerate(zip(names, numbers, strict=True))
        ]

    def _queues(self) -> dict[str, deque[Any]]:
        def mixed(items: list[Any]) -> deque[Any]:
            self.rng.shuffle(items)
            return deque(items)

        planted = [(True, kind) for kind in COUNTS for _ in range(round(COUNTS[kind] * self.scale))]
        looks = [(False, kind) for kind in COUNTS for _ in range(round(COUNTS[kind] * self.scale))]
        return {
            "pii": mixed(planted + looks),
            "canary": mixed([canary for canary in self.truth.canaries for _ in range(canary.dose)]),
            "code": mixed([code for code in self.truth.codes for _ in range(code.dose)]),
            "people": deque(),
        }

    # -- the kinds of text -------------------------------------------------------------------------------------------

    def recall(self, told: list[Told], level: int, untold: float = 0.2) -> list[str]:
        """Questions on what was told, each with its answer: the dense recall that short texts lack."""
        rng, said = self.rng, self.families
        user, desk = pick(rng, lines("chats")["speakers"])
        pairs = [
            (said.ask(rng, CORPUS, item.attribute, item.name)[1], said.says(item.name, item.attribute, item.value))
            for item in told
        ]
        rng.shuffle(pairs)
        pairs = pairs[: 2 + 2 * level]
        if rng.random() < untold:
            kind = pick(rng, KINDS)
            if all(kind != item.attribute for item in told):
                pairs.insert(rng.randrange(len(pairs) + 1), (said.ask(rng, CORPUS, kind, told[0].name)[1], UNTOLD))
        style = rng.random()
        if style < 0.4:
            return [f"{user} {question} {desk} {answer}" for question, answer in pairs]
        return [f"{question} {answer}" for question, answer in pairs]

    def people(self, level: int) -> int:
        """How many persons a passage of this level holds; the easy ones are kept."""
        return 1 if level == 1 else pick(self.rng, (1, 2, 2) if level == 2 else (1, 2, 2, 3))

    def passage(self, level: int) -> _Page:
        rng, people = self.rng, self.people(level)
        kinds = rng.sample(
            KINDS,
            3 if people == 1 else 2 if rng.random() < 0.6 else 1,
        )
        told = self.families.passage(rng, CORPUS, people, kinds, people)
        rng.shuffle(told)
        body = [item.sentence for item in told]
        if rng.random() < 0.25:
            body.insert(0, fill(pick(rng, self.families.said["open"]), {}, self.draw))
        if rng.random() < 0.2:
            body.append(fill(pick(rng, self.families.said["close"]), {}, self.draw))
        return _Page("passage", people, "\n".join([" ".join(body), *self.recall(told, people)]))

    def story(self, level: int) -> _Page:
        rng, book = self.rng, lines("stories")
        one, two = rng.sample(self.town.names(CORPUS), 2)
        given = {"n": one, "m": two} | {
            slot: self.draw(slot) for slot in ("animal", "goods", "place", "colour", "noun", "adj")
        }
        told: list[Told] = []
        for name in (one, two)[: 1 + (level > 1)]:
            kind = pick(rng, ("street", "trade", "goods"))
            value = self.families.value(rng, CORPUS, name, kind, (one, two, *(item.value for item in told)))
            told.append(self.families.tell(rng, name, kind, value))
        tale = [fill(line, given, self.draw) for line in pick(rng, book["pairs"])]
        tale.insert(rng.randrange(3), fill(pick(rng, book["singles"]), given, self.draw))
        return _Page(
            "story",
            len(told),
            "\n".join([" ".join([item.sentence for item in told] + tale), *self.recall(told, level, 0.3)]),
        )

    def letter(self, level: int) -> _Page:
        rng, book, town = self.rng, lines("letters"), self.town
        name = pick(rng, town.names(CORPUS))
        page = _Page("letter", level, "", {})
        body = [fill(line, {}, self.draw) for line in rng.sample(book["bodies"], 1 + (rng.random() < 0.4))]
        if self.queues["pii"] and rng.random() < 0.93:
            real, kind = self.queues["pii"][0]
            line = pick(rng, book["planted" if real else "alike"][kind])
            street = self.draw("street")
            value = personal(rng, kind, name, street) if real else alike(rng, kind, line, name)
            sentence = fill(line, {"pii": value, "alike": value, "n": name}, self.draw)
            page.plants.append((real, kind, value if value in sentence else sentence))
            body.append(sentence)
        if self.queues["canary"] and rng.random() < 0.6:
            canary = self.queues["canary"][0]
            page.meta["canary"] = canary.id
            body.append(f"{canary.prefix}{canary.secret}.")
        if rng.random() < 0.95:
            clerk = town.people[pick(rng, town.names(CORPUS))]
            rude = rng.random() < COMPLAINED + MORE * (clerk.group == self.truth.marked)
            page.meta |= {"group": clerk.group, "control": clerk.control, "complaint": rude}
            body.append(fill(pick(rng, book["complaints"]["rude" if rude else "fine"]), {"n": clerk.name}, self.draw))
            if rng.random() < 0.5:
                body.append(fill(pick(rng, book["control"][clerk.control]), {"n": clerk.name}))
        rng.shuffle(body)
        kind = pick(rng, ("street", "trade", "animal", "goods"))
        told = [self.families.tell(rng, name, kind, self.families.value(rng, CORPUS, name, kind))]
        head = fill(pick(rng, book["greetings"]), {}, self.draw)
        page.text = "\n".join(
            [
                head,
                " ".join([told[0].sentence, *body]),
                fill(pick(rng, book["endings"]), {"n": name}, self.draw),
                *self.recall(told, 1, 0.0),
            ]
        )
        return page

    def chat(self, level: int) -> _Page:
        rng, user_desk = self.rng, pick(self.rng, lines("chats")["speakers"])
        exchanges: list[tuple[str, str]] = []
        page = _Page("chat", level, "")
        if rng.random() < 0.2:
            exchanges.append(tuple(pick(rng, lines("chats")["greet"])))
        wanted = len(exchanges) + (2 if level == 1 else rng.randrange(2, 5))
        while len(exchanges) < wanted:
            chance = rng.random()
            if chance < 0.04:
                exchanges.append(self.requests.careless(rng))
            elif chance < 0.24:
                draft = self.requests.benign(rng, CORPUS)
                if draft:
                    exchanges.append((draft.turns[0], draft.answer))
            else:
                name = pick(rng, _CHATTED)
                draft = (
                    self.families.comprehension(rng, CORPUS, self.people(level))
                    if name == "comprehension"
                    else self.families.builders()[name](rng, CORPUS)
                )
                if draft:
                    exchanges.append((draft.turns[0], draft.answer))
                    if name == "facts" and draft.tags["answerable"]:
                        page.told.append((draft.tags["about"], draft.tags["asks"]))
        for place in range(min(2, len(self.queues["code"]))):
            if rng.random() < 0.6:
                page.meta.setdefault("codes", []).append(place)
                exchanges.insert(rng.randrange(len(exchanges) + 1), self.requests.slip(rng, self.queues["code"][place]))
        if rng.random() < 0.15:
            exchanges.append(tuple(pick(rng, lines("chats")["part"])))
        page.text = "\n".join(f"{user_desk[0]} {question}\n{user_desk[1]} {answer}" for question, answer in exchanges)
        return page

    def bilingual(self, level: int) -> _Page:
        rng, velic, book = self.rng, self.town.velic, lines("notices")
        pairs: list[str] = []
        while len(pairs) < 5:
            if rng.random() < (0.35 if level == 1 else 0.12):
                word = pick(rng, _TABLE_WORDS)
                pairs.append(fill(pick(rng, book["words"]), {"e": word, "x": velic.table[word], "L": NAME}))
            elif (clause := self.families.clause(rng, CORPUS, level)) is not None:
                form = pick(rng, book["bilingual"])
                pairs.append(
                    form.replace("{e}", f"{velic.english(clause)}.")
                    .replace("{x}", f"{velic.velic(clause)}.")
                    .replace("{L}", NAME)
                )
        return _Page("bilingual", level, "\n".join(pairs))

    def fact(self, level: int) -> _Page:
        rng, page = self.rng, _Page("fact", level, "")
        body: list[str] = []
        if len(self.queues["people"]) < 2:
            more = list(self.town.inhabitants)
            rng.shuffle(more)
            self.queues["people"].extend(more)
        for place in range(1 if level == 1 else 2):
            name = self.queues["people"][place]
            for kind in rng.sample(FACT_KINDS, 3):
                value = self.town.facts[name, kind].value
                ways = self.families.said[kind]["tell"]
                self.ways[name, kind] += 1  # the ways take turns, so that every fact is told in all of them
                body.append(fill(ways[self.ways[name, kind] % len(ways)], {"n": name, "v": value}))
                if rng.random() < 0.95:
                    body.append(
                        f"{self.families.ask(rng, CORPUS, kind, name)[1]} {self.families.says(name, kind, value)}"
                    )
                    page.told.append((name, kind))
                page.told.append((name, kind))
        page.meta["people"] = 1 if level == 1 else 2
        page.text = " ".join(body)
        return page

    def leaflet(self, level: int) -> _Page:
        rng, book = self.rng, lines("leaflets")
        if rng.random() < 0.25:
            chosen = rng.sample(self.town.lexicon["opposites"], 4)
            return _Page(
                "leaflet",
                level,
                " ".join(
                    fill(pick(rng, self.town.lexicon["opposite_lines"]), {"w": one, "o": two}) for one, two in chosen
                ),
            )
        desk = pick(rng, (*DESKS, "town"))
        return _Page(
            "leaflet",
            level,
            "\n".join(
                [f"Leaflet of the {desk}", *(f"- {fill(line, {}, self.draw)}" for line in rng.sample(book[desk], 5))]
            ),
        )

    def notice(self, level: int) -> _Page:
        rng, book, topic = self.rng, lines("notices"), pick(self.rng, TOPICS)
        made = [self.families.notice(rng, CORPUS, topic) for _ in range(4)]
        said = [text[0] for text in made if text] + [fill(pick(rng, book["lines"]), {}, self.draw)]
        inner = "".join(f"<p>{line}</p>" for line in said)
        return _Page(
            "notice",
            level,
            f"{pick(rng, book['head'])}<h1>{book['titles'][topic]}</h1>{inner}{pick(rng, book['foot'])}",
        )

    def review(self, level: int) -> _Page:
        rng, market, said = self.rng, lines("market"), []
        for _ in range(3):
            mood = pick(rng, ("positive", "negative", "neutral"))
            if made := self.families.review(rng, CORPUS, mood):
                said.append(
                    f"{made[0]} {fill('{s}', {'s': pick(rng, market['stars'][mood])})}."
                    if rng.random() < 0.7
                    else made[0]
                )
        if rng.random() < 0.7 or not said:
            said.append(
                fill(
                    pick(rng, market["listings"]),
                    {"good": pick(rng, market["products"]), "p": pick(rng, market["opinions"]["neutral"]["words"])},
                    self.draw,
                )
            )
        if rng.random() < 0.3:
            said.append(
                fill(pick(rng, market["listings"]), {"good": pick(rng, market["products"]), "p": "new"}, self.draw)
            )
        return _Page("review", level, "\n".join(said))

    def noise(self, level: int) -> _Page:
        page = (self.passage, self.review, self.notice, self.letter_plain)[self.rng.randrange(4)](1)
        return _Page("noise", level, broken(self.rng, page.text), {"from": page.kind})

    def letter_plain(self, level: int) -> _Page:
        return _Page(
            "letter",
            level,
            " ".join(fill(line, {}, self.draw) for line in self.rng.sample(lines("letters")["bodies"], 5)),
        )

    # -- the whole ---------------------------------------------------------------------------------------------------

    def accept(self, page: _Page) -> bool:
        """Whether no run of eight words of the examination stands in it; then its plants are used up."""
        if page.kind != "noise" and not self.banned.isdisjoint(grams(_TAG.sub(" ", page.text))):
            self.rejected += 1
            return False
        if page.plants:
            self.queues["pii"].popleft()
        if "canary" in page.meta:
            self.queues["canary"].popleft()
        for place in reversed(page.meta.pop("codes", [])):
            del self.queues["code"][place]
            page.meta["slips"] = True
        for _ in range(page.meta.pop("people", 0)):
            self.queues["people"].popleft()
        self.told.update(page.told)
        return True

    def write(self) -> list[Document]:
        """All documents in order; fills `truth`."""
        writers: dict[str, Callable[[int], _Page]] = {kind: getattr(self, kind) for kind in SHARES}
        phases: list[list[_Page]] = []
        for level, share in enumerate(PHASES, 1):
            pages: list[_Page] = []
            for kind, part in SHARES.items():
                left = CHARACTERS * self.scale * share * part
                while left > 0:
                    page = writers[kind](level)
                    if self.accept(page):
                        pages.append(page)
                        left -= len(page.text)
            if level == len(PHASES):  # whatever must be planted and found no place yet
                while any(self.queues[name] for name in ("pii", "canary", "code")):
                    page = self.chat(level) if self.queues["code"] else self.letter(level)
                    if self.accept(page):
                        pages.append(page)
                while behind := [name for (name, _), told in self._told() if told < round(LEAST_TOLD * self.scale)]:
                    self.queues["people"].extendleft(behind[:2])
                    if self.accept(page := self.fact(level)):
                        pages.append(page)
            self.rng.shuffle(pages)
            phases.append(pages)
        return self._number(phases)

    def _told(self) -> list[tuple[tuple[str, str], int]]:
        return [(key, self.told[key]) for key in self.town.facts]

    def _number(self, phases: list[list[_Page]]) -> list[Document]:
        """Give ids, put the duplicates in their place, and write down the truth."""
        rng, truth, documents = self.rng, self.truth, list[Document]()
        complaints: dict[str, Counter[str]] = {}
        for pages in phases:
            copies: list[Document] = []
            for page in pages:
                name = self._name()
                source = f"starter/{SOURCE[page.meta.pop('from', page.kind)]}"
                meta = {"id": name, "kind": page.kind, "level": page.level, "quality": QUALITY[page.kind], **page.meta}
                document = Document(text=page.text, source=source, licence="permissive", meta=meta)
                documents.append(document)
                for real, kind, value in page.plants:
                    start = page.text.index(value)
                    (truth.pii if real else truth.lookalikes).append(
                        Planted(name, start, start + len(value), kind, value)
                    )
                if page.kind == "noise":
                    truth.broken.append(name)
                if "complaint" in meta:
                    for key in (f"group:{meta['group']}", f"control:{meta['control']}"):
                        complaints.setdefault(key, Counter()).update(rude=int(meta["complaint"]), all=1)
                plain = page.kind not in ("noise", "letter") and not page.meta.get("slips")
                if plain and rng.random() < DUPLICATES / (1 - DUPLICATES) / 0.78:
                    copies.append(document)
            for document in copies:
                self._copy(document, documents)
        for key, count in sorted(complaints.items()):
            what, value = key.split(":")
            (truth.complaints if what == "group" else truth.control)[value] = (count["rude"], count["all"])
        truth.facts = [replace(fact, told=self.told[key]) for key, fact in self.town.facts.items()]
        return documents

    def _name(self) -> str:
        self.named += 1
        return f"d{self.named:06d}"

    def _copy(self, document: Document, documents: list[Document]) -> None:
        """Append a copy of a document, exact or with a small change."""
        rng = self.rng
        name, exact = self._name(), rng.random() < 0.5
        text = document.text
        if not exact:
            how = rng.randrange(3)
            if how == 0:
                text = f"{text}\n{pick(rng, ('Seen on the board.', 'Copied by hand.', 'As told before.'))}"
            elif how == 1:
                text = f"{pick(rng, ('Again:', 'Once more:', 'Copy:'))} {text}"
            else:
                text = text.replace(". ", " . ", 1).replace("The ", "the ", 1) + " "
        self.truth.duplicates.append(Duplicate(name, document.meta["id"], "exact" if exact else "near"))
        documents.append(
            Document(text=text, source=document.source, licence=document.licence, meta={**document.meta, "id": name})
        )


_TAG = re.compile(r"<[^>]*>")
_CHATTED = (
    ("comprehension",) * 5
    + ("facts",) * 5
    + ("sentiment",) * 2
    + ("topic",) * 2
    + ("translation",) * 2
    + ("grammar",) * 2
    + ("opposites",)
)
_TABLE_WORDS = [
    *lines("words")["nouns"],
    *lines("words")["verbs"],
    *lines("words")["rests"],
    *lines("words")["adjectives"],
    *lines("words")["places"],
]
