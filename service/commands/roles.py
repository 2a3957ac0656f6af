"""`hilum api | scheduler | worker | migrate`: one role each, wired from the settings."""

import gc
import threading
import uuid
from collections.abc import Sequence
from pathlib import Path

import structlog

from service.commands.ending import Termination
from service.commands.supervise import Child, Supervisor, hilum_command
from service.commands.watchdog import Watchdog
from service.core import checks, logs
from service.core.audit import Audit
from service.core.audit_syslog import Sender
from service.core.embedded import broker_url
from service.core.heartbeat import start_beating
from service.core.incoming import remove_leftovers
from service.core.leases import FAMILY_VARIABLE
from service.core.ledger import Ledger, check_migrated, migrate
from service.core.live import Live
from service.core.settings import Settings
from service.core.spool import Spool

QUEUES = ("decode", "infer", "report", "deliver")
# Threads that spin while they wait for each other take the cores from every other process (OpenMP 5.1, 6.7).
_TORCH = {"OMP_WAIT_POLICY": "PASSIVE"}
_log = structlog.get_logger()


def serve_api(settings: Settings) -> None:
    """Run the HTTP API until SIGTERM."""
    from service.api.app import create_app
    from service.api.server import serve

    ledger, spool = _open(settings, "api")
    checks.require_port(settings.http_host, settings.http_port, "HILUM_HTTP_PORT")
    if removed := remove_leftovers(spool.incoming):
        _log.info("api.leftovers_removed", files=removed)
    audit = Audit(settings, "api")
    audit.started()
    live = Live(settings)
    live.start()
    # Nobody waits for it, but a restore must see that the ledger is in use.
    beating = start_beating(ledger, "api", live.about)
    app = create_app(settings, ledger, live=live)
    started()
    serve(app, settings)
    beating.set()
    audit.stopped()
    ledger.close()


def schedule(settings: Settings) -> None:
    """Run the scheduler until SIGTERM."""
    from service.core.receive import Intake
    from service.core.repair import Repair
    from service.core.retention import Retention
    from service.scheduler.notices import Notices
    from service.scheduler.scheduler import Scheduler

    ledger, spool = _open(settings, "scheduler")
    audit = Audit(settings, "scheduler")
    live = Live(settings)
    live.start()
    scheduler = Scheduler(
        ledger,
        spool,
        broker_url(settings),
        Repair(ledger, spool, Intake(ledger, spool, settings, live)),
        Retention(ledger, spool, settings),
        audit,
        Notices(ledger, settings),
        live,
    )
    audit.started()
    sender = Sender(settings)
    threads = [threading.Thread(target=target.run) for target in (scheduler, sender)]
    started()
    for thread in threads:
        thread.start()
    until_terminated()
    audit.stopped()
    scheduler.stop()
    sender.stop()
    for thread in threads:
        thread.join()
    ledger.close()


def work(settings: Settings, queue: str) -> None:
    """Run one worker pool until SIGTERM."""
    logs.configure(queue, settings.log_format)
    checks.require(settings)
    check_migrated(settings.sqlalchemy_url)
    from worker.app import run_pool

    audit = Audit(settings, f"worker {queue}")
    audit.started()
    run_pool(settings, broker_url(settings), queue)
    audit.stopped()


def supervise_workers(settings: Settings, queues: Sequence[str]) -> None:
    """Run a worker pool for each queue until SIGTERM, starting again what dies or stops working."""
    logs.configure("worker", settings.log_format)
    checks.require(settings)
    check_migrated(settings.sqlalchemy_url)
    broker = broker_url(settings)
    supervisor = Supervisor(together=True)
    families = {queue: uuid.uuid4().hex[:8] for queue in queues}
    for queue, family in families.items():
        command = hilum_command("worker", "--queue", queue, "--pool")
        environment = {**_TORCH, FAMILY_VARIABLE: family}
        supervisor.add(Child(queue, command, environment, stop_seconds=30.0))
    watchdog = Watchdog(Ledger(settings.sqlalchemy_url), broker, families)
    threading.Thread(target=watchdog.run, args=(supervisor.replace,), name="watchdog", daemon=True).start()
    started()
    supervisor.run()


def migrate_ledger(settings: Settings) -> str:
    """Bring the ledger to this version's revision and return it."""
    settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    return migrate(settings.sqlalchemy_url)


def started() -> None:
    """Look for garbage from here on, though not through what is there by now, since it stays."""
    gc.freeze()
    gc.enable()


def _open(settings: Settings, role: str) -> tuple[Ledger, Spool]:
    spool = prepare(settings, role)
    return Ledger(settings.sqlalchemy_url), spool


def prepare(settings: Settings, role: str) -> Spool:
    """Look whether all is there that a role needs, and return the data folder."""
    logs.configure(role, settings.log_format)
    checks.require(settings)
    check_migrated(settings.sqlalchemy_url)
    spool = Spool(Path(settings.data_dir))
    spool.make()
    return spool


def until_terminated() -> None:
    """Wait for SIGTERM or SIGINT."""
    termination = Termination()
    while not termination.comes_within(0.1):
        pass
