"""Norm and gate in C against the same formulas in double precision, value and gradient."""

from __future__ import annotations

import math
import os
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tutelage.model import fused, kernels, library

if library.load() is None:
    assert os.environ.get("CI") != "true" or os.environ.get("TUTELAGE_NATIVE") == "off", "CI needs a C compiler"
    pytest.skip("no C compiler", allow_module_level=True)


def norm(x: Tensor, weight: Tensor) -> Tensor:
    return x * (x.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * weight


def gate(x: Tensor) -> Tensor:
    left, right = x.chunk(2, -1)
    return F.silu(left) * right


def values_of(function: Callable[..., Tensor], grad: Tensor, *given: Tensor) -> list[Tensor]:
    inputs = [each.detach().clone().requires_grad_() for each in given]
    result = function(*inputs)
    return [result.detach(), *torch.autograd.grad(result, inputs, grad.to(result.dtype))]


@pytest.mark.parametrize("rounded", [False, True])
@given(st.integers(1, 9), st.integers(1, 70), st.integers(0, 2**32))
def test_the_norm(rounded: bool, rows: int, width: int, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    x, grad = torch.randn(2, rows, width, generator=draw).mul_(3).unbind(0)
    weight = torch.randn(width, generator=draw)
    grad = grad.bfloat16().float() if rounded else grad
    found = values_of(lambda x, w: kernels.rms_norm(x, w, 1e-5, rounded), grad, x, weight)
    wanted = values_of(norm, grad.double(), x.double(), weight.double())
    assert found[0].dtype == (torch.bfloat16 if rounded else torch.float32)
    torch.testing.assert_close(found[0].double(), wanted[0], rtol=2**-8 if rounded else 1e-5, atol=1e-6)
    for one, other in zip(found[1:], wanted[1:], strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rounded", [False, True])
@given(st.integers(1, 9), st.integers(1, 70), st.integers(0, 2**32))
def test_the_gate(rounded: bool, rows: int, inner: int, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    x, grad = torch.randn(rows, 2 * inner, generator=draw) * 4, torch.randn(rows, inner, generator=draw)
    if rounded:
        x, grad = x.bfloat16(), grad.bfloat16()
    found = values_of(kernels.swiglu, grad, x)
    wanted = values_of(gate, grad.double(), x.double())
    assert all(each.dtype == x.dtype for each in found)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=2**-8 if rounded else 1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_gates_far_from_zero_are_open_or_shut(kind: torch.dtype) -> None:
    gates = torch.tensor([-1e6, -1000.0, -100.0, -88.5, 88.5, 100.0, 1000.0], dtype=kind)
    x = torch.cat([gates, torch.ones(7, dtype=kind)])[None]
    found, gradient = values_of(kernels.swiglu, torch.ones(1, 7), x)
    assert found[0, :4].abs().max() < 1e-30 and torch.equal(found[0, 4:], gates[4:])
    assert gradient.isfinite().all()


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("rounded", [False, True])
def test_what_is_not_finite_stays_so(value: float, rounded: bool) -> None:
    x = torch.ones(3, 20)
    x[1, 18] = value
    wrong = kernels.rms_norm(x, torch.ones(20), 1e-6, rounded)
    assert not wrong[1].isfinite().all() and wrong[0].isfinite().all()
    pair = x.bfloat16() if rounded else x
    assert not kernels.swiglu(pair)[1].isfinite().all()
    assert not values_of(kernels.swiglu, torch.full((3, 10), value), torch.ones(3, 20))[1].isfinite().any()


def test_rounding_is_to_the_nearest_even() -> None:
    x = torch.cat([torch.linspace(-3, 3, 9999), torch.tensor([1 + 2**-8, 1 + 3 * 2**-8])])
    weight = torch.ones(1)
    exact = kernels.rms_norm(x[:, None], weight, 1e-6)
    assert torch.equal(kernels.rms_norm(x[:, None], weight, 1e-6, True), exact.bfloat16())


def test_what_c_does_not_know_goes_through_torch() -> None:
    assert fused.usable(torch.ones(2, 4))
    assert not fused.usable(torch.ones(2, 4).double())
    assert not fused.usable(torch.ones(4, 2).t())
    strided = torch.randn(4, 6).t()
    torch.testing.assert_close(kernels.rms_norm(strided, torch.ones(4), 1e-5), norm(strided, torch.ones(4)))


def test_threads_change_rounding_of_the_weights_gradient_alone() -> None:
    x, weight, grad = torch.randn(50, 33), torch.randn(33), torch.randn(50, 33)
    threads, found = torch.get_num_threads(), []
    try:
        for number in (1, 2, 2):
            torch.set_num_threads(number)
            found.append(values_of(lambda x, w: kernels.rms_norm(x, w, 1e-5), grad, x, weight))
    finally:
        torch.set_num_threads(threads)
    one, two, again = found
    assert all(torch.equal(left, right) for left, right in zip(two, again, strict=True))
    assert torch.equal(one[0], two[0]) and torch.equal(one[1], two[1])
    torch.testing.assert_close(one[2], two[2], rtol=1e-5, atol=1e-5)
