"""Which items a model may have met in training: a run of words of the item stands in a text it learned from.

We hold the training text (corpora, and the answers that people judged), so this is looked up, not guessed. Runs that
many items share are wording, as in `corpus/decontaminate.py`, whose runs these are; an item without a run of its own is
called neither clean nor dirty.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow.parquet as parquet

from tutelage.core.artifact import Artifact, Root
from tutelage.core.errors import NotFound
from tutelage.core.records import Example, Preference, read_jsonl
from tutelage.corpus.decontaminate import HeldOut
from tutelage.corpus.dedup import grams, words_of
from tutelage.evaluate.suite import Result, item_id
from tutelage.evaluate.suites.kinds import Ground, Metric, metric_of
from tutelage.measure.corrections import Count, summed
from tutelage.measure.statistics import Interval, plain, undefined
from tutelage.tokens.chat import text_of

GRAM, COMMON = 8, 5
"""Words in a run; items above which a run is wording."""
TEXTS = 2000
"""Training texts whose runs are held at once."""


def learned(artifacts: Iterable[Artifact], root: Root) -> tuple[list[Artifact], list[str]]:
    """The corpora and the judged answers that these were made from, through all that was made before them; and the
    references of what they were made from that is not here (removed since, or never ours, as a published model): what
    stood there is not known."""
    found: dict[str, Artifact] = {}
    lost: set[str] = set()
    todo = list(artifacts)
    seen = {each.ref for each in todo}
    while todo:
        each = todo.pop()
        if each.kind in ("corpus", "preferences"):
            found[each.id] = each
        for parent in each.manifest.parents():
            if parent not in seen:
                seen.add(parent)
                try:
                    todo.append(root.find(parent))
                except NotFound:
                    lost.add(parent)
    return [found[name] for name in sorted(found)], sorted(lost)


def dirty(items: Sequence[Example], source: Artifact, gram: int = GRAM, common: int = COMMON) -> set[str]:
    """The ids of items of which a run of `gram` words stands in the source's training text."""
    texts = [_whole(item) for item in items]
    held = HeldOut(texts, gram, common)
    met: set[str] = set()
    if not len(held.runs):
        return met
    hashes, owner = grams(words_of(texts), gram)
    for chunk in _chunks(_training(source)):
        known, _ = grams(words_of(chunk), gram)
        hit = np.isin(hashes, np.intersect1d(known, held.runs))
        met.update(item_id(items[int(place)]) for place in np.unique(owner[hit]))
    return met


def unexaminable(items: Sequence[Example], gram: int = GRAM, common: int = COMMON) -> set[str]:
    """The ids of items that have no run of `gram` words of their own: shorter, or all wording that many items share.
    Whether they were met cannot be told so."""
    texts = [_whole(item) for item in items]
    hashes, owner = grams(words_of(texts), gram)
    own = np.unique(owner[np.isin(hashes, HeldOut(texts, gram, common).runs)])
    return {item_id(item) for item in items} - {item_id(items[int(place)]) for place in own}


def cleared(items: Sequence[Example], corpus: Artifact, gram: int = GRAM) -> bool:
    """Whether the corpus was decontaminated against these very items, with runs as long, and none was left: then none
    is dirty, and nothing need be read."""
    if corpus.metrics.get("contamination_left") != 0 or corpus.config.get("gram", GRAM) > gram:
        return False
    rows = read_jsonl(corpus.file("items.jsonl"), Example)
    known = {item_id(item): _whole(item) for item in rows if "id" in item.tags}
    return all(known.get(item_id(item)) == _whole(item) for item in items)


def split(
    results: Sequence[Result],
    met: Mapping[str, set[str]],
    ground: Ground,
    *,
    lost: Mapping[str, Sequence[str]] | None = None,
    hidden: Collection[str] = (),
) -> list[dict[str, Any]]:
    """Per target, suite and metric the figures of clean and of dirty items, and clean minus dirty.

    Args:
        met: target -> dirty ids. Targets that are not in it are left out: what they learned from is not known, which is
            not the same as clean.
        ground: what figures need beside the results.
        lost: target -> what it was made from that is not here. No item of such a target is called clean.
        hidden: ids of items of which cannot be told whether they were met (see `unexaminable`): neither clean nor
            dirty, a figure of their own.
    """
    groups: dict[tuple[str, str, str, str], list[Result]] = {}
    for each in results:
        if each.target in met:
            groups.setdefault((each.target, each.suite, each.kind, each.metric), []).append(each)
    rows = []
    for (target, suite, kind, name), members in groups.items():
        sides: dict[str, list[Result]] = {"clean": [], "dirty": [], "not_examinable": []}
        for each in members:
            side = "dirty" if each.item in met[target] else "not_examinable" if each.item in hidden else "clean"
            sides[side].append(each)
        metric = metric_of(kind, name)
        found = {side: _figure(rows_, side, metric, ground) for side, rows_ in sides.items()}
        gone = (lost or {}).get(target, ())
        if gone and sides["clean"]:
            reason = f"not known to be clean: what it was made from is not here ({', '.join(gone)})"
            found["clean"] = undefined(0, reason)
        rows.append(
            {"target": target, "suite": suite, "metric": name, "higher_is_better": metric.higher}
            | {side: plain(figure) for side, figure in found.items()}
            | {"difference": plain(_difference(found["clean"], found["dirty"]))}
        )
    return rows


def unknown(results: Sequence[Result], target: str, reason: str) -> list[dict[str, Any]]:
    """Per suite and metric of a target that nobody can say which items it met, and why."""
    kinds = dict.fromkeys((each.suite, each.kind, each.metric) for each in results if each.target == target)
    nothing = {name: plain(undefined(0, reason)) for name in ("clean", "dirty", "not_examinable", "difference")}
    return [
        {"target": target, "suite": suite, "metric": name, "higher_is_better": metric_of(kind, name).higher} | nothing
        for suite, kind, name in kinds
    ]


def _figure(results: Sequence[Result], side: str, metric: Metric, ground: Ground) -> Interval:
    side = side.replace("_", " ")
    if not any(each.value is not None for each in results):
        return undefined(0, f"no {side} item was measured" if results else f"no item is {side}")
    return metric.figure(results, ground)[0]


def _difference(first: Interval, second: Interval) -> Interval:
    """First minus second of two groups of different items, from their own intervals (MOVER: Zou and Donner 2008)."""
    n = first.n + second.n
    for each in (first, second):
        if each.value is None or each.low is None or each.high is None:
            return undefined(n, each.reason or "one side has no interval")
    assert first.value is not None and first.low is not None and first.high is not None
    assert second.value is not None and second.low is not None and second.high is not None
    value, low, high = summed(
        [Count(first.value, first.low, first.high), Count(-second.value, -second.high, -second.low)]
    )  # fmt: skip
    return Interval(value=value, low=low, high=high, n=n, method="mover")


def _whole(item: Example) -> str:
    golds = [] if item.target is None else [item.target]
    return "\n".join([*map(text_of, item.messages), *golds])


def _training(source: Artifact) -> Iterator[str]:
    """All texts of a corpus, or of answers that people judged, that models learn from."""
    if (source.path / "documents.parquet").is_file():
        for batch in parquet.ParquetFile(source.file("documents.parquet")).iter_batches(columns=["text", "split"]):
            for text, part in zip(batch.column(0).to_pylist(), batch.column(1).to_pylist(), strict=True):
                if part == "train":
                    yield text
    for name in ("dialogues.jsonl", "demonstrations.jsonl"):
        if (source.path / name).is_file():
            for each in read_jsonl(source.file(name), Example):
                if each.tags.get("split", "train") == "train":
                    yield "\n".join(map(text_of, each.messages))
    if (source.path / "preferences.jsonl").is_file():
        for row in read_jsonl(source.file("preferences.jsonl"), Preference):
            if row.tags.get("split", "train") != "test":
                asked = list(map(text_of, row.prompt))
                yield from ("\n".join([*asked, text_of(each)]) for each in row.candidates)


def _chunks(texts: Iterator[str]) -> Iterator[list[str]]:
    chunk: list[str] = []
    for text in texts:
        chunk.append(text)
        if len(chunk) == TEXTS:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
