"""The service's traffic counted by the database: what a live page and the rules for incidents look at."""

from __future__ import annotations

from typing import NamedTuple

import sqlalchemy as sql

from tutelage.store import schema
from tutelage.store.engine import Reader

request, decision, verdict, feedback = schema.request.c, schema.decision.c, schema.verdict.c, schema.feedback.c
WITHHELD = ("block", "review")


class Outcomes(NamedTuple):
    """Requests of a time, and how many of them were withheld."""

    requests: int
    withheld: int


def outcomes(store: Reader, since: int, until: int) -> Outcomes:
    """Requests of real users in a time, and how many of them were withheld."""
    mine = (request.at >= since, request.at < until, request.people == "live")
    stopped = sql.exists().where(
        decision.request_id == request.id, decision.action.in_(WITHHELD), decision.shadow.is_(False)
    )
    query = sql.select(
        sql.func.count(), sql.func.coalesce(sql.func.sum(sql.case((stopped, 1), else_=0)), 0)
    ).select_from(schema.request)
    with store.read() as connection:
        total, withheld = connection.execute(query.where(*mine)).one()
    return Outcomes(int(total), int(withheld))


def statuses(store: Reader, since: int, until: int) -> dict[str, dict[str, int]]:
    """Guard -> status of its verdicts -> how many, in a time."""
    query = (
        sql.select(verdict.judge, verdict.status, sql.func.count())
        .join(schema.decision, decision.id == verdict.decision_id)
        .where(decision.at >= since, decision.at < until, decision.shadow.is_(False))
        .group_by(verdict.judge, verdict.status)
    )
    found: dict[str, dict[str, int]] = {}
    with store.read() as connection:
        for judge, status, n in connection.execute(query):
            found.setdefault(judge, {})[status] = int(n)
    return found


def actions(store: Reader, since: int, until: int) -> dict[str, int]:
    """Strictest action of a request -> how many requests, in a time."""
    ranks = {"allow": 0, "flag": 1, "redact": 2, "rewrite": 3, "review": 4, "block": 5}
    rank = sql.case(ranks, value=decision.action, else_=0)
    each = (
        sql.select(request.id, sql.func.coalesce(sql.func.max(rank), 0).label("rank"))
        .select_from(schema.request)
        .outerjoin(schema.decision, sql.and_(decision.request_id == request.id, decision.shadow.is_(False)))
        .where(request.at >= since, request.at < until)
        .group_by(request.id)
        .subquery()
    )
    names = {number: name for name, number in ranks.items()}
    with store.read() as connection:
        rows = connection.execute(sql.select(each.c.rank, sql.func.count()).group_by(each.c.rank)).all()
    found = {names[int(number)]: int(n) for number, n in rows}
    return {name: found.get(name, 0) for name in ranks}


def categories(store: Reader, since: int, until: int, most: int = 12) -> list[tuple[str, int]]:
    """Categories by how often something was stopped or masked for them, in a time."""
    stopped = (*WITHHELD, "redact", "rewrite")
    n = sql.func.count(sql.distinct(decision.request_id))
    query = (
        sql.select(decision.category, n)
        .where(decision.at >= since, decision.at < until, decision.action.in_(stopped), decision.shadow.is_(False))
        .where(decision.category != "")
        .group_by(decision.category)
        .order_by(n.desc(), decision.category)
        .limit(most)
    )
    with store.read() as connection:
        return [(name, int(count)) for name, count in connection.execute(query)]


def people(store: Reader, since: int, until: int) -> dict[str, int]:
    """Kind of people -> requests of theirs, in a time."""
    query = sql.select(request.people, sql.func.count()).where(request.at >= since, request.at < until)
    with store.read() as connection:
        return {kind: int(n) for kind, n in connection.execute(query.group_by(request.people))}


def by_time(store: Reader, since: int, until: int, width: int) -> list[tuple[int, int, int]]:
    """(number of the stretch of `width` ms after `since`, requests in it, withheld ones), those with any."""
    stretch = ((request.at - since) // width).label("stretch")
    stopped = sql.exists().where(
        decision.request_id == request.id, decision.action.in_(WITHHELD), decision.shadow.is_(False)
    )
    query = (
        sql.select(stretch, sql.func.count(), sql.func.sum(sql.case((stopped, 1), else_=0)))
        .select_from(schema.request)
        .where(request.at >= since, request.at < until)
        .group_by("stretch")
        .order_by("stretch")
    )
    with store.read() as connection:
        return [(int(number), int(n), int(k)) for number, n, k in connection.execute(query)]


def latencies(store: Reader, since: int, until: int, most: int = 5000) -> list[float]:
    """Milliseconds of the newest requests of a time."""
    query = (
        sql.select(request.latency_ms)
        .where(request.at >= since, request.at < until, request.latency_ms.is_not(None))
        .order_by(request.at.desc())
        .limit(most)
    )
    with store.read() as connection:
        return [float(each) for each in connection.execute(query).scalars()]


def said(store: Reader, since: int, until: int) -> tuple[int, int, int]:
    """(thumbs up, thumbs down, appeals) of a time."""
    up = sql.and_(feedback.kind == "thumb", feedback.value > 0)
    down = sql.and_(feedback.kind == "thumb", feedback.value < 0)
    counts = [sql.func.sum(sql.case((each, 1), else_=0)) for each in (up, down, feedback.kind == "appeal")]
    query = sql.select(*counts).where(feedback.at >= since, feedback.at < until)
    with store.read() as connection:
        one, two, three = connection.execute(query).one()
    return int(one or 0), int(two or 0), int(three or 0)
