"""Muon's matrices are near orthogonal, AdamW equals torch's, schedules have their shape, state round-trips."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from tiny import Tiny
from torch import nn

from tutelage.core.errors import CorruptArtifact
from tutelage.train.optim import AdamW, Optimizer, Rates, Schedule, orthogonalise, weights


@pytest.mark.parametrize("shape", [(3, 20, 20), (2, 12, 40), (2, 40, 12)])
def test_singular_values_come_near_one(shape):
    found = torch.linalg.svdvals(orthogonalise(torch.randn(shape, generator=torch.Generator().manual_seed(0))))
    assert found.max() < 1.2 and found.median() > 0.8


@pytest.mark.parametrize("shape", [(2, 64, 64), (2, 48, 160), (2, 160, 48)])
@pytest.mark.parametrize("spectrum", ["flat", "falling"])
def test_rounded_products_stay_bounded_and_point_the_same_way(shape, spectrum):
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    if spectrum == "falling":
        left, values, right = torch.linalg.svd(matrices, full_matrices=False)
        matrices = (left * torch.logspace(0, -3, values.shape[-1])) @ right
    exact, rough = orthogonalise(matrices), orthogonalise(matrices, rounded=True)
    assert rough.dtype == torch.float32
    assert torch.linalg.svdvals(rough).max() < 1.2, "polynomials multiplied up in bf16 reach hundreds here"
    assert torch.cosine_similarity(exact.flatten(), rough.flatten(), dim=0) > 0.99


@pytest.mark.parametrize("bf16", [False, True])
def test_muon_multiplies_as_the_model_does(bf16):
    fused = Fused()
    fused.bf16 = bf16
    fused.both.grad = torch.randn(12, 8, generator=torch.Generator().manual_seed(2))
    before = fused.both.detach().clone()
    optimizer = Optimizer(fused, Rates(matrix=0.1, decay=0.0), Schedule(warmup=0.0), 10)
    optimizer.step(0, 1.0)
    moved = torch.linalg.svdvals((before - fused.both.detach())[8:] / 0.1)
    exact = torch.linalg.svdvals(orthogonalise(fused.both.grad[None, 8:])[0])
    assert torch.allclose(moved, exact, rtol=1e-4) is not bf16


def test_adamw_equals_torch():
    draw = torch.Generator().manual_seed(0)
    values = torch.randn(7, 3, generator=draw)
    mine, theirs = nn.Parameter(values.clone()), nn.Parameter(values.clone())
    ours = AdamW([("w", mine)], 0.01, Rates(betas=(0.9, 0.95)))
    reference = torch.optim.AdamW([theirs], lr=0.01, betas=(0.9, 0.95), eps=1e-10, weight_decay=0.0)
    for step in range(1, 6):
        gradient = torch.randn(7, 3, generator=draw)
        mine.grad, theirs.grad = gradient.clone(), gradient.clone()
        with torch.no_grad():
            ours.update(1.0, step)
        reference.step()
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


def test_schedules():
    wsd = [Schedule("wsd", 0.1, 0.5).at(step, 100) for step in range(100)]
    assert wsd[0] < 0.1 and wsd[30] == 1.0 and wsd[99] < 0.02
    assert all(a >= b for a, b in pairwise(wsd[50:]))
    cosine = [Schedule("cosine", 0.1, floor=0.1).at(step, 100) for step in range(100)]
    assert max(cosine) <= 1.0 and cosine[99] == pytest.approx(0.1, abs=0.01)


class Fused(nn.Module):
    """Two matrices in one parameter, declared as the decoder declares its own."""

    def __init__(self) -> None:
        super().__init__()
        self.both = nn.Parameter(torch.randn(12, 8, generator=torch.Generator().manual_seed(1)))

    def matrices(self):
        from types import SimpleNamespace

        return [SimpleNamespace(name="both", parameter=self.both, rows=((0, 8), (8, 12)))]


def test_fused_blocks_move_as_if_apart():
    fused = Fused()
    gradient = torch.randn(12, 8, generator=torch.Generator().manual_seed(2))  # no block of it is nearly singular
    fused.both.grad = gradient.clone()
    before = fused.both.detach().clone()
    optim = Optimizer(fused, Rates(matrix=0.1), Schedule(warmup=0, decay=0), 10, clip=0)
    optim.step(0, 1.0)
    for start, stop in ((0, 8), (8, 12)):
        change = (before - fused.both.detach())[start:stop]
        values = torch.linalg.svdvals(change / 0.1)
        assert values.max() < 1.25 and values.min() > 0.5


def test_state_round_trips():
    def run(optim, model, count):
        for step in range(count):
            torch.manual_seed(optim.updates)
            for parameter in optim.parameters:
                parameter.grad = torch.randn_like(parameter)
            optim.step(step, optim.norm())

    first, second = Tiny(), Tiny()
    one, two = (Optimizer(m, Rates(), Schedule(), 10) for m in (first, second))
    run(one, first, 3)
    two.load(one.state())
    second.load_state_dict(first.state_dict())
    run(one, first, 2)
    run(two, second, 2)
    assert all(torch.equal(a, b) for a, b in zip(weights(first).values(), weights(second).values(), strict=True))
    with pytest.raises(CorruptArtifact, match="expected"):
        two.load({"updates": 0})


def test_clipping_bounds_the_gradient():
    model = Tiny()
    optim = Optimizer(model, Rates(), Schedule(), 10, clip=1.0)
    for parameter in optim.parameters:
        parameter.grad = torch.full_like(parameter, 5.0)
    norm = optim.norm()
    optim.step(0, norm)
    assert norm > 1 and optim.norm() == pytest.approx(1.0, rel=1e-4)
