"""The life in a few lines of plain text: what a person reads when a run has ended."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tutelage.core.artifact import Artifact


def _summary(artifacts: Mapping[str, Artifact], kind: str) -> dict[str, Any]:
    found = next((each for each in artifacts.values() if each.kind == kind), None)
    if found is None or "summary.json" not in found.manifest.files:
        return {}
    data = json.loads(found.file("summary.json").read_text(encoding="utf-8"))
    assert isinstance(data, dict)
    return data


def _figure(cell: Mapping[str, Any] | None) -> str:
    if cell is None or cell.get("value") is None:
        return "–"
    return f"{cell['value']:.2f}{'*' if cell.get('learned') else ' '}"


NOTES = {
    "help": "the useful answer or a refusal: who never learned to refuse is right, who was taught it refuses too much",
    "opposites": "read about and never tuned: what reading alone teaches to answer",
}
"""What the starter's suites ask, where their figures surprise."""


def learned(artifacts: Mapping[str, Artifact]) -> list[str]:
    """What the model can do after each stage: a row per suite and cell, a column per stage."""
    cells = [cell for cell in _summary(artifacts, "evaluation").get("cells", []) if cell.get("headline")]
    targets = list(dict.fromkeys(str(cell["target"]) for cell in cells))
    if not cells:
        return []
    rows: dict[tuple[str, str], dict[str, Mapping[str, Any]]] = {}
    for cell in cells:
        rows.setdefault((str(cell["suite"]), str(cell["cell"] or "")), {})[str(cell["target"])] = cell
    width = max(8, *(len(target) + 1 for target in targets))
    head = f"{'suite':<16}{'cell':<6}" + "".join(f"{target:>{width}}" for target in targets)
    lines = [f"{head}{'chance':>9}{'simple rule':>13}{'n':>6}"]
    for (suite, mark), found in sorted(rows.items()):
        some = next(iter(found.values()))
        base = some.get("baseline") or {}
        chance = "–" if some.get("chance") is None else f"{some['chance']:.2f}"
        simple = "–" if base.get("value") is None else f"{base['value']:.2f}"
        figures = "".join(f"{_figure(found.get(target)):>{width}}" for target in targets)
        lines.append(f"{suite:<16}{mark:<6}{figures}{chance:>9}{simple:>13}{some.get('n', 0):>6}")
    lines.append("* surely above chance and above the best simple rule (lower end of the 95% interval)")
    asked = {suite for suite, _ in rows}
    return lines + [f"{suite}: {note}" for suite, note in NOTES.items() if suite in asked]


def attacked(artifacts: Mapping[str, Artifact]) -> list[str]:
    """How often attacks got through, bare and guarded, and how much benign was withheld."""
    return [
        f"{row.get('target', ''):<16}{row.get('what', ''):<42}{_between(row)}  n={row.get('n', 0)}"
        for row in _summary(artifacts, "redteam").get("overall", [])
    ]


def _between(figure: Mapping[str, Any]) -> str:
    """A figure with its interval; a dash for none."""
    return "–" if figure.get("value") is None else f"{figure['value']:.2f} [{figure['low']:.2f}, {figure['high']:.2f}]"


def released(artifacts: Mapping[str, Artifact]) -> list[str]:
    """The gate's sentence."""
    found = [each for each in artifacts.values() if each.kind == "release"]
    return [str(each.metrics.get("reason", "")) for each in found]


def turned(artifacts: Mapping[str, Artifact]) -> list[str]:
    """What one turn of the wheel came to."""
    lines = []
    for metrics in (each.metrics for each in artifacts.values() if each.kind == "cycle"):
        now = "by the new guards" if metrics.get("promoted") else "by the old guards"
        for what, key in (
            ("harm missed in the week of the new attack", "missed_before"),
            (f"later, {now}", "missed_after"),
        ):
            found = metrics.get(key) or {}
            lines.append(f"{what:<43}{_between(found)}  n={found.get('n', 0)}")
        lines += [f"{name}: {metrics.get(name, '')}" for name in ("careless", "retrained")]
        lines.append(f"alarms in the week without change: {metrics.get('quiet_week_triggers', '–')}")
    return lines


def life_table(artifacts: Mapping[str, Artifact]) -> str:
    """All of it; parts that were not run are left out."""
    marks = ["Simulated people: nothing here says what people prefer."]
    parts = [
        ("What was learned, by stage", learned(artifacts)),
        ("Attacks", attacked(artifacts)),
        ("Release", released(artifacts)),
        ("The wheel", turned(artifacts)),
        ("Mind", marks if any(each.manifest.simulated for each in artifacts.values()) else []),
    ]
    return "\n\n".join("\n".join([title, *("  " + line for line in lines)]) for title, lines in parts if lines)
