"""what readers say of results; what each revision said; a secret of the installation"""

import secrets

import sqlalchemy as sa
from alembic import op

import service.core.tables

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

_SAID = (
    ("finding", sa.String(length=16)),
    ("probability", sa.Float()),
    ("threshold", sa.Float()),
)


def upgrade() -> None:
    moment = service.core.tables.UtcDateTime(timezone=True)
    op.add_column(
        "installation", sa.Column("secret", sa.String(length=64), nullable=False, server_default="")
    )
    op.execute(sa.text("UPDATE installation SET secret = :secret").bindparams(secret=secrets.token_hex(32)))
    op.add_column("study", sa.Column("review_share", sa.Float(), nullable=True))
    offered = sa.text("review_share IS NOT NULL")
    op.create_index("ix_study_review", "study", ["id"], sqlite_where=offered, postgresql_where=offered)
    for name, kind in _SAID:
        op.add_column("revision", sa.Column(name, kind, nullable=True))
    op.create_table(
        "feedback",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("study_id", sa.Integer(), nullable=False),
        sa.Column("at", moment, nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("model_id", sa.Integer(), nullable=True),
        sa.Column("finding", sa.String(length=16), nullable=False),
        sa.Column("probability", sa.Float(), nullable=True),
        sa.Column("threshold", sa.Float(), nullable=True),
        sa.Column("assessment", sa.String(length=16), nullable=False),
        sa.Column("own_finding", sa.String(length=16), nullable=True),
        sa.Column("note", sa.Text(), nullable=True),
        sa.Column("reader", sa.Text(), nullable=False),
        sa.Column("user", sa.Text(), nullable=False),
        sa.Column("source", sa.String(length=16), nullable=False),
        sa.Column("review_share", sa.Float(), nullable=True),
        sa.ForeignKeyConstraint(["model_id"], ["model.id"]),
        sa.ForeignKeyConstraint(["study_id"], ["study.id"]),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_feedback_study", "feedback", ["study_id", "finding"])
    op.create_index("ix_feedback_at", "feedback", ["at"])
    op.create_table(
        "assessment_report",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("feedback_id", sa.Integer(), nullable=False),
        sa.Column("report_id", sa.Integer(), nullable=True),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("lease_owner", sa.String(length=128), nullable=True),
        sa.Column("lease_until", moment, nullable=True),
        sa.Column("lease_token", sa.Integer(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("ready_at", moment, nullable=False),
        sa.Column("last_error", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(["feedback_id"], ["feedback.id"]),
        sa.ForeignKeyConstraint(["report_id"], ["report.id"]),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("feedback_id"),
    )
    op.create_index("ix_assessment_report_work", "assessment_report", ["state", "ready_at"])


def downgrade() -> None:
    op.drop_table("assessment_report")
    op.drop_table("feedback")
    for name, _ in reversed(_SAID):
        op.drop_column("revision", name)
    op.drop_index("ix_study_review", "study")
    op.drop_column("study", "review_share")
    op.drop_column("installation", "secret")
