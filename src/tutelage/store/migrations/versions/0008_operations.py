"""Conversations with a person, incidents, legal holds, usage, and what happened to certificates and guards."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from tutelage.store.triggers import guards

revision = "0008"
down_revision = "0007"

APPEND_ONLY = ("incident_event", "certificate_event", "guard_event")
JSON = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")


def _words(name: str, length: int) -> sa.Column[str]:
    return sa.Column(name, sa.String(length=length), server_default="", nullable=False)


def _moment(name: str, optional: bool = False) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger(), nullable=optional)


def _id() -> sa.Column[str]:
    return sa.Column("id", sa.String(length=36), nullable=False)


def upgrade() -> None:
    op.create_table(
        "takeover",
        _id(),
        sa.Column("conversation_id", sa.String(length=120), nullable=False),
        sa.Column("open_as", sa.String(length=120)),
        _words("tenant", 120),
        _words("by", 120),
        _words("reason", 300),
        _words("person_id", 36),
        _moment("at"),
        _moment("touched_at"),
        _moment("ended_at", True),
        _words("ended_by", 120),
        sa.PrimaryKeyConstraint("id", name="pk_takeover"),
        sa.UniqueConstraint("open_as", name="uq_takeover_open_as"),
    )
    op.create_index("ix_takeover_conversation", "takeover", ["conversation_id", "at"])
    op.create_table(
        "incident",
        _id(),
        _words("kind", 40),
        _words("subject", 200),
        sa.Column("open_as", sa.String(length=250)),
        _words("title", 300),
        _words("severity", 20),
        _moment("at"),
        _moment("last_at"),
        _moment("closed_at", True),
        _words("closed_by", 120),
        sa.PrimaryKeyConstraint("id", name="pk_incident"),
        sa.UniqueConstraint("open_as", name="uq_incident_open_as"),
    )
    op.create_index("ix_incident_at", "incident", ["at"])
    op.create_table(
        "incident_event",
        _id(),
        sa.Column("incident_id", sa.String(length=36), nullable=False),
        _words("kind", 20),
        _words("by", 120),
        sa.Column("text_id", sa.String(length=36)),
        sa.Column("detail", JSON, nullable=False),
        _moment("at"),
        sa.ForeignKeyConstraint(["incident_id"], ["incident.id"], name="fk_incident_event_incident_id"),
        sa.ForeignKeyConstraint(["text_id"], ["text.id"], name="fk_incident_event_text_id"),
        sa.PrimaryKeyConstraint("id", name="pk_incident_event"),
    )
    op.create_index("ix_incident_event_incident", "incident_event", ["incident_id", "at"])
    op.create_table(
        "legal_hold",
        _id(),
        _words("kind", 20),
        _words("name", 200),
        _words("reason", 500),
        _words("by", 120),
        _moment("at"),
        _moment("lifted_at", True),
        _words("lifted_by", 120),
        sa.PrimaryKeyConstraint("id", name="pk_legal_hold"),
    )
    op.create_index("ix_legal_hold_name", "legal_hold", ["kind", "name"])
    op.create_table(
        "usage",
        sa.Column("tenant", sa.String(length=120), nullable=False),
        sa.Column("period", sa.String(length=20), nullable=False),
        sa.Column("tokens", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("requests", sa.BigInteger(), server_default="0", nullable=False),
        sa.PrimaryKeyConstraint("tenant", "period", name="pk_usage"),
    )
    for name, about in (("certificate_event", "certificate"), ("guard_event", "guard")):
        named = [_words(about, 120), _words("judge", 200)] if about == "certificate" else [_words(about, 200)]
        op.create_table(
            name,
            _id(),
            *named,
            _words("event", 20),
            _words("reason", 300),
            _words("by", 120),
            _moment("at"),
            sa.PrimaryKeyConstraint("id", name=f"pk_{name}"),
        )
        op.create_index(f"ix_{name}_{about}", name, [about, "at"])
    for statement in guards(op.get_bind().dialect.name, APPEND_ONLY):
        op.execute(statement)
