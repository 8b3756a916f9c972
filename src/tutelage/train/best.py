"""The best weights of a run so far, by a figure that is watched."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tutelage.core.errors import ConfigError
from tutelage.train.batch import State
from tutelage.train.optim import copy_into, load_weights, weights
from tutelage.train.parallel import part_of


def directed(wanted: str, higher: bool | None) -> tuple[str, bool]:
    """The figure that is wanted, and whether more of it is better.

    Args:
        wanted: `NAME`, or `lower:NAME` or `higher:NAME`, whatever the figure itself says.
        higher: what the figure says; None where nothing is known of it: the lowest is then best, as of a loss.

    Raises ConfigError where the way is none.
    """
    way, _, name = wanted.rpartition(":")
    if way not in ("", "lower", "higher"):
        raise ConfigError(f"{way!r} is no direction", key="best", todo="Write `NAME`, `lower:NAME` or `higher:NAME`")
    return name, way == "higher" if way else bool(higher)


class Best:
    """Keeps a copy of the weights at the look where a figure was best; the first of equals.

    Args:
        wanted, higher: see `directed`; empty keeps nothing.
    """

    def __init__(self, wanted: str, higher: bool | None = None) -> None:
        self.name, better = directed(wanted, higher)
        self.sign = -1.0 if better else 1.0
        self.step, self.value = -1, 0.0
        self.weights: dict[str, Tensor] = {}

    def check(self, figures: Mapping[str, Any]) -> None:
        """Raises ConfigError listing what is watched when the figure is not among it."""
        if self.name and self.name not in figures:
            names = sorted(name for name, value in figures.items() if value is None or isinstance(value, float))
            todo = f"Watched are: {', '.join(names)}" if names else "Nothing is watched in this stage: leave it empty"
            raise ConfigError(f"no figure {self.name!r} is watched", key="best", todo=todo)

    def look(self, model: nn.Module, step: int, figures: Mapping[str, Any]) -> None:
        """Copy the weights when the figure is better than at every look before. Fresh tensors each time: a checkpoint
        that is being written holds the ones before."""
        value = figures.get(self.name)
        if value is not None and (self.step < 0 or self.sign * value < self.sign * self.value):
            self.step, self.value = step, float(value)
            self.weights = {name: tensor.detach().clone() for name, tensor in weights(model).items()}

    def restore(self, model: nn.Module, last: int) -> int:
        """Put the best weights, if any were kept, back into a model that has those of step `last`; returns the step
        whose weights it has now."""
        if self.step < 0:
            return last
        load_weights(model, self.weights)
        return self.step

    def report(self) -> dict[str, Any]:
        """For the stage's metrics: which figure, which step, which value; nothing when nothing was kept."""
        return {"best": {"figure": self.name, "step": self.step, "value": self.value}} if self.step >= 0 else {}

    def state(self) -> State:
        return {"step": self.step, "value": self.value, "weights": self.weights}

    def load(self, state: State, model: nn.Module) -> None:
        self.step, self.value = int(state["step"]), float(state["value"])
        self.weights = {}
        for name, tensor in weights(model).items() if state["weights"] else ():
            self.weights[name] = torch.empty_like(tensor.detach())
            copy_into(part_of(self.weights[name]), state["weights"].get(name), name)
