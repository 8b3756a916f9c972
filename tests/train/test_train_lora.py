"""Learning a part: an adapter learns, its base and what is frozen stay to the bit, a stopped run ends the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small import COLOURS, NAMES, READ, TAUGHT, ask, dialogue, seal

from tutelage import life
from tutelage.align.dpo import dpo
from tutelage.align.rlhf import Rlhf, rlhf
from tutelage.core.artifact import Root
from tutelage.core.config import build
from tutelage.core.errors import ConfigError, Stopped
from tutelage.core.price import Machine
from tutelage.core.records import Example, read_jsonl, write_jsonl
from tutelage.core.stage import run_stage
from tutelage.generate.generator import Sampling
from tutelage.generate.local import open_model
from tutelage.judge.reward import RewardJudge, reward
from tutelage.model.checkpoint import load_decoder
from tutelage.model.lora import LoraLinear, merge
from tutelage.model.peft import load_adapter
from tutelage.plan import plan
from tutelage.recipe import read_recipe
from tutelage.tokens.encode import encode
from tutelage.train import snapshot
from tutelage.train.finetune import finetune
from tutelage.train.pretrain import pretrain
from tutelage.train.training import freeze

LITTLE = {"threads": 1, "lora": 4, "steps": 3, "checkpoint_seconds": 900}


def other(name: str) -> str:
    """What everybody likes from now on."""
    return COLOURS[(NAMES.index(name) + 1) % len(COLOURS)]


@pytest.fixture(scope="module")
def made(little_life):
    """A taught model, and dialogues that say otherwise."""
    root, found = little_life[0], dict(little_life[1])

    def corpus(folder: Path) -> None:
        (folder / "documents.parquet").write_bytes(found["corpus"].file("documents.parquet").read_bytes())
        rows = read_jsonl(found["corpus"].file("dialogues.jsonl"), Example)
        names = [(row.messages[0].content.split()[2], row.tags["split"]) for row in rows]
        write_jsonl(folder / "dialogues.jsonl", [dialogue(name, other(name), split) for name, split in names])

    found["news"] = encode(root, corpus=seal(root, "corpus", corpus), tokenizer=found["tokenizer"])
    return root, found


def tensors(artifact, name: str = "model.safetensors") -> dict[str, torch.Tensor]:
    return load_file(artifact.file(name))


def moved(one, two) -> set[str]:
    """Names of the tensors that differ in any bit."""
    before, after = tensors(one), tensors(two)
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}


def test_an_adapter_learns_and_its_base_stays(made):
    root, found = made
    settings = {**TAUGHT, "steps": 40, "lora": 8, "lora_targets": ["q_proj", "v_proj", "up_proj", "down_proj"]}
    tuned = finetune(root, model=found["finetune"], tokens=found["news"], **settings)
    model = open_model(tuned.ref, root)
    prompts = [Example(messages=(ask(name),)) for name in NAMES]
    answers = [each[0] for each in model.generate(prompts, Sampling(max_tokens=8, temperature=0.0))]
    assert sum(a.message.content == other(name) for a, name in zip(answers, NAMES, strict=True)) >= 10
    assert all(answer.finish == "stop" for answer in answers)
    assert tuned.metrics["pretraining_after"]["value"] < tuned.metrics["pretraining_before"]["value"] + 0.4

    found["finetune"].verify()
    targets = ("q_proj", "v_proj", "up_proj", "down_proj")
    assert moved(found["finetune"], tuned) == {n for n in tensors(tuned) if any(each in n for each in targets)}
    base = load_decoder(found["finetune"].path)
    again = merge(load_adapter(tuned.path / "adapter", base))
    whole = load_decoder(tuned.path).state_dict()
    assert all(torch.equal(tensor, whole[name]) for name, tensor in again.state_dict().items())


def test_a_stopped_run_ends_in_the_same_artifact(made, tmp_path):
    root, found = made
    config = {**TAUGHT, "steps": 12, "good_every": 3, "lora": 4, "freeze": ["layers.0.*"]}
    inputs = {"model": found["finetune"], "tokens": found["news"]}
    straight = run_stage(finetune, root, config=config, inputs=inputs)

    elsewhere = Root(tmp_path).create()
    asked = iter(range(1000))
    with pytest.raises(Stopped):
        run_stage(finetune, elsewhere, config=config, inputs=inputs, stop=lambda: next(asked) == 7)
    (state,) = elsewhere.work.glob("*/checkpoints/step-*")
    held = snapshot.read(state)
    assert held["weights"] and all("layers.1." in name and "lora_" in name for name in held["weights"])
    assert run_stage(finetune, elsewhere, config=config, inputs=inputs).id == straight.id
    assert moved(found["finetune"], straight) == {n for n in tensors(straight) if "layers.1." in n and "_proj" in n}


def test_every_stage_takes_an_adapter(made, tmp_path):
    root, found = made
    likes = {"model": found["finetune"], "preferences": found["preferences"]}
    judged = reward(root, **likes, **LITTLE, batch=8)
    assert RewardJudge(judged.path).judge([Example(messages=(ask("Ann"), ask("Bo")))])[0].scores
    head = tensors(judged, "adapter/adapter_model.safetensors")["base_model.model.score.weight"]
    assert torch.equal(head, tensors(judged)["score.weight"])
    chosen = dpo(root, **likes, **LITTLE, batch=8)
    sampled = {key: each for key, each in LITTLE.items() if key != "steps"}
    few = {**sampled, "iterations": 2, "prompts": 8, "max_tokens": 4}
    acted = rlhf(root, model=found["finetune"], reward=judged, corpus=found["corpus"], **few)
    for artifact in (chosen, acted):
        assert moved(found["finetune"], artifact) == {name for name in tensors(artifact) if "_proj" in name}
        merge(load_adapter(artifact.path / "adapter", load_decoder(found["finetune"].path)))
    asked = iter(range(1000))
    inputs = {"model": found["finetune"], "reward": judged, "corpus": found["corpus"]}
    root = Root(tmp_path).create()
    with pytest.raises(Stopped):
        run_stage(rlhf, root, config=few, inputs=inputs, stop=lambda: next(asked) == 3)
    assert run_stage(rlhf, root, config=few, inputs=inputs).id == acted.id


def test_the_reference_of_an_adapted_actor_is_its_frozen_base(made):
    _, found = made
    base = load_decoder(found["finetune"].path)
    actor = build(Rlhf, {"lora": 4}).learner(base)
    ids = torch.arange(24)[None]
    before = base(ids).detach()
    for module in actor.modules():
        if isinstance(module, LoraLinear):
            module.lora_B.data.fill_(0.1)
    assert torch.equal(base(ids), before) and not torch.allclose(actor(ids), before, atol=1e-3)


def test_what_is_frozen_stays(made):
    root, found = made
    kept = ["layers.0.*", "embed_tokens", "*norm*"]
    tuned = finetune(root, model=found["finetune"], tokens=found["news"], **{**TAUGHT, "steps": 3}, freeze=kept)
    assert moved(found["finetune"], tuned) == {n for n in tensors(tuned) if "layers.1." in n and "_proj" in n}
    read = pretrain(root, tokens=found["tokens"], tokenizer=found["tokenizer"], **READ | {"steps": 2}, freeze=["norm"])
    assert torch.equal(tensors(read)["model.norm.weight"], torch.ones(32))


def test_what_cannot_be_learned_so_is_named(made):
    root, found = made
    inputs = {"model": found["finetune"], "tokens": found["news"]}
    with pytest.raises(ConfigError, match=r"no weight is called 'embed_token'. Near it: embed_tokens"):
        finetune(root, **inputs, **TAUGHT, freeze=["embed_token"])
    with pytest.raises(ConfigError, match="nothing is left to learn"):
        finetune(root, **inputs, **TAUGHT, freeze=["*"])
    for method in ({"method": "ppo"}, {"method": "grpo", "group": 2}):  # a critic would learn all the same
        with pytest.raises(ConfigError, match=r"rlhf\.freeze.*every weight of the actor is frozen"):
            rlhf(root, model=found["finetune"], corpus=found["corpus"], judge="random", **method, freeze=["*"])
    with pytest.raises(ConfigError, match=r"finetune\.lora_targets.*'q_proj'"):
        finetune(root, **inputs, **TAUGHT, lora=4, lora_targets=["query"])
    with pytest.raises(ConfigError, match=r"pretrain\.lora.*moves them all"):
        pretrain(root, tokens=found["tokens"], tokenizer=found["tokenizer"], **READ, lora=4)
    with pytest.raises(ConfigError, match=r"key 'lora'.*rank 33 on down_proj, whose smaller side is 32"):
        finetune(root, **inputs, **TAUGHT, lora=33, lora_targets=["down_proj"])


def test_what_cannot_be_learned_so_is_named_by_recipe_and_section(made, tmp_path):
    """Before anything runs, where the recipe tells enough."""
    root, found = made
    file = tmp_path / "mine.yaml"

    def problem(part: dict, *, whole: bool = False) -> str:
        inputs = {"tokens": found["tokens"].ref, "tokenizer": found["tokenizer"].ref}
        first = {"pretrain": {**READ, **inputs}} if whole else {}
        source = "pretrain" if whole else found["finetune"].ref
        section = {"model": source, "tokens": found["news"].ref, **TAUGHT, **part}
        file.write_text(json.dumps({**first, "finetune@part": section}))
        before, begun = len(root.list()), set(root.work.glob("*"))
        with pytest.raises(ConfigError) as error:
            recipe = read_recipe(file)
            life.run(recipe, root, planned=plan(recipe, root, Machine()))
        assert len(root.list()) == before
        assert set(root.work.glob("*")) == begun or "model has never met" in str(error.value)
        return str(error.value)

    for whole in (False, True):
        told = problem({"freeze": ["layers.9.*"]}, whole=whole)
        assert told.startswith(f"{file}, key 'finetune@part.freeze': no weight is called 'layers.9.*'. Near it: "), told
        told = problem({"lora": 9999}, whole=whole)
        assert f"{file}, key 'finetune@part.lora': an adapter of rank 9999 on" in told
    told = problem({"lora": 4, "lora_targets": ["q_projj"]})
    assert "key 'finetune@part.lora_targets.0': " in told and "found 'q_projj'; did you mean 'q_proj'?" in told
    told = problem({"lora": 4, "model": found["pretrain"].ref})
    assert told.startswith(f"{file}, key 'finetune@part.lora': the model has never met the token that ends an answer")


def test_patterns_name_parameters_and_the_modules_that_hold_them():
    model = torch.nn.ModuleDict({"one": torch.nn.Linear(2, 2), "two": torch.nn.Linear(2, 2)})
    freeze(model, ["one", "*.bias"])
    assert [name for name, each in model.named_parameters() if each.requires_grad] == ["two.weight"]
