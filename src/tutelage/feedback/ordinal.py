"""Scores on a scale: how good each thing is, how strict and how sure each person.

The graded response model (Samejima 1969, Psychometrika monograph 17) with the raters in the place of test items, as in
generalised many-facet Rasch models (Linacre 1989; Uto and Ueno 2020, Behaviormetrika 47): a thing has a quality z,
drawn from a standard normal; a person says at most step k with probability logistic(a (t_k + s - z)), where the
thresholds t are everybody's, the strictness s shifts them, and the sureness a says how closely quality is followed.

Qualities are integrated out over a grid (Bock and Aitkin 1981, Psychometrika 46), so that people's numbers do not
suffer from things with few scores; people's have normal priors. Both steps of an iteration are products with the
sparse table of votes, as in consensus.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse, stats
from scipy.optimize import minimize
from scipy.special import expit

from tutelage.core.errors import DataError
from tutelage.feedback.consensus import TINY, Codes, Crowd, Floats, normalised

NODES = 31
"""Points of the grid on which qualities are integrated."""
REACH = 4.0
"""How many standard deviations of quality the grid reaches to either side."""
DENSE = 4_000
"""Numbers fitted up to which standard errors are computed."""


@dataclass(frozen=True)
class Scored:
    """What scores say of things and people.

    Attributes:
        quality: mean of each thing's quality, given its scores [things]; its prior is a standard normal.
        quality_errors: the standard deviation of that.
        posteriors: chance of each step for each thing from a person of average strictness and sureness [things, steps].
        thresholds: where the steps meet, in units of quality [steps - 1].
        thresholds_errors: their standard errors.
        strictness: how far a person's thresholds lie above the crowd's [people], mean 0.
        strictness_errors: their standard errors.
        sureness: log of how closely a person follows quality, beside the crowd's [people], mean 0.
        sureness_errors: their standard errors.
        discrimination: how closely the average person follows quality (the steepness a).
        log_likelihood: of the scores, qualities integrated out, without priors.
    """

    quality: Floats
    quality_errors: Floats
    posteriors: Floats
    thresholds: Floats
    thresholds_errors: Floats
    strictness: Floats
    strictness_errors: Floats
    sureness: Floats
    sureness_errors: Floats
    discrimination: float
    log_likelihood: float
    steps: int


def graded_response(
    things: Codes,
    people: Codes,
    scored: Codes,
    steps: int,
    *,
    weights: Floats | None = None,
    strictness: float = 1.0,
    sureness: float = 0.5,
    iterations: int = 100,
    tolerance: float = 1e-7,
) -> Scored:
    """Fit the model to scores (thing, person, step from 0), all numbered from 0.

    `strictness` and `sureness` are the standard deviations of the priors on people's numbers. It ends when an iteration
    adds less than `tolerance` to the log-posterior of a score. Raises DataError where no step but one was ever given.
    """
    crowd = Crowd.of(things, people, scored, steps, weights)
    if steps < 2 or len(np.unique(scored)) < 2:
        raise DataError("every score is the same: nothing can be told of things or people")
    nodes = np.linspace(-REACH, REACH, NODES)
    prior = stats.norm.logpdf(nodes)
    prior -= np.log(np.exp(prior).sum())
    shares = np.bincount(scored, crowd.table.data if weights is None else weights, minlength=steps) + 0.5
    below = np.cumsum(shares)[:-1] / shares.sum()
    start = np.log(below / (1 - below))  # thresholds as if nobody differed
    model = _Model(crowd.people, steps, nodes, strictness, sureness)
    numbers = np.concatenate([[start[0]], np.log(np.diff(start) + 1e-3), [0.0], np.zeros(2 * crowd.people)])
    before, step, posterior, value = -np.inf, 0, np.zeros((0, 0)), float("nan")
    while step < iterations:
        step += 1
        logs = crowd.evidence(model.logs(numbers)[0])
        logs += prior
        posterior, value = normalised(logs)
        reached = value - model.penalty(numbers)[0]
        if (reached - before) / crowd.votes < tolerance:
            break
        before = reached
        counts = crowd.counts(posterior)
        found = minimize(
            lambda at, seen=counts: model.lost(at, seen), numbers, jac=True, method="L-BFGS-B", options={"maxiter": 12}
        )
        numbers = found.x
    return _told(model, crowd, numbers, posterior, value, step)


@dataclass(frozen=True)
class _Model:
    """Numbers in one row: first threshold, logs of the gaps between thresholds, log of the average steepness, and for
    each person strictness and log of sureness."""

    people: int
    steps: int
    nodes: Floats
    strict_sd: float
    sure_sd: float

    def parts(self, numbers: Floats) -> tuple[Floats, float, Floats, Floats]:
        gaps = np.exp(numbers[1 : self.steps - 1])
        thresholds = numbers[0] + np.concatenate([[0.0], np.cumsum(gaps)])
        strict, sure = numbers[self.steps :].reshape(2, self.people)
        return thresholds, float(numbers[self.steps - 1]), strict, sure

    def logs(self, numbers: Floats) -> tuple[Floats, Floats, Floats, Floats]:
        """Log-chance of each step [people, steps, nodes], and its slopes by the logit below and above the step."""
        thresholds, steep, strict, sure = self.parts(numbers)
        distance = thresholds[None, :, None] + strict[:, None, None] - self.nodes[None, None, :]
        logits = np.exp(steep + sure)[:, None, None] * distance
        shape = (self.people, 1, len(self.nodes))
        cumulated = np.concatenate([np.zeros(shape), expit(logits), np.ones(shape)], axis=1)
        density = np.concatenate([np.zeros(shape), expit(logits) * expit(-logits), np.zeros(shape)], axis=1)
        chance = np.clip(np.diff(cumulated, axis=1), TINY, None)
        return np.log(chance), density[:, 1:] / chance, -density[:, :-1] / chance, distance

    def slopes(self, numbers: Floats) -> tuple[Floats, Floats]:
        """Derivatives of each log-chance [people, steps, nodes]: by its person's two numbers [2, ...], and by the
        thresholds' and steepness' numbers [steps, ...]."""
        _, upper, lower, distance = self.logs(numbers)
        _, steep, _, sure = self.parts(numbers)
        scale = np.exp(steep + sure)[:, None, None]
        pad = np.zeros((self.people, 1, len(self.nodes)))
        above, under = np.concatenate([distance, pad], axis=1), np.concatenate([pad, distance], axis=1)
        strict = scale * (upper + lower)
        sureness = scale * (upper * above + lower * under)
        shared = np.zeros((self.steps, *upper.shape))
        gaps = np.exp(numbers[1 : self.steps - 1])
        shared[0] = strict
        for at, gap in enumerate(gaps, 1):  # a gap moves every threshold from its own on
            shared[at, :, at:] += scale * upper[:, at:] * gap
            shared[at, :, at + 1 :] += scale * lower[:, at + 1 :] * gap
        shared[-1] = sureness
        return np.stack([strict, sureness]), shared

    def penalty(self, numbers: Floats) -> tuple[float, Floats]:
        _, _, strict, sure = self.parts(numbers)
        slope = np.zeros_like(numbers)
        slope[self.steps : self.steps + self.people] = strict / self.strict_sd**2
        slope[self.steps + self.people :] = sure / self.sure_sd**2
        return float((strict**2).sum() / self.strict_sd**2 + (sure**2).sum() / self.sure_sd**2) / 2, slope

    def lost(self, numbers: Floats, counts: Floats) -> tuple[float, Floats]:
        """What the M step makes small, and its gradient; `counts` [people, steps, nodes] are expected."""
        logs = self.logs(numbers)[0]
        own, shared = self.slopes(numbers)
        penalty, slope = self.penalty(numbers)
        gradient = np.concatenate([
            np.einsum("apkq,pkq->a", shared, counts), np.einsum("apkq,pkq->ap", own, counts).reshape(-1)
        ])  # fmt: skip
        return penalty - float((counts * logs).sum()), slope - gradient


def _told(model: _Model, crowd: Crowd, numbers: Floats, posterior: Floats, likelihood: float, steps: int) -> Scored:
    thresholds, steep, strict, sure = model.parts(numbers)
    quality = posterior @ model.nodes
    errors = np.sqrt(np.clip(posterior @ model.nodes**2 - quality**2, 0, None))
    lean, keen = float(strict.mean()), float(sure.mean())
    average = np.concatenate([numbers[: model.steps], [lean], [keen]])
    typical = _Model(1, model.steps, model.nodes, 1.0, 1.0)
    chances = np.exp(typical.logs(average)[0][0])
    many = len(numbers)
    spread = np.full((many, many), np.nan)
    if many <= DENSE:
        spread = np.linalg.inv(_information(model, crowd, numbers, posterior))
    turn = np.zeros((model.steps - 1 + 2 * model.people, many))  # to thresholds, and to people beside their mean
    turn[: model.steps - 1, 0] = 1
    for at, gap in enumerate(np.exp(numbers[1 : model.steps - 1]), 1):
        turn[at : model.steps - 1, at] = gap
    turn[: model.steps - 1, model.steps : model.steps + model.people] = 1 / model.people
    centre = np.eye(model.people) - 1 / model.people
    first = model.steps - 1
    turn[first : first + model.people, model.steps : model.steps + model.people] = centre
    turn[first + model.people :, model.steps + model.people :] = centre
    deviations = np.sqrt(np.clip(np.einsum("ij,jk,ik->i", turn, spread, turn, optimize=True), 0, None))
    return Scored(
        quality=quality,
        quality_errors=errors,
        posteriors=posterior @ chances.T,
        thresholds=thresholds + lean,
        thresholds_errors=deviations[:first],
        strictness=strict - lean,
        strictness_errors=deviations[first : first + model.people],
        sureness=sure - keen,
        sureness_errors=deviations[first + model.people :],
        discrimination=float(np.exp(steep + keen)),
        log_likelihood=likelihood,
        steps=steps,
    )


def _information(model: _Model, crowd: Crowd, numbers: Floats, posterior: Floats) -> NDArray[np.float64]:
    """Precision of the numbers: products of the things' slopes, with qualities integrated out (Louis 1982; Berndt,
    Hall, Hall and Hausman 1974), plus the priors'."""
    own, shared = model.slopes(numbers)
    votes = crowd.table.tocoo()
    person, said = votes.col // model.steps, votes.col % model.steps
    at = posterior[votes.row]
    columns: list[Codes] = []
    values: list[Floats] = []
    for number in range(model.steps):
        columns.append(np.full(len(person), number))
        values.append(np.einsum("nq,nq->n", shared[number, person, said], at) * votes.data)
    for number in range(2):
        columns.append(model.steps + number * model.people + person)
        values.append(np.einsum("nq,nq->n", own[number, person, said], at) * votes.data)
    rows = np.tile(votes.row, len(columns))
    slopes = sparse.csr_matrix(
        (np.concatenate(values), (rows, np.concatenate(columns))), shape=(crowd.things, len(numbers))
    )
    whole = np.asarray((slopes.T @ slopes).toarray())
    held = np.zeros(len(numbers))
    held[model.steps : model.steps + model.people] = model.strict_sd**-2
    held[model.steps + model.people :] = model.sure_sd**-2
    held[: model.steps] = 1e-6
    return whole + np.diag(held)
