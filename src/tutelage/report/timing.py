"""What each stage took beside what its plan said before: how far predictions may be believed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from tutelage.core.artifact import Artifact, Root

NEAR = 0.25
"""A prediction holds when the real time is off by no more than this share of it."""


class Timed(NamedTuple):
    """One finished stage: seconds predicted, seconds of work.

    `resumed` work began before the process that finished it: its seconds are those since the last start, and say
    nothing about the prediction.
    """

    name: str
    predicted: float
    real: float
    resumed: bool = False

    @property
    def ratio(self) -> float | None:
        """Real over predicted; None where they cannot be compared."""
        return self.real / self.predicted if self.predicted and not self.resumed else None

    @property
    def near(self) -> bool | None:
        """Whether the prediction holds."""
        return None if self.ratio is None else abs(self.ratio - 1) <= NEAR

    def plain(self) -> dict[str, Any]:
        """As JSON."""
        ratio = None if self.ratio is None else round(self.ratio, 3)
        seconds = {"predicted": round(self.predicted, 3), "real": round(self.real, 3)}
        return {"stage": self.name, **seconds, "ratio": ratio, "near": self.near, "resumed": self.resumed}


def predictions(root: Root) -> dict[str, float]:
    """Section -> seconds that the plan of the last run foretold; empty when nothing was run here."""
    try:
        stages = json.loads(root.plan_path.read_bytes())["stages"]
        return {str(each["name"]): float(each["cost"]["seconds"]) for each in stages}
    except (OSError, ValueError, TypeError, KeyError):
        return {}


def timed(artifacts: Mapping[str, Artifact], predicted: Mapping[str, float]) -> list[Timed]:
    """The stages that are both planned and made, in the order of `artifacts`."""
    found = []
    for name, artifact in artifacts.items():
        made = artifact.manifest.made
        if name in predicted and made.get("seconds") is not None:
            found.append(Timed(name, predicted[name], float(made["seconds"]), bool(made.get("resumed"))))
    return found


def how_near(rows: Sequence[Timed]) -> str:
    """How many predictions hold, in a line."""
    known = [each for each in rows if each.near is not None]
    left = len(rows) - len(known)
    if not known:
        return "No finished stage can be held against its prediction."
    predicted, real = sum(each.predicted for each in known), sum(each.real for each in known)
    text = f"{sum(bool(each.near) for each in known)} of {len(known)} stages within {NEAR:.0%} of their prediction; "
    text += f"{predicted:.0f} s predicted in all, {real:.0f} s taken"
    return f"{text}; {left} resumed, not counted." if left else f"{text}."
