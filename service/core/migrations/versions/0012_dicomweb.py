"""what studies are searched by over DICOMweb"""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

_COLUMNS = (
    ("study_date", sa.String(length=8)),
    ("study_time", sa.String(length=16)),
    ("study_identifier", sa.Text()),
    ("study_description", sa.Text()),
    ("referring_physician_name", sa.Text()),
    ("timezone_offset_from_utc", sa.String(length=8)),
)


def upgrade() -> None:
    for name, kind in _COLUMNS:
        op.add_column("subject", sa.Column(name, kind, nullable=True))
    op.create_index("ix_subject_study_date", "subject", ["study_date"])
    missing = sa.text("study_date IS NULL")
    op.create_index(
        "ix_subject_not_catalogued", "subject", ["id"], sqlite_where=missing, postgresql_where=missing
    )


def downgrade() -> None:
    op.drop_index("ix_subject_not_catalogued", "subject")
    op.drop_index("ix_subject_study_date", "subject")
    for name, _ in reversed(_COLUMNS):
        op.drop_column("subject", name)
