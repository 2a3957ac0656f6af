"""Which images are analysed and where results go: `[[rules]]` in the file that HILUM_CONFIG names.

The rules are asked in their order, of each image when it arrives; the first one whose conditions all hold
decides, and what it decided stays with the image. An image that no rule speaks of is analysed, and its result
goes to every destination.
"""

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import translate
from functools import cache
from math import inf
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from service.core.header import Header

_NAME = r"^[A-Za-z0-9][A-Za-z0-9 _.-]{0,63}$"
_SPAN = re.compile(r"(?P<low>\d{1,3})\s*-\s*(?P<high>\d{1,3})|(?P<sign>>=|<)?\s*(?P<years>\d{1,3})")
# Longer than any value of these attributes may be (PS3.5 6.2); what follows is not looked at.
_LONGEST_VALUE = 64
# Stand for the wildcards of a pattern that is itself held against another one.
_ANY, _ONE = "\x00", "\x01"


@dataclass(frozen=True)
class Span:
    """Ages from `low` to below `high` in years, as `text` says it; without both, one that is unknown."""

    text: str
    low: float | None = None
    high: float | None = None

    def holds(self, years: float | None) -> bool:
        """Return whether this age lies inside; None is an unknown one."""
        if self.low is None or self.high is None or years is None:
            return self.low is None and years is None
        return self.low <= years < self.high

    def covers(self, other: "Span") -> bool:
        """Return whether every age of `other` lies inside."""
        if self.low is None or self.high is None or other.low is None or other.high is None:
            return self.low is None and other.low is None
        return self.low <= other.low and other.high <= self.high


def _span(text: object) -> Span:
    if text == "unknown":
        return Span("unknown")
    match = _SPAN.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise ValueError(
            'an age is in completed years: "1-5", ">=18", "<18", "3", or "unknown", or a list of them'
        )
    if match["years"]:
        years = float(match["years"])
        low, high = {">=": (years, inf), "<": (0.0, years), None: (years, years + 1)}[match["sign"]]
    else:
        low, high = float(match["low"]), float(match["high"]) + 1
    if low >= high:
        raise ValueError(f'nobody is of age "{text}"')
    return Span(str(text), low, high)


def _each(read: Callable[[object], object]) -> Callable[[object], object]:
    def listed(value: object) -> object:
        values = value if isinstance(value, list) else [value]
        if not values:
            raise ValueError("nothing meets an empty list: leave the condition out")
        return tuple(read(item) for item in values)

    return listed


def _pattern(value: object) -> str:
    if not isinstance(value, str) or not value.isprintable():
        raise ValueError('a condition is a text, where * stands for anything and ? for one sign: "ER_*"')
    return value.strip()


Patterns = Annotated[tuple[str, ...], BeforeValidator(_each(_pattern))]
Ages = Annotated[tuple[Span, ...], BeforeValidator(_each(_span))]


class When(BaseModel):
    """The conditions of a rule, by DICOM keyword: all that are named hold, each by one of its patterns.

    Capital and small letters are the same; an attribute that is missing is "". Ages are as the film says, or
    from birth date and study date.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    calling_ae_title: Patterns = ()
    modality: Patterns = ()
    body_part_examined: Patterns = ()
    view_position: Patterns = ()
    station_name: Patterns = ()
    study_description: Patterns = ()
    series_description: Patterns = ()
    patient_age: Ages = ()

    @property
    def named(self) -> dict[str, tuple[str, ...] | tuple[Span, ...]]:
        """The conditions that are there, by keyword."""
        return {name: wanted for name, wanted in vars(self).items() if wanted}

    def covers(self, other: Self) -> bool:
        """Return whether everything that meets `other` meets these conditions; in doubt it does not."""
        for name, wanted in self.named.items():
            narrower = getattr(other, name)
            if not narrower or not all(any(_covers(wide, item) for wide in wanted) for item in narrower):
                return False
        return True


@dataclass(frozen=True)
class Decision:
    """What was decided of one image, and by which rule; without a rule none spoke of it."""

    rule: str | None = None
    analyse: bool = True
    destinations: tuple[str, ...] | None = None
    population: str | None = None

    @classmethod
    def of(cls, kept: Mapping[str, Any] | None) -> Self:
        """Return what the ledger keeps of one; of an image from before there were rules, the default."""
        values = dict(kept or {})
        if values.get("destinations") is not None:
            values["destinations"] = tuple(values["destinations"])
        return cls(**values)

    def kept(self) -> dict[str, Any]:
        """Return it as the ledger keeps it."""
        return {**vars(self), "destinations": None if self.destinations is None else list(self.destinations)}

    @property
    def reason(self) -> str:
        """Why the image is not analysed."""
        return f'left out by the rule "{self.rule}" of this site'

    def __str__(self) -> str:
        said = f'rule "{self.rule}"' if self.rule else "no rule speaks of it"
        how = "analysed" if self.analyse else "not analysed"
        to = "every destination" if self.destinations is None else ", ".join(self.destinations)
        limits = f", population = {self.population}" if self.population else ""
        return f"{said}: {how}{limits}, {f'result to {to}' if to else 'nothing is sent'}"


class Rule(BaseModel):
    """One rule.

    Attributes
    ----------
    analyse
        Whether such an image gets a number; else it is kept, with the rule as the reason.
    destinations
        Where the result goes; None: to every destination, or to none when it is not analysed.
    population
        Overrules HILUM_POPULATION for such an image.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=_NAME)
    when: When = When()
    analyse: bool = Field(True, strict=True)
    destinations: tuple[str, ...] | None = None
    population: Literal["refuse", "flag"] | None = None

    @property
    def decision(self) -> Decision:
        """What it decides of an image that meets its conditions."""
        destinations = () if self.destinations is None and not self.analyse else self.destinations
        return Decision(self.name, self.analyse, destinations, self.population)


def union(decisions: Iterable[Decision]) -> frozenset[str] | None:
    """Return where a result goes that speaks of several images; None: to every destination."""
    names: set[str] = set()
    for decision in decisions:
        if decision.destinations is None:
            return None
        names.update(decision.destinations)
    return frozenset(names)


@dataclass(frozen=True)
class Failed:
    """One condition that does not hold: what it wants, and what the image has."""

    condition: str
    wanted: tuple[str, ...]
    found: str


def decide(rules: Iterable[Rule], header: Header, calling_ae_title: str) -> Decision:
    """Return what the first rule that speaks of an image says.

    Parameters
    ----------
    calling_ae_title
        Of who sent it; with STOW-RS the name of the token.
    """
    spoken = (rule.decision for rule in rules if not failed(rule, header, calling_ae_title))
    return next(spoken, Decision())


def failed(rule: Rule, header: Header, calling_ae_title: str) -> list[Failed]:
    """Return the conditions of `rule` that an image does not meet, none when the rule speaks of it."""
    missed = []
    for name, wanted in rule.when.named.items():
        if name == "patient_age":
            years = header.patient_age_years
            if not any(isinstance(span, Span) and span.holds(years) for span in wanted):
                texts = tuple(span.text for span in wanted if isinstance(span, Span))
                missed.append(Failed(name, texts, "unknown" if years is None else f"{int(years)}"))
            continue
        value = calling_ae_title if name == "calling_ae_title" else str(getattr(header, name))
        value = value.strip()[:_LONGEST_VALUE]
        patterns = tuple(pattern for pattern in wanted if isinstance(pattern, str))
        if not any(_compiled(pattern).match(value) for pattern in patterns):
            missed.append(Failed(name, patterns, value))
    return missed


def parse(entries: object, destinations: Collection[str] | None) -> tuple[Rule, ...]:
    """Return the rules that stand in the file.

    Parameters
    ----------
    entries
        The tables of ``[[rules]]``.
    destinations
        Names of the destinations that are configured; None when those are wrong themselves.

    Raises
    ------
    ValueError
        With one line for each fault.
    """
    if not isinstance(entries, list | tuple):
        raise ValueError("HILUM_CONFIG: rules are tables, [[rules]]")
    rules: list[Rule] = []
    faults: list[str] = []
    for number, entry in enumerate(entries, start=1):
        name = entry.get("name") if isinstance(entry, dict) else None
        label = f'[[rules]] "{name}"' if isinstance(name, str) else f"[[rules]] {number}"
        try:
            rule = Rule.model_validate(entry)
        except ValidationError as fault:
            faults += [f"{label}: {_said(error)}" for error in fault.errors(include_url=False)]
            continue
        faults += [f"{label}: {fault}" for fault in _faults(rule, rules, destinations)]
        rules.append(rule)
    if faults:
        raise ValueError("\n".join(f"HILUM_CONFIG: {fault}" for fault in faults))
    return tuple(rules)


def _faults(rule: Rule, before: Sequence[Rule], destinations: Collection[str] | None) -> list[str]:
    faults = []
    if rule.name in {earlier.name for earlier in before}:
        faults.append("another rule has this name")
    elif earlier := next((item for item in before if item.when.covers(rule.when)), None):
        faults.append(f'never reached: "{earlier.name}" before it speaks of all that meets it')
    unknown = [name for name in rule.destinations or () if name not in (destinations or ())]
    if unknown and destinations is not None:
        there = ", ".join(destinations) or "none is configured"
        faults.append(f"no such destination: {', '.join(unknown)} (there are: {there})")
    if rule.population and not rule.analyse:
        faults.append("population is for images that are analysed: leave it out, or analyse")
    return faults


def _said(error: Any) -> str:
    """Return what pydantic found, for people."""
    where = ".".join(str(part) for part in error["loc"] if not isinstance(part, int))
    if error["type"] != "extra_forbidden":
        return f"{where}: {error['msg'].removeprefix('Value error, ')}"
    inside, known = ("condition", When) if where.startswith("when.") else ("key", Rule)
    return f"{where}: there is no such {inside} (there are: {', '.join(known.model_fields)})"


@cache
def _compiled(pattern: str) -> re.Pattern[str]:
    # fnmatch's own form needs no backtracking over stars; its [sets] are not offered.
    return re.compile(translate(pattern.replace("[", "[[]")), re.IGNORECASE)


def _covers(wide: str | Span, narrow: str | Span) -> bool:
    if isinstance(wide, Span) or isinstance(narrow, Span):
        return isinstance(wide, Span) and isinstance(narrow, Span) and wide.covers(narrow)
    one = translate(wide.replace("[", "[[]").replace("?", f"[!{_ANY}]"))
    sample = narrow.replace("*", _ANY).replace("?", _ONE)
    return re.match(one, sample, re.IGNORECASE) is not None
