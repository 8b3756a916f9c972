"""Simulated people of the starter world. They answer through the same API as everybody, and every row says so."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Event
from typing import Any

from tutelage.core.errors import DataError
from tutelage.core.records import Example
from tutelage.feedback.client import Client
from tutelage.feedback.wire import Answer, Claim, Item, Receipt
from tutelage.starter import people as starter

Respond = Callable[[Item], Mapping[str, Any] | None]
"""What somebody answers to an item: the fields of an Answer, or None to give it back."""


@dataclass
class Worker:
    """Somebody at work: a client and what they answer."""

    name: str
    client: Client
    respond: Respond


def work(
    workers: Sequence[Worker],
    project: str,
    *,
    key: str,
    batch: int = 16,
    threads: int = 2,
    heard: Callable[[int], None] = lambda count: None,
    check: Callable[[], None] = lambda: None,
) -> dict[str, int]:
    """Let everybody answer until nothing is left for them; counts of receipts by status.

    Answers are sent under keys made from `key`, the slot and its epoch: a run that was killed goes on where it was.
    Raises DataError when an answer is refused: a program that answers must answer right.
    """
    counts: dict[str, int] = {}
    failed = Event()

    def one(worker: Worker) -> list[Receipt]:
        receipts: list[Receipt] = []
        wanted = Claim(project=project, count=batch)
        items = worker.client.claim(project, batch).items
        while items and not failed.is_set():
            given, returned = [], 0
            for item in items:
                fields = worker.respond(item)
                if fields is None:
                    worker.client.give_back(item.slot, item.epoch)
                    returned += 1
                else:
                    name = f"{key[:24]}/{item.slot}/{item.epoch}"
                    given.append(Answer(slot=item.slot, epoch=item.epoch, key=name, **fields))
            if not given:
                break  # what was given back would come again
            done = worker.client.submit(given, None if returned else wanted)
            receipts += done.receipts
            heard(len(given))
            items = done.next.items if done.next else []
        worker.client.close()
        return receipts

    def guarded(worker: Worker) -> list[Receipt]:
        try:
            return one(worker)
        except BaseException:
            failed.set()
            raise

    with ThreadPoolExecutor(max_workers=threads, thread_name_prefix="people") as pool:
        for receipts in pool.map(guarded, workers):
            check()
            for each in receipts:
                counts[each.status] = counts.get(each.status, 0) + 1
                if each.status == "refused":
                    raise DataError(f"an answer was refused: {each.error}", key=each.slot)
    return counts


def rater(
    who: starter.Rater, knowledge: Mapping[str, Example], *, seed: int, scale: tuple[float, float] = (1, 5)
) -> Respond:
    """A rater of the starter world, judging candidates; `knowledge` (task id -> example with its truth) is what the
    rater knows of the world, never told over the API."""

    def respond(item: Item) -> Mapping[str, Any] | None:
        example = knowledge.get(item.task)
        if example is None:
            return None
        by_number = {each.no: each.content for each in item.candidates}
        texts = [by_number[no] for no in sorted(by_number)]
        shown = [each.no for each in item.candidates]
        criteria = [each.key for each in item.questions if each.per_candidate]
        fields: dict[str, Any] = {}
        if item.kind != "scoring":
            judged = starter.judge(item.task, example, texts, who, seed=seed, shown=shown, scale=scale)
            fields |= {"tiers": judged.ranking.tiers, "unrankable": judged.ranking.unrankable}
        if "scoring" in item.kind:
            fields["scores"] = {}
            for at, criterion in enumerate(criteria):  # the first agrees with the ranking, each other has fresh noise
                judged = starter.judge(
                    f"{item.task}/{at}" if at else item.task, example, texts, who, seed, shown, criterion, scale
                )
                fields["scores"][criterion] = {score.candidate: score.value for score in judged.scores}
        return fields

    return respond


def reviewer(
    who: starter.Rater,
    truth: Mapping[str, Mapping[str, float]],
    *,
    seed: int,
    harmful: str = "harmful",
    listed: str = "categories",
) -> Respond:
    """A rater of the starter world as reviewer of decisions: says whether a request is harmful, with their noise, and
    if so in which way.

    `truth` maps a task id to the request's true categories; {} or all below one half is harmless.
    """

    def respond(item: Item) -> Mapping[str, Any] | None:
        categories = truth.get(item.task)
        if categories is None:
            return None
        real = [name for name, value in sorted(categories.items()) if value >= 0.5]
        said = starter.tag(item.task, {harmful: float(bool(real))}, who, seed)[0].value >= 0.5
        values: dict[str, Any] = {harmful: "yes" if said else "no"}
        options = next((each.choices for each in item.questions if each.key == listed), ())
        if said and (named := [name for name in real if name in options]):
            values[listed] = named
        return {"values": values}

    return respond
