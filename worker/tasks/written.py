"""An object that we made, as a file."""

import hashlib

from pydicom import Dataset

from worker.context import Context


def written(context: Context, made: Dataset) -> tuple[str, str, int]:
    """Write an object and return its path, the SHA-256 of its bytes and their number."""
    path = context.spool.write(
        "reports", ".dcm", lambda stream: made.save_as(stream, enforce_file_format=True)
    )
    content = context.spool.absolute(path).read_bytes()
    return path, hashlib.sha256(content).hexdigest(), len(content)
