"""How far people agree on what they marked in a text.

The statistic is Krippendorff's alpha (2004, chapter 11) over a grid of tokens: each token of a text is a thing, what a
person marked it as is their rating, and a token nobody marked is an agreement that nothing is there. It is not alpha-u
(Krippendorff 1995, Sociological Methodology 25), which squares the lengths by which segments differ and so asks where
borders lie; this asks which words are meant, and allows people who did not read a text. Tokens of one text are no
independent things, so the bootstrap draws texts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tutelage.feedback.agreement import Labels, alpha_of_counts, masi
from tutelage.measure.statistics import Interval, undefined

Floats = NDArray[np.float64]
Unit = Literal["token", "character"]
Mark = tuple[int, int, str]
"""Characters start to stop (not itself), and the label."""

_TOKEN = re.compile(r"\w+|[^\w\s]")


@dataclass(frozen=True)
class Marked:
    """One text and what each person who read it marked; who marked nothing has an empty list."""

    text: str
    marks: Mapping[str, Sequence[Mark]]


def grid(text: str, unit: Unit = "token") -> list[tuple[int, int]]:
    """The pieces of a text that are judged: its words and signs, or its characters."""
    if unit == "character":
        return [(at, at + 1) for at in range(len(text))]
    return [found.span() for found in _TOKEN.finditer(text)]


def labelled(pieces: Sequence[tuple[int, int]], marks: Sequence[Mark]) -> list[Labels]:
    """The labels of each piece: those of every mark that touches one of its characters."""
    found: list[set[str]] = [set() for _ in pieces]
    starts, ends = [start for start, _ in pieces], [end for _, end in pieces]
    for start, stop, label in marks:
        first = int(np.searchsorted(ends, start, side="right"))
        last = int(np.searchsorted(starts, stop, side="left"))
        for at in range(first, last):
            found[at].add(label)
    return [frozenset(each) for each in found]


def span_alpha(
    texts: Sequence[Marked],
    *,
    label: str | None = None,
    unit: Unit = "token",
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Alpha over pieces of texts, with MASI distances between the sets of labels that pieces bear.

    `label` asks about one label only (marked with it or not, nominal); "*" asks whether anything was marked. `n` counts
    the pieces, `clusters` the texts that two people read.
    """
    rows: list[dict[Labels, int]] = []
    clusters: list[int] = []
    for number, each in enumerate(texts):
        if len(each.marks) < 2:
            continue
        pieces = grid(each.text, unit)
        said = [_asked(labelled(pieces, marks), label) for marks in each.marks.values()]
        for at in range(len(pieces)):
            row: dict[Labels, int] = {}
            for person in said:
                row[person[at]] = row.get(person[at], 0) + 1
            rows.append(row)
            clusters.append(number)
    if not rows:
        return undefined(0, "no text was read by two people", method=f"krippendorff over {unit}s")
    known = sorted({labels for row in rows for labels in row}, key=sorted)
    place = {labels: at for at, labels in enumerate(known)}
    counts = np.zeros((len(rows), len(known)))
    for number, row in enumerate(rows):
        for labels, many in row.items():
            counts[number, place[labels]] = many
    if len(known) == 1 and not known[0]:
        return undefined(len(rows), "nobody marked anything", method=f"krippendorff over {unit}s")
    distances = np.array([[masi(one, other) for other in known] for one in known])
    made = alpha_of_counts(
        counts, np.arange(len(known), dtype=float), distances, clusters=clusters, confidence=confidence, seed=seed
    )
    kind = "masi" if label is None else "nominal"
    return made.model_copy(update={"method": f"krippendorff {kind} over {unit}s, bootstrap over texts"})


def _asked(labels: Sequence[Labels], label: str | None) -> list[Labels]:
    if label is None:
        return list(labels)
    if label == "*":
        return [frozenset({"*"}) if each else frozenset() for each in labels]
    return [each & {label} for each in labels]
