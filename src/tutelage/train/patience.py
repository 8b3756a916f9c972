"""Ending a run early: when look after look brings no gain that is more than chance."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tutelage.core.errors import ConfigError
from tutelage.measure.sequences import look_level
from tutelage.measure.statistics import paired, plain
from tutelage.train.batch import State
from tutelage.train.best import directed

Values = Mapping[str, tuple[float, str]]
"""Item -> its value at a look, and the cluster it belongs to."""


class Patience:
    """Compares every look, item by item, with the last one that was surely better than those before.

    Each comparison has the level that its number leaves it (`look_level`): all looks of a run together see a gain
    where there is none in at most 5%, and it may be looked at as often as one likes.

    Args:
        wanted, higher: the figure, and what is known of it, as in `best.directed`.
        looks: looks in a row without a gain after which the run ends; 0 never ends it.
    """

    def __init__(self, wanted: str, looks: int, higher: bool | None = None) -> None:
        if looks and not wanted:
            raise ConfigError(
                "to end early a run must know which figure is to get better",
                key="patience",
                todo="Name it as `best`, such as `validation` or `watched`",
            )
        self.name, better = directed(wanted, higher)
        self.sign = 1.0 if better else -1.0
        self.looks, self.taken, self.without = looks, 0, 0
        self.step = -1
        self.held: dict[str, tuple[float, str]] = {}

    def check(self, known: bool) -> None:
        """Raises ConfigError unless the figure is known item by item."""
        if self.looks and not known:
            raise ConfigError(
                f"the figure {self.name!r} is not known item by item: a gain cannot be told from chance",
                key="patience",
                todo="Take `validation`, `watched`, or one of the examined suites as `best`, or leave patience at 0",
            )

    def look(self, step: int, values: Values) -> dict[str, Any]:
        """For the row of the look: the gain over the one held, and whether it is sure."""
        if not self.looks or not values:
            return {}
        if self.step < 0:
            self.step, self.held = step, dict(values)
            return {}
        both = [item for item in values if item in self.held]
        now, before = ([self.sign * side[item][0] for item in both] for side in (values, self.held))
        self.taken += 1
        gain = paired(now, before, [values[item][1] for item in both], look_level(self.taken)).difference
        over, sure = self.step, gain.low is not None and gain.low > 0
        self.without = 0 if sure else self.without + 1
        if sure:
            self.step, self.held = step, dict(values)
        return {"gain": {"over": over, "sure": sure, **plain(gain)}}

    @property
    def enough(self) -> bool:
        """Whether the run is to end."""
        return bool(self.looks) and self.without >= self.looks

    def report(self, step: int, total: int) -> dict[str, Any]:
        """For the stage's metrics, where a run was ended."""
        if not self.enough or step >= total:
            return {}
        return {"ended": {"step": step, "of": total, "looks_without_gain": self.without, "held": self.step}}

    def state(self) -> State:
        return {
            "taken": self.taken,
            "without": self.without,
            "step": self.step,
            "held": {item: list(value) for item, value in self.held.items()},
        }

    def load(self, state: State) -> None:
        self.taken, self.without, self.step = int(state["taken"]), int(state["without"]), int(state["step"])
        self.held = {str(item): (float(value[0]), str(value[1])) for item, value in state["held"].items()}
