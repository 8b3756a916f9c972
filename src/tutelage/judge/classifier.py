"""Stage `classifier`: people's labels -> the always-on guard, all categories in one pass, calibrated and certified.

`classifier.json` holds what `Sealed` says, `weights.safetensors` one table and one bias per direction.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError, model_validator
from safetensors.numpy import load_file, save_file

from tutelage.core import refs
from tutelage.core.artifact import Root
from tutelage.core.config import Config
from tutelage.core.errors import CorruptArtifact, DataError
from tutelage.core.price import Cost, Machine
from tutelage.core.records import Example, Record, Verdict, explain, read_jsonl
from tutelage.core.stage import Context, Input, Inputs, stage
from tutelage.judge.certificate import Certificate, certify
from tutelage.judge.judge import Progress, Tap, answer_of, failed
from tutelage.judge.linear import Calibration, calibrate, document_frequency, fit_heads, matrix
from tutelage.judge.ngrams import Features, Heads, HeadStream, fold, windows
from tutelage.measure.calibration import ece
from tutelage.measure.statistics import bootstrap, wilson

Direction = Literal["input", "output"]
DIRECTIONS: tuple[Direction, ...] = ("input", "output")
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
    held_out: float = Field(0.25, gt=0, lt=1)
    """Share of clusters kept for certificates where the labels bring no split of their own."""
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
        return Verdict(judge=self.name, scores=scores, cost_ms=round(cost_ms, 4))

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


def direction_of(example: Example) -> str:
    """`tags.direction`, else `output` for an assistant's message and `input` for every other."""
    said = example.tags.get("direction")
    if said:
        return str(said)
    return "output" if example.messages and example.messages[-1].role == "assistant" else "input"


def open_classifier(ref: str, root: Root | None = None, **options: Any) -> ClassifierJudge:
    """Open `classifier:<id>`."""
    return ClassifierJudge(refs.resolve_artifact(ref, root or Root("life")).verified().path)


class Row(NamedTuple):
    """One labelled text, read and checked."""

    id: str
    text: str
    cluster: str
    held_out: bool
    categories: dict[str, float]


def read_rows(files: Sequence[Path], config: Classifier) -> dict[Direction, list[Row]]:
    """Rows of labels.jsonl by direction. What stands in training, as a cluster or as a text, is not held out as well,
    and a text is held out once.

    Raises DataError naming file, row and key.
    """
    found: dict[Direction, list[Row]] = {direction: [] for direction in DIRECTIONS}
    splits = False
    for file in files:
        for number, example in enumerate(read_jsonl(file, Example), 1):
            tags = example.tags
            labels = tags.get("categories")
            if not isinstance(labels, Mapping) or not labels:
                continue
            direction = direction_of(example)
            if direction not in DIRECTIONS:
                raise DataError(f"direction is input or output, found {direction!r}", file=file, row=number, key="tags")
            checked: dict[str, float] = {}
            for category, value in labels.items():
                if not isinstance(value, int | float) or not 0 <= value <= 1:
                    key = f"tags.categories.{category}"
                    raise DataError(f"a label lies between 0 and 1, found {value!r}", file=file, row=number, key=key)
                checked[str(category)] = float(value)
            text = answer_of(example)
            split = str(tags.get("split", ""))
            splits = splits or split in ("validation", "test")
            cluster = str(tags.get("cluster") or _hash(fold(text)))
            name = str(tags.get("id") or _hash(text))
            found[direction].append(Row(name, text, cluster, split in ("validation", "test"), checked))
    for direction, rows in found.items():
        if not splits:
            rows = [row._replace(held_out=_share(row.cluster, config.seed) < config.held_out) for row in rows]
        clusters = {row.cluster for row in rows if not row.held_out}
        texts = {fold(row.text) for row in rows if not row.held_out}
        found[direction] = []
        for row in rows:
            if row.held_out and (row.cluster in clusters or fold(row.text) in texts):
                continue
            if row.held_out:
                texts.add(fold(row.text))  # the same text again would only make n look larger
            found[direction].append(row)
    return found


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _share(cluster: str, seed: int) -> float:
    """A number in [0, 1) that depends on the cluster's name and the seed alone."""
    return int(hashlib.sha256(f"{seed}\0{cluster}".encode("utf-8", "surrogatepass")).hexdigest()[:12], 16) / 16**12


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
    version=2,
    inputs={
        "labels": Input(kind=("labels", "corpus"), default="labels", many=True, help="Label examples to learn from")
    },
    cost=_cost,
)
def classifier(config: Classifier, inputs: Inputs, out: Path, context: Context) -> dict[str, Any]:
    """Train, calibrate and certify one guard over all categories and both directions."""
    files = [artifact.file("labels.jsonl") for artifact in inputs.labels]
    features = Features(bits=config.bits, orders=config.orders, window=config.window, minimum=config.minimum)
    by_direction = read_rows(files, config)
    heads: list[Head] = []
    tensors: dict[str, NDArray[Any]] = {}
    left_out: dict[str, str] = {}
    figures: dict[str, Any] = {}
    data = hashlib.sha256()
    for direction in DIRECTIONS:
        rows = by_direction[direction]
        for row in rows:
            data.update(f"{direction}\0{row.id}\0{_hash(row.text)}\0{sorted(row.categories.items())}\n".encode())
        wanted, missing = _choose(rows, config)
        left_out.update({f"{direction}/{name}": why for name, why in missing.items()})
        if wanted:
            context.check()
            made, table, bias, said = _direction(direction, rows, wanted, features, config, context)
            heads += made
            tensors[direction], tensors[f"{direction}.bias"] = table, bias
            figures.update(said)
    if not heads:
        reasons = "; ".join(f"{name}: {why}" for name, why in sorted(left_out.items())) or "no labelled rows"
        raise DataError(f"no category has enough labels to learn from ({reasons})", file=files[0] if files else None)
    sealed = Sealed(features=features, heads=tuple(heads), left_out=left_out, data=data.hexdigest())
    (out / "classifier.json").write_text(sealed.model_dump_json(indent=1) + "\n", encoding="utf-8")
    save_file(tensors, str(out / "weights.safetensors"))
    held = sum(row.held_out for rows in by_direction.values() for row in rows)
    total = sum(map(len, by_direction.values()))
    return {"rows": total, "held_out": held, "heads": figures, "left_out": left_out}


def _choose(rows: Sequence[Row], config: Classifier) -> tuple[list[str], dict[str, str]]:
    """Categories with enough clusters of both kinds to learn from, and why the others are left out."""
    wanted, missing = [], {}
    known = {name for row in rows for name in row.categories}
    for name in sorted(known & set(config.categories) if config.categories else known):
        learn = [row for row in rows if not row.held_out and name in row.categories]
        sides = [[row for row in learn if (row.categories[name] >= 0.5) == side] for side in (True, False)]
        texts = [len({fold(row.text) for row in side}) for side in sides]
        clusters = [len({row.cluster for row in side}) for side in sides]
        if min(texts) >= config.least and min(clusters) >= 2:
            wanted.append(name)
        else:
            have = f"{texts[0]} texts in {clusters[0]} clusters with it, {texts[1]} in {clusters[1]} without"
            missing[name] = f"not enough data ({have}; {config.least} in 2 are needed)"
    return wanted, missing


def _direction(
    direction: Direction,
    rows: Sequence[Row],
    categories: Sequence[str],
    features: Features,
    config: Classifier,
    context: Context,
) -> tuple[list[Head], NDArray[np.float32], NDArray[np.float32], dict[str, Any]]:
    """Train one direction: out-of-fold scores for calibration, then all training rows, then the held-out part."""
    learn, held = [row for row in rows if not row.held_out], [row for row in rows if row.held_out]
    parts = [windows(row.text, features) for row in learn]
    folds = np.array([int(_share(row.cluster, config.seed + 1) * config.folds) for row in learn])
    outside = np.full((len(learn), len(categories)), np.nan)
    for fold_number in range(config.folds):
        context.check()
        context.say.progress(fold_number, config.folds + 1, "folds", direction=direction)
        mine, others = np.flatnonzero(folds == fold_number), np.flatnonzero(folds != fold_number)
        if len(mine) and len(others):
            rest = [learn[index] for index in others], [parts[index] for index in others]
            outside[mine] = scores(train(*rest, categories, features, config), [learn[index] for index in mine])
    final = train(learn, parts, categories, features, config)
    tested = scores(final, held)
    labels, truth = _table(learn, categories), _table(held, categories)
    harmless = np.array([max(row.categories.values()) < 0.5 for row in held], dtype=bool)
    heads, figures = [], {}
    for column, category in enumerate(categories):
        fair = np.where(np.isnan(outside[:, column]), np.nan, labels[:, column])
        calibration = calibrate(outside[:, column], fair)
        probability = calibration(tested[:, column]) if len(held) else np.zeros(0)
        benign = np.flatnonzero(harmless & ~np.isnan(truth[:, column])) if len(held) else np.zeros(0, dtype=int)
        certificates = tuple(
            certify(
                probability[benign].tolist(),
                category=category,
                direction=direction,
                target=target,
                clusters=[held[index].cluster for index in benign],
                ids=[held[index].id for index in benign],
                harmful=probability[truth[:, column] >= 0.5].tolist(),
                confidence=config.confidence,
            )
            for target in config.targets
        )
        heads.append(Head(direction=direction, category=category, calibration=calibration, certificates=certificates))
        figures[f"{direction}/{category}"] = _figures(probability, truth[:, column], held, certificates)
    context.say.progress(config.folds + 1, config.folds + 1, "folds", direction=direction)
    return heads, final.table, final.bias.astype(np.float32), figures


def _figures(
    probability: Floats, truth: Floats, held: Sequence[Row], certificates: Sequence[Certificate]
) -> dict[str, Any]:
    """What the held-out part says of one head, beside the floor that the length of a text alone reaches."""
    known = ~np.isnan(truth)
    p, positive = probability[known], truth[known] >= 0.5
    rows = [row for row, kept in zip(held, known, strict=True) if kept]
    said: dict[str, Any] = {"n": len(p), "positives": int(positive.sum())}
    if not positive.any() or positive.all():
        return {**said, "average_precision": None, "reason": f"not enough data (n={len(p)})"}
    length = np.array([float(len(row.text)) for row in rows])
    clusters = [row.cluster for row in rows]
    area = bootstrap(
        lambda index: average_precision(p[index], positive[index]), len(p), clusters=clusters, resamples=200
    )
    floor = max(average_precision(length, positive), average_precision(-length, positive))
    said["average_precision"] = area.model_dump(mode="json")
    said["length_alone"] = round(floor, 6)
    said["prevalence"] = round(float(positive.mean()), 6)
    said["calibration_error"] = ece(p.tolist(), positive.astype(float).tolist(), resamples=100).model_dump(mode="json")
    for each in certificates:
        recall = None
        if each.threshold is not None:
            recall = wilson(int((p[positive] > each.threshold).sum()), int(positive.sum())).model_dump(mode="json")
        said[f"at_{each.target:g}"] = {
            "recall": recall,
            "threshold": each.threshold,
            "bound": each.bound,
            "n": each.n,
            "clusters": each.clusters,
            "reason": each.reason,
        }
    return said
