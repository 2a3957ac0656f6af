"""files of studies go after a time; studies are erased for good"""

import sqlalchemy as sa
from alembic import op

import service.core.tables

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    moment = service.core.tables.UtcDateTime(timezone=True)
    op.add_column("study", sa.Column("expired_at", moment, nullable=True))
    op.add_column("study", sa.Column("removing", sa.String(length=16), nullable=True))
    op.add_column("study", sa.Column("wanted", sa.Text(), nullable=True))
    op.create_index("ix_study_expired_at", "study", ["expired_at", "received_at"])
    op.create_index("ix_study_removing", "study", ["removing"])
    op.create_table(
        "tombstone",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("study_instance_uid", sa.String(length=64), nullable=False),
        sa.Column("at", moment, nullable=False),
        sa.Column("by", sa.String(length=64), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("ignored", sa.Integer(), nullable=False),
        sa.Column("last_ignored_at", moment, nullable=True),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("study_instance_uid"),
    )
    op.create_table(
        "tombstone_instance",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("tombstone_id", sa.Integer(), nullable=False),
        sa.Column("sop_instance_uid", sa.String(length=64), nullable=False),
        sa.ForeignKeyConstraint(["tombstone_id"], ["tombstone.id"]),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_tombstone_instance_tombstone_id", "tombstone_instance", ["tombstone_id"])
    op.create_index("ix_tombstone_instance_sop_instance_uid", "tombstone_instance", ["sop_instance_uid"])


def downgrade() -> None:
    op.drop_table("tombstone_instance")
    op.drop_table("tombstone")
    op.drop_index("ix_study_removing", "study")
    op.drop_index("ix_study_expired_at", "study")
    for column in ("wanted", "removing", "expired_at"):
        op.drop_column("study", column)
