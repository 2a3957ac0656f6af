"""Hints on the queues: Celery on Redis, JSON, ids only.

The queue is a hint, the ledger is the truth. The scheduler alone writes hints, from the ledger's ready rows,
so a lost message is written again and a doubled one finds nothing left to lease. No other role needs Redis
to do its part: a listener goes on storing while Redis is down.

Redis has to give no more than docker-compose.yml lets it: lists and sets of known names, and no scripts.
"""

import ssl
from collections import defaultdict
from typing import Any

from celery import Celery
from kombu.exceptions import OperationalError
from kombu.transport import TRANSPORT_ALIASES
from kombu.transport import redis as kombu_redis
from redis import Redis
from redis.exceptions import AuthenticationError, NoPermissionError, OutOfMemoryError, RedisError
from sqlalchemy import Select, bindparam, or_, select

from service.core.claims import live_waits, moments
from service.core.leases import IN_ORDER, STAGES, Stage, of_backfill, ready
from service.core.ledger import Ledger
from service.core.tables import UtcDateTime

# More hints than this in a queue tell a worker nothing new: each task leases a batch.
_DEPTH = 64


class _QoS(kombu_redis.QoS):
    """Leaves the messages of dead workers where they are: the ledger's leases bring the work back, sooner.

    kombu would look for them under a lock that it releases by a Lua script, the one need for scripts that
    there is; without it Redis can refuse them (CVE-2025-49844 was one of Lua).
    """

    def restore_visible(self, *_: Any, **__: Any) -> None:
        return


class _Channel(kombu_redis.Channel):
    QoS = _QoS


class Transport(kombu_redis.Transport):
    """kombu's Redis transport without its search for lost messages."""

    Channel = _Channel


TRANSPORT_ALIASES.update(dict.fromkeys(("redis", "rediss"), f"{__name__}:{Transport.__name__}"))


def celery_app(broker_url: str) -> Celery:
    """Return the Celery application that producer and workers share; results do not exist."""
    app = Celery("hilum", broker=broker_url, set_as_current=False)
    app.conf.update(
        accept_content=["json"],
        task_serializer="json",
        result_accept_content=["json"],
        result_serializer="json",
        result_backend=None,
        task_ignore_result=True,
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        task_publish_retry=False,
        worker_prefetch_multiplier=1,
        worker_send_task_events=False,
        worker_enable_remote_control=False,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_transport_options={"socket_timeout": 5, "socket_connect_timeout": 2, "socket_keepalive": True},
        # kombu's own default for rediss:// is to believe any certificate.
        broker_use_ssl={"ssl_cert_reqs": ssl.CERT_REQUIRED} if broker_url.startswith("rediss:") else None,
        task_routes={f"hilum.{stage.queue}": {"queue": stage.queue} for stage in STAGES},
    )
    return app


class Enqueuer:
    """Keeps each queue supplied with hints for the rows that are ready."""

    def __init__(self, ledger: Ledger, broker_url: str) -> None:
        self._ledger = ledger
        self._app = celery_app(broker_url)
        self._redis = Redis.from_url(redis_url(broker_url), socket_timeout=2, socket_connect_timeout=1)

    def enqueue_ready(self) -> str:
        """Write the missing hints of every queue; return what is wrong with Redis, empty when nothing is."""
        waiting: dict[str, list[int]] = defaultdict(list)
        with self._ledger.read() as session:
            for queue, query in _READY:
                waiting[queue] += session.scalars(query, moments())
        try:
            for queue, rows in waiting.items():
                if rows:
                    for row_id in rows[int(self._redis.llen(queue)) : _DEPTH]:
                        self._app.send_task(f"hilum.{queue}", args=[row_id])
        except (RedisError, OperationalError, OSError) as fault:
            return _said(fault)
        return ""


def _ready(stage: Stage) -> Select[Any]:
    moment = bindparam("moment", type_=UtcDateTime)
    query = select(stage.table.id).where(ready(stage, moment))
    if stage in IN_ORDER:
        query = query.where(or_(~of_backfill(stage), ~live_waits(bound=True)))
    return query.order_by(stage.table.ready_at, stage.table.id).limit(_DEPTH)


# Asked five times a second: to make a query costs more than SQLite's answer.
_READY = [(stage.queue, _ready(stage)) for stage in STAGES]


def _said(fault: Exception) -> str:
    """Return what is wrong, in none of Redis' words: they may name the account."""
    cause = fault.__cause__ if isinstance(fault, OperationalError) else fault  # kombu's wraps Redis' own
    if isinstance(cause, OutOfMemoryError):
        return "Redis has no memory left"
    if isinstance(cause, AuthenticationError | NoPermissionError):
        return "Redis does not let us in"
    return "Redis cannot be reached"


def redis_url(broker_url: str) -> str:
    """Return a broker's URL as redis-py writes it; Celery has its own scheme for Unix sockets."""
    return broker_url.replace("redis+socket://", "unix://", 1)
