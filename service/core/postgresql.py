"""Connections to PostgreSQL that give up on a server which keeps the connection and says nothing.

PostgreSQL's own timeouts end a statement that takes too long, TCP's a peer that is gone. A server that is
stopped, swapped out, or waits for its storage is neither: its kernel goes on acknowledging. libpq has no
timeout for an answer, so the wait itself has one here.
"""

import time
from collections.abc import Generator
from typing import Any, TypeVar

import psycopg

ANSWER_SECONDS = 20.0
OPTIONS = {
    "connect_timeout": 5,
    "keepalives_idle": 10,
    "tcp_user_timeout": 20_000,
    "options": "-c lock_timeout=12s -c statement_timeout=15s -c idle_in_transaction_session_timeout=60s",
}
"""Shorter than `ANSWER_SECONDS`: who is there says itself what took too long."""

T = TypeVar("T")


class BoundedConnection(psycopg.Connection[Any]):
    """A connection that is closed when an answer takes longer than `ANSWER_SECONDS`."""

    def wait(self, gen: Generator[Any, Any, T], *args: Any, **options: Any) -> T:
        """Consume what psycopg does on this connection; statements, commits and rollbacks all come here."""
        return super().wait(self._bounded(gen), *args, **options)

    def _bounded(self, gen: Generator[Any, Any, T]) -> Generator[Any, Any, T]:
        end = time.monotonic() + ANSWER_SECONDS
        try:
            wanted = next(gen)
            while True:
                # Resumed with nothing after every interval (0.1 s) in which nothing came.
                ready = yield wanted
                if not ready and time.monotonic() > end:
                    self.close()
                    raise psycopg.OperationalError(
                        f"PostgreSQL has not answered for {ANSWER_SECONDS:.0f} s: the connection was closed"
                    )
                wanted = gen.send(ready)
        except StopIteration as done:
            return done.value  # type: ignore[no-any-return]
