"""docker-compose.yml and env.example as compose reads them, its servers, and what deploy/prepare.sh makes."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import psycopg
import yaml
from redis import Redis as RedisClient
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.servers import ROOT, Orthanc, PostgreSQL, Redis, Server

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


class ComposeRedis(Redis):
    """Redis by the command of docker-compose.yml, and with an account that reads its configuration."""

    def __init__(self, password: str) -> None:
        super().__init__()
        self.password = password

    def command(self) -> list[str]:
        *shell, script = SERVICES["redis"]["command"]
        (self.folder / "redis_password").write_text(f"{self.password}\n")
        here = script.replace("$$", "$").replace("/data", str(self.folder))
        here = here.replace("/run/secrets", str(self.folder))
        here = here.replace("\nEND", f"\nuser onlooker on >{self.password} -@all +config|get +acl\nEND")
        return [*shell, here.replace("redis-server ", f"redis-server --port {self.port} --bind 127.0.0.1 ")]

    @property
    def client(self) -> RedisClient:
        return self.known_as("hilum")

    def known_as(self, username: str) -> RedisClient:
        """Return a client that signs in as one of the accounts."""
        return RedisClient(
            port=self.port, username=username, password=self.password, retry=Retry(NoBackoff(), 0)
        )


class ComposePostgreSQL(PostgreSQL):
    """PostgreSQL with the user, database and password that docker-compose.yml gives its own."""

    def __init__(self, password: str) -> None:
        super().__init__()
        self.password = password

    def ready(self) -> bool:
        if not super().ready():
            return False
        asked = SERVICES["postgres"]["environment"]
        assert asked["POSTGRES_USER"] == self.user
        with psycopg.connect(self._conninfo("postgres"), autocommit=True) as connection:
            connection.execute(f"ALTER ROLE {self.user} PASSWORD '{self.password}'")
            connection.execute(f"CREATE DATABASE {asked['POSTGRES_DB']}")
            (self.data / "pg_hba.conf").write_text("host all all 127.0.0.1/32 scram-sha-256\n")
            connection.execute("SELECT pg_reload_conf()")
        return True


def demonstration_pacs(listener_port: int) -> Orthanc:
    """Return the PACS of the demonstration, which sends on to a listener on this machine."""
    configuration = json.loads((ROOT / "deploy/orthanc.json").read_text(encoding="utf-8"))
    (name,) = configuration["DicomModalities"]
    title, _, _ = configuration["DicomModalities"][name]
    # Folders, ports and the network's addresses are the container's.
    for key in ("StorageDirectory", "IndexDirectory", "HttpPort", "DicomPort", "RemoteAccessAllowed"):
        del configuration[key]
    configuration["LuaScripts"] = [str(ROOT / "deploy/orthanc.lua")]
    configuration["DicomModalities"] = {name: [title, "127.0.0.1", listener_port]}
    return Orthanc(**configuration)


class Role(Server):
    """One of the gateway's containers, as a process: its command, its environment, its secrets."""

    stop_seconds = 60.0
    program = (sys.executable, "-m", "service.commands.main")

    def __init__(self, service: str, environment: dict[str, str], secrets: Path) -> None:
        self.name = service  # type: ignore[misc]
        super().__init__()
        self.given = {**environment, "CREDENTIALS_DIRECTORY": str(secrets)}

    def command(self) -> list[str]:
        return [*self.program, *SERVICES[self.name]["command"]]

    def environment(self) -> dict[str, str]:
        ours = {name: value for name, value in os.environ.items() if not name.startswith("HILUM_")}
        return {**ours, "PYTHONPATH": str(ROOT), **self.given}

    def ready(self) -> bool:
        return True
