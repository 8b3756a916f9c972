"""Taxonomies of tags, by version: written once, as trees of plain JSON, and read by the forms that use them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sql

from tutelage.core.records import digest
from tutelage.store import ledger, schema
from tutelage.store.engine import Reader, derived_id, now

taxonomy = schema.taxonomy.c


@dataclass(frozen=True)
class Tree:
    """One version of a project's taxonomy."""

    id: str
    project: str
    version: int
    nodes: Sequence[Mapping[str, Any]]
    migration: Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class NewTree:
    """A tree that a form is to use. `follows` raises where it does not say what became of the version before."""

    nodes: Sequence[Mapping[str, Any]]
    migration: Mapping[str, Sequence[str]]
    follows: Callable[[Tree], None]


def publish(connection: sql.Connection, project_id: str, new: NewTree, by: str) -> str:
    """The id of a project's newest taxonomy; other nodes than its own become a new version.

    Goes on in the caller's transaction, which holds the project's row.
    """
    newest = sql.select(schema.taxonomy).where(taxonomy.project_id == project_id)
    row = connection.execute(newest.order_by(taxonomy.version.desc()).limit(1)).first()
    tree = {"nodes": [dict(each) for each in new.nodes]}
    if row is not None:
        if digest(row.tree) == digest(tree):
            return str(row.id)
        new.follows(_tree(row))
    version = row.version + 1 if row is not None else 1
    id = derived_id("taxonomy", project_id, version)
    moved = {old: list(to) for old, to in new.migration.items()} if row is not None else {}
    connection.execute(
        sql.insert(schema.taxonomy).values(
            id=id, project_id=project_id, version=version, tree=tree, migration=moved, at=now()
        )
    )
    ledger.append(connection, by, "taxonomy.publish", project_id, {"version": version, "digest": digest(tree)})
    return id


def _tree(row: Any) -> Tree:
    return Tree(row.id, row.project_id, row.version, row.tree["nodes"], row.migration)


def of_forms(store: Reader, forms: Sequence[str]) -> dict[str, Tree]:
    """Form id -> the taxonomy it uses; forms without one are missing."""
    form = schema.form.c
    query = sql.select(schema.taxonomy, form.id.label("form")).join(schema.form, form.taxonomy_id == taxonomy.id)
    with store.read() as connection:
        return {row.form: _tree(row) for row in connection.execute(query.where(form.id.in_(list(forms))))}


def versions(store: Reader, project_id: str) -> dict[int, Tree]:
    """All versions of a project's taxonomy by number."""
    query = sql.select(schema.taxonomy).where(taxonomy.project_id == project_id).order_by(taxonomy.version)
    with store.read() as connection:
        return {row.version: _tree(row) for row in connection.execute(query)}
