"""How it was put to the test: by people, by attackers, by the audit of bias, by the gate, and by weeks of service."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from tutelage.report import charts
from tutelage.report.charts import Cell, Series, share
from tutelage.report.sections import Artifacts, fresh, load, of_kind, short, simulated
from tutelage.report.tables import Column, anything, badge, facts, figure, is_figure, point, table, words


def _rows(value: Any) -> list[Mapping[str, Any]]:
    return [row for row in value if isinstance(row, Mapping)] if isinstance(value, list | tuple) else []


def _as_figure(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: row.get(key) for key in ("value", "low", "high", "n", "reason")}


def passed(value: Any) -> Markup:
    """A check's outcome: passed, not passed, or not enough data."""
    if value is None:
        return badge("not enough data", "warn")
    return badge("passed", "good") if value else badge("not passed", "bad")


def people(artifacts: Artifacts) -> Markup | None:
    """Agreement of the people and the quality of each (by pseudonym), per stage; kinds of people never pooled."""
    out = Markup("")
    for name, artifact in of_kind(artifacts, "preferences", "labels"):
        agreement, quality = load(artifact, "agreement.json"), load(artifact, "people.json")
        if not agreement and not quality:
            continue
        out += Markup("<h3>{} {}</h3>").format(name, simulated(artifact))
        if isinstance(agreement, Mapping):
            notes = agreement.get("notes")
            out += anything(agreement, skip=frozenset({"notes"}))
            if isinstance(notes, Mapping):
                told = [f"{words(key)}: {value}" for key, value in notes.items()]
                out += Markup('<p class="small soft">{}.</p>').format("; ".join(told))
        if isinstance(quality, Mapping):
            out += _quality(quality)
    return out or None


def _quality(told: Mapping[str, Any]) -> Markup:
    inside = told.get("people")
    known = inside if isinstance(inside, Mapping) else told
    lines = []
    for person, each in known.items():
        if isinstance(each, Mapping):
            found = each.get("finding")
            mark = badge(words(found), "bad") if found else badge("reliable", "good")
            planted = each.get("planted")
            lines.append(
                [
                    Markup("<code>{}</code>").format(person),
                    each.get("agreement"),
                    each.get("weight"),
                    each.get("answers"),
                    Markup("{}{}").format(mark, Markup(" planted: {}").format(words(planted)) if planted else ""),
                ]
            )
    out = Markup("")
    if isinstance(told.get("detection"), Mapping):
        out += Markup("<p>Unreliable people found: {}</p>").format(_detection(told["detection"]))
    columns: list[Column] = ["person", "agreement with the others", ("weight", "n"), ("answers", "n"), "finding"]
    details = Markup("<details><summary>Quality of each person (never for pay by itself)</summary>{}</details>")
    return out + (details.format(table(columns, lines)) if lines else Markup(""))


def _detection(told: Mapping[str, Any]) -> Markup:
    if is_figure(told):
        return figure(told)
    return Markup(", ").join(
        Markup("{} {}").format(words(k), figure(v)) for k, v in told.items() if not _deep(v) and v not in (None, "")
    )


def _deep(value: Any) -> bool:
    return isinstance(value, list | tuple) or (isinstance(value, Mapping) and not is_figure(value))


def guards(artifacts: Artifacts) -> Markup | None:
    """What each guard certifies: threshold, target, achieved bound, how many examples stand behind it."""
    out = Markup("")
    for name, artifact in of_kind(artifacts, "classifier"):
        spec = load(artifact, "classifier.json")
        spec = spec if isinstance(spec, Mapping) else {}
        lines = []
        for head in _rows(spec.get("heads")):
            for each in _rows(head.get("certificates")):
                bound, target = point(each.get("bound")), point(each.get("target"))
                reason = each.get("reason")
                good = bound is not None and target is not None and bound <= target and not reason
                lines.append(
                    [
                        f"{words(head.get('category'))} ({head.get('direction')})",
                        share(target),
                        charts.number(point(each.get("threshold"))),
                        share(bound),
                        share(point(each.get("bound_clusters"))),
                        f"{each.get('n')} in {each.get('clusters')} groups",
                        badge("certified", "good") if good else badge(str(reason or "bound above target"), "warn"),
                    ]
                )
        out += Markup("<h3>{} {} {}</h3>").format(name, short(artifact), simulated(artifact))
        columns: list[Column] = [
            "category", ("target rate", "n"), ("threshold", "n"), ("upper bound", "n"), ("by groups", "n"),
            "held-out benign texts", "",
        ]  # fmt: skip
        caption = (
            "False positives: the rate asked for, and the upper bound (95%) that held-out texts support; by groups: "
            "where texts of a group stand or fall together. A policy's max_bound is held to the weaker one."
        )
        out += table(columns, lines, caption=caption) if lines else anything(spec)
        left = spec.get("left_out")
        if isinstance(left, Mapping) and left:
            out += Markup("<p>Left out: {}.</p>").format("; ".join(f"{words(k)} ({v})" for k, v in left.items()))
        measured = {k: v for k, v in artifact.metrics.items() if _deep(v)}
        if measured:
            told = Markup("<details><summary>Measured on held-out labels</summary>{}</details>")
            out += told.format(anything(measured))
    for name, artifact in of_kind(artifacts, "bundle"):
        out += Markup("<h3>{} {}</h3>").format(name, short(artifact)) + anything(load(artifact, "bundle.json") or {})
    return out or None


def redteam(artifacts: Artifacts) -> Markup | None:
    """Attack success by family and target: with and without the guard, and what the guard costs benign users."""
    out = Markup("")
    for name, artifact in of_kind(artifacts, "redteam"):
        summary = load(artifact, "summary.json")
        if not isinstance(summary, Mapping):
            continue
        out += Markup("<h3>{} {}</h3>").format(name, simulated(artifact))
        entries = _rows(summary.get("matrix"))
        out += _overall(summary) + _matrix([e for e in entries if not e.get("rule")], "attack")
        effect = _rows(summary.get("guard_effect"))
        if effect:
            lines = [[words(e.get("attack")), _as_figure(e), charts.number(point(e.get("p_holm")))] for e in effect]
            caption = "Change through the guard, paired by goal; below zero the guard helps."
            out += table(["attack", "guarded minus bare", ("p (Holm)", "n")], lines, caption=caption)
        benign = _rows(summary.get("benign"))
        if benign:
            lines = [[words(e.get("target")), _as_figure(e)] for e in benign]
            out += table(["target", "benign requests refused or withheld"], lines, caption="What it costs others")
        detailed = [e for e in entries if e.get("rule")]
        if detailed:
            told = Markup("<details><summary>By rule</summary>{}</details>")
            out += told.format(_matrix(detailed, "rule"))
        shown = {"matrix", "overall", "guard_effect", "benign", "targets", "bias", "contents", "groups"}
        rest = {k: v for k, v in summary.items() if k not in shown and v}
        if rest:
            out += Markup("<details><summary>How it was judged</summary>{}</details>").format(anything(rest))
    return out or None


def _overall(summary: Mapping[str, Any]) -> Markup:
    lines = []
    for row in _rows(summary.get("overall")):
        told = _as_figure(row)
        plot = charts.interval(point(told), told["low"], told["high"], told=str(row.get("what", "")))
        lines.append(
            [f"{row.get('target', '')}: {words(row.get('what', ''))}", figure(told, percent=True), Markup(plot)]
        )
    return table(["", "share [95% interval]", ("0 to 100%", "plot")], lines) if lines else Markup("")


def _matrix(entries: Sequence[Mapping[str, Any]], by: str) -> Markup:
    targets = list(dict.fromkeys(str(entry.get("target")) for entry in entries))
    cells: dict[tuple[str, str], Cell] = {}
    names: list[str] = []
    for entry in entries:
        family = words(entry.get("attack") or entry.get("family") or "all")
        name = f"{family}: {words(entry.get('rule'))}" if by == "rule" else family
        value, n = point(entry.get("value")), entry.get("n") or 0
        reason = str(entry.get("reason") or "not enough data")
        told = f"{share(entry.get('low'))} to {share(entry.get('high'))}, n={n}" if value is not None else reason
        cells[name, str(entry.get("target"))] = Cell(value, share(value), told)
        if name not in names:
            names.append(name)
    if not cells:
        return Markup("")
    caption = "Share of attempts that broke a rule, below it its 95% interval."
    return Markup(charts.matrix(names, targets, cells, caption=caption, corner="attack"))


def bias(artifacts: Artifacts) -> Markup | None:
    """The audit of names and languages: differences with intervals, what was planted and the control beside them."""
    out = Markup("")
    for _, artifact in of_kind(artifacts, "redteam"):
        told = load(artifact, "bias.json")
        if not isinstance(told, Mapping):
            out += anything(told) if told else Markup("")
            continue
        out += _pairs("In the data itself, where something was planted", _rows(told.get("planted")))
        pairs = _rows(told.get("pairs"))
        notable = [row for row in pairs if row.get("found")]
        out += _pairs("In the answers: what was found", notable) if notable else Markup("")
        if pairs:
            inside = _pairs("Every comparison", pairs)
            out += Markup("<details><summary>All {} comparisons</summary>{}</details>").format(len(pairs), inside)
            if not notable:
                out += Markup("<p>No comparison of the answers is beyond its margin, or n is too small to tell.</p>")
        if told.get("leanings"):
            out += Markup("<h3>Which of two sentences it prefers</h3>")
            out += _pairs("Share of the likelihood, less one half", _rows(told["leanings"]))
        if told.get("stereotypes"):
            out += Markup("<h3>Stereotypes</h3>") + anything(told["stereotypes"])
        if told.get("reading"):
            out += Markup('<p class="small soft">{}</p>').format(told["reading"])
        known = {"planted", "pairs", "leanings", "stereotypes", "reading", "margin"}
        rest = {k: v for k, v in told.items() if k not in known and v}
        out += anything(rest) if rest else Markup("")
    return out or None


def _pairs(title: str, rows: Sequence[Mapping[str, Any]]) -> Markup:
    if not rows:
        return Markup("")
    top = max([0.05, *(abs(point(r.get(k)) or 0.0) for r in rows for k in ("low", "high", "value"))])
    lines = []
    for row in rows:
        told = _as_figure(row)
        what = " · ".join(words(row[k]) for k in ("target", "attribute", "measure", "outcome") if row.get(k))
        who = f"{words(row.get('group', ''))} against {words(row.get('reference', ''))}"
        plot = charts.interval(point(told), told["low"], told["high"], span=(-top, top))
        found = row.get("found")
        mark = badge("too small to tell", "warn") if found is None else badge("found", "bad") if found else ""
        lines.append([Markup("{}<span class='sub'>{}</span>").format(what, who), figure(told), mark, Markup(plot)])
    scale = f"−{charts.number(top, 2)} to {charts.number(top, 2)}"
    return table(["comparison", "difference [95% interval]", "", (scale, "plot")], lines, caption=title)


def release(artifacts: Artifacts) -> Markup | None:
    """Every check of the gate with its bound and margin."""
    out = Markup("")
    for name, artifact in of_kind(artifacts, "release"):
        told = load(artifact, "verdict.json")
        if isinstance(told, Mapping):
            out += Markup("<h3>{} {}</h3>").format(name, short(artifact)) + checks(told)
    return out or None


def checks(told: Mapping[str, Any]) -> Markup:
    """One verdict: the sentence, then each check with its figure and limit."""
    lines = [
        [
            words(each.get("id") or each.get("check")),
            each.get("figure") or each.get("difference"),
            charts.number(point(each.get("limit", each.get("margin")))),
            passed(each.get("passed")),
            Markup('<span class="small">{}</span>').format(each.get("reason") or ""),
        ]
        for each in _rows(told.get("checks"))
    ]
    flat = [(words(k), v) for k, v in told.items() if not _deep(v) and k not in ("reason", "promote", "production")]
    reason = str(told.get("reason") or "")
    out = Markup("<p>{}</p>").format(reason[:1].upper() + reason[1:]) + facts(flat)
    if lines:
        out += table(["check", "figure [95% interval]", ("limit", "n"), "", "in words"], lines)
    if told.get("production"):
        out += Markup('<div class="notice"><p><strong>For production:</strong> {}</p></div>').format(told["production"])
    return out


def wheel(artifacts: Artifacts) -> Markup | None:
    """The weeks of service: what was missed, what was blocked for nothing, what the gate did with the candidates."""
    out = Markup("")
    for name, artifact in of_kind(artifacts, "cycle"):
        told = load(artifact, "cycle.json")
        if not isinstance(told, Mapping):
            continue
        out += Markup("<h3>{} {}</h3>").format(name, simulated(artifact)) + _weeks(told)
        for key, each in (told.get("candidates") or {}).items() if isinstance(told.get("candidates"), Mapping) else ():
            judged = each.get("verdict") if isinstance(each, Mapping) else None
            if isinstance(judged, Mapping):
                mark = badge("promoted", "good") if judged.get("promote") else badge("refused", "bad")
                out += Markup("<h3>Candidate “{}” {}</h3>").format(words(key), mark) + checks(judged)
        if isinstance(told.get("rollback"), Mapping):
            out += Markup("<h3>Rollback, rehearsed</h3>") + anything(told["rollback"])
        known = {"weeks", "fresh", "estimates", "candidates", "rollback", "simulated", "triggers"}
        rest = {k: v for k, v in told.items() if k not in known and v}
        out += anything(rest) if rest else Markup("")
    return out or None


def _weeks(told: Mapping[str, Any]) -> Markup:
    """The weeks side by side: estimates from the reviewed sample, the truth the world knows, and what triggered."""
    weeks = told.get("weeks")
    story = {str(k): v for k, v in weeks.items() if isinstance(v, Mapping)} if isinstance(weeks, Mapping) else {}
    named = {f"week {key}": value for key, value in sorted(story.items())}
    if isinstance(told.get("fresh"), Mapping):
        named[fresh(told)] = told["fresh"]
    out, lines = Markup(""), []
    series: dict[str, list[tuple[float, Mapping[str, Any]]]] = {}
    for place, (name, week) in enumerate(named.items(), 1):
        found = {str(e.get("metric")): e for e in _rows(week.get("estimates"))}
        truth = week.get("truth") if isinstance(week.get("truth"), Mapping) else {}
        for metric, each in found.items():
            series.setdefault(metric, []).append((float(place), each))
        cells = []
        for metric in ("miss_rate", "false_positive_rate"):
            real = truth.get(metric) if isinstance(truth, Mapping) else None
            known = (
                Markup("<span class='sub'>truth {}</span>").format(figure(real, n=False)) if real is not None else ""
            )
            raw = found.get(metric, {}).get("raw")
            given = Markup("<span class='sub'>as given {:.2f}</span>").format(raw[0]) if raw else ""
            cells.append(
                Markup("{}{}{}").format(figure(_as_figure(found[metric])) if metric in found else "–", given, known)
            )
        triggers = [str(t.get("sentence") or t.get("id") or "") for t in _rows(week.get("triggers"))]
        lines.append([name, *cells, "; ".join(triggers) or "nothing triggered"])
    for metric in ("miss_rate", "false_positive_rate"):
        points = series.get(metric, [])
        if any(point(each.get("value")) is not None for _, each in points):
            line = Series(
                words(metric),
                [(x, point(e.get("value"))) for x, e in points],
                [(x, point(e.get("low"))) for x, e in points],
                [(x, point(e.get("high"))) for x, e in points],
            )
            drawn = charts.line([line], title=words(metric), x_label="in the order of the table", zero=True)
            out += Markup('<div class="card">{}</div>').format(Markup(drawn))
    if out:
        out = Markup('<div class="grid">{}</div>').format(out)
    return out + table(["", "miss rate", "false-positive rate", "triggers"], lines) if lines else out
