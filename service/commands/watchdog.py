"""Finds the worker pool that lives and does not work, by the ledger and not by its signs of life.

A pool may beat and hold its connection to Redis, and consume nothing any more. What tells is that work is
ready, that hints for it lie in Redis, and that this pool leases none of it: for a minute, at every look. A
long queue that is worked on shows leases, a scheduler or a Redis that is away leaves no hints, and a ledger
that is away tells nothing; all three begin the minute anew. So does a lease of this pool that is older than
any work takes: its process renews what it will never finish.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence

import structlog
from redis import Redis
from redis.exceptions import RedisError
from sqlalchemy.exc import SQLAlchemyError

from service.core.enqueue import redis_url
from service.core.leases import STAGES, Stage, count_ready, held_by
from service.core.ledger import Ledger

LOOK_SECONDS = 2.0
SILENT_SECONDS = 60.0
_MOST_PATIENCE = 16
# Longer than any work of the queue: the pools end theirs after 60 and 120 s, films take seconds. The
# deliver queue waits for other people's servers, within bounds of its own.
LONGEST_SECONDS = {"decode": 300.0, "infer": 300.0, "report": 300.0}
_log = structlog.get_logger()


class Watchdog:
    """Looks at the queues of the pools in `families` (queue to family, `service.core.leases`)."""

    def __init__(
        self,
        ledger: Ledger,
        broker_url: str,
        families: Mapping[str, str],
        *,
        silent_seconds: float = SILENT_SECONDS,
        longest_seconds: Mapping[str, float] = LONGEST_SECONDS,
    ) -> None:
        self._ledger = ledger
        self._redis = Redis.from_url(redis_url(broker_url), socket_timeout=2, socket_connect_timeout=1)
        self._families = families
        self._silent_seconds = silent_seconds
        self._longest_seconds = longest_seconds
        self._silent_since: dict[str, float] = {}
        self._held_since: dict[tuple[str, str, int, int], float] = {}
        # A pool that takes long to start is given more time at each try.
        self._patience = dict.fromkeys(families, 1)

    def run(self, replace: Callable[[str, str], None]) -> None:
        """Look for ever; hand each pool that does not work to `replace`, with the reason."""
        while True:
            time.sleep(LOOK_SECONDS)
            try:
                for queue, why in self.look().items():
                    replace(queue, why)
            except Exception:
                _log.exception("watchdog.failed")

    def look(self) -> dict[str, str]:
        """Return the queues whose pool does not work, and why."""
        found = {}
        for queue in self._families:
            try:
                why = self._look_at(queue, [stage for stage in STAGES if stage.queue == queue])
            except (SQLAlchemyError, RedisError) as fault:
                _log.warning("watchdog.blind", queue=queue, error=type(fault).__name__)
                self._silent_since.pop(queue, None)
                continue
            if why:
                found[queue] = why
                self._silent_since.pop(queue, None)
        return found

    def _look_at(self, queue: str, stages: Sequence[Stage]) -> str | None:
        """Return what is wrong with the pool of a queue: it works if it works on any stage of that."""
        moment, family = time.monotonic(), self._families[queue]
        with self._ledger.read() as session:
            leases = [lease for stage in stages for lease, _ in held_by(session, stage, family)]
            ready = sum(count_ready(session, stage) for stage in stages)
        held = {(queue, lease.stage.name, lease.row_id, lease.token) for lease in leases}
        oldest = self._oldest(queue, held, moment)
        if oldest > self._longest_seconds.get(queue, math.inf):
            return f"it has worked on the same for {oldest:.0f} s"
        if leases:
            self._patience[queue] = 1
        if leases or not ready or not self._redis.llen(queue):
            self._silent_since.pop(queue, None)
            return None
        with self._ledger.write():
            pass  # raises while the ledger is locked: then nobody can lease anything
        silent = moment - self._silent_since.setdefault(queue, moment)
        if silent <= self._silent_seconds * self._patience[queue]:
            return None
        self._patience[queue] = min(2 * self._patience[queue], _MOST_PATIENCE)
        return f"{ready} piece(s) of work are ready, and it has taken none for {silent:.0f} s"

    def _oldest(self, queue: str, leases: set[tuple[str, str, int, int]], moment: float) -> float:
        """Return for how many seconds the pool has held its oldest lease."""
        for gone in [lease for lease in self._held_since if lease[0] == queue and lease not in leases]:
            del self._held_since[gone]
        return max((moment - self._held_since.setdefault(lease, moment) for lease in leases), default=0.0)
