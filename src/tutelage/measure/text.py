"""Figures of texts against references: exact match and F1, chrF and BLEU, accuracy and macro-F1.

Exact match and F1 follow SQuAD's normal form (Rajpurkar et al. 2016); chrF (Popović 2015) and BLEU (Papineni et
al. 2002) are sacrebleu's, with their signature stored beside the figure.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from functools import lru_cache
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from tutelage.core.records import Record
from tutelage.measure.clusters import Floats, Indices
from tutelage.measure.intervals import Interval, bootstrap, bootstrap_sums, undefined

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_SIGNS = frozenset(string.punctuation)
_OF_LANGUAGE = {
    language: re.compile(rf"\b(?:{articles})\b")
    for language, articles in {
        "de": "ein|eine|einen|einem|eines|einer|der|die|das|den|dem|des",
        "es": "un|una|unos|unas|el|la|los|las",
        "fr": "un|une|des|le|la|les|l",
        "it": "un|uno|una|il|lo|la|i|gli|le",
        "pt": "um|uma|uns|umas|o|a|os|as",
        "nl": "een|de|het",
        "el": "ο|η|το|οι|τα|του|της|των|τον|την|τους|τις|ένας|μία|μια|ένα",
        "vi": "của|là|cái|chiếc|những",
    }.items()
} | {"ar": re.compile(r"\bال")}
"""Articles by language; the Arabic one is a prefix. Of German, Spanish, Arabic and Vietnamese MLQA's own list."""
_UNSPACED = {"zh": r"[\u3400-\u4dbf\u4e00-\u9fff]", "ja": r"[\u3040-\u30ff\u4e00-\u9fff]", "th": r"[\u0e00-\u0e7f]"}


class Corpus(Record):
    """A corpus-level figure (0 to 100), the signature that makes it comparable, and its interval."""

    value: float | None
    signature: str
    interval: Interval


def normalise_answer(text: str, language: str = "en") -> str:
    """SQuAD's normal form: lower case, no punctuation, no articles, single spaces.

    English is SQuAD's own; other languages as MLQA's (Lewis et al. 2020): punctuation of all scripts, that language's
    articles, and in scripts without spaces every character a word.
    """
    if language == "en":
        return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())
    text = "".join(
        char for char in text.lower() if not unicodedata.category(char).startswith("P") and char not in _SIGNS
    )
    if language in _OF_LANGUAGE:
        text = _OF_LANGUAGE[language].sub(" ", text)
    if language in _UNSPACED:
        text = re.sub(_UNSPACED[language], lambda found: f" {found[0]} ", text)
    return " ".join(text.split())


def exact_match(answer: str, golds: Sequence[str], language: str = "en") -> float:
    """1 if the answer equals one of the golds in normal form, else 0."""
    found = normalise_answer(answer, language)
    return float(any(found == normalise_answer(gold, language) for gold in golds))


def _f1(answer: list[str], gold: list[str]) -> float:
    if not answer or not gold:
        return float(answer == gold)
    common = sum((Counter(answer) & Counter(gold)).values())
    return 2 * common / (len(answer) + len(gold))


def token_f1(answer: str, golds: Sequence[str], language: str = "en") -> float:
    """Best F1 of word overlap with one of the golds, in normal form; two empty texts agree fully."""
    found = normalise_answer(answer, language).split()
    return max((_f1(found, normalise_answer(gold, language).split()) for gold in golds), default=0.0)


def accuracy(predicted: Sequence[Hashable], gold: Sequence[Hashable]) -> float | None:
    """Share of equal pairs; None without items."""
    _same_length(predicted, gold)
    return sum(p == g for p, g in zip(predicted, gold, strict=True)) / len(gold) if len(gold) else None


def macro_f1(predicted: Sequence[Hashable], gold: Sequence[Hashable]) -> float | None:
    """Mean of F1 over the classes that occur in `gold`; a prediction outside them counts against precision only.

    None without items. A class of `gold` that was never predicted right scores 0.
    """
    _same_length(predicted, gold)
    if not len(gold):
        return None
    asked, said = Counter(gold), Counter(predicted)
    right = Counter(g for p, g in zip(predicted, gold, strict=True) if p == g)
    return sum(2 * right[label] / (asked[label] + said[label]) for label in asked) / len(asked)


def macro_f1_interval(
    predicted: Sequence[str],
    gold: Sequence[str],
    clusters: Sequence[Hashable] | None = None,
    *,
    resamples: int = 500,
    seed: int = 0,
) -> Interval:
    """Macro-F1 over the classes of `gold`, with a (cluster) bootstrap interval.

    A resample's F1 is the mean over the classes that were drawn; rare classes widen the interval.
    """
    _same_length(predicted, gold)
    if not len(gold):
        return undefined(0, "no items", method="bootstrap")
    statistic = macro_f1_statistic(predicted, gold)
    return bootstrap(statistic, len(gold), clusters=clusters, resamples=resamples, seed=seed)


def macro_f1_statistic(predicted: Sequence[str], gold: Sequence[str]) -> Callable[[Indices], float]:
    """Macro-F1 over the classes of `gold` that were drawn, as a function of the items drawn."""
    place = {label: index for index, label in enumerate(sorted(set(gold)))}
    truth = np.array([place[label] for label in gold])
    guess = np.array([place.get(label, len(place)) for label in predicted])

    def statistic(drawn: Indices) -> float:
        t, p = truth[drawn], guess[drawn]
        asked = np.bincount(t, minlength=len(place))
        said = np.bincount(p, minlength=len(place) + 1)[: len(place)]
        right = np.bincount(t[t == p], minlength=len(place))
        drawn_classes = asked > 0
        return float((2 * right[drawn_classes] / (asked + said)[drawn_classes]).mean())

    return statistic


def _same_length(left: Sequence[Any], right: Sequence[Any]) -> None:
    if len(left) != len(right):
        raise ValueError(f"one reference per answer: {len(left)} answers, {len(right)} references")


def _streams(references: Sequence[Sequence[str]]) -> list[list[str | None]]:
    """References per item -> sacrebleu's streams (one list per reference slot, None where an item has fewer)."""
    widest = max(len(golds) for golds in references)
    return [[golds[slot] if slot < len(golds) else None for golds in references] for slot in range(widest)]


def segments(
    metric: BLEU | CHRF, answers: Sequence[str], references: Sequence[Sequence[str]]
) -> tuple[NDArray[np.int64], Callable[[NDArray[np.int64]], float]]:
    """What sacrebleu counts in each segment [items, counts], and the corpus figure (0 to 100) of a sum of counts: its
    own significance tests read these too, so that a resample costs a sum."""
    inner = cast(Any, metric)
    counts = np.array(inner._extract_corpus_statistics(list(answers), _streams(references)), dtype=np.int64)
    return counts, lambda total: float(inner._compute_score_from_stats(total.tolist()).score)


def translation_metric(name: str, language: str = "") -> BLEU | CHRF:
    """sacrebleu's metric `chrf` or `bleu`; Chinese is cut into characters for BLEU, Japanese and Thai too (their
    segmenters are no dependency here), and the signature says so."""
    if name == "chrf":
        return CHRF()
    tokenize = {"zh": "zh", "ja": "char", "th": "char"}.get(language)
    return BLEU(force=True, tokenize=tokenize) if tokenize else BLEU(force=True)


def corpus_statistic(
    metric: BLEU | CHRF, answers: Sequence[str], references: Sequence[Sequence[str]]
) -> tuple[Callable[[Indices], float], str]:
    """A corpus figure (0 to 100) as a function of the items drawn, and the metric's signature."""
    _same_length(answers, references)
    if any(not golds for golds in references):
        raise ValueError("every item needs at least one reference")
    counts, figure_of = segments(metric, answers, references)
    return lambda drawn: figure_of(counts[drawn].sum(axis=0)), str(metric.get_signature())


def _corpus(
    metric: BLEU | CHRF,
    answers: Sequence[str],
    references: Sequence[Sequence[str]],
    clusters: Sequence[Hashable] | None,
    resamples: int,
    seed: int,
) -> Corpus:
    _same_length(answers, references)
    if not len(answers):
        return Corpus(value=None, signature="", interval=undefined(0, "no items", method="bootstrap"))
    if any(not golds for golds in references):
        raise ValueError("every item needs at least one reference")
    counts, figure_of = segments(metric, answers, references)

    def statistic(sums: Floats) -> Floats:
        return np.array([figure_of(each) for each in np.rint(sums).astype(np.int64)])

    figure = bootstrap_sums(counts.astype(np.float64), statistic, clusters=clusters, resamples=resamples, seed=seed)
    return Corpus(value=figure.value, signature=str(metric.get_signature()), interval=figure)


def chrf(
    answers: Sequence[str],
    references: Sequence[Sequence[str]],
    clusters: Sequence[Hashable] | None = None,
    *,
    resamples: int = 200,
    seed: int = 0,
) -> Corpus:
    """Corpus chrF (0 to 100) against one or several references an item, with a (cluster) bootstrap interval."""
    return _corpus(CHRF(), answers, references, clusters, resamples, seed)


def bleu(
    answers: Sequence[str],
    references: Sequence[Sequence[str]],
    clusters: Sequence[Hashable] | None = None,
    *,
    resamples: int = 200,
    seed: int = 0,
) -> Corpus:
    """Corpus BLEU (0 to 100) against one or several references an item, with a (cluster) bootstrap interval.

    None where no reference has the four words that BLEU needs: 0 would be no measurement.
    """
    metric = BLEU(force=True)
    if references and all(len(gold.split()) < 4 for golds in references for gold in golds):
        short = undefined(len(answers), "no reference has four words", method="bootstrap")
        return Corpus(value=None, signature="", interval=short)
    return _corpus(metric, answers, references, clusters, resamples, seed)


@lru_cache(maxsize=1)
def _sentence_chrf() -> CHRF:
    return CHRF()


def sentence_chrf(answer: str, golds: Sequence[str]) -> float:
    """chrF of one text (0 to 100) against its best reference."""
    return float(_sentence_chrf().sentence_score(answer, list(golds)).score)
