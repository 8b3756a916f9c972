"""Qualifications, identities of OpenID providers, languages of slots, and an outbox for each webhook."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.create_table(
        "identity",
        sa.Column("issuer", sa.String(length=300), nullable=False),
        sa.Column("subject", sa.String(length=200), nullable=False),
        sa.Column("person_id", sa.String(length=36), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["person_id"], ["person.id"], name="fk_identity_person_id"),
        sa.PrimaryKeyConstraint("issuer", "subject", name="pk_identity"),
    )
    op.create_table(
        "qualification",
        sa.Column("person_id", sa.String(length=36), nullable=False),
        sa.Column("name", sa.String(length=60), nullable=False),
        sa.Column("by", sa.String(length=200), server_default="", nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["person_id"], ["person.id"], name="fk_qualification_person_id"),
        sa.PrimaryKeyConstraint("person_id", "name", name="pk_qualification"),
    )
    op.add_column("slot", sa.Column("language", sa.String(length=20), server_default="", nullable=False))
    op.execute(
        "UPDATE slot SET language = COALESCE((SELECT language FROM task WHERE task.id = slot.task_id), '') "
        "WHERE reserved_for = ''"
    )
    op.drop_index("ix_slot_next", "slot")
    op.create_index("ix_slot_next", "slot", ["project_id", "state", "reserved_for", "language", "turn", "position"])
    op.create_index("ix_task_state", "task", ["project_id", "state"])
    op.add_column("gold", sa.Column("shown", sa.Integer(), server_default="0", nullable=False))
    op.create_table(
        "pause",
        sa.Column("person_id", sa.String(length=36), nullable=False),
        sa.Column("project_id", sa.String(length=36), nullable=False),
        sa.Column("active", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("probability", sa.Float()),
        sa.Column("n", sa.Integer(), server_default="0", nullable=False),
        sa.Column("after", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["person_id"], ["person.id"], name="fk_pause_person_id"),
        sa.ForeignKeyConstraint(["project_id"], ["project.id"], name="fk_pause_project_id"),
        sa.PrimaryKeyConstraint("person_id", "project_id", name="pk_pause"),
    )
    op.execute("DELETE FROM outbox")  # nothing was ever written to it, and whom it was for was not noted
    with op.batch_alter_table("outbox") as outbox:
        outbox.add_column(sa.Column("webhook_id", sa.String(length=36), nullable=False))
        outbox.add_column(sa.Column("run_after", sa.BigInteger(), server_default="0", nullable=False))
        outbox.add_column(sa.Column("error", sa.String(length=500), server_default="", nullable=False))
        outbox.create_foreign_key("fk_outbox_webhook_id", "webhook", ["webhook_id"], ["id"])
    op.create_index("ix_outbox_next", "outbox", ["sent_at", "run_after"])
