"""Labelled texts as classifiers take them: rows, clusters of texts alike, and the side each cluster stands on.

Three sides, and no cluster on two of them: **train** is learned from, **calibration** chooses thresholds and certifies
them, **test** is looked at by nothing but the figures. Texts are alike when they bear one cluster's name, fold to the
same text, or share enough of their word triples; that is passed on, so that no twin of a text stands elsewhere.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse import csgraph

from tutelage.core.errors import DataError
from tutelage.core.records import Example, read_jsonl
from tutelage.corpus.dedup import groups, words_of
from tutelage.judge.judge import answer_of
from tutelage.judge.ngrams import fold

Direction = Literal["input", "output"]
DIRECTIONS: tuple[Direction, ...] = ("input", "output")
Side = Literal["train", "calibration", "test"]
TRIGGERS = 200
"""Words for which harmless texts are made."""
_WORDS = re.compile(r"[^\W\d_]{3,}")
SIDES: dict[str, Side] = {"train": "train", "validation": "calibration", "test": "test"}
"""Where the rows of a data set's own splits stand."""


class Row(NamedTuple):
    """One labelled text, read and checked."""

    id: str
    text: str
    cluster: str
    side: Side
    categories: dict[str, float]
    source: str = ""
    tenant: str = ""

    @property
    def harmless(self) -> bool:
        """Whether no label of it says harm."""
        return max(self.categories.values()) < 0.5


class Labelled(NamedTuple):
    """What was read."""

    rows: dict[Direction, list[Row]]
    dropped: int
    """Rows that are not taken: a twin of theirs is a test row, or the same text is held out already."""


def read_rows(
    files: Sequence[Path],
    *,
    near: float = 0.5,
    held_out: float = 0.25,
    tested: float = 0.25,
    seed: int = 0,
    check: Callable[[], None] = lambda: None,
) -> Labelled:
    """Rows of labels.jsonl by direction, each cluster on one side, and each text once where it is not learned from.

    Args:
        near: Jaccard index of word triples from which two texts are alike; 0 looks at names and equal texts only.
        held_out: share of clusters for calibration, of a source that has no validation rows.
        tested: share of those not learned from that are kept for figures, of a source that has no test rows.

    Raises:
        DataError: naming file, row and key.
    """
    found: dict[Direction, list[Row]] = {direction: [] for direction in DIRECTIONS}
    splits: dict[Direction, list[str]] = {direction: [] for direction in DIRECTIONS}
    for file in files:
        for number, example in enumerate(read_jsonl(file, Example), 1):
            labels = example.tags.get("categories")
            if isinstance(labels, Mapping) and labels:
                direction, row, split = _row(example, labels, file, number)
                found[direction].append(row)
                splits[direction].append(split)
    dropped = 0
    for direction, rows in found.items():
        rows = clustered(rows, near, check)
        sides = _sides(rows, splits[direction], held_out, tested, seed)
        texts: set[str] = set()
        found[direction] = []
        for row, side in zip(rows, sides, strict=True):
            folded = fold(row.text)
            if side is None or (side != "train" and folded in texts):
                dropped += 1  # the same text again would only make n look larger
                continue
            if side != "train":
                texts.add(folded)
            found[direction].append(row._replace(side=side))
    return Labelled(found, dropped)


def _row(example: Example, labels: Mapping[str, object], file: Path, number: int) -> tuple[Direction, Row, str]:
    """One example as a row, with its direction and the split it came with."""
    tags = example.tags
    direction = direction_of(example)
    checked: dict[str, float] = {}
    for category, value in labels.items():
        if not isinstance(value, int | float) or not 0 <= value <= 1:
            key = f"tags.categories.{category}"
            raise DataError(f"a label lies between 0 and 1, found {value!r}", file=file, row=number, key=key)
        checked[str(category)] = float(value)
    text = answer_of(example)
    cluster, name = str(tags.get("cluster") or short(fold(text))), str(tags.get("id") or short(text))
    row = Row(name, text, cluster, "train", checked, str(tags.get("source") or ""), str(tags.get("tenant") or ""))
    for known in DIRECTIONS:
        if direction == known:
            return known, row, str(tags.get("split") or "")
    raise DataError(f"direction is input or output, found {direction!r}", file=file, row=number, key="tags")


def direction_of(example: Example) -> str:
    """`tags.direction`, else `output` for an assistant's message and `input` for every other."""
    said = example.tags.get("direction")
    if said:
        return str(said)
    return "output" if example.messages and example.messages[-1].role == "assistant" else "input"


def clustered(rows: Sequence[Row], near: float, check: Callable[[], None] = lambda: None) -> list[Row]:
    """The rows with one cluster's name for all that are alike: the first, in the order of the alphabet, they had."""
    alike: list[Iterable[Hashable]] = [(row.cluster for row in rows), (fold(row.text) for row in rows)]
    if near:
        alike.append(groups(words_of([row.text for row in rows]), near, check=check))
    pairs: list[tuple[int, int]] = []
    for keys in alike:
        first: dict[Hashable, int] = {}
        pairs += [(first.setdefault(key, place), place) for place, key in enumerate(keys)]
    edges: NDArray[np.int64] = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    size = len(rows)
    graph = sparse.coo_matrix((np.ones(len(edges), dtype=np.int8), (edges[:, 0], edges[:, 1])), shape=(size, size))
    part = csgraph.connected_components(graph, directed=False)[1] if rows else np.zeros(0, dtype=np.int64)
    names: dict[int, str] = {}
    for row, number in zip(rows, part.tolist(), strict=True):
        names[number] = min(row.cluster, names.get(number, row.cluster))
    return [row._replace(cluster=names[number]) for row, number in zip(rows, part.tolist(), strict=True)]


def _sides(rows: Sequence[Row], splits: Sequence[str], held_out: float, tested: float, seed: int) -> list[Side | None]:
    """The side of each row; None for one that may not be learned from, a twin of it being a test row.

    The test rows of a set are kept as they are, so that figures on them can be compared; else what a cluster has in
    training draws the rest of it there. Sides that a source lacks are cut from clusters that are all of such sources.
    """
    has: dict[str, set[str]] = defaultdict(set)
    mine: dict[str, set[str]] = defaultdict(set)
    come_from: dict[str, set[str]] = defaultdict(set)
    for row, split in zip(rows, splits, strict=True):
        has[row.source].add(split)
        mine[row.cluster].add(split if split in SIDES else "train")
        come_from[row.cluster].add(row.source)

    def lacking(cluster: str, split: str) -> bool:
        return not any(split in has[source] for source in come_from[cluster])

    sides: dict[str, Side] = {}
    for cluster, own in mine.items():
        side = next(SIDES[split] for split in ("test", "train", "validation") if split in own)
        if side == "train" and lacking(cluster, "validation") and share(cluster, seed) < held_out:
            side = "calibration"
        if side == "calibration" and lacking(cluster, "test") and share(cluster, seed + 2) < tested:
            side = "test"
        sides[cluster] = side
    return [
        None if sides[row.cluster] == "test" and "test" in mine[row.cluster] and split != "test" else sides[row.cluster]
        for row, split in zip(rows, splits, strict=True)
    ]


def lengths_matched(rows: Sequence[Row], category: str, seed: int = 0) -> list[Row]:
    """For each row with the category a window of harmless text about as long, on the same side and of the same source
    where that has any: what tells them apart is not how long they are.

    A window begins and ends at a space; where one text is too short, others follow it, and only what all of them are
    labelled with holds for the window. Its cluster is that of the first. None where a side has no harmless text.
    """
    made: list[Row] = []
    for side in SIDES.values():
        mine = [row for row in rows if row.side == side and category in row.categories]
        pools: dict[str, list[Row]] = defaultdict(list)
        for row in sorted((row for row in mine if row.harmless), key=lambda row: short(f"{seed}/{row.id}")):
            pools[""].append(row)
            pools[f"of {row.source}"].append(row)
        at = dict.fromkeys(pools, 0)
        for place, row in enumerate(row for row in mine if row.categories[category] >= 0.5):
            name = f"of {row.source}" if f"of {row.source}" in pools else ""
            pool = pools.get(name, [])
            parts: list[Row] = []
            length = -1
            while pool and length < len(row.text):
                parts.append(pool[at[name] % len(pool)])
                length += len(parts[-1].text) + 1
                at[name] += 1
            if parts:
                made.append(_window(parts, len(row.text), f"{category}/{side}/{place}", side, seed))
    return made


def _window(parts: Sequence[Row], length: int, name: str, side: Side, seed: int) -> Row:
    """About `length` characters of these texts, one after the other, from a place drawn by chance."""
    text = "\n".join(part.text for part in parts)
    start = random.Random(f"{seed}/{name}").randint(0, max(0, len(parts[0].text) - length))
    begin = text.rfind(" ", 0, start) + 1 if start else 0
    end = text.find(" ", begin + length)
    common = set.intersection(*(set(part.categories) for part in parts))
    known = {category: max(part.categories[category] for part in parts) for category in sorted(common)}
    cut = text[begin : end if end >= 0 else len(text)]
    return Row(f"window/{name}", cut, parts[0].cluster, side, known, parts[0].source)


def trigger_negatives(rows: Sequence[Row], category: str, seed: int = 0) -> list[Row]:
    """Harmless texts of the training side that hold a word which alone would give a text away: for each of the
    `TRIGGERS` words that stand in the most texts with the category for each without it, one harmless text with the word
    put into it. A guard that has seen them cannot go by the word (Li and Liu 2024, arXiv 2410.22770).
    """
    mine = [row for row in rows if row.side == "train" and category in row.categories]
    fine = sorted((row for row in mine if row.harmless), key=lambda row: short(f"{seed}/{row.id}"))
    counts: list[Counter[str]] = [Counter(), Counter()]
    for row in mine:
        counts[row.categories[category] >= 0.5].update(set(_WORDS.findall(fold(row.text))))
    without, with_it = counts
    telling = [word for word, count in with_it.items() if count >= 3]
    telling.sort(key=lambda word: (-with_it[word] / (without[word] + 1), word))
    made: list[Row] = []
    for place, word in enumerate(telling[:TRIGGERS] if fine else []):
        row, name = fine[place % len(fine)], f"trigger/{category}/{word}"
        words = row.text.split(" ")[:40]
        words.insert(random.Random(f"{seed}/{name}").randint(0, len(words)), word)
        made.append(row._replace(id=name, text=" ".join(words)))
    return made


def short(text: str) -> str:
    """A name by content: 16 hex digits of sha256."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def share(cluster: str, seed: int) -> float:
    """A number in [0, 1) that depends on the cluster's name and the seed alone."""
    return int(hashlib.sha256(f"{seed}\0{cluster}".encode("utf-8", "surrogatepass")).hexdigest()[:12], 16) / 16**12
