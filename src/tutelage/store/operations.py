"""The tables of operating the service: conversations with a person, incidents, legal holds, what tenants have used,
certificates that expired, and guards that were switched on or back into shadow.

`open_as` of a takeover or an incident is what it is about while it is open, and null afterwards: so one is open at a
time. `schema.py` names these tables with all the others.
"""

from __future__ import annotations

import sqlalchemy as sql
from sqlalchemy import BigInteger, String

from tutelage.store.columns import Column, document, key, link, moment, table, words

APPEND_ONLY = ("incident_event", "certificate_event", "guard_event")
"""Rows of these tables are never changed and never removed."""

takeover = table(
    "takeover",
    key(),
    Column("conversation_id", String(120), nullable=False),
    Column("open_as", String(120), unique=True),
    words("tenant", 120),
    words("by", 120),
    words("reason", 300),
    words("person_id", 36),
    moment(),
    moment("touched_at"),
    moment("ended_at", optional=True),
    words("ended_by", 120),
    sql.Index("ix_takeover_conversation", "conversation_id", "at"),
)
"""A stretch of a conversation that people answer and no model. `by` is who began it: a person's id, or `policy`.
`person_id` is who answers it, once somebody does."""
incident = table(
    "incident",
    key(),
    words("kind", 40),
    words("subject", 200),
    Column("open_as", String(250), unique=True),
    words("title", 300),
    words("severity", 20),
    moment(),
    moment("last_at"),
    moment("closed_at", optional=True),
    words("closed_by", 120),
    sql.Index("ix_incident_at", "at"),
)
"""Something that somebody has to look at, from when it was noticed until a person closes it."""
incident_event = table(
    "incident_event",
    key(),
    link("incident_id", "incident.id"),
    words("kind", 20),
    words("by", 120),
    link("text_id", "text.id", optional=True),
    document("detail"),
    moment(),
    sql.Index("ix_incident_event_incident", "incident_id", "at"),
)
"""The timeline of an incident: opened, seen again, noted, closed."""
legal_hold = table(
    "legal_hold",
    key(),
    words("kind", 20),
    words("name", 200),
    words("reason", 500),
    words("by", 120),
    moment(),
    moment("lifted_at", optional=True),
    words("lifted_by", 120),
    sql.Index("ix_legal_hold_name", "kind", "name"),
)
"""Whose traffic is kept whatever else asks for its erasure: of a subject, a conversation or a tenant."""
usage = table(
    "usage",
    Column("tenant", String(120), primary_key=True),
    Column("period", String(20), primary_key=True),
    Column("tokens", BigInteger, nullable=False, server_default="0"),
    Column("requests", BigInteger, nullable=False, server_default="0"),
)
"""What a tenant has used in a day (`2026-11-27`) or a month (`2026-11`), UTC."""
certificate_event = table(
    "certificate_event",
    key(),
    words("certificate", 120),
    words("judge", 200),
    words("event", 20),
    words("reason", 300),
    words("by", 120),
    moment(),
    sql.Index("ix_certificate_event_certificate", "certificate", "at"),
)
"""A certificate that no longer holds (`expired`), or holds again (`renewed`): the newest row counts."""
guard_event = table(
    "guard_event",
    key(),
    words("guard", 200),
    words("event", 20),
    words("reason", 300),
    words("by", 120),
    moment(),
    sql.Index("ix_guard_event_guard", "guard", "at"),
)
"""A guard that was switched `on`, or back into `shadow`: the newest row counts."""
