"""uvicorn, with an end to connections that ask for nothing, and a bound on how many there are."""

import asyncio
import signal
import socket
from collections.abc import Sequence
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from service.api.feed import Feed
from service.core.settings import Settings

_BETWEEN_REQUESTS_SECONDS = 10.0
# Shorter than the supervisor waits: `service.commands.up`.
_DRAIN_SECONDS = 15
_HEADER_BYTES = 16 * 1024
# One descriptor each, of the 1,024 that a process has by custom.
_CONNECTIONS, _CONNECTIONS_PER_ADDRESS = 500, 100


class BoundedProtocol(H11Protocol):
    """Closes a connection on which no request is under way for too long, and one that is one too many.

    uvicorn alone waits for ever for the first byte, for the rest of a header, and for the rest of a body that
    was answered before it came. One address alone takes a share of all connections, unless it is a proxy's.
    """

    between_requests = _BETWEEN_REQUESTS_SECONDS
    connections_at_a_time = _CONNECTIONS
    connections_per_address = _CONNECTIONS_PER_ADDRESS
    proxies: Sequence[IPv4Network | IPv6Network] = ()
    _overdue: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if self._is_one_too_many():
            transport.abort()
        else:
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

    def _is_one_too_many(self) -> bool:
        if len(self.connections) > self.connections_at_a_time:
            return True
        address = self.client[0] if self.client else ""
        addresses = [other.client and other.client[0] for other in self.connections]  # type: ignore[union-attr]
        return addresses.count(address) > self.connections_per_address and not any(
            ip_address(address) in network for network in self.proxies
        )


def configuration(
    app: FastAPI,
    settings: Settings,
    protocol: type[BoundedProtocol] = BoundedProtocol,
    drain_seconds: int = _DRAIN_SECONDS,
) -> uvicorn.Config:
    """Return how uvicorn serves the application."""
    proxies = [ip_network(network) for network in settings.trusted_proxies]
    return uvicorn.Config(
        app,
        host=settings.http_host,
        port=settings.http_port,
        http=type("Protocol", (protocol,), {"proxies": proxies}),
        ws="none",
        h11_max_incomplete_event_size=_HEADER_BYTES,
        forwarded_allow_ips=list(settings.trusted_proxies),
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=drain_seconds,
    )


class Server(uvicorn.Server):
    """Ends the streams of events before it waits for requests that are under way: those would never end."""

    def __init__(self, config: uvicorn.Config, feed: Feed) -> None:
        super().__init__(config)
        self._feed = feed

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._feed.close()
        await super().shutdown(sockets)


def serve(app: FastAPI, settings: Settings) -> None:
    """Serve until SIGTERM; requests under way have a while to end."""
    server = Server(configuration(app, settings), app.state.feed)
    # uvicorn sends itself the signal that ended it again, and this process has something left to do.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: setattr(server, "should_exit", True))
    server.run()
