"""One page that tells a life: a single HTML file with its style and plots inside, readable without a server."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from tutelage.core.artifact import Artifact, Root
from tutelage.measure.statistics import paired
from tutelage.report import charts, learning, sections, timing, trials, trust
from tutelage.report.sections import Artifacts
from tutelage.report.tables import Column, badge, cell, is_figure, point, table, words

STYLE = Path(__file__).parent / "templates" / "style.css"
"""The house's one stylesheet: inline in reports, served as a file by the console."""


@cache
def environment() -> Environment:
    """The templates of the reports; everything is escaped unless it is Markup."""
    return Environment(
        loader=PackageLoader("tutelage.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )


def _page(name: str, **values: Any) -> str:
    style = Markup(STYLE.read_text(encoding="utf-8"))
    return environment().get_template(name).render(style=style, **values)


def parts(artifacts: Artifacts, predicted: Mapping[str, float]) -> Iterable[tuple[str, str, str, Markup]]:
    """(id, title, a line of explanation, HTML) of every part that has something to show; `predicted` are seconds."""
    found: list[tuple[str, str, str, Callable[[Artifacts], Markup | None]]] = [
        (
            "stages",
            "The life, stage by stage",
            "What each stage made, how long it took and what it measured.",
            sections.stages,
        ),
        (
            "timing",
            "What was predicted and what it took",
            "The plan's word before the run, and the work itself.",
            lambda made: sections.timing(made, predicted),
        ),
        ("learned", "What was learned", "Examined after each stage on items kept out of training.", learning.learned),
        (
            "curves",
            "How it was learned",
            "Loss, reward and distance from the reference, step by step.",
            learning.curves,
        ),
        (
            "evaluation",
            "Evaluation in detail",
            "Every suite and cell beside chance and a simple rule.",
            learning.evaluation,
        ),
        (
            "reliability",
            "How far it can be relied upon",
            "Whether it is as often right as it is sure, and says the same twice.",
            trust.reliability,
        ),
        (
            "robustness",
            "The same in other forms",
            "What slips, other words and other orders cost, each form checked to ask the same.",
            trust.robustness,
        ),
        ("people", "The people who judged", "How far they agree, and whose words count how much.", trials.people),
        ("guards", "The guards", "Thresholds with the evidence behind them.", trials.guards),
        (
            "redteam",
            "Attacked on purpose",
            "The same attacks against the bare model and the guarded system.",
            trials.redteam,
        ),
        ("bias", "Bias audit", "The same request under other names and in other English.", trials.bias),
        (
            "standing",
            "All in one table",
            "What it can do, how far that holds, and whom it harms or serves worse.",
            trust.standing,
        ),
        ("release", "The gate", "Each check decides on a bound, never on a mean.", trials.release),
        (
            "wheel",
            "The wheel in service",
            "Estimates from reviewed decisions, drawn with known probability.",
            trials.wheel,
        ),
        ("data", "The data", "What was read and what was dropped, with reasons.", sections.data),
        ("licences", "Licences", "Classes travel with lineage into everything made from them.", sections.licences),
        ("lineage", "Lineage", "From any answer back to the text and the people behind it.", sections.lineage),
    ]
    for key, title, line, make in found:
        html = make(artifacts)
        if html:
            yield key, title, line, html


def life_page(root: Root, artifacts: Mapping[str, Artifact]) -> str:
    """The report of a life as one HTML document: stage name -> artifact, in the order of the life.

    Kinds that are missing are left out, so a life of five stages reports too. Reads only sealed files.
    """
    return _page(
        "life.html",
        title=f"A model's life, in {root.path.resolve().name}",
        stages=len(artifacts),
        verdict=sections.verdict(artifacts),
        simulated=any(artifact.manifest.simulated for artifact in artifacts.values()),
        parts=list(parts(artifacts, timing.predictions(root))),
        claims=sections.NOT_CLAIMED,
    )


def dotted(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested settings or metrics as dotted names; figures stay whole."""
    if is_figure(value) or not isinstance(value, Mapping):
        return {prefix: value}
    found: dict[str, Any] = {}
    for key, each in value.items():
        found.update(dotted(each, f"{prefix}.{key}" if prefix else str(key)))
    return found


def _beside(left: Mapping[str, Any], right: Mapping[str, Any], *, only_changed: bool) -> Markup:
    one, two = dotted(left), dotted(right)
    lines = []
    for key in dict.fromkeys([*one, *two]):
        if not key or (only_changed and one.get(key) == two.get(key)):
            continue
        a, b = point(one.get(key)), point(two.get(key))
        change = f"{b - a:+.3g}" if a is not None and b is not None and a != b else ""
        lines.append([words(key), cell(one.get(key)), cell(two.get(key)), change])
    columns: list[Column] = ["", "left", "right", ("right − left", "n")]
    return table(columns, lines) if lines else Markup('<p class="none">No difference.</p>')


def _by_item(artifact: Artifact) -> dict[str, dict[tuple[str, str, str], tuple[float, str]]]:
    """Target -> (suite, cell, item) -> (value, cluster) of an evaluation or red team."""
    found: dict[str, dict[tuple[str, str, str], tuple[float, str]]] = {}
    for row in sections.rows(artifact.path / "results.jsonl"):
        value = point(row.get("value"))
        if value is not None:
            key = (str(row.get("suite")), str(row.get("cell") or row.get("attack") or ""), str(row.get("item")))
            found.setdefault(str(row.get("target")), {})[key] = (value, str(row.get("cluster") or row.get("item")))
    return found


def _paired(left: Artifact, right: Artifact) -> Markup | None:
    """Right minus left on the same items, by suite and cell; targets of one name meet, else the last of each."""
    one, two = _by_item(left), _by_item(right)
    if not one or not two:
        return None
    names = [(name, name) for name in one if name in two] or [(list(one)[-1], list(two)[-1])]
    lines = []
    for before, after in names:
        both = [key for key in one[before] if key in two[after]]
        for suite, cell_ in dict.fromkeys(key[:2] for key in both):
            keys = [key for key in both if key[:2] == (suite, cell_)]
            gap = paired(
                [two[after][key][0] for key in keys],
                [one[before][key][0] for key in keys],
                [one[before][key][1] for key in keys],
            )
            told = {name: getattr(gap.difference, name) for name in ("value", "low", "high", "n", "reason")}
            plot = charts.interval(told["value"], told["low"], told["high"], span=(-0.5, 0.5))
            who = before if before == after else f"{before} → {after}"
            lines.append([f"{who} · {words(suite)} {words(cell_)}", told, gap.better, gap.worse, Markup(plot)])
    columns: list[Column] = [
        "on the same items",
        "right − left [95%]",
        ("better", "n"),
        ("worse", "n"),
        ("−0.5 to 0.5", "plot"),
    ]
    return table(columns, lines) if lines else None


def compare(root: Root, left: Artifact, right: Artifact) -> str:
    """Two artifacts side by side: what differs in settings and inputs, and every figure of both."""
    inputs = table(
        ["input", "left", "right"],
        [
            [name, cell(left.manifest.inputs.get(name)), cell(right.manifest.inputs.get(name))]
            for name in sorted({*left.manifest.inputs, *right.manifest.inputs})
        ],
    )
    marks = [badge("simulated people", "warn") if a.manifest.simulated else Markup("") for a in (left, right)]
    return _page(
        "compare.html",
        title=f"{left.kind} {left.id[:8]} beside {right.kind} {right.id[:8]}",
        sides=[(sections.short(a), mark) for a, mark in zip((left, right), marks, strict=True)],
        figures=_beside(left.metrics, right.metrics, only_changed=False),
        settings=_beside(left.config, right.config, only_changed=True),
        inputs=inputs,
        paired=_paired(left, right),
        root=str(root.path.name),
    )
