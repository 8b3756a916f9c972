"""Slots keep minus the priority, so that the next one is found in the order of the index."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    names = {column["name"] for column in sa.inspect(op.get_bind()).get_columns("slot")}
    if "turn" in names:  # a store made while this change was written has the column already
        return
    op.execute("ALTER TABLE slot RENAME COLUMN priority TO turn")  # indexes follow
    op.execute("UPDATE slot SET turn = -turn")
