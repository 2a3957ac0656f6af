"""what rules decide; destinations that wait for their hours; which configuration a process goes by"""

import sqlalchemy as sa
from alembic import op

import service.core.tables

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("instance", sa.Column("decision", sa.JSON(), nullable=True))
    op.add_column("heartbeat", sa.Column("config", sa.String(length=64), nullable=False, server_default=""))
    op.create_table(
        "pause",
        sa.Column("destination", sa.String(length=64), nullable=False),
        sa.Column("until", service.core.tables.UtcDateTime(timezone=True), nullable=False),
        sa.Column("why", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("destination"),
    )


def downgrade() -> None:
    op.drop_table("pause")
    op.drop_column("heartbeat", "config")
    op.drop_column("instance", "decision")
