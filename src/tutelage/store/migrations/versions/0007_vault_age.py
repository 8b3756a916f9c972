"""What placeholders stand for is forgotten by its age."""

from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    op.create_index("ix_vault_at", "vault", ["at"])
