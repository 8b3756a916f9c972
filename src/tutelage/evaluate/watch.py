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
from tutelage.evaluate.suites.kinds import HEADLINE, Metric, named, on_one_scale
from tutelage.measure.statistics import Interval, paired, plain, standard_error

SUITES = ("comprehension", "translation", "sentiment", "facts", "topic", "grammar", "rules")
"""The order in which suites are given items when there are few."""
WATCHED = "watched"
"""The figure of all items whose metric runs from 0 to 1, more being better."""


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
    """Examines a model in training on fixed items; every random state and the model's mode are put back.

    Figures: each suite by its name, and as `watched` all items whose metric runs from 0 to 1, more being better. Others
    (bits per byte) have no common mean with them: a suite that holds both has them apart, as `SUITE METRIC`.
    """

    def __init__(self, items: list[Example], tokenizer: Any, every: int) -> None:
        self.items, self.tokenizer, self.every = items, tokenizer, every
        self._first: list[Result] | None = None
        self._last: list[Result] = []
        self._step = -1
        self._figures = _named(items)

    def __call__(self, model: Any, step: int) -> Mapping[str, Any]:
        """Mean value per figure, that of all shares as `watched`, its standard error, and how many items those are."""
        if not self.items:
            return {}
        known_first = self._first if step == 0 else None
        self._step, self._last = step, known_first or self._examine(model, f"step-{step}")
        figures: dict[str, Any] = {}
        for name in self._names():
            values = [value for value, _ in self.values(name).values()]
            if values:
                figures[name] = sum(values) / len(values)
        shares = list(self.values(WATCHED).values())
        if shares:
            figures["watched_error"] = standard_error([value for value, _ in shares], [name for _, name in shares])
        return {key: value for key, value in figures.items() if value is not None} | {"watched_items": len(shares)}

    def higher(self, name: str) -> bool | None:
        """Whether more is better of a figure; None where it is none of these."""
        metrics = [metric for metric, figure in self._figures.values() if name in (figure, metric.share and WATCHED)]
        return metrics[0].higher if metrics else None

    def values(self, name: str) -> dict[str, tuple[float, str]]:
        """Of the last look the items' values in a figure, and the cluster of each."""
        return {key: (float(each.value or 0.0), _cluster(each)) for key, each in self._of(self._last, name).items()}

    def flips(self, before: Mapping[str, float]) -> tuple[dict[str, float], dict[str, list[str]]]:
        """Of the last look every item's value, and which were fixed and which were broken since one with the values
        `before` (empty: that was none), by what their metric calls a change."""
        now = {_key(each): float(each.value) for each in self._last if each.value is not None}
        if not before or not now:
            return now, {}
        both = sorted(set(before) & set(now))
        ways = [(item, self._figures[item][0].turned(before[item], now[item])) for item in both]
        fixed, broken = ([item for item, way in ways if way == wanted] for wanted in (1, -1))
        return now, {"fixed": fixed, "broken": broken}

    def begin(self, model: Any) -> None:
        """Examine the model as it is; a look at step 0 repeats nothing."""
        self._first = self._examine(model, "step-0")

    def change(self, model: Any, step: int) -> dict[str, Any]:
        """By figure: that of a model with the weights after `step` minus that at `begin`, item by item. Where the last
        look was at that step, nothing is repeated."""
        if step != self._step:
            self(model, step)
        found: dict[str, Any] = {}
        for name in self._names():
            begun, now = self._of(self._first or (), name), self._of(self._last, name)
            pairs = [(begun[key], each) for key, each in now.items() if key in begun]
            if pairs:
                found[name] = plain(_change(pairs, self._figures[_key(pairs[0][0])][0].bounds))
        return found

    def _names(self) -> list[str]:
        names = sorted({figure for _, figure in self._figures.values()})
        return [*names, WATCHED] if any(metric.share for metric, _ in self._figures.values()) else names

    def _of(self, results: Sequence[Result], name: str) -> dict[str, Result]:
        """The measured items of a figure."""
        found: dict[str, Result] = {}
        for each in results:
            metric, figure = self._figures[_key(each)]
            if each.value is not None and name in (figure, metric.share and WATCHED):
                found[_key(each)] = each
        return found

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


def _named(items: Sequence[Example]) -> dict[str, tuple[Metric, str]]:
    """Item -> its metric and the name of its figure."""
    known = [(str(each.tags["suite"]), item_id(each), named(HEADLINE[str(each.tags["kind"])])) for each in items]
    suites: dict[str, list[Metric]] = {}
    for suite, _, metric in known:
        suites.setdefault(suite, []).append(metric)
    return {
        f"{suite}/{name}": (metric, suite if metric.share or on_one_scale(suites[suite]) else f"{suite} {metric.name}")
        for suite, name, metric in known
    }


def _key(result: Result) -> str:
    return f"{result.suite}/{result.item}"


def _cluster(result: Result) -> str:
    return f"{result.suite}/{result.cluster}"


def _change(pairs: Sequence[tuple[Result, Result]], bounds: tuple[float, float] | None) -> Interval:
    """After minus before, clustered as the items are."""
    before, after = ([float(each.value or 0.0) for each in side] for side in zip(*pairs, strict=True))
    return paired(after, before, [_cluster(each) for each, _ in pairs], bounds=bounds).difference


def watch(corpus: Path, tokenizer: Any, *, items: int = 64, every: int = 0, seed: int = 0) -> Examiner:
    """An examiner on `items` fixed items of a corpus; `every` steps, or at the beginning and the end only (0)."""
    return Examiner(watched(Path(corpus), items, seed), tokenizer, every)
