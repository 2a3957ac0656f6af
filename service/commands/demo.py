"""`hilum demo`: the main job on real films, end to end, with nothing but this machine.

Starts the whole gateway in a temporary data folder and a small storage SCP that plays the PACS, pushes the
films over DIMSE, and shows what the PACS got back.
"""

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from model.preprocess import ImageError
from model.weights import default_weights, read_info
from service.commands.analyse import PICTURES
from service.commands.console import console
from service.commands.own_gateway import AE_TITLE, OwnGateway, own_gateway
from service.commands.pacs import Pacs
from service.commands.picture import film_of_picture
from service.commands.send import files_of
from service.commands.status import shown_probability
from service.core.destination import Destination
from service.core.errors import ConfigurationError, Refused
from service.core.header import Header, read_header
from worker.peer import Sendable
from worker.scu import DimsePeer

_REPORT_SECONDS = 120.0
_WAITING = {"pending"}
_FINISHED = {"delivered", "confirmed", "failed", "held"}


@dataclass
class _Pushed:
    """One study of the demo: the files it came from, and when its last one was answered."""

    study_instance_uid: str
    files: dict[str, str] = field(default_factory=dict)
    stored_at: float = 0.0
    outcome: dict[str, Any] = field(default_factory=dict)


def demo(paths: list[Path], out: Path, look: Callable[[str], None] | None = None) -> int:
    """Run the demo and print its table; return 0 only when every report arrived.

    `look` is called with the gateway's address when all is done, before it is stopped.
    """
    screen = console()
    _check_weights()
    with tempfile.TemporaryDirectory(prefix="hilum-demo-") as folder:
        films = list(_films(paths, Path(folder)))
        _clear(out)
        pacs = Pacs(out, "PACS")
        with (
            pacs.serving() as pacs_port,
            Progress(
                SpinnerColumn(),
                TextColumn("{task.description}"),
                TimeElapsedColumn(),
                console=screen,
                transient=True,
            ) as progress,
        ):
            task = progress.add_task("starting the gateway")
            settings = _settings(Path(folder), pacs_port)
            with own_gateway(Path(folder), out / "gateway.log", settings) as gateway:
                progress.update(task, description="pushing films by C-STORE")
                studies = _push(films, gateway.dimse_port)
                for number, study in enumerate(studies, start=1):
                    progress.update(
                        task, description=f"waiting for the report of study {number} of {len(studies)}"
                    )
                    study.outcome = _finished(gateway, study)
                if look is not None:
                    look(f"http://127.0.0.1:{gateway.http_port}")
    return _show(screen, studies, pacs, out)


def _check_weights() -> None:
    """Read the weights that the gateway is going to serve: what is wrong with them is better said now."""
    named = os.environ.get("HILUM_WEIGHTS")
    read_info(Path(named) if named else default_weights())


def _clear(out: Path) -> None:
    """Make the folder, and remove what an earlier demo left in it, nothing else."""
    out.mkdir(parents=True, exist_ok=True)
    for pattern in (
        "[0-9][0-9]*-structured-report.*",
        "[0-9][0-9]*-heat-map.*",
        "results.json",
        "gateway.log",
    ):
        for left in out.glob(pattern):
            left.unlink()


def _films(paths: list[Path], folder: Path) -> Iterator[tuple[Path, Path, Header]]:
    """Yield (what the user named, the DICOM file of it, its header); pictures are wrapped as DX films."""
    found = 0
    for path in files_of(paths) if paths else _sample_films():
        file = path
        if path.suffix.lower() in PICTURES:
            file = folder / f"picture-{found}.dcm"
        try:
            if file != path:
                film_of_picture(path).save_as(file, enforce_file_format=True)
            header = read_header(file)
        except (Refused, ImageError) as fault:
            sys.stderr.write(f"hilum: {path}: {fault}\n")
            continue
        found += 1
        yield path, file, header
    if not found:
        raise ConfigurationError("no DICOM file, JPEG or PNG among the files of the demo")


def _sample_films() -> Iterator[Path]:
    """Yield NEMA's Philips CR chest film and lower leg, uncompressed and JPEG 2000."""
    from pydicom.data import get_testdata_file

    for name in ("RG1_UNCR.dcm", "RG1_J2KR.dcm", "RG3_UNCR.dcm", "RG3_J2KR.dcm"):
        found = get_testdata_file(name, download=False)
        if found is None:
            raise ConfigurationError("the demo's films are not installed: pip install 'hilum[demo]'")
        yield Path(str(found))


def _settings(folder: Path, pacs_port: int) -> dict[str, object]:
    # The sample film is of a woman of 64: scored, with the limit printed beside the number.
    population = os.environ.get("HILUM_POPULATION", "flag")
    config = _configuration(folder, pacs_port)
    return {"config": config, "study_quiet_seconds": 2, "population": population}


def _configuration(folder: Path, pacs_port: int) -> Path:
    """Write the destination of the demo: it wants to see a heat map of negative films too."""
    path = folder / "demo.toml"
    url = f"dicom://PACS@127.0.0.1:{pacs_port}"
    path.write_text(f'[destinations.PACS]\nurl = "{url}"\nheatmap = "always"\n', encoding="utf-8")
    return path


def _push(films: list[tuple[Path, Path, Header]], port: int) -> list[_Pushed]:
    studies: dict[str, _Pushed] = {}
    objects = [Sendable(file, header.sop_class_uid, header.transfer_syntax_uid) for _, file, header in films]
    gateway = Destination(name="gateway", url=f"dicom://{AE_TITLE}@127.0.0.1:{port}")
    with DimsePeer(gateway, "ROUTER", objects, asks=False) as peer:
        answers = [peer.store(item) for item in objects]
    for (path, _, header), sent in zip(films, answers, strict=True):
        if sent.status != 0x0000:
            sys.stderr.write(f"hilum: {path}: the gateway answered {sent.fault or f'{sent.status:04X}'}\n")
            continue
        study = studies.setdefault(header.study_instance_uid, _Pushed(header.study_instance_uid))
        study.files[header.sop_instance_uid] = path.name
        study.stored_at = time.time()
    return list(studies.values())


def _finished(gateway: OwnGateway, study: _Pushed) -> dict[str, Any]:
    """Wait until nothing more will happen to the study; return its JSON."""
    deadline = time.monotonic() + _REPORT_SECONDS
    while True:
        found = gateway.ask(f"/api/studies/{study.study_instance_uid}")
        # A film that nobody is told about ends at reported; so does one that a person has to look at.
        sent = all(item["state"] not in _WAITING for item in found.get("deliveries", []))
        if found.get("state") in _FINISHED or (found.get("state") == "reported" and sent):
            return found
        if time.monotonic() > deadline:
            return found
        time.sleep(0.05)


def _show(screen: Console, studies: list[_Pushed], pacs: Pacs, out: Path) -> int:
    table = Table(title="What the PACS got back. Research use only, not for diagnosis.", show_lines=True)
    for heading in ("study", "finding", "probability", "reports", "seconds", "remarks"):
        table.add_column(heading, overflow="fold")
    results, complete = [], bool(studies)
    for study in studies:
        found = study.outcome
        result = found.get("result") or {}
        expected = {report["sop_instance_uid"] for report in found.get("reports", [])}
        arrived = [item for item in pacs.received if item.sop_instance_uid in expected]
        unanalysed = result.get("finding") == "not_analysed"
        complete &= bool(result) and len(arrived) == len(expected) and (unanalysed or bool(expected))
        seconds = max((item.at for item in arrived), default=study.stored_at) - study.stored_at
        images = [
            f"{study.files.get(image['sop_instance_uid'], '?')}: {_said(image)}"
            for image in found.get("instances", [])
        ]
        table.add_row(
            "\n".join(study.files.values()),
            str(result.get("finding", found.get("state", "no answer"))).replace("_", " "),
            shown_probability(result.get("probability")),
            str(len(arrived)),
            f"{seconds:.1f}" if arrived else "",
            "\n".join([*images, *result.get("flags", [])]),
        )
        results.append({**found, "files": study.files, "reports_received": len(arrived), "seconds": seconds})
    screen.print(table)
    for study in studies:
        screen.print(f"{', '.join(study.files.values())}:")
        arrived = [item for item in pacs.received if item.study_instance_uid == study.study_instance_uid]
        for item in arrived:
            screen.print(f"  {item.kind} {item.path}" + (f", as a page {item.page}" if item.page else ""))
        if not arrived:
            screen.print("  nothing was sent to the PACS")
    (out / "results.json").write_text(json.dumps(results, indent=2), encoding="utf-8")
    screen.print(f"all of it as JSON: {out / 'results.json'}; the gateway's log: {out / 'gateway.log'}")
    if not complete:
        sys.stderr.write("hilum: not every report arrived\n")
    return 0 if complete else 1


def _said(image: dict[str, Any]) -> str:
    probability = shown_probability(image["probability"])
    return probability or str(image["reason"] or image["state"])
