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
from tutelage.evaluate.suites.kinds import HEADLINE, Ground, Metric, common, named, value_of
from tutelage.measure.statistics import plain, standard_error

SUITES = ("comprehension", "translation", "sentiment", "facts", "topic", "grammar", "rules")
"""The order in which suites are given items when there are few."""
WATCHED = "watched"
"""The figure of all items whose metric runs from 0 to 1, more being better."""
MEAN = Metric("value", score=value_of)
"""What that figure is: the mean of what the answers are worth, each by its own metric."""


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

    Figures are those that an examination states of the same answers: each suite by its name, and as `watched` the mean
    of what all answers are worth whose metric runs from 0 to 1, more being better. A suite whose answers have no common
    figure has them apart, as `SUITE METRIC`.
    """

    def __init__(self, items: list[Example], tokenizer: Any, every: int) -> None:
        self.items, self.tokenizer, self.every = items, tokenizer, every
        self._ground = Ground({item_id(each): each for each in items})
        self._first: list[Result] | None = None
        self._last: list[Result] = []
        self._step = -1
        self._figures = _named(items)

    def __call__(self, model: Any, step: int) -> Mapping[str, Any]:
        """Value per figure, that of all shares as `watched`, its standard error, and how many items those are."""
        if not self.items:
            return {}
        known_first = self._first if step == 0 else None
        self._step, self._last = step, known_first or self._examine(model, f"step-{step}")
        figures: dict[str, Any] = {}
        for name in self._names():
            rows = self._of(self._last, name)
            figures[name] = self._metric(name, rows).value(rows, self._ground)[0]
        shares = list(self.values(WATCHED).values())
        if shares:
            figures["watched_error"] = standard_error([value for value, _ in shares], [name for _, name in shares])
        return {key: value for key, value in figures.items() if value is not None} | {"watched_items": len(shares)}

    def higher(self, name: str) -> bool | None:
        """Whether more is better of a figure; None where it is none of these."""
        metrics = [metric for metric, figure in self._figures.values() if name in (figure, metric.share and WATCHED)]
        return metrics[0].higher if metrics else None

    def values(self, name: str) -> dict[str, tuple[float, str]]:
        """Of the last look one value per item, whose mean is the figure, and the cluster of each."""
        rows = self._of(self._last, name)
        values = self._metric(name, rows).per_item(rows, self._ground)
        return {_key(row): (value, row.cluster) for row, value in zip(rows, values, strict=False)}

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
            begun = {_key(each): each for each in self._of(self._first or (), name)}
            now = [each for each in self._of(self._last, name) if _key(each) in begun]
            if now:
                before, metric = [begun[_key(each)] for each in now], self._metric(name, now)
                found[name] = plain(metric.difference(now, before, self._ground).difference)
        return found

    def _names(self) -> list[str]:
        names = sorted({figure for _, figure in self._figures.values()})
        return [*names, WATCHED] if any(metric.share for metric, _ in self._figures.values()) else names

    def _metric(self, name: str, rows: Sequence[Result]) -> Metric:
        return MEAN if name == WATCHED else common(rows) or MEAN

    def _of(self, results: Sequence[Result], name: str) -> list[Result]:
        """The measured items of a figure, in their order."""
        found = []
        for each in results:
            metric, figure = self._figures[_key(each)]
            if each.value is not None and name in (figure, metric.share and WATCHED):
                found.append(each)
        return found

    def _examine(self, model: Any, target: str) -> list[Result]:
        import torch

        from tutelage.generate.local import LocalGenerator

        mode = model.training
        with torch.random.fork_rng(devices=list(range(torch.cuda.device_count()))), torch.no_grad():
            try:
                model.eval()
                generator = LocalGenerator(model, self.tokenizer, name=target)
                rows = examine(generator, self.items, target=target) if self.items else []
                return [row.model_copy(update={"cluster": f"{row.suite}/{row.cluster}"}) for row in rows]
            finally:
                model.train(mode)


def _named(items: Sequence[Example]) -> dict[str, tuple[Metric, str]]:
    """Item -> its metric and the name of its figure: its suite's, where the suite has one metric or these are means of
    answers that run from 0 to 1."""
    known = [(str(each.tags["suite"]), item_id(each), named(HEADLINE[str(each.tags["kind"])])) for each in items]
    suites: dict[str, set[str]] = {}
    for suite, _, metric in known:
        suites.setdefault(suite, set()).add(metric.name)
    return {
        f"{suite}/{name}": (
            metric,
            suite if len(suites[suite]) == 1 or (metric.share and metric.plain) else f"{suite} {metric.name}",
        )
        for suite, name, metric in known
    }


def _key(result: Result) -> str:
    return f"{result.suite}/{result.item}"


def watch(corpus: Path, tokenizer: Any, *, items: int = 64, every: int = 0, seed: int = 0) -> Examiner:
    """An examiner on `items` fixed items of a corpus; `every` steps, or at the beginning and the end only (0)."""
    return Examiner(watched(Path(corpus), items, seed), tokenizer, every)
