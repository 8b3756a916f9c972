"""What is stated about people beside their preferences: agreement, the ceiling it sets, everybody's quality."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tutelage.feedback import agreement, votes
from tutelage.feedback import quality as judging
from tutelage.measure.statistics import Interval, plain, undefined
from tutelage.store import tasks
from tutelage.store.answers import Annotation
from tutelage.store.engine import Reader
from tutelage.store.tasks import Task

Floats = NDArray[np.float64]
LEFT, TIE, RIGHT = 2, 1, 0
"""Classes of a pair: the choice (+1, 0, -1) plus one."""


@dataclass(frozen=True)
class Read:
    """The words of one kind of people about one collection."""

    given: list[Annotation]
    tasks: Mapping[str, Task]
    people: tuple[str, ...]
    """Pseudonyms, sorted."""
    scales: Mapping[tuple[str, str], tuple[float, float]] = field(default_factory=dict)
    """(form, criterion) -> lowest and highest score."""
    questions: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Key -> question, of the newest form that asks it."""
    strengths: Mapping[str, tuple[str, int]] = field(default_factory=dict)
    """Form of a pair -> the question how much better the better one is, and how many steps it has."""

    @classmethod
    def of(
        cls, store: Reader, given: list[Annotation], known: Mapping[str, Task] | None = None, *, masked: bool = False
    ) -> Read:
        """Answers with what was asked. `known` are their tasks, where they were read already; `masked` reads them with
        personal data masked."""
        if known is None:
            known = tasks.load(store, sorted({each.task for each in given}), masked=masked)
        forms = tasks.forms(store, sorted({each.form for each in given}))
        newest = sorted(forms.items(), key=lambda each: each[1][0])
        asked = [(form, question) for form, (_, questions, _) in newest for question in questions]
        return cls(
            given,
            known,
            tuple(sorted({each.pseudonym for each in given})),
            votes.scales_of(forms),
            {str(question["key"]): question for _, question in asked},
            {form: (str(one["key"]), len(one["choices"])) for form, one in asked if one["kind"] == "strength"},
        )


def stated_agreement(
    words: Read,
    table: votes.Table,
    pairs: Floats,
    quality: Sequence[judging.Quality],
    kind: str,
    seed: int,
) -> dict[str, Any]:
    """How far people agree, and what that allows a judge of them to reach."""
    sizes = {id: len(task.candidates) for id, task in words.tasks.items()}
    criteria = sorted({name for each in words.given for name in each.scores()})
    ranked = votes.rank_tables(words.given, sizes)
    by_pair: dict[int, list[int]] = {}
    reliable = {each.person for each in quality if each.finding is None}
    for person, pair, choice in zip(table.votes.people, table.votes.pairs, table.votes.choice, strict=True):
        if int(person) in reliable:
            by_pair.setdefault(int(pair), []).append(int(choice))
    choices = np.full((len(words.people), len(table.pairs)), np.nan)
    choices[table.votes.people, table.votes.pairs] = table.votes.choice
    within = [task for task, _, _ in table.pairs]
    return {
        "people": kind,
        "answers": len(words.given),
        "tasks": len(words.tasks),
        "persons": len(words.people),
        "ranking": {
            "tau_b": plain(agreement.mean_tau(ranked, seed=seed)),
            "kendall_w": plain(agreement.mean_w(ranked, seed=seed)),
        },
        "scoring": {name: _scored(words, sizes, name, seed) for name in criteria},
        "pairs": {
            "alpha_nominal": plain(agreement.alpha(choices, "nominal", clusters=within, seed=seed)),
            "ac1": plain(agreement.ac1(choices, classes=3, clusters=within, seed=seed)),
            "n": len(table.pairs),
        },
        "ceiling": plain(_ceiling(table, pairs, seed)),
        "ceiling_single": plain(agreement.majority_ceiling(list(by_pair.values()), seed=seed)),
        "notes": {
            "ceiling": "how often one who knew the true order would agree with the consensus, by its posterior",
            "ceiling_single": "how often the majority of the others foretells one reliable person's choice",
        },
    }


def _scored(words: Read, sizes: Mapping[str, int], name: str, seed: int) -> dict[str, Any]:
    """Agreement on one criterion of candidates: those of one task belong together."""
    scores, tasks = votes.score_table(words.given, sizes, words.people, name)
    return {
        f"alpha_{level}": plain(agreement.alpha(scores, level, clusters=tasks, seed=seed))
        for level in ("ordinal", "interval")
    }


def _ceiling(table: votes.Table, pairs: Floats, seed: int) -> Interval:
    """Mean certainty of the consensus on the pairs it orders, with a bootstrap over tasks."""
    found: dict[str, list[float]] = {}
    for (task, _, _), chance in zip(table.pairs, pairs, strict=True):
        left, right = float(chance[LEFT]), float(chance[RIGHT])
        if max(left, right) > float(chance[TIE]):  # never so where nobody reliable was heard (NaN)
            found.setdefault(task, []).append(max(left, right) / (left + right))
    if not found:
        return undefined(0, "no pair was ordered", method="posterior of the consensus")
    means = np.array([[sum(some), len(some)] for some in found.values()])
    drawn = np.random.default_rng(seed).integers(0, len(means), (agreement.REPLICATES, len(means)))
    again = means[drawn].sum(axis=1)
    low, high = np.quantile(again[:, 0] / again[:, 1], [0.025, 0.975])
    return Interval(
        value=float(means[:, 0].sum() / means[:, 1].sum()),
        low=float(low),
        high=float(high),
        n=int(means[:, 1].sum()),
        clusters=len(means),
        method="posterior of the consensus, bootstrap over tasks",
    )


def stated_people(
    words: Read, quality: Sequence[judging.Quality], planted: Mapping[str, str | None] | None
) -> dict[str, Any]:
    """Everybody's quality by pseudonym, and how well the unreliable were found where that is known."""
    found = {
        words.people[each.person]: {
            "answers": sum(1 for given in words.given if given.pseudonym == words.people[each.person]),
            "pairs": each.n,
            "tasks": each.tasks,
            "agreement": plain(each.agreement),
            "first_shown": plain(each.first),
            "longer": plain(each.longest),
            "ties": round(each.ties, 6),
            "weight": round(each.weight, 6),
            "finding": each.finding,
            "reason": each.reason,
        }
        for each in quality
    }
    unreliable = sorted(name for name, each in found.items() if each["finding"])
    told: dict[str, Any] = {"value": None, "reason": "the truth about these people is not known"}
    if planted is not None:
        scored = judging.detection({name: str(each["finding"] or "") or None for name, each in found.items()}, planted)
        told = asdict(scored)
        for name, each in found.items():
            each["planted"] = planted.get(name)
    return {"people": found, "unreliable": unreliable, "detection": told}
