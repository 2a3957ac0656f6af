"""Ask which locked packages have known vulnerabilities, and say so when nobody could be asked.

    python deploy/audit.py            (make audit)

Ends with 1 for a vulnerability that is not excused below. A service that cannot be reached, or does not know
the packages, is no fault of theirs: it ends with 0 and says that nothing was checked. pip-audit itself would
call that a success. An empty answer is no proof either: read the advisories of what parses strangers' bytes.
"""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
EXCUSED: Mapping[str, str] = {}
"""Advisory by its id, and why it does not touch Hilum."""


def verdict(report: Mapping[str, Any] | None, complaint: str) -> tuple[int, list[str]]:
    """Return exit code and lines to print for what pip-audit reported, None when it could not."""
    packages = report["dependencies"] if report else []
    asked = [package for package in packages if "vulns" in package]
    if not asked:
        last = complaint.strip().splitlines()[-1:] or ["the service knows none of the packages"]
        return 0, [f"NOTHING WAS CHECKED: {last[0]}"]
    found = [(package, item) for package in asked for item in package["vulns"]]
    lines = [
        f"{package['name']} {package['version']}: {item['id']}, "
        + (f"excused: {EXCUSED[item['id']]}" if item["id"] in EXCUSED else _mended(item))
        for package, item in found
    ]
    unknown = [package["name"] for package in packages if "vulns" not in package]
    if unknown:
        lines.append(f"not checked: {', '.join(unknown)}")
    open_ones = sum(item["id"] not in EXCUSED for _, item in found)
    lines.append(f"{len(asked)} packages checked, {open_ones} vulnerabilities")
    return int(open_ones > 0), lines


def _mended(item: Mapping[str, Any]) -> str:
    return f"mended in {', '.join(item['fix_versions'])}" if item["fix_versions"] else "not mended yet"


def main() -> int:
    locks = sorted((ROOT / "deploy/locks").glob("*.txt"))
    options = ["--disable-pip", "--require-hashes", "--format", "json", "--progress-spinner", "off"]
    done = subprocess.run(  # noqa: S603
        [
            *(sys.executable, "-m", "pip_audit", *options),
            *(part for lock in locks for part in ("--requirement", str(lock))),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    report = json.loads(done.stdout) if done.stdout.startswith("{") else None
    code, lines = verdict(report, done.stderr if report is None else "")
    sys.stdout.write("\n".join(lines) + "\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
