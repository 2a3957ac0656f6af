"""A film beside those that the weights were validated on: age, sex, view and scanner.

Only an age outside of it keeps a film from being analysed (`service.core.eligibility.population_limit`). The
rest is told: whoever reads a result, or counts results, should see on whom the network was tried.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

SEXES = ("F", "M", "O")
"""PS3.3 C.7.1.1; nothing else is a value, and free text could name somebody."""
_MONTHS = 12


class Beside(StrEnum):
    """How a film lies to the films that the weights were validated on."""

    INSIDE = "inside"
    OUTSIDE = "outside"
    UNKNOWN = "unknown"
    NOT_RECORDED = "not_recorded"


@dataclass(frozen=True)
class Population:
    """On whom weights were validated, as they say it themselves.

    Attributes
    ----------
    age_years
        Youngest and oldest age in completed years, both inside.
    sexes, views, scanners
        Patient's Sex, View Position, and manufacturer with model name; empty where it was not recorded.
    """

    age_years: tuple[float, float]
    sexes: tuple[str, ...] = ()
    views: tuple[str, ...] = ()
    scanners: tuple[str, ...] = ()

    def kept(self) -> dict[str, Any]:
        """Return it as the ledger keeps it."""
        return asdict(self)

    @classmethod
    def of(cls, kept: Mapping[str, Any]) -> "Population":
        """Return what `kept` gave."""
        low, high = kept["age_years"]
        names = ("sexes", "views", "scanners")
        return cls((float(low), float(high)), *(tuple(kept.get(name) or ()) for name in names))


@dataclass(frozen=True)
class Described:
    """What of a film decides on whom the network was used; nothing here identifies a patient.

    Attributes
    ----------
    age_years
        When the film was taken; None when unknown.
    sex
        One of `SEXES`, empty when unknown.
    view
        View Position, empty when unknown.
    scanner
        As `scanner_of` says; empty when unknown.
    """

    age_years: float | None = None
    sex: str = ""
    view: str = ""
    scanner: str = ""


@dataclass(frozen=True)
class Comparison:
    """One attribute of a film beside the validated range, both in words; empty where there is nothing.

    As text it is "view PA, validated for AP", and without a record of the validated films "sex M".
    """

    attribute: str
    value: str
    validated: str
    beside: Beside

    def __str__(self) -> str:
        said = f"{self.attribute} {self.value or 'unknown'}"
        match self.beside:
            case Beside.NOT_RECORDED:
                return said
            case Beside.OUTSIDE:
                return f"{said}, outside of the validated {self.validated}"
            case _:
                return f"{said}, validated for {self.validated}"


def compared(film: Described, population: Population) -> Sequence[Comparison]:
    """Return a film's attributes beside the validated range: age, sex, view, scanner."""
    low, high = population.age_years
    age = Beside.UNKNOWN
    if film.age_years is not None:
        age = Beside.INSIDE if low <= film.age_years < high + 1 else Beside.OUTSIDE
    return (
        Comparison("age", age_in_words(film.age_years), f"{low:g} to {high:g} Y", age),
        *(
            Comparison(name, value, ", ".join(among), _beside(value, among))
            for name, value, among in (
                ("sex", film.sex, population.sexes),
                ("view", film.view, population.views),
                ("scanner", film.scanner, population.scanners),
            )
        ),
    )


def sentence(film: Described, population: Population) -> str:
    """Return all of it as one sentence, what the validated films have no record of at its end."""
    found = compared(film, population)
    said = [str(each) for each in found if each.beside is not Beside.NOT_RECORDED]
    unrecorded = [str(each) for each in found if each.beside is Beside.NOT_RECORDED]
    if unrecorded:
        said.append(f"{', '.join(unrecorded)}: not recorded of the validated films")
    return f"Film and validated range: {'; '.join(said)}."


def age_in_words(years: float | None) -> str:
    """Return an age as DICOM writes it (PS3.5 6.2, AS), for people: "4 Y", "7 M"; empty when unknown."""
    if years is None:
        return ""
    return f"{int(years)} Y" if years >= 1 else f"{int(years * _MONTHS)} M"


def sex_of(value: str) -> str:
    """Return Patient's Sex where it is a value of the standard, else nothing."""
    return value if value in SEXES else ""


def scanner_of(manufacturer: str, model_name: str) -> str:
    """Return what kind of X-ray machine it was: "Philips DigitalDiagnost".

    That is what a validated set can name, and what the machine's maker writes. Station Name, which would tell
    two machines of a kind apart, is typed by people and stays out of this table; their calling AE titles tell
    them apart.
    """
    maker, kind = (" ".join(each.split())[:64] for each in (manufacturer, model_name))
    # Some machines say their maker's name again in the name of the model.
    return kind if kind and kind.lower().startswith(maker.lower()) else f"{maker} {kind}".strip()


def _beside(value: str, among: tuple[str, ...]) -> Beside:
    if not among:
        return Beside.NOT_RECORDED
    if not value:
        return Beside.UNKNOWN
    return Beside.INSIDE if value in among else Beside.OUTSIDE
