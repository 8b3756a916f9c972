"""Records of Argilla 2: `Dataset.to_disk` (records.json and .argilla/settings.json), the server's JSON, and the table
that `records.to_datasets` makes.

Form of the files: argilla/records/_resource.py (`Record.to_dict`), records/_io/_generic.py (the flat table) and
settings/_resource.py (`Settings.serialize`) of argilla 2.8, https://github.com/argilla-io/argilla. records.json of that
version holds no status: a draft or a discarded response cannot be told from a submitted one there; the table has it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tutelage.core.errors import DataError
from tutelage.feedback.incoming import Batch, key_of
from tutelage.feedback.wire import Form, Question

RESPONSE = re.compile(r"respon|complet|answer|generat|output|chosen|rejected|reply|candidate", re.IGNORECASE)
"""Names of fields that hold what is judged, where nobody says which do."""
PROMPT = re.compile(r"prompt|instruct|question|text|input|context|system|chat|message", re.IGNORECASE)
"""Names of fields that are shown with it: the flat table does not tell fields from metadata."""
STATUS = {"submitted": "submitted", "discarded": "skipped"}
"""What a response's status is here; a draft is nobody's last word and is left out."""
KINDS = {
    "label_selection": "label", "multi_label_selection": "labels", "rating": "rating", "ranking": "ranking",
    "span": "span", "text": "text",
}  # fmt: skip
"""Type of a question in settings.json -> how its answers are read."""


def is_table(columns: Iterable[str]) -> bool:
    """Whether these are the columns of Argilla's flat table."""
    return any(name.endswith(".responses") for name in columns)


def read(
    rows: Iterable[tuple[int, Mapping[str, Any]]],
    batch: Batch,
    settings: Mapping[str, Any] | None = None,
    responses: Sequence[str] = (),
) -> Batch:
    """Records into a batch. `settings` is settings.json; `responses` names the fields that hold what is judged."""
    records: list[tuple[int, dict[str, Any]]] = []
    for number, row in rows:
        try:
            records.append((number, _flat(row) if is_table(row) else _nested(row)))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            batch.fault(f"this is no record of Argilla: {type(error).__name__} at {error}", number)
    kinds = _kinds(records, settings)
    if any(each["status"] is None for _, record in records for each in record["said"].values()):
        batch.notes.append(
            "these records do not say which responses are drafts or discarded: all are taken as submitted; the table "
            "that `records.to_datasets` makes says it"
        )
    fields = _fields(records, kinds, settings, responses)
    for number, record in records:
        batch.dropped["suggestion of a model"] += record["suggestions"]
        batch.take(number, _row(record, kinds, fields, batch))
    batch.dropped = +batch.dropped
    if settings:
        batch.form = _form(settings, kinds, fields)
    return batch


# the three forms of a record, as one: id, fields, metadata, said (user -> status and values), suggestions


def _nested(row: Mapping[str, Any]) -> dict[str, Any]:
    said: dict[str, dict[str, Any]] = {}
    given = row.get("responses") or {}
    if isinstance(given, list):  # the server's form: one object for each person
        for each in given:
            values = {name: value["value"] for name, value in (each.get("values") or {}).items()}
            said[str(each["user_id"])] = {"status": each.get("status"), "values": values}
    else:
        for question, some in given.items():
            for each in some:
                person = said.setdefault(str(each["user_id"]), {"status": each.get("status"), "values": {}})
                person["values"][question] = each["value"]
    suggested = row.get("suggestions") or {}
    fields = row["fields"]
    return {
        "id": str(row.get("external_id") or row.get("id") or ""),
        "fields": {name: value for name, value in fields.items() if value is not None},
        "said": said,
        "suggestions": len(suggested),
        "flat": False,
    }


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    said: dict[str, dict[str, Any]] = {}
    questions = [name.removesuffix(".responses") for name in row if name.endswith(".responses")]
    for question in questions:
        values = row[f"{question}.responses"] or []
        users = row[f"{question}.responses.users"] or []
        states = row.get(f"{question}.responses.status") or [None] * len(users)
        for user, value, status in zip(users, values, states, strict=True):
            person = said.setdefault(str(user), {"status": status, "values": {}})
            person["values"][question] = value
    known = {"id", "status", "_server_id", "score"}
    fields = {
        name: value
        for name, value in row.items()
        if name not in known and value is not None and not re.search(r"\.(responses|suggestion)(\.\w+)?$", name)
    }
    suggested = sum(row[name] is not None for name in row if name.endswith(".suggestion"))
    return {"id": str(row.get("id") or ""), "fields": fields, "said": said, "suggestions": suggested, "flat": True}


# which question is of which kind, which field is what


def _kinds(records: Sequence[tuple[int, Mapping[str, Any]]], settings: Mapping[str, Any] | None) -> dict[str, str]:
    """Question -> label, labels, rating, ranking, span or text; from the settings, else from its answers."""
    if settings:
        return {
            str(each["name"]): KINDS.get(str(each.get("settings", {}).get("type")), "text")
            for each in settings.get("questions", ())
        }
    values: dict[str, list[Any]] = {}
    for _, record in records:
        for person in record["said"].values():
            for question, value in person["values"].items():
                values.setdefault(question, []).append(value)
    return {question: _kind(some) for question, some in values.items()}


def _kind(values: Sequence[Any]) -> str:
    first = next((each for each in values if each not in (None, [])), None)
    if isinstance(first, int | float):
        return "rating"
    if isinstance(first, list) and isinstance(first[0], Mapping):
        return "ranking" if "rank" in first[0] else "span"
    return "labels" if isinstance(first, list) else "text"


def _fields(
    records: Sequence[tuple[int, Mapping[str, Any]]],
    kinds: Mapping[str, str],
    settings: Mapping[str, Any] | None,
    responses: Sequence[str],
) -> dict[str, list[str]]:
    """`responses`: fields that are candidates, in order; `prompt`: the other fields of text, in order; `span:QUESTION`:
    the field that a question marks."""
    named = [str(each["name"]) for each in (settings or {}).get("fields", ())]
    names = named or list(dict.fromkeys(name for _, record in records for name in record["fields"]))
    for wanted in responses:
        if wanted not in names:
            raise DataError(f"no record has a field {wanted!r}", key="response", todo=f"There are: {', '.join(names)}")
    ranked = {
        str(part.get("value"))
        for _, record in records
        for person in record["said"].values()
        for question, value in person["values"].items()
        if kinds.get(question) == "ranking"
        for part in value or ()
    }
    chosen = [*responses] or [name for name in names if name in ranked] or [n for n in names if RESPONSE.search(n)]
    prompt = [name for name in names if name not in chosen]
    if not settings and any(record["flat"] for _, record in records):
        prompt = [name for name in prompt if PROMPT.search(name)] or prompt
    marked = {f"span:{each['name']}": [str(each["settings"]["field"])] for each in (settings or {}).get("questions", ())
              if each.get("settings", {}).get("field")}  # fmt: skip
    return {"responses": chosen, "prompt": prompt, **marked}


def _form(settings: Mapping[str, Any], kinds: Mapping[str, str], fields: Mapping[str, Sequence[str]]) -> Form:
    asked: dict[str, Question] = {}
    for each in settings.get("questions", ()):
        name, how = str(each["name"]), each.get("settings", {})
        options = [option["value"] for option in how.get("options", ())]
        key, about = _about(name, kinds[name], fields)
        prompt = str(each.get("title") or "")
        match kinds[name]:
            case "rating":
                scale = (float(min(options)), float(max(options)))
                asked[key] = Question(
                    key=key, prompt=prompt, scale=scale, per_candidate=about is not None, required=False
                )
            case "label":
                asked[key] = Question(key=key, kind="choice", prompt=prompt, choices=tuple(options), required=False)
            case "labels":
                asked[key] = Question(key=key, kind="choices", prompt=prompt, choices=tuple(options), required=False)
            case "text" if key != "rewrite":
                asked[key] = Question(key=key, kind="text", prompt=prompt, required=False)
    return Form(questions=tuple(asked.values()), guideline=str(settings.get("guidelines") or ""))


def _about(question: str, kind: str, fields: Mapping[str, Sequence[str]]) -> tuple[str, int | None]:
    """The key of a question, and the candidate a rating is about: the only one, or the one its name holds."""
    responses = fields["responses"]
    if kind == "rating":
        for no, name in enumerate(responses):
            if len(responses) > 1 and name in question:
                return key_of(question.replace(name, "").strip("_-. ") or "rating"), no
        if len(responses) == 1:
            return key_of(question), 0
    if kind == "text" and re.search(r"rewrit|correct|improve|edit|better", question) and len(responses) == 1:
        return "rewrite", 0
    return key_of(question), None


# a record as a row


def _row(
    record: Mapping[str, Any], kinds: Mapping[str, str], fields: Mapping[str, Sequence[str]], batch: Batch
) -> dict[str, Any]:
    own = record["fields"]
    messages: list[dict[str, Any]] = []
    starts: dict[str, int] = {}
    text = ""
    for name in fields["prompt"]:
        value = own.get(name)
        if isinstance(value, list) and value and all(isinstance(turn, Mapping) and "role" in turn for turn in value):
            messages += [{"role": turn["role"], "content": str(turn.get("content") or "")} for turn in value]
        elif isinstance(value, str) and value:
            text += "\n\n" * bool(text)
            starts[name] = len(text)  # where a span of this field begins in the joined prompt
            text += value
    if text:
        messages.append({"role": "user", "content": text})
    names = [name for name in fields["responses"] if isinstance(own.get(name), str)]
    candidates = [own[name] for name in names]
    texts = _ranked_texts(record, kinds)
    if not candidates and texts:  # the options of a ranking are the responses themselves
        candidates, names = texts, texts
    answers = []
    for user, given in record["said"].items():
        status = given["status"]
        if status is not None and status not in STATUS:
            batch.dropped[f"{status} response"] += 1
            continue
        made: dict[str, Any] = {"person": user}
        if STATUS.get(str(status)) == "skipped":
            answers.append(made | {"status": "skipped", "reason": "discarded in Argilla"})
            continue
        for question, value in given["values"].items():
            if value is not None:
                _say(made, question, value, kinds.get(question, "text"), fields, names, starts, batch)
        if len(made) > 1:
            answers.append(made)
        else:
            batch.dropped["response without an answer that can be kept"] += 1
    return {"key": record["id"][:200], "messages": messages, "candidates": candidates, "answers": answers}


def _ranked_texts(record: Mapping[str, Any], kinds: Mapping[str, str]) -> list[str]:
    found = {
        str(part["value"])
        for person in record["said"].values()
        for question, value in person["values"].items()
        if kinds.get(question) == "ranking"
        for part in value or ()
    }
    return sorted(found)


def _say(
    made: dict[str, Any],
    question: str,
    value: Any,
    kind: str,
    fields: Mapping[str, Sequence[str]],
    names: Sequence[str],
    starts: Mapping[str, int],
    batch: Batch,
) -> None:
    """Put one answer to one question into the fields of an answer."""
    key, about = _about(question, kind, fields)
    match kind:
        case "ranking":
            if "tiers" in made:
                batch.dropped["second ranking of the same responses"] += 1
                return
            tiers: dict[float, list[int]] = {}
            for part in value:
                if part["value"] in names:
                    rank = part.get("rank")
                    tiers.setdefault(float("inf") if rank is None else rank, []).append(names.index(part["value"]))
            outside = sorted(tiers.pop(float("inf"), []))
            placed = {no for tier in tiers.values() for no in tier}
            outside += [no for no in range(len(names)) if no not in placed and no not in outside]
            made |= {"tiers": [sorted(tiers[rank]) for rank in sorted(tiers)], "unrankable": sorted(outside)}
        case "rating" if about is not None:
            made.setdefault("scores", {}).setdefault(key, {})[about] = value
        case "span":
            spans = made.setdefault("spans", [])
            for each in value:
                target = next(iter(fields.get(f"span:{question}") or starts), "")
                if target in names:
                    spans.append(_span("candidate", names.index(target), 0, each))
                else:
                    spans.append(_span("prompt", -1, starts.get(target, 0), each))
        case "text" if key == "rewrite":
            made["rewrite"] = value
        case _:
            made.setdefault("values", {})[key] = value


def _span(field: str, candidate: int, start: int, mark: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "field": field, "candidate": candidate, "start": start + int(mark["start"]), "end": start + int(mark["end"]),
        "label": str(mark["label"]),
    }  # fmt: skip
