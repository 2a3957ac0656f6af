"""UIDs: which ones we accept, and how ours are made.

Every UID of Hilum is derived, never drawn at random: the same result of the same study by the same
model under the same settings is the same object, however often it is computed or sent.
"""

import re
from functools import lru_cache

from pydicom.uid import UID, generate_uid

from service.core.errors import InvalidUID

# PS3.5 9.1: components of digits without leading zeros, 64 characters at most. Real modalities do write
# leading zeros, so those are let through; letters, slashes, NUL and empty components are not.
_ACCEPTED = re.compile(r"[0-9]+(\.[0-9]+)*")
# Each UID of an object is looked at some five times while it is received, and pydicom checks each anew.
_made = lru_cache(maxsize=256)(UID)


def checked_uid(value: object, keyword: str) -> UID:
    """Return `value` as a UID.

    Raises
    ------
    InvalidUID
        When it is empty, longer than 64 characters, or holds anything but digits and dots. The message
        names the attribute and never repeats the value, which may be hostile.
    """
    text = str(value) if value is not None else ""
    if len(text) > 64 or not _ACCEPTED.fullmatch(text):
        raise InvalidUID(f"{keyword} is not a valid UID (PS3.5 9.1)")
    return _made(text)


def derived_uid(*parts: str) -> UID:
    """Return the UID that stands for `parts`, always the same one for the same parts in the same order."""
    return generate_uid(entropy_srcs=["\x1f".join(parts)])


def series_uid(
    installation: str, study_instance_uid: str, model_sha256: str, kind: str, sop_class: str
) -> UID:
    """Series Instance UID of one kind of result of one model for one study."""
    return derived_uid("series", installation, study_instance_uid, model_sha256, kind, sop_class)


def report_uid(
    series_instance_uid: str, settings: str, sources: list[tuple[str, str]], header_revision: int, build: int
) -> UID:
    """SOP Instance UID of one report.

    Parameters
    ----------
    series_instance_uid
        From `series_uid`.
    settings
        Whatever setting changes the content (threshold, population rule), as stable text.
    sources
        (SOP Instance UID, digest of the received data set) of each image behind the report, in any order.
    header_revision
        Number of header corrections the study has seen.
    build
        Raised when the same report has to be built anew on purpose.
    """
    named = [f"{sop}={digest}" for sop, digest in sorted(sources)]
    return derived_uid("instance", series_instance_uid, settings, *named, str(header_revision), str(build))
