"""`plan`: how far off the plan's prediction was, for each stage of a finished life (`--root`, default `life`).

Nobody stands beside: ours is |real / predicted - 1| of a stage's seconds. Stages that were resumed are left out, their
seconds are those since the last start.
"""

from __future__ import annotations

from bench import side
from bench.side import Part, Settings


def measure(settings: Settings) -> list[Part]:
    from tutelage.core.artifact import Root
    from tutelage.life import last
    from tutelage.report.timing import NEAR, how_near, predictions, timed

    root = Root(settings.root)
    rows = [each for each in timed(last(root), predictions(root)) if each.ratio is not None]
    if not rows:
        side.refuse(f"{settings.root} holds no finished life that was planned: `tutelage run` a recipe, or give --root")
    side.tell(how_near(rows))
    predicted, real = sum(each.predicted for each in rows), sum(each.real for each in rows)
    every = [("the whole life", predicted, real), *((each.name, each.predicted, each.real) for each in rows)]
    return [
        Part(
            f"{name}: {said:.1f} s predicted, {took:.1f} s taken",
            "off by, share",
            "lower",
            off(took, said),
            None,
            NEAR,
            "ours",
        )
        for name, said, took in every
    ]


def off(real: float, predicted: float) -> float:
    """How far a prediction was off, as a share of it."""
    return abs(real / predicted - 1)
