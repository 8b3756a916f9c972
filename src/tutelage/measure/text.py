"""Figures of texts against references: exact match and F1, chrF and BLEU, macro-F1.

Exact match and F1 follow SQuAD's normal form (Rajpurkar et al. 2016); chrF (Popović 2015) and BLEU (Papineni et
al. 2002) are sacrebleu's, with their signature stored beside the figure.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from tutelage.measure.clusters import Floats
from tutelage.measure.intervals import Sums

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


def macro_f1_sums(predicted: Sequence[str], gold: Sequence[str]) -> Sums:
    """Macro-F1: the mean of F1 over the classes of `gold` that were drawn, from how often each was asked, said, both.

    A prediction outside these classes counts against recall only; a class that was never predicted right scores 0.
    """
    _same_length(predicted, gold)
    classes = np.array(sorted(set(gold)))
    truth = (np.array(gold)[:, None] == classes).astype(np.float64)
    guess = (np.array(predicted)[:, None] == classes).astype(np.float64)

    def of(sums: Floats) -> Floats:
        asked, said, right = np.split(sums, 3, axis=1)
        drawn = asked > 0
        with np.errstate(invalid="ignore"):
            return np.asarray(
                np.where(drawn, 2 * right / np.maximum(asked + said, 1), 0).sum(axis=1) / drawn.sum(axis=1)
            )

    return Sums(np.concatenate([truth, guess, truth * guess], axis=1), of)


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


def corpus_sums(metric: BLEU | CHRF, answers: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[Sums, str]:
    """A corpus figure (0 to 100) as a function of what is counted in each segment, and the metric's signature."""
    _same_length(answers, references)
    if any(not golds for golds in references):
        raise ValueError("every item needs at least one reference")
    counts, figure_of = segments(metric, answers, references)

    def of(sums: Floats) -> Floats:
        return np.array([figure_of(each) for each in np.rint(sums).astype(np.int64)])

    return Sums(counts.astype(np.float64), of), str(metric.get_signature())


@lru_cache(maxsize=1)
def _sentence_chrf() -> CHRF:
    return CHRF()


def sentence_chrf(answer: str, golds: Sequence[str]) -> float:
    """chrF of one text (0 to 100) against its best reference."""
    return float(_sentence_chrf().sentence_score(answer, list(golds)).score)
