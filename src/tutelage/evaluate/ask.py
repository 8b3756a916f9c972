"""Items through a generator in batches, every answer in an append-only log: nothing is asked twice after a kill.

The log holds what was said, not what it was worth, so that answers are scored again without new inference.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tutelage.core.errors import Stopped, TutelageError, Unreachable
from tutelage.core.records import Example, Message, Response
from tutelage.evaluate.log import AnswerLog as AnswerLog
from tutelage.evaluate.suite import Result, item_id, row
from tutelage.evaluate.suites.answers import HEADLINE, Figure, pick, score, unknown
from tutelage.evaluate.suites.gold import gold
from tutelage.generate.generator import Generator, Sampling, Scored

MAX_TOKENS: Mapping[str, int] = {"extractive": 16, "classify": 8, "translate": 40, "generate": 32, "rule": 24}
"""Tokens an answer may take, by kind; an item's `tags.max_tokens` overrides it."""
CHUNK = 128
"""Items asked at once. Fixed, so that a run that was interrupted asks in the same groups."""


def sampling_of(item: Example, max_tokens: Mapping[str, int], base: Sampling) -> Sampling:
    """How an item is answered: greedy unless `base` says otherwise, with its kind's length."""
    kind = str(item.tags["kind"])
    length = item.tags.get("max_tokens") or max_tokens.get(kind) or MAX_TOKENS.get(kind, base.max_tokens)
    return base.model_copy(update={"max_tokens": int(length)})


GREEDY = Sampling(max_tokens=32, temperature=0.0)


def _length(item: Example) -> int:
    return sum(len(message.content) for message in item.messages)


def _chunks(items: Sequence[Example]) -> list[list[Example]]:
    """Items of like length together, so that a batch wastes little; ties by id, so that the order is fixed."""
    order = sorted(items, key=lambda item: (_length(item), item_id(item)))
    return [order[start : start + CHUNK] for start in range(0, len(order), CHUNK)]


def _said(response: Response) -> dict[str, Any]:
    if response.error:
        return {"error": response.error}
    said = {"text": response.message.content, "finish": response.finish, "usage": dict(response.usage)}
    return said | ({"logprobs": list(response.logprobs)} if response.logprobs else {})


def _one_by_one(ask: Callable[[list[Example]], list[Any]], chunk: list[Example]) -> list[Any]:
    """Answers of a chunk; when the whole fails, item by item, and those that fail are named as such.

    An endpoint that the first item does not reach either is down: the others, a long wait each, are not asked.
    """
    try:
        return ask(chunk)
    except Stopped:
        raise
    except TutelageError:
        answers: list[Any] = []
        for item in chunk:
            try:
                answers += ask([item])
            except Stopped:
                raise
            except TutelageError as error:
                if isinstance(error, Unreachable) and not answers:
                    return [{"error": str(error)} for _ in chunk]
                answers.append({"error": str(error)})
        return answers


def responses(
    generator: Generator,
    items: Sequence[Example],
    *,
    log: AnswerLog,
    target: str = "",
    sampling: Sampling = GREEDY,
    max_tokens: Mapping[str, int] | None = None,
    step: Callable[[int], None] = lambda done: None,
) -> list[Response]:
    """One answer per item, in order, from the log where it has one. `step(n)` hears of n more answers.

    An item that the generator refuses to take (too long for its context, an endpoint that failed) gets a response
    with finish `error`; it is never cut in silence.
    """
    found: dict[str, Response] = {}
    groups: dict[Sampling, list[Example]] = {}
    for item in items:
        groups.setdefault(sampling_of(item, max_tokens or {}, sampling), []).append(item)
    for how, members in groups.items():
        keys = {item_id(item): log.key(generator, target, item, how.model_dump(mode="json")) for item in members}
        for chunk in _chunks(members):
            if missing := [item for item in chunk if keys[item_id(item)] not in log]:

                def ask(batch: list[Example], how: Sampling = how) -> list[Any]:
                    return [_said(group[0]) for group in generator.generate(batch, how)]

                answers = _one_by_one(ask, missing)
                log.put((keys[item_id(item)], answer) for item, answer in zip(missing, answers, strict=True))
            for item in chunk:
                answer = log[keys[item_id(item)]]
                failed = "error" in answer
                found[item_id(item)] = Response(
                    message=Message(role="assistant", content=str(answer["error"] if failed else answer["text"])),
                    finish="error" if failed else answer["finish"],
                    usage={} if failed else answer["usage"],
                    logprobs=() if failed else tuple(answer.get("logprobs", ())),
                    generator=generator.name,
                )
            step(len(chunk))
    return [found[item_id(item)] for item in items]


def likelihoods(
    generator: Generator,
    items: Sequence[Example],
    *,
    log: AnswerLog,
    target: str = "",
    step: Callable[[int], None] = lambda done: None,
) -> list[list[Scored] | str]:
    """The log-likelihood of every choice of every item, in order; a text where the generator could not say, and why."""
    keys = {item_id(item): log.key(generator, target, item, ["likelihood", *item.choices]) for item in items}
    for chunk in _chunks(items):
        if missing := [item for item in chunk if keys[item_id(item)] not in log]:

            def ask(batch: list[Example]) -> list[Any]:
                scored = generator.loglikelihood(batch, [item.choices for item in batch])
                return [
                    next(({"error": each.error} for each in choices if each.error), None)
                    or [each.model_dump(exclude={"error"}) for each in choices]
                    for choices in scored
                ]

            try:
                answers = _one_by_one(ask, missing)
            except NotImplementedError as error:
                answers = [{"error": str(error) or "this generator gives no log-likelihoods"} for _ in missing]
            log.put((keys[item_id(item)], answer) for item, answer in zip(missing, answers, strict=True))
        step(len(chunk))
    told = [log[keys[item_id(item)]] for item in items]
    return [
        str(each["error"]) if isinstance(each, dict) else [Scored.model_validate(one) for one in each] for each in told
    ]


def examine(
    generator: Generator,
    items: Sequence[Example],
    *,
    target: str,
    target_id: str = "",
    log: AnswerLog | None = None,
    max_tokens: Mapping[str, int] | None = None,
    sampling: Sampling = GREEDY,
    step: Callable[[int], None] = lambda done: None,
) -> list[Result]:
    """One Result per item, in order: multiple choice by log-likelihood, everything else by generation (greedy unless
    `sampling` says otherwise). `confidence` among the scores is the probability of the whole answer, where the
    generator states it."""
    log = log or AnswerLog()
    identity = target_id or target
    choices = [item for item in items if item.tags["kind"] == "choice"]
    others = [item for item in items if item.tags["kind"] != "choice"]
    figures: dict[str, Figure] = {}
    for item, scored in zip(choices, likelihoods(generator, choices, log=log, target=identity, step=step), strict=True):
        figures[item_id(item)] = unknown(scored) if isinstance(scored, str) else pick(item, scored)
    told = responses(generator, others, log=log, target=identity, sampling=sampling, max_tokens=max_tokens, step=step)
    for item, response in zip(others, told, strict=True):
        if response.finish == "error":
            figures[item_id(item)] = unknown(response.message.content or "the generator failed")
            continue
        figure = score(item, response)
        truth = gold(item, response)
        sure = {"confidence": math.exp(min(0.0, sum(response.logprobs)))} if response.logprobs else {}
        figures[item_id(item)] = figure._replace(scores=figure.scores | (truth or {}) | sure)
    return [_result(item, figures[item_id(item)], target, target_id) for item in items]


def _result(item: Example, figure: Figure, target: str, target_id: str) -> Result:
    return row(
        item,
        target=target,
        target_id=target_id,
        metric=HEADLINE[str(item.tags["kind"])],
        value=figure.value,
        outcome=figure.outcome,
        reason=figure.reason,
        output=figure.output,
        scores=figure.scores,
        rule=None if item.tags.get("rule") is None else str(item.tags["rule"]),
    )
