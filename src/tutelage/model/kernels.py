"""The formulas of a block with their gradients written by hand: the same mathematics in far fewer passes over memory.

On a CPU a narrow model spends its time between the matrix products; autograd's own backward of a norm alone costs a
dozen passes. `attend_plain` is attention as one would write it: the reference of the tests, and the path of a GPU.

Shapes: n tokens (flat), H heads, K key-value heads, D head dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from tutelage.model import fused
from tutelage.model.cache import Extended, Group, Written


def full_width() -> None:
    """Let float32 products use AVX-512 where MKL, made for Intel's processors, stays at half of it.

    Told that products may be rounded, torch asks oneDNN instead, which rounds only where there is AMX (here left alone)
    and else multiplies in float32 at the processor's full width: twice the rate from some rows on, the same digits.
    """
    if torch.backends.cpu.get_cpu_capability() == "AVX512" and not torch.cpu._is_amx_tile_supported():
        torch.set_float32_matmul_precision("medium")


class _RMSNorm(torch.autograd.Function):
    """y = x / rms(x) * weight. Keeps only x and 1/rms; autograd's own backward makes a dozen passes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, rounded: bool) -> Tensor:
        result, scale = _norm(x, weight, eps, rounded)
        ctx.save_for_backward(x, weight, scale)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        x, weight, scale = ctx.saved_tensors
        width = x.shape[-1]
        if fused.usable(x, weight):
            return *fused.norm_back(grads[0], x, weight, scale), None, None
        product = (grads[0] * x).reshape(-1, width)
        rows = scale.view(-1)
        weight_grad = rows @ product if ctx.needs_input_grad[1] else None
        along = (product @ weight).mul_(rows**3).div_(-width)
        grad = (grads[0] * weight).mul_(scale)
        return grad.addcmul_(x, along.view(scale.shape)), weight_grad, None, None


def _inverse_rms(x: Tensor, eps: float) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()


def _norm(x: Tensor, weight: Tensor, eps: float, rounded: bool) -> tuple[Tensor, Tensor]:
    """The norm and 1 / rms(x), [rows] from C and [.., 1] from torch."""
    if fused.usable(x, weight):
        return fused.norm(x, weight, eps, rounded)
    scale = _inverse_rms(x, eps)
    result = (x * scale).mul_(weight)
    return result.bfloat16() if rounded else result, scale


def rms_norm(x: Tensor, weight: Tensor, eps: float, rounded: bool = False) -> Tensor:
    """Root-mean-square norm over the last dimension (Zhang and Sennrich, 2019); `rounded`: handed on as bfloat16."""
    x = x.contiguous()  # queries and keys lie between each other; one copy costs less than several strided passes
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        return _RMSNorm.apply(x, weight, eps, rounded)  # type: ignore[no-untyped-call, no-any-return]
    return _norm(x, weight, eps, rounded)[0]


class _SwiGLU(torch.autograd.Function):
    """silu(gate) * up of [gate | up] in the last dimension; gradients are written straight into their halves."""

    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        ctx.save_for_backward(gate_up)
        return _gated(gate_up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (gate_up,) = ctx.saved_tensors
        if fused.usable(gate_up):
            return fused.gate_back(gate_up, grads[0])
        gate, up = gate_up.chunk(2, -1)
        result = torch.empty_like(gate_up)
        gate_grad, up_grad = result.chunk(2, -1)
        slope = torch.sigmoid(gate)  # s; silu = gate s; its slope s + silu (1 - s)
        silu = gate * slope
        torch.mul(silu, grads[0], out=up_grad)
        slope.addcmul_(slope, silu, value=-1).add_(silu).mul_(grads[0])
        torch.mul(slope, up, out=gate_grad)
        return result


def swiglu(gate_up: Tensor) -> Tensor:
    """silu(gate) * up (Shazeer, 2020); gate and up are the halves of the last dimension."""
    if torch.is_grad_enabled() and gate_up.requires_grad:
        return _SwiGLU.apply(gate_up)  # type: ignore[no-untyped-call, no-any-return]
    return _gated(gate_up)


def _gated(gate_up: Tensor) -> Tensor:
    if fused.usable(gate_up):
        return fused.gate(gate_up)
    gate, up = gate_up.chunk(2, -1)
    return F.silu(gate).mul_(up)


def turn(x: Tensor, rotation: Tensor) -> Tensor:
    """Rotate neighbouring pairs of the last dimension [.., D] by complex numbers [.., D/2] (Su et al., 2021)."""
    exact = x.float() if x.dtype == torch.bfloat16 else x  # there are no complex numbers of half precision
    pairs = torch.view_as_complex(exact.reshape(*x.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * rotation).flatten(-2).to(x.dtype)


class Places(NamedTuple):
    """What one forward needs to know about its tokens, the same for every layer."""

    groups: tuple[Group, ...]
    rotation: Tensor
    """[longest, D/2] complex: by position within a sequence."""
    by_token: Tensor
    """[n, 1, D/2] complex, where a cache is written."""
    written: Written | None = None
    extended: Extended | None = None


def attend(query: Tensor, key: Tensor, value: Tensor, places: Places) -> Tensor:
    """Causal attention within each sequence: query [n, H, D], key and value [n, K, D], unrotated -> [n, H * D]."""
    longest = max(group.time for group in places.groups)
    if query.device.type == "cpu" and longest <= SHORT:
        return _Attention.apply(query, key, value, places.rotation, places.groups)  # type: ignore[no-untyped-call, no-any-return]
    return attend_plain(query, key, value, places.rotation, places.groups)


SHORT = 512
"""Up to this many tokens score matrices in batched products beat torch's flash kernel on a CPU; they are kept for the
backward, so beyond it memory decides."""


def attend_plain(query: Tensor, key: Tensor, value: Tensor, rotation: Tensor, groups: Sequence[Group]) -> Tensor:
    """`attend` as one would write it: rotation, then torch's attention, group by group. The reference, and GPU path."""
    tokens, heads, width = query.shape
    result = query.new_empty(tokens + 1, heads * width)
    outputs = []
    for group in groups:
        rows = []
        for index, x in enumerate((query, key, value)):
            picked = x if group.gather is None else x[group.gather]
            picked = picked.view(group.rows, group.time, -1, width)
            rows.append(turn(picked, rotation[: group.time, None]) if index < 2 else picked)
        q, k, v = (x.transpose(1, 2) for x in rows)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=heads != key.shape[1])
        outputs.append(mixed.transpose(1, 2).reshape(-1, heads * width))
    if groups[0].scatter is None:
        return outputs[0]
    where = torch.cat([group.scatter for group in groups if group.scatter is not None])
    return result.index_copy(0, where, torch.cat(outputs))[:tokens]


class _Attention(torch.autograd.Function):
    """Rotation and attention with whole score matrices, and their gradient, in batched matrix products.

    In float32, also where products around it are in bf16. Queries go in blocks of `BLOCK` positions, each against the
    keys up to its end: what lies beyond is never computed.
    Heads that share keys are rows of one product, so grouped keys are never repeated, and the sum over the heads that
    share them comes with the product that makes the gradient. Source of the formulas: Dao et al., 2022, appendix B.
    """

    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu", cast_inputs=torch.float32)  # type: ignore[untyped-decorator]
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, rotation: Tensor, groups: tuple[Group, ...]
    ) -> Tensor:
        tokens, heads, width = query.shape
        shared = key.shape[1]
        result = query.new_empty(tokens + 1, heads, width)
        saved = []
        for group in groups:
            turned = rotation[: group.time]
            q = _by_head(query, group, turned * width**-0.5, shared)
            k, v = _by_head(key, group, turned, shared), _by_head(value, group, None, shared)
            mixed = torch.empty_like(q)
            saved += [q, k, v]
            for rows, start, stop in _blocks(group.time, heads // shared):
                weights = torch.bmm(q[:, rows], k[:, :stop].transpose(1, 2))
                weights[:, :, start:].add_(_causal(stop - start, heads // shared, weights))
                torch.softmax(weights, -1, out=weights)
                torch.bmm(weights, v[:, :stop], out=mixed[:, rows])
                saved.append(weights)
            _by_token(mixed, group, None, result)
        ctx.save_for_backward(rotation, *saved)
        ctx.groups, ctx.shape, ctx.shared = groups, query.shape, shared
        return result[:tokens].flatten(1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        rotation, *saved = ctx.saved_tensors
        tokens, heads, width = ctx.shape
        left = iter(saved)
        back = rotation.conj().resolve_conj()
        mixed_grad = grads[0].view(tokens, heads, width)
        query_grad = mixed_grad.new_empty(tokens + 1, heads, width)
        key_grad, value_grad = mixed_grad.new_empty(2, tokens + 1, ctx.shared, width)
        for group in ctx.groups:
            q, k, v = next(left), next(left), next(left)
            grad = _by_head(mixed_grad, group, None, ctx.shared, padding=False)
            q_grad, k_grad, v_grad = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
            for rows, _, stop in _blocks(group.time, heads // ctx.shared):
                weights = next(left)
                v_grad[:, :stop] += torch.bmm(weights.transpose(1, 2), grad[:, rows])
                flow = torch.bmm(grad[:, rows], v[:, :stop].transpose(1, 2))
                torch._softmax_backward_data(flow, weights, -1, flow.dtype, grad_input=flow)
                torch.bmm(flow, k[:, :stop], out=q_grad[:, rows])
                k_grad[:, :stop] += torch.bmm(flow.transpose(1, 2), q[:, rows])
            turned = back[: group.time]
            _by_token(v_grad, group, None, value_grad)
            _by_token(q_grad, group, turned * width**-0.5, query_grad)
            _by_token(k_grad, group, turned, key_grad)
        return query_grad[:tokens], key_grad[:tokens], value_grad[:tokens], None, None


BLOCK = 64
"""Positions of queries that are attended for at a time: fewer save products, more are larger ones."""


def _blocks(time: int, sharing: int) -> list[tuple[slice, int, int]]:
    """(rows of [time * sharing], first position, position past the last) of each block of queries."""
    edges = [*range(0, time, BLOCK), time]
    return [(slice(start * sharing, stop * sharing), start, stop) for start, stop in pairwise(edges)]


def _causal(time: int, sharing: int, like: Tensor) -> Tensor:
    """[time * sharing, time]: 0 where a query may look, else -inf; the heads that share keys lie inside positions."""
    full = torch.full((time, time), -torch.inf, dtype=like.dtype, device=like.device).triu_(1)
    return full if sharing == 1 else full.repeat_interleave(sharing, 0)


def _by_head(x: Tensor, group: Group, rotation: Tensor | None, shared: int, padding: bool = True) -> Tensor:
    """[n, heads, D] -> [rows * shared, time * heads / shared, D], rotated by [time, D/2] on the way."""
    width = x.shape[-1]
    if group.gather is not None:
        x = x.index_select(0, group.gather)
        if not padding and group.valid is not None:
            x = x.mul_(group.valid[:, None, None])
    x = x.view(group.rows, group.time, shared, -1, width).transpose(1, 2)
    if rotation is None:
        return x.reshape(group.rows * shared, -1, width)
    result = x.new_empty(x.shape)
    torch.mul(_pairs(x), rotation[:, None], out=_pairs(result))
    return result.view(group.rows * shared, -1, width)


def _by_token(x: Tensor, group: Group, rotation: Tensor | None, out: Tensor) -> None:
    """The way back: rotate, and put each row where its token stands in `out` [n + 1, heads, D]."""
    heads, width = out.shape[1:]
    x = x.view(group.rows, -1, group.time, heads * group.rows // x.shape[0], width)
    whole = group.scatter is None
    flat = out[:-1] if whole else x.new_empty(group.rows * group.time, heads, width)
    target = flat.view(group.rows, group.time, x.shape[1], -1, width).transpose(1, 2)
    if rotation is None:
        target.copy_(x)
    else:
        torch.mul(_pairs(x), rotation[:, None], out=_pairs(target))
    if group.scatter is not None:
        out.index_copy_(0, group.scatter, flat)


def _pairs(x: Tensor) -> Tensor:
    return torch.view_as_complex(x.view(*x.shape[:-1], -1, 2))


def attend_cached(query: Tensor, key: Tensor, value: Tensor, places: Places, layer: int) -> Tensor:
    """`attend` for new tokens behind those in the cache; no gradient. Writes their keys and values first."""
    step = places.extended
    assert step is not None
    shared, width = key.shape[1:]
    step.written.write(layer, turn(key, places.by_token), value)
    query = turn(query, places.by_token).view(step.rows, step.time, shared, -1, width)
    query = query.permute(0, 2, 3, 1, 4).reshape(step.rows * shared, -1, width)
    cache = step.written.cache
    keys, values = (x[layer, : step.rows].flatten(0, 1)[:, : step.span] for x in (cache.keys, cache.values))
    scores = torch.bmm(query, keys.transpose(1, 2)).mul_(width**-0.5)
    scores.view(step.rows, -1, step.time, step.span).add_(step.mask[:, None])
    mixed = torch.bmm(scores.softmax(-1), values).view(step.rows, shared, -1, step.time, width)
    return mixed.permute(0, 3, 1, 2, 4).reshape(step.rows * step.time, -1)
