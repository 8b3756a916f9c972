"""The card of a model or bundle, written from what is sealed: nothing typed by hand, and no blank filled."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tutelage.core.artifact import Artifact, Root
from tutelage.core.errors import NotFound
from tutelage.govern import standing

NOT_MEASURED = "not measured in this lineage"


def ancestors(root: Root, artifact: Artifact) -> list[Artifact]:
    """Everything an artifact was made from, nearest first; what was removed from the root is left out."""
    found: dict[str, Artifact] = {}
    wave = [artifact]
    while wave:
        ahead: list[Artifact] = []
        for each in wave:
            for ref in each.manifest.parents():
                if ref not in found:
                    try:
                        found[ref] = root.find(ref)
                    except NotFound:
                        continue
                    ahead.append(found[ref])
        wave = ahead
    return list(found.values())


def _descendants(root: Root, artifact: Artifact, kind: str) -> list[Artifact]:
    """Artifacts of a kind that looked at this one (evaluations, red teams)."""
    return [each for each in root.list(kind) if artifact.ref in each.manifest.parents()]


def _json(artifact: Artifact, name: str) -> Any:
    path = artifact.path / name
    return json.loads(path.read_text(encoding="utf-8")) if name in artifact.manifest.files else None


def _figure(value: Any) -> str:
    """A figure with its interval and n, or why there is none."""
    if isinstance(value, Mapping) and "value" in value:
        if value["value"] is None:
            return f"undefined ({value.get('reason') or 'no reason given'})"
        text = f"{value['value']:.3g}"
        if value.get("low") is not None and value.get("high") is not None:
            text += f" [{value['low']:.3g}, {value['high']:.3g}]"
        return text + (f", n={value['n']}" if value.get("n") is not None else "")
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)


def _figures(metrics: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Every figure of nested metrics under its dotted name."""
    found: list[tuple[str, str]] = []
    for key, value in metrics.items():
        if isinstance(value, Mapping) and "value" not in value:
            found += _figures(value, f"{prefix}{key}.")
        else:
            found.append((f"{prefix}{key}", _figure(value)))
    return found


def _cell(text: object) -> str:
    """A text that cannot break a Markdown table."""
    return str(text).replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")


def _table(head: list[str], rows: list[list[object]]) -> list[str]:
    if not rows:
        return [NOT_MEASURED + "."]
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    return lines + ["| " + " | ".join(_cell(value) for value in row) + " |" for row in rows]


def _people(artifact: Artifact) -> str:
    """Whose words an artifact holds, as its stage stated it."""
    said = artifact.metrics.get("people")
    return str((said.get("kind") if isinstance(said, Mapping) else said) or "nobody's")


def model_card(root: Root, artifact: Artifact) -> str:
    """The card as Markdown: origin, data and licences, people, figures with intervals, attacks, limits.

    A part without evidence says so: no figure is taken over from elsewhere.
    """
    lineage = ancestors(root, artifact)
    licences = sorted({name for each in (artifact, *lineage) for name in each.manifest.licences})
    people = [each for each in lineage if each.kind in ("preferences", "labels", "collection")]
    lines = [f"# {artifact.kind} {artifact.id[:12]}", ""]
    lines += [f"Identity: `{artifact.ref}` (sha256 of its manifest). Made by stage `{artifact.manifest.stage}`.", ""]
    if artifact.manifest.simulated:
        lines += ["**Simulated people stand in its lineage.** Nothing here tells what people prefer.", ""]
    lines += ["## Licences", ""]
    lines += [", ".join(licences) if licences else "None recorded.", ""]
    if {"not-stated", "non-commercial", "internal"} & set(licences):
        lines += ["For internal use: it learned from non-commercial data or data without a stated licence.", ""]
    lines += ["## Data", ""]
    corpora = [each for each in lineage if each.kind == "corpus"]
    rows: list[list[object]] = [[each.id[:12], k, v] for each in corpora for k, v in _figures(each.metrics)]
    lines += [*_table(["corpus", "figure", "value"], rows[:40]), ""]
    lines += ["## People", ""]
    rows = [
        [each.kind, each.id[:12], "simulated" if each.manifest.simulated else _people(each),
         (each.manifest.store or {}).get("watermark", "")]
        for each in people
    ]  # fmt: skip
    lines += [*_table(["kind", "artifact", "people", "store up to row"], rows), ""]
    lines += ["## Figures", ""]
    rows = []
    for evaluation in _descendants(root, artifact, "evaluation"):
        summary = _json(evaluation, "summary.json") or {}
        names = {t.get("target") for t in summary.get("targets", []) if str(t.get("id", "")).endswith(artifact.id)}
        for cell in summary.get("cells", []):
            if cell.get("target") in names:
                name = f"{cell.get('suite')} {cell.get('cell') or ''}".strip()
                base = cell.get("baseline")
                simple = base.get("value") if isinstance(base, Mapping) else base
                rows.append([cell.get("target"), name, cell.get("metric"), _figure(cell), cell.get("chance"), simple])
    lines += [*_table(["target", "suite", "metric", "value [95%]", "chance", "best simple rule"], rows), ""]
    lines += ["## Attacks", ""]
    rows = []
    for redteam in _descendants(root, artifact, "redteam"):
        matrix = (_json(redteam, "summary.json") or {}).get("matrix", [])
        for entry in matrix if isinstance(matrix, list) else []:
            told = {"value": entry.get("asr", entry.get("value")), **{k: entry.get(k) for k in ("low", "high", "n")}}
            rows.append([entry.get("target"), entry.get("family"), entry.get("rule") or "all", _figure(told)])
    lines += [*_table(["target", "family", "rule", "success [95%]"], rows), ""]
    lines += ["## Reliability, robustness, harm and gaps between groups", ""]
    summaries = {
        kind: [_json(each, "summary.json") or {} for each in _descendants(root, artifact, kind)]
        for kind in ("evaluation", "redteam")
    }
    mine = {
        str(each.get("target"))
        for found in summaries.values()
        for summary in found
        for each in summary.get("targets", [])
        if str(each.get("id", "")).endswith(artifact.id)
    }
    rows = [
        [line.area, line.what, _figure(line.figure), "" if line.coverage is None else f"{line.coverage:.0%}", line.note]
        for line in standing.lines(summaries["evaluation"], summaries["redteam"])
        if line.area != "capability" and line.target in mine
    ]
    lines += [*_table(["part", "figure", "value [95%]", "measured", "note"], rows), ""]
    lines += ["## Not claimed", ""]
    lines += ["Understanding; safety; freedom from bias; resistance to attacks that were not tried; quality on text",
              "unlike the text it was measured on. Figures hold for the items and people named above.", ""]  # fmt: skip
    lines += ["## Lineage", ""]
    lines += [*_table(["kind", "id", "stage"], [[a.kind, a.id[:12], a.manifest.stage] for a in lineage]), ""]
    return "\n".join(lines)
