"""What people together say, and how each of them errs.

Dawid and Skene 1979, Applied Statistics 28: each person has a table of confusions, each thing one true class;
expectation-maximisation finds both.

Votes are one sparse table [things, people x classes], and both steps are its product with a small dense one, so that
an iteration reads every vote twice: 12 bytes for the vote and its `classes` probabilities, 8 bytes each. A million
votes of 5 classes on 200,000 things are 12 MB + 8 MB twice a step; memory that gives 10 GB/s sets a floor of 4 ms a
step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from tutelage.core.errors import DataError

Floats = NDArray[np.float64]
Codes = NDArray[np.int64]

TINY = 1e-10


@dataclass(frozen=True)
class Crowd:
    """Votes (thing, person, class said), numbered from 0, as a sparse table and its transpose."""

    table: sparse.csr_matrix
    """[things, people x classes], the weight of each vote."""
    turned: sparse.csr_matrix
    things: int
    people: int
    classes: int
    votes: int

    @classmethod
    def of(cls, things: Codes, people: Codes, said: Codes, classes: int, weights: Floats | None = None) -> Crowd:
        """Raises DataError for votes that cannot be: none at all, a class that there is not, lengths that differ."""
        if not len(things) == len(people) == len(said) or (weights is not None and len(weights) != len(said)):
            raise DataError("things, people, classes and weights of votes must be of one length")
        if not len(things):
            raise DataError("there is no vote")
        if said.min() < 0 or said.max() >= classes or things.min() < 0 or people.min() < 0:
            raise DataError(f"votes name things and people from 0 and one of {classes} classes", key="said")
        many, crowd = int(things.max()) + 1, int(people.max()) + 1
        weight = np.ones(len(said)) if weights is None else weights.astype(float)
        table = sparse.csr_matrix((weight, (things, people * classes + said)), shape=(many, crowd * classes))
        return cls(table, table.T.tocsr(), many, crowd, classes, len(said))

    def shares(self) -> Floats:
        """How the votes on each thing are spread [things, classes]; even where there is none."""
        onto = np.tile(np.eye(self.classes), (self.people, 1))
        found = np.asarray(self.table @ onto)
        found[found.sum(axis=1) == 0] = 1.0
        return np.asarray(found / found.sum(axis=1, keepdims=True))

    def evidence(self, logs: Floats) -> Floats:
        """Sum over the votes on each thing [things, classes] of `logs` [people, said, true]."""
        return np.asarray(self.table @ logs.reshape(self.people * self.classes, -1))

    def counts(self, posterior: Floats) -> Floats:
        """How often each person said what where what was true [people, said, true], in expectation."""
        return np.asarray(self.turned @ posterior).reshape(self.people, self.classes, -1)


@dataclass(frozen=True)
class Consensus:
    """Probability of each class for each thing [things, classes], and each person's table [people, true, said]."""

    posteriors: Floats
    priors: Floats
    confusions: Floats
    steps: int
    log_likelihood: float = float("nan")


def dawid_skene(
    things: Codes,
    people: Codes,
    said: Codes,
    classes: int,
    *,
    weights: Floats | None = None,
    prior: float = 0.0,
    steps: int = 100,
    tolerance: float = 1e-5,
) -> Consensus:
    """Fit the model to votes (thing, person, class said), all numbered from 0.

    `prior` adds that many votes of the average person to each person's table, which keeps people with few votes from
    being taken for oracles; 0 is the model as published. `weights` counts a vote for less (0 = not at all). It ends
    when a step adds less than `tolerance` to the log-likelihood of a vote.
    """
    crowd = Crowd.of(things, people, said, classes, weights)
    posterior = crowd.shares()
    before, step, now = -np.inf, 0, float("nan")
    priors = posterior.mean(axis=0)
    table = _confusions(crowd, posterior, prior)
    while step < steps:
        step += 1
        logs = crowd.evidence(np.log(np.clip(table, TINY, None)).transpose(0, 2, 1))
        logs += np.log(np.clip(priors, TINY, None))
        posterior, now = normalised(logs)
        priors = posterior.mean(axis=0)
        table = _confusions(crowd, posterior, prior)
        if (now - before) / crowd.votes < tolerance:
            break
        before = now
    return Consensus(posterior, priors, table, step, now)


def normalised(logs: Floats) -> tuple[Floats, float]:
    """Rows of log-probabilities as probabilities (in place), and the sum of the logs of what they summed to."""
    top = logs.max(axis=1, keepdims=True)
    logs -= top
    np.exp(logs, out=logs)
    total = logs.sum(axis=1, keepdims=True)
    logs /= total
    return logs, float(top.sum() + np.log(total).sum())


def _confusions(crowd: Crowd, posterior: Floats, prior: float) -> Floats:
    counts = crowd.counts(posterior).transpose(0, 2, 1)
    if prior > 0:
        pooled = counts.sum(axis=0) + TINY
        counts = counts + prior * pooled / pooled.sum(axis=1, keepdims=True)
    below = counts.sum(axis=2, keepdims=True)
    return np.asarray(np.divide(counts, below, out=np.full_like(counts, 1 / crowd.classes), where=below > 0))


def soft_labels(posteriors: Floats, names: Sequence[str]) -> list[tuple[Mapping[str, float], float]]:
    """For each thing the probability of each class and a training weight: 1 where all is certain, 0 where nothing is
    (one minus the entropy over its largest). NaN rows, things that nobody reliable spoke of, have weight 0."""
    entropy = -(posteriors * np.log(np.clip(posteriors, TINY, None))).sum(axis=1) / np.log(max(2, len(names)))
    certain = np.nan_to_num(np.clip(1 - entropy, 0, 1), nan=0.0)
    return [
        ({name: round(float(chance), 6) for name, chance in zip(names, row, strict=True)}, round(float(weight), 6))
        for row, weight in zip(posteriors, certain, strict=True)
    ]
