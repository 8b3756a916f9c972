"""What was learned and how: a table by stage, every cell with its interval, and the curves of training."""

from __future__ import annotations

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
                tone = badge("learned", "good") if one.get("learned") else Markup("")
                low_high = Markup('<span class="sub">{} to {} {}</span>').format(
                    charts.fixed(one.get("low")), charts.fixed(one.get("high")), tone
                )
                line.append(Markup("{}{}").format(charts.fixed(one["value"]), low_high))
        line.append(Markup("{}").format(charts.fixed(any_cell.get("chance"))))
        line.append(Markup("{}<span class='sub'>{}</span>").format(charts.fixed(base), rule))
        line.append(charts.number(any_cell.get("n"), 6))
        lines.append(line)
    columns: list[Column] = [
        "suite",
        *[(t, "n") for t in targets],
        ("chance", "n"),
        ("best simple rule", "n"),
        ("n", "n"),
    ]
    return table(columns, lines, caption="95% intervals below each value; “learned” = lower bound above both rules.")


def evaluation(artifacts: Artifacts) -> Markup | None:
    """Every cell as an interval plot: one row per target, chance and the best simple rule as ticks."""
    cells = _cells(artifacts)
    targets = list(dict.fromkeys(str(cell.get("target")) for cell in cells))
    by_name: dict[str, list[dict[str, Any]]] = {}
    for cell in cells:
        by_name.setdefault(_suite(cell), []).append(cell)
    lines: list[Any] = []
    for name, found in by_name.items():
        top = max([1.0, *(float(c["high"]) for c in found if c.get("high") is not None)])
        visible = next((c.get("visible_difference") for c in found if c.get("visible_difference") is not None), None)
        note = f" · smallest visible difference {charts.number(visible, 2)}" if visible is not None else ""
        lines.append(group(name + note, 3))
        for cell in found:
            rule, base = _baseline(cell)
            plot = charts.interval(
                cell.get("value"),
                cell.get("low"),
                cell.get("high"),
                marks={"chance": cell.get("chance"), rule: base},
                span=(0.0, top),
                index=targets.index(str(cell.get("target"))),
            )
            lines.append([str(cell.get("target")), figure(cell), Markup(plot)])
    if not lines:
        return None
    keys = Markup('<p class="small soft">Dotted tick: chance. Solid tick: best simple rule.</p>')
    return keys + table(["after", "value [95% interval]", ("0 to 1", "plot")], lines)


def curves(artifacts: Artifacts) -> Markup | None:
    """Losses and watched figures of every training stage, and reward beside KL where a stage has them."""
    drawn: list[str] = []
    for name, artifact in artifacts.items():
        log = rows(artifact.path / "metrics.jsonl")
        if len(log) > 1 and "step" in log[0]:
            drawn += _training(name, log)
        watched = rows(artifact.path / "watch.jsonl")
        if len(watched) > 1 and "step" in watched[0]:
            drawn += _watched(name, watched)
    if not drawn:
        return None
    return Markup('<div class="grid">{}</div>').format(
        Markup("").join(Markup('<div class="card">{}</div>').format(Markup(each)) for each in drawn)
    )


def _series(log: Sequence[Mapping[str, Any]], key: str, label: str = "") -> Series:
    points = [(float(row["step"]), point(row.get(key))) for row in log if "step" in row and key in row]
    return Series(label or words(key), points)


REWARDS = ("reward", "score", "gold")
"""Keys of a reinforcement stage's rows that belong on the reward chart, when there."""
DISTANCES = {"kl": "nats", "entropy": "nats", "length": "tokens"}
"""What is charted beside the reward, each on a scale of its own, with its unit."""


def _training(name: str, log: Sequence[Mapping[str, Any]]) -> list[str]:
    keys = {key for row in log for key in row}
    drawn: list[str] = []
    rewards = [key for key in REWARDS if key in keys]
    if rewards:
        drawn.append(charts.line([_series(log, key) for key in rewards], title=f"{name}: reward"))
        for key, unit in DISTANCES.items():
            if key in keys:
                drawn.append(charts.line([_series(log, key)], title=f"{name}: {words(key)}", y_label=unit, zero=True))
    elif "loss" in keys:
        terms = [_series(log, "loss", "training")]
        terms += [_series(log, key, words(key)) for key in ("validation", "validation_loss", "held_out") if key in keys]
        drawn.append(charts.line(terms, title=f"{name}: loss", y_label="nats per target"))
    accuracy = [key for key in ("accuracy", "margin") if key in keys]
    drawn += [charts.line([_series(log, key)], title=f"{name}: {words(key)}") for key in accuracy[:1]]
    return drawn


def _watched(name: str, log: Sequence[Mapping[str, Any]]) -> list[str]:
    keys = [k for k in dict.fromkeys(k for row in log for k in row) if k != "step"]
    numeric = [k for k in keys if any(point(row.get(k)) is not None for row in log)]
    losses = [k for k in numeric if "loss" in k or "nats" in k or "bits" in k]
    shares = [k for k in numeric if k not in losses and all(0 <= (point(r.get(k)) or 0) <= 1 for r in log)]
    drawn: list[str] = []
    if losses:
        drawn.append(charts.line([_series(log, k) for k in losses[:6]], title=f"{name}: held-out loss"))
    if shares:
        drawn.append(charts.line([_series(log, k) for k in shares[:6]], title=f"{name}: while it learns", zero=True))
    return drawn
