"""How far a model can be trusted: its calibration, what other forms of a question cost, and one table of it all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from tutelage.evaluate.reliability import ALL, shown
from tutelage.evaluate.robustness import WORST
from tutelage.govern.standing import Line, grid, lines
from tutelage.report import charts
from tutelage.report.charts import Series
from tutelage.report.sections import Artifacts, load, of_kind
from tutelage.report.tables import Column, badge, figure, group, point, table, words

SOURCES = {"choices": "choices and labels, by their share of probability", "answers": "answers in words, as a whole"}
AREA = {
    "capability": "What it can do",
    "reliability": "Whether it knows what it knows",
    "robustness": "What another form of the question costs",
    "refusal": "Harmless requests refused",
    "harm": "Harm done when asked for it, and when not",
    "groups": "How far apart groups are served: the largest gap",
}
HOW = {"seeds": "drawn again", "wordings": "in other words"}


def _summaries(artifacts: Artifacts, kind: str) -> list[Mapping[str, Any]]:
    found = (load(artifact, "summary.json") for _, artifact in of_kind(artifacts, kind))
    return [each for each in found if isinstance(each, Mapping)]


def _rows(value: Any) -> list[Mapping[str, Any]]:
    return [each for each in value if isinstance(each, Mapping)] if isinstance(value, list | tuple) else []


def _told(row: Any) -> dict[str, Any]:
    row = row if isinstance(row, Mapping) else {}
    return {key: row.get(key) for key in ("value", "low", "high", "n", "reason")}


def _details(summary: str, inside: Markup) -> Markup:
    return Markup("<details><summary>{}</summary>{}</details>").format(summary, inside)


def reliability(artifacts: Artifacts) -> Markup | None:
    """Calibration and risk-coverage as plots, then every figure: calibration, agreement with itself, determinism."""
    out = Markup("")
    for summary in _summaries(artifacts, "evaluation"):
        told = summary.get("reliability")
        if isinstance(told, Mapping):
            out += _calibration(_rows(told.get("calibration")))
            out += _consistency(_rows(told.get("consistency"))) + _determinism(_rows(told.get("determinism")))
    return out or None


def _calibration(rows: Sequence[Mapping[str, Any]]) -> Markup:
    whole = [row for row in rows if row.get("suite") is None]
    if not whole:
        return Markup("")
    drawn: list[str] = []
    for source, called in SOURCES.items():
        mine = [row for row in whole if row.get("source") == source]
        if any(row.get("bins") for row in mine):
            drawn.append(_diagram(mine, called))
        if mine:
            drawn.append(_selection(mine, called))
    cards = Markup("").join(Markup('<div class="card">{}</div>').format(Markup(each)) for each in drawn)
    out = Markup('<div class="grid">{}</div>').format(cards) + _calibrated(whole, "Over all suites")
    note = (
        "Under a temperature: fitted on other clusters than those it is measured on, one for each suite. Gained: nats "
        "per item by which it lowers the log loss. Surest half: the share that is right among the half of the items "
        "that the model is surest of."
    )
    out += Markup('<p class="small soft">{}</p>').format(note)
    single = [row for row in rows if row.get("suite") is not None]
    return out + (_details("Suite by suite", _calibrated(single, "")) if single else Markup(""))


def _diagram(rows: Sequence[Mapping[str, Any]], called: str) -> str:
    """How often answers of a certainty are right; with one target its intervals as a band."""
    series = []
    for row in rows:
        bins = _rows(row.get("bins"))
        points = [(float(each["confidence"]), point(each)) for each in bins]
        lows = [(float(each["confidence"]), point(each.get("low"))) for each in bins] if len(rows) == 1 else ()
        highs = [(float(each["confidence"]), point(each.get("high"))) for each in bins] if len(rows) == 1 else ()
        series.append(Series(str(row.get("target")), points, lows, highs))
    series.append(Series("as sure as right", [(0.0, 0.0), (1.0, 1.0)]))
    title = f"Reliability: {called}"
    return charts.line(series, title=title, x_label="how sure", y_label="share that is right", zero=True)


def _selection(rows: Sequence[Mapping[str, Any]], called: str) -> str:
    """The share that is wrong among the answers the model is surest of."""
    series = []
    for row in rows:
        kept = [each for each in _rows(row.get("selective")) if point(each) is not None]

        def risk(key: str, kept: Sequence[Mapping[str, Any]] = kept) -> list[tuple[float, float | None]]:
            return [
                (float(each["coverage"]), None if (at := point(each.get(key))) is None else 1.0 - at) for each in kept
            ]

        bands = (risk("high"), risk("low")) if len(rows) == 1 else ((), ())
        series.append(Series(str(row.get("target")), risk("value"), *bands))
    title = f"Risk and coverage: {called}"
    return charts.line(series, title=title, x_label="share answered, surest first", y_label="share wrong", zero=True)


def _calibrated(rows: Sequence[Mapping[str, Any]], caption: str) -> Markup:
    found: list[Any] = []
    for row in rows:
        kept = dict(shown(row))
        half = _told(kept.get(0.5))
        about = f"{row.get('suite') or ''} {words(row.get('source'))}".strip()
        found.append(
            [
                Markup("{}<span class='sub'>{}</span>").format(row.get("target"), about),
                figure(_told(row.get("right"))),
                charts.fixed(point(row.get("confidence"))),
                figure(_told(row.get("ece")), n=False),
                figure(_told(row.get("ece_after")), n=False),
                figure(_told(row.get("gain")), n=False),
                figure(half, n=False),
                figure(_told(row.get("aurc")), n=False),
            ]
        )
    columns: list[Column] = [
        "target", "right [95%]", ("mean certainty", "n"), "calibration error", "under a temperature", "gained",
        "surest half right", "area under risk and coverage",
    ]  # fmt: skip
    return table(columns, found, caption=caption)


def _consistency(rows: Sequence[Mapping[str, Any]]) -> Markup:
    def lined(mine: Sequence[Mapping[str, Any]]) -> list[list[Any]]:
        return [
            [
                Markup("{}<span class='sub'>{} {}</span>").format(
                    row.get("target"), HOW.get(str(row.get("how")), row.get("how")), row.get("suite") or ""
                ),
                figure(_told(row.get("agreement"))),
                figure(_told(row.get("majority")), n=False),
                figure(_told(row.get("greedy")), n=False),
                figure(_told(row.get("majority_minus_greedy")), n=False),
            ]
            for row in mine
        ]

    columns: list[Column] = ["target", "two answers agree", "commonest answer", "greedy answer", "commonest − greedy"]
    whole = [row for row in rows if row.get("suite") is None]
    if not whole:
        return Markup("")
    out = Markup("<h3>Agreement with itself</h3>") + table(columns, lined(whole), caption="Paired by item; 95%.")
    return out + _details("Suite by suite", table(columns, lined([row for row in rows if row.get("suite")])))


def _determinism(rows: Sequence[Mapping[str, Any]]) -> Markup:
    if not rows:
        return Markup("")
    found = []
    for row in (each for each in rows if each.get("suite") is None):
        value = point(row.get("value"))
        same = badge("not measured", "warn") if value is None else badge("the same", "good")
        mark = badge("differ", "bad") if value else same
        told = figure(_told(row))
        found.append([row.get("target"), row.get("how"), told, charts.number(point(row.get("largest"))), mark])
    columns: list[Column] = ["target", "compared", "share of answers that differ", ("largest, nats", "n"), ""]
    caption = "The greedy answer among many others, beside the same command again and each item alone."
    return Markup("<h3>Determinism</h3>") + table(columns, found, caption=caption)


def robustness(artifacts: Artifacts) -> Markup | None:
    """What each form costs, what the worst case costs beyond luck, and which forms were left out."""
    out = Markup("")
    for summary in _summaries(artifacts, "evaluation"):
        rows = _rows(summary.get("robustness"))
        if not rows:
            continue
        whole = [row for row in rows if row.get("suite") is None]
        out += _losses([row for row in whole if row.get("family") != WORST], "All suites together") + _worst(whole)
        for suite in dict.fromkeys(str(row["suite"]) for row in rows if row.get("suite")):
            mine = [row for row in rows if row.get("suite") == suite]
            enough = [row for row in mine if row.get("family") == WORST and row.get("value") is not None]
            inside = _losses([row for row in mine if row.get("family") != WORST], "") + _worst(enough)
            out += _details(words(suite), inside)
        out += _left_out(whole)
    return out or None


def _losses(rows: Sequence[Mapping[str, Any]], caption: str) -> Markup:
    top = max([0.05, *(abs(point(row.get(key)) or 0.0) for row in rows for key in ("low", "high"))])
    targets = list(dict.fromkeys(str(row.get("target")) for row in rows))
    found: list[Any] = []
    for family in dict.fromkeys(str(row.get("family")) for row in rows):
        found.append(group(words(family), 5))
        for row in (each for each in rows if each.get("family") == family):
            told, holds = _told(row), row.get("holds")
            plot = charts.interval(
                point(told), told["low"], told["high"], span=(-top, top), index=targets.index(str(row["target"]))
            )
            mark = badge("not enough data", "warn") if holds is None else badge("a loss", "bad")
            mark = badge("no such loss", "good") if holds else mark
            found.append([row.get("target"), figure(told), charts.number(point(row.get("p_holm"))), mark, Markup(plot)])
    margin = next((row.get("margin") for row in rows), None)
    columns: list[Column] = [
        "", "loss [95%], paired by item", ("p (Holm)", "n"), f"beyond {charts.number(point(margin))}",
        (f"−{charts.number(top, 2)} to {charts.number(top, 2)}", "plot"),
    ]  # fmt: skip
    return table(columns, found, caption=caption)


def _worst(rows: Sequence[Mapping[str, Any]]) -> Markup:
    found = [
        [
            Markup("{}<span class='sub'>{}</span>").format(row.get("target"), words(row.get("suite") or ALL)),
            charts.fixed(point(row.get("before"))),
            figure(_told(row.get("mean_loss"))),
            figure(_told(row.get("worst")), n=False),
            figure(_told(row.get("by_luck")), n=False),
            figure(_told(row.get("excess")), n=False),
            figure(_told(row.get("unchanged")), n=False),
        ]
        for row in rows
        if row.get("family") == WORST
    ]
    told = (
        "The lowest of several answers is low by luck alone. Where answers are drawn, beside it stands the lowest of "
        "as many answers to the item as it stands; greedy ones have no luck in them, and it is the answer itself. "
        "Mean loss: over all forms of an item; 0 for a model that other forms merely shake. Paired by item."
    )
    columns: list[Column] = [
        "over all forms of an item", ("as it stands", "n"), "mean loss", "worst", "as often as it stands",
        "loss in the worst case", "items unchanged",
    ]  # fmt: skip
    return table(columns, found) + Markup('<p class="small soft">{}</p>').format(told) if found else Markup("")


def _left_out(rows: Sequence[Mapping[str, Any]]) -> Markup:
    """Of one target, for the forms are the same for all."""
    first = next((row.get("target") for row in rows), None)
    found = []
    for row in (each for each in rows if each.get("target") == first and each.get("family") != WORST):
        reasons: Counter[str] = Counter(row.get("left_out") or {})
        told = "; ".join(f"{reason} ({often})" for reason, often in reasons.most_common())
        found.append([words(row.get("family")), charts.share(point(row.get("share_left_out"))), row.get("asked"), told])
    columns: list[Column] = ["form", ("left out", "n"), ("items", "n"), "why"]
    inside = table(columns, found, caption="A form is used only where its label provably holds.")
    return _details("Forms that were left out", inside) if found else Markup("")


def standing(artifacts: Artifacts) -> Markup | None:
    """Capability, reliability, robustness, refusal, harm and gaps between groups, target by target, in one table."""
    found = lines(_summaries(artifacts, "evaluation"), _summaries(artifacts, "redteam"))
    if not found:
        return None
    targets, areas = grid(found)
    out: list[Any] = []
    for area, rows in areas.items():
        out.append(group(AREA[area], len(targets) + 2))
        for what, by_target in rows.items():
            some = next(iter(by_target.values()))
            arrow = Markup('<span class="soft" title="{} is better">{}</span>').format(
                some.better, "↑" if some.better == "higher" else "↓"
            )
            out.append([what, arrow, *(_standing(by_target.get(target)) for target in targets)])
    caption = "Value, 95% interval and n; arrows: which way is better. A dash was not measured, and says why."
    return table(["", "", *targets], out, caption=caption)


def _standing(line: Line | None) -> Markup:
    if line is None:
        return Markup('<span class="soft">·</span>')
    told = line.figure
    if told.get("value") is None:
        return Markup('<span class="soft">– {}</span>').format(told.get("reason") or "not measured")
    part = ""
    if line.coverage is not None and line.coverage < 0.995:
        part = f", {charts.share(line.coverage)} measured"
    about = Markup("<span class='sub'>{} to {}, n={}{}{}</span>").format(
        charts.fixed(told.get("low")), charts.fixed(told.get("high")), told.get("n"), part,
        f"; {line.note}" if line.note else "",
    )  # fmt: skip
    return Markup("{}{}").format(charts.fixed(told["value"]), about)


def texts(found: Iterable[Line]) -> list[str]:
    """The same table as lines of text, for a terminal: a figure a line under its part."""
    out: list[str] = []
    targets, areas = grid(list(found))
    for area, rows in areas.items():
        out.append(AREA[area])
        for what, by_target in rows.items():
            for target, line in by_target.items():
                told = line.figure
                name = f"{what}, {target}" if len(targets) > 1 else what
                shown_ = f"undefined: {told.get('reason')}"
                if told.get("value") is not None:
                    span = f" [{told['low']:.3f}, {told['high']:.3f}]" if told.get("low") is not None else ""
                    shown_ = f"{told['value']:.3f}{span}  n={told.get('n')}"
                measured = "" if line.coverage in (None, 1.0) else f"{line.coverage:.0%} measured"
                notes = "; ".join(filter(None, (line.note, measured)))
                out.append(f"  {name:<60}{shown_}" + (f"  ({notes})" if notes else ""))
    return out
