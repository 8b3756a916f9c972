"""The best weights by a watched figure: kept, saved, examined, the same after a stop; an unknown figure is named."""

from __future__ import annotations

import json

import pytest
import torch
from small import COLOURS, NAMES, READ, TAUGHT, colour_of, dialogue, seal
from tiny import Tiny, text

from tutelage.core.errors import ConfigError, Stopped
from tutelage.core.records import write_jsonl
from tutelage.core.stage import run_stage
from tutelage.model.checkpoint import load_decoder
from tutelage.plan import Examiner
from tutelage.recipe import WatchConfig
from tutelage.train.batch import TokenSteps
from tutelage.train.finetune import finetune
from tutelage.train.loop import Run, Watches, fit
from tutelage.train.objectives import NextToken
from tutelage.train.optim import Optimizer, Rates, Schedule, weights
from tutelage.train.pretrain import pretrain

FIGURES = {0: 5.0, 5: 3.0, 10: 1.0, 15: float("nan"), 20: 4.0, 25: 1.0, 30: 2.0}


class Scripted:
    """A watch whose figure is written down beforehand; remembers the weights it was shown."""

    every = 5

    def __init__(self):
        self.seen = {}

    def __call__(self, model, step):
        self.seen[step] = {name: tensor.detach().clone() for name, tensor in weights(model).items()}
        value = FIGURES[step]
        return {"figure": None if value != value else value, "count": 3}


def train(work, best, of=Scripted, **options):
    model, watch = Tiny(), of()
    steps = TokenSteps(text(), 16, 64, accumulate=2, pool=16)
    optim = Optimizer(model, Rates(), Schedule(), 30)
    run = Run(30, work, best=best, checkpoint_every=4, good_every=4, **options)
    return model, watch, fit(model, steps, NextToken(), optim, run=run, watch=Watches(30, watch))


@pytest.mark.parametrize(("best", "step"), [("figure", 10), ("lower:figure", 10), ("higher:figure", 0), ("", 30)])
def test_the_model_is_left_with_the_weights_of_the_best_look(tmp_path, best, step):
    model, watch, fitted = train(tmp_path, best)
    assert all(torch.equal(a, b) for a, b in zip(weights(model).values(), watch.seen[step].values(), strict=True))
    told = {"best": {"figure": "figure", "step": step, "value": FIGURES[step]}} if best else {}
    assert fitted.best == told


class Knowing(Scripted):
    """The same, of a figure that is known to be better the higher it is."""

    def higher(self, name):
        return True if name == "figure" else None


@pytest.mark.parametrize(("best", "step"), [("figure", 0), ("higher:figure", 0), ("lower:figure", 10)])
def test_a_figure_knows_which_way_is_better(tmp_path, best, step):
    """Without a word in front it is not the worst look that is kept."""
    _, _, fitted = train(tmp_path, best, of=Knowing)
    assert fitted.best["best"]["step"] == step


@pytest.mark.parametrize("after", [7, 13, 27])
def test_after_a_stop_it_is_the_same(tmp_path, after):
    calls = iter(range(100))
    with pytest.raises(Stopped):
        train(tmp_path, "figure", stop=lambda: next(calls) >= after)
    model, _, fitted = train(tmp_path, "figure")
    assert fitted.best["best"]["step"] == 10
    whole, _, _ = train(tmp_path / "whole", "figure")
    assert all(torch.equal(a, b) for a, b in zip(weights(model).values(), weights(whole).values(), strict=True))


@pytest.mark.parametrize(
    ("best", "message"),
    [("nothing", "no figure 'nothing' is watched.*Watched are: figure"), ("up:figure", "'up' is no direction")],
)
def test_an_unknown_figure_or_direction_is_named(tmp_path, best, message):
    with pytest.raises(ConfigError, match=message):
        train(tmp_path, best)


def test_without_a_watch_there_is_no_best(tmp_path):
    model, steps = Tiny(), TokenSteps(text(), 16, 64)
    with pytest.raises(ConfigError, match="Nothing is watched in this stage"):
        fit(model, steps, NextToken(), Optimizer(model, Rates(), Schedule(), 3), run=Run(3, tmp_path, best="loss"))


def test_a_stage_saves_its_best_weights_and_says_so(little_life):
    """With a rate that breaks what was learned, the last weights are worse than those of a look before."""
    root, made = little_life
    settings = {**READ, "steps": 3, "schedule": "wsd", "decay": 0.0, "matrix_rate": 0.6, "embedding_rate": 0.3}
    inputs = {"tokens": made["tokens"], "tokenizer": made["tokenizer"]}
    last = run_stage(pretrain, root, config=settings, inputs=inputs)
    best = run_stage(pretrain, root, config={**settings, "best": "validation"}, inputs=inputs)
    told = best.metrics["best"]
    assert told["figure"] == "validation" and 0 < told["step"] < 3 and "best" not in last.metrics
    assert best.metrics["validation"]["value"] == pytest.approx(told["value"], rel=1e-6)
    assert told["value"] < last.metrics["validation"]["value"]
    one, other = (load_decoder(each.path).embed_tokens.weight for each in (last, best))
    assert not torch.equal(one, other)
    with pytest.raises(ConfigError, match="Watched are: validation, validation_per_character"):
        run_stage(pretrain, root, config={**settings, "best": "accuracy"}, inputs=inputs)


def examination(root):
    """What colour each person likes, as items with four choices."""

    def write(folder):
        rows = []
        for name in NAMES:
            item = dialogue(name, colour_of(name), "test")
            tags = {"id": name, "suite": "likes", "kind": "choice", "cluster": name}
            rows.append(item.model_copy(update={"messages": item.messages[:1], "choices": COLOURS, "tags": tags}))
        write_jsonl(folder / "items.jsonl", rows)

    return Examiner(seal(root, "corpus", write), WatchConfig(items=len(NAMES), every=5))


def test_what_is_said_to_have_changed_is_of_the_weights_that_are_saved(little_life):
    """The lowest score is an odd wish, but it is neither the first look's nor the last's."""
    root, made = little_life
    settings = {**TAUGHT, "steps": 30, "best": "lower:watched", "validate_every": 5}
    inputs = {"model": made["pretrain"], "tokens": made["tokens"]}
    tuned = run_stage(finetune, root, config=settings, inputs=inputs, watch=examination(root))
    looks = [json.loads(line) for line in tuned.file("watch.jsonl").read_text().splitlines()]
    at = {each["step"]: each["watched"] for each in looks}
    kept = tuned.metrics["best"]["step"]
    assert 0 < kept < 30 and at[kept] < min(at[0], at[30])
    assert tuned.metrics["examined"]["watched"]["value"] == pytest.approx(at[kept] - at[0], abs=1e-6)
