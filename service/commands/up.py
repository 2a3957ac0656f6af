"""`hilum up`: the whole gateway on one machine, with one command."""

import os
import time
from pathlib import Path

import structlog
from redis import Redis
from redis.exceptions import RedisError

from service.commands.lock import data_folder_locked
from service.commands.roles import migrate_ledger, started
from service.commands.supervise import Child, Supervisor, hilum_command
from service.core import checks, logs
from service.core.embedded import broker_url, redis_command, remove_socket
from service.core.enqueue import redis_url
from service.core.errors import ConfigurationError
from service.core.settings import Settings

# Stopped from the last to the first: who takes work in goes first.
_ROLES = ("api", "worker", "scheduler", "listen")
_REDIS_START_SECONDS = 20.0
_log = structlog.get_logger()


def up(settings: Settings) -> None:
    """Start Redis (when none is configured), migrate, run every role; SIGTERM stops Redis last.

    Raises
    ------
    ConfigurationError
        When the data folder is in use by another `hilum up`, or something is wrong with it.
    """
    logs.configure("up", settings.log_format)
    checks.require(settings)
    with data_folder_locked(settings.data_dir) as lock:
        _run(settings, Supervisor(inherited=(lock,)))


def _run(settings: Settings, supervisor: Supervisor) -> None:
    for setting, port in settings.dimse_ports.items():
        checks.require_port(settings.dimse_host, port, setting)
    checks.require_port(settings.http_host, settings.http_port, "HILUM_HTTP_PORT")
    try:
        if settings.broker_url is None:
            supervisor.add(Child("redis", redis_command(settings.data_dir)))
            _wait_for_redis(broker_url(settings))
        migrate_ledger(settings)
        # The roles share what this process resolved: their own working folder or .env may differ.
        environment = {"HILUM_DATA_DIR": str(Path(settings.data_dir).resolve())}
        for role in _ROLES:
            supervisor.add(Child(role, hilum_command(role), environment, stop_seconds=40.0))
        _log.info("up", **_ports(settings), pid=os.getpid())
        started()
        supervisor.run()
    finally:
        supervisor.stop()
        if settings.broker_url is None:
            remove_socket(settings.data_dir)


def _ports(settings: Settings) -> dict[str, int | None]:
    return {name: getattr(settings, name) for name in ("dimse_port", "dimse_tls_port", "http_port")}


def _wait_for_redis(url: str) -> None:
    deadline = time.monotonic() + _REDIS_START_SECONDS
    client = Redis.from_url(redis_url(url), socket_connect_timeout=1)
    while True:
        try:
            client.ping()
            return
        except (RedisError, OSError):
            if time.monotonic() > deadline:
                raise ConfigurationError("the embedded Redis did not start: see its lines above") from None
            time.sleep(0.05)
