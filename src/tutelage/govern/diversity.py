"""Who judged what: answers by group of those who consented, never a group small enough to be a person."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tutelage.core.records import Record
from tutelage.store import answers, profiles
from tutelage.store.engine import Reader

ATTRIBUTES = ("gender", "ethnicity", "native_language", "age_band", "region")
K = 5
"""A group of fewer people is not shown."""


class Group(Record):
    """One value of an attribute. Shares are of the answers given by people whose group may be shown."""

    value: str
    people: int
    answers: int
    share: float
    target: float | None = None
    means: dict[str, float]
    """Criterion -> mean score of this group, where at least `K` of its people scored."""


class Diversity(Record):
    """Who answered in one project, by one attribute."""

    attribute: str
    kind: str
    groups: tuple[Group, ...]
    hidden_people: int
    """People who answered and are not shown: no consent, no value, or a group that is too small."""
    hidden_answers: int
    reason: str | None = None


def report(
    store: Reader,
    project: str,
    *,
    k: int = K,
    kind: str = "live",
    targets: Mapping[str, Mapping[str, float]] | None = None,
    attributes: Sequence[str] = ATTRIBUTES,
) -> list[Diversity]:
    """For each attribute, how many people of each group answered in a project and how much.

    `kind` keeps simulated, replayed and live people apart. Groups are counted among those who answered here: one of
    fewer than k people is hidden, and a second with it where subtraction would tell. `targets` are wanted shares.
    """
    given = answers.read(store, project, people=kind)
    by_person: dict[str, list[answers.Annotation]] = {}
    for each in given:
        by_person.setdefault(each.person, []).append(each)
    found = []
    for attribute in attributes:
        members = profiles.groups(store, attribute, k, kind)
        present = {value: [p for p in ids if p in by_person] for value, ids in members.items()}
        shown = _large(present, k)
        total = sum(len(by_person[p]) for ids in shown.values() for p in ids)
        wanted = (targets or {}).get(attribute, {})
        groups = tuple(_group(value, ids, by_person, total, wanted.get(value), k) for value, ids in shown.items())
        seen = sum(each.people for each in groups)
        none = None if groups else f"no group of at least {k} people answered here"
        found.append(
            Diversity(
                attribute=attribute,
                kind=kind,
                groups=groups,
                hidden_people=len(by_person) - seen,
                hidden_answers=len(given) - total,
                reason=none,
            )
        )
    return found


def _large(groups: Mapping[str, list[str]], k: int) -> dict[str, list[str]]:
    """The groups that may be shown; when exactly one is too small the next smallest goes with it."""
    sizes = {value: len(ids) for value, ids in groups.items() if ids}
    small = {value for value, size in sizes.items() if size < k}
    if len(small) == 1 and len(sizes) > 1:
        small.add(min((value for value in sizes if value not in small), key=lambda value: (sizes[value], value)))
    return {value: groups[value] for value in sorted(sizes) if value not in small}


def _group(
    value: str,
    ids: Sequence[str],
    by_person: Mapping[str, Sequence[answers.Annotation]],
    total: int,
    target: float | None,
    k: int,
) -> Group:
    scores: dict[str, list[float]] = {}
    scorers: dict[str, set[str]] = {}
    for person in ids:
        for each in by_person[person]:
            for criterion, of in each.scores().items():
                scores.setdefault(criterion, []).extend(of.values())
                scorers.setdefault(criterion, set()).add(person)
    given = sum(len(by_person[person]) for person in ids)
    return Group(
        value=value,
        people=len(ids),
        answers=given,
        share=given / total,
        target=target,
        means={c: sum(v) / len(v) for c, v in sorted(scores.items()) if len(scorers[c]) >= k},
    )


def as_rows(found: Sequence[Diversity]) -> list[dict[str, Any]]:
    """The report as plain rows, one for each shown group."""
    return [{"attribute": each.attribute, **group.model_dump(mode="json")} for each in found for group in each.groups]
