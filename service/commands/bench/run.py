"""Films through a gateway of its own, one after the other and all at once."""

import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from rich.progress import Progress

from service.commands.bench import films, peers, usage
from service.commands.bench.figures import Figures, figures
from service.commands.bench.films import Film
from service.commands.bench.peers import Pushed, Routers
from service.commands.own_gateway import AE_TITLE, OwnGateway, own_gateway
from service.core.ledger import Ledger
from service.core.settings import load

QUIET_SECONDS = 1.0
_WARM_FILMS = 4
_SINGLE_SECONDS = 60.0
_STALLED_SECONDS = 120.0


@dataclass(frozen=True)
class Load:
    """What is pushed: so many films one after the other, then so many at once over some associations."""

    singles: int
    films: int
    megabytes: float
    associations: int


def measure(wanted: Load, database_url: str | None, progress: Progress) -> tuple[Figures, Figures]:
    """Return the figures of single films, and of all at once."""
    with tempfile.TemporaryDirectory(prefix="hilum-bench-") as name, peers.pacs() as pacs:
        folder = Path(name)
        settings: dict[str, object] = {
            "study_quiet_seconds": QUIET_SECONDS,
            "destinations": f"PACS=dicom://PACS@127.0.0.1:{pacs.port}",
        }
        if database_url is not None:
            settings["database_url"] = database_url
        task = progress.add_task("starting the gateway", total=_WARM_FILMS + wanted.singles + wanted.films)
        with (
            own_gateway(folder, folder / "gateway.log", settings) as gateway,
            closing(Routers(wanted.associations)) as routers,
            closing(Ledger(_ledger_url(gateway, database_url))) as ledger,
        ):
            bench = _Bench(gateway, ledger, routers, pacs, lambda done: progress.update(task, completed=done))
            for title, count, all_at_once in (
                ("warming up", _WARM_FILMS, False),
                ("films one after the other", wanted.singles, False),
                ("films all at once", wanted.films, True),
            ):
                progress.update(task, description=title)
                made = list(films.make(folder, count, wanted.megabytes))
                os.sync()  # the gateway does not pay for what came before
                bench.push(made, all_at_once=all_at_once)
            return bench.found[1], bench.found[2]


def _ledger_url(gateway: OwnGateway, database_url: str | None) -> str:
    return load(data_dir=gateway.data_dir, database_url=database_url).sqlalchemy_url


class _Bench:
    def __init__(
        self,
        gateway: OwnGateway,
        ledger: Ledger,
        routers: Routers,
        pacs: peers.Pacs,
        done: Callable[[int], None],
    ) -> None:
        self.found: list[Figures] = []
        self._gateway, self._ledger, self._routers, self._pacs, self._done = (
            gateway,
            ledger,
            routers,
            pacs,
            done,
        )

    def push(self, made: Sequence[Film], *, all_at_once: bool) -> None:
        """Push films, wait for their reports, and add what was found."""
        before, seen = self._used(), self._pacs.count()
        with usage.peak_memory(self._gateway.process) as megabytes:
            if all_at_once:
                pushed = self._routers.push(self._url, made)
                self._wait(seen + len(made), _STALLED_SECONDS)
            else:
                pushed = []
                for number, film in enumerate(made, start=1):
                    pushed += self._routers.push(self._url, [film])
                    self._wait(seen + number, _SINGLE_SECONDS)
        used = self._used()
        self.found.append(
            replace(
                figures(self._ledger, pushed, self._pacs.reports(), QUIET_SECONDS),
                cpu_milliseconds={
                    role: 1000 * (used[role] - before.get(role, 0.0)) / max(1, len(made)) for role in used
                },
                megabytes=megabytes,
            )
        )
        _say_faults(pushed)
        for film in made:
            film.item.path.unlink()

    @property
    def _url(self) -> str:
        return f"dicom://{AE_TITLE}@127.0.0.1:{self._gateway.dimse_port}"

    def _used(self) -> dict[str, float]:
        routers = {"routers": self._routers.cpu_seconds, "PACS": self._pacs.cpu_seconds()}
        return usage.cpu_seconds(self._gateway.process) | routers

    def _wait(self, count: int, stalled_seconds: float) -> None:
        """Wait until so many reports have come, or none comes any more."""
        came, since = -1, time.monotonic()
        while came < count and time.monotonic() - since < stalled_seconds:
            now = self._pacs.count()
            if now > came:
                came, since = now, time.monotonic()
                self._done(came)
            time.sleep(0.02)


def _say_faults(pushed: Sequence[Pushed]) -> None:
    for item in islice((item for item in pushed if item.fault), 5):
        sys.stderr.write(f"hilum: a film was not taken: {item.fault}\n")
