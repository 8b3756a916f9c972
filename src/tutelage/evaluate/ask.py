"""Items through a generator in batches, every answer in an append-only log: nothing is asked twice after a kill.

The log holds what was said, not what it was worth, so that answers are scored again without new inference.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tutelage.core.errors import Stopped, TutelageError, Unreachable
from tutelage.core.records import Example, Message, Response, digest
from tutelage.evaluate.log import AnswerLog as AnswerLog
from tutelage.evaluate.log import code
from tutelage.evaluate.suite import Result, item_id, row
from tutelage.evaluate.suites import choice, judged, perplexity
from tutelage.evaluate.suites.answers import score
from tutelage.evaluate.suites.figure import Figure, unknown
from tutelage.evaluate.suites.gold import gold
from tutelage.evaluate.suites.kinds import HEADLINE
from tutelage.generate.generator import Generator, Sampling, Scored, weigh_texts

MAX_TOKENS: Mapping[str, int] = {
    "extractive": 16, "classify": 8, "translate": 40, "generate": 32, "rule": 24, "arithmetic": 96, "instruct": 128,
    "summarise": 64, "judged": 96,
}  # fmt: skip
"""Tokens an answer may take, by kind; an item's `tags.max_tokens` overrides it."""
CHUNK = 128
"""Items asked at once. Fixed, so that a run that was interrupted asks in the same groups."""
SILENT = 3
"""Items in a row that are not reached, one by one, before the rest of their chunk is not asked."""


def sampling_of(item: Example, max_tokens: Mapping[str, int], base: Sampling) -> Sampling:
    """How an item is answered: greedy unless `base` says otherwise, with its kind's length."""
    kind = str(item.tags["kind"])
    length = item.tags.get("max_tokens") or max_tokens.get(kind) or MAX_TOKENS.get(kind, base.max_tokens)
    stops = tuple(str(each) for each in item.tags.get("stop") or base.stop)
    return base.model_copy(update={"max_tokens": int(length), "stop": stops})


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

    One that is not reached costs only itself; `SILENT` in a row, and the others, a long wait each, are not asked.
    """
    try:
        return ask(chunk)
    except Stopped:
        raise
    except TutelageError:
        answers: list[Any] = []
        silent, last = 0, ""
        for item in chunk:
            if silent == SILENT:
                answers.append({"error": f"not asked any more: {SILENT} in a row were not reached, the last: {last}"})
                continue
            try:
                answers += ask([item])
                silent = 0
            except Stopped:
                raise
            except TutelageError as error:
                last = str(error)
                silent = silent + 1 if isinstance(error, Unreachable) else 0
                answers.append({"error": last})
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


def rolled(
    generator: Generator,
    items: Sequence[Example],
    *,
    log: AnswerLog,
    target: str = "",
    stride: int = 0,
    step: Callable[[int], None] = lambda done: None,
) -> list[Scored | str]:
    """The log-likelihood of each whole text (see `generator.weigh_texts`), or why there is none."""
    keys = {item_id(item): log.key(generator, target, item, ["rolling", stride]) for item in items}
    for chunk in _chunks(items):
        if missing := [item for item in chunk if keys[item_id(item)] not in log]:

            def ask(batch: list[Example]) -> list[Any]:
                return [
                    {"error": each.error} if each.error else each.model_dump(exclude={"error"})
                    for each in weigh_texts(generator, batch, stride)
                ]

            try:
                answers = _one_by_one(ask, missing)
            except NotImplementedError as error:
                answers = [{"error": str(error)} for _ in missing]
            log.put((keys[item_id(item)], answer) for item, answer in zip(missing, answers, strict=True))
        step(len(chunk))
    told = [log[keys[item_id(item)]] for item in items]
    return [str(each["error"]) if "error" in each else Scored.model_validate(each) for each in told]


def judgements(
    bench: judged.Bench | None,
    items: Sequence[Example],
    answers: Sequence[str],
    *,
    log: AnswerLog,
    judge: str = "",
) -> list[float | str]:
    """What the judge says of each answer, from the log where it was asked before; a text where it has no opinion."""
    if bench is None:
        return ["no judge was named"] * len(items)
    keys = [
        digest([f"judge:{judge}", who, code(), item.model_dump(mode="json"), answer])
        for item, who, answer in zip(items, bench.identities(items), answers, strict=True)
    ]
    fresh = [place for place, key in enumerate(keys) if key not in log]
    for start in range(0, len(fresh), CHUNK):
        places = fresh[start : start + CHUNK]
        said = judged.verdicts(bench, [items[place] for place in places], [answers[place] for place in places])
        # what an endpoint said is kept by its own requests, and asked again where those shall be
        log.put(((keys[place], word) for place, word in zip(places, said, strict=True)), lasting=bench.bill is None)
    return [log[key] for key in keys]


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
    bench: judged.Bench | None = None,
    judge: str = "",
    stride: int = 0,
    weigh_labels: bool = False,
) -> list[Result]:
    """One Result per item, in order: choices and running text by log-likelihood, everything else by generation (greedy
    unless `sampling` says otherwise).

    `confidence` among the scores is the probability of the whole answer, where the generator states it. `bench` (of the
    name `judge`) judges items of kind `judged`. With `weigh_labels` the labels of a classification are weighed too, for
    its calibration (`accuracy_by_likelihood`, `confidence_by_likelihood`). A generator that gives no likelihoods leaves
    such items unknown.
    """
    log = log or AnswerLog()
    how: dict[str, Any] = {"log": log, "target": target_id or target}
    choices = [item for item in items if item.tags["kind"] == "choice"]
    texts = [item for item in items if item.tags["kind"] == "perplexity"]
    others = [item for item in items if item.tags["kind"] not in ("choice", "perplexity")]
    figures: dict[str, Figure] = {}
    for item, figure in zip(choices, _weighed(generator, choices, step, how), strict=True):
        figures[item_id(item)] = figure
    for item, scored in zip(texts, rolled(generator, texts, stride=stride, step=step, **how), strict=True):
        figures[item_id(item)] = unknown(scored) if isinstance(scored, str) else perplexity.read(item, scored)
    told = responses(generator, others, sampling=sampling, max_tokens=max_tokens, step=step, **how)
    open_ended = [
        (item, response)
        for item, response in zip(others, told, strict=True)
        if item.tags["kind"] == "judged" and response.finish != "error"
    ]
    words = judgements(
        bench, [item for item, _ in open_ended], [said.message.content for _, said in open_ended], log=log, judge=judge
    )
    verdicts = {item_id(item): word for (item, _), word in zip(open_ended, words, strict=True)}
    for item, response in zip(others, told, strict=True):
        if response.finish == "error":
            figures[item_id(item)] = unknown(response.message.content or "the generator failed")
            continue
        if item.tags["kind"] == "judged":
            figures[item_id(item)] = judged.read(response, verdicts[item_id(item)])
            continue
        figure = score(item, response)
        truth = gold(item, response)
        sure = {"confidence": math.exp(min(0.0, sum(response.logprobs)))} if response.logprobs else {}
        figures[item_id(item)] = figure._replace(scores=figure.scores | (truth or {}) | sure)
    if weigh_labels:
        labels = [item for item in others if item.tags["kind"] == "classify" and item.choices]
        for item, found in zip(labels, _weighed(generator, labels, lambda done: None, how), strict=True):
            mine = figures[item_id(item)]
            if found.value is not None and mine.value is not None:
                more = {f"{name}_by_likelihood": found.scores[name] for name in ("accuracy", "confidence")}
                more["probability"] = found.scores["probability"]
                figures[item_id(item)] = mine._replace(scores=mine.scores | more)
    return [_result(item, figures[item_id(item)], target, target_id) for item in items]


def _weighed(
    generator: Generator, items: Sequence[Example], step: Callable[[int], None], how: Mapping[str, Any]
) -> list[Figure]:
    """Choices by log-likelihood: all that the items need, in one list of requests, what is equal asked once."""
    requests = {item_id(each): each for item in items for each in choice.requests(item)}
    asked = told_of = 0

    def heard(count: int) -> None:  # in items, of which one may need several requests
        nonlocal asked, told_of
        asked += count
        whole = asked * len(items) // len(requests)
        step(whole - told_of)
        told_of = whole

    said = likelihoods(generator, list(requests.values()), step=heard, **how)
    told = dict(zip(requests, said, strict=True))
    return [choice.read(item, told) for item in items]


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
