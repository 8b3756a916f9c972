"""Words that people typed beside their answers lie where they can be erased; who has seen others' answers is kept."""

import json

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from tutelage.store.keys import derived_id
from tutelage.store.triggers import guards, lifted

revision = "0005"
down_revision = "0004"

MOVED = ("annotation", "answer")
JSON = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")
text = sa.table("text", sa.column("id"), sa.column("body"))
annotation = sa.table(
    "annotation", sa.column("id"), sa.column("form_id"), sa.column("reason"), sa.column("reason_id"), sa.column("seq")
)
answer = sa.table(
    "answer",
    sa.column("annotation_id"),
    sa.column("question"),
    sa.column("candidate_no"),
    sa.column("text_id"),
    sa.column("value", JSON),
)
form = sa.table("form", sa.column("id"), sa.column("taxonomy_id"))


def upgrade() -> None:
    bind = op.get_bind()
    for statement in lifted(bind.dialect.name, MOVED):
        op.execute(statement)
    op.execute(
        "ALTER TABLE annotation ADD COLUMN reason_id VARCHAR(36) "
        "CONSTRAINT fk_annotation_reason_id REFERENCES text (id)"
    )
    _reasons(bind)
    op.execute("ALTER TABLE annotation DROP COLUMN reason")
    _flags(bind)
    for statement in guards(bind.dialect.name, MOVED):
        op.execute(statement)
    op.create_table(
        "seen",
        sa.Column("person_id", sa.String(length=36), nullable=False),
        sa.Column("subject", sa.String(length=36), nullable=False),
        sa.Column("through", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["person_id"], ["person.id"], name="fk_seen_person_id"),
        sa.PrimaryKeyConstraint("person_id", "subject", name="pk_seen"),
    )
    op.create_index("ix_audit_act", "audit", ["action", "object", "seq"])
    op.drop_index("ix_slot_person", "slot")
    op.create_index("ix_slot_person", "slot", ["person_id", "project_id", "state", "turn", "position", "purpose"])


def _reasons(bind: sa.Connection) -> None:
    """Why people skipped and flagged, as texts."""
    found = bind.execute(sa.select(annotation.c.id, annotation.c.reason).where(annotation.c.reason != "")).all()
    moved = [{"text": derived_id("text", row.id, "reason"), "row": row.id, "body": row.reason} for row in found]
    if moved:
        bind.execute(sa.insert(text), [{"id": each["text"], "body": each["body"]} for each in moved])
        mine = sa.update(annotation).where(annotation.c.id == sa.bindparam("row"))
        bind.execute(
            mine.values(reason_id=sa.bindparam("text")), [{k: each[k] for k in ("row", "text")} for each in moved]
        )


def _flags(bind: sa.Connection) -> None:
    """Flags in people's own words, as texts: those of forms without a taxonomy to choose from."""
    found = bind.execute(
        sa.select(answer.c.annotation_id, answer.c.candidate_no, answer.c.value)
        .join(annotation, annotation.c.id == answer.c.annotation_id)
        .join(form, form.c.id == annotation.c.form_id)
        .where(answer.c.question == "flag", answer.c.text_id.is_(None), form.c.taxonomy_id.is_(None))
    ).all()
    moved = [
        {"text": derived_id("text", row.annotation_id, "flag", row.candidate_no), "row": row.annotation_id,
         "no": row.candidate_no, "body": json.dumps(row.value, ensure_ascii=False, separators=(",", ":"))}
        for row in found
        if isinstance(row.value, list)
    ]  # fmt: skip
    if moved:
        bind.execute(sa.insert(text), [{"id": each["text"], "body": each["body"]} for each in moved])
        mine = sa.update(answer).where(
            answer.c.annotation_id == sa.bindparam("row"),
            answer.c.question == "flag",
            answer.c.candidate_no == sa.bindparam("no"),
        )
        bind.execute(
            mine.values(text_id=sa.bindparam("text"), value=None),
            [{k: each[k] for k in ("row", "no", "text")} for each in moved],
        )
