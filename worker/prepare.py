"""From a received file to a film that the network may look at, or the reason why it may not.

The header decides first, then the population, then the pixels are decoded: the same order in the gateway's
decode queue and in `hilum analyse`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from service.core.copies import UNDECODABLE
from service.core.eligibility import Eligibility, assess, burned_in_limit, population_limit
from service.core.errors import Undecodable
from service.core.header import read_header
from worker.decode import Film, decode


@dataclass(frozen=True)
class Prepared:
    """A film with the limits to state beside its result, or `reason` and no film."""

    film: Film | None
    reason: str | None = None
    flags: tuple[str, ...] = ()


def prepare(path: Path, population: Literal["refuse", "flag"], ages: tuple[float, float]) -> Prepared:
    """Return the film of a DICOM file, unless something speaks against analysing it.

    Parameters
    ----------
    path
        Part 10 file, or a bare data set from before Part 10.
    population
        What becomes of a patient outside `ages`: refused, or analysed with the limit stated.
    ages
        Lowest and highest age in completed years for which the weights were validated.

    Raises
    ------
    Unreadable, InvalidUID
        When the file is no DICOM object.
    """
    header = read_header(path)
    verdict = assess(header)
    if verdict.eligibility is not Eligibility.CANDIDATE:
        return Prepared(None, verdict.reason)
    limit = population_limit(header.patient_age_years, ages)
    if limit and population == "refuse":
        return Prepared(None, limit)
    try:
        film = decode(path)
    except Undecodable as fault:
        return Prepared(None, f"{UNDECODABLE}: {fault}")
    # The gravest first: a viewer may cut off the last.
    stated = (limit, burned_in_limit(header), *film.flags)
    return Prepared(film, None, tuple(flag for flag in stated if flag))
