"""Systems on the same items: paired differences with intervals and tests, what could have been seen at all, and every
item whose answer became better or worse.

Only items in common count, and how many are not is stated. A difference is later minus earlier. Figures, differences
and tests are those of `suites/kinds.py`, as an examination states them. Source: Miller 2024, arXiv 2411.00640 (clusters
and power of evaluations).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from pydantic import Field
from scipy import stats

from tutelage.core.errors import DataError
from tutelage.core.records import Record
from tutelage.evaluate.ranking import Ranked, ranks
from tutelage.evaluate.suite import Result, golds_of, prompt_of
from tutelage.evaluate.suites.kinds import HEADLINE, KIND, Ground, Metric, metric_of
from tutelage.evaluate.systems import Key, System, cell_of_row, text_of
from tutelage.measure.paired import Tested, error_of
from tutelage.measure.statistics import (
    Interval,
    Test,
    detectable,
    equivalent,
    holm,
    minimum_detectable_effect,
    non_inferior,
    visible_difference,
)

CHANGES = {"f": "fixed", "+": "better", "=": "same", "-": "worse", "b": "broken", "?": "not measured", ".": "not asked"}
"""What became of an item. `fixed` and `broken`: its value changed by what its metric calls a change (`Metric.step`: any
of right or wrong, half the range or a stated size of what lies between); `better` and `worse`: by less."""


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
    higher_is_better: bool | None
    """None: neither more nor less is."""
    best: float | None = None
    """The value that is best where neither more nor less is better; None: the figure only describes."""
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
    family: int = 0
    """How many tests `p_holm` was adjusted for."""
    verdict: str = "undecided"
    """`better` or `worse` after Holm; else `undecided`, which is never "equal". `none`: the figure only describes."""
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
    right: bool | None = None
    """Whether the value is the best there is, or the worst; None between them, or where there are none."""


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
    metric: Metric
    pairs: list[tuple[Result, Result]]
    values: tuple[float | None, float | None]
    gap: Tested
    """Second minus first."""
    narrow: Interval | None
    """The 90% interval: each of its ends is a one-sided test at 5%. Only where there is a margin."""
    signature: str


def _measure(
    metric: Metric,
    rows: Sequence[tuple[Result, Result]],
    grounds: tuple[Ground, Ground],
    *,
    level: float,
    seed: int,
    margin: float | None,
) -> _Measured:
    """The metric's figures and their difference over the items that both sides were measured on."""
    pairs = metric.pairs([a for a, _ in rows], [b for _, b in rows], *grounds)
    first, second = [a for a, _ in pairs], [b for _, b in pairs]
    (one, signature), (two, _) = metric.value(first, grounds[0]), metric.value(second, grounds[1])

    def gap(level: float) -> Tested:
        return metric.difference(second, first, grounds[1], grounds[0], level=level, seed=seed)

    narrow = None if margin is None else gap(0.9).difference
    return _Measured(metric, pairs, (one, two), gap(level), narrow, signature)


def _detectable(found: _Measured, tests: int) -> tuple[float | None, str]:
    """The smallest true difference seen with 80% power, and where that is a stand-in, how it was had.

    Never less than what the exact tests can reject with at all: two-sided at `alpha` they need log2(2 / alpha) changed
    groups that all moved the same way.
    """
    alpha, clusters, gap = 0.05 / tests, [a.cluster for a, _ in found.pairs], found.gap.difference
    groups, changed = len(set(clusters)), math.ceil(math.log2(2 / alpha))
    if gap.value is None or groups < 2 or (found.metric.apart is not None and not gap.defined):
        return None, gap.reason or "too few independent items"
    if groups < changed:
        return None, f"no change of {groups} independent items can be told from chance"
    if found.metric.apart is not None or found.metric.sums is not None:
        least, stand_in = 0.0, [float(b.value or 0) for _, b in found.pairs]
        seen = minimum_detectable_effect(error_of(gap), comparisons=tests, degrees=groups - 1)
    else:
        values = [found.metric.values(side)[0] for side in zip(*found.pairs, strict=True)]
        moved = [abs(b - a) for a, b in zip(*values, strict=True) if a != b]
        least = (float(np.mean(moved)) if moved else 1.0) * float(stats.beta.ppf(0.8, changed, groups - changed + 1))
        seen, stand_in = detectable(values[1], values[0], clusters, comparisons=tests), values[1]
    if seen is not None:
        return max(least, seen), ""
    loose = visible_difference(stand_in, clusters, alpha=alpha)
    return max(least, loose or 0.0), "no answer differs in value: the figure is that of unrelated systems"


def change(first: Result | None, second: Result | None) -> str:
    """What became of an item, as a letter of CHANGES."""
    if first is None or second is None:
        return "."
    if first.value is None or second.value is None:
        return "?"
    metric = metric_of(first.kind, first.metric)
    gain = metric.gain(first.value, second.value)
    if turned := metric.turned(first.value, second.value):
        return "f" if turned > 0 else "b"
    return "=" if not gain else "+" if gain > 0 else "-"


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
    pair: tuple[int, int],
    systems: Sequence[System],
    *,
    level: float,
    resamples: int,
    seed: int,
    margin: float | None,
) -> tuple[list[tuple[Row, _Measured]], list[str]]:
    """The rows of one pair before anything that depends on the whole table."""
    first, second = (systems[place] for place in pair)
    both = [key for key in first.rows if key in second.rows]
    if not both:
        raise DataError(
            f"{first.name!r} and {second.name!r} have no item in common",
            todo="Examine both on the same suite: tutelage compare A B --suite FILE.jsonl",
        )
    _same_question(first, second, both)
    items = {**second.items, **first.items}
    grounds = Ground(items, first.people, resamples), Ground(items, second.people, resamples)
    cells: dict[tuple[str, str | None], list[Key]] = {}
    for key in first.rows:
        cells.setdefault((key[0], cell_of_row(first.rows[key])), []).append(key)
    theirs: dict[tuple[str, str | None], int] = {}
    for key in second.rows:
        if key not in first.rows:
            where = key[0], cell_of_row(second.rows[key])
            theirs[where] = theirs.get(where, 0) + 1
    found: list[tuple[Row, _Measured]] = []
    alone = [f"{_words(*where)}: only {second.name!r} was asked" for where in theirs if where not in cells]
    for where, keys in cells.items():
        shared = [(first.rows[key], second.rows[key]) for key in keys if key in second.rows]
        if not shared:
            alone.append(f"{_words(*where)}: only {first.name!r} was asked")
            continue
        kind, headline = shared[0][0].kind, shared[0][0].metric
        letters = [change(a, b) for a, b in shared]
        changes = {CHANGES[letter]: letters.count(letter) for letter in CHANGES if letter != "."}
        further = KIND.get(kind, ()) if HEADLINE.get(kind) == headline else ()
        for metric in (metric_of(kind, headline), *further[1:]):
            if metric.name == "judge" and first.judges.get(where[0]) != second.judges.get(where[0]):
                continue  # the word of one judge beside another's
            one = _measure(metric, shared, grounds, level=level, seed=seed, margin=margin)
            if metric.name != headline and not one.pairs:
                continue  # a further figure that this cell does not have
            row = Row(
                first=pair[0],
                second=pair[1],
                suite=where[0],
                cell=where[1],
                kind=kind,
                metric=metric.name,
                headline=metric.name == headline,
                higher_is_better=metric.higher,
                best=metric.best,
                values=one.values,
                difference=one.gap.difference,
                p=one.gap.p,
                test=one.gap.test,
                tests=one.gap.tests,
                detectable=None,
                only_first=len(keys) - len(shared),
                only_second=theirs.get(where, 0),
                unmeasured_first=sum(a.value is None for a, _ in shared),
                unmeasured_second=sum(b.value is None for _, b in shared),
                changes=changes,
                signature=one.signature,
            )
            found.append((row, one))
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
    table: list[tuple[Row, _Measured]] = []
    left_out: list[str] = []
    for pair in pairs:
        rows, alone = _rows_of(pair, chosen, level=level, resamples=resamples, seed=seed, margin=margin)
        table += rows
        left_out += alone
    families = {kind: [place for place, (row, _) in enumerate(table) if row.headline is kind] for kind in (True, False)}
    done: dict[int, Row] = {}
    for places in families.values():
        ps = [table[place][0].p for place in places]
        tests = max(1, sum(p is not None for p in ps))
        for place, p in zip(places, holm(ps), strict=True):
            done[place] = _decided(*table[place], p, tests, margin)
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
        tests=sum(row.headline and row.p is not None for row, _ in table),
    )


def _within(system: System, only: Sequence[str]) -> System:
    if not only:
        return system
    rows = {key: row for key, row in system.rows.items() if key[0] in only}
    if not rows:
        known = ", ".join(sorted({key[0] for key in system.rows}))
        raise DataError(f"{system.name!r} was not asked {', '.join(only)}", key="--only", todo=f"It was asked: {known}")
    return replace(system, rows=rows)


def _decided(row: Row, one: _Measured, p: float | None, tests: int, margin: float | None) -> Row:
    """The row with what depends on the whole table, and the tests against a margin."""
    smallest, reason = _detectable(one, 1)
    told: dict[str, Any] = {
        "p_holm": p,
        "family": tests,
        "detectable": smallest,
        "detectable_reason": reason,
        "detectable_holm": _detectable(one, tests)[0],
    }
    if one.metric.describes:
        return row.model_copy(update=told | {"verdict": "none"})
    gap = one.metric.upward(row.difference, *one.values)
    if p is not None and p < 0.05 and gap.value:
        told["verdict"] = "better" if gap.value > 0 else "worse"
    if margin is not None and one.narrow is not None:
        narrow = one.metric.upward(one.narrow, *one.values)
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
        metric = metric_of(row.kind, row.metric)
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
                    else Answer(
                        value=each.value,
                        outcome=each.outcome,
                        output=each.output,
                        reason=each.reason,
                        right=None if each.value is None else metric.right(each.value),
                    )
                    for each in rows
                ),
                changes=tuple(CHANGES[change(rows[a], rows[b])] for a, b in pairs),
            )
        )
    return found
