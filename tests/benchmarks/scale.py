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
from collections.abc import Generator, Iterator
from dataclasses import dataclass
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
_BUSY = range(_BUSIEST - 1, _BUSIEST + 3)
_CATCH_UP_AT, _CATCH_UP_SECONDS, _CATCH_UP_SHARE = 10.5 * _HOUR, 300.0, 0.01
_FULL = 0.8
_MOST_SIMULATED = 1_000_000  # films a day; more take minutes to simulate
_GPU_MILLISECONDS = 2.0
_BEFORE = 0.3  # share of a worker's time until the film is analysed
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
    """Hosts of each kind and their processors; without `gpus` the workers' own processors infer."""

    name: str
    films: int
    listeners: int = 1
    listener_cores: int = 2
    workers: int = 1
    worker_cores: int = 4
    gpus: int = 0
    ledger_cores: int = 2


SITES = (
    Site("hospital", 1_000, worker_cores=2),
    Site("large hospital", 10_000),
    Site("region", 100_000, listeners=2, workers=3),
    Site("region, a worker of three gone", 100_000, listeners=2, workers=2),
    Site("region, a GPU a worker", 100_000, listeners=2, workers=3, gpus=3),
)


def costs(path: Path) -> Costs:
    """Return what `hilum bench --json` found, by kind of host.

    The processes' own share of the ledger is in their figures; `ledger_milliseconds` of the file is what
    PostgreSQL used beside them.
    """
    found = json.loads(path.read_text(encoding="utf-8"))
    used = found["all_at_once"]["cpu_milliseconds_a_film"]
    worker = sum(used[role] for role in ("decode", "report", "deliver", "redis", "scheduler", "api"))
    ledger = found["ledger_milliseconds"]
    return Costs(used["listener"], worker, used["infer"], ledger, found["load"]["megabytes"])


class Hours:
    """The busiest hours of a site's day, `times` as many films."""

    def __init__(self, site: Site, cost: Costs, times: float = 1.0) -> None:
        self.site, self.cost = site, cost
        self.chance = random.Random(1)
        self.environment = simpy.Environment()
        cores = {
            "listener": site.listeners * site.listener_cores,
            "worker": site.workers * site.worker_cores,
            "ledger": site.ledger_cores,
            "GPU": site.gpus,
        }
        self.hosts = {name: simpy.Resource(self.environment, count) for name, count in cores.items() if count}
        self.busy: dict[str, float] = defaultdict(float)
        self.beyond: list[float] = []
        for at in self._arrivals(times):
            self.environment.process(self._film(at))
        self.environment.run()

    def _arrivals(self, times: float) -> Iterator[float]:
        films = self.site.films * times
        for hour in _BUSY:
            for _ in range(int(films * (1 - _CATCH_UP_SHARE) * _SHARES[hour])):
                yield (hour + self.chance.random()) * _HOUR
        for _ in range(int(films * _CATCH_UP_SHARE)):
            yield _CATCH_UP_AT + self.chance.random() * _CATCH_UP_SECONDS

    def _film(self, at: float) -> Generator[Any, Any, None]:
        yield self.environment.timeout(at)
        yield from self._work("listener", self.cost.listener)
        yield from self._work("ledger", self.cost.ledger / 2)
        answered = self.environment.now
        # The quiet time runs while the film is analysed.
        quiet = self.environment.timeout(QUIET_SECONDS)
        yield from self._work("worker", self.cost.worker * _BEFORE)
        if self.site.gpus:
            yield from self._work("GPU", _GPU_MILLISECONDS)
        else:
            yield from self._work("worker", self.cost.infer)
        yield quiet
        yield from self._work("worker", self.cost.worker * (1 - _BEFORE))
        yield from self._work("ledger", self.cost.ledger / 2)
        self.beyond.append(self.environment.now - answered - QUIET_SECONDS)

    def _work(self, host: str, milliseconds: float) -> Generator[Any, Any, None]:
        with self.hosts[host].request() as turn:
            yield turn
            began = self.environment.now
            yield self.environment.timeout(milliseconds / 1000)
            if _BUSIEST * _HOUR <= began < (_BUSIEST + 1) * _HOUR:
                self.busy[host] += milliseconds / 1000

    def used(self, host: str) -> float:
        """Return which share of a kind of host is busy in the busiest hour."""
        return self.busy[host] / (_HOUR * self.hosts[host].capacity)


def main() -> None:
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("costs.json")
    cost = costs(path)
    print(
        f"a film of {cost.megabytes:g} MB takes ms of a processor: listener {cost.listener:.0f}, worker "
        f"{cost.worker:.0f}, inference {cost.infer:.0f}, ledger {cost.ledger:.0f}; of a GPU "
        f"{_GPU_MILLISECONDS:g} (assumed)"
    )
    for site in SITES:
        _print(site, Hours(site, cost), cost)


def _print(site: Site, hours: Hours, cost: Costs) -> None:
    used = ", ".join(f"{host} {100 * hours.used(host):.1f} %" for host in hours.hosts)
    first = max(hours.hosts, key=hours.used)
    times = _FULL / hours.used(first)
    terabytes = site.films * cost.megabytes / 1e6
    print(f"\n{site.name}, {site.films:,} films a day")
    print(f"  busy in the hour with most of them: {used}")
    print(f"  report beyond the quiet time: {_percentiles(hours)}")
    print(f"  first full ({100 * _FULL:.0f} %): {first}, at {site.films * times:,.0f} films a day")
    if site.films * times < _MOST_SIMULATED:
        print(f"  report beyond the quiet time then: {_percentiles(Hours(site, cost, times))}")
    print(
        f"  disk: {terabytes:.2f} TB a day, {terabytes * _RETAINED_DAYS:.1f} TB in {_RETAINED_DAYS} days; "
        f"ledger: {site.films * 365 / 1e6 * _LEDGER_GIGABYTES_A_MILLION:.1f} GB a year"
    )


def _percentiles(hours: Hours) -> str:
    return ", ".join(f"p{share} {np.percentile(hours.beyond, share):.1f} s" for share in (50, 95, 99))


if __name__ == "__main__":
    main()
