"""`hilum doctor --acceptance`: what the gateway is to do at this site, done once, on a page to sign."""

import socket
import tempfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import version
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from pydicom.uid import Comprehensive3DSRStorage, ComprehensiveSRStorage, SecondaryCaptureImageStorage
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from sqlalchemy import exists, select
from sqlalchemy.exc import SQLAlchemyError

from model.weights import WeightsError, read_info
from service.commands.acceptance import machine, way
from service.commands.acceptance.archive import Archive
from service.commands.acceptance.phantom import PATIENT_ID, film, phantom
from service.commands.console import console, user
from service.commands.doctor import checks, show
from service.core.audit import Audit
from service.core.checks import Check
from service.core.destination import Destination
from service.core.errors import ConfigurationError, DeliveryError
from service.core.ledger import Ledger, now
from service.core.purge import purge
from service.core.settings import Settings
from service.core.spool import Spool
from service.core.tables import Study
from worker.peer import Sendable

_CLASSES = [Comprehensive3DSRStorage, ComprehensiveSRStorage, SecondaryCaptureImageStorage]


@dataclass(frozen=True)
class Section:
    """Checks that belong together on the page."""

    title: str
    checks: list[Check]


def accept(settings: Settings, page: Path, to: str | None, keep: bool) -> int:
    """Try everything with a synthetic film, print it, and write the page; return 0 only when all is right.

    Parameters
    ----------
    page
        The HTML file to write.
    to
        Where our listener is, when not at this machine's own address.
    keep
        Leave the study here too when all is right; whatever went wrong is always left to be looked at.
    """
    screen = console()
    began = now()
    with tempfile.TemporaryDirectory(prefix="hilum-acceptance-") as folder:
        made = film(began.astimezone(settings.zone))
        path = Path(folder) / "film.dcm"
        made.save_as(path, enforce_file_format=True)
        sendable = Sendable(path, str(made.SOPClassUID), str(made.file_meta.TransferSyntaxUID))
        with Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
            console=screen,
            transient=True,
        ) as progress:
            progress.add_task("trying everything; the quiet time and a minute or two")
            sections = list(_sections(settings, sendable, str(made.StudyInstanceUID), to))
    for section in sections:
        screen.print(f"[bold]{section.title}[/bold]")
        show(screen, section.checks)
    right = all(check.right for section in sections for check in section.checks)
    page.write_text(_page(settings, sections, right, began, str(made.StudyInstanceUID)), encoding="utf-8")
    screen.print(f"{'accepted' if right else 'not accepted'}; the page to sign is {page}")
    where = "in the PACS"
    if right and not keep:
        _erase(settings, str(made.StudyInstanceUID))
    elif _is_here(settings, str(made.StudyInstanceUID)):
        where += f", and here with `hilum purge --study {made.StudyInstanceUID} --reason acceptance`"
    screen.print(f"Delete study {made.StudyInstanceUID} of patient {PATIENT_ID} {where}.")
    return 0 if right else 1


def _is_here(settings: Settings, study_instance_uid: str) -> bool:
    """Return whether anything of the study arrived, or could have: a ledger that is away does not say."""
    try:
        with closing(Ledger(settings.sqlalchemy_url)) as ledger, ledger.read() as session:
            here = exists().where(Study.study_instance_uid == study_instance_uid)
            return bool(session.scalar(select(here)))
    except (SQLAlchemyError, ConfigurationError):
        return True


def _erase(settings: Settings, study_instance_uid: str) -> None:
    """Erase the study here, for it is nobody's: what a PACS sends of it later is not taken in."""
    with closing(Ledger(settings.sqlalchemy_url)) as ledger:
        spool, audit = Spool(settings.data_dir), Audit(settings, "purge")
        purge(ledger, spool, audit, study_instance_uid, user(), "acceptance")


def _sections(
    settings: Settings, sendable: Sendable, study_instance_uid: str, to: str | None
) -> Iterator[Section]:
    processor, expected = machine.processor(settings, phantom())
    yield Section(
        "This machine",
        [*checks(settings), *machine.clocks(settings), machine.disk(settings), processor],
    )
    came = False
    for destination in settings.destinations:
        found = [*_wire(settings, destination), way.store(settings, destination, sendable)]
        if not destination.is_dicomweb and found[-1].right:
            back = way.bring_back(settings, destination, study_instance_uid)
            came |= not back.warns
            found.append(back)
        yield Section(f"Destination {destination.name}", found)
    if not settings.destinations:
        mend = "Name where reports go in HILUM_DESTINATIONS"
        none = Check("destinations", True, "none: a study ends at reported", mend, warns=True)
        yield Section("Destinations", [none])
    pushed = [] if came else [way.push(settings, sendable, to)]
    yield Section("A film all the way", [*pushed, *way.report(settings, study_instance_uid, expected)])


def _wire(settings: Settings, destination: Destination) -> Iterator[Check]:
    """Say whether a destination answers C-ECHO, and what it takes of what we send."""
    if destination.is_dicomweb:
        return
    archive = Archive(destination, settings.ae_title)
    mend = f"Let the PACS know AE {settings.ae_title} at this machine's address"
    try:
        yield Check(f"{destination.name}: C-ECHO", True, f"answered in {1000 * archive.echo():.0f} ms")
    except DeliveryError as fault:
        yield Check(f"{destination.name}: C-ECHO", False, str(fault), mend)
        return
    try:
        taken, services = archive.offers(list(_CLASSES))
    except DeliveryError as fault:
        yield Check(f"{destination.name}: offers", False, str(fault), mend)
        return
    for name in _CLASSES:
        syntaxes = ", ".join(taken[name])
        yield Check(
            f"{destination.name}: {name.name}",
            True,
            syntaxes or "not taken",
            "Hilum sends another form where there is one; see `sr` and `objects` in the README",
            warns=not syntaxes,
        )
    yield Check(
        f"{destination.name}: services",
        True,
        ", ".join(services) or "none beside storage",
        "Without query and commitment nothing proves that a report is kept",
        warns=not services,
    )


def _page(
    settings: Settings, sections: list[Section], right: bool, began: datetime, study_instance_uid: str
) -> str:
    try:
        info = read_info(machine.weights(settings))
        weights = f"{info.name} {info.version}, SHA-256 {info.sha256}"
    except WeightsError as fault:
        weights = str(fault)
    environment = Environment(
        loader=PackageLoader("service.commands.acceptance", "."), autoescape=True, undefined=StrictUndefined
    )
    return environment.get_template("page.html.j2").render(
        sections=sections,
        right=right,
        began=began.astimezone(settings.zone),
        host=socket.gethostname(),
        ae_title=settings.ae_title,
        version=version("hilum"),
        weights=weights,
        study_instance_uid=study_instance_uid,
        patient_id=PATIENT_ID,
    )
