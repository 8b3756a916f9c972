"""What a prediction is made of, and the constants that would have come nearest to what a life took."""

from pathlib import Path

import pytest

from bench import plan
from tutelage.core.artifact import Root
from tutelage.core.price import Machine
from tutelage.plan import predict
from tutelage.recipe import read_recipe

MACHINE = Machine(gemm=1e11, learning=5e10, reading=6e10, writing=4e10)
STARTER = Path(__file__).parents[2] / "recipes" / "starter.yaml"


def test_a_life_is_split_into_the_rates_it_is_priced_by(tmp_path: Path) -> None:
    recipe = read_recipe(STARTER)
    split = plan.shares(recipe, MACHINE, Root(tmp_path))
    costs = predict(recipe, MACHINE)
    assert {name: sum(parts.values()) for name, parts in split.items()} == pytest.approx(
        {name: cost.seconds for name, cost in costs.items()}
    )
    assert split["prepare"] == pytest.approx({**dict.fromkeys(plan.RATES, 0.0), "rest": costs["prepare"].seconds})
    muon = split["pretrain"]["gemm"] / (split["pretrain"]["gemm"] + split["pretrain"]["learning"])
    assert muon == pytest.approx(costs["pretrain"].muon)
    assert split["evaluate"]["learning"] == pytest.approx(0) and split["evaluate"]["round"] > 0
    plain = plan.shares(recipe, Machine(gemm=1e11), Root(tmp_path))["pretrain"]
    assert plain["learning"] > 5 * plain["gemm"], "what was not measured is a share of the product, not the product"
    assert all(part > -1e-6 for parts in split.values() for part in parts.values())


def test_what_a_rate_was_off_by_is_found_again(tmp_path: Path) -> None:
    split = plan.shares(read_recipe(STARTER), MACHINE, Root(tmp_path))
    took = {name: sum(parts.values()) + 0.5 * parts["learning"] for name, parts in split.items()}
    found = plan.refit(split, took)
    assert found.pop("learning") == pytest.approx(1.5, abs=0.1)
    assert found == pytest.approx(dict.fromkeys(found, 1.0), abs=0.15)
    right = {name: sum(parts.values()) for name, parts in split.items()}
    assert plan.refit(split, right) == pytest.approx(dict.fromkeys(plan.RATES, 1.0))
    text = "\n".join(plan.told(split, took))
    assert f"{'pretrain':<16}{took['pretrain']:>9.1f}{right['pretrain']:>9.1f}" in text and "nearest LIFE" in text
