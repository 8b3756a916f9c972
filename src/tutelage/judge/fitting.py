"""How a classifier learns from labelled rows: its settings, the heads of one direction in both tiers, and from the rows
kept for them their thresholds with certificates.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator
from safetensors.numpy import load_file, save_file

from tutelage.core.config import Config
from tutelage.core.errors import MissingExtra, NotFound
from tutelage.core.stage import Context
from tutelage.judge.certificate import Certificate, certify
from tutelage.judge.encoder import Cascade, Embedder, Learned, learn_tier
from tutelage.judge.labelled import Direction, Row, lengths_matched, share, trigger_negatives
from tutelage.judge.linear import calibrate, document_frequency, fit_heads, matrix
from tutelage.judge.ngrams import Features, Heads, fold, windows
from tutelage.judge.sealed import Head
from tutelage.model import encoder as encoders

Floats = NDArray[np.float64]


class Classifier(Config):
    """Settings of the stage `classifier`."""

    bits: int = Field(18, ge=10, le=22)
    """Buckets of the hashed features are 2^bits: half for characters, half for words and their pairs."""
    orders: tuple[int, ...] = (3, 4, 5)
    """Lengths of character n-grams."""
    words: float = Field(4.0, gt=0)
    """What a word or a pair of words weighs beside an n-gram of characters as rare."""
    prior: float = Field(5000.0, ge=0)
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


def choose(rows: Sequence[Row], config: Classifier) -> tuple[list[str], dict[str, str]]:
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


def fit_direction(
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

    def held_out(fold_number: int) -> dict[str, NDArray[Any]]:
        """Scores of a fold's rows by heads that learned from the others."""
        mine, others = np.flatnonzero(folds == fold_number), np.flatnonzero(folds != fold_number)
        rest = [learn[index] for index in others], [parts[index] for index in others]
        heads = train(*rest, categories, features, config)
        return {"scores": scores(heads, [learn[index] for index in mine])}

    for number in range(config.folds):
        context.check()
        context.say.progress(number, config.folds + 1, "folds", direction=direction)
        if 0 < (folds == number).sum() < len(folds):
            outside[folds == number] = _once(context, f"{direction}.{number}", partial(held_out, number))["scores"]
    final = _once(context, direction, lambda: _plain(train(learn, parts, categories, features, config)))
    cascade = Cascade(Heads(features, categories, final["table"], final["bias"]))
    labels = _table(learn, categories)
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


def _plain(heads: Heads) -> dict[str, NDArray[Any]]:
    return {"table": heads.table, "bias": heads.bias.astype(np.float32)}


def _once(context: Context, name: str, make: Callable[[], dict[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
    """What an earlier start of this stage made already, else made now and kept: a kill costs one fit, not all."""
    file = context.work / f"{name}.safetensors"
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        aside = file.with_suffix(".part")
        save_file(make(), str(aside))
        os.replace(aside, file)
    return load_file(str(file))


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
