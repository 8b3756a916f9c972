"""Systems side by side as one HTML file: what differs and by how much, what could have been seen, and every answer that
changed. One small script of its own browses the answers, under a policy that lets nothing else run or load."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from markupsafe import Markup

from tutelage.core.artifact import Artifact
from tutelage.evaluate.compare import CHANGES, Compared, Row
from tutelage.evaluate.ranking import Ranked
from tutelage.evaluate.suites.kinds import metric_of
from tutelage.report import charts
from tutelage.report.pages import STYLE, dotted, environment
from tutelage.report.tables import Column, badge, cell, table, words

TEMPLATES = STYLE.parent
VERDICTS = {
    "better": ("good", "better"),
    "worse": ("bad", "worse"),
    "undecided": ("", "not shown"),
    "none": ("", "no verdict"),
}
MARGIN = {True: "no worse", False: "worse than margin", None: "margin not shown"}
MOVED = ("fixed", "better", "worse", "broken")


def name_of(row: Row) -> str:
    """Suite and cell in words."""
    return f"{words(row.suite)} {words(row.cell)}" if row.cell else words(row.suite)


def points(value: float | None, *, sign: bool = False) -> str:
    """A share as points of 100, one decimal: 0.0423 -> 4.2."""
    return "–" if value is None else f"{100 * value:{'+' if sign else ''}.1f}".replace("-", "−")


def in_points(row: Row | Ranked) -> bool:
    """Whether a metric has bounds, so that it is told in points of 100."""
    return row.kind is None or row.metric is None or metric_of(row.kind, row.metric).bounds is not None


def told(row: Row | Ranked, value: float | None, *, sign: bool = False) -> str:
    """A figure of a row as people read it."""
    if in_points(row):
        return points(value, sign=sign)
    return "–" if value is None else f"{value:{'+' if sign else ''}.3f}".replace("-", "−")


def difference(row: Row) -> str:
    """The difference with its interval, or why there is none."""
    gap = row.difference
    if gap.value is None:
        return f"– {gap.reason}"
    if gap.low is None or gap.high is None:
        return f"{told(row, gap.value, sign=True)} (no interval: {gap.reason})"
    return f"{told(row, gap.value, sign=True)} [{told(row, gap.low, sign=True)}, {told(row, gap.high, sign=True)}]"


def detects(row: Row) -> str:
    """What these items can show."""
    return "–" if row.detectable is None else f"≥ {told(row, row.detectable)}"


def span_of(rows: Sequence[Row]) -> float:
    """Half the width of an axis that holds all intervals of these rows."""
    ends = [abs(end) for row in rows for end in (row.difference.low, row.difference.high) if end is not None]
    return max(0.05, *(0.05 * -(-end // 0.05) for end in ends)) if ends else 0.5


def forest(row: Row, span: float, margin: float | None) -> str:
    """One row of a forest plot: the interval of the difference over the band in which these items could show nothing,
    with ticks at the margin."""

    def px(x: float) -> float:
        return round(120 + 114 * min(1.0, max(-1.0, x / span)), 1)

    gap, out = row.difference, ['<line class="grid" x1="6" x2="234" y1="11" y2="11"/>']
    if row.detectable is not None:
        left, right = px(-row.detectable), px(row.detectable)
        out.append(f'<rect class="blind" x="{left}" y="3" width="{right - left:.1f}" height="16"/>')
    out.append(f'<line class="zero" x1="{px(0)}" x2="{px(0)}" y1="0" y2="22"/>')
    if margin is not None and row.higher_is_better is not None:
        worse = -margin if row.higher_is_better else margin
        out.append(f'<line class="mark" x1="{px(worse)}" x2="{px(worse)}" y1="0" y2="22"/>')
    kind = "undecided" if row.verdict == "none" else row.verdict
    if gap.value is not None:
        if gap.low is not None and gap.high is not None:
            out.append(f'<line class="whisker {kind}" x1="{px(gap.low)}" x2="{px(gap.high)}" y1="11" y2="11"/>')
        out.append(f'<circle class="dot {kind}" cx="{px(gap.value)}" cy="11" r="4.5"/>')
    label = escape(f"{name_of(row)}: {difference(row)}, {VERDICTS[row.verdict][1]}")
    return f'<svg class="forest" viewBox="0 0 240 22" role="img" aria-label="{label}">{"".join(out)}</svg>'


def flips(changes: Mapping[str, int], most: int, name: str) -> str:
    """Answers that became worse to the left, better to the right; fixed and broken ones in the stronger shade."""

    def width(count: int) -> float:
        return 112 * count / max(1, most)

    out, right, left = [], 120.0, 120.0
    for change in ("fixed", "better"):
        out.append(f'<rect class="{change}" x="{right:.1f}" y="3" width="{width(changes[change]):.1f}" height="12"/>')
        right += width(changes[change])
    for change in ("broken", "worse"):
        left -= width(changes[change])
        out.append(f'<rect class="{change}" x="{left:.1f}" y="3" width="{width(changes[change]):.1f}" height="12"/>')
    out.append('<line class="zero" x1="120" x2="120" y1="0" y2="18"/>')
    label = escape(f"{name}: " + ", ".join(f"{changes[change]} {change}" for change in MOVED))
    return f'<svg class="flips" viewBox="0 0 240 18" role="img" aria-label="{label}">{"".join(out)}</svg>'


def _under(text: str, small: str) -> Markup:
    """A text and a smaller one below it."""
    below = Markup('<span class="sub">{}</span>').format(small) if small else Markup("")
    return Markup("{}{}").format(text, below)


def _judged(row: Row, margin: bool) -> Markup:
    found = badge(VERDICTS[row.verdict][1], VERDICTS[row.verdict][0])
    if margin and row.non_inferior is not None:
        passed = row.non_inferior.passed
        found += Markup(" ") + badge(MARGIN[passed], {True: "good", False: "bad", None: "warn"}[passed])
        if row.equivalent is not None and row.equivalent.passed:
            found += Markup(" ") + badge("equivalent", "good")
    return found


def _items_of(row: Row) -> Markup:
    """How many items count, and how many do not."""
    missing = [
        (row.only_first, "not asked of the second"),
        (row.only_second, "not asked of the first"),
        (row.unmeasured_first, "not measured in the first"),
        (row.unmeasured_second, "not measured in the second"),
    ]
    size = f"{row.difference.n}"
    if row.difference.clusters is not None and row.difference.clusters != row.difference.n:
        size += f" in {row.difference.clusters} groups"
    lost = "; ".join(f"{count} {what}" for count, what in missing if count)
    return _under(size, lost)


def _which_way(row: Row) -> str:
    """Which way is better, where it is not upwards."""
    if row.higher_is_better is None:
        return ", it only describes" if row.best is None else f", best at {told(row, row.best)}"
    return "" if row.higher_is_better else ", less is better"


def differences(rows: Sequence[Row], margin: float | None) -> Markup:
    """The paired table of one pair, with its forest plot."""
    spans = {each: span_of([row for row in rows if in_points(row) is each]) for each in (True, False)}
    lines = []
    for row in rows:
        span = spans[in_points(row)]
        adjusted = "–" if row.p_holm is None else "< 0.0001" if row.p_holm < 0.0001 else f"{row.p_holm:.3g}"
        reason = "" if row.detectable_reason == row.difference.reason else row.detectable_reason
        tested = ", ".join(filter(None, (f"p {adjusted}", row.test)))
        holm = "" if row.detectable_holm is None else f"≥ {told(row, row.detectable_holm)} with Holm"
        lines.append(
            [
                _under(name_of(row), words(row.metric) + _which_way(row)),
                f"{told(row, row.values[0])} → {told(row, row.values[1])}",
                Markup("{}{}").format(difference(row), Markup(forest(row, span, margin))),
                Markup("{} {}").format(_judged(row, margin is not None), _under("", tested)),
                _under(detects(row), holm or reason),
                _items_of(row),
            ]
        )
    columns: list[Column] = [
        "",
        ("first → second", "nowrap"),
        (f"difference [95%], ±{points(spans[True])}", "plot"),
        "shown, p (Holm)",
        ("detects", "nowrap"),
        "items",
    ]
    return table(columns, lines)


def changed(rows: Sequence[Row], pair: int) -> Markup:
    """Answers that changed, by suite and cell; each row opens its items below."""
    headline = [row for row in rows if row.headline]
    most = max(
        (max(r.changes["fixed"] + r.changes["better"], r.changes["worse"] + r.changes["broken"]) for r in headline),
        default=1,
    )
    lines = []
    for row in headline:
        shown = Markup('<button type="button" class="link" data-pair="{}" data-suite="{}" data-cell="{}">{}</button>')
        lines.append(
            [
                shown.format(pair, row.suite, row.cell or "", name_of(row)),
                Markup(flips(row.changes, most, name_of(row))),
                *(str(row.changes[each]) for each in (*MOVED, "same", "not measured")),
            ]
        )
    columns: list[Column] = [
        "",
        ("worse | better", "plot"),
        *((each, "n") for each in (*MOVED, "same", "not measured")),
    ]
    return table(columns, lines, stack=True)


def ranking(found: Compared) -> Markup:
    """Places of all systems: in the mean over suites and cells, and in each."""
    names = [each["name"] for each in found.systems]
    whole = sorted((each for each in found.ranks if each.suite is None), key=lambda each: each.rank)
    out = Markup("")
    if whole:
        span = (1.0, float(len(names)))
        lines = [
            [
                names[each.system],
                f"{each.rank:.2f} [{each.rank_low:.2f}, {each.rank_high:.2f}]",
                Markup(charts.interval(each.rank, each.rank_low, each.rank_high, span=span)),
            ]
            for each in whole
        ]
        columns: list[Column] = ["system", ("mean rank [95%]", "nowrap"), (f"1 to {len(names)}, 1 is best", "plot")]
        out += table(columns, lines)
    cells: dict[tuple[str | None, str | None], list[Any]] = {}
    for each in found.ranks:
        if each.suite is not None:
            cells.setdefault((each.suite, each.cell), []).append(each)
    lines = []
    for (suite, part), places in cells.items():
        shown = [
            Markup('{}<span class="sub">rank {:g}{}</span>').format(
                told(each, each.value), each.rank, f" [{each.rank_low:g}, {each.rank_high:g}]"
            )
            for each in sorted(places, key=lambda each: each.system)
        ]
        head = Markup('{}<span class="sub">{}, n={}</span>').format(
            " ".join(filter(None, (words(suite), words(part) if part else ""))), words(places[0].metric), places[0].n
        )
        lines.append([head, *shown])
    columns = ["", *((name, "nowrap") for name in names)]
    inside = table(columns, lines, stack=False)
    return out + Markup("<details><summary>Every suite and cell</summary>{}</details>").format(inside)


def curves(found: Compared) -> Markup:
    """Each suite over the systems in the order given, with bands: the learning curve of checkpoints."""
    suites: dict[str, dict[str, list[Any]]] = {}
    for each in found.ranks:
        if each.suite is not None:
            suites.setdefault(each.suite, {}).setdefault(each.cell or "", []).append(each)
    out = []
    for suite, cells in suites.items():
        series = []
        for part, places in cells.items():
            order = sorted(places, key=lambda each: each.system)
            series.append(
                charts.Series(
                    words(part) or words(suite),
                    [(each.system + 1.0, each.value) for each in order],
                    [(each.system + 1.0, each.low) for each in order],
                    [(each.system + 1.0, each.high) for each in order],
                )
            )
        metric = words(next(iter(cells.values()))[0].metric)
        out.append(charts.line(series, title=words(suite), x_label="system", y_label=metric))
    legend = ", ".join(f"{place} {each['name']}" for place, each in enumerate(found.systems, 1))
    grid = Markup("").join(Markup('<div class="card">{}</div>').format(Markup(each)) for each in out)
    return Markup('<p class="soft">{}</p><div class="grid">{}</div>').format(legend, grid)


def _beside(names: Sequence[str], parts: Sequence[Mapping[str, Any]]) -> Markup:
    flat = [dotted(part) for part in parts]
    lines = [
        [words(key), *(cell(each.get(key)) for each in flat)]
        for key in dict.fromkeys(key for each in flat for key in each)
        if key and any(each.get(key) != flat[0].get(key) for each in flat)
    ]
    return table(["", *names], lines) if lines else Markup('<p class="none">No setting differs.</p>')


def origins(found: Compared, made: Mapping[str, Artifact]) -> Markup:
    """What each system is; and of systems that one stage made, the settings that differ."""
    lines = []
    for each in found.systems:
        artifact = made.get(each["id"])
        source, _, target = each["source"].partition("#")
        kind, _, id_ = source.partition(":")
        seen = f"{kind}:{id_[:12]}" + (f"#{target}" if target else "") if len(id_) == 64 else each["source"]
        model = each["id"] if artifact is None else f"{artifact.kind}:{artifact.id[:12]}"
        mark = badge("simulated people", "warn") if artifact is not None and artifact.manifest.simulated else ""
        when = str(artifact.manifest.made.get("at", "")) if artifact else ""
        lines.append([each["name"], Markup("{} {}").format(model or "–", mark), when, seen])
    out = table(["system", "what it is", ("made", "nowrap"), "where it was examined"], lines)
    known = [made.get(each["id"]) for each in found.systems]
    if all(known) and len({each.manifest.stage for each in known if each}) == 1:
        parts = [each.config for each in known if each]
        out += Markup("<h3>Settings that differ</h3>{}").format(_beside([e["name"] for e in found.systems], parts))
    return out


def embedded(found: Compared) -> Markup:
    """The items as JSON inside the page: no text can end the element that holds it."""
    letters = {word: letter for letter, word in CHANGES.items()}
    plain = {
        "systems": [each["name"] for each in found.systems],
        "pairs": found.pairs,
        "changes": {letter: word for letter, word in CHANGES.items() if letter != "."},
        "items": [
            [
                each.suite,
                each.cell or "",
                each.id,
                each.prompt,
                each.target,
                [f"{name}={value}" for name, value in each.slices.items()],
                [one and [one.value, one.outcome, one.output, one.reason, one.right] for one in each.answers],
                "".join(letters[change] for change in each.changes),
            ]
            for each in found.items
        ],
    }
    text = json.dumps(plain, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for mark in "<>&\u2028\u2029":
        text = text.replace(mark, f"\\u{ord(mark):04x}")
    return Markup(text)


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def summary_of(found: Compared, pair: tuple[int, int]) -> str:
    """One pair in one sentence."""
    rows = [row for row in found.rows if (row.first, row.second) == pair and row.headline]
    count = {each: sum(row.verdict == each for row in rows) for each in VERDICTS}
    moved = {each: sum(row.changes[each] for row in rows) for each in ("fixed", "broken")}
    least = [row.detectable for row in rows if row.detectable is not None and in_points(row)]
    reach = f" This can detect {points(min(least))} to {points(max(least))} points at 80% power." if least else ""
    return (
        f"{_counted(len(rows), 'comparison')}: {count['better']} better, {count['worse']} worse, {count['undecided']} "
        f"without a shown difference. {_counted(moved['fixed'], 'answer')} fixed, {moved['broken']} broken.{reach}"
    )


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def lines_of(found: Compared) -> Iterator[str]:
    """The headline figures for a terminal."""
    for pair in found.pairs:
        names = f"{found.systems[pair[0]]['name']} → {found.systems[pair[1]]['name']}"
        tests = "its test alone" if found.tests == 1 else f"all {found.tests} headline tests told here"
        yield f"{names}, in points of 100; p adjusted by Holm over {tests}"
        for row in found.rows:
            if (row.first, row.second) != pair or not row.headline:
                continue
            p = "–" if row.p_holm is None else f"{row.p_holm:.3g}"
            values = f"{told(row, row.values[0])} → {told(row, row.values[1])}"
            moved = f"{row.changes['fixed']} fixed, {row.changes['broken']} broken"
            verdict = VERDICTS[row.verdict][1]
            if row.non_inferior is not None:
                verdict += f", {MARGIN[row.non_inferior.passed]}"
            yield (
                f"  {name_of(row):<20}{row.metric:<16}{values:<15}{difference(row):<23} "
                f"p={p:<9}detects {detects(row):<8}n={row.difference.n:<5}{moved}; {verdict}"
            )
        yield f"  {summary_of(found, pair)}"
    yield from (f"Left out: {each}" for each in found.left_out)


def comparison_page(found: Compared, made: Mapping[str, Artifact] | None = None) -> str:
    """The comparison as one HTML document; `made` holds the artifacts of systems by their reference."""
    names = [each["name"] for each in found.systems]
    style = STYLE.read_text(encoding="utf-8") + (TEMPLATES / "comparison.css").read_text(encoding="utf-8")
    script = (TEMPLATES / "comparison.js").read_text(encoding="utf-8")
    policy = "; ".join(
        (
            "default-src 'none'",
            f"style-src {_hash(style)}",
            f"script-src {_hash(script)}",
            "base-uri 'none'",
            "form-action 'none'",
        )
    )
    pairs = []
    for place, pair in enumerate(found.pairs):
        rows = [row for row in found.rows if (row.first, row.second) == pair]
        pairs.append(
            {
                "title": f"{names[pair[0]]} → {names[pair[1]]}",
                "summary": summary_of(found, pair),
                "table": differences([row for row in rows if row.headline], found.margin),
                "further": differences([row for row in rows if not row.headline], found.margin)
                if any(not row.headline for row in rows)
                else None,
                "changed": changed(rows, place),
            }
        )
    title = f"{names[0]} → {names[1]}" if len(names) == 2 else f"{names[0]} and {len(names) - 1} others"
    return (
        environment()
        .get_template("comparison.html")
        .render(
            style=Markup(style),
            script=Markup(script),
            policy=policy,
            data=embedded(found),
            title=title,
            names=names,
            found=found,
            margin=None if found.margin is None else points(found.margin),
            pairs=pairs,
            suites=list(dict.fromkeys((each.suite, each.cell or "") for each in found.items)),
            words=words,
            changes=[word for letter, word in CHANGES.items() if letter != "."],
            ranking=ranking(found) if found.ranks else None,
            curves=curves(found) if found.ranks else None,
            origins=origins(found, made or {}),
            texts=any(each.prompt is not None for each in found.items),
        )
    )
