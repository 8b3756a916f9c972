"""A look at a model while it trains: a few fixed items, scored without a trace in the training itself.

The report at step 0 and at the end is how forgetting is seen: the same items before and after a stage.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tutelage.core.records import Example, read_jsonl
from tutelage.evaluate.ask import examine
from tutelage.evaluate.suite import Suite, item_id, rank, sample, select
from tutelage.measure.statistics import standard_error

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

    def __call__(self, model: Any, step: int) -> Mapping[str, Any]:
        """Headline figure per suite (0 to 1), their mean as `watched`, its standard error, and how many items."""
        if not self.items:
            return {}
        import torch

        from tutelage.generate.local import LocalGenerator

        mode = model.training
        with torch.random.fork_rng(devices=list(range(torch.cuda.device_count()))), torch.no_grad():
            try:
                model.eval()
                generator = LocalGenerator(model, self.tokenizer, name=f"step-{step}")
                results = examine(generator, self.items, target=f"step-{step}")
            finally:
                model.train(mode)
        known = [each for each in results if each.value is not None]
        groups: dict[str, list[float]] = {}
        for each in known:
            groups.setdefault(each.suite, []).append(float(each.value or 0.0))
        figures: dict[str, Any] = {suite: sum(values) / len(values) for suite, values in sorted(groups.items())}
        values = [float(each.value or 0.0) for each in known]
        if values:
            figures["watched"] = sum(values) / len(values)
            figures["watched_error"] = standard_error(values, [f"{each.suite}/{each.cluster}" for each in known])
        return {key: value for key, value in figures.items() if value is not None} | {"watched_items": len(known)}


def watch(corpus: Path, tokenizer: Any, *, items: int = 64, every: int = 0, seed: int = 0) -> Examiner:
    """An examiner on `items` fixed items of a corpus; `every` steps, or at the beginning and the end only (0)."""
    return Examiner(watched(Path(corpus), items, seed), tokenizer, every)
