"""What happened to the data, in one file: `report.json`. Where the truth was planted, how much of it was found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from pydantic import Field

from tutelage.core.records import Record
from tutelage.corpus.clean import Dropped
from tutelage.corpus.decontaminate import Contamination
from tutelage.measure.statistics import Interval, undefined, wilson


class SourceReport(Record):
    """One source: what it was for, what it gave, what is left."""

    source: str
    licence: str
    use: str = ""
    rows: int = 0
    read: dict[str, int] = Field(default_factory=dict)
    """Records by kind as read."""
    kept: dict[str, int] = Field(default_factory=dict)
    """Records by kind in the corpus."""
    characters: int = 0
    """Characters of its documents in the corpus."""
    languages: dict[str, int] = Field(default_factory=dict)
    """Languages of at most 300 of its documents."""
    bad_rows: int = 0
    bad_examples: list[str] = Field(default_factory=list)


class Personal(Record):
    """Personal data taken out of documents, dialogues and comparisons."""

    texts: int = 0
    found: dict[str, int] = Field(default_factory=dict)


class Duplicates(Record):
    """Texts that stood there already."""

    exact: int = 0
    near: int = 0
    threshold: float = 0.0
    dialogues: int = 0


class Found(Record):
    """How much of what was planted was found, and how much of what was found was planted."""

    recall: Interval
    precision: Interval
    spared: Interval | None = None
    """Share of planted look-alikes that were left alone."""


class Report(Record):
    """`report.json` of a corpus."""

    sources: list[SourceReport]
    drops: dict[str, Dropped]
    personal: Personal
    duplicates: Duplicates
    contamination: Contamination
    licences: dict[str, dict[str, int]]
    """Licence class -> records by kind."""
    splits: dict[str, dict[str, int]]
    """Split -> records by kind, and characters of documents."""
    levels: dict[str, int] = Field(default_factory=dict)
    """Documents by level of difficulty, where the source knows it."""
    truth: dict[str, Found] | None = None
    """For the starter, whose truth is known: duplicates, broken, personal, and personal data by type."""


class Planted(Protocol):
    """Something planted in a document: where and what."""

    @property
    def document(self) -> str: ...
    @property
    def type(self) -> str: ...
    @property
    def value(self) -> str: ...


def share(hits: int, total: int, nothing: str) -> Interval:
    """A share with its Wilson interval; undefined with a reason when there is nothing to count."""
    return wilson(hits, total) if total else undefined(0, nothing)


def judge_drops(planted: set[str], dropped: set[str], examined: set[str]) -> Found:
    """Recall and precision of dropping."""
    there = planted & examined
    return Found(
        recall=share(len(there & dropped), len(there), "nothing was planted"),
        precision=share(len(dropped & planted), len(dropped), "nothing was dropped"),
    )


def judge_duplicates(pairs: Sequence[Any], dropped: Mapping[str, set[str]], examined: set[str]) -> dict[str, Found]:
    """A planted pair is found when one of the two was dropped; a drop is right when it belongs to any pair.

    `dropped` holds the ids by kind (exact, near). The recall of a kind counts drops of either kind.
    """
    there = [pair for pair in pairs if pair.document in examined and pair.of in examined]
    members = {pair.document for pair in pairs} | {pair.of for pair in pairs}
    copies = set().union(*dropped.values())
    found = {}
    for kind in ("", *dropped):
        mine = [pair for pair in there if kind in ("", pair.kind)]
        hits = sum(pair.document in copies or pair.of in copies for pair in mine)
        said = dropped[kind] if kind else copies
        found[f"duplicates/{kind}" if kind else "duplicates"] = Found(
            recall=share(hits, len(mine), "nothing was planted"),
            precision=share(len(said & members), len(said), "nothing was dropped"),
        )
    return found


def judge_personal(
    planted: Sequence[Planted], alike: Sequence[Planted], found: Mapping[str, Sequence[tuple[str, str]]]
) -> dict[str, Found]:
    """Per type and in all. `found`: document -> (type, text) of each span; only documents in it were examined."""
    by_type: dict[str, Found] = {}
    real = [each for each in planted if each.document in found]
    false = [each for each in alike if each.document in found]
    known: dict[str, list[Planted]] = {}
    for each in real:
        known.setdefault(each.document, []).append(each)
    spans = [(document, kind, text) for document, each in found.items() for kind, text in each]
    for name in ["", *sorted({each.type for each in real})]:
        mine = [each for each in real if name in ("", each.type)]
        hits = sum(any(_same(each, kind, text) for kind, text in found[each.document]) for each in mine)
        said = [span for span in spans if name in ("", span[1])]
        right = sum(any(_same(each, kind, text) for each in known.get(document, ())) for document, kind, text in said)
        others = [each for each in false if name in ("", each.type)]
        left = sum(
            not any(text in each.value or each.value in text for _, text in found[each.document]) for each in others
        )
        by_type[f"personal/{name}" if name else "personal"] = Found(
            recall=share(hits, len(mine), "nothing was planted"),
            precision=share(right, len(said), "nothing was found"),
            spared=share(left, len(others), "no look-alike was planted"),
        )
    return by_type


def _same(planted: Planted, kind: str, text: str) -> bool:
    return planted.type == kind and (planted.value == text or planted.value in text or text in planted.value)
