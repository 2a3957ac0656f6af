"""What is installed is locked and hashed, listed with its licence and the weights, and asked about."""

import hashlib
import importlib.util
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from packaging.requirements import Requirement

from model.weights import default_weights

ROOT = Path(__file__).resolve().parents[3]
DOCKERFILE = re.sub(r"\\\n\s*", " ", (ROOT / "deploy/Dockerfile").read_text(encoding="utf-8"))
ROLES = ("listener", "api", "scheduler", "worker")


def script(name: str) -> ModuleType:
    """Return a script of deploy/, which belongs to no package."""
    spec = importlib.util.spec_from_file_location(name, ROOT / f"deploy/{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


REQUIREMENTS, SBOM, AUDIT = script("requirements"), script("sbom"), script("audit")


def locked(name: str) -> dict[str, tuple[str, list[str]]]:
    """Return version and hashes of each package of a lock."""
    text = (ROOT / f"deploy/locks/{name}.txt").read_text(encoding="utf-8")
    entries = re.split(r"\n(?=[A-Za-z0-9])", text.replace(" \\\n", " "))
    found = {}
    for entry in entries:
        if match := re.match(r"([A-Za-z0-9._-]+)==(\S+)", entry):
            found[REQUIREMENTS.name_of(match[1])] = (
                match[2],
                re.findall(r"--hash=sha256:([0-9a-f]{64})", entry),
            )
    return found


@pytest.mark.parametrize("name", [*ROLES, "cuda", "build"])
def test_every_locked_package_has_a_hash(name: str) -> None:
    packages = locked(name)
    assert packages
    assert [package for package, (_, hashes) in packages.items() if not hashes] == []


@pytest.mark.parametrize("role", ROLES)
def test_a_lock_holds_what_its_role_asks_for_and_no_network_elsewhere(role: str) -> None:
    packages = locked(role)
    for line in REQUIREMENTS.requirements(role, ROOT / "pyproject.toml"):
        asked = Requirement(line)
        name = REQUIREMENTS.name_of(line)
        if name not in REQUIREMENTS.NETWORK:
            assert asked.specifier.contains(packages[name][0]), f"make lock: {line}"
    left_out = REQUIREMENTS.LEFT_OUT[role] | REQUIREMENTS.NETWORK
    assert not left_out & set(packages)


def test_torch_with_cuda_is_the_pair_of_the_project_and_hashed() -> None:
    for line in REQUIREMENTS.requirements("network", ROOT / "pyproject.toml"):
        version, hashes = locked("cuda")[REQUIREMENTS.name_of(line)]
        assert Requirement(line).specifier.contains(version)
        assert hashes


def test_the_project_is_built_with_locked_tools() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    for line in project["build-system"]["requires"]:
        assert Requirement(line).specifier.contains(locked("build")[REQUIREMENTS.name_of(line)][0])


def test_no_package_has_two_versions() -> None:
    versions: dict[str, set[str]] = {}
    for name in (*ROLES, "cuda"):
        for package, (version, _) in locked(name).items():
            versions.setdefault(package, set()).add(version)
    assert {package: found for package, found in versions.items() if len(found) > 1} == {}


def installs() -> Iterator[str]:
    for command in re.findall(r"pip (?:install|wheel) .*?(?=&&|;;|\n|$)", DOCKERFILE):
        yield " ".join(command.split())


def test_every_image_installs_by_hash() -> None:
    commands = list(installs())
    for role in ROLES:
        assert f"pip install --require-hashes -r deploy/locks/{role}.txt" in commands
    unhashed = [command for command in commands if "--require-hashes" not in command]
    # What was built here from our source, and the pair whose index has no hashes: at exact versions, alone.
    assert [command for command in unhashed if "--no-deps" not in command] == []
    assert {command.split()[-1] for command in unhashed} == {"/wheel/*.whl", "/dev/stdin", "."}


def test_every_image_says_what_it_is_made_of() -> None:
    written = re.findall(r"python deploy/sbom.py > (\S+)", DOCKERFILE)
    assert written == ["/opt/hilum/sbom.json"] * len(ROLES)


# --- what is in it


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    made = subprocess.run(
        [sys.executable, ROOT / "deploy/sbom.py"], capture_output=True, text=True, check=True, cwd="/"
    )
    found: dict[str, Any] = json.loads(made.stdout)
    return found


def test_the_bill_of_materials_is_cyclonedx(document: dict[str, Any]) -> None:
    # It compiles grammars when it is imported: a second of each process that collects tests.
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(document)) is None


def test_the_bill_of_materials_names_the_weights_by_their_hash(document: dict[str, Any]) -> None:
    (weights,) = [item for item in document["components"] if item["type"] == "machine-learning-model"]
    shipped = default_weights()
    sha256 = hashlib.sha256(shipped.read_bytes()).hexdigest()
    assert weights["hashes"] == [{"alg": "SHA-256", "content": sha256}]
    assert f"{weights['name']}-{weights['version']}.safetensors" == shipped.name


def test_the_bill_of_materials_names_every_dependency_and_no_tool_of_the_developers(
    document: dict[str, Any],
) -> None:
    named = {item["name"] for item in document["components"] if item.get("purl", "").startswith("pkg:pypi")}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = [Requirement(line) for line in project["dependencies"]]
    needed = {
        REQUIREMENTS.name_of(item.name) for item in asked if item.marker is None or item.marker.evaluate()
    }
    assert needed <= named
    assert not {"pytest", "ruff", "mypy", "hypothesis"} & named


def test_no_licence_forbids_the_use() -> None:
    packages = SBOM.runtime()
    assert len(packages) > 50
    said = {package.metadata["Name"]: SBOM.licence(package) for package in packages}
    assert {name: licence for name, licence in said.items() if not SBOM.allowed(licence)} == {}


@pytest.mark.parametrize(
    ("expression", "answer"),
    [
        ("MIT", True),
        ("MIT AND (BSD-3-Clause OR ISC)", True),
        ("GPL-3.0-only AND (MIT OR BSD-3-Clause)", False),
        ("Apache-2.0 WITH LLVM-exception", True),
        ("GPL-3.0-only OR MIT", True),
        ("GPL-3.0-only", False),
        ("MIT AND AGPL-3.0-only", False),
        ("CC-BY-NC-4.0", False),
        ("unknown", False),
    ],
)
def test_a_licence_is_allowed_when_one_may_choose_so(expression: str, answer: bool) -> None:
    assert SBOM.allowed(expression) is answer


def test_the_list_of_licences_names_every_direct_dependency() -> None:
    listed = dict(
        re.findall(r"^\| ([a-z0-9-]+) \| (.+) \|$", (ROOT / "deploy/licences.md").read_text(), re.MULTILINE)
    )
    for line in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]:
        assert SBOM.allowed(listed[REQUIREMENTS.name_of(line)]), f"make licences: {line}"


# --- what is known about it


def package(*advisories: str, fixed: bool = True) -> dict[str, Any]:
    vulns = [{"id": name, "fix_versions": ["2"] if fixed else []} for name in advisories]
    return {"name": "thing", "version": "1", "vulns": vulns}


SKIPPED = {"name": "other", "skip_reason": "not found"}


@pytest.mark.parametrize(
    ("report", "complaint", "code", "said"),
    [
        (None, "ConnectionError: no route", 0, "NOTHING WAS CHECKED: ConnectionError: no route"),
        ({"dependencies": [SKIPPED]}, "", 0, "NOTHING WAS CHECKED: the service knows none of the packages"),
        ({"dependencies": [package(), SKIPPED]}, "", 0, "not checked: other"),
        ({"dependencies": [package()]}, "", 0, "1 packages checked, 0 vulnerabilities"),
        ({"dependencies": [package("CVE-1")]}, "", 1, "thing 1: CVE-1, mended in 2"),
        ({"dependencies": [package("CVE-1", fixed=False)]}, "", 1, "thing 1: CVE-1, not mended yet"),
        ({"dependencies": [package("CVE-0")]}, "", 0, "thing 1: CVE-0, excused: not called"),
        ({"dependencies": [package("CVE-0", "CVE-1")]}, "", 1, "1 packages checked, 1 vulnerabilities"),
    ],
)
def test_a_vulnerability_fails_and_silence_is_told(
    report: dict[str, Any] | None, complaint: str, code: int, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(AUDIT, "EXCUSED", {"CVE-0": "not called"})
    found, lines = AUDIT.verdict(report, complaint)
    assert found == code
    assert said in lines
