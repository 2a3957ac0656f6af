"""The containers of docker-compose.yml as processes: no Docker engine, and everything else as it is wired."""

import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import psutil
import pytest
from pydicom.uid import Comprehensive3DSRStorage

from tests import audit_trail, factories
from tests.compose import (
    OURS,
    SERVICES,
    ComposePostgreSQL,
    ComposeRedis,
    Prepared,
    Role,
    demonstration_pacs,
    environment_of,
)
from tests.servers import HTTP, Orthanc, ServerError, eventually, free_port


class Stack:
    """What ``docker compose --profile demo up`` starts, but for the viewer."""

    def __init__(self, folder: Path, running: ExitStack) -> None:
        self.folder, self.running = folder, running
        self.prepared = Prepared(folder / "site", "demo")
        self.dimse_port, self.http_port = free_port(), free_port()
        self.pacs: Orthanc = running.enter_context(demonstration_pacs(self.dimse_port))
        secrets = self.prepared.secrets
        self.redis = running.enter_context(ComposeRedis(secrets["redis_password"]))
        postgres = running.enter_context(ComposePostgreSQL(secrets["postgres_password"]))
        self.hosts = {
            "redis": f"127.0.0.1:{self.redis.port}",
            "postgres": f"127.0.0.1:{postgres.port}",
            "orthanc": f"127.0.0.1:{self.pacs.dicom_port}",
        }
        self.roles: dict[str, Role] = {}

    def role(self, service: str) -> Role:
        environment = environment_of(service, self.prepared.dotenv)
        environment["HILUM_DATA_DIR"] = str(self.folder / "data")
        for setting, port in (("HILUM_DIMSE_PORT", self.dimse_port), ("HILUM_HTTP_PORT", self.http_port)):
            if setting in SERVICES[service]["environment"]:
                environment[setting] = str(port)
        environment["HILUM_DESTINATIONS"] = re.sub(
            r"@orthanc:\d+", f"@{self.hosts['orthanc']}", environment["HILUM_DESTINATIONS"]
        )
        secrets = self.prepared.mounted(service, self.folder / "secrets" / service, **self.hosts)
        return Role(service, environment, secrets)

    def up(self) -> None:
        """Run what the others wait for, then start those."""
        once = {name for name, service in OURS.items() if service["restart"] == "no"}
        for name in once:
            with self.role(name) as process:
                assert process.process is not None
                assert process.process.wait(240) == 0, process.log()
        for name in set(OURS) - once:
            if "profiles" not in OURS[name]:
                self.roles[name] = self.running.enter_context(self.role(name))
        self.eventually(self.complete, "every role is alive")

    def eventually(self, predicate: Callable[[], object], what: str) -> None:
        """Wait for something, and show what every role said when it does not come."""
        try:
            eventually(predicate, 240, what, 0.2)
        except ServerError as late:
            said = "\n".join(f"--- {name}\n{role.log()}" for name, role in self.roles.items())
            raise ServerError(f"{late}\n{said}") from None

    def send(self, path: Path) -> None:
        """Send a film to the PACS as the README says."""
        sender = Role("worker-deliver", {}, self.folder)
        to = f"dicom://{self.pacs.aet}@{self.hosts['orthanc']}"
        command = [*sender.program, "send", str(path), "--calling", "ROUTER", "--to", to]
        sent = subprocess.run(command, env=sender.environment(), capture_output=True, text=True, check=False)
        assert sent.returncode == 0, sent.stderr

    def complete(self) -> bool:
        for role in self.roles.values():
            assert role.process is not None
            assert role.process.poll() is None, role.log()
        try:
            return HTTP.get(f"http://127.0.0.1:{self.http_port}/readyz", timeout=5).is_success
        except httpx.HTTPError:
            return False

    def down(self) -> dict[str, int]:
        """Stop as compose does, all at once, and return how each ended."""
        processes = {name: role.process for name, role in self.roles.items() if role.process is not None}
        for process in processes.values():
            process.send_signal(signal.SIGTERM)
        return {name: process.wait(60) for name, process in processes.items()}


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    with ExitStack() as running:
        made = Stack(tmp_path, running)
        made.up()
        yield made


# Nine processes that import half of Python's science: 45 s of processor time.
@pytest.mark.e2e
@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_film_that_is_stored_in_the_pacs_of_compose_gets_its_report_there(
    stack: Stack, tmp_path: Path
) -> None:
    film = factories.chest_film("compose")
    pacs, study = stack.pacs, str(film.StudyInstanceUID)
    stack.send(factories.write(film, tmp_path))
    stack.eventually(
        lambda: Comprehensive3DSRStorage in {item.sop_class_uid for item in pacs.instances(study)},
        "the report",
    )
    # What a decoder is given is no key to anything but the queue and the ledger.
    decoder = stack.roles["worker-decode"].process
    assert decoder is not None
    held = psutil.Process(decoder.pid).environ()
    assert not [value for value in stack.prepared.secrets.values() if value in str(held)]
    assert HTTP.get(stack_url(stack), timeout=10).status_code == 401
    (token,) = re.findall(r"\b[0-9a-f]{64}\b", stack.prepared.said)

    def studies() -> list[tuple[str, str]]:
        signed_in = HTTP.get(stack_url(stack), headers={"Authorization": f"Bearer {token}"}, timeout=10)
        return [(item["study_instance_uid"], item["state"]) for item in signed_in.json()["studies"]]

    # A pool that is stopped while it delivers may be killed before it says that it ends.
    stack.eventually(lambda: studies() == [(study, "confirmed")], "the proof of the delivery")
    with stack.redis.known_as("onlooker") as onlooker:
        assert onlooker.acl_log() == [], "the account that compose gives is enough"
    assert stack.down() == dict.fromkeys(stack.roles, 0)
    told = [audit_trail.event(message)[1] for message in audit_trail.of(tmp_path / "data", "110100")]
    assert told.count("110120") == told.count("110121") == len(stack.roles)


def stack_url(stack: Stack) -> str:
    return f"http://127.0.0.1:{stack.http_port}/api/studies"
