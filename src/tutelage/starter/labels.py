"""Rows that the guards learn from: requests and answers with the categories of the taxonomy that they fall into.

Two attack families and one whole house rule stand in none of them; benign twins and hard negatives stand in all.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from tutelage.core.records import Example, Message, Role
from tutelage.starter.dialogues import tokens
from tutelage.starter.families import Draft, Families
from tutelage.starter.material import fill, grams, lines, pick
from tutelage.starter.requests import TUNED_FAMILIES, Requests
from tutelage.starter.rules import ATTACK_CATEGORY, GUARDED_OUT, RULES
from tutelage.starter.town import Scope, Town

HARM = ("crime", "fraud", "privacy", "cyber", "misinformation", "harassment")
MANNER = ("prompt_injection", "jailbreak")
COUNTS = {"input_harm": 1700, "input_benign": 2400, "output_harm": 900, "output_benign": 1560}
VALIDATION = 3
"""One cluster in so many is held back for thresholds and certificates."""

_SCOPE = Scope("tuning")


def categories(draft: Draft, *, answer: bool = False) -> dict[str, int]:
    """The truth about a request (or the answer to it): every category this starter teaches, 0 or 1."""
    rule, attack = draft.tags.get("rule"), draft.tags.get("attack")
    harm = RULES[str(rule)].category if rule and draft.tags["refuse"] else None
    found = {name: int(name == harm) for name in HARM}
    manner = ATTACK_CATEGORY[str(attack)] if attack else None
    return found if answer else found | {name: int(name == manner) for name in MANNER}


def clean(draft: Draft) -> dict[str, int]:
    """Nothing to object to, whatever was asked for (a refusal, say)."""
    return dict.fromkeys(HARM, 0)


class Labels:
    """Draws label rows for one town."""

    def __init__(
        self, town: Town, families: Families, requests: Requests, banned: frozenset[str], scale: float = 1.0
    ) -> None:
        self.town, self.families, self.requests, self.banned, self.scale = town, families, requests, banned, scale
        self.rules = [rule for rule in RULES if rule != GUARDED_OUT]
        self.harmful = [rule for rule in self.rules if RULES[rule].category]

    def request(self, rng: random.Random, rule: str | None = None) -> Draft | None:
        """A harmful request, plain or attacking; injections come oftener, they have a guard of their own."""
        rule = rule or pick(rng, self.harmful)
        if rng.random() < 0.35:
            return self.requests.plain(rng, _SCOPE, rule)
        return self.requests.attack(rng, _SCOPE, rule, pick(rng, ("injection", "injection", *TUNED_FAMILIES)))

    def benign(self, rng: random.Random) -> Draft | None:
        """Twins, help, help in an attack's clothes, questions off the town, and what else the desk is asked."""
        chance = rng.random()
        if chance < 0.35:
            return self.requests.twin(rng, _SCOPE, pick(rng, list(RULES)))
        if chance < 0.5:
            return self.requests.help(rng, _SCOPE)
        if chance < 0.65:
            return self.requests.tricked(rng, _SCOPE)
        if chance < 0.7:
            return self.requests.plain(rng, _SCOPE, "town")
        return pick(rng, list(self.families.builders().values())[:6])(rng, _SCOPE)

    def breaking(self, rng: random.Random, rule: str) -> tuple[Draft, str] | None:
        """A harmful request and an answer that gives in."""
        if (draft := self.requests.plain(rng, _SCOPE, rule)) is None:
            return None
        said = lines("rules")["rules"][draft.tags["rule"]]
        given = dict(draft.tags["given"])
        if rule == "secret":  # any word may be the secret one: the guard learns the manner, not the word
            given["s"] = pick(rng, self.town.lexicon["secrets"])
        elif rule in ("locker", "pin"):
            given["s"] = str(rng.randrange(111, 999))
        elif rule == "orders":
            given["s"] = pick(rng, self.town.goods)
        number = rng.randrange(len(said["breaks"]))
        broken = replace(draft, cluster=f"rules/{rule}/broken{number}")  # answers of one wording hang together
        return broken, fill(said["breaks"][number], given)

    def fine(self, rng: random.Random) -> tuple[Draft, str] | None:
        """A request of any kind and the answer it should get."""
        chance = rng.random()
        if chance < 0.45:  # answers in whole sentences, of which there are many
            family = pick(rng, ("comprehension", "facts", "translation", "translation"))
            draft = self.families.builders()[family](rng, _SCOPE)
        else:
            draft = self.request(rng) if chance < 0.65 else self.benign(rng)
        return (draft, draft.answer) if draft else None

    def rows(self) -> list[Example]:
        """All label rows in a mixed order, split by cluster."""
        rng = self.town.rng("labels")
        found: list[Example] = []
        # harmful rows rule by rule, so that every category has its share
        makers: list[tuple[str, float, Callable[[], Example | None]]] = [
            ("input_benign", 1.0, lambda: self._row("input", self.benign(rng))),
            ("output_benign", 1.0, lambda: self._answered(self.fine(rng), harmful=False)),
        ]
        for rule in self.harmful:
            share = 1 / len(self.harmful)
            makers.append(("input_harm", share, partial(self._asked, rng, rule)))
            makers.append(("output_harm", share, partial(self._broken, rng, rule)))
        for name, share, make in makers:
            seen: set[str] = set()
            wanted = round(COUNTS[name] * self.scale * share)
            for _ in range(120 * wanted):
                if len(seen) == wanted:
                    break
                row = make()
                if row is None:
                    continue
                text = "\n".join(message.content for message in row.messages)
                if text not in seen and self.banned.isdisjoint(grams(text)):
                    seen.add(text)
                    found.append(row)
        rng.shuffle(found)
        return [row.model_copy(update={"tags": {"id": f"g{place:05d}", **row.tags}}) for place, row in enumerate(found)]

    def _asked(self, rng: random.Random, rule: str) -> Example | None:
        return self._row("input", self.request(rng, rule))

    def _broken(self, rng: random.Random, rule: str) -> Example | None:
        return self._answered(self.breaking(rng, rule), harmful=True)

    def _tags(self, direction: str, draft: Draft, found: dict[str, int], cluster: str) -> dict[str, object]:
        split = (
            "validation"
            if zlib.crc32(f"{self.town.seed}/{direction}/{cluster}".encode()) % VALIDATION == 0
            else "train"
        )
        tags = {
            "split": split,
            "direction": direction,
            "categories": found,
            "cluster": cluster,
            "source": "starter/labels",
            "licence": "permissive",
        }
        twin = not any(found.values()) and draft.family == "rules"
        return {**tags, "rule": draft.tags.get("rule"), "attack": draft.tags.get("attack"), "twin": twin}

    def _row(self, direction: str, draft: Draft | None) -> Example | None:
        if draft is None or tokens(draft.turns) > 64:
            return None
        roles: tuple[Role, ...] = ("user", "assistant") * len(draft.turns)
        messages = tuple(Message(role=role, content=text) for role, text in zip(roles, draft.turns, strict=False))
        return Example(messages=messages, tags=self._tags(direction, draft, categories(draft), draft.cluster))

    def _answered(self, made: tuple[Draft, str] | None, *, harmful: bool) -> Example | None:
        if made is None:
            return None
        draft, answer = made
        found = categories(draft, answer=True) if harmful else clean(draft)
        row = self._row("output", draft)
        if row is None:
            return None
        said = Message(role="assistant", content=answer)
        return Example(
            messages=(*row.messages, said),
            tags=self._tags("output", draft, found, draft.cluster if harmful else f"answer/{answer}"),
        )
