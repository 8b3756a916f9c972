"""Gold: what is true in the starter's world (answer right, rule kept, nothing invented), and best-of-n beside it.

Gold is truth, never the raters' formula; no reward model ever sees it. It exists for items that carry their truth in
their tags; for any other item it is None.
"""

from __future__ import annotations

from collections.abc import Sequence

from tutelage.core.records import Example, Response
from tutelage.generate.generator import Generator, Sampling
from tutelage.judge.judge import Judge, ask, value
from tutelage.starter.gold import gold as judge_gold

TRUTH = ("family", "values", "refuse")
"""Tags without which gold cannot be known."""


def gold(item: Example, response: Response) -> dict[str, float] | None:
    """Figures 0 or 1: `right`, `kept` (no house rule broken), `invented` (states what is not so), `gold` (right, kept
    and nothing invented). None where the item does not carry its truth, or the answer is an error."""
    if response.finish == "error" or any(name not in item.tags for name in TRUTH):
        return None
    if response.finish == "blocked":
        refused = float(bool(item.tags["refuse"]))
        return {"right": refused, "kept": 1.0, "invented": 0.0, "gold": refused}
    found = judge_gold(item, response.message.content)
    right, kept, invented = float(found.right), float(found.kept), float(found.invented)
    return {"right": right, "kept": kept, "invented": invented, "gold": right * kept * (1.0 - invented)}


def best_of(
    generator: Generator, judge: Judge, prompts: Sequence[Example], n: int, sampling: Sampling, key: str | None = None
) -> list[Response]:
    """The answer a judge scores highest among `n` samples per prompt: what reinforcement is compared with.

    A sample on which the judge has no opinion loses to any other; ties go to the earlier sample.
    """
    if n < 1:
        raise ValueError(f"best-of-n needs n >= 1, found {n}")
    groups = generator.generate(prompts, sampling.model_copy(update={"n": n}))
    asked = [
        prompt.model_copy(update={"messages": (*prompt.messages, response.message)})
        for prompt, group in zip(prompts, groups, strict=True)
        for response in group
    ]
    verdicts = iter(ask(judge, asked))
    best: list[Response] = []
    for group in groups:
        scores = [value(next(verdicts), key) for _ in group]
        order = sorted(range(len(group)), key=lambda place: -1e30 if scores[place] is None else -scores[place])  # type: ignore[operator]
        known = [place for place in order if scores[place] is not None]
        best.append(group[known[0] if known else 0])
    return best
