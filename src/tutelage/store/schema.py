"""The tables. People's words and official acts are append-only by trigger; text can be erased, its row stays.

Times (`at`, `*_at`, `*_until`) are milliseconds since 1970 UTC. Identifiers are UUIDs as text: version 7 for what
happens by itself, version 8 derived from an idempotency key for what a stage or a client may send twice. Artifact ids
are plain strings: the store knows nothing of artifacts.
"""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sql
from sqlalchemy import BigInteger, Boolean, Float, ForeignKey, Integer, LargeBinary, String, Text
from sqlalchemy.dialects.postgresql import JSONB

metadata = sql.MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)

APPEND_ONLY = (
    "annotation",
    "answer",
    "rank",
    "span",
    "request",
    "decision",
    "verdict",
    "feedback",
    "draw",
    "form",
    "taxonomy",
    "candidate",
    "release_event",
    "approval",
    "audit",
)
"""Rows of these tables are never changed and never removed."""

Id = String(36)
Json = sql.JSON().with_variant(JSONB(), "postgresql")
Column = sql.Column


def _table(name: str, *parts: sql.schema.SchemaItem) -> sql.Table:
    return sql.Table(name, metadata, *parts)


def _id() -> Column[str]:
    return Column("id", Id, primary_key=True)


def _to(name: str, target: str, *, optional: bool = False, primary: bool = False) -> Column[str]:
    return Column(name, Id, ForeignKey(target), nullable=optional, primary_key=primary)


def _words(name: str, length: int = 200, default: str = "") -> Column[str]:
    return Column(name, String(length), nullable=False, server_default=default)


def _at(name: str = "at", *, optional: bool = False) -> Column[int]:
    return Column(name, BigInteger, nullable=optional)


def _count(name: str, default: int = 0) -> Column[int]:
    return Column(name, Integer, nullable=False, server_default=str(default))


def _figure(name: str, *, optional: bool = True) -> Column[float]:
    return Column(name, Float, nullable=optional)


def _json(name: str) -> Column[object]:
    return Column(name, Json, nullable=False)


def _flag(name: str) -> Column[bool]:
    return Column(name, Boolean, nullable=False, server_default=sql.false())


counter = _table("counter", Column("name", String(40), primary_key=True), Column("value", BigInteger, nullable=False))
"""Numbers handed out in the order of commits: whoever takes one holds the row until the transaction ends."""

text = _table("text", _id(), Column("body", Text), Column("redacted", Text), _at("erased_at", optional=True))
"""Every word anybody wrote or read. `redacted` is `body` with personal data masked, where it differs."""

# people

person = _table(
    "person",
    _id(),
    Column("name", String(120), nullable=False, unique=True),
    Column("pseudonym", String(40), nullable=False, unique=True),
    _words("kind", 20, "live"),
    _words("status", 20, "active"),
    Column("email", String(200)),
    Column("password", String(300)),
    _json("languages"),
    _at(),
)
role_grant = _table(
    "role_grant",
    _id(),
    _to("person_id", "person.id"),
    _words("project_id", 36),
    _words("role", 20),
    _words("by"),
    _at(),
    sql.UniqueConstraint("person_id", "project_id", "role"),
)
api_token = _table(
    "api_token",
    _id(),
    _to("person_id", "person.id"),
    Column("hash", String(64), nullable=False, unique=True),
    _json("scopes"),
    _words("label"),
    _at(),
    _at("expires_at", optional=True),
    _at("revoked_at", optional=True),
)
session = _table(
    "session",
    Column("hash", String(64), primary_key=True),
    _to("person_id", "person.id"),
    _words("csrf", 64),
    _at(),
    _at("expires_at"),
)
invitation = _table(
    "invitation",
    Column("hash", String(64), primary_key=True),
    _to("person_id", "person.id"),
    _at("expires_at"),
    _at("used_at", optional=True),
)
profile = _table(
    "profile",
    _to("person_id", "person.id", primary=True),
    _words("consent", 40),
    Column("sealed", LargeBinary),
    _at("updated_at"),
)
"""Consented demographic attributes, encrypted; withdrawal clears `sealed`."""

# what people are asked

project = _table(
    "project",
    _id(),
    Column("name", String(120), nullable=False, unique=True),
    _words("kind", 40),
    _words("state", 20, "open"),
    _count("per_task", 1),
    _json("settings"),
    _at(),
)
taxonomy = _table(
    "taxonomy", _id(), _to("project_id", "project.id"), _count("version"), _json("tree"), _json("migration"), _at()
)
form = _table(
    "form",
    _id(),
    _to("project_id", "project.id"),
    _count("version"),
    _json("questions"),
    Column("guideline", Text, nullable=False),
    _to("taxonomy_id", "taxonomy.id", optional=True),
    _at(),
    sql.UniqueConstraint("project_id", "version"),
)
"""The questions and the guideline, by version: every annotation names the one it was given under."""
task = _table(
    "task",
    _id(),
    _to("project_id", "project.id"),
    Column("position", BigInteger, nullable=False),
    _words("kind", 40),
    _to("form_id", "form.id"),
    _to("prompt_id", "text.id"),
    Column("decision_id", Id),
    Column("draw_id", Id),
    _count("required", 1),
    _count("priority"),
    _at("due_at", optional=True),
    _words("language", 20),
    _words("cluster", 120),
    _words("state", 20, "open"),
    _json("meta"),
    _at(),
    sql.Index("ix_task_project", "project_id", "position"),
    sql.Index("ix_task_decision", "decision_id"),
)
candidate = _table(
    "candidate",
    _to("task_id", "task.id", primary=True),
    Column("no", Integer, primary_key=True),
    _to("text_id", "text.id"),
    _words("producer", 300),
    _json("meta"),
)
"""What is judged. `producer` (an artifact id or a name) is never sent to annotators."""
slot = _table(
    "slot",
    _id(),
    _to("task_id", "task.id"),
    _count("no"),
    _to("project_id", "project.id"),
    _count("turn"),
    Column("position", BigInteger, nullable=False),
    _words("purpose", 20, "normal"),
    _words("reserved_for", 36),
    Column("person_id", Id, ForeignKey("person.id")),
    _words("state", 20, "open"),
    Column("lease_until", BigInteger, nullable=False, server_default="0"),
    _count("lease_epoch"),
    sql.UniqueConstraint("task_id", "no"),
    sql.UniqueConstraint("task_id", "person_id"),
    sql.Index("ix_slot_next", "project_id", "state", "reserved_for", "turn", "position"),
    sql.Index("ix_slot_lease", "state", "lease_until"),
    sql.Index("ix_slot_person", "person_id", "project_id", "state", "turn", "position"),
)
"""One place for one person's answer: a task has as many as it wants people, so overlap is a fact, not a count.

`turn` is minus the task's priority: the lowest turn and position is next, in the order of the index."""
draft = _table(
    "draft",
    _to("slot_id", "slot.id", primary=True),
    _to("person_id", "person.id", primary=True),
    _json("body"),
    _at("updated_at"),
)

# what people said

annotation = _table(
    "annotation",
    _id(),
    Column("seq", BigInteger, nullable=False, unique=True),
    _to("slot_id", "slot.id"),
    _to("task_id", "task.id"),
    _to("project_id", "project.id"),
    _to("person_id", "person.id"),
    _words("people", 20, "live"),
    _to("form_id", "form.id"),
    _count("revision", 1),
    Column("supersedes_id", Id),
    _words("status", 20),
    _words("reason", 500),
    _json("shown"),
    _flag("suggestion_seen"),
    _count("active_ms"),
    Column("key", String(200), nullable=False, unique=True),
    _at(),
    sql.UniqueConstraint("slot_id", "person_id", "revision"),
    sql.Index("ix_annotation_project", "project_id", "seq"),
    sql.Index("ix_annotation_task", "task_id"),
    sql.Index("ix_annotation_person", "person_id", "seq"),
)
answer = _table(
    "answer",
    _to("annotation_id", "annotation.id", primary=True),
    Column("question", String(80), primary_key=True),
    Column("candidate_no", Integer, primary_key=True, autoincrement=False),
    _figure("number"),
    _to("text_id", "text.id", optional=True),
    Column("value", Json),
)
"""`candidate_no` is -1 for an answer about the whole task."""
rank = _table(
    "rank",
    _to("annotation_id", "annotation.id", primary=True),
    Column("candidate_no", Integer, primary_key=True, autoincrement=False),
    Column("tier", Integer),
    _flag("unrankable"),
)
"""`tier` 0 is best, equal tiers are ties, NULL with `unrankable` set stands outside the order."""
span = _table(
    "span",
    _id(),
    _to("annotation_id", "annotation.id"),
    _words("field", 80),
    Column("candidate_no", Integer, nullable=False),
    _count("start"),
    _count("stop"),
    _words("label", 120),
    sql.Index("ix_span_annotation", "annotation_id"),
)
gold = _table(
    "gold",
    _to("task_id", "task.id", primary=True),
    _json("expected"),
    Column("rationale", Text, nullable=False, server_default=""),
    _at("retired_at", optional=True),
)
gold_result = _table(
    "gold_result",
    _to("annotation_id", "annotation.id", primary=True),
    _flag("correct"),
    _figure("score"),
)
consensus = _table(
    "consensus",
    _id(),
    _to("task_id", "task.id"),
    _words("question", 80),
    _words("method", 40),
    _json("posterior"),
    _count("n"),
    Column("adjudication_id", Id),
    _words("made_by", 80),
    _at(),
    sql.Index("ix_consensus_task", "task_id"),
)
person_statistic = _table(
    "person_statistic",
    _id(),
    _to("person_id", "person.id"),
    _to("project_id", "project.id"),
    _words("question", 80),
    _words("method", 40),
    _figure("estimate"),
    _figure("standard_error"),
    _count("n"),
    _words("made_by", 80),
    _at(),
    sql.Index("ix_person_statistic_person", "person_id"),
)

# traffic

conversation = _table(
    "conversation",
    Column("id", String(120), primary_key=True),
    _words("tenant", 120),
    _words("subject", 120),
    _at(),
)
request = _table(
    "request",
    _id(),
    Column("conversation_id", String(120), nullable=False),
    _words("tenant", 120),
    _words("subject", 120),
    _words("release", 120),
    _words("model", 200),
    _words("surface", 40),
    _words("language", 20),
    _words("people", 20, "live"),
    _to("input_id", "text.id"),
    _to("output_id", "text.id", optional=True),
    _words("finish", 40),
    _json("usage"),
    _figure("latency_ms"),
    _flag("stream"),
    _json("meta"),
    _at(),
    sql.Index("ix_request_at", "at"),
    sql.Index("ix_request_conversation", "conversation_id", "at"),
)
decision = _table(
    "decision",
    _id(),
    _to("request_id", "request.id"),
    _words("direction", 20),
    _words("channel", 40),
    _words("action", 20),
    _json("reasons"),
    _json("redactions"),
    _words("policy", 80),
    _figure("score"),
    _words("category", 60),
    _flag("shadow"),
    _figure("latency_ms"),
    _at(),
    sql.Index("ix_decision_request", "request_id"),
    sql.Index("ix_decision_at", "at"),
)
verdict = _table(
    "verdict",
    _id(),
    _to("decision_id", "decision.id"),
    _words("judge", 200),
    _words("status", 20),
    _json("scores"),
    _json("spans"),
    _words("certificate", 120),
    _figure("cost_ms"),
    sql.Index("ix_verdict_decision", "decision_id"),
)
feedback = _table(
    "feedback",
    _id(),
    _to("request_id", "request.id"),
    _words("kind", 20),
    _figure("value"),
    _to("text_id", "text.id", optional=True),
    Column("detail", Json),
    _words("actor", 120),
    _words("people", 20, "live"),
    Column("key", String(200), nullable=False, unique=True),
    _at(),
    sql.Index("ix_feedback_request", "request_id"),
    sql.Index("ix_feedback_at", "at"),
)
hold = _table(
    "hold",
    _id(),
    _to("request_id", "request.id"),
    Column("conversation_id", String(120), nullable=False),
    Column("task_id", Id),
    _to("text_id", "text.id", optional=True),
    _words("by", 120),
    _at(),
    _at("answered_at", optional=True),
    _at("delivered_at", optional=True),
    sql.Index("ix_hold_conversation", "conversation_id"),
    sql.Index("ix_hold_request", "request_id"),
)
"""An answer that a person must look at first; a person's answer is delivered in the same conversation."""
vault = _table(
    "vault",
    Column("conversation_id", String(120), primary_key=True),
    Column("placeholder", String(120), primary_key=True),
    _words("kind", 40),
    Column("sealed", LargeBinary, nullable=False),
    _at(),
)

# review by sample

sample_policy = _table("sample_policy", _id(), _count("version"), _json("spec"), _words("seed_commit", 80), _at())
draw = _table(
    "draw",
    _id(),
    _to("decision_id", "decision.id"),
    _to("policy_id", "sample_policy.id"),
    _words("stratum", 200),
    Column("probability", Float, nullable=False),
    _flag("selected"),
    _words("stream", 20, "measure"),
    _at(),
    sql.UniqueConstraint("decision_id", "policy_id", "stream"),
    sql.Index("ix_draw_at", "at"),
)
"""Every drawn decision with the probability it was drawn with, selected or not: estimates stand on these rows."""
estimate = _table(
    "estimate",
    _id(),
    _words("judge", 120),
    _words("period", 80),
    _words("slice", 120),
    _words("metric", 60),
    _figure("value"),
    _figure("low"),
    _figure("high"),
    _count("n"),
    _figure("n_effective"),
    _words("reason", 300),
    _words("people", 20, "live"),
    _json("policies"),
    _at(),
)
drift = _table(
    "drift",
    _id(),
    _words("signal", 120),
    _words("period", 80),
    _figure("value"),
    _figure("threshold"),
    _flag("triggered"),
    _json("detail"),
    _at(),
)

# releases

release = _table(
    "release", _id(), _words("bundle", 120), _words("name", 120), Column("parent_id", Id), _json("evidence"), _at()
)
release_event = _table(
    "release_event",
    _id(),
    Column("seq", BigInteger, nullable=False, unique=True),
    _to("release_id", "release.id"),
    _words("environment", 60),
    _words("before", 20),
    _words("after", 20),
    _words("actor", 120),
    Column("reason", Text, nullable=False),
    _json("evidence"),
    _at(),
)
approval = _table(
    "approval",
    _id(),
    _to("release_id", "release.id"),
    _to("person_id", "person.id"),
    _words("note", 500),
    _at(),
    sql.UniqueConstraint("release_id", "person_id"),
)
deployment = _table(
    "deployment",
    Column("environment", String(60), primary_key=True),
    Column("live_id", Id),
    Column("canary_id", Id),
    Column("canary_share", Float, nullable=False, server_default="0"),
    _count("epoch"),
    _at("updated_at"),
)
"""Which release answers: promotion and rollback move one pointer."""

# work and records

job = _table(
    "job",
    _id(),
    _words("kind", 60),
    _json("args"),
    _words("state", 20, "waiting"),
    Column("run_after", BigInteger, nullable=False, server_default="0"),
    Column("lease_until", BigInteger, nullable=False, server_default="0"),
    _count("lease_epoch"),
    _count("attempts"),
    _words("worker", 120),
    Column("dedupe", String(200), unique=True),
    Column("result", Json),
    Column("error", Text),
    _at(),
    sql.Index("ix_job_next", "state", "run_after"),
)
outbox = _table(
    "outbox", _id(), _words("event", 80), _json("payload"), _count("attempts"), _at(), _at("sent_at", optional=True)
)
webhook = _table(
    "webhook", _id(), _words("url", 500), Column("secret", LargeBinary), _json("events"), _words("state", 20), _at()
)
audit = _table(
    "audit",
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    _words("previous", 64),
    _words("hash", 64),
    _words("actor", 120),
    _words("action", 80),
    _words("object", 200),
    Column("body", Text, nullable=False),
    _at(),
)
"""The ledger: each row holds the hash of the one before. `body` is canonical JSON."""


def guards(dialect: str, names: Sequence[str], texts: bool = False) -> list[str]:
    """The trigger statements that make these tables append-only and (`texts`) let a text only be erased."""
    lost = "NEW.body IS NOT NULL OR NEW.redacted IS NOT NULL OR NEW.erased_at IS NULL OR NEW.id <> OLD.id"
    made: list[str] = []
    if dialect == "postgresql":
        made.append(
            "CREATE OR REPLACE FUNCTION tutelage_refuse() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN RAISE EXCEPTION '% is append-only', TG_TABLE_NAME; END $$"
        )
        for name in names:
            made.append(
                f'CREATE TRIGGER {name}_append_only BEFORE UPDATE OR DELETE ON "{name}" '
                "FOR EACH ROW EXECUTE FUNCTION tutelage_refuse()"
            )
        if not texts:
            return made
        made.append(
            "CREATE TRIGGER text_erase_only BEFORE UPDATE ON text FOR EACH ROW "
            f"WHEN ({lost}) EXECUTE FUNCTION tutelage_refuse()"
        )
        made.append("CREATE TRIGGER text_keep BEFORE DELETE ON text FOR EACH ROW EXECUTE FUNCTION tutelage_refuse()")
        return made
    for name in names:
        for act in ("UPDATE", "DELETE"):
            made.append(
                f'CREATE TRIGGER {name}_no_{act.lower()} BEFORE {act} ON "{name}" '
                f"BEGIN SELECT RAISE(ABORT, '{name} is append-only'); END"
            )
    if not texts:
        return made
    made.append(
        f"CREATE TRIGGER text_erase_only BEFORE UPDATE ON text WHEN {lost} "
        "BEGIN SELECT RAISE(ABORT, 'a text can only be erased'); END"
    )
    made.append("CREATE TRIGGER text_keep BEFORE DELETE ON text BEGIN SELECT RAISE(ABORT, 'text is append-only'); END")
    return made
