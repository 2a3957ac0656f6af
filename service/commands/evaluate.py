"""`hilum evaluate`: labelled films against the weights, DICOM as the gateway reads it."""

import math
from collections.abc import Sequence
from pathlib import Path

from model.evaluate import main
from model.measuring.cases import Left, Seen, age_group, read_picture
from model.training.films import SUFFIXES
from service.core.copies import UNDECODABLE
from service.core.errors import Refused
from service.core.header import Header, described, read_header
from service.core.settings import Settings
from worker.prepare import prepare

# An evaluation measures patients of every age; how many lie outside the weights' population is counted there.
_EVERY_AGE = (0.0, math.inf)


def evaluate(settings: Settings, arguments: Sequence[str]) -> int:
    """Run `model.evaluate` with a reader that knows DICOM too; return its exit code."""
    return main(arguments, read, settings.weights)


def read(path: Path) -> Seen | Left:
    """Read a JPEG, PNG or DICOM file; what the gateway would not analyse by its header is left out."""
    if path.suffix.lower() in SUFFIXES:
        return read_picture(path)
    try:
        header = read_header(path)
        prepared = prepare(path, "flag", _EVERY_AGE)
    except Refused as fault:
        return Left(str(fault), unreadable=True)
    except OSError as fault:
        return Left(f"cannot be read ({fault.strerror})", unreadable=True)
    if prepared.film is None:
        reason = prepared.reason or "no reason given"
        return Left(reason, unreadable=reason.startswith(UNDECODABLE))
    return Seen(prepared.film.pixels, _patient(header), header.patient_age_years, _attributes(header))


def _patient(header: Header) -> str | None:
    """Return what groups the films of one person: read to draw by patient, and never written anywhere."""
    subject = header.subject
    return f"{subject.issuer_of_patient_id}\n{subject.patient_id}" if subject.patient_id else None


def _attributes(header: Header) -> dict[str, str]:
    film = described(header)
    stated = {
        "view": film.view,
        "sex": film.sex,
        "scanner": film.scanner,
        "photometric interpretation": header.photometric_interpretation,
        "SOP class": header.sop_class_uid.name,
        "age": "" if header.patient_age_years is None else age_group(header.patient_age_years),
    }
    return {name: value or "not stated" for name, value in stated.items()}
