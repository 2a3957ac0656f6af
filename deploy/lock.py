"""Write what each role's image installs, every package at one version and with its hashes: deploy/locks/.

    python deploy/lock.py             (make lock)

uv resolves for the images' Python, whatever machine this runs on. torch and torchvision have builds of their
own on PyTorch's index, whose hashes PyPI does not know: worker.txt leaves them out, and cuda.txt holds PyPI's
builds with all that these bring.
"""

import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path

from requirements import LEFT_OUT, name_of, requirements

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "deploy/locks"
PYTHON, PLATFORM = "3.12", "x86_64-unknown-linux-gnu"
_HEADER = "# Written by `make lock` from pyproject.toml: not to be changed by hand.\n"
# What torch's build for CUDA brings.
_CUDA = re.compile(r"torch$|torchvision$|triton$|nvidia-|cuda-")


def resolve(requirement_lines: Iterable[str], constraints: Path | None = None) -> dict[str, str]:
    """Return pin and hashes of everything that these requirements need, by package name."""
    options = ["--generate-hashes", "--no-header", "--no-annotate", "--quiet", "--no-python-downloads"]
    options += ["--python-version", PYTHON, "--python-platform", PLATFORM]
    if constraints is not None:
        options += ["--constraints", str(constraints)]
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-m", "uv", "pip", "compile", "-", *options],
        input="\n".join(requirement_lines),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    entries = re.split(r"\n(?=[A-Za-z0-9])", done.stdout.strip())
    return {name_of(entry): entry for entry in entries}


def write(name: str, entries: Iterable[str]) -> None:
    (FOLDER / f"{name}.txt").write_text(_HEADER + "\n".join(entries) + "\n", encoding="utf-8")


def main() -> None:
    project = ROOT / "pyproject.toml"
    FOLDER.mkdir(exist_ok=True)
    with project.open("rb") as file:
        write("build", resolve(tomllib.load(file)["build-system"]["requires"]).values())
    # One resolution for all, so that no two roles have two versions of a package.
    everything = resolve({line for role in LEFT_OUT for line in requirements(role, project)})
    write("cuda", (entry for name, entry in everything.items() if _CUDA.match(name)))
    one_version = FOLDER / "one-version.txt"
    one_version.write_text("\n".join(entry.split()[0] for entry in everything.values()), encoding="utf-8")
    try:
        for role in LEFT_OUT:
            found = resolve(requirements(role, project), one_version)
            write(role, (entry for name, entry in found.items() if not _CUDA.match(name)))
    finally:
        one_version.unlink()


if __name__ == "__main__":
    main()
