"""A hierarchical taxonomy of tags, by version: what choosing a tag implies, and old labels read under a newer version.

Choosing a node implies every node above it. A newer version says in `migration` what became of each node that it no
longer holds: one new node (renamed), one that others turn into as well (merged), several (split), none (taken out).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from pydantic import Field, model_validator

from tutelage.core.errors import DataError
from tutelage.core.records import Record

KEY = r"^[a-z0-9][a-z0-9_.:/-]{0,79}$"
DEEPEST = 12
"""Levels of a tree."""


class Node(Record):
    """One tag, and the finer ones below it."""

    key: str = Field(pattern=KEY)
    title: str = ""
    """What people read; empty shows the key."""
    description: str = ""
    severity: int = Field(default=0, ge=0, le=3)
    """0 says nothing; 1 (mild) to 3 (grave)."""
    children: tuple[Node, ...] = ()


class Taxonomy(Record):
    """One version of a tree of tags."""

    nodes: tuple[Node, ...] = Field(min_length=1)
    migration: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """Key of the version before -> keys of this one. A key that stays the same need not stand here."""

    @model_validator(mode="after")
    def _each_once(self) -> Taxonomy:
        seen: set[str] = set()
        for node, above in self.walk():
            if node.key in seen:
                raise ValueError(f"the node {node.key!r} stands twice in the taxonomy")
            if len(above) >= DEEPEST:
                raise ValueError(f"the node {node.key!r} is deeper than {DEEPEST} levels")
            seen.add(node.key)
        for old, new in self.migration.items():
            if unknown := sorted(set(new) - seen):
                raise ValueError(f"migration of {old!r} leads to {unknown[0]!r}, which this version does not hold")
        return self

    def walk(self) -> Iterator[tuple[Node, tuple[str, ...]]]:
        """Every node with the keys above it, top first, in the order of the tree."""
        waiting: list[tuple[Node, tuple[str, ...]]] = [(node, ()) for node in reversed(self.nodes)]
        while waiting:
            node, above = waiting.pop()
            yield node, above
            waiting += [(child, (*above, node.key)) for child in reversed(node.children)]

    @cached_property
    def above(self) -> Mapping[str, tuple[str, ...]]:
        """Key -> the keys above it, top first; its order is the order of the tree."""
        return {node.key: above for node, above in self.walk()}

    def closed(self, keys: Iterable[str]) -> list[str]:
        """These keys and all that they imply, in the order of the tree. Raises DataError for an unknown one."""
        found: set[str] = set()
        for key in keys:
            if key not in self.above:
                todo = f"It holds {', '.join(list(self.above)[:20])}{' ...' if len(self.above) > 20 else ''}"
                raise DataError(f"the taxonomy has no node {key[:80]!r}", todo=todo)
            found |= {key, *self.above[key]}
        return [key for key in self.above if key in found]

    def shared(self, keys: Sequence[str]) -> list[str]:
        """What all of these keys imply, themselves included where there is only one: what is sure of a split."""
        common = set.intersection(*({key, *self.above[key]} for key in keys)) if keys else set()
        return [key for key in self.above if key in common]

    def follows(self, before: Taxonomy) -> None:
        """Whether this version says what became of every node of the one before. Raises DataError naming the node."""
        for old in self.migration:
            if old not in before.above:
                raise DataError("the version before has no such node", key=f"taxonomy.migration.{old}")
        for old in before.above:
            if old not in self.above and old not in self.migration:
                todo = f"Name its new keys under `migration: {{{old}: [...]}}`; [] says that it was taken out"
                raise DataError(f"the node {old!r} of the version before is gone", key="taxonomy.migration", todo=todo)

    def became(self, key: str) -> tuple[str, ...]:
        """The keys that a key of the version before has turned into."""
        return self.migration.get(key, (key,) if key in self.above else ())


@dataclass(frozen=True)
class Migrated:
    """Labels of an old version, read under a newer one."""

    keys: list[str]
    """What is certain, with all it implies, in the order of the tree."""
    ambiguous: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Old key -> the new keys among which only a person can choose: the node was split."""
    gone: tuple[str, ...] = ()
    """Old keys that were taken out."""


Versions = Mapping[int, Taxonomy]
"""Number -> tree, without a gap from the version in question to the newest."""


def _places(key: str, version: int, versions: Versions) -> tuple[str, ...]:
    """The nodes of the newest version that a node of an older one has turned into."""
    places: list[str] = [key]
    for number in range(version + 1, max(versions) + 1):
        places = list(dict.fromkeys(new for old in places for new in versions[number].became(old)))
    return tuple(places)


def migrated(keys: Iterable[str], version: int, versions: Versions) -> Migrated:
    """Labels given under `version`, read under the newest of `versions`.

    Of a split node only what all its parts have in common is certain. Raises DataError for a key that the old
    version does not hold.
    """
    newest = versions[max(versions)]
    certain: set[str] = set()
    split: dict[str, tuple[str, ...]] = {}
    gone: list[str] = []
    for old in versions[version].closed(keys):
        places = _places(old, version, versions)
        certain.update(newest.shared(places))
        if not places:
            gone.append(old)
        elif len(places) > 1:
            split[old] = places
    ambiguous = {old: new for old, new in split.items() if not certain & set(new)}
    return Migrated(newest.closed(certain), ambiguous, tuple(gone))


def asked(version: int, versions: Versions) -> list[str]:
    """The nodes of the newest version that a person could choose under `version`, perhaps by an older name.

    What was not chosen among these was judged not to hold; of nodes that are new since then nobody has said anything.
    """
    found = {new for old in versions[version].above for new in _places(old, version, versions)}
    return [key for key in versions[max(versions)].above if key in found]
