"""Figures and tables as HTML: one way to print a number with its n and interval, everywhere."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from markupsafe import Markup, escape

from tutelage.report.charts import number, share

Cell = str | Markup | float | int | None
Column = str | tuple[str, str]
"""A heading, or (heading, class): `n` for figures, `plot` for a drawing, `nowrap`."""

LABELS = {"ece": "calibration error (ECE)", "n": "n", "kl": "KL", "asr": "attack success", "fpr": "false-positive rate"}


def words(name: object) -> str:
    """A key of a file as words: `false_positive_rate` -> `false positive rate`."""
    text = str(name)
    return LABELS.get(text, text.replace("_", " "))


def is_figure(value: Any) -> bool:
    """True for a mapping that states a figure: a value with an interval, an n or a reason."""
    return isinstance(value, Mapping) and "value" in value and bool({"low", "high", "n", "reason"} & set(value))


def point(value: Any) -> float | None:
    """The number in a plain value or in a figure; None for anything else."""
    value = value.get("value") if isinstance(value, Mapping) else value
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def figure(value: Any, *, percent: bool = False, n: bool = True) -> Markup:
    """A figure as people read it: value, its interval, its n; undefined with the reason."""
    shown = share if percent else number
    if value is None:
        return Markup('<span class="soft">–</span>')
    if isinstance(value, bool):
        return Markup("yes" if value else "no")
    if isinstance(value, int | float):
        return escape(shown(float(value)))
    if not is_figure(value):
        return escape(str(value))
    if value["value"] is None:
        reason = value.get("reason") or "not defined"
        size = Markup(" (n={})").format(value["n"]) if n and value.get("n") is not None else ""
        return Markup('<span class="soft">– {}{}</span>').format(reason, size)
    parts = Markup("<strong>{}</strong>").format(shown(float(value["value"])))
    low, high = value.get("low"), value.get("high")
    if low is not None and high is not None:
        parts += Markup(' <span class="soft">[{}, {}]</span>').format(shown(float(low)), shown(float(high)))
    if n and value.get("n") is not None:
        parts += Markup(' <span class="soft">n={}</span>').format(number(float(value["n"]), 6))
    return parts


def cell(value: Any) -> Markup:
    """Anything that may stand in a table cell."""
    if isinstance(value, Markup):
        return value
    if isinstance(value, str):
        return escape(value)
    if isinstance(value, Mapping) and not is_figure(value):
        inside = [Markup("{} {}").format(words(k), cell(v)) for k, v in value.items() if not isinstance(v, Mapping)]
        return Markup(", ").join(inside[:6])
    if isinstance(value, list | tuple):
        return Markup(", ").join(cell(each) for each in value[:8]) + ("…" if len(value) > 8 else "")
    return figure(value)


def table(
    columns: Sequence[Column],
    rows: Iterable[Sequence[Any] | Markup],
    *,
    caption: str = "",
    stack: bool = True,
    header: bool = True,
) -> Markup:
    """A table whose first column heads each row; on narrow screens its rows become blocks (`stack`).

    A row may also be a Markup made by `group`. Returns a line saying so when there are no rows.
    """
    heads = [(c, "") if isinstance(c, str) else c for c in columns]
    body: list[Markup] = []
    for row in rows:
        if isinstance(row, Markup):
            body.append(row)
            continue
        cells = []
        for place, (value, (label, kind)) in enumerate(zip(row, heads, strict=False)):
            css = Markup(' class="{}"').format(kind) if kind else ""
            if place == 0 and header:
                cells.append(Markup('<th scope="row"{}>{}</th>').format(css, cell(value)))
            else:
                named = Markup(' data-label="{}"').format(label) if label and kind != "plot" else ""
                cells.append(Markup("<td{}{}>{}</td>").format(css, named, cell(value)))
        body.append(Markup("<tr>{}</tr>").format(Markup("").join(cells)))
    if not body:
        return Markup('<p class="none">{}</p>').format(
            f"{caption}: nothing to show." if caption else "Nothing to show."
        )
    head = Markup("").join(
        Markup('<th scope="col"{}>{}</th>').format(Markup(' class="{}"').format(kind) if kind else "", label)
        for label, kind in heads
    )
    return Markup('<div class="scroll"><table{}>{}<thead><tr>{}</tr></thead><tbody>{}</tbody></table></div>').format(
        Markup(' class="stack"') if stack else "",
        Markup("<caption>{}</caption>").format(caption) if caption else "",
        head,
        Markup("").join(body),
    )


def group(label: str, width: int) -> Markup:
    """A row that heads the rows below it."""
    return Markup('<tr class="group"><th colspan="{}" scope="colgroup">{}</th></tr>').format(width, label)


def facts(pairs: Iterable[tuple[str, Any]]) -> Markup:
    """Names and values, one under the other; pairs without a value are left out."""
    lines = [
        Markup("<dt>{}</dt><dd>{}</dd>").format(name, cell(value))
        for name, value in pairs
        if value is not None and value != ""
    ]
    return Markup('<dl class="facts">{}</dl>').format(Markup("").join(lines)) if lines else Markup("")


def anything(data: Any, *, depth: int = 0, skip: frozenset[str] = frozenset()) -> Markup:
    """Any JSON as headings, facts and tables: what a later stage writes is shown before this page knows of it."""
    if is_figure(data) or not isinstance(data, Mapping | list | tuple):
        return Markup("<p>{}</p>").format(cell(data))
    if isinstance(data, list | tuple):
        rows = [row for row in data if isinstance(row, Mapping)]
        if rows and len(rows) == len(data):
            keys = list(dict.fromkeys(key for row in rows for key in row if key not in skip))[:9]
            return table([words(key) for key in keys], ([row.get(key) for key in keys] for row in rows[:60]))
        return Markup("<p>{}</p>").format(cell(list(data)))
    flat = {k: v for k, v in data.items() if k not in skip and (is_figure(v) or not isinstance(v, Mapping | list))}
    deep = {k: v for k, v in data.items() if k not in skip and k not in flat and v}
    out = facts((words(k), v) for k, v in flat.items())
    same = list(deep.values())
    if len(same) > 1 and all(isinstance(v, Mapping) and set(v) == set(same[0]) and _of_figures(v) for v in same):
        keys = list(same[0])
        return out + table(["", *map(words, keys)], ([words(k), *(v[key] for key in keys)] for k, v in deep.items()))
    for key, value in deep.items():
        if depth < 3:
            title = Markup("<h3>{}</h3>" if depth < 2 else "<p><strong>{}</strong></p>").format(words(key))
            out += title + anything(value, depth=depth + 1, skip=skip)
    return out


def _of_figures(value: Mapping[str, Any]) -> bool:
    return all(is_figure(v) or not isinstance(v, Mapping | list) for v in value.values())


def badge(text: str, tone: str = "") -> Markup:
    """A small word with a tone: good, warn, bad, tint or none."""
    return Markup('<span class="badge {}">{}</span>').format(tone, text)


def duration(seconds: float | None) -> str:
    """Seconds as people say them: 8 s, 2 min 5 s, 1 h 12 min."""
    if seconds is None or not math.isfinite(seconds):
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"
