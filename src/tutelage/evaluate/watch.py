"""A look at a model while it trains: a few fixed items, scored without a trace in the training itself.

The report at step 0 and at the end is how forgetting is seen: the same items before and after a stage.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tutelage.core.records import Example, read_jsonl
from tutelage.evaluate.ask import examine
from tutelage.evaluate.suite import Result, Suite, item_id, rank, sample, select
from tutelage.measure.statistics import Interval, paired, plain, standard_error

SUITES = ("comprehension", "translation", "sentiment", "facts", "topic", "grammar", "rules")
"""The order in which suites are given items when there are few."""


def watched(corpus: Path, items: int, seed: int = 0) -> list[Example]:
    """The fixed items of a watch: the same share of each suite, spread over its cells and clusters."""
    chosen = select(read_jsonl(corpus / "items.jsonl", Example), 0, seed=seed)
    order = sorted(chosen, key=lambda suite: (SUITES.index(suite.name) if suite.name in SUITES else 99, suite.name))
    if not order or items <= 0:
        return []
    share, rest = divmod(items, len(order))
    found: list[Example] = []
    for place, suite in enumerate(order):
        found += _spread(suite, share + (place < rest), seed)
    return sorted(found, key=item_id)


def _spread(suite: Suite, count: int, seed: int) -> list[Example]:
    """`count` items of a suite, cell by cell in turn."""
    if count <= 0:
        return []
    queues = {}
    for cell in suite.cells():
        members = [item for item in suite.items if item.tags.get("cell") == cell]
        queues[cell] = sorted(sample(members, count, seed), key=lambda item: rank(seed, item_id(item)))
    found: list[Example] = []
    while len(found) < count and any(queues.values()):
        for queue in queues.values():
            if queue and len(found) < count:
                found.append(queue.pop(0))
    return found


class Examiner:
    """Examines a model in training on fixed items; every random state and the model's mode are put back."""

    def __init__(self, items: list[Example], tokenizer: Any, every: int) -> None:
        self.items, self.tokenizer, self.every = items, tokenizer, every
        self._first: list[Result] | None = None
        self._last: list[Result] = []
        self._step = -1

    def __call__(self, model: Any, step: int) -> Mapping[str, Any]:
        """Headline figure per suite (0 to 1), their mean as `watched`, its standard error, and how many items."""
        if not self.items:
            return {}
        known_first = self._first if step == 0 else None
        self._step, self._last = step, known_first or self._examine(model, f"step-{step}")
        known = [each for each in self._last if each.value is not None]
        groups: dict[str, list[float]] = {}
        for each in known:
            groups.setdefault(each.suite, []).append(float(each.value or 0.0))
        figures: dict[str, Any] = {suite: sum(values) / len(values) for suite, values in sorted(groups.items())}
        values = [float(each.value or 0.0) for each in known]
        if values:
            figures["watched"] = sum(values) / len(values)
            figures["watched_error"] = standard_error(values, [_cluster(each) for each in known])
        return {key: value for key, value in figures.items() if value is not None} | {"watched_items": len(known)}

    def values(self, name: str) -> dict[str, tuple[float, str]]:
        """Of the last look the items' values in a suite, or of all as `watched`, and the cluster of each."""
        return {
            f"{each.suite}/{each.item}": (float(each.value), _cluster(each))
            for each in self._last
            if each.value is not None and name in ("watched", each.suite)
        }

    def begin(self, model: Any) -> None:
        """Examine the model as it is; a look at step 0 repeats nothing."""
        self._first = self._examine(model, "step-0")

    def change(self, model: Any, step: int) -> dict[str, Any]:
        """By suite, and of all items as `watched`: the figure of a model with the weights after `step` minus that at
        `begin`, item by item. Where the last look was at that step, nothing is repeated."""
        if step != self._step:
            self(model, step)
        begun = {each.item: each for each in self._first or ()}
        both = [(begun[each.item], each) for each in self._last if each.item in begun]
        pairs = [pair for pair in both if pair[0].value is not None and pair[1].value is not None]
        suites = sorted({before.suite for before, _ in pairs})
        groups = {suite: [pair for pair in pairs if pair[0].suite == suite] for suite in suites}
        return {name: plain(_change(group)) for name, group in ({**groups, "watched": pairs} if pairs else {}).items()}

    def _examine(self, model: Any, target: str) -> list[Result]:
        import torch

        from tutelage.generate.local import LocalGenerator

        mode = model.training
        with torch.random.fork_rng(devices=list(range(torch.cuda.device_count()))), torch.no_grad():
            try:
                model.eval()
                generator = LocalGenerator(model, self.tokenizer, name=target)
                return list(examine(generator, self.items, target=target)) if self.items else []
            finally:
                model.train(mode)


def _cluster(result: Result) -> str:
    return f"{result.suite}/{result.cluster}"


def _change(pairs: Sequence[tuple[Result, Result]]) -> Interval:
    """After minus before, clustered as the items are."""
    before, after = ([float(each.value or 0.0) for each in side] for side in zip(*pairs, strict=True))
    return paired(after, before, [_cluster(each) for each, _ in pairs]).difference


def watch(corpus: Path, tokenizer: Any, *, items: int = 64, every: int = 0, seed: int = 0) -> Examiner:
    """An examiner on `items` fixed items of a corpus; `every` steps, or at the beginning and the end only (0)."""
    return Examiner(watched(Path(corpus), items, seed), tokenizer, every)
