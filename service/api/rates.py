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


LINKS_A_MINUTE = 20
"""What one client may say by links of reports; a reader is done with a study in more than three seconds."""


class Rates:
    """Counts requests and failures of each client."""

    def __init__(
        self,
        requests: int = REQUESTS_A_MINUTE,
        failures: int = FAILURES_A_MINUTE,
        links: int = LINKS_A_MINUTE,
    ) -> None:
        self._requests = RateLimitItemPerMinute(requests, namespace="requests")
        self._failures = RateLimitItemPerMinute(failures, namespace="failures")
        self._links = RateLimitItemPerMinute(links, namespace="links")
        self._bad_links = RateLimitItemPerMinute(failures, namespace="bad links")
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

    def count_link(self, client: str) -> None:
        """Count what is said by a link of a report; 429 when it is one too many."""
        if not self._limiter.hit(self._links, client):
            raise self._refusal(self._links, client, "too much feedback")

    def count_bad_link(self, client: str) -> None:
        """Count a link that was not made here."""
        self._limiter.hit(self._bad_links, client)

    def check_links(self, client: str) -> None:
        """Answer 429 to a client with too many links that were not made here, before the next is read."""
        if not self._limiter.test(self._bad_links, client):
            raise self._refusal(self._bad_links, client, "too many wrong links")

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
