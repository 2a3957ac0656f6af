"""How often one client may ask, counted in this process: of several replicas each has a count of its own."""

import time
from ipaddress import IPv6Address, ip_address
from math import ceil

from fastapi import HTTPException, Request
from limits import RateLimitItem, RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import SlidingWindowCounterRateLimiter

# A page that asks itself anew every second and a script beside it are far below it.
REQUESTS_A_MINUTE = 3000
# Of a secret that `hilum token` made nobody guesses one in a lifetime at any rate; some choose their own.
FAILURES_A_MINUTE = 10


class Rates:
    """Counts requests and failures of each client."""

    def __init__(self, requests: int = REQUESTS_A_MINUTE, failures: int = FAILURES_A_MINUTE) -> None:
        self._requests = RateLimitItemPerMinute(requests, namespace="requests")
        self._failures = RateLimitItemPerMinute(failures, namespace="failures")
        self._limiter = SlidingWindowCounterRateLimiter(MemoryStorage())

    def count_request(self, client: str) -> None:
        """Count a request; 429 when it is one too many."""
        if not self._limiter.hit(self._requests, client):
            raise self._refusal(self._requests, client, "too many requests")

    def count_failure(self, client: str) -> None:
        """Count a secret that nobody has."""
        self._limiter.hit(self._failures, client)

    def check_failures(self, client: str) -> None:
        """Answer 429 to a client with too many wrong secrets, before the next one is looked at."""
        if not self._limiter.test(self._failures, client):
            raise self._refusal(self._failures, client, "too many wrong tokens")

    def _refusal(self, limit: RateLimitItem, client: str, what: str) -> HTTPException:
        seconds = max(1, ceil(self._limiter.get_window_stats(limit, client).reset_time - time.time()))
        return HTTPException(429, f"{what}: wait {seconds} s", {"Retry-After": str(seconds)})


def address_of(request: Request) -> str:
    """Return the address that a request comes from, or nothing."""
    return request.client.host if request.client else ""


def client_of(address: str) -> str:
    """Return who is counted as one: an address, of IPv6 a /64, since one machine has all of it."""
    try:
        found = ip_address(address)
    except ValueError:
        return address[:64]
    if isinstance(found, IPv6Address) and found.ipv4_mapped is None:
        return f"{IPv6Address(int(found) >> 64 << 64)}/64"
    return str(found)
