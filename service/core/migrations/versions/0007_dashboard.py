"""what the dashboard shows: pictures of films, what processes say of themselves, indexes of its lists"""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

_INDEXES = (
    ("ix_study_finding", "study", ["finding"]),
    ("ix_subject_accession_number", "subject", ["accession_number"]),
    ("ix_subject_patient_id", "subject", ["patient_id"]),
    ("ix_outbox_destination", "outbox", ["destination", "state", "delivered_at"]),
)


def upgrade() -> None:
    op.add_column("instance", sa.Column("picture_path", sa.Text(), nullable=True))
    op.add_column("analysis", sa.Column("overlay_path", sa.Text(), nullable=True))
    op.add_column("heartbeat", sa.Column("about", sa.JSON(), nullable=True))
    for name, table, columns in _INDEXES:
        op.create_index(name, table, columns)


def downgrade() -> None:
    for name, table, _ in _INDEXES:
        op.drop_index(name, table)
    op.drop_column("heartbeat", "about")
    op.drop_column("analysis", "overlay_path")
    op.drop_column("instance", "picture_path")
