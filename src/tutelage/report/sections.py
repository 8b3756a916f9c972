"""What every part of a report needs, and the parts about the life itself: stages, data, licences, lineage.

A part reads the files of some artifacts and returns HTML, or None when there are none. It never fails on what is
missing or new: unknown files are shown as they are, absent kinds are left out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from tutelage.core.artifact import Artifact
from tutelage.report.charts import number
from tutelage.report.tables import Column, anything, badge, duration, facts, figure, is_figure, table, words
from tutelage.report.timing import how_near, timed

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


def fresh(told: Mapping[str, Any]) -> str:
    """What to call a turn's last week: nothing new is served in it where the retrained candidate was refused."""
    found: Any = told.get("candidates")
    for name in ("retrained", "verdict"):
        found = found.get(name) if isinstance(found, Mapping) else None
    refused = isinstance(found, Mapping) and found.get("promote") is False
    return f"fresh, {'under the old guards' if refused else 'after the release'}"


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
        reason = str(told.get("reason") or "").strip()
        if isinstance(told.get("promote"), bool):
            decided = "Promoted" if told["promote"] else "Refused"
            sentence = f"{reason[:1].upper()}{reason[1:]}"
            known = reason.lower().startswith(decided.lower())
            return ("good" if told["promote"] else "bad"), sentence if known else f"{decided}. {sentence}".strip()
    return None


def stages(artifacts: Artifacts) -> Markup:
    """One row per stage: what it made, how long it took, its headline figures, its licences."""

    def headline(metrics: Mapping[str, Any]) -> Markup:
        found = [(k, v) for k, v in metrics.items() if is_figure(v) or isinstance(v, int | float)]
        found.sort(key=lambda pair: not is_figure(pair[1]))
        shown = [Markup("{} {}").format(words(k), figure(v)) for k, v in found if not isinstance(v, bool)]
        return Markup(" · ").join(shown[:4])

    lines = [
        [
            Markup("{}<span class='sub'>{} {}</span>").format(name, short(artifact), simulated(artifact)),
            duration(artifact.manifest.made.get("seconds")),
            headline(artifact.metrics),
            ", ".join(artifact.manifest.licences),
        ]
        for name, artifact in artifacts.items()
    ]
    total = sum(float(a.manifest.made.get("seconds") or 0) for a in artifacts.values())
    caption = f"{duration(total)} of work in all; stages made in an earlier run are counted once."
    return table(["stage", ("time", "n"), "headline figures", "licence classes"], lines, caption=caption)


def timing(artifacts: Artifacts, predicted: Mapping[str, float]) -> Markup | None:
    """What each stage took beside what its plan foretold."""
    took = timed(artifacts, predicted)
    columns: list[Column] = ["stage", ("predicted, s", "n"), ("real, s", "n"), ("real / predicted", "n")]
    lines = [
        [each.name, number(each.predicted), number(each.real), "resumed" if each.resumed else each.ratio]
        for each in took
    ]
    return table(columns, lines, caption=how_near(took)) if took else None


def data(artifacts: Artifacts) -> Markup | None:
    """What was read, what was dropped and why, what was masked; where the truth is known, how well."""
    out = Markup("")
    for name, artifact in of_kind(artifacts, "corpus"):
        told = load(artifact, "report.json")
        if isinstance(told, Mapping):
            out += Markup("<h3>{}</h3>").format(name) + _corpus(told)
    return out or None


def _corpus(told: Mapping[str, Any]) -> Markup:
    known = {"sources", "drops", "truth", "personal", "duplicates", "contamination", "splits", "licences", "levels"}
    out = Markup("")
    sources = [row for row in told.get("sources") or () if isinstance(row, Mapping)]
    if sources:
        rows_ = [
            [r.get("source"), r.get("licence"), r.get("kept"), r.get("characters"), r.get("bad_rows")] for r in sources
        ]
        columns: list[Column] = ["source", "licence class", "kept", ("characters", "n"), ("bad rows", "n")]
        out += table(columns, rows_, caption="Sources")
    drops = told.get("drops")
    if isinstance(drops, Mapping) and drops:
        rows_ = [[words(reason), *_dropped(entry)] for reason, entry in drops.items()]
        out += table(
            ["dropped because", ("records", "n"), ("characters", "n"), "for example"], rows_, caption="Dropped"
        )
    truth = told.get("truth")
    if isinstance(truth, Mapping) and truth:
        main = {k: v for k, v in truth.items() if isinstance(v, Mapping) and "/" not in k}
        rows_ = [[words(k), v.get("recall"), v.get("precision"), v.get("spared")] for k, v in main.items()]
        columns = ["planted on purpose", "found (recall)", "rightly found (precision)", "look-alikes spared"]
        out += table(columns, rows_, caption="How well the cleaning did, where the truth is known")
    flat = {
        "personal data masked": (told.get("personal") or {}).get("found"),
        "duplicates": told.get("duplicates"),
        "overlap with held-out items": {
            k: v for k, v in (told.get("contamination") or {}).items() if isinstance(v, int) and not isinstance(v, bool)
        },
        "records by split": told.get("splits"),
    }
    pairs = []
    for key, value in flat.items():
        if isinstance(value, Mapping):
            for split, inside in value.items() if key == "records by split" else [("", value)]:
                pairs.append((f"{key} {split}".strip(), inside))
    out += facts(pairs)
    rest = {k: v for k, v in told.items() if k not in known and v}
    return out + (anything(rest) if rest else Markup(""))


def _dropped(entry: Any) -> list[Any]:
    if not isinstance(entry, Mapping):
        return [entry, None, ""]
    example = next((e.get("text", "") for e in entry.get("examples") or () if isinstance(e, Mapping)), "")
    return [
        entry.get("count"),
        entry.get("characters"),
        Markup('<span class="small soft">{}</span>').format(example[:90]),
    ]


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
