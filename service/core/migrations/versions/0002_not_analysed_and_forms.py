"""not analysed is a report; destinations that take no Comprehensive 3D SR"""

import sqlalchemy as sa
from alembic import op

import service.core.tables

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "refusal",
        sa.Column("destination", sa.String(length=64), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("at", service.core.tables.UtcDateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("destination"),
    )
    with op.batch_alter_table("revision", schema=None) as batch_op:
        batch_op.alter_column("model_id", existing_type=sa.Integer(), nullable=True)
    # In place: SQLite can't copy a table that others point to. What came before stays silent, as it was.
    op.add_column(
        "instance", sa.Column("says_chest", sa.Boolean(), nullable=False, server_default=sa.false())
    )


def downgrade() -> None:
    op.drop_column("instance", "says_chest")
    op.execute("DELETE FROM revision WHERE model_id IS NULL")
    with op.batch_alter_table("revision", schema=None) as batch_op:
        batch_op.alter_column("model_id", existing_type=sa.Integer(), nullable=False)
    op.drop_table("refusal")
