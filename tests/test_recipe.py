"""A recipe is checked whole before anything runs; each mistake is one clear error."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tutelage import life
from tutelage.core.artifact import Manifest, Root
from tutelage.core.errors import ConfigError, NotFound
from tutelage.core.price import Machine
from tutelage.plan import plan, predict, referenced
from tutelage.recipe import read_recipe
from tutelage.report.timing import predictions

FIVE = {"prepare": None, "tokenizer": None, "encode": None, "pretrain": {"steps": 200}, "finetune": None}


def test_sections_run_in_the_order_of_a_life_whatever_the_file_says() -> None:
    recipe = read_recipe(dict(reversed(FIVE.items())))
    assert list(recipe.sections) == list(FIVE)
    assert recipe.sections["finetune"].sources["model"] == "pretrain"


def test_every_recipe_of_the_project_is_whole() -> None:
    files = sorted((Path(__file__).parents[1] / "recipes").glob("*.yaml"))
    assert files
    for file in files:
        read_recipe(file)


def test_second_instances_and_named_sources() -> None:
    recipe = read_recipe(
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
        read_recipe({**FIVE, **change})


def test_an_override_of_a_section_that_is_not_there() -> None:
    with pytest.raises(ConfigError, match=r"no section 'pretrian'\. Did you mean 'pretrain'"):
        read_recipe(FIVE, ["pretrian.depth=3"])
    assert read_recipe(FIVE, ["pretrain.depth=3"]).sections["pretrain"].config.depth == 3


def test_a_plan_is_sealed_and_a_budget_is_met(tmp_path: Path) -> None:
    root = Root(tmp_path / "life")
    recipe = read_recipe(FIVE, ["budget=100s"])
    first = plan(recipe, root, Machine(gemm=5e10))
    assert first.choices["pretrain"]["steps"] > 0
    assert first.seconds <= 100
    again = plan(recipe, root, Machine(gemm=1e9))
    assert again.choices == first.choices, "the clock of a later day must not change what is computed"
    other = plan(read_recipe(FIVE, ["budget=200s"]), root, Machine(gemm=5e10))
    assert other.choices["pretrain"]["steps"] > first.choices["pretrain"]["steps"]


def test_a_budget_chooses_the_shape_that_nobody_wrote(tmp_path: Path) -> None:
    def chosen(budget: str, **written: int) -> dict[str, int]:
        recipe = read_recipe({**FIVE, "pretrain": {"steps": 200, **written}}, [f"budget={budget}"])
        found = plan(recipe, Root(tmp_path / budget), Machine(gemm=2e11))
        assert found.seconds <= recipe.budget
        return found.choices["pretrain"]

    sizes = [chosen(budget) for budget in ("40s", "3m", "1h", "10h")]
    assert [each["width"] for each in sizes] == sorted(each["width"] for each in sizes)
    assert sizes[0]["width"] < sizes[1]["width"] == 160 < sizes[2]["width"] < sizes[3]["width"]
    assert sizes[1]["depth"] == 4 and sizes[3]["batch"] > sizes[1]["batch"]
    assert chosen("1h", width=160, heads=5).keys() == {"steps"}, "what is written stays"
    found = plan(
        read_recipe({**FIVE, "pretrain@none": {"steps": 0}}, ["budget=1h"]), Root(tmp_path), Machine(gemm=2e11)
    )
    assert found.choices["pretrain@none"] == found.choices["pretrain"] | {"steps": 0}, "a control has the same shape"


def test_a_budget_leaves_the_control_that_reads_nothing(tmp_path: Path) -> None:
    recipe = read_recipe({**FIVE, "pretrain@none": {"steps": 0}}, ["budget=200s"])
    found = plan(recipe, Root(tmp_path), Machine(gemm=5e10)).choices
    assert found["pretrain@none"]["steps"] == 0 < found["pretrain"]["steps"]


def test_plans_of_several_recipes_stand_beside_each_other(tmp_path: Path) -> None:
    root = Root(tmp_path / "life")
    recipe = read_recipe(FIVE, ["budget=100s"])
    first = plan(recipe, root, Machine(gemm=5e10))
    plan(read_recipe(FIVE, ["pretrain.steps=7"]), root, Machine())
    assert not root.plan_path.exists() and not root.recipe_path.exists(), "a plan changes nothing that a run remembers"
    assert plan(recipe, root, Machine(gemm=1e9)).choices == first.choices


def test_what_was_predicted_is_sealed_with_the_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = Root(tmp_path / "life")
    recipe = read_recipe(FIVE)
    first = plan(recipe, root, Machine(gemm=5e10))
    monkeypatch.setattr("tutelage.plan.predict", lambda *given: pytest.fail("predicted again, after the fact"))
    assert plan(recipe, root).stages == first.stages


@pytest.mark.parametrize(("bf16", "chosen"), [(0.5, "bf16"), (1.5, "fp32")])
def test_what_is_left_to_measurement_is_measured_once_and_sealed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bf16: float, chosen: str
) -> None:
    monkeypatch.setattr("tutelage.train.calibrate.step_seconds", lambda *given, **named: (1.0, bf16))
    root = Root(tmp_path / "life")
    recipe = read_recipe(FIVE, ["pretrain.precision=auto", "finetune.activations=auto", "budget=100s"])
    first = plan(recipe, root, Machine(gemm=5e10))
    assert first.choices["pretrain"]["precision"] == chosen
    assert first.choices["finetune"]["activations"] == "keep"
    assert first.choices["finetune"]["steps"] > 0
    assert recipe.with_choices(first.choices).sections["pretrain"].config.resolved()["precision"] == chosen
    monkeypatch.setattr("tutelage.train.calibrate.bf16_share", lambda *given: pytest.fail("measured again"))
    assert plan(recipe, root, Machine(gemm=1e9)).choices == first.choices


def test_what_is_left_to_measurement_is_settled_at_the_shape_that_a_budget_chose(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed = []

    def seconds(shape: Any, micro: int, seconds: float, *, threads: int) -> tuple[float, float]:
        timed.append(shape.hidden_size)
        return 1.0, 0.4

    monkeypatch.setattr("tutelage.train.calibrate.step_seconds", seconds)
    plain, auto = (
        plan(read_recipe(FIVE, [*each, "budget=10m"]), Root(tmp_path / "life"), Machine(gemm=2e11))
        for each in ([], ["pretrain.precision=auto"])
    )
    assert timed == [auto.choices["pretrain"]["width"]] and timed[0] > 160
    assert auto.choices["pretrain"]["precision"] == "bf16" and auto.machine.bf16 == 0.4
    assert plain.choices["pretrain"]["steps"] < auto.choices["pretrain"]["steps"], "what bf16 saves is spent"
    assert max(plain.seconds, auto.seconds) <= 600


def test_activations_are_recomputed_where_only_that_fits(tmp_path: Path) -> None:
    kept, again = (
        predict(read_recipe(FIVE, [f"pretrain.activations={each}"]), Machine())["pretrain"].memory
        for each in ("keep", "recompute")
    )
    between = Machine(gemm=5e10, memory=(kept + again) / 2)
    recipe = read_recipe(FIVE, ["pretrain.activations=auto", "finetune.activations=auto"])
    found = plan(recipe, Root(tmp_path), between)
    assert found.choices["pretrain"] == {"activations": "recompute"}
    assert {each.name: each.cost.memory for each in found.stages}["pretrain"] == again
    roomy = plan(recipe, Root(tmp_path / "roomy"), Machine(gemm=5e10)).choices
    assert roomy == {name: {"activations": "keep"} for name in ("pretrain", "finetune")}
    with pytest.raises(ConfigError, match=r"GiB of memory.*`pretrain\.\w+=\d+` fits"):
        plan(recipe, Root(tmp_path / "narrow"), Machine(gemm=5e10, memory=again - 1e6))
    with pytest.raises(ConfigError, match=r"`pretrain\.activations=recompute` fits"):
        plan(read_recipe(FIVE, ["pretrain.micro=128"]), Root(tmp_path / "told"), _just_below(128))


def _just_below(micro: int) -> Machine:
    """A machine that lacks a little of what pre-training needs with such micro-batches."""
    need = predict(read_recipe(FIVE, [f"pretrain.micro={micro}"]), Machine())["pretrain"].memory
    return Machine(gemm=5e10, memory=need - 1e6)


SMOL = {
    "model_type": "llama",
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}
"""SmolLM2-135M's shape."""


def tuned(ref: str) -> dict[str, Any]:
    """A recipe that tunes and serves a model by reference."""
    return {
        "prepare": None,
        "encode": {"tokenizer": ref},
        "finetune": {"model": ref, "steps": 5},
        "bundle": {"model": ref, "classifier": ["classifier"]},
        "labels": None,
        "classifier": None,
        "evaluate": {"of": ["bundle"]},
        "redteam": {"targets": [ref]},
    }


def test_a_model_by_reference_is_priced_by_its_own_shape(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, root = tmp_path / "smol", Root(tmp_path / "life").create()
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(SMOL))
    work = root.work / "made"
    work.mkdir()
    (work / "config.json").write_text(json.dumps(SMOL))
    model = root.seal(work, Manifest(kind="model", stage="import", version=1, config={}, files={}), "a" * 64)
    work.mkdir()
    about = Manifest(
        kind="bundle", stage="bundle", version=1, config={}, files={}, inputs={"model": model.ref, "classifier": []}
    )
    bundle = root.seal(work, about, "b" * 64)
    asked: list[Any] = []
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download",
        lambda name, allow_patterns: asked.append((name, allow_patterns)) or str(folder),
    )
    machine = Machine(gemm=1e12, memory=1e11)
    starter = predict(read_recipe(tuned(model.ref)), machine)
    for ref in (model.ref, str(folder), "hf:some/smol"):
        costs = {each.name: each.cost for each in plan(read_recipe(tuned(ref)), root, machine).stages}
        assert costs["finetune"].sizes["parameters"] == pytest.approx(134.5e6, rel=0.001)
        assert costs["finetune"].memory > 16 * 134e6
        for name in ("finetune", "evaluate", "redteam"):
            assert costs[name].seconds > 5 * starter[name].seconds, name
    assert asked == [("some/smol", ["config.json"])], "the weights wait for the run"
    guarded = read_recipe({"prepare": None, "evaluate": {"of": [bundle.ref]}})
    assert predict(guarded, machine, referenced(guarded, root))["evaluate"].memory > 4 * 134e6
    with pytest.raises(ConfigError, match=r"finetune\.micro.*GiB of memory"):
        plan(read_recipe(tuned(str(folder)), ["finetune.micro=8192"]), root, Machine(gemm=1e12, memory=8e9))
    with pytest.raises(NotFound, match=r"no artifact 'model:12ab"):
        plan(read_recipe(tuned("model:12ab")), root, machine)


def test_a_model_of_another_architecture_is_priced_too(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPTNeoXConfig(
        vocab_size=300, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4
    )
    config.save_pretrained(tmp_path / "neox")
    over = ["finetune.precision=auto", "finetune.activations=auto", "watch.share=1"]
    recipe = read_recipe(tuned(str(tmp_path / "neox")), over)
    found = plan(recipe, Root(tmp_path / "life"), Machine(gemm=1e11))
    size = {each.name: each.cost.sizes for each in found.stages}["finetune"]
    real = transformers.AutoModelForCausalLM.from_config(config)
    assert size["parameters"] == sum(each.numel() for each in real.parameters())
    assert (size["layers"], size["head_dim"], size["foreign"]) == (2, 16, 1)
    assert found.choices["finetune"] == {"precision": "fp32", "activations": "keep"} and not found.machine.bf16


def test_a_plan_of_an_earlier_version_keeps_its_choices(tmp_path: Path) -> None:
    root = Root(tmp_path / "life")
    recipe = read_recipe(FIVE, ["budget=100s"])
    first = plan(recipe, root, Machine(gemm=5e10))
    (file,) = root.plans.iterdir()
    old = json.loads(file.read_text()) | {"stages": []}
    old["machine"]["overhead"] = 1.0
    file.write_text(json.dumps(old))
    again = plan(recipe, root, Machine(gemm=1e9))
    assert again.choices == first.choices and again.stages == first.stages


def test_the_watch_of_a_recipe_is_part_of_what_its_stages_cost() -> None:
    rates = Machine(gemm=5e10)
    blind, seeing, often = (
        predict(read_recipe({**FIVE, "watch": each}), rates)
        for each in ({"items": 0}, {"items": 64}, {"items": 64, "every": 10})
    )
    for name in ("pretrain", "finetune"):
        assert blind[name].seconds < seeing[name].seconds < often[name].seconds
    for name in ("prepare", "tokenizer", "encode"):
        assert blind[name] == often[name]
    alone = {"pretrain": {"tokens": "tokens:12ab", "tokenizer": "tokenizer:12ab"}}
    found = [predict(read_recipe({**alone, "watch": {"items": items}}), rates)["pretrain"] for items in (0, 64)]
    assert found[0] == found[1], "without a corpus there is nothing to examine"


def test_the_plan_examines_no_more_than_its_share(tmp_path: Path) -> None:
    rates, root = Machine(gemm=5e10), Root(tmp_path)
    watched = {"items": 400, "every": 5}
    recipe = read_recipe({**FIVE, "watch": watched})
    choices = plan(recipe, root, rates).choices
    for name in ("pretrain", "finetune"):
        items = choices[name]["watched"]
        assert 8 <= items < 400
        blind, chosen, more = (
            predict(recipe.with_choices({name: {"watched": each}}), rates)[name].seconds
            for each in (0, items, items + 1)
        )
        assert chosen <= 1.04 * blind or items == 8
        assert more > 1.04 * blind, "and as many as it may"
    assert plan(read_recipe({**FIVE, "watch": {**watched, "share": 1}}), root, rates).choices == {}
    few = plan(read_recipe({**FIVE, "watch": {"items": 6}}), root, rates).choices
    assert few == {}, "a recipe may ask for fewer"
    assert recipe.with_choices(choices).sections["pretrain"].watched == choices["pretrain"]["watched"]


def test_every_stage_of_every_recipe_has_its_price() -> None:
    for file in sorted((Path(__file__).parents[1] / "recipes").glob("*.yaml")):
        for name, cost in predict(read_recipe(file), Machine()).items():
            assert 0 < cost.seconds < 1e5, (file.name, name)


def test_a_damaged_plan_is_made_anew(tmp_path: Path) -> None:
    root = Root(tmp_path / "life")
    recipe = read_recipe(FIVE, ["budget=100s"])
    first = plan(recipe, root, Machine(gemm=5e10))
    for file in root.plans.iterdir():
        file.write_text("{torn")
    assert plan(recipe, root, Machine(gemm=5e10)).choices == first.choices
    (sealed,) = root.plans.iterdir()
    assert sealed.read_text().startswith("{\n")


def test_a_budget_that_nothing_fits_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="too short"):
        plan(read_recipe(FIVE, ["budget=1s"]), Root(tmp_path), Machine(gemm=1e9))


def test_a_stage_that_cannot_fit_is_refused_before_it_starts(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="GiB of memory"):
        plan(read_recipe(FIVE), Root(tmp_path), Machine(gemm=5e10, memory=1e8))
    for text, key in (
        ("pretrain.micro=65536", "micro"),
        ("pretrain.depth=96", "depth"),
        ("pretrain.width=6400", "width"),
    ):
        with pytest.raises(
            ConfigError, match=rf"pretrain\.{key}.*GiB of memory.*`pretrain\.{key}=\d+` fits"
        ) as refused:
            plan(read_recipe(FIVE, [text]), Root(tmp_path), Machine(gemm=5e10, memory=9e8))
        value = str(refused.value.todo).split("`")[1]
        assert plan(read_recipe(FIVE, [text, value]), Root(tmp_path), Machine(gemm=5e10, memory=9e8)).stages
    assert plan(read_recipe(FIVE), Root(tmp_path), Machine(gemm=5e10)).stages, "a machine that has it is not refused"


@pytest.fixture
def text(tmp_path: Path) -> dict[str, object]:
    """A section `prepare` that reads a file of 400 lines."""
    file = tmp_path / "text.jsonl"
    lines = [f"The ferry number {n} leaves the north pier when the clock strikes {n % 24}." for n in range(400)]
    file.write_text("\n".join(json.dumps({"text": line}) for line in lines))
    return {"sources": [f"file:{file}"], "near": 0}


def test_a_stage_run_alone_changes_nothing_that_a_run_remembers(tmp_path: Path, text: dict[str, object]) -> None:
    root = Root(tmp_path / "life")
    made = life.run(read_recipe({"prepare": text, "tokenizer": {"vocabulary": 300}}), root)
    files = (root.recipe_path, root.plan_path, root.path / "life.json")
    before = [file.read_bytes() for file in files]
    alone = life.run_alone("tokenizer", {"vocabulary": 320}, root)
    assert alone.manifest.inputs == {"corpus": made["prepare"].ref}
    assert alone.id != made["tokenizer"].id
    assert [file.read_bytes() for file in files] == before
    assert life.last(root)["tokenizer"].id == made["tokenizer"].id


def test_stages_run_one_by_one_find_each_other(tmp_path: Path, text: dict[str, object]) -> None:
    root = Root(tmp_path / "life")
    corpus = life.run_alone("prepare", text, root)
    words = life.run_alone("tokenizer", {"vocabulary": 300}, root)
    tokens = life.run_alone("encode", {}, root)
    assert tokens.manifest.inputs == {"corpus": corpus.ref, "tokenizer": words.ref}
    with pytest.raises(ConfigError, match=r"finetune\.model"):
        life.run_alone("finetune", {}, root)


def test_the_plan_is_handed_over(tmp_path: Path, text: dict[str, object]) -> None:
    root = Root(tmp_path / "life")
    recipe = read_recipe({"prepare": text, "budget": "90s"})
    planned = plan(recipe, root, Machine(gemm=1e10))
    life.run(recipe, root, planned=planned)
    assert json.loads(root.plan_path.read_text())["machine"]["gemm"] == 1e10
    assert predictions(root) == {"prepare": planned.stages[0].cost.seconds}


def test_without_an_extra_a_stage_names_it() -> None:
    code = """
import sys
class Bare:
    def find_spec(self, name, *rest):
        if name.partition(".")[0] == "torch":
            raise ModuleNotFoundError("No module named 'torch'", name=name)
sys.meta_path.insert(0, Bare())
from tutelage.core.errors import MissingExtra
from tutelage.recipe import read_recipe, stage_of
assert stage_of("labels").name == "labels"
for ask in (lambda: stage_of("pretrain"), lambda: read_recipe({"pretrain": {"depth": 2}})):
    try:
        ask()
    except MissingExtra as error:
        assert "'torch'" in str(error) and "[train]'" in str(error)
    else:
        raise SystemExit("nothing was said")
"""
    subprocess.run([sys.executable, "-c", code], check=True)
