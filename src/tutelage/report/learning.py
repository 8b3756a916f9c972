"""What was learned and how: a table by stage, every cell with its interval, and the curves of training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from tutelage.report import charts
from tutelage.report.charts import Series
from tutelage.report.sections import Artifacts, load, of_kind, rows
from tutelage.report.tables import Column, badge, figure, group, point, table, words


def _cells(artifacts: Artifacts, *, headline: bool = True) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for _, artifact in of_kind(artifacts, "evaluation"):
        found += [cell for cell in (load(artifact, "summary.json") or {}).get("cells", []) if isinstance(cell, dict)]
    return [cell for cell in found if bool(cell.get("headline", True)) is headline]


def _baseline(cell: Mapping[str, Any]) -> tuple[str, float | None]:
    """The name and value of the best simple rule beside a cell."""
    base = cell.get("baseline")
    if isinstance(base, Mapping):
        return str(base.get("name", "baseline")), base.get("value")
    return "baseline", base if isinstance(base, int | float) else None


def _suite(cell: Mapping[str, Any]) -> str:
    """How a suite's cell is called in tables: `comprehension A (token F1)`."""
    name = words(cell.get("suite", ""))
    mark = cell.get("cell")
    metric = cell.get("metric")
    return name + (f" {mark}" if mark else "") + (f" ({words(metric)})" if metric else "")


def learned(artifacts: Artifacts) -> Markup | None:
    """What the model can do after each stage: a row per suite and cell, a column per stage."""
    cells = _cells(artifacts)
    targets = list(dict.fromkeys(str(cell.get("target")) for cell in cells))
    if not cells:
        return None
    by_name: dict[str, dict[str, dict[str, Any]]] = {}
    for cell in cells:
        by_name.setdefault(_suite(cell), {})[str(cell.get("target"))] = cell
    lines: list[list[Any]] = []
    for name, found in by_name.items():
        any_cell = next(iter(found.values()))
        rule, base = _baseline(any_cell)
        line: list[Any] = [name]
        for target in targets:
            one = found.get(target)
            if one is None:
                line.append(Markup('<span class="soft">·</span>'))
            elif one.get("value") is None:
                line.append(Markup('<span class="soft" title="{}">–</span>').format(one.get("reason") or "undefined"))
            else:
                tone = (
                    Markup('<span class="good" title="learned" aria-label="learned">✓</span>')
                    if one.get("learned")
                    else ""
                )
                low_high = Markup('<span class="sub">{} to {} {}</span>').format(
                    charts.fixed(one.get("low")), charts.fixed(one.get("high")), tone
                )
                line.append(Markup("{}{}").format(charts.fixed(one["value"]), low_high))
        line.append(Markup("{}").format(charts.fixed(any_cell.get("chance"))))
        line.append(
            Markup("{}<span class='sub'>{}</span>").format(charts.fixed(base), rule if base is not None else "")
        )
        line.append(charts.number(any_cell.get("n"), 6))
        lines.append(line)
    columns: list[Column] = [
        "suite",
        *[(t, "n") for t in targets],
        ("chance", "n"),
        ("best simple rule", "n"),
        ("n", "n"),
    ]
    return table(
        columns,
        lines,
        caption="95% intervals below each value; ✓ = learned: lower bound above chance and the best simple rule.",
    )


def evaluation(artifacts: Artifacts) -> Markup | None:
    """Every cell as an interval plot, suite by suite; then gold, paired changes between stages, the items that flipped
    and those that were met in training, and the controls."""
    cells = _cells(artifacts)
    targets = list(dict.fromkeys(str(cell.get("target")) for cell in cells))
    suites: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for cell in cells:
        suites.setdefault(words(cell.get("suite", "")), {}).setdefault(_suite(cell), []).append(cell)
    out = Markup("")
    for suite, by_name in suites.items():
        lines: list[Any] = []
        for name, found in by_name.items():
            lines += _plotted(name, found, targets)
        inside = table(["after", "value [95% interval]", ("0 to 1", "plot")], lines)
        out += Markup("<details><summary>{}: {} cell{}</summary>{}</details>").format(
            suite, len(by_name), "s" if len(by_name) > 1 else "", inside
        )
    if out:
        out = Markup('<p class="small soft">Dotted tick: chance. Solid tick: best simple rule.</p>') + out
    for _, artifact in of_kind(artifacts, "evaluation"):
        summary = load(artifact, "summary.json")
        if isinstance(summary, Mapping):
            out += _gold(summary) + _changes(summary) + _flips(summary) + _met(summary) + _controls(summary)
    return out or None


def _plotted(name: str, found: Sequence[Mapping[str, Any]], targets: Sequence[str]) -> list[Any]:
    top = max([1.0, *(point(c.get("high")) or 0.0 for c in found)])
    visible = next((c.get("visible_difference") for c in found if c.get("visible_difference") is not None), None)
    note = f" · smallest visible difference {charts.number(visible, 2)}" if visible is not None else ""
    lines: list[Any] = [group(name + note, 3)]
    for cell in found:
        rule, base = _baseline(cell)
        target = str(cell.get("target"))
        marks = {"chance": point(cell.get("chance")), rule: base}
        value, low, high = (point(cell.get(key)) for key in ("value", "low", "high"))
        plot = charts.interval(value, low, high, marks=marks, span=(0.0, top), index=targets.index(target))
        lines.append([target, figure(cell), Markup(plot)])
    return lines


def _dicts(value: Any) -> list[Mapping[str, Any]]:
    return [row for row in value if isinstance(row, Mapping)] if isinstance(value, list) else []


def _gold(summary: Mapping[str, Any]) -> Markup:
    """What the world itself says of the answers: right, rules kept, invented (the hallucination rate)."""
    rows_ = [row for row in _dicts(summary.get("gold")) if row.get("suite") is None]
    by_target: dict[str, dict[str, Mapping[str, Any]]] = {}
    for row in rows_:
        by_target.setdefault(str(row.get("target")), {})[str(row.get("metric"))] = row
    lines = [
        [target, *(_told(found.get(key)) for key in ("right", "kept", "invented", "gold"))]
        for target, found in by_target.items()
    ]
    if not lines:
        return Markup("")
    title = "Gold: the truth of the world, never seen by raters or reward model. Gold = right, kept, nothing invented."
    columns: list[Column] = ["after", "right", "rules kept", "invented (hallucinated)", "gold"]
    return Markup("<h3>Judged by gold</h3>") + table(columns, lines, caption=title)


def _told(row: Mapping[str, Any] | None) -> Any:
    return {key: row.get(key) for key in ("value", "low", "high", "n", "reason")} if row else None


def _changes(summary: Mapping[str, Any]) -> Markup:
    """Paired differences from one stage to the next, on the same items."""
    lines = []
    for row in _dicts(summary.get("changes")):
        told = _told(row) or {}
        plot = charts.interval(point(told), told.get("low"), told.get("high"), span=(-1.0, 1.0))
        name = f"{words(row.get('suite'))} {row.get('cell') or ''}".strip()
        name += "" if row.get("headline", True) else f" ({words(row.get('metric'))})"
        step = f"{row.get('before')} → {row.get('after')}"
        lines.append([step, name, told, charts.number(point(row.get("p_holm"))), Markup(plot)])
    if not lines:
        return Markup("")
    columns: list[Column] = ["step", "suite", "change [95%]", ("p (Holm)", "n"), ("−1 to 1", "plot")]
    family = next((row.get("family") for row in _dicts(summary.get("changes")) if row.get("headline", True)), None)
    over = f"the {family} first figures" if family else "the comparisons"
    inside = table(columns, lines, caption=f"Paired by item; p corrected for {over} told here (Holm), others apart.")
    told_ = Markup("<details><summary>What each stage changed, item by item: {} comparisons</summary>{}</details>")
    return told_.format(len(lines), inside)


def _flips(summary: Mapping[str, Any]) -> Markup:
    """Items that a stage fixed and broke, all suites together."""
    lines = [
        [
            f"{row.get('before')} → {row.get('after')}",
            str(len(row.get("fixed") or ())),
            str(len(row.get("broken") or ())),
            _told(row.get("difference")),
            charts.number(point(row.get("p"))),
        ]
        for row in _dicts(summary.get("flips"))
        if row.get("suite") is None
    ]
    if not lines:
        return Markup("")
    columns: list[Column] = ["step", ("fixed", "n"), ("broken", "n"), "fixed − broken [95%]", ("p", "n")]
    inside = table(columns, lines, caption="By what each metric calls a change; share of the items, by their groups.")
    return Markup("<details><summary>Items that each stage fixed and broke</summary>{}</details>").format(inside)


def _met(summary: Mapping[str, Any]) -> Markup:
    """Figures of items that a model met in training, beside those of the others."""
    every = _dicts(summary.get("contamination"))

    def count(row: Mapping[str, Any], side: str) -> int:
        found = row.get(side)
        return int(found.get("n") or 0) if isinstance(found, Mapping) else 0

    looked = [row for row in every if any(count(row, side) for side in ("clean", "dirty", "not_examinable"))]
    lines = [
        [
            Markup("{}<span class='sub'>{}</span>").format(row.get("target"), _suite(row)),
            *(_told(row.get(side)) for side in ("clean", "dirty", "difference")),
            str(count(row, "not_examinable")),
        ]
        for row in looked
        if count(row, "dirty") or count(row, "not_examinable")
    ]
    if not every:
        return Markup("")
    met, hidden = (sum(count(row, side) for row in looked) for side in ("dirty", "not_examinable"))
    told = f"Of the answers told here {met} are to items that stand in what the model learned from"
    told += f"; of {hidden} it cannot be told." if hidden else "."
    unknown = sorted({str(row.get("target")) for row in every} - {str(row.get("target")) for row in looked})
    told += f" What these learned from is not here: {', '.join(unknown)}." if unknown else ""
    columns: list[Column] = ["after", "clean", "met in training", "clean − met", ("cannot be told", "n")]
    inside = table(columns, lines, caption="Cannot be told: no run of words that is the item's own.") if lines else ""
    return Markup("<details><summary>Items met in training</summary><p>{}</p>{}</details>").format(told, inside)


def _controls(summary: Mapping[str, Any]) -> Markup:
    """The controls that must fail, beside every claim; those that do not behave stand in front."""
    columns: list[Column] = ["control", "target", "figure [95%]", "must be", ""]
    every: list[list[Any]] = []
    wrong: list[list[Any]] = []
    for row in _dicts(summary.get("controls")):
        holds = row.get("holds")
        mark = badge("not enough data", "warn") if holds is None else badge("holds", "good")
        mark = mark if holds is not False else badge("does not hold", "bad")
        name = f"{words(row.get('control'))}: {words(row.get('suite', ''))}"
        every.append([name, row.get("target"), _told(row), row.get("expected"), mark])
        if holds is False:
            wrong.append(every[-1])
    if not every:
        return Markup("")
    line = f"What must fail if these figures mean anything: {len(every) - len(wrong)} of {len(every)} do as they must."
    out = Markup("<h3>Controls</h3><p>{}</p>").format(line)
    if wrong:
        out += table(columns, wrong, caption="Those that do not: read the figures of these suites with doubt.")
    return out + Markup("<details><summary>All controls</summary>{}</details>").format(table(columns, every))


def curves(artifacts: Artifacts) -> Markup | None:
    """Losses and watched figures of every training stage, and reward beside KL where a stage has them."""
    drawn: list[str] = []
    tables = Markup("")
    for name, artifact in artifacts.items():
        log, watched = rows(artifact.path / "metrics.jsonl"), rows(artifact.path / "watch.jsonl")
        if len(log) > 1 and "step" in log[0]:
            drawn += _training(name, log, watched)
        if len(watched) > 1 and "step" in watched[0]:
            drawn += _watched(name, watched)
            tables += _suites(name, watched, kept_step(artifact.metrics))
    if not drawn:
        return None
    cards = Markup("").join(Markup('<div class="card">{}</div>').format(Markup(each)) for each in drawn)
    return Markup('<div class="grid">{}</div>{}').format(cards, tables)


def _series(log: Sequence[Mapping[str, Any]], key: str, label: str = "") -> Series:
    points = [(float(row["step"]), point(row.get(key))) for row in log if "step" in row and key in row]
    return Series(label or words(key), points)


REWARDS = ("reward", "score", "gold")
"""Keys of a reinforcement stage's rows that belong on the reward chart, when there."""
DISTANCES = {"kl": "nats", "entropy": "nats", "length": "tokens"}
"""What is charted beside the reward, each on a scale of its own, with its unit."""


HELD_OUT = {"validation": "held out", "pretraining": "pre-training text", "loss": "held out"}
"""Keys of the watch that are losses in the unit of the training loss, and what they are called."""


def _training(name: str, log: Sequence[Mapping[str, Any]], watched: Sequence[Mapping[str, Any]]) -> list[str]:
    keys = {key for row in log for key in row}
    drawn: list[str] = []
    rewards = [key for key in REWARDS if key in keys]
    if rewards:
        drawn.append(charts.line([_series(log, key) for key in rewards], title=f"{name}: reward"))
        for key, unit in DISTANCES.items():
            if key in keys:
                drawn.append(charts.line([_series(log, key)], title=f"{name}: {words(key)}", y_label=unit, zero=True))
    elif "loss" in keys:
        beside = [_series(watched, k, v) for k, v in HELD_OUT.items() if any(k in row for row in watched)]
        lines = [_series(log, "loss", "training"), *beside]
        drawn.append(charts.line(lines, title=f"{name}: loss", y_label="nats per target"))
    accuracy = [key for key in ("accuracy", "margin") if key in keys]
    drawn += [charts.line([_series(log, key)], title=f"{name}: {words(key)}") for key in accuracy[:1]]
    return drawn


def _watched(name: str, log: Sequence[Mapping[str, Any]]) -> list[str]:
    """The mean over all watched items, with twice its standard error as a band."""
    found = [
        (float(r["step"]), point(r.get("watched")), point(r.get("watched_error")) or 0.0) for r in log if "step" in r
    ]
    known = [(x, y, error) for x, y, error in found if y is not None]
    if len(known) < 2:
        return []
    line = Series(
        "watched items", [(x, y) for x, y, _ in known],
        [(x, y - 2 * e) for x, y, e in known], [(x, y + 2 * e) for x, y, e in known],
    )  # fmt: skip
    return [
        charts.line(
            [line], title=f"{name}: examined while it learns", y_label="mean score ± 2 standard errors", zero=True
        )
    ]


def kept_step(metrics: Mapping[str, Any]) -> float:
    """The step whose weights a stage saved: where it kept its best ones that of their look, else the last."""
    best = metrics.get("best")
    return float(best["step"]) if isinstance(best, Mapping) else math.inf


def _suites(name: str, log: Sequence[Mapping[str, Any]], kept: float) -> Markup:
    """Each watched figure before the stage and at the look whose weights it saved: what was learned, and forgotten."""
    keys = [
        k for k in dict.fromkeys(k for row in log for k in row) if k not in ("step", "watched_error", "watched_items")
    ]
    lines = []
    for key in keys:
        values = [v for row in log if row["step"] <= kept and (v := point(row.get(key))) is not None]
        if values:
            change = values[-1] - values[0]
            lines.append([words(key), charts.number(values[0]), charts.number(values[-1]), f"{change:+.3f}"])
    if not lines:
        return Markup("")
    columns: list[Column] = ["", ("before", "n"), ("after", "n"), ("change", "n")]
    told = Markup("<details><summary>{}: watched figures, before and after</summary>{}</details>")
    return told.format(name, table(columns, lines, caption="Few items: a rough watch, not an examination."))
