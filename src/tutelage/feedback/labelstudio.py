"""Tasks with annotations as Label Studio exports them (format JSON).

Form of the file: docs/source/includes/task_format.md of HumanSignal/label-studio, and the value classes in
label_studio_sdk/label_interface/control_tags.py (2.1). The export does not hold the labelling configuration: which data
is judged is told by the names of its keys, or by `responses`; whether several choices may be taken, by the answers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tutelage.core.errors import DataError
from tutelage.feedback.argilla import RESPONSE
from tutelage.feedback.incoming import Batch, key_of

LABELS = ("labels", "hypertextlabels", "paragraphlabels")
"""Types of result that mark characters."""
SHOWN = ("html", "body", "text", "content", "value")
"""Where an item of a list has its text."""


def is_task(row: Mapping[str, Any]) -> bool:
    """Whether this is a task of Label Studio."""
    return isinstance(row.get("data"), Mapping) and (
        "annotations" in row or "completions" in row or "predictions" in row
    )


def read(rows: Iterable[tuple[int, Mapping[str, Any]]], batch: Batch, responses: Sequence[str] = ()) -> Batch:
    """Tasks into a batch. `responses` names the keys of `data` that hold what is judged, in order (left, right)."""
    held: list[tuple[int, dict[str, Any]]] = []
    several: set[str] = set()
    for number, row in rows:
        try:
            if not is_task(row):
                raise DataError("this is no task of Label Studio: it has no `data` with `annotations`")
            held.append((number, _task(row, responses, several, batch)))
        except DataError as error:
            batch.fault(error, number)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            batch.fault(f"this is no task of Label Studio: {type(error).__name__} at {error}", number)
    for number, found in held:
        for each in found["answers"]:
            for key, chosen in each.get("values", {}).items():
                if isinstance(chosen, list) and key not in several:
                    each["values"][key] = chosen[0]
        batch.take(number, found)
    batch.dropped = +batch.dropped
    return batch


def _task(row: Mapping[str, Any], responses: Sequence[str], several: set[str], batch: Batch) -> dict[str, Any]:
    data: Mapping[str, Any] = row["data"]
    missing = [name for name in responses if name not in data]
    if missing:
        todo = f"There are: {', '.join(data)}"
        raise DataError(f"`data` has no {missing[0]!r}", key="response", todo=todo)
    shown = _Shown(data, responses)
    given = row.get("annotations") or row.get("completions") or ()
    batch.dropped["prediction of a model"] += len(row.get("predictions") or ())
    batch.dropped["draft"] += len(row.get("drafts") or ())
    answers = []
    for each in sorted(given, key=lambda each: str(each.get("updated_at") or each.get("created_at") or "")):
        answers.append(_answer(each, shown, several, batch))
    return {
        "key": str(row.get("id") or ""),
        "messages": shown.messages,
        "candidates": shown.candidates,
        "answers": [each for each in answers if each],
    }


class _Shown:
    """What a task shows: its data as messages and candidates, and where each key of the data went."""

    def __init__(self, data: Mapping[str, Any], responses: Sequence[str]) -> None:
        self.messages: list[dict[str, Any]] = []
        self.candidates: list[str] = []
        self.names: list[str] = []
        """Of each candidate: its key, or its id in a list of items."""
        self.starts: dict[str, int] = {}
        self.turns: dict[str, int] = {}
        """Key of a dialogue -> number of its first message."""
        text = ""
        for key, value in data.items():
            items = [each for each in value if isinstance(each, Mapping)] if isinstance(value, list) else []
            if (key in responses) if responses else (isinstance(value, str) and RESPONSE.search(key)):
                self.candidates.append(str(value))
                self.names.append(key)
            elif items and all("id" in each for each in items):  # <List>, as the Ranker shows it
                self.candidates += [_text(each) for each in items]
                self.names += [str(each["id"]) for each in items]
            elif items:  # <Paragraphs>, <Chat>
                self.turns[key] = len(self.messages)
                self.messages += [_turn(each, no) for no, each in enumerate(items)]
            elif isinstance(value, str) and value:
                text += "\n\n" * bool(text)
                self.starts[key] = len(text)
                text += value
        if text:
            self.messages.append({"role": "user", "content": text})

    def candidate(self, name: str) -> int | None:
        """The candidate that a result is about: the one its object is named for, or the only one."""
        for no, key in enumerate(self.names):
            if name == key:
                return no
        return 0 if len(self.candidates) == 1 else None


def _text(item: Mapping[str, Any]) -> str:
    found = next((str(item[name]) for name in SHOWN if item.get(name)), "")
    title = str(item.get("title") or "")
    return f"{title}\n{found}".strip() if title and title != found else found


def _turn(item: Mapping[str, Any], number: int) -> dict[str, Any]:
    who = str(item.get("role") or item.get("author") or item.get("speaker") or "").lower()
    roles = {
        "assistant": "assistant",
        "bot": "assistant",
        "model": "assistant",
        "agent": "assistant",
        "system": "system",
    }
    role = roles.get(who, "user" if who or number % 2 == 0 else "assistant")
    return {"role": role, "content": _text(item)}


def _answer(each: Mapping[str, Any], shown: _Shown, several: set[str], batch: Batch) -> dict[str, Any] | None:
    """One annotation as an answer; None where nothing of it can be kept."""
    who = each.get("completed_by")
    if isinstance(who, Mapping):
        who = who.get("email") or who.get("id") or who.get("username")
    if who is None:
        batch.dropped["annotation that names nobody"] += 1
        return None
    made: dict[str, Any] = {"person": str(who), "annotation": str(each.get("unique_id") or each.get("id") or "")}
    if isinstance(each.get("lead_time"), int | float):
        made["active_ms"] = max(0, min(2**31 - 1, int(each["lead_time"] * 1000)))
    if each.get("was_cancelled") or each.get("skipped"):
        return made | {"status": "skipped", "reason": "cancelled in Label Studio"}
    bare = len(made)
    regions = {item.get("id") for item in each.get("result") or () if item.get("type") in LABELS}
    for item in each.get("result") or ():
        kind = str(item.get("type"))
        if kind not in LABELS and item.get("id") in regions and "start" in (item.get("value") or {}):
            batch.dropped["answer about a marked region"] += 1
        elif (why := _say(made, kind, item, shown, several)) is not None:
            batch.dropped[why] += 1
    if len(made) > bare:
        return made
    batch.dropped["annotation without a result that can be kept"] += 1
    return None


def _say(made: dict[str, Any], kind: str, item: Mapping[str, Any], shown: _Shown, several: set[str]) -> str | None:
    """Put one result into the fields of an answer, or say why not."""
    value: Mapping[str, Any] = item["value"]
    name, about = str(item.get("from_name") or kind), shown.candidate(str(item.get("to_name") or ""))
    key = key_of(name)
    match kind:
        case "rating" | "number":
            number = value[kind]
            if about is None:
                made.setdefault("values", {})[key] = number
            else:
                made.setdefault("scores", {}).setdefault(key, {})[about] = number
        case "choices" | "taxonomy":
            chosen = ["/".join(path) if isinstance(path, list) else str(path) for path in value[kind]]
            if about is not None and len(shown.candidates) > 1:  # a choice about one of several: a question of its own
                key = key_of(f"{name}_{shown.names[about]}")
            kept = made.setdefault("values", {}).setdefault(key, [])
            kept += [each for each in chosen if each not in kept]
            if len(kept) > 1 or kind == "taxonomy":
                several.add(key)
        case "pairwise":
            if len(shown.candidates) != 2 or value["selected"] not in ("left", "right"):
                return "pairwise without two responses to be found"
            better = int(value["selected"] == "right")
            made["tiers"] = [[better], [1 - better]]
        case "ranker":
            return _rank(made, value, shown)
        case "textarea":
            text = "\n".join(map(str, value["text"] if isinstance(value["text"], list) else [value["text"]]))
            if len(shown.candidates) == 1 and re.search(r"rewrit|correct|improve|edit|better", name):
                made["rewrite"] = text
            else:
                made.setdefault("values", {})[key] = text
        case "labels" | "hypertextlabels" | "paragraphlabels":
            return _mark(made, kind, item, shown)
        case _:
            return f"result of type {kind}"
    return None


def _rank(made: dict[str, Any], value: Mapping[str, Any], shown: _Shown) -> str | None:
    """One list is an order, best first. Several buckets are no order: their names say what they mean, to people."""
    buckets = value.get("ranker")
    if not isinstance(buckets, Mapping):
        return "ranker in the form of an early version"
    named = {name: ids for name, ids in buckets.items() if name != "_"}
    if len(named) > 1:
        return "ranker with several buckets, which are no order"
    order = [str(id) for id in next(iter(named.values()), buckets.get("_", ()))]
    unknown = [id for id in order if id not in shown.names]
    if unknown:
        return "ranker that names items the data does not hold"
    placed = [shown.names.index(id) for id in order]
    made |= {
        "tiers": [[no] for no in placed],
        "unrankable": [no for no in range(len(shown.names)) if no not in placed],
    }
    return None


def _mark(made: dict[str, Any], kind: str, item: Mapping[str, Any], shown: _Shown) -> str | None:
    value, target = item["value"], str(item.get("to_name") or "")
    start, end = value.get("start"), value.get("end")
    field, candidate, shift = "prompt", -1, 0
    if isinstance(offsets := value.get("globalOffsets"), Mapping):
        start, end = offsets["start"], offsets["end"]
    elif kind == "paragraphlabels" and shown.turns:
        if start != end:
            return "span over several turns"
        field = f"prompt:{next(iter(shown.turns.values())) + int(start or 0)}"
        start, end = value["startOffset"], value["endOffset"]
    elif isinstance(start, str) and not start.isdigit():
        return "span in the markup of a page"
    if field == "prompt":
        about = shown.candidate(target) if not shown.starts or target in shown.names else None
        if about is not None:
            field, candidate = "candidate", about
        else:
            shift = shown.starts.get(target, next(iter(shown.starts.values()), 0))
    for label in value[kind]:
        mark = {"field": field, "candidate": candidate, "start": shift + int(start), "end": shift + int(end)}
        made.setdefault("spans", []).append(mark | {"label": str(label)})
    return None
