"""What a turn of the wheel asks of the stages it runs, and what it refuses to be told."""

from types import SimpleNamespace
from typing import Any

import pytest

from tutelage.adapt import cycle
from tutelage.core.config import build
from tutelage.core.errors import ConfigError
from tutelage.evaluate.suites.kinds import Ground


@pytest.mark.parametrize(
    "wrong", [{"requests": 0}, {"reviews": 0}, {"double": 1.2}, {"double": -0.1}, {"reviewers": 0}, {"repeat": 0}]
)
def test_numbers_out_of_bounds_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        build(cycle.Cycle, wrong, prefix="cycle")


def test_every_stage_within_hears_a_stop_and_labels_are_of_the_turns_own_people(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: dict[str, dict[str, Any]] = {}

    def run_stage(stage: Any, root: Any, **given: Any) -> Any:
        seen[stage.name] = given
        return SimpleNamespace(ref=stage.name)

    monkeypatch.setattr(cycle, "run_stage", run_stage)
    monkeypatch.setattr(cycle, "parts", lambda bundle: {"model": "m", "system": ""})
    monkeypatch.setattr(cycle, "rows_of", lambda made: [])
    monkeypatch.setattr(cycle, "ground_of", lambda made, rows, root: Ground({}))
    wheel: Any = object.__new__(cycle._Wheel)
    wheel.config, wheel.before = cycle.Cycle(), None
    wheel.source = SimpleNamespace(people="simulated")
    wheel.context = SimpleNamespace(root=None, say=None, stop=lambda: True)
    wheel.inputs = SimpleNamespace(corpus=None, labels=SimpleNamespace(config={"people": "live"}))
    guards = wheel.retrain()
    wheel.candidate(guards, "policy.yaml")
    wheel.examine([guards])
    assert set(seen) == {"labels", "classifier", "bundle", "evaluate", "redteam"}
    assert all(given["stop"] is wheel.context.stop for given in seen.values())
    assert seen["labels"]["config"]["people"] == "simulated"
