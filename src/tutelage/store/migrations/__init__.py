"""Alembic's changes of the schema, oldest first. A released one is never edited."""
