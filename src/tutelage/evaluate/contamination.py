"""Which items a model may have met in training: a run of words of the item stands in a text it learned from.

We hold the training text, so this is looked up, not guessed. Runs that many items share are wording, as in
`corpus/decontaminate.py`, whose runs these are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow.parquet as parquet

from tutelage.core.artifact import Artifact, Root
from tutelage.core.errors import NotFound
from tutelage.core.records import Example, read_jsonl
from tutelage.corpus.decontaminate import HeldOut
from tutelage.corpus.dedup import grams, words_of
from tutelage.evaluate.suite import Result, item_id
from tutelage.evaluate.suites.kinds import Metric, named
from tutelage.measure.corrections import Count, summed
from tutelage.measure.statistics import Interval, mean, plain, undefined
from tutelage.tokens.chat import text_of

GRAM, COMMON = 8, 5
"""Words in a run; items above which a run is wording."""
TEXTS = 2000
"""Training texts whose runs are held at once."""


def corpora(artifact: Artifact, root: Root) -> tuple[list[Artifact], list[str]]:
    """The corpora that a model was made from, through all that was made before it; and the references of what it was
    made from that is not here (removed since, or never ours, as a published model): what stood there is not known."""
    found: dict[str, Artifact] = {}
    lost: set[str] = set()
    todo, seen = [artifact], {artifact.ref}
    while todo:
        each = todo.pop()
        if each.kind == "corpus":
            found[each.id] = each
        for parent in each.manifest.parents():
            if parent not in seen:
                seen.add(parent)
                try:
                    todo.append(root.find(parent))
                except NotFound:
                    lost.add(parent)
    return [found[name] for name in sorted(found)], sorted(lost)


def dirty(items: Sequence[Example], corpus: Artifact, gram: int = GRAM, common: int = COMMON) -> set[str]:
    """The ids of items of which a run of `gram` words stands in the corpus's training text."""
    texts = [_whole(item) for item in items]
    held = HeldOut(texts, gram, common)
    met: set[str] = set()
    if not len(held.runs):
        return met
    hashes, owner = grams(words_of(texts), gram)
    for chunk in _chunks(_training(corpus)):
        learned, _ = grams(words_of(chunk), gram)
        hit = np.isin(hashes, np.intersect1d(learned, held.runs))
        met.update(item_id(items[int(place)]) for place in np.unique(owner[hit]))
    return met


def cleared(items: Sequence[Example], corpus: Artifact, gram: int = GRAM) -> bool:
    """Whether the corpus was decontaminated against these very items, with runs as long, and none was left: then none
    is dirty, and nothing need be read."""
    if corpus.metrics.get("contamination_left") != 0 or corpus.config.get("gram", GRAM) > gram:
        return False
    rows = read_jsonl(corpus.file("items.jsonl"), Example)
    known = {item_id(item): _whole(item) for item in rows if "id" in item.tags}
    return all(known.get(item_id(item)) == _whole(item) for item in items)


def split(
    results: Sequence[Result], met: Mapping[str, set[str]], lost: Mapping[str, Sequence[str]] | None = None
) -> list[dict[str, Any]]:
    """Per target, suite and metric the figures of clean and of dirty items, and clean minus dirty.

    Args:
        met: target -> dirty ids. Targets that are not in it are left out: what they learned from is not known, which is
            not the same as clean.
        lost: target -> what it was made from that is not here. No item of such a target is called clean.
    """
    groups: dict[tuple[str, str, str], list[Result]] = {}
    for each in results:
        if each.target in met:
            groups.setdefault((each.target, each.suite, each.metric), []).append(each)
    rows = []
    for (target, suite, metric), members in groups.items():
        sides = {"clean": [], "dirty": []}  # type: dict[str, list[Result]]
        for each in members:
            sides["dirty" if each.item in met[target] else "clean"].append(each)
        clean, soiled = (_figure(side, name, named(metric)) for name, side in sides.items())
        gone = (lost or {}).get(target, ())
        if gone and sides["clean"]:
            clean = undefined(0, f"not known to be clean: what it was made from is not here ({', '.join(gone)})")
        rows.append(
            {
                "target": target,
                "suite": suite,
                "metric": metric,
                "higher_is_better": named(metric).higher,
                "clean": plain(clean),
                "dirty": plain(soiled),
                "difference": plain(_difference(clean, soiled)),
            }
        )
    return rows


def unknown(results: Sequence[Result], target: str, reason: str) -> list[dict[str, Any]]:
    """Per suite and metric of a target that nobody can say which items it met, and why."""
    kinds = dict.fromkeys((each.suite, each.metric) for each in results if each.target == target)
    nothing = {name: plain(undefined(0, reason)) for name in ("clean", "dirty", "difference")}
    return [
        {"target": target, "suite": suite, "metric": metric, "higher_is_better": named(metric).higher} | nothing
        for suite, metric in kinds
    ]


def _figure(results: Sequence[Result], name: str, metric: Metric) -> Interval:
    known = [each for each in results if each.value is not None]
    if not known:
        return undefined(0, f"no {name} item was measured" if results else f"no item is {name}")
    return mean([float(each.value or 0.0) for each in known], [each.cluster for each in known], bounds=metric.bounds)


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


def _training(corpus: Artifact) -> Iterator[str]:
    """All texts of a corpus that models learn from."""
    if (corpus.path / "documents.parquet").is_file():
        for batch in parquet.ParquetFile(corpus.file("documents.parquet")).iter_batches(columns=["text", "split"]):
            for text, part in zip(batch.column(0).to_pylist(), batch.column(1).to_pylist(), strict=True):
                if part == "train":
                    yield text
    if (corpus.path / "dialogues.jsonl").is_file():
        for each in read_jsonl(corpus.file("dialogues.jsonl"), Example):
            if each.tags.get("split", "train") == "train":
                yield "\n".join(map(text_of, each.messages))


def _chunks(texts: Iterator[str]) -> Iterator[list[str]]:
    chunk: list[str] = []
    for text in texts:
        chunk.append(text)
        if len(chunk) == TEXTS:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
