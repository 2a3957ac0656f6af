"""Where reports go: a destination, its address and what it gets."""

import re
import tomllib
from base64 import b64encode
from collections.abc import Collection
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEGBaseline8Bit

from service.core.errors import ConfigurationError
from service.core.hours import Hours
from service.core.states import Kind
from service.core.tls import TLSFiles, client_context

_DEFAULT_PORTS = {"http": 80, "https": 443}
_DIMSE, _TLS = {"dicom", "dicoms"}, {"dicoms", "https"}
_BEARER = re.compile(r"Bearer [A-Za-z0-9\-._~+/]+=*")  # RFC 6750 2.1
_USER_AND_PASSWORD = re.compile(r"(?!Bearer )[^:\x00-\x1f\x7f]+:[^\x00-\x1f\x7f]*")
_DURATION = re.compile(r"(?P<count>[1-9][0-9]{0,4})(?P<unit>[mhd])")
_TABLES = ("destinations", "peers", "notices")
_UNITS = {"m": "minutes", "h": "hours", "d": "days"}
SYNTAXES = {uid.keyword: uid for uid in (ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEGBaseline8Bit)}


def duration(value: object) -> timedelta:
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
        ``dicom://AET@host:port``, ``dicoms://…`` for TLS, or ``https://host/dicom-web``, below which
        ``/studies`` lies.
    credentials_file
        Of a STOW-RS server: a file with one line, ``user:password`` or ``Bearer TOKEN``.
    tls
        Of ``dicoms://`` and ``https://``: the CA that vouches for it, and the certificate that it is shown.
    required
        Whether a study counts as delivered only with it.
    objects
        What it gets: the report itself ("sr"), and beside it heat maps, a text SR, presentation states, a
        PDF, notes that reject what a newer revision replaces, and SRs of what readers say of results.
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
    transfer_syntaxes
        Keywords of what is offered by C-STORE and sent by STOW-RS; without JPEG heat maps go uncompressed.
    rate
        Objects a minute at most, in bursts of a tenth of it.
    hours
        When objects are sent, by the clock of HILUM_TIMEZONE; None: always.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")
    url: str
    required: bool = True
    objects: tuple[Literal["sr", "heatmap", "text", "gsps", "pdf", "rejection", "assessment"], ...] = (
        "sr",
        "heatmap",
    )
    heatmap: Literal["positive", "always"] = "positive"
    sr: Literal["3d", "comprehensive", "text", "none"] = "3d"
    not_analysed: Literal["chest", "always", "never"] = "chest"
    expires_after: Annotated[timedelta, BeforeValidator(duration)] | None = None
    confirm: Literal["commitment", "find", "qido", "none"] | None = None
    transfer_syntaxes: tuple[
        Literal["ExplicitVRLittleEndian", "ImplicitVRLittleEndian", "JPEGBaseline8Bit"], ...
    ] = ("ExplicitVRLittleEndian", "ImplicitVRLittleEndian", "JPEGBaseline8Bit")
    rate: Annotated[int, Field(ge=1, le=100_000)] | None = None
    hours: Annotated[Hours, BeforeValidator(Hours.parse)] | None = None
    credentials_file: Path | None = None
    tls: TLSFiles | None = None

    @field_validator("url")
    @classmethod
    def _is_known(cls, url: str) -> str:
        parts = urlsplit(url) if scheme(url) else urlsplit("")
        if parts.scheme in _DEFAULT_PORTS:
            if parts.username is not None or parts.password is not None:
                raise ValueError("user and password do not belong into a URL: put them into credentials_file")
            if not parts.hostname or parts.query or parts.fragment:
                raise ValueError("a STOW-RS server is https://host/path, without ? and #")
        elif parts.scheme not in _DIMSE:
            raise ValueError(
                "a destination is dicoms://AET@host:port, dicom://AET@host:port or https://host/dicom-web"
            )
        elif not (parts.username and parts.hostname and parts.port):
            raise ValueError(f"AE title, host and port are all needed: {parts.scheme}://AET@host:port")
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
            faults.append(f'confirm = "{self.confirm}" is not asked of {scheme(self.url)}:// destinations')
        if not {"ExplicitVRLittleEndian", *(() if self.is_dicomweb else ("ImplicitVRLittleEndian",))} & set(
            self.transfer_syntaxes
        ):
            faults.append(
                "transfer_syntaxes: reports are not compressed, so name "
                + (
                    "ExplicitVRLittleEndian (STOW-RS knows no other, PS3.18 8.7.3)"
                    if self.is_dicomweb
                    else "ExplicitVRLittleEndian or ImplicitVRLittleEndian"
                )
            )
        if self.sr_form == "none" and not set(self.objects) - {"sr", "rejection", "assessment"}:
            faults.append("it gets nothing at all: name objects, or take the destination out")
        faults += self._faults_of_files()
        if faults:
            raise ValueError("; ".join(f"destination {self.name}: {fault}" for fault in faults))
        return self

    def _faults_of_files(self) -> list[str]:
        faults = []
        if self.credentials_file is not None:
            try:
                self.authorization()
            except ValueError as fault:
                faults.append(str(fault))
            if not self.is_dicomweb:
                faults.append("credentials_file is for https://…: C-STORE has no credentials")
        if self.tls is not None and not self.is_tls:
            faults.append(f"tls is for dicoms:// and https://, and this one is {scheme(self.url)}://")
        elif self.tls is not None:
            try:
                client_context(self.tls)
            except ValueError as fault:
                faults.append(f"tls: {fault}")
        return faults

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
                plain = Kind.HEATMAP in refused or JPEGBaseline8Bit not in self.offers
                return wanted and plain is (kind is Kind.PLAIN_HEATMAP)
            case _:
                return str(kind) in self.objects

    def wants_not_analysed(self, says_chest: bool) -> bool:
        """Return whether it takes the report of a study without an analysed film."""
        return self.reads and (self.not_analysed == "always" or (self.not_analysed == "chest" and says_chest))

    @property
    def offers(self) -> frozenset[str]:
        """The UIDs of `transfer_syntaxes`."""
        return frozenset(SYNTAXES[keyword] for keyword in self.transfer_syntaxes)

    @property
    def is_dicomweb(self) -> bool:
        """Whether it is reached by STOW-RS, not by C-STORE."""
        return urlsplit(self.url).scheme in _DEFAULT_PORTS

    @property
    def is_tls(self) -> bool:
        """Whether the connection is encrypted and its certificate is checked."""
        return urlsplit(self.url).scheme in _TLS

    def with_our(self, files: TLSFiles) -> Self:
        """Return it with what our listener shows and believes, where it is ``dicoms://`` and silent."""
        if scheme(self.url) != "dicoms":
            return self
        given = self.tls or TLSFiles()
        if given.certificate_file is None and given.key_file is None:
            given = given.model_copy(
                update={"certificate_file": files.certificate_file, "key_file": files.key_file}
            )
        return self.model_copy(
            update={"tls": given.model_copy(update={"ca_file": given.ca_file or files.ca_file})}
        )

    def authorization(self) -> str | None:
        """Return the value of the Authorization header, read anew so that changed credentials count.

        Raises
        ------
        ValueError
            When the file can't be read or holds something else; the message repeats none of it.
        """
        if self.credentials_file is None:
            return None
        line = line_in(self.credentials_file, "credentials_file")
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


def line_in(path: Path, setting: str) -> str:
    """Return the line of a file with a secret; `setting` names the file.

    Raises
    ------
    ValueError
        When it can't be read; the message repeats none of it.
    """
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as fault:
        why = getattr(fault, "strerror", None) or "no text"
        raise ValueError(f"{setting} {path} can't be read ({why})") from None


def read_config(path: Path) -> dict[str, Any]:
    """Return the tables of the TOML file that `HILUM_CONFIG` names, and its list ``rules``.

    Raises
    ------
    ConfigurationError
        When it can't be read or holds something else.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as fault:
        raise ConfigurationError(f"HILUM_CONFIG: {path} can't be read ({fault.strerror})") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as fault:
        raise ConfigurationError(f"HILUM_CONFIG: {path} is no TOML: {fault}") from None
    unknown = sorted(set(table) - {*_TABLES, "rules"})
    if unknown:
        raise ConfigurationError(f"HILUM_CONFIG: {path} has an unknown table: {', '.join(unknown)}")
    for kind in _TABLES:
        entries = table.get(kind, {})
        if not isinstance(entries, dict) or not all(isinstance(entry, dict) for entry in entries.values()):
            raise ConfigurationError(f"HILUM_CONFIG: {path}: {kind} are tables, [{kind}.NAME]")
    return {**{kind: table.get(kind, {}) for kind in _TABLES}, "rules": table.get("rules", [])}


def default_name(url: str) -> str:
    """Return the AE title of a storage SCP, the host of a STOW-RS server."""
    if scheme(url) is None:
        return ""
    parts = urlsplit(url)
    return (parts.hostname if parts.scheme in _DEFAULT_PORTS else parts.username) or ""


def scheme(url: str) -> str | None:
    """Return the scheme of a URL, or None when it is none."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        return None
    return parts.scheme
