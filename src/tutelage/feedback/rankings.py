"""Worths of what was ranked: Plackett-Luce with ties, and people who look more or less closely.

A ranking is read as choices: the best tier out of all, the next out of the rest (Plackett 1975; Luce 1959). The chance
of a tier T out of R is delta_|T| times the geometric mean of its members' worths, over the sum of the same for all
tiers that R allows: the Davidson-Luce model (Firth, Kosmidis and Turner 2019, arXiv 1909.07123; Turner, van Etten,
Firth and Kosmidis 2020, Computational Statistics 35). Without ties it is Plackett-Luce; for pairs Davidson 1970.

Each person raises worths to a power of their own, near 0 for somebody who chooses blindly and above 1 for somebody
surer than the crowd: the adherence of Raman and Joachims 2014 (KDD), with a log-normal prior. Fitted by Fisher
scoring, from whose matrix standard errors come; Hunter 2004 (Annals of Statistics 32) says when a maximum exists.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from math import comb

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse import csgraph
from scipy.sparse.linalg import splu

from tutelage.core.errors import DataError
from tutelage.feedback.consensus import Codes, Floats

Tiers = Sequence[Sequence[int]]
"""Items, best tier first; the items of one tier are tied."""

MOST_TIERS = 20_000
"""Different tiers that one choice may be made from."""
LEAST = 10
"""Rankings of an average item from which people's powers are fitted."""
DENSE = 4_000
"""Numbers fitted up to which standard errors are computed (their matrix is inverted whole)."""


@dataclass(frozen=True)
class Worths:
    """What rankings say of items and people.

    Attributes:
        worth: log-worth of each item, mean 0 among the items that rankings connect.
        worth_errors: their standard errors; NaN where more than `DENSE` numbers were fitted.
        ties: size of a tier -> log of its tie parameter, for the sizes that occurred.
        ties_errors: their standard errors.
        sureness: log of the power of each person, mean 0; all 0 where everybody is taken to be alike.
        sureness_errors: their standard errors.
        log_likelihood: of the rankings, without priors.
        component: which items are connected by rankings [items].
    """

    worth: Floats
    worth_errors: Floats
    ties: dict[int, float]
    ties_errors: dict[int, float]
    sureness: Floats
    sureness_errors: Floats
    log_likelihood: float
    component: NDArray[np.int32]
    steps: int

    def between(self, first: int, second: int) -> tuple[float, float, float]:
        """Chance that an average person prefers the first of two items, ties them, prefers the second."""
        logs = np.array([self.worth[first], -np.inf, self.worth[second]])
        if 2 in self.ties:
            logs[1] = self.ties[2] + (self.worth[first] + self.worth[second]) / 2
        chances = np.exp(logs - logs.max())
        better, tied, worse = (chances / chances.sum()).tolist()
        return better, tied, worse


@dataclass(frozen=True)
class _Choices:
    """Choices out of equally many items, in one block."""

    items: Codes
    """[choices, items to choose from]."""
    people: Codes
    chosen: Codes
    """Which of the tiers was chosen."""
    weights: Floats
    tiers: Floats
    """[tiers, items to choose from]: one over its size for the members of a tier."""
    sizes: Codes
    """[tiers]: place of the tier's size among the sizes that occurred."""


@dataclass
class _State:
    worth: Floats
    ties: Floats
    sureness: Floats
    gradient: Floats = field(default_factory=lambda: np.zeros(0))
    information: sparse.csr_matrix | None = None


def plackett_luce(
    rankings: Sequence[Tiers],
    items: int,
    *,
    people: Sequence[int] | None = None,
    weights: Sequence[float] | None = None,
    spread: float | None = None,
    sureness: float = 0.0,
    steps: int = 100,
    tolerance: float = 1e-8,
) -> Worths:
    """Fit worths to rankings of items numbered from 0; a ranking may hold some of the items only.

    `spread` is the standard deviation of a normal prior on log-worths; None is the maximum likelihood, which raises
    DataError where it does not exist (an item that won or lost every time). `people` numbers who gave each ranking, and
    `sureness` is the standard deviation of the prior on the log of people's powers (0 takes them to be alike). Powers
    and worths are fitted together, which needs `LEAST` rankings of an average item; with fewer, worths bend to whoever
    judged them (Neyman and Scott 1948), so that is refused: weigh people's rankings by `weights` instead.
    """
    who = np.zeros(len(rankings), dtype=np.int64) if people is None else np.asarray(people, dtype=np.int64)
    heavy = np.ones(len(rankings)) if weights is None else np.asarray(weights, dtype=float)
    _check(rankings, items, len(who), len(heavy))
    named = [item for tiers in rankings for tier in tiers for item in tier]
    if sureness > 0 and len(named) < LEAST * len(set(named)):
        todo = "Leave `sureness` 0 and weigh people's rankings by `weights`"
        raise DataError(f"people's powers need {LEAST} rankings of each item, on average", todo=todo)
    sizes = sorted({len(tier) for tiers in rankings for tier in tiers if len(tier)} | {1})
    blocks = _blocks(rankings, who, heavy, sizes)
    connected = _connected(rankings, items, finite=spread is None)
    crowd = int(who.max()) + 1 if sureness > 0 else 0
    state = _State(np.zeros(items), np.zeros(len(sizes) - 1), np.zeros(crowd))
    precision = np.concatenate([
        np.full(items, 0.0 if spread is None else spread**-2),
        np.full(len(sizes) - 1, 1e-4),
        np.full(crowd, sureness**-2 if sureness > 0 else 0.0),
    ])  # fmt: skip
    value, step = -np.inf, 0
    likelihood = _look(state, blocks, True)
    value = likelihood - _penalty(state, precision)
    while step < steps:
        step += 1
        move = _solve(state, precision, connected)
        scale = 1.0
        while scale > 1e-6:
            tried = _moved(state, scale * move)
            likelihood = _look(tried, blocks, False)
            new = likelihood - _penalty(tried, precision)
            if new >= value - 1e-12 * abs(value):
                break
            scale /= 2
        else:
            break
        gained, value, state = new - value, new, tried
        likelihood = _look(state, blocks, True)
        if gained < tolerance and scale == 1.0:
            break
    return _told(state, precision, connected, sizes, likelihood, step)


def _check(rankings: Sequence[Tiers], items: int, people: int, weights: int) -> None:
    if not len(rankings) == people == weights or not rankings:
        raise DataError("rankings, their people and their weights must be as many, and at least one")
    for number, tiers in enumerate(rankings):
        named = [item for tier in tiers for item in tier]
        if len(named) != len(set(named)):
            raise DataError("an item stands in two places of a ranking", key=str(number))
        if named and not 0 <= min(named) <= max(named) < items:
            raise DataError(f"a ranking names an item outside 0 to {items - 1}", key=str(number))


def _blocks(rankings: Sequence[Tiers], people: Codes, weights: Floats, sizes: Sequence[int]) -> list[_Choices]:
    """All choices, those out of equally many items together."""
    by_size: dict[int, list[tuple[list[int], int, int, float]]] = {}
    for tiers, person, weight in zip(rankings, people.tolist(), weights.tolist(), strict=True):
        rest = [item for tier in reversed(tiers) for item in tier]  # the best tier last, so that it can be cut off
        for tier in tiers:
            if len(rest) < 2:
                break
            if tier:
                by_size.setdefault(len(rest), []).append((list(rest), len(tier), person, weight))
            rest = rest[: len(rest) - len(tier)]
    blocks = []
    for size, rows in sorted(by_size.items()):
        allowed = [each for each in sizes if each <= size]
        possible = sum(comb(size, many) for many in allowed)
        if possible > MOST_TIERS:
            todo = "Break the largest ties, or rank fewer items at a time"
            raise DataError(f"{size} items with ties of up to {allowed[-1]} allow {possible:,} tiers", todo=todo)
        tiers_of = [members for many in allowed for members in combinations(range(size), many)]
        place = {members: at for at, members in enumerate(tiers_of)}
        shares = np.zeros((len(tiers_of), size))
        for at, members in enumerate(tiers_of):
            shares[at, list(members)] = 1 / len(members)
        blocks.append(
            _Choices(
                items=np.array([row[0] for row in rows]),
                people=np.array([row[2] for row in rows]),
                chosen=np.array([place[tuple(range(size - row[1], size))] for row in rows]),
                weights=np.array([row[3] for row in rows]),
                tiers=shares,
                sizes=np.array([sizes.index(len(members)) for members in tiers_of]),
            )
        )
    return blocks


def _connected(rankings: Sequence[Tiers], items: int, finite: bool) -> NDArray[np.int32]:
    """Items that rankings connect; `finite` asks that worths have a maximum: whoever is better is also worse, through
    others (Hunter 2004, assumption 1)."""
    edges: set[tuple[int, int]] = set()
    for tiers in rankings:
        above: Sequence[int] = ()
        for tier in tiers:
            edges.update((one, other) for one in above for other in tier)  # further tiers follow through these
            edges.update((one, other) for one in tier for other in tier if one != other)
            above = tier or above
    pairs = np.array(sorted(edges), dtype=np.int64).reshape(-1, 2)
    graph = sparse.csr_matrix((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(items, items))
    _, weak = csgraph.connected_components(graph, connection="weak")
    if finite:
        _, strong = csgraph.connected_components(graph, connection="strong")
        if len(np.unique(strong)) > len(np.unique(weak)):
            todo = "Give a `spread`, or leave out what won or lost every time"
            raise DataError("these rankings have no finite maximum: some items always stand above others", todo=todo)
    return np.asarray(weak)


def _penalty(state: _State, precision: Floats) -> float:
    return float(0.5 * (precision * np.concatenate([state.worth, state.ties, state.sureness]) ** 2).sum())


def _moved(state: _State, move: Floats) -> _State:
    items, ties = len(state.worth), len(state.ties)
    return _State(
        state.worth + move[:items], state.ties + move[items : items + ties], state.sureness + move[items + ties :]
    )


def _look(state: _State, blocks: Sequence[_Choices], learn: bool) -> float:
    """The log-likelihood; with `learn` also its gradient and expected information, over worths, ties and people."""
    items, ties, crowd = len(state.worth), len(state.ties), len(state.sureness)
    every = items + ties + crowd
    gradient, total = np.zeros(every), 0.0
    rows: list[Codes] = []
    columns: list[Codes] = []
    entries: list[Floats] = []
    log_delta = np.concatenate([[0.0], state.ties])
    for block in blocks:
        power = np.exp(state.sureness[block.people]) if crowd else np.ones(len(block.people))
        seen = state.worth[block.items] * power[:, None]
        logs = seen @ block.tiers.T + log_delta[block.sizes]
        top = logs.max(axis=1, keepdims=True)
        chance = np.exp(logs - top)
        below = chance.sum(axis=1, keepdims=True)
        chance /= below
        at = np.arange(len(chance))
        total += float((block.weights * (logs[at, block.chosen] - top[:, 0] - np.log(below[:, 0]))).sum())
        if not learn:
            continue
        size = block.items.shape[1]
        of_size = (block.sizes[:, None] == np.arange(1, ties + 1)).astype(float)
        features = np.hstack([block.tiers, of_size])
        expected = chance @ features
        residual = (features[block.chosen] - expected) * block.weights[:, None]
        squares = (features[:, :, None] * features[:, None, :]).reshape(len(features), -1)
        spread = (chance @ squares).reshape(len(chance), size + ties, size + ties)
        spread -= expected[:, :, None] * expected[:, None, :]
        # from what a person sees to worths, ties and the person's power
        slope = np.zeros((len(chance), size + ties, size + ties + (1 if crowd else 0)))
        diagonal = np.arange(size + ties)
        slope[:, diagonal, diagonal] = np.hstack([np.repeat(power[:, None], size, 1), np.ones((len(chance), ties))])
        names = np.hstack([block.items, np.broadcast_to(items + np.arange(ties), (len(chance), ties))])
        if crowd:
            slope[:, :size, -1] = seen
            names = np.hstack([names, items + ties + block.people[:, None]])
        np.add.at(gradient, names, np.einsum("ni,nij->nj", residual, slope))
        local = np.einsum("nia,nij,njb->nab", slope, spread * block.weights[:, None, None], slope, optimize=True)
        rows.append(np.repeat(names, names.shape[1], axis=1).reshape(-1))
        columns.append(np.tile(names, (1, names.shape[1])).reshape(-1))
        entries.append(local.reshape(-1))
    if learn:
        state.gradient = gradient
        places = (np.concatenate(rows), np.concatenate(columns)) if rows else (np.zeros(0, int), np.zeros(0, int))
        values = np.concatenate(entries) if entries else np.zeros(0)
        state.information = sparse.csr_matrix((values, places), shape=(every, every))
    return total


def _matrix(state: _State, precision: Floats, connected: NDArray[np.int32]) -> Floats:
    """The information with priors; what only moves all worths of a component is held by a matrix of its own."""
    assert state.information is not None
    whole = np.asarray(state.information.toarray()) + np.diag(precision)
    items = len(state.worth)
    if not precision[:items].any():
        same = connected[:, None] == connected[None, :]
        whole[:items, :items] += same / same.sum(axis=1, keepdims=True)
    return whole


def _solve(state: _State, precision: Floats, connected: NDArray[np.int32]) -> Floats:
    slope = state.gradient - precision * np.concatenate([state.worth, state.ties, state.sureness])
    if len(slope) <= DENSE:
        return np.asarray(np.linalg.solve(_matrix(state, precision, connected), slope))
    held = np.where(precision > 0, precision, 1e-6)  # a component that only shifts as a whole must not be singular
    whole = (state.information + sparse.diags(held)).tocsc()
    return np.asarray(splu(whole, permc_spec="MMD_AT_PLUS_A", options={"SymmetricMode": True}).solve(slope))


def _told(
    state: _State, precision: Floats, connected: NDArray[np.int32], sizes: Sequence[int], likelihood: float, steps: int
) -> Worths:
    """Worths with mean 0 in each component and powers with mean 0, and the errors of both as they are told."""
    items, ties, crowd = len(state.worth), len(state.ties), len(state.sureness)
    middle = float(state.sureness.mean()) if crowd else 0.0
    centre = np.bincount(connected, state.worth) / np.bincount(connected)
    worth = (state.worth - centre[connected]) * np.exp(middle)
    errors = np.full(items + ties + crowd, np.nan)
    if len(errors) <= DENSE:
        turn = np.eye(len(errors))
        same = connected[:, None] == connected[None, :]
        turn[:items, :items] -= same / same.sum(axis=1, keepdims=True)
        turn[:items, :items] *= np.exp(middle)
        if crowd:
            turn[items + ties :, items + ties :] -= 1 / crowd
            turn[:items, items + ties :] += worth[:, None] / crowd
        spread = turn @ np.linalg.inv(_matrix(state, precision, connected)) @ turn.T
        errors = np.sqrt(np.clip(np.diag(spread), 0, None))
    return Worths(
        worth=worth,
        worth_errors=errors[:items],
        ties={size: float(value) for size, value in zip(sizes[1:], state.ties, strict=True)},
        ties_errors={size: float(value) for size, value in zip(sizes[1:], errors[items : items + ties], strict=True)},
        sureness=state.sureness - middle,
        sureness_errors=errors[items + ties :],
        log_likelihood=likelihood,
        component=connected,
        steps=steps,
    )


def order(preferred: Floats, tied: Floats) -> tuple[tuple[int, ...], ...]:
    """Tiers, best first, from the probability that row is better than column, and that they are tied.

    NaN is a pair nobody judged; a candidate of no judged pair stands in no tier. Candidates are ordered by their mean
    chance of being better (a tie is half a chance); neighbours whose likeliest relation is a tie share a tier.
    """
    chance = preferred + tied / 2
    np.fill_diagonal(chance, np.nan)
    judged = [no for no in range(len(chance)) if not np.isnan(chance[no]).all()]
    mean = {no: round(float(np.nanmean(chance[no])), 9) for no in judged}
    tiers: list[list[int]] = []
    for no in sorted(judged, key=lambda each: (-mean[each], each)):
        above = tiers[-1][-1] if tiers else no
        equal = (
            mean[above] == mean[no]
            if np.isnan(chance[above, no])
            else tied[above, no] >= max(preferred[above, no], preferred[no, above])
        )
        if tiers and equal:
            tiers[-1].append(no)
        else:
            tiers.append([no])
    return tuple(tuple(sorted(tier)) for tier in tiers)
