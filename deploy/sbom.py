"""Write what this environment is made of as a CycloneDX 1.6 document: packages, licences, weights, system.

    python deploy/sbom.py > sbom.json                 (make sbom)
    python deploy/sbom.py --licences > licences.md    (make licences)

Needs nothing but Python, so that the images run it on themselves: it describes what is installed, not what
was asked for. Of the Python packages it lists what Hilum needs to run; on Debian, all of the system's.
"""

import hashlib
import json
import re
import struct
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

# Each lets a hospital use, change and pass on Hilum. LGPL and MPL ask for the source of the library itself.
ALLOWED = {
    *("0BSD", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0", "CC0-1.0", "CNRI-Python", "HPND"),
    *(
        "ISC",
        "LGPL-3.0-only",
        "MIT",
        "MIT-0",
        "MIT-CMU",
        "MPL-2.0",
        "PSF-2.0",
        "Python-2.0",
        "Unlicense",
        "Zlib",
    ),
}
# What a package's own words or classifiers mean (SPDX).
_MEANT = {
    "Apache License 2.0": "Apache-2.0",
    "Apache Software License": "Apache-2.0",
    "Apache 2.0": "Apache-2.0",
    "3-Clause BSD License": "BSD-3-Clause",
    "BSD": "BSD-3-Clause",
    "BSD License": "BSD-3-Clause",
    "BSD-3": "BSD-3-Clause",
    "GNU Lesser General Public License v3 (LGPLv3)": "LGPL-3.0-only",
    "ISC License (ISCL)": "ISC",
    "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Python Software Foundation License": "PSF-2.0",
}


def runtime() -> list[Distribution]:
    """Return every installed distribution that Hilum needs to run, itself left out, by name."""
    found: dict[str, Distribution] = {}
    waiting = ["hilum"]
    while waiting:
        name = normalised(waiting.pop())
        try:
            installed = distribution(name)
        except PackageNotFoundError:
            continue  # left out of this role's image, or for another platform
        if name in found:
            continue
        found[name] = installed
        for line in installed.requires or []:
            requirement, _, marker = line.partition(";")
            if "extra" not in marker and (match := re.match(r"[A-Za-z0-9._-]+", requirement)):
                waiting.append(match[0])
            # Of extras only the one that Hilum asks for.
            waiting += [f"psycopg-{extra}" for extra in re.findall(r"^psycopg\[(\w+)\]", requirement)]
    del found["hilum"]
    return [found[name] for name in sorted(found)]


def normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def licence(package: Distribution) -> str:
    """Return a package's licence as an SPDX expression, as far as its metadata tells."""
    metadata = package.metadata
    if expression := metadata.get("License-Expression"):
        return str(expression)
    classifiers = [
        line.rsplit(" :: ", 1)[-1]
        for line in metadata.get_all("Classifier") or []
        if line.startswith("License :: ") and not line.endswith("OSI Approved")
    ]
    words = classifiers or [str(metadata.get("License") or "unknown").strip().splitlines()[0]]
    return " AND ".join(dict.fromkeys(_MEANT.get(word, word) for word in words))


def allowed(expression: str) -> bool:
    """Return whether one may choose to be bound by allowed licences alone; with brackets all have to be."""
    choices = [re.sub(r"[()]|\bOR\b", " AND ", expression)] if "(" in expression else expression.split(" OR ")
    return any(
        all(part.partition(" WITH ")[0].strip() in ALLOWED for part in choice.split(" AND ") if part.strip())
        for choice in choices
    )


def document() -> dict[str, Any]:
    hilum = distribution("hilum")
    components = [_library(package) for package in runtime()]
    components += [_weights(path) for path in sorted(_weights_folder().glob("*.safetensors"))]
    components += list(_system())
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "component": {
                "type": "application",
                "bom-ref": "hilum",
                "name": "hilum",
                "version": hilum.version,
                "licenses": [{"license": {"id": "Apache-2.0"}}],
            }
        },
        "components": components,
        "dependencies": [{"ref": "hilum", "dependsOn": [item["bom-ref"] for item in components]}],
    }


def _library(package: Distribution) -> dict[str, Any]:
    name = normalised(package.metadata["Name"])
    purl = f"pkg:pypi/{name}@{package.version.replace('+', '%2B')}"
    said = licence(package)
    known = re.fullmatch(r"[A-Za-z0-9.()+ -]+", said) and allowed(said)
    terms = {"expression": said} if known else {"license": {"name": said}}
    return {
        "type": "library",
        "bom-ref": purl,
        "name": name,
        "version": package.version,
        "purl": purl,
        "licenses": [terms],
    }


def _weights_folder() -> Path:
    beside = Path(__file__).resolve().parents[1] / "model/weights"
    return beside if beside.is_dir() else Path(str(distribution("hilum").locate_file("model/weights")))


def _weights(path: Path) -> dict[str, Any]:
    content = path.read_bytes()
    # The file begins with the length of its header, and that is JSON.
    (length,) = struct.unpack("<Q", content[:8])
    said: dict[str, str] = json.loads(content[8 : 8 + length])["__metadata__"]
    sha256 = hashlib.sha256(content).hexdigest()
    return {
        "type": "machine-learning-model",
        "bom-ref": f"weights:{sha256}",
        "name": json.loads(said["name"]),
        "version": json.loads(said["version"]),
        "description": "Research use only, not for diagnosis. See model/card.md.",
        "hashes": [{"alg": "SHA-256", "content": sha256}],
        "licenses": [{"license": {"id": "Apache-2.0"}}],
        "properties": [{"name": "hilum:file", "value": path.name}],
    }


def _system() -> Iterator[dict[str, Any]]:
    """Yield Debian's packages; nothing on another system."""
    query = ["dpkg-query", "--show", "--showformat", "${Package}\t${Version}\t${Architecture}\n"]
    try:
        listed = subprocess.run(query, capture_output=True, text=True, check=True).stdout  # noqa: S603
    except (FileNotFoundError, subprocess.CalledProcessError):
        return
    for line in listed.splitlines():
        name, version, architecture = line.split("\t")
        encoded = version.replace("+", "%2B").replace(":", "%3A")
        purl = f"pkg:deb/debian/{name.replace('+', '%2B')}@{encoded}?arch={architecture}"
        yield {"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl}


def licences() -> str:
    """Return a table of what the Python packages ask of who uses them."""
    rows = [f"| {normalised(item.metadata['Name'])} | {licence(item)} |" for item in runtime()]
    return "\n".join(
        [
            "# Licences of what Hilum needs to run",
            "",
            "Written by `make licences` from the packages' own metadata; none forbids the use in a hospital. "
            "LGPL-3.0 and MPL-2.0 ask that changes to that library itself be passed on. The image of the GPU "
            "worker holds NVIDIA's CUDA libraries too (nvidia-…, cuda-…), under NVIDIA's own terms: read "
            "them before you pass that image on; the image for the CPU has none.",
            "",
            "| package | licence (SPDX) |",
            "|---|---|",
            *rows,
            "",
        ]
    )


if __name__ == "__main__":
    sys.stdout.write(licences() if "--licences" in sys.argv[1:] else json.dumps(document(), indent=1) + "\n")
