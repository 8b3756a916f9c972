"""What every table is made of: the naming of keys, and the kinds of columns."""

from __future__ import annotations

import sqlalchemy as sql
from sqlalchemy import BigInteger, Boolean, Float, ForeignKey, Integer, String
from sqlalchemy.dialects.postgresql import JSONB

metadata = sql.MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)

Id = String(36)
Json = sql.JSON().with_variant(JSONB(), "postgresql")
Column = sql.Column


def table(name: str, *parts: sql.schema.SchemaItem) -> sql.Table:
    """A table of the store."""
    return sql.Table(name, metadata, *parts)


def key() -> Column[str]:
    """The row's own id."""
    return Column("id", Id, primary_key=True)


def link(name: str, target: str, *, optional: bool = False, primary: bool = False) -> Column[str]:
    """The id of a row of another table (`target` as `table.column`)."""
    return Column(name, Id, ForeignKey(target), nullable=optional, primary_key=primary)


def words(name: str, length: int = 200, default: str = "") -> Column[str]:
    """A short text, never null."""
    return Column(name, String(length), nullable=False, server_default=default)


def moment(name: str = "at", *, optional: bool = False) -> Column[int]:
    """A time in milliseconds since 1970 UTC."""
    return Column(name, BigInteger, nullable=optional)


def count(name: str, default: int = 0) -> Column[int]:
    """A whole number, never null."""
    return Column(name, Integer, nullable=False, server_default=str(default))


def figure(name: str, *, optional: bool = True) -> Column[float]:
    """A number; null where it is unknown."""
    return Column(name, Float, nullable=optional)


def document(name: str) -> Column[object]:
    """Anything that JSON holds."""
    return Column(name, Json, nullable=False)


def flag(name: str) -> Column[bool]:
    """Yes or no; no by default."""
    return Column(name, Boolean, nullable=False, server_default=sql.false())
