"""The systemd unit is one that systemd takes, is shut off from the host, and starts what the code has."""

import json
import re
import subprocess
from pathlib import Path

import pytest
import typer.main

from service.commands.main import app
from service.commands.up import _ROLES
from service.core.errors import CONFIGURATION_EXIT_CODE
from service.core.settings import Settings, load
from tests.compose import COMPOSE
from tests.servers import ROOT, executable

UNIT = (ROOT / "deploy/systemd/hilum@.service").read_text(encoding="utf-8")
MOST_EXPOSED = 1.5
_INSTANCES = ("up", *_ROLES, "migrate")


def values(name: str) -> list[str]:
    """Return what a setting of the unit says, line by line."""
    return re.findall(rf"^{name}=(.*)$", UNIT, re.MULTILINE)


def analysed(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [executable("systemd-analyze", "systemd"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The unit of `hilum@up`, with a program that is there."""
    path = tmp_path / "hilum@up.service"
    path.write_text(UNIT.replace("ExecStart=/opt/hilum/bin/hilum", "ExecStart=/bin/true"))
    return path


def test_systemd_takes_the_unit_and_has_nothing_to_say(unit: Path) -> None:
    said = analysed("verify", str(unit))
    assert (said.returncode, said.stdout, said.stderr) == (0, "", "")


def test_a_setting_that_systemd_does_not_know_is_found(unit: Path) -> None:
    unit.write_text(UNIT.replace("ProtectHome=", "ProtectHouse="))
    assert "ProtectHouse" in analysed("verify", str(unit)).stderr


def test_the_unit_is_shut_off_from_the_host(unit: Path) -> None:
    said = analysed("security", "--offline=true", "--json=short", str(unit))
    checks = json.loads(said.stdout)
    exposed = sum(float(check["exposure"] or 0) for check in checks)
    assert {check["json_field"] for check in checks if check["set"] is False} <= {
        "RootDirectoryOrRootImage",
        "PrivateMounts",
        "MemoryDenyWriteExecute",  # torch compiles
        "RestrictAddressFamilies_AF_UNIX",
        "RestrictAddressFamilies_AF_INET_INET6",
        "ProcSubset",  # psutil reads /proc/stat
        "PrivateNetwork",
        "DeviceAllow",
        "IPAddressDeny",
    }, exposed
    threshold = analysed("security", "--offline=true", f"--threshold={10 * MOST_EXPOSED:.0f}", str(unit))
    assert threshold.returncode == 0, threshold.stdout[-200:]


def test_its_instances_are_commands() -> None:
    commands = set(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
    named = set(re.findall(r"hilum@(\w+)", UNIT)) - {"service"}
    assert named == set(_INSTANCES)
    assert named <= commands
    assert values("ExecStart") == ["/opt/hilum/bin/hilum %i"]


def test_its_settings_exist_and_lie_where_it_may_write(monkeypatch: pytest.MonkeyPatch) -> None:
    named = set(re.findall(r"HILUM_[A-Z_]*[A-Z]", UNIT))
    assert named <= {f"HILUM_{field.upper()}" for field in Settings.model_fields}
    (line,) = values("Environment")
    for assignment in line.split():
        monkeypatch.setenv(*assignment.split("=", 1))
    (state,) = values("StateDirectory")
    assert load().data_dir == Path("/var/lib") / state
    assert values("StateDirectoryMode") == ["0700"]


def test_its_secrets_have_the_names_that_are_read() -> None:
    (line,) = values("LoadCredential")
    prefix, folder = line.split(":")
    assert folder == "/etc/hilum/secrets"
    told = set(re.findall(r"\b(api_tokens|broker_url|database_url)\b", UNIT))
    ours = {name for name in COMPOSE["secrets"] if name.startswith("hilum_")}
    assert {f"{prefix}_{name}" for name in told} == ours
    assert {name.upper().removeprefix("HILUM_").lower() for name in ours} <= set(Settings.model_fields)


def test_wrong_settings_are_not_started_again_and_roles_have_time_to_drain() -> None:
    assert values("RestartPreventExitStatus") == [str(CONFIGURATION_EXIT_CODE)]
    assert int(values("TimeoutStopSec")[0]) >= 40 * len(_ROLES) + 20
    assert values("KillMode") == ["mixed"], "the roles are their parent's to stop"
