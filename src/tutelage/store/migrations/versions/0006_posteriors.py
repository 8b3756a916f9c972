"""What people together say is computed when somebody asks: nothing read the tables in which it was kept."""

from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    op.drop_table("person_statistic")
    op.drop_table("consensus")
