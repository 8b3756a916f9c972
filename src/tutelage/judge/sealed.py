"""What a trained classifier is sealed as: `classifier.json`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tutelage.core.records import Record
from tutelage.judge.certificate import Certificate
from tutelage.judge.encoder import Escalation
from tutelage.judge.labelled import Direction
from tutelage.judge.linear import Calibration
from tutelage.judge.ngrams import Features


class Second(Record):
    """The encoder of the second tier: whoever opens the classifier must have the same one."""

    ref: str
    identity: str
    """sha256 over its files."""


class Head(Record):
    """One category in one direction."""

    direction: Direction
    category: str
    calibration: Calibration
    """Log-odds of all its tiers -> probability."""
    certificates: tuple[Certificate, ...]
    escalation: Escalation | None = None
    """Where the encoder is asked; None where the n-grams decide alone."""


class Sealed(Record):
    """`classifier.json`."""

    format: Literal[2] = 2
    """1 counted an n-gram as often as it stood in a window: its weights fit no longer."""
    features: Features
    first: int | None = None
    """Shortest window of answers, where it is another than of other texts."""
    heads: tuple[Head, ...]
    left_out: dict[str, str] = Field(default_factory=dict)
    """`direction/category` -> why there is no head."""
    second: Second | None = None
    """The encoder; None where no head asks one."""
    data: str
    """sha256 over the rows that were learned from and tested on."""

    def of(self, direction: str) -> tuple[Head, ...]:
        """The heads of one direction, in the order of the table's columns."""
        return tuple(head for head in self.heads if head.direction == direction)

    def counted(self, direction: Direction) -> Features:
        """What is counted in texts of a direction."""
        other = direction == "output" and self.first is not None
        return self.features.model_copy(update={"minimum": self.first}) if other else self.features
