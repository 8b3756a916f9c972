"""Tasks mixed by weight: which items come where in an endless sequence, without a state of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tutelage.core.config import nearest
from tutelage.core.errors import ConfigError

Places = NDArray[np.int64]


@dataclass(frozen=True)
class Mixture:
    """Groups of items in an endless sequence in which each group has a share in proportion to weight times size.

    A group of weight 2 is met twice as often, item for item, as one of weight 1; weight 0 leaves it out. Within a
    group every item is met once before any is met again, in an order drawn anew for each turn. What stands between two
    places is a function of the seed and these places alone, so a run goes on anywhere.

    Attributes:
        groups: int64 [items] each, the items by index; empty groups are passed over.
        weights: one per group, not negative. ConfigError when nothing has any weight.
    """

    groups: Sequence[Places]
    weights: Sequence[float]
    seed: int = 0

    def __post_init__(self) -> None:
        if not self._total > 0:
            raise ConfigError("every task that there is has the weight 0", key="mix", todo="Give one of them a weight")

    @property
    def _total(self) -> float:
        return float(sum(weight * len(group) for group, weight in zip(self.groups, self.weights, strict=True)))

    def shares(self) -> list[float]:
        """Each group's share of the sequence; they add up to 1."""
        return [weight * len(group) / self._total for group, weight in zip(self.groups, self.weights, strict=True)]

    def take(self, first: int, last: int) -> Places:
        """The items from place `first` to before `last`, group by group; as many as that but for rounding."""
        found = []
        for number, (group, share) in enumerate(zip(self.groups, self.shares(), strict=True)):
            place, end = int(first * share), int(last * share)
            while place < end:
                turn, within = divmod(place, len(group))
                order = np.random.default_rng([self.seed, number, turn]).permutation(len(group))
                found.append(group[order[within : within + end - place]])
                place += len(found[-1])
        return np.concatenate(found) if found else np.zeros(0, np.int64)


def weights_of(mix: Mapping[str, float], names: Sequence[str], key: str) -> list[float]:
    """The weight of each task by name, 1 where `mix` names none. Raises ConfigError for a task that is not there."""
    for name, weight in mix.items():
        if name not in names:
            todo = f"Did you mean {near!r}?" if (near := nearest(name, names)) else ""
            known = f"The dialogues have: {', '.join(sorted(names))}"
            raise ConfigError(
                f"no dialogue is of the task {name!r}", key=f"{key}.{name}", todo=f"{todo} {known}".strip()
            )
        if weight < 0:
            raise ConfigError(f"a weight is not negative, found {weight}", key=f"{key}.{name}")
    return [float(mix.get(name, 1.0)) for name in names]
