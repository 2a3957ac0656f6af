"""`hilum feedback export`: what readers said of results, as a table and as SRs."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, tzinfo
from io import BytesIO
from pathlib import Path
from typing import IO

from pydicom import dcmread
from rich.console import Console
from rich.progress import track
from sqlalchemy.orm import Session

from service.core.errors import ConfigurationError
from service.core.feedback import entries_between
from service.core.feedback_csv import lines
from service.core.ledger import check_migrated
from service.core.settings import Settings
from service.core.tables import Feedback
from worker.context import Context
from worker.encoding import save
from worker.tasks.assess import assessment_of, stored_assessment

STANDARD_OUTPUT = Path("-")


def export(
    settings: Settings,
    csv: Path | None,
    sr: Path | None,
    since: datetime | None,
    until: datetime | None,
    *,
    notes: bool,
) -> int:
    """Write what was given from `since` on up to `until`; return 0, or 1 when an SR could not be made.

    A moment without a zone is the site's. The SR of an entry whose AI report is not kept cannot be made.
    """
    check_migrated(settings.sqlalchemy_url)
    since, until = (_here(moment, settings.zone) for moment in (since, until))
    context = Context.open(settings)
    missing = 0
    try:
        if csv is not None:
            with _opened(csv) as stream:
                count = -1  # the heading is no entry
                for line in lines(entries_between(context.ledger, since, until), notes=notes):
                    stream.write(line)
                    count += 1
            if csv != STANDARD_OUTPUT:
                sys.stderr.write(f"{count} {'entry' if count == 1 else 'entries'} in {csv}\n")
        if sr is not None:
            missing = _write_srs(context, sr, since, until)
    finally:
        context.ledger.close()
    return 1 if missing else 0


def _write_srs(context: Context, folder: Path, since: datetime | None, until: datetime | None) -> int:
    """Write the SR of each entry, named by its SOP Instance UID; return how many could not be made."""
    folder.mkdir(parents=True, exist_ok=True)
    ids = [entry.id for entry in entries_between(context.ledger, since, until)]
    written, missing = 0, []
    shown = track(ids, "SRs", console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty())
    for entry_id in shown:
        with context.ledger.read() as session:
            entry = session.get_one(Feedback, entry_id)
            content = _content(context, session, entry)
            study_instance_uid = entry.study.study_instance_uid
        if content is None:
            missing.append(study_instance_uid)
            continue
        name = dcmread(BytesIO(content), specific_tags=["SOPInstanceUID"]).SOPInstanceUID
        (folder / f"{name}.dcm").write_bytes(content)
        written += 1
    sys.stderr.write(f"{written} SR(s) in {folder}\n")
    for uid in dict.fromkeys(missing):
        sys.stderr.write(
            f"hilum: no SR of feedback on study {uid}: the report that it is about is not kept\n"
        )
    return len(missing)


def _content(context: Context, session: Session, entry: Feedback) -> bytes | None:
    """Return the SR as it was sent, else as it would be; None when what it is about is not kept."""
    path = stored_assessment(session, entry)
    try:
        if path is not None:
            return context.spool.absolute(path).read_bytes()
        made = assessment_of(context, session, entry)
    except FileNotFoundError:
        return None
    if made is None:
        return None
    buffer = BytesIO()
    save(made, buffer)
    return buffer.getvalue()


@contextmanager
def _opened(path: Path) -> Iterator[IO[str]]:
    if path == STANDARD_OUTPUT:
        yield sys.stdout
        return
    try:
        with path.open("x", encoding="utf-8", newline="") as stream:
            yield stream
    except FileExistsError:
        raise ConfigurationError(f"{path} is there already: name a file that is not") from None


def _here(moment: datetime | None, zone: tzinfo | None) -> datetime | None:
    if moment is None or moment.tzinfo:
        return moment
    return moment.replace(tzinfo=zone).astimezone(zone)
