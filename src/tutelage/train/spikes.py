"""Which steps are out of the ordinary: judged before they move anything, by the gradient and by the losses before.

Spikes of the loss come with long runs (PaLM, Chowdhery et al. 2022, section 5.1: go back to an earlier state and leave
out the batches in between). The rule here is robust and one-sided: so many deviations above the median of the last
accepted losses, the deviation being the median absolute one, with a floor that ordinary noise does not reach.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from statistics import median

SEEN = 50
"""Accepted losses that a new one is compared with."""
ENOUGH = 20
"""Accepted losses below which nothing finite is out of the ordinary."""
FLOOR = 0.1
"""Smallest deviation, per unit of the median's size, which counts as 1 at least: losses of reinforcement cross zero."""


class Spikes:
    """The last accepted losses, and what is out of the ordinary beside them.

    Args:
        deviations: how many deviations above the median a loss is exploding; 0 judges by finiteness alone.
    """

    def __init__(self, deviations: float) -> None:
        self.deviations = deviations
        self.losses: deque[float] = deque(maxlen=SEEN)

    def fault(self, loss: float, norm: float) -> str:
        """What is wrong with a step, in words; empty when nothing is."""
        if not math.isfinite(loss):
            return "the loss was not finite"
        if not math.isfinite(norm):
            return "the gradient was not finite"
        return "the loss exploded" if self.deviations and loss > self.limit() else ""

    def limit(self) -> float:
        """The loss above which a step is exploding."""
        if len(self.losses) < ENOUGH:
            return math.inf
        middle = median(self.losses)
        spread = 1.4826 * median(abs(loss - middle) for loss in self.losses)  # a normal distribution's deviation
        return middle + self.deviations * max(spread, FLOOR * max(1.0, abs(middle)))

    def accept(self, loss: float) -> None:
        """Remember the loss of a step that was taken."""
        self.losses.append(loss)

    def restart(self, losses: Iterable[float] = ()) -> None:
        """Forget all losses but these."""
        self.losses = deque(losses, maxlen=SEEN)
