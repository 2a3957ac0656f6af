"""Role 4: one Celery worker for one queue.

The pools differ because the work does: `decode` parses hostile bytes in children with limits, `infer` keeps
one network loaded, `report` is CPU-bound Python, `deliver` waits for other people's servers.
"""

import gc
import os
import resource
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any

import structlog
from celery import signals
from sqlalchemy.exc import SQLAlchemyError

from service.core import tally
from service.core.enqueue import celery_app
from service.core.heartbeat import start_beating
from service.core.leases import DELIVER, STAGES, free_left_behind
from service.core.live import Live
from service.core.pauses import end_all
from service.core.settings import Settings
from worker.context import Context

_GIB = 1 << 30
_START_SECONDS = 60.0
_log = structlog.get_logger()


@dataclass(frozen=True)
class Pool:
    """How one queue is worked on; `seconds` is the time after which a prefork child is killed."""

    kind: str
    processes: int
    seconds: int | None = None
    address_space: int | None = None


def pools() -> dict[str, Pool]:
    """Return the pool of each queue for the cores of this machine."""
    cores = len(os.sched_getaffinity(0))
    return {
        "decode": Pool("prefork", cores, seconds=60, address_space=4 * _GIB),
        "infer": Pool("solo", 1),
        "report": Pool("prefork", cores, seconds=120),
        # Each may wait a minute for a destination that hangs.
        "deliver": Pool("prefork", 4),
    }


def run_pool(settings: Settings, broker_url: str, queue: str) -> None:
    """Work on one queue until SIGTERM; running work is finished or comes back by its lease."""
    pool = pools()[queue]
    stage = import_module(f"worker.tasks.{queue}")
    check: Callable[[Settings], None] | None = getattr(stage, "check", None)
    if check is not None:
        check(settings)
    about: Callable[[Context], Mapping[str, Any]] = getattr(stage, "about", lambda _: {})
    # Children are forked with what the pool has taken up until then.
    live = Live(settings)
    live.start()
    # Opened by the process that works, at its first use: SQLite's locks do not survive a fork.
    context = cache(lambda: Context.open(live.settings))

    def begin(**_: object) -> None:
        if pool.address_space is not None:
            resource.setrlimit(resource.RLIMIT_AS, (pool.address_space, pool.address_space))
        warm_up: Callable[[Context], None] | None = getattr(stage, "warm_up", None)
        try:
            if warm_up is not None:
                warm_up(context())
            for leased in (item for item in STAGES if item.queue == queue):
                free_left_behind(context().ledger, leased)
            if queue == DELIVER.queue:
                end_all(context().ledger)
        except SQLAlchemyError as fault:
            # The first task does what was not done here; until then the signs of life say who is there.
            _log.warning("pool.started_without_ledger", error=type(fault).__name__)
        if queue == DELIVER.queue:
            live.on_change(lambda _: end_all(context().ledger))
        if pool.kind == "prefork":
            live.start()  # a thread is not forked with its process
        start_beating(context().ledger, queue, lambda: {**about(context()), **live.about()})

    app = celery_app(broker_url)
    app.conf.update(
        task_time_limit=pool.seconds,
        worker_max_tasks_per_child=1000,
        # A child waits for a locked ledger at its start; after the default of 4 s it would be killed there.
        worker_proc_alive_timeout=_START_SECONDS,
    )

    @app.task(name=f"hilum.{queue}")  # type: ignore[untyped-decorator]
    def run(row_id: int) -> None:
        """Do what is ready; `row_id` is only why this task was sent."""
        structlog.contextvars.bind_contextvars(task=f"{queue}:{row_id}")
        try:
            context().settings = live.settings  # the same ones for the whole of a task
            stage.run(context())
        except Exception:
            # Celery would log what the exception says. The ledger's leases bring the work back.
            _log.exception("pool.failed", queue=queue)
        tally.flush(context().ledger, every=1.0)

    def end(**_: object) -> None:
        tally.flush(context().ledger)

    if pool.kind == "prefork":
        # Celery keeps weak references to receivers unless told otherwise.
        signals.worker_process_init.connect(begin, weak=False)
        signals.worker_process_shutdown.connect(end, weak=False)
    else:
        signals.worker_shutdown.connect(end, weak=False)
        begin()
    # What is there by now stays: no child's garbage collector walks it, and the pages stay shared.
    gc.collect()
    gc.freeze()
    gc.enable()  # not before: service.commands.main
    app.worker_main(
        [
            "--quiet",
            "worker",
            f"--queues={queue}",
            f"--pool={pool.kind}",
            f"--concurrency={pool.processes}",
            f"--hostname={queue}-{os.getpid()}@%h",
            "--without-gossip",
            "--without-mingle",
            "--without-heartbeat",
            "--loglevel=WARNING",
        ]
    )
