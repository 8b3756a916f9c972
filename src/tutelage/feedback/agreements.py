"""How far people agree on all that was asked: rankings, each criterion and question, each label, marked spans."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tutelage.feedback import agreement, spans, votes
from tutelage.feedback.consensus import Floats
from tutelage.feedback.figures import Read
from tutelage.feedback.wire import RANKED
from tutelage.measure.statistics import Interval, plain
from tutelage.store.answers import WHOLE, Annotation

MEASURES = {
    "tau_b": "Kendall's tau-b", "kendall_w": "Kendall's W", "pairs_alpha": "alpha of pairs, nominal",
    "pairs_ac1": "AC1 of pairs", "alpha_nominal": "alpha, nominal", "alpha_ordinal": "alpha, ordinal",
    "alpha_interval": "alpha, interval", "alpha_masi": "alpha, MASI", "alpha_marked": "alpha, marked or not",
    "ac1": "AC1",
}  # fmt: skip
"""Figures by their keys, in words."""
SAID = {"*": "several yes-or-no questions", "all_bad": "none is acceptable"}


@dataclass(frozen=True)
class Agreement:
    """How far people agree about one thing. `place` leads to it in the table that `agreed` gives."""

    place: tuple[str, ...]
    figure: Interval

    @property
    def about(self) -> str:
        """What was asked."""
        parts = [each for each in self.place[:-1] if each not in ("questions", "labels")]
        if self.place[-1] not in MEASURES:  # a label of spans
            parts.append(self.place[-1])
        return ": ".join(SAID.get(each, each) for each in parts)

    @property
    def measure(self) -> str:
        """The statistic, in words."""
        return MEASURES.get(self.place[-1], "alpha, marked or not")


def agreements(words: Read, seed: int = 0, labels: int | None = None) -> list[Agreement]:
    """Agreement about everything; undefined figures say why. Of the labels of a question `labels`, the commonest ones
    (None: all). Candidates of one task belong together."""
    found: list[Agreement] = []

    def add(*place: str, figure: Interval) -> None:
        found.append(Agreement(place, figure))

    for name, figure in _on_rankings(words, seed).items():
        add("ranking", name, figure=figure)
    bad = {each.id: float(each.value("all_bad") is not None) for each in _ranked(words)}
    if any(bad.values()):
        said = _table(words, {(each.pseudonym, each.task): bad.get(each.id) for each in words.given})
        add("ranking", "all_bad", "alpha_nominal", figure=agreement.alpha(_numbers(said), "nominal", seed=seed))
    booleans: list[str] = []
    for key, question in words.questions.items():
        if question["kind"] in ("text", "spans"):
            continue
        said, within = said_to(words, key, bool(question["per_candidate"]))
        if not any(each is not None for row in said for each in row):
            continue
        if question["kind"] == "boolean" and not question["per_candidate"]:
            booleans.append(key)
        for place, figure in _on_question(question, said, within, seed, labels):
            add("questions", key, *place, figure=figure)
    if len(booleans) > 1:  # several yes-or-no questions about one text are a set of labels
        figure = agreement.alpha_of_sets(_sets(words, booleans), seed=seed)
        add("questions", "*", "alpha_masi", figure=figure)
    if any(each.spans for each in words.given):
        for place, figure in _on_spans(words, seed):
            add("spans", *place, figure=figure)
    return found


def agreed(words: Read, seed: int = 0) -> dict[str, Any]:
    """The same as one table, for a file: `ranking`, `questions` by their keys, `spans`, and what they rest on."""
    found: dict[str, Any] = {
        "people": words.given[0].people if words.given else "",
        "answers": len(words.given), "tasks": len({each.task for each in words.given}), "persons": len(words.people),
        "questions": {},
    }  # fmt: skip
    for each in agreements(words, seed):
        here = found
        for name in each.place[:-1]:
            here = here.setdefault(name, {})
        here[each.place[-1]] = plain(each.figure)
    return found


def _ranked(words: Read) -> list[Annotation]:
    return [each for each in words.given if words.tasks[each.task].kind in RANKED]


def _on_rankings(words: Read, seed: int) -> dict[str, Interval]:
    sizes = {id: len(task.candidates) for id, task in words.tasks.items()}
    ranked = votes.rank_tables(words.given, sizes)
    if not ranked:
        return {}
    texts = {id: task.candidates for id, task in words.tasks.items()}
    table = votes.table([each for each in words.given if each.tiers], texts, words.people, words.scales)
    choices = np.full((len(words.people), len(table.pairs)), math.nan)
    choices[table.votes.people, table.votes.pairs] = table.votes.choice
    within = [task for task, _, _ in table.pairs]
    return {
        "tau_b": agreement.mean_tau(ranked, seed=seed),
        "kendall_w": agreement.mean_w(ranked, seed=seed),
        "pairs_alpha": agreement.alpha(choices, "nominal", clusters=within, seed=seed),
        "pairs_ac1": agreement.ac1(choices, classes=3, clusters=within, seed=seed),
    }


def _on_question(
    question: Mapping[str, Any],
    said: Sequence[Sequence[Any]],
    within: Sequence[str] | None,
    seed: int,
    labels: int | None,
) -> list[tuple[tuple[str, ...], Interval]]:
    """(key of the figure, figure) of one question, by what is answered: numbers in an order, choices, or sets."""
    kind = question["kind"]
    if kind in ("scale", "strength"):  # a strength is the number of its step
        numbers = _numbers(said)
        return [
            ((f"alpha_{level}",), agreement.alpha(numbers, level, clusters=within, seed=seed))
            for level in ("ordinal", "interval")
        ]
    if kind in ("choices", "tags"):
        sets = [[None if each is None else frozenset(map(str, each)) for each in row] for row in said]
        common = Counter(label for row in sets for each in row if each for label in each).most_common(labels)
        kept = frozenset(label for label, _ in common)
        few = [[None if each is None else each & kept for each in row] for row in sets]
        return [
            (("alpha_masi",), agreement.alpha_of_sets(sets, clusters=within, seed=seed)),
            *(
                (("labels", label, name), figure)
                for label, both in agreement.alpha_by_label(few, clusters=within, seed=seed).items()
                for name, figure in zip(("alpha_nominal", "ac1"), both, strict=True)
            ),
        ]
    codes = _coded(said)
    options = 2 if kind == "boolean" else len(question["choices"])
    return [
        (("alpha_nominal",), agreement.alpha(codes, "nominal", clusters=within, seed=seed)),
        (("ac1",), agreement.ac1(codes, classes=options, clusters=within, seed=seed)),
    ]


def _on_spans(words: Read, seed: int) -> list[tuple[tuple[str, ...], Interval]]:
    """Spans of each text that somebody could mark: a message of the prompt, or one candidate."""
    by_task: dict[str, list[Annotation]] = {}
    for each in words.given:
        by_task.setdefault(each.task, []).append(each)
    texts: list[spans.Marked] = []
    for id, given in by_task.items():
        task = words.tasks[id]
        shown = {(f"prompt:{at}", WHOLE): each.content for at, each in enumerate(task.messages)}
        shown |= {("candidate", no): text for no, text in enumerate(task.candidates)}
        for (where, no), text in shown.items():
            marks = {each.pseudonym: [mark[2:] for mark in each.spans if mark[:2] == (where, no)] for each in given}
            if any(marks.values()):
                texts.append(spans.Marked(text, marks))
    labels = sorted({mark[2] for each in texts for marks in each.marks.values() for mark in marks})
    return [
        (("alpha_masi",), spans.span_alpha(texts, seed=seed)),
        (("alpha_marked",), spans.span_alpha(texts, label="*", seed=seed)),
        *((("labels", label), spans.span_alpha(texts, label=label, seed=seed)) for label in labels),
    ]


# answers as tables


def said_to(words: Read, key: str, per_candidate: bool = False) -> tuple[list[list[Any]], list[str] | None]:
    """What each person said to a question [people, things], None where nothing; and the task of each thing. Things are
    tasks (which need no names), or all their candidates."""
    if not per_candidate:
        return _table(words, {(each.pseudonym, each.task): each.value(key) for each in words.given}), None
    asked = [
        (each, value) for each in words.given for value in each.values
        if value.question == key and value.candidate != WHOLE
    ]  # fmt: skip
    sizes = {id: len(words.tasks[id].candidates) for id in dict.fromkeys(each.task for each, _ in asked)}
    places = {thing: at for at, thing in enumerate((id, no) for id, size in sizes.items() for no in range(size))}
    order = {name: at for at, name in enumerate(words.people)}
    found: list[list[Any]] = [[None] * len(places) for _ in words.people]
    for each, value in asked:
        said = value.number if value.number is not None else value.value
        found[order[each.pseudonym]][places[each.task, value.candidate]] = said
    return found, [id for id, _ in places]


def _table(words: Read, said: Mapping[tuple[str, str], Any]) -> list[list[Any]]:
    return [[said.get((name, task)) for task in words.tasks] for name in words.people]


def _numbers(said: Sequence[Sequence[Any]]) -> Floats:
    return np.array([[math.nan if each is None else float(each) for each in row] for row in said])


def _coded(said: Sequence[Sequence[Any]]) -> Floats:
    voices = sorted({str(each) for row in said for each in row if each is not None})
    names = {name: at for at, name in enumerate(voices)}
    return np.array([[math.nan if each is None else float(names[str(each)]) for each in row] for row in said])


def _sets(words: Read, keys: Sequence[str]) -> list[list[agreement.Labels | None]]:
    by_key = {key: said_to(words, key)[0] for key in keys}
    return [
        [
            None
            if all(by_key[key][person][at] is None for key in keys)
            else frozenset(key for key in keys if by_key[key][person][at])
            for at in range(len(words.tasks))
        ]
        for person in range(len(words.people))
    ]
