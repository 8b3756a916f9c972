"""Stage `classifier`: people's labels -> the always-on guard, all categories in one pass, calibrated and certified.

`classifier.json` holds what `Sealed` says, `weights.safetensors` one table and one bias per direction and tier.
Thresholds are chosen on the calibration side alone, and every figure is of the test side, which no threshold has seen.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError, model_validator
from safetensors.numpy import load_file, save_file

from tutelage.core import refs
from tutelage.core.artifact import Artifact, Root
from tutelage.core.config import Config
from tutelage.core.errors import CorruptArtifact, DataError, MissingExtra, NotFound
from tutelage.core.price import Cost, Machine
from tutelage.core.records import Example, Verdict, explain
from tutelage.core.stage import Context, Input, Inputs, stage
from tutelage.judge.certificate import Certificate, certify, together
from tutelage.judge.encoder import Cascade, CascadeStream, Embedder, Learned, Tier, learn_tier
from tutelage.judge.figures import all_together, of_direction
from tutelage.judge.judge import Progress, Tap, answer_of, failed
from tutelage.judge.labelled import (
    DIRECTIONS,
    Direction,
    Row,
    direction_of,
    lengths_matched,
    read_rows,
    share,
    short,
    trigger_negatives,
)
from tutelage.judge.linear import calibrate, document_frequency, fit_heads, matrix
from tutelage.judge.ngrams import Features, Heads, fold, windows
from tutelage.judge.sealed import Head, Sealed, Second
from tutelage.model import encoder as encoders

Floats = NDArray[np.float64]


class Classifier(Config):
    """Settings of the stage `classifier`."""

    bits: int = Field(18, ge=10, le=22)
    """Buckets of the hashed features are 2^bits: half for characters, half for words and their pairs."""
    orders: tuple[int, ...] = (3, 4, 5)
    """Lengths of character n-grams."""
    words: float = Field(2.0, gt=0)
    """What a word or a pair of words weighs beside an n-gram of characters as rare."""
    prior: float = Field(2000.0, ge=0)
    """What is added to the squared length of a window's features: the shorter a text, the less can be sure of it."""
    window: int = Field(1024, ge=32)
    """Characters a score looks at; a longer text has the highest score of its windows."""
    part: int = Field(256, ge=16)
    """Characters of the shorter windows that are looked at past the first whole one."""
    minimum: int = Field(256, ge=1)
    """Characters of the shortest window, except where the whole text is shorter."""
    first: int = Field(64, ge=1)
    """The same for answers, which stream: nothing of one leaves before so many characters of it are written."""
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
    triggers: tuple[str, ...] = ()
    """Categories that no word alone gives away: harmless texts with the words that do are learned from as well. Not for
    a category whose words are the harm, as slurs are."""
    least: int = Field(8, ge=2)
    """Different texts with the label, and without, that a head needs in training, from at least two clusters each."""
    categories: tuple[str, ...] = ()
    """Only these; all that have enough labels when empty."""
    encoder: str = ""
    """A second tier where the n-grams cannot tell: a frozen sentence encoder by its folder, `hf:org/name`, or the name
    of an installed distribution that carries one. Where it is not here, the n-grams decide alone and the metrics say
    what is missing."""
    missed: float = Field(0.02, ge=0, lt=0.5)
    """Share of the texts with a category that may lie below what its head asks the encoder about."""
    escalated: float = Field(0.15, gt=0, le=1)
    """Share of the texts without a category about which its head may ask the encoder."""
    sample: int = Field(2000, ge=0)
    """Rows the encoder learns from beside those that the n-grams are unsure of."""
    targets: tuple[float, ...] = (0.001, 0.01, 0.05)
    """False-positive rates to choose thresholds for."""
    confidence: float = Field(0.95, gt=0.5, lt=1)
    """Of the certificates' upper bounds."""
    seed: int = 0
    """Deals clusters into folds."""

    @model_validator(mode="after")
    def _windows_nest(self) -> Classifier:
        for name in ("part", "minimum", "first"):
            if getattr(self, name) > self.window:
                raise ValueError(f"{name} ({getattr(self, name)}) must not exceed window ({self.window})")
        return self

    def features(self, direction: Direction) -> Features:
        """What is counted in texts of a direction."""
        return Features(
            bits=self.bits,
            orders=self.orders,
            window=self.window,
            part=self.part,
            minimum=self.minimum if direction == "input" else min(self.first, self.minimum),
            apart=True,
            prior=self.prior,
        )

    def resolved(self) -> dict[str, Any]:
        """An encoder enters the key by its content: another one, or none where one was missing, is other guards."""
        if not self.encoder:
            return super().resolved()
        try:
            content = encoders.identity_of(encoders.locate(self.encoder))
        except (NotFound, MissingExtra):
            content = "missing"
        return {**super().resolved(), "encoder_content": content}


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
        self._made = made_at(path)
        self._certified: dict[str, str | None] = {
            direction: together([each for head in self.sealed.of(direction) for each in head.certificates])
            for direction in DIRECTIONS
        }
        tensors = load_file(str(path / "weights.safetensors"))
        self._embedder: Embedder | None = None
        self._lock = threading.Lock()
        if self.sealed.second:
            _the_same(self.sealed.second, file)
        self._cascades: dict[str, Cascade] = {}
        for direction in DIRECTIONS:
            heads = self.sealed.of(direction)
            if heads:
                table, bias = tensors[direction], tensors[f"{direction}.bias"]
                first = Heads(self.sealed.counted(direction), [h.category for h in heads], table, bias)
                tier = None
                if any(head.escalation for head in heads):
                    again = (tensors[f"{direction}.encoder"], tensors[f"{direction}.encoder.bias"])
                    tier = Tier(tuple(head.escalation for head in heads), *(each.astype(np.float64) for each in again))
                self._cascades[direction] = Cascade(first, tier, self._embed)

    @property
    def bounded(self) -> bool:
        """Whether it is arithmetic of known cost: an encoder needs a thread and a time limit."""
        return not any(cascade.tier for cascade in self._cascades.values())

    def warm(self) -> None:
        """Load the encoder, so that nobody's first text waits for it."""
        if not self.bounded:
            self._embed(["warm"])

    def _embed(self, texts: Sequence[str]) -> NDArray[np.float16]:
        with self._lock:
            if self._embedder is None:
                assert self.sealed.second
                self._embedder = Embedder(encoders.load(self.sealed.second.ref))
        return self._embedder(texts)

    def categories(self, direction: str) -> tuple[str, ...]:
        """What it scores in a direction."""
        cascade = self._cascades.get(direction)
        return cascade.categories if cascade else ()

    @property
    def certificates(self) -> tuple[Certificate, ...]:
        """All thresholds with what is known about them, and when they were made."""
        dated = {"at": self._made}
        return tuple(each.model_copy(update=dated) for head in self.sealed.heads for each in head.certificates)

    def judge(self, examples: Sequence[Example]) -> list[Verdict]:
        """One verdict per example, on its last message."""
        return [self._judge(example) for example in examples]

    def _judge(self, example: Example) -> Verdict:
        direction = direction_of(example)
        cascade = self._cascades.get(direction)
        if cascade is None:
            return failed(self.name, "unsupported")
        started = time.perf_counter()
        logits = cascade.scores([answer_of(example)])[0]
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
        cascade = self._cascades.get(direction)
        return ClassifierWatcher(self, direction, cascade.stream()) if cascade else Unsupported(self.name)


class ClassifierWatcher:
    """Carries the sums of the n-grams along: O(n) in all, and in the end the verdict of the whole text, which asks the
    encoder about the same passages."""

    def __init__(self, judge: ClassifierJudge, direction: str, stream: CascadeStream) -> None:
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


def made_at(path: Path) -> str:
    """When an artifact was made (UTC), as its manifest says; empty where there is none."""
    return str(Artifact(path).manifest.made.get("at", "")) if (path / "manifest.json").is_file() else ""


def _the_same(second: Second, file: Path) -> None:
    """Raises NotFound where the encoder is not here, CorruptArtifact where another one bears its name."""
    if encoders.identity_of(encoders.locate(second.ref)) != second.identity:
        message = f"the encoder {second.ref!r} that is here is not the one it was trained with"
        raise CorruptArtifact(message, file=file, key="second.identity")


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
    """Fit the heads of one direction. `parts` are the rows' windows; a long row counts once, spread over its own.

    A text has a category where any window of it has: having learned once from all windows, the heads learn again from
    all of the texts without a category and, of each text with it, from the window they are surest of (multiple
    instances: Andrews et al. 2002).
    """
    buckets = [part for row in parts for part in row]
    sizes = [len(row) for row in parts]
    owner, weights = np.repeat(np.arange(len(rows)), sizes), np.repeat([1.0 / size for size in sizes], sizes)
    worth = document_frequency(buckets, 1 << features.bits)
    if features.apart:
        worth[len(worth) // 2 :] *= config.words
    table, labels = matrix(buckets, worth, features.prior), _table(rows, categories)[owner]
    fit = partial(fit_heads, table, strength=config.strength, iterations=config.iterations)
    found, bias = fit(labels, weights)
    if max(sizes, default=1) > 1:
        logits = table @ found + bias
        surest = np.full((len(rows), len(categories)), -np.inf)
        np.maximum.at(surest, owner, logits)
        labels = np.where((labels >= 0.5) & (logits < surest[owner]), np.nan, labels)
        alone = np.where(labels >= 0.5, 1.0, weights[:, None])
        found, bias = fit(labels, alone)
    joined = np.concatenate([found * worth[:, None], (worth**2)[:, None]], axis=1)
    return Heads(features, categories, joined.astype(np.float32), bias.astype(np.float32))


def scores(heads: Heads, rows: Sequence[Row]) -> Floats:
    """[N, K] log-odds of the n-grams."""
    return Cascade(heads).scores([row.text for row in rows])


def _cost(config: Classifier, sizes: Mapping[str, Mapping[str, float]], machine: Machine) -> Cost:
    """Every row is read and learned from once in each fold, and once for good; some are shown to the encoder."""
    labels = sizes.get("labels", {})
    rows, characters = labels.get("rows", 6500.0), labels.get("characters", 40.0)
    seconds = 0.2 + (6e-4 + 1.8e-6 * characters) * rows * (config.folds + 1) / 4
    if config.encoder:
        shown = min(rows, 2 * config.sample + 2 * config.escalated * rows)
        seconds += 5 + shown * (4e-3 + 8e-5 * min(characters, 1024.0))
    return Cost(seconds=seconds, memory=900e6 if config.encoder else 600e6)


@stage(
    makes="classifier",
    config=Classifier,
    version=4,
    inputs={
        "labels": Input(kind=("labels", "corpus"), default="labels", many=True, help="Label examples to learn from")
    },
    cost=_cost,
)
def classifier(config: Classifier, inputs: Inputs, out: Path, context: Context) -> dict[str, Any]:
    """Train, calibrate and certify one guard over all categories and both directions."""
    files = [artifact.file("labels.jsonl") for artifact in inputs.labels]
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
    embed, tiers = _encoder(config, context)
    data = hashlib.sha256()
    for direction in DIRECTIONS:
        rows = by_direction[direction]
        for row in rows:
            data.update(f"{direction}\0{row.id}\0{short(row.text)}\0{sorted(row.categories.items())}\n".encode())
        wanted, missing = _choose(rows, config)
        left_out.update({f"{direction}/{name}": why for name, why in missing.items()})
        if wanted:
            context.check()
            made, cascade, tested, stated = _direction(direction, rows, wanted, config, context, embed)
            heads += made
            first = cascade.heads
            tensors[direction], tensors[f"{direction}.bias"] = first.table, first.bias.astype(np.float32)
            if cascade.tier:
                tensors[f"{direction}.encoder"] = cascade.tier.table.astype(np.float32)
                tensors[f"{direction}.encoder.bias"] = cascade.tier.bias.astype(np.float32)
            test = [row for row in rows if row.side == "test"]
            figures.update(of_direction(made, tested, test))
            all_heads[direction] = all_together(made, tested, test)
            tiers |= {direction: stated} if stated else {}
    if not heads:
        reasons = "; ".join(f"{name}: {why}" for name, why in sorted(left_out.items())) or "no labelled rows"
        raise DataError(f"no category has enough labels to learn from ({reasons})", file=files[0] if files else None)
    second = None
    if embed and any(head.escalation for head in heads):
        second = Second(ref=config.encoder, identity=embed.encoder.identity)
    sealed = Sealed(
        features=config.features("input"),
        first=min(config.first, config.minimum),
        heads=tuple(heads),
        left_out=left_out,
        second=second,
        data=data.hexdigest(),
    )
    (out / "classifier.json").write_text(sealed.model_dump_json(indent=1) + "\n", encoding="utf-8")
    save_file(tensors, str(out / "weights.safetensors"))
    sides = Counter(row.side for rows in by_direction.values() for row in rows)
    counts = {"rows": sides.total(), "calibration": sides["calibration"], "tested": sides["test"], "dropped": dropped}
    return {**counts, "heads": figures, "together": all_heads, "left_out": left_out, "encoder": tiers}


def _encoder(config: Classifier, context: Context) -> tuple[Embedder | None, dict[str, Any]]:
    """The encoder, if one is asked for and here, and what the metrics say of it."""
    if not config.encoder:
        return None, {}
    try:
        found = encoders.load(config.encoder)
    except (NotFound, MissingExtra) as error:
        context.say.note(f"the n-grams decide alone: {error.message}", todo=error.todo)
        return None, {"missing": f"{config.encoder}: {error.message}"}
    kept = context.root.path / "embeddings"
    return Embedder(found, kept, context.check), {"identity": found.identity, "width": found.width}


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
    config: Classifier,
    context: Context,
    embed: Embedder | None,
) -> tuple[list[Head], Cascade, Floats, dict[str, Any]]:
    """Train one direction: out-of-fold scores to calibrate with, then all training rows, then thresholds from the rows
    kept for them. Also gives the probabilities [N, K] of the test rows, which nothing was chosen by, and what the
    second tier came to.
    """
    features = config.features(direction)
    learn = [row for row in rows if row.side == "train"]
    own = list(learn)
    learn += [row for name in config.matched for row in lengths_matched(own, name, config.seed)]
    learn += [row for name in config.triggers for row in trigger_negatives(own, name, config.seed)]
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
    cascade, labels = Cascade(train(learn, parts, categories, features, config)), _table(learn, categories)
    stated: dict[str, Any] = {}
    if embed:
        learned = _second(cascade.heads, learn, outside, labels, folds, config, embed)
        cascade = Cascade(cascade.heads, learned.tier, embed)
        outside = cascade.joined(outside, learned.said)
        asking = [name for name, each in zip(categories, learned.tier.escalations, strict=True) if each]
        stated = {"learned_from": learned.shown, "asked_for": asking}
    chosen, truth = cascade.scores([row.text for row in kept]), _table(kept, categories)
    harmless = np.array([row.harmless for row in kept], dtype=bool)
    heads, tested = [], cascade.scores([row.text for row in test])
    for column, category in enumerate(categories):
        fair = np.where(np.isnan(outside[:, column]), np.nan, labels[:, column])
        calibration = calibrate(outside[:, column], fair)
        probability = calibration(chosen[:, column])
        tested[:, column] = calibration(tested[:, column])
        benign = np.flatnonzero(harmless & ~np.isnan(truth[:, column]))
        scored = [(kept[at], float(probability[at])) for at in benign]
        bad = probability[truth[:, column] >= 0.5].tolist()
        certificates = _certificates(scored, bad, category, direction, config)
        heads.append(
            Head(
                direction=direction,
                category=category,
                calibration=calibration,
                certificates=certificates,
                escalation=cascade.tier.escalations[column] if cascade.tier else None,
            )
        )
    context.say.progress(config.folds + 1, config.folds + 1, "folds", direction=direction)
    return heads, cascade, tested, stated


def _certificates(
    benign: Sequence[tuple[Row, float]], harmful: Sequence[float], category: str, direction: str, config: Classifier
) -> tuple[Certificate, ...]:
    """A threshold for each rate from all harmless rows, and a tenant's own for each rate that its rows can certify."""

    def made(rows: Sequence[tuple[Row, float]], target: float, tenant: str = "") -> Certificate:
        return certify(
            [chance for _, chance in rows],
            category=category,
            direction=direction,
            target=target,
            clusters=[row.cluster for row, _ in rows],
            ids=[row.id for row, _ in rows],
            harmful=harmful,
            confidence=config.confidence,
            tenant=tenant,
        )

    found = [made(benign, target) for target in config.targets]
    for tenant in sorted({row.tenant for row, _ in benign if row.tenant}):
        own = [made([each for each in benign if each[0].tenant == tenant], target, tenant) for target in config.targets]
        found += [each for each in own if each.certified]
    return tuple(found)


def _second(
    heads: Heads,
    learn: Sequence[Row],
    outside: Floats,
    labels: Floats,
    folds: NDArray[np.int64],
    config: Classifier,
    embed: Embedder,
) -> Learned:
    """The second tier of one direction, from the rows its n-grams are unsure of and a fixed sample of the others."""
    drawn = np.argsort([share(row.id, config.seed + 3) for row in learn], kind="stable")[: config.sample]
    chosen = np.zeros(len(learn), dtype=bool)
    chosen[drawn] = True
    return learn_tier(
        heads, [row.text for row in learn], outside, labels, folds, chosen, embed,
        missed=config.missed, escalated=config.escalated, strength=config.strength,
    )  # fmt: skip
