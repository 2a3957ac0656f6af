"""The account that docker-compose.yml gives Hilum in Redis: enough for Celery, and for nothing else."""

import pickle
import re
import signal
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
import yaml
from redis.backoff import NoBackoff
from redis.retry import Retry

from service.core.enqueue import celery_app
from tests.servers import Redis, eventually

ROOT = Path(__file__).resolve().parents[2]
COMMAND = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]["redis"]["command"][-1]
_WORKER = """
import sys
from service.core.enqueue import celery_app
app = celery_app(sys.argv[1])

@app.task(name="hilum.decode")
def work(number):
    print(f"began {number}", flush=True)

app.worker_main(["--quiet", "worker", "--queues=decode", f"--pool={sys.argv[2]}", "--concurrency=1",
                 "--without-gossip", "--without-mingle", "--without-heartbeat", "--loglevel=WARNING"])
"""


class Guarded(Redis):
    """A Redis with the accounts of docker-compose.yml, and one that looks on."""

    @property
    def url(self) -> str:
        return f"redis://hilum:secret@127.0.0.1:{self.port}/0"

    @property
    def client(self) -> redis.Redis:
        return redis.Redis(port=self.port, username="hilum", password="secret", socket_timeout=5)

    @property
    def onlooker(self) -> redis.Redis:
        return redis.Redis(port=self.port, username="onlooker", password="secret", socket_timeout=5)

    def command(self) -> list[str]:
        (accounts,) = re.findall(r"<<END\n(.*)\nEND", COMMAND, re.DOTALL)
        path = self.folder / "accounts.conf"
        onlooker = "user onlooker on >secret ~* -@all +ping +acl +llen\n"
        path.write_text(accounts.replace("$$(cat /run/secrets/redis_password)", "secret") + "\n" + onlooker)
        program, *options = super().command()
        return [program, str(path), *options]


@pytest.fixture(scope="module")
def server() -> Iterator[Guarded]:
    with Guarded(appendonly=False) as running:
        yield running


@pytest.mark.parametrize("pool", ["prefork", "solo", "threads"])
def test_every_pool_of_celery_works_with_the_account(server: Guarded, pool: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with log.open("w") as output:
        worker = subprocess.Popen(
            [sys.executable, "-c", _WORKER, server.url, pool], cwd=ROOT, stdout=output, stderr=output
        )
    try:
        app = celery_app(server.url)
        for number in (1, 2):
            app.send_task("hilum.decode", args=[number])
        eventually(lambda: "began 2" in log.read_text(), 30, "two tasks")
        worker.send_signal(signal.SIGTERM)
        worker.wait(30)
    finally:
        worker.kill()
        worker.wait()
    assert server.onlooker.acl_log() == []
    assert server.onlooker.llen("decode") == 0


class _Payload:
    """Leaves a file behind when somebody unpickles it."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.trace,)


@pytest.mark.parametrize("serializer", ["pickle", "yaml"])
def test_a_message_that_is_no_json_is_refused_and_the_worker_lives_on(
    server: Guarded, serializer: str, tmp_path: Path
) -> None:
    trace, log = tmp_path / "trace", tmp_path / "log"
    payload = pickle.dumps(((1,), {"payload": _Payload(trace)}, {}))
    pickle.loads(payload)
    assert trace.exists(), "who unpickles it is seen"
    trace.unlink()
    app = celery_app(server.url)
    genuine = app.amqp.as_task_v2("1", "hilum.decode", args=[7])
    content_type = {"pickle": "application/x-python-serialize", "yaml": "application/x-yaml"}[serializer]
    with app.connection() as connection, connection.Producer() as producer:
        producer.publish(
            payload,
            routing_key="decode",
            headers=genuine.headers,
            properties=genuine.properties,
            content_type=content_type,
            content_encoding="binary",
        )
    app.send_task("hilum.decode", args=[8])
    with log.open("w") as output:
        worker = subprocess.Popen(
            [sys.executable, "-c", _WORKER, server.url, "solo"], cwd=ROOT, stdout=output, stderr=output
        )
    try:
        eventually(lambda: "began 8" in log.read_text(), 30, "the message behind it")
        assert worker.poll() is None
        assert "Refusing to deserialize" in log.read_text()
        assert "began 7" not in log.read_text()
        assert not trace.exists()
    finally:
        worker.kill()
        worker.wait()


def test_results_are_neither_kept_nor_believed(server: Guarded) -> None:
    app = celery_app(server.url)
    assert app.conf.accept_content == app.conf.result_accept_content == ["json"]
    assert (app.conf.task_serializer, app.conf.result_serializer) == ("json", "json")
    assert type(app.backend).__name__ == "DisabledBackend"


def test_what_a_worker_gives_back_is_in_its_queue_again(server: Guarded) -> None:
    with celery_app(server.url).connection() as connection:
        queue = connection.SimpleQueue("infer")
        queue.put({"id": 1})
        queue.get(timeout=5).requeue()
        queue.get(timeout=5)
        queue.close()  # without a word for the message
    assert server.onlooker.llen("infer") == 1
    assert server.onlooker.acl_log() == []


@pytest.mark.parametrize(
    "command",
    [
        ("EVAL", "return 1", "0"),
        ("EVALSHA", "0" * 40, "0"),
        ("SCRIPT", "LOAD", "return 1"),
        ("FUNCTION", "LIST"),
        ("CONFIG", "GET", "dir"),
        ("MODULE", "LIST"),
        ("REPLICAOF", "NO", "ONE"),
        ("FLUSHALL",),
        ("KEYS", "*"),
        ("ACL", "LIST"),
        ("SHUTDOWN",),
        ("LPUSH", "somebody", "x"),
    ],
    ids=" ".join,
)
def test_the_account_may_do_nothing_else(server: Guarded, command: tuple[str, ...]) -> None:
    with server.client as client, pytest.raises(redis.exceptions.NoPermissionError):
        client.execute_command(*command)


def test_nobody_gets_in_without_the_password(server: Guarded) -> None:
    for options in ({}, {"password": "secret"}, {"username": "hilum", "password": "wrong"}):
        with (
            redis.Redis(port=server.port, retry=Retry(NoBackoff(), 0), **options) as client,  # type: ignore[arg-type]
            pytest.raises((redis.exceptions.AuthenticationError, redis.exceptions.NoPermissionError)),
        ):
            client.ping()


def test_a_redis_over_tls_has_to_show_a_certificate() -> None:
    assert celery_app("rediss://redis:6380/0").connection().ssl == {"ssl_cert_reqs": ssl.CERT_REQUIRED}
    assert not celery_app("redis://redis:6379/0").connection().ssl
