"""An object that we made, as a file."""

import hashlib
from functools import partial

from pydicom import Dataset

from worker.context import Context
from worker.encoding import save


def written(context: Context, made: Dataset) -> tuple[str, str, int]:
    """Write an object and return its path, the SHA-256 of its bytes and their number."""
    path = context.spool.write("reports", ".dcm", partial(save, made))
    content = context.spool.absolute(path).read_bytes()
    return path, hashlib.sha256(content).hexdigest(), len(content)
