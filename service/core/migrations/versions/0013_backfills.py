"""past studies that are fetched from archives"""

import sqlalchemy as sa
from alembic import op

import service.core.tables

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    moment = service.core.tables.UtcDateTime(timezone=True)
    op.create_table(
        "backfill",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("source", sa.String(length=64), nullable=False),
        sa.Column("query", sa.JSON(), nullable=False),
        sa.Column("delivers", sa.Boolean(), nullable=False),
        sa.Column("way", sa.String(length=8), nullable=False),
        sa.Column("rate", sa.Integer(), nullable=True),
        sa.Column("hours", sa.String(length=16), nullable=True),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("cursor", sa.String(length=8), nullable=True),
        sa.Column("note", sa.Text(), nullable=True),
        sa.Column("created_at", moment, nullable=False),
        sa.Column("created_by", sa.String(length=64), nullable=False),
        sa.Column("finished_at", moment, nullable=True),
        sa.Column("lease_owner", sa.String(length=128), nullable=True),
        sa.Column("lease_until", moment, nullable=True),
        sa.Column("lease_token", sa.Integer(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("ready_at", moment, nullable=False),
        sa.Column("last_error", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("name"),
    )
    op.create_index("ix_backfill_work", "backfill", ["state", "ready_at"])
    op.create_table(
        "backfill_study",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("backfill_id", sa.Integer(), nullable=False),
        sa.Column("study_instance_uid", sa.String(length=64), nullable=False),
        sa.Column("study_date", sa.String(length=8), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("ready_at", moment, nullable=False),
        sa.Column("instances", sa.Integer(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("at", moment, nullable=False),
        sa.ForeignKeyConstraint(["backfill_id"], ["backfill.id"]),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("backfill_id", "study_instance_uid"),
    )
    op.create_index("ix_backfill_study_work", "backfill_study", ["backfill_id", "state", "ready_at"])
    op.create_index("ix_backfill_study_uid", "backfill_study", ["study_instance_uid"])
    op.add_column("study", sa.Column("backfill_id", sa.Integer(), nullable=True))
    fetched = sa.text("backfill_id IS NOT NULL")
    op.create_index(
        "ix_study_backfill",
        "study",
        ["backfill_id", "state"],
        sqlite_where=fetched,
        postgresql_where=fetched,
    )


def downgrade() -> None:
    op.drop_index("ix_study_backfill", "study")
    op.drop_column("study", "backfill_id")
    op.drop_table("backfill_study")
    op.drop_table("backfill")
