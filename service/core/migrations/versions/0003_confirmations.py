"""deliveries are confirmed; destinations that are away; what an archive says of the patient"""

import sqlalchemy as sa
from alembic import op

import service.core.tables

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    moment = service.core.tables.UtcDateTime(timezone=True)
    op.create_table(
        "circuit",
        sa.Column("destination", sa.String(length=64), nullable=False),
        sa.Column("since", moment, nullable=False),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("open_until", moment, nullable=False),
        sa.Column("last_error", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("destination"),
    )
    op.create_table(
        "confirmation",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("outbox_id", sa.Integer(), nullable=False),
        sa.Column("destination", sa.String(length=64), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("until", moment, nullable=False),
        sa.Column("transaction_uid", sa.String(length=64), nullable=True),
        sa.Column("proof", sa.String(length=16), nullable=True),
        sa.Column("lease_owner", sa.String(length=128), nullable=True),
        sa.Column("lease_until", moment, nullable=True),
        sa.Column("lease_token", sa.Integer(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("ready_at", moment, nullable=False),
        sa.Column("last_error", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(["outbox_id"], ["outbox.id"]),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("outbox_id"),
    )
    op.create_index("ix_confirmation_work", "confirmation", ["state", "ready_at"])
    op.create_index("ix_confirmation_transaction_uid", "confirmation", ["transaction_uid"])
    # What it forgets costs one rejected offer.
    op.drop_table("refusal")
    op.create_table(
        "refusal",
        sa.Column("destination", sa.String(length=64), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("at", moment, nullable=False),
        sa.PrimaryKeyConstraint("destination", "kind"),
    )
    # In place: SQLite can't copy a table that others point to.
    for counter in ("failures", "losses"):
        op.add_column("outbox", sa.Column(counter, sa.Integer(), nullable=False, server_default="0"))
    op.add_column("outbox", sa.Column("as_built", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.add_column("subject", sa.Column("told", sa.JSON(), nullable=True))
    op.add_column("subject", sa.Column("told_by", sa.String(length=64), nullable=True))


def downgrade() -> None:
    op.drop_column("subject", "told_by")
    op.drop_column("subject", "told")
    for column in ("as_built", "losses", "failures"):
        op.drop_column("outbox", column)
    op.drop_table("refusal")
    op.create_table(
        "refusal",
        sa.Column("destination", sa.String(length=64), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("at", service.core.tables.UtcDateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("destination"),
    )
    op.drop_table("confirmation")
    op.drop_table("circuit")
