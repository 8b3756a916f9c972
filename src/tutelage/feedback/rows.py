"""What each trainer reads of the answers to one task: its rows, in the names that TRL and Hugging Face use."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any, Literal

from tutelage.core.records import Message
from tutelage.feedback import votes
from tutelage.feedback.classes import LISTED, NAMED, SHARES, Chances, Thing, together
from tutelage.feedback.posteriors import Posterior, certain
from tutelage.store.adjudication import METHOD as ADJUDICATED
from tutelage.store.answers import WHOLE, Annotation
from tutelage.store.tasks import Task
from tutelage.text import pii

Consumer = Literal["sft", "reward", "dpo", "kto", "classifier", "evaluation", "consensus", "annotations"]
CONSUMERS: Mapping[Consumer, str] = {
    "sft": "demonstrations that people wrote: `messages`",
    "reward": "pairs with `prompt`, `chosen`, `rejected` and the `margin` between them",
    "dpo": "pairs with `prompt`, `chosen`, `rejected`",
    "kto": "single responses: `prompt`, `completion`, and a `label` that says whether it is wanted",
    "classifier": "texts with `labels` and `soft_labels` (posteriors), one row for each question of choices",
    "evaluation": "examination items: `messages`, `choices`, `target`, and `tags`",
    "consensus": "what people together say on each question, with how certain it is: `question`, `model`, `says`",
    "annotations": "tasks with every answer as it was given, to be imported elsewhere",
}


@dataclass(frozen=True)
class Group:
    """What is joined into one row, or a few: all answers to a task, or one person's."""

    project: str
    task: Task
    given: Sequence[Annotation]
    questions: Mapping[str, Mapping[str, Any]]
    mask: bool
    meta: Mapping[str, Any]
    chances: Mapping[str, Mapping[Thing, Chances]] | None = None
    """Question -> what people together say of each thing, but for adjudicated ones; None for one person's answers."""
    agreed: Sequence[Posterior] = ()
    """What people together say of this task, for who reads the consensus."""

    @property
    def scales(self) -> votes.Scales:
        """The scales of the form."""
        return votes.scales_of({self.task.form: (0, list(self.questions.values()), "")})

    def text(self, text: str) -> str:
        """What a person wrote, with personal data masked where the project masks it."""
        return pii.redact(text, pii.find(text)) if self.mask else text


# what people said, as numbers


def _scores(group: Group) -> dict[int, float]:
    """Candidate -> mean score from 0 to 1, over criteria and people."""
    found: dict[int, list[float]] = {}
    for each in group.given:
        for criterion, by_number in votes.scaled(each, group.scales).items():
            if criterion in group.questions:
                for no, part in by_number.items():
                    found.setdefault(no, []).append(part)
    return {no: sum(some) / len(some) for no, some in sorted(found.items())}


def _duels(group: Group) -> dict[tuple[int, int], tuple[int, int, int]]:
    """Pair of candidates -> how many people prefer the first, tie them, prefer the second; pairs somebody judged."""
    size = len(group.task.candidates)
    found: dict[tuple[int, int], tuple[int, int, int]] = {}
    ranked = [votes.ranks(each, size, group.scales).tolist() for each in group.given]
    for one, other in combinations(range(size), 2):
        signs = [rank[other] - rank[one] for rank in ranked if not math.isnan(rank[one] + rank[other])]
        if signs:
            found[one, other] = (sum(s > 0 for s in signs), sum(s == 0 for s in signs), sum(s < 0 for s in signs))
    return found


def _strength(group: Group, one: int, other: int) -> float:
    """How much better the first of a pair is, from -1 to 1, in the mean over those who said how much."""
    key = next((key for key, question in group.questions.items() if question["kind"] == "strength"), "")
    if not key:
        return 0.0
    steps, said = len(group.questions[key]["choices"]), []
    for each in group.given:
        number, rank = each.value(key), votes.ranks(each, len(group.task.candidates), group.scales).tolist()
        if isinstance(number, float) and not math.isnan(rank[one] + rank[other]):
            said.append(math.copysign(number / steps, rank[other] - rank[one]))
    return sum(said) / len(said) if said else 0.0


def _as_is(group: Group) -> dict[int, list[Annotation]]:
    """Candidate -> the answers that say it is good as it stands."""
    found: dict[int, list[Annotation]] = {}
    for each in group.given:
        for value in each.values:
            if value.question == "as_is":
                found.setdefault(value.candidate, []).append(each)
    return found


def _rewrites(group: Group) -> Iterator[tuple[Annotation, str, int | None]]:
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


def _row(group: Group, name: str, given: Sequence[Annotation] | None = None, **fields: Any) -> dict[str, Any]:
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


def _sft(group: Group, dropped: Counter[str]) -> list[dict[str, Any]]:
    rows = [
        _row(group, "rewrite", [each], messages=_turns(group.task.messages) + _said(text))
        for each, text, _ in _rewrites(group)
    ]
    rows += [
        _row(group, f"as-is-{no}", given, messages=_turns(group.task.messages) + _said(group.task.candidates[no]))
        for no, given in sorted(_as_is(group).items())
    ]
    if not rows:
        dropped["task without a demonstration"] += 1
    return rows


def _pairs(group: Group, dropped: Counter[str], margins: bool) -> list[dict[str, Any]]:
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
            apart = _strength(group, chosen, rejected)
            if marks[0] is not None and marks[1] is not None:
                apart = marks[0] - marks[1]
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


def _reward(group: Group, dropped: Counter[str]) -> list[dict[str, Any]]:
    return _pairs(group, dropped, margins=True)


def _dpo(group: Group, dropped: Counter[str]) -> list[dict[str, Any]]:
    return _pairs(group, dropped, margins=False)


def _kto(group: Group, dropped: Counter[str]) -> list[dict[str, Any]]:
    """Wanted or not, by the first that speaks: `all bad` and flags of most people, scores above or below the middle,
    the best and the last tier of most people. What stands in the middle is no example of either."""
    prompt, rows = _turns(group.task.messages), []
    people, scores = len(group.given), _scores(group)
    bad = sum(bool(each.value("all_bad")) for each in group.given)
    flagged = Counter(v.candidate for each in group.given for v in each.values if v.question == "flag")
    best = Counter({no: len(given) for no, given in _as_is(group).items()})
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


def _classifier(group: Group, dropped: Counter[str]) -> list[dict[str, Any]]:
    task, rows = group.task, []
    only = task.candidates[0] if len(task.candidates) == 1 else task.messages[-1].content
    for key, question in group.questions.items():
        if question["kind"] not in NAMED:
            continue
        said: dict[int, list[Annotation]] = {}
        for each in group.given:
            for value in each.values:
                if value.question == key:
                    said.setdefault(value.candidate, []).append(each)
        for no, some in sorted(said.items()):
            chances = _chances(group, question, no)
            labels = _labels(question, chances.probabilities)
            if labels is None:
                dropped["question whose answers are tied"] += 1
            fields: dict[str, Any] = {
                "text": only if no == WHOLE else task.candidates[no],
                "messages": _turns(task.messages),
                "question": key,
                "labels": labels or [],
                "soft_labels": [{"label": name, "probability": p} for name, p in chances.probabilities.items()],
                "soft_model": chances.model,
                "soft_reason": chances.why,
                "weight": chances.weight,
                "spans": [],
            }
            rows.append(_row(group, key if no == WHOLE else f"{key}-{no}", some, **fields))
    marks = Counter(mark for each in group.given for mark in each.spans)
    if marks:
        spans = [
            {"field": where, "candidate": no, "start": start, "end": end, "label": label,
             "probability": round(count / len(group.given), 6)}
            for (where, no, start, end, label), count in sorted(marks.items())
        ]  # fmt: skip
        fields = {"text": only, "messages": _turns(task.messages), "question": "spans", "labels": []}
        fields |= {"soft_labels": [], "soft_model": SHARES, "soft_reason": "spans are counted", "weight": 1.0}
        rows.append(_row(group, "spans", **fields, spans=spans))
    if not rows:
        dropped["task without a question of choices"] += 1
    return rows


def _labels(question: Mapping[str, Any], shares: Mapping[str, float]) -> list[str] | None:
    """The most probable label, or all that are at least as probable as not; None where several lead."""
    if question["kind"] in LISTED:
        return [name for name, share in shares.items() if share >= 0.5]
    leading = [name for name, share in shares.items() if share == max(shares.values())]
    return leading if len(leading) == 1 else None


def _chances(group: Group, question: Mapping[str, Any], no: int) -> Chances:
    """How probable each choice is: by all answers to a question, by an adjudicator's word, or by one person alone."""
    key = str(question["key"])
    if group.chances is None:
        return replace(together(group.given, question)[group.task.id, no], why="one person's answer")
    if (found := group.chances.get(key, {}).get((group.task.id, no))) is None:
        return replace(together(group.given, question)[group.task.id, no], model=ADJUDICATED, why="")
    return found


def _evaluation(group: Group, dropped: Counter[str]) -> list[dict[str, Any]]:
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
        if len(row["labels"]) == 1 and group.questions[row["question"]]["kind"] in ("choice", "boolean"):
            names = [each["label"] for each in row["soft_labels"]]
            given = [each for each in group.given if each.id in row["annotations"]]
            item(row["question"], "classify", row["labels"][0], names, given)
    if not rows:
        dropped["task without a right answer"] += 1
    return rows


def _consensus(group: Group, dropped: Counter[str]) -> list[dict[str, Any]]:
    task, rows = group.task, []
    for each in group.agreed or certain(group.given[-1], group.questions, ADJUDICATED):
        name = each.question if each.candidate == WHOLE else f"{each.question}-{each.candidate}"
        fields: dict[str, Any] = {"messages": _turns(task.messages), "candidates": list(task.candidates)}
        fields |= {"question": each.question, "candidate": None if each.candidate == WHOLE else each.candidate}
        rows.append(_row(group, f"consensus-{name}", **fields, model=each.model, says=dict(each.says), n=each.n))
    if not rows:
        dropped["task without a question that has a consensus"] += 1
    return rows


def _annotations(group: Group, dropped: Counter[str]) -> list[dict[str, Any]]:
    task = group.task
    told = []
    for each in group.given:
        answer: dict[str, Any] = {"person": each.pseudonym, "people": each.people, "annotation": each.id}
        if each.tiers or each.unrankable:
            answer |= {"tiers": [list(tier) for tier in each.tiers], "unrankable": list(each.unrankable)}
        for value in each.values:
            said = value.number if value.number is not None else value.value
            if value.text is not None:
                said = group.text(value.text)
            match value.question, value.candidate:
                case "all_bad", _:
                    answer["all_bad"] = True
                case "as_is", no:
                    answer |= {"as_is": True, "rewritten": no}
                case "rewrite", no:
                    answer |= {"rewrite": said} | (
                        {"rewritten": no} if len(task.candidates) > 1 and no != WHOLE else {}
                    )
                case "flag", no:
                    words = [group.text(word) for word in value.value] if value.typed else said
                    answer.setdefault("flags", {})[str(no)] = words
                case key, no if no == WHOLE:  # of a strength the words are sent, not their number
                    answer.setdefault("values", {})[key] = value.value if value.value is not None else said
                case key, no if value.number is None:
                    answer.setdefault("picks", {}).setdefault(key, {})[str(no)] = said
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


MAKERS: Mapping[Consumer, Callable[[Group, Counter[str]], list[dict[str, Any]]]] = {
    "sft": _sft,
    "reward": _reward,
    "dpo": _dpo,
    "kto": _kto,
    "classifier": _classifier,
    "evaluation": _evaluation,
    "consensus": _consensus,
    "annotations": _annotations,
}
