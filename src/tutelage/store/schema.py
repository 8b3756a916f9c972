"""The tables. People's words and official acts are append-only by trigger; text can be erased, its row stays.

Times (`at`, `*_at`, `*_until`) are milliseconds since 1970 UTC. Identifiers are UUIDs as text: version 7 for what
happens by itself, version 8 derived from an idempotency key for what a stage or a client may send twice. Artifact ids
are plain strings: the store knows nothing of artifacts.
"""

from __future__ import annotations

import sqlalchemy as sql
from sqlalchemy import BigInteger, Float, ForeignKey, Integer, LargeBinary, String, Text

from tutelage.store import columns, operations
from tutelage.store.columns import (
    Column,
    Id,
    Json,
    count,
    document,
    figure,
    flag,
    key,
    link,
    moment,
    table,
    words,
)

metadata = columns.metadata

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
    *operations.APPEND_ONLY,
)
"""Rows of these tables are never changed and never removed."""

counter = table("counter", Column("name", String(40), primary_key=True), Column("value", BigInteger, nullable=False))
"""Numbers handed out in the order of commits: whoever takes one holds the row until the transaction ends."""

text = table("text", key(), Column("body", Text), Column("redacted", Text), moment("erased_at", optional=True))
"""Every word anybody wrote or read. `redacted` is `body` with personal data masked, where it differs."""

# people

person = table(
    "person",
    key(),
    Column("name", String(120), nullable=False, unique=True),
    Column("pseudonym", String(40), nullable=False, unique=True),
    words("kind", 20, "live"),
    words("status", 20, "active"),
    Column("email", String(200)),
    Column("password", String(300)),
    document("languages"),
    moment(),
)
role_grant = table(
    "role_grant",
    key(),
    link("person_id", "person.id"),
    words("project_id", 36),
    words("role", 20),
    words("by"),
    moment(),
    sql.UniqueConstraint("person_id", "project_id", "role"),
)
api_token = table(
    "api_token",
    key(),
    link("person_id", "person.id"),
    Column("hash", String(64), nullable=False, unique=True),
    document("scopes"),
    words("label"),
    moment(),
    moment("expires_at", optional=True),
    moment("revoked_at", optional=True),
)
session = table(
    "session",
    Column("hash", String(64), primary_key=True),
    link("person_id", "person.id"),
    words("csrf", 64),
    moment(),
    moment("expires_at"),
)
invitation = table(
    "invitation",
    Column("hash", String(64), primary_key=True),
    link("person_id", "person.id"),
    moment("expires_at"),
    moment("used_at", optional=True),
)
identity = table(
    "identity",
    Column("issuer", String(300), primary_key=True),
    Column("subject", String(200), primary_key=True),
    link("person_id", "person.id"),
    moment(),
)
"""Who signs in through an OpenID provider, by the provider's own name for them."""
qualification = table(
    "qualification",
    link("person_id", "person.id", primary=True),
    Column("name", String(60), primary_key=True),
    words("by"),
    moment(),
)
"""What a person has shown to be able to judge; a project may ask for some of them."""
profile = table(
    "profile",
    link("person_id", "person.id", primary=True),
    words("consent", 40),
    Column("sealed", LargeBinary),
    moment("updated_at"),
)
"""Consented demographic attributes, encrypted; withdrawal clears `sealed`."""

# what people are asked

project = table(
    "project",
    key(),
    Column("name", String(120), nullable=False, unique=True),
    words("kind", 40),
    words("state", 20, "open"),
    count("per_task", 1),
    document("settings"),
    moment(),
)
taxonomy = table(
    "taxonomy",
    key(),
    link("project_id", "project.id"),
    count("version"),
    document("tree"),
    document("migration"),
    moment(),
)
form = table(
    "form",
    key(),
    link("project_id", "project.id"),
    count("version"),
    document("questions"),
    Column("guideline", Text, nullable=False),
    link("taxonomy_id", "taxonomy.id", optional=True),
    moment(),
    sql.UniqueConstraint("project_id", "version"),
)
"""The questions and the guideline, by version: every annotation names the one it was given under."""
task = table(
    "task",
    key(),
    link("project_id", "project.id"),
    Column("position", BigInteger, nullable=False),
    words("kind", 40),
    link("form_id", "form.id"),
    link("prompt_id", "text.id"),
    Column("decision_id", Id),
    Column("draw_id", Id),
    count("required", 1),
    count("priority"),
    moment("due_at", optional=True),
    words("language", 20),
    words("cluster", 120),
    words("state", 20, "open"),
    document("meta"),
    moment(),
    sql.Index("ix_task_project", "project_id", "position"),
    sql.Index("ix_task_state", "project_id", "state"),
    sql.Index("ix_task_decision", "decision_id"),
)
candidate = table(
    "candidate",
    link("task_id", "task.id", primary=True),
    Column("no", Integer, primary_key=True),
    link("text_id", "text.id"),
    words("producer", 300),
    document("meta"),
)
"""What is judged. `producer` (an artifact id or a name) is never sent to annotators."""
ORDINARY = "normal"
"""The purpose of the places that a task wants to have filled."""
slot = table(
    "slot",
    key(),
    link("task_id", "task.id"),
    count("no"),
    link("project_id", "project.id"),
    count("turn"),
    Column("position", BigInteger, nullable=False),
    words("purpose", 20, ORDINARY),
    words("reserved_for", 36),
    words("language", 20),
    Column("person_id", Id, ForeignKey("person.id")),
    words("state", 20, "open"),
    Column("lease_until", BigInteger, nullable=False, server_default="0"),
    count("lease_epoch"),
    sql.UniqueConstraint("task_id", "no"),
    sql.UniqueConstraint("task_id", "person_id"),
    sql.Index("ix_slot_next", "project_id", "state", "reserved_for", "language", "turn", "position"),
    sql.Index("ix_slot_lease", "state", "lease_until"),
    sql.Index("ix_slot_person", "person_id", "project_id", "state", "turn", "position", "purpose"),
)
"""One place for one person's answer: a task has as many as it wants people, so overlap is a fact, not a count.

`reserved_for` is a person's id, or a role (`adjudicator`), or empty: anybody's. `language` is one that whoever takes it
must have named; empty for a place that a person's id stands on. `turn` is minus the task's priority: the lowest turn
and position is next, in the order of the index. A place that was given back is one whose lease has run out: those come
first. Only places of purpose ORDINARY count for their task: one of purpose `gold` is made when somebody is given a
gold task, one of purpose `adjudicate` when a lead asks somebody to decide where people differ."""
seen = table(
    "seen",
    link("person_id", "person.id", primary=True),
    Column("subject", Id, primary_key=True),
    Column("through", BigInteger, nullable=False, server_default="0"),
    moment(),
)
"""Who has seen what others answered: to a task (`subject` is its id), or to all tasks of a project (its id) as far as
annotation number `through`."""
draft = table(
    "draft",
    link("slot_id", "slot.id", primary=True),
    link("person_id", "person.id", primary=True),
    document("body"),
    moment("updated_at"),
)

# what people said

annotation = table(
    "annotation",
    key(),
    Column("seq", BigInteger, nullable=False, unique=True),
    link("slot_id", "slot.id"),
    link("task_id", "task.id"),
    link("project_id", "project.id"),
    link("person_id", "person.id"),
    words("people", 20, "live"),
    link("form_id", "form.id"),
    count("revision", 1),
    Column("supersedes_id", Id),
    words("status", 20),
    link("reason_id", "text.id", optional=True),
    document("shown"),
    flag("suggestion_seen"),
    count("active_ms"),
    Column("key", String(200), nullable=False, unique=True),
    moment(),
    sql.UniqueConstraint("slot_id", "person_id", "revision"),
    sql.Index("ix_annotation_project", "project_id", "seq"),
    sql.Index("ix_annotation_task", "task_id"),
    sql.Index("ix_annotation_person", "person_id", "seq"),
)
answer = table(
    "answer",
    link("annotation_id", "annotation.id", primary=True),
    Column("question", String(80), primary_key=True),
    Column("candidate_no", Integer, primary_key=True, autoincrement=False),
    figure("number"),
    link("text_id", "text.id", optional=True),
    Column("value", Json),
)
"""`candidate_no` is -1 for an answer about the whole task. What a person typed is a text, which can be erased: flags in
words of their own are a JSON list there, flags chosen from a taxonomy stay in `value`."""
rank = table(
    "rank",
    link("annotation_id", "annotation.id", primary=True),
    Column("candidate_no", Integer, primary_key=True, autoincrement=False),
    Column("tier", Integer),
    flag("unrankable"),
)
"""`tier` 0 is best, equal tiers are ties, NULL with `unrankable` set stands outside the order."""
span = table(
    "span",
    key(),
    link("annotation_id", "annotation.id"),
    words("field", 80),
    Column("candidate_no", Integer, nullable=False),
    count("start"),
    count("stop"),
    words("label", 120),
    sql.Index("ix_span_annotation", "annotation_id"),
)
gold = table(
    "gold",
    link("task_id", "task.id", primary=True),
    document("expected"),
    Column("rationale", Text, nullable=False, server_default=""),
    moment("retired_at", optional=True),
    count("shown"),
)
"""Tasks whose answer is known. `shown` counts the people who were given one, none of whom is told."""
gold_result = table(
    "gold_result",
    link("annotation_id", "annotation.id", primary=True),
    flag("correct"),
    figure("score"),
)
pause = table(
    "pause",
    link("person_id", "person.id", primary=True),
    link("project_id", "project.id", primary=True),
    flag("active"),
    figure("probability"),
    count("n"),
    Column("after", BigInteger, nullable=False, server_default="0"),
    moment(),
)
"""Who is given nothing more in a project until a lead has looked at their answers. `probability` is the posterior one
that they are right too rarely, from `n` gold tasks; those up to the annotation number `after` were looked at before."""

# traffic

conversation = table(
    "conversation",
    Column("id", String(120), primary_key=True),
    words("tenant", 120),
    words("subject", 120),
    moment(),
)
request = table(
    "request",
    key(),
    Column("conversation_id", String(120), nullable=False),
    words("tenant", 120),
    words("subject", 120),
    words("release", 120),
    words("model", 200),
    words("surface", 40),
    words("language", 20),
    words("people", 20, "live"),
    link("input_id", "text.id"),
    link("output_id", "text.id", optional=True),
    words("finish", 40),
    document("usage"),
    figure("latency_ms"),
    flag("stream"),
    document("meta"),
    moment(),
    sql.Index("ix_request_at", "at"),
    sql.Index("ix_request_conversation", "conversation_id", "at"),
)
decision = table(
    "decision",
    key(),
    link("request_id", "request.id"),
    words("direction", 20),
    words("channel", 40),
    words("action", 20),
    document("reasons"),
    document("redactions"),
    words("policy", 80),
    figure("score"),
    words("category", 60),
    flag("shadow"),
    figure("latency_ms"),
    moment(),
    sql.Index("ix_decision_request", "request_id"),
    sql.Index("ix_decision_at", "at"),
)
verdict = table(
    "verdict",
    key(),
    link("decision_id", "decision.id"),
    words("judge", 200),
    words("status", 20),
    document("scores"),
    document("spans"),
    words("certificate", 120),
    figure("cost_ms"),
    sql.Index("ix_verdict_decision", "decision_id"),
)
feedback = table(
    "feedback",
    key(),
    link("request_id", "request.id"),
    words("kind", 20),
    figure("value"),
    link("text_id", "text.id", optional=True),
    Column("detail", Json),
    words("actor", 120),
    words("people", 20, "live"),
    Column("key", String(200), nullable=False, unique=True),
    moment(),
    sql.Index("ix_feedback_request", "request_id"),
    sql.Index("ix_feedback_at", "at"),
)
hold = table(
    "hold",
    key(),
    link("request_id", "request.id"),
    Column("conversation_id", String(120), nullable=False),
    Column("task_id", Id),
    link("text_id", "text.id", optional=True),
    words("by", 120),
    moment(),
    moment("answered_at", optional=True),
    moment("delivered_at", optional=True),
    sql.Index("ix_hold_conversation", "conversation_id"),
    sql.Index("ix_hold_request", "request_id"),
)
"""An answer that a person must look at first; a person's answer is delivered in the same conversation."""
vault = table(
    "vault",
    Column("conversation_id", String(120), primary_key=True),
    Column("placeholder", String(120), primary_key=True),
    words("kind", 40),
    Column("sealed", LargeBinary, nullable=False),
    moment(),
    sql.Index("ix_vault_at", "at"),
)

# review by sample

sample_policy = table("sample_policy", key(), count("version"), document("spec"), words("seed_commit", 80), moment())
draw = table(
    "draw",
    key(),
    link("decision_id", "decision.id"),
    link("policy_id", "sample_policy.id"),
    words("stratum", 200),
    Column("probability", Float, nullable=False),
    flag("selected"),
    words("stream", 20, "measure"),
    moment(),
    sql.UniqueConstraint("decision_id", "policy_id", "stream"),
    sql.Index("ix_draw_at", "at"),
)
"""Every drawn decision with the probability it was drawn with, selected or not: estimates stand on these rows."""
estimate = table(
    "estimate",
    key(),
    words("judge", 120),
    words("period", 80),
    words("slice", 120),
    words("metric", 60),
    figure("value"),
    figure("low"),
    figure("high"),
    count("n"),
    figure("n_effective"),
    words("reason", 300),
    words("people", 20, "live"),
    document("policies"),
    moment(),
)
drift = table(
    "drift",
    key(),
    words("signal", 120),
    words("period", 80),
    figure("value"),
    figure("threshold"),
    flag("triggered"),
    document("detail"),
    moment(),
)

# releases

release = table(
    "release", key(), words("bundle", 120), words("name", 120), Column("parent_id", Id), document("evidence"), moment()
)
release_event = table(
    "release_event",
    key(),
    Column("seq", BigInteger, nullable=False, unique=True),
    link("release_id", "release.id"),
    words("environment", 60),
    words("before", 20),
    words("after", 20),
    words("actor", 120),
    Column("reason", Text, nullable=False),
    document("evidence"),
    moment(),
)
approval = table(
    "approval",
    key(),
    link("release_id", "release.id"),
    link("person_id", "person.id"),
    words("note", 500),
    moment(),
    sql.UniqueConstraint("release_id", "person_id"),
)
deployment = table(
    "deployment",
    Column("environment", String(60), primary_key=True),
    Column("live_id", Id),
    Column("canary_id", Id),
    Column("canary_share", Float, nullable=False, server_default="0"),
    count("epoch"),
    moment("updated_at"),
)
"""Which release answers: promotion and rollback move one pointer."""

# operating the service

takeover, incident, incident_event = operations.takeover, operations.incident, operations.incident_event
legal_hold, usage = operations.legal_hold, operations.usage
certificate_event, guard_event = operations.certificate_event, operations.guard_event

# work and records

job = table(
    "job",
    key(),
    words("kind", 60),
    document("args"),
    words("state", 20, "waiting"),
    Column("run_after", BigInteger, nullable=False, server_default="0"),
    Column("lease_until", BigInteger, nullable=False, server_default="0"),
    count("lease_epoch"),
    count("attempts"),
    words("worker", 120),
    Column("dedupe", String(200), unique=True),
    Column("result", Json),
    Column("error", Text),
    moment(),
    sql.Index("ix_job_next", "state", "run_after"),
)
webhook = table(
    "webhook", key(), words("url", 500), Column("secret", LargeBinary), document("events"), words("state", 20), moment()
)
outbox = table(
    "outbox",
    key(),
    link("webhook_id", "webhook.id"),
    words("event", 80),
    document("payload"),
    count("attempts"),
    Column("run_after", BigInteger, nullable=False, server_default="0"),
    words("error", 500),
    moment(),
    moment("sent_at", optional=True),
    sql.Index("ix_outbox_next", "sent_at", "run_after"),
)
"""What is to be told to a webhook: written with the change it tells of, sent at least once."""
audit = table(
    "audit",
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    words("previous", 64),
    words("hash", 64),
    words("actor", 120),
    words("action", 80),
    words("object", 200),
    Column("body", Text, nullable=False),
    moment(),
    sql.Index("ix_audit_act", "action", "object", "seq"),
)
"""The ledger: each row holds the hash of the one before. `body` is canonical JSON."""
