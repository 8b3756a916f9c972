"""People, what they are asked and what they say; the ledger."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from tutelage.store.triggers import guards

revision = "0001"
down_revision = None

JSON = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")
COUNTERS = (
    "annotation",
    "task",
    "audit",
)
APPEND_ONLY = ("annotation", "answer", "rank", "span", "form", "taxonomy", "candidate", "audit")
INDEXES = (
    ("ix_person_statistic_person", "person_statistic", ["person_id"]),
    ("ix_task_decision", "task", ["decision_id"]),
    ("ix_task_project", "task", ["project_id", "position"]),
    ("ix_consensus_task", "consensus", ["task_id"]),
    ("ix_slot_lease", "slot", ["state", "lease_until"]),
    ("ix_slot_next", "slot", ["project_id", "state", "reserved_for", "priority", "position"]),
    ("ix_slot_person", "slot", ["person_id", "project_id", "state", "priority", "position"]),
    ("ix_annotation_person", "annotation", ["person_id", "seq"]),
    ("ix_annotation_project", "annotation", ["project_id", "seq"]),
    ("ix_annotation_task", "annotation", ["task_id"]),
    ("ix_span_annotation", "span", ["annotation_id"]),
)


def upgrade() -> None:
    op.create_table(
        "audit",
        sa.Column("seq", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("previous", sa.String(length=64), server_default="", nullable=False),
        sa.Column("hash", sa.String(length=64), server_default="", nullable=False),
        sa.Column("actor", sa.String(length=120), server_default="", nullable=False),
        sa.Column("action", sa.String(length=80), server_default="", nullable=False),
        sa.Column("object", sa.String(length=200), server_default="", nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("seq", name="pk_audit"),
    )
    op.create_table(
        "counter",
        sa.Column("name", sa.String(length=40), nullable=False),
        sa.Column("value", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_counter"),
    )
    op.create_table(
        "person",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("name", sa.String(length=120), nullable=False),
        sa.Column("pseudonym", sa.String(length=40), nullable=False),
        sa.Column("kind", sa.String(length=20), server_default="live", nullable=False),
        sa.Column("status", sa.String(length=20), server_default="active", nullable=False),
        sa.Column("email", sa.String(length=200), nullable=True),
        sa.Column("password", sa.String(length=300), nullable=True),
        sa.Column("languages", JSON, nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_person"),
        sa.UniqueConstraint("name", name="uq_person_name"),
        sa.UniqueConstraint("pseudonym", name="uq_person_pseudonym"),
    )
    op.create_table(
        "project",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("name", sa.String(length=120), nullable=False),
        sa.Column("kind", sa.String(length=40), server_default="", nullable=False),
        sa.Column("state", sa.String(length=20), server_default="open", nullable=False),
        sa.Column("per_task", sa.Integer(), server_default="1", nullable=False),
        sa.Column("settings", JSON, nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_project"),
        sa.UniqueConstraint("name", name="uq_project_name"),
    )
    op.create_table(
        "text",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("body", sa.Text(), nullable=True),
        sa.Column("redacted", sa.Text(), nullable=True),
        sa.Column("erased_at", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_text"),
    )
    op.create_table(
        "api_token",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("person_id", sa.String(length=36), nullable=False),
        sa.Column("hash", sa.String(length=64), nullable=False),
        sa.Column("scopes", JSON, nullable=False),
        sa.Column("label", sa.String(length=200), server_default="", nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=True),
        sa.Column("revoked_at", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(["person_id"], ["person.id"], name="fk_api_token_person_id"),
        sa.PrimaryKeyConstraint("id", name="pk_api_token"),
        sa.UniqueConstraint("hash", name="uq_api_token_hash"),
    )
    op.create_table(
        "invitation",
        sa.Column("hash", sa.String(length=64), nullable=False),
        sa.Column("person_id", sa.String(length=36), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.Column("used_at", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(["person_id"], ["person.id"], name="fk_invitation_person_id"),
        sa.PrimaryKeyConstraint("hash", name="pk_invitation"),
    )
    op.create_table(
        "person_statistic",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("person_id", sa.String(length=36), nullable=False),
        sa.Column("project_id", sa.String(length=36), nullable=False),
        sa.Column("question", sa.String(length=80), server_default="", nullable=False),
        sa.Column("method", sa.String(length=40), server_default="", nullable=False),
        sa.Column("estimate", sa.Float(), nullable=True),
        sa.Column("standard_error", sa.Float(), nullable=True),
        sa.Column("n", sa.Integer(), server_default="0", nullable=False),
        sa.Column("made_by", sa.String(length=80), server_default="", nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["person_id"], ["person.id"], name="fk_person_statistic_person_id"),
        sa.ForeignKeyConstraint(["project_id"], ["project.id"], name="fk_person_statistic_project_id"),
        sa.PrimaryKeyConstraint("id", name="pk_person_statistic"),
    )
    op.create_table(
        "profile",
        sa.Column("person_id", sa.String(length=36), nullable=False),
        sa.Column("consent", sa.String(length=40), server_default="", nullable=False),
        sa.Column("sealed", sa.LargeBinary(), nullable=True),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["person_id"], ["person.id"], name="fk_profile_person_id"),
        sa.PrimaryKeyConstraint("person_id", name="pk_profile"),
    )
    op.create_table(
        "role_grant",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("person_id", sa.String(length=36), nullable=False),
        sa.Column("project_id", sa.String(length=36), server_default="", nullable=False),
        sa.Column("role", sa.String(length=20), server_default="", nullable=False),
        sa.Column("by", sa.String(length=200), server_default="", nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["person_id"], ["person.id"], name="fk_role_grant_person_id"),
        sa.PrimaryKeyConstraint("id", name="pk_role_grant"),
        sa.UniqueConstraint("person_id", "project_id", "role", name="uq_role_grant_person_id_project_id_role"),
    )
    op.create_table(
        "session",
        sa.Column("hash", sa.String(length=64), nullable=False),
        sa.Column("person_id", sa.String(length=36), nullable=False),
        sa.Column("csrf", sa.String(length=64), server_default="", nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["person_id"], ["person.id"], name="fk_session_person_id"),
        sa.PrimaryKeyConstraint("hash", name="pk_session"),
    )
    op.create_table(
        "taxonomy",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("project_id", sa.String(length=36), nullable=False),
        sa.Column("version", sa.Integer(), server_default="0", nullable=False),
        sa.Column("tree", JSON, nullable=False),
        sa.Column("migration", JSON, nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["project_id"], ["project.id"], name="fk_taxonomy_project_id"),
        sa.PrimaryKeyConstraint("id", name="pk_taxonomy"),
    )
    op.create_table(
        "form",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("project_id", sa.String(length=36), nullable=False),
        sa.Column("version", sa.Integer(), server_default="0", nullable=False),
        sa.Column("questions", JSON, nullable=False),
        sa.Column("guideline", sa.Text(), nullable=False),
        sa.Column("taxonomy_id", sa.String(length=36), nullable=True),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["project_id"], ["project.id"], name="fk_form_project_id"),
        sa.ForeignKeyConstraint(["taxonomy_id"], ["taxonomy.id"], name="fk_form_taxonomy_id"),
        sa.PrimaryKeyConstraint("id", name="pk_form"),
        sa.UniqueConstraint("project_id", "version", name="uq_form_project_id_version"),
    )
    op.create_table(
        "task",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("project_id", sa.String(length=36), nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column("kind", sa.String(length=40), server_default="", nullable=False),
        sa.Column("form_id", sa.String(length=36), nullable=False),
        sa.Column("prompt_id", sa.String(length=36), nullable=False),
        sa.Column("decision_id", sa.String(length=36), nullable=True),
        sa.Column("draw_id", sa.String(length=36), nullable=True),
        sa.Column("required", sa.Integer(), server_default="1", nullable=False),
        sa.Column("priority", sa.Integer(), server_default="0", nullable=False),
        sa.Column("due_at", sa.BigInteger(), nullable=True),
        sa.Column("language", sa.String(length=20), server_default="", nullable=False),
        sa.Column("cluster", sa.String(length=120), server_default="", nullable=False),
        sa.Column("state", sa.String(length=20), server_default="open", nullable=False),
        sa.Column("meta", JSON, nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["form_id"], ["form.id"], name="fk_task_form_id"),
        sa.ForeignKeyConstraint(["project_id"], ["project.id"], name="fk_task_project_id"),
        sa.ForeignKeyConstraint(["prompt_id"], ["text.id"], name="fk_task_prompt_id"),
        sa.PrimaryKeyConstraint("id", name="pk_task"),
    )
    op.create_table(
        "candidate",
        sa.Column("task_id", sa.String(length=36), nullable=False),
        sa.Column("no", sa.Integer(), nullable=False),
        sa.Column("text_id", sa.String(length=36), nullable=False),
        sa.Column("producer", sa.String(length=300), server_default="", nullable=False),
        sa.Column("meta", JSON, nullable=False),
        sa.ForeignKeyConstraint(["task_id"], ["task.id"], name="fk_candidate_task_id"),
        sa.ForeignKeyConstraint(["text_id"], ["text.id"], name="fk_candidate_text_id"),
        sa.PrimaryKeyConstraint("task_id", "no", name="pk_candidate"),
    )
    op.create_table(
        "consensus",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("task_id", sa.String(length=36), nullable=False),
        sa.Column("question", sa.String(length=80), server_default="", nullable=False),
        sa.Column("method", sa.String(length=40), server_default="", nullable=False),
        sa.Column("posterior", JSON, nullable=False),
        sa.Column("n", sa.Integer(), server_default="0", nullable=False),
        sa.Column("adjudication_id", sa.String(length=36), nullable=True),
        sa.Column("made_by", sa.String(length=80), server_default="", nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["task_id"], ["task.id"], name="fk_consensus_task_id"),
        sa.PrimaryKeyConstraint("id", name="pk_consensus"),
    )
    op.create_table(
        "gold",
        sa.Column("task_id", sa.String(length=36), nullable=False),
        sa.Column("expected", JSON, nullable=False),
        sa.Column("rationale", sa.Text(), server_default="", nullable=False),
        sa.Column("retired_at", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(["task_id"], ["task.id"], name="fk_gold_task_id"),
        sa.PrimaryKeyConstraint("task_id", name="pk_gold"),
    )
    op.create_table(
        "slot",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("task_id", sa.String(length=36), nullable=False),
        sa.Column("no", sa.Integer(), server_default="0", nullable=False),
        sa.Column("project_id", sa.String(length=36), nullable=False),
        sa.Column("priority", sa.Integer(), server_default="0", nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column("purpose", sa.String(length=20), server_default="normal", nullable=False),
        sa.Column("reserved_for", sa.String(length=36), server_default="", nullable=False),
        sa.Column("person_id", sa.String(length=36), nullable=True),
        sa.Column("state", sa.String(length=20), server_default="open", nullable=False),
        sa.Column("lease_until", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("lease_epoch", sa.Integer(), server_default="0", nullable=False),
        sa.ForeignKeyConstraint(["person_id"], ["person.id"], name="fk_slot_person_id"),
        sa.ForeignKeyConstraint(["project_id"], ["project.id"], name="fk_slot_project_id"),
        sa.ForeignKeyConstraint(["task_id"], ["task.id"], name="fk_slot_task_id"),
        sa.PrimaryKeyConstraint("id", name="pk_slot"),
        sa.UniqueConstraint("task_id", "no", name="uq_slot_task_id_no"),
        sa.UniqueConstraint("task_id", "person_id", name="uq_slot_task_id_person_id"),
    )
    op.create_table(
        "annotation",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("slot_id", sa.String(length=36), nullable=False),
        sa.Column("task_id", sa.String(length=36), nullable=False),
        sa.Column("project_id", sa.String(length=36), nullable=False),
        sa.Column("person_id", sa.String(length=36), nullable=False),
        sa.Column("people", sa.String(length=20), server_default="live", nullable=False),
        sa.Column("form_id", sa.String(length=36), nullable=False),
        sa.Column("revision", sa.Integer(), server_default="1", nullable=False),
        sa.Column("supersedes_id", sa.String(length=36), nullable=True),
        sa.Column("status", sa.String(length=20), server_default="", nullable=False),
        sa.Column("reason", sa.String(length=500), server_default="", nullable=False),
        sa.Column("shown", JSON, nullable=False),
        sa.Column("suggestion_seen", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("active_ms", sa.Integer(), server_default="0", nullable=False),
        sa.Column("key", sa.String(length=200), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["form_id"], ["form.id"], name="fk_annotation_form_id"),
        sa.ForeignKeyConstraint(["person_id"], ["person.id"], name="fk_annotation_person_id"),
        sa.ForeignKeyConstraint(["project_id"], ["project.id"], name="fk_annotation_project_id"),
        sa.ForeignKeyConstraint(["slot_id"], ["slot.id"], name="fk_annotation_slot_id"),
        sa.ForeignKeyConstraint(["task_id"], ["task.id"], name="fk_annotation_task_id"),
        sa.PrimaryKeyConstraint("id", name="pk_annotation"),
        sa.UniqueConstraint("key", name="uq_annotation_key"),
        sa.UniqueConstraint("seq", name="uq_annotation_seq"),
        sa.UniqueConstraint("slot_id", "person_id", "revision", name="uq_annotation_slot_id_person_id_revision"),
    )
    op.create_table(
        "draft",
        sa.Column("slot_id", sa.String(length=36), nullable=False),
        sa.Column("person_id", sa.String(length=36), nullable=False),
        sa.Column("body", JSON, nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["person_id"], ["person.id"], name="fk_draft_person_id"),
        sa.ForeignKeyConstraint(["slot_id"], ["slot.id"], name="fk_draft_slot_id"),
        sa.PrimaryKeyConstraint("slot_id", "person_id", name="pk_draft"),
    )
    op.create_table(
        "answer",
        sa.Column("annotation_id", sa.String(length=36), nullable=False),
        sa.Column("question", sa.String(length=80), nullable=False),
        sa.Column("candidate_no", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("number", sa.Float(), nullable=True),
        sa.Column("text_id", sa.String(length=36), nullable=True),
        sa.Column("value", JSON, nullable=True),
        sa.ForeignKeyConstraint(["annotation_id"], ["annotation.id"], name="fk_answer_annotation_id"),
        sa.ForeignKeyConstraint(["text_id"], ["text.id"], name="fk_answer_text_id"),
        sa.PrimaryKeyConstraint("annotation_id", "question", "candidate_no", name="pk_answer"),
    )
    op.create_table(
        "gold_result",
        sa.Column("annotation_id", sa.String(length=36), nullable=False),
        sa.Column("correct", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("score", sa.Float(), nullable=True),
        sa.ForeignKeyConstraint(["annotation_id"], ["annotation.id"], name="fk_gold_result_annotation_id"),
        sa.PrimaryKeyConstraint("annotation_id", name="pk_gold_result"),
    )
    op.create_table(
        "rank",
        sa.Column("annotation_id", sa.String(length=36), nullable=False),
        sa.Column("candidate_no", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("tier", sa.Integer(), nullable=True),
        sa.Column("unrankable", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.ForeignKeyConstraint(["annotation_id"], ["annotation.id"], name="fk_rank_annotation_id"),
        sa.PrimaryKeyConstraint("annotation_id", "candidate_no", name="pk_rank"),
    )
    op.create_table(
        "span",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("annotation_id", sa.String(length=36), nullable=False),
        sa.Column("field", sa.String(length=80), server_default="", nullable=False),
        sa.Column("candidate_no", sa.Integer(), nullable=False),
        sa.Column("start", sa.Integer(), server_default="0", nullable=False),
        sa.Column("stop", sa.Integer(), server_default="0", nullable=False),
        sa.Column("label", sa.String(length=120), server_default="", nullable=False),
        sa.ForeignKeyConstraint(["annotation_id"], ["annotation.id"], name="fk_span_annotation_id"),
        sa.PrimaryKeyConstraint("id", name="pk_span"),
    )
    for name, table, columns in INDEXES:
        op.create_index(name, table, columns)
    counter = sa.table("counter", sa.column("name"), sa.column("value"))
    op.bulk_insert(counter, [{"name": name, "value": 0} for name in COUNTERS])
    for statement in guards(op.get_bind().dialect.name, APPEND_ONLY, texts=True):
        op.execute(statement)
