"""Every stage that trains can be examined meanwhile, and computes the same to the byte; a run may end early."""

from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import pytest
import torch
from small import COLOURS, NAMES, READ, TAUGHT, colour_of, dialogue, seal
from tiny import Tiny, text

from tutelage.align.dpo import dpo
from tutelage.align.rlhf import rlhf
from tutelage.core.errors import ConfigError, Stopped
from tutelage.core.records import write_jsonl
from tutelage.core.stage import run_stage
from tutelage.judge.reward import reward
from tutelage.plan import Examiner
from tutelage.recipe import WatchConfig
from tutelage.train.batch import TokenSteps
from tutelage.train.finetune import finetune
from tutelage.train.loop import Run, Watches, fit
from tutelage.train.objectives import NextToken
from tutelage.train.optim import Optimizer, Rates, Schedule
from tutelage.train.patience import Patience
from tutelage.train.pretrain import pretrain

SHORT = {"threads": 1, "steps": 12}


def examination(root, every):
    """What each person likes, chosen and said: both ways of asking."""

    def write(folder):
        rows = []
        for kind in ("choice", "generate"):
            for name in NAMES:
                item = dialogue(name, colour_of(name), "test")
                tags = {"id": f"{kind}-{name}", "suite": f"likes-{kind}", "kind": kind, "cluster": name}
                choices = COLOURS if kind == "choice" else ()
                rows.append(item.model_copy(update={"messages": item.messages[:1], "choices": choices, "tags": tags}))
        write_jsonl(folder / "items.jsonl", rows)

    return Examiner(seal(root, "corpus", write), WatchConfig(items=2 * len(NAMES), every=every))


@pytest.fixture(scope="module")
def watch(little_life):
    return examination(little_life[0], 3)


def stages(made):
    tokens, model = made["tokens"], made["finetune"]
    return {
        "pretrain": (pretrain, {**READ, "steps": 12}, {"tokens": tokens, "tokenizer": made["tokenizer"]}),
        "finetune": (finetune, {**TAUGHT, "steps": 12}, {"model": made["pretrain"], "tokens": tokens}),
        "dpo": (dpo, SHORT, {"model": model, "preferences": made["preferences"]}),
        "rlhf": (
            rlhf,
            {"threads": 1, "iterations": 3, "prompts": 8, "group": 4, "max_tokens": 6, "judge": "random:"},
            {"model": model, "corpus": made["corpus"]},
        ),
    }


@pytest.mark.parametrize("name", ["pretrain", "finetune", "dpo", "rlhf"])
def test_a_stage_is_the_same_to_the_byte_with_and_without_being_watched(little_life, watch, name):
    root, made = little_life
    stage, config, inputs = stages(made)[name]
    blind = run_stage(stage, root, config=config, inputs=inputs)
    seen = run_stage(stage, root, config=config, inputs=inputs, watch=watch)
    assert blind.id != seen.id
    for file in ("model.safetensors", "metrics.jsonl"):
        assert blind.file(file).read_bytes() == seen.file(file).read_bytes(), file
    looks = [json.loads(line) for line in seen.file("watch.jsonl").read_text().splitlines()]
    looks = [look for look in looks if "watched" in look]
    assert len(looks) >= 3 and all(look["watched_items"] == 2 * len(NAMES) for look in looks)
    for before, look in pairwise(looks):
        flipped = (len(look["flips"]["fixed"]) - len(look["flips"]["broken"])) / (2 * len(NAMES))
        assert look["watched"] - before["watched"] == pytest.approx(flipped, abs=1e-6)


def test_stopped_between_looks_the_looks_are_the_same(little_life, watch):
    """What flipped since a look that an earlier process took is known after a stop."""
    root, made = little_life
    stage, config, inputs = stages(made)["pretrain"]
    config = {**config, "good_every": 2, "seed": 5}
    whole = run_stage(stage, root, config=config, inputs=inputs, watch=watch)
    (root.keys / next(file.name for file in root.keys.iterdir() if file.read_text().strip() == whole.ref)).unlink()
    calls = iter(range(100))
    with pytest.raises(Stopped):
        run_stage(stage, root, config=config, inputs=inputs, watch=watch, stop=lambda: next(calls) == 8)
    again = run_stage(stage, root, config=config, inputs=inputs, watch=watch)
    assert again.id == whole.id
    assert "flips" in whole.file("watch.jsonl").read_text()


def test_the_reward_model_is_looked_at_as_often_as_one_likes(little_life):
    root, made = little_life
    inputs = {"model": made["finetune"], "preferences": made["preferences"]}
    seldom, often = (
        run_stage(reward, root, config={**SHORT, "validate_every": every}, inputs=inputs) for every in (0, 2)
    )
    for file in ("model.safetensors", "metrics.jsonl"):
        assert seldom.file(file).read_bytes() == often.file(file).read_bytes(), file
    looks = [json.loads(line) for line in often.file("watch.jsonl").read_text().splitlines()]
    assert [look["step"] for look in looks] == [0, 2, 4, 6, 8, 10, 12] and all(look["pairs"] for look in looks)
    best = run_stage(reward, root, config={**SHORT, "validate_every": 2, "best": "higher:accuracy"}, inputs=inputs)
    top = max(look["accuracy"] for look in looks)
    assert best.metrics["best"]["value"] == top
    assert best.metrics["best"]["step"] == next(look["step"] for look in looks if look["accuracy"] == top)


# ------------------------------------------------------------------------------------------------------ ending early


def values(share, count=40, seed=0):
    right = np.random.default_rng(seed).permutation(count) < share * count
    return {str(place): (float(one), str(place)) for place, one in enumerate(right)}


def test_a_gain_must_be_more_than_chance():
    patience = Patience("higher:watched", 2)
    assert patience.look(0, values(0.2)) == {}
    small = patience.look(5, values(0.25))
    assert small["gain"]["value"] > 0 and not small["gain"]["sure"] and not patience.enough
    great = patience.look(10, values(0.9))
    assert great["gain"]["sure"] and great["gain"]["over"] == 0 and patience.without == 0
    assert not patience.look(15, values(0.9))["gain"]["sure"]
    assert patience.look(20, values(0.3))["gain"]["over"] == 10 and patience.enough
    again = Patience("higher:watched", 2)
    again.load(json.loads(json.dumps(patience.state())))
    assert again.enough and again.held == patience.held
    known = Patience("watched", 1, higher=True)
    known.look(0, values(0.2))
    assert known.look(5, values(0.9))["gain"]["sure"], "the figure knows which way is better"
    lower = Patience("validation", 1)
    lower.look(0, {str(place): (3.0 + place % 3, str(place)) for place in range(30)})
    assert lower.look(5, {str(place): (2.0 + place % 3 * 0.9, str(place)) for place in range(30)})["gain"]["sure"]


def test_noise_is_seldom_taken_for_a_gain():
    """Control: no model gets better, twenty looks each; all looks of a run together err in at most 5% of runs."""
    wrong = 0
    for run in range(60):
        source = np.random.default_rng(run)
        patience = Patience("higher:watched", 99)
        for look in range(21):
            told = patience.look(look, {str(i): (float(x), str(i)) for i, x in enumerate(source.random(40) < 0.5)})
            if told and told["gain"]["sure"]:
                wrong += 1
                break
    assert wrong <= 8, wrong


class Plateau:
    """A watch whose items get better up to step 10, and no more."""

    every = 5

    def __init__(self):
        self.last = {}

    def __call__(self, model, step):
        self.last = values({0: 0.1, 5: 0.5}.get(step, 0.9), seed=1)
        return {"skill": sum(value for value, _ in self.last.values()) / len(self.last)}

    def values(self, name):
        return self.last if name == "skill" else {}


class Other:
    """A watch of another figure, asked more often."""

    every = 1

    def __call__(self, model, step):
        return {"other": float(step)}


def train(work, best="higher:skill", stop=None):
    model, total = Tiny(), 60
    steps = TokenSteps(text(), 16, 64, accumulate=2, pool=16)
    optim = Optimizer(model, Rates(), Schedule(), total)
    run = Run(total, work, best=best, patience=3, checkpoint_every=4, good_every=4, **({"stop": stop} if stop else {}))
    return model, fit(model, steps, NextToken(), optim, run=run, watch=Watches(total, Other(), Plateau()))


def test_a_run_that_gains_no_more_ends_and_says_so(tmp_path):
    model, fitted = train(tmp_path / "whole")
    assert fitted.steps == 25 and fitted.kept == 10
    assert fitted.best["ended"] == {"step": 25, "of": 60, "looks_without_gain": 3, "held": 10}
    rows = [json.loads(line) for line in (tmp_path / "whole" / "watch.jsonl").read_text().splitlines()]
    rows = [row for row in rows if "skill" in row]
    assert [row.get("gain", {}).get("sure") for row in rows] == [None, True, True, False, False, False]
    calls = iter(range(100))
    with pytest.raises(Stopped):
        train(tmp_path / "again", stop=lambda: next(calls) == 18)
    resumed, fitted = train(tmp_path / "again")
    assert fitted.steps == 25
    for one, other in zip(model.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)
    for file in ("watch.jsonl", "metrics.jsonl"):
        assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "again" / file).read_bytes()


def test_patience_needs_a_figure_that_is_known_item_by_item(tmp_path, little_life):
    with pytest.raises(ConfigError, match="which figure is to get better"):
        train(tmp_path / "none", best="")

    root, made = little_life
    inputs = {"tokens": made["tokens"], "tokenizer": made["tokenizer"]}
    config = {**READ, "steps": 4, "validate_every": 2, "patience": 1}
    with pytest.raises(ConfigError, match="not known item by item"):
        run_stage(pretrain, root, config={**config, "best": "validation_per_character"}, inputs=inputs)
    found = run_stage(pretrain, root, config={**config, "best": "validation"}, inputs=inputs)
    rows = [json.loads(line) for line in found.file("watch.jsonl").read_text().splitlines()]
    gain = rows[1]["gain"]
    assert gain["value"] == pytest.approx(rows[0]["validation"] - rows[1]["validation"], abs=1e-5)
