"""People's answers as the rows that trainers read: one call for each consumer.

Every row names its people by pseudonym, says which kind of people they are, and leads back to the annotations it was
made of. Texts are those that the people saw, with personal data masked where their project masks it.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

from tutelage.core.errors import DataError, LicenceError
from tutelage.corpus.catalog import INTERNAL
from tutelage.feedback import adjudicate
from tutelage.feedback.classes import NAMED, Chances, Thing, together
from tutelage.feedback.figures import Read
from tutelage.feedback.posteriors import Posterior, by_task, posteriors
from tutelage.feedback.rows import CONSUMERS, MAKERS, Consumer, Group
from tutelage.store import answers, ledger, tasks
from tutelage.store.answers import Annotation
from tutelage.store.engine import Reader, Store
from tutelage.store.tasks import Project, Task

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
    voices = given
    if consumer != "annotations":
        given = _settled(store, where, given, kinds, dropped)
    known = tasks.load(store, sorted({each.task for each in given}), masked=bool(where.settings.get("mask_pii", True)))
    forms = tasks.forms(store, sorted({task.form for task in known.values()}))
    make = MAKERS[consumer]
    rows: list[dict[str, Any]] = []
    by = by if consumer not in ("annotations", "consensus") else "task"
    chances = _chances(voices, given, forms) if consumer in ("classifier", "evaluation") and by == "task" else None
    agreed = _agreed(store, voices, given, known, kinds) if consumer == "consensus" else {}
    for group in _groups(where, given, known, forms, by, dropped):
        group = replace(group, chances=chances, agreed=agreed.get(group.task.id, ()))
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


def _settled(
    store: Reader, where: Project, given: Sequence[Annotation], kinds: Sequence[str], dropped: Counter[str]
) -> list[Annotation]:
    """The answers, with an adjudicator's in place of those it overrules and none to tasks that were found broken."""
    heard = {each.task for each in given}
    decided = {id: each for id, each in adjudicate.decided(store, [where.name], None).items() if id in heard}
    decided = {id: each for id, each in decided.items() if each.people in kinds}
    broken, overruled = adjudicate.broken(decided), adjudicate.overruled(decided)
    dropped.update("answer to a task that an adjudicator found broken" for each in given if each.task in broken)
    dropped.update("answer that an adjudicator overruled" for each in given if each.task in overruled)
    return [each for each in given if each.task not in broken and each.task not in overruled] + list(overruled.values())


def _chances(
    voices: Sequence[Annotation],
    given: Sequence[Annotation],
    forms: Mapping[str, tuple[int, Sequence[Mapping[str, Any]], str]],
) -> dict[str, dict[Thing, Chances]]:
    """What people together say, question by question; where an adjudicator decided, nobody else is heard."""
    asked = {
        str(each["key"]): each for _, questions, _ in sorted(forms.values(), key=lambda f: f[0]) for each in questions
    }
    kept = {each.id for each in given}
    heard = [each for each in voices if each.id in kept]
    return {key: together(heard, each) for key, each in asked.items() if each["kind"] in NAMED}


def _agreed(
    store: Reader,
    voices: Sequence[Annotation],
    given: Sequence[Annotation],
    known: Mapping[str, Task],
    kinds: Sequence[str],
) -> dict[str, list[Posterior]]:
    """What people together say of each task on which no adjudicator decided."""
    if len(kinds) > 1:
        message = f"a consensus is one of {' or of '.join(kinds)} people: their figures are never pooled"
        raise DataError(message, key="people", todo="Name one kind")
    kept = {each.id for each in given}
    heard = [each for each in voices if each.id in kept]
    return by_task(posteriors(Read.of(store, heard, {each.task: known[each.task] for each in heard})))


def _groups(
    where: Project,
    given: Sequence[Annotation],
    known: Mapping[str, Task],
    forms: Mapping[str, tuple[int, Sequence[Mapping[str, Any]], str]],
    by: By,
    dropped: Counter[str],
) -> Iterator[Group]:
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
        yield Group(where.name, task, some, questions, bool(where.settings.get("mask_pii", True)), meta)


def jsonl(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Rows as JSON lines."""
    return b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)
