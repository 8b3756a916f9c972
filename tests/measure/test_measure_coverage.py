"""Intervals cover what they promise and tests keep their level, as docs/statistics.md states them.

The quick half draws some of every table again: as the document says to the digit, and within the binomial error of what
it says of all draws. The slow half draws everything and writes the tables.
"""

import math

import pytest
from scipy import stats

from tests.measure import simulated, simulation
from tutelage.measure import statistics as s


def rows(name):
    return list(simulated.TABLES[name]())


@pytest.mark.parametrize("name", simulated.TABLES)
def test_the_table_was_made_by_this_code(name):
    stated, expected = simulation.committed(name), rows(name)
    assert [cells[:4] for cells in stated] == [[r.method, r.setting, r.n, r.promised] for r in expected]
    for row, cells in zip(expected, stated, strict=True):
        *_, draws, shown = cells
        assert int(draws.split(",")[0]) == row.draws, row.name
        first = row.measured(row.block)
        assert _numbers(shown) == pytest.approx(_numbers(simulation.told(first)), rel=1e-3), row.name
        share, measured = float(cells[4]), simulation.Measured(0, row.draws, row.draws, None)
        # what a few draws show is what all show: beyond the binomial error either the seeds or the code are others
        assert stats.binomtest(first.hits, first.told, share).pvalue > 1e-5 if first.told else math.isnan(share), (
            row.name
        )
        hits = round(share * measured.told)
        assert simulation.verdict(row.promised, measured._replace(hits=hits)) == cells[5], row.name


def _numbers(shown):
    hits, _, width = shown.partition(" ")
    return [float(each) for each in (*hits.split("/"), width or "0")]


def test_rows_draw_from_seeds_of_their_own():
    names = [row.name for name in simulated.TABLES for row in rows(name)]
    assert len(set(names)) == len(names)
    one = next(row for row in rows("rates") if row.method == "wilson")
    assert list(one.blocks(70))[:50] == list(one.blocks(50))


@pytest.mark.parametrize("method", ["wilson", "clopper_pearson"])
def test_coverage_of_a_rate_is_the_sum_over_all_counts(method):
    """The simulation beside the exact coverage, which a rate has."""
    of = getattr(s, method)
    for n, p in ((20, 0.1), (100, 0.5)):
        exact = sum(stats.binom.pmf(k, n, p) for k in range(n + 1) if of(k, n).low <= p <= of(k, n).high)
        stated = next(c for c in simulation.committed("rates") if c[:3] == [method, f"rate {p}", str(n)])
        draws = int(stated[7])
        assert float(stated[4]) == pytest.approx(exact, abs=4 * math.sqrt(exact * (1 - exact) / draws) + 5e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", simulated.TABLES)
def test_draw_everything_and_write_the_table(name):
    changed = simulation.write(name, simulation.table(rows(name)))
    assert not changed, f"docs/statistics.md held another table of {name}; it is written anew: read it and commit it"
