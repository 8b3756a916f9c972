"""What something very simple scores on the same items: chance, majority, first and last mention, a word table, TF-IDF.

A model has learned something where the lower end of its interval stands above the best of these. All are fitted on
the very rows the model was tuned on (the corpus's dialogues of the same suite), never on the items.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from tutelage.core.records import Example
from tutelage.evaluate.suite import prompt_of

_WORD = re.compile(r"\w+(?:'\w+)?")
CLASSES = 64
"""Most answers a suite may have for a classifier to be fitted; beyond it the nearest row's answer is copied."""
ROWS = 3000
"""Most tuning rows a baseline reads per suite."""

Guess = Callable[[Sequence[Example]], list[str | None]]
"""Answers to items, in order; None where the baseline has none."""


def chance(item: Example) -> float | None:
    """The score of a blind guess, where one can be stated: one over the choices, or over the values that the text
    mentions (where that fails, over all values of the kind); where a question may have no answer, to say so is one
    guess more."""
    if item.choices:
        return 1.0 / len(set(item.choices))
    if item.tags.get("kind") not in ("extractive", "generate"):
        return None
    values = {str(each) for each in item.tags.get("candidates") or item.tags.get("values") or ()}
    return 1.0 / (len(values) + ("answerable" in item.tags)) if values else None


def answer_of(row: Example) -> str:
    """The answer of a tuning row: its last assistant message."""
    last = row.messages[-1]
    return last.content if last.role == "assistant" else (row.target or "")


def rows_of(dialogues: Iterable[Example]) -> dict[str, list[Example]]:
    """Training rows by suite (or family, where a row names no suite)."""
    found: dict[str, list[Example]] = defaultdict(list)
    for row in dialogues:
        if row.tags.get("split", "train") == "train":
            name = row.tags.get("suite") or row.tags.get("family")
            if name and len(found[str(name)]) < ROWS:
                found[str(name)].append(row)
    return dict(found)


def _majority(rows: Sequence[Example]) -> Guess:
    counts = Counter(answer_of(row) for row in rows)
    best = min(counts, key=lambda answer: (-counts[answer], answer))
    return lambda items: [best] * len(items)


def _mention(place: int) -> Guess:
    def guess(item: Example) -> str | None:
        mentioned = item.tags.get("candidates") or ()
        return str(mentioned[place]) if mentioned else None

    return lambda items: [guess(item) for item in items]


class WordTable:
    """Translates word for word by the partner each word keeps company with most (Dice coefficient).

    Words of the instruction have no partner of their own, so they drop out; order is left as it stands.
    """

    def __init__(self, rows: Iterable[Example], least: float = 0.4) -> None:
        sources: Counter[str] = Counter()
        targets: Counter[str] = Counter()
        together: dict[str, Counter[str]] = defaultdict(Counter)
        for row in rows:
            asked = set(_WORD.findall(prompt_of(row).lower()))
            said = set(_WORD.findall(answer_of(row).lower()))
            sources.update(asked)
            targets.update(said)
            for word in asked:
                together[word].update(said)
        self.table: dict[str, str] = {}
        for word, partners in together.items():
            dice = {other: 2 * count / (sources[word] + targets[other]) for other, count in partners.items()}
            best = min(dice, key=lambda other: (-dice[other], other), default="")
            if best and dice[best] >= least:
                self.table[word] = best

    def translate(self, text: str) -> str | None:
        """The known words of a text, translated, in its order; None when none is known."""
        words = [self.table[word] for word in _WORD.findall(text.lower()) if word in self.table]
        return " ".join(words) or None

    def __call__(self, items: Sequence[Example]) -> list[str | None]:
        return [self.translate(prompt_of(item)) for item in items]


def _tfidf(rows: Sequence[Example]) -> tuple[str, Guess]:
    """A linear classifier on word 1- and 2-grams where the answers are few, else the nearest tuning row's answer."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import SGDClassifier

    texts, answers = [prompt_of(row) for row in rows], [answer_of(row) for row in rows]
    vectors = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"(?u)\b\w+\b")
    table = vectors.fit_transform(texts)

    def read(items: Sequence[Example]) -> Any:
        return vectors.transform([prompt_of(item) for item in items])

    if 2 <= len(set(answers)) <= CLASSES:
        model = SGDClassifier(loss="log_loss", alpha=1e-5, max_iter=30, tol=1e-3, random_state=0)
        model.fit(table, answers)
        return "tfidf-classifier", lambda items: [str(each) for each in model.predict(read(items))]
    return "tfidf-nearest", lambda items: [answers[place] for place in (table @ read(items).T).toarray().argmax(axis=0)]


def guesses(kind: str, rows: Sequence[Example], items: Sequence[Example]) -> Mapping[str, Guess]:
    """The baselines that make sense for a kind, fitted on its tuning rows. Mentions need no rows."""
    found: dict[str, Guess] = {}
    if kind == "choice":
        found["first-choice"] = lambda items: [item.choices[0] for item in items]
        found["longest-choice"] = lambda items: [max(item.choices, key=len) for item in items]
        found["shortest-choice"] = lambda items: [min(item.choices, key=len) for item in items]
        if len({answer_of(row) for row in rows}) > CLASSES or len({item.choices for item in items}) > 1:
            return found
    if any(item.tags.get("candidates") for item in items) and kind in ("extractive", "generate", "rule"):
        found["first-mention"], found["last-mention"] = _mention(0), _mention(-1)
    if not rows:
        return found
    found["majority"] = _majority(rows)
    name, guess = _tfidf(rows)
    found[name] = guess
    if kind == "translate":
        found["word-table"] = WordTable(rows)
    return found
