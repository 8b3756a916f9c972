"""Advantage estimators against their definitions."""

from __future__ import annotations

import pytest
import torch

from tutelage.align.advantage import KLControl, generalised, grouped, per_token, token_rewards, whitened


def test_rewards_fall_on_last_tokens():
    found = token_rewards(torch.tensor([1.0, -2.0]), torch.tensor([0.1, 0.2, 0.3]), [2, 1], beta=0.5)
    assert found.tolist() == pytest.approx([-0.05, 0.9, -2.15])


@pytest.mark.parametrize("trace", [0.0, 0.5, 0.95, 1.0])
def test_generalised_is_the_sum_of_surprises(trace):
    random = torch.Generator().manual_seed(0)
    lengths = [3, 1, 5]
    rewards, values = torch.randn(9, generator=random), torch.randn(9, generator=random)
    found = generalised(rewards, values, lengths, discount=0.9, trace=trace)
    start = 0
    for length in lengths:
        r, v = rewards[start : start + length], torch.cat([values[start : start + length], torch.zeros(1)])
        surprise = r + 0.9 * v[1:] - v[:-1]
        for place in range(length):
            expected = sum((0.9 * trace) ** k * surprise[place + k] for k in range(length - place))
            assert float(found.advantage[start + place]) == pytest.approx(float(expected), abs=1e-5)
        start += length
    torch.testing.assert_close(found.returns, found.advantage + values)


def test_groups_without_difference_say_nothing_and_are_counted():
    scores = torch.tensor([1.0, 1.0, 1.0, 0.0, 1.0, 2.0])
    found = grouped(scores, 3)
    assert found.silent == 1
    assert found.advantage[:3].tolist() == [0.0, 0.0, 0.0]
    assert found.advantage[3:].tolist() == pytest.approx([-1.2247, 0.0, 1.2247], abs=1e-3)
    assert grouped(scores, 3, scale=False).advantage[3:].tolist() == pytest.approx([-1.0, 0.0, 1.0])


def test_small_helpers():
    assert per_token(torch.tensor([1.0, 2.0]), [1, 2]).tolist() == [1.0, 2.0, 2.0]
    assert whitened(torch.tensor([1.0, 3.0])).tolist() == pytest.approx([-1.0, 1.0])
    assert whitened(torch.tensor([2.0, 2.0])).tolist() == [0.0, 0.0]


def test_the_weight_follows_its_target():
    control = KLControl(0.1, target=0.05)
    assert control.update(0.2) > 0.1
    assert control.update(0.0) < control.update(0.05) + 1e-9
    assert KLControl(0.1, target=0.0).update(9.0) == 0.1
    control = KLControl(0.1, target=0.05)
    for _ in range(200):
        control.update(1.0)
    assert control.beta == 10.0
