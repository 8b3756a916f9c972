"""Two policies side by side: what differs in their words, and what the newer would have decided on the same texts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from tutelage.core.records import ACTIONS, Action, Message, Record
from tutelage.guard.coverage import FAILURES
from tutelage.guard.scan import Scan, Scanner
from tutelage.guard.written import PolicyFile, Surface, Taxonomy
from tutelage.measure.statistics import wilson

Way = Literal["stricter", "milder", "other"]


class Change(Record):
    """One difference. `way` says whether it withholds more, withholds less, or does neither by itself."""

    where: str
    """`rules.r1.action`, `tenants.acme.r1.off`, `messages.refuse.en` ..."""
    before: Any = None
    after: Any = None
    way: Way = "other"


def changes(
    old: PolicyFile, new: PolicyFile, old_taxonomy: Taxonomy | None = None, new_taxonomy: Taxonomy | None = None
) -> list[Change]:
    """Every difference between two policies, in the order of the file."""
    found: list[Change] = []
    before, after = _plain(old, old_taxonomy), _plain(new, new_taxonomy)
    for name in dict.fromkeys([*before, *after]):
        if before.get(name) != after.get(name):
            found.append(
                Change(where=name, before=before.get(name), after=after.get(name), way=_way(name, before, after))
            )
    return _rules_at_once(found, old, new)


def _rules_at_once(found: Sequence[Change], old: PolicyFile, new: PolicyFile) -> list[Change]:
    """A rule that came or went is one difference, not one for each of its keys."""
    was, now = {rule.id for rule in old.rules}, {rule.id for rule in new.rules}
    rules = {rule.id: rule for rule in (*old.rules, *new.rules)}
    kept = [each for each in found if not any(each.where.startswith(f"rules.{id}.") for id in was ^ now)]
    for id in sorted(was ^ now):
        rule = rules[id].model_dump(mode="json", exclude_defaults=True)
        stops = rules[id].action != "allow" and not rules[id].off
        came: Way = "stricter" if stops else "other"
        went: Way = "milder" if stops else "other"
        gone = id in was
        kept.append(
            Change(
                where=f"rules.{id}",
                before=rule if gone else None,
                after=None if gone else rule,
                way=went if gone else came,
            )
        )
    return kept


def _plain(file: PolicyFile, taxonomy: Taxonomy | None) -> dict[str, Any]:
    """Dotted name -> value, rules by their ids."""
    values = file.model_dump(mode="json")
    values["rules"] = {rule["id"]: rule for rule in values["rules"]}
    if taxonomy is not None:
        values["categories"] = taxonomy.model_dump(mode="json")["categories"]
    return _dotted(values)


def _dotted(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, Mapping) or not value:
        return {prefix: value} if prefix else {}
    found: dict[str, Any] = {}
    for key, each in value.items():
        found.update(_dotted(each, f"{prefix}.{key}" if prefix else str(key)))
    return found


def _way(name: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> Way:
    old, new = before.get(name), after.get(name)
    key = name.rpartition(".")[2]
    more: bool | None = None
    if key == "unsure":
        old, new = old or "allow", new or "allow"
    if key in ("action", "on_error", "unsure", *FAILURES) and old in ACTIONS and new in ACTIONS:
        more = ACTIONS.index(new) > ACTIONS.index(old)
    elif key == "off" and old is not new:
        more = not new
    elif key == "threshold" and isinstance(old, float) and isinstance(new, float):
        more = new < old
    elif key == "target_fpr" and isinstance(old, float) and isinstance(new, float):
        more = new > old
    return "other" if more is None else "stricter" if more else "milder"


class Spoken(NamedTuple):
    """One recorded request: what was asked, and what was answered."""

    id: str
    messages: Sequence[Message]
    answer: str | None = None
    surface: Surface = "scan"
    tenant: str = ""


class Moved(Record):
    """One request on which the two policies disagree. Holds no text."""

    id: str
    before: Action
    after: Action
    reasons: tuple[str, ...] = ()


class Fired(Record):
    """On how many requests the rules on one category fired."""

    before: int = 0
    after: int = 0
    gone: int = 0
    new: int = 0


class Replay(Record):
    """What a policy would have decided on recorded requests, beside another."""

    n: int
    changed: int
    share: Any
    """The share that would be decided otherwise, with its 95% interval."""
    table: dict[str, int]
    """`allow -> block` -> how many."""
    categories: dict[str, Fired]
    """Category -> on how many requests a rule on it fired."""
    moved: tuple[Moved, ...]


def replay(old: Scanner, new: Scanner, spoken: Iterable[Spoken]) -> Replay:
    """Decide on the same texts under both policies; nothing is generated and nothing recorded."""
    table: Counter[str] = Counter()
    moved: list[Moved] = []
    counts: dict[str, Counter[str]] = {}
    total = 0
    for each in spoken:
        total += 1
        one = old.scan(each.messages, each.answer, surface=each.surface, tenant=each.tenant)
        two = new.scan(each.messages, each.answer, surface=each.surface, tenant=each.tenant)
        table[f"{one.action} -> {two.action}"] += 1
        was, now = _fired(old, one, each.tenant), _fired(new, two, each.tenant)
        sides = (("before", was), ("after", now), ("gone", was - now), ("new", now - was))
        for side, names in sides:
            for name in names:
                counts.setdefault(name, Counter())[side] += 1
        if one.action != two.action:
            reasons = dict.fromkeys(reason for seen in two.seen for reason in seen.decision.reasons)
            moved.append(Moved(id=each.id, before=one.action, after=two.action, reasons=tuple(reasons)))
    return Replay(
        n=total,
        changed=len(moved),
        share=wilson(len(moved), total),
        table=dict(sorted(table.items())),
        categories={name: Fired(**counts[name]) for name in sorted(counts)},
        moved=tuple(moved),
    )


def _fired(scanner: Scanner, scan: Scan, tenant: str) -> frozenset[str]:
    """The categories that rules fired on, and `personal data`."""
    named = frozenset(name for seen in scan.seen for name in scanner.policy.fired(seen.decision, tenant))
    reasons = [reason for seen in scan.seen for reason in seen.decision.reasons]
    return named | ({"personal data"} if any(": personal data (" in reason for reason in reasons) else frozenset())
