"""docker-compose.yml, Dockerfile and the example configuration say what the code does."""

import ast
import hashlib
import json
import os
import re
import shlex
import shutil
import stat
import subprocess
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

from service.commands.main import app
from service.commands.roles import QUEUES
from service.core.errors import ConfigurationError
from service.core.settings import Settings, load
from tests.compose import (
    COMPOSE,
    ENV_EXAMPLE,
    OURS,
    SERVICES,
    VARIABLE,
    Prepared,
    Unset,
    assignments,
    environment_of,
    interpolated,
)
from tests.servers import ROOT

DOCKERFILE = (ROOT / "deploy/Dockerfile").read_text(encoding="utf-8")
ORTHANC: dict[str, Any] = json.loads((ROOT / "deploy/orthanc.json").read_text(encoding="utf-8"))
NGINX = (ROOT / "deploy/ohif/nginx.conf").read_text(encoding="utf-8")
VIEWER = (ROOT / "deploy/ohif/app-config.js").read_text(encoding="utf-8")

ROLES = ("listener", "api", "scheduler", "worker")
# What somebody fills in.
FILLED_IN = {"HILUM_CALLING_AE_TITLES": "ORTHANC,ROUTER"}
SECRETS = {
    "hilum_broker_url": "redis://hilum:r@redis:6379/0",
    "hilum_database_url": "postgresql+psycopg://hilum:p@postgres:5432/hilum",
    "hilum_api_tokens": f"dashboard:viewer:{'0' * 64}",
}
# What stands in the file of HILUM_CONFIG alone has its name there as an alias.
VARIABLES = {
    f"HILUM_{name.upper()}" for name, field in Settings.model_fields.items() if field.validation_alias is None
}


def dotenv(filled_in: dict[str, str]) -> dict[str, str]:
    """Return what .env says when it is env.example with `filled_in`."""
    return {**assignments(ENV_EXAMPLE, commented=False), **filled_in}


@pytest.fixture
def settings_of(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], Settings]:
    """The settings that a container of that name finds."""

    def found(service: str) -> Settings:
        for name in [name for name in os.environ if name.startswith("HILUM_")]:
            monkeypatch.delenv(name)
        for name, value in environment_of(service, dotenv(FILLED_IN)).items():
            monkeypatch.setenv(name, value)
        folder = tmp_path / service
        folder.mkdir()
        for name in SERVICES[service]["secrets"]:
            (folder / name).write_text(f"{SECRETS[name]}\n")
        monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(folder))
        return load()

    return found


def instructions(stage: str | None = None) -> Iterator[tuple[str, str, str]]:
    """Yield stage, instruction and arguments of the Dockerfile's lines, continuation lines joined."""
    current = ""
    for line in re.sub(r"\\\n", " ", DOCKERFILE).splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        word, _, rest = line.partition(" ")
        if word == "FROM":
            current = rest.split(" AS ")[1]
        if stage in (None, current):
            yield current, word, rest.strip()


def inherited(stage: str, word: str) -> list[str]:
    """Return the arguments of an instruction in a stage, else in the stage that it builds on."""
    found = [rest for _, name, rest in instructions(stage) if name == word]
    parent = next(rest.split(" AS ")[0] for _, name, rest in instructions(stage) if name == "FROM")
    if found or parent not in {name for name, _, _ in instructions()}:
        return found
    return inherited(parent, word)


def published(service: str) -> dict[int, int]:
    """Return the published ports of a service: the container's to the host's."""
    mappings = (interpolated(mapping, {}).split(":")[-2:] for mapping in SERVICES[service].get("ports", []))
    return {int(inside): int(outside) for outside, inside in mappings}


def mounts(service: str) -> dict[str, str]:
    """Return what is mounted into a service: path to source."""
    return {mount.split(":")[1]: mount.split(":")[0] for mount in SERVICES[service].get("volumes", [])}


@pytest.mark.parametrize("name", OURS)
def test_command_is_one_that_the_command_line_has(name: str) -> None:
    command, *arguments = SERVICES[name]["command"]
    known = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    assert command in known
    parsed = known[command].make_context(command, list(arguments))
    assert parsed.params.get("queue") in (None, *QUEUES)


def test_every_image_starts_the_role_it_is_named_for() -> None:
    known = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    for role in ROLES:
        assert inherited(role, "ENTRYPOINT") == ['["hilum"]']
        (command,) = inherited(role, "CMD")
        (word,) = ast.literal_eval(command)
        assert word in known
        assert role.startswith(word)


def test_every_queue_has_a_worker() -> None:
    served = {tuple(service["command"][1:]) for service in OURS.values() if service["command"][0] == "worker"}
    assert served == {("--queue", queue) for queue in QUEUES}


@pytest.mark.parametrize(
    "path", ["docker-compose.yml", "deploy/Dockerfile", "deploy/env.example", "deploy/site/hilum.toml"]
)
def test_every_setting_named_is_one_that_exists(path: str) -> None:
    named = set(re.findall(r"HILUM_[A-Z_]*[A-Z]", (ROOT / path).read_text(encoding="utf-8")))
    assert named
    assert named <= VARIABLES


def test_every_setting_stands_in_the_example() -> None:
    there = {name for name in assignments(ENV_EXAMPLE, commented=True) if name.startswith("HILUM_")}
    assert there == VARIABLES


def test_example_shows_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    defaults = load()
    for name, value in assignments(ENV_EXAMPLE, commented=True).items():
        monkeypatch.setenv(name, value)
    assert load() == defaults


def test_variables_of_compose_stand_in_the_example() -> None:
    text = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
    used = {match["name"] for match in VARIABLE.finditer(text) if match["name"]}
    assert used <= set(assignments(ENV_EXAMPLE, commented=False))


@pytest.mark.parametrize("name", OURS)
def test_settings_of_every_container_are_accepted(name: str, settings_of: Callable[[str], Settings]) -> None:
    settings = settings_of(name)
    assert settings.broker_url == (None if name == "migrate" else SECRETS["hilum_broker_url"])
    assert settings.database_url == SECRETS["hilum_database_url"]
    assert str(settings.data_dir) in mounts(name)


def test_listener_is_open_to_named_titles_only(settings_of: Callable[[str], Settings]) -> None:
    settings = settings_of("listener")
    assert settings.dimse_host == "0.0.0.0"
    assert [peer.ae_title for peer in settings.peers] == ["ORTHANC", "ROUTER"]
    with pytest.raises(Unset, match="HILUM_CALLING_AE_TITLES"):
        environment_of("listener", dotenv({"HILUM_CALLING_AE_TITLES": ""}))


def test_api_is_open_to_tokens_only(
    settings_of: Callable[[str], Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert settings_of("api").http_host == "0.0.0.0"
    monkeypatch.delenv("CREDENTIALS_DIRECTORY")
    with pytest.raises(ConfigurationError, match="HILUM_API_TOKENS"):
        load()


@pytest.mark.parametrize("name", SERVICES)
def test_no_password_stands_in_an_environment_or_a_command(name: str) -> None:
    service = SERVICES[name]
    said = json.dumps([service.get("environment"), service.get("command"), service.get("healthcheck")])
    assert not re.search(r"PASSWORD[^_]|_TOKENS|://\w+:", said)
    assert set(service.get("secrets", [])) <= set(COMPOSE["secrets"])
    assert ("hilum_api_tokens" in service.get("secrets", [])) is (name == "api")


def test_who_gets_no_secret_needs_none() -> None:
    given = {name: set(service.get("secrets", [])) for name, service in SERVICES.items()}
    assert {name for name in given if "postgres_password" in given[name]} == {"postgres"}
    assert {name for name in given if "redis_password" in given[name]} == {"redis"}
    assert all(given[name] for name in (*OURS, "postgres", "redis"))


def test_what_prepare_makes_is_all_that_compose_asks_for(tmp_path: Path) -> None:
    made = Prepared(tmp_path, "demo")
    assert set(made.secrets) == {path.name for path in (tmp_path / "deploy/secrets").iterdir()}
    for name in OURS:
        environment_of(name, made.dotenv)
    assert f":{made.secrets['postgres_password']}@postgres:" in made.secrets["hilum_database_url"]
    assert f":{made.secrets['redis_password']}@redis:" in made.secrets["hilum_broker_url"]
    assert len({*made.secrets.values()}) == len(made.secrets)
    assert stat.S_IMODE((tmp_path / "deploy/secrets").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / ".env").stat().st_mode) == 0o600
    token = token_in(made.said)
    assert token
    entries = {entry.name: entry for entry in load(api_tokens=made.secrets["hilum_api_tokens"]).api_tokens}
    for name, role, secret in (
        ("first", "administrator", token),
        ("prometheus", "viewer", made.secrets["metrics_token"]),
    ):
        assert entries[name].role == role
        assert entries[name].sha256 == hashlib.sha256(secret.encode()).hexdigest()


def test_preparing_again_changes_nothing(tmp_path: Path) -> None:
    made = Prepared(tmp_path, "demo")
    before = made.secrets, made.dotenv
    assert token_in(made.again()) is None
    assert (made.secrets, made.dotenv) == before


def test_passwords_of_an_older_env_move_into_files(tmp_path: Path) -> None:
    """Up to 0.1 they stood in .env, and PostgreSQL's volume knows the old one."""
    tokens = f"dashboard:viewer:{'0' * 64},nurse:clinician:{'1' * 64}"
    old = f"POSTGRES_PASSWORD=old\nREDIS_PASSWORD='other'\nHILUM_API_TOKENS={tokens}\nHILUM_AE_TITLE=OURS\n"
    made = Prepared(tmp_path, dotenv=old)
    moved, _, entry = made.secrets["hilum_api_tokens"].rpartition(",")
    assert moved == tokens
    assert re.fullmatch(r"prometheus:viewer:[0-9a-f]{64}", entry)
    assert (
        made.secrets.items()
        >= {
            "postgres_password": "old",
            "redis_password": "other",
            "hilum_database_url": "postgresql+psycopg://hilum:old@postgres:5432/hilum",
            "hilum_broker_url": "redis://hilum:other@redis:6379/0",
        }.items()
    )
    emptied = {
        "POSTGRES_PASSWORD": "",
        "REDIS_PASSWORD": "",
        "HILUM_API_TOKENS": "",
        "HILUM_AE_TITLE": "OURS",
    }
    assert made.dotenv == emptied
    assert token_in(made.said) is None


def token_in(said: str) -> str | None:
    found = re.search(r"\b[0-9a-f]{64}\b", said)
    return found[0] if found else None


def test_ports_of_listener_and_api_agree(settings_of: Callable[[str], Settings]) -> None:
    dimse_port = settings_of("listener").dimse_port
    assert published("listener") == {dimse_port: dimse_port, 2762: 2762}
    assert inherited("listener", "EXPOSE") == [f"{dimse_port} 2762"]
    assert "its port (2762; empty: off)" in ENV_EXAMPLE
    http_port = settings_of("api").http_port
    assert published("api") == {http_port: http_port}
    assert inherited("api", "EXPOSE") == [str(http_port)]


def test_api_demonstration_and_monitoring_are_published_on_this_machine_alone() -> None:
    for name in ("api", "orthanc", "viewer", "prometheus", "grafana"):
        assert all(interpolated(port, {}).startswith("127.0.0.1:") for port in SERVICES[name]["ports"])


def test_brokers_and_ledgers_are_not_published() -> None:
    for name, service in SERVICES.items():
        if name not in {"listener", "api", "orthanc", "viewer", "prometheus", "grafana"}:
            assert "ports" not in service
    assert COMPOSE["networks"]["inside"] == {"internal": True}


def test_only_who_talks_to_strangers_has_a_way_out() -> None:
    outside = {name for name, service in SERVICES.items() if "outside" in service["networks"]}
    assert outside == {
        *("listener", "api", "worker-deliver", "orthanc", "viewer"),
        *("prometheus", "grafana"),
    }


def test_who_parses_and_computes_reaches_redis_and_the_ledger_alone() -> None:
    for name in (
        "worker-decode",
        "worker-infer",
        "worker-infer-gpu",
        "worker-report",
        "scheduler",
        "migrate",
    ):
        assert SERVICES[name]["networks"] == ["inside"]
    with_outside = {name for name, service in SERVICES.items() if "outside" in service["networks"]}
    # Nobody else on the inside forwards: what is on both networks is an end of connections.
    assert {"redis", "postgres"} & with_outside == set()


def test_every_image_from_elsewhere_has_a_version() -> None:
    images = [service["image"] for service in SERVICES.values() if "build" not in service]
    stages = {stage for stage, _, _ in instructions()}
    images += [rest.split(" AS ")[0] for _, word, rest in instructions() if word == "FROM"]
    defaults = dict(rest.split("=", 1) for _, word, rest in instructions() if word == "ARG")
    for image in images:
        named = re.sub(r"\$\{(\w+)\}", lambda match: defaults[match[1]], image)
        if named not in stages:
            _, _, tag = named.partition(":")
            assert re.search(r"\d|bookworm", tag), named


def test_demonstration_pacs_and_listener_know_each_other(
    settings_of: Callable[[str], Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_of("listener")
    assert ORTHANC["DicomModalities"] == {"hilum": [settings.ae_title, "listener", settings.dimse_port]}
    destination = re.search(r"The demo profile: (PACS=\S+)", ENV_EXAMPLE)
    assert destination
    monkeypatch.setenv("HILUM_DESTINATIONS", destination[1])
    (pacs,) = load().destinations
    assert (pacs.ae_title, pacs.host, pacs.port) == (ORTHANC["DicomAet"], "orthanc", ORTHANC["DicomPort"])
    title = re.search(r"The demo profile: ([A-Z]+)$", ENV_EXAMPLE, re.MULTILINE)
    assert title
    assert title[1] == ORTHANC["DicomAet"]
    lua = (ROOT / "deploy/orthanc.lua").read_text(encoding="utf-8")
    assert f"'{settings.ae_title}'" in lua
    assert "'hilum'" in lua


def test_demonstration_pacs_has_its_ports_and_folders() -> None:
    assert published("orthanc") == {ORTHANC["DicomPort"]: ORTHANC["DicomPort"]}
    assert inherited("pacs", "EXPOSE") == [f"{ORTHANC['DicomPort']} {ORTHANC['HttpPort']}"]
    assert f"http://127.0.0.1:{ORTHANC['HttpPort']}/system" in SERVICES["orthanc"]["healthcheck"]["test"]
    assert mounts("orthanc") == {ORTHANC["StorageDirectory"]: "orthanc"}
    assert ORTHANC["IndexDirectory"] == ORTHANC["StorageDirectory"]
    assert inherited("pacs", "VOLUME") == [ORTHANC["StorageDirectory"]]
    (copied,) = [rest for _, word, rest in instructions("pacs") if word == "COPY"]
    *sources, target = copied.split()
    placed = {target + Path(source).name for source in sources}
    assert placed == {*ORTHANC["LuaScripts"], ast.literal_eval(inherited("pacs", "CMD")[0])[1]}


def test_from_a_clone_to_the_first_report_it_takes_five_commands_that_exist(tmp_path: Path) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    block = next(text for text in readme.split("```console\n")[1:] if text.startswith("$ git clone"))
    commands = re.findall(r"^\$ (.*?)(?:\s+#.*)?$", block.split("```")[0], re.MULTILINE)
    assert len(commands) <= 5
    clone, enter, prepare, up, run = (shlex.split(command) for command in commands)
    assert clone[-1] == enter[-1]
    made = Prepared(tmp_path, *prepare[2:])
    assert (prepare[0], made.folder / prepare[1]) == ("sh", tmp_path / "deploy/prepare.sh")
    profiles = {profile for service in SERVICES.values() for profile in service.get("profiles", [])}
    assert up[up.index("--profile") + 1] in profiles
    assert SERVICES["orthanc"]["depends_on"] == {"listener": {"condition": "service_healthy"}}
    # The sender is no role: it calls itself by a title that may send, and goes to where the PACS is reached.
    service = run[run.index("--rm") + 3]
    command, path, *options = run[run.index(service) + 1 :]
    send = typer.main.get_command(app).commands[command]  # type: ignore[attr-defined]
    given = send.make_context(command, [path, *options]).params
    assert given["paths"] == [Path(path)]
    assert run[run.index("-v") + 1].split(":")[1:] == [path, "ro"]
    assert given["calling"] in made.dotenv["HILUM_CALLING_AE_TITLES"].split(",")
    assert given["to"] == f"dicom://{ORTHANC['DicomAet']}@orthanc:{ORTHANC['DicomPort']}"
    assert set(SERVICES[service]["networks"]) & set(SERVICES["orthanc"]["networks"])


def test_viewer_and_pacs_share_one_origin() -> None:
    (listened,) = re.findall(r"listen (\d+);", NGINX)
    assert list(published("viewer")) == [int(listened)]
    assert inherited("viewer", "EXPOSE") == [listened]
    assert f"http://127.0.0.1:{listened}/app-config.js" in SERVICES["viewer"]["healthcheck"]["test"]
    assert re.findall(r"proxy_pass http://(.*);", NGINX) == [f"orthanc:{ORTHANC['HttpPort']}"]
    served = {ORTHANC["DicomWeb"]["Root"].strip("/"), ORTHANC["DicomWeb"]["WadoRoot"].strip("/")}
    (proxied,) = re.findall(r"location ~ \^/\((.*)\) \{", NGINX)
    assert set(proxied.split("|")) == served
    roots = dict(re.findall(r"(qidoRoot|wadoRoot|wadoUriRoot): '/(.*)',", VIEWER))
    assert roots == {"qidoRoot": "dicom-web", "wadoRoot": "dicom-web", "wadoUriRoot": "wado"}
    assert set(roots.values()) == served


def test_volumes_are_declared_and_used() -> None:
    sources = [source for name in SERVICES for source in mounts(name).values()]
    named = {source for source in sources if not source.startswith(".")}
    assert named == set(COMPOSE["volumes"])
    for folder in set(sources) - named:
        assert (ROOT / folder).is_dir()


def test_roles_share_the_data_folder_of_their_images(settings_of: Callable[[str], Settings]) -> None:
    for role in ROLES:
        assert inherited(role, "VOLUME") == ["/var/lib/hilum"]
        assert any("HILUM_DATA_DIR=/var/lib/hilum" in line for line in inherited(role, "ENV"))
    for name in OURS:
        assert mounts(name)["/var/lib/hilum"] == "data"
        assert settings_of(name).data_dir == Path("/var/lib/hilum")


def test_example_of_the_configuration_file_is_one() -> None:
    text = (ROOT / "deploy/site/hilum.toml").read_text(encoding="utf-8")
    assert tomllib.loads(text) == {}
    sample = re.sub(r"^# ?", "", text[text.index("# [destinations") :], flags=re.MULTILINE)
    (name, entry), *others = tomllib.loads(sample)["destinations"].items()
    assert load(destinations=[{"name": name, **entry}]).destinations[0].required
    assert not others


def test_every_source_that_the_images_copy_is_there_and_sent() -> None:
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    sent = {line[1:] for line in lines if line.startswith("!")}
    for _, word, rest in instructions():
        if word == "COPY" and not rest.startswith("--from="):
            for source in rest.split()[:-1]:
                assert (ROOT / source).exists(), source
                assert source.split("/")[0] in sent


def test_every_stage_named_is_one_of_the_file() -> None:
    stages = {stage for stage, _, _ in instructions()}
    named = {
        rest.split()[0].removeprefix("--from=") for _, _, rest in instructions() if rest.startswith("--from=")
    }
    assert named <= stages
    assert {service["build"]["target"] for service in SERVICES.values() if "build" in service} == {
        *ROLES,
        "pacs",
        "viewer",
    }


def test_role_and_image_go_together() -> None:
    for name, service in OURS.items():
        role = {"listen": "listener", "migrate": "scheduler"}.get(
            service["command"][0], service["command"][0]
        )
        assert service["build"]["target"] == role
        assert service["image"].partition(":")[0] == f"hilum-{role}"
        assert (ROOT / service["build"]["dockerfile"]).samefile(ROOT / "deploy/Dockerfile"), name


@pytest.mark.parametrize("target", [*ROLES, "pacs", "viewer"])
def test_image_is_not_root_by_itself(target: str) -> None:
    user = inherited(target, "USER")[-1]
    assert user.split(":")[0] not in {"", "0", "root"}
    if target in ROLES:
        assert {service["user"] for service in OURS.values()} == {user}


def test_gpu_worker_is_built_with_cuda_and_reserves_a_device() -> None:
    service = SERVICES["worker-infer-gpu"]
    assert service["profiles"] == ["gpu"]
    assert service["build"]["args"] == {"VARIANT": "cuda"}
    assert service["image"] != SERVICES["worker-infer"]["image"]
    (device,) = service["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"]
    assert device["count"] == "all", "a number gives the first ones to every worker of the service"


def test_packages_come_from_pypi_and_the_network_from_pytorchs_cpu_index() -> None:
    assert re.findall(r"https?://\S+", DOCKERFILE.replace('"', " ")) == [
        "https://download.pytorch.org/whl/cpu"
    ]


@pytest.mark.parametrize("name", SERVICES)
def test_service_is_hardened(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert "/tmp" in service["tmpfs"]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["init"] is True
    assert service["pids_limit"] > 0
    assert re.fullmatch(r"\d+[mg]", service["mem_limit"])
    assert not {"network_mode", "pid", "ipc", "devices", "cap_add"} & set(service)
    assert "/var/run/docker.sock" not in str(service)
    assert "privileged" not in service
    assert re.fullmatch(r"\d+s", service["stop_grace_period"])
    user = service.get("user") or inherited(service["build"]["target"], "USER")[-1]
    assert user.split(":")[0] not in {"", "0", "root"}


@pytest.mark.parametrize("name", SERVICES)
def test_service_restarts_and_is_watched(name: str) -> None:
    service = SERVICES[name]
    once = name == "migrate"
    assert service["restart"] == ("no" if once else "unless-stopped")
    assert service["healthcheck"].get("disable", False) is once
    if once:
        return
    test = service["healthcheck"]["test"]
    assert test[0] in {"CMD", "CMD-SHELL"}
    if name in OURS:
        copied = next(rest for _, word, rest in instructions("role") if word == "COPY").split()
        role = service["command"][-1].replace("listen", "listener")
        assert test[1:] == ["python", copied[-1], role]


def test_redis_keeps_what_it_is_given() -> None:
    command = SERVICES["redis"]["command"][-1]
    for option in ("--appendonly yes", "--maxmemory-policy noeviction"):
        assert option in command
    assert "/data" in mounts("redis")


def test_roles_wait_for_a_migrated_ledger() -> None:
    for name, service in OURS.items():
        if name == "migrate":
            assert service["depends_on"] == {"postgres": {"condition": "service_healthy"}}
        else:
            assert service["depends_on"]["migrate"] == {"condition": "service_completed_successfully"}


def test_compose_itself_accepts_the_file(tmp_path: Path) -> None:
    """Only where the client has compose, which needs no engine for this; the tests above stand without it."""
    client = shutil.which("docker")
    if client is None:
        return
    if subprocess.run([client, "compose", "version"], capture_output=True, check=False).returncode:
        return
    Prepared(tmp_path, "demo")
    shutil.copy(ROOT / "docker-compose.yml", tmp_path)
    asked = subprocess.run(
        [client, "compose", "--profile", "*", "config", "--quiet"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert asked.returncode == 0, asked.stderr
