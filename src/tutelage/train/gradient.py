"""The gradient of one step: the same however the step is cut into micro-batches, packed, or spread over processes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import nn

from tutelage.train.batch import Batch
from tutelage.train.device import rank, ranks, sum_over_ranks
from tutelage.train.objectives import Objective
from tutelage.train.parallel import is_divided

B = TypeVar("B", bound=Batch)


def counted(batches: Sequence[Batch]) -> dict[str, float]:
    """What a step's sums will be divided by, per term: the counts of all its micro-batches."""
    counts: dict[str, float] = {}
    for batch in batches:
        for name, count in batch.counts.items():
            counts[name] = counts.get(name, 0.0) + count
    return counts


def backward(
    model: Any,
    objective: Objective[B],
    batches: Sequence[B],
    counts: Mapping[str, float],
    parameters: Sequence[nn.Parameter],
) -> tuple[dict[str, float], dict[str, tuple[float, float]]]:
    """Backpropagate a whole step; every rank ends with the same gradients in `parameters`.

    Of R ranks, rank r takes the micro-batches r, r + R, ... A rank that has none left goes through the first one and
    counts it as nothing, so that all ranks meet as often, under the same names.

    Args:
        batches: all micro-batches of the step, the same list on every rank.
        counts: what `counted` says of them.

    Returns:
        The sums of the terms, and (sum, count) of the metrics, by name, over all micro-batches of all ranks.
    """
    totals: dict[tuple[str, str], float] = {}
    for index in range(rank(), math.ceil(len(batches) / ranks()) * ranks(), ranks()):
        share = float(index < len(batches))
        found = objective(model, batches[index if share else 0])
        parts = [
            found.terms[name] * (share * weight / counts[name])
            for name, weight in objective.weights.items()
            if weight and name in found.terms and counts.get(name)
        ]
        if parts and (loss := torch.stack(parts).sum()).requires_grad:
            loss.backward()  # type: ignore[no-untyped-call]
        measured = {("term", name): float(term.detach()) for name, term in found.terms.items()}
        for name, (value, count) in found.metrics.items():
            measured |= {("value", name): value, ("count", name): count}
        for key, number in measured.items():
            totals[key] = totals.get(key, 0.0) + (number if share else 0.0)
    if ranks() > 1:
        for parameter in parameters:
            if is_divided(parameter):  # summed in the backward
                continue
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            sum_over_ranks(parameter.grad)
        keys = sorted(totals)
        tensor = torch.tensor([totals[key] for key in keys], dtype=torch.float64, device=parameters[0].device)
        sum_over_ranks(tensor)
        totals = dict(zip(keys, tensor.tolist(), strict=True))
    sums = {name: total for (kind, name), total in totals.items() if kind == "term"}
    metrics = {name: (totals["value", name], totals["count", name]) for kind, name in totals if kind == "value"}
    return sums, metrics
