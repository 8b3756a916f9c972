"""People's answers as the rows that trainers read: a call for each consumer, with the names of TRL and Hugging Face.

Every row names its people by pseudonym, says which kind of people they are, and leads back to the annotations it was
made of. Texts are those that the people saw, with personal data masked where their project masks it.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any, Literal, get_args

from tutelage.core.errors import DataError, LicenceError
from tutelage.core.records import Message
from tutelage.corpus.catalog import INTERNAL
from tutelage.feedback import votes
from tutelage.store import answers, ledger, tasks
from tutelage.store.answers import WHOLE, Annotation
from tutelage.store.engine import Reader, Store
from tutelage.store.tasks import Project, Task
from tutelage.text import pii

Consumer = Literal["sft", "reward", "dpo", "kto", "classifier", "evaluation", "annotations"]
CONSUMERS: Mapping[Consumer, str] = {
    "sft": "demonstrations that people wrote: `messages`",
    "reward": "pairs with `prompt`, `chosen`, `rejected` and the `margin` between them",
    "dpo": "pairs with `prompt`, `chosen`, `rejected`",
    "kto": "single responses: `prompt`, `completion`, and a `label` that says whether it is wanted",
    "classifier": "texts with `labels` and `soft_labels`, one row for each question of choices",
    "evaluation": "examination items: `messages`, `choices`, `target`, and `tags`",
    "annotations": "tasks with every answer as it was given, to be imported elsewhere",
}
KINDS = ("live", "simulated", "replayed")
By = Literal["task", "person"]


@dataclass(frozen=True)
class Exported:
    """Rows for one consumer, and what is to be said of them. `dropped` counts what is not in them, by reason."""

    project: str
    consumer: Consumer
    rows: list[dict[str, Any]]
    dropped: Mapping[str, int]
    people: str
    annotators: int
    licences: tuple[str, ...]
    accepted: tuple[str, ...] = ()
    form: Mapping[str, Any] = field(default_factory=dict)

    @property
    def simulated(self) -> bool:
        """Whether simulated people stand behind any row."""
        return "simulated" in self.people


@dataclass(frozen=True)
class _Group:
    """What is joined into one row, or a few: all answers to a task, or one person's."""

    project: str
    task: Task
    given: Sequence[Annotation]
    questions: Mapping[str, Mapping[str, Any]]
    mask: bool
    meta: Mapping[str, Any]

    def text(self, text: str) -> str:
        """What a person wrote, with personal data masked where the project masks it."""
        return pii.redact(text, pii.find(text)) if self.mask else text


def export(
    store: Store,
    project: str,
    consumer: Consumer,
    *,
    people: Sequence[str] = (),
    by: By = "task",
    accept: Collection[str] = (),
    actor: str = "operator",
) -> Exported:
    """The answers of a project as rows for a consumer; the act is recorded in the ledger.

    `people` names kinds whose answers are taken (and pooled, if several are named); empty takes the only kind there is.
    `by` "task" joins everybody's answers to a task, "person" keeps each person's apart. Raises NotFound, DataError
    (several kinds and none named, nothing to export), LicenceError unless every internal class is among `accept`.
    """
    if consumer not in CONSUMERS:
        raise DataError(f"nobody reads {consumer!r}", key="consumer", todo=f"One of: {', '.join(CONSUMERS)}")
    if by not in get_args(By):
        raise DataError(f"rows are by task or by person, found {by!r}", key="by")
    where = tasks.get_project(store, project)
    dropped: Counter[str] = Counter()
    given, kinds = _given(store, where, people, dropped)
    known = tasks.load(store, sorted({each.task for each in given}), masked=bool(where.settings.get("mask_pii", True)))
    forms = tasks.forms(store, sorted({task.form for task in known.values()}))
    make = MAKERS[consumer]
    rows: list[dict[str, Any]] = []
    for group in _groups(where, given, known, forms, by if consumer != "annotations" else "task", dropped):
        rows += make(group, dropped)
    if not rows:
        why = "; ".join(f"{reason}: {count}" for reason, count in sorted(dropped.items()))
        raise DataError(f"{project!r} holds nothing for {consumer}", todo=why[:1].upper() + why[1:] if why else None)
    licences = tuple(sorted({str(row.get("tags", row)["licence"]) for row in rows}))
    used = _accepted(project, licences, accept)
    body = {"consumer": consumer, "people": list(kinds), "rows": len(rows), "licences": list(licences)}
    ledger.record(store, actor, "feedback.export", where.id, body | {"accepted": list(used)})
    return Exported(
        project=where.name,
        consumer=consumer,
        rows=rows,
        dropped=dict(sorted(dropped.items())),
        people="+".join(kinds),
        annotators=len({each.pseudonym for each in given}),
        licences=licences,
        accepted=used,
        form={"questions": [dict(each) for each in where.questions], "guideline": where.guideline},
    )


def _accepted(project: str, licences: Collection[str], accept: Collection[str]) -> tuple[str, ...]:
    """The internal classes that were accepted by name. Raises LicenceError for one that was not."""
    barred = [name for name in licences if name in INTERNAL and name not in accept]
    if barred:
        todo = f"If you may pass it on, accept the class by name: {', '.join(barred)}"
        raise LicenceError(f"texts of {project!r} are {' and '.join(barred)} and internal", key="accept", todo=todo)
    return tuple(name for name in licences if name in INTERNAL)


def _given(
    store: Reader, where: Project, people: Sequence[str], dropped: Counter[str]
) -> tuple[list[Annotation], tuple[str, ...]]:
    """Submitted answers of the kinds that were asked for, in a stable order, and those kinds."""
    for kind in people:
        if kind not in KINDS:
            raise DataError(f"{kind!r} is no kind of people", key="people", todo=f"One of: {', '.join(KINDS)}")
    every = answers.read(store, where.name, status=None)
    dropped.update(f"{each.status} answer" for each in every if each.status != "submitted")
    every = [each for each in every if each.status == "submitted"]
    kinds = sorted({each.people for each in every})
    if not people and len(kinds) > 1:
        raise DataError(
            f"{where.name!r} holds answers of {' and '.join(kinds)} people, which are not mixed unasked",
            key="people", todo=f"Name the kind, as in people={kinds[0]}; naming several pools them",
        )  # fmt: skip
    wanted = tuple(sorted(set(people))) or tuple(kinds)
    dropped.update(f"answer of {each.people} people" for each in every if each.people not in wanted)
    kept = [each for each in every if each.people in wanted]
    if not kept:
        whose = " and ".join(wanted)
        raise DataError(f"{where.name!r} holds no answers" + (f" of {whose} people" if whose else ""), key="people")
    return sorted(kept, key=lambda each: (each.task, each.pseudonym, each.seq)), wanted


def _groups(
    where: Project,
    given: Sequence[Annotation],
    known: Mapping[str, Task],
    forms: Mapping[str, tuple[int, Sequence[Mapping[str, Any]], str]],
    by: By,
    dropped: Counter[str],
) -> Iterator[_Group]:
    joined: dict[tuple[str, str], list[Annotation]] = {}
    for each in given:
        joined.setdefault((each.task, each.pseudonym if by == "person" else ""), []).append(each)
    order = sorted(joined, key=lambda key: (known[key[0]].position, key[1]))
    for key in order:
        task, some = known[key[0]], joined[key]
        if not task.messages or not all(task.candidates):
            dropped["erased text"] += len(some)
            continue
        kinds = sorted({each.people for each in some})
        meta = {
            "task": task.id,
            "annotations": [each.id for each in some],
            "annotators": list(dict.fromkeys(each.pseudonym for each in some)),
            "people": "+".join(kinds),
            "simulated": "simulated" in kinds,
            "licence": str(task.meta.get("licence") or where.settings.get("licence") or "not-stated"),
            "source": str(task.meta.get("source") or ""),
            "split": re.sub(r"\W", "_", str(task.meta.get("split") or "train")),  # it names a file
            "language": task.language,
        }
        questions = {str(each["key"]): each for each in forms[task.form][1]}
        yield _Group(where.name, task, some, questions, bool(where.settings.get("mask_pii", True)), meta)


# what people said, as numbers


def scaled(question: Mapping[str, Any] | None, number: float) -> float:
    """A score from 0 (the scale's lowest) to 1."""
    low, high = (0.0, 1.0) if question is None or question["kind"] != "scale" else question["scale"]
    return (number - low) / (high - low)


def _scores(group: _Group) -> dict[int, float]:
    """Candidate -> mean score from 0 to 1, over criteria and people."""
    found: dict[int, list[float]] = {}
    for each in group.given:
        for criterion, by_number in each.scores().items():
            if criterion in group.questions:
                for no, number in by_number.items():
                    found.setdefault(no, []).append(scaled(group.questions[criterion], number))
    return {no: sum(some) / len(some) for no, some in sorted(found.items())}


def _duels(group: _Group) -> dict[tuple[int, int], tuple[int, int, int]]:
    """Pair of candidates -> how many people prefer the first, tie them, prefer the second; pairs somebody judged."""
    size = len(group.task.candidates)
    found: dict[tuple[int, int], tuple[int, int, int]] = {}
    ranked = [votes.ranks(each, size).tolist() for each in group.given]
    for one, other in combinations(range(size), 2):
        signs = [rank[other] - rank[one] for rank in ranked if not math.isnan(rank[one] + rank[other])]
        if signs:
            found[one, other] = (sum(s > 0 for s in signs), sum(s == 0 for s in signs), sum(s < 0 for s in signs))
    return found


def _rewrites(group: _Group) -> Iterator[tuple[Annotation, str, int | None]]:
    """What people wrote in place of a response, and which response that was, where it is known."""
    for each in group.given:
        for value in each.values:
            if value.question == "rewrite" and value.text:
                only = 0 if len(group.task.candidates) == 1 else None
                yield each, group.text(value.text), value.candidate if value.candidate != WHOLE else only


def _turns(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages as trainers read them: role, content, and what else a message has."""
    return [
        {"role": each.role, "content": each.content}
        | each.model_dump(mode="json", exclude_defaults=True, exclude={"role", "content"})
        for each in messages
    ]


def _said(text: str) -> list[dict[str, Any]]:
    return [{"role": "assistant", "content": text}]


def _row(group: _Group, name: str, given: Sequence[Annotation] | None = None, **fields: Any) -> dict[str, Any]:
    """A row with its origin; `given` are the annotations it stands on, where these are not all of the group's."""
    meta = dict(group.meta)
    if given is not None:
        meta |= {
            "annotations": [each.id for each in given],
            "annotators": list(dict.fromkeys(each.pseudonym for each in given)),
        }
    whose = f"/{meta['annotators'][0]}" if len(meta["annotators"]) == 1 else ""
    return {"id": f"{group.task.id}/{name}{whose}", **fields, **meta}


# the consumers


def _sft(group: _Group, dropped: Counter[str]) -> list[dict[str, Any]]:
    rows = [
        _row(group, "rewrite", [each], messages=_turns(group.task.messages) + _said(text))
        for each, text, _ in _rewrites(group)
    ]
    if not rows:
        dropped["task without a demonstration"] += 1
    return rows


def _pairs(group: _Group, dropped: Counter[str], margins: bool) -> list[dict[str, Any]]:
    """Every pair that more people order one way than the other; a task's pairs weigh as much as one item together."""
    prompt, texts, scores = _turns(group.task.messages), group.task.candidates, _scores(group)
    weight = round(1 / max(1, len(texts) - 1), 6)
    rows = []
    for (one, other), (first, tied, second) in _duels(group).items():
        if first == second:
            dropped["pair that is tied"] += 1
            continue
        chosen, rejected = (one, other) if first > second else (other, one)
        share = abs(first - second) / (first + tied + second)
        fields: dict[str, Any] = {"prompt": prompt, "chosen": _said(texts[chosen]), "rejected": _said(texts[rejected])}
        if margins:
            marks = scores.get(chosen), scores.get(rejected)
            apart = marks[0] - marks[1] if marks[0] is not None and marks[1] is not None else 0.0
            fields |= {
                "margin": round(apart if apart > 0 else share, 6),
                "score_chosen": _rounded(marks[0]),
                "score_rejected": _rounded(marks[1]),
            }
        fields |= {"votes": [max(first, second), tied, min(first, second)], "weight": weight}
        rows.append(_row(group, f"{chosen}>{rejected}", **fields))
    for each, text, base in _rewrites(group):
        if base is None:
            dropped["rewrite of one of several responses, nobody knows which"] += 1
            continue
        fields = {"prompt": prompt, "chosen": _said(text), "rejected": _said(texts[base])}
        if margins:
            fields |= {"margin": 1.0, "score_chosen": None, "score_rejected": None}
        rows.append(_row(group, f"rewrite>{base}", [each], **fields, votes=[1, 0, 0], weight=1.0))
    if not rows:
        dropped["task without a preference"] += 1
    return rows


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)


def _reward(group: _Group, dropped: Counter[str]) -> list[dict[str, Any]]:
    return _pairs(group, dropped, margins=True)


def _dpo(group: _Group, dropped: Counter[str]) -> list[dict[str, Any]]:
    return _pairs(group, dropped, margins=False)


def _kto(group: _Group, dropped: Counter[str]) -> list[dict[str, Any]]:
    """Wanted or not, by the first that speaks: `all bad` and flags of most people, scores above or below the middle,
    the best and the last tier of most people. What stands in the middle is no example of either."""
    prompt, rows = _turns(group.task.messages), []
    people, scores = len(group.given), _scores(group)
    bad = sum(bool(each.value("all_bad")) for each in group.given)
    flagged = Counter(v.candidate for each in group.given for v in each.values if v.question == "flag" and v.value)
    best: Counter[int] = Counter()
    worst: Counter[int] = Counter()
    for each in group.given:
        if len(each.tiers) > 1:
            best.update(each.tiers[0])
            worst.update(each.tiers[-1])
        worst.update(each.unrankable)
    for no, text in enumerate(group.task.candidates):
        label: bool | None = None
        if 2 * bad > people or 2 * flagged[no] > people:
            label = False
        elif no in scores:
            label = None if scores[no] == 0.5 else scores[no] > 0.5
        elif 2 * best[no] > people or 2 * worst[no] > people:
            label = 2 * best[no] > people
        if label is None:
            dropped["response neither wanted nor unwanted"] += 1
            continue
        rows.append(_row(group, str(no), prompt=prompt, completion=_said(text), label=label))
    rows += [
        _row(group, "rewrite", [each], prompt=prompt, completion=_said(text), label=True)
        for each, text, _ in _rewrites(group)
    ]
    return rows


def _classifier(group: _Group, dropped: Counter[str]) -> list[dict[str, Any]]:
    task, rows = group.task, []
    text = task.candidates[0] if len(task.candidates) == 1 else task.messages[-1].content
    for key, question in group.questions.items():
        if question["kind"] not in ("choice", "choices", "boolean") or question["per_candidate"]:
            continue
        said = [(each, each.value(key)) for each in group.given if each.value(key) is not None]
        if not said:
            continue
        shares = _shares(question, [value for _, value in said])
        most = max(shares.values())
        single = question["kind"] != "choices"
        labels = [name for name, share in shares.items() if (share == most if single else share >= 0.5)]
        if single and len(labels) != 1:
            dropped["question whose answers are tied"] += 1
            labels = []
        soft = [{"label": name, "probability": round(share, 6)} for name, share in shares.items()]
        fields: dict[str, Any] = {"text": text, "messages": _turns(task.messages), "question": key, "labels": labels}
        rows.append(_row(group, key, [each for each, _ in said], **fields, soft_labels=soft, spans=[]))
    marks = Counter(mark for each in group.given for mark in each.spans)
    if marks:
        spans = [
            {"field": where, "candidate": no, "start": start, "end": end, "label": label,
             "probability": round(count / len(group.given), 6)}
            for (where, no, start, end, label), count in sorted(marks.items())
        ]  # fmt: skip
        fields = {"text": text, "messages": _turns(task.messages), "question": "spans", "labels": []}
        rows.append(_row(group, "spans", **fields, soft_labels=[], spans=spans))
    if not rows:
        dropped["task without a question of choices"] += 1
    return rows


def _shares(question: Mapping[str, Any], said: Sequence[Any]) -> dict[str, float]:
    """Choice -> share of people who took it; a number (yes or no, or between) is shared out between both."""
    if question["kind"] == "boolean":
        yes = sum(float(value) for value in said) / len(said)
        return {"no": 1 - yes, "yes": yes}
    found = dict.fromkeys(map(str, question["choices"]), 0.0)
    for value in said:
        for each in value if isinstance(value, list) else [value]:
            found[str(each)] = found.get(str(each), 0.0) + 1 / len(said)
    return found


def _evaluation(group: _Group, dropped: Counter[str]) -> list[dict[str, Any]]:
    """Items with one right answer: the response that most people prefer to each other one, or the label most chose."""
    task, rows = group.task, []

    def item(name: str, kind: str, target: str, choices: Sequence[str], given: Sequence[Annotation]) -> None:
        row = _row(group, name, given)
        cluster = task.cluster or task.id
        tags = row | {"suite": group.project, "kind": kind, "cluster": cluster, "split": "test"}
        rows.append({"messages": _turns(task.messages), "target": target, "choices": list(choices), "tags": tags})

    wins: Counter[int] = Counter()
    for (one, other), (first, _, second) in (duels := _duels(group)).items():
        wins[one if first > second else other] += first != second
    if duels:
        best = [no for no, count in wins.items() if count == len(task.candidates) - 1]
        if best:
            item("best", "choice", task.candidates[best[0]], task.candidates, group.given)
        else:
            dropped["task without a response that wins against every other"] += 1
    for each, text, _ in _rewrites(group):
        item("rewrite", "generate", text, (), [each])
    for row in _classifier(group, Counter()):
        if len(row["labels"]) == 1 and group.questions[row["question"]]["kind"] != "choices":
            names = [each["label"] for each in row["soft_labels"]]
            given = [each for each in group.given if each.id in row["annotations"]]
            item(row["question"], "classify", row["labels"][0], names, given)
    if not rows:
        dropped["task without a right answer"] += 1
    return rows


def _annotations(group: _Group, dropped: Counter[str]) -> list[dict[str, Any]]:
    task = group.task
    told = []
    for each in group.given:
        answer: dict[str, Any] = {"person": each.pseudonym, "annotation": each.id, "status": each.status}
        if each.tiers or each.unrankable:
            answer |= {"tiers": [list(tier) for tier in each.tiers], "unrankable": list(each.unrankable)}
        for value in each.values:
            said = value.number if value.number is not None else value.value
            if value.text is not None:
                said = group.text(value.text)
            match value.question, value.candidate:
                case "all_bad", _:
                    answer["all_bad"] = True
                case "rewrite", _:
                    answer["rewrite"] = said
                case "flag", no:
                    answer.setdefault("flags", {})[str(no)] = said
                case key, no if no == WHOLE:
                    answer.setdefault("values", {})[key] = said
                case key, no:
                    answer.setdefault("scores", {}).setdefault(key, {})[str(no)] = said
        if each.spans:
            names = ("field", "candidate", "start", "end", "label")
            answer["spans"] = [dict(zip(names, mark, strict=True)) for mark in each.spans]
        told.append(answer | {"active_ms": each.active_ms})
    candidates = [
        {"content": text, "producer": producer} for text, producer in zip(task.candidates, task.producers, strict=True)
    ]
    row = _row(group, "answers", messages=_turns(task.messages), candidates=candidates, answers=told)
    return [row | {"key": str(task.meta.get("key") or task.id), "kind": task.kind, "cluster": task.cluster}]


MAKERS: Mapping[Consumer, Callable[[_Group, Counter[str]], list[dict[str, Any]]]] = {
    "sft": _sft,
    "reward": _reward,
    "dpo": _dpo,
    "kto": _kto,
    "classifier": _classifier,
    "evaluation": _evaluation,
    "annotations": _annotations,
}


def jsonl(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Rows as JSON lines."""
    return b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)
