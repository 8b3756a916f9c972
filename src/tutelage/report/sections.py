"""The parts of a life's page: each reads the files of some artifacts and returns HTML, or None when there are none.

A part never fails on what is missing or new: unknown files are shown as they are, absent kinds are left out.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from tutelage.core.artifact import Artifact
from tutelage.report import charts
from tutelage.report.charts import Cell, Series, share
from tutelage.report.tables import Column, anything, badge, duration, facts, figure, group, is_figure, table, words

Artifacts = Mapping[str, Artifact]
"""Stage name (`pretrain`, `rlhf@grpo`) -> what it made, in the order of the life."""


def load(artifact: Artifact, name: str) -> Any:
    """A JSON file of an artifact, or None when it holds none (or one that does not parse)."""
    path = artifact.path / name
    if name not in artifact.manifest.files or not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return None


def rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON-lines file; none when it is missing, and a torn line is left out."""
    found: list[dict[str, Any]] = []
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if isinstance(row, dict):
                found.append(row)
    return found


def of_kind(artifacts: Artifacts, *kinds: str) -> list[tuple[str, Artifact]]:
    """(stage, artifact) of these kinds, in the order of the life."""
    return [(name, artifact) for name, artifact in artifacts.items() if artifact.kind in kinds]


def simulated(artifact: Artifact) -> Markup:
    """The mark that everything carries which learned from simulated people."""
    return badge("simulated people", "warn") if artifact.manifest.simulated else Markup("")


def short(artifact: Artifact) -> Markup:
    """`kind:first digits` as code."""
    return Markup("<code>{}:{}</code>").format(artifact.kind, artifact.id[:8])


def verdict(artifacts: Artifacts) -> tuple[str, str] | None:
    """(tone, sentence) of the release: what the gate decided and why."""
    for _, artifact in reversed(of_kind(artifacts, "release")):
        told = load(artifact, "verdict.json") or {}
        decided = str(told.get("verdict") or told.get("decision") or "")
        reason = str(told.get("reason") or told.get("sentence") or "").strip()
        if decided or reason:
            return ("good" if decided.startswith("promote") else "bad"), reason or f"The gate says: {decided}."
    return None


def stages(artifacts: Artifacts) -> Markup:
    """One row per stage: what it made, how long it took, its headline figures, its licences."""

    def headline(metrics: Mapping[str, Any]) -> Markup:
        found = [(k, v) for k, v in metrics.items() if is_figure(v) or isinstance(v, int | float)]
        shown = [Markup("{} {}").format(words(k), figure(v)) for k, v in found[:4] if not isinstance(v, bool)]
        return Markup(" · ").join(shown)

    lines = [
        [
            Markup("{}<span class='sub'>{} {}</span>").format(name, short(artifact), simulated(artifact)),
            duration(artifact.manifest.made.get("seconds")),
            headline(artifact.metrics),
            ", ".join(artifact.manifest.licences),
        ]
        for name, artifact in artifacts.items()
    ]
    return table(["stage", ("time", "n"), "headline figures", "licence classes"], lines)


def _cells(artifacts: Artifacts) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for _, artifact in of_kind(artifacts, "evaluation"):
        found += [cell for cell in (load(artifact, "summary.json") or {}).get("cells", []) if isinstance(cell, dict)]
    return found


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
    points = [(float(row["step"]), _number(row.get(key))) for row in log if "step" in row and key in row]
    return Series(label or words(key), points)


def _number(value: Any) -> float | None:
    if isinstance(value, Mapping):
        value = value.get("value")
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


REWARDS = ("reward", "score", "gold")
"""Keys of a reinforcement stage's rows that belong on the reward chart, when there."""
DISTANCES = ("kl", "kl_reference", "entropy")


def _training(name: str, log: Sequence[Mapping[str, Any]]) -> list[str]:
    keys = {key for row in log for key in row}
    drawn: list[str] = []
    rewards = [key for key in REWARDS if key in keys]
    if rewards:
        drawn.append(charts.line([_series(log, key) for key in rewards], title=f"{name}: reward"))
        distances = [key for key in DISTANCES if key in keys]
        if distances:
            drawn.append(
                charts.line([_series(log, key) for key in distances], title=f"{name}: KL", y_label="nats", zero=True)
            )
    elif "loss" in keys:
        terms = [_series(log, "loss", "training")]
        terms += [_series(log, key, words(key)) for key in ("validation", "validation_loss", "held_out") if key in keys]
        drawn.append(charts.line(terms, title=f"{name}: loss", y_label="nats per target"))
    accuracy = [key for key in ("accuracy", "margin") if key in keys]
    drawn += [charts.line([_series(log, key)], title=f"{name}: {words(key)}") for key in accuracy[:1]]
    return drawn


def _watched(name: str, log: Sequence[Mapping[str, Any]]) -> list[str]:
    keys = [k for k in dict.fromkeys(k for row in log for k in row) if k != "step"]
    numeric = [k for k in keys if any(_number(row.get(k)) is not None for row in log)]
    losses = [k for k in numeric if "loss" in k or "nats" in k or "bits" in k]
    shares = [k for k in numeric if k not in losses and all(0 <= (_number(r.get(k)) or 0) <= 1 for r in log)]
    drawn: list[str] = []
    if losses:
        drawn.append(charts.line([_series(log, k) for k in losses[:6]], title=f"{name}: held-out loss"))
    if shares:
        drawn.append(charts.line([_series(log, k) for k in shares[:6]], title=f"{name}: while it learns", zero=True))
    return drawn


def redteam(artifacts: Artifacts) -> Markup | None:
    """Attack success by family and target: with and without the guard, and what the guard costs benign users."""
    out = Markup("")
    for _, artifact in of_kind(artifacts, "redteam"):
        summary = load(artifact, "summary.json") or {}
        entries = summary.get("matrix") if isinstance(summary, Mapping) else None
        entries = [entry for entry in entries or [] if isinstance(entry, Mapping)]
        targets = list(dict.fromkeys(str(entry.get("target")) for entry in entries))
        cells: dict[tuple[str, str], Cell] = {}
        names: list[str] = []
        for entry in entries:
            family = words(entry.get("family") or entry.get("attack") or "all")
            rule = entry.get("rule")
            name = f"{family}: {words(rule)}" if rule and rule not in ("all", "*") else family
            value = _number(entry.get("asr", entry.get("value")))
            low, high, n = entry.get("low"), entry.get("high"), entry.get("n")
            told = f"{share(low)} to {share(high)}, n={n}" if value is not None else str(entry.get("reason") or "")
            text = f"{share(value)} (n={n})" if value is not None else f"– (n={n or 0})"
            cells[name, str(entry.get("target"))] = Cell(value, text, told)
            if name not in names:
                names.append(name)
        if cells:
            out += Markup(
                charts.matrix(
                    names,
                    targets,
                    cells,
                    caption="Share of attempts that broke a rule; point at a cell for its 95% interval.",
                    corner="attack family",
                )
            )
        benign = summary.get("benign") or summary.get("over_refusal")
        if benign:
            out += Markup("<h3>Benign twins refused</h3>") + anything(benign)
        rest = {k: v for k, v in summary.items() if k not in ("matrix", "benign", "over_refusal", "bias") and v}
        if rest:
            out += anything(rest)
    return out or None


def bias(artifacts: Artifacts) -> Markup | None:
    """The audit of names and languages: differences with intervals, controls beside them."""
    parts = [anything(found) for _, a in of_kind(artifacts, "redteam") if (found := load(a, "bias.json"))]
    return Markup("").join(parts) if parts else None


def people(artifacts: Artifacts) -> Markup | None:
    """Agreement of the people and the quality of each (by pseudonym), per project; kinds of people never pooled."""
    out = Markup("")
    for name, artifact in of_kind(artifacts, "preferences", "labels"):
        agreement, quality = load(artifact, "agreement.json"), load(artifact, "people.json")
        if not agreement and not quality:
            continue
        out += Markup("<h3>{} {}</h3>").format(name, simulated(artifact))
        if agreement:
            out += anything(agreement)
        if isinstance(quality, Mapping) and isinstance(quality.get("people"), list | dict):
            quality = quality["people"]
        if isinstance(quality, Mapping) and all(isinstance(v, Mapping) for v in quality.values()):
            quality = [{"person": key, **value} for key, value in quality.items()]
        if quality:
            told = Markup("<details><summary>Quality of each person (never for pay by itself)</summary>{}</details>")
            out += told.format(anything(quality))
    return out or None


def guards(artifacts: Artifacts) -> Markup | None:
    """What each guard certifies: threshold, target, achieved bound, how many examples stand behind it."""
    out = Markup("")
    for name, artifact in of_kind(artifacts, "classifier"):
        spec = load(artifact, "classifier.json") or {}
        certificates = spec.get("certificates")
        if isinstance(certificates, Mapping):
            certificates = [
                {"category": key, **(value if isinstance(value, Mapping) else {"value": value})}
                for key, value in certificates.items()
            ]
        out += Markup("<h3>{} {}</h3>").format(name, short(artifact))
        out += anything(certificates) if certificates else anything(dict(artifact.metrics))
    for name, artifact in of_kind(artifacts, "bundle"):
        out += Markup("<h3>{}</h3>").format(name) + anything(load(artifact, "bundle.json") or {})
    return out or None


def release(artifacts: Artifacts) -> Markup | None:
    """Every check of the gate with its bound and margin."""
    out = Markup("")
    for name, artifact in of_kind(artifacts, "release"):
        told = load(artifact, "verdict.json")
        if not isinstance(told, Mapping):
            continue
        checks = told.get("checks")
        if isinstance(checks, Mapping):
            checks = [{"check": k, **(v if isinstance(v, Mapping) else {"result": v})} for k, v in checks.items()]
        out += Markup("<h3>{}</h3>").format(name)
        out += facts((words(k), v) for k, v in told.items() if not isinstance(v, Mapping | list))
        if checks:
            out += anything(checks)
    return out or None


def wheel(artifacts: Artifacts) -> Markup | None:
    """The weeks of service: what was missed, what was blocked for nothing, what the gate did with the candidates."""
    out = Markup("")
    for name, artifact in of_kind(artifacts, "cycle"):
        told = load(artifact, "cycle.json")
        if not isinstance(told, Mapping):
            continue
        out += Markup("<h3>{} {}</h3>").format(name, simulated(artifact)) + _estimates(told.get("estimates"))
        out += anything(told, skip=frozenset({"estimates"}))
    return out or None


def _estimates(entries: Any) -> Markup:
    """Weekly estimates as one chart per metric, with their intervals as bands."""
    if not isinstance(entries, list):
        return anything(entries) if entries else Markup("")
    good = [e for e in entries if isinstance(e, Mapping) and "week" in e and "metric" in e]
    drawn = Markup("")
    for metric in dict.fromkeys(str(e["metric"]) for e in good):
        mine = [e for e in good if e["metric"] == metric]
        places = {str(week): place for place, week in enumerate(dict.fromkeys(e["week"] for e in mine), 1)}
        at = [(float(places[str(e["week"])]), e) for e in mine]
        series = Series(
            words(metric),
            [(x, _number(e.get("value"))) for x, e in at],
            [(x, _number(e.get("low"))) for x, e in at],
            [(x, _number(e.get("high"))) for x, e in at],
        )
        drawn += Markup('<div class="card">{}</div>').format(
            Markup(charts.line([series], title=words(metric), x_label="week", zero=True))
        )
    return Markup('<div class="grid">{}</div>').format(drawn) + anything([dict(e) for e in good])


def data(artifacts: Artifacts) -> Markup | None:
    """What was read, what was dropped and why, what was masked, and under which licences."""
    out = Markup("")
    for name, artifact in of_kind(artifacts, "corpus"):
        told = load(artifact, "report.json")
        if told:
            out += Markup("<h3>{}</h3>").format(name) + anything(told)
    return out or None


def lineage(artifacts: Artifacts) -> Markup:
    """Which artifact came from which: every id that leads from the first text to the release."""
    names = {artifact.ref: name for name, artifact in artifacts.items()}

    def parents(artifact: Artifact) -> Markup:
        found = [
            Markup("{} <code>{}</code>").format(names.get(ref, ""), ref.split(":")[-1][:8])
            for ref in artifact.manifest.parents()
        ]
        return Markup(", ").join(found) if found else Markup('<span class="soft">nothing before it</span>')

    lines = [
        [name, short(a), parents(a), f"{(a.manifest.store or {}).get('watermark', '')}", simulated(a)]
        for name, a in artifacts.items()
    ]
    return table(["stage", "artifact", "made from", "store up to row", "marks"], lines)


def licences(artifacts: Artifacts) -> Markup:
    """Licence classes and the stages that carry them."""
    carried: dict[str, list[str]] = {}
    for name, artifact in artifacts.items():
        for licence in artifact.manifest.licences:
            carried.setdefault(licence, []).append(name)
    return table(["licence class", "carried by"], [[k, ", ".join(v)] for k, v in sorted(carried.items())])


NOT_CLAIMED: tuple[str, ...] = (
    "understanding of language, or of anything else",
    "safety, or resistance to attacks that nobody tried here",
    "freedom from bias; an audit finds only what it was built to look for",
    "the preference of people, where the people were simulated",
    "quality of the guards on text unlike the text they were trained and measured on",
    "anything about larger models, or speed on other machines",
)


def parts(artifacts: Artifacts) -> Iterable[tuple[str, str, str, Markup]]:
    """(id, title, a line of explanation, HTML) of every part that has something to show."""
    found: list[tuple[str, str, str, Callable[[Artifacts], Markup | None]]] = [
        ("stages", "The life, stage by stage", "What each stage made, how long it took and what it measured.", stages),
        ("learned", "What was learned", "Examined after each stage on items kept out of training.", learned),
        ("curves", "How it was learned", "Loss, reward and distance from the reference, step by step.", curves),
        ("evaluation", "Evaluation in detail", "Every suite and cell beside chance and a simple rule.", evaluation),
        ("people", "The people who judged", "How far they agree, and whose words count how much.", people),
        ("guards", "The guards", "Thresholds with the evidence behind them.", guards),
        ("redteam", "Attacked on purpose", "The same attacks against the bare model and the guarded system.", redteam),
        ("bias", "Bias audit", "The same request under other names and in other English.", bias),
        ("release", "The gate", "Each check decides on a bound, never on a mean.", release),
        ("wheel", "The wheel in service", "Estimates from reviewed decisions, drawn with known probability.", wheel),
        ("data", "The data", "What was read and what was dropped, with reasons.", data),
        ("licences", "Licences", "Classes travel with lineage into everything made from them.", licences),
        ("lineage", "Lineage", "From any answer back to the text and the people behind it.", lineage),
    ]
    for key, title, line, make in found:
        html = make(artifacts)
        if html:
            yield key, title, line, html
