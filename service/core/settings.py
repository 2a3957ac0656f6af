"""Every setting of Hilum: read once, frozen, passed in.

Environment variables with the prefix ``HILUM_`` (a ``.env`` file works too). A wrong value stops the start,
with every fault listed at once. What one line can't say stands in the TOML file that ``HILUM_CONFIG`` names.
"""

import re
import tomllib
from base64 import b64encode
from collections.abc import Collection
from datetime import timedelta, tzinfo
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from service.core.errors import ConfigurationError
from service.core.states import Kind

AETitle = Annotated[
    str, Field(pattern=r"^[\x21-\x5b\x5d-\x7e]([\x20-\x5b\x5d-\x7e]{0,14}[\x21-\x5b\x5d-\x7e])?$")
]
Port = Annotated[int, Field(ge=1, le=65535)]
_LOOPBACK = {"127.0.0.1", "::1", "localhost"}
_DEFAULT_PORTS = {"http": 80, "https": 443}
_BEARER = re.compile(r"Bearer [A-Za-z0-9\-._~+/]+=*")  # RFC 6750 2.1
_USER_AND_PASSWORD = re.compile(r"(?!Bearer )[^:\x00-\x1f\x7f]+:[^\x00-\x1f\x7f]*")
_DURATION = re.compile(r"(?P<count>[1-9][0-9]{0,4})(?P<unit>[mhd])")
_UNITS = {"m": "minutes", "h": "hours", "d": "days"}
_TOKEN = re.compile(r"(?P<name>[\w.-]+):(?P<role>viewer|clinician|administrator):(?P<sha256>[0-9a-f]{64})")


def _duration(value: object) -> timedelta:
    """Read "90m", "24h" or "3d": a bare number would leave its unit open."""
    match = _DURATION.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError('a time is a number with its unit: "90m", "24h" or "3d"')
    return timedelta(**{_UNITS[match["unit"]]: int(match["count"])})


class Destination(BaseModel):
    """Where reports go: one storage SCP, or one STOW-RS server.

    Attributes
    ----------
    url
        ``dicom://AET@host:port``, or ``https://host/dicom-web``, below which ``/studies`` lies.
    credentials_file
        Of a STOW-RS server: a file with one line, ``user:password`` or ``Bearer TOKEN``.
    required
        Whether a study counts as delivered only with it.
    objects
        What it gets: the report itself ("sr"), and beside it heat maps, a text SR, presentation states, a
        PDF, and notes that reject what a newer revision replaces.
    heatmap
        For films with pneumonia, or for every analysed film.
    sr
        The form of the report: Comprehensive 3D SR, and Comprehensive SR where that is rejected;
        Comprehensive SR at once; the text SR in its place; none at all.
    not_analysed
        Which films that were not analysed are reported as such: those that their header calls chest
        radiographs, every radiograph, none.
    expires_after
        A report made later than this after the study's first image came is parked for a person.
    confirm
        How a delivery is proven: storage commitment, a C-FIND for each instance, not at all; None takes what
        the destination offers, in this order.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")
    url: str
    required: bool = True
    objects: tuple[Literal["sr", "heatmap", "text", "gsps", "pdf", "rejection"], ...] = ("sr", "heatmap")
    heatmap: Literal["positive", "always"] = "positive"
    sr: Literal["3d", "comprehensive", "text", "none"] = "3d"
    not_analysed: Literal["chest", "always", "never"] = "chest"
    expires_after: Annotated[timedelta, BeforeValidator(_duration)] | None = None
    confirm: Literal["commitment", "find", "qido", "none"] | None = None
    credentials_file: Path | None = None

    @field_validator("url")
    @classmethod
    def _is_known(cls, url: str) -> str:
        parts = urlsplit(url) if _scheme(url) else urlsplit("")
        if parts.scheme in _DEFAULT_PORTS:
            if parts.username is not None or parts.password is not None:
                raise ValueError("user and password do not belong into a URL: put them into credentials_file")
            if not parts.hostname or parts.query or parts.fragment:
                raise ValueError("a STOW-RS server is https://host/path, without ? and #")
        elif parts.scheme != "dicom":
            raise ValueError("a destination is dicom://AET@host:port or https://host/dicom-web")
        elif not (parts.username and parts.hostname and parts.port):
            raise ValueError("AE title, host and port are all needed: dicom://AET@host:port")
        return url

    @model_validator(mode="after")
    def _agree(self) -> Self:
        said = self.model_fields_set
        faults = []
        if "objects" in said and "sr" in said and ("sr" in self.objects) is (self.sr == "none"):
            faults.append(
                f'sr = "{self.sr}" and objects {"with" if self.sr == "none" else "without"} "sr" '
                "contradict each other: leave one of them out"
            )
        if self.sr_form == "text" and "text" in self.objects:
            faults.append('sr = "text" sends the text SR already: take "text" out of objects')
        if "heatmap" in said and "heatmap" not in self.objects:
            faults.append(f'heatmap = "{self.heatmap}" needs "heatmap" among objects')
        if "not_analysed" in said and self.not_analysed != "never" and not self.reads:
            faults.append(
                f'not_analysed = "{self.not_analysed}" is a report in words: it needs "sr", "text" or "pdf" '
                "among objects"
            )
        if self.confirm in (("commitment", "find") if self.is_dicomweb else ("qido",)):
            faults.append(f'confirm = "{self.confirm}" is not asked of {_scheme(self.url)}:// destinations')
        if self.sr_form == "none" and not set(self.objects) - {"sr", "rejection"}:
            faults.append("it gets nothing at all: name objects, or take the destination out")
        if self.credentials_file is not None:
            try:
                self.authorization()
            except ValueError as fault:
                faults.append(str(fault))
            if not self.is_dicomweb:
                faults.append("credentials_file is for https://…: C-STORE has no credentials")
        if faults:
            raise ValueError("; ".join(f"destination {self.name}: {fault}" for fault in faults))
        return self

    @property
    def sr_form(self) -> str:
        """The form of the report here: "3d", "comprehensive", "text" or "none"."""
        return self.sr if "sr" in self.objects else "none"

    @property
    def takes_documents(self) -> bool:
        """Whether it gets SR documents, of whatever kind."""
        return self.sr_form != "none" or "text" in self.objects

    @property
    def reads(self) -> bool:
        """Whether it gets a report in words, so that silence would say something."""
        return self.takes_documents or "pdf" in self.objects

    def wants(self, kind: Kind, finding: str, refused: Collection[str] = ()) -> bool:
        """Return whether this destination takes an object of `kind` on a study or film with `finding`.

        Not asked for "not analysed", which is `wants_not_analysed`'s. `refused`: the kinds that it is known
        not to take.
        """
        match kind:
            case Kind.SR:
                return self.sr_form == "3d" and kind not in refused
            case Kind.COMPREHENSIVE_SR:
                return self.sr_form == "comprehensive" or (self.sr_form == "3d" and Kind.SR in refused)
            case Kind.TEXT:
                return self.sr_form == "text" or "text" in self.objects
            case Kind.HEATMAP | Kind.PLAIN_HEATMAP:
                wanted = "heatmap" in self.objects and (self.heatmap == "always" or finding == "present")
                return wanted and (Kind.HEATMAP in refused) is (kind is Kind.PLAIN_HEATMAP)
            case _:
                return str(kind) in self.objects

    def wants_not_analysed(self, says_chest: bool) -> bool:
        """Return whether it takes the report of a study without an analysed film."""
        return self.reads and (self.not_analysed == "always" or (self.not_analysed == "chest" and says_chest))

    @property
    def is_dicomweb(self) -> bool:
        """Whether it is reached by STOW-RS, not by C-STORE."""
        return urlsplit(self.url).scheme in _DEFAULT_PORTS

    def authorization(self) -> str | None:
        """Return the value of the Authorization header, read anew so that changed credentials count.

        Raises
        ------
        ValueError
            When the file can't be read or holds something else; the message repeats none of it.
        """
        if self.credentials_file is None:
            return None
        try:
            line = self.credentials_file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as fault:
            why = getattr(fault, "strerror", None) or "no text"
            raise ValueError(f"credentials_file {self.credentials_file} can't be read ({why})") from None
        if _BEARER.fullmatch(line):
            return line
        if _USER_AND_PASSWORD.fullmatch(line):
            return f"Basic {b64encode(line.encode()).decode()}"
        raise ValueError(
            f"credentials_file {self.credentials_file} must hold one line, user:password or Bearer TOKEN"
        )

    @property
    def ae_title(self) -> str:
        return urlsplit(self.url).username or ""

    @property
    def host(self) -> str:
        return urlsplit(self.url).hostname or ""

    @property
    def port(self) -> int:
        parts = urlsplit(self.url)
        return parts.port or _DEFAULT_PORTS.get(parts.scheme, 0)


class Token(BaseModel):
    """One bearer token of the API, known by its SHA-256 only."""

    model_config = ConfigDict(frozen=True)

    name: str
    role: Literal["viewer", "clinician", "administrator"]
    sha256: str


class Settings(BaseSettings):
    """The frozen settings; `load` is the one way to make them."""

    model_config = SettingsConfigDict(
        env_prefix="HILUM_", env_file=".env", env_file_encoding="utf-8", frozen=True, extra="ignore"
    )

    config: Path | None = Field(
        None, description="TOML file for what one line can't say: `[destinations.NAME]`"
    )
    data_dir: Path = Field(Path("hilum-data"), description="Spool, SQLite ledger, embedded Redis, reports")
    ae_title: AETitle = Field("HILUM", description="Our AE title")
    dimse_host: str = Field("127.0.0.1", description="Address the listener binds")
    dimse_port: Port = Field(11112, description="Port of the listener")
    http_host: str = Field("127.0.0.1", description="Address the API binds")
    http_port: Port = Field(8080, description="Port of the API")
    destinations: Annotated[tuple[Destination, ...], NoDecode] = Field(
        (),
        description="Comma list of `NAME=dicom://AET@host:port` or `NAME=https://host/dicom-web` (STOW-RS); "
        "the name may be left out",
    )
    calling_ae_titles: Annotated[tuple[AETitle, ...], NoDecode] = Field(
        (), description="Comma list of AE titles that may send; empty admits any, with a warning"
    )
    broker_url: str | None = Field(None, description="`redis://…` or `rediss://…`; empty: the embedded Redis")
    database_url: str | None = Field(
        None, description="`postgresql+psycopg://…` or `sqlite:///…`; empty: SQLite in the data folder"
    )
    study_quiet_seconds: float = Field(
        30, ge=0, le=86400, description="Quiet time after the last new eligible image"
    )
    study_max_wait_seconds: float = Field(
        300, ge=0, le=86400, description="Longest wait after the first eligible image"
    )
    population: Literal["refuse", "flag"] = Field(
        "refuse",
        description="Patients outside the validated population: refused, or scored with the limit stated",
    )
    timezone: str | None = Field(None, description="IANA name for times we write; empty: the site's (TZ)")
    api_tokens: Annotated[tuple[Token, ...], NoDecode] = Field(
        (), description="Comma list of `name:role:sha256hex`; empty: the API answers on loopback only"
    )
    weights: Path | None = Field(None, description="A `.safetensors` file; empty: the weights that ship")
    min_free_bytes: int = Field(
        1_000_000_000,
        ge=0,
        description="Free space of the data folder under which C-STORE answers A700, STOW-RS 503",
    )
    # Three descriptors each: below the 1,024 that select takes.
    max_associations: int = Field(
        50, ge=1, le=200, description="Associations at a time; one more is rejected for now"
    )
    max_associations_per_address: int = Field(
        25,
        ge=0,
        description="Of them from one address; 0 behind a balancer that hides addresses: no limit",
    )
    max_associations_per_ae_title: int = Field(
        25, ge=0, description="Of them of one calling AE title; 0: no limit"
    )
    max_object_bytes: int = Field(
        1_000_000_000,
        ge=1,
        description="Longest object taken; C-STORE answers A700 to a longer one, STOW-RS 413",
    )
    max_uploads: int = Field(
        20, ge=1, le=200, description="STOW-RS requests at a time; one more is answered 503 for now"
    )

    @field_validator("config", "broker_url", "database_url", "timezone", "weights", mode="before")
    @classmethod
    def _empty_is_unset(cls, value: object) -> object:
        return None if value == "" else value

    @field_validator("destinations", mode="before")
    @classmethod
    def _parse_destinations(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        found = []
        for item in _items(value):
            name, separator, url = item.partition("=")
            if not separator or "://" in name:
                name, url = _default_name(item), item
            found.append({"name": name, "url": url})
        return found

    @field_validator("calling_ae_titles", mode="before")
    @classmethod
    def _parse_titles(cls, value: object) -> object:
        return tuple(_items(value)) if isinstance(value, str) else value

    @field_validator("api_tokens", mode="before")
    @classmethod
    def _parse_tokens(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        tokens = []
        for number, item in enumerate(_items(value), start=1):
            match = _TOKEN.fullmatch(item)
            if not match:
                raise ValueError(
                    f"token {number} is not name:role:sha256hex (viewer, clinician, administrator)"
                )
            tokens.append(match.groupdict())
        return tokens

    @field_validator("broker_url")
    @classmethod
    def _is_redis(cls, value: str | None) -> str | None:
        if value is not None and _scheme(value) not in {"redis", "rediss", "redis+socket"}:
            raise ValueError("the broker is Redis: redis://host:6379/0 or rediss://…")
        return value

    @field_validator("database_url")
    @classmethod
    def _is_known_database(cls, value: str | None) -> str | None:
        if value is not None and _scheme(value) not in {"sqlite", "postgresql", "postgresql+psycopg"}:
            raise ValueError("the ledger is postgresql+psycopg://user:password@host/name or sqlite:///path")
        return value

    @field_validator("timezone")
    @classmethod
    def _is_zone(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                ZoneInfo(value)
            except (ZoneInfoNotFoundError, ValueError):
                raise ValueError("not an IANA time zone name such as Europe/Berlin") from None
        return value

    @model_validator(mode="before")
    @classmethod
    def _read_config(cls, data: dict[str, object]) -> dict[str, object]:
        if data.get("config") and not data.get("destinations"):
            data["destinations"] = _destinations_of(Path(str(data["config"])))
        return data

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.study_max_wait_seconds < self.study_quiet_seconds:
            raise ValueError("HILUM_STUDY_MAX_WAIT_SECONDS is shorter than HILUM_STUDY_QUIET_SECONDS")
        names = [destination.name for destination in self.destinations]
        if len(names) != len(set(names)):
            raise ValueError("HILUM_DESTINATIONS names two destinations alike: give each NAME=dicom://…")
        if self.http_host not in _LOOPBACK and not self.api_tokens:
            raise ValueError(
                f"HILUM_HTTP_HOST={self.http_host} opens the API to the network without HILUM_API_TOKENS: "
                "set tokens (`hilum token`), or bind 127.0.0.1"
            )
        return self

    @property
    def sqlalchemy_url(self) -> str:
        """The ledger's URL."""
        return self.database_url or f"sqlite:///{self.data_dir.resolve() / 'ledger.sqlite3'}"

    @property
    def reports_every_radiograph(self) -> bool:
        """Whether a destination wants to hear of knees too."""
        return any(destination.wants_not_analysed(says_chest=False) for destination in self.destinations)

    @property
    def zone(self) -> tzinfo | None:
        """Zone of the times we write; None means the machine's own (TZ)."""
        return ZoneInfo(self.timezone) if self.timezone else None

    def destination(self, name: str) -> Destination | None:
        """Return the destination of that name, or None when it is no longer configured."""
        return next((item for item in self.destinations if item.name == name), None)


def load(**overrides: object) -> Settings:
    """Read environment, ``.env`` and the TOML file into frozen settings.

    Raises
    ------
    ConfigurationError
        With one line a fault, each naming its setting.
    """
    try:
        return Settings(**overrides)  # type: ignore[arg-type]
    except ValidationError as fault:
        lines = [_line(error["loc"], error["msg"]) for error in fault.errors(include_url=False)]
        raise ConfigurationError("\n".join(lines)) from None


def _destinations_of(path: Path) -> list[dict[str, object]]:
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as fault:
        raise ConfigurationError(f"HILUM_CONFIG: {path} can't be read ({fault.strerror})") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as fault:
        raise ConfigurationError(f"HILUM_CONFIG: {path} is no TOML: {fault}") from None
    unknown = sorted(set(table) - {"destinations"})
    if unknown:
        raise ConfigurationError(f"HILUM_CONFIG: {path} has an unknown table: {', '.join(unknown)}")
    return [{"name": name, **entry} for name, entry in table.get("destinations", {}).items()]


def _line(location: tuple[int | str, ...], message: str) -> str:
    message = message.removeprefix("Value error, ")
    if not location:
        return message
    name, *inside = (str(part) for part in location)
    return f"HILUM_{name.upper()}{''.join(f'[{part}]' for part in inside)}: {message}"


def _scheme(url: str) -> str | None:
    """Return the scheme of a URL, or None when it is none."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        return None
    return parts.scheme


def _default_name(url: str) -> str:
    """Return the AE title of a storage SCP, the host of a STOW-RS server."""
    if _scheme(url) is None:
        return ""
    parts = urlsplit(url)
    return (parts.hostname if parts.scheme in _DEFAULT_PORTS else parts.username) or ""


def _items(value: str) -> list[str]:
    return [item.strip() for item in value.split(",") if item.strip()]
