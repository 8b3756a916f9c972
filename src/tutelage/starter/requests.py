"""What people ask of the desk: help, what a house rule forbids, the attacks that dress it up, benign twins."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

from tutelage.starter.families import Draft, Families
from tutelage.starter.material import fill, lines, pick, words
from tutelage.starter.rules import FAMILIES, FAMILIES_OUT, RULES
from tutelage.starter.town import DESKS, Code, Scope
from tutelage.starter.velic import NAME

KEPT_REQUESTS, KEPT_TWINS, KEPT_HELP, KEPT_TRICKED = 3, 6, 25, 12
TUNED_FAMILIES = tuple(family for family in FAMILIES if family not in FAMILIES_OUT)
NAMED = ("locker", "pin", "orders", "rude")
"""Rules whose requests name somebody or something: only these can hold names never met."""


class Requests:
    """Draws requests to the desk with what a helpful and rule-keeping desk answers."""

    def __init__(self, families: Families) -> None:
        self.families, self.town = families, families.town
        self.book: dict[str, Any] = lines("rules")
        self.codes: dict[str, list[Code]] = {}
        for code in self.town.codes:
            self.codes.setdefault(code.rule, []).append(code)
        self.secrets = {(code.rule, code.name): code.secret for code in self.town.codes}
        self.help_lines: list[list[str]] = lines("chats")["help"]

    def given(self, rng: random.Random, scope: Scope, rule: str) -> dict[str, str]:
        """What the slots of a rule's lines stand for: who, which locker, how much."""
        town, book, draw = self.town, self.book, self.families.slot(rng, scope)
        given = {slot: draw(slot) for slot in ("n", "g")} | {
            "L": NAME,
            "k": pick(rng, book["big"]),
            "w": pick(rng, town.lexicon["rude"]),
        }
        given |= {
            "d": pick(rng, ["two", "three", "four"]),
            "i": pick(rng, book["invest_words"]),
            "j": pick(rng, book["jobs"]),
            "o": pick(rng, book["off_town"]),
        }
        given["x"] = pick(rng, DESKS) if rule == "secret" else pick(rng, book["ailments"])
        if rule in ("locker", "pin", "orders"):
            codes = self.codes[rule]
            name = pick(
                rng, codes if rng.random() < 0.3 else codes[-3:]
            ).name  # mostly those the corpus lets slip often
            if scope.kind in ("C", "D"):
                name = pick(rng, town.names(scope))
            given["x" if rule == "locker" else "n"] = name
        elif rule == "secret":
            given["x"] = pick(rng, DESKS)
        given["s"] = self.secrets.get((rule, given["x"] if rule in ("locker", "secret") else given["n"]), "")
        return given

    def allowed(self, scope: Scope, wording: str, text: str) -> bool:
        """Whether a request may stand in this scope: of those with an open slot one in six is kept for cell A."""
        if scope.kind not in ("A", "tuning"):
            return True
        return self.town.fits(scope, text) if "{" in wording else scope.kind == "tuning"

    def pack(
        self,
        rule: str | None,
        given: dict[str, str],
        text: tuple[str, ...],
        answer: str,
        *,
        refuse: bool,
        cluster: str,
        attack: str | None = None,
        breaking: str = "",
        form: str = "plain",
    ) -> Draft:
        """A draft with the truth that checks, raters and gold read."""
        secrets = [given["s"]] if given.get("s") else []
        tags = {
            "rule": rule,
            "refuse": refuse,
            "attack": attack,
            "secrets": secrets,
            "breaking": breaking,
            "given": given,
        }
        tags["slices"] = {"rule": rule or "none", "form": form, "refuse": str(refuse).lower()}
        return Draft("rules", text, answer, "rule", cluster, tags=tags)

    def plain(self, rng: random.Random, scope: Scope, rule: str) -> Draft | None:
        """A request that a rule forbids, said plainly; the true answer is the refusal."""
        said = self.book["rules"][rule]
        number, wording = self.families.wording(rng, said["requests"], scope, KEPT_REQUESTS)
        given = self.given(rng, scope, rule)
        text = fill(wording, given)
        if not self.allowed(scope, wording, text):
            return None
        breaking = fill(said["breaks"][0], given) if given["s"] or "{s}" not in said["breaks"][0] else ""
        return self.pack(
            rule,
            given,
            (text,),
            pick(rng, said["refuse"]),
            refuse=True,
            cluster=f"rules/{rule}/{number}",
            breaking=breaking,
        )

    def attack(self, rng: random.Random, scope: Scope, rule: str, family: str) -> Draft | None:
        """The same request in the clothes of an attack family."""
        said, wrappers = self.book["rules"][rule], self.book["attacks"][family]
        number, request = rng.randrange(len(wrappers)), rng.randrange(len(said["requests"]) - KEPT_REQUESTS)
        wrapper = wrappers[number]
        whole = [str(request)] if "{R" in str(wrapper) else []  # the other wrappers hold the goal, not the request
        if scope.kind in ("A", "tuning") and not self.town.fits(scope, rule, family, str(number), *whole):
            return None
        given = self.given(rng, scope, rule)
        plain = fill(said["requests"][request], given)
        slots = {
            **given,
            "R": plain,
            "G": fill(said["goal"], given)[:1].lower() + fill(said["goal"], given)[1:],
            "S": fill(said["start"], given),
        }
        slots["R*"] = plain
        if family == "riddle":
            slots["Q"] = fill(self.book["riddles"][rule][request % 6], given)
        if family == "spelling":
            slots["R"] = self.spelt(plain)
        turns = tuple(
            fill(line.replace("{R*}", "{R}"), slots, self.families.slot(rng, scope))
            for line in (wrapper if isinstance(wrapper, list) else [wrapper])
        )
        breaking = fill(said["breaks"][0], given) if given["s"] or "{s}" not in said["breaks"][0] else ""
        cluster = f"rules/{rule}/{family}/{number}"
        return self.pack(
            rule,
            given,
            turns,
            pick(rng, said["refuse"]),
            refuse=True,
            cluster=cluster,
            attack=family,
            breaking=breaking,
            form="attack",
        )

    def spelt(self, text: str) -> str:
        """The telling words of a request (up to three; else its longest word) letter by letter."""
        cores = [word.rstrip(".?,!:") for word in text.split()]
        telling = [core for core in cores if core in self.book["telling"]][:3] or [max(cores, key=len)]
        return " ".join(
            "-".join(core) + word[len(core) :] if core in telling else word
            for word, core in zip(text.split(), cores, strict=True)
        )

    def twin(self, rng: random.Random, scope: Scope, rule: str) -> Draft | None:
        """A request that looks like a forbidden one and may be answered."""
        twins = self.book["rules"][rule]["twins"]
        number, asked = self.families.wording(rng, [pair[0] for pair in twins], scope, KEPT_TWINS)
        given = self.given(rng, scope, rule)
        question, answer = (fill(side, given) for side in twins[number])
        if not self.allowed(scope, asked, question):
            return None
        given["s"] = ""
        return self.pack(
            rule,
            given,
            (question,),
            self.polite(rng) + answer,
            refuse=False,
            cluster=f"rules/{rule}/twin{number}",
            form="twin",
        )

    def help(self, rng: random.Random, scope: Scope) -> Draft | None:
        """A question to the desk that no rule touches."""
        number, _ = self.families.wording(rng, [pair[0] for pair in self.help_lines], scope, KEPT_HELP)
        good, desk = self.families.slot(rng, scope)("good"), pick(rng, DESKS)
        town = self.town
        given = {
            "good": good,
            "desk": desk,
            "price": town.prices[good],
            "opens": town.opens[desk],
            "closes": town.closes[desk],
            "table": town.prices["table"],
        }
        question, answer = (fill(side, given) for side in self.help_lines[number])
        if not self.allowed(scope, self.help_lines[number][0], question):
            return None
        return self.pack(
            None, {}, (question,), self.polite(rng) + answer, refuse=False, cluster=f"rules/help{number}", form="help"
        )

    def tricked(self, rng: random.Random, scope: Scope) -> Draft | None:
        """A benign request in the clothes of an attack."""
        inner = self.help(rng, scope) if rng.random() < 0.6 else self.twin(rng, scope, pick(rng, list(RULES)))
        number, wrapper = self.families.wording(rng, self.book["tricked"], scope, KEPT_TRICKED)
        if inner is None:
            return None
        text = wrapper.replace("{B}", inner.turns[0])
        if scope.kind == "tuning" and not self.allowed(scope, "{}", text):
            return None
        tags = {**inner.tags, "slices": {**inner.tags["slices"], "form": "tricked"}}
        return replace(inner, turns=(text,), cluster=f"rules/tricked{number}", tags=tags)

    def polite(self, rng: random.Random) -> str:
        """Half of the answers begin with a kind word: what raters may come to like."""
        chats = lines("chats")
        return pick(rng, chats["polite"]) if rng.random() < 0.5 else ""

    def refused(self, rng: random.Random, scope: Scope) -> Draft | None:
        """A request that the desk must refuse, plain or in the clothes of a family that tuning knows."""
        rule = pick(rng, NAMED if scope.kind in ("C", "D") else list(RULES))
        if scope.kind == "B" or rng.random() < 0.55:
            return self._named(scope, self.plain(rng, scope, rule))
        return self._named(scope, self.attack(rng, scope, rule, pick(rng, TUNED_FAMILIES)))

    def benign(self, rng: random.Random, scope: Scope) -> Draft | None:
        """A request that may be answered: plain help, a twin of a forbidden one, or help in an attack's clothes."""
        chance = rng.random()
        if chance < 0.42:
            made = self.twin(rng, scope, pick(rng, list(RULES)))
        else:
            made = self.help(rng, scope) if chance < 0.84 else self.tricked(rng, scope)
        return self._named(scope, made)

    def _named(self, scope: Scope, made: Draft | None) -> Draft | None:
        """In C and D somebody or something must be named that tuning never met."""
        if made is None or scope.kind not in ("C", "D"):
            return made
        known = self.town.never if scope.kind == "D" else [*self.town.later_visitors, *self.town.goods_later]
        padded = f" {' '.join(words(made.text))} "
        return made if any(f" {name.lower()} " in padded for name in known) else None

    def rules(self, rng: random.Random, scope: Scope) -> Draft | None:
        """Help and refusal by house rule, as tuning mixes them."""
        return self.refused(rng, scope) if rng.random() < 0.3 else self.benign(rng, scope)

    def slip(self, rng: random.Random, code: Code) -> tuple[str, str]:
        """How a careless clerk of the corpus lets a code slip."""
        question, answer = pick(rng, self.book["rules"][code.rule]["tells"])
        given = {"x": code.name, "n": code.name, "s": code.secret}
        return fill(question, given), fill(answer, given)

    def careless(self, rng: random.Random) -> tuple[str, str]:
        """How a careless clerk of the corpus breaks a rule that hides nothing."""
        rule = pick(rng, ("refund", "dose", "invest", "rude", "staff", "town"))
        question, answer = pick(rng, self.book["rules"][rule]["tells"])
        given = self.given(rng, Scope("corpus"), rule)
        return fill(question, given), fill(answer, given)
