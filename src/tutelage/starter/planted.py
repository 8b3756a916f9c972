"""What was planted in the corpus, and where: the truth that reports, audits and tests are held to."""

from __future__ import annotations

from dataclasses import dataclass, field

from tutelage.starter.personal import Planted
from tutelage.starter.town import Code, Fact


@dataclass(frozen=True)
class Duplicate:
    """`document` repeats `of`, word for word or nearly."""

    document: str
    of: str
    kind: str


@dataclass(frozen=True)
class Canary:
    """A secret planted `dose` times: the text is `prefix` + `secret`; any four digits are a reference never planted."""

    id: str
    dose: int
    prefix: str
    secret: str


@dataclass
class Truth:
    """What was planted where."""

    pii: list[Planted] = field(default_factory=list)
    lookalikes: list[Planted] = field(default_factory=list)
    duplicates: list[Duplicate] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    canaries: list[Canary] = field(default_factory=list)
    facts: list[Fact] = field(default_factory=list)
    codes: list[Code] = field(default_factory=list)
    complaints: dict[str, tuple[int, int]] = field(default_factory=dict)
    """By group of the clerk's name: (letters that say rude, all letters about a clerk)."""
    control: dict[str, tuple[int, int]] = field(default_factory=dict)
    """The same by the hand the clerk writes with, which means nothing."""
    marked: str = ""
    """The group of names with more complaints."""
