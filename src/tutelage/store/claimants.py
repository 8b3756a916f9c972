"""Who asks for work, with their languages and roles; and how much the rules of a project leave them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import sqlalchemy as sql

from tutelage.store import qualifications, schema
from tutelage.store.people import ROLES
from tutelage.store.settings import ProjectSettings

slot = schema.slot.c
DAY = 86_400_000


@dataclass(frozen=True)
class Claimant:
    """Who asks: the languages they named ("" for none) and the roles they hold, with the project or ""."""

    id: str
    languages: tuple[str, ...]
    grants: tuple[tuple[str, str], ...]

    def roles(self, project_id: str) -> tuple[str, ...]:
        """The roles held in a project; an owner holds all."""
        held = {role for role, where in self.grants if where in ("", project_id)}
        return ROLES if "owner" in held else tuple(sorted(held))


def claimant(connection: sql.Connection, person: str, alone: bool = False) -> Claimant:
    """Who asks. `alone` lets one claim of a person through at a time (SQLite has one writer anyhow)."""
    who, held = schema.person.c, schema.role_grant.c
    query = sql.select(who.languages).where(who.id == person)
    languages = connection.execute(query.with_for_update(key_share=True) if alone else query).scalar()
    grants = connection.execute(sql.select(held.role, held.project_id).where(held.person_id == person))
    return Claimant(person, ("", *dict.fromkeys(languages or ())), tuple((role, where) for role, where in grants))


def rules(connection: sql.Connection, project_ids: Sequence[str]) -> dict[str, ProjectSettings]:
    """The settings of projects by id."""
    table = schema.project.c
    query = sql.select(table.id, table.settings).where(table.id.in_(list(project_ids)))
    return {row.id: ProjectSettings.of(row.settings) for row in connection.execute(query)}


def room(
    connection: sql.Connection, who: Claimant, project_id: str, rules: ProjectSettings, wanted: int, moment: int
) -> tuple[int, str]:
    """How many more tasks (up to `wanted`) the project's rules leave a person; when none, why, in a sentence."""
    if rules.qualifications:
        missing = sorted(set(rules.qualifications) - qualifications.held(connection, who.id))
        if missing:
            return 0, f"This asks for a qualification that you do not have yet: {', '.join(missing)}. A lead grants it."
    if rules.languages and not set(rules.languages) & set(who.languages):
        return 0, f"This is for people who named one of these languages: {', '.join(rules.languages)}."
    room, why = wanted, ""
    if rules.most_per_person is not None:
        mine = sql.and_(slot.person_id == who.id, slot.project_id == project_id, slot.state.in_(("done", "leased")))
        left = rules.most_per_person - count(connection, mine)
        if left < room:
            room, why = left, f"You have had the {rules.most_per_person} tasks that one person may answer here."
    if rules.most_per_day is not None:
        given = schema.annotation.c
        last = (
            sql.select(given.at)
            .where(given.person_id == who.id, given.project_id == project_id, given.revision == 1)
            .where(given.status == "submitted")
            .order_by(given.seq.desc())
            .limit(rules.most_per_day)
            .subquery()
        )
        today = sql.select(sql.func.count()).select_from(last).where(last.c.at >= moment - moment % DAY)
        mine = sql.and_(slot.person_id == who.id, slot.project_id == project_id, slot.state == "leased")
        left = rules.most_per_day - connection.execute(today).scalar_one() - count(connection, mine)
        if left < room:
            room, why = left, f"You have had the {rules.most_per_day} tasks of today; tomorrow (UTC) there are more."
    return max(0, room), why


def count(connection: sql.Connection, where: sql.ColumnElement[bool]) -> int:
    """How many slots there are of which this holds."""
    return connection.execute(sql.select(sql.func.count()).select_from(schema.slot).where(where)).scalar_one()
