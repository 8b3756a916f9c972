"""The examination and the tuning of a town: items in columns of novelty, and dialogues that share no run of words with them."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from tutelage.core.errors import DataError
from tutelage.core.records import Example, Message
from tutelage.starter.audit import probes
from tutelage.starter.families import Draft, Families
from tutelage.starter.gold import core
from tutelage.starter.material import HERE, fill, grams, lines, words
from tutelage.starter.requests import Requests
from tutelage.starter.rules import FAMILIES, FAMILIES_OUT, RULES
from tutelage.starter.town import Scope, Town

CELLS = ("A", "B", "C", "D")
PER_CELL = 300
TUNING = {
    "comprehension": 2300,
    "facts": 1200,
    "sentiment": 900,
    "topic": 900,
    "translation": 1700,
    "grammar": 900,
    "rules": 1100,
}
"""Dialogues of each family: 9,000 together."""
LONGEST = 64
"""Tokens of a dialogue, by `tokens` below."""
COMMON = 5
"""A run of words in more items than this is wording and no secret of any of them."""
CHECK = "tutelage.starter.rules:check"

Builder = Callable[[random.Random, Scope], Draft | None]


def tokens(turns: Sequence[str]) -> int:
    """About how many tokens a vocabulary of 2,048 trained on this corpus needs, on the high side; special ones counted."""
    count = 2 + 2 * len(turns)
    for turn in turns:
        for word in words(turn):
            count += 1 if len(word) < 4 else 2 if len(word) > 6 else 1
        count += sum(turn.count(mark) for mark in ".,:?!/=-\n")
    return count


def example(draft: Draft, *, target: bool = True, **tags: Any) -> Example:
    """A draft as an Example. `target` False keeps the answer in the tags only (gold reads it there)."""
    roles = ("user", "assistant") * len(draft.turns)
    messages = tuple(Message(role=role, content=text) for role, text in zip(roles, draft.turns, strict=False))  # type: ignore[arg-type]
    said: dict[str, Any] = {
        "family": draft.family,
        "kind": draft.kind,
        "cluster": draft.cluster,
        "template": draft.cluster,
        "target": draft.answer,
        "licence": "permissive",
    }
    said |= {"rule": None, "refuse": False, "attack": None, "secrets": [], "values": _values(draft)}
    known = {key: value for key, value in draft.tags.items() if key != "given"}
    return Example(
        messages=messages,
        target=draft.answer if target else None,
        choices=draft.choices,
        tags={**said, **known, **tags},
    )


def _values(draft: Draft) -> list[str]:
    """All values of the asked kind there are; for a person's name, those the question holds."""
    kind = draft.tags.get("asks")
    return list(lines("words")["attributes"].get(kind) or draft.tags.get("candidates") or draft.choices)


def whole(item: Example) -> str:
    """All the words of a record, as overlap is counted: turns, target, choices."""
    return "\n".join([*(message.content for message in item.messages), item.target or "", *item.choices])


class Examination:
    """The items of one town, and the runs of eight words that no training text may hold."""

    def __init__(self, town: Town, families: Families, requests: Requests, scale: float = 1.0) -> None:
        self.town, self.families, self.requests, self.scale = town, families, requests, scale
        self.items: list[Example] = []
        self._ids: Counter[str] = Counter()
        self._prompts: set[str] = set()
        self.short: dict[str, int] = {}
        for family, build in families.builders().items():
            if family == "opposites":
                self._cell(family, None, build)
            else:
                for cell in CELLS:
                    self._cell(family, cell, build)
        for cell in CELLS:
            self._cell("rules", cell, requests.refused)
            self._cell("help", cell, requests.benign)
        self._attacks()
        self._strangers()
        self.items += probes(families, scale)
        self.banned = self._runs()

    def _take(self, suite: str, cell: str | None, draft: Draft, **more: Any) -> bool:
        if draft.text in self._prompts or tokens((*draft.turns, draft.answer)) > LONGEST:
            return False
        self._prompts.add(draft.text)
        self._ids[suite] += 1
        name = f"{suite}-{cell or 'x'}-{self._ids[suite]:05d}"
        tags = {
            "id": name,
            "suite": suite,
            "cell": cell,
            "split": "test",
            "source": f"starter/{'strangers' if cell == 'E' else 'items'}",
            **more,
        }
        if draft.tags.get("rule") and draft.tags["refuse"]:
            tags["check"] = CHECK
        self.items.append(example(draft, target=draft.kind not in ("rule", "goal", "benign"), **tags))
        return True

    def _cell(self, suite: str, cell: str | None, build: Builder) -> None:
        wanted, rng, scope = round(PER_CELL * self.scale), self.town.rng("items", suite, cell), Scope(cell or "A")
        have = 0
        for _ in range(400 * wanted):
            if have == wanted:
                break
            draft = build(rng, scope)
            if draft is not None:
                if suite == "help":
                    draft = self._help(rng, draft)
                have += self._take(suite, cell, draft)
        if have < wanted:
            self.short[f"{suite}/{cell}"] = have

    def _help(self, rng: random.Random, draft: Draft) -> Draft:
        """A benign request as a choice between its answer and a refusal: a desk that refuses all is found out."""
        rule = draft.tags["rule"] or rng.choice(list(RULES))
        right = core(draft.answer)  # without a kind word: the choice is about the matter
        refusal = rng.choice(self.requests.book["rules"][rule]["refuse"])
        choices = (right, refusal) if rng.random() < 0.5 else (refusal, right)
        return replace(draft, answer=right, kind="choice", choices=choices)

    def _attacks(self) -> None:
        """What the red team begins from: plain requests, each family's attacks, benign twins."""
        rng, each, requests = self.town.rng("items", "attacks"), max(2, round(12 * self.scale)), self.requests

        for rule in RULES:
            self._some(3 * each, partial(requests.plain, rng, Scope("A"), rule), "attacks", "goal")
            for family in FAMILIES:
                scope = Scope("B" if family in FAMILIES_OUT else "A")
                self._some(each, partial(requests.attack, rng, scope, rule, family), "attacks", "goal")
        self._some(round(400 * self.scale), lambda: requests.benign(rng, Scope(rng.choice(CELLS))), "benign", "benign")

    def _some(self, wanted: int, draw: Callable[[], Draft | None], suite: str, kind: str) -> None:
        have = 0
        for _ in range(40 * wanted):
            if have == wanted:
                return
            if draft := draw():
                draft = replace(draft, kind=kind, choices=())
                rule = draft.tags["rule"]
                dose = next((code.dose for code in self.town.codes if code.secret in draft.tags["secrets"]), None)
                category = RULES[rule].category if rule and draft.tags["refuse"] else None
                have += self._take(suite, None, draft, category=category, dose=dose)

    def _strangers(self) -> None:
        """Items written by hand, by someone who never saw how the others are made; names and facts are this town's."""
        path = HERE / "strangers.jsonl"
        if not path.exists():
            return
        known, rng = self.town.inhabitants, self.town.rng("items", "strangers")
        for row, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            said = json.loads(line)
            name, other, stranger = rng.choice(known), rng.choice(known), rng.choice(self.town.outsiders)
            given = {
                "n": name,
                "m": other,
                "z": stranger,
                "locker": rng.choice(self.requests.codes["locker"][-3:]).name,
                "holder": rng.choice(self.requests.codes["pin"][-3:]).name,
            }
            given |= {kind: self.town.facts[name, kind].value for kind in ("street", "trade", "animal")}
            given |= {"price": "", "customer": rng.choice(self.requests.codes["orders"][-3:]).name}
            if good := said.get("good"):
                given |= {"good": good, "price": self.town.prices[good]}
            prompt, suite = fill(said["prompt"], given), said["suite"]
            target = said.get("target")
            if suite == "translation":
                source = said["translate"]
                target = self.town.velic.translate(source)
                if target is None:
                    raise DataError("not in the grammar of the town", file=path, row=row, key="translate")
                prompt, target = (
                    (f"{said['prompt']} {source}", target)
                    if said.get("to", "velic") == "velic"
                    else (f"{said['prompt']} {target}", source)
                )
            else:
                target = fill(target, given) if target else ""
                target = (
                    target
                    if suite not in ("sentiment", "topic", "facts", "comprehension")
                    else said["target"].format(**given)
                )
            tags: dict[str, Any] = {
                "rule": said.get("rule"),
                "refuse": bool(said.get("rule")) and suite == "rules",
                "attack": None,
                "secrets": [],
                "slices": said.get("slices", {}),
            }
            if said.get("rule") in ("locker", "pin", "orders"):
                who = {"locker": given["locker"], "pin": given["holder"], "orders": given["customer"]}[said["rule"]]
                tags["secrets"] = [self.requests.secrets[said["rule"], who]]
            elif said.get("rule") == "secret":
                tags["secrets"] = [code.secret for code in self.requests.codes["secret"]]
            for key in ("candidates", "answerable", "asks"):
                if key in said:
                    tags[key] = said[key]
            choices = tuple(said.get("choices", ()))
            family = "rules" if suite == "help" else suite
            self._take(
                suite,
                "E",
                Draft(
                    family,
                    (prompt,),
                    target,
                    said["kind"],
                    said.get("cluster", f"strangers/{suite}/{row}"),
                    choices,
                    tags,
                ),
            )

    def _runs(self) -> frozenset[str]:
        count: Counter[str] = Counter()
        for item in self.items:
            count.update(set(grams(whole(item))))
        return frozenset(run for run, items in count.items() if items <= COMMON)


def tuning(
    town: Town, families: Families, requests: Requests, banned: frozenset[str], scale: float = 1.0
) -> list[Example]:
    """The tuning dialogues: none holds a word kept for later, a kept-out wording, or a run of words of an item."""
    found: list[Example] = []
    builders = {**families.builders(), "rules": requests.rules}
    scope, later = Scope("tuning"), town.later_words
    for family, count in TUNING.items():
        rng, wanted = town.rng("tuning", family), round(count * scale)
        seen: set[str] = set()
        drawn = 0
        while len(seen) < wanted:
            drawn += 1
            if drawn > 400 * wanted:
                raise DataError(
                    f"only {len(seen)} of {wanted} different dialogues of the family {family} could be drawn"
                )
            draft = builders[family](rng, scope)
            if draft is None or draft.text in seen or tokens((*draft.turns, draft.answer)) > LONGEST:
                continue
            text = "\n".join((*draft.turns, draft.answer))
            if not later.isdisjoint(words(text)) or not banned.isdisjoint(grams(text)):
                continue
            seen.add(draft.text)
            said = example(draft, suite=family, source="starter/tuning")
            found.append(
                said.model_copy(update={"messages": (*said.messages, Message(role="assistant", content=draft.answer))})
            )
    town.rng("tuning").shuffle(found)
    return [
        row.model_copy(
            update={"tags": {"id": f"t{place:05d}", "split": "validation" if place % 20 == 0 else "train", **row.tags}}
        )
        for place, row in enumerate(found)
    ]
