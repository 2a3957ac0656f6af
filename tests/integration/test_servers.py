"""The servers that other tests stand on, and those that docker-compose.yml runs."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest
from pydicom import dcmread
from pydicom.uid import (
    UID,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)
from redis import AuthenticationError
from redis import Redis as RedisClient
from redis.backoff import NoBackoff
from redis.exceptions import NoPermissionError
from redis.retry import Retry

from tests import factories
from tests.compose import ComposeRedis, demonstration_pacs
from tests.servers import (
    ROOT,
    Gateway,
    Orthanc,
    PostgreSQL,
    Redis,
    ServerError,
    eventually,
    executable,
    storescu,
)


def test_redis_keeps_what_it_acknowledged_when_killed(redis: Redis) -> None:
    redis.client.set("study", "queued")
    port = redis.port
    redis.kill()
    assert not redis.ready()
    redis.restart()
    assert redis.port == port
    assert redis.client.get("study") == b"queued"


def test_redis_without_persistence_forgets_when_killed() -> None:
    with Redis(appendonly=False) as server:
        server.client.set("study", "queued")
        server.kill()
        server.restart()
        assert server.client.get("study") is None


def test_each_postgresql_database_is_empty(postgresql_server: PostgreSQL) -> None:
    first, second = postgresql_server.fresh_url(), postgresql_server.fresh_url()
    with psycopg.connect(first.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute("CREATE TABLE study (uid text)")
    with psycopg.connect(second.replace("+psycopg", "")) as connection:
        found = connection.execute("SELECT count(*) FROM pg_tables WHERE tablename = 'study'").fetchone()
    assert found == (0,)


def test_film_pushed_to_orthanc_reads_back_over_dicomweb(orthanc: Orthanc, tmp_path: Path) -> None:
    film = factories.chest_film("sent")
    path = factories.write(film, tmp_path)
    sent = storescu(path, orthanc.aet, orthanc.dicom_port)
    assert sent.returncode == 0, sent.stderr
    assert orthanc.studies() == [film.StudyInstanceUID]

    (metadata,) = orthanc.dicomweb_metadata(film.StudyInstanceUID)
    assert metadata["00080018"]["Value"] == [film.SOPInstanceUID]
    assert metadata["00100010"]["Value"] == [{"Alphabetic": "Test^Sent"}]
    (instance,) = orthanc.instances(film.StudyInstanceUID)
    assert instance.sop_class_uid == film.SOPClassUID
    downloaded = tmp_path / "downloaded.dcm"
    downloaded.write_bytes(orthanc.download(instance))
    assert dcmread(downloaded).PixelData == film.PixelData


@pytest.mark.parametrize(
    "syntax",
    [
        ImplicitVRLittleEndian,
        ExplicitVRBigEndian,
        RLELossless,
        JPEGLosslessSV1,
        JPEGLSLossless,
        JPEG2000Lossless,
    ],
    ids=lambda syntax: syntax.keyword,
)
def test_storescu_sends_a_film_in_its_own_transfer_syntax(
    orthanc: Orthanc, tmp_path: Path, syntax: UID
) -> None:
    film = factories.phantom_chest(syntax)
    path = factories.write(film, tmp_path, syntax)
    sent = storescu(path, orthanc.aet, orthanc.dicom_port)
    assert sent.returncode == 0, sent.stderr
    (instance,) = orthanc.instances(film.StudyInstanceUID)
    stored = tmp_path / "stored.dcm"
    stored.write_bytes(orthanc.download(instance))
    assert dcmread(stored).file_meta.TransferSyntaxUID == syntax
    assert (dcmread(stored).pixel_array == dcmread(path).pixel_array).all()


def test_orthanc_keeps_its_studies_and_ports_when_killed(orthanc: Orthanc, tmp_path: Path) -> None:
    film = factories.phantom_chest()
    storescu(factories.write(film, tmp_path), orthanc.aet, orthanc.dicom_port)
    destination = orthanc.destination
    orthanc.kill()
    orthanc.restart()
    assert orthanc.destination == destination
    assert orthanc.studies() == [film.StudyInstanceUID]


def test_server_that_does_not_start_shows_its_log() -> None:
    with pytest.raises(ServerError, match="nonsense-option"), Redis("--nonsense-option", "1"):
        pass


def test_gateway_that_does_not_start_shows_its_log() -> None:
    with pytest.raises(ServerError, match="HILUM_POPULATION"), Gateway(population="everybody"):
        pass


def test_missing_program_is_named_with_its_debian_package() -> None:
    with pytest.raises(ServerError, match=r"^Orthanc-9 is not installed: apt-get install orthanc$"):
        executable("Orthanc-9", "orthanc")


def test_waiting_ends_with_what_was_seen_last() -> None:
    with pytest.raises(ServerError, match=r"not within 0.1 s: two reports \(last seen: 0\)"):
        eventually(lambda: 0, 0.1, "two reports")


def test_redis_of_compose_asks_for_its_password_and_outlives_a_kill() -> None:
    with ComposeRedis("secret") as server:
        with pytest.raises(AuthenticationError):
            RedisClient(port=server.port, retry=Retry(NoBackoff(), 0)).ping()
        with pytest.raises(NoPermissionError):
            server.client.config_get("*")
        onlooker = server.known_as("onlooker")
        assert onlooker.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
        assert onlooker.config_get("appendonly") == {"appendonly": "yes"}
        assert b"secret" not in Path(f"/proc/{server.process.pid}/cmdline").read_bytes()  # type: ignore[union-attr]
        server.stop()
        assert "ready to exit" in server.log(), "SIGTERM reaches Redis itself"


def test_demonstration_pacs_sends_on_what_others_store_and_keeps_what_hilum_stores(tmp_path: Path) -> None:
    with Orthanc("HILUM") as listener, demonstration_pacs(listener.dicom_port) as pacs:
        film, report = factories.phantom_chest("film"), factories.basic_text_sr("report")
        for dataset, calling_aet in ((report, "HILUM"), (film, "ROUTER")):
            sent = storescu(
                factories.write(dataset, tmp_path), pacs.aet, pacs.dicom_port, calling_aet=calling_aet
            )
            assert sent.returncode == 0, sent.stderr
        eventually(listener.studies, 10, "the film is sent on")
        assert sorted(pacs.studies()) == sorted([film.StudyInstanceUID, report.StudyInstanceUID])
        assert listener.studies() == [film.StudyInstanceUID]


def test_health_check_of_every_role_passes_while_it_runs_and_fails_afterwards(
    gateway: Callable[..., Gateway],
) -> None:
    running = gateway(calling_ae_titles="ROUTER")
    checks = ("listener", "api", "scheduler", "decode", "infer", "report", "deliver")

    def check(role: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(ROOT / "deploy/healthcheck.py"), role]
        return subprocess.run(command, env=running.environment(), capture_output=True, text=True, check=False)

    assert {role: check(role).stderr for role in checks} == dict.fromkeys(checks, "")
    running.stop()
    for role in ("listener", "api"):
        assert check(role).returncode == 1
