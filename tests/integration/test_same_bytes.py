"""What is built again elsewhere has the same bytes."""

import os
import subprocess
import sys


def test_document_has_the_same_bytes_in_every_process() -> None:
    code = (
        "import hashlib; from tests.unit.worker.test_document import *;"
        "print(hashlib.sha256(encoded(build(image(POSITIVE)))).hexdigest())"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed, "TZ": zone},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed, zone in (("1", "UTC"), ("2", "Asia/Tokyo"))
    }
    assert len(digests) == 1
