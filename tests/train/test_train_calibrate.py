"""What a training stage is expected to take: every look that it takes is counted, and the recipe's watch with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import Tiny, text
from torch.utils.flop_counter import FlopCounterMode

from tutelage.align.rlhf import Rlhf, rlhf_cost
from tutelage.core.price import Learned, Machine, Size
from tutelage.model import library
from tutelage.model.cache import Cache
from tutelage.model.native import Native
from tutelage.model.transformer import Decoder, DecoderConfig
from tutelage.train.batch import TokenSteps
from tutelage.train.calibrate import (
    STARTER,
    available_memory,
    bf16_share,
    looks,
    orthogonal,
    shape_of,
    size_of,
    step_seconds,
    watching,
)
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
    if library.load() is not None:
        assert Native(Decoder(shape), 8, 32).cache_bytes == cache.bytes, "where nothing needs filling up"
    assert size_of(shape).answering(32, 8) == cache.bytes + 4 * size_of(shape).parameters


def test_memory_grows_with_what_it_is_made_of() -> None:
    size = size_of(STARTER)
    least = size.taught(256, 64)
    two = size.taught(512, 128, learned=(Learned.whole(size),) * 2)
    assert least < size.taught(512, 64) < size.taught(512, 128) == two - 16 * size.parameters
    assert size.taught(512, 512) == size.taught(512, 900), "longer texts keep no scores"
    assert size.taught(512, 128, frozen=1) - size.taught(512, 128) == 4 * size.parameters


@pytest.mark.parametrize(("bf16", "chosen"), [(0.0, "fp32"), (0.89, "bf16"), (0.91, "fp32"), (2.0, "fp32")])
def test_bf16_is_chosen_where_it_is_a_tenth_faster(bf16: float, chosen: str) -> None:
    assert Machine(bf16=bf16).precision == chosen


def test_bf16_is_timed_at_the_shape_itself() -> None:
    shape = DecoderConfig(256, 64, 128, 2, 2, 2, max_position_embeddings=64)
    assert shape_of(size_of(shape)) == shape
    assert all(0 < each < 1 for each in step_seconds(shape, 256, 0.1, threads=1))
    assert bf16_share(size_of(shape), 256, Machine(threads=1), 0.1) > 0


def counted(model: Decoder) -> float:
    """Operations of a forward and backward pass of 96 tokens, with the head."""
    ids = torch.zeros(1, 96, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter:
        model.logits(model(ids)).sum().backward()
    return float(counter.get_total_flops())


@pytest.mark.parametrize(
    "settings",
    [
        {"lora": 4},
        {"lora": 8, "lora_targets": ("q_proj", "down_proj")},
        {"freeze": ("layers.0.*", "*norm")},
        {"freeze": ("layers.1.self_attn", "embed_tokens")},
        {"activations": "recompute"},
    ],
)
@pytest.mark.parametrize("shape", [SHAPES[1], DecoderConfig(300, 64, 96, 2, 4, 2, tie_word_embeddings=False)])
def test_what_learns_is_priced_as_it_is_computed(shape: DecoderConfig, settings: dict[str, Any]) -> None:
    config, size = Finetune(**settings), size_of(shape)
    learned, model = config.learned(size), config.learner(Decoder(shape, seed=0)).train()
    model.recompute = learned.recompute
    moved = sum(each.numel() for each in model.parameters() if each.requires_grad and each.dim() > 1)
    assert learned.parameters == pytest.approx(moved, rel=0.01), "norms and biases aside"
    parts = config.optimizer(model, 1).parts
    shapes = [block.shape for part in parts if isinstance(part, Muon) for block in part.blocks]
    assert learned.optimizer == sum(map(orthogonal, shapes))
    plain, flops = Decoder(shape, seed=0).train(), size.text(96)
    told = learned.passes(size, flops) / Finetune().learned(size).passes(size, flops)
    assert told == pytest.approx(counted(model) / counted(plain), rel=0.08), "the lowest layer hands nothing down"


AGAIN = Finetune(activations="recompute").learned(size_of(STARTER))


def test_what_is_frozen_takes_no_memory_but_its_weights() -> None:
    size = size_of(STARTER)
    whole, adapter, recomputed = (
        size.taught(2048, 64, learned=(Finetune(**each).learned(size),))
        for each in ({}, {"lora": 8}, {"activations": "recompute"})
    )
    learns = Finetune(lora=8).learned(size).parameters
    assert whole == size.taught(2048, 64) and 0 < learns < size.parameters / 5
    assert whole - adapter == pytest.approx(12 * size.parameters - 16 * learns)
    kept = [size._replace(layers=each).taught(2048, 64, learned=(AGAIN,)) for each in (1, 4, 8)]
    assert whole == kept[0] > kept[1] == recomputed > kept[2] > size.taught(0) + 4 * 2048 * 8 * 160


def test_precision_activations_and_adapters_change_the_price() -> None:
    machine = Machine(gemm=1e11, bf16=0.5)
    plain, bf16, again, lora = (
        finetune_cost(Finetune(**each), {}, machine)
        for each in ({}, {"precision": "bf16"}, {"activations": "recompute"}, {"lora": 8})
    )
    assert 0.5 * plain.seconds < bf16.seconds < 0.8 * plain.seconds
    assert finetune_cost(Finetune(precision="bf16"), {}, MACHINE) == finetune_cost(Finetune(), {}, MACHINE)
    assert again.seconds > 1.15 * plain.seconds and again.memory < plain.memory
    assert lora.seconds < plain.seconds and lora.memory < plain.memory and lora.flops < plain.flops


def test_reinforcement_with_an_adapter_still_has_a_whole_critic() -> None:
    ppo, grpo = ({"method": "ppo"}, {"method": "grpo", "group": 2})
    for method in (ppo, grpo):
        plain, lora = (rlhf_cost(Rlhf(**method, **each), {}, MACHINE) for each in ({}, {"lora": 8}))
        saved = (plain.memory - lora.memory) / Size().parameters
        assert 12 < saved < 16, "no gradient, no moments, and the reference shares the actor's weights"
    assert rlhf_cost(Rlhf(**ppo), {}, MACHINE).memory - rlhf_cost(Rlhf(method="grpo"), {}, MACHINE).memory == (
        pytest.approx(16 * Size().parameters)
    )


def test_one_answer_waits_for_the_weights_and_many_do_not() -> None:
    slow, fast = (Machine(gemm=1e12, bandwidth=each) for each in (1e9, 4e9))
    alone = [each.answer(1e9, 1, 0, 100) for each in (slow, fast)]
    assert alone == [pytest.approx(100 * 2e9 / each.bandwidth) for each in (slow, fast)]
    assert fast.answer(1e9, 1, 0, 200) == pytest.approx(2 * alone[1])
    many = [Machine(gemm=1e11, bandwidth=each).answer(1e9, 6400, 0, 100) for each in (1e10, 1e11)]
    assert many[0] == many[1]


@pytest.mark.parametrize(
    ("lines", "files", "limit"),
    [
        ("0::/", {"memory.max": "1000000"}, 1e6),
        ("0::/box/inner", {"box/inner/memory.max": "max", "box/memory.max": "3000000"}, 3e6),
        ("0::/box/inner", {"box/inner/memory.max": "2000000", "box/memory.max": "3000000"}, 2e6),
        ("0::/gone", {"memory.max": "4000000"}, 4e6),
        ("4:memory:/box\n3:cpu,cpuacct:/box", {"memory/box/memory.limit_in_bytes": "5000000"}, 5e6),
        ("4:cpu,memory:/gone", {"memory/memory.limit_in_bytes": "6000000"}, 6e6),
        ("4:memory:/", {"memory/memory.limit_in_bytes": "9223372036854771712"}, None),
        ("0::/", {"memory.max": "max"}, None),
        ("3:cpu:/box", {"box/memory.max": "1000"}, None),
    ],
)
def test_memory_ends_where_the_control_group_does(
    tmp_path: Path, lines: str, files: dict[str, str], limit: float | None
) -> None:
    whole = available_memory(tmp_path)
    for name, content in {"proc/self/cgroup": lines, **{f"sys/fs/cgroup/{k}": v for k, v in files.items()}}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"{content}\n")
    assert available_memory(tmp_path) == (whole if limit is None else 0.8 * limit)
