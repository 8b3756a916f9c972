"""How far people agree, with intervals; undefined is None with the reason.

Sources: Krippendorff 2004, Content Analysis, chapter 11 (alpha for any number of people, missing ratings allowed);
Gwet 2008, British Journal of Mathematical and Statistical Psychology 61 (AC1); Passonneau 2006, LREC (MASI, how far two
sets of labels lie apart); Kendall 1945 (tau-b, W with ties). Intervals are percentile bootstraps over the things that
were judged, or over the groups they belong to.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from tutelage.measure.statistics import Interval, group, undefined

Floats = NDArray[np.float64]
Codes = NDArray[np.int64]
Level = Literal["nominal", "ordinal", "interval"]
Labels = frozenset[str]

REPLICATES = 400
AT_ONCE = 4_000_000
"""Numbers a bootstrap holds in one matrix."""


def alpha(
    ratings: Sequence[Sequence[float | None]] | Floats,
    level: Level = "nominal",
    *,
    clusters: Sequence[Hashable] | None = None,
    confidence: float = 0.95,
    replicates: int = REPLICATES,
    seed: int = 0,
) -> Interval:
    """Krippendorff's alpha of ratings [people, things]; None or NaN is a missing rating.

    1 is perfect agreement, 0 what chance gives. `n` counts the things with at least two ratings. `clusters` names a
    group for each thing (candidates of one task): groups are then drawn again, not things.
    """
    found = _counted(ratings)
    if isinstance(found, str):
        return undefined(0, found, method="krippendorff")
    counts, values = found
    return alpha_of_counts(
        counts, values, level, clusters=clusters, confidence=confidence, replicates=replicates, seed=seed
    )


def alpha_of_counts(
    counts: Floats,
    values: Floats,
    level: Level | Floats = "nominal",
    *,
    clusters: Sequence[Hashable] | None = None,
    confidence: float = 0.95,
    replicates: int = REPLICATES,
    seed: int = 0,
) -> Interval:
    """Alpha from how often each thing got each value [things, values].

    `level` may be a matrix [values, values] of squared distances instead of the name of a level.
    """
    name = level if isinstance(level, str) else "distances"
    usable = counts.sum(axis=1) >= 2
    n = int(usable.sum())
    if n == 0:
        return undefined(0, "nothing was rated by two people", method="krippendorff")
    counts = counts[usable]
    if (counts.sum(axis=0) > 0).sum() == 1:
        return undefined(n, "all ratings are equal: nothing could have been disagreed on", method="krippendorff")
    kept = None if clusters is None else [each for each, use in zip(clusters, usable, strict=True) if use]
    patterns, place = np.unique(counts, axis=0, return_inverse=True)
    return _resampled(
        lambda weights: _alpha(patterns, weights, values, level),
        place.reshape(-1),
        kept,
        method=f"krippendorff {name}",
        confidence=confidence,
        replicates=replicates,
        seed=seed,
    )


def ac1(
    ratings: Sequence[Sequence[float | None]] | Floats,
    *,
    classes: int | None = None,
    clusters: Sequence[Hashable] | None = None,
    confidence: float = 0.95,
    replicates: int = REPLICATES,
    seed: int = 0,
) -> Interval:
    """Gwet's AC1 of nominal ratings [people, things], which stays sensible where nearly everything is of one class.

    `classes` is how many could have been chosen (as many as were, if not said). Things with one rating take part in
    what chance would give (Gwet 2014, Handbook of Inter-Rater Reliability). `n` counts those with two.
    """
    found = _counted(ratings)
    if isinstance(found, str):
        return undefined(0, found, method="gwet AC1")
    counts, _ = found
    rated = counts.sum(axis=1) >= 1
    n = int((counts.sum(axis=1) >= 2).sum())
    many = max(classes or 0, counts.shape[1])
    if n == 0:
        return undefined(0, "nothing was rated by two people", method="gwet AC1")
    if many < 2:
        return undefined(n, "only one class was ever chosen; say how many there are", method="gwet AC1")
    kept = None if clusters is None else [each for each, use in zip(clusters, rated, strict=True) if use]
    patterns, place = np.unique(counts[rated], axis=0, return_inverse=True)
    made = _resampled(
        lambda weights: _ac1(patterns, weights, many),
        place.reshape(-1),
        kept,
        method="gwet AC1",
        confidence=confidence,
        replicates=replicates,
        seed=seed,
    )
    return made.model_copy(update={"n": n})


def masi(first: Labels, second: Labels) -> float:
    """How far two sets of labels lie apart, 0 to 1 (Passonneau 2006): one minus Jaccard's overlap, times 1 where they
    are equal, 2/3 where one holds the other, 1/3 where they overlap, 0 else. Two empty sets are equal."""
    if first == second:
        return 0.0
    both = first & second
    if not both:
        return 1.0
    kind = 2 / 3 if both in (first, second) else 1 / 3
    return 1 - kind * len(both) / len(first | second)


def alpha_of_sets(
    labels: Sequence[Sequence[Labels | None]],
    *,
    clusters: Sequence[Hashable] | None = None,
    confidence: float = 0.95,
    replicates: int = REPLICATES,
    seed: int = 0,
) -> Interval:
    """Krippendorff's alpha of sets of labels [people, things] with MASI distances; None is a missing answer, the empty
    set an answer that nothing applies."""
    known = sorted({each for row in labels for each in row if each is not None}, key=sorted)
    place = {each: at for at, each in enumerate(known)}
    coded = [[None if each is None else float(place[each]) for each in row] for row in labels]
    found = _counted(coded)
    if isinstance(found, str):
        return undefined(0, found, method="krippendorff masi")
    counts, values = found
    distances = np.array([[masi(known[int(a)], known[int(b)]) for b in values] for a in values])
    made = alpha_of_counts(
        counts, values, distances, clusters=clusters, confidence=confidence, replicates=replicates, seed=seed
    )
    return made.model_copy(update={"method": made.method.replace("distances", "masi")})


def alpha_by_label(
    labels: Sequence[Sequence[Labels | None]], *, clusters: Sequence[Hashable] | None = None, seed: int = 0
) -> dict[str, tuple[Interval, Interval]]:
    """For each label whether people agree that it applies: (nominal alpha, AC1 of two classes)."""
    found = {}
    for label in sorted({name for row in labels for each in row if each is not None for name in each}):
        said = [[None if each is None else float(label in each) for each in row] for row in labels]
        found[label] = (
            alpha(said, "nominal", clusters=clusters, seed=seed),
            ac1(said, classes=2, clusters=clusters, seed=seed),
        )
    return found


def _counted(ratings: Sequence[Sequence[float | None]] | Floats) -> tuple[Floats, Floats] | str:
    """How often each thing got each value [things, values] and the values, or why that cannot be said."""
    if isinstance(ratings, np.ndarray):
        table = ratings.astype(float)
    else:
        table = np.array([[math.nan if each is None else each for each in row] for row in ratings], dtype=float)
    if table.ndim != 2 or table.shape[0] < 2:
        return "fewer than two people rated"
    given = ~np.isnan(table)
    values, codes = np.unique(table[given], return_inverse=True)
    things = np.nonzero(given)[1]
    if not len(values):
        return "nothing was rated by two people"
    flat = np.bincount(things * len(values) + codes.reshape(-1), minlength=table.shape[1] * len(values))
    return flat.reshape(table.shape[1], len(values)).astype(float), values


def _resampled(
    statistic: Callable[[Floats], Floats],
    place: Codes,
    clusters: Sequence[Hashable] | None,
    *,
    method: str,
    confidence: float,
    replicates: int,
    seed: int,
) -> Interval:
    """A statistic of weighted patterns [replicates, patterns] and its bootstrap over things or clusters of things.

    Things that were answered alike are one pattern, so that a million things cost what their few patterns cost.
    """
    n, width = len(place), int(place.max()) + 1
    whole = np.bincount(place, minlength=width).astype(float)
    found = float(statistic(whole[None])[0])
    stream = np.random.default_rng(seed)
    if clusters is None:
        drawn_from, units = None, n
    else:
        codes, units = group(clusters, n)
        drawn_from = sparse.csr_matrix((np.ones(n), (codes, place)), shape=(units, width))
    again: list[Floats] = []
    step = max(1, AT_ONCE // max(width, units if drawn_from is not None else 1))
    for begin in range(0, replicates, step):
        many = min(step, replicates - begin)
        if drawn_from is None:
            weights = stream.multinomial(n, whole / n, size=many).astype(float)
        else:
            weights = np.asarray(stream.multinomial(units, np.full(units, 1 / units), size=many) @ drawn_from)
        again.append(statistic(weights))
    values = np.concatenate(again) if again else np.zeros(0)
    values = values[~np.isnan(values)]
    if math.isnan(found):
        return undefined(n, "all ratings are equal: nothing could have been disagreed on", method=method)
    if units < 3 or len(values) < max(1.0, replicates / 2):
        return undefined(n, "too few things for an interval", value=found, method=method)
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(
        value=found, low=float(low), high=float(high), n=n, level=confidence, method=f"{method}, bootstrap",
        clusters=None if clusters is None else units,
    )  # fmt: skip


def _alpha(counts: Floats, weights: Floats, values: Floats, level: Level | Floats) -> Floats:
    """Alpha for each row of weights [replicates, things]: observed over expected disagreement (Krippendorff 2004).

    Every level is a sum of squared distances, so that no table of coincidences is made: ordinal ratings are interval
    ratings at the midranks of all ratings, which a replicate shifts.
    """
    size = counts.sum(axis=1)
    seen = weights @ counts
    total = seen.sum(axis=1)
    if not isinstance(level, str):
        unit = ((counts @ level) * counts).sum(axis=1) / (size - 1)
        observed, expected = weights @ unit, ((seen @ level) * seen).sum(axis=1)
    elif level == "nominal":
        unit = (size**2 - (counts**2).sum(axis=1)) / (size - 1)
        observed, expected = weights @ unit, total**2 - (seen**2).sum(axis=1)
    elif level == "interval":
        at = values - values.mean()
        unit = 2 * (size * (counts @ at**2) - (counts @ at) ** 2) / (size - 1)
        observed, expected = weights @ unit, 2 * (total * (seen @ at**2) - (seen @ at) ** 2)
    else:
        ranks = np.cumsum(seen, axis=1) - seen / 2  # how many ratings lie below a value, half of its own
        ranks -= total[:, None] / 2
        sums, squares = counts @ ranks.T, counts @ (ranks**2).T
        unit = 2 * (size[:, None] * squares - sums**2) / (size - 1)[:, None]
        observed = (weights * unit.T).sum(axis=1)
        expected = 2 * (total * (seen * ranks**2).sum(axis=1) - (seen * ranks).sum(axis=1) ** 2)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(expected > 0, 1 - (total - 1) * observed / expected, np.nan))


def _ac1(counts: Floats, weights: Floats, classes: int) -> Floats:
    """AC1 for each row of weights [replicates, things] (Gwet 2008, for several people)."""
    size = counts.sum(axis=1)
    paired = size >= 2
    agree = np.zeros(len(counts))
    agree[paired] = (counts * (counts - 1)).sum(axis=1)[paired] / (size * (size - 1))[paired]
    with np.errstate(invalid="ignore", divide="ignore"):
        observed = weights @ agree / (weights @ paired.astype(float))
        share = weights @ (counts / size[:, None]) / weights.sum(axis=1, keepdims=True)
        chance = (share * (1 - share)).sum(axis=1) / (classes - 1)
        return np.asarray((observed - chance) / (1 - chance))


def tau_b(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Kendall's tau-b of two rankings of the same things; None when one of them ties everything."""
    both = _tau_matrix(np.array([first, second], dtype=float))
    return None if math.isnan(both[0, 1]) else float(both[0, 1])


def _tau_matrix(ranks: Floats) -> Floats:
    """tau-b between all pairs of rankings [people, candidates]."""
    left, right = np.triu_indices(ranks.shape[1], 1)
    signs = np.sign(ranks[:, left] - ranks[:, right])
    untied = (signs != 0).sum(axis=1).astype(float)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(signs @ signs.T / np.sqrt(np.outer(untied, untied)))


def mean_tau(tasks: Sequence[Floats], *, confidence: float = 0.95, seed: int = 0) -> Interval:
    """Mean tau-b between two people who ranked the same task; tasks [people, candidates] of ranks, NaN = unranked."""
    found = []
    for ranks in tasks:
        ranked = ranks[~np.isnan(ranks).any(axis=1)]
        if len(ranked) < 2:
            continue
        upper = _tau_matrix(ranked)[np.triu_indices(len(ranked), 1)]
        upper = upper[~np.isnan(upper)]
        if len(upper):
            found.append(float(upper.mean()))
    return _mean(found, "tau-b", "no task was ranked by two people without tying everything", confidence, seed)


def kendall_w(ranks: Floats) -> float | None:
    """Kendall's W of one task's rankings [people, candidates], corrected for ties; None when all are tied."""
    people, candidates = ranks.shape
    if people < 2 or candidates < 2:
        return None
    placed = np.array([_midranks(row) for row in ranks])
    ties = sum(float((count**3 - count).sum()) for count in (np.unique(row, return_counts=True)[1] for row in placed))
    sums = placed.sum(axis=0)
    below = people**2 * (candidates**3 - candidates) - people * ties
    return None if below <= 0 else float(12 * ((sums - sums.mean()) ** 2).sum() / below)


def mean_w(tasks: Sequence[Floats], *, confidence: float = 0.95, seed: int = 0) -> Interval:
    """Mean of Kendall's W over tasks [people, candidates]; people with a missing rank are left out of a task."""
    found = []
    for ranks in tasks:
        value = kendall_w(ranks[~np.isnan(ranks).any(axis=1)])
        if value is not None:
            found.append(value)
    return _mean(found, "kendall W", "no task was ranked by two people without tying everything", confidence, seed)


def _midranks(row: Floats) -> Floats:
    order = np.argsort(row, kind="stable")
    placed = np.empty(len(row))
    placed[order] = np.arange(1, len(row) + 1)
    _, codes = np.unique(row, return_inverse=True)
    return np.asarray((np.bincount(codes, weights=placed) / np.bincount(codes))[codes])


def _mean(found: Sequence[float], method: str, reason: str, confidence: float, seed: int) -> Interval:
    if not found:
        return undefined(0, reason, method=method)
    values = np.array(found)
    if len(values) < 3:
        return undefined(len(values), "too few tasks for an interval", value=float(values.mean()), method=method)
    drawn = np.random.default_rng(seed).integers(0, len(values), (REPLICATES, len(values)))
    ends = np.quantile(values[drawn].mean(axis=1), [(1 - confidence) / 2, (1 + confidence) / 2])
    low, high = ends.round(12)  # what cancels out is 0, not 2e-17
    return Interval(
        value=float(values.mean()),
        low=float(low),
        high=float(high),
        n=len(values),
        level=confidence,
        method=f"{method}, bootstrap over tasks",
    )


def majority_ceiling(votes: Sequence[Sequence[int]], *, confidence: float = 0.95, seed: int = 0) -> Interval:
    """How often the majority of the others foretells one person's choice between two answers.

    `votes` are +1 and -1 (0 = tie, which takes part in no majority and is not foretold) for each pair that was judged.
    A judge that knew exactly what most people think could not agree with single people more often than this, up to
    the noise of small panels, which makes it a slight underestimate.
    """
    found: list[float] = []
    for each in votes:
        clear = np.array([vote for vote in each if vote], dtype=float)
        if len(clear) < 2:
            continue
        others = np.sign(clear.sum() - clear)
        right = np.where(others == 0, 0.5, (others == clear).astype(float))
        found.append(float(right.mean()))
    return _mean(found, "leave one person out", "no pair was judged by two people", confidence, seed)
