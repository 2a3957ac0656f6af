"""What a day of films needs, simulated with measured costs: `python -m tests.benchmarks.scale [COSTS]`.

`COSTS` is what `hilum bench --json` wrote, `tests/benchmarks/costs.json` without it. Each host is a queue for
its processors, the ledger's host too; a film waits for each in turn, and for the quiet time beside. Films
come at random, more of them by day: an eighth of all in the busiest hour, and once a day a hundredth of all
within five minutes, as when a router was away. Prints for each site how busy each kind of host is in that
hour, how long reports take, and what is full first when more films come.
"""

import json
import random
import sys
from collections import defaultdict
from collections.abc import Generator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import simpy

QUIET_SECONDS = 30.0
_HOUR = 3600.0
# Share of a day's films by hour, from midnight: a radiology department by day, an emergency room by night.
_DAY = np.array([1, 1, 1, 1, 1, 1, 2, 5, 9, 12, 12, 10, 8, 8, 8, 7, 5, 3, 2, 2, 2, 1, 1, 1], float)
_SHARES = _DAY / _DAY.sum()
_BUSIEST = int(_SHARES.argmax())
_CATCH_UP_AT, _CATCH_UP_SECONDS, _CATCH_UP_SHARE = 10.5 * _HOUR, 300.0, 0.01
_FULL = 0.8
_LEDGER_GIGABYTES_A_MILLION = 1.7  # RESULTS.md: a SQLite ledger of 1,000,000 studies
_RETAINED_DAYS = 30


@dataclass(frozen=True)
class Costs:
    """Milliseconds of one processor that a film takes on each kind of host, and its megabytes."""

    listener: float
    worker: float
    infer: float
    ledger: float
    megabytes: float


@dataclass(frozen=True)
class Site:
    """Hosts of each kind and their processors; `infer_cores` of 0: the workers' own processors do it."""

    name: str
    films: int
    listeners: int = 1
    listener_cores: int = 2
    workers: int = 1
    worker_cores: int = 4
    infer_cores: int = 0
    ledger_cores: int = 2


SITES = (
    Site("hospital, one machine", 1_000, listener_cores=2, worker_cores=2),
    Site("large hospital", 10_000, workers=1, worker_cores=4),
    Site("region", 100_000, listeners=2, workers=3, worker_cores=4),
    Site("region, a GPU a worker", 100_000, listeners=2, workers=3, worker_cores=4, infer_cores=3),
)


def costs(path: Path) -> Costs:
    """Return what `hilum bench --json` found, by kind of host."""
    found = json.loads(path.read_text())
    used = found["all_at_once"]["cpu_milliseconds_a_film"]
    # SQLite works in the processes that ask it; PostgreSQL would take at most as much again.
    worker = sum(used[role] for role in ("decode", "report", "deliver", "redis", "scheduler", "api"))
    return Costs(
        used["listener"], worker, used["infer"], found.get("ledger_milliseconds", 20.0), found["load"]["megabytes"]
    )


class Day:
    """One day of a site."""

    def __init__(self, site: Site, cost: Costs, gpu_milliseconds: float, seed: int = 1) -> None:
        self.site, self.cost, self.gpu = site, cost, gpu_milliseconds
        self.chance = random.Random(seed)
        self.environment = simpy.Environment()
        self.hosts = {
            "listener": simpy.Resource(self.environment, site.listeners * site.listener_cores),
            "worker": simpy.Resource(self.environment, site.workers * site.worker_cores),
            "ledger": simpy.Resource(self.environment, site.ledger_cores),
        }
        if site.infer_cores:
            self.hosts["GPU"] = simpy.Resource(self.environment, site.infer_cores)
        self.busy: dict[str, float] = defaultdict(float)
        self.beyond: list[float] = []
        self.unfinished = 0

    def run(self) -> None:
        """Let the day pass, and an hour to finish."""
        for at in self._arrivals():
            self.environment.process(self._film(at))
        self.environment.run(25 * _HOUR)

    def _arrivals(self) -> list[float]:
        late = int(self.site.films * _CATCH_UP_SHARE)
        hours = self.chance.choices(range(24), _SHARES, k=self.site.films - late)
        times = [(hour + self.chance.random()) * _HOUR for hour in hours]
        times += [_CATCH_UP_AT + self.chance.random() * _CATCH_UP_SECONDS for _ in range(late)]
        return sorted(times)

    def _film(self, at: float) -> Generator[Any, Any, None]:
        self.unfinished += 1
        yield self.environment.timeout(at)
        yield from self._work("listener", self.cost.listener)
        yield from self._work("ledger", self.cost.ledger / 2)
        answered = self.environment.now
        # The quiet time runs while the film is analysed.
        quiet = self.environment.timeout(QUIET_SECONDS)
        yield from self._work("worker", self.cost.worker * 0.3)
        yield from self._work("GPU" if self.site.infer_cores else "worker", self.gpu or self.cost.infer)
        yield quiet
        yield from self._work("worker", self.cost.worker * 0.7)
        yield from self._work("ledger", self.cost.ledger / 2)
        self.beyond.append(self.environment.now - answered - QUIET_SECONDS)
        self.unfinished -= 1

    def _work(self, host: str, milliseconds: float) -> Generator[Any, Any, None]:
        with self.hosts[host].request() as turn:
            yield turn
            began = self.environment.now
            yield self.environment.timeout(milliseconds / 1000)
            if _BUSIEST * _HOUR <= began < (_BUSIEST + 1) * _HOUR:
                self.busy[host] += self.environment.now - began

    def used(self, host: str) -> float:
        """Return which share of a kind of host is busy in the busiest hour."""
        return self.busy[host] / (_HOUR * self.hosts[host].capacity)


def first_full(site: Site, cost: Costs, gpu: float) -> tuple[str, int]:
    """Return the kind of host that is `_FULL` first, and the films a day at which it is."""
    day = Day(site, cost, gpu)
    day.run()
    host = max(day.hosts, key=day.used)
    return host, round(site.films * _FULL / day.used(host), -2)


def main() -> None:
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("costs.json")
    cost = costs(path)
    print(
        f"a film of {cost.megabytes:g} MB: listener {cost.listener:.0f}, worker {cost.worker:.0f}, "
        f"inference {cost.infer:.0f}, ledger {cost.ledger:.0f} ms of a processor"
    )
    for site in SITES:
        gpu = 2.0 if site.infer_cores else 0.0  # milliseconds a film of a batch; not measured here
        day = Day(site, cost, gpu)
        day.run()
        used = ", ".join(f"{host} {100 * day.used(host):.0f} %" for host in day.hosts)
        p50, p95, p99 = (float(np.percentile(day.beyond, share)) for share in (50, 95, 99))
        host, films = first_full(site, cost, gpu)
        gigabytes = site.films * cost.megabytes / 1000
        print(
            f"{site.name}, {site.films:,} films a day: busiest hour {used}; report beyond the quiet time p50 "
            f"{p50:.1f}, p95 {p95:.1f}, p99 {p99:.1f} s; {day.unfinished} unfinished; first full: {host} at "
            f"{films:,.0f} films a day; disk {gigabytes:,.0f} GB a day, {gigabytes * _RETAINED_DAYS / 1000:,.1f} TB "
            f"in {_RETAINED_DAYS} days; ledger {site.films * 365 / 1e6 * _LEDGER_GIGABYTES_A_MILLION:,.1f} GB a year"
        )
    alone = replace(SITES[2], name="a worker of three is gone", workers=2)
    day = Day(alone, cost, 0.0)
    day.run()
    print(f"{alone.name}: worker {100 * day.used('worker'):.0f} %, p95 {np.percentile(day.beyond, 95):.1f} s")


if __name__ == "__main__":
    main()
