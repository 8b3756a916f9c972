"""Charts: gaps stay gaps, spikes stay seen, nothing undefined is drawn as zero."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from tutelage.report import charts, tables


def test_numbers_as_people_read_them() -> None:
    wanted = {0.5: "0.5", 0.12345: "0.123", 12.345: "12.3", 1234567.0: "1\u202f234\u202f567", 0.0: "0", 99.96: "100"}
    assert {value: charts.number(value) for value in wanted} == wanted
    assert charts.number(None) == charts.number(math.nan) == "–"
    assert charts.number(0.00001234) == "1.2e-05"
    assert charts.share(0.031) == "3.1%" and charts.share(0.5) == "50%" and charts.share(None) == "–"


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6), st.integers(2, 8))
def test_ticks_lie_inside_and_rise(low: float, width: float, wanted: int) -> None:
    found = charts.ticks(low, low + width, wanted)
    assert found == sorted(found) and len(found) <= 2 * wanted + 2
    assert all(low - 1e-6 * width <= tick <= low + width + 1e-6 * width for tick in found) or len(found) == 1


@given(st.lists(st.one_of(st.none(), st.floats(-100, 100)), min_size=2, max_size=3000))
def test_thinning_keeps_the_extremes(values: list[float | None]) -> None:
    points = [(float(i), v) for i, v in enumerate(values)]
    kept = [v for _, v in charts.thin(points) if v is not None]
    finite = [v for v in values if v is not None]
    if finite:
        assert max(kept) == max(finite) and min(kept) == min(finite)
    assert len(charts.thin(points)) <= 250


def test_a_gap_in_the_data_is_a_gap_in_the_line() -> None:
    svg = charts.line(
        [charts.Series("a", [(1, 1.0), (2, 2.0), (3, None), (4, 2.0), (5, math.nan), (6, 1.0)])], title="t"
    )
    assert svg.count("<polyline") == 1 and svg.count("<circle") == 2
    assert "nan" not in svg


def test_nothing_recorded_is_said() -> None:
    assert "nothing was recorded" in charts.line([charts.Series("a", [(1, None)])], title="t")


def test_an_undefined_interval_draws_no_dot() -> None:
    svg = charts.interval(None, None, None, marks={"chance": 0.3})
    assert "<circle" not in svg and 'class="chance"' in svg


def test_a_missing_cell_is_not_a_zero() -> None:
    html = charts.matrix(["r"], ["c", "d"], {("r", "c"): charts.Cell(None, "–", "n too small")}, caption="x")
    assert 'class="undefined"' in html and 'class="empty"' in html and 'class="h0"' not in html


def test_figures_state_interval_n_and_reason() -> None:
    told = tables.figure({"value": 0.5, "low": 0.4, "high": 0.6, "n": 20})
    assert "0.5" in told and "[0.4, 0.6]" in told and "n=20" in told
    assert "too few" in tables.figure({"value": None, "reason": "too few", "n": 3})
    assert tables.figure(None) != tables.figure(0)


def test_text_is_escaped_everywhere() -> None:
    evil = "<b onclick=x>"
    shown = [
        charts.line(
            [charts.Series(evil, [(1, 1.0), (2, 2.0)]), charts.Series("b", [(1, 1.0)])], title=evil, y_label=evil
        ),
        charts.matrix([evil], [evil], {(evil, evil): charts.Cell(0.2, evil, evil)}, caption=evil, corner=evil),
        tables.anything({evil: [{evil: evil}], "x": {evil: {"value": None, "reason": evil}}}),
        charts.bar(0.5, told=evil),
    ]
    assert all("<b on" not in html for html in shown)
