"""Whom to trust: people who know, and people who guess in their own way (MACE).

Hovy, Berg-Kirkpatrick, Vaswani and Hovy 2013, NAACL, section 3: on each thing a person either knows the true class and
says it, or spams: says a class drawn from a strategy of their own. Fewer numbers for each person than a table of
confusions, so it needs fewer votes, and it sees who does not look without asking who disagrees.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import sparse
from scipy.special import digamma

from tutelage.feedback.consensus import TINY, Codes, Crowd, Floats, normalised

Learn = Callable[[Floats, Floats, tuple[float, ...]], tuple[Floats, Floats, Floats]]
"""Counts of knowing [people] and of guesses [people, classes] as chances to know, to guess, and strategies."""

DENSE = 4_000
"""Numbers fitted up to which standard errors are computed."""
TRIAL_STEPS = 10
"""Steps of a restart before the best of them goes on (short runs of EM: Biernacki, Celeux and Govaert 2003)."""


@dataclass(frozen=True)
class Trusted:
    """What MACE found.

    Attributes:
        posteriors: probability of each class for each thing [things, classes].
        competence: probability that a person knows [people], the mean of its Beta posterior where method is `vb`.
        standard_errors: of the competence [people], classes and guesses not known; NaN where more than `DENSE` numbers
            were fitted.
        strategies: what a person says who does not know [people, classes].
        log_likelihood: of all votes, at what was reached; `vb` raises a bound of it, so it may end a little lower.
        tried: the log-likelihood that each restart had reached when the best was chosen.
    """

    posteriors: Floats
    competence: Floats
    standard_errors: Floats
    strategies: Floats
    log_likelihood: float
    tried: tuple[float, ...]
    steps: int


def mace(
    things: Codes,
    people: Codes,
    said: Codes,
    classes: int,
    *,
    weights: Floats | None = None,
    method: Literal["vb", "em"] = "vb",
    restarts: int = 10,
    steps: int = 300,
    tolerance: float = 1e-8,
    smoothing: float | None = None,
    competence_prior: tuple[float, float] = (0.5, 0.5),
    strategy_prior: float = 10.0,
    seed: int = 0,
) -> Trusted:
    """Fit the model to votes (thing, person, class said), all numbered from 0.

    `vb` puts a Beta prior on competence and a Dirichlet prior on strategies (the published defaults); `em` smooths the
    counts by `smoothing` (0.01 / classes). The first start is the majority of the votes, the others are drawn.
    """
    crowd = Crowd.of(things, people, said, classes, weights)
    smooth = 0.01 / classes if smoothing is None else smoothing
    priors = (*competence_prior, strategy_prior) if method == "vb" else (smooth, smooth, smooth)
    learn = _variational if method == "vb" else _shares
    stream = np.random.default_rng(seed)
    tried: list[_State] = []
    for number in range(restarts):
        if number == 0:
            knows, guesses = _expected_of(crowd, crowd.shares(), 0.5)
            start = _State(*learn(knows, guesses, priors))
        else:
            chances = 1 + 0.5 * stream.random((crowd.people, 2))
            strategies = 1 + 0.5 * stream.random((crowd.people, classes))
            below = chances.sum(axis=1)
            start = _State(
                chances[:, 0] / below, chances[:, 1] / below, strategies / strategies.sum(axis=1, keepdims=True)
            )
        for _ in range(min(TRIAL_STEPS, steps)):
            start.step(crowd, learn, priors)
        tried.append(start)
    best = max(tried, key=lambda each: each.log_likelihood)
    reached = tuple(each.log_likelihood for each in tried)
    taken = min(TRIAL_STEPS, steps)
    while taken < steps:
        before = best.log_likelihood
        best.step(crowd, learn, priors)
        taken += 1
        if abs(best.log_likelihood - before) / crowd.votes < tolerance:
            break
    posterior, likelihood = best.expect(crowd)
    knows, guesses = best.counts(crowd, posterior)
    first, second = knows + priors[0], guesses.sum(axis=1) + priors[1]
    total = first + second
    strategies = guesses + priors[2]
    strategies /= strategies.sum(axis=1, keepdims=True)
    return Trusted(
        posteriors=posterior,
        competence=first / total,
        standard_errors=_errors(crowd, posterior, first / total, strategies, priors[2] * classes),
        strategies=strategies,
        log_likelihood=likelihood,
        tried=reached,
        steps=taken,
    )


@dataclass
class _State:
    """Parameters on their way: chance to know and to guess [people], strategies [people, classes]."""

    knowing: Floats
    guessing: Floats
    strategies: Floats
    log_likelihood: float = -np.inf

    def expect(self, crowd: Crowd) -> tuple[Floats, float]:
        """Posterior of the classes [things, classes] and the log-likelihood, each class as likely as any other."""
        guess = self.guessing[:, None] * self.strategies
        logs = np.repeat(np.log(np.clip(guess, TINY, None))[:, :, None], crowd.classes, axis=2)
        every = np.arange(crowd.classes)
        logs[:, every, every] = np.log(np.clip(guess + self.knowing[:, None], TINY, None))
        evidence = crowd.evidence(logs)
        evidence -= np.log(crowd.classes)
        return normalised(evidence)

    def counts(self, crowd: Crowd, posterior: Floats) -> tuple[Floats, Floats]:
        """How often each person knew [people], and what they said when they did not [people, classes]."""
        guess = self.guessing[:, None] * self.strategies
        knew = self.knowing[:, None] / np.clip(self.knowing[:, None] + guess, TINY, None)
        return _expected_of(crowd, posterior, knew)

    def step(self, crowd: Crowd, learn: Learn, priors: tuple[float, ...]) -> None:
        posterior, self.log_likelihood = self.expect(crowd)
        self.knowing, self.guessing, self.strategies = learn(*self.counts(crowd, posterior), priors)


def _errors(crowd: Crowd, posterior: Floats, knowing: Floats, strategies: Floats, held: float) -> Floats:
    """Standard errors of competences, from products of the things' slopes by competences and strategies (Louis 1982;
    Berndt, Hall, Hall and Hausman 1974). `held` pseudo-answers of the prior steady a person's strategy."""
    people, classes = strategies.shape
    if people * classes > DENSE:
        return np.full(people, np.nan)
    votes = crowd.table.tocoo()
    person, said = votes.col // classes, votes.col % classes
    know = np.clip(knowing, 1e-3, 1 - 1e-3)[person]
    guess, share = strategies[person, said], posterior[votes.row, said]
    right = know + (1 - know) * guess
    slope = share * (1 - guess) / right - (1 - share) / (1 - know)
    by_guess = share * (1 - know) * guess / right + (1 - share)  # how far a vote speaks of the person's guesses
    columns, values = [person * classes], [slope * votes.data]
    for each in range(classes - 1):  # strategies as log-odds to the last class
        columns.append(person * classes + 1 + each)
        values.append(by_guess * ((said == each) - strategies[person, each]) * votes.data)
    rows = np.tile(votes.row, classes)
    slopes = sparse.csr_matrix(
        (np.concatenate(values), (rows, np.concatenate(columns))), shape=(crowd.things, people * classes)
    )
    whole = np.asarray((slopes.T @ slopes).toarray())
    block = held * (np.eye(classes - 1) / classes - 1 / classes**2)
    for at in range(people):
        mine = slice(at * classes + 1, (at + 1) * classes)
        whole[mine, mine] += block + 1e-6 * np.eye(classes - 1)
    whole[np.arange(people) * classes, np.arange(people) * classes] += 1e-6
    return np.asarray(np.sqrt(np.clip(np.diag(np.linalg.inv(whole))[::classes], 0, None)))


def _expected_of(crowd: Crowd, posterior: Floats, knew: Floats | float) -> tuple[Floats, Floats]:
    """`knew` [people, classes] is the chance that who said the true class knew it."""
    counts = crowd.counts(posterior)
    right = np.einsum("pcc->pc", counts) * knew
    return right.sum(axis=1), counts.sum(axis=2) - right


def _variational(knows: Floats, guesses: Floats, priors: tuple[float, ...]) -> tuple[Floats, Floats, Floats]:
    """Exponentials of expected logs under Beta and Dirichlet posteriors (Johnson 2007, EMNLP)."""
    guessed = guesses.sum(axis=1)
    whole = digamma(knows + guessed + priors[0] + priors[1])
    strategies = digamma(guesses + priors[2]) - digamma(guessed + priors[2] * guesses.shape[1])[:, None]
    return (
        np.exp(digamma(knows + priors[0]) - whole),
        np.exp(digamma(guessed + priors[1]) - whole),
        np.exp(strategies),
    )


def _shares(knows: Floats, guesses: Floats, priors: tuple[float, ...]) -> tuple[Floats, Floats, Floats]:
    guessed = guesses.sum(axis=1)
    whole = knows + guessed + priors[0] + priors[1]
    strategies = guesses + priors[2]
    strategies /= strategies.sum(axis=1, keepdims=True)
    return (
        (knows + priors[0]) / whole,
        (guessed + priors[1]) / whole,
        strategies / strategies.sum(axis=1, keepdims=True),
    )
