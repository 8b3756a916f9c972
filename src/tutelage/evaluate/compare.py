"""Systems on the same items: paired differences with intervals and tests, what could have been seen at all, and every
item whose answer became better or worse.

Only items in common count, and how many are not is stated. A difference is later minus earlier. Sources: Dietterich
1998 (McNemar, exact); Koehn 2004 (paired bootstrap of corpus figures); Miller 2024, arXiv 2411.00640 (clusters and
power of evaluations).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from pydantic import Field
from scipy import stats

from tutelage.core.errors import DataError
from tutelage.core.records import Record
from tutelage.evaluate.ranking import Ranked, ranks
from tutelage.evaluate.resampled import Drawn, drawn, weights_of
from tutelage.evaluate.suite import Result, golds_of, prompt_of
from tutelage.evaluate.suites.kinds import HEADLINE, KIND, LOWER_IS_BETTER
from tutelage.evaluate.systems import Key, System, cell_of_row, text_of
from tutelage.measure.statistics import (
    Interval,
    Test,
    equivalent,
    group,
    holm,
    mcnemar,
    minimum_detectable_effect,
    non_inferior,
    paired,
    permutation,
    standard_error,
    undefined,
    visible_difference,
)

MANY_CLUSTERS = 500
"""Independent groups from which on Student's t stands for the sign-flip test: they agree, and it costs nothing."""
FLIPS = 9999
"""Sign flips of the permutation test: the smallest p is 1/10,000, so that Holm over a long table can still reject."""
CHANGES = {"f": "fixed", "+": "better", "=": "same", "-": "worse", "b": "broken", "?": "not measured", ".": "not asked"}
"""What became of an item. `fixed`: now fully right, before not; `broken`: the other way."""


class Row(Record):
    """One metric of one suite and cell, for one pair of systems."""

    first: int
    second: int
    """Places in `systems`; the difference is second minus first."""
    suite: str
    cell: str | None
    kind: str
    metric: str
    headline: bool
    lower_is_better: bool
    values: tuple[float | None, float | None]
    """Each system's figure on the items that both were measured on."""
    difference: Interval
    p: float | None
    test: str
    """The test whose p is told and adjusted."""
    tests: dict[str, float | None]
    """All tests that fit."""
    p_holm: float | None = None
    """`p` adjusted over all headline rows of the table; further metrics are a family of their own."""
    verdict: str = "undecided"
    """`better` or `worse` after Holm; else `undecided`, which is never "equal"."""
    detectable: float | None
    """The smallest true difference that these items show with 80% power at 5%, two-sided."""
    detectable_holm: float | None = None
    """The same where the row stands alone against Holm's strictest step."""
    detectable_reason: str = ""
    equivalent: Test | None = None
    non_inferior: Test | None = None
    only_first: int
    """Items that the second was not asked."""
    only_second: int
    unmeasured_first: int
    """Items in common on which the first has no value."""
    unmeasured_second: int
    changes: dict[str, int]
    """Items by what became of them, under the metric of the row's suite (see CHANGES)."""
    signature: str = ""


class Answer(Record):
    """What one system said to one item."""

    value: float | None
    outcome: str
    output: str
    reason: str = ""


class Item(Record):
    """One item in common with every system's answer (None: not asked) and its change in each pair."""

    id: str
    suite: str
    cell: str | None
    attack: str | None = None
    prompt: str | None
    """None where the texts are no longer there."""
    target: tuple[str, ...]
    slices: dict[str, str] = Field(default_factory=dict)
    answers: tuple[Answer | None, ...]
    changes: tuple[str, ...]


class Compared(Record):
    """Everything that a comparison found."""

    systems: tuple[dict[str, str], ...]
    pairs: tuple[tuple[int, int], ...]
    rows: tuple[Row, ...]
    ranks: tuple[Ranked, ...] = ()
    items: tuple[Item, ...]
    left_out: tuple[str, ...] = ()
    """What could not be compared, a sentence each."""
    level: float = 0.95
    margin: float | None = None
    resamples: int
    seed: int
    tests: int = 0
    """How many headline tests Holm counts."""


class _Measured(NamedTuple):
    values: tuple[float | None, float | None]
    difference: Interval
    narrow: Interval
    """The 90% interval: each of its ends is a one-sided test at 5%."""
    p: float | None
    test: str
    tests: dict[str, float | None]
    error: float | None
    signature: str = ""


def _bootstrapped(
    first: Drawn, second: Drawn, clusters: Sequence[str], level: float, resamples: int, seed: int
) -> _Measured:
    """The difference of two corpus figures by paired (cluster) bootstrap; p from its error, so that it has no floor."""
    n, test = len(clusters), "paired bootstrap"
    codes, count = group(clusters, n)
    whole = np.ones((1, n))
    values = float(first.figures(whole)[0]), float(second.figures(whole)[0])
    value = values[1] - values[0]

    def none(reason: str, error: float | None = None) -> _Measured:
        nothing, p = undefined(n, reason, value=value, method=test, level=level), None if error is None else 1.0
        return _Measured(values, nothing, nothing, p, test, {test: p}, error, second.signature)

    if count < 2:
        return none("fewer than two clusters")
    weights = weights_of(codes, count, resamples, seed)
    gaps = second.figures(weights) - first.figures(weights)
    gaps = gaps[np.isfinite(gaps)]
    if len(gaps) < 0.9 * resamples:
        return none("undefined on too many resamples")
    error = float(gaps.std(ddof=1))
    if float(np.ptp(gaps)) == 0.0:
        return none("no variation between resamples", 0.0)

    def interval(level: float) -> Interval:
        low, high = np.quantile(gaps, [(1 - level) / 2, (1 + level) / 2])
        ends = {"low": float(low), "high": float(high)}
        return Interval(value=value, n=n, clusters=count, level=level, method=test, **ends)

    p = float(2 * stats.norm.sf(abs(value) / error))
    return _Measured(values, interval(level), interval(0.9), p, test, {test: p}, error, second.signature)


def _of_means(a: list[float], b: list[float], clusters: list[str], level: float, seed: int) -> _Measured:
    found = paired(b, a, clusters, level)
    tests: dict[str, float | None] = {"cluster-robust t": found.p}
    count = len(set(clusters))
    if count == len(clusters) and {*a, *b} <= {0.0, 1.0}:
        tests["exact McNemar"] = mcnemar(b, a, level).p
    elif count <= MANY_CLUSTERS:
        tests["sign-flip permutation"] = permutation(b, a, clusters, resamples=FLIPS, seed=seed)
    test = list(tests)[-1]
    gaps = [y - x for x, y in zip(a, b, strict=True)]
    values = (float(np.mean(a)), float(np.mean(b)))
    p = 1.0 if not any(gaps) else tests[test]
    narrow = paired(b, a, clusters, 0.9).difference
    return _Measured(values, found.difference, narrow, p, test, tests, standard_error(gaps, clusters))


def _measure(
    metric: str,
    rows: Sequence[tuple[Result, Result]],
    systems: tuple[System, System],
    level: float,
    resamples: int,
    seed: int,
) -> _Measured:
    """The metric's paired difference over items that both sides were measured on."""
    if not rows:
        nothing = undefined(0, "no item was measured on both sides", level=level)
        return _Measured((None, None), nothing, nothing, None, "", {}, None)
    clusters = [each.cluster for each, _ in rows]
    first, second = drawn(metric, [a for a, _ in rows], systems[0]), drawn(metric, [b for _, b in rows], systems[1])
    if isinstance(first, str) or isinstance(second, str):
        why = first if isinstance(first, str) else str(second)
        nothing = undefined(len(rows), why, level=level)
        return _Measured((None, None), nothing, nothing, None, "", {}, None)
    if first.values is not None and second.values is not None:
        return _of_means(first.values, second.values, clusters, level, seed)
    return _bootstrapped(first, second, clusters, level, resamples, seed)


def _detectable(found: _Measured, rows: Sequence[tuple[Result, Result]], tests: int) -> tuple[float | None, str]:
    """The smallest true difference seen with 80% power, and where that is a stand-in, how it was had.

    Never less than what the exact tests can reject with at all: two-sided at `alpha` they need log2(2 / alpha) changed
    groups that all moved the same way.
    """
    alpha, clusters = 0.05 / tests, [a.cluster for a, _ in rows]
    if found.error is None:
        return None, found.difference.reason or "too few independent items"
    groups, changed = len(set(clusters)), math.ceil(math.log2(2 / alpha))
    if groups < changed:
        return None, f"no change of {groups} independent items can be told from chance"
    gaps = [abs(float(b.value or 0) - float(a.value or 0)) for a, b in rows]
    size = float(np.mean([gap for gap in gaps if gap])) if any(gaps) else 1.0
    least = size * float(stats.beta.ppf(0.8, changed, groups - changed + 1))
    if found.error > 0:
        return max(least, minimum_detectable_effect(found.error, comparisons=tests) or 0.0), ""
    loose = visible_difference([float(b.value or 0) for _, b in rows], clusters, alpha=alpha)
    return max(least, loose or 0.0), "no answer differs in value: the figure is that of unrelated systems"


def _oriented(gap: Interval, lower_is_better: bool) -> Interval:
    """The difference with better pointing up."""
    if not lower_is_better or gap.value is None:
        return gap
    low, high = (None if each is None else -each for each in (gap.high, gap.low))
    return gap.model_copy(update={"value": -gap.value, "low": low, "high": high})


def change(first: Result | None, second: Result | None, lower_is_better: bool) -> str:
    """What became of an item, as a letter of CHANGES."""
    if first is None or second is None:
        return "."
    if first.value is None or second.value is None:
        return "?"
    a, b = (1 - first.value, 1 - second.value) if lower_is_better else (first.value, second.value)
    if a == b:
        return "="
    if b > a:
        return "f" if b >= 1 else "+"
    return "b" if a >= 1 else "-"


def _same_question(first: System, second: System, both: Sequence[Key]) -> None:
    """Raises DataError where equal ids bear other texts, or were measured otherwise."""
    other = [
        key
        for key in both
        if key[1] in first.items
        and key[1] in second.items
        and first.items[key[1]] is not second.items[key[1]]
        and text_of(first.items[key[1]]) != text_of(second.items[key[1]])
    ]
    names = f"{first.name!r} and {second.name!r}"
    if other:
        count = "1 item has" if len(other) == 1 else f"{len(other)} items have"
        raise DataError(
            f"{count} the same id but another text for {names}; the first is {other[0][1]!r} of {other[0][0]}",
            key="item",
            todo="Examine both on one file, or name the suites that they share with --only",
        )
    for key in both:
        a, b = first.rows[key], second.rows[key]
        if (a.kind, a.metric) != (b.kind, b.metric):
            raise DataError(
                f"the suite {key[0]} was measured as {a.metric} ({a.kind}) for {first.name!r} "
                f"and as {b.metric} ({b.kind}) for {second.name!r}",
                key="metric",
                todo="Examine both again, or name the suites that they share with --only",
            )


def _rows_of(
    pair: tuple[int, int], systems: Sequence[System], level: float, resamples: int, seed: int
) -> tuple[list[tuple[Row, _Measured, list[tuple[Result, Result]]]], list[str]]:
    """The rows of one pair before anything that depends on the whole table."""
    first, second = (systems[place] for place in pair)
    both = [key for key in first.rows if key in second.rows]
    if not both:
        raise DataError(
            f"{first.name!r} and {second.name!r} have no item in common",
            todo="Examine both on the same suite: tutelage compare A B --suite FILE.jsonl",
        )
    _same_question(first, second, both)
    cells: dict[tuple[str, str | None], list[Key]] = {}
    for key in first.rows:
        cells.setdefault((key[0], cell_of_row(first.rows[key])), []).append(key)
    theirs: dict[tuple[str, str | None], int] = {}
    for key in second.rows:
        if key not in first.rows:
            where = key[0], cell_of_row(second.rows[key])
            theirs[where] = theirs.get(where, 0) + 1
    found: list[tuple[Row, _Measured, list[tuple[Result, Result]]]] = []
    alone = [f"{_words(*where)}: only {second.name!r} was asked" for where in theirs if where not in cells]
    for where, keys in cells.items():
        shared = [(first.rows[key], second.rows[key]) for key in keys if key in second.rows]
        if not shared:
            alone.append(f"{_words(*where)}: only {first.name!r} was asked")
            continue
        kind, headline = shared[0][0].kind, shared[0][0].metric
        measured = [(a, b) for a, b in shared if a.value is not None and b.value is not None]
        lower = headline in LOWER_IS_BETTER
        letters = [change(a, b, lower) for a, b in shared]
        changes = {CHANGES[letter]: letters.count(letter) for letter in CHANGES if letter != "."}
        further = [each.name for each in KIND.get(kind, ())] if HEADLINE.get(kind) == headline else []
        for metric in dict.fromkeys((headline, *further)):
            one = _measure(metric, measured, (first, second), level, resamples, seed)
            if metric != headline and one.values == (None, None):
                continue  # a further figure that this cell does not have
            row = Row(
                first=pair[0],
                second=pair[1],
                suite=where[0],
                cell=where[1],
                kind=kind,
                metric=metric,
                headline=metric == headline,
                lower_is_better=metric in LOWER_IS_BETTER,
                values=one.values,
                difference=one.difference,
                p=one.p,
                test=one.test,
                tests=one.tests,
                detectable=None,
                only_first=len(keys) - len(shared),
                only_second=theirs.get(where, 0),
                unmeasured_first=sum(a.value is None for a, _ in shared),
                unmeasured_second=sum(b.value is None for _, b in shared),
                changes=changes,
                signature=one.signature,
            )
            found.append((row, one, measured))
    return found, [f"{first.name} → {second.name}: {each}" for each in alone]


def _words(suite: str, cell: str | None) -> str:
    return suite if cell is None else f"{suite} {cell}"


def compare(
    systems: Sequence[System],
    pairs: Sequence[tuple[int, int]],
    *,
    only: Sequence[str] = (),
    margin: float | None = None,
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> Compared:
    """Compare the pairs on their items in common; `only` some suites; `margin` in the unit of the figures (0.02 = 2
    points) adds equivalence (two one-sided tests) and non-inferiority, both at 5%.

    Raises DataError where a pair shares no item, or equal ids bear other texts or metrics.
    """
    chosen = [_within(each, only) for each in systems]
    table: list[tuple[Row, _Measured, list[tuple[Result, Result]]]] = []
    left_out: list[str] = []
    for pair in pairs:
        rows, alone = _rows_of(pair, chosen, level, resamples, seed)
        table += rows
        left_out += alone
    families = {
        kind: [place for place, (row, _, _) in enumerate(table) if row.headline is kind] for kind in (True, False)
    }
    done: dict[int, Row] = {}
    for places in families.values():
        ps = [table[place][0].p for place in places]
        tests = max(1, sum(p is not None for p in ps))
        for place, p in zip(places, holm(ps), strict=True):
            done[place] = _judged(*table[place], p, tests, margin)
    return Compared(
        systems=tuple({"name": each.name, "source": each.source, "id": each.target_id} for each in chosen),
        pairs=tuple(pairs),
        rows=tuple(done[place] for place in range(len(table))),
        ranks=tuple(ranks(chosen, resamples=resamples, seed=seed)) if len(chosen) > 2 else (),
        items=tuple(_items(chosen, pairs)),
        left_out=tuple(left_out),
        level=level,
        margin=margin,
        resamples=resamples,
        seed=seed,
        tests=sum(row.headline and row.p is not None for row, _, _ in table),
    )


def _within(system: System, only: Sequence[str]) -> System:
    if not only:
        return system
    rows = {key: row for key, row in system.rows.items() if key[0] in only}
    if not rows:
        known = ", ".join(sorted({key[0] for key in system.rows}))
        raise DataError(f"{system.name!r} was not asked {', '.join(only)}", key="--only", todo=f"It was asked: {known}")
    return System(system.name, system.source, system.target_id, rows, system.items)


def _judged(
    row: Row,
    one: _Measured,
    measured: Sequence[tuple[Result, Result]],
    p: float | None,
    tests: int,
    margin: float | None,
) -> Row:
    """The row with what depends on the whole table, and the tests against a margin."""
    detectable, reason = _detectable(one, measured, 1)
    told: dict[str, Any] = {
        "p_holm": p,
        "detectable": detectable,
        "detectable_reason": reason,
        "detectable_holm": _detectable(one, measured, tests)[0],
    }
    gap = _oriented(row.difference, row.lower_is_better)
    if p is not None and p < 0.05 and gap.value:
        told["verdict"] = "better" if gap.value > 0 else "worse"
    if margin is not None:
        narrow = _oriented(one.narrow, row.lower_is_better)
        told |= {"non_inferior": non_inferior(narrow, margin)}
        told |= {"equivalent": equivalent(narrow, margin)} if margin > 0 else {}
    return row.model_copy(update=told)


def refusal(found: Compared) -> str | None:
    """Why the later systems are not surely within the margin of the earlier ones, or None: every headline figure must
    be, and whatever was not measured, or not asked, cannot be told."""
    for row in (each for each in found.rows if each.headline):
        name = f"{found.systems[row.second]['name']!r} on {_words(row.suite, row.cell)} ({row.metric})"
        if row.unmeasured_first + row.unmeasured_second:
            missing = max(row.unmeasured_first, row.unmeasured_second)
            return f"{name}: {missing} of {sum(row.changes.values())} items were not measured"
        if row.only_first:
            return f"{name}: {row.only_first} items of the first were not asked"
        if row.non_inferior is None or row.non_inferior.passed is not True:
            return f"{name}: {row.non_inferior.reason if row.non_inferior else 'no margin was given'}"
    unasked = next((each for each in found.left_out), None)
    return f"not everything was asked on both sides ({unasked})" if unasked else None


def _items(systems: Sequence[System], pairs: Sequence[tuple[int, int]]) -> list[Item]:
    """Every item that both sides of a pair were asked, with all answers."""
    keys = dict.fromkeys(key for a, b in pairs for key in systems[a].rows if key in systems[b].rows)
    found = []
    for key in keys:
        rows = [each.rows.get(key) for each in systems]
        row = next(each for each in rows if each is not None)
        asked = next((each.items[key[1]] for each in systems if key[1] in each.items), None)
        lower = row.metric in LOWER_IS_BETTER
        found.append(
            Item(
                id=row.item,
                suite=row.suite,
                cell=cell_of_row(row),
                attack=row.attack,
                prompt=prompt_of(asked) if asked else None,
                target=tuple(golds_of(asked)) if asked else (),
                slices=row.slices,
                answers=tuple(
                    None
                    if each is None
                    else Answer(value=each.value, outcome=each.outcome, output=each.output, reason=each.reason)
                    for each in rows
                ),
                changes=tuple(CHANGES[change(rows[a], rows[b], lower)] for a, b in pairs),
            )
        )
    return found
