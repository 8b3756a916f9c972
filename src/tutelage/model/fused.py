"""What lies between the products of a block, in C and in one pass each: norm and gate, with their gradients.

Float32 in; `rounded` hands on bfloat16, which the products of a bf16 step read. `kernels.py` asks `usable` and else
computes the same in torch.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from tutelage.model import library


def usable(x: Tensor, weight: Tensor | None = None) -> bool:
    """Whether a tensor can be read here: on a CPU, in one piece, of numbers that C knows; beside a weight float32."""
    known = x.dtype in (torch.float32, torch.bfloat16) if weight is None else x.dtype == weight.dtype == torch.float32
    whole = x.is_contiguous() and (weight is None or weight.is_contiguous())
    usual = x.device.type == "cpu" and torch.get_default_dtype() == torch.float32
    return known and whole and usual and library.load() is not None


def norm(x: Tensor, weight: Tensor, eps: float, rounded: bool) -> tuple[Tensor, Tensor]:
    """x / rms(x) * weight over the last dimension, and 1 / rms(x) [rows] for the gradient."""
    rows, width = x.numel() // x.shape[-1], x.shape[-1]
    out = torch.empty(x.shape, dtype=torch.bfloat16 if rounded else torch.float32)
    scales = torch.empty(rows)
    _call("norm_forward", rounded, rows, width, x, weight, ctypes.c_float(eps), out, scales)
    return out, scales


def norm_back(grad: Tensor, x: Tensor, weight: Tensor, scales: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of `norm` in x and in the weight."""
    grad, width = grad.contiguous(), x.shape[-1]
    x_grad, parts = torch.empty_like(x), torch.zeros(torch.get_num_threads(), width)
    rounded = grad.dtype == torch.bfloat16
    _call("norm_backward", rounded, len(scales), width, grad, x, weight, scales, x_grad, parts)
    return x_grad, parts.sum(0)


def gate(gate_up: Tensor) -> Tensor:
    """silu(gate) * up of [gate | up] in the last dimension."""
    inner = gate_up.shape[-1] // 2
    out = gate_up.new_empty(*gate_up.shape[:-1], inner)
    _call("gate_forward", gate_up.dtype == torch.bfloat16, out.numel() // inner, inner, gate_up, out)
    return out


def gate_back(gate_up: Tensor, grad: Tensor) -> Tensor:
    """The gradient of `gate`."""
    out, inner = torch.empty_like(gate_up), gate_up.shape[-1] // 2
    grad = grad.contiguous()
    _call("gate_backward", gate_up.dtype == torch.bfloat16, grad.numel() // inner, inner, gate_up, grad, out)
    return out


def _call(name: str, rounded: bool, rows: int, width: int, *rest: Any) -> None:
    given = [ctypes.c_void_p(each.data_ptr()) if isinstance(each, Tensor) else each for each in rest]
    threads = ctypes.c_int(torch.get_num_threads())
    getattr(library.load(), name)(ctypes.c_int(rounded), ctypes.c_int64(rows), ctypes.c_int(width), *given, threads)
