"""Which negatives readers are asked to review.

Readers look again at what a network calls positive, so feedback alone tells its predictive value and no more.
A share of the negatives (HILUM_REVIEW_SHARE), drawn by a hash that nobody can steer, lets its sensitivity be
estimated: each drawn negative stands for 1 / share of them (Begg and Greenes 1983, Biometrics 39:207, on what
verifying positives only does to sensitivity). The share of that day is kept with the study, and with each
entry.
"""

from sqlalchemy.orm import Session

from service.core.results import Finding
from service.core.secret import keyed_hash


def review_share(session: Session, study_instance_uid: str, finding: str, share: float) -> float | None:
    """Return `share` when a study with this finding is one of that share of negatives, else None.

    The same study is drawn by every greater share too.
    """
    if finding != Finding.ABSENT or share <= 0:
        return None
    drawn = int.from_bytes(keyed_hash(session, "review", study_instance_uid)[:8], "big") / 2**64
    return share if drawn < share else None
