"""what films are compared by with those that weights were validated on, and statistics of their grey values"""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None

_COLUMNS = (
    ("patient_sex", sa.String(length=1)),
    ("scanner", sa.Text()),
    ("image_mean", sa.Float()),
    ("image_deviation", sa.Float()),
    ("image_entropy", sa.Float()),
    ("image_clipped", sa.Float()),
)


def upgrade() -> None:
    for name, kind in _COLUMNS:
        op.add_column("instance", sa.Column(name, kind, nullable=True))
    op.add_column("model", sa.Column("population", sa.JSON(), nullable=True))
    # Before retention empties it there.
    op.execute(
        "UPDATE instance SET patient_sex = (SELECT patient_sex FROM subject WHERE subject.id = subject_id)"
        " WHERE subject_id IN (SELECT id FROM subject WHERE patient_sex IN ('F', 'M', 'O'))"
    )


def downgrade() -> None:
    op.drop_column("model", "population")
    for name, _ in reversed(_COLUMNS):
        op.drop_column("instance", name)
