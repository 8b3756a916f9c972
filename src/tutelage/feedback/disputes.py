"""How far the answers to one task lie apart: which tasks to look at first, and which to have adjudicated."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from tutelage.feedback import agreement, votes
from tutelage.feedback.figures import Read
from tutelage.store.answers import WHOLE, Annotation


@dataclass(frozen=True)
class Dispute:
    """How far the answers to one task lie apart, each measure from 0 (all say the same) to 1."""

    task: str
    position: int
    answers: int
    ranks: float | None
    """(1 - mean tau-b) / 2 of the rankings; what cannot be ranked stands last."""
    scores: float | None
    """Variance of the scores, as a share of the largest one the scale allows: mean over criteria and candidates."""
    choices: float | None
    """Entropy of the choices, as a share of that of two equal halves, at most 1: of the question that divides most."""
    spans: float | None
    """1 - F1 of the labelled characters, mean over pairs of people."""

    def by(self, order: str) -> float | None:
        """The measure by this name; `worst` is the largest of them. None where there is none."""
        every = {"ranks": self.ranks, "scores": self.scores, "choices": self.choices, "spans": self.spans}
        return (
            every[order] if order in every else max((each for each in every.values() if each is not None), default=None)
        )

    @property
    def worst(self) -> float:
        """The largest of the measures; 0 where there is none."""
        return self.by("worst") or 0.0


def disputes(words: Read) -> list[Dispute]:
    """Every task that two people answered, in the order of `words`."""
    by_task: dict[str, list[Annotation]] = {}
    for each in words.given:
        by_task.setdefault(each.task, []).append(each)
    return [
        Dispute(
            id, words.tasks[id].position, len(given), _ranks(given, len(words.tasks[id].candidates)),
            _scores(given, words.questions), _choices(given, words.questions), _spans(given),
        )
        for id, given in by_task.items()
        if len(given) > 1
    ]  # fmt: skip


def _ranks(given: Sequence[Annotation], candidates: int) -> float | None:
    rows = []
    for each in given:
        if each.tiers or each.unrankable:
            row = votes.ranks(each, candidates, {}) if each.tiers else np.full(candidates, math.nan)
            rows.append(np.where(np.isnan(row), len(each.tiers), row))
    if len(rows) < 2:
        return None
    table = np.array(rows)
    if (table == table[0]).all():
        return 0.0
    tau = agreement.mean_tau([table]).value
    return None if tau is None else (1 - tau) / 2


def _scores(given: Sequence[Annotation], questions: Mapping[str, Mapping[str, Any]]) -> float | None:
    said: dict[tuple[str, int], list[float]] = {}
    for each in given:
        for value in each.values:
            question = questions.get(value.question, {})
            if question.get("kind") == "scale" and value.number is not None:
                low, high = question["scale"]
                said.setdefault((value.question, value.candidate), []).append((value.number - low) / (high - low))
    spreads = [4 * float(np.var(values)) for values in said.values() if len(values) > 1]
    return min(1.0, sum(spreads) / len(spreads)) if spreads else None


def _choices(given: Sequence[Annotation], questions: Mapping[str, Mapping[str, Any]]) -> float | None:
    chosen: dict[tuple[str, int], list[Any]] = {}
    for each in given:
        for value in each.values:
            kind = questions.get(value.question, {}).get("kind")
            if kind == "boolean":
                chosen.setdefault((value.question, value.candidate), []).append(str(value.number))
            elif kind in ("choice", "choices", "tags"):
                chosen.setdefault((value.question, value.candidate), []).append(value.value)
    rejected = [str(each.value("all_bad") is not None) for each in given]
    if "True" in rejected:
        chosen[("all_bad", WHOLE)] = rejected
    shares = [_divided(said) for said in chosen.values() if len(said) > 1]
    return max(shares, default=None)


def _divided(said: Sequence[Any]) -> float:
    if all(isinstance(each, str) for each in said):
        return _entropy(list(Counter(said).values()))
    named = Counter(str(one) for each in said for one in (each if isinstance(each, list) else [each]))
    return max((_entropy([many, len(said) - many]) for many in named.values()), default=0.0)


def _entropy(counts: Sequence[int]) -> float:
    """Entropy in bits, at most 1: people who give three different answers differ no less than those who give two."""
    total = sum(counts)
    return min(1.0, sum(many / total * math.log2(total / many) for many in counts if many))


def _spans(given: Sequence[Annotation]) -> float | None:
    marked = [
        {(where, no, label, at) for where, no, start, stop, label in each.spans for at in range(start, stop)}
        for each in given
    ]
    if not any(marked):
        return None
    far = [
        1 - 2 * len(one & other) / (len(one) + len(other)) if one or other else 0.0
        for one, other in combinations(marked, 2)
    ]
    return sum(far) / len(far)
