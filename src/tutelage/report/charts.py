"""Small charts as SVG text: lines, intervals, bars, a matrix. No script, no inline style, two themes by CSS variables.

Every chart has a title and a description for screen readers; colours come from classes `s1` to `s6` of style.css,
each with its own dash or shape, so that nothing depends on colour alone. Text that a reader needs (labels, figures)
stands in HTML beside the drawing wherever it can, so it wraps and scales like text.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Final

PALETTE: Final = 6
"""How many series have a colour of their own; later ones start again with another dash."""


@dataclass(frozen=True)
class Series:
    """One line: `points` are (x, y); a point whose y is None or not finite breaks the line."""

    name: str
    points: Sequence[tuple[float, float | None]]
    low: Sequence[tuple[float, float | None]] = field(default=())
    high: Sequence[tuple[float, float | None]] = field(default=())


@dataclass(frozen=True)
class Cell:
    """One cell of a matrix: a share between 0 and 1 (None = undefined, with a reason), and what to print."""

    value: float | None
    text: str
    title: str = ""


def number(value: float | None, digits: int = 3) -> str:
    """A figure as people read it: 3 significant digits, thousands apart, an en dash for undefined."""
    if value is None or not math.isfinite(value):
        return "–"
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 1000:
        return f"{value:,.0f}".replace(",", "\u202f")
    if size < 0.001:
        return f"{value:.1e}"
    text = f"{value:.{max(0, digits - 1 - math.floor(math.log10(size)))}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def fixed(value: float | None, digits: int = 2) -> str:
    """A figure of a column of figures: always the same number of decimals."""
    return "–" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def share(value: float | None) -> str:
    """A share as percent, an en dash for undefined."""
    if value is None or not math.isfinite(value):
        return "–"
    percent = 100 * value
    return f"{percent:.1f}%" if 0 < percent < 10 or 99 < percent < 100 else f"{percent:.0f}%"


def ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Round positions (1, 2, 5 x 10^k) inside [low, high], about `wanted` of them."""
    if not (math.isfinite(low) and math.isfinite(high)) or high <= low:
        return [low]
    rough = (high - low) / max(1, wanted)
    power = 10 ** math.floor(math.log10(rough))
    step = next((m * power for m in (1, 2, 5, 10) if m * power >= rough), 10 * power)
    first = math.ceil(low / step - 1e-9)
    return [round(k * step, 12) for k in range(first, math.floor(high / step + 1e-9) + 1)]


def _style(index: int) -> str:
    return f"s{index % PALETTE + 1}" + (" again" if index >= PALETTE else "")


def _runs(points: Sequence[tuple[float, float | None]]) -> list[list[tuple[float, float]]]:
    """The stretches of finite points: a gap in the data is a gap in the line."""
    runs: list[list[tuple[float, float]]] = [[]]
    for x, y in points:
        if y is None or not math.isfinite(y):
            runs.append([])
        else:
            runs[-1].append((x, y))
    return [run for run in runs if run]


def thin(points: Sequence[tuple[float, float | None]], most: int = 240) -> list[tuple[float, float | None]]:
    """At most about `most` points, keeping the lowest and highest of every bucket, so that no spike is hidden."""
    if len(points) <= most:
        return list(points)
    size = math.ceil(2 * len(points) / most)
    kept: list[tuple[float, float | None]] = [points[0]]
    for start in range(1, len(points) - 1, size):
        bucket = points[start : min(start + size, len(points) - 1)]
        finite = [p for p in bucket if p[1] is not None and math.isfinite(p[1])]
        if not finite:
            kept.append(bucket[0])
            continue
        extremes = {min(finite, key=lambda p: p[1] or 0.0), max(finite, key=lambda p: p[1] or 0.0)}
        kept.extend(sorted(extremes))
    return [*kept, points[-1]]


WIDTH, HEIGHT = 460, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 14, 12, 34


def line(
    series: Sequence[Series],
    *,
    title: str,
    x_label: str = "step",
    y_label: str = "",
    log: bool = False,
    zero: bool = False,
    marks: Sequence[tuple[float, str]] = (),
) -> str:
    """A figure with lines, a legend in HTML, and shaded bands where a series has `low` and `high`.

    `zero` makes the axis start at 0; `log` draws the x axis logarithmic; `marks` are horizontal reference lines
    (value, label). Returns a paragraph with the reason when nothing can be drawn.
    """
    drawn = [Series(s.name, thin(s.points), thin(s.low), thin(s.high)) for s in series]
    finite = [p for s in drawn for part in (s.points, s.low, s.high) for run in _runs(part) for p in run]
    if not finite:
        return f'<p class="none">{escape(title)}: nothing was recorded.</p>'
    xs = [x for x, _ in finite]
    ys = [y for _, y in finite] + [y for y, _ in marks]
    x0, x1, y0, y1 = min(xs), max(xs), min(ys), max(ys)
    if zero:
        y0, y1 = min(0.0, y0), max(0.0, y1)
    pad = 0.06 * (y1 - y0) or 0.5 * abs(y1) or 0.5
    y0, y1 = (y0 if zero and y0 == 0 else y0 - pad), y1 + pad
    log = log and x0 > 0 and x1 / x0 > 10
    if x1 == x0:
        x0, x1 = x0 - 0.5, x1 + 0.5

    def px(x: float) -> float:
        part = math.log(x / x0) / math.log(x1 / x0) if log else (x - x0) / (x1 - x0)
        return round(_LEFT + part * (WIDTH - _LEFT - _RIGHT), 1)

    def py(y: float) -> float:
        return round(HEIGHT - _BOTTOM - (y - y0) / (y1 - y0) * (HEIGHT - _TOP - _BOTTOM), 1)

    out: list[str] = []
    for y in ticks(y0, y1, 5):
        out.append(f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{py(y)}" y2="{py(y)}"/>')
        out.append(f'<text class="tick end" x="{_LEFT - 6}" y="{py(y) + 4}">{number(y)}</text>')
    places = [10.0**k for k in range(math.ceil(math.log10(x0)), math.floor(math.log10(x1)) + 1)] if log else None
    marked = places or ticks(x0, x1, 5)
    if all(x == int(x) for x in xs):  # steps and weeks are whole: nothing happens at 1.5
        marked = [x for x in marked if x == int(x)] or [x0, x1]
    for x in marked:
        out.append(f'<text class="tick mid" x="{px(x)}" y="{HEIGHT - 16}">{number(x)}</text>')
    out.append(f'<text class="axis mid" x="{(WIDTH + _LEFT) / 2:.0f}" y="{HEIGHT - 2}">{escape(x_label)}</text>')
    for y, label in marks:
        out.append(f'<line class="mark" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{py(y)}" y2="{py(y)}"/>')
        out.append(f'<text class="axis end" x="{WIDTH - _RIGHT}" y="{py(y) - 4}">{escape(label)}</text>')
    for index, s in enumerate(drawn):
        for lows, highs in zip(_runs(s.low), _runs(s.high), strict=False):
            ring = [*lows, *reversed(highs)]
            out.append(f'<polygon class="band {_style(index)}" points="{_points(ring, px, py)}"/>')
        for run in _runs(s.points):
            if len(run) == 1:
                out.append(f'<circle class="dot {_style(index)}" cx="{px(run[0][0])}" cy="{py(run[0][1])}" r="3"/>')
            else:
                out.append(f'<polyline class="line {_style(index)}" points="{_points(run, px, py)}"/>')
    told = "; ".join(f"{s.name}: {_told(s)}" for s in drawn)
    heading = escape(title) + (f' <span class="unit">{escape(y_label)}</span>' if y_label else "")
    return (
        f'<figure class="chart"><figcaption>{heading}</figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(f"{title}. {told}")}">{"".join(out)}</svg>'
        f"{legend([s.name for s in drawn])}</figure>"
    )


def _points(run: Sequence[tuple[float, float]], px, py) -> str:  # type: ignore[no-untyped-def]
    return " ".join(f"{px(x)},{py(y)}" for x, y in run)


def _told(series: Series) -> str:
    """The line in words: where it starts and ends."""
    flat = [p for run in _runs(series.points) for p in run]
    if not flat:
        return "nothing recorded"
    return f"from {number(flat[0][1])} at {number(flat[0][0])} to {number(flat[-1][1])} at {number(flat[-1][0])}"


def legend(names: Sequence[str]) -> str:
    """The names of the series beside their strokes; empty for a single one."""
    if len(names) < 2:
        return ""
    items = "".join(
        f'<li><svg class="key" viewBox="0 0 24 8" aria-hidden="true"><line class="line {_style(i)}" '
        f'x1="1" x2="23" y1="4" y2="4"/></svg>{escape(name)}</li>'
        for i, name in enumerate(names)
    )
    return f'<ul class="legend">{items}</ul>'


def interval(
    value: float | None,
    low: float | None,
    high: float | None,
    *,
    marks: Mapping[str, float | None] | None = None,
    span: tuple[float, float] = (0.0, 1.0),
    index: int = 0,
    told: str = "",
) -> str:
    """One row of an interval plot: the interval as a bar, the value as a dot, `marks` (chance, baseline) as ticks.

    Rows share `span`, so they line up in a table column. Undefined draws the marks only.
    """
    left, right = span
    width = right - left or 1.0

    def px(x: float) -> float:
        return round(4 + 192 * min(1.0, max(0.0, (x - left) / width)), 1)

    out = ['<line class="grid" x1="4" x2="196" y1="10" y2="10"/>']
    if left < 0 < right:
        out.append(f'<line class="zero" x1="{px(0)}" x2="{px(0)}" y1="1" y2="19"/>')
    for place, (name, at) in enumerate((marks or {}).items()):
        if at is not None and math.isfinite(at):
            shape = "chance" if place == 0 else "base"
            out.append(
                f'<line class="{shape}" x1="{px(at)}" x2="{px(at)}" y1="2" y2="18">'
                f"<title>{escape(name)} {number(at)}</title></line>"
            )
    if value is not None and math.isfinite(value):
        if low is not None and high is not None:
            out.append(f'<line class="whisker {_style(index)}" x1="{px(low)}" x2="{px(high)}" y1="10" y2="10"/>')
        out.append(f'<circle class="dot {_style(index)}" cx="{px(value)}" cy="10" r="4.5"/>')
    label = escape(told or f"{number(value)}, interval {number(low)} to {number(high)}")
    return f'<svg class="interval" viewBox="0 0 200 20" role="img" aria-label="{label}">{"".join(out)}</svg>'


def bar(part: float | None, *, index: int = 0, told: str = "") -> str:
    """A share between 0 and 1 as a horizontal bar, to stand in a table beside its figure."""
    width = 0.0 if part is None or not math.isfinite(part) else 196 * min(1.0, max(0.0, part))
    label = escape(told or share(part))
    return (
        f'<svg class="bar" viewBox="0 0 200 12" role="img" aria-label="{label}">'
        f'<rect class="track" x="2" y="2" width="196" height="8" rx="4"/>'
        f'<rect class="fill {_style(index)}" x="2" y="2" width="{width:.1f}" height="8" rx="4"/></svg>'
    )


def matrix(
    rows: Sequence[str],
    columns: Sequence[str],
    cells: Mapping[tuple[str, str], Cell],
    *,
    caption: str,
    corner: str = "",
) -> str:
    """A heat map as a table: each cell prints its figure and its title, shaded in eleven steps, `h0` to `h10`."""
    head = "".join(f'<th scope="col">{escape(c)}</th>' for c in columns)
    body = []
    for row in rows:
        line_ = [f'<th scope="row">{escape(row)}</th>']
        for column in columns:
            cell = cells.get((row, column))
            if cell is None:
                line_.append('<td class="empty" aria-label="not measured"></td>')
                continue
            defined = cell.value is not None and math.isfinite(cell.value)
            step = f"h{round(10 * min(1.0, max(0.0, cell.value or 0.0)))}" if defined else "undefined"
            below = f'<span class="sub">{escape(cell.title)}</span>' if cell.title else ""
            line_.append(f'<td class="{step}">{escape(cell.text)}{below}</td>')
        body.append(f"<tr>{''.join(line_)}</tr>")
    return (
        f'<p class="small soft">{escape(caption)}</p>'
        f'<div class="scroll"><table class="matrix" aria-label="{escape(caption)}">'
        f'<thead><tr><th scope="col">{escape(corner)}</th>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )
