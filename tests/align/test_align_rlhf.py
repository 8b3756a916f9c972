"""Reinforcement: the gold reward rises, a random one gives nothing, the engine's weights are the trainer's, a stopped
run ends in the same artifact."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "train"))

from small import COLOURS, NAMES, ask, colour_of, seal, taught

from tutelage.align.advantage import KLControl
from tutelage.align.dpo import dpo, pairs
from tutelage.align.rlhf import rlhf
from tutelage.align.rollout import ActorCritic, Rollouts, Settings, alarms, random_scores, read_prompts
from tutelage.core import refs
from tutelage.core.errors import DataError, Diverged, NotFound, Stopped
from tutelage.core.records import Example, Message, Preference, Verdict, read_jsonl, write_jsonl
from tutelage.core.stage import never, run_stage
from tutelage.generate.generator import Sampling
from tutelage.generate.local import open_model
from tutelage.judge.judge import WindowedJudge
from tutelage.judge.reward import read_rows, reward
from tutelage.model.checkpoint import load_decoder
from tutelage.model.heads import ValueModel
from tutelage.tokens.tokenizer import load
from tutelage.train.finetune import finetune
from tutelage.train.loop import Run, fit
from tutelage.train.objectives import PolicyGradient
from tutelage.train.optim import Optimizer, Rates, Schedule

RATES = {"threads": 1, "matrix_rate": 0.01, "embedding_rate": 0.005, "scalar_rate": 0.005}
SAMPLED = {"iterations": 12, "prompts": 96, "minibatches": 2, "max_tokens": 6}  # with few prompts chance decides
REINFORCED = {**RATES, **SAMPLED, "kl": 0.01, "kl_target": 0.5}


class Gold(WindowedJudge):
    """The truth of the little world: 1 for the right colour."""

    name = "gold"

    def judge(self, examples):
        right = [float(each.messages[-1].content == each.target) for each in examples]
        return [Verdict(judge=self.name, scores={"gold": score}) for score in right]


def open_gold(ref, root=None):
    return Gold()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A model that was taught too little, so that there is something to reinforce."""
    root, found = taught(tmp_path_factory.mktemp("align"))
    few = {"threads": 1, "batch": 256, "micro": 256, "steps": 34, "matrix_rate": 0.03, "embedding_rate": 0.02}
    found["taught"] = found["finetune"]
    found["finetune"] = finetune(root, model=found["pretrain"], tokens=found["tokens"], **few)
    settings = {"threads": 1, "steps": 60, "matrix_rate": 0.02, "embedding_rate": 0.02}
    found["reward"] = reward(root, model=found["taught"], preferences=found["preferences"], **settings)
    return root, found


def inputs(found, **changed):
    return {name: found[name] for name in ("reward", "corpus")} | {"model": found["finetune"]} | changed


def gold(root, artifact):
    """Share of right answers, sampled 8 times per name."""
    prompts = [Example(messages=(ask(name),)) for name in NAMES]
    answers = open_model(artifact.ref, root).generate(prompts, Sampling(max_tokens=6, n=8))
    return np.mean([[a.message.content == colour_of(n) for a in each] for each, n in zip(answers, NAMES, strict=True)])


METHODS = {"ppo": {"method": "ppo", "prompts": 192}, "grpo": {"method": "grpo", "prompts": 48, "group": 8, "epochs": 1}}


@pytest.mark.parametrize("method", METHODS)
def test_gold_rises_under_the_reward_model(made, method):
    root, found = made
    before = gold(root, found["finetune"])
    after = rlhf(root, **inputs(found), **{**REINFORCED, **METHODS[method]})
    print("gold before", before)
    assert before < 0.7 and gold(root, after) > before + 0.15
    assert after.metrics["reward_last"] > after.metrics["reward_first"] + 0.15
    assert after.metrics["logprob_gap"] < 1e-4 and after.metrics["skipped"] == 0
    rows = [json.loads(line) for line in after.file("metrics.jsonl").read_text().splitlines()]
    assert {"reward", "kl", "entropy", "length", "policy", "clipped"} <= set(rows[0])
    assert after.metrics["answers"] == 12 * (192 if method == "ppo" else 384)


def test_control_random_reward_gives_nothing(made):
    root, found = made
    before = gold(root, found["finetune"])
    after = gold(root, rlhf(root, **inputs(found, reward=None), judge="random", **REINFORCED))
    assert after < before + 0.15


def test_any_judge_can_be_the_reward(made, monkeypatch):
    root, found = made
    monkeypatch.setitem(refs.SCHEMES, "gold", f"{__name__}:open_gold")
    after = rlhf(root, **inputs(found, reward=None), **REINFORCED, judge="gold:", judge_score="gold")
    assert gold(root, after) > gold(root, found["finetune"]) + 0.15
    assert after.metrics["reward_from"] == "gold:"


def test_what_is_missing_is_named(made):
    root, found = made
    with pytest.raises(NotFound, match=r"rlhf\.reward"):
        rlhf(root, **inputs(found, reward=None), **REINFORCED)
    with pytest.raises(DataError, match="group of at least 2"):
        rlhf(root, **inputs(found), method="grpo", threads=1)
    with pytest.raises(DataError, match="no dialogue"):
        rlhf(root, **inputs(found), families=("none",), threads=1)


@pytest.mark.parametrize("method", METHODS)
def test_stopped_anywhere_it_ends_in_the_same_artifact(made, tmp_path, method):
    root, found = made
    settings = {**REINFORCED, **METHODS[method], "iterations": 4, "good_every": 2}
    whole = rlhf(root, **inputs(found), **settings)
    for after in (1, 5):
        calls = iter(range(1000))
        (root.keys / _key(root, whole)).unlink()
        with pytest.raises(Stopped):
            run_stage(rlhf, root, config=settings, inputs=inputs(found), stop=lambda c=calls, a=after: next(c) == a)
        assert run_stage(rlhf, root, config=settings, inputs=inputs(found)).id == whole.id


def _key(root, artifact):
    return next(file.name for file in root.keys.iterdir() if file.read_text().strip() == artifact.ref)


def rollouts(found, score=None, **changed):
    tokenizer = load(found["finetune"].path)
    actor = load_decoder(found["finetune"].path)
    prompts, _ = read_prompts([Example(messages=(ask(name),), target=colour_of(name)) for name in NAMES], tokenizer, 48)
    settings = {"method": "ppo", "prompts": 8, "group": 1, "max_tokens": 6, "temperature": 1.0, "epochs": 2}
    settings |= {"minibatches": 2, "micro": 256, "seed": 0, "trace": 0.95, "scale": True, "unfinished": 0.0}
    critic = ValueModel(load_decoder(found["finetune"].path))
    score = score or random_scores(0)
    model = ActorCritic(actor, critic)
    return Rollouts(
        model, actor.clone(), prompts, tokenizer, score, KLControl(0.1, 0.0), Settings(**settings | changed)
    )


def test_rollouts_see_new_weights_without_a_copy(made):
    steps = rollouts(made[1])
    first, _ = steps.answers(0)
    with torch.no_grad():
        steps.model.actor.embed_tokens.weight.mul_(0.0)
    second, logprobs = steps.answers(0)
    assert [a.tokens for a in first] != [a.tokens for a in second]
    assert float(logprobs.max()) == pytest.approx(-np.log(320), abs=0.1)  # equal chances for every token now


def test_answers_depend_on_place_not_on_neighbours(made):
    few, many = rollouts(made[1]), rollouts(made[1], prompts=8)
    assert [a.tokens for a in few.answers(3)[0]] == [a.tokens for a in many.answers(3)[0]]
    assert {a.prompt.ids for a in few.answers(0)[0]} != {a.prompt.ids for a in few.answers(1)[0]}


def test_every_token_of_an_iteration_is_used_once_an_epoch(made):
    steps = rollouts(made[1])
    handed = [batch for _, batch in zip(range(4), steps, strict=False)]
    total = int(steps._held["lengths"].sum())
    for epoch in (handed[:2], handed[2:]):
        assert sum(batch.targets.numel() for step in epoch for batch in step) == total
    assert steps.iteration == 1 and len(steps.history) == 1
    assert handed[0][0].figures and not handed[1][0].figures


class Jumping(Schedule):
    """A learning rate beyond all bounds at one step of the run."""

    def at(self, step, total):
        return float("inf") if step == 8 else super().at(step, total)


def reinforce(found, work, stop=never):
    """16 steps, 4 an iteration; the ninth step poisons the weights."""
    steps = rollouts(found, score=lambda answers: np.array([-float(len(each.tokens)) for each in answers]))
    optim = Optimizer(steps.model, Rates(0.002, 0.001, 0.001), Jumping(), 16)
    run = Run(16, work, stop=stop, good_every=3, checkpoint_every=3)
    fitted = fit(steps.model, steps, PolicyGradient(), optim, run=run)
    rows = [json.loads(line) for line in (work / "metrics.jsonl").read_text().splitlines()]
    return steps, fitted, rows


def test_answers_of_weights_that_went_back_are_dropped(made, tmp_path):
    """Loss and gradient on poisoned weights are not finite; what the next steps learn from is sampled anew."""
    torch.set_num_threads(1)
    steps, fitted, rows = reinforce(made[1], tmp_path / "whole")
    notes = [row for row in rows if "note" in row]
    assert len(notes) == 1 and "back to the weights after step 6" in notes[0]["note"]
    at = notes[0]["step"]
    sampled = [row["step"] for row in rows if "length" in row]
    assert at + 1 in sampled and steps.iteration == len(steps.history) == len(sampled) == 5, sampled
    assert all(torch.isfinite(each).all() for each in steps.model.parameters())
    assert fitted.skipped == 2 and "skipped" not in rows[-1]
    ratio = next(row for row in rows if row["step"] == at + 1 and "note" not in row)
    assert abs(ratio["moved"]) < 1e-5, "the weights that learn are those that sampled"
    for after in (10, 11, 12, 13, 15):
        calls = iter(range(99))
        with pytest.raises(Stopped):
            reinforce(made[1], tmp_path / str(after), stop=lambda c=calls, a=after: next(c) >= a)
        again, _, _ = reinforce(made[1], tmp_path / str(after))
        whole, cut = ((tmp_path / name / "metrics.jsonl").read_bytes() for name in ("whole", str(after)))
        assert cut == whole
        for one, other in zip(again.model.parameters(), steps.model.parameters(), strict=True):
            assert torch.equal(one, other)


def test_weights_that_cannot_be_sampled_from_go_back(made, tmp_path):
    """Poisoned before an iteration begins: its sampling fails, and that is a rewind, not the end."""
    steps = rollouts(made[1])
    honest, poisoned = steps._look, iter(range(99))

    def look(answers, old):
        if next(poisoned) == 1:
            with torch.no_grad():
                next(steps.model.parameters()).fill_(float("nan"))
        return honest(answers, old)

    steps._look = look
    optim = Optimizer(steps.model, Rates(0.002, 0.001, 0.001), Schedule(), 12)
    fitted = fit(steps.model, steps, PolicyGradient(), optim, run=Run(12, tmp_path, good_every=2))
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    notes = [row["note"] for row in rows if "note" in row]
    assert len(notes) == 1 and "log-probabilities of sampled answers were not finite: back to" in notes[0]
    assert fitted.skipped == 0 and len(steps.history) == 3
    assert all(torch.isfinite(each).all() for each in steps.model.parameters())


def test_an_engine_that_runs_another_model_is_found(made):
    steps = rollouts(made[1])
    honest = steps.answers

    def lying(iteration):
        answers, logprobs = honest(iteration)
        return answers, logprobs - 0.01

    steps.answers = lying
    with pytest.raises(Diverged, match="do not run the same model"):
        next(iter(steps))


def test_alarms_tell_a_hacked_reward():
    calm = {"kl": 0.05, "length": 10.0, "entropy": 1.0, "unfinished": 0.0}
    assert not any(alarm["raised"] for alarm in alarms([calm] * 10, 0.05).values())
    hacked = {"kl": 0.5, "length": 30.0, "entropy": 0.1, "unfinished": 0.5}
    assert all(alarm["raised"] for alarm in alarms([calm] * 5 + [hacked] * 5, 0.05).values())
    assert alarms([calm], 0.05) == {}


# direct preference optimisation


def test_dpo_raises_what_people_prefer(made):
    root, found = made
    settings = {**RATES, "steps": 40, "batch": 48, "likelihood": 0.2}
    after = dpo(root, model=found["finetune"], preferences=found["preferences"], **settings)
    assert after.metrics["accuracy"]["low"] > 0.55 and after.metrics["skipped"] == 0
    assert after.metrics["chosen_moved"] > after.metrics["rejected_moved"] + 0.5
    assert gold(root, after) > gold(root, found["finetune"])
    rows = [json.loads(line) for line in after.file("metrics.jsonl").read_text().splitlines()]
    assert rows[0]["pairs"] == pytest.approx(np.log(2), abs=1e-3)  # the model still is the reference


def test_dpo_takes_distant_pairs_first_and_ties_when_asked(made):
    _, found = made
    tokenizer = load(found["finetune"].path)
    said = [Message(role="assistant", content=each) for each in (*COLOURS, "no")]
    row = Preference(prompt=(ask("Ann"),), candidates=tuple(said), tiers=((3,), (0, 1), (2,)), tags={"split": "train"})
    rows, _ = read_rows([row], tokenizer, 64)
    first = pairs(rows["train"], per_prompt=1, ties=True)[0]
    assert np.array_equal(first.segments[0], rows["train"][0].segments[3])
    assert np.array_equal(first.segments[1], rows["train"][0].segments[2])
    assert sum(pair.tie for pair in pairs(rows["train"], 99, ties=True)) == 1
    assert not any(pair.tie for pair in pairs(rows["train"], 99, ties=False))


def test_dpo_without_pairs_is_named(made):
    root, found = made
    rows = [row for row in read_jsonl(found["preferences"].file("preferences.jsonl"), Preference) if not row.tiers]
    none = seal(root, "preferences", lambda path: write_jsonl(path / "preferences.jsonl", rows) and None)
    with pytest.raises(DataError, match="no pair"):
        dpo(root, model=found["finetune"], preferences=none, threads=1)
