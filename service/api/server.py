"""uvicorn, with an end to connections that ask for nothing."""

import asyncio
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from service.core.settings import Settings

_BETWEEN_REQUESTS_SECONDS = 10.0
# Shorter than the supervisor waits: `service.commands.up`.
_DRAIN_SECONDS = 15


class BoundedProtocol(H11Protocol):
    """Closes a connection on which no request is under way for too long.

    uvicorn alone waits for ever for the first byte, for the rest of a header, and for the rest of a body that
    was answered before it came.
    """

    between_requests = _BETWEEN_REQUESTS_SECONDS
    _overdue: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._expect_request()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._expect_request()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self._overdue:
            self._overdue.cancel()

    def _expect_request(self) -> None:
        if self._overdue:
            self._overdue.cancel()
        self._overdue = self.loop.call_later(self.between_requests, self._close_when_none_came)

    def _close_when_none_came(self) -> None:
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()


def serve(app: FastAPI, settings: Settings) -> None:
    """Serve until SIGTERM; requests under way have a while to end."""
    uvicorn.run(
        app,
        host=settings.http_host,
        port=settings.http_port,
        http=BoundedProtocol,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=_DRAIN_SECONDS,
    )
