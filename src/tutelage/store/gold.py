"""Gold tasks: their answer is known, nothing tells them apart, and a lead looks at who is wrong about them too often.

Everybody sees a gold task once at most, and only so many people see one. Whether somebody is right often enough is
judged by the posterior of their accuracy (Beta-binomial), never by a bare rate of few answers. Results say whose
answers to look at; they are no measure of pay.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sql

from tutelage.core.errors import DataError, NotFound
from tutelage.core.records import digest
from tutelage.store import ledger, schema, seen, tasks
from tutelage.store.engine import Reader, Store, now
from tutelage.store.settings import ProjectSettings

PURPOSE = "gold"
PRIOR = (3, 1)
"""Beta prior of a person's accuracy: as if three gold tasks had been answered right and one wrong."""
CHOICE = 16
"""A gold task is drawn from this many of those that were shown least."""
SHORTEST, LONGEST = 5, 300
"""Characters of what a lead says why: of an expected answer, of a pause that is lifted."""

gold, result, pause = schema.gold.c, schema.gold_result.c, schema.pause.c
slot, task, annotation = schema.slot.c, schema.task.c, schema.annotation.c


@dataclass(frozen=True)
class Said:
    """What an answer says, as far as it can be compared; the same for what is expected.

    Attributes:
        ranks: candidate -> tier, None = unrankable.
        values: (question, candidate) -> number, choice, or list of choices. Texts are not compared.
        spans: (field, candidate, start, end, label).
    """

    ranks: Mapping[int, int | None]
    values: Mapping[tuple[str, int], Any]
    spans: Sequence[tuple[str, int, int, int, str]] = ()


@dataclass(frozen=True)
class Gold:
    """A gold task: what is expected and how it went."""

    task: str
    expected: Mapping[str, Any]
    rationale: str
    retired: bool
    shown: int
    answered: int
    right: int


@dataclass(frozen=True)
class Standing:
    """How one person did on gold tasks since a lead last looked: `probability` that they are below the threshold."""

    person: str
    pseudonym: str
    right: int
    n: int
    probability: float
    paused: bool


# what a lead says


def mark(
    store: Store,
    task_id: str,
    expected: Said,
    *,
    rationale: str,
    tolerance: float,
    enough: float,
    reserve: bool,
    by: str,
) -> None:
    """Make a task gold, or say anew what is expected of it; answers given before stay judged as they were.

    Args:
        tolerance: how far a number may be off.
        enough: the score from which an answer is right.
        reserve: the task is for this alone: its open places are closed.

    Raises NotFound, and DataError when nothing of the expectation can be compared.
    """
    if not (expected.ranks or expected.values or expected.spans):
        raise DataError("nothing of this can be compared: a text has no one right answer", key="answer")
    body = {
        "ranks": [[no, tier] for no, tier in sorted(expected.ranks.items())],
        "values": [[question, no, value] for (question, no), value in sorted(expected.values.items())],
        "spans": [list(each) for each in expected.spans],
        "tolerance": tolerance,
        "enough": enough,
    }
    values = {"expected": body, "rationale": rationale, "retired_at": None}
    with store.write() as connection:
        row = connection.execute(sql.select(task.project_id).where(task.id == task_id)).first()
        if not row:
            raise NotFound(f"there is no task {task_id!r}", key="task")
        connection.execute(
            store.insert(schema.gold)
            .values(task_id=task_id, **values)
            .on_conflict_do_update(index_elements=["task_id"], set_=values)
        )
        if reserve:
            waiting = sql.and_(slot.task_id == task_id, slot.purpose == schema.ORDINARY, slot.person_id.is_(None))
            connection.execute(sql.update(schema.slot).where(waiting).values(state="void"))
            kept = list(
                connection.execute(
                    sql.select(slot.state).where(
                        slot.task_id == task_id, slot.purpose == schema.ORDINARY, slot.state.in_(("leased", "done"))
                    )
                ).scalars()
            )
            state = PURPOSE if not kept else "open" if "leased" in kept else "done"
            changes = {"required": len(kept), "state": state}
            connection.execute(sql.update(schema.task).where(task.id == task_id).values(**changes))
        ledger.append(connection, by, "gold.mark", task_id, {"digest": digest(body), "reserve": reserve})


def retire(store: Store, task_id: str, by: str) -> None:
    """Give a gold task to nobody any more. Raises NotFound."""
    with store.write() as connection:
        changed = connection.execute(sql.update(schema.gold).where(gold.task_id == task_id).values(retired_at=now()))
        if not changed.rowcount:
            raise NotFound(f"{task_id!r} is no gold task", key="task")
        ledger.append(connection, by, "gold.retire", task_id)


def every(
    store: Reader, project_id: str, *, start: int = 0, limit: int | None = None, task_id: str | None = None
) -> list[Gold]:
    """The gold tasks of a project in their order, with how they were answered: all, `limit` behind the first `start`,
    or one."""
    given = sql.func.count(result.annotation_id)
    query = (
        sql.select(schema.gold, given.label("n"), sql.func.sum(sql.case((result.correct, 1), else_=0)).label("right"))
        .select_from(schema.gold)
        .join(schema.task, task.id == gold.task_id)
        .outerjoin(schema.annotation, annotation.task_id == gold.task_id)
        .outerjoin(schema.gold_result, result.annotation_id == annotation.id)
        .where(task.project_id == project_id)
        .group_by(*gold, task.position)
        .order_by(task.position)
        .offset(start)
        .limit(limit)
    )
    if task_id is not None:
        query = query.where(gold.task_id == task_id)
    with store.read() as connection:
        return [
            Gold(row.task_id, row.expected, row.rationale, row.retired_at is not None, row.shown, row.n, row.right)
            for row in connection.execute(query)
        ]


def tasks_of(store: Reader, project_id: str) -> set[str]:
    """The ids of a project's gold tasks."""
    query = sql.select(gold.task_id).join(schema.task, task.id == gold.task_id).where(task.project_id == project_id)
    with store.read() as connection:
        return set(connection.execute(query).scalars())


# handing them out


def due(person: str, project_id: str, served: int, share: float) -> bool:
    """Whether the next item, after `served` ones, is gold: one in each run of 1/share items, at a place that a hash of
    person, project and run decides."""
    if share <= 0:
        return False
    run = int(served * share)
    first, after = math.ceil(run / share), math.ceil((run + 1) / share)
    return served == first + _hash(person, project_id, run) % max(1, after - first)


def _hash(*parts: object) -> int:
    total = hashlib.sha256("\x1f".join(str(part) for part in ("gold", *parts)).encode()).digest()
    return int.from_bytes(total[:8], "big")


def given(connection: sql.Connection, person: str, project_id: str) -> int:
    """How many gold tasks a person was given in a project, with those they gave back."""
    met = sql.exists().where(
        slot.task_id == gold.task_id,
        slot.person_id == person,
        slot.project_id == project_id,
        slot.purpose == PURPOSE,
    )
    mine = sql.select(sql.func.count()).select_from(schema.gold).where(met)
    back = sql.select(sql.func.count()).where(
        slot.project_id == project_id, slot.state == "leased", slot.reserved_for == person, slot.person_id.is_(None)
    )
    both = (mine, back.where(slot.purpose == PURPOSE))
    return sum(connection.execute(each).scalar_one() for each in both)


def serve(
    connection: sql.Connection,
    person: str,
    languages: Iterable[str],
    project_id: str,
    exposure: int,
    before: tuple[int, int],
    lease_until: int,
) -> tuple[str, str] | None:
    """Give a person a gold task they have neither met nor seen answered, in the place (turn, position) before an
    ordinary one: the ids of slot and task, or None when there is none for them.

    A task that still waits for ordinary answers is not given as gold: who met it so could not give one.
    """
    other = schema.slot.alias("other")
    met = sql.exists().where(
        other.c.task_id == gold.task_id, sql.or_(other.c.person_id == person, other.c.reserved_for == person)
    )
    fits = sql.exists().where(  # and no join: a planner might begin with all tasks of the project
        task.id == gold.task_id,
        task.project_id == project_id,
        task.state != "open",
        task.language.in_(list(languages)),
    )
    query = (
        sql.select(gold.task_id)
        .where(gold.retired_at.is_(None), gold.shown < exposure, fits, ~met)
        .where(~seen.saw(person, gold.task_id, project_id))
        .order_by(gold.shown, gold.task_id)
        .limit(CHOICE)
    )
    some = sorted(connection.execute(query).scalars(), key=lambda id: _hash(person, id))
    for id in some:  # whoever counts up holds the row, and with it the number of the slot, until the transaction ends
        free = sql.select(gold.task_id).join(schema.task, task.id == gold.task_id).where(gold.task_id == id)
        if not connection.execute(free.with_for_update(key_share=True, skip_locked=True)).first():
            continue  # who takes several and waited for one could wait in a circle
        taken = connection.execute(
            sql.update(schema.gold)
            .where(gold.task_id == id, gold.shown < exposure)
            .values(shown=gold.shown + 1)
            .returning(gold.shown)
        ).scalar()
        if taken is None:
            continue
        turn, position = before
        row = tasks.slot_row(
            id, tasks.next_place(connection, id), project_id, -turn, position - 1, person, purpose=PURPOSE
        )
        row |= {"person_id": person, "state": "leased", "lease_until": lease_until, "lease_epoch": 1}
        connection.execute(sql.insert(schema.slot).values(**row))
        return row["id"], id
    return None


# judging


def score(expected: Mapping[str, Any], said: Said) -> float:
    """How far an answer is the expected one, 0 to 1: the mean over order, questions and spans that are expected.

    Of an order the pairs count (a tie where there should be none, half); of a list of choices the Jaccard index; of
    spans the F1 of labelled characters; a number is right within `tolerance`.
    """
    parts: list[float] = []
    if expected["ranks"]:
        parts.append(_order({no: tier for no, tier in expected["ranks"]}, said.ranks))
    questions: dict[str, list[float]] = {}
    for question, no, value in expected["values"]:
        near = _near(value, said.values.get((question, no)), float(expected["tolerance"]))
        questions.setdefault(question, []).append(near)
    parts += [sum(each) / len(each) for each in questions.values()]
    if expected["spans"]:
        wanted, found = _letters(expected["spans"]), _letters(said.spans)
        parts.append(2 * len(wanted & found) / (len(wanted) + len(found)))
    return sum(parts) / len(parts)


def _order(expected: Mapping[int, int | None], said: Mapping[int, int | None]) -> float:
    def place(ranks: Mapping[int, int | None], no: int) -> float:
        tier = ranks.get(no)
        return math.inf if tier is None else tier

    names = sorted(expected)
    pairs = [(one, other) for at, one in enumerate(names) for other in names[at + 1 :]]
    signs = [
        [(place(ranks, one) > place(ranks, other)) - (place(ranks, one) < place(ranks, other)) for one, other in pairs]
        for ranks in (expected, said)
    ]
    off: int = sum(abs(wanted - given) for wanted, given in zip(*signs, strict=True))
    return 1 - off / (2 * max(1, len(pairs)))


def _near(wanted: Any, given: Any, tolerance: float) -> float:
    if given is None:
        return 0.0
    if isinstance(wanted, list) and isinstance(given, list):
        one, other = {str(each) for each in wanted}, {str(each) for each in given}
        return len(one & other) / len(one | other) if one | other else 1.0
    if isinstance(wanted, int | float) and isinstance(given, int | float):
        return float(abs(wanted - given) <= tolerance + 1e-9)
    return float(wanted == given)


def _letters(spans: Iterable[Sequence[Any]]) -> set[tuple[str, int, str, int]]:
    return {(where, no, label, at) for where, no, start, stop, label in spans for at in range(start, stop)}


def below(right: int, wrong: int, threshold: float) -> float:
    """Posterior probability that an accuracy is below a threshold: the cumulative Beta(3 + right, 1 + wrong).

    For whole numbers it is the binomial tail: P(Beta(a, b) < t) = P(Binomial(a + b - 1, t) >= a).
    """
    a, n = PRIOR[0] + right, PRIOR[0] + PRIOR[1] + right + wrong - 1
    yes, no = math.log(threshold), math.log(1 - threshold)
    ways = (math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) for k in range(a, n + 1))
    return min(1.0, math.fsum(math.exp(each + k * yes + (n - k) * no) for k, each in enumerate(ways, a)))


def judge(connection: sql.Connection, store: Store, person: str, given: Sequence[tuple[str, str, Said]]) -> None:
    """Judge one person's fresh answers (annotation id, task id, what it says) to gold tasks, in the transaction that
    stores them; pause whoever is below the threshold by now."""
    asked = sorted({id for _, id, _ in given})
    known = {
        row.task_id: row
        for row in connection.execute(
            sql.select(gold.task_id, gold.expected, task.project_id)
            .join(schema.task, task.id == gold.task_id)
            .where(gold.task_id.in_(asked))
        )
    }
    rows = []
    for id, task_id, said in given:
        expected = known[task_id].expected
        reached = score(expected, said)
        rows.append({"annotation_id": id, "correct": reached >= expected["enough"] - 1e-9, "score": reached})
    connection.execute(sql.insert(schema.gold_result), rows)
    for project_id in sorted({row.project_id for row in known.values()}):
        settings = connection.execute(
            sql.select(schema.project.c.settings).where(schema.project.c.id == project_id)
        ).scalar_one()
        rules = ProjectSettings.of(settings)
        right, n = _results(connection, person, project_id)
        probability = below(right, n - right, rules.gold_threshold)
        if probability > rules.gold_doubt:
            values = {"active": True, "probability": probability, "n": n, "at": now()}
            connection.execute(
                store.insert(schema.pause)
                .values(person_id=person, project_id=project_id, **values)
                .on_conflict_do_update(index_elements=["person_id", "project_id"], set_=values)
            )


def _results(connection: sql.Connection, person: str, project_id: str) -> tuple[int, int]:
    """(right, all) of a person's newest answers to gold tasks since a lead last looked."""
    after = connection.execute(
        sql.select(pause.after).where(pause.person_id == person, pause.project_id == project_id)
    ).scalar()
    query = (
        sql.select(annotation.slot_id, result.correct)
        .select_from(schema.gold)
        .join(schema.slot, sql.and_(slot.task_id == gold.task_id, slot.person_id == person))
        .join(schema.annotation, sql.and_(annotation.slot_id == slot.id, annotation.person_id == person))
        .join(schema.gold_result, result.annotation_id == annotation.id)
        .where(slot.project_id == project_id, slot.purpose == PURPOSE, annotation.seq > (after or 0))
        .order_by(annotation.revision)
    )
    newest = {row.slot_id: bool(row.correct) for row in connection.execute(query)}
    return sum(newest.values()), len(newest)


# who is paused


def paused(connection: sql.Connection, person: str, project_ids: Sequence[str]) -> frozenset[str]:
    """Those of these projects in which a person is given nothing more for now."""
    query = sql.select(pause.project_id).where(
        pause.person_id == person, pause.project_id.in_(list(project_ids)), pause.active
    )
    return frozenset(connection.execute(query).scalars())


@dataclass(frozen=True)
class Pause:
    """Who is given nothing more for now: since when, and from how many gold tasks the probability was."""

    person: str
    pseudonym: str
    project: str
    probability: float
    n: int
    at: int


def pauses(store: Reader, project_ids: Sequence[str]) -> list[Pause]:
    """Everybody who is paused in these projects, longest first."""
    who = schema.person.c
    query = (
        sql.select(schema.pause, who.pseudonym)
        .join(schema.person, who.id == pause.person_id)
        .where(pause.active, pause.project_id.in_(list(project_ids)))
        .order_by(pause.at, who.pseudonym)
    )
    with store.read() as connection:
        return [
            Pause(row.person_id, row.pseudonym, row.project_id, row.probability, row.n, row.at)
            for row in connection.execute(query)
        ]


def lift(store: Store, person: str, project_id: str, by: str, reason: str) -> None:
    """Let a person (id) go on: what they answered so far has been looked at; the reason is kept for good.

    Raises DataError without a reason, NotFound for who is not paused.
    """
    reason = " ".join(reason.split())
    if not SHORTEST <= len(reason) <= LONGEST:
        asked = f"say in {SHORTEST} to {LONGEST} characters why they may go on: it is kept for good"
        raise DataError(asked, key="reason")
    with store.write() as connection:
        last = sql.select(sql.func.max(annotation.seq)).where(annotation.person_id == person).scalar_subquery()
        changed = connection.execute(
            sql.update(schema.pause)
            .where(pause.person_id == person, pause.project_id == project_id, pause.active)
            .values(active=False, after=sql.func.coalesce(last, 0), at=now())
        )
        if not changed.rowcount:
            raise NotFound("this person is not paused here", key="person")
        ledger.append(connection, by, "gold.lift", person, {"project": project_id, "reason": reason})


def scores(store: Reader, person: str, project_id: str) -> dict[str, tuple[bool, float]]:
    """Annotation id -> (right, score) of everything a person (id) answered to gold tasks of a project."""
    query = (
        sql.select(result.annotation_id, result.correct, result.score)
        .join(schema.annotation, annotation.id == result.annotation_id)
        .where(annotation.person_id == person, annotation.project_id == project_id)
    )
    with store.read() as connection:
        return {row.annotation_id: (bool(row.correct), row.score) for row in connection.execute(query)}


def standings(store: Reader, project_id: str) -> list[Standing]:
    """How everybody did who has answered gold tasks of a project, those most likely below the threshold first."""
    who = schema.person.c
    query = (
        sql.select(annotation.person_id, who.pseudonym)
        .distinct()
        .select_from(schema.gold)
        .join(schema.task, task.id == gold.task_id)
        .join(schema.annotation, annotation.task_id == gold.task_id)
        .join(schema.gold_result, result.annotation_id == annotation.id)
        .join(schema.person, who.id == annotation.person_id)
        .where(task.project_id == project_id)
    )
    with store.read() as connection:
        settings = connection.execute(
            sql.select(schema.project.c.settings).where(schema.project.c.id == project_id)
        ).scalar_one()
        threshold = ProjectSettings.of(settings).gold_threshold
        found = []
        for person, pseudonym in connection.execute(query).all():
            right, n = _results(connection, person, project_id)
            stopped = bool(paused(connection, person, [project_id]))
            found.append(Standing(person, pseudonym, right, n, below(right, n - right, threshold), stopped))
    return sorted(found, key=lambda each: (-each.probability, each.pseudonym))
