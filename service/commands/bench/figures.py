"""What the benchmark found out: of each film when each stage was done, of all of them the percentiles."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from sqlalchemy import select

from service.commands.bench.peers import Pushed
from service.core.ledger import Ledger
from service.core.tables import Event, Report, Study

STAGES = ("receive", "decode", "infer", "report", "deliver", "all")
PERCENTILES = (50, 95, 99, 100)


@dataclass(frozen=True)
class Figures:
    """One run.

    Attributes
    ----------
    seconds
        Of each film, by stage: ``receive`` until the C-STORE response, ``decode`` and ``infer`` each from the
        end of the one before, ``report`` from when the study was concluded, ``deliver`` until the report is
        in the PACS, ``all`` from the C-STORE response until then without the quiet time.
    films_a_second
        From the first film to the last report, without the quiet time.
    cpu_milliseconds
        A film, by role, the routers and the PACS too.
    megabytes
        Largest proportional set size by role.
    lost
        Films that were not answered with success, or whose report did not come.
    """

    films: int
    seconds: dict[str, list[float]]
    films_a_second: float
    cpu_milliseconds: dict[str, float] = field(default_factory=dict)
    megabytes: dict[str, float] = field(default_factory=dict)
    lost: int = 0

    def percentiles(self, stage: str) -> list[float]:
        """Return `PERCENTILES` of the seconds of a stage, each of them one that was measured."""
        found = self.seconds[stage]
        return [float(np.percentile(found, share, method="higher")) for share in PERCENTILES] if found else []


def figures(
    ledger: Ledger, pushed: Sequence[Pushed], came: dict[str, float], quiet_seconds: float
) -> Figures:
    """Return what became of the films that were pushed; `came` is when reports reached the PACS."""
    times = _times(ledger, [item.film.study_instance_uid for item in pushed], came)
    seconds: dict[str, list[float]] = {stage: [] for stage in STAGES}
    for item in pushed:
        at = times.get(item.film.study_instance_uid, {})
        if item.fault or "arrived" not in at:
            continue
        seconds["receive"].append(item.answered - item.began)
        # The first of these may be done before the sender has its answer.
        seconds["decode"].append(max(0.0, at["decoded"] - item.answered))
        seconds["infer"].append(at["analysed"] - at["decoded"])
        seconds["report"].append(at["reported"] - at["concluded"])
        seconds["deliver"].append(max(0.0, at["arrived"] - at["reported"]))
        seconds["all"].append(at["arrived"] - item.answered - quiet_seconds)
    done = len(seconds["all"])
    arrived = [at["arrived"] for at in times.values() if "arrived" in at]
    took = max(arrived, default=0.0) - min(item.began for item in pushed) - quiet_seconds
    return Figures(len(pushed), seconds, done / took if done else 0.0, lost=len(pushed) - done)


def _times(ledger: Ledger, uids: Sequence[str], came: dict[str, float]) -> dict[str, dict[str, float]]:
    """Return by study when each stage was done first, in seconds since the epoch."""
    found: dict[str, dict[str, float]] = {uid: {} for uid in uids}
    with ledger.read() as session:
        events = session.execute(
            select(Study.study_instance_uid, Event.kind, Event.at).join(Event.study).order_by(Event.id)
        )
        for uid, kind, at in events:
            if uid in found:
                found[uid].setdefault(kind, at.timestamp())
        reports = session.execute(
            select(Study.study_instance_uid, Report.sop_instance_uid).join(Report.study).order_by(Report.id)
        )
        for uid, sop_instance_uid in reports:
            if uid in found and sop_instance_uid in came:
                found[uid].setdefault("arrived", came[sop_instance_uid])
    return found
