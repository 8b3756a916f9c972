"""What a training stage is expected to take: every look that it takes is counted, and the recipe's watch with it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny import Tiny, text
from torch.utils.flop_counter import FlopCounterMode

from tutelage.core.price import Machine, Size
from tutelage.model.cache import Cache
from tutelage.model.transformer import Decoder, DecoderConfig
from tutelage.train.batch import TokenSteps
from tutelage.train.calibrate import STARTER, looks, settle, size_of, step_seconds, watching
from tutelage.train.finetune import Finetune, finetune_cost
from tutelage.train.loop import Run, Watches, fit
from tutelage.train.objectives import NextToken
from tutelage.train.optim import Muon, Optimizer, Rates, Schedule, orthogonalise
from tutelage.train.pretrain import Pretrain, pretrain_cost
from tutelage.train.validation import LIMIT

MACHINE = Machine(gemm=1e11)
TOKENS = {"validation_tokens": 2e4, "validation_dialogue_tokens": 1e4, "sources": 6.0}


class Counting:
    """A watch that counts how often it is asked."""

    def __init__(self, every: int) -> None:
        self.every, self.asked = every, 0

    def __call__(self, model: Any, step: int) -> dict[str, Any]:
        self.asked += 1
        return {}


@pytest.mark.parametrize(("total", "every"), [(0, 0), (7, 0), (7, 1), (7, 3), (10, 5), (1, 1), (6, 9)])
def test_looks_are_counted_as_the_loop_takes_them(total: int, every: int, tmp_path: Any) -> None:
    watch, model = Counting(every), Tiny()
    steps = TokenSteps(text(), 30, 64, 1)
    optim = Optimizer(model, Rates(), Schedule(), max(1, total))
    fit(model, steps, NextToken(), optim, run=Run(total, tmp_path), watch=Watches(total, watch))
    assert watch.asked == looks(total, every)


def test_the_watch_and_the_held_out_text_are_part_of_the_price() -> None:
    blind = {"tokens": {"validation_tokens": 0.0, "validation_dialogue_tokens": 0.0}}
    seeing, watched = {"tokens": TOKENS}, {"tokens": TOKENS, "watch": {"items": 64.0, "every": 0.0}}
    for config, cost in ((Pretrain(), pretrain_cost), (Finetune(), finetune_cost)):
        prices = [cost(config, inputs, MACHINE).seconds for inputs in (blind, seeing, watched)]
        assert prices[0] < prices[1] < prices[2]
        often = cost(config, watched | {"watch": {"items": 64.0, "every": 10.0}}, MACHINE).seconds
        assert often - prices[1] > 10 * (prices[2] - prices[1])
    rare = pretrain_cost(Pretrain(validate_every=200), seeing, MACHINE).seconds
    assert rare < pretrain_cost(Pretrain(), seeing, MACHINE).seconds


def test_no_more_is_looked_at_than_the_limit() -> None:
    little, much = ({"tokens": {"validation_tokens": each, "sources": 1.0}} for each in (LIMIT, 1e9))
    assert pretrain_cost(Pretrain(), little, MACHINE) == pretrain_cost(Pretrain(), much, MACHINE)


def test_without_a_watch_nothing_is_watched() -> None:
    for inputs in ({}, {"watch": {"items": 0.0, "every": 3.0}}):
        assert watching(inputs, 100, Size(), MACHINE) == 0


def test_a_faster_machine_is_faster_at_everything() -> None:
    twice = Machine(gemm=2e11)
    assert twice.learn(1e12) == MACHINE.learn(1e12) / 2 and twice.read(1e12) < MACHINE.read(1e12) < MACHINE.learn(1e12)
    slow, fast = (each.answer(3e6, 100, 20, 10) for each in (MACHINE, twice))
    assert slow / 2 < fast < slow, "an engine's step costs something however fast the products are"


def test_a_model_is_dearer_in_long_texts_and_cheaper_where_little_is_answered() -> None:
    size = Size.of({"flops": 4e6, "head": 1e6})
    assert (size.flops, size.head, size.parameters) == (4e6, 1e6, Size().parameters)
    assert size.text(0) == 4e6 < size.text(128) < size.text(384)
    prices = [size.spoken(30, answered) for answered in (0.3, 0.5, 1.0)]
    assert prices == sorted(prices) and prices[-1] == size.text(30)


SHAPES = (STARTER, DecoderConfig(300, 64, 96, 2, 4, 2), DecoderConfig(300, 48, 200, 3, 4, 1, model_type="qwen3"))


@pytest.mark.parametrize("shape", SHAPES)
def test_muon_is_priced_by_the_matrices_it_has(shape: DecoderConfig) -> None:
    optimizer = Optimizer(Decoder(shape, seed=0), Rates(), Schedule(), 1)
    with FlopCounterMode(display=False) as counter:
        for part in optimizer.parts:
            if isinstance(part, Muon):
                orthogonalise(torch.randn(len(part.blocks), *part.blocks[0].shape))
    assert size_of(shape).optimizer == counter.get_total_flops()
    small, large = (pretrain_cost(Pretrain(batch=batch), {}, MACHINE).muon for batch in (2048, 16384))
    assert 0 < large < small / 4


def test_what_generation_keeps_is_what_its_cache_takes() -> None:
    shape = SHAPES[1]
    cache = Cache(shape.num_hidden_layers, 8, shape.num_key_value_heads, 32, shape.head_dim)
    assert size_of(shape).answering(32, 8) == cache.bytes


def test_memory_grows_with_what_it_is_made_of() -> None:
    size = size_of(STARTER)
    least = size.taught(256, 64)
    assert least < size.taught(512, 64) < size.taught(512, 128) < size.taught(512, 128, models=2)
    assert size.taught(512, 512) == size.taught(512, 900), "longer texts keep no scores"
    assert size.taught(512, 128, frozen=1) - size.taught(512, 128) == 4 * size.parameters


@pytest.mark.parametrize(("bf16", "chosen"), [(0.89, "bf16"), (0.91, "fp32"), (2.0, "fp32")])
def test_bf16_is_chosen_where_it_is_a_tenth_faster(monkeypatch: pytest.MonkeyPatch, bf16: float, chosen: str) -> None:
    monkeypatch.setattr("tutelage.train.calibrate.step_seconds", lambda *given, **named: (1.0, bf16))
    assert settle(STARTER, 256, Machine())["precision"] == chosen


def test_precision_and_activations_are_settled_by_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = DecoderConfig(256, 64, 128, 2, 2, 2, max_position_embeddings=64)
    taken: list[tuple[float, float]] = []

    def timed(*given: Any, **named: Any) -> tuple[float, float]:
        taken.append(step_seconds(*given, **named))
        return taken[-1]

    monkeypatch.setattr("tutelage.train.calibrate.step_seconds", timed)
    roomy, narrow = (settle(shape, 256, Machine(threads=1, memory=memory), 0.1) for memory in (8e9, 1e6))
    assert len(taken) == 2 and all(0 < seconds < 1 for both in taken for seconds in both)
    faster = ["bf16" if bf16 < 0.9 * fp32 else "fp32" for fp32, bf16 in taken]
    assert [roomy["precision"], narrow["precision"]] == faster
    assert (roomy["activations"], narrow["activations"]) == ("keep", "recompute")
