"""`plan`: how far off the plan's prediction was, for each stage of a finished life (`--root`, default `life`).

Nobody stands beside: ours is |real / predicted - 1| of a stage's seconds. Stages that were resumed are left out, their
seconds are those since the last start.

What was sealed before the run is held against what it took. Told beside it: what the prices of today make of each stage
on the machine of that run, split into the machine's rates; and the constants of `core/price.py` and
`train/calibrate.py` that would have come nearest. Constants of a stage's own work (`rest`) stand in its cost function.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from bench import side
from bench.side import Part, Settings
from tutelage.core.artifact import Root
from tutelage.core.price import DRAW, LEARN, MUON, READ, ROUND, WRITE, Machine
from tutelage.life import last
from tutelage.plan import predict, referenced
from tutelage.recipe import Recipe, read_recipe
from tutelage.report.timing import NEAR, how_near, predictions, timed
from tutelage.train.calibrate import ENGINE, LIFE
from tutelage.web.runs import plan_of

RATES = ("learning", "reading", "writing", "round", "gemm")
"""What of a machine prices are made of; of the matrix product Muon's share alone, where the others are measured."""


def measure(settings: Settings) -> list[Part]:
    root = Root(settings.root)
    rows = [each for each in timed(last(root), predictions(root)) if each.ratio is not None]
    planned = plan_of(root)
    if not rows or planned is None:
        side.refuse(f"{settings.root} holds no finished life that was planned: `tutelage run` a recipe, or give --root")
    side.tell(how_near(rows))
    recipe = read_recipe(root.recipe_path)
    split = shares(recipe.with_choices(planned.choices), planned.machine, root)
    real = {each.name: each.real for each in rows}
    for line in told(split, real):
        side.tell(line)
    predicted, whole = sum(each.predicted for each in rows), sum(each.real for each in rows)
    every = [("the whole life", predicted, whole), *((each.name, each.predicted, each.real) for each in rows)]
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


def shares(recipe: Recipe, machine: Machine, root: Root) -> dict[str, dict[str, float]]:
    """Section -> seconds that each of `RATES` stands for, and the `rest`, by the prices of today.

    Seconds are inverse to a rate (to `round` proportional), so those that vanish with it twice as good are half of it.
    """
    models = referenced(recipe, root)
    usual = {"learning": LEARN, "reading": READ, "writing": WRITE}  # of what was not measured
    stated = {rate: getattr(machine, rate) or share * machine.gemm for rate, share in usual.items()}
    machine = machine.model_copy(update=stated)

    def seconds(rates: Machine) -> dict[str, float]:
        return {name: cost.seconds for name, cost in predict(recipe, rates, models).items()}

    whole, found = seconds(machine), {}
    better = {
        rate: seconds(machine.model_copy(update={rate: getattr(machine, rate) * (0.5 if rate == "round" else 2.0)}))
        for rate in RATES
    }
    for name, total in whole.items():
        parts = {rate: 2 * (total - better[rate][name]) for rate in RATES}
        found[name] = parts | {"rest": total - sum(parts.values())}
    return found


def refit(split: Mapping[str, Mapping[str, float]], real: Mapping[str, float]) -> dict[str, float]:
    """Rate -> what its seconds should be multiplied with so that the predictions come nearest to what was taken.

    Least squares of the relative errors over the stages; a factor moves away from 1 as far as the stages ask for it
    (each weighs as much as one stage that is a tenth off), for there are hardly more stages than rates.
    """
    names = [name for name in split if real.get(name)]
    table = np.array([[split[name][rate] / real[name] for rate in RATES] for name in names]).reshape(-1, len(RATES))
    missing = np.array([1 - split[name]["rest"] / real[name] for name in names])
    left = missing - table.sum(1)
    still = 0.1 * np.eye(len(RATES))
    moved = np.linalg.lstsq(np.vstack([table, still]), np.concatenate([left, np.zeros(len(RATES))]), rcond=None)[0]
    return {rate: max(0.1, float(1 + each)) for rate, each in zip(RATES, moved, strict=True)}


def told(split: Mapping[str, Mapping[str, float]], real: Mapping[str, float]) -> list[str]:
    """What each stage is made of, and the constants that would have come nearest, as lines."""
    factor = refit(split, real)
    columns = (*RATES, "rest")
    lines = [f"{'seconds':<16}{'taken':>9}{'priced':>9}{'refitted':>9}" + "".join(f"{each:>9}" for each in columns)]
    for name, took in real.items():
        parts = split[name]
        nearer = sum(parts[each] * factor.get(each, 1.0) for each in columns)
        numbers = (took, sum(parts.values()), nearer, *(parts[each] for each in columns))
        lines.append(f"{name:<16}" + "".join(f"{each:>9.1f}" for each in numbers))
    constants = {
        "LIFE (by learning)": LIFE / factor["learning"],
        "LIFE (by reading)": LIFE / factor["reading"],
        "ENGINE (by writing; DRAW moves with it)": ENGINE * factor["writing"],
        "ROUND (or ENGINE, by its steps)": ROUND * factor["round"],
        "MUON": MUON / factor["gemm"],
    }
    lines += [f"nearest {name}: {value:.4g}" for name, value in constants.items()]
    return [*lines, f"now LIFE {LIFE}, ENGINE {ENGINE}, ROUND {ROUND}, DRAW {DRAW}, MUON {MUON}"]
