"""One page that tells a life: a single HTML file with its style and plots inside, readable without a server."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from tutelage.core.artifact import Artifact, Root
from tutelage.report import sections
from tutelage.report.tables import Column, badge, cell, is_figure, table, words

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


def life_page(root: Root, artifacts: Mapping[str, Artifact]) -> str:
    """The report of a life as one HTML document: stage name -> artifact, in the order of the life.

    Kinds that are missing are left out, so a life of five stages reports too. Reads only sealed files.
    """
    return _page(
        "life.html",
        title=f"The life of {root.path.name}",
        stages=len(artifacts),
        verdict=sections.verdict(artifacts),
        simulated=any(artifact.manifest.simulated for artifact in artifacts.values()),
        parts=list(sections.parts(artifacts)),
        claims=sections.NOT_CLAIMED,
    )


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested settings or metrics as dotted names; figures stay whole."""
    if is_figure(value) or not isinstance(value, Mapping):
        return {prefix: value}
    found: dict[str, Any] = {}
    for key, each in value.items():
        found.update(_flat(each, f"{prefix}.{key}" if prefix else str(key)))
    return found


def _point(value: Any) -> float | None:
    value = value.get("value") if isinstance(value, Mapping) else value
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _beside(left: Mapping[str, Any], right: Mapping[str, Any], *, only_changed: bool) -> Markup:
    one, two = _flat(left), _flat(right)
    lines = []
    for key in dict.fromkeys([*one, *two]):
        if not key or (only_changed and one.get(key) == two.get(key)):
            continue
        a, b = _point(one.get(key)), _point(two.get(key))
        change = f"{b - a:+.3g}" if a is not None and b is not None and a != b else ""
        lines.append([words(key), cell(one.get(key)), cell(two.get(key)), change])
    columns: list[Column] = ["", "left", "right", ("right − left", "n")]
    return table(columns, lines) if lines else Markup('<p class="none">No difference.</p>')


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
        root=str(root.path.name),
    )
