"""Each role's image holds what the role imports, and only the worker's holds the network."""

import importlib.util
import json
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[3]
PROJECT = ROOT / "pyproject.toml"
# Imports everything a role consists of in an interpreter where the packages left out can't be imported.
_IMPORT_THE_ROLE = """
import importlib, json, pkgutil, sys
blocked, packages, modules = json.loads(sys.argv[1])

class LeftOut:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in blocked:
            raise ModuleNotFoundError(f"{name} is left out of the image", name=name)

sys.meta_path.insert(0, LeftOut())
for package in packages:
    found = importlib.import_module(package)
    modules += [module.name for module in pkgutil.walk_packages(found.__path__, package + ".")]
for module in modules:
    if "migrations" not in module:
        importlib.import_module(module)
"""
_PACKAGES = {
    "listener": ["service.core", "service.listener"],
    "api": ["service.core", "service.api"],
    "scheduler": ["service.core", "service.scheduler"],
    # The runbook has every command run here.
    "worker": ["service.core", "service.commands", "worker", "model"],
}


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """deploy/requirements.py, which belongs to no package."""
    spec = importlib.util.spec_from_file_location("requirements", ROOT / "deploy/requirements.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("role", _PACKAGES)
def test_role_imports_nothing_that_its_image_leaves_out(role: str, script: ModuleType) -> None:
    left_out = script.LEFT_OUT[role]
    blocked = [
        module
        for module, distributions in packages_distributions().items()
        if {script.name_of(name) for name in distributions} <= left_out
    ]
    assert blocked
    given = json.dumps([blocked, _PACKAGES[role], ["service.commands.main", "service.commands.roles"]])
    imported = subprocess.run(
        [sys.executable, "-c", _IMPORT_THE_ROLE, given], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert imported.returncode == 0, imported.stderr


def test_what_is_left_out_is_a_dependency(script: ModuleType) -> None:
    everything = {script.name_of(line) for line in script.requirements("network", PROJECT)}
    assert everything == script.NETWORK
    dependencies = set().union(
        *({script.name_of(line) for line in script.requirements(role, PROJECT)} for role in script.LEFT_OUT)
    )
    for left_out in script.LEFT_OUT.values():
        assert left_out <= dependencies | script.EMBEDDED


def test_only_the_worker_has_torch(script: ModuleType) -> None:
    with_torch = {
        role
        for role in script.LEFT_OUT
        if script.NETWORK & {script.name_of(line) for line in script.requirements(role, PROJECT)}
    }
    assert with_torch == {"worker"}


def test_torch_and_torchvision_are_pinned_as_a_pair(script: ModuleType) -> None:
    assert all("==" in line for line in script.requirements("network", PROJECT))
