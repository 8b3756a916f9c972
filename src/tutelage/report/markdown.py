"""The tables of a life as Markdown, for documents: only from what is sealed, every figure with its interval and n."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from tutelage.core.errors import UsageError
from tutelage.govern.standing import grid, lines
from tutelage.report.charts import fixed
from tutelage.report.sections import Artifacts, fresh, load, of_kind
from tutelage.report.tables import duration, is_figure, words
from tutelage.report.timing import how_near, timed

OPEN, CLOSE = "<!-- tutelage report: {} -->", "<!-- end of report: {} -->"
"""The lines of a document between which a life's tables stand."""


def figure(value: Any, *, n: bool = False, bold: bool = False) -> str:
    """`0.45 [0.41, 0.48]`, perhaps with its n; an en dash for what was not measured, with the reason."""
    if not isinstance(value, Mapping):
        return fixed(value)
    size = f", n={value['n']}" if n and value.get("n") is not None else ""
    if value.get("value") is None:
        return f"– ({value['reason']}{size})" if value.get("reason") else "–"
    number = fixed(value["value"]).replace("-0.00", "0.00")
    text = f"**{number}**" if bold else number
    if value.get("low") is not None and value.get("high") is not None:
        text += f" [{fixed(value['low'])}, {fixed(value['high'])}]"
    return text + size


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table; what would break it is escaped."""

    def line(cells: Iterable[object]) -> str:
        return "| " + " | ".join(str(each).replace("|", "\\|").replace("\n", " ") for each in cells) + " |"

    return "\n".join([line(head), "|" + "---|" * len(head), *map(line, rows)])


def _listed(value: Any) -> list[Mapping[str, Any]]:
    return [each for each in value if isinstance(each, Mapping)] if isinstance(value, list) else []


def _summaries(artifacts: Artifacts, kind: str) -> list[Mapping[str, Any]]:
    found = (load(artifact, "summary.json") for _, artifact in of_kind(artifacts, kind))
    return [each for each in found if isinstance(each, Mapping)]


def origin(artifacts: Artifacts) -> str | None:
    """When, by which code and from what these figures came."""
    made = [artifact.manifest.made for artifact in artifacts.values()]
    if not made:
        return None
    days = sorted({str(each.get("at", ""))[:10] for each in made})
    codes = sorted({str(each["code"]) for each in made if each.get("code")})
    seconds = sum(float(each.get("seconds") or 0) for each in made)
    when = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
    text = f"{len(made)} stages, {duration(seconds)} of work, {when}; code {', '.join(codes) or 'not stated'}."
    if any(artifact.manifest.simulated for artifact in artifacts.values()):
        text += " People are simulated: nothing here says what people prefer."
    return text


def learned(artifacts: Artifacts) -> str | None:
    """A row per suite and cell, a column per examined model; what is surely learned is bold."""
    for summary in _summaries(artifacts, "evaluation"):
        cells = [each for each in _listed(summary.get("cells")) if each.get("headline", True)]
        targets = list(dict.fromkeys(str(each.get("target")) for each in cells))
        rows: dict[tuple[str, str], dict[str, Mapping[str, Any]]] = {}
        for each in cells:
            rows.setdefault((str(each.get("suite")), str(each.get("cell") or "")), {})[str(each["target"])] = each
        lines = []
        for (suite, cell), found in sorted(rows.items()):
            some = next(iter(found.values()))
            base = some.get("baseline")
            simple = base.get("value") if isinstance(base, Mapping) else base
            figures = [figure(found.get(target), bold=bool(found.get(target, {}).get("learned"))) for target in targets]
            metric, seen = words(some.get("metric", "")), fixed(some.get("visible_difference"))
            beside = [fixed(some.get("chance")), fixed(simple), seen, some.get("n", 0)]
            lines.append([suite, cell, metric, *figures, *beside])
        if lines:
            head = ["suite", "cell", "measure", *targets, "chance", "simple rule", "visible", "n"]
            note = "Bold: surely above chance and above the best simple rule (lower end of the 95% interval). "
            note += "Visible: the smallest difference between two models that so many items can show."
            return f"{table(head, lines)}\n\n{note}"
    return None


def seeds(artifacts: Artifacts) -> str | None:
    """How much is luck: median and range over the seeds of sections named `stage` and `stage@seedN`."""
    for summary in _summaries(artifacts, "evaluation"):
        cells = [each for each in _listed(summary.get("cells")) if each.get("headline", True)]
        cells += [
            {**row, "suite": f"all items: {GOLD[str(row.get('metric'))]}", "cell": ""}
            for row in _listed(summary.get("gold"))
            if row.get("suite") is None and row.get("metric") in GOLD
        ]
        found: dict[tuple[str, str], dict[str, list[float]]] = {}
        for each in cells:
            stem, _, which = str(each.get("target")).partition("@")
            if each.get("value") is not None and (not which or which.startswith("seed")):
                place = found.setdefault((str(each.get("suite")), str(each.get("cell") or "")), {})
                place.setdefault(stem, []).append(float(each["value"]))
        stems = list(dict.fromkeys(stem for row in found.values() for stem, some in row.items() if len(some) > 1))
        if stems:
            count = max(len(some) for row in found.values() for some in row.values())
            return table(
                ["suite", "cell", *(f"{stem}, {count} seeds" for stem in stems)],
                [
                    [suite, cell, *(_spread(row.get(stem, [])) for stem in stems)]
                    for (suite, cell), row in found.items()
                ],
            )
    return None


def _spread(values: Sequence[float]) -> str:
    """`0.45 (0.41 to 0.48)`: median and range."""
    return f"{fixed(median(values))} ({fixed(min(values))} to {fixed(max(values))})" if values else "–"


GOLD = {"right": "right", "kept": "rules kept", "invented": "invented", "gold": "all three"}


def gold(artifacts: Artifacts) -> str | None:
    """What the world itself says of the answers, over all items."""
    for summary in _summaries(artifacts, "evaluation"):
        by_target: dict[str, dict[str, Mapping[str, Any]]] = {}
        for row in _listed(summary.get("gold")):
            if row.get("suite") is None:
                by_target.setdefault(str(row.get("target")), {})[str(row.get("metric"))] = row
        columns = [key for key in GOLD if any(key in found for found in by_target.values())]
        lines = [
            [
                target,
                *(figure(found.get(key)) for key in columns),
                max(int(row.get("n") or 0) for row in found.values()),
            ]
            for target, found in by_target.items()
        ]
        if lines:
            return table(["target", *(GOLD[key] for key in columns), "n"], lines)
    return None


def controls(artifacts: Artifacts) -> str | None:
    """How many of the controls that must fail do as they must, by kind; those that do not are named."""
    for summary in _summaries(artifacts, "evaluation"):
        rows = _listed(summary.get("controls"))
        kinds = list(dict.fromkeys(str(row.get("control")) for row in rows))
        lines = []
        for kind in kinds:
            mine = [row for row in rows if row.get("control") == kind]
            wrong = [f"{row.get('suite')} ({row.get('target')})" for row in mine if row.get("holds") is False]
            unsure = sum(row.get("holds") is None for row in mine)
            lines.append([kind, len(mine) - len(wrong) - unsure, unsure, ", ".join(wrong) or "none"])
        if lines:
            return table(["control", "as it must be", "not enough data", "not as it must be"], lines)
    return None


def standing(artifacts: Artifacts) -> str | None:
    """Capability, reliability, robustness, refusal, harm and gaps between groups: a row per figure and target."""
    found = lines(_summaries(artifacts, "evaluation"), _summaries(artifacts, "redteam"))
    targets, areas = grid(found)
    rows = [
        [area, what, "higher" if next(iter(by.values())).better == "higher" else "lower"]
        + [figure(by[target].figure, n=True) if target in by else "" for target in targets]
        for area, named in areas.items()
        for what, by in named.items()
    ]
    return table(["part", "figure", "better", *targets], rows) if rows else None


def _stated(artifacts: Artifacts, kind: str) -> list[list[object]]:
    """Every figure that the artifacts of a kind sealed as their metrics."""
    return [
        [name, words(key), figure(value), value.get("n", "–")]
        for name, artifact in of_kind(artifacts, kind)
        for key, value in artifact.metrics.items()
        if is_figure(value)
    ]


def reward(artifacts: Artifacts) -> str | None:
    """How often the reward model is right on held-out pairs, under the ceiling that its raters' agreement allows."""
    lines = _stated(artifacts, "reward")
    for name, artifact in of_kind(artifacts, "preferences"):
        found = artifact.metrics.get("found")
        told = found.get("detection") if isinstance(found, Mapping) else None
        if isinstance(told, Mapping) and told.get("planted"):
            wrong = int(told.get("found", 0)) - int(told.get("right", 0))
            text = f"{told.get('right')} of {told['planted']}, {wrong or 'none'} wrongly"
            lines.append([name, "unreliable raters found", text, artifact.metrics.get("persons", "–")])
    return table(["stage", "figure", "value", "n"], lines) if lines else None


def training(artifacts: Artifacts) -> str | None:
    """The figures that training stages sealed themselves."""
    lines = _stated(artifacts, "model")
    return table(["stage", "figure", "value", "n"], lines) if lines else None


def attacks(artifacts: Artifacts) -> str | None:
    """What got through, bare and guarded, and what benign was withheld."""
    for summary in _summaries(artifacts, "redteam"):
        lines = [
            [row.get("target"), row.get("what"), figure(row), row.get("n", 0)]
            for row in _listed(summary.get("overall"))
        ]
        if lines:
            told = _testable(summary.get("tested"))
            return table(["target", "share of", "value", "n"], lines) + (f"\n\n{told}" if told else "")
    return None


def _testable(tested: object) -> str:
    """Which rules could be broken at all, by the word of the helpful-only model."""
    if not isinstance(tested, Mapping) or not tested:
        return ""
    broken = sorted(str(rule) for rule, could in tested.items() if could)
    unknown = sum(could is None for could in tested.values())
    rest = f"; too few requests to tell for {unknown}" if unknown else ""
    names = f": {', '.join(broken)}" if broken else ""
    return (
        f"A model that unlearned to refuse breaks {len(broken)} of {len(tested)} rules in at least half of the plain "
        f"requests{names}{rest}. That the others are kept says nothing."
    )


def release(artifacts: Artifacts) -> str | None:
    """The gate's sentence and its checks."""
    parts = []
    for _, artifact in of_kind(artifacts, "release"):
        told = load(artifact, "verdict.json")
        if isinstance(told, Mapping):
            parts.append(_verdict(told))
    return "\n\n".join(parts) or None


def _verdict(told: Mapping[str, Any]) -> str:
    passed = {True: "passed", False: "not passed", None: "not enough data"}
    lines = [
        [each.get("id"), figure(each.get("figure"), n=True), fixed(each.get("limit")), passed[each.get("passed")]]
        for each in _listed(told.get("checks"))
    ]
    reason = str(told.get("reason") or "")
    text = f"{reason[:1].upper()}{reason[1:]}."
    return f"{text}\n\n{table(['check', 'figure', 'limit', ''], lines)}" if lines else text


def wheel(artifacts: Artifacts) -> str | None:
    """The weeks of service, and what the gate said of each candidate."""
    parts = []
    for _, artifact in of_kind(artifacts, "cycle"):
        told = load(artifact, "cycle.json")
        if not isinstance(told, Mapping):
            continue
        weeks = dict(sorted((told.get("weeks") or {}).items()))
        if isinstance(told.get("fresh"), Mapping):
            weeks[fresh(told)] = told["fresh"]
        lines = []
        for name, week in weeks.items():
            truth, said = week.get("truth") or {}, {row.get("metric"): row for row in _listed(week.get("estimates"))}
            figures = [truth.get("miss_rate"), truth.get("false_positive_rate"), said.get("miss_rate")]
            triggers = ", ".join(str(row.get("id")) for row in _listed(week.get("triggers"))) or "none"
            lines.append([name, *(figure(each, n=True) for each in figures), triggers])
        head = ["week", "truth: missed", "truth: benign withheld", "reviewers' estimate of missed", "triggers"]
        if lines:
            parts.append(table(head, lines))
        for name, candidate in (told.get("candidates") or {}).items():
            if isinstance(candidate, Mapping) and isinstance(candidate.get("verdict"), Mapping):
                parts.append(f"The {name} candidate: {candidate['verdict'].get('reason')}.")
    return "\n\n".join(parts) or None


def timing(artifacts: Artifacts, predicted: Mapping[str, float]) -> str | None:
    """What each stage took beside what its plan foretold."""
    took = timed(artifacts, predicted)
    lines = [
        [each.name, f"{each.predicted:.1f}", f"{each.real:.1f}", "resumed" if each.resumed else fixed(each.ratio)]
        for each in took
    ]
    head = ["stage", "predicted, s", "real, s", "real / predicted"]
    return f"{table(head, lines)}\n\n{how_near(took)}" if took else None


PARTS: dict[str, tuple[str, Callable[[Artifacts], str | None]]] = {
    "learned": ("What was learned", learned),
    "seeds": ("How much is luck: median and range over seeds", seeds),
    "gold": ("Judged by gold: the truth of the world, over all items", gold),
    "controls": ("Controls, which must fail", controls),
    "reward": ("The people and the reward model", reward),
    "training": ("What training stages measured themselves", training),
    "attacks": ("Attacks", attacks),
    "standing": ("Capability, reliability, robustness, harm and gaps in one table", standing),
    "gate": ("The gate", release),
    "wheel": ("The wheel", wheel),
}


def life_tables(
    artifacts: Artifacts, level: int = 3, part: str = "", predicted: Mapping[str, float] | None = None
) -> str:
    """All tables of a life, those that were not run left out, or the one table that `part` names (see PARTS; `timing`).

    `level` is that of the headings; `predicted` are the seconds that the plan foretold, by section.
    """

    def took(artifacts: Artifacts) -> str | None:
        return timing(artifacts, predicted or {})

    every = {**PARTS, "timing": ("What was predicted and what it took", took)}
    made = origin(artifacts) or "Nothing has been made yet."
    if part in every:
        return f"{every[part][1](artifacts) or 'Nothing to show yet.'}\n\n{made}\n"
    parts = [made]
    for title, make in every.values():
        text = make(artifacts)
        if text:
            parts.append(f"{'#' * level} {title}\n\n{text}")
    return "\n\n".join(parts) + "\n"


def into(path: Path, name: str, tables: str) -> str:
    """The document at `path` with these tables between its marks for `name`; a new one when there is none.

    Raises UsageError for a document without the marks: what people wrote is never overwritten.
    """
    begin, end = OPEN.format(name), CLOSE.format(name)
    if not path.is_file():
        return f"{begin}\n{tables}{end}\n"
    text = path.read_text(encoding="utf-8")
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        todo = f"Put the lines {begin!r} and {end!r} where the tables belong, or name a new file"
        raise UsageError(f"the document has no place for the tables of {name!r}", file=path, todo=todo)
    return text[: text.index(begin) + len(begin)] + "\n" + tables + text[text.index(end) :]
