"""The reward model: ties and scores in one likelihood, better than chance beside controls, a judge like any other."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.optimize import check_grad

sys.path.insert(0, str(Path(__file__).parents[1] / "train"))

from small import NAMES, ask, colour_of, seal, taught

from tutelage.core import refs
from tutelage.core.errors import DataError
from tutelage.core.records import Example, Message, Preference, Response, read_jsonl, write_jsonl
from tutelage.generate.generator import Sampling
from tutelage.judge.judge import Judge
from tutelage.judge.reward import BestOf, Panel, collate, read_rows, reward
from tutelage.model.checkpoint import load_decoder
from tutelage.model.heads import RewardModel
from tutelage.tokens.tokenizer import load
from tutelage.train.objectives import Rewards, pairs_of

SETTINGS = {"threads": 1, "steps": 60, "batch": 16, "matrix_rate": 0.02, "embedding_rate": 0.02}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root, found = taught(tmp_path_factory.mktemp("reward"))
    found["reward"] = reward(root, model=found["finetune"], preferences=found["preferences"], **SETTINGS)
    return root, found


def likelihood(rewards, tiers, tie=0.0):
    total = 0.0
    left, right, tied = pairs_of(tiers)
    for i, j, same in zip(left, right, tied, strict=True):
        p, q = math.exp(rewards[i]), math.exp(rewards[j])
        t = math.exp(tie) * math.sqrt(p * q)
        total -= math.log((t if same else p) / (p + q + t))
    return total / len(left)


@pytest.mark.parametrize("tiers", [((0,), (1, 2)), ((0, 1, 2),), ((2,), (0,), (1,)), ((1, 2), (0,))])
def test_rankings_with_ties_are_davidsons(tiers):
    rewards = torch.tensor([0.3, -0.7, 1.1], dtype=torch.float64)
    for tie in (0.0, 0.8):
        found = float(Rewards(tie=tie).ranking(rewards, tiers))
        assert found == pytest.approx(likelihood(rewards.tolist(), tiers, tie))


def test_a_tie_pulls_rewards_together_and_an_order_apart():
    objective = Rewards()

    def slope(tiers, at):
        rewards = torch.tensor(at, dtype=torch.float64, requires_grad=True)
        objective.ranking(rewards, tiers).backward()
        return rewards.grad.tolist()

    assert slope(((0, 1),), [1.0, 0.0])[0] > 0 > slope(((0, 1),), [1.0, 0.0])[1]
    assert slope(((0,), (1,)), [1.0, 0.0])[0] < 0

    def loss(x):
        return float(objective.ranking(torch.tensor(x), ((0,), (1, 2))))

    assert check_grad(loss, lambda x: np.array(slope(((0,), (1, 2)), x)), np.array([0.2, 0.1, -0.5])) < 1e-6


def test_listwise_is_plackett_luce():
    rewards = torch.tensor([0.3, -0.7, 1.1], dtype=torch.float64)
    p = rewards.exp().tolist()
    expected = -(math.log(p[2] / sum(p)) + math.log(p[0] / (p[0] + p[1]))) / 2
    assert float(Rewards(listwise=True).ranking(rewards, ((2,), (0,), (1,)))) == pytest.approx(expected)


def test_batches_and_accumulation_give_one_gradient(made):
    _, found = made
    tokenizer = load(found["finetune"].path)
    rows, _ = read_rows(read_jsonl(found["preferences"].file("preferences.jsonl"), Preference), tokenizer, 64)
    chosen, objective = rows["train"][:6], Rewards()

    def gradient(groups):
        model = Panel(RewardModel(load_decoder(found["finetune"].path).double()).double(), 0)
        torch.nn.init.normal_(model.reward.head.weight, generator=torch.Generator().manual_seed(0))
        batches = [collate([chosen[index] for index in group]) for group in groups]
        counts = {name: sum(batch.counts[name] for batch in batches) for name in ("rankings", "ratings")}
        for batch in batches:
            sums = objective(model, batch)
            sum(term / counts[name] for name, term in sums.terms.items()).backward()
        return {name: parameter.grad for name, parameter in model.named_parameters()}

    whole, cut = gradient([range(6)]), gradient([[0], [1, 2], [3, 4, 5]])
    for name, value in whole.items():
        torch.testing.assert_close(cut[name], value, rtol=1e-9, atol=1e-11)


def test_it_learns_from_rankings_and_scores_and_states_its_limits(made):
    _, found = made
    metrics = found["reward"].metrics
    assert metrics["skipped"] == 0
    assert metrics["accuracy"]["low"] > 0.6 and metrics["accuracy"]["n"] > 50
    assert metrics["score_correlation"]["value"] > 0.6
    assert metrics["ceiling"]["value"] == 0.9
    assert metrics["rows"]["train"] == 96
    assert metrics["length_slope"]["value"] < 0  # people here like short answers
    assert metrics["ece"]["n"] > 0


def test_it_may_multiply_in_bf16_and_scores_in_float32(made):
    root, found = made
    rough = reward(root, model=found["finetune"], preferences=found["preferences"], precision="bf16", **SETTINGS)
    exact, accuracy = found["reward"].metrics["accuracy"], rough.metrics["accuracy"]
    assert rough.metrics["loss"] != found["reward"].metrics["loss"], "nothing was rounded"
    assert accuracy["value"] == pytest.approx(exact["value"], abs=0.05) and accuracy["low"] > 0.5


@pytest.mark.parametrize("kind", ["rankings", "scores"])
def test_either_kind_alone_is_enough(made, kind):
    root, found = made
    rows = list(read_jsonl(found["preferences"].file("preferences.jsonl"), Preference))
    if kind == "rankings":
        kept = [row.model_copy(update={"scores": ()}) for row in rows if row.tiers]
    else:
        kept = [row.model_copy(update={"tiers": ()}) if row.tags["split"] == "train" else row for row in rows]
        kept = [row for row in kept if row.scores or row.tiers]
    alone = seal(root, "preferences", lambda path: write_jsonl(path / "preferences.jsonl", kept) and None)
    metrics = reward(root, model=found["finetune"], preferences=alone, **SETTINGS).metrics
    assert metrics["accuracy"]["low"] > 0.55
    assert metrics["ceiling"]["value"] is None and metrics["ceiling"]["reason"]


def test_control_shuffled_labels_stay_at_chance(made):
    root, found = made
    random = np.random.default_rng(0)
    rows = []
    for row in read_jsonl(found["preferences"].file("preferences.jsonl"), Preference):
        order = [int(each) for each in random.permutation(len(row.candidates))]
        candidates = tuple(row.candidates[each] for each in order)
        rows.append(row.model_copy(update={"candidates": candidates} if row.tags["split"] == "train" else {}))
    shuffled = seal(root, "preferences", lambda path: write_jsonl(path / "preferences.jsonl", rows) and None)
    accuracy = reward(root, model=found["finetune"], preferences=shuffled, **SETTINGS).metrics["accuracy"]
    assert accuracy["low"] < 0.6


def dialogue(name, said):
    return Example(messages=(ask(name), Message(role="assistant", content=said)))


def test_it_is_a_judge(made):
    root, found = made
    judge = refs.open(found["reward"].ref, root)
    assert isinstance(judge, Judge)
    good, bad = judge.judge([dialogue("Ann", colour_of("Ann")), dialogue("Ann", "green or red or green")])
    assert good.scores["reward"] > bad.scores["reward"]
    assert judge.judge([dialogue("Ann", "red " * 90)])[0].status == "unsupported"
    assert judge.judge([]) == []


class Two:
    """Answers well every other time."""

    name = "two"

    def generate(self, prompts, sampling):
        said = ["green or red or green", "red"]
        made = [Response(message=Message(role="assistant", content=each), finish="stop") for each in said]
        return [[made[(index + number) % 2] for number in range(sampling.n)] for index, _ in enumerate(prompts)]


def test_best_of_takes_what_the_judge_likes(made):
    root, found = made
    best = BestOf(Two(), refs.open(found["reward"].ref, root), n=4)
    answers = best.generate([Example(messages=(ask("Ann"),))] * 3, Sampling(n=2))
    assert [len(each) for each in answers] == [2, 2, 2]
    assert {answer.message.content for each in answers for answer in each} == {"red"}


def test_what_can_not_be_used_is_dropped_and_counted(made):
    root, found = made
    rows = list(read_jsonl(found["preferences"].file("preferences.jsonl"), Preference))
    empty = rows[0].model_copy(update={"tiers": (), "scores": ()})
    long = rows[1].model_copy(update={"prompt": (Message(role="user", content="so " * 99),)})
    mixed = seal(
        root, "preferences", lambda path: write_jsonl(path / "preferences.jsonl", [empty, long, *rows]) and None
    )
    dropped = reward(root, model=found["finetune"], preferences=mixed, threads=1, steps=1).metrics["dropped"]
    assert dropped == {"no judgement": 1, "longer than the model's context": 1}
    none = seal(root, "preferences", lambda path: write_jsonl(path / "preferences.jsonl", [empty]) and None)
    with pytest.raises(DataError, match="no preference"):
        reward(root, model=found["finetune"], preferences=none, threads=1, steps=1)


def test_strict_people_are_told_apart(made):
    root, found = made
    rows = []
    for index, name in enumerate(NAMES * 6):
        strict = index % 2
        rows.append(
            Preference(
                prompt=(ask(name),),
                candidates=(
                    Message(role="assistant", content=colour_of(name)),
                    Message(role="assistant", content="or"),
                ),
                scores=(0.6, 0.1) if strict else (0.9, 0.4),
                tags={"split": "train", "person": "strict" if strict else "mild"},
            )
        )
    people = seal(root, "preferences", lambda path: write_jsonl(path / "preferences.jsonl", rows) and None)
    settings = {**SETTINGS, "scalar_rate": 0.05}
    made_of = reward(root, model=found["finetune"], preferences=people, **settings)
    import json

    offsets = json.loads(made_of.file("calibration.json").read_text())["people"]
    assert offsets["mild"] > offsets["strict"] + 0.5
