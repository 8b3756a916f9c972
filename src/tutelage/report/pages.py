"""One page that tells a life: a single HTML file with its style and plots inside, readable without a server."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from tutelage.core.artifact import Artifact, Root
from tutelage.report import learning, sections, timing, trials, trust
from tutelage.report.sections import Artifacts
from tutelage.report.tables import is_figure

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
