"""Which learning rates a stage should have: factors on its defaults, several seeds, on the models of a finished life.

python -m bench.rates --root life --stage finetune --factors 0.5,1,2 --seeds 3 steps=150

Each run is an artifact in the root, so an interrupted sweep goes on. Printed is a row per setting: the mean over seeds
of the held-out figure with its 95% interval (Student's t), and the difference from factor 1 of the same seeds, paired.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from typing import Any

from tutelage.core.artifact import Artifact, Root
from tutelage.core.config import parse_overrides
from tutelage.core.stage import run_stage
from tutelage.life import last
from tutelage.measure.statistics import Interval, mean, paired
from tutelage.recipe import stage_of

FIGURES = {
    "pretrain": ("validation", "value"),
    "finetune": ("validation", "value"),
    "reward": ("accuracy", "value"),
    "dpo": ("accuracy", "value"),
    "rlhf": ("reward_last",),
}
"""Stage -> where its figure stands in the metrics, unless --figure names another."""
KEYS = ("matrix_rate", "embedding_rate", "scalar_rate")


def main() -> None:
    """Sweep and print."""
    given = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    given.add_argument("--root", required=True, help="The root of a life that holds the stage's inputs.")
    given.add_argument("--stage", required=True, choices=sorted(FIGURES))
    given.add_argument("--factors", default="0.5,1,2", help="Factors on the rates; 1 is always among them.")
    given.add_argument("--seeds", type=int, default=3)
    given.add_argument("--rates", default=",".join(KEYS), help="Which rates move together.")
    given.add_argument("--figure", default="", help="Path of the figure in the metrics, such as validation.value.")
    given.add_argument("settings", nargs="*", help="key=value of the stage, for every run.")
    said = given.parse_args()
    factors = sorted({1.0, *map(float, said.factors.split(","))})
    path = said.figure.split(".") if said.figure else FIGURES[said.stage]
    root = Root(said.root)
    stage, settings = stage_of(said.stage), parse_overrides(said.settings)
    inputs = _inputs(stage.inputs, last(root))
    base = stage.config(**settings)
    found: dict[float, list[float]] = {}
    for factor in factors:
        rates = {key: getattr(base, key) * factor for key in said.rates.split(",")}
        for seed in range(said.seeds):
            made = run_stage(stage, root, config={**settings, **rates, "seed": seed}, inputs=inputs)
            found.setdefault(factor, []).append(_figure(made, path))
            print(json.dumps({"factor": factor, "seed": seed, "figure": found[factor][-1]}), flush=True)
    print(f"\n{said.stage}: {'.'.join(path)}, {said.seeds} seeds, {said.rates} times a factor {settings or ''}")
    print(f"{'factor':>8}  {'mean':<28}{'minus factor 1':<28}")
    for factor, values in found.items():
        gap = paired(values, found[1.0]).difference
        print(f"{factor:>8}  {_told(mean(values)):<28}{'' if factor == 1 else _told(gap):<28}")


def _inputs(wanted: Mapping[str, Any], made: Mapping[str, Artifact]) -> dict[str, Any]:
    """The last run's artifacts for a stage's inputs."""
    found: dict[str, Any] = {}
    for name, spec in wanted.items():
        names = spec.default if isinstance(spec.default, tuple) else (spec.default,)
        artifacts = [made[each] for each in names if each in made]
        if artifacts:
            found[name] = artifacts if spec.many else artifacts[0]
    return found


def _figure(artifact: Artifact, path: Sequence[str]) -> float:
    value: Any = artifact.metrics
    for part in path:
        if not isinstance(value, Mapping) or part not in value:
            raise SystemExit(f"no figure {'.'.join(path)!r} among the metrics: {', '.join(sorted(artifact.metrics))}")
        value = value[part]
    return float(value)


def _told(figure: Interval) -> str:
    ends = f" [{figure.low:.4f}, {figure.high:.4f}]" if figure.low is not None and figure.high is not None else ""
    return f"{figure.value:.4f}{ends}"


if __name__ == "__main__":
    main()
