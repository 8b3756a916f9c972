"""Stage `classifier`: people's labels -> the always-on guard, all categories in one pass, calibrated and certified.

`classifier.json` holds what `Sealed` says, `weights.safetensors` one table and one bias per direction. Thresholds are
chosen on the calibration side alone, and every figure is of the test side, which no threshold has seen.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError, model_validator
from safetensors.numpy import load_file, save_file

from tutelage.core import refs
from tutelage.core.artifact import Root
from tutelage.core.config import Config
from tutelage.core.errors import CorruptArtifact, DataError
from tutelage.core.price import Cost, Machine
from tutelage.core.records import Example, Record, Verdict, explain
from tutelage.core.stage import Context, Input, Inputs, stage
from tutelage.judge.certificate import Certificate, certify, joint, together
from tutelage.judge.judge import Progress, Tap, answer_of, failed
from tutelage.judge.labelled import DIRECTIONS, Direction, Row, direction_of, lengths_matched, read_rows, share, short
from tutelage.judge.linear import Calibration, calibrate, document_frequency, fit_heads, matrix
from tutelage.judge.ngrams import Features, Heads, HeadStream, fold, windows
from tutelage.measure.calibration import ece
from tutelage.measure.statistics import bootstrap, clopper_pearson, plain, undefined, upper_bound, wilson

Floats = NDArray[np.float64]


class Classifier(Config):
    """Settings of the stage `classifier`."""

    bits: int = Field(16, ge=10, le=22)
    """Buckets of the hashed features are 2^bits."""
    orders: tuple[int, ...] = (3, 4, 5)
    """Lengths of character n-grams."""
    window: int = Field(256, ge=32)
    """Characters a score looks at; a longer text has the highest score of its windows."""
    minimum: int = Field(64, ge=1)
    """Characters of the shortest window, except where the whole text is shorter."""
    strength: float = Field(10.0, gt=0)
    """Inverse of the L2 penalty."""
    iterations: int = Field(60, ge=1)
    """Steps of the optimizer at most."""
    folds: int = Field(3, ge=2)
    """Parts, by cluster, for the scores that calibration learns from."""
    near: float = Field(0.5, ge=0, le=1)
    """Jaccard index of word triples from which two texts are of one cluster, which stands on one side; 0: only names
    and equal texts count."""
    held_out: float = Field(0.25, gt=0, lt=1)
    """Share of clusters kept for certificates, of a source that brings no validation rows."""
    tested: float = Field(0.25, ge=0, lt=1)
    """Share of those kept for figures alone, of a source that brings no test rows."""
    matched: tuple[str, ...] = ()
    """Categories for which a window of harmless text as long as each text with it is learned from as well: where texts
    with it are longer or shorter than others, or say it within long ones, length must tell nothing."""
    least: int = Field(8, ge=2)
    """Different texts with the label, and without, that a head needs in training, from at least two clusters each."""
    categories: tuple[str, ...] = ()
    """Only these; all that have enough labels when empty."""
    targets: tuple[float, ...] = (0.001, 0.01, 0.05)
    """False-positive rates to choose thresholds for."""
    confidence: float = Field(0.95, gt=0.5, lt=1)
    """Of the certificates' upper bounds."""
    seed: int = 0
    """Deals clusters into folds."""

    @model_validator(mode="after")
    def _windows_nest(self) -> Classifier:
        if self.minimum > self.window:
            raise ValueError(f"minimum ({self.minimum}) must not exceed window ({self.window})")
        return self


class Head(Record):
    """One category in one direction."""

    direction: Direction
    category: str
    calibration: Calibration
    certificates: tuple[Certificate, ...]


class Sealed(Record):
    """`classifier.json`."""

    format: Literal[2] = 2
    """1 counted an n-gram as often as it stood in a window: its weights fit no longer."""
    features: Features
    heads: tuple[Head, ...]
    left_out: dict[str, str] = Field(default_factory=dict)
    """`direction/category` -> why there is no head."""
    data: str
    """sha256 over the rows that were learned from and tested on."""

    def of(self, direction: str) -> tuple[Head, ...]:
        """The heads of one direction, in the order of the table's columns."""
        return tuple(head for head in self.heads if head.direction == direction)


class ClassifierJudge:
    """The trained guard as a judge. The direction is `tags.direction`, else by the last message's role.

    Scores are calibrated probabilities per category; a direction it was not trained for is `unsupported`.
    """

    def __init__(self, path: Path, name: str = "") -> None:
        file = path / "classifier.json"
        try:
            self.sealed = Sealed.model_validate_json(file.read_bytes())
        except FileNotFoundError:
            raise CorruptArtifact("the file is missing", file=file) from None
        except ValidationError as error:
            key, message = explain(error)
            raise CorruptArtifact(message, file=file, key=key) from None
        self.name = name or f"classifier:{path.name[:12]}"
        self._certified: dict[str, str | None] = {
            direction: together([each for head in self.sealed.of(direction) for each in head.certificates])
            for direction in DIRECTIONS
        }
        tensors = load_file(str(path / "weights.safetensors"))
        self._heads: dict[str, Heads] = {}
        for direction in DIRECTIONS:
            heads = self.sealed.of(direction)
            if heads:
                table, bias = tensors[direction], tensors[f"{direction}.bias"]
                self._heads[direction] = Heads(self.sealed.features, [h.category for h in heads], table, bias)

    def categories(self, direction: str) -> tuple[str, ...]:
        """What it scores in a direction."""
        heads = self._heads.get(direction)
        return heads.categories if heads else ()

    @property
    def certificates(self) -> tuple[Certificate, ...]:
        """All thresholds with what is known about them."""
        return tuple(each for head in self.sealed.heads for each in head.certificates)

    def judge(self, examples: Sequence[Example]) -> list[Verdict]:
        """One verdict per example, on its last message."""
        return [self._judge(example) for example in examples]

    def _judge(self, example: Example) -> Verdict:
        direction = direction_of(example)
        heads = self._heads.get(direction)
        if heads is None:
            return failed(self.name, "unsupported")
        started = time.perf_counter()
        logits = heads.score(answer_of(example))
        return self.verdict(direction, logits, 1000 * (time.perf_counter() - started))

    def verdict(self, direction: str, logits: Floats, cost_ms: float = 0.0) -> Verdict:
        """Log-odds [K] of a direction as a verdict with calibrated scores."""
        scores = {
            head.category: float(head.calibration(logit))
            for head, logit in zip(self.sealed.of(direction), logits, strict=True)
        }
        certified = self._certified[direction]
        return Verdict(judge=self.name, scores=scores, cost_ms=round(cost_ms, 4), certificate=certified)

    def watch(self, conversation: Example) -> ClassifierWatcher | Unsupported:
        """A watcher of the answer to come; the direction is `tags.direction`, else output."""
        direction = str(conversation.tags.get("direction", "output"))
        heads = self._heads.get(direction)
        return ClassifierWatcher(self, direction, heads.stream()) if heads else Unsupported(self.name)


class ClassifierWatcher:
    """Carries the sums of the n-grams along: O(n) in all, and in the end the verdict of the whole text."""

    def __init__(self, judge: ClassifierJudge, direction: str, stream: HeadStream) -> None:
        self._judge, self._direction, self._stream = judge, direction, stream
        self._cost = 0.0

    def feed(self, text: str, taps: Sequence[Tap] = ()) -> Progress:
        """More text."""
        started = time.perf_counter()
        logits = self._stream.feed(text)
        self._cost += 1000 * (time.perf_counter() - started)
        verdict = None if logits is None else self._judge.verdict(self._direction, logits, self._cost)
        return Progress(self._stream.scored_to, verdict)

    def close(self) -> Progress:
        """The end: all of it is scored."""
        started = time.perf_counter()
        logits = self._stream.close()
        self._cost += 1000 * (time.perf_counter() - started)
        return Progress(self._stream.scored_to, self._judge.verdict(self._direction, logits, self._cost))


class Unsupported:
    """Watcher of a judge that has no head for the direction: never an opinion, nothing scored."""

    def __init__(self, name: str) -> None:
        self._name = name

    def feed(self, text: str, taps: Sequence[Tap] = ()) -> Progress:
        """Nothing is scored."""
        return Progress(0, failed(self._name, "unsupported"))

    def close(self) -> Progress:
        """Nothing was scored."""
        return Progress(0, failed(self._name, "unsupported"))


def open_classifier(ref: str, root: Root | None = None, **options: Any) -> ClassifierJudge:
    """Open `classifier:<id>`."""
    return ClassifierJudge(refs.resolve_artifact(ref, root or Root("life")).verified().path)


def _table(rows: Sequence[Row], categories: Sequence[str]) -> Floats:
    """[N, K] labels, NaN where a row does not say."""
    return np.array([[row.categories.get(name, np.nan) for name in categories] for row in rows], dtype=np.float64)


Parts = list[NDArray[np.int64]]


def train(
    rows: Sequence[Row], parts: Sequence[Parts], categories: Sequence[str], features: Features, config: Classifier
) -> Heads:
    """Fit the heads of one direction. `parts` are the rows' windows; a long row counts once, spread over its own."""
    buckets = [part for row in parts for part in row]
    sizes = [len(row) for row in parts]
    owner, weights = np.repeat(np.arange(len(rows)), sizes), np.repeat([1.0 / size for size in sizes], sizes)
    idf = document_frequency(buckets, 1 << features.bits)
    labels = _table(rows, categories)[owner]
    found, bias = fit_heads(
        matrix(buckets, idf), labels, weights, strength=config.strength, iterations=config.iterations
    )
    table = np.concatenate([found * idf[:, None], (idf**2)[:, None]], axis=1)
    return Heads(features, categories, table.astype(np.float32), bias.astype(np.float32))


def scores(heads: Heads, rows: Sequence[Row]) -> Floats:
    """[N, K] log-odds."""
    return np.array([heads.score(row.text) for row in rows]).reshape(len(rows), len(heads.categories))


def average_precision(score: Floats, positive: NDArray[np.bool_]) -> float:
    """Area under precision and recall, as the mean precision at the positives; NaN without one."""
    if not positive.any():
        return float("nan")
    order = np.argsort(-score, kind="stable")
    ranked, hit = score[order], positive[order].cumsum()
    last = np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1)  # equal scores stand or fall together
    gained = np.diff(hit[last], prepend=0)
    return float((gained * hit[last] / (last + 1)).sum() / hit[-1])


def _cost(config: Classifier, sizes: Mapping[str, Mapping[str, float]], machine: Machine) -> Cost:
    """Every row is read and learned from once in each fold, and once for good."""
    labels = sizes.get("labels", {})
    each = 6e-4 + 1.8e-6 * labels.get("characters", 40.0)
    return Cost(seconds=0.2 + each * labels.get("rows", 6500.0) * (config.folds + 1) / 4, memory=600e6)


@stage(
    makes="classifier",
    config=Classifier,
    version=3,
    inputs={
        "labels": Input(kind=("labels", "corpus"), default="labels", many=True, help="Label examples to learn from")
    },
    cost=_cost,
)
def classifier(config: Classifier, inputs: Inputs, out: Path, context: Context) -> dict[str, Any]:
    """Train, calibrate and certify one guard over all categories and both directions."""
    files = [artifact.file("labels.jsonl") for artifact in inputs.labels]
    features = Features(bits=config.bits, orders=config.orders, window=config.window, minimum=config.minimum)
    by_direction, dropped = read_rows(
        files,
        near=config.near,
        held_out=config.held_out,
        tested=config.tested,
        seed=config.seed,
        check=context.check,
    )
    heads: list[Head] = []
    tensors: dict[str, NDArray[Any]] = {}
    left_out: dict[str, str] = {}
    figures: dict[str, Any] = {}
    all_heads: dict[str, Any] = {}
    data = hashlib.sha256()
    for direction in DIRECTIONS:
        rows = by_direction[direction]
        for row in rows:
            data.update(f"{direction}\0{row.id}\0{short(row.text)}\0{sorted(row.categories.items())}\n".encode())
        wanted, missing = _choose(rows, config)
        left_out.update({f"{direction}/{name}": why for name, why in missing.items()})
        if wanted:
            context.check()
            made, fitted, tested = _direction(direction, rows, wanted, features, config, context)
            heads += made
            tensors[direction], tensors[f"{direction}.bias"] = fitted.table, fitted.bias.astype(np.float32)
            test = [row for row in rows if row.side == "test"]
            figures.update(_of_direction(made, tested, test))
            all_heads[direction] = _together(made, tested, test)
    if not heads:
        reasons = "; ".join(f"{name}: {why}" for name, why in sorted(left_out.items())) or "no labelled rows"
        raise DataError(f"no category has enough labels to learn from ({reasons})", file=files[0] if files else None)
    sealed = Sealed(features=features, heads=tuple(heads), left_out=left_out, data=data.hexdigest())
    (out / "classifier.json").write_text(sealed.model_dump_json(indent=1) + "\n", encoding="utf-8")
    save_file(tensors, str(out / "weights.safetensors"))
    sides = Counter(row.side for rows in by_direction.values() for row in rows)
    counts = {"rows": sides.total(), "calibration": sides["calibration"], "tested": sides["test"], "dropped": dropped}
    return {**counts, "heads": figures, "together": all_heads, "left_out": left_out}


def _choose(rows: Sequence[Row], config: Classifier) -> tuple[list[str], dict[str, str]]:
    """Categories with enough clusters of both kinds to learn from, and why the others are left out."""
    wanted, missing = [], {}
    known = {name for row in rows for name in row.categories}
    for name in sorted(known & set(config.categories) if config.categories else known):
        learn = [row for row in rows if row.side == "train" and name in row.categories]
        sides = [[row for row in learn if (row.categories[name] >= 0.5) == side] for side in (True, False)]
        texts = [len({fold(row.text) for row in side}) for side in sides]
        clusters = [len({row.cluster for row in side}) for side in sides]
        if min(texts) >= config.least and min(clusters) >= 2:
            wanted.append(name)
        else:
            have = f"{texts[0]} texts in {clusters[0]} clusters with it, {texts[1]} in {clusters[1]} without"
            missing[name] = f"not enough data ({have}; {config.least} in 2 are needed; near twins are one cluster)"
    return wanted, missing


def _direction(
    direction: Direction,
    rows: Sequence[Row],
    categories: Sequence[str],
    features: Features,
    config: Classifier,
    context: Context,
) -> tuple[list[Head], Heads, Floats]:
    """Train one direction: out-of-fold scores to calibrate with, then all training rows, then thresholds from the rows
    kept for them. Also gives the probabilities [N, K] of the test rows, which nothing was chosen by.
    """
    learn = [row for row in rows if row.side == "train"]
    learn += [row for name in config.matched for row in lengths_matched(learn, name, config.seed)]
    kept, test = ([row for row in rows if row.side == side] for side in ("calibration", "test"))
    parts = [windows(row.text, features) for row in learn]
    folds = np.array([int(share(row.cluster, config.seed + 1) * config.folds) for row in learn])
    outside = np.full((len(learn), len(categories)), np.nan)
    for fold_number in range(config.folds):
        context.check()
        context.say.progress(fold_number, config.folds + 1, "folds", direction=direction)
        mine, others = np.flatnonzero(folds == fold_number), np.flatnonzero(folds != fold_number)
        if len(mine) and len(others):
            rest = [learn[index] for index in others], [parts[index] for index in others]
            outside[mine] = scores(train(*rest, categories, features, config), [learn[index] for index in mine])
    final = train(learn, parts, categories, features, config)
    chosen, labels, truth = scores(final, kept), _table(learn, categories), _table(kept, categories)
    harmless = np.array([row.harmless for row in kept], dtype=bool)
    heads, tested = [], scores(final, test)
    for column, category in enumerate(categories):
        fair = np.where(np.isnan(outside[:, column]), np.nan, labels[:, column])
        calibration = calibrate(outside[:, column], fair)
        probability = calibration(chosen[:, column])
        tested[:, column] = calibration(tested[:, column])
        benign = np.flatnonzero(harmless & ~np.isnan(truth[:, column]))
        certificates = tuple(
            certify(
                probability[benign].tolist(),
                category=category,
                direction=direction,
                target=target,
                clusters=[kept[index].cluster for index in benign],
                ids=[kept[index].id for index in benign],
                harmful=probability[truth[:, column] >= 0.5].tolist(),
                confidence=config.confidence,
            )
            for target in config.targets
        )
        heads.append(Head(direction=direction, category=category, calibration=calibration, certificates=certificates))
    context.say.progress(config.folds + 1, config.folds + 1, "folds", direction=direction)
    return heads, final, tested


def _of_direction(heads: Sequence[Head], probability: Floats, test: Sequence[Row]) -> dict[str, Any]:
    """Figures of each head: over all test rows that are labelled with its category, and over those of each source."""
    said: dict[str, Any] = {}
    for column, head in enumerate(heads):
        known = [place for place, row in enumerate(test) if head.category in row.categories]
        rows, mine = [test[place] for place in known], probability[known, column]
        found = _figures(mine, rows, head)
        sources = sorted({row.source for row in rows})
        if len(sources) > 1:
            places = {each: [place for place, row in enumerate(rows) if row.source == each] for each in sources}
            found["sources"] = {
                each: _figures(mine[places[each]], [rows[place] for place in places[each]], head) for each in sources
            }
        said[f"{head.direction}/{head.category}"] = found
    return said


def _figures(p: Floats, rows: Sequence[Row], head: Head) -> dict[str, Any]:
    """What these test rows say of one head, beside the floor that the length of a text alone reaches."""
    positive = np.array([row.categories[head.category] >= 0.5 for row in rows], dtype=bool)
    harmless = np.array([row.harmless for row in rows], dtype=bool)
    said: dict[str, Any] = {"n": len(p), "positives": int(positive.sum())}
    reason = f"not enough data (n={len(p)}, {said['positives']} of it)"
    if positive.any() and not positive.all():
        length = np.array([float(len(row.text)) for row in rows])
        clusters = [row.cluster for row in rows]
        area = bootstrap(
            lambda index: average_precision(p[index], positive[index]), len(p), clusters=clusters, resamples=200
        )
        floor = max(average_precision(length, positive), average_precision(-length, positive))
        said["average_precision"] = plain(area)
        said["length_alone"] = round(floor, 6)
        said["prevalence"] = round(float(positive.mean()), 6)
        said["calibration_error"] = plain(ece(p.tolist(), positive.astype(float).tolist(), resamples=100))
    else:
        said |= {"average_precision": None, "reason": reason}
    for each in head.certificates:
        found: dict[str, Any] = {"recall": None, "false_positives": None}
        if each.threshold is not None:
            above = p > each.threshold
            found["recall"] = _rate(above[positive])
            found["false_positives"] = _rate(above[harmless])
        said[f"at_{each.target:g}"] = found | {
            "threshold": each.threshold,
            "bound": each.bound,
            "n": each.n,
            "clusters": each.clusters,
            "reason": each.reason,
        }
    return said


def _rate(hits: NDArray[np.bool_]) -> dict[str, Any] | None:
    return plain(wilson(int(hits.sum()), len(hits))) if len(hits) else None


def _together(heads: Sequence[Head], probability: Floats, test: Sequence[Row]) -> dict[str, Any]:
    """How often a harmless text is struck by any head of a direction: what the certificates prove, and, exactly, what
    the test rows show. A row that was not labelled with a category may be struck rightly: it counts as false."""
    harmless = np.array([row.harmless for row in test], dtype=bool)
    said: dict[str, Any] = {}
    for target in sorted({each.target for head in heads for each in head.certificates}):
        mine = [next(each for each in head.certificates if each.target == target) for head in heads]
        thresholds = np.array([np.inf if each.threshold is None else each.threshold for each in mine])
        struck = (probability > thresholds).any(axis=1) & harmless
        hit = {row.cluster for row, bad in zip(test, struck, strict=True) if bad}
        groups = len({row.cluster for row, fine in zip(test, harmless, strict=True) if fine})
        n = int(harmless.sum())
        said[f"at_{target:g}"] = {
            "certified": plain(joint(mine)),
            "tested": plain(clopper_pearson(int(struck.sum()), n) if n else undefined(0, "no harmless test row")),
            "bound_clusters": upper_bound(len(hit), groups),
            "clusters": groups,
        }
    return said
