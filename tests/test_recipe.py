"""A recipe is checked whole before anything runs; each mistake is one clear error."""

from pathlib import Path

import pytest

from tutelage import life
from tutelage.core.artifact import Root
from tutelage.core.errors import ConfigError
from tutelage.core.stage import Machine

FIVE = {"prepare": None, "tokenizer": None, "encode": None, "pretrain": {"steps": 200}, "finetune": None}


def test_sections_run_in_the_order_of_a_life_whatever_the_file_says() -> None:
    recipe = life.read_recipe(dict(reversed(FIVE.items())))
    assert list(recipe.sections) == list(FIVE)
    assert recipe.sections["finetune"].sources["model"] == "pretrain"


def test_every_recipe_of_the_project_is_whole() -> None:
    files = sorted((Path(__file__).parents[1] / "recipes").glob("*.yaml"))
    assert files
    for file in files:
        life.read_recipe(file)


def test_second_instances_and_named_sources() -> None:
    recipe = life.read_recipe(
        {
            **FIVE,
            "finetune@more": {"model": "finetune"},
            "dpo": {"model": "finetune@more", "preferences": "preferences:12ab"},
        }
    )
    assert list(recipe.sections)[-3:] == ["finetune", "finetune@more", "dpo"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pretrian": None}, r"key 'pretrian': unknown section\. Did you mean 'pretrain'"),
        ({"pretrain": {"dept": 3}}, r"key 'pretrain\.dept': unknown key\. Did you mean 'depth'"),
        ({"pretrain": {"depth": "deep"}}, r"pretrain\.depth.*valid integer"),
        ({"pretrain": 7}, r"key 'pretrain': a section holds"),
        ({"pretrain": {"tokens": 1000}}, r"pretrain\.tokens.*1000 names no artifact"),
        ({"finetune": {"model": "pretrein"}}, r"finetune\.model.*Did you mean 'pretrain'"),
        ({"finetune": {"model": "finetune"}}, r"wait for each other: finetune"),
        ({"reward": None}, r"reward\.preferences.*this input has no source"),
        ({"budget": "soon"}, r"key 'budget': 'soon' is no length of time"),
        ({"watch": {"item": 3}}, r"watch\.item.*Did you mean 'items'"),
    ],
)
def test_a_mistake_is_named(change: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        life.read_recipe({**FIVE, **change})


def test_an_override_of_a_section_that_is_not_there() -> None:
    with pytest.raises(ConfigError, match=r"no section 'pretrian'\. Did you mean 'pretrain'"):
        life.read_recipe(FIVE, ["pretrian.depth=3"])
    assert life.read_recipe(FIVE, ["pretrain.depth=3"]).sections["pretrain"].config.depth == 3


def test_a_plan_is_sealed_and_a_budget_is_met(tmp_path: Path) -> None:
    root = Root(tmp_path / "life")
    recipe = life.read_recipe(FIVE, ["budget=60s"])
    first = life.plan(recipe, root, Machine(gemm=5e10))
    assert first.choices["pretrain"]["steps"] > 0
    assert first.seconds <= 60
    again = life.plan(recipe, root, Machine(gemm=1e9))
    assert again.choices == first.choices, "the clock of a later day must not change what is computed"
    other = life.plan(life.read_recipe(FIVE, ["budget=120s"]), root, Machine(gemm=5e10))
    assert other.choices["pretrain"]["steps"] > first.choices["pretrain"]["steps"]


def test_a_budget_that_nothing_fits_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="too short"):
        life.plan(life.read_recipe(FIVE, ["budget=1s"]), Root(tmp_path), Machine(gemm=1e9))
