"""docker-compose.yml and env.example as compose reads them, and what deploy/prepare.sh makes for it."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import yaml

from tests.servers import ROOT

COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
ENV_EXAMPLE = (ROOT / "deploy/env.example").read_text(encoding="utf-8")
OURS = {name: service for name, service in SERVICES.items() if service.get("env_file")}
VARIABLE = re.compile(r"\$\$|\$\{(?P<name>\w+)(?::(?P<kind>[-?])(?P<text>[^}]*))?\}")


class Unset(Exception):
    """A variable that compose refuses to go on without."""


def interpolated(text: str, variables: dict[str, str]) -> str:
    """Return `text` with its variables as compose fills them in."""

    def value(match: re.Match[str]) -> str:
        if match[0] == "$$":
            return "$"
        found = variables.get(match["name"], "")
        if not found and match["kind"] == "?":
            raise Unset(match["name"])
        return found or (match["text"] if match["kind"] == "-" else "")

    return VARIABLE.sub(value, text)


def assignments(text: str, *, commented: bool) -> dict[str, str]:
    """Return the NAME=value lines of an environment file, those commented out included when asked for."""
    pattern = r"^(?:# )?([A-Z_]+)=(.*)$" if commented else r"^([A-Z_]+)=(.*)$"
    return dict(re.findall(pattern, text, re.MULTILINE))


def environment_of(service: str, dotenv: dict[str, str]) -> dict[str, str]:
    """Return the environment of a container beside a .env."""
    given = SERVICES[service]["environment"].items()
    return {**dotenv, **{name: interpolated(str(value), dotenv) for name, value in given}}


class Prepared:
    """A folder as after `git clone` and `sh deploy/prepare.sh`.

    Parameters
    ----------
    dotenv
        A .env that is there already.
    """

    def __init__(self, folder: Path, *arguments: str, dotenv: str | None = None) -> None:
        self.folder = folder
        (folder / "deploy").mkdir(parents=True, exist_ok=True)
        for name in ("prepare.sh", "env.example"):
            shutil.copy(ROOT / "deploy" / name, folder / "deploy")
        if dotenv is not None:
            (folder / ".env").write_text(dotenv, encoding="utf-8")
        self.said = self.again(*arguments)

    def again(self, *arguments: str) -> str:
        """Run it once more and return what it says."""
        command = ["sh", str(self.folder / "deploy/prepare.sh"), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    @property
    def dotenv(self) -> dict[str, str]:
        return assignments((self.folder / ".env").read_text(encoding="utf-8"), commented=False)

    @property
    def secrets(self) -> dict[str, str]:
        """The secrets by their names."""
        return {
            name: (self.folder / entry["file"]).read_text(encoding="utf-8").strip()
            for name, entry in COMPOSE["secrets"].items()
        }

    def mounted(self, service: str, folder: Path, **hosts: str) -> Path:
        """Write a container's secrets to `folder` and return it; `hosts` says where its neighbours are."""
        folder.mkdir(parents=True)
        for name in SERVICES[service].get("secrets", []):
            text = self.secrets[name]
            for host, instead in hosts.items():
                text = re.sub(rf"@{host}:\d+", f"@{instead}", text)
            (folder / name).write_text(f"{text}\n", encoding="utf-8")
        return folder
