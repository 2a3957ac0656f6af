"""Every setting of Hilum: read once, frozen, passed in.

Environment variables with the prefix ``HILUM_``, else the same names in a ``.env`` file, else a file of that
name in a folder of secrets; an empty value is none. A wrong value stops the start, with every fault listed at
once. What one line can't say stands in the TOML file that ``HILUM_CONFIG`` names.
"""

import os
import re
from collections.abc import Mapping, Sequence
from datetime import tzinfo
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from service.core.admission import AETitle, Peer
from service.core.destination import Destination, default_name, read_config, scheme
from service.core.errors import ConfigurationError
from service.core.notices import Channel
from service.core.rules import Rule
from service.core.rules import parse as parse_rules
from service.core.tls import TLSFiles, client_context
from service.core.tokens import Token
from service.core.tokens import parse as parse_tokens
from service.core.working_hours import Span
from service.core.working_hours import parse as parse_hours

Port = Annotated[int, Field(ge=1, le=65535)]
_LOOPBACK = {"127.0.0.1", "::1", "localhost"}
_HOST_AND_PORT = re.compile(r"(?P<host>\[[0-9a-fA-F:.]+\]|[\w.-]+):(?P<port>[0-9]{1,5})")


class SyslogServer(BaseModel):
    """Where audit messages go."""

    model_config = ConfigDict(frozen=True)

    host: str
    port: Port

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Settings(BaseSettings):
    """The frozen settings; `load` is the one way to make them."""

    model_config = SettingsConfigDict(
        env_prefix="HILUM_",
        env_file=".env",
        env_file_encoding="utf-8",
        env_ignore_empty=True,
        frozen=True,
        extra="ignore",
    )

    config: Path | None = Field(
        None,
        description="TOML file for what one line can't say: `[destinations.NAME]`, `[[rules]]`, "
        "`[peers.NAME]`, `[notices.NAME]`",
    )
    data_dir: Path = Field(Path("hilum-data"), description="Spool, SQLite ledger, embedded Redis, reports")
    ae_title: AETitle = Field("HILUM", description="Our AE title")
    dimse_host: str = Field("127.0.0.1", description="Address the listener binds")
    dimse_port: Port | None = Field(
        11112, description="Port of the listener without TLS; `off`: there is none"
    )
    dimse_tls_port: Port | None = Field(
        None, description="Port of the listener with TLS, 2762 by custom; empty or `off`: there is none"
    )
    dimse_tls_certificate_file: Path | None = Field(
        None, description="Our certificate for DICOM over TLS (PEM), with what stands between it and its CA"
    )
    dimse_tls_key_file: Path | None = Field(
        None, description="Its private key (PEM, no password), readable by its owner alone"
    )
    dimse_tls_ca_file: Path | None = Field(
        None, description="The CAs that vouch for peers and `dicoms://` destinations (PEM)"
    )
    http_host: str = Field("127.0.0.1", description="Address the API binds")
    http_port: Port = Field(8080, description="Port of the API")
    destinations: Annotated[tuple[Destination, ...], NoDecode] = Field(
        (),
        description="Comma list of `NAME=dicom://AET@host:port` (`dicoms://…`: TLS) or "
        "`NAME=https://host/dicom-web` (STOW-RS); the name may be left out",
    )
    # Of the file alone: no variable of the environment has such a name.
    rules: Annotated[tuple[Rule, ...], NoDecode] = Field((), validation_alias="[[rules]]")
    # The tables of the file that do not count, since the environment says the same.
    overruled: Annotated[tuple[str, ...], NoDecode] = Field((), validation_alias="[overruled]")
    calling_ae_titles: Annotated[tuple[Peer, ...], NoDecode] = Field(
        (),
        description="Comma list of AE titles that may send, short for `[peers.NAME]`; without either "
        "any may, from this machine",
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
    trusted_proxies: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="Comma list of addresses and networks of TLS proxies before the API, whose "
        "X-Forwarded-For and X-Forwarded-Proto are believed",
    )
    public_url: str | None = Field(
        None,
        description="Where browsers find the pages, such as `https://hilum.hospital.local`; with it reports "
        "carry a signed link for feedback",
    )
    feedback_link_days: float = Field(
        30, gt=0, le=3650, description="Days after which a link in a report opens nothing any more"
    )
    review_share: float = Field(
        0.05,
        ge=0,
        le=1,
        description="Share of the negatives that readers are asked to review, so that sensitivity can be "
        "estimated; 0: none",
    )
    weights: Path | None = Field(None, description="A `.safetensors` file; empty: the weights that ship")
    engine: Literal["auto", "torch"] = Field(
        "auto",
        description="What computes the network: `auto`: a CUDA graph in half precision on a GPU, ONNX "
        "Runtime on a processor, where they give what torch gives; `torch`: torch",
    )
    min_free_bytes: int = Field(
        1_000_000_000,
        ge=0,
        description="Free space of the data folder under which C-STORE answers A700, STOW-RS 503",
    )
    retain_days: float = Field(
        30,
        gt=0,
        description="Days after which a study that is delivered and confirmed loses its files; results stay",
    )
    retain_unfinished_days: float = Field(
        90,
        gt=0,
        description="Days after which any other study (failed, parked, held, undeliverable) loses its files, "
        "and a person is told",
    )
    retain_free_bytes: int | None = Field(
        None,
        ge=0,
        description="Free space of the data folder under which the oldest delivered and confirmed studies "
        "lose their files earlier; empty: five times HILUM_MIN_FREE_BYTES",
    )
    listener_processes: int = Field(
        2, ge=1, le=16, description="Processes of a listener, which share its ports and its associations"
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
    audit_syslog: SyslogServer | None = Field(
        None,
        description="`host:port` of a syslog server that gets the audit messages over TLS (RFC 5425), with "
        "the certificate and CAs of HILUM_DIMSE_TLS_…; empty: they stay in the data folder",
    )
    notices: Annotated[tuple[Channel, ...], NoDecode] = Field(
        (),
        description="Comma list of webhooks that are told of trouble, `NAME=https://…`, short for "
        "`[notices.NAME]`",
    )
    working_hours: str = Field(
        "Mon-Fri 08:00-17:00",
        description="When studies are expected, in HILUM_TIMEZONE; silence is counted in it. A comma list",
    )
    log_format: Literal["auto", "json", "text"] = Field(
        "auto", description="Lines of the log: JSON, or text for people; `auto`: text on a terminal"
    )
    max_uploads: int = Field(
        20, ge=1, le=200, description="STOW-RS requests at a time; one more is answered 503 for now"
    )

    @field_validator(
        "config",
        "broker_url",
        "database_url",
        "timezone",
        "public_url",
        "weights",
        "retain_free_bytes",
        "dimse_tls_port",
        "dimse_tls_certificate_file",
        "dimse_tls_key_file",
        "dimse_tls_ca_file",
        "audit_syslog",
        mode="before",
    )
    @classmethod
    def _empty_is_unset(cls, value: object) -> object:
        return None if value == "" else value

    @field_validator("dimse_port", "dimse_tls_port", mode="before")
    @classmethod
    def _off_is_none(cls, value: object) -> object:
        return None if value == "off" else value

    @field_validator("destinations", mode="before")
    @classmethod
    def _parse_destinations(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        found = []
        for item in _items(value):
            name, separator, url = item.partition("=")
            if not separator or "://" in name:
                name, url = default_name(item), item
            found.append({"name": name, "url": url})
        return found

    @field_validator("destinations")
    @classmethod
    def _show_our_certificate(
        cls, value: tuple[Destination, ...], info: ValidationInfo
    ) -> tuple[Destination, ...]:
        return tuple(item.with_our(_tls_files(info.data)) for item in value)

    @field_validator("rules", mode="before")
    @classmethod
    def _parse_rules(cls, value: object, info: ValidationInfo) -> object:
        destinations: tuple[Destination, ...] | None = info.data.get("destinations")
        return parse_rules(value, None if destinations is None else [item.name for item in destinations])

    @field_validator("calling_ae_titles", mode="before")
    @classmethod
    def _parse_titles(cls, value: object) -> object:
        items = _items(value) if isinstance(value, str) else value
        if not isinstance(items, Sequence):
            return value
        return [{"ae_title": item} if isinstance(item, str) else item for item in items]

    @field_validator("audit_syslog", mode="before")
    @classmethod
    def _parse_syslog(cls, value: object) -> object:
        if not isinstance(value, str) or not value:
            return value
        match = _HOST_AND_PORT.fullmatch(value)
        if match is None:
            raise ValueError("a syslog server is host:port, such as audit.hospital.local:6514")
        return {"host": match["host"].strip("[]"), "port": match["port"]}

    @field_validator("api_tokens", mode="before")
    @classmethod
    def _parse_tokens(cls, value: object) -> object:
        return parse_tokens(_items(value)) if isinstance(value, str) else value

    @field_validator("trusted_proxies", mode="before")
    @classmethod
    def _parse_proxies(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        networks = [str(ip_network(item)) for item in _items(value)]
        if any(network.endswith("/0") for network in networks):
            raise ValueError("that is everybody: name the proxy's address")
        return networks

    @field_validator("notices", mode="before")
    @classmethod
    def _parse_notices(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        pairs = (item.partition("=") for item in _items(value))
        return [{"name": name, "url": url} for name, _, url in pairs]

    @field_validator("working_hours")
    @classmethod
    def _are_hours(cls, value: str) -> str:
        parse_hours(value)
        return value

    @field_validator("broker_url")
    @classmethod
    def _is_redis(cls, value: str | None) -> str | None:
        if value is not None and scheme(value) not in {"redis", "rediss", "redis+socket"}:
            raise ValueError("the broker is Redis: redis://host:6379/0 or rediss://…")
        return value

    @field_validator("database_url")
    @classmethod
    def _is_known_database(cls, value: str | None) -> str | None:
        if value is not None and scheme(value) not in {"sqlite", "postgresql", "postgresql+psycopg"}:
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

    @field_validator("public_url")
    @classmethod
    def _is_public_url(cls, value: str | None) -> str | None:
        if value is None:
            return None
        parts = urlsplit(value) if scheme(value) in ("http", "https") else urlsplit("")
        is_plain = not (parts.username or parts.query or parts.fragment or parts.path.strip("/"))
        if not (value.isascii() and parts.hostname and is_plain):
            raise ValueError("the public address is https://host or https://host:port, and nothing after it")
        return f"{parts.scheme}://{parts.netloc}"

    @model_validator(mode="before")
    @classmethod
    def _read_config(cls, data: dict[str, object]) -> dict[str, object]:
        if not data.get("config"):
            return data
        table = read_config(Path(str(data["config"])))
        both = (name for name in ("destinations", "notices") if data.get(name) and table[name])
        data["[overruled]"] = tuple(both)
        if not data.get("destinations"):
            data["destinations"] = [{"name": name, **entry} for name, entry in table["destinations"].items()]
        data["[[rules]]"] = table["rules"]
        if not data.get("notices"):
            data["notices"] = [{"name": name, **entry} for name, entry in table["notices"].items()]
        peers = [{"ae_title": name, **entry} for name, entry in table["peers"].items()]
        said = [peer["ae_title"] for peer in peers]
        given = data.get("calling_ae_titles") or ()
        others = _items(given) if isinstance(given, str) else list(given)  # type: ignore[call-overload]
        data["calling_ae_titles"] = [*peers, *(item for item in others if item not in said)]
        return data

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.study_max_wait_seconds < self.study_quiet_seconds:
            raise ValueError("HILUM_STUDY_MAX_WAIT_SECONDS is shorter than HILUM_STUDY_QUIET_SECONDS")
        if self.retain_unfinished_days < self.retain_days:
            raise ValueError("HILUM_RETAIN_UNFINISHED_DAYS is shorter than HILUM_RETAIN_DAYS")
        if self.retain_free_bytes is not None and self.retain_free_bytes < self.min_free_bytes:
            raise ValueError(
                "HILUM_RETAIN_FREE_BYTES is less than HILUM_MIN_FREE_BYTES: objects would be refused before "
                "room is made"
            )
        names = [destination.name for destination in self.destinations]
        if len(names) != len(set(names)):
            raise ValueError("HILUM_DESTINATIONS names two destinations alike: give each NAME=dicom://…")
        if faults := self._faults_of_dimse():
            raise ValueError("\n".join(faults))
        if self.http_host not in _LOOPBACK and not self.api_tokens:
            raise ValueError(
                f"HILUM_HTTP_HOST={self.http_host} opens the API to the network without HILUM_API_TOKENS: "
                "set tokens (`hilum token`), or bind 127.0.0.1"
            )
        return self

    def _faults_of_dimse(self) -> list[str]:
        faults = []
        titles = [peer.ae_title for peer in self.peers]
        if len(titles) != len(set(titles)):
            faults.append("HILUM_CALLING_AE_TITLES: two peers have the same AE title: make one entry of them")
        if self.dimse_port is None and self.dimse_tls_port is None:
            faults.append("HILUM_DIMSE_PORT=off leaves no port: set HILUM_DIMSE_TLS_PORT")
        elif self.dimse_port == self.dimse_tls_port:
            faults.append("HILUM_DIMSE_TLS_PORT is HILUM_DIMSE_PORT: each needs a port of its own")
        if self.dimse_port is not None and self.dimse_host not in _LOOPBACK and not self.peers:
            faults.append(
                f"HILUM_DIMSE_HOST={self.dimse_host} lets anybody in the network send: name who may in "
                "HILUM_CALLING_AE_TITLES or [peers.NAME], or bind 127.0.0.1"
            )
        # Without a file there is nothing to be wrong, and to read the machine's own CAs takes 24 ms.
        if any(file is not None for _, file in self.tls_files):
            try:
                client_context(self.tls_files)
            except ValueError as fault:
                faults.append(f"HILUM_DIMSE_TLS_…: {fault}")
        if self.dimse_tls_port is None:
            return faults
        for suffix, file in self.tls_files:
            if file is None:
                faults.append(f"HILUM_DIMSE_TLS_PORT needs HILUM_DIMSE_TLS_{suffix.upper()}")
        bound = any(peer.certificates for peer in self.peers)
        if not bound and not any(item.is_tls and not item.is_dicomweb for item in self.destinations):
            faults.append(
                "HILUM_DIMSE_TLS_PORT is open to nobody: name the certificates of [peers.NAME] in the "
                "file of HILUM_CONFIG"
            )
        return faults

    @property
    def peers(self) -> tuple[Peer, ...]:
        """Who may call: those of ``[peers.NAME]`` and of the short form."""
        return self.calling_ae_titles

    @property
    def tls_files(self) -> TLSFiles:
        """Our certificate and key, and the CAs of peers, for DICOM over TLS."""
        return _tls_files(vars(self))

    @property
    def dimse_ports(self) -> dict[str, int]:
        """The ports of the listener by their settings."""
        ports = {"HILUM_DIMSE_PORT": self.dimse_port, "HILUM_DIMSE_TLS_PORT": self.dimse_tls_port}
        return {name: port for name, port in ports.items() if port is not None}

    @property
    def sqlalchemy_url(self) -> str:
        """The ledger's URL."""
        return self.database_url or f"sqlite:///{self.data_dir.resolve() / 'ledger.sqlite3'}"

    @property
    def free_bytes_to_keep(self) -> int:
        """Free space of the data folder under which files are removed before their time."""
        return 5 * self.min_free_bytes if self.retain_free_bytes is None else self.retain_free_bytes

    @property
    def sends_assessments(self) -> bool:
        """Whether some destination gets SRs of what readers say."""
        return any("assessment" in destination.objects for destination in self.destinations)

    @property
    def reports_every_radiograph(self) -> bool:
        """Whether a destination wants to hear of knees too."""
        return any(destination.wants_not_analysed(says_chest=False) for destination in self.destinations)

    @property
    def zone(self) -> tzinfo | None:
        """Zone of the times we write; None means the machine's own (TZ)."""
        return ZoneInfo(self.timezone) if self.timezone else None

    @property
    def hours(self) -> tuple[Span, ...]:
        """When the site works."""
        return parse_hours(self.working_hours)

    def channel(self, name: str) -> Channel | None:
        """Return the channel of notices of that name, or None when it is no longer configured."""
        return next((item for item in self.notices if item.name == name), None)

    def destination(self, name: str) -> Destination | None:
        """Return the destination of that name, or None when it is no longer configured."""
        return next((item for item in self.destinations if item.name == name), None)


def secret_folders() -> list[Path]:
    """Return where secrets may lie as files: Docker's and Kubernetes' folder, and systemd's of this unit."""
    folders = [Path("/run/secrets"), Path(os.environ.get("CREDENTIALS_DIRECTORY", ""))]
    return [folder for folder in folders if folder.is_absolute() and folder.is_dir()]


def load(**overrides: object) -> Settings:
    """Read environment, ``.env``, secrets and the TOML file into frozen settings.

    Raises
    ------
    ConfigurationError
        With one line a fault, each naming its setting.
    """
    try:
        return Settings(_secrets_dir=secret_folders(), **overrides)  # type: ignore[arg-type, call-arg]
    except ValidationError as fault:
        lines = [_line(error["loc"], error["msg"]) for error in fault.errors(include_url=False)]
        raise ConfigurationError("\n".join(lines)) from None


def _line(location: tuple[int | str, ...], message: str) -> str:
    message = message.removeprefix("Value error, ")
    if not location or location[0] == "[[rules]]":
        return message
    name, *inside = (str(part) for part in location)
    return f"HILUM_{name.upper()}{''.join(f'[{part}]' for part in inside)}: {message}"


def _tls_files(values: Mapping[str, Any]) -> TLSFiles:
    names = ("ca_file", "certificate_file", "key_file")
    return TLSFiles(**{name: values.get(f"dimse_tls_{name}") for name in names})


def _items(value: str) -> list[str]:
    return [item.strip() for item in value.split(",") if item.strip()]
