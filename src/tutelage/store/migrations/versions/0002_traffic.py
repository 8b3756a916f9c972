"""Traffic, review by sample, releases, jobs."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from tutelage.store.triggers import guards

revision = "0002"
down_revision = "0001"

JSON = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")
COUNTERS = ("release_event",)
APPEND_ONLY = ("request", "decision", "verdict", "feedback", "draw", "release_event", "approval")
INDEXES = (
    ("ix_job_next", "job", ["state", "run_after"]),
    ("ix_request_at", "request", ["at"]),
    ("ix_request_conversation", "request", ["conversation_id", "at"]),
    ("ix_decision_at", "decision", ["at"]),
    ("ix_decision_request", "decision", ["request_id"]),
    ("ix_feedback_at", "feedback", ["at"]),
    ("ix_feedback_request", "feedback", ["request_id"]),
    ("ix_hold_conversation", "hold", ["conversation_id"]),
    ("ix_hold_request", "hold", ["request_id"]),
    ("ix_draw_at", "draw", ["at"]),
    ("ix_verdict_decision", "verdict", ["decision_id"]),
)


def upgrade() -> None:
    op.create_table(
        "conversation",
        sa.Column("id", sa.String(length=120), nullable=False),
        sa.Column("tenant", sa.String(length=120), server_default="", nullable=False),
        sa.Column("subject", sa.String(length=120), server_default="", nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_conversation"),
    )
    op.create_table(
        "deployment",
        sa.Column("environment", sa.String(length=60), nullable=False),
        sa.Column("live_id", sa.String(length=36), nullable=True),
        sa.Column("canary_id", sa.String(length=36), nullable=True),
        sa.Column("canary_share", sa.Float(), server_default="0", nullable=False),
        sa.Column("epoch", sa.Integer(), server_default="0", nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("environment", name="pk_deployment"),
    )
    op.create_table(
        "drift",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("signal", sa.String(length=120), server_default="", nullable=False),
        sa.Column("period", sa.String(length=80), server_default="", nullable=False),
        sa.Column("value", sa.Float(), nullable=True),
        sa.Column("threshold", sa.Float(), nullable=True),
        sa.Column("triggered", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("detail", JSON, nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_drift"),
    )
    op.create_table(
        "estimate",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("judge", sa.String(length=120), server_default="", nullable=False),
        sa.Column("period", sa.String(length=80), server_default="", nullable=False),
        sa.Column("slice", sa.String(length=120), server_default="", nullable=False),
        sa.Column("metric", sa.String(length=60), server_default="", nullable=False),
        sa.Column("value", sa.Float(), nullable=True),
        sa.Column("low", sa.Float(), nullable=True),
        sa.Column("high", sa.Float(), nullable=True),
        sa.Column("n", sa.Integer(), server_default="0", nullable=False),
        sa.Column("n_effective", sa.Float(), nullable=True),
        sa.Column("reason", sa.String(length=300), server_default="", nullable=False),
        sa.Column("people", sa.String(length=20), server_default="live", nullable=False),
        sa.Column("policies", JSON, nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_estimate"),
    )
    op.create_table(
        "job",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("kind", sa.String(length=60), server_default="", nullable=False),
        sa.Column("args", JSON, nullable=False),
        sa.Column("state", sa.String(length=20), server_default="waiting", nullable=False),
        sa.Column("run_after", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("lease_until", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("lease_epoch", sa.Integer(), server_default="0", nullable=False),
        sa.Column("attempts", sa.Integer(), server_default="0", nullable=False),
        sa.Column("worker", sa.String(length=120), server_default="", nullable=False),
        sa.Column("dedupe", sa.String(length=200), nullable=True),
        sa.Column("result", JSON, nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_job"),
        sa.UniqueConstraint("dedupe", name="uq_job_dedupe"),
    )
    op.create_table(
        "outbox",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("event", sa.String(length=80), server_default="", nullable=False),
        sa.Column("payload", JSON, nullable=False),
        sa.Column("attempts", sa.Integer(), server_default="0", nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("sent_at", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_outbox"),
    )
    op.create_table(
        "release",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("bundle", sa.String(length=120), server_default="", nullable=False),
        sa.Column("name", sa.String(length=120), server_default="", nullable=False),
        sa.Column("parent_id", sa.String(length=36), nullable=True),
        sa.Column("evidence", JSON, nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_release"),
    )
    op.create_table(
        "sample_policy",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("version", sa.Integer(), server_default="0", nullable=False),
        sa.Column("spec", JSON, nullable=False),
        sa.Column("seed_commit", sa.String(length=80), server_default="", nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_sample_policy"),
    )
    op.create_table(
        "vault",
        sa.Column("conversation_id", sa.String(length=120), nullable=False),
        sa.Column("placeholder", sa.String(length=120), nullable=False),
        sa.Column("kind", sa.String(length=40), server_default="", nullable=False),
        sa.Column("sealed", sa.LargeBinary(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("conversation_id", "placeholder", name="pk_vault"),
    )
    op.create_table(
        "webhook",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("url", sa.String(length=500), server_default="", nullable=False),
        sa.Column("secret", sa.LargeBinary(), nullable=True),
        sa.Column("events", JSON, nullable=False),
        sa.Column("state", sa.String(length=20), server_default="", nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_webhook"),
    )
    op.create_table(
        "approval",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("release_id", sa.String(length=36), nullable=False),
        sa.Column("person_id", sa.String(length=36), nullable=False),
        sa.Column("note", sa.String(length=500), server_default="", nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["person_id"], ["person.id"], name="fk_approval_person_id"),
        sa.ForeignKeyConstraint(["release_id"], ["release.id"], name="fk_approval_release_id"),
        sa.PrimaryKeyConstraint("id", name="pk_approval"),
        sa.UniqueConstraint("release_id", "person_id", name="uq_approval_release_id_person_id"),
    )
    op.create_table(
        "release_event",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("release_id", sa.String(length=36), nullable=False),
        sa.Column("environment", sa.String(length=60), server_default="", nullable=False),
        sa.Column("before", sa.String(length=20), server_default="", nullable=False),
        sa.Column("after", sa.String(length=20), server_default="", nullable=False),
        sa.Column("actor", sa.String(length=120), server_default="", nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("evidence", JSON, nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["release_id"], ["release.id"], name="fk_release_event_release_id"),
        sa.PrimaryKeyConstraint("id", name="pk_release_event"),
        sa.UniqueConstraint("seq", name="uq_release_event_seq"),
    )
    op.create_table(
        "request",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("conversation_id", sa.String(length=120), nullable=False),
        sa.Column("tenant", sa.String(length=120), server_default="", nullable=False),
        sa.Column("subject", sa.String(length=120), server_default="", nullable=False),
        sa.Column("release", sa.String(length=120), server_default="", nullable=False),
        sa.Column("model", sa.String(length=200), server_default="", nullable=False),
        sa.Column("surface", sa.String(length=40), server_default="", nullable=False),
        sa.Column("language", sa.String(length=20), server_default="", nullable=False),
        sa.Column("people", sa.String(length=20), server_default="live", nullable=False),
        sa.Column("input_id", sa.String(length=36), nullable=False),
        sa.Column("output_id", sa.String(length=36), nullable=True),
        sa.Column("finish", sa.String(length=40), server_default="", nullable=False),
        sa.Column("usage", JSON, nullable=False),
        sa.Column("latency_ms", sa.Float(), nullable=True),
        sa.Column("stream", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("meta", JSON, nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["input_id"], ["text.id"], name="fk_request_input_id"),
        sa.ForeignKeyConstraint(["output_id"], ["text.id"], name="fk_request_output_id"),
        sa.PrimaryKeyConstraint("id", name="pk_request"),
    )
    op.create_table(
        "decision",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("request_id", sa.String(length=36), nullable=False),
        sa.Column("direction", sa.String(length=20), server_default="", nullable=False),
        sa.Column("channel", sa.String(length=40), server_default="", nullable=False),
        sa.Column("action", sa.String(length=20), server_default="", nullable=False),
        sa.Column("reasons", JSON, nullable=False),
        sa.Column("redactions", JSON, nullable=False),
        sa.Column("policy", sa.String(length=80), server_default="", nullable=False),
        sa.Column("score", sa.Float(), nullable=True),
        sa.Column("category", sa.String(length=60), server_default="", nullable=False),
        sa.Column("shadow", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("latency_ms", sa.Float(), nullable=True),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["request_id"], ["request.id"], name="fk_decision_request_id"),
        sa.PrimaryKeyConstraint("id", name="pk_decision"),
    )
    op.create_table(
        "feedback",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("request_id", sa.String(length=36), nullable=False),
        sa.Column("kind", sa.String(length=20), server_default="", nullable=False),
        sa.Column("value", sa.Float(), nullable=True),
        sa.Column("text_id", sa.String(length=36), nullable=True),
        sa.Column("detail", JSON, nullable=True),
        sa.Column("actor", sa.String(length=120), server_default="", nullable=False),
        sa.Column("people", sa.String(length=20), server_default="live", nullable=False),
        sa.Column("key", sa.String(length=200), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["request_id"], ["request.id"], name="fk_feedback_request_id"),
        sa.ForeignKeyConstraint(["text_id"], ["text.id"], name="fk_feedback_text_id"),
        sa.PrimaryKeyConstraint("id", name="pk_feedback"),
        sa.UniqueConstraint("key", name="uq_feedback_key"),
    )
    op.create_table(
        "hold",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("request_id", sa.String(length=36), nullable=False),
        sa.Column("conversation_id", sa.String(length=120), nullable=False),
        sa.Column("task_id", sa.String(length=36), nullable=True),
        sa.Column("text_id", sa.String(length=36), nullable=True),
        sa.Column("by", sa.String(length=120), server_default="", nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("answered_at", sa.BigInteger(), nullable=True),
        sa.Column("delivered_at", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(["request_id"], ["request.id"], name="fk_hold_request_id"),
        sa.ForeignKeyConstraint(["text_id"], ["text.id"], name="fk_hold_text_id"),
        sa.PrimaryKeyConstraint("id", name="pk_hold"),
    )
    op.create_table(
        "draw",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("decision_id", sa.String(length=36), nullable=False),
        sa.Column("policy_id", sa.String(length=36), nullable=False),
        sa.Column("stratum", sa.String(length=200), server_default="", nullable=False),
        sa.Column("probability", sa.Float(), nullable=False),
        sa.Column("selected", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("stream", sa.String(length=20), server_default="measure", nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["decision_id"], ["decision.id"], name="fk_draw_decision_id"),
        sa.ForeignKeyConstraint(["policy_id"], ["sample_policy.id"], name="fk_draw_policy_id"),
        sa.PrimaryKeyConstraint("id", name="pk_draw"),
        sa.UniqueConstraint("decision_id", "policy_id", "stream", name="uq_draw_decision_id_policy_id_stream"),
    )
    op.create_table(
        "verdict",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("decision_id", sa.String(length=36), nullable=False),
        sa.Column("judge", sa.String(length=200), server_default="", nullable=False),
        sa.Column("status", sa.String(length=20), server_default="", nullable=False),
        sa.Column("scores", JSON, nullable=False),
        sa.Column("spans", JSON, nullable=False),
        sa.Column("certificate", sa.String(length=120), server_default="", nullable=False),
        sa.Column("cost_ms", sa.Float(), nullable=True),
        sa.ForeignKeyConstraint(["decision_id"], ["decision.id"], name="fk_verdict_decision_id"),
        sa.PrimaryKeyConstraint("id", name="pk_verdict"),
    )
    for name, table, columns in INDEXES:
        op.create_index(name, table, columns)
    counter = sa.table("counter", sa.column("name"), sa.column("value"))
    op.bulk_insert(counter, [{"name": name, "value": 0} for name in COUNTERS])
    for statement in guards(op.get_bind().dialect.name, APPEND_ONLY):
        op.execute(statement)
